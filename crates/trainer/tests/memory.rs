//! The memory of a run does not grow with the number of its pictures. A process of its own, so that nothing else is measured.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![cfg(target_os = "linux")]

use std::fs;

use serde_json::json;
use vodka_images::{Rgb, RgbImage};
use vodka_stage::Interrupt;
use vodka_trainer::{TrainConfig, TrainEvent, run};

/// The memory this process has now that is no file's.
fn anonymous_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The least of the memory in some part of a run: what is there whatever the step in hand needs.
fn floor(memory: &[u64]) -> u64 {
    *memory.iter().min().unwrap()
}

#[test]
fn memory_is_flat_in_the_number_of_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    for i in 0..160 {
        let image = RgbImage::from_fn(300, 300, |x, y| Rgb([(x + i) as u8, y as u8, i as u8]));
        image.save(data.join(format!("{i}.bmp"))).unwrap();
        fs::write(data.join(format!("{i}.txt")), "a blue star").unwrap();
    }
    let mut config = TrainConfig {
        data_root: data.into(),
        resume_ckpt: Some(vodka_testkit::model("base")),
        output: Some(dir.path().join("out")),
        ..TrainConfig::default()
    };
    for (key, value) in [("resolution", 64), ("batch_size", 2), ("max_epochs", 1), ("threads", 1)] {
        config.set(key, json!(value)).unwrap();
    }
    config.set("lr", json!(1e-6)).unwrap();
    let (mut looking, mut stepping) = (Vec::new(), Vec::new());
    let on_event = &mut |event: TrainEvent| match event {
        TrainEvent::Loaded { .. } => looking.push(anonymous_kb()),
        TrainEvent::Step { .. } => stepping.push(anonymous_kb()),
        _ => {}
    };
    run(&config.plan().unwrap(), &Interrupt::new(), on_event).unwrap();
    assert_eq!((looking.len(), stepping.len()), (160, 80));
    // The decoded pixels of the 128 pictures between are 35 MB.
    let grown = floor(&looking[128..]).saturating_sub(floor(&looking[..32]));
    assert!(grown < 4 * 1024, "looking at pictures: {grown} KB more");
    // The pixels of the 100 pictures between are 27 MB decoded and 1.2 MB cut; what the VAE makes of them is 3.2 MB.
    let grown = floor(&stepping[60..]).saturating_sub(floor(&stepping[10..30]));
    assert!(grown < 1024, "training on pictures: {grown} KB more");
}
