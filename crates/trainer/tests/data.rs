//! The data of a run through the whole stage: the audit, lists, frozen layers, and where the modes differ.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use vodka_checkpoint::Checkpoint;
use vodka_images::{Rgb, RgbImage};
use vodka_stage::{Interrupt, Outcome};
use vodka_trainer::{
    AUDIT_CSV, AuditReport, Error, Result, TrainConfig, TrainEvent, TrainReport, audit, run,
};

/// A folder `data` with pictures and captions, and what all runs on it have in common.
struct World {
    dir: TempDir,
}

impl World {
    /// So many square pictures of the bucket's size.
    fn new(squares: u32) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(world.at("data")).unwrap();
        for i in 0..squares {
            world.picture(&format!("data/{i}.png"), (64, 64), i);
            world.write(&format!("data/{i}.txt"), &format!("a red circle number {i}"));
        }
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    fn picture(&self, name: &str, (width, height): (u32, u32), seed: u32) {
        let pixel =
            |x: u32, y: u32| Rgb([(x * 3 + 40 * seed) as u8, (y * 2) as u8, (x + y + 7 * seed) as u8]);
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        RgbImage::from_fn(width, height, pixel).save(self.at(name)).unwrap();
    }

    fn config(&self, output: &str, changes: Value) -> TrainConfig {
        let mut config = TrainConfig {
            data_root: self.at("data").into(),
            resume_ckpt: Some(vodka_testkit::model("base")),
            output: Some(self.at(output)),
            ..TrainConfig::default()
        };
        let common = json!({"resolution": 64, "batch_size": 1, "max_epochs": 1, "lr": 1e-2, "threads": 1,
            "cond_dropout": 0, "save_full_precision": true, "loss_type": "mse", "zero_frequency_noise_ratio": 0});
        for keys in [common, changes] {
            for (key, value) in keys.as_object().unwrap() {
                config.set(key, value.clone()).unwrap();
            }
        }
        config
    }

    fn train(&self, output: &str, changes: Value) -> Result<TrainReport> {
        run(&self.config(output, changes).plan()?, &Interrupt::new(), &mut |_| ())
    }

    fn audit(&self, changes: Value) -> AuditReport {
        let plan = self.config("out", changes).plan().unwrap();
        audit(&plan, &Interrupt::new(), &mut |_| ()).unwrap().unwrap()
    }

    /// What a run of a few batches adds to the weights of a network, by name.
    fn change(&self, output: &str, network: &str, changes: Value) -> BTreeMap<String, Vec<f32>> {
        let report = self.train(output, changes).unwrap();
        let [base, trained] = [&vodka_testkit::model("base"), &report.checkpoints[0]].map(|path| {
            let checkpoint = Checkpoint::open(path).unwrap();
            let names = checkpoint.names().filter(|name| name.starts_with(network));
            let values = names.map(|name| (name.to_owned(), checkpoint.tensor(name).unwrap().to_f32()));
            values.collect::<BTreeMap<_, _>>()
        });
        let difference = |(name, after): (String, Vec<f32>)| {
            let before = &base[&name];
            let moved = after.iter().zip(before).map(|(a, b)| a - b).collect();
            (name, moved)
        };
        trained.into_iter().map(difference).collect()
    }
}

const UNET: &str = "model.diffusion_model.";
const TEXT: &str = "cond_stage_model.";

/// The length of a change.
fn norm(change: &BTreeMap<String, Vec<f32>>) -> f64 {
    change.values().flatten().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// How far two changes are from each other, to the length of the first.
fn distance(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) -> f64 {
    let apart = |(name, a): (&String, &Vec<f32>)| {
        let b = &b[name];
        (name.clone(), a.iter().zip(b).map(|(a, b)| a - b).collect())
    };
    norm(&a.iter().map(apart).collect()) / norm(a)
}

/// An optimizer whose first step is in proportion to the gradient.
const PLAIN: &str = r#"{"optimizer": "adamw", "lr": 1e-2, "epsilon": 1e4, "weight_decay": 0}"#;

/// Two batches to the one optimizer step there is, with an optimizer that shows how long gradients are.
fn one_step(world: &World, changes: Value) -> Value {
    world.write("optimizer.json", PLAIN);
    let mut keys = json!({"grad_accum": 2, "lr": 1e5, "optimizer_config": world.at("optimizer.json")});
    keys.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    keys
}

#[test]
fn accumulated_gradients_are_averaged_or_summed_as_the_mode_says() {
    let world = World::new(2);
    let change = |compat: &str| world.change(compat, UNET, one_step(&world, json!({"compat": compat})));
    let (vodka, head, april) = (change("vodka"), change("ed2-head"), change("ed2-2023-04"));
    let doubled: BTreeMap<_, _> =
        vodka.iter().map(|(name, moved)| (name.clone(), moved.iter().map(|x| 2.0 * x).collect())).collect();
    assert!(distance(&head, &doubled) < 1e-3, "D10: {}", distance(&head, &doubled));
    assert!(distance(&april, &head) < 1e-6, "pictures of the bucket's size, and no other difference");
}

#[test]
fn gradients_are_clipped_where_the_mode_says() {
    let world = World::new(2);
    let change = |compat: &str, network: &str, clip: Option<f64>| {
        let keys = one_step(&world, json!({"compat": compat, "clip_grad_norm": clip}));
        world.change(&format!("{compat}-{network}-{}", clip.unwrap_or(0.0)), network, keys)
    };
    let clip = Some(1e-6);
    let share = |compat: &str, network: &str| {
        norm(&change(compat, network, clip)) / norm(&change(compat, network, None))
    };
    assert!(share("vodka", TEXT) < 0.9 && share("vodka", UNET) < 0.9);
    assert!((share("ed2-head", TEXT) - 1.0).abs() < 1e-6, "D3: the text encoder's are not");
    assert!(share("ed2-head", UNET) < 0.9);
    assert!(share("ed2-2023-04", TEXT) < 0.9, "which came later");
    for compat in ["vodka", "ed2-head"] {
        let own = |network: &str, norm: Option<f64>| {
            let optimizer = json!({"base": {"optimizer": "adamw", "lr": 1e-2, "epsilon": 1e4, "weight_decay": 0},
                "text_encoder_overrides": {"clip_grad_norm": norm}});
            let keys = one_step(&world, json!({"compat": compat}));
            world.write("optimizer.json", &optimizer.to_string());
            world.change(&format!("own-{compat}-{network}-{}", norm.is_some()), network, keys)
        };
        let share = |network: &str| norm(&own(network, clip)) / norm(&own(network, None));
        assert!(share(TEXT) < 0.9, "its own number in optimizer.json, which is ours, counts in every mode");
        assert!((share(UNET) - 1.0).abs() < 1e-6);
    }
    let clip = Some(1e-3);
    let (head, april) = (change("ed2-head", UNET, clip), change("ed2-2023-04", UNET, clip));
    assert!(distance(&head, &april) > 0.1, "D4: each batch by itself: {}", distance(&head, &april));
}

#[test]
fn pyramid_noise_is_in_validation_where_the_mode_says() {
    let world = World::new(4);
    world.write("validation.json", r#"{"auto_split_proportion": 0.5}"#);
    let first = |compat: &str, discount: f64| {
        let keys = json!({"compat": compat, "pyramid_noise_discount": discount,
            "validation_config": world.at("validation.json")});
        world.train(&format!("{compat}-{discount}"), keys).unwrap().validations[0].first
    };
    assert_eq!(first("vodka", 0.4), first("vodka", 0.0));
    assert_eq!(first("ed2-head", 0.0), first("vodka", 0.0));
    assert_ne!(first("ed2-head", 0.4), first("ed2-head", 0.0), "D8");
}

#[test]
fn frozen_layers_of_the_text_encoder_stay_and_the_others_change() {
    let world = World::new(2);
    let optimizer = json!({"base": {"optimizer": "adamw", "lr": 1e-2},
        "text_encoder_freezing": {"unfreeze_last_n_layers": 1}});
    world.write("frozen.json", &optimizer.to_string());
    let moved = |group: &str| {
        let keys = json!({"lr": null, "optimizer_config": world.at("frozen.json")});
        let change = world.change(&group.replace('.', "-"), TEXT, keys);
        let of_group: Vec<_> = change.iter().filter(|(name, _)| name.contains(group)).collect();
        assert!(!of_group.is_empty(), "{group}");
        of_group.iter().filter(|(_, moved)| moved.iter().any(|x| *x != 0.0)).count()
    };
    assert_eq!((moved("token_embedding"), moved("position_embedding"), moved("layers.0.")), (0, 0, 0));
    assert!(moved("layers.1.") > 10 && moved("final_layer_norm") == 2);
}

#[test]
fn frozen_blocks_of_the_unet_stay_and_the_others_change() {
    let world = World::new(2);
    let optimizer = json!({"base": {"optimizer": "adamw", "lr": 1e-2},
        "unet_freezing": {"freeze": ["IN*", "M00", "*.attn1.*"], "unfreeze": ["time_embed.*"]}});
    world.write("frozen.json", &optimizer.to_string());
    let change = |network: &str, more: Value| {
        let mut keys = json!({"lr": null, "optimizer_config": world.at("frozen.json")});
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        world.change(&format!("{network}-{}", more.as_object().unwrap().len()), network, keys)
    };
    let unet = change(UNET, json!({}));
    let (mut stayed, mut moved) = (0, 0);
    for (name, change) in &unet {
        let bare = name.strip_prefix(UNET).unwrap();
        let is_frozen = bare.starts_with("input_blocks.")
            || bare.starts_with("middle_block.")
            || bare.contains(".attn1.");
        let changed = change.iter().any(|x| *x != 0.0);
        assert!(!(is_frozen && changed), "{name}");
        stayed += usize::from(is_frozen);
        moved += usize::from(changed);
    }
    // Each by its own name, and the weights of one network after the other.
    let moves = |part: &str| {
        unet.iter().any(|(name, change)| name.contains(part) && change.iter().any(|x| *x != 0.0))
    };
    assert!(stayed > 20 && 2 * moved > unet.len() - stayed, "{stayed} and {moved} of {}", unet.len());
    assert!(
        moves("time_embed.") && moves("output_blocks.0.") && moves(".attn2.") && moves(".out."),
        "{unet:?}"
    );
    assert!(change(TEXT, json!({})).values().flatten().any(|x| *x != 0.0), "behind frozen blocks");
    // The first block that is trained has an input that asks for no gradient.
    let again = change(UNET, json!({"gradient_checkpointing": true}));
    assert!(distance(&unet, &again) < 1e-5, "{}", distance(&unet, &again));
}

#[test]
fn names_that_fit_nothing_of_the_unet_are_refused_before_step_0() {
    let world = World::new(2);
    world.write("frozen.json", r#"{"lr": 1e-2, "unet_freezing": {"freeze": ["IN99"]}}"#);
    let keys = || json!({"lr": null, "optimizer_config": world.at("frozen.json")});
    let error = world.train("out", keys()).unwrap_err();
    assert!(matches!(error, Error::UnetFreezing { .. }), "{error}");
    assert!(!world.at("out").join(AUDIT_CSV).exists());
    let mut without = keys();
    without["disable_unet_training"] = true.into();
    world.train("out", without).unwrap();
}

#[test]
fn running_means_start_from_another_checkpoint() {
    let world = World::new(2);
    let keys = |name: &str| json!({"ema_decay_rate": 0.9, "ema_update_interval": 500, "ema_resume_model": vodka_testkit::model(name)});
    let report = world.train("out", keys("v1")).unwrap();
    let [mean, v1, base] =
        [report.ema_checkpoints[0].clone(), vodka_testkit::model("v1"), vodka_testkit::model("base")].map(
            |path| {
                Checkpoint::open(path).unwrap().tensor("model.diffusion_model.out.2.weight").unwrap().to_f32()
            },
        );
    assert!(mean == v1 && mean != base, "there was no update yet");
    world.write("v1.safetensors", "no model");
    let broken = json!({"ema_decay_rate": 0.9, "ema_resume_model": world.at("v1.safetensors")});
    assert!(world.train("out", broken).unwrap_err().to_string().contains("v1.safetensors"));
}

#[test]
fn a_model_of_the_hub_is_named() {
    let error = World::new(1).train("out", json!({"resume_ckpt": "panopstor/EveryDream"})).unwrap_err();
    assert!(error.to_string().contains("`hf download panopstor/EveryDream --local-dir DIR`"), "{error}");
}

#[test]
fn pictures_come_from_folders_and_lists_together() {
    let world = World::new(2);
    world.picture("more/a.png", (64, 64), 5);
    let list = json!([{"image": "a.png", "caption": "a star"}, {"image": "a.png", "caption": "a sun", "multiply": 2}]);
    world.write("more/list.json", &list.to_string());
    let root = json!({"resolver": "multi", "resolvers":
        [{"resolver": "directory", "path": world.at("data")}, world.at("more/list.json")]});
    let keys = || json!({"data_root": root, "write_schedule": true, "batch_size": 2});
    let report = world.train("out", keys()).unwrap();
    assert_eq!((report.pictures, report.steps), (4, 3));
    let exposures = fs::read_to_string(world.at("out/exposures.csv")).unwrap();
    assert_eq!(exposures, "image,exposures\ndata/0.png,1\ndata/1.png,1\na.png,1\na.png#2,2\n");
    let schedule = fs::read_to_string(world.at("out/ep1_batch_schedule.txt")).unwrap();
    assert_eq!(schedule.lines().count(), 5);
    let numbered = schedule.lines().filter(|line| line.starts_with("step:00002, wh:[64, 64], r:1, path:"));
    let runts = schedule.lines().filter(|line| line.contains(", r:1, ")).count();
    assert!(numbered.count() <= 1 && runts == 1, "{schedule}");
    assert_eq!(world.train("out", keys()).unwrap().outcome, Outcome::Unchanged);
    // Another picture under the same name is another run.
    world.picture("more/a.png", (64, 64), 6);
    assert_eq!(world.train("out", keys()).unwrap().outcome, Outcome::Done);
}

#[test]
fn the_audit_tells_what_is_wrong_with_the_data() {
    let world = World::new(2);
    let missing = json!({"resume_ckpt": world.at("nowhere.safetensors")});
    let clean = world.audit(missing.clone());
    assert_eq!((clean.outcome, clean.pictures, clean.trained), (Outcome::Done, 2, 2));
    assert_eq!((clean.buckets.len(), clean.buckets[0].pictures, clean.mean_crop_loss), (1, 2, 0.0));
    assert!(clean.same_bytes.is_empty() && clean.undersized.is_empty(), "{clean}");

    world.write("data/broken.jpg", "not a picture");
    world.write("data/broken.txt", "a caption");
    world.write("data/empty.png", "");
    fs::copy(world.at("data/0.png"), world.at("data/copy.png")).unwrap();
    world.write("data/copy.txt", &"many words ".repeat(60));
    RgbImage::from_pixel(60, 50, Rgb([9; 3])).save(world.at("data/small.bmp")).unwrap();
    world.write("data/small.txt", "small");
    image_of_the_same_pixels(&world.at("data/small.bmp"), &world.at("data/small2.png"));
    world.write("data/small2.txt", " \n");
    world.picture("data/panorama.png", (400, 100), 3);
    world.write("data/panorama.txt", "a panorama");

    let found = world.audit(missing);
    assert_eq!(found.outcome, Outcome::Skipped);
    let unreadable: Vec<_> = found.unreadable.iter().map(|bad| bad.image.as_str()).collect();
    assert_eq!(unreadable, ["empty.png", "broken.jpg"]);
    assert_eq!(found.no_caption, ["small2.png"]);
    assert_eq!(found.undersized, ["small2.png", "small.bmp"]);
    assert_eq!((found.long_captions[0].image.as_str(), found.long_captions[0].tokens), ("copy.png", 120));
    assert_eq!(found.same_bytes, [["0.png", "copy.png"]]);
    assert_eq!(found.same_pixels, [["small.bmp", "small2.png"]]);
    let text = found.to_string();
    assert!(
        text.starts_with("audited 8 pictures: 2 unreadable, 1 without a caption, 2 smaller than"),
        "{text}"
    );
    assert!(
        text.contains("\nunreadable: empty.png: the file is empty")
            && text.contains("much cut off: panorama.png")
    );
    let rows = fs::read_to_string(world.at("out").join(AUDIT_CSV)).unwrap();
    assert_eq!(rows.lines().count(), 9);
    assert!(rows.contains("\n0.png,train,64,64,64x64,0.0000,1,5,false,\n"), "{rows}");
    assert!(rows.contains("\nempty.png,train,,,,,,,,the file is empty\n"), "{rows}");
    assert!(rows.contains(",true,no caption\n"), "{rows}");
    let json: AuditReport =
        serde_json::from_str(&fs::read_to_string(world.at("out/audit.json")).unwrap()).unwrap();
    assert_eq!(json, found);

    let error = world.train("out", json!({})).unwrap_err();
    assert!(
        matches!(&error, Error::MissingCaptions { pictures, .. } if pictures == &[Path::new("small2.png")])
    );
    let error = world.train("out", json!({"allow": ["no_caption"]})).unwrap_err();
    assert!(
        error.to_string().contains("2 of the pictures cannot be read; the first is `empty.png`"),
        "{error}"
    );
    let report = world.train("out", json!({"allow": ["no_caption", "unreadable"]})).unwrap();
    assert_eq!((report.outcome, report.pictures, report.skipped.len()), (Outcome::Skipped, 5, 3));
}

/// The same pixels in another file.
fn image_of_the_same_pixels(from: &Path, to: &Path) {
    vodka_images::decode(from).unwrap().into_rgb().save(to).unwrap();
}

#[test]
fn data_that_change_after_the_audit_are_told_of() {
    let world = World::new(3);
    let train = |act: &dyn Fn()| {
        let plan = world.config("out", json!({})).plan().unwrap();
        let on_event = &mut |event: TrainEvent| {
            if matches!(event, TrainEvent::Audit(_)) {
                act();
            }
        };
        run(&plan, &Interrupt::new(), on_event)
    };
    let broken =
        train(&|| fs::write(world.at("data/2.png"), "another file").unwrap()).unwrap_err().to_string();
    assert!(broken.contains("2.png` cannot be read any more: expected PNG"), "{broken}");
    world.picture("data/2.png", (64, 64), 2);
    let gone = train(&|| fs::remove_file(world.at("data/1.png")).unwrap()).unwrap_err().to_string();
    assert!(
        gone.contains("data` has changed since the run began: 3 pictures were there at the audit, 2 a"),
        "{gone}"
    );
    let new = train(&|| {
        world.picture("data/new.png", (64, 64), 2);
        world.write("data/new.txt", "a new one");
    });
    assert!(matches!(new, Err(Error::DataChanged { .. })), "{new:?}");
}

#[test]
fn what_is_known_of_a_file_is_not_decoded_again() {
    let world = World::new(2);
    assert_eq!(world.audit(json!({})).unreadable, []);
    let cache = world.at("out/audit.cache.json");
    let mut known: Value = serde_json::from_str(&fs::read_to_string(&cache).unwrap()).unwrap();
    let files = known["files"].as_object_mut().unwrap();
    assert_eq!(files.len(), 2);
    // What stands there is believed, as long as the content is the same, and what it was decoded by.
    files.values_mut().for_each(|entry| *entry = json!({"Err": "as it was"}));
    let believed = |known: &Value| {
        fs::write(&cache, known.to_string()).unwrap();
        world.audit(json!({})).unreadable.len()
    };
    assert_eq!(believed(&known), 2);
    let mut of_another = known.clone();
    of_another["decoder"] = "vodka-images 0".into();
    assert_eq!(believed(&of_another), 0);
    assert_eq!(believed(&known), 2);
    world.picture("data/0.png", (64, 64), 9);
    assert_eq!(world.audit(json!({})).unreadable.len(), 1);
    fs::write(&cache, "damaged").unwrap();
    assert_eq!(world.audit(json!({})).unreadable, []);
}

#[test]
fn buckets_say_how_often_their_pictures_are_repeated() {
    let world = World::new(5);
    world.write("data/multiply.txt", "1.5");
    let buckets = |compat: &str| world.audit(json!({"batch_size": 4, "compat": compat})).buckets;
    let head = buckets("ed2-head");
    // Seven and a half pictures an epoch, in two batches.
    assert_eq!((head[0].pictures, head[0].per_epoch, head[0].missing), (5, 7.5, 1));
    assert!((head[0].effective_multiplier - 8.0 / 7.5).abs() < 1e-12);
    assert_eq!(buckets("vodka")[0].effective_multiplier, 1.0);
    let one = World::new(1).audit(json!({"batch_size": 4, "compat": "ed2-2023-04"}));
    assert_eq!(one.buckets[0].effective_multiplier, 4.0, "as the log of Vodka V3 says of one of its buckets");
    assert!(one.to_string().contains("repeated to fill a batch: each counts 4.00 times; add 3"), "{one}");
}

/// A zip file of these entries.
fn zip_of(path: &Path, entries: &[(&str, &[u8])]) {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (name, bytes) in entries {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

#[test]
fn pictures_in_zip_files_are_trained_on() {
    let world = World::new(1);
    world.picture("elsewhere/b.png", (64, 64), 4);
    let picture = fs::read(world.at("elsewhere/b.png")).unwrap();
    let entries: [(&str, &[u8]); 4] =
        [("sub/b.png", &picture), ("sub/b.txt", b"a star"), ("run.sh", b"rm"), ("multiply.txt", b"2")];
    zip_of(&world.at("data/more.zip"), &entries);
    let report = world.train("out", json!({})).unwrap();
    assert_eq!((report.pictures, report.steps), (2, 2), "multiply.txt is for its own folder");
    let unzipped = fs::read_dir(world.at("out/unzipped")).unwrap().next().unwrap().unwrap().path();
    assert!(unzipped.join("sub/b.png").exists() && !unzipped.join("run.sh").exists());
    assert!(!world.at("data/sub").exists(), "the data stay as they are");
    let audited = fs::read_to_string(world.at("out").join(AUDIT_CSV)).unwrap();
    assert!(audited.lines().any(|row| row.contains("/sub/b.png,train,64,64")), "{audited}");
    assert_eq!(world.train("out", json!({})).unwrap().outcome, Outcome::Unchanged);
    let head = world.train("head", json!({"compat": "ed2-head"})).unwrap();
    assert_eq!(head.pictures, 1, "D11");
    zip_of(&world.at("data/more.zip"), &entries[..2]);
    assert_eq!(
        world.train("out", json!({})).unwrap().outcome,
        Outcome::Done,
        "another zip file is another run"
    );
}

#[test]
fn zip_files_that_are_not_what_they_should_be_are_named() {
    let world = World::new(1);
    let said = |entries: &[(&str, &[u8])]| {
        zip_of(&world.at("data/bad.zip"), entries);
        let error = world.train("out", json!({})).unwrap_err().to_string();
        assert!(
            !world.at("out/unzipped").read_dir().unwrap().any(|entry| entry
                .unwrap()
                .path()
                .join("a.png")
                .exists())
        );
        error
    };
    let out = said(&[("a.png", b"x"), ("../evil.png", b"x")]);
    assert!(out.ends_with("is not unpacked: its name leads out of the folder"), "{out}");
    assert!(!world.at("out/evil.png").exists() && !world.at("out/unzipped/evil.png").exists());
    assert!(said(&[("/etc/a.txt", b"x")]).contains("leads out of the folder"));
    let bomb = vec![0; 3 << 20];
    assert!(said(&[("b.png", &bomb)]).contains("200 times as large"));
    world.write("data/bad.zip", "no zip file");
    let error = world.train("out", json!({})).unwrap_err();
    assert!(error.to_string().starts_with("cannot unpack `"), "{error}");
}
