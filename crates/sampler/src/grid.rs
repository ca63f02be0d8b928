//! The stage that makes a grid of pictures: checkpoints by prompts and seeds.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};
use vodka_noise::{SamplerName, ScheduleName};
use vodka_prompt::Parameters;
use vodka_sd15::{check_device_name, device_type, parse_device};
use vodka_stage::{Interrupt, Outcome, Report, RunKey, create_dir, read_toml, record_path};

use crate::{
    Error, ModelId, ModelSource, Pipeline, Result, Settings, Size,
    png::{read_parameters, read_rgb, write_png},
    sample::{default_cfg, default_clip_skip, default_device, default_steps},
    sheet,
};

const CELLS: &str = "cells";
const SHEET: &str = "grid.png";

/// `grid.toml`: one column for each checkpoint, one row for each prompt and seed.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("grid.toml");
/// # std::fs::write(&path,
/// r#"
/// steps = 30
/// cfg = 7.5
/// size = "512x768"
/// sampler = "DDIM"
/// seeds = [1, 2]
///
/// [[checkpoints]]
/// label = "25 epochs"
/// path = "train/ep25.safetensors"
///
/// [[prompts]]
/// prompt = "a portrait of an old sailor, oil painting"
/// negative = "blurry, blurry background"
/// "#
/// # )?;
/// # let mut config = vodka_sampler::GridConfig::read(&path)?;
/// # config.output = "grid".into();
/// # assert_eq!(config.plan()?.rows.len(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridConfig {
    /// The columns.
    pub checkpoints: Vec<GridCheckpoint>,
    /// The rows.
    pub prompts: Vec<GridPrompt>,
    /// Each prompt has a row with each of these; 0 alone where absent.
    #[serde(default = "default_seeds")]
    pub seeds: Vec<u32>,
    /// Steps as A1111 counts them; 20 where absent.
    #[serde(default = "default_steps")]
    pub steps: u32,
    /// The CFG scale; 7 where absent.
    #[serde(default = "default_cfg")]
    pub cfg: f64,
    /// The size of each picture; 512x512 where absent.
    #[serde(default)]
    pub size: Size,
    /// The sampler; Euler where absent.
    #[serde(default)]
    pub sampler: SamplerName,
    /// The schedule; Automatic where absent.
    #[serde(default)]
    pub schedule: ScheduleName,
    /// The layer of the text encoder, counted from the end; 1, the last, where absent.
    #[serde(default = "default_clip_skip")]
    pub clip_skip: u32,
    /// `cpu`, `cuda` or `cuda:N`; `cpu` where absent.
    #[serde(default = "default_device")]
    pub device: String,
    /// The folder to fill; not part of `grid.toml`.
    #[serde(skip)]
    pub output: PathBuf,
    /// Where `cargo xtask setup` put libtorch; not part of `grid.toml`.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
}

fn default_seeds() -> Vec<u32> {
    vec![0]
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridCheckpoint {
    /// What stands above it; the file's name where absent.
    #[serde(default)]
    pub label: Option<String>,
    /// A single-file checkpoint, a diffusers folder, or a merge recipe: `recipe.toml`, or `recipe.toml#OUTPUT`.
    pub path: PathBuf,
}

/// A row, or as many as there are seeds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GridPrompt {
    /// What stands beside it; the prompts where absent.
    #[serde(default)]
    pub label: Option<String>,
    /// What the picture is to show.
    pub prompt: String,
    /// What it is not to show.
    #[serde(default)]
    pub negative: String,
}

/// A checked [`GridConfig`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GridPlan {
    /// The columns, left to right.
    pub columns: Vec<Column>,
    /// The rows, from the top.
    pub rows: Vec<Row>,
    /// The size of each picture.
    pub size: Size,
    /// The device's name.
    pub device: String,
    /// The folder to fill.
    pub output: PathBuf,
    /// Where libtorch is.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
}

/// A checkpoint and its label.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Column {
    /// What stands above it.
    pub label: String,
    /// The checkpoint, or the merge.
    pub model: ModelSource,
}

/// Settings and their label.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What stands beside it.
    pub label: String,
    /// Prompts and numbers.
    pub settings: Settings,
}

/// How far the stage is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GridEvent<'a> {
    /// A checkpoint is being loaded.
    Loading {
        /// Its path.
        checkpoint: &'a Path,
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
    /// The file that was to be written, below the output folder.
    pub cell: PathBuf,
    /// The row's label.
    pub row: String,
    /// The column's label.
    pub column: String,
    /// Why.
    pub reason: String,
}

/// What the stage has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GridReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The labelled sheet.
    pub sheet: PathBuf,
    /// All cells of the grid.
    pub cells: usize,
    /// Those that were made now.
    pub made: usize,
    /// Those that were there.
    pub kept: usize,
    /// Those that could not be made; they are marked on the sheet.
    pub failed: Vec<FailedCell>,
}

impl GridConfig {
    /// Reads `grid.toml`; relative paths in it start at the current folder.
    ///
    /// # Errors
    /// An unknown key, with its line and the nearest known one; a wrong value.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(read_toml(path)?)
    }

    /// Checks the settings; no checkpoint is opened.
    pub fn plan(&self) -> Result<GridPlan> {
        let axes = [
            ("checkpoints", self.checkpoints.len()),
            ("prompts", self.prompts.len()),
            ("seeds", self.seeds.len()),
        ];
        if let Some((axis, _)) = axes.into_iter().find(|(_, length)| *length == 0) {
            return Err(Error::EmptyAxis { axis });
        }
        check_device_name(&self.device)?;
        let column = |checkpoint: &GridCheckpoint| {
            let model = ModelSource::read(&checkpoint.path, &[])?;
            Ok(Column { label: checkpoint.label.clone().unwrap_or_else(|| model.name()), model })
        };
        let row = |(prompt, seed): (&GridPrompt, u32)| {
            let settings = self.settings(prompt, seed);
            settings.check()?;
            Ok(Row { label: prompt.row_label((self.seeds.len() > 1).then_some(seed)), settings })
        };
        let rows = self.prompts.iter().flat_map(|prompt| self.seeds.iter().map(move |seed| (prompt, *seed)));
        Ok(GridPlan {
            columns: self.checkpoints.iter().map(column).collect::<Result<_>>()?,
            rows: rows.map(row).collect::<Result<_>>()?,
            size: self.size,
            device: self.device.clone(),
            output: self.output.clone(),
            runtime_dir: self.runtime_dir.clone(),
        })
    }

    fn settings(&self, prompt: &GridPrompt, seed: u32) -> Settings {
        Settings {
            prompt: prompt.prompt.clone(),
            negative_prompt: prompt.negative.clone(),
            seed,
            steps: self.steps,
            cfg_scale: self.cfg,
            size: self.size,
            sampler: self.sampler,
            schedule: self.schedule,
            clip_skip: self.clip_skip,
            ..Settings::default()
        }
    }
}

impl GridPrompt {
    fn row_label(&self, seed: Option<u32>) -> String {
        let negative = Some(&self.negative).filter(|text| !text.is_empty());
        let both = || match negative {
            Some(negative) => format!("{}\nnot: {negative}", self.prompt),
            None => self.prompt.clone(),
        };
        let label = self.label.clone().unwrap_or_else(both);
        seed.map_or(label.clone(), |seed| format!("{label}\nseed {seed}"))
    }
}

impl GridPlan {
    /// All that the grid depends on.
    pub fn key(&self) -> Result<RunKey> {
        Ok(self.key_of(&self.models()?))
    }

    fn models(&self) -> Result<Vec<ModelId>> {
        self.columns.iter().map(|column| column.model.id()).collect()
    }

    fn key_of(&self, models: &[ModelId]) -> RunKey {
        #[derive(Serialize)]
        struct Key<'a> {
            device: &'a str,
            columns: Vec<[String; 2]>,
            rows: &'a [Row],
        }
        let columns = self.columns.iter().map(|column| [column.label.clone(), column.model.name()]);
        let settings =
            Key { device: device_type(&self.device), columns: columns.collect(), rows: &self.rows };
        let key = RunKey::new("grid", &settings, None);
        models.iter().enumerate().fold(key, |key, (i, model)| model.add_to(key, &input_name(i)))
    }

    fn cell_path(&self, row: usize, column: usize) -> PathBuf {
        self.output.join(CELLS).join(cell_name(row, column))
    }

    /// The sheet's own text: the first cell's, with the axes, as A1111's script writes it.
    fn sheet_text(&self, first: Parameters) -> String {
        let list = |labels: Vec<&str>| labels.join(", ");
        first
            .with("Script", "X/Y/Z plot")
            .with("X Type", "Checkpoint name")
            .with("X Values", list(self.columns.iter().map(|column| column.label.as_str()).collect()))
            .with("Y Type", "Prompt")
            .with("Y Values", list(self.rows.iter().map(|row| row.label.as_str()).collect()))
            .to_string()
    }
}

fn input_name(column: usize) -> String {
    format!("checkpoint {}", column + 1)
}

/// `r01-c02.png`, counted from 1 as on the sheet.
fn cell_name(row: usize, column: usize) -> String {
    format!("r{:02}-c{:02}.png", row + 1, column + 1)
}

/// Makes the cells that are not there, column by column, and the sheet.
///
/// A cell counts as there when its file has the `parameters` text that would be written, so a killed run goes on where
/// it was and loses the picture in hand at most. Each checkpoint is loaded once, and not at all where nothing is to do.
///
/// # Errors
/// A checkpoint that is no model or has weights that are not finite, a device that is not there, a folder that cannot
/// be written.
pub fn run(
    plan: &GridPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(GridEvent<'_>),
) -> Result<GridReport> {
    let models = plan.models()?;
    let key = plan.key_of(&models);
    let record = record_path(&plan.output);
    if let Some(report) = key.made::<GridReport>(&record)? {
        return Ok(report.again(plan));
    }
    let device = parse_device(&plan.device, &plan.runtime_dir)?;
    let mut run = Run { plan, device, interrupt, report: GridReport::new(plan), on_event };
    create_dir(plan.output.join(CELLS))?;
    run.remove_other_cells()?;
    for (column, model) in models.iter().enumerate() {
        if !run.column(column, model)? {
            run.report.outcome = Outcome::Interrupted;
            return Ok(run.report);
        }
    }
    run.write_sheet(&plan.sheet_text(plan.rows[0].settings.parameters(&models[0])))?;
    let report = run.report;
    key.write(&record, &[&plan.output], &report)?;
    Ok(report)
}

/// A run in progress.
struct Run<'a> {
    plan: &'a GridPlan,
    device: Device,
    interrupt: &'a Interrupt,
    report: GridReport,
    on_event: &'a mut dyn FnMut(GridEvent<'_>),
}

impl Run<'_> {
    /// Makes what is missing of a column; whether it is through, and not interrupted.
    fn column(&mut self, column: usize, model: &ModelId) -> Result<bool> {
        let plan = self.plan;
        let mut pipeline = None;
        for (row, Row { settings, .. }) in plan.rows.iter().enumerate() {
            let path = plan.cell_path(row, column);
            let text = settings.parameters(model).to_string();
            if is_there(&path, &text) {
                self.report.kept += 1;
                self.count_cell();
                continue;
            }
            if self.interrupt.is_raised() {
                return Ok(false);
            }
            let pipeline = match &mut pipeline {
                Some(pipeline) => pipeline,
                empty => empty.insert(self.load(&plan.columns[column].model)?),
            };
            let mut on_step = |done, total| (self.on_event)(GridEvent::Step { done, total });
            match pipeline.generate(settings, self.interrupt, &mut on_step) {
                Ok(Some(picture)) => {
                    write_png(&path, &picture, &text)?;
                    self.report.made += 1;
                }
                Ok(None) => return Ok(false),
                Err(error @ Error::NotFinite { .. }) => self.fail(row, column, &error)?,
                Err(error) => return Err(error),
            }
            self.count_cell();
        }
        Ok(true)
    }

    fn load(&mut self, model: &ModelSource) -> Result<Pipeline> {
        (self.on_event)(GridEvent::Loading { checkpoint: model.path() });
        Pipeline::load(model.open()?, self.device, Kind::Float)
    }

    fn count_cell(&mut self) {
        let report = &self.report;
        let done = report.made + report.kept + report.failed.len();
        (self.on_event)(GridEvent::Cell { done, total: report.cells });
    }

    /// Lists a cell that could not be made; an older picture in its place is removed.
    fn fail(&mut self, row: usize, column: usize, error: &Error) -> Result<()> {
        remove(&self.plan.cell_path(row, column))?;
        let failed = FailedCell {
            cell: Path::new(CELLS).join(cell_name(row, column)),
            row: self.plan.rows[row].label.clone(),
            column: self.plan.columns[column].label.clone(),
            reason: error.to_string(),
        };
        (self.on_event)(GridEvent::Failed(&failed));
        self.report.failed.push(failed);
        self.report.outcome = Outcome::Skipped;
        Ok(())
    }

    /// Removes cells of a larger grid that was in the folder before; other files are left alone.
    fn remove_other_cells(&self) -> Result<()> {
        let (rows, columns) = (self.plan.rows.len(), self.plan.columns.len());
        for (row, column) in cells_in(&self.plan.output.join(CELLS)) {
            if row >= rows || column >= columns {
                remove(&self.plan.cell_path(row, column))?;
            }
        }
        Ok(())
    }

    fn write_sheet(&self, text: &str) -> Result<()> {
        let plan = self.plan;
        let columns: Vec<_> = plan.columns.iter().map(|column| column.label.clone()).collect();
        let rows: Vec<_> = plan.rows.iter().map(|row| row.label.clone()).collect();
        let mut cell = |row, column| {
            let path = plan.cell_path(row, column);
            if !path.exists() {
                return Ok(None);
            }
            let Size { width, height } = plan.size;
            match read_rgb(&path)? {
                Some(picture) if picture.dimensions() == (width, height) => Ok(Some(picture)),
                _ => Err(Error::CellChanged { path, width, height }),
            }
        };
        let sheet = sheet::draw(&columns, &rows, plan.size, &mut cell)?;
        write_png(&self.report.sheet, &sheet, text)
    }
}

/// Whether the file is the picture with this text; one that cannot be read is made anew.
fn is_there(path: &Path, text: &str) -> bool {
    matches!(read_parameters(path), Ok(Some(found)) if found == text) && matches!(read_rgb(path), Ok(Some(_)))
}

/// Rows and columns, from 0, of all cells in a folder.
fn cells_in(folder: &Path) -> Vec<(usize, usize)> {
    let place = |name: &str| {
        let (row, column) = name.strip_prefix('r')?.strip_suffix(".png")?.split_once("-c")?;
        let place =
            (row.parse::<usize>().ok()?.checked_sub(1)?, column.parse::<usize>().ok()?.checked_sub(1)?);
        (cell_name(place.0, place.1) == name).then_some(place)
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| place(entry.file_name().to_str()?)).collect()
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(vodka_stage::Error::Write { path: path.to_path_buf(), source }.into())
        }
        _ => Ok(()),
    }
}

impl GridReport {
    fn new(plan: &GridPlan) -> Self {
        Self {
            outcome: Outcome::Done,
            sheet: plan.output.join(SHEET),
            cells: plan.rows.len() * plan.columns.len(),
            made: 0,
            kept: 0,
            failed: Vec::new(),
        }
    }

    /// The report of a run that found everything as this one left it.
    fn again(mut self, plan: &GridPlan) -> Self {
        self.sheet = plan.output.join(SHEET);
        (self.made, self.kept) = (0, self.cells - self.failed.len());
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
        let sheet = self.sheet.display();
        match outcome {
            Outcome::Unchanged => write!(f, "{sheet} is there already, with {cells} cells"),
            Outcome::Interrupted => write!(f, "{} of {cells} cells are there, no sheet yet", made + kept),
            Outcome::Done | Outcome::Skipped => {
                write!(f, "{sheet}: {cells} cells, {made} made, {kept} kept")
            }
        }?;
        for cell in failed {
            let FailedCell { cell, row, column, reason } = cell;
            let row = row.replace('\n', ", ");
            write!(f, "\nnot made: {} ({row}; {column}): {reason}", cell.display())?;
        }
        Ok(())
    }
}
