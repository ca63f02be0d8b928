//! Makes the cells that are not there, checkpoint by checkpoint, and what shows them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tch::Device;
use vodka_checkpoint::Precision;
use vodka_sd15::{device_type, parse_device};
use vodka_stage::{
    ContentHash, FolderLock, HashCache, Interrupt, Outcome, Report, RunKey, create_dir, hash_bytes, lossy,
    record_path,
};

use super::{
    AxisType, Cell, GridPlan, judge, look::Look, page, sheets, table, values::quoted_value as quoted,
};
use crate::{
    Error, ModelId, ModelSource, Result, Used,
    making::{Made, Making, Wanted},
    model::{control_hashes, ids},
    store::{Arithmetic, Entry, Store, has_others},
};

/// How far the stage is.
#[derive(Debug, Clone, PartialEq)]
pub enum GridEvent<'a> {
    /// A checkpoint is being loaded.
    Loading {
        /// Its path.
        checkpoint: &'a Path,
    },
    /// Each call of the UNet is told to the GPU anew: its CUDA graphs do not work. Pictures are the same, and slower.
    WithoutGraphs {
        /// Why.
        reason: String,
    },
    /// A call of the UNet is through, in the picture that is being made.
    Step {
        /// The calls made.
        done: usize,
        /// All calls.
        total: usize,
    },
    /// A cell is there: made, found, or given up.
    Cell {
        /// How many are there.
        done: usize,
        /// All cells.
        total: usize,
    },
    /// A cell could not be made.
    Failed(&'a FailedCell),
}

/// A cell that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedCell {
    /// The number of the cell, as in `cells.csv`.
    pub cell: usize,
    /// The labels of its values.
    pub labels: Vec<String>,
    /// Why.
    pub reason: String,
}

/// What the stage has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GridReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The labelled sheets.
    #[serde(serialize_with = "lossy")]
    pub sheets: Vec<PathBuf>,
    /// The page that shows all cells.
    #[serde(serialize_with = "lossy")]
    pub page: PathBuf,
    /// All cells of the grid.
    pub cells: usize,
    /// Those that were made now.
    pub made: usize,
    /// Those that were there.
    pub kept: usize,
    /// Cells of other grids that were taken out of the store, where that was asked for.
    pub pruned: usize,
    /// Those that could not be made; they are marked on the sheets.
    pub failed: Vec<FailedCell>,
}

impl GridPlan {
    /// All that the grid depends on.
    ///
    /// # Errors
    /// A checkpoint that cannot be read.
    pub fn key(&self) -> Result<RunKey> {
        Ok(self.key_of(&self.ids(&Interrupt::new())?))
    }

    /// # Errors
    /// A model that cannot be read; [`Error::Interrupted`].
    fn ids(&self, interrupt: &Interrupt) -> Result<Ids> {
        let mut vaes: BTreeSet<_> = self.vae.iter().cloned().collect();
        let axis = self.axis_of(AxisType::Vae).map(|axis| self.axes[axis].values.len());
        vaes.extend((0..axis.unwrap_or(0)).filter_map(|value| self.vae_of(value)));
        let (models, vaes) = ids(&self.models, &vaes, self.hash_cache.as_deref(), interrupt)?;
        let mut cache = HashCache::open(self.hash_cache.as_deref());
        let controls = control_hashes(&self.units(), &mut cache, interrupt)?;
        Ok(Ids { models, vaes, controls })
    }

    /// LoRA files and embeddings by their names, with the hashes that pictures state.
    fn files_of_prompts(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        for number in 0..self.cells() {
            let used = self.used(&self.cell(number));
            files.extend(used.loras.into_iter().map(|(name, hash)| (format!("LoRA {name}"), hash)));
            files.extend(used.embeddings.into_iter().map(|(name, hash)| (format!("embedding {name}"), hash)));
        }
        files
    }

    /// What the prompts of a cell name; the plan has found it all.
    fn used(&self, cell: &Cell) -> Used {
        self.library.used_by(&cell.settings).unwrap_or_default()
    }

    /// The VAE of a value of its axis.
    fn vae_of(&self, value: usize) -> Option<PathBuf> {
        let axis = self.axis_of(AxisType::Vae)?;
        let mut place = vec![0; self.axes.len()];
        place[axis] = value;
        self.cell_at(place).vae
    }

    /// How the pictures of a cell name its model.
    fn model_id(&self, ids: &Ids, cell: &Cell) -> ModelId {
        let vae = cell.vae.as_ref().map(|path| (path.clone(), ids.vaes[path]));
        let model = ModelId { vae, ..ids.models[cell.model].clone() };
        model.with_controls(&cell.settings.controls, &ids.controls)
    }

    /// The cell's entry in the store.
    fn entry(&self, ids: &Ids, cell: &Cell) -> Entry {
        let Self { precision, vae_precision, ref device, .. } = *self;
        let arithmetic = Arithmetic { device_type: device_type(device), precision, vae_precision, batch: 1 };
        Entry::of(&cell.settings, &self.model_id(ids, cell), &self.used(cell), arithmetic)
    }

    /// Whether the store has all cells but those that could not be made, and none that is to be taken out.
    fn is_whole(&self, ids: &Ids, report: &GridReport) -> bool {
        let failed: BTreeSet<_> = report.failed.iter().map(|failed| failed.cell).collect();
        let mut names = BTreeSet::new();
        for number in 0..self.cells() {
            let name = self.entry(ids, &self.cell(number)).name;
            if !failed.contains(&(number + 1)) && !self.store.join(&name).is_file() {
                return false;
            }
            if self.prune {
                names.insert(name);
            }
        }
        !self.prune || !has_others(&self.store, &|name| names.contains(name))
    }

    /// A cell that could not be made.
    fn failed(&self, number: usize, error: &Error) -> FailedCell {
        let place = self.place(number);
        let labels = self.axes.iter().zip(&place).map(|(axis, value)| axis.values[*value].label.clone());
        FailedCell { cell: number + 1, labels: labels.collect(), reason: error.to_string() }
    }

    fn key_of(&self, ids: &Ids) -> RunKey {
        #[derive(Serialize)]
        struct Key<'a> {
            device: &'a str,
            precision: [Precision; 2],
            axes: Vec<AxisKey<'a>>,
            layout: [&'a [usize]; 3],
            sheet: &'a super::SheetConfig,
            models: Vec<String>,
            categories: &'a [Option<String>],
            judge: super::plan::Judge,
            cells: ContentHash,
            page: ContentHash,
        }
        #[derive(Serialize)]
        struct AxisKey<'a> {
            name: &'a str,
            labels: Vec<&'a str>,
        }
        let axes = self.axes.iter().map(|axis| AxisKey {
            name: &axis.name,
            labels: axis.values.iter().map(|value| value.label.as_str()).collect(),
        });
        // Labels may be alike where cells are not, and which cell has which VAE is in none.
        let mut cells = vodka_stage::Hasher::default();
        for n in 0..self.cells() {
            cells.piece(self.entry(ids, &self.cell(n)).name);
        }
        let key = Key {
            device: device_type(&self.device),
            precision: [self.precision, self.vae_precision],
            axes: axes.collect(),
            layout: [&self.columns, &self.rows, &self.sheets],
            sheet: &self.sheet,
            models: self.models.iter().map(ModelSource::name).collect(),
            categories: &self.categories,
            judge: self.judge,
            cells: cells.finish(),
            page: page::version(),
        };
        let key = RunKey::new("grid", &key, None);
        let models = ids.models.iter().enumerate();
        let key = models.fold(key, |key, (i, id)| id.add_to(key, &format!("checkpoint {}", i + 1)));
        let key = ids
            .vaes
            .iter()
            .fold(key, |key, (path, hash)| key.input_hashed(&format!("VAE {}", path.display()), path, *hash));
        let key = ids.controls.iter().fold(key, |key, (path, hash)| {
            key.input_hashed(&format!("ControlNet {}", path.display()), path, *hash)
        });
        let files = self.files_of_prompts();
        files
            .into_iter()
            .fold(key, |key, (name, hash)| key.input_hashed(&name, Path::new(&name), hash_bytes(hash)))
    }
}

/// Makes the cells that are not in the store, model by model, and the sheets, the table and the page.
///
/// A cell's file is named by all that decides it, so a killed run goes on where it was and loses the picture in hand at
/// most, and a grid that has grown makes its new cells alone. Each model is loaded once, and not at all where nothing is
/// to do; while its pictures are made the files of the next one are read.
///
/// # Errors
/// A checkpoint that is no model or has weights that are not finite, a device that is not there, a folder that cannot
/// be written, or that another run writes to.
pub fn run(
    plan: &GridPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(GridEvent<'_>),
) -> Result<GridReport> {
    let ids = match plan.ids(interrupt) {
        Err(Error::Interrupted) => {
            return Ok(GridReport { outcome: Outcome::Interrupted, ..GridReport::new(plan) });
        }
        ids => ids?,
    };
    let key = plan.key_of(&ids);
    let record = record_path(&plan.output);
    let made = key.made::<GridReport>(&record)?;
    if let Some(report) = made.filter(|report| plan.is_whole(&ids, report)) {
        return Ok(report.again(plan));
    }
    let device = parse_device(&plan.device, &plan.runtime_dir)?;
    create_dir(&plan.output)?;
    let _output = FolderLock::take(&plan.output)?;
    let store = Store::open(&plan.store)?;
    let (report, looks) = (GridReport::new(plan), vec![None; plan.cells()]);
    let mut run = Run { plan, device, ids, store, looks, interrupt, report, on_event };
    match run.make_cells().and_then(|through| if through { run.show() } else { Err(Error::Interrupted) }) {
        Err(Error::Interrupted) => {
            run.report.outcome = Outcome::Interrupted;
            return Ok(run.report);
        }
        result => result?,
    }
    let report = run.report;
    drop(run.store);
    key.write(&record, &[&plan.output], &report)?;
    Ok(report)
}

/// The hashes of models, of VAEs in their own files, and of ControlNets and their pictures.
struct Ids {
    models: Vec<ModelId>,
    vaes: BTreeMap<PathBuf, ContentHash>,
    controls: BTreeMap<PathBuf, ContentHash>,
}

/// A run in progress.
pub(super) struct Run<'a> {
    pub(super) plan: &'a GridPlan,
    device: Device,
    ids: Ids,
    pub(super) store: Store,
    /// Of every cell that is there, by its number.
    pub(super) looks: Vec<Option<Look>>,
    interrupt: &'a Interrupt,
    pub(super) report: GridReport,
    on_event: &'a mut dyn FnMut(GridEvent<'_>),
}

impl Run<'_> {
    /// The cell's entry in the store.
    pub(super) fn entry(&self, cell: &Cell) -> Entry {
        self.plan.entry(&self.ids, cell)
    }

    /// # Errors
    /// The user wants to stop.
    pub(super) fn check(&self) -> Result<()> {
        if self.interrupt.is_raised() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Makes what is missing; whether all is there, and nothing was interrupted.
    fn make_cells(&mut self) -> Result<bool> {
        let Self { plan, device, ids, store, looks, interrupt, report, on_event } = self;
        let GridPlan { models, precision, vae_precision, library, .. } = *plan;
        let making = Making {
            models,
            device: *device,
            precision: *precision,
            vae_precision: *vae_precision,
            library,
            batch: 1,
            store,
            interrupt,
        };
        let wanted = |number: usize| {
            let cell = plan.cell(number);
            let entry = plan.entry(ids, &cell);
            Wanted { model: cell.model, vae: cell.vae, settings: cell.settings, entry }
        };
        making.run(report.cells, &wanted, &mut |made| {
            match made {
                Made::Loading(checkpoint) => on_event(GridEvent::Loading { checkpoint }),
                Made::WithoutGraphs(ref reason) => {
                    on_event(GridEvent::WithoutGraphs { reason: reason.clone() });
                }
                Made::Step(done, total) => on_event(GridEvent::Step { done, total }),
                Made::Kept(number, picture) => {
                    looks[number] = Some(Look::of(picture));
                    report.kept += 1;
                }
                Made::New(number, picture) => {
                    looks[number] = Some(Look::of(picture));
                    report.made += 1;
                }
                Made::Failed(number, error) => {
                    let failed = plan.failed(number, error);
                    on_event(GridEvent::Failed(&failed));
                    report.failed.push(failed);
                    report.outcome = Outcome::Skipped;
                }
            }
            if matches!(made, Made::Kept(..) | Made::New(..) | Made::Failed(..)) {
                let done = report.made + report.kept + report.failed.len();
                on_event(GridEvent::Cell { done, total: report.cells });
            }
            Ok(())
        })
    }

    /// Writes the sheets, the table and the page.
    fn show(&mut self) -> Result<()> {
        self.report.sheets = sheets::write(self)?;
        table::write(self)?;
        let judging = judge::judge(self.plan, &self.looks, &|| self.check())?;
        table::write_judging(self.plan, &judging)?;
        page::write(self, &judging)?;
        let names: BTreeSet<_> = match self.plan.prune {
            true => (0..self.report.cells).map(|number| self.entry(&self.plan.cell(number)).name).collect(),
            false => BTreeSet::new(),
        };
        self.report.pruned = self.store.prune(&|name| !self.plan.prune || names.contains(name))?;
        Ok(())
    }

    /// The sheet's own text: its first cell's, with the axes in the fields of A1111's script. Values are the labels of
    /// these columns and rows of the sheet, comma-separated and quoted as the syntax of values has it.
    pub(super) fn sheet_text(&self, first: &Cell, columns: &[String], rows: &[String]) -> String {
        let plan = self.plan;
        let names = |axes: &[usize]| {
            axes.iter().map(|axis| plan.axes[*axis].name.as_str()).collect::<Vec<_>>().join(", ")
        };
        let labels =
            |labels: &[String]| labels.iter().map(|label| quoted(label)).collect::<Vec<_>>().join(", ");
        first
            .settings
            .parameters_with(&self.model_id(first), &plan.used(first))
            .with("Script", "X/Y/Z plot")
            .with("X Type", names(&plan.columns))
            .with("X Values", labels(columns))
            .with("Y Type", names(&plan.rows))
            .with("Y Values", labels(rows))
            .to_string()
    }

    /// How the pictures of a cell name its model.
    pub(super) fn model_id(&self, cell: &Cell) -> ModelId {
        self.plan.model_id(&self.ids, cell)
    }
}

impl GridReport {
    fn new(plan: &GridPlan) -> Self {
        Self {
            outcome: Outcome::Done,
            sheets: Vec::new(),
            page: plan.output.join("index.html"),
            cells: plan.cells(),
            made: 0,
            kept: 0,
            pruned: 0,
            failed: Vec::new(),
        }
    }

    /// The report of a run that found everything as this one left it.
    fn again(mut self, plan: &GridPlan) -> Self {
        let here = |path: &mut PathBuf| *path = plan.output.join(path.file_name().unwrap_or_default());
        self.sheets.iter_mut().chain([&mut self.page]).for_each(here);
        (self.made, self.kept, self.pruned) = (0, self.cells - self.failed.len(), 0);
        if self.failed.is_empty() {
            self.outcome = Outcome::Unchanged;
        }
        self
    }
}

impl Report for GridReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for GridReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outcome, cells, made, kept, failed, .. } = self;
        let page = self.page.display();
        match outcome {
            Outcome::Unchanged => write!(f, "{page} is there already, with {cells} cells"),
            Outcome::Interrupted => {
                write!(f, "{} of {cells} cells are there; the sheets are not written anew yet", made + kept)
            }
            Outcome::Done | Outcome::Skipped => {
                write!(f, "{page}: {cells} cells, {made} made, {kept} kept")
            }
        }?;
        if self.pruned > 0 {
            write!(f, ", {} of other grids removed", self.pruned)?;
        }
        for FailedCell { cell, labels, reason } in failed {
            let labels: Vec<_> = labels.iter().map(|label| label.replace('\n', ", ")).collect();
            write!(f, "\nnot made: cell {cell} ({}): {reason}", labels.join("; "))?;
        }
        Ok(())
    }
}

/// The number of the prompt at a place.
pub(super) fn prompt_of(plan: &GridPlan, place: &[usize]) -> usize {
    plan.axis_of(AxisType::Prompt).map_or(0, |axis| place[axis])
}
