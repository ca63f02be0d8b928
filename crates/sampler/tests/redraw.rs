//! Pictures drawn again tile by tile, against a plain Python loop, and what must not change them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use image::{Rgb, RgbImage, Rgba, RgbaImage};
use vodka_images::decode;
use vodka_sampler::{
    Error, ResizeMode, Tiles, UpscaleConfig, UpscaleEvent, UpscaleReport, read_parameters, upscale, write_png,
};
use vodka_stage::{Interrupt, Outcome};
use vodka_testkit::fixture;

/// Peak signal to noise ratio, in dB.
const PSNR_MIN: f64 = 45.0;

fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let squares: f64 = a.iter().zip(b.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum();
    10.0 * (255.0_f64.powi(2) / (squares / a.len() as f64)).log10()
}

/// A folder with the small model and recipes.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        common::write_model(&dir.path().join("tiny.safetensors"));
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self, input: &Path, output: &str, recipe: &str) -> UpscaleConfig {
        let text = format!("checkpoint = '{}'\n{recipe}", self.path("tiny.safetensors").display());
        let recipe = self.path(&format!("{output}.toml"));
        fs::write(&recipe, text).unwrap();
        UpscaleConfig {
            input: input.to_path_buf(),
            output: self.path(output),
            upscaler: None,
            recipe: Some(recipe),
            checkpoint: None,
            prompt: None,
            negative: None,
            seed: None,
            denoising: None,
            scale: None,
            size: None,
            resize_mode: ResizeMode::Just,
            tiles: Tiles::default(),
            precision: None,
            device: "cpu".into(),
            runtime_dir: PathBuf::new(),
            hash_cache: None,
        }
    }

    fn run(&self, input: &Path, output: &str, recipe: &str) -> (UpscaleReport, RgbImage) {
        let plan = self.config(input, output, recipe).plan().unwrap();
        let report = upscale::run(&plan, &Interrupt::new(), &mut |_| {}).unwrap();
        (report, decode(&self.path(output)).unwrap().into_rgb())
    }
}

#[test]
fn pictures_are_those_of_a_plain_loop_over_tiles() {
    let bench = Bench::new();
    let common = "prompt = 'a photo of a cat'\nnegative = ''\nseed = 21\ncfg = 5\nsize = '88x80'\nschedule = 'Karras'\n";
    // One that sees the tile, and one with a picture of its own.
    let net = bench.path("control.safetensors");
    common::write_control_net(&net);
    let control = format!(
        "sampler = 'Euler a'\nsteps = 8\ndenoising = 0.5\n\
         [tiles]\nwidth = 64\npadding = 16\nmask_blur = 4\nnoise = 'same_seed'\n[seams]\ntype = 'half_tile'\n\
         [[control]]\nmodel = '{net}'\nweight = 0.9\npreprocessor = 'tile_resample'\nrate = 2\n\
         [[control]]\nmodel = '{net}'\nweight = 0.7\nimage = '{}'",
        fixture("sampler/parity/init.png").display(),
        net = net.display(),
    );
    let cases = [
        (
            "linear",
            "sampler = 'Euler a'\nsteps = 8\ndenoising = 0.4\n\
             [tiles]\nwidth = 64\npadding = 16\nmask_blur = 4\nnoise = 'same_seed'",
        ),
        (
            "half_tile",
            "sampler = 'DPM++ 2M'\nsteps = 10\ndenoising = 0.3\n\
             [tiles]\nwidth = 64\npadding = 24\nmask_blur = 8\nnoise = 'same_seed'\n[seams]\ntype = 'half_tile'",
        ),
        ("control", &control),
    ];
    let input = fixture("sampler/redraw/in.png");
    for (case, recipe) in cases {
        let output = format!("{case}.png");
        let (_, found) = bench.run(&input, &output, &format!("{common}{recipe}"));
        let expected = decode(&fixture(&format!("sampler/redraw/{case}.png"))).unwrap().into_rgb();
        let psnr = psnr(&found, &expected);
        println!("{case}: {psnr:.1} dB");
        assert!(psnr >= PSNR_MIN, "{case}: {psnr:.1} dB");
        // The picture has been drawn again, not only made larger.
        let (_, plain) = bench.run(&input, "plain.png", &format!("{common}[tiles]\ntype = 'none'"));
        assert!(self::psnr(&found, &plain) < 30.0);
    }
    let text = read_parameters(&bench.path("linear.png")).unwrap().unwrap();
    let expected = "Size: 88x80, Model hash: ";
    assert!(
        text.starts_with("a photo of a cat\nSteps: 8, Sampler: Euler a") && text.contains(expected),
        "{text}"
    );
    let expected = "Ultimate SD upscale upscaler: Lanczos, Ultimate SD upscale tile_width: 64, Ultimate SD upscale tile_height: 64, \
                    Ultimate SD upscale mask_blur: 4, Ultimate SD upscale padding: 16, Version: vodka";
    assert!(text.contains(expected), "{text}");
    assert!(text.contains("Denoising strength: 0.4, Init image hash: "), "{text}");
}

/// The largest difference between two pictures, in levels.
fn most(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

/// Every pass sees what the last bits of those before have become, and drawn weights make more of that than trained ones.
#[test]
fn batches_of_tiles_make_the_same_picture() {
    let bench = Bench::new();
    let input = fixture("sampler/redraw/in.png");
    let make = |order: &str, noise: &str, seams: &str, seed: u32, batch: u32| {
        let recipe = format!(
            "prompt = 'a photo of a cat'\nseed = {seed}\nsampler = 'Euler a'\nsteps = 6\ndenoising = 0.5\nscale = 4\nbatch_size = {batch}\n\
             [tiles]\ntype = '{order}'\nnoise = '{noise}'\nwidth = 64\npadding = 16\nmask_blur = 4\n\
             [seams]\ntype = '{seams}'\nwidth = 32\ndenoising = 0.5\n"
        );
        let (report, found) = bench.run(&input, &format!("{batch}.png"), &recipe);
        assert_eq!(found.dimensions(), (192, 192));
        assert!(report.seams[0].1.ratio() > 0.0);
        found
    };
    for seams in ["none", "band", "half_tile", "half_tile_and_intersections"] {
        for (seed, noise, batch) in [(3, "global", 5), (4, "global", 3), (5, "same_seed", 2)] {
            let (one, many) =
                (make("chess", noise, seams, seed, 1), make("chess", noise, seams, seed, batch));
            let most = most(&one, &many);
            println!("{seams}, seed {seed}, {noise}, {batch} at once: {most} levels");
            assert!(most <= 1, "{seams}, seed {seed}, {noise}, {batch} at once: {most} levels");
        }
        // One after the other, whatever the batch.
        assert!(make("linear", "global", seams, 3, 1) == make("linear", "global", seams, 3, 4), "{seams}");
    }
}

#[test]
fn a_run_that_is_ended_goes_on_after_its_tiles() {
    let bench = Bench::new();
    let input = fixture("sampler/redraw/in.png");
    let recipe = "prompt = 'a cat'\nsteps = 4\ndenoising = 0.5\nsize = '160x128'\nbatch_size = 2\n\
                  [tiles]\ntype = 'chess'\nwidth = 64\npadding = 8\nmask_blur = 2\n[seams]\ntype = 'band'\nwidth = 16";
    bench.run(&input, "whole.png", recipe);
    let whole = fs::read(bench.path("whole.png")).unwrap();
    for stop_at in [0, 1, 3, 5] {
        let output = format!("{stop_at}.png");
        let plan = bench.config(&input, &output, recipe).plan().unwrap();
        let interrupt = Interrupt::new();
        let mut calls = 0;
        let on_event = &mut |event: UpscaleEvent<'_>| {
            if let UpscaleEvent::Redrawing { .. } = event {
                if calls == stop_at {
                    interrupt.raise();
                }
                calls += 1;
            }
        };
        let report = upscale::run(&plan, &interrupt, on_event).unwrap();
        assert_eq!(report.outcome, Outcome::Interrupted);
        assert!(!bench.path(&output).exists());
        let report = upscale::run(&plan, &Interrupt::new(), &mut |_| {}).unwrap();
        assert_eq!(report.outcome, Outcome::Done);
        assert!(report.kept_tiles >= stop_at, "{} of {stop_at}", report.kept_tiles);
        assert_eq!(fs::read(bench.path(&output)).unwrap(), whole, "ended at {stop_at}");
        assert!(!bench.path(&format!(".{output}.tiles")).exists());
        let report = upscale::run(&plan, &Interrupt::new(), &mut |_| {}).unwrap();
        assert_eq!(report.outcome, Outcome::Unchanged);
    }
}

#[test]
fn opacity_stays_and_thin_and_black_pictures_are_no_trouble() {
    let bench = Bench::new();
    let tiles = "[tiles]\nwidth = 64\npadding = 8\nmask_blur = 2\n";
    let recipe = format!("prompt = ''\nsteps = 2\ndenoising = 0.5\nscale = 2\n{tiles}");
    let clear = bench.path("clear.png");
    RgbaImage::from_fn(40, 24, |x, _| Rgba([200, 90, 40, if x < 20 { 255 } else { 0 }]))
        .save(&clear)
        .unwrap();
    bench.run(&clear, "large.png", &recipe);
    let large = image::open(bench.path("large.png")).unwrap().into_rgba8();
    assert_eq!(large.dimensions(), (128, 64));
    assert_eq!((large.get_pixel(10, 30).0[3], large.get_pixel(120, 30).0[3]), (255, 0));
    let thin = bench.path("thin.png");
    RgbImage::from_fn(1, 70, |_, y| Rgb([y as u8, 100, 90])).save(&thin).unwrap();
    assert_eq!(bench.run(&thin, "t.png", &recipe).1.dimensions(), (64, 192));
    let black = bench.path("black.png");
    RgbImage::new(32, 32).save(&black).unwrap();
    assert_eq!(bench.run(&black, "b.png", &recipe).1.dimensions(), (64, 64));
}

/// A recipe with ControlNets: two colours of four tiles of 64 px.
fn controlled(bench: &Bench, more: &str, units: &[&str]) -> String {
    let unit = |keys: &&str| {
        format!("[[control]]\nmodel = '{}'\n{keys}\n", bench.path("nets/tile.safetensors").display())
    };
    format!(
        "prompt = 'a photo of a cat'\nseed = 3\nsampler = 'Euler a'\nsteps = 4\ndenoising = 0.6\nsize = '128x128'\n{more}\n\
         [tiles]\ntype = 'chess'\nwidth = 64\npadding = 16\nmask_blur = 4\n{}",
        units.iter().map(unit).collect::<String>()
    )
}

#[test]
fn control_nets_act_on_every_tile() {
    let bench = Bench::new();
    fs::create_dir(bench.path("nets")).unwrap();
    common::write_control_net(&bench.path("nets/tile.safetensors"));
    let input = fixture("sampler/redraw/in.png");
    let of = |units: &[&str]| bench.run(&input, "out.png", &controlled(&bench, "", units)).1;
    let (plain, with) = (of(&[]), of(&["weight = 1.5"]));
    // Each tile is another one.
    for (x, y) in [(0, 0), (64, 0), (0, 64), (64, 64)] {
        let tile = |picture: &RgbImage| image::imageops::crop_imm(picture, x, y, 64, 64).to_image();
        assert!(psnr(&tile(&plain), &tile(&with)) < 50.0, "{x} {y}");
    }
    let fix = "preprocessor = 'tile_colorfix'";
    assert!(of(&["weight = 0.0"]) == plain && of(&[&format!("weight = 0.0\n{fix}")]) == plain);
    for batch in [2, 5] {
        let batch_size = format!("batch_size = {batch}");
        for keys in ["weight = 1.5".to_owned(), format!("mode = 'control'\n{fix}")] {
            let one = of(&[&keys]);
            let many = bench.run(&input, "out.png", &controlled(&bench, &batch_size, &[&keys])).1;
            let most = one.iter().zip(many.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(most <= 1, "{batch} at once, {keys}: {most} levels");
        }
    }
    let resampled = of(&["weight = 1.5\npreprocessor = 'tile_resample'\nrate = 4"]);
    assert!(resampled != with && resampled != plain);

    // A picture of its own is cut where the tiles are.
    let larger = |output: &str| {
        let recipe = controlled(&bench, "", &[]).replace("'chess'", "'none'");
        bench.run(&input, output, &recipe).1
    };
    larger("larger.png");
    let own = |file: &Path| format!("weight = 1.5\nimage = '{}'", file.display());
    let one_tile = |keys: &str| {
        let recipe = controlled(&bench, "", &[keys]).replace("width = 64", "width = 128");
        bench.run(&input, "out.png", &recipe).1
    };
    assert!(one_tile("weight = 1.5") == one_tile(&own(&bench.path("larger.png"))));
    let other = bench.path("other.png");
    RgbImage::from_fn(90, 70, |x, y| Rgb([if x < 45 { 0 } else { 255 }, (y * 3) as u8, 90]))
        .save(&other)
        .unwrap();
    let [first, second] =
        [own(&other), format!("{}\nresize_mode = 'fill'", own(&other))].map(|keys| of(&[&keys]));
    assert!(first != with && first != second);
}

/// A bench with a ControlNet, and a recipe of two units of it, the first of which has a picture of its own.
fn with_own_picture() -> (Bench, PathBuf, String) {
    let bench = Bench::new();
    fs::create_dir(bench.path("nets")).unwrap();
    common::write_control_net(&bench.path("nets/tile.safetensors"));
    let own = bench.path("own.png");
    RgbImage::from_pixel(9, 9, Rgb([200, 30, 20])).save(&own).unwrap();
    let keys =
        format!("weight = 0.8\nend = 0.7\npreprocessor = 'blur_gaussian'\nimage = '{}'", own.display());
    let recipe = controlled(&bench, "", &[&keys, "mode = 'prompt'"]);
    (bench, own, recipe)
}

#[test]
fn the_key_is_of_networks_settings_and_pictures() {
    let (bench, own, recipe) = with_own_picture();
    let (input, net) = (fixture("sampler/redraw/in.png"), bench.path("nets/tile.safetensors"));
    let hash = |recipe: &str| bench.config(&input, "key.png", recipe).plan().unwrap().key().unwrap().hash();
    let base = hash(&recipe);
    for (from, to) in [("0.8", "0.9"), ("'prompt'", "'control'"), ("end = 0.7", "end = 0.6")] {
        assert_ne!(hash(&recipe.replace(from, to)), base, "{to}");
    }
    assert_ne!(hash(recipe.rsplit_once("[[control]]").unwrap().0), base);
    let picture = fs::read(&own).unwrap();
    RgbImage::from_pixel(9, 9, Rgb([200, 30, 21])).save(&own).unwrap();
    assert_ne!(hash(&recipe), base);
    fs::write(&own, picture).unwrap();
    // The last byte of a weight, which the eight digits of the name are not of.
    let weights = fs::read(&net).unwrap();
    fs::write(&net, [&weights[..weights.len() - 1], &[weights[weights.len() - 1] ^ 1]].concat()).unwrap();
    assert_ne!(hash(&recipe), base);
    fs::write(&net, weights).unwrap();
    assert_eq!(hash(&recipe), base);
}

#[test]
fn a_text_with_control_nets_makes_the_same_again() {
    let (bench, own, recipe) = with_own_picture();
    let input = fixture("sampler/redraw/in.png");
    let (report, _) = bench.run(&input, "whole.png", &recipe);
    assert!(report.other_files.is_empty() && report.not_followed.is_empty());
    let text = read_parameters(&bench.path("whole.png")).unwrap().unwrap();
    assert!(text.contains("ControlNet 0: \"Module: blur_gaussian, Model: tile ["), "{text}");
    assert!(
        text.contains("Weight: 0.8, ") && text.contains("ControlNet 1: \"Module: none, Model: tile ["),
        "{text}"
    );
    let sha256 = vodka_stage::hash_file(&own).unwrap().short(10);
    assert!(text.contains(&format!("Ultimate SD upscale control pictures: \"0: {sha256}\"")), "{text}");
    // What the text says is all that is needed, but for the picture, which it does not hold.
    let from = |more: &str| {
        let dir = bench.path("nets");
        let dir = dir.display();
        format!(
            "from = '{}'\ncontrol_dir = '{dir}'\nsize = '128x128'\n{more}",
            bench.path("whole.png").display()
        )
    };
    let said = bench.config(&input, "again.png", &from("")).plan().unwrap_err().to_string();
    assert_eq!(
        said,
        format!("the ControlNet 0 had a picture of its own (SHA-256 {sha256}...): expected its `image`")
    );
    let with_picture = |path: &Path| from(&format!("[[control]]\nimage = '{}'", path.display()));
    let (report, _) = bench.run(&input, "again.png", &with_picture(&own));
    assert!(report.other_files.is_empty() && report.not_followed.is_empty());
    let read = |name: &str| fs::read(bench.path(name)).unwrap();
    assert_eq!(read("again.png"), read("whole.png"));
    let (report, _) = bench.run(&input, "other.png", &with_picture(&fixture("sampler/redraw/in.png")));
    assert!(report.other_files[0].starts_with("picture of ControlNet 0: `"), "{:?}", report.other_files);
    assert_ne!(read("other.png"), read("whole.png"));
}

#[test]
fn tiles_of_other_control_nets_are_not_taken() {
    let (bench, _, recipe) = with_own_picture();
    let input = fixture("sampler/redraw/in.png");
    bench.run(&input, "whole.png", &recipe);
    let read = |name: &str| fs::read(bench.path(name)).unwrap();
    // Tiles of another weight are not taken from a journal, those of the same are.
    for (stopped, kept) in [(&recipe, 2), (&recipe.replace("0.8", "0.4"), 0)] {
        let (interrupt, mut calls) = (Interrupt::new(), 0);
        let on_event = &mut |event: UpscaleEvent<'_>| {
            if let UpscaleEvent::Redrawing { .. } = event {
                calls += 1;
                if calls == 3 {
                    interrupt.raise();
                }
            }
        };
        let plan = bench.config(&input, "rest.png", stopped).plan().unwrap();
        assert_eq!(upscale::run(&plan, &interrupt, on_event).unwrap().outcome, Outcome::Interrupted);
        let (report, _) = bench.run(&input, "rest.png", &recipe);
        assert_eq!((report.kept_tiles, read("rest.png")), (kept, read("whole.png")));
        fs::remove_file(bench.path("rest.png")).unwrap();
        fs::remove_file(bench.path("rest.png.run.json")).unwrap();
    }
}

#[test]
fn tiles_stay_until_the_record_is_written() {
    let bench = Bench::new();
    let input = fixture("sampler/redraw/in.png");
    let recipe = "prompt = ''\nsteps = 2\ndenoising = 0.5\nsize = '128x64'\n[tiles]\nwidth = 64\npadding = 0\nmask_blur = 0";
    let plan = bench.config(&input, "out.png", recipe).plan().unwrap();
    let record = bench.path("out.png.run.json");
    // Something is in the record's way once all is drawn.
    let on_event = &mut |event: UpscaleEvent<'_>| {
        if let UpscaleEvent::Pictures { .. } = event {
            fs::create_dir(&record).unwrap();
        }
    };
    upscale::run(&plan, &Interrupt::new(), on_event).unwrap_err();
    let first = fs::read(bench.path("out.png")).unwrap();
    assert!(bench.path(".out.png.tiles").exists());
    fs::remove_dir(&record).unwrap();
    let report = upscale::run(&plan, &Interrupt::new(), &mut |_| {}).unwrap();
    assert_eq!((report.outcome, report.kept_tiles), (Outcome::Done, 2));
    assert_eq!(fs::read(bench.path("out.png")).unwrap(), first);
    assert!(!bench.path(".out.png.tiles").exists() && record.is_file());
}

#[test]
fn a_lora_that_a_pictures_own_text_names_counts() {
    let bench = Bench::new();
    let (input, loras) = (bench.path("in.png"), bench.path("loras"));
    let text = "a cat <lora:style:1>\nSteps: 2, Sampler: Euler, Seed: 1, Size: 64x64, Version: v1.10.1";
    let picture = RgbImage::from_fn(32, 32, |x, y| Rgb([(x * 7) as u8, (y * 7) as u8, 90]));
    write_png(&input, &picture, text).unwrap();
    fs::create_dir(&loras).unwrap();
    let file = loras.join("style.safetensors");
    fs::copy(fixture("sampler/parity/loras/tiny_style.safetensors"), &file).unwrap();
    let recipe = format!("steps = 4\ndenoising = 0.8\nlora_dir = '{}'\n[tiles]\nwidth = 64", loras.display());
    let (report, first) = bench.run(&input, "out.png", &recipe);
    assert_eq!(report.outcome, Outcome::Done);
    assert_eq!(bench.run(&input, "out.png", &recipe).0.outcome, Outcome::Unchanged);
    // Another LoRA of the same name: half of its numbers become 0.
    let mut bytes = fs::read(&file).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].fill(0);
    fs::write(&file, bytes).unwrap();
    let (report, second) = bench.run(&input, "out.png", &recipe);
    assert_eq!(report.outcome, Outcome::Done);
    assert!(first != second);
}

#[test]
fn a_text_from_noise_does_not_say_what_its_control_nets_saw() {
    let (bench, own, _) = with_own_picture();
    let input = fixture("sampler/redraw/in.png");
    let unit = "Module: none, Model: tile, Weight: 0.8, Resize Mode: Crop and Resize, Control Mode: Balanced, \
                Pixel Perfect: False, Guidance Start: 0, Guidance End: 1";
    let text = format!("a cat\nSteps: 2, Sampler: Euler, Seed: 1, Size: 64x64, ControlNet 0: \"{unit}\"");
    write_png(&bench.path("text.png"), &RgbImage::new(64, 64), &text).unwrap();
    let recipe = |more: &str| {
        let (from, nets) = (bench.path("text.png"), bench.path("nets"));
        format!("from = '{}'\ncontrol_dir = '{}'\nsize = '128x128'\n{more}", from.display(), nets.display())
    };
    let error = bench.config(&input, "out.png", &recipe("")).plan().unwrap_err();
    assert!(matches!(error, Error::NoControlImage { number: 0 }), "{error}");
    let said = recipe(&format!("[[control]]\nimage = '{}'", own.display()));
    bench.config(&input, "out.png", &said).plan().unwrap();
}
