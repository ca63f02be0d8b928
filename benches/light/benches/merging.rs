//! Merging at full size, beside what the machine needs to read and write the same bytes.
//!
//! ```sh
//! cargo bench -p vodka-bench-light --bench merging
//! ```
//!
//! Writes eight Stable Diffusion 1.5 files of random fp16 weights (2.13 GB each; a folder named by `VODKA_BENCH_FOLDER` keeps
//! them for the next time), and measures, each in a process of its own (`VODKA_BENCH_ONLY` names some of it, with commas):
//!
//! * `floor`: in turns, five times, three files read and one written with plain calls of 8 MiB, synced; add difference of three
//!   files with the parents' hashes known; three times without, beside the time that hashing them takes one core;
//! * `peer`, where `VODKA_BENCH_PEER` names it (`python peer_merge.py`): add difference, the peer in fp16 and with `--fp32`, in
//!   turns, five times;
//! * every method of the table by its name, once, of as few files as it takes;
//! * `many`: of three, five and eight files a method that reads them once, and one that reads them twice;
//! * `lazy`: all tensors of a weighted sum that is in no file;
//! * `extract-lora`: of rank 64, from the difference of two files;
//! * `inspect`: without hashes, and whole, three times each.
//!
//! Each turn of the first two and each method starts alike: nothing is left to be written, the parents are in the page cache, and
//! memory for a result has just been in use ([`level`]).
//!
//! Linux only: memory is read from `/proc`.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where it cannot go on"
)]

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use vodka_checkpoint::{
    ModelConfig, Precision,
    inspect::{Depth, inspect},
    keys, write_checkpoint,
};
use vodka_merger::{ExtractConfig, METHODS, MergePlan, Merged, Method, Parents, Recipe, extract, run};
use vodka_stage::{Interrupt, Outcome, hash_file};

/// What a process of its own does with the arguments behind its name.
type Job = fn(&[String]);
const JOBS: [(&str, Job); 4] =
    [("merge", merge), ("lazy", lazy), ("extract-lora", extract_lora), ("inspect", look_into)];
const ROUNDS: usize = 5;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let job = JOBS.iter().find(|(name, _)| arguments.get(1).is_some_and(|word| word == name));
    if let Some((_, job)) = job {
        job(&arguments[2..]);
        return print_cost();
    }
    let kept = env::var_os("VODKA_BENCH_FOLDER").map(PathBuf::from);
    let temporary = tempfile::tempdir().unwrap();
    let folder = kept.as_deref().unwrap_or(temporary.path());
    let files: Vec<_> = (0..8).map(|i| generate(folder, i)).collect();
    let gigabytes = fs::metadata(&files[0]).unwrap().len() as f64 / 1e9;
    println!("{} files of {gigabytes:.2} GB", files.len());
    let only = env::var("VODKA_BENCH_ONLY").ok();
    let wanted = |name: &str| only.as_ref().is_none_or(|only| only.split(',').any(|word| word == name));
    if wanted("floor") {
        against_the_floor(folder, &files[..3], gigabytes);
    }
    if let Some(peer) = env::var("VODKA_BENCH_PEER").ok().filter(|_| wanted("peer")) {
        beside_the_peer(&peer, folder, &files[..3], gigabytes);
    }
    if wanted("extract-lora") || wanted("apply-lora") {
        level(folder, &files[..2]);
        let made = timed("extract-lora", folder, &files[..2]);
        show("extract-lora", made, 2.0 * gigabytes);
    }
    for info in METHODS.iter().filter(|info| wanted(info.name)) {
        let least = info.parents.least();
        let (files, all) = match info.parents {
            Parents::Loras => (vec![files[0].clone(), folder.join(LORA)], 2),
            _ => (files[..least].to_vec(), least + 1),
        };
        level(folder, &files);
        show(info.name, merged(folder, info.method, &files), all as f64 * gigabytes);
    }
    if wanted("many") {
        for (method, n) in
            [Method::Clip, Method::ModelStock].into_iter().flat_map(|m| [3, 5, 8].map(|n| (m, n)))
        {
            let passes = if method == Method::Clip { 1 } else { 2 };
            let name = format!("{method} of {n}");
            show(&name, merged(folder, method, &files[..n]), (passes * n + 1) as f64 * gigabytes);
        }
    }
    if wanted("lazy") {
        show("weighted-sum without a file", timed("lazy", folder, &files[..2]), 2.0 * gigabytes);
    }
    if wanted("inspect") {
        for (name, depth) in [("inspect without hashes", "values"), ("inspect", "all")] {
            let turn = || timed(&format!("inspect {depth}"), folder, &files[..1]);
            (0..3).for_each(|_| show(name, turn(), gigabytes));
        }
    }
}

/// What something took.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    seconds: f64,
    /// Of all cores together.
    processor_s: f64,
    /// The most memory.
    megabytes: f64,
}

/// Prints what this process has cost so far, for its parent.
fn print_cost() {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let kilobytes: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    // proc(5): user and system time are the 14th and 15th field, in hundredths of a second; names may hold spaces.
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1.split_whitespace().skip(11).take(2);
    let ticks: f64 = fields.map(|ticks| ticks.parse::<f64>().unwrap()).sum();
    println!("{} {}", kilobytes / 1e3, ticks / 100.0);
}

fn show(name: &str, cost: Cost, gigabytes: f64) {
    let Cost { seconds, processor_s, megabytes } = cost;
    let speed = gigabytes / seconds;
    println!(
        "{name:<33} {seconds:7.2} s  {speed:6.2} GB/s  {processor_s:6.2} s of cores  {megabytes:5.0} MB"
    );
}

/// What was measured in turns: seconds, and the most memory in megabytes.
#[derive(Default)]
struct Turns(BTreeMap<&'static str, Vec<Cost>>);

impl Turns {
    /// Told at once: whoever ends a long run has what there is.
    fn add(&mut self, name: &'static str, cost: Cost) {
        println!("    {name}: {:.2} s", cost.seconds);
        self.0.entry(name).or_default().push(cost);
    }

    /// The median by its seconds, with the most memory of all turns.
    fn show_medians(self, gigabytes: f64) {
        for (name, mut costs) in self.0 {
            costs.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
            let megabytes = costs.iter().map(|cost| cost.megabytes).fold(0.0, f64::max);
            show(name, Cost { megabytes, ..costs[costs.len() / 2] }, gigabytes);
        }
    }
}

fn against_the_floor(folder: &Path, files: &[PathBuf], gigabytes: f64) {
    let mut turns = Turns::default();
    merged(folder, Method::AddDifference, files);
    for round in 0..ROUNDS {
        level(folder, files);
        turns.add("floor", Cost { seconds: floor(folder, files), ..Cost::default() });
        level(folder, files);
        turns.add("add-difference", merged(folder, Method::AddDifference, files));
        if round < 3 {
            fs::remove_file(folder.join("hashes.json")).unwrap();
            level(folder, files);
            turns.add("the same, parents unhashed", merged(folder, Method::AddDifference, files));
            let start = Instant::now();
            for file in files {
                std::hint::black_box(hash_file(file).unwrap());
            }
            let seconds = start.elapsed().as_secs_f64();
            turns.add("SHA-256 of the parents, one core", Cost { seconds, ..Cost::default() });
        }
    }
    turns.show_medians(4.0 * gigabytes);
}

fn beside_the_peer(peer: &str, folder: &Path, files: &[PathBuf], gigabytes: f64) {
    let mut turns = Turns::default();
    for _ in 0..ROUNDS {
        level(folder, files);
        turns.add("add-difference", merged(folder, Method::AddDifference, files));
        level(folder, files);
        turns.add("peer, fp16", peer_merge(peer, folder, files, &[]));
        level(folder, files);
        turns.add("peer, fp32", peer_merge(peer, folder, files, &["--fp32"]));
    }
    turns.show_medians(4.0 * gigabytes);
}

/// Brings the machine into the state that a turn starts from: the files are in the page cache, nothing is left to be written, and as much
/// memory as the page cache of a result takes has just been in use.
///
/// Virtual machines give free memory back to their host some seconds after its last use, and get it again a page at a time: here two
/// seconds a gigabyte, for which else whoever's turn comes after a pause would pay.
fn level(folder: &Path, files: &[PathBuf]) {
    for path in files {
        let mut buffer = vec![0; 8 << 20];
        let mut file = File::open(path).unwrap();
        while file.read(&mut buffer).unwrap() > 0 {}
    }
    floor(folder, &files[..1]);
    assert!(Command::new("sync").status().unwrap().success());
}

/// Reads the files and writes as much as one of them, with plain calls, and brings it to the disk.
fn floor(folder: &Path, files: &[PathBuf]) -> f64 {
    let target = folder.join("floor.bin");
    let start = Instant::now();
    let mut buffer = vec![0; 8 << 20];
    let mut written = 0;
    let mut out = File::create(&target).unwrap();
    for (i, path) in files.iter().enumerate() {
        let mut file = File::open(path).unwrap();
        loop {
            let n = file.read(&mut buffer).unwrap();
            if n == 0 {
                break;
            }
            if i == 0 {
                out.write_all(&buffer[..n]).unwrap();
                written += n;
            }
        }
    }
    out.sync_all().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert!(written > 0);
    fs::remove_file(target).unwrap();
    seconds
}

/// Seconds by the peer's own clock (without the start of Python) and what the disk takes after it, and its peak in megabytes.
fn peer_merge(peer: &str, folder: &Path, files: &[PathBuf], options: &[&str]) -> Cost {
    let target = folder.join("peer.safetensors");
    let mut words = peer.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    let output = command.args(words).args(files).arg(&target).args(options).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<f64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let start = Instant::now();
    File::open(&target).unwrap().sync_all().unwrap();
    let seconds = numbers[0] + start.elapsed().as_secs_f64();
    fs::remove_file(target).unwrap();
    Cost { seconds, megabytes: numbers[1] * 1e3, ..Cost::default() }
}

/// What a merge costs; its file is removed.
fn merged(folder: &Path, method: Method, files: &[PathBuf]) -> Cost {
    let found = timed(&format!("merge {method}"), folder, files);
    fs::remove_file(folder.join(OUTPUT)).unwrap();
    found
}

/// What a job costs in a process of its own.
fn timed(job: &str, folder: &Path, files: &[PathBuf]) -> Cost {
    let start = Instant::now();
    let mut command = Command::new(env::current_exe().unwrap());
    let output = command.args(job.split(' ')).arg(folder).args(files).output().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (megabytes, processor_s) = said.trim().split_once(' ').unwrap();
    let [megabytes, processor_s] = [megabytes, processor_s].map(|number| number.parse().unwrap());
    Cost { seconds, processor_s, megabytes }
}

const OUTPUT: &str = "merged.safetensors";
const LORA: &str = "lora.safetensors";

fn plan(method: Method, folder: &str, files: &[String]) -> MergePlan {
    let paths = files.iter().map(PathBuf::from).collect();
    let params = method.info().params.iter().map(|param| (param.name.to_owned(), vec![0.3.into()]));
    let params: Vec<_> = params.collect();
    let recipe = Recipe::of_one(method, paths, &params, None, Path::new(folder).join(OUTPUT)).unwrap();
    MergePlan { hash_cache: Some(Path::new(folder).join("hashes.json")), ..recipe.plan().unwrap() }
}

fn merge(arguments: &[String]) {
    let [method, folder, files @ ..] = arguments else { panic!("a method and a folder") };
    let report = run(&plan(method.parse().unwrap(), folder, files), &Interrupt::new(), &mut |_| ()).unwrap();
    assert_eq!(report.outcome, Outcome::Done);
}

/// All tensors, one after the other, as a sampler loads them.
fn lazy(arguments: &[String]) {
    let merged = Merged::open(&plan(Method::WeightedSum, &arguments[0], &arguments[1..]), 0).unwrap();
    for name in merged.names() {
        std::hint::black_box(merged.tensor(&name).unwrap());
    }
}

fn extract_lora(arguments: &[String]) {
    let [folder, base, tuned] = arguments else { panic!("a folder and two files") };
    let output = Path::new(folder).join(LORA);
    fs::remove_file(&output)
        .or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })
        .unwrap();
    let config = ExtractConfig {
        tuned: tuned.into(),
        base: base.into(),
        output,
        rank: 64,
        conv_rank: None,
        precision: Precision::F16,
        clamp_quantile: 0.99,
        min_difference: 0.01,
        hash_cache: Some(Path::new(folder).join("hashes.json")),
    };
    let report = extract(&config, &Interrupt::new(), &mut |_, _| ()).unwrap();
    assert_eq!(report.outcome, Outcome::Done);
}

fn look_into(arguments: &[String]) {
    let depth = Depth { hashes: arguments[0] == "all", values: true };
    std::hint::black_box(inspect(&arguments[2], depth).unwrap());
}

/// A file of random weights, unless it is there.
fn generate(folder: &Path, index: u32) -> PathBuf {
    let path = folder.join(format!("parent-{index}.safetensors"));
    if path.exists() {
        return path;
    }
    let config = ModelConfig::sd15();
    let shapes: BTreeMap<_, _> = keys::all(&config).into_iter().map(|key| (key.ldm, key.shape)).collect();
    let mut state = index.wrapping_mul(0x9e37_79b9) | 1;
    let mut source = |name: &str| -> vodka_checkpoint::Result<vodka_checkpoint::Values> {
        let shape = shapes[name].clone();
        let mut draw = || {
            // xorshift32 (Marsaglia 2003).
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 24) as f32 * 0.1 - 0.05
        };
        let values = (0..shape.iter().product()).map(|_| draw()).collect();
        Ok((shape, values))
    };
    write_checkpoint(&path, &config, Precision::F16, &BTreeMap::new(), &mut source).unwrap();
    path
}
