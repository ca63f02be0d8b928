//! The memory of a run does not grow with the number of its pictures. A process of its own, so that nothing else is measured.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![cfg(target_os = "linux")]

use std::fs;

use serde_json::json;
use vodka_images::{Rgb, RgbImage};
use vodka_stage::Interrupt;
use vodka_trainer::{TrainConfig, TrainEvent, run};

const PICTURES: u32 = 96;
/// Decoded, a picture is 2.25 MB.
const SIDE_PX: u32 = 886;

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
    for i in 0..PICTURES {
        let image = RgbImage::from_fn(SIDE_PX, SIDE_PX, |x, y| Rgb([(x + i) as u8, y as u8, i as u8]));
        image.save(data.join(format!("{i}.jpg"))).unwrap();
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
    assert_eq!((looking.len(), stepping.len()), (96, 48));
    // 64 pictures between the two parts: were their decoded pixels kept, that would be 144 MB. The memory of a step rises and falls by 60 MB.
    let parts =
        [("looking at", &looking[..16], &looking[80..]), ("training on", &stepping[..8], &stepping[40..])];
    for (name, early, late) in parts {
        let grown_kb = floor(late).saturating_sub(floor(early));
        assert!(grown_kb < 72 * 1024, "{name} pictures: {grown_kb} KB more");
    }
}
