//! Grids over the tiny models: interruption, cells that are there already, cells that cannot be made.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use vodka_checkpoint::{Checkpoint, Error, Precision, write_checkpoint};
use vodka_sampler::{
    GridCheckpoint, GridConfig, GridEvent, GridPlan, GridPrompt, GridReport, grid, read_parameters,
};
use vodka_stage::{Interrupt, Outcome};
use vodka_testkit::model;

fn config(checkpoints: &[PathBuf], output: &Path) -> GridConfig {
    let prompt = |text: &str| GridPrompt { label: None, prompt: text.into(), negative: "blurry".into() };
    let checkpoint = |path: &PathBuf| GridCheckpoint { label: None, path: path.clone() };
    GridConfig {
        checkpoints: checkpoints.iter().map(checkpoint).collect(),
        prompts: vec![prompt("a red circle"), prompt("a blue star")],
        seeds: vec![1, 2],
        steps: 2,
        cfg: 3.0,
        size: "64x64".parse().unwrap(),
        sampler: Default::default(),
        schedule: Default::default(),
        clip_skip: 1,
        device: "cpu".into(),
        output: output.to_path_buf(),
        runtime_dir: PathBuf::new(),
    }
}

/// Runs to the end, or until so many cells are there; returns the report and how often a checkpoint was loaded.
fn run(plan: &GridPlan, stop_after: usize) -> (GridReport, usize) {
    let interrupt = Interrupt::new();
    let mut loads = 0;
    let report = grid::run(plan, &interrupt, &mut |event| match event {
        GridEvent::Loading { .. } => loads += 1,
        GridEvent::Cell { done, .. } if done == stop_after => interrupt.raise(),
        _ => {}
    });
    (report.unwrap(), loads)
}

fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| match path.is_dir() {
        true => tree(&path).into_iter().collect::<Vec<_>>(),
        false => vec![(path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())],
    });
    files.collect()
}

#[test]
fn an_interrupted_grid_goes_on_and_ends_as_an_undisturbed_one() {
    let dir = tempfile::tempdir().unwrap();
    let models = [model("base"), model("v1")];
    let plan = |name: &str| config(&models, &dir.path().join(name)).plan().unwrap();
    let (whole, loads) = run(&plan("whole"), usize::MAX);
    assert_eq!((whole.outcome, whole.made, whole.kept, loads), (Outcome::Done, 8, 0, 2));

    let (part, loads) = run(&plan("part"), 3);
    assert_eq!((part.outcome, part.made, loads), (Outcome::Interrupted, 3, 1));
    assert!(!dir.path().join("part/grid.png").exists());
    let (rest, loads) = run(&plan("part"), usize::MAX);
    assert_eq!((rest.outcome, rest.made, rest.kept, loads), (Outcome::Done, 5, 3, 2));
    assert_eq!(tree(&dir.path().join("part")), tree(&dir.path().join("whole")));

    let (again, loads) = run(&plan("part"), usize::MAX);
    assert_eq!((again.outcome, again.made, loads), (Outcome::Unchanged, 0, 0));
}

#[test]
fn only_cells_that_changed_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = config(&[model("base"), model("v1")], dir.path());
    run(&first.plan().unwrap(), usize::MAX);

    let mut changed = first;
    changed.prompts[1].prompt = "a green square".into();
    let (report, _) = run(&changed.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, report.kept), (4, 4));

    let mut smaller = changed;
    smaller.checkpoints.pop();
    let (report, loads) = run(&smaller.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, report.kept, loads), (0, 4, 0));
    assert!(!dir.path().join("cells/r01-c02.png").exists(), "cells of the larger grid are gone");

    fs::write(dir.path().join("cells/r01-c01.png"), "no picture").unwrap();
    let (report, _) = run(&smaller.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, report.kept), (1, 3));

    // Its text is whole, its pixels are not.
    let cell = dir.path().join("cells/r02-c01.png");
    let bytes = fs::read(&cell).unwrap();
    fs::write(&cell, &bytes[..bytes.len() * 3 / 4]).unwrap();
    let (report, _) = run(&smaller.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, report.kept), (1, 3));
}

#[test]
fn sheet_and_cells_say_how_they_were_made() {
    let dir = tempfile::tempdir().unwrap();
    run(&config(&[model("base"), model("v1")], dir.path()).plan().unwrap(), usize::MAX);
    let text = |name: &str| read_parameters(&dir.path().join(name)).unwrap().unwrap();
    let cell = text("cells/r04-c02.png");
    assert!(cell.starts_with("a blue star\nNegative prompt: blurry\nSteps: 2, Sampler: Euler, "), "{cell}");
    assert!(cell.contains("Seed: 2, Size: 64x64, ") && cell.contains("Model: v1, "), "{cell}");
    let sheet = text("grid.png");
    assert!(sheet.contains("X Type: Checkpoint name, X Values: \"base, v1\""), "{sheet}");
}

/// A copy of the tiny model whose last bias is so large that guidance overflows, though every weight is finite.
fn overflowing_model(path: &Path) {
    let base = Checkpoint::open(model("base")).unwrap();
    let mut tensor = |name: &str| -> Result<_, Error> {
        let tensor = base.tensor(name)?;
        let mut values = tensor.to_f32();
        if name == "model.diffusion_model.out.2.bias" {
            values.fill(3e38);
        }
        Ok((tensor.shape, values))
    };
    write_checkpoint(path, base.config(), Precision::F32, &BTreeMap::new(), &mut tensor).unwrap();
}

#[test]
fn a_cell_that_cannot_be_made_is_listed_and_the_others_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.safetensors");
    overflowing_model(&bad);
    let mut config = config(&[bad, model("base")], &dir.path().join("grid"));
    config.prompts.truncate(1);
    config.seeds.truncate(1);
    let plan = config.plan().unwrap();
    for made in [1, 0] {
        let (report, _) = run(&plan, usize::MAX);
        assert_eq!((report.outcome, report.made, report.failed.len()), (Outcome::Skipped, made, 1));
        let reason = &report.failed[0].reason;
        assert!(reason.contains("bad.safetensors") && reason.contains("not finite"), "{reason}");
        assert_eq!(report.failed[0].cell, Path::new("cells/r01-c01.png"));
    }
    assert!(dir.path().join("grid/grid.png").exists());
}
