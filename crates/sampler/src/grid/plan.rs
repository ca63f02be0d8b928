//! A grid that has been checked: its axes, where they lie, and what each cell is made of.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde::Serialize;
use vodka_checkpoint::Precision;
use vodka_merger::Weight;
use vodka_sd15::check_device_name;
use vodka_stage::{lossy, nearest};

use super::{Axis, AxisType, AxisValue, GridCheckpoint, GridConfig, SheetConfig, axes::Change};
use crate::{ControlUnit, Error, Library, ModelSource, Result, Settings};

/// The most cells of a grid.
const MAX_CELLS: usize = 1_000_000;

/// A checked [`GridConfig`].
#[derive(Debug, Clone, Serialize)]
pub struct GridPlan {
    /// All axes; the first changes slowest.
    pub axes: Vec<Axis>,
    /// The axes that go from left to right, by their places in `axes`.
    pub columns: Vec<usize>,
    /// Those that go from the top.
    pub rows: Vec<usize>,
    /// Those that have a sheet for each value.
    pub sheets: Vec<usize>,
    /// What the axes do not change.
    pub settings: Settings,
    /// How large a sheet may become.
    pub sheet: SheetConfig,
    /// What the judging compares with.
    pub judge: Judge,
    /// The models, in the order of the axis `Checkpoint name`.
    pub models: Vec<ModelSource>,
    /// The VAE where no axis says it; none for the checkpoint's own.
    #[serde(serialize_with = "lossy")]
    pub vae: Option<PathBuf>,
    /// What text encoder and UNet compute in.
    pub precision: Precision,
    /// What the VAE computes in.
    pub vae_precision: Precision,
    /// What prompts may name.
    #[serde(skip)]
    pub library: Arc<Library>,
    /// The categories of the prompts, in the order of the axis `Prompt`.
    pub categories: Vec<Option<String>>,
    /// The device's name.
    pub device: String,
    /// The folder to fill.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
    /// The folder that keeps the cells.
    #[serde(serialize_with = "lossy")]
    pub store: PathBuf,
    /// Whether cells that are not of this grid are taken out of the store.
    pub prune: bool,
    /// The file that remembers the hashes of models by path, size and time of change; none to hash them every time.
    #[serde(skip)]
    pub hash_cache: Option<PathBuf>,
    /// Where libtorch is.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
}

/// What the judging compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Judge {
    /// The number of a model.
    pub against: usize,
    /// The seed of the bootstrap.
    pub seed: u64,
}

/// A place in a grid.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// The number of its value on each axis.
    pub place: Vec<usize>,
    /// The number of its model.
    pub model: usize,
    /// Its VAE; none for the model's own.
    pub vae: Option<PathBuf>,
    /// Prompts and numbers.
    pub settings: Settings,
}

impl GridConfig {
    /// Checks the settings; no checkpoint is opened.
    ///
    /// # Errors
    /// An axis without values, or two of one name; a value that is none; settings that make no picture.
    pub fn plan(&self) -> Result<GridPlan> {
        for (axis, is_empty) in [
            ("checkpoints", self.checkpoints.is_empty()),
            ("prompts", self.prompts.is_empty()),
            ("seeds", self.seeds.as_ref().is_some_and(super::Values::is_empty)),
        ] {
            if is_empty {
                return Err(Error::EmptyAxis { axis });
            }
        }
        check_device_name(&self.device)?;
        self.sheet.check()?;
        let (labels, models) = self.models()?;
        labelled_apart(&labels, &models)?;
        let axes = self.axes(labels)?;
        let (columns, rows, sheets) = self.layout(&axes)?;
        let judge = Judge { against: self.against(&axes[0])?, seed: self.judge.seed };
        let plan = GridPlan {
            judge,
            axes,
            columns,
            rows,
            sheets,
            settings: self.settings()?,
            sheet: self.sheet.clone(),
            models,
            categories: self.prompts.iter().map(|prompt| prompt.category.clone()).collect(),
            device: self.device.clone(),
            output: self.output.clone(),
            store: self.store()?,
            prune: self.prune,
            vae: self.vae.clone(),
            precision: self.precision,
            vae_precision: self.vae_precision,
            library: Arc::new(Library::open(self.lora_dir.as_deref(), self.embedding_dir.as_deref())?),
            hash_cache: self.hash_cache.clone(),
            runtime_dir: self.runtime_dir.clone(),
        };
        plan.check()?;
        Ok(plan)
    }

    /// The labels of all models, and the models: several of a merge whose weights are lists.
    fn models(&self) -> Result<(Vec<String>, Vec<ModelSource>)> {
        let mut models = Vec::new();
        for checkpoint in &self.checkpoints {
            models.extend(checkpoint.models(models.len())?);
        }
        Ok(models.into_iter().unzip())
    }

    /// The folder that keeps the cells.
    fn store(&self) -> Result<PathBuf> {
        let Some(store) = &self.store else { return Ok(self.output.join("cells")) };
        let resolved = |path: &PathBuf| {
            path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.clone())
        };
        match resolved(store) == resolved(&self.output) {
            true => Err(Error::StoreIsOutput { path: self.output.clone() }),
            false => Ok(store.clone()),
        }
    }

    fn axes(&self, checkpoints: Vec<String>) -> Result<Vec<Axis>> {
        let checkpoint = |(i, label)| AxisValue { label, change: Change::Model(i) };
        let prompt = |prompt: &super::GridPrompt| AxisValue {
            label: prompt.shown(),
            change: Change::Prompt { prompt: prompt.prompt.clone(), negative: prompt.negative.clone() },
        };
        let axis = |kind: AxisType, values| Axis { kind, name: kind.to_string(), unit: None, values };
        let mut axes = vec![
            axis(AxisType::Checkpoint, checkpoints.into_iter().enumerate().map(checkpoint).collect()),
            axis(AxisType::Prompt, self.prompts.iter().map(prompt).collect()),
        ];
        let is_seed = |kind: AxisType| kind == AxisType::Seed;
        match (self.axes.iter().any(|axis| is_seed(axis.get_ref().kind)), &self.seeds) {
            (true, Some(_)) => return Err(Error::SeedsTwice),
            (true, None) => {}
            (false, seeds) => {
                let seeds = seeds.clone().unwrap_or_else(|| super::Values::one(0));
                let mut axis = Axis::of(&super::GridAxis::new(AxisType::Seed, seeds))?;
                axis.values.iter_mut().for_each(|value| value.label = value.label.to_lowercase());
                axes.push(axis);
            }
        }
        for written in &self.axes {
            let axis = Axis::of(written.get_ref())?;
            if let Some(name) = axes.iter().map(|axis| &axis.name).find(|name| **name == axis.name) {
                let message = "a second axis of this name: give it another `name`".to_owned();
                return Err(Error::Axis { axis: name.clone(), line: written.get_ref().line, message });
            }
            let twice = !matches!(axis.kind, AxisType::PromptSr | AxisType::LoraWeight);
            if twice && axes.iter().any(|other| (other.kind, other.unit) == (axis.kind, axis.unit)) {
                let message = "a second axis of this type".to_owned();
                return Err(Error::Axis { axis: axis.name, line: written.get_ref().line, message });
            }
            if let Some(unit) = axis.unit.filter(|unit| *unit >= self.control.len()) {
                let message = format!("there is no `[[control]]` of the number {unit}");
                return Err(Error::Axis { axis: axis.name, line: written.get_ref().line, message });
            }
            self.check_needle(&axis, written.get_ref().line)?;
            axes.push(axis);
        }
        Ok(axes)
    }

    /// The number of the checkpoint that the others are compared with.
    fn against(&self, checkpoints: &Axis) -> Result<usize> {
        let Some(label) = &self.judge.against else { return Ok(0) };
        let labels: Vec<_> = checkpoints.values.iter().map(|value| value.label.as_str()).collect();
        labels.iter().position(|found| found == label).ok_or_else(|| Error::Against {
            found: label.clone(),
            nearest: nearest(label, labels).map(ToOwned::to_owned),
        })
    }

    /// What is looked for must be in a prompt, as in A1111.
    fn check_needle(&self, axis: &Axis, line: Option<usize>) -> Result<()> {
        let Some(Change::Replace { from, .. }) = axis.values.first().map(|value| &value.change) else {
            return Ok(());
        };
        let added =
            self.axes.iter().map(|axis| axis.get_ref()).filter(|axis| axis.kind == AxisType::NegativePrompt);
        let mut texts = self.prompts.iter().flat_map(|prompt| [&prompt.prompt, &prompt.negative]);
        match texts.any(|text| text.contains(from))
            || added.flat_map(|axis| axis.values.texts()).any(|text| text.contains(from))
        {
            true => Ok(()),
            false => {
                let message = format!("`{from}`, the first value, is in no prompt and in no negative prompt");
                Err(Error::Axis { axis: axis.name.clone(), line, message })
            }
        }
    }

    /// Which axes are columns, rows and sheets.
    fn layout(&self, axes: &[Axis]) -> Result<(Vec<usize>, Vec<usize>, Vec<usize>)> {
        let by_name = |name: &String| {
            let kind = name.parse::<AxisType>().ok();
            let by_own = axes.iter().position(|axis| axis.name == *name);
            let found = by_own.or_else(|| axes.iter().position(|axis| Some(axis.kind) == kind));
            found.ok_or_else(|| Error::LayoutAxis {
                found: name.clone(),
                known: axes.iter().map(|axis| axis.name.clone()).collect(),
            })
        };
        let by_names = |names: &Vec<String>| names.iter().map(by_name).collect::<Result<Vec<_>>>();
        let columns = self.layout.columns.as_ref().map(by_names).transpose()?;
        let rows = self.layout.rows.as_ref().map(by_names).transpose()?;
        let several = |i: &usize| axes[*i].values.len() > 1;
        let is_row = |i: &usize| matches!(axes[*i].kind, AxisType::Prompt | AxisType::Seed);
        let columns = columns.unwrap_or_else(|| {
            let taken = rows.clone().unwrap_or_default();
            let mut wished = (0..axes.len()).filter(|i| !is_row(i) && !taken.contains(i));
            vec![wished.find(several).unwrap_or(0)]
        });
        let rows =
            rows.unwrap_or_else(|| (0..axes.len()).filter(|i| is_row(i) && !columns.contains(i)).collect());
        let mut all: Vec<_> = columns.iter().chain(&rows).collect();
        all.sort_unstable();
        if let Some(twice) = all.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::LayoutTwice { axis: axes[*twice[0]].name.clone() });
        }
        let sheets =
            (0..axes.len()).filter(|i| !columns.contains(i) && !rows.contains(i)).filter(several).collect();
        Ok((columns, rows, sheets))
    }
}

/// Tables and pages know checkpoints by their labels.
fn labelled_apart(labels: &[String], models: &[ModelSource]) -> Result<()> {
    let mut seen = BTreeMap::new();
    for (label, model) in labels.iter().zip(models) {
        if let Some(first) = seen.insert(label, model) {
            let path = |model: &ModelSource| model.path().to_path_buf();
            return Err(Error::LabelTwice { label: label.clone(), first: path(first), second: path(model) });
        }
    }
    Ok(())
}

impl GridCheckpoint {
    /// A model for each combination of its weights, with its label; `before` are there already.
    fn models(&self, before: usize) -> Result<Vec<(String, ModelSource)>> {
        let spread = |(name, values): (&String, &super::Values)| {
            let fault = |message| Error::Axis { axis: format!("weights.{name}"), line: None, message };
            Ok((name.clone(), values.spread().map_err(fault)?))
        };
        let weights = self.weights.iter().map(spread).collect::<Result<Vec<_>>>()?;
        // Before they are multiplied out: a slip in a range shall not fill the memory.
        let models = weights.iter().map(|(_, texts)| texts.len()).fold(1, usize::saturating_mul);
        let cells = models.saturating_add(before);
        if cells > MAX_CELLS {
            return Err(Error::TooManyCells { cells, max: MAX_CELLS });
        }
        let mut all: Vec<(String, Vec<(String, Weight)>)> = vec![(String::new(), Vec::new())];
        for (name, texts) in weights {
            let mut next = Vec::new();
            for (label, weights) in &all {
                for text in &texts {
                    let told = if texts.len() > 1 { format!("\n{name} {text}") } else { String::new() };
                    let mut weights = weights.clone();
                    weights.push((name.clone(), text.parse()?));
                    next.push((format!("{label}{told}"), weights));
                }
            }
            all = next;
        }
        let model = |(label, weights): (String, Vec<(String, Weight)>)| {
            let model = ModelSource::read(&self.path, &weights)?;
            Ok((self.label.clone().unwrap_or_else(|| model.name()) + &label, model))
        };
        all.into_iter().map(model).collect()
    }
}

impl GridPlan {
    /// The ControlNets of all cells.
    pub(super) fn units(&self) -> Vec<ControlUnit> {
        let networks = self.axes.iter().filter(|axis| axis.kind == AxisType::ControlModel);
        let with = |value: &AxisValue| {
            let mut settings = self.settings.clone();
            value.change.apply(&mut settings);
            settings.controls
        };
        let others = networks.flat_map(|axis| &axis.values).flat_map(with);
        self.settings.controls.iter().cloned().chain(others).collect()
    }

    /// How many cells there are.
    pub fn cells(&self) -> usize {
        self.count(&(0..self.axes.len()).collect::<Vec<_>>())
    }

    /// How many combinations the values of these axes have.
    pub(super) fn count(&self, axes: &[usize]) -> usize {
        axes.iter().map(|axis| self.axes[*axis].values.len()).fold(1, usize::saturating_mul)
    }

    /// The numbers of the values of these axes in their n-th combination; the last axis changes fastest.
    pub(super) fn combination(&self, axes: &[usize], mut n: usize) -> Vec<usize> {
        let mut values = vec![0; axes.len()];
        for (value, axis) in values.iter_mut().zip(axes).rev() {
            let length = self.axes[*axis].values.len();
            (*value, n) = (n % length, n / length);
        }
        values
    }

    /// The cell of that number, 0 to [`GridPlan::cells`]: by the axes, of which the last changes fastest.
    pub fn cell(&self, number: usize) -> Cell {
        self.cell_at(self.place(number))
    }

    /// Its values on the axes.
    pub(super) fn place(&self, number: usize) -> Vec<usize> {
        self.combination(&(0..self.axes.len()).collect::<Vec<_>>(), number)
    }

    /// The number of a place.
    pub(super) fn number_of(&self, place: &[usize]) -> usize {
        self.axes.iter().zip(place).fold(0, |number, (axis, value)| number * axis.values.len() + value)
    }

    pub(super) fn cell_at(&self, place: Vec<usize>) -> Cell {
        let mut changes: Vec<_> =
            self.axes.iter().zip(&place).map(|(axis, value)| &axis.values[*value].change).collect();
        changes.sort_by_key(|change| change.order());
        let mut settings = self.settings.clone();
        changes.iter().for_each(|change| change.apply(&mut settings));
        let model = |change: &&Change| match change {
            Change::Model(model) => Some(*model),
            _ => None,
        };
        let model = changes.into_iter().find_map(|change| model(&change)).unwrap_or(0);
        let vae = |axis: &Axis| match &axis.values[place[self.axis_of(AxisType::Vae)?]].change {
            Change::Vae(vae) => Some(vae.clone()),
            _ => None,
        };
        let vae = self.axis_of(AxisType::Vae).and_then(|axis| vae(&self.axes[axis]));
        Cell { model, vae: vae.unwrap_or_else(|| self.vae.clone()), settings, place }
    }

    /// The labels of these axes in their n-th combination, a line each. Of an axis with one value only checkpoints and
    /// prompts are told.
    pub(super) fn label(&self, axes: &[usize], n: usize) -> String {
        let values = self.combination(axes, n);
        let told = |axis: &Axis| {
            axis.values.len() > 1 || matches!(axis.kind, AxisType::Checkpoint | AxisType::Prompt)
        };
        let labels = axes.iter().zip(values).map(|(axis, value)| (&self.axes[*axis], value));
        let labels =
            labels.filter(|(axis, _)| told(axis)).map(|(axis, value)| axis.values[value].label.as_str());
        labels.collect::<Vec<_>>().join("\n")
    }

    /// The axis of that type, by its place.
    pub(super) fn axis_of(&self, kind: AxisType) -> Option<usize> {
        self.axes.iter().position(|axis| axis.kind == kind)
    }

    /// Every combination of settings must make a picture; seeds and models change nothing about that.
    fn check(&self) -> Result<()> {
        let cells = self.cells();
        if cells > MAX_CELLS {
            return Err(Error::TooManyCells { cells, max: MAX_CELLS });
        }
        let is_free = |i: &usize| !matches!(self.axes[*i].kind, AxisType::Checkpoint | AxisType::Seed);
        let axes: Vec<_> = (0..self.axes.len()).filter(is_free).collect();
        for n in 0..self.count(&axes) {
            let mut place = vec![0; self.axes.len()];
            for (axis, value) in axes.iter().zip(self.combination(&axes, n)) {
                place[*axis] = value;
            }
            let settings = self.cell_at(place).settings;
            settings.check()?;
            self.library.used_by(&settings)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn an_axis_by_its_own_name_goes_before_the_first_of_that_type() {
        let text = "layout = { columns = [\"CFG Scale\"], rows = [\"cfg\"] }";
        let config: GridConfig = vodka_stage::parse_toml(text, Path::new("grid.toml")).unwrap();
        let axis = |name: &str| {
            let (kind, name, unit, values) = (AxisType::Cfg, name.to_owned(), None, Vec::new());
            Axis { kind, name, unit, values }
        };
        let (columns, rows, _) = config.layout(&[axis("mine"), axis("CFG Scale")]).unwrap();
        assert_eq!((columns, rows), (vec![1], vec![0]));
    }
}
