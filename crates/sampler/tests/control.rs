//! ControlNets at work: when they act, for whom, on what picture, and what is none for a model.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::path::{Path, PathBuf};

use image::RgbImage;
use vodka_images::decode;
use vodka_sampler::{
    Batch, ControlMode, ControlUnit, Hires, ImageToImage, Pipeline, Preprocessor, ResizeMode, Settings,
};
use vodka_stage::Interrupt;
use vodka_testkit::{compose_control_net, fixture};

struct World {
    dir: tempfile::TempDir,
    pipeline: Pipeline,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        common::write_control_net(&dir.path().join("control.safetensors"));
        let pipeline = common::pipeline(&dir.path().join("tiny.safetensors"));
        Self { dir, pipeline }
    }

    fn picture_file() -> PathBuf {
        fixture("sampler/parity/init.png")
    }

    fn unit(&self) -> ControlUnit {
        let (model, image) = (self.dir.path().join("control.safetensors"), Some(Self::picture_file()));
        ControlUnit { model, name: "control".into(), image, ..ControlUnit::default() }
    }

    fn settings(controls: Vec<ControlUnit>) -> Settings {
        let size = "32x24".parse().unwrap();
        Settings {
            prompt: "a red circle".into(),
            cfg_scale: 3.0,
            steps: 4,
            size,
            controls,
            ..Settings::default()
        }
    }

    fn make(&self, settings: &Settings) -> RgbImage {
        self.pipeline.generate(settings, &Interrupt::new(), &mut |_, _| {}).unwrap().unwrap()
    }

    fn of(&self, controls: Vec<ControlUnit>) -> RgbImage {
        self.make(&Self::settings(controls))
    }

    fn said(&self, settings: &Settings) -> String {
        let error = self.pipeline.generate(settings, &Interrupt::new(), &mut |_, _| {}).unwrap_err();
        error.to_string()
    }
}

/// The largest difference of any value.
fn difference(a: &RgbImage, b: &RgbImage) -> u8 {
    a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn a_unit_acts_between_its_start_and_its_end() {
    let world = World::new();
    let plain = world.of(Vec::new());
    let between = |start, end| world.of(vec![ControlUnit { start, end, ..world.unit() }]);
    // What A1111 tells of four steps of Euler: 0, 0, 1/4 and 1/2 of them are through.
    assert_eq!(between(0.51, 1.0), plain);
    assert_ne!(between(0.5, 1.0), plain);
    assert_eq!(between(0.5, 1.0), between(0.26, 0.5));
    assert_ne!(between(0.25, 1.0), between(0.26, 1.0));
    assert_eq!(between(0.0, 0.0), between(0.0, 0.24));
    assert_ne!(between(0.0, 0.24), between(0.0, 0.25));
    assert_eq!(between(0.0, 0.5), between(0.0, 1.0));
    assert_eq!(world.of(vec![ControlUnit { weight: 0.0, ..world.unit() }]), plain);
    // And of one that calls the network twice a step: 0, 0; 0, 1/4; 1/4, 1/2; 1/2 (the last step is of first order).
    let heun = |start| {
        let unit = ControlUnit { start, ..world.unit() };
        let settings = Settings { sampler: "Heun".parse().unwrap(), ..World::settings(vec![unit]) };
        world.make(&settings)
    };
    assert_ne!(heun(0.5), heun(0.51));
    assert_eq!(heun(0.51), heun(1.0));
}

#[test]
fn modes_differ_in_strength_and_in_whom_they_act_for() {
    let world = World::new();
    let of = |mode, cfg_scale| {
        let unit = ControlUnit { mode, ..world.unit() };
        world.make(&Settings { cfg_scale, ..World::settings(vec![unit]) })
    };
    let [balanced, prompt, control] = ControlMode::ALL.map(|mode| of(mode, 3.0));
    assert!(balanced != prompt && prompt != control && control != balanced);
    // Without a negative prompt there is nobody else to act for.
    assert_eq!(of(ControlMode::Prompt, 1.0), of(ControlMode::Control, 1.0));
    assert_ne!(of(ControlMode::Balanced, 1.0), of(ControlMode::Control, 1.0));
    // Prompts of two lengths are two calls of the network.
    let long = "dog, ".repeat(60);
    for mode in ControlMode::ALL {
        let unit = ControlUnit { mode, ..world.unit() };
        let settings = Settings { negative_prompt: long.clone(), ..World::settings(vec![unit]) };
        assert_ne!(world.make(&settings), world.make(&Settings { controls: Vec::new(), ..settings.clone() }));
    }
}

#[test]
fn units_add_up_and_batches_are_as_one_alone() {
    let world = World::new();
    let half = || ControlUnit { weight: 0.5, ..world.unit() };
    let (one, two) = (world.of(vec![world.unit()]), world.of(vec![half(), half()]));
    assert!(difference(&one, &two) <= 1, "{}", difference(&one, &two));
    let sharp = Preprocessor::TileColorfixSharp { variation: 3, sharpness: 1.0 };
    let units = vec![ControlUnit { preprocessor: sharp, mode: ControlMode::Control, ..world.unit() }];
    let settings: Vec<_> = [5, 6].map(|seed| Settings { seed, ..World::settings(units.clone()) }).into();
    let batch = Batch { settings: &settings, image: None };
    let together = world.pipeline.generate_batch(batch, &Interrupt::new(), &mut |_, _| {}).unwrap().unwrap();
    for (alone, together) in settings.iter().map(|settings| world.make(settings)).zip(&together) {
        assert!(difference(&alone, together) <= 1);
    }
}

#[test]
fn the_picture_that_one_is_made_from_is_shown_where_no_other_is() {
    let world = World::new();
    let init = decode(&World::picture_file()).unwrap().into_rgb();
    let of = |image: Option<PathBuf>, unit_mode, resize_mode| {
        let unit = ControlUnit { image, resize_mode: unit_mode, ..world.unit() };
        let image = ImageToImage { denoising_strength: 0.8, resize_mode, ..ImageToImage::default() };
        let settings = [Settings { image: Some(image), ..World::settings(vec![unit]) }];
        let batch = Batch { settings: &settings, image: Some(&init) };
        world.pipeline.generate_batch(batch, &Interrupt::new(), &mut |_, _| {}).unwrap().unwrap().remove(0)
    };
    let file = || Some(World::picture_file());
    for mode in ResizeMode::ALL {
        // Its mode goes before the unit's, as in the extension.
        assert_eq!(of(None, ResizeMode::Crop, mode), of(file(), mode, mode), "{mode}");
    }
    assert_ne!(
        of(file(), ResizeMode::Crop, ResizeMode::Just),
        of(file(), ResizeMode::Just, ResizeMode::Just)
    );
}

#[test]
fn both_passes_see_the_picture_and_preprocessors_change_it() {
    let world = World::new();
    let base = Settings { hires: Some(Hires::default()), ..World::settings(Vec::new()) };
    let of = |unit: ControlUnit| world.make(&Settings { controls: vec![unit], ..base.clone() });
    let plain = world.make(&base);
    assert_eq!(plain.dimensions(), (64, 48));
    let all = of(world.unit());
    assert_eq!(all.dimensions(), (64, 48));
    let mut seen = vec![plain, all];
    for preprocessor in
        Preprocessor::ALL.into_iter().skip(2).chain([Preprocessor::TileResample { rate: 2.0 }])
    {
        let picture = of(ControlUnit { preprocessor, ..world.unit() });
        assert!(!seen.contains(&picture), "{}", preprocessor.name());
        seen.push(picture);
    }
    // At the picture's own size 512 px of the shorter side are far more than it is used at.
    let blur = Preprocessor::BlurGaussian { sigma: 9.0 };
    let perfect = of(ControlUnit { preprocessor: blur, pixel_perfect: true, ..world.unit() });
    assert!(!seen.contains(&perfect));
}

#[test]
fn a_picture_of_a_pixel_by_thousands_is_no_trouble() {
    let world = World::new();
    let thin = world.dir.path().join("thin.png");
    RgbImage::from_fn(1, 4000, |_, y| image::Rgb([(y / 16) as u8, (y % 251) as u8, 90])).save(&thin).unwrap();
    let unit = || ControlUnit { image: Some(thin.clone()), ..world.unit() };
    let plain = world.of(vec![unit()]);
    let blur = Preprocessor::BlurGaussian { sigma: 9.0 };
    assert_eq!(world.of(vec![ControlUnit { preprocessor: blur, ..unit() }]).dimensions(), plain.dimensions());
    let fill = ControlUnit { preprocessor: blur, resize_mode: ResizeMode::Fill, ..unit() };
    let said = world.said(&World::settings(vec![fill]));
    assert!(said.starts_with("a picture of 512x2048000 px would take 3.1 GB: expected "), "{said}");
}

#[test]
fn what_is_no_control_net_for_the_model_is_told() {
    let world = World::new();
    let with = |model: &Path, image: Option<PathBuf>| {
        let unit = ControlUnit { model: model.to_path_buf(), image, ..world.unit() };
        world.said(&World::settings(vec![unit]))
    };
    let file = || Some(World::picture_file());
    let other = world.dir.path().join("other.safetensors");
    compose_control_net(&other).unwrap();
    let said = with(&other, file());
    assert!(said.contains("other.safetensors` is for a UNet with 4 channels, levels of ["), "{said}");
    assert!(said.ends_with("expected 4 channels, levels of [16, 32] with 1 layers and attention [true, false], a context of 16"), "{said}");
    let said = with(&world.dir.path().join("tiny.safetensors"), file());
    assert!(said.contains("is a Stable Diffusion 1.x checkpoint, expected a ControlNet"), "{said}");
    let said = with(&world.unit().model, Some("none.png".into()));
    assert!(said.contains("cannot read the picture `none.png`"), "{said}");
    let said = with(&world.unit().model, None);
    assert_eq!(said, "the ControlNet 0 has no `image`, and the picture is made from no other");
}
