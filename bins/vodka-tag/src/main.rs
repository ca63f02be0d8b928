//! Tags a folder of pictures with WD14-family taggers.

use std::{collections::BTreeMap, env, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use vodka_cli::{Common, Exit, Progress, Session, runtime_dir};
use vodka_stage::ContentHash;
use vodka_tagger::{
    Combine, Error, Profile, ProviderChoice, Result, TagConfig, TagEvent,
    hub::{self, HubConfig, ModelRef},
    int8::QuantizePlan,
    run,
};

/// Score every picture of a folder with a tagger, and write the table of tags
///
/// Beside the table of tags comes one of pictures (size, hashes, sharpness), STEM.pictures, and a list of those that cannot be
/// read, STEM.skipped.csv (exit code 3). Killed or interrupted, the same command goes on from there; run again, it tags what was
/// added or changed since, and nothing else.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    tag: Option<Tag>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a copy of a model that computes in 8 bits where it can: faster on a processor, scores a little off
    Quantize {
        /// Folder of the model
        model: PathBuf,
        /// Folder to write, with the new network and copies of the other files
        output: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Tag {
    /// Folder of a model (network and labels), or its name on the Hugging Face hub: OWNER/NAME, with
    /// /SUBFOLDER and @REVISION where it takes them. Given again, the scores of all models are put together
    #[arg(long, value_name = "MODEL", required = true)]
    model: Vec<PathBuf>,
    /// How the scores of several models become one: mean, max, or vote (the share of models whose threshold is reached)
    #[arg(long, value_name = "HOW", default_value_t)]
    combine: Combine,
    /// Family of the models, where it cannot be found out: wd-v3, wd-v1.4, joytag, ... (see the tagger's README)
    #[arg(long, value_name = "NAME")]
    family: Option<String>,
    /// Folder of pictures, searched with its subfolders
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Table to write, .parquet or .csv
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Lowest score that is written, 0 to 1
    #[arg(long, value_name = "SCORE", default_value_t = TagConfig::default_min_score())]
    min_score: f64,
    /// Write a table of embeddings too, STEM.embeddings.parquet: what the network sees in each picture, as a list of numbers
    #[arg(long)]
    embeddings: bool,
    /// Whose arithmetic prepares the pictures: reference (the model's author), kohya, or fast
    #[arg(long, value_name = "NAME", default_value_t)]
    profile: Profile,
    /// Pictures that the model gets at once; 0 for what suits the provider
    #[arg(long, value_name = "N", default_value_t = 0)]
    batch: usize,
    /// Threads that decode, and threads that the model uses; 0 for one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Where the model runs: cpu, cuda, tensorrt, openvino, directml or coreml (an error where it is not available), or
    /// auto for the fastest there is
    #[arg(long, value_name = "NAME", default_value_t)]
    provider: ProviderChoice,
    /// Leave pictures as they are stored, whatever their EXIF orientation says
    #[arg(long)]
    ignore_orientation: bool,
    /// Most pixels that a picture may have; larger ones are skipped
    #[arg(long, value_name = "N", default_value_t = TagConfig::default_max_pixels())]
    max_pixels: u64,
    /// Take models of the hub from the cache alone (as HF_HUB_OFFLINE=1)
    #[arg(long)]
    offline: bool,
    /// SHA-256 that the first model's network must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<ContentHash>,
}

impl Tag {
    fn run(self, session: &Session) -> ExitCode {
        let mut hub = HubConfig::from_vars(|name| env::var_os(name));
        hub.offline |= self.offline;
        hub.sha256 = self.sha256;
        hub.family.clone_from(&self.family);
        if session.common().dry_run {
            match self.missing(&hub) {
                Ok(missing) if missing.is_empty() => {}
                Ok(missing) => {
                    session.say("these models would be downloaded first; what follows depends on them");
                    return session.print_json(&BTreeMap::from([("download", missing)]), Exit::Done);
                }
                Err(error) => return session.fail(&error, Exit::Usage),
            }
        }
        match self.models(session, hub) {
            Ok(models) => session.stage_with(
                self.config(models).plan(),
                |plan, session| {
                    let mut bar = None;
                    run(plan, session.interrupt(), &mut |event| show(session, &mut bar, event))
                },
                |error| matches!(error, Error::Setting { .. }),
            ),
            Err(error) => session.fail(&error, exit_of(&error)),
        }
    }

    /// The models that are not on this machine.
    fn missing(&self, hub: &HubConfig) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for model in self.model.iter().map(ModelRef::parse) {
            if !hub.offline && hub::is_missing(&model, hub)? {
                missing.push(model.to_string());
            }
        }
        Ok(missing)
    }

    /// The folders of the models.
    fn models(&self, session: &Session, mut hub: HubConfig) -> Result<Vec<PathBuf>> {
        let mut models = Vec::new();
        for model in &self.model {
            models.push(download(session, model, &hub)?);
            hub.sha256 = None;
        }
        Ok(models)
    }

    fn config(self, models: Vec<PathBuf>) -> TagConfig {
        let mut models = models.into_iter();
        let model = models.next().expect("clap wants one at least");
        let (provider, onnxruntime) = self.provider.resolve(&runtime_dir());
        TagConfig {
            ensemble: models.collect(),
            combine: self.combine,
            family: self.family,
            min_score: self.min_score,
            embeddings: self.embeddings,
            profile: self.profile,
            batch: self.batch,
            threads: self.threads,
            provider,
            ignore_orientation: self.ignore_orientation,
            max_pixels: self.max_pixels,
            onnxruntime,
            ..TagConfig::new(model, self.images, self.output)
        }
    }
}

/// How the process ends where there is no model: a download that fails is no wrong word of the user's.
fn exit_of(error: &Error) -> Exit {
    match error {
        Error::Interrupted { .. } => Exit::Interrupted,
        Error::UnknownFamily { .. } | Error::NotCached { .. } | Error::NoFolder { .. } => Exit::Usage,
        _ => Exit::Failed,
    }
}

fn main() -> ExitCode {
    let Arguments { command, tag, common } = Arguments::parse();
    let session = Session::start(common);
    match (command, tag) {
        (Some(Command::Quantize { model, output }), _) => {
            session.stage(QuantizePlan::new(model, output), |plan, _| plan.run())
        }
        (None, Some(tag)) => tag.run(&session),
        (None, None) => unreachable!("clap wants the one or the other"),
    }
}

/// The folder of a model, downloaded where it is not here.
fn download(session: &Session, model: &PathBuf, config: &HubConfig) -> Result<PathBuf> {
    let mut bar: Option<(String, Progress)> = None;
    hub::resolve(&ModelRef::parse(model), config, session.interrupt(), &mut |download| {
        if bar.as_ref().is_none_or(|(file, _)| file != download.file) {
            bar = Some((download.file.to_owned(), session.progress("bytes", download.total)));
        }
        if let Some((file, bar)) = &bar {
            bar.message(file);
            bar.set(download.done);
        }
    })
}

/// The bar comes with the first event, when it is known that there is something to do.
fn show(session: &Session, bar: &mut Option<Progress>, event: TagEvent) {
    let bar = bar.get_or_insert_with(|| session.progress("pictures", 0));
    match event {
        TagEvent::Started { total, resumed, provider } => {
            bar.set_total(total as u64);
            bar.start_at(resumed as u64);
            bar.message(provider.name());
            if resumed > 0 {
                bar.line(format!("going on after {resumed} of {total} pictures"));
            }
        }
        TagEvent::Skipped { image, reason } => bar.line(format!("skipped {image}: {reason}")),
        TagEvent::Progress { done, speed } => {
            bar.message(format!("network busy {:.0} %", 100.0 * speed.network_busy));
            bar.set(done as u64);
        }
    }
}
