//! What can go wrong with a recipe.

use std::{
    error,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A recipe that cannot be run, or a stage of it that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read or is not of the form.
    #[error(transparent)]
    Recipe(vodka_stage::ConfigError),
    /// A mix, or the recipe that it names, asks for what cannot be.
    #[error(transparent)]
    Merge(vodka_merger::Error),
    /// A model that is neither in `[models]` nor made by the recipe.
    #[error("`{recipe}`: there is no model `{name}`{}", did_you_mean(nearest))]
    UnknownModel {
        /// The recipe.
        recipe: PathBuf,
        /// The name that was used.
        name: String,
        /// The known name that is most like it.
        nearest: Option<String>,
    },
    /// A file of `[models]` that is not there.
    #[error("`{recipe}`: the model `{name}` is not at `{path}`")]
    ModelMissing {
        /// The recipe.
        recipe: PathBuf,
        /// Its name.
        name: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// Two models or two grids of one name.
    #[error("`{recipe}`: the name `{name}` is given twice")]
    NameTwice {
        /// The recipe.
        recipe: PathBuf,
        /// The name.
        name: String,
    },
    /// A name that cannot be that of a file.
    #[error("`{recipe}`: the name `{name}` becomes a file: expected no slash in it and no dot at its head")]
    NameOfFile {
        /// The recipe.
        recipe: PathBuf,
        /// The name.
        name: String,
    },
    /// The notebook, or a file of a job that it shows.
    #[error("the notebook: `{path}`: {source}")]
    Notebook {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read or written.
        source: Box<dyn error::Error + Send + Sync>,
    },
    /// Mixes or choices that are made of each other.
    #[error("`{recipe}`: `{name}` is made of itself, through its parents")]
    Circle {
        /// The recipe.
        recipe: PathBuf,
        /// One of the circle.
        name: String,
    },
    /// An epoch that leaves no checkpoint.
    #[error("`{recipe}`: there is no checkpoint of epoch {epoch} to choose, expected one of {expected:?}")]
    Epoch {
        /// The recipe.
        recipe: PathBuf,
        /// `train.choose`.
        epoch: u64,
        /// The epochs that leave one.
        expected: Vec<u64>,
    },
    /// A training that starts from what the recipe itself makes.
    #[error("`{recipe}`: the model `{name}` to train from must be one of [models]")]
    Base {
        /// The recipe.
        recipe: PathBuf,
        /// `train.base`.
        name: String,
    },
    /// Captions that training would miss.
    #[error(
        "`{recipe}`: `caption.missing` is `skip`, expected `error` or `empty`: training wants a caption for each picture"
    )]
    MissingSkip {
        /// The recipe.
        recipe: PathBuf,
    },
    /// Pictures while training, which a workflow does not make.
    #[error(
        "`{recipe}`: `train.config.sample_prompts` is for `vodka-train`: here the grid shows the checkpoints"
    )]
    Samples {
        /// The recipe.
        recipe: PathBuf,
    },
    /// Trainings side by side that differ in what libtorch has once in a process.
    #[error(
        "`{recipe}`: `workflow.trainings_at_once` is {at_once}, for which all trainings need the same `{key}`: it is {} for \
         `{}` and {} for `{}`",
        trainings[0].1, trainings[0].0, trainings[1].1, trainings[1].0
    )]
    AtOnce {
        /// The recipe.
        recipe: PathBuf,
        /// How many are wanted.
        at_once: NonZeroUsize,
        /// The key of `train.config`.
        key: &'static str,
        /// Two trainings and their values.
        trainings: Box<[(String, String); 2]>,
    },
    /// A training key that the workflow sets.
    #[error("`{recipe}`: `train.config.{key}` is set by the workflow")]
    TrainKey {
        /// The recipe.
        recipe: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// The user wants to stop; the same command goes on where it was.
    #[error("{what} is interrupted")]
    Interrupted {
        /// What was in hand.
        what: String,
    },
    /// The settings of a stage are wrong.
    #[error("the settings of `{job}` are wrong")]
    Settings {
        /// The job.
        job: String,
        /// What the stage says.
        source: Box<dyn error::Error + Send + Sync>,
    },
    /// A stage failed.
    #[error("`{job}` failed")]
    Stage {
        /// The job.
        job: String,
        /// What the stage says.
        source: Box<dyn error::Error + Send + Sync>,
    },
    /// Two runs at once would write the same files.
    #[error("another run works in `{output}`")]
    Busy {
        /// The folder.
        output: PathBuf,
    },
    /// The folder of everything that is made cannot be written to.
    #[error("cannot write to `{output}`")]
    Output {
        /// The folder.
        output: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A trained model is asked for before there is one.
    #[error("there is no `{model}` yet: `train` makes it")]
    NotTrained {
        /// The model.
        model: String,
    },
    /// A probe lacks something without which it tells nothing.
    #[error("the probe `{probe}` has no {what}")]
    ProbeEmpty {
        /// Its name.
        probe: String,
        /// What is missing.
        what: &'static str,
    },
    /// A prompt of a probe that says nothing of what is to be seen.
    #[error(
        "the probe `{probe}`: the prompt \"{prompt}\" has no `expect`, expected one tag at least that its pictures are to show"
    )]
    ProbeExpect {
        /// The probe.
        probe: String,
        /// The prompt.
        prompt: String,
    },
    /// A tag that the tagger does not have.
    #[error("the probe `{probe}`: there is no tag `{tag}` in `{labels}`{}", did_you_mean(nearest))]
    ProbeTag {
        /// The probe.
        probe: String,
        /// The tag.
        tag: String,
        /// The tagger's vocabulary.
        labels: PathBuf,
        /// The known tag that is most like it.
        nearest: Option<String>,
    },
    /// Seeds for what is not probed.
    #[error("the probe `{probe}`: `seeds_of` names `{tag}`, which is not probed{}", did_you_mean(nearest))]
    ProbeSeedsOf {
        /// The probe.
        probe: String,
        /// The name.
        tag: String,
        /// The tag or placebo that is most like it.
        nearest: Option<String>,
    },
    /// A placebo that models have learnt.
    #[error(
        "the probe `{probe}`: the placebo `{word}` stands in {}, expected a word that stands in no caption",
        file.as_ref().map_or_else(|| "the tagger's vocabulary".to_owned(), |file| format!("`{}`", file.display()))
    )]
    ProbePlacebo {
        /// The probe.
        probe: String,
        /// The word.
        word: String,
        /// A caption with it; none where it is a tag.
        file: Option<PathBuf>,
    },
    /// A word that is probed twice.
    #[error("the probe `{probe}` has `{word}` twice")]
    ProbeTwice {
        /// The probe.
        probe: String,
        /// The word.
        word: String,
    },
    /// A model to compare with that is none of the probe's.
    #[error(
        "the probe `{probe}`: `against` is `{name}`, expected one of its models{}",
        did_you_mean(nearest)
    )]
    ProbeAgainst {
        /// The probe.
        probe: String,
        /// The name.
        name: String,
        /// The model that is most like it.
        nearest: Option<String>,
    },
    /// A limit of a choice that is none.
    #[error("the choice `{choose}`: `{key}` is {found}, expected 0 to 1")]
    ChooseLimit {
        /// Its name.
        choose: String,
        /// The key.
        key: &'static str,
        /// What it was given.
        found: f64,
    },
    /// A probe that no recipe has.
    #[error(
        "`{recipe}`: the choice `{choose}` asks for the probe `{probe}`, and there is none of this name{}",
        did_you_mean(nearest)
    )]
    ChooseProbe {
        /// The recipe.
        recipe: PathBuf,
        /// The choice.
        choose: String,
        /// The probe.
        probe: String,
        /// The probe that is most like it.
        nearest: Option<String>,
    },
    /// A model that the probe has not measured.
    #[error("the choice `{choose}`: the probe `{probe}` has no model `{name}`{}", did_you_mean(nearest))]
    ChooseModel {
        /// The choice.
        choose: String,
        /// The model.
        name: String,
        /// The folder of the probe.
        probe: PathBuf,
        /// The model that is most like it.
        nearest: Option<String>,
    },
    /// A model chosen by the user that is no candidate.
    #[error(
        "the choice `{choose}`: `{model}`, which it is to take, is none of its candidates{}",
        did_you_mean(nearest)
    )]
    ChooseOverride {
        /// The choice.
        choose: String,
        /// The model.
        model: String,
        /// The candidate that is most like it.
        nearest: Option<String>,
    },
    /// A tag that the probe has not measured.
    #[error("the choice `{choose}`: the probe `{probe}` has not measured the tag `{tag}`")]
    ChooseTag {
        /// The choice.
        choose: String,
        /// The tag.
        tag: String,
        /// The folder of the probe.
        probe: PathBuf,
    },
    /// No candidate has a number to be chosen by.
    #[error("the choice `{choose}`: no candidate has pictures with `{tag}` in `{probe}`")]
    ChooseNone {
        /// The choice.
        choose: String,
        /// The tag.
        tag: String,
        /// The folder of the probe.
        probe: PathBuf,
    },
    /// A folder whose record is none of a probe.
    #[error("`{path}` is no probe of this version")]
    NoProbe {
        /// The folder.
        path: PathBuf,
        /// What is wrong with its record.
        source: serde_json::Error,
    },
    /// A comparison has nothing to compare.
    #[error("expected two runs or more to compare, found {found}")]
    CompareFew {
        /// How many.
        found: usize,
    },
    /// Two runs are called the same.
    #[error("`{}` and `{}` are both called `{name}`: each folder needs a name of its own", first.display(), second.display())]
    CompareTwice {
        /// The name.
        name: String,
        /// The one.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// It is not clear which probe of a run is meant, or it has none.
    #[error("{}", compare_probe(folder, wanted, found, nearest))]
    CompareProbe {
        /// The run.
        folder: PathBuf,
        /// The probe that was asked for.
        wanted: Option<String>,
        /// Those that there are.
        found: Vec<String>,
        /// The nearest of them.
        nearest: Option<String>,
    },
    /// No run has such a model.
    #[error("no probe of these runs has a model `{name}`{}", did_you_mean(nearest))]
    CompareModel {
        /// Its name.
        name: String,
        /// The nearest that there is.
        nearest: Option<String>,
    },
    /// A choice is asked for before it is made.
    #[error("there is no `{model}` yet: `choose {model}` makes it")]
    NotChosen {
        /// The choice.
        model: String,
    },
    /// A table cannot be read or written.
    #[error("cannot read or write the table `{path}`")]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: csv::Error,
    },
    /// A table without one of its columns.
    #[error("`{path}` has no column `{column}`")]
    Column {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// A cell of a table that cannot be.
    #[error("`{path}`, line {line}, column `{column}`: expected {expected}, found {found:?}")]
    Cell {
        /// The file.
        path: PathBuf,
        /// Counted from 1, with the header.
        line: u64,
        /// The column.
        column: String,
        /// What should be there.
        expected: &'static str,
        /// What is.
        found: String,
    },
    /// A record cannot be read.
    #[error(transparent)]
    Record(#[from] vodka_stage::Error),
}

impl Error {
    /// A model that is none of those of `file`.
    pub(crate) fn unknown_model<'k>(
        file: &Path,
        name: &str,
        known: impl Iterator<Item = &'k String>,
    ) -> Self {
        Self::UnknownModel {
            recipe: file.to_path_buf(),
            name: name.to_owned(),
            nearest: vodka_stage::nearest(name, known.map(String::as_str)).map(ToOwned::to_owned),
        }
    }

    /// Whether the recipe asks for what cannot be, also where only a stage could find that out: a tag that nothing knows, say.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Settings { .. } | Self::ModelMissing { .. } => true,
            Self::ProbeEmpty { .. }
            | Self::ProbeExpect { .. }
            | Self::ProbeTag { .. }
            | Self::ProbeSeedsOf { .. }
            | Self::ProbePlacebo { .. }
            | Self::ProbeTwice { .. }
            | Self::ProbeAgainst { .. }
            | Self::CompareFew { .. }
            | Self::CompareTwice { .. }
            | Self::CompareProbe { .. }
            | Self::CompareModel { .. }
            | Self::ChooseLimit { .. }
            | Self::ChooseModel { .. }
            | Self::ChooseOverride { .. }
            | Self::ChooseTag { .. } => true,
            Self::Stage { source, .. } => {
                source.downcast_ref::<vodka_captions::Error>().is_some_and(vodka_captions::Error::is_usage)
                    || source.downcast_ref::<Self>().is_some_and(Self::is_usage)
            }
            _ => false,
        }
    }
}

fn compare_probe(
    folder: &Path,
    wanted: &Option<String>,
    found: &[String],
    nearest: &Option<String>,
) -> String {
    let folder = folder.display();
    let quoted: Vec<_> = found.iter().map(|name| format!("`{name}`")).collect();
    match (wanted, found) {
        (_, []) => format!(
            "`{folder}` is neither a probe nor a run with one: no `pictures.csv` with a record in it or in `probes/*`"
        ),
        (Some(wanted), _) => format!("`{folder}` has no probe `{wanted}`{}", did_you_mean(nearest)),
        (None, _) => {
            format!("`{folder}` has several probes, expected the name of one of {}", quoted.join(", "))
        }
    }
}

fn did_you_mean(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!(", did you mean `{name}`?")).unwrap_or_default()
}
