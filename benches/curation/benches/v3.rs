//! The rule of Vodka V3 on a data set of its size, end to end: 10,857 pictures, scores of 9,083 tags.
//!
//! ```sh
//! cargo bench -p vodka-bench-curation --bench v3
//! ```
//!
//! The data set is made first: pictures with captions, a tag table (185 scores of at least 0.1 a picture, two million in all) and
//! a vocabulary, in `VODKA_BENCH_FOLDER` or a temporary folder. Then each stage runs, and captioning a second time.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where it cannot go on"
)]

use std::{
    env,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use rayon::prelude::*;
use serde_json::{Value, json};
use vodka_bench_curation::{VOCABULARY, image, vocabulary, write_pictures, write_tags};
use vodka_captions::{analysis, caption, report, select};
use vodka_images::{Rgb, RgbImage, jpeg};
use vodka_stage::Interrupt;

const PICTURES: usize = 10_857;
const TAGS_PER_PICTURE: usize = 185;

fn main() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = env::var_os("VODKA_BENCH_FOLDER").map_or(temporary.path().to_path_buf(), PathBuf::from);
    let start = Instant::now();
    make(&folder);
    println!(
        "made {PICTURES} pictures and {} scores in {:.1} s",
        PICTURES * TAGS_PER_PICTURE,
        seconds(start)
    );
    let at = |name: &str| folder.join(name);
    let with = |more: Value| {
        let mut settings = json!({ "tags": at("tags.parquet"), "images": at("images") });
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        settings
    };
    let interrupt = Interrupt::new();
    measured("select --coverage 0.8", || {
        let wanted =
            json!({ "labels": at("selected_tags.csv"), "coverage": 0.8, "output": at("selection.csv") });
        let config: select::SelectConfig = serde_json::from_value(wanted).unwrap();
        select::run(&config.plan().unwrap(), &interrupt, &mut |_| {}).unwrap()
    });
    measured("analyse --images", || {
        let wanted = with(json!({ "selection": at("selection.csv"), "output": at("analysis") }));
        let config: analysis::AnalyseConfig = serde_json::from_value(wanted).unwrap();
        analysis::run(&config.plan().unwrap(), &interrupt, &mut |_| {}).unwrap()
    });
    measured("report", || {
        let wanted = with(json!({ "selection": at("selection.csv"), "output": at("report") }));
        let config: report::ReportConfig = serde_json::from_value(wanted).unwrap();
        report::run(&config.plan().unwrap(), &interrupt, &mut |_| {}).unwrap()
    });
    for what in ["caption --max-tags 3 --min-score 0.3", "the same again, unchanged"] {
        measured(what, || {
            let wanted = with(json!({ "selection": at("selection.csv"), "output": at("captions") }));
            let config: caption::CaptionConfig = serde_json::from_value(wanted).unwrap();
            caption::run(&config.plan().unwrap(), &interrupt, &mut |_| {}).unwrap()
        });
    }
}

fn seconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

fn measured<R: Display>(what: &str, run: impl FnOnce() -> R) {
    let start = Instant::now();
    let report = run().to_string();
    println!("{what:<40} {:>6.2} s  {}", seconds(start), report.lines().next().unwrap_or_default());
}

/// Makes the data set anew; what stages have written in the folder goes.
fn make(folder: &Path) {
    for name in ["images", "analysis", "report", "captions"] {
        let _ = fs::remove_dir_all(folder.join(name));
        let _ = fs::remove_file(folder.join(format!("{name}.run.json")));
    }
    let _ = fs::remove_file(folder.join("selection.csv"));
    fs::create_dir_all(folder).unwrap();
    (0..PICTURES).into_par_iter().for_each(|number| {
        let path = folder.join("images").join(image(number));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let shade = |x: u32, y: u32| Rgb([x as u8, y as u8, (number % 256) as u8]);
        fs::write(&path, jpeg(&RgbImage::from_fn(256, 192, shade), 85)).unwrap();
        fs::write(path.with_extension("txt"), format!("a photo of thing number {}", number % 100)).unwrap();
    });
    write_tags(&folder.join("tags.parquet"), (0..PICTURES).map(|number| (number, number)), TAGS_PER_PICTURE)
        .unwrap();
    write_pictures(&folder.join("tags.pictures.parquet"), PICTURES).unwrap();
    let row = |(place, name): (usize, &String)| format!("{place},{name},0,{}\n", 100_000_000 / (place + 20));
    let rows: String = vocabulary().iter().take(VOCABULARY).enumerate().map(row).collect();
    fs::write(folder.join("selected_tags.csv"), format!("tag_id,name,category,count\n{rows}")).unwrap();
}
