//! The whole workflow, from one recipe.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use vodka_cli::{Common, Exit, Progress as Bar, Session, hash_cache, runtime_dir};
use vodka_stage::{Interrupt, Outcome};
use vodka_workflow::{
    Choose, ChooseConfig, CompareConfig, ComparePlan, Download, Error, HubConfig, Job, ProbeConfig,
    ProbePlan, Progress, TEMPLATE, Workflow, WorkflowEvent, WorkflowReport, choose::Rule, of_probe,
};

/// Tags, captions, fine-tunes, mixes, compares and measures, as one recipe says
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a commented recipe with the numbers of Vodka V3
    Init {
        /// The file to write; one that is there already is left alone
        #[arg(default_value = "recipe.toml")]
        recipe: PathBuf,
    },
    /// Make what is not there yet, or not as the recipe has it
    Run(Which),
    /// Tell how every job stands; run nothing
    Status(Which),
    /// Measure what tags do to the pictures of models
    ///
    /// For each tag and each model, pictures of the same seeds: the tag alone, before a prompt, not there, and in the
    /// negative prompt. The tagger scores them; tables, charts, galleries and a page tell which tags respond, beside what
    /// is found of what was asked for, and whether pictures are fried.
    Probe {
        /// Models, tagger and `[probe]`: docs/probing.md has all keys
        file: PathBuf,
        /// The folder to fill
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Put experiments beside each other: what was done differently, and what came out
    ///
    /// Reads the records of the runs, and the pictures of one probe of each. Numbers are compared with the first run's, by pictures of the same seeds
    /// and prompts.
    Compare {
        /// The output folders of runs, or folders of probes; the others are compared with the first
        #[arg(required = true, num_args = 2.., value_name = "RUN")]
        runs: Vec<PathBuf>,
        /// The probe of each run, where there are several
        #[arg(long, value_name = "NAME")]
        probe: Option<String>,
        /// A model to show, again for more; without, all of them, each file once
        #[arg(long = "model", value_name = "NAME")]
        models: Vec<String>,
        /// The folder to fill
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Choose one of the models of a probe, by its numbers
    ///
    /// Takes the candidate with the largest response to the tag, among those whose adherence and friedness are within the limits, and tells
    /// which candidates the numbers do not tell apart from it.
    Choose {
        /// The folder of the probe
        probe: PathBuf,
        /// The tag whose response counts
        #[arg(long)]
        tag: String,
        /// A candidate, again for more; without, all models but the reference
        #[arg(long, value_name = "MODEL")]
        among: Vec<String>,
        /// The reference for adherence; without, the one that the probe compares with
        #[arg(long, value_name = "MODEL")]
        against: Option<String>,
        /// So much less adherence than the reference a candidate may have [default: 0.05]
        #[arg(long, value_name = "SHARE")]
        max_adherence_loss: Option<f64>,
        /// So much more fried than the training set a candidate may be [default: 0.1]
        #[arg(long, value_name = "SHARE")]
        max_fried: Option<f64>,
        /// The model to take whatever the numbers say
        #[arg(long, value_name = "MODEL")]
        choose: Option<String>,
        /// The folder to fill
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
}

/// A recipe, and what this run has else than it says.
#[derive(Debug, clap::Args)]
struct Which {
    /// The recipe
    recipe: PathBuf,
    /// Another folder for everything that is made: a second run beside the first
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Another seed for every training
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let session = Session::start(args.common);
    match &args.command {
        Command::Init { recipe } => init(&session, recipe),
        Command::Run(which) => run(&session, which),
        Command::Status(which) => status(&session, which),
        Command::Probe { file, output } => probe(&session, file, output),
        Command::Compare { runs, probe, models, output } => compare(
            &session,
            &CompareConfig {
                runs: runs.clone(),
                probe: probe.clone(),
                models: models.clone(),
                output: output.clone(),
            },
        ),
        choose @ Command::Choose { .. } => session.stage_with(
            choose_config(choose).plan(),
            |plan, _| {
                vodka_workflow::choose::run(plan).map_err(|source| Error::Stage {
                    job: format!("choose {}", plan.config.choose.name),
                    source,
                })
            },
            Error::is_usage,
        ),
    }
}

fn init(session: &Session, recipe: &Path) -> ExitCode {
    if session.common().dry_run {
        return session.print(TEMPLATE.trim_end(), Exit::Done);
    }
    if recipe.exists() {
        let error = format!("`{}` is there already", recipe.display());
        return session.fail(&*Box::<dyn std::error::Error>::from(error), Exit::Usage);
    }
    match vodka_stage::write_atomic(recipe, TEMPLATE) {
        Ok(()) => {
            session.say(&format!("wrote {}; set its paths, then: vodka run {0}", recipe.display()));
            Exit::Done.into()
        }
        Err(error) => session.fail(&error, Exit::Failed),
    }
}

/// Reads a recipe; of taggers on the hub only a run downloads what is not here.
fn open(session: &Session, which: &Which, downloads: bool) -> vodka_workflow::Result<Workflow> {
    let mut workflow = Workflow::open(&which.recipe, runtime_dir())?.with_hash_cache(hash_cache());
    if let Some(output) = &which.output {
        workflow = workflow.with_output(output.clone());
    }
    if let Some(seed) = which.seed {
        workflow = workflow.with_seed(seed.into());
    }
    let mut hub = HubConfig::from_vars(|name| env::var_os(name));
    hub.offline |= !downloads;
    let mut bar: Option<(String, Bar)> = None;
    workflow.fetch(&hub, session.interrupt(), &mut |Download { file, done, total }| {
        if bar.as_ref().is_none_or(|(name, _)| name != file) {
            bar = Some((file.to_owned(), session.progress("bytes", total)));
        }
        if let Some((file, bar)) = &bar {
            bar.message(file);
            bar.set(done);
        }
    })?;
    Ok(workflow)
}

fn run(session: &Session, which: &Which) -> ExitCode {
    let workflow = match open(session, which, !session.common().dry_run) {
        Ok(workflow) => workflow,
        Err(error @ Error::Interrupted { .. }) => return session.fail(&error, Exit::Interrupted),
        Err(error) => return session.fail(&error, Exit::Usage),
    };
    if session.common().dry_run {
        return match workflow.check() {
            Ok(plans) => session.print_json(&plans, Exit::Done),
            Err(error) => session.fail(&error, Exit::Usage),
        };
    }
    match work(session, &workflow, session.interrupt()) {
        Ok(report) => session.finish(&report),
        Err(error) => fail(session, &error),
    }
}

/// Wrong settings are the recipe's fault; all else is a failure.
fn fail(session: &Session, error: &Error) -> ExitCode {
    session.fail(error, if error.is_usage() { Exit::Usage } else { Exit::Failed })
}

/// Runs with an overview: a line for each job that is through, and a bar for those at work.
fn work(
    session: &Session,
    workflow: &Workflow,
    interrupt: &Interrupt,
) -> vodka_workflow::Result<WorkflowReport> {
    let mut at_work = AtWork::default();
    vodka_workflow::run(workflow, interrupt, &mut |event| match event {
        WorkflowEvent::Begins { job, number, of } => {
            let bar = at_work.bar.take().unwrap_or_else(|| session.progress("", 0));
            at_work.jobs.insert(job.clone(), (0, 0));
            let names: Vec<_> = at_work.jobs.keys().map(ToString::to_string).collect();
            bar.message(format!("{number}/{of} {}", names.join(", ")));
            at_work.bar = Some(bar);
        }
        WorkflowEvent::Progress { job, progress } => at_work.show(job, progress),
        WorkflowEvent::Failed { job, error } => {
            at_work.end(job);
            // The first is told at the end, with its causes.
            if let Some(bar) = &at_work.bar {
                bar.line(format!("{:<32} failed             {error}", job.to_string()));
            }
        }
        WorkflowEvent::Ends { report } => {
            at_work.end(&report.job);
            let verb = match report.outcome {
                Outcome::Done => "done",
                Outcome::Skipped => "done, with skips",
                Outcome::Unchanged => "unchanged",
                Outcome::Interrupted => "interrupted",
            };
            let first = report.text.lines().next().unwrap_or_default();
            let line = format!("{:<32} {verb:<18} {first}", report.job.to_string());
            match &at_work.bar {
                Some(bar) => bar.line(line),
                None => session.say(&line),
            }
        }
    })
}

/// The jobs at work, with how much of each is done and of what; one bar shows their sums.
#[derive(Default)]
struct AtWork {
    bar: Option<Bar>,
    jobs: BTreeMap<Job, (u64, u64)>,
}

impl AtWork {
    fn show(&mut self, job: &Job, progress: Progress) {
        let (Some(bar), Some(found)) = (&self.bar, self.jobs.get_mut(job)) else { return };
        match progress {
            Progress::Note(note) => return show(bar, &Progress::Note(note)),
            Progress::Units(done, total) => *found = (done, total),
            Progress::Done(done) => found.0 = done,
        }
        let sums = self.jobs.values().fold((0, 0), |sums, job| (sums.0 + job.0, sums.1 + job.1));
        show(bar, &Progress::Units(sums.0, sums.1));
    }

    /// The bar goes with the last job.
    fn end(&mut self, job: &Job) {
        self.jobs.remove(job);
        if self.jobs.is_empty() {
            self.bar = None;
        }
    }
}

fn show(bar: &Bar, progress: &Progress) {
    match progress {
        Progress::Units(done, total) => {
            bar.set_total(*total);
            bar.set(*done);
        }
        Progress::Done(done) => bar.set(*done),
        Progress::Note(note) => bar.line(format!("  {note}")),
    }
}

fn probe(session: &Session, file: &Path, output: &Path) -> ExitCode {
    let plan = ProbeConfig::read(file, output.to_path_buf(), &runtime_dir())
        .and_then(|config| ProbeConfig { hash_cache: hash_cache(), ..config }.plan());
    let run = |plan: &ProbePlan, session: &Session| {
        let bar = session.progress("pictures", 0);
        let result = vodka_workflow::probe::run(plan, session.interrupt(), &mut |event| {
            if let Some(progress) = of_probe(event) {
                show(&bar, &progress);
            }
        });
        result.map_err(|source| Error::Stage { job: format!("probe {}", plan.config.probe.name), source })
    };
    session.stage_with(plan, run, Error::is_usage)
}

fn compare(session: &Session, config: &CompareConfig) -> ExitCode {
    let run = |plan: &ComparePlan, _: &Session| {
        vodka_workflow::compare::run(plan)
            .map_err(|source| Error::Stage { job: "compare".to_owned(), source })
    };
    session.stage_with(config.plan(), run, Error::is_usage)
}

fn choose_config(command: &Command) -> ChooseConfig {
    let Command::Choose { probe, tag, among, against, max_adherence_loss, max_fried, choose, output } =
        command
    else {
        unreachable!("called for this command alone");
    };
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let rule = Rule::default();
    let choose = Choose {
        name: name(output),
        probe: name(probe),
        tag: tag.clone(),
        among: among.clone(),
        against: against.clone(),
        max_adherence_loss: max_adherence_loss.unwrap_or(rule.max_adherence_loss),
        max_fried: max_fried.unwrap_or(rule.max_fried),
        choose: choose.clone(),
    };
    ChooseConfig { choose, probe: probe.clone(), validation: BTreeMap::new(), output: output.clone() }
}

fn status(session: &Session, which: &Which) -> ExitCode {
    let workflow = match open(session, which, false) {
        Ok(workflow) => workflow,
        Err(error) => return session.fail(&error, Exit::Usage),
    };
    match workflow.status() {
        Ok(all) if session.common().json => session.print_json(&all, Exit::Done),
        Ok(all) => {
            let lines: Vec<_> = all.iter().map(ToString::to_string).collect();
            session.print(&lines.join("\n"), Exit::Done)
        }
        Err(error) => fail(session, &error),
    }
}
