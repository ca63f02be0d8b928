//! `vodka-train`: fine-tunes a Stable Diffusion 1.x checkpoint.

mod samples;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use serde_json::Value;
use vodka_cli::{Common, Progress, Session, in_words, runtime_dir};
use vodka_trainer::{
    AuditReport, FinderSettings, Result, Speed, TrainConfig, TrainEvent, TrainPlan, audit, find_lr, run,
};

/// Fine-tunes a Stable Diffusion 1.x checkpoint on pictures with captions
///
/// The configuration is EveryDream2's train.json; `data_root`, `resume_ckpt`, `output` and a learning rate are
/// required. Weights have 32 bits; on a GPU products are computed in 16 unless `precision` says otherwise. Exit codes: 0 done, 1 failed, 2 wrong configuration, 3 done but some pictures were
/// skipped, 4 interrupted (the same command goes on).
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Training configuration, EveryDream2's train.json
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Optimizer configuration, EveryDream2's optimizer.json in either form; goes before the key `optimizer_config`
    #[arg(long, value_name = "FILE")]
    optimizer: Option<PathBuf>,
    /// Sets a key of the training configuration; the value is JSON, or else a text: --set lr=1e-6 --set output=out
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, Value)>,
    /// What to do about an interrupted run in the output folder
    #[arg(long, value_enum, default_value_t = Resume::Latest)]
    resume: Resume,
    /// Try learning rates instead: a short run with a growing rate, whose weights are thrown away; writes a table, a graph
    /// and a suggestion into find-lr in the output folder
    #[arg(long)]
    find_lr: bool,
    /// The smallest rate to try
    #[arg(long, value_name = "LR", default_value_t = FinderSettings::default().lr_min, requires = "find_lr")]
    lr_min: f64,
    /// The largest rate to try
    #[arg(long, value_name = "LR", default_value_t = FinderSettings::default().lr_max, requires = "find_lr")]
    lr_max: f64,
    /// How many rates to try
    #[arg(long, value_name = "N", default_value_t = FinderSettings::default().steps, requires = "find_lr")]
    lr_steps: u64,
    /// Device: cpu, cuda or cuda:N; goes before the key `device`
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Look at the data and do nothing else: every picture is decoded, every caption counted
    #[arg(long)]
    audit: bool,
    /// What may be wrong with pictures, which are then left out; goes before the key `allow`
    #[arg(long, value_delimiter = ',', value_name = "FLAW", value_parser = ["unreadable", "no_caption"])]
    allow: Vec<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Resume {
    /// Go on from its state if it is this very run (same settings, pictures, captions and checkpoint), else start
    Latest,
    /// Start from the beginning, even if it was finished
    Never,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let session = Session::start(args.common);
    if args.audit {
        return session.stage(plan(&args), |plan, session| {
            let bar = session.progress("pictures", 0);
            let found = audit(plan, session.interrupt(), &mut |event| {
                if let TrainEvent::Audited { done, total } = event {
                    bar.set_total(total as u64);
                    bar.set(done as u64);
                }
            })?;
            Ok(found.unwrap_or_else(AuditReport::interrupted))
        });
    }
    if args.find_lr {
        return session.stage(finder(&args), |(plan, settings), session| {
            let bar = session.progress("steps", 0);
            bar.message("loading");
            find_lr(plan, settings, session.interrupt(), &mut |event| show(&bar, event))
        });
    }
    session.stage(plan(&args), |plan, session| {
        session.say(&plan.summary());
        let bar = session.progress("steps", 0);
        bar.message("loading");
        run(plan, session.interrupt(), &mut |event| match event {
            TrainEvent::Sample(round) => samples::answer(&round, session.interrupt(), &bar),
            event => show(&bar, event),
        })
    })
}

/// What is to be tried. A configuration without a learning rate will do.
fn finder(args: &Args) -> Result<(TrainPlan, FinderSettings)> {
    let settings = FinderSettings { lr_min: args.lr_min, lr_max: args.lr_max, steps: args.lr_steps };
    settings.check()?;
    let mut config = config(args)?;
    if config.optimizer_config.is_none() {
        config.lr.get_or_insert(settings.lr_max);
    }
    Ok((config.plan()?, settings))
}

fn plan(args: &Args) -> Result<TrainPlan> {
    config(args)?.plan()
}

fn config(args: &Args) -> Result<TrainConfig> {
    let mut config = TrainConfig::read(&args.config)?;
    for (key, value) in &args.set {
        config.set(key, value.clone())?;
    }
    if args.device.is_some() {
        config.device.clone_from(&args.device);
    }
    if let Some(optimizer) = &args.optimizer {
        config.optimizer_config = Some(optimizer.clone());
    }
    if !args.allow.is_empty() {
        config.set("allow", args.allow.clone().into())?;
    }
    config.runtime_dir = runtime_dir();
    config.start_over = args.resume == Resume::Never;
    Ok(config)
}

fn show(bar: &Progress, event: TrainEvent) {
    match event {
        TrainEvent::Notice(notice) => bar.line(format!("note: {notice}")),
        TrainEvent::Audited { done, total } => bar.message(format!("audit: {done} of {total} pictures")),
        TrainEvent::Audit(report) => bar.line(report.summary()),
        TrainEvent::Loaded { done, total } => bar.message(format!("loading pictures: {done} of {total}")),
        TrainEvent::Skipped(skipped) => bar.line(format!("skipped {}: {}", skipped.image, skipped.reason)),
        TrainEvent::Started { steps, done, .. } => {
            bar.set_total(steps);
            bar.start_at(done);
            bar.message("");
            if done > 0 {
                bar.line(format!("going on after step {done} of {steps}"));
            }
        }
        TrainEvent::Step { epoch, step, loss, speed, grad_scale } => {
            bar.set(step);
            let scale = grad_scale.map_or(String::new(), |scale| format!(", grad scale {scale:.0}"));
            bar.message(format!("epoch {epoch}, loss {loss:.4}, {}{scale}", pace(&speed)));
        }
        TrainEvent::StepLeftOut { what, epoch, step, pictures, scale } => {
            bar.line(left_out(what, epoch, step, &pictures, scale));
        }
        TrainEvent::Validated { step, set, loss } => bar.line(format!("step {step}: {set} {loss:.4}")),
        TrainEvent::StateSaved { path } => bar.line(format!("saved {}", path.display())),
        TrainEvent::StateRefused { path, reason } => {
            bar.line(format!("{} is damaged and passed over: {reason}", path.display()));
        }
        TrainEvent::CacheFailed { path, reason } => {
            bar.line(format!("cannot write to the cache {}: {reason}; going on without", path.display()));
        }
        TrainEvent::CacheTooSmall { needed_bytes, limit_bytes } => {
            let gb = |bytes: u64| bytes as f64 / 1e9;
            let (needed, limit) = (gb(needed_bytes), gb(limit_bytes));
            bar.line(format!(
                "the cache holds {limit:.1} GB, this run needs {needed:.1}: raise `cache_size_gb`"
            ));
        }
        TrainEvent::AnotherRun { path, change } => {
            bar.line(format!("{} is of another run: {change}; starting anew", path.display()));
        }
        TrainEvent::SamplesUnreadable { reason } => bar.line(format!("samples as before: {reason}")),
        TrainEvent::SamplesFailed { step, reason } => bar.line(format!("step {step}: no samples: {reason}")),
        TrainEvent::InterruptedNotSaved { reason } => {
            bar.line(format!("the state is saved, but no checkpoint for other programs: {reason}"));
        }
        TrainEvent::Epoch { epoch, epochs, loss, speed } => {
            let (pace, left) = (pace(&speed), in_words(speed.left_s));
            bar.line(format!("epoch {epoch} of {epochs}: loss {loss:.4}, {pace}, {left} left"));
        }
        TrainEvent::Diverges { step, set } => {
            bar.line(format!(
                "step {step}: the loss of {set} has been rising: an earlier checkpoint may be better"
            ));
        }
        TrainEvent::Saved { path } => bar.line(format!("wrote {}", path.display())),
        _ => {}
    }
}

/// How fast it goes, and what it holds in memory.
fn pace(speed: &Speed) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let gpu = speed.gpu_peak_bytes.map_or(String::new(), |peak| format!(", {:.1} GiB of the GPU", gib(peak)));
    format!("{:.2} images/s, {:.1} GiB{gpu}", speed.images_per_s, gib(speed.memory_bytes))
}

fn left_out(what: &str, epoch: u64, step: u64, pictures: &[PathBuf], scale: Option<f32>) -> String {
    let names: Vec<_> = pictures.iter().map(|path| path.display().to_string()).collect();
    let scale = scale.map_or(String::new(), |scale| format!("; losses are now scaled by {scale}"));
    let names = names.join(", ");
    format!("step {step} (epoch {epoch}) is left out, its {what} is not finite: {names}{scale}")
}

fn key_and_value(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((key.to_owned(), value))
}
