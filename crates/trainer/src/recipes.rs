//! The configurations of the Vodka models that are shipped in `docs/recipes/train`, and what follows from them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    Bucket, Compat, Runts, TrainConfig, TrainPlan, batches_by_epoch,
    buckets::{buckets, nearest},
    epoch::Entry,
    geometry::CropRule,
    items::{Item, items},
    optimizers::Method,
    random::{Purpose, Stream},
    run::epoch_settings,
    target::LossType,
};

fn file(model: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recipes/train").join(model).join(name)
}

fn plan(model: &str) -> TrainPlan {
    TrainConfig::read(file(model, "train.json")).unwrap().plan().unwrap()
}

#[test]
fn the_models_are_trained_as_was_published() {
    for (model, lr, method, compat, resolution, every) in [
        ("v2", 1e-7, Method::AdamW8bit, Compat::Ed2April2023, 512, 25),
        ("v3", 1.5e-7, Method::AdamW8bit, Compat::Ed2April2023, 512, 25),
        ("v4", 1.5e-7, Method::AdamW, Compat::Ed2April2023, 512, 25),
        ("cosmopolitan", 1.5e-7, Method::AdamW8bit, Compat::Ed2Head, 768, 10),
    ] {
        let settings = plan(model).settings;
        for part in [settings.unet.unwrap(), settings.text_encoder.unwrap()] {
            assert_eq!((part.optimizer.lr, part.optimizer.method), (lr, method), "{model}");
            assert_eq!((part.optimizer.betas, part.optimizer.weight_decay), ([0.9, 0.999], 0.01), "{model}");
            let schedule = part.schedule(231_000);
            assert!([0, 1, 230_999].map(|step| schedule.rate(lr, step)) == [lr; 3], "{model}: constant");
        }
        assert_eq!(
            (settings.compat, settings.resolution, settings.batch_size),
            (compat, resolution, 4),
            "{model}"
        );
        assert_eq!((settings.max_epochs, settings.save_every_n_epochs), (100, Some(every)), "{model}");
        assert_eq!((settings.cond_dropout, settings.seed, settings.clip_skip), (0.05, 555, 1), "{model}");
        assert_eq!((settings.loss_type, settings.min_snr_gamma), (LossType::Mse, None), "{model}");
        let noise = if model == "cosmopolitan" { 0.01 } else { 0.0 };
        assert_eq!((settings.offset_noise, settings.pyramid_noise_discount), (noise, None), "{model}");
        let validation = settings.validation.unwrap();
        assert!(validation.auto_split_proportion == 0.15 && validation.stabilize_training_loss, "{model}");
    }
    let v3 = plan("v3").settings;
    assert_eq!((v3.crops, v3.compat.runts()), (CropRule::April2023, Runts::Repeated { power: 1.0 }));
}

#[test]
fn what_does_nothing_in_the_files_of_2023_is_told() {
    let plan = plan("v3");
    let told: Vec<_> = plan.notices.iter().map(|notice| notice.key.as_str()).collect();
    assert_eq!(told, ["amp", "disable_xformers", "gpuid", "lr", "val_data_root", "val_split_proportion"]);
    assert!(plan.notices[3].why.contains("goes before the rates of optimizer.json (0.000001 of `base`)"));
}

#[test]
fn the_other_optimizer_of_cosmopolitan_is_read() {
    let mut config = TrainConfig::read(file("cosmopolitan", "train.json")).unwrap();
    config.optimizer_config = Some(file("cosmopolitan", "optimizer-dadapt.json"));
    let settings = config.plan().unwrap().settings;
    let Method::DAdaptAdam(adaptation) = settings.unet.unwrap().optimizer.method else {
        panic!("{settings:?}")
    };
    assert_eq!((adaptation.d0, adaptation.decouple), (1e-6, true));
    assert_eq!(settings.text_encoder.unwrap().optimizer.lr, 1.0);
}

/// V3's data, as far as it is known: 10,857 pictures; their sizes are drawn.
#[test]
fn an_epoch_of_v3_is_as_long_as_it_was() {
    const PICTURES: usize = 10_857;
    let plan = plan("v3");
    let settings = &plan.settings;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.png"), "").unwrap();
    std::fs::write(dir.path().join("a.txt"), "a caption").unwrap();
    let one = items(&[dir.path().into()], None, settings.compat).unwrap().0.remove(0);
    let mut all: Vec<_> =
        (0..PICTURES).map(|i| Item { path: format!("{i:05}.png").into(), ..one.clone() }).collect();
    let sets = settings.validation.as_ref().unwrap().split(&mut all);
    let counts: Vec<_> = sets.iter().map(|(name, items)| (*name, items.len())).collect();
    assert_eq!(counts, [("val", 1629), ("stabilize-train", 1385)], "as in the log");
    assert_eq!(all.len(), 9228);

    let buckets = buckets(settings.resolution, 64, settings.compat.misspells_buckets());
    let bucket = |item: &Item| -> Bucket {
        let number: u64 = item.path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let mut stream = Stream::new(1, Purpose::Order, 0, number);
        // Most are square, the others of any shape from 1:4 to 4:1.
        let ratio = if stream.uniform() < 0.6 { 1.0 } else { stream.between(-1.4, 1.4).exp() };
        nearest(&buckets, (1000.0 * ratio) as u32, 1000)
    };
    let entries: Vec<_> = all
        .iter()
        .map(|item| Entry { bucket: bucket(item), multiply: 1.0, batch_id: None, rating: 1.0 })
        .collect();
    let mut filled = BTreeMap::<Bucket, usize>::new();
    entries.iter().for_each(|entry| *filled.entry(entry.bucket).or_default() += 1);
    assert_eq!(filled.len(), 11, "every bucket has pictures");
    let batches: usize = filled.values().map(|count| count.div_ceil(4)).sum();
    assert_eq!(batches_by_epoch(&entries, &epoch_settings(&plan)), [batches; 100]);
    // At least 9,228 / 4, and at most one batch more for each bucket: the log has 2,307 or more.
    assert!((2307..=2307 + 11).contains(&batches), "{batches}");
}
