//! Whole pictures, from text to pixels, against diffusers' and transformers' networks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{path::Path, sync::Arc};

use common::{pipeline, write_model};
use image::RgbImage;
use tch::{Device, Kind};
use vodka_checkpoint::Precision;
use vodka_sampler::{
    Batch, Emphasis, ImageToImage, Library, Load, ModelSource, PictureEvent, Pictures, Pipeline, Settings,
    WantedPicture,
};
use vodka_stage::Interrupt;
use vodka_testkit::{fixture, model};

#[test]
fn without_guidance_the_negative_prompt_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = pipeline(&dir.path().join("tiny.safetensors"));
    let picture = |negative: &str, cfg_scale| {
        let (negative_prompt, size) = (negative.to_owned(), "64x64".parse().unwrap());
        let settings = Settings {
            prompt: "a cat".into(),
            negative_prompt,
            cfg_scale,
            size,
            steps: 2,
            ..Settings::default()
        };
        pipeline.generate(&settings, &Interrupt::new(), &mut |_, _| {}).unwrap().unwrap()
    };
    assert_eq!(picture("", 1.0), picture("blurry", 1.0));
    assert_ne!(picture("", 3.0), picture("blurry", 3.0));
    // In a batch of two the convolutions add up in another order.
    let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 1;
    assert!(picture("x", 1.0).iter().zip(picture("x", 1.0 + 1e-12).iter()).all(near));
}

#[test]
fn what_the_model_cannot_do_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = pipeline(&dir.path().join("tiny.safetensors"));
    let settings = Settings { clip_skip: 4, size: "64x64".parse().unwrap(), ..Settings::default() };
    let error = pipeline.generate(&settings, &Interrupt::new(), &mut |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), "clip skip is 4, expected 1 to 3");
}

/// Some picture, small.
fn small(prompt: &str, sampler: &str) -> Settings {
    let (size, sampler) = ("48x40".parse().unwrap(), sampler.parse().unwrap());
    Settings { prompt: prompt.into(), steps: 4, seed: 5, size, sampler, ..Settings::default() }
}

fn picture(pipeline: &Pipeline, settings: &Settings) -> RgbImage {
    pipeline.generate(settings, &Interrupt::new(), &mut |_, _| {}).unwrap().unwrap()
}

fn farthest(a: &RgbImage, b: &RgbImage) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn pictures_of_a_batch_are_those_made_alone() {
    let pipeline = Pipeline::open(&model("base"), Device::Cpu, Kind::Float).unwrap();
    let long = "a (red:1.3) circle, ".repeat(20);
    let prompts = ["a red circle AND a blue star :0.5", long.as_str()];
    for (sampler, prompt) in [
        ("Euler a", prompts[0]),
        ("DPM++ 2M SDE", prompts[1]),
        ("DDIM CFG++", prompts[0]),
        ("UniPC", prompts[1]),
    ] {
        let settings: Vec<_> = (0..3).map(|i| Settings { seed: 5 + i, ..small(prompt, sampler) }).collect();
        let batch = Batch { settings: &settings, image: None };
        let mut calls = 0;
        let together = pipeline.generate_batch(batch, &Interrupt::new(), &mut |done, _| calls = done);
        let together = together.unwrap().unwrap();
        for (settings, together) in settings.iter().zip(&together) {
            let alone = picture(&pipeline, settings);
            let distance = farthest(&alone, together);
            assert!(distance <= 1, "{sampler}, seed {}: {distance}", settings.seed);
        }
        assert!(farthest(&together[0], &together[1]) > 20 && calls < 9, "{sampler}");
    }
    assert!(!Batch::fits(&small("", "DPM adaptive"), &small("", "DPM adaptive")));
    assert!(!Batch::fits(&small("a", "Euler"), &small("b", "Euler")));
}

#[test]
fn plain_prompts_of_one_length_are_made_together_whatever_else_is() {
    let pipeline = Pipeline::open(&model("base"), Device::Cpu, Kind::Float).unwrap();
    let of = |prompt: &str, negative: &str, seed| Settings {
        negative_prompt: negative.into(),
        seed,
        ..small(prompt, "Euler a")
    };
    let mut settings = vec![
        of("a red circle", "", 1),
        of("blurry, a (blue:1.3) star", "", 2),
        of("a red circle", "blurry", 3),
        of("a", "b", 4),
    ];
    let make = |settings: &[Settings]| {
        let batch = Batch { settings, image: None };
        pipeline.generate_batch(batch, &Interrupt::new(), &mut |_, _| {}).unwrap().unwrap()
    };
    let together = make(&settings);
    for (settings, together) in settings.iter().zip(&together) {
        let distance = farthest(&picture(&pipeline, settings), together);
        assert!(distance <= 1, "{}: {distance}", settings.prompt);
    }
    // To the bit, neither its place nor its company changes a picture.
    settings.reverse();
    settings[1] = of("something else", "and not that", 9);
    let others = make(&settings);
    assert!(others[0] == together[3] && others[2] == together[1] && others[3] == together[0]);

    let form = |prompt: &str| pipeline.form(&small(prompt, "Euler")).unwrap();
    assert_eq!(form("a"), form("b, (c:1.2)"));
    let long = "a red circle, ".repeat(20);
    for other in [long.as_str(), "a AND b", "[a:b:2]", "a :0.5"] {
        assert_ne!(form("a"), form(other), "{other}");
    }
    assert_ne!(form("a AND b"), form("a AND c"));
    assert_eq!(form("a AND b"), form("a AND b"));
    let adaptive = |seed| pipeline.form(&Settings { seed, ..small("a", "DPM adaptive") }).unwrap();
    assert_ne!(adaptive(1), adaptive(2));
}

#[test]
fn a_set_of_pictures_grows_and_goes_on_and_is_to_the_bit_what_it_would_be() {
    let dir = tempfile::tempdir().unwrap();
    let set = |name: &str, prompts: &[&str]| {
        let wanted = (0..2).flat_map(|model| {
            let settings =
                (0..).zip(prompts).map(move |(seed, prompt)| Settings { seed, ..small(prompt, "Euler") });
            settings.map(move |settings| WantedPicture { model, settings })
        });
        Pictures {
            models: ["base", "v1"].map(|name| ModelSource::Checkpoint(model(name))).into(),
            wanted: wanted.collect(),
            device: "cpu".into(),
            precision: Precision::F32,
            vae_precision: Precision::F32,
            batch: 3,
            store: dir.path().join(name),
            hash_cache: None,
            runtime_dir: vodka_testkit::runtime_dir(),
        }
    };
    // Makes it, until so many are made; tells how many were made, and whether it is through.
    let make = |set: &Pictures, stop: usize| {
        let (interrupt, ids) = (Interrupt::new(), set.ids(&Interrupt::new()).unwrap());
        let (mut made, mut seen) = (0, Vec::new());
        let through = set.make(&ids, &interrupt, &mut |event| {
            if let PictureEvent::Picture { number, is_new, .. } = event {
                made += usize::from(is_new);
                seen.push(number);
                if made == stop {
                    interrupt.raise();
                }
            }
        });
        seen.sort_unstable();
        let through = through.unwrap();
        assert!(!through || seen == (0..set.wanted.len()).collect::<Vec<_>>(), "each once: {seen:?}");
        assert_eq!(set.is_whole(&set.names(&ids)), through);
        (made, through)
    };
    let all = ["a", "b", "a AND b", "c", "a", "d", "e"];
    let whole = set("whole", &all);
    whole.check().unwrap();
    assert_eq!(make(&whole, usize::MAX), (14, true));
    assert_eq!(make(&whole, usize::MAX), (0, true));
    let part = set("part", &all);
    let (before, through) = make(&part, 2);
    assert!(!through && before < 14);
    assert_eq!(make(&part, usize::MAX), (14 - before, true));
    let grown = set("grown", &all[..2]);
    assert_eq!(make(&grown, usize::MAX), (4, true));
    assert_eq!(make(&set("grown", &all), usize::MAX), (10, true));
    for name in whole.names(&whole.ids(&Interrupt::new()).unwrap()) {
        let read = |folder: &str| std::fs::read(dir.path().join(folder).join(&name)).unwrap();
        assert!(read("whole") == read("part") && read("whole") == read("grown"), "{name}");
    }
    // What is not wanted any more goes.
    assert_eq!(make(&set("grown", &all[..3]), usize::MAX), (0, true));
    assert_eq!(std::fs::read_dir(dir.path().join("grown")).unwrap().count(), 6);
}

#[test]
fn edges_of_a_tile_fit_together() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = pipeline(&dir.path().join("tiny.safetensors"));
    let plain = small("a red circle", "Euler");
    let tiling = Settings { tiling: true, ..plain.clone() };
    // A circular network makes the same of a noise that is shifted by a whole number of latents: from the lowest latent on,
    // each pixel has the neighbours that it would have on a torus. The first and the last column are then neighbours.
    let seam = |picture: &RgbImage| {
        let (width, height) = picture.dimensions();
        let step = |x: u32, y: u32| {
            let (a, b) = (picture.get_pixel(x, y).0, picture.get_pixel((x + 1) % width, y).0);
            a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(b))).sum::<f64>()
        };
        let column = |x: u32| (0..height).map(|y| step(x, y)).sum::<f64>();
        // Between latents, where there is no edge.
        let inner = (1..width / 8).map(|i| column(i * 8 - 1)).sum::<f64>() / f64::from(width / 8 - 1);
        column(width - 1) / inner
    };
    let (with, without) = (seam(&picture(&pipeline, &tiling)), seam(&picture(&pipeline, &plain)));
    assert!(with < 1.6 && without > with * 1.2, "{with} and {without}");
    // It is off again afterwards.
    assert_eq!(picture(&pipeline, &plain), picture(&pipeline, &plain));
}

#[test]
fn modes_of_emphasis_differ() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = pipeline(&dir.path().join("tiny.safetensors"));
    let with = |emphasis| picture(&pipeline, &Settings { emphasis, ..small("a (red:1.6) circle", "Euler") });
    let all = Emphasis::ALL.map(with);
    for (i, one) in all.iter().enumerate() {
        assert!(all[i + 1..].iter().all(|other| other != one), "{}", Emphasis::ALL[i]);
    }
    assert_eq!(with(Emphasis::Ignore), picture(&pipeline, &small("a red circle", "Euler")));
}

#[test]
fn loras_come_and_go_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::open(Some(&fixture("sampler/parity/loras")), None).unwrap();
    let pipeline = pipeline(&dir.path().join("tiny.safetensors")).with_library(Arc::new(library));
    let settings = |prompt: &str| small(prompt, "Euler");
    let plain = picture(&pipeline, &settings("a cat"));
    let with = picture(&pipeline, &settings("a cat<lora:tiny_style:1>"));
    assert!(farthest(&plain, &with) > 10);
    assert_eq!(picture(&pipeline, &settings("a cat")), plain);
    assert_eq!(picture(&pipeline, &settings("a cat<lora:tiny_style:1>")), with);
    assert_eq!(picture(&pipeline, &settings("a cat<lora:tiny_style:0>")), plain);
    // Two halves are a whole.
    let halves = picture(&pipeline, &settings("a cat<lora:tiny_style:.5><lora:tiny_style:te=.5>"));
    let (unet, text) = ("a cat<lora:tiny_style:0:1>", "a cat<lora:tiny_style:1:0>");
    assert!(farthest(&halves, &with) <= 1);
    let (unet, text) = (picture(&pipeline, &settings(unet)), picture(&pipeline, &settings(text)));
    assert!([&plain, &with, &text].iter().all(|other| **other != unet) && text != with);
    let error = pipeline.generate(&settings("<lora:tiny_stile:1>"), &Interrupt::new(), &mut |_, _| {});
    assert_eq!(
        error.unwrap_err().to_string(),
        "there is no LoRA `tiny_stile` in the folder of LoRA files, did you mean `tiny_style`?"
    );
    assert_eq!(picture(&pipeline, &settings("a cat")), plain);
}

#[test]
fn a_model_that_takes_the_place_of_another_is_the_one_that_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let library = Arc::new(Library::open(Some(&fixture("sampler/parity/loras")), None).unwrap());
    let mut one = pipeline(&path("a.safetensors")).with_library(Arc::clone(&library));
    let names = ["model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_out.weight"];
    let text = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight";
    for (name, from, to) in [(names[0], "a", "b"), (names[1], "b", "c"), (text, "c", "d")] {
        let path = |name: &str| path(&format!("{name}.safetensors"));
        let change = &|values: &mut [f32]| values.iter_mut().for_each(|value| *value *= 0.5);
        common::write_changed(&path(from), &path(to), name, change);
    }
    let load = |vae: Option<&str>, kind| Load { vae: vae.map(path), ..Load::new(Device::Cpu, kind) };
    let mut before = picture(&one, &small("a cat<lora:tiny_style:1>", "Euler"));
    for (name, load) in [
        ("b", load(None, Kind::Float)),
        ("c", load(None, Kind::Float)),
        ("d", load(None, Kind::Float)),
        ("a", load(Some("c.safetensors"), Kind::Float)),
        ("d", load(Some("c.safetensors"), Kind::Float)),
        ("d", load(None, Kind::BFloat16)),
        ("a", load(None, Kind::Float)),
    ] {
        let open = || ModelSource::Checkpoint(path(&format!("{name}.safetensors"))).open().unwrap();
        one = one.replace(open(), &load).unwrap();
        let fresh = Pipeline::load_with(open(), &load).unwrap().with_library(Arc::clone(&library));
        for prompt in ["a cat", "a cat<lora:tiny_style:1>"] {
            let found = picture(&one, &small(prompt, "Euler"));
            assert_eq!(found, picture(&fresh, &small(prompt, "Euler")), "{name} {load:?}");
            assert_ne!(found, before, "{name} {load:?}");
            before = found;
        }
    }
    // One that cannot be read says so.
    let cut = path("a.safetensors");
    let bytes = std::fs::read(&cut).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    assert!(ModelSource::Checkpoint(cut).open().is_err());
}

#[test]
fn a_vae_that_overflows_is_helped_and_a_black_picture_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.safetensors");
    let fp32 = picture(&pipeline(&path), &small("a cat", "Euler"));
    let load = |vae, vae_kind| Load { vae, vae_kind, ..Load::new(Device::Cpu, Kind::Float) };
    let open = |path: &Path, load: &Load| {
        Pipeline::load_with(ModelSource::Checkpoint(path.into()).open().unwrap(), load).unwrap()
    };
    let bf16 = open(&path, &load(None, Kind::BFloat16));
    let near = farthest(&picture(&bf16, &small("a cat", "Euler")), &fp32);
    assert!((1..60).contains(&near), "{near}");

    // A bias beyond what fp16 can square: its decoder gives NaN, that of fp32 a picture.
    let change = |to: &dyn Fn(&mut [f32]), tensor: &str| {
        let name = format!("{}.safetensors", tensor.len());
        let changed = dir.path().join(name);
        common::write_changed(&path, &changed, tensor, to);
        changed
    };
    let huge = |values: &mut [f32]| values.iter_mut().for_each(|value| *value *= 60_000.0);
    let huge = change(&huge, "first_stage_model.decoder.conv_in.weight");
    let helped = open(&huge, &load(None, Kind::Half));
    let expected = Pipeline::open(&huge, Device::Cpu, Kind::Float).unwrap();
    let both = [helped, expected].map(|pipeline| picture(&pipeline, &small("a cat", "Euler")));
    assert!(farthest(&both[0], &both[1]) <= 8);

    let dark = |values: &mut [f32]| values.fill(-9.0);
    let dark = change(&dark, "first_stage_model.decoder.conv_out.bias");
    let pipeline = Pipeline::open(&dark, Device::Cpu, Kind::Float).unwrap();
    let error = pipeline.generate(&small("a cat", "Euler"), &Interrupt::new(), &mut |_, _| {}).unwrap_err();
    assert!(error.is_of_one_picture() && error.to_string().contains("black everywhere"), "{error}");

    // Another file's VAE takes its place.
    let healed = open(&dark, &load(Some(path.clone()), Kind::Float));
    assert_eq!(picture(&healed, &small("a cat", "Euler")), fp32);
}

#[test]
fn a_picture_keeps_what_its_strength_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let pipeline = pipeline(&dir.path().join("tiny.safetensors"));
    let init = RgbImage::from_fn(100, 80, |x, y| image::Rgb([x as u8 * 2, y as u8 * 3, 90]));
    let with = |denoising_strength, exact_steps, sampler: &str| {
        let image = Some(ImageToImage { denoising_strength, exact_steps, ..ImageToImage::default() });
        let settings = [Settings { image, steps: 8, ..small("a cat", sampler) }];
        let mut calls = 0;
        let batch = Batch { settings: &settings, image: Some(&init) };
        let pictures = pipeline.generate_batch(batch, &Interrupt::new(), &mut |done, _| calls = done);
        (pictures.unwrap().unwrap().remove(0), calls)
    };
    for (sampler, calls) in [("Euler", [1, 5, 8]), ("DDIM", [0, 3, 6])] {
        let kept = with(0.0, false, sampler);
        assert_eq!(kept.1, calls[0], "{sampler}");
        let half = with(0.5, false, sampler);
        assert_eq!(half.1, calls[1], "{sampler}");
        let exact = with(0.5, true, sampler);
        assert_eq!(exact.1, calls[2], "{sampler}");
        assert!(farthest(&kept.0, &half.0) > 5 && exact.0 != half.0, "{sampler}");
    }
    let settings = Settings { image: Some(ImageToImage::default()), ..small("", "Euler") };
    let error = pipeline.generate(&settings, &Interrupt::new(), &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("made from another"), "{error}");
}

#[test]
fn sixteen_bits_make_nearly_the_same_picture() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.safetensors");
    write_model(&path);
    let with =
        |kind| picture(&Pipeline::open(&path, Device::Cpu, kind).unwrap(), &small("a cat", "DPM++ 2M"));
    let fp32 = with(Kind::Float);
    for kind in [Kind::BFloat16, Kind::Half] {
        let found = with(kind);
        let distance = found.iter().zip(fp32.iter()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>();
        let distance = distance / fp32.len() as f64;
        assert!((0.001..8.0).contains(&distance), "{kind:?}: {distance}");
    }
}
