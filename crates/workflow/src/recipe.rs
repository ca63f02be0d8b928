//! The recipe: what one TOML file says about a whole run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::IgnoredAny};
use vodka_captions::{Position, caption::Missing, filter::Method, select::list_file};
use vodka_merger::NamedMerge;
use vodka_sampler::{
    GridAxis, GridHires, GridPrompt, HiresUpscaler, Precision, SamplerName, ScheduleName, Size,
    UpscalerChoice,
};
use vodka_stage::{ConfigError, Spanned, nearest, parse_toml};
use vodka_tagger::{Combine, Profile, ProviderChoice, TagConfig, hub::ModelRef};
use vodka_trainer::{OptimizerConfig, TrainConfig, saved_epochs};

use crate::{Choose, Error, Probe, Result};

/// A recipe as it is written. Relative paths are relative to the folder of the recipe.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Pictures in, folder out.
    pub workflow: Workflow,
    /// Checkpoints that are there already, by names of the user's own.
    pub models: BTreeMap<String, PathBuf>,
    /// Scoring every picture.
    pub tag: Tag,
    /// Putting the tag table through rules, before anything reads it. Default: not.
    #[serde(default)]
    pub clean: Option<Clean>,
    /// Leaving pictures out, of captions and training. Default: none.
    #[serde(default)]
    pub filter: Option<Filter>,
    /// Choosing the tags worth having.
    #[serde(default)]
    pub select: Select,
    /// Tables to look at before captions are written.
    #[serde(default)]
    pub report: Option<Report>,
    /// Mixing a captioner's captions into those of the pictures, before tags are written. Default: not.
    #[serde(default)]
    pub recaption: Option<Recaption>,
    /// Writing the captions.
    #[serde(default)]
    pub caption: Caption,
    /// `[[train]]`: fine-tunings, each a model of its own for the mixes and grids.
    #[serde(default)]
    pub train: Vec<Train>,
    /// `[[merge]]`, which the merger reads.
    #[serde(default, rename = "merge")]
    _merge: Vec<IgnoredAny>,
    /// Mixes, each a model of its own for the grids and for further mixes.
    #[serde(skip)]
    pub merge: Vec<NamedMerge>,
    /// Comparison grids.
    #[serde(default)]
    pub grid: Vec<Grid>,
    /// What tags do to the pictures of models.
    #[serde(default)]
    pub probe: Vec<Probe>,
    /// Models that are chosen by what probes measured, each a model of its own for mixes, grids and probes.
    #[serde(default)]
    pub choose: Vec<Choose>,
}

/// `[workflow]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workflow {
    /// Folder with the pictures, and a `.txt` caption beside each.
    pub images: PathBuf,
    /// Folder for all that is made.
    pub output: PathBuf,
    /// `cpu`, `cuda` or `cuda:N`, for training and sampling. Default: `cpu`.
    #[serde(default = "cpu")]
    pub device: String,
    /// How many trainings run side by side. More than one need the same `threads`, and on a GPU the same `tf32` and `deterministic`,
    /// which libtorch has once in a process, and room on the disk for all. Default: 1.
    #[serde(default = "one_at_a_time")]
    pub trainings_at_once: NonZeroUsize,
}

/// `[tag]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tag {
    /// Folder of the model, or its name on the hub: `OWNER/NAME[/SUBFOLDER][@REVISION]`.
    pub model: PathBuf,
    /// Further models, given in the same way, whose scores are put together with the first one's. Default: none.
    #[serde(default)]
    pub ensemble: Vec<PathBuf>,
    /// How the scores of several models become one: `mean`, `max` or `vote`. Default: `mean`.
    #[serde(default)]
    pub combine: Combine,
    /// The family of the models. Default: found out.
    #[serde(default)]
    pub family: Option<String>,
    /// Whose arithmetic prepares the pictures: `reference`, `kohya` or `fast`. Default: `reference`.
    #[serde(default)]
    pub profile: Profile,
    /// Scores below are not stored. Default: 0.1.
    #[serde(default = "default_min_score")]
    pub min_score: f64,
    /// Pictures to a run of the network. Default: the tagger's.
    pub batch: Option<usize>,
    /// The most pixels a picture may have. Default: the tagger's.
    pub max_pixels: Option<u64>,
    /// Where the network runs; `auto` takes the fastest there is. Default: `cpu`.
    #[serde(default)]
    pub provider: ProviderChoice,
    /// Threads; 0 for one per core. Default: 0.
    #[serde(default)]
    pub threads: usize,
    /// Leave pictures as they are stored, whatever their EXIF orientation says. Default: false.
    #[serde(default)]
    pub ignore_orientation: bool,
}

impl Tag {
    /// All models, the first one first.
    pub(crate) fn models(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.model].into_iter().chain(&mut self.ensemble)
    }

    /// The tagger over these pictures.
    pub(crate) fn config(&self, images: PathBuf, output: PathBuf, runtime_dir: &Path) -> TagConfig {
        let mut config = TagConfig::new(&self.model, images, output);
        config.ensemble.clone_from(&self.ensemble);
        config.combine = self.combine;
        config.family.clone_from(&self.family);
        config.profile = self.profile;
        config.min_score = self.min_score;
        (config.provider, config.onnxruntime) = self.provider.resolve(runtime_dir);
        config.batch = self.batch.unwrap_or(config.batch);
        config.threads = self.threads;
        config.ignore_orientation = self.ignore_orientation;
        config.max_pixels = self.max_pixels.unwrap_or(config.max_pixels);
        config
    }
}

/// `[select]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Select {
    /// The vocabulary. Default: `selected_tags.csv` in the folder of the model.
    pub labels: Option<PathBuf>,
    /// Share of all occurrences of general tags that the candidates cover, from the most frequent down. Default: 0.8.
    pub coverage: f64,
    /// The list of tags to take of the candidates. Default: the shipped one, about how a picture is made.
    pub list: Option<PathBuf>,
    /// Take all candidates. Default: false.
    pub all_head: bool,
    /// Tags to take besides, whatever their count: names, patterns, `@FILE` for a list.
    pub include: Vec<String>,
    /// Tags to leave out, given in the same way.
    pub exclude: Vec<String>,
}

impl Default for Select {
    fn default() -> Self {
        let (include, exclude) = (Vec::new(), Vec::new());
        Self { labels: None, coverage: 0.8, list: None, all_head: false, include, exclude }
    }
}

/// `[clean]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clean {
    /// The file of rules: aliases, implications, blacklist, replacements, regular expressions (docs/cleaning.md).
    pub rules: PathBuf,
}

/// `[filter]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Which pictures stay: `not tag:blurry>0.9` (docs/query.md).
    pub query: String,
    /// How those get into the folder that captions and training read: `hard_link`, `symlink` or `copy`. Default: `hard_link`.
    #[serde(default = "hard_link")]
    pub method: Method,
}

fn hard_link() -> Method {
    Method::HardLink
}

/// `[recaption]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recaption {
    /// What a captioner has made: a folder of `.txt` files in the same subfolders as the pictures, or a table
    /// (docs/recaptioning.md).
    pub captions: PathBuf,
    /// The captioner's name.
    pub model: Option<String>,
    /// The share of pictures that get its caption, 0 to 1.
    pub share: f64,
    /// Other seeds choose other pictures. Default: 1.
    #[serde(default = "one")]
    pub seed: u64,
}

fn one() -> u64 {
    1
}

/// `[report]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Report {
    /// Words; the report tells the share of pictures that have any tag with such a word in it. Default: `blurry`.
    pub groups: Vec<String>,
}

impl Default for Report {
    fn default() -> Self {
        Self { groups: vec!["blurry".into()] }
    }
}

/// `[caption]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Caption {
    /// At most so many tags. Default: 3.
    pub max_tags: usize,
    /// Lowest score of a tag worth writing. Default: 0.3.
    pub min_score: f32,
    /// `prepend` or `append`. Default: `prepend`.
    pub position: Position,
    /// What happens to a picture without a caption: `error`, or `empty` for one of tags alone. Default: `error`, since
    /// training wants a caption for each.
    pub missing: Missing,
}

impl Default for Caption {
    fn default() -> Self {
        Self { max_tags: 3, min_score: 0.3, position: Position::Prepend, missing: Missing::Error }
    }
}

/// `[[train]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// The name of the trained model: `v3` is the chosen checkpoint, `v3@25` that of epoch 25.
    pub name: String,
    /// The model to start from.
    pub base: String,
    /// The captions to train on. Default: `tagged`.
    #[serde(default)]
    pub captions: Captions,
    /// The epoch whose checkpoint is chosen. Default: the last.
    pub choose: Option<u64>,
    /// The keys of EveryDream2's `train.json`.
    #[serde(deserialize_with = "TrainConfig::from_keys")]
    pub config: TrainConfig,
    /// The keys of EveryDream2's `optimizer.json`.
    #[serde(default, deserialize_with = "OptimizerConfig::from_keys")]
    pub optimizer: OptimizerConfig,
}

/// What a training takes as captions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Captions {
    /// Those that `[caption]` writes.
    #[default]
    Tagged,
    /// The captions before `[caption]` puts tags to them: those beside the pictures, or what `[recaption]` makes of them. For
    /// the control of an experiment.
    Original,
}

/// `[[grid]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// The name of its folder below `grids/`.
    pub name: String,
    /// The models to compare, one a column.
    pub models: Vec<String>,
    /// The prompts, one a row for each seed.
    pub prompts: Vec<GridPrompt>,
    /// Have the tagger score the cells: which requested tags are there, and what a tag in a prompt changes. Default: false.
    #[serde(default)]
    pub judge: bool,
    /// Seeds. Default: 1.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u32>,
    /// Sampling steps. Default: 20.
    #[serde(default = "default_steps")]
    pub steps: u32,
    /// Guidance scale. Default: 7.
    #[serde(default = "default_cfg")]
    pub cfg: f64,
    /// Width and height in pixels. Default: `512x512`.
    #[serde(default)]
    pub size: Size,
    /// The sampler, as A1111 calls it. Default: `Euler`.
    #[serde(default)]
    pub sampler: SamplerName,
    /// The spacing of the noise levels. Default: `Automatic`, the sampler's own.
    #[serde(default)]
    pub schedule: ScheduleName,
    /// The layer of the text encoder, counted from the end. Default: 1, the last.
    #[serde(default = "last_layer")]
    pub clip_skip: u32,
    /// What text encoder and UNet compute in. Default: `fp32`.
    #[serde(default = "fp32")]
    pub precision: Precision,
    /// What the VAE computes in. Default: `fp32`.
    #[serde(default = "fp32")]
    pub vae_precision: Precision,
    /// A second pass over each picture, larger. Default: none.
    #[serde(default)]
    pub hires: Option<GridHires>,
    /// `[[grid.axes]]`: further axes, as `grid.toml` has them (docs/grids.md). Default: none.
    #[serde(default)]
    pub axes: Vec<Spanned<GridAxis>>,
}

pub(crate) fn cpu() -> String {
    "cpu".into()
}

fn one_at_a_time() -> NonZeroUsize {
    NonZeroUsize::MIN
}

fn default_min_score() -> f64 {
    TagConfig::default_min_score()
}

fn default_seeds() -> Vec<u32> {
    vec![1]
}

pub(crate) fn default_steps() -> u32 {
    20
}

pub(crate) fn default_cfg() -> f64 {
    7.0
}

pub(crate) fn last_layer() -> u32 {
    1
}

pub(crate) fn fp32() -> Precision {
    Precision::F32
}

impl Recipe {
    /// Reads a recipe and checks that its names name something.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .map_err(|source| Error::Recipe(ConfigError::Read { path: path.to_path_buf(), source }))?;
        let mut recipe: Self = parse_toml(&text, path).map_err(Error::Recipe)?;
        recipe.merge = NamedMerge::read_all(&text, path, "merge").map_err(Error::Merge)?;
        recipe.grid.iter_mut().for_each(|grid| GridAxis::number_lines(&mut grid.axes, &text));
        recipe.resolve_paths(path.parent().unwrap_or(Path::new("")));
        recipe.check_names(path)?;
        for train in &recipe.train {
            train.check_keys(path)?;
            train.check_epoch(path)?;
            recipe.check_training(train, path)?;
        }
        recipe.check_at_once(path)?;
        Ok(recipe)
    }

    fn resolve_paths(&mut self, folder: &Path) {
        for model in self.tag.models() {
            let here = tidy(&folder.join(&*model));
            // What is no folder may be a name on the hub.
            if here.exists() || matches!(ModelRef::parse(&*model), ModelRef::Folder(_)) {
                *model = here;
            }
        }
        let given = [&mut self.workflow.images, &mut self.workflow.output].into_iter();
        let rules = self.clean.as_mut().map(|clean| &mut clean.rules);
        let theirs = self.recaption.as_mut().map(|recaption| &mut recaption.captions);
        let given =
            given.chain(&mut self.select.labels).chain(&mut self.select.list).chain(rules).chain(theirs);
        let validation = self.train.iter_mut().filter_map(|train| train.config.validation_config.as_mut());
        for path in given.chain(self.models.values_mut()).chain(validation) {
            *path = tidy(&folder.join(&*path));
        }
        let upscalers = self.grid.iter_mut().filter_map(|grid| grid.hires.as_mut()?.upscaler.as_mut());
        for upscaler in upscalers {
            if let Ok(HiresUpscaler::Pixels(UpscalerChoice::Model(file))) = upscaler.parse() {
                *upscaler = tidy(&folder.join(file)).display().to_string();
            }
        }
        for file in
            self.grid.iter_mut().flat_map(|grid| &mut grid.axes).flat_map(|axis| axis.get_mut().paths_mut())
        {
            *file = tidy(&folder.join(&*file)).display().to_string();
        }
        for wish in self.select.include.iter_mut().chain(&mut self.select.exclude) {
            if let Some(list) = list_file(wish) {
                *wish = format!("@{}", tidy(&folder.join(list)).display());
            }
        }
    }

    /// Every model has one name, and every name that is used is that of a model.
    fn check_names(&self, path: &Path) -> Result<()> {
        let mut known: BTreeSet<String> = self.models.keys().cloned().collect();
        for name in self
            .trained_names()
            .chain(self.merge.iter().map(|merge| merge.name.clone()))
            .chain(self.choose.iter().map(|choose| choose.name.clone()))
        {
            check_file_name(path, &name)?;
            if !known.insert(name.clone()) {
                return Err(Error::NameTwice { recipe: path.to_path_buf(), name });
            }
        }
        check_own_names(path, self.grid.iter().map(|grid| &grid.name))?;
        check_own_names(path, self.probe.iter().map(|probe| &probe.name))?;
        for choose in &self.choose {
            self.check_choose(choose, path)?;
        }
        let used = self
            .merge
            .iter()
            .flat_map(NamedMerge::models)
            .chain(self.grid.iter().flat_map(|grid| &grid.models))
            .chain(self.probe.iter().flat_map(|probe| &probe.models));
        for name in used.chain(self.train.iter().map(|train| &train.base)) {
            if !known.contains(name) {
                return Err(Error::unknown_model(path, name, known.iter()));
            }
        }
        Ok(())
    }

    /// A choice is among the models of its probe.
    fn check_choose(&self, choose: &Choose, path: &Path) -> Result<()> {
        let Choose { name, probe, among, against, .. } = choose;
        let names = self.probe.iter().map(|probe| probe.name.as_str());
        let Some(found) = self.probe.iter().find(|known| known.name == *probe) else {
            return Err(Error::ChooseProbe {
                recipe: path.to_path_buf(),
                choose: name.clone(),
                probe: probe.clone(),
                nearest: nearest(probe, names).map(ToOwned::to_owned),
            });
        };
        let mut used = among.iter().chain(against).chain(&choose.choose);
        match used.find(|model| !found.models.contains(model)) {
            Some(model) => Err(Error::ChooseModel {
                choose: name.clone(),
                name: model.clone(),
                probe: probe.into(),
                nearest: nearest(model, found.models.iter().map(String::as_str)).map(ToOwned::to_owned),
            }),
            None => Ok(()),
        }
    }

    /// The choice of a name that has been checked.
    pub(crate) fn choose_of(&self, name: &str) -> &Choose {
        self.choose.iter().find(|choose| choose.name == name).expect("jobs have the names of the recipe")
    }

    /// Training starts from what is there already, and has a caption for each picture.
    fn check_training(&self, train: &Train, path: &Path) -> Result<()> {
        if !self.models.contains_key(&train.base) {
            return Err(Error::Base { recipe: path.to_path_buf(), name: train.base.clone() });
        }
        match self.caption.missing {
            Missing::Skip => Err(Error::MissingSkip { recipe: path.to_path_buf() }),
            Missing::Empty | Missing::Error => Ok(()),
        }
    }

    /// Trainings side by side have the same of what libtorch has once in a process; the number of threads is named by each.
    fn check_at_once(&self, path: &Path) -> Result<()> {
        let at_once = self.workflow.trainings_at_once;
        let Some((first, others)) = self.train.split_first().filter(|_| at_once.get() > 1) else {
            return Ok(());
        };
        let of_gpu = self.workflow.device != "cpu";
        let keys = |train: &Train| {
            let config = &train.config;
            let gpu =
                [("tf32", config.tf32.to_string()), ("deterministic", config.deterministic.to_string())];
            let threads = config.threads.map_or("not set".to_owned(), |n| n.to_string());
            [("threads", threads)].into_iter().chain(gpu.into_iter().filter(move |_| of_gpu))
        };
        for other in others {
            for ((key, value), (_, other_value)) in keys(first).zip(keys(other)) {
                if value != other_value || key == "threads" && first.config.threads.is_none() {
                    let trainings = [(first.name.clone(), value), (other.name.clone(), other_value)];
                    let (recipe, trainings) = (path.into(), Box::new(trainings));
                    return Err(Error::AtOnce { recipe, at_once, key, trainings });
                }
            }
        }
        Ok(())
    }

    /// The recaptioning, of recipes that have one.
    pub(crate) fn recaption_of(&self) -> &Recaption {
        self.recaption.as_ref().expect("only a recipe with `[recaption]` has such a job")
    }

    /// The mix of a name that has been checked.
    pub(crate) fn merge_of(&self, name: &str) -> &NamedMerge {
        self.merge.iter().find(|merge| merge.name == name).expect("jobs have the names of the recipe")
    }

    /// The grid of a name that has been checked.
    pub(crate) fn grid_of(&self, name: &str) -> &Grid {
        self.grid.iter().find(|grid| grid.name == name).expect("jobs have the names of the recipe")
    }

    /// The probe of a name that has been checked.
    pub(crate) fn probe_of(&self, name: &str) -> &Probe {
        self.probe.iter().find(|probe| probe.name == name).expect("jobs have the names of the recipe")
    }

    /// The training of a name that has been checked.
    pub(crate) fn train_of(&self, name: &str) -> &Train {
        self.train.iter().find(|train| train.name == name).expect("jobs have the names of the recipe")
    }

    /// The training of a model, and the epoch after which it was saved; none for models that no training makes.
    pub(crate) fn trained_at(&self, model: &str) -> Option<(&str, u64)> {
        let train = self.train.iter().find(|train| train.models().iter().any(|name| name == model))?;
        let last = || train.choose.or(train.saved_epochs().last().copied());
        let epoch = match model.rsplit_once('@') {
            Some((_, epoch)) => epoch.parse().ok(),
            None => last(),
        };
        Some((&train.name, epoch?))
    }

    /// The names of all models that trainings make.
    pub(crate) fn trained_names(&self) -> impl Iterator<Item = String> {
        self.train.iter().flat_map(Train::models)
    }
}

impl Train {
    /// The keys that the workflow fills in are not the recipe's to set.
    fn check_keys(&self, path: &Path) -> Result<()> {
        let config = &self.config;
        let set = [
            ("data_root", !config.data_root.is_empty()),
            ("caption_root", config.caption_root.is_some()),
            ("resume_ckpt", config.resume_ckpt.is_some()),
            ("output", config.output.is_some()),
            ("save_ckpt_dir", config.save_ckpt_dir.is_some()),
            ("project_name", config.project_name.is_some()),
            ("run_name", config.run_name.is_some()),
            ("device", config.device.is_some()),
            ("allow", !config.allow.is_empty()),
            ("optimizer_config", config.optimizer_config.is_some()),
        ];
        if config.sample_prompts.is_some() {
            return Err(Error::Samples { recipe: path.to_path_buf() });
        }
        match set.into_iter().find(|(_, set)| *set) {
            Some((key, _)) => Err(Error::TrainKey { recipe: path.to_path_buf(), key }),
            None => Ok(()),
        }
    }

    fn check_epoch(&self, path: &Path) -> Result<()> {
        let expected = self.saved_epochs();
        match self.choose.filter(|epoch| !expected.contains(epoch)) {
            Some(epoch) => Err(Error::Epoch { recipe: path.to_path_buf(), epoch, expected }),
            None => Ok(()),
        }
    }

    /// `v3`, and `v3@25` for each epoch after which a checkpoint is saved.
    pub(crate) fn models(&self) -> Vec<String> {
        let at = self.saved_epochs().into_iter().map(|epoch| format!("{}@{epoch}", self.name));
        std::iter::once(self.name.clone()).chain(at).collect()
    }

    /// The epochs after which a checkpoint is saved.
    pub(crate) fn saved_epochs(&self) -> Vec<u64> {
        let config = &self.config;
        saved_epochs(config.max_epochs, config.save_every_n_epochs, config.save_ckpts_from_n_epochs).collect()
    }
}

/// Names that become folders, no two of one kind the same.
fn check_own_names<'a>(path: &Path, names: impl Iterator<Item = &'a String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for name in names {
        check_file_name(path, name)?;
        if !seen.insert(name) {
            return Err(Error::NameTwice { recipe: path.to_path_buf(), name: name.clone() });
        }
    }
    Ok(())
}

fn check_file_name(recipe: &Path, name: &str) -> Result<()> {
    if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
        return Err(Error::NameOfFile { recipe: recipe.to_path_buf(), name: name.to_owned() });
    }
    Ok(())
}

/// Takes `x/..` out of a path, where `x` is not itself `..`.
fn tidy(path: &Path) -> PathBuf {
    let mut tidied = PathBuf::new();
    for part in path.components() {
        let up = part == std::path::Component::ParentDir;
        let named = matches!(tidied.components().next_back(), Some(std::path::Component::Normal(_)));
        match part {
            std::path::Component::CurDir => {}
            _ if up && named => {
                tidied.pop();
            }
            _ => tidied.push(part),
        }
    }
    tidied
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TEMPLATE, Workflow};

    fn open(text: &str) -> Result<Workflow> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipe.toml");
        fs::write(&path, text).unwrap();
        Workflow::open(&path, PathBuf::new())
    }

    fn said(text: &str) -> String {
        open(text).unwrap_err().to_string()
    }

    #[test]
    fn the_template_is_the_v3_experiment_in_order() {
        let workflow = open(TEMPLATE).unwrap();
        let jobs: Vec<_> = workflow.jobs().iter().map(ToString::to_string).collect();
        assert_eq!(
            jobs,
            [
                "tag",
                "select",
                "report",
                "caption",
                "train v3",
                "grid checkpoints",
                "judge checkpoints",
                "merge v3-with-v1",
                "merge v3-with-v2",
                "merge v3-plus-v1-minus-v2",
                "grid mixes",
                "judge mixes",
            ]
        );
        assert_eq!(workflow.recipe.train[0].saved_epochs(), [25, 50, 75, 100]);
        let config = &workflow.recipe.train[0].config;
        assert_eq!((config.lr, config.batch_size, config.seed), (Some(1.5e-7), 4, 555));
    }

    #[test]
    fn names_must_name_something_and_only_one_thing() {
        let with = |from: &str, to: &str| said(&TEMPLATE.replacen(from, to, 1));
        assert!(with("base = \"base\"", "base = \"bass\"").contains("no model `bass`, did you mean `base`?"));
        assert!(with("name = \"v3-with-v2\"", "name = \"v1\"").contains("the name `v1` is given twice"));
        assert!(
            with("name = \"mixes\"", "name = \"checkpoints\"")
                .contains("the name `checkpoints` is given twice")
        );
        assert!(with("name = \"mixes\"", "name = \"../mixes\"").contains("becomes a file"));
        assert!(with("choose = 75", "choose = 76").contains("no checkpoint of epoch 76"));
        assert!(with("a = \"v3\"", "a = \"v3-with-v1\"").contains("made of itself"));
        assert!(
            with("seed = 555", "sample_prompts = \"x.txt\"")
                .contains("`train.config.sample_prompts` is for `vodka-train`")
        );
        assert!(
            with("seed = 555", "output = \"x\"").contains("`train.config.output` is set by the workflow")
        );
    }

    #[test]
    fn an_unknown_key_is_told_with_its_line() {
        let line = TEMPLATE.lines().position(|line| line.starts_with("max_tags")).unwrap() + 1;
        let text = said(&TEMPLATE.replacen("max_tags", "max_tag", 1));
        assert!(
            text.contains(&format!("line {line}")) && text.contains("did you mean `max_tags`?"),
            "{text}"
        );
        let text = said(&TEMPLATE.replacen("batch_size", "batchsize", 1));
        assert!(text.contains("unknown key `batchsize`") && text.contains("batch_size"), "{text}");
    }

    #[test]
    fn axes_of_grids_have_their_lines_and_the_paths_of_the_recipe() {
        let axis = "[[grid.axes]]\ntype = \"Hires upscaler\"\nvalues = [\"off\", \"Lanczos\", \"4x.pth\"]\n";
        let text = format!("{TEMPLATE}\n{axis}");
        let workflow = open(&text).unwrap();
        let axis = workflow.recipe.grid.last().unwrap().axes[0].get_ref();
        let line = text.lines().position(|line| line == "[[grid.axes]]").unwrap() + 1;
        let folder = workflow.path().parent().unwrap();
        let file = folder.join("4x.pth").display().to_string();
        assert_eq!(
            (axis.line, axis.values.texts()),
            (Some(line), &["off".into(), "Lanczos".into(), file][..])
        );
    }

    #[test]
    fn paths_are_relative_to_the_recipe_and_short() {
        assert_eq!(tidy(Path::new("a/b/../../c/./d")), Path::new("c/d"));
        assert_eq!(tidy(Path::new("../../c")), Path::new("../../c"));
        assert_eq!(tidy(Path::new("/a/../b")), Path::new("/b"));
    }
}
