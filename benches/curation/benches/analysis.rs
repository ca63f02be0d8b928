//! The analysis of a tag table of a million pictures, and the same in pandas: seconds and memory.
//!
//! ```sh
//! cargo bench -p vodka-bench-curation
//! ```
//!
//! Each task runs in a process of its own, so that its memory is its own: `VmHWM` of `/proc`, which is what getrusage calls
//! `ru_maxrss`. The table is made first, in a temporary folder.
//!
//! | variable | what | default |
//! |---|---|---|
//! | `VODKA_BENCH_IMAGES` | pictures, of 30 tags each | 1000000 |
//! | `VODKA_BENCH_FOLDER` | folder for the table, which is kept there | a temporary one |
//! | `VODKA_BENCH_TURNS` | how often each task runs | 3 |
//! | `VODKA_PEER_PYTHON` | a Python with pandas and pyarrow, for the peer | none: without the peer |
//! | `POLARS_MAX_THREADS` | threads that read | 2 |

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where it cannot go on"
)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use vodka_bench_curation::{SELECTED, write_pictures, write_tags};
use vodka_captions::analysis::{AnalyseConfig, AnalysisInputs, Settings, analyse, run};
use vodka_stage::Interrupt;

const TAGS_PER_IMAGE: usize = 30;

/// Tasks that pandas does, too.
const PAIRED: [(&str, &str); 3] = [
    ("counts", "counts, histograms, quantiles and group shares"),
    ("together", "the same and co-occurrence of 73 tags"),
    ("whole", "the same, sharpness and lengths of captions"),
];

/// Tasks that only we do.
const ALONE: [(&str, &str); 3] = [
    ("scattered", "all of it, pictures in another order"),
    ("stage", "vodka-curate analyse, with hashes and files"),
    ("again", "the same again, unchanged"),
];

/// The task of this process, where it is one's.
const TASK: &str = "VODKA_BENCH_TASK";

fn main() {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let images: usize = variable("VODKA_BENCH_IMAGES").map_or(1_000_000, |images| images.parse().unwrap());
    let turns: usize = variable("VODKA_BENCH_TURNS").map_or(3, |turns| turns.parse().unwrap());
    if let Some(task) = variable(TASK) {
        return perform(&task, Path::new(&variable("VODKA_BENCH_FOLDER").unwrap()));
    }
    let temporary = tempfile::tempdir().unwrap();
    let folder = variable("VODKA_BENCH_FOLDER").map_or(temporary.path().to_path_buf(), PathBuf::from);
    make(&folder, images);
    println!("analysis of {} rows, {images} pictures", images * TAGS_PER_IMAGE);
    let python = variable("VODKA_PEER_PYTHON");
    for (task, what) in PAIRED {
        let (mut our_runs, mut peer_runs) = (Vec::new(), Vec::new());
        // In turns, as the machine itself varies.
        for _ in 0..turns {
            our_runs.push(ours(task, &folder));
            peer_runs.extend(python.as_ref().map(|python| peer(python, task, &folder)));
        }
        println!("  {what:<52} {}", list(&our_runs));
        if let Some(first) = peer_runs.first() {
            assert_eq!(our_runs[0].said, first.said, "both find the same");
            let times = median(&peer_runs) / median(&our_runs);
            println!("  {:<52} {}: {times:.1} times by the medians", "  pandas", list(&peer_runs));
        }
    }
    // What an earlier benchmark has written here is not to be found up to date.
    let _ = fs::remove_file(folder.join("analysis.run.json"));
    for (task, what) in ALONE {
        println!("  {what:<52} {}", list(&[ours(task, &folder)]));
    }
}

/// What a process has done.
struct Run {
    seconds: f64,
    megabytes: f64,
    /// What it has found.
    said: String,
}

fn list(runs: &[Run]) -> String {
    let times: Vec<_> = runs.iter().map(|run| format!("{:.2}", run.seconds)).collect();
    let memory = runs.iter().map(|run| run.megabytes).fold(0.0, f64::max);
    format!("{} s, {memory:.0} MB", times.join(" "))
}

fn median(runs: &[Run]) -> f64 {
    let mut seconds: Vec<_> = runs.iter().map(|run| run.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Makes the tables, unless they are there.
fn make(folder: &Path, images: usize) {
    let (tags, pictures) = (folder.join("tags.parquet"), folder.join("tags.pictures.parquet"));
    if !pictures.exists() {
        fs::create_dir_all(folder).unwrap();
        let start = Instant::now();
        write_tags(&tags, (0..images).map(|number| (number, number)), TAGS_PER_IMAGE).unwrap();
        // As a table from elsewhere may be: each picture's rows together, the pictures in no order.
        let scattered = (0..images).map(|number| (number, number * 7919 % images));
        write_tags(&folder.join("tags.scattered.parquet"), scattered, TAGS_PER_IMAGE).unwrap();
        write_pictures(&pictures, images).unwrap();
        let selection: String = SELECTED.iter().map(|name| format!("{name},1\n")).collect();
        fs::write(folder.join("selection.csv"), format!("name,include\n{selection}")).unwrap();
        println!("made the tables in {:.0} s", start.elapsed().as_secs_f64());
    }
    let bytes = fs::metadata(&tags).unwrap().len();
    println!("the tag table has {} MB", bytes / 1_000_000);
}

/// Runs a command that ends with a line of seconds and megabytes.
fn measured(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let (said, last) = text.trim_end().rsplit_once('\n').unwrap();
    let (seconds, megabytes) = last.split_once(' ').unwrap();
    Run { seconds: seconds.parse().unwrap(), megabytes: megabytes.parse().unwrap(), said: said.to_owned() }
}

fn ours(task: &str, folder: &Path) -> Run {
    let mut command = Command::new(env::current_exe().unwrap());
    if env::var_os("POLARS_MAX_THREADS").is_none() {
        command.env("POLARS_MAX_THREADS", "2");
    }
    measured(command.env(TASK, task).env("VODKA_BENCH_FOLDER", folder))
}

fn peer(python: &str, task: &str, folder: &Path) -> Run {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peer_pandas.py");
    measured(Command::new(python).arg(script).arg(task).arg(folder))
}

/// One task, and its line of seconds and megabytes.
fn perform(task: &str, folder: &Path) {
    let start = Instant::now();
    match task {
        "stage" | "again" => stage(folder),
        task => task_of(task, folder),
    }
    println!("{} {}", start.elapsed().as_secs_f64(), peak_megabytes());
}

fn task_of(task: &str, folder: &Path) {
    let mut settings = Settings::default();
    let is_whole = matches!(task, "whole" | "scattered");
    if !is_whole {
        settings.max_tags.clear();
    }
    if task == "counts" {
        settings.cooccurrence_max = 0;
    }
    let inputs = AnalysisInputs {
        tags: folder.join(if task == "scattered" { "tags.scattered.parquet" } else { "tags.parquet" }),
        selection_path: folder.join("selection.csv"),
        selection: SELECTED.map(ToOwned::to_owned).to_vec(),
        captions: None,
        images: PathBuf::new(),
        pictures: is_whole.then(|| folder.join("tags.pictures.parquet")),
        labels: None,
        settings,
    };
    let found = analyse(&inputs, &Interrupt::new()).unwrap().unwrap().analysis;
    println!("{} {:?} {:?}", found.rows, found.tags[0].at_threshold, found.groups[0].at_threshold);
    if task != "counts" {
        println!("{}", found.cooccurrence.counts.iter().flatten().sum::<u64>());
    }
    if let Some(agreement) = found.sharpness {
        println!("{:.9} {:.9}", agreement.spearman, agreement.auc);
    }
}

fn stage(folder: &Path) {
    let config = AnalyseConfig {
        tags: folder.join("tags.parquet"),
        selection: folder.join("selection.csv"),
        images: None,
        pictures: None,
        labels: None,
        thresholds: Settings::default().thresholds,
        min_score: Settings::default().min_score,
        max_tags: Settings::default().max_tags,
        groups: Settings::default().groups,
        sharpness_tag: Settings::default().sharpness_tag,
        output: folder.join("analysis"),
    };
    println!("{:?}", run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap().outcome);
}

fn peak_megabytes() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1000.0
}
