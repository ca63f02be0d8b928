//! Grids over the tiny models: interruption, cells that are there already, cells that cannot be made.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use tch::{Device, Kind};
use vodka_checkpoint::{Checkpoint, Error, Precision, write_checkpoint};
use vodka_sampler::{
    ControlConfig, GridAxis, GridCheckpoint, GridConfig, GridEvent, GridHires, GridLayout, GridPlan,
    GridPrompt, GridReport, Load, ModelSource, Pipeline, Settings, Values, grid, read_parameters,
};
use vodka_stage::{FolderLock, HashCache, Interrupt, Outcome, Spanned, parse_toml};
use vodka_testkit::{fixture, model};

fn config(checkpoints: &[PathBuf], output: &Path) -> GridConfig {
    let prompt = |text: &str| GridPrompt::new(text, "blurry");
    let checkpoint = |path: &PathBuf| GridCheckpoint::new(None, path);
    GridConfig {
        checkpoints: checkpoints.iter().map(checkpoint).collect(),
        prompts: vec![prompt("a red circle"), prompt("a blue star")],
        seeds: Some([1, 2].into_iter().collect()),
        steps: 2,
        cfg: 3.0,
        output: output.to_path_buf(),
        ..parse_toml("size = \"64x64\"", Path::new("grid.toml")).unwrap()
    }
}

fn axis(kind: &str, values: &str) -> Spanned<GridAxis> {
    Spanned::new(0..0, GridAxis::new(kind.parse().unwrap(), Values::split(values).unwrap()))
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
    let plan = |name: &str| config(&models, &dir.path().join(name).join("grid")).plan().unwrap();
    let (whole, loads) = run(&plan("whole"), usize::MAX);
    assert_eq!((whole.outcome, whole.made, whole.kept, loads), (Outcome::Done, 8, 0, 2));

    let (part, loads) = run(&plan("part"), 3);
    assert_eq!((part.outcome, part.made, loads), (Outcome::Interrupted, 3, 1));
    assert!(!dir.path().join("part/grid/grid.png").exists());
    let (rest, loads) = run(&plan("part"), usize::MAX);
    assert_eq!((rest.outcome, rest.made, rest.kept, loads), (Outcome::Done, 5, 3, 2));
    let (part, whole) = (tree(&dir.path().join("part/grid")), tree(&dir.path().join("whole/grid")));
    assert_eq!(part.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    let other = part.iter().find(|(name, bytes)| whole[*name] != **bytes).map(|(name, _)| name);
    assert_eq!(other, None);

    let (again, loads) = run(&plan("part"), usize::MAX);
    assert_eq!((again.outcome, again.made, loads), (Outcome::Unchanged, 0, 0));
}

/// The files of the cells, in the order of the table, and the table's other columns.
fn table(output: &Path) -> (Vec<PathBuf>, Vec<csv::StringRecord>) {
    let mut table = csv::Reader::from_path(output.join("cells.csv")).unwrap();
    let file = table.headers().unwrap().iter().position(|name| name == "file").unwrap();
    let rows: Vec<_> = table.records().map(|row| row.unwrap()).collect();
    (rows.iter().map(|row| output.join(&row[file])).collect(), rows)
}

#[test]
fn a_grid_that_grows_makes_its_new_cells_alone() {
    let dir = tempfile::tempdir().unwrap();
    let first = config(&[model("base"), model("v1")], dir.path());
    run(&first.plan().unwrap(), usize::MAX);

    let mut grown = first;
    grown.prompts.insert(0, GridPrompt::new("a green square", ""));
    grown.axes = vec![axis("CFG Scale", "3-5 (+2)")];
    let (report, _) = run(&grown.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, report.kept, report.sheets.len()), (16, 8, 2));
    assert_eq!(table(dir.path()).0.len(), 24);

    // Neither a smaller grid nor another order loses a cell.
    let mut smaller = grown.clone();
    smaller.checkpoints.swap(0, 1);
    smaller.prompts.pop();
    let (report, loads) = run(&smaller.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, report.kept, loads), (0, 16, 0));
    let (report, _) = run(&grown.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, report.kept), (0, 24));

    // Unless that is asked for.
    smaller.prune = true;
    let (report, _) =
        run(&GridConfig { layout: layout(&["seed"], &[]), ..smaller }.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, report.pruned), (0, 8));
}

fn layout(columns: &[&str], rows: &[&str]) -> GridLayout {
    let names = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect());
    GridLayout { columns: names(columns), rows: names(rows) }
}

#[test]
fn damaged_cells_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&[model("base")], dir.path());
    run(&config.plan().unwrap(), usize::MAX);
    let (files, _) = table(dir.path());
    let whole = files.iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>();
    fs::write(&files[0], "no picture").unwrap();
    // Its text is whole, its pixels are not.
    fs::write(&files[1], &whole[1][..whole[1].len() * 3 / 4]).unwrap();
    fs::copy(&files[3], &files[2]).unwrap();
    let (report, _) = run(&config.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, report.kept), (3, 1));
    assert_eq!(files.iter().map(|file| fs::read(file).unwrap()).collect::<Vec<_>>(), whole);
}

#[test]
fn cells_of_equal_settings_are_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&[model("base")], dir.path());
    // The second prompt does not have the word, so both values make the same picture of it.
    config.axes = vec![axis("Prompt S/R", "red, green"), axis("Sampler", "Euler, Euler a")];
    config.seeds = Some(Values::one(1));
    let (report, _) = run(&config.plan().unwrap(), usize::MAX);
    assert_eq!((report.cells, report.made, report.kept), (8, 6, 2));
    let (files, rows) = table(dir.path());
    let mut names = files.clone();
    names.sort();
    names.dedup();
    assert_eq!((files.len(), names.len()), (8, 6));
    let prompts: Vec<_> = rows.iter().map(|row| row[9].to_owned()).collect();
    assert_eq!(prompts[..4], ["a red circle", "a red circle", "a green circle", "a green circle"]);
    let missing = GridConfig { axes: vec![axis("Prompt S/R", "purple, green")], ..config };
    let error = missing.plan().unwrap_err().to_string();
    assert!(error.contains("`purple`, the first value, is in no prompt"), "{error}");
}

#[test]
fn weights_of_a_merge_are_models() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("mix.toml");
    let text = format!(
        "[parents]\nb = {:?}\nv = {:?}\n[steps.mix]\nmethod = \"weighted-sum\"\na = \"b\"\nb = \"v\"\nmultiplier = 0.5\n\
         [[outputs]]\nstep = \"mix\"\n",
        model("base"),
        model("v1")
    );
    fs::write(&recipe, text).unwrap();
    let mut config = config(&[model("base")], &dir.path().join("grid"));
    config.prompts.truncate(1);
    config.seeds = Some(Values::one(1));
    let mut mix = GridCheckpoint::new(None, &recipe);
    mix.weights.insert("multiplier".into(), Values::split("0-0.5 [2]").unwrap());
    config.checkpoints.push(mix);
    // Who asks to stop while a model is loaded waits for no cell.
    let (plan, interrupt) = (config.plan().unwrap(), Interrupt::new());
    let mut steps = 0;
    let report = grid::run(&plan, &interrupt, &mut |event| match event {
        GridEvent::Loading { .. } => interrupt.raise(),
        GridEvent::Step { .. } => steps += 1,
        _ => {}
    });
    let report = report.unwrap();
    assert_eq!((report.outcome, report.made, steps), (Outcome::Interrupted, 0, 0));
    let (report, loads) = run(&plan, usize::MAX);
    assert_eq!((report.made, loads), (3, 3));
    let (files, rows) = table(&config.output);
    let labels: Vec<_> = rows.iter().map(|row| row[1].to_owned()).collect();
    assert_eq!(labels, ["base", "mix; multiplier 0", "mix; multiplier 0.5"]);
    let pixels = |file: &PathBuf| image::open(file).unwrap().into_rgb8();
    assert_eq!(pixels(&files[0]), pixels(&files[1]));
    assert_ne!(pixels(&files[0]), pixels(&files[2]));
    let text = read_parameters(&files[2]).unwrap().unwrap();
    assert!(text.contains("Merge hash: ") && text.contains("0.5"), "{text}");
    let (report, _) = run(&config.plan().unwrap(), usize::MAX);
    assert_eq!(report.outcome, Outcome::Unchanged);
}

#[test]
fn vaes_and_loras_are_axes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&[model("base")], dir.path());
    config.prompts.truncate(1);
    config.seeds = Some(Values::one(1));
    let vaes = ["none".to_owned(), model("v1").display().to_string()];
    let vaes = GridAxis::new("VAE".parse().unwrap(), vaes.into_iter().collect());
    config.axes = vec![Spanned::new(0..0, vaes)];
    let (report, loads) = run(&config.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, loads), (2, 2));
    let texts: Vec<_> =
        table(dir.path()).0.iter().map(|file| read_parameters(file).unwrap().unwrap()).collect();
    assert!(!texts[0].contains("VAE: ") && texts[1].contains("VAE: v1"), "{texts:?}");

    let mut lora = GridAxis::new("lora".parse().unwrap(), Values::split("0, 1").unwrap());
    lora.lora = Some("none-such".into());
    config.axes = vec![Spanned::new(0..0, lora)];
    let error = config.plan().unwrap_err().to_string();
    assert!(error.contains("none-such"), "{error}");
}

#[test]
fn cells_are_the_pictures_made_alone_in_any_precision() {
    let dir = tempfile::tempdir().unwrap();
    let models = [model("base"), model("v1")];
    let mut config = config(&models, dir.path());
    config.cfg = 5.0;
    let mut pixels = Vec::new();
    for (precision, kind) in [(Precision::F32, Kind::Float), (Precision::BF16, Kind::BFloat16)] {
        config.precision = precision;
        config.vae_precision = precision;
        let (report, _) = run(&config.plan().unwrap(), usize::MAX);
        assert_eq!((report.made, report.kept), (8, 0), "{precision}");
        for file in &table(dir.path()).0 {
            let text = read_parameters(file).unwrap().unwrap();
            let Ok(parameters) = text.parse();
            let settings = Settings::from_parameters(&parameters).unwrap();
            let model = models[usize::from(text.contains("Model: v1, "))].clone();
            let load = Load { vae_kind: kind, ..Load::new(Device::Cpu, kind) };
            let pipeline =
                Pipeline::load_with(ModelSource::Checkpoint(model).open().unwrap(), &load).unwrap();
            let alone = pipeline.generate(&settings, &Interrupt::new(), &mut |_, _| {}).unwrap().unwrap();
            assert!(image::open(file).unwrap().into_rgb8() == alone, "{}", file.display());
            pixels.push(alone.into_raw());
        }
    }
    pixels.sort();
    pixels.dedup();
    assert_eq!(pixels.len(), 16);
}

#[test]
fn a_second_pass_is_an_axis() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&[model("base")], dir.path());
    config.hires = Some(GridHires { scale: Some(1.5), steps: Some(1), ..GridHires::default() });
    config.axes =
        vec![axis("Hires upscaler", "off, Latent (nearest-exact), Lanczos"), axis("Denoising", "0.5, 0.8")];
    let (report, loads) = run(&config.plan().unwrap(), usize::MAX);
    // Without a second pass its strength makes no difference.
    assert_eq!((report.cells, report.made, report.kept, loads), (24, 20, 4, 1));
    let (files, rows) = table(dir.path());
    for (file, row) in files.iter().zip(&rows) {
        let picture = image::open(file).unwrap().into_rgb8();
        let text = read_parameters(file).unwrap().unwrap();
        if row.iter().any(|value| value == "no second pass") {
            assert_eq!((picture.width(), text.contains("Hires")), (64, false), "{text}");
            continue;
        }
        let upscaler =
            if row.iter().any(|value| value == "Lanczos") { "Lanczos" } else { "Latent (nearest-exact)" };
        assert!(text.contains(&format!("Hires upscaler: {upscaler}")), "{text}");
        let Ok(parameters) = text.parse();
        let settings = Settings::from_parameters(&parameters).unwrap();
        let load = Load::new(Device::Cpu, Kind::Float);
        let pipeline =
            Pipeline::load_with(ModelSource::Checkpoint(model("base")).open().unwrap(), &load).unwrap();
        let alone = pipeline.generate(&settings, &Interrupt::new(), &mut |_, _| {}).unwrap().unwrap();
        assert!(picture.width() == 96 && picture == alone, "{}", file.display());
    }
    config.hires = Some(GridHires { scale: Some(2.0), size: "128x128".parse().ok(), ..GridHires::default() });
    assert!(config.plan().unwrap_err().to_string().contains("expected one of them"));
}

#[test]
fn control_nets_are_axes_and_cells_are_pictures_made_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    common::write_model(&path("tiny.safetensors"));
    common::write_control_net(&path("one.safetensors"));
    let mut bytes = fs::read(path("one.safetensors")).unwrap();
    bytes.iter_mut().rev().take(4096).for_each(|byte| *byte &= 0x3f);
    fs::write(path("two.safetensors"), bytes).unwrap();
    let image = path("own.png");
    fs::copy(fixture("sampler/parity/init.png"), &image).unwrap();
    let mut config = config(&[path("tiny.safetensors")], &path("grid"));
    (config.size, config.seeds) = ("32x24".parse().unwrap(), Some(Values::one(1)));
    let plain = |config: &GridConfig| GridConfig { axes: Vec::new(), control: Vec::new(), ..config.clone() };
    config.control = vec![ControlConfig {
        model: Some(path("one.safetensors")),
        image: Some(image.clone()),
        ..ControlConfig::default()
    }];
    let models = [path("one.safetensors"), path("two.safetensors")].map(|path| path.display().to_string());
    config.axes =
        vec![axis("[ControlNet] Weight", "0, 0.5, 1.5"), axis("[ControlNet] Model", &models.join(", "))];
    let (report, loads) = run(&config.plan().unwrap(), usize::MAX);
    assert_eq!((report.cells, report.made, report.failed.len(), loads), (12, 12, 0, 1));
    let (files, rows) = table(&config.output);
    assert_eq!((&rows[3][4], &rows[3][5]), ("[ControlNet] Weight 0.5", "two"));
    let pixels = |file: &Path| image::open(file).unwrap().into_rgb8();
    let load = Load::new(Device::Cpu, Kind::Float);
    let model = ModelSource::Checkpoint(path("tiny.safetensors")).open().unwrap();
    let pipeline = Pipeline::load_with(model, &load).unwrap();
    let mut seen = Vec::new();
    for file in &files {
        let Ok(parameters) = read_parameters(file).unwrap().unwrap().parse();
        let mut settings = Settings::from_parameters(&parameters).unwrap();
        let unit = &mut settings.controls[0];
        let name = unit.name.split(" [").next().unwrap();
        (unit.model, unit.image) = (path(&format!("{name}.safetensors")), Some(image.clone()));
        let alone = pipeline.generate(&settings, &Interrupt::new(), &mut |_, _| {}).unwrap().unwrap();
        assert!(pixels(file) == alone, "{}", file.display());
        seen.push(alone);
    }
    // By prompt, weight and network: 0 is the picture without, and all others differ.
    let without = GridConfig { output: path("plain"), ..plain(&config) };
    run(&without.plan().unwrap(), usize::MAX);
    let plain = table(&path("plain")).0;
    assert!(seen[0] == pixels(&plain[0]) && seen[1] == seen[0] && seen[6] == pixels(&plain[1]));
    assert!((2..6).all(|i| (0..i).all(|k| k == 0 && i == 1 || seen[i] != seen[k])));

    // Nothing is made again, but what has another picture or network.
    let (again, loads) = run(&config.plan().unwrap(), usize::MAX);
    assert_eq!((again.outcome, again.made, loads), (Outcome::Unchanged, 0, 0));
    fs::copy(fixture("sampler/redraw/in.png"), &image).unwrap();
    let (report, _) = run(&config.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, report.kept), (12, 0));
    let said = |config: &GridConfig| config.plan().unwrap_err().to_string();
    let mut second = axis("control-weight", "1");
    second.get_mut().unit = Some(1);
    let other = GridConfig { axes: vec![second.clone()], ..config.clone() };
    assert!(said(&other).contains("there is no `[[control]]` of the number 1"), "{}", said(&other));
    let twice = vec![axis("control-weight", "1"), second];
    let both = GridConfig { axes: twice, control: vec![config.control[0].clone(); 2], ..config.clone() };
    assert_eq!(both.plan().unwrap().axes.last().unwrap().name, "[ControlNet] Weight 1");
    let weight = GridConfig { axes: vec![axis("control-weight", "3")], ..config.clone() };
    assert_eq!(said(&weight), "a ControlNet's weight is 3, expected 0 to 2");
    config.control[0].image = None;
    assert!(said(&config).starts_with("the ControlNet 0 has no `image`"), "{}", said(&config));
}

#[test]
fn a_lora_goes_from_nothing_to_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let tiny = dir.path().join("tiny.safetensors");
    common::write_model(&tiny);
    let mut config = config(&[tiny], &dir.path().join("grid"));
    config.seeds = Some(Values::one(1));
    config.lora_dir = Some(fixture("sampler/parity/loras"));
    let mut lora = GridAxis::new("lora".parse().unwrap(), Values::split("0, 0.5, 1").unwrap());
    lora.lora = Some("tiny_style".into());
    config.axes = vec![Spanned::new(0..0, lora)];
    let (report, _) = run(&config.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, report.failed.len()), (6, 0));
    let (files, rows) = table(&config.output);
    assert_eq!(&rows[1][4], "tiny_style 0.5");
    let text = |file: &Path| read_parameters(file).unwrap().unwrap();
    assert!(!text(&files[0]).contains("lora"), "{}", text(&files[0]));
    let half = text(&files[1]);
    assert!(half.contains("<lora:tiny_style:0.5>") && half.contains("Lora hashes: \"tiny_style: "), "{half}");
    let pixels = |file: &PathBuf| image::open(file).unwrap().into_rgb8();
    let all: Vec<_> = files.iter().map(pixels).collect();
    assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
    // Weight 0 is the picture without it, though the weights had it in them in between.
    config.axes.clear();
    config.output = dir.path().join("without");
    run(&config.plan().unwrap(), usize::MAX);
    let without: Vec<_> = table(&config.output).0.iter().map(pixels).collect();
    assert_eq!((&all[0], &all[3]), (&without[0], &without[1]));
}

#[test]
fn grids_share_a_store_but_not_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let grid = |name: &str, models: &[&str]| {
        let models: Vec<_> = models.iter().map(|name| model(name)).collect();
        let shared = GridConfig { store: Some(store.clone()), ..config(&models, &dir.path().join(name)) };
        shared.plan().unwrap()
    };
    run(&grid("first", &["base", "v1"]), usize::MAX);
    let (report, _) = run(&grid("second", &["v1", "v2"]), usize::MAX);
    assert_eq!((report.made, report.kept), (4, 4));
    let held = FolderLock::take(&store).unwrap();
    let error = grid::run(&grid("third", &["base"]), &Interrupt::new(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("store` is held by another run"), "{error}");
    drop(held);
    let held = FolderLock::take(&dir.path().join("third")).unwrap();
    let error = grid::run(&grid("third", &["base"]), &Interrupt::new(), &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("third` is held by another run"), "{error}");
    drop(held);
    assert_eq!(run(&grid("third", &["base"]), usize::MAX).0.kept, 4);
}

#[test]
fn sheets_and_cells_say_how_they_were_made() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&[model("base"), model("v1")], dir.path());
    config.axes = vec![axis("CFG Scale", "3, 5")];
    let (report, _) = run(&config.plan().unwrap(), usize::MAX);
    let text = |path: &Path| read_parameters(path).unwrap().unwrap();
    let (files, rows) = table(dir.path());
    let cell = text(files.last().unwrap());
    assert!(cell.starts_with("a blue star\nNegative prompt: blurry\nSteps: 2, Sampler: Euler, "), "{cell}");
    assert!(cell.contains("CFG scale: 5, Seed: 2, Size: 64x64, ") && cell.contains("Model: v1, "), "{cell}");
    assert_eq!(
        rows[15].iter().take(5).collect::<Vec<_>>(),
        ["16", "v1", "a blue star; not: blurry", "seed 2", "CFG Scale 5"]
    );
    let sheets: Vec<_> =
        report.sheets.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(sheets, ["grid-1.png", "grid-2.png"]);
    let sheet = text(&report.sheets[1]);
    assert!(
        sheet.contains("CFG scale: 5, ") && sheet.contains("X Type: Checkpoint name, X Values: \"base, v1\""),
        "{sheet}"
    );

    // Another layout, another set of sheets; those of before are gone.
    config.layout = layout(&["CFG Scale"], &["checkpoint", "prompt", "seed"]);
    let (report, loads) = run(&config.plan().unwrap(), usize::MAX);
    assert_eq!((report.made, report.sheets.len(), loads), (0, 1, 0));
    assert!(dir.path().join("grid.png").exists() && !dir.path().join("grid-1.png").exists());
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
    config.seeds = Some(Values::one(1));
    let plan = config.plan().unwrap();
    for made in [1, 0] {
        let (report, _) = run(&plan, usize::MAX);
        assert_eq!((report.outcome, report.made, report.failed.len()), (Outcome::Skipped, made, 1));
        let reason = &report.failed[0].reason;
        assert!(reason.contains("bad.safetensors") && reason.contains("not finite"), "{reason}");
        assert_eq!((report.failed[0].cell, &*report.failed[0].labels[0]), (1, "bad"));
    }
    assert!(dir.path().join("grid/grid.png").exists());

    // Where there is nothing to judge, the page says all the same what was not made.
    config.checkpoints.pop();
    run(&config.plan().unwrap(), usize::MAX);
    let page = fs::read_to_string(dir.path().join("grid/index.html")).unwrap();
    assert!(!page.contains("id=\"judging\"") && page.contains("Look at these"), "no list of failed cells");
}

#[test]
fn values_that_change_their_places_make_another_grid() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&[model("base")], dir.path());
    config.prompts.truncate(1);
    config.seeds = Some(Values::one(1));
    let mut names = Vec::new();
    for vaes in [["v1", "v2"], ["v2", "v1"]] {
        let vaes = vaes.map(|name| model(name).display().to_string());
        let mut axis = GridAxis::new("VAE".parse().unwrap(), vaes.into_iter().collect());
        axis.labels = Some(vec!["one".into(), "two".into()]);
        config.axes = vec![Spanned::new(0..0, axis)];
        let (report, _) = run(&config.plan().unwrap(), usize::MAX);
        assert_eq!((report.outcome, report.cells), (Outcome::Done, 2));
        names.push(table(dir.path()).0);
    }
    names[1].reverse();
    assert_eq!(names[0], names[1]);
}

#[test]
fn a_finished_grid_is_there_only_as_long_as_its_cells_are() {
    let dir = tempfile::tempdir().unwrap();
    let grid = |name: &str, models: &[&str], prune: bool| {
        let models: Vec<_> = models.iter().map(|name| model(name)).collect();
        let store = Some(dir.path().join("store"));
        GridConfig { store, prune, ..config(&models, &dir.path().join(name)) }.plan().unwrap()
    };
    let outcome = |plan: &GridPlan| {
        let (report, _) = run(plan, usize::MAX);
        (report.outcome, report.made, report.pruned)
    };
    assert_eq!(outcome(&grid("first", &["base"], false)), (Outcome::Done, 4, 0));
    assert_eq!(outcome(&grid("second", &["v1"], false)), (Outcome::Done, 4, 0));
    assert_eq!(outcome(&grid("first", &["base"], false)), (Outcome::Unchanged, 0, 0));
    // A grid that is through takes the others' cells out of the store all the same, and those are then made again.
    assert_eq!(outcome(&grid("second", &["v1"], true)), (Outcome::Done, 0, 4));
    assert_eq!(outcome(&grid("second", &["v1"], true)), (Outcome::Unchanged, 0, 0));
    assert_eq!(outcome(&grid("first", &["base"], false)), (Outcome::Done, 4, 0));
}

#[test]
fn models_are_hashed_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&[model("base"), model("v1")], &dir.path().join("grid"));
    let key = |config: &GridConfig| config.plan().unwrap().key().unwrap().hash();
    let hashed = key(&config);
    let cache = dir.path().join("hashes.json");
    config.hash_cache = Some(cache.clone());
    assert_eq!(key(&config), hashed);
    let mut known = HashCache::open(Some(&cache));
    known.remember(&model("v1"), vodka_stage::hash_bytes("remembered"));
    known.save();
    assert_ne!(key(&config), hashed);

    let interrupt = Interrupt::new();
    interrupt.raise();
    config.hash_cache = None;
    let report = grid::run(&config.plan().unwrap(), &interrupt, &mut |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Interrupted);
    assert!(!config.output.exists());
}

#[test]
fn a_grid_is_interrupted_while_its_sheets_are_made_too() {
    let dir = tempfile::tempdir().unwrap();
    let plan = config(&[model("base")], dir.path()).plan().unwrap();
    // When the last cell is there.
    let (report, _) = run(&plan, 4);
    assert_eq!((report.outcome, report.made), (Outcome::Interrupted, 4));
    assert!(report.to_string().contains("4 of 4 cells are there; the sheets are not written anew yet"));
    assert!(!dir.path().join("index.html").exists() && !dir.path().join("grid.png").exists());
    // And while cells are looked for.
    let (report, _) = run(&plan, 1);
    assert_eq!((report.outcome, report.kept), (Outcome::Interrupted, 1));
    assert_eq!(run(&plan, usize::MAX).0.outcome, Outcome::Done);
}

#[test]
fn what_would_be_confused_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("base.safetensors");
    fs::copy(model("base"), &other).unwrap();
    let base = config(&[model("v1")], dir.path());
    let said = |change: &dyn Fn(&mut GridConfig)| {
        let mut config = base.clone();
        change(&mut config);
        config.plan().unwrap_err().to_string()
    };
    let twice = said(&|config| {
        config.checkpoints =
            [model("base"), other.clone()].map(|path| GridCheckpoint::new(None, path)).into();
    });
    let (first, second) = (model("base"), other.display());
    assert_eq!(
        twice,
        format!(
            "two checkpoints are called `base`: `{}` and `{second}`; give one another `label`",
            first.display()
        )
    );
    let seeds = said(&|config| config.axes = vec![axis("Seed", "1-3")]);
    assert_eq!(seeds, "the grid has `seeds` and an axis `Seed`: expected one of them");
    let store = said(&|config| config.store = Some(dir.path().join("./")));
    assert!(store.starts_with("the store is the output folder"), "{store}");
    let mix = |weights: &str| {
        let mut mix = GridCheckpoint::new(None, dir.path().join("mix.toml"));
        for name in ["a", "b", "c"] {
            mix.weights.insert(name.into(), Values::split(weights).unwrap());
        }
        said(&|config| config.checkpoints = vec![mix.clone()])
    };
    // A thousand million, which are never multiplied out.
    assert_eq!(mix("0-1 [1000]"), "the grid has 1000000000 cells, expected at most 1000000");
    let range = mix("0-1 [0]");
    assert!(range.starts_with("the axis `weights.a`: value 1, `0-1 [0]`: expected a count"), "{range}");
}

#[test]
fn an_axis_of_seeds_lies_where_seeds_lie() {
    let mut config = config(&[model("base"), model("v1")], Path::new("grid"));
    config.seeds = None;
    config.axes = vec![axis("CFG Scale", "3, 5"), axis("Seed", "1, 2")];
    let plan = config.plan().unwrap();
    // Checkpoint, prompt, CFG, seed.
    assert_eq!((plan.columns, plan.rows, plan.sheets), (vec![0], vec![1, 3], vec![2]));
    config.checkpoints.pop();
    let plan = config.plan().unwrap();
    assert_eq!((plan.columns, plan.rows, plan.sheets), (vec![2], vec![1, 3], vec![]));
}

#[test]
#[cfg(unix)]
fn a_folder_of_any_name_takes_a_grid() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join(std::ffi::OsStr::from_bytes(b"50% #\xff"));
    let mut config = config(&[model("base")], &output);
    config.prompts.truncate(1);
    config.store = Some(dir.path().join("50% #2"));
    let plan = config.plan().unwrap();
    assert!(serde_json::to_string(&plan).unwrap().contains("50% #\u{fffd}"));
    assert_eq!(run(&plan, usize::MAX).0.outcome, Outcome::Done);
    let (again, _) = run(&plan, usize::MAX);
    // By a name that is no text nothing is found again: sheets and page are made anew, cells are not.
    assert_eq!((again.made, again.page), (0, output.join("index.html")));
    let page = fs::read_to_string(output.join("index.html")).unwrap();
    assert!(page.contains("/50%25%20%232/") && page.contains("DATA.cells = ["), "links");
}

#[test]
fn sheets_name_the_values_that_they_show() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&[model("base"), model("v1")], dir.path());
    config.checkpoints[0].label = Some("base, old".into());
    config.seeds = Some(Values::one(1));
    config.sheet.max_side_px = 400;
    let (report, _) = run(&config.plan().unwrap(), usize::MAX);
    assert!(report.sheets.len() >= 2, "{:?}", report.sheets);
    let values = |sheet: &Path| {
        let Ok(parameters) = read_parameters(sheet).unwrap().unwrap().parse::<vodka_prompt::Parameters>();
        parameters.get("X Values").unwrap().to_owned()
    };
    assert_eq!(values(&report.sheets[0]), "\"base, old\"");
    assert_eq!(values(&report.sheets[1]), "v1");
}
