//! Merging at full size, beside what the machine needs to read and write the same bytes.
//!
//! ```sh
//! cargo bench -p vodka-bench-light --bench merging
//! ```
//!
//! Writes eight Stable Diffusion 1.5 files of random fp16 weights (2.13 GB each; a folder named by `VODKA_BENCH_FOLDER` keeps
//! them for the next time), then takes turns, five times: the floor (three files read and one written with plain calls of 8 MiB,
//! synced), add difference of three files by `vodka-merge`'s library with the parents' hashes known, three times without
//! (beside the time that hashing them takes one core), and, where
//! `VODKA_BENCH_PEER` names it (`python peer_merge.py`), the peer in fp16 and with `--fp32`. Then a merge of eight parents, and
//! every method of the table once (`VODKA_BENCH_METHODS` names others, with commas; `none` for none). Linux only: memory is read
//! from `/proc`.

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

use vodka_checkpoint::{ModelConfig, Precision, keys, write_checkpoint};
use vodka_merger::{METHODS, MergePlan, Method, Parents, Recipe, run};
use vodka_stage::{Interrupt, Outcome, hash_file};

/// The first argument of a process that merges.
const CHILD: &str = "merge";
const ROUNDS: usize = 5;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if arguments.get(1).is_some_and(|word| word == CHILD) {
        return merge(&arguments[2..]);
    }
    let kept = env::var_os("VODKA_BENCH_FOLDER").map(PathBuf::from);
    let temporary = tempfile::tempdir().unwrap();
    let folder = kept.as_deref().unwrap_or(temporary.path());
    let files: Vec<_> = (0..8).map(|i| generate(folder, i)).collect();
    let gigabytes = fs::metadata(&files[0]).unwrap().len() as f64 / 1e9;
    println!("{} files of {gigabytes:.2} GB", files.len());
    against_the_floor(folder, &files[..3], gigabytes);
    let (seconds, megabytes) = timed(folder, Method::Dare, &files);
    show("dare of 8", seconds, 9.0 * gigabytes, megabytes);
    let wanted = env::var("VODKA_BENCH_METHODS").unwrap_or_default();
    for info in METHODS.iter().filter(|info| info.parents != Parents::Loras) {
        if wanted.is_empty() || wanted.split(',').any(|name| name == info.name) {
            let parents = info.parents.least();
            let (seconds, megabytes) = timed(folder, info.method, &files[..parents]);
            show(info.name, seconds, (parents + 1) as f64 * gigabytes, megabytes);
        }
    }
}

fn show(name: &str, seconds: f64, gigabytes: f64, megabytes: f64) {
    println!("{name:<33} {seconds:7.2} s  {:6.2} GB/s  {megabytes:5.0} MB", gigabytes / seconds);
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn against_the_floor(folder: &Path, files: &[PathBuf], gigabytes: f64) {
    let peer = env::var("VODKA_BENCH_PEER").ok();
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut memory = BTreeMap::new();
    let mut most: f64 = 0.0;
    timed(folder, Method::AddDifference, files);
    for round in 0..ROUNDS {
        times.entry("floor").or_default().push(floor(folder, files));
        let (seconds, megabytes) = timed(folder, Method::AddDifference, files);
        times.entry("add-difference").or_default().push(seconds);
        most = most.max(megabytes);
        if round < 3 {
            fs::remove_file(folder.join("hashes.json")).unwrap();
            let (seconds, _) = timed(folder, Method::AddDifference, files);
            times.entry("the same, parents unhashed").or_default().push(seconds);
            let start = Instant::now();
            for file in files {
                std::hint::black_box(hash_file(file).unwrap());
            }
            times.entry("SHA-256 of the parents, one core").or_default().push(start.elapsed().as_secs_f64());
        }
        if let Some(peer) = peer.as_deref().filter(|_| round < 3) {
            for (name, options) in [("peer, fp16", &[][..]), ("peer, fp32", &["--fp32"])] {
                let (seconds, megabytes) = peer_merge(peer, folder, files, options);
                times.entry(name).or_default().push(seconds);
                memory.insert(name, megabytes);
            }
        }
    }
    memory.insert("add-difference", most);
    for (name, times) in times {
        let turns: Vec<_> = times.iter().map(|seconds| format!("{seconds:.2}")).collect();
        show(name, median(times), 4.0 * gigabytes, memory.get(name).copied().unwrap_or_default());
        println!("    turns: {}", turns.join(", "));
    }
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
fn peer_merge(peer: &str, folder: &Path, files: &[PathBuf], options: &[&str]) -> (f64, f64) {
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
    (seconds, numbers[1] * 1e3)
}

/// Seconds and peak resident megabytes of a merge in a process of its own.
fn timed(folder: &Path, method: Method, files: &[PathBuf]) -> (f64, f64) {
    let start = Instant::now();
    let output = Command::new(env::current_exe().unwrap())
        .args([CHILD, &method.to_string()])
        .arg(folder)
        .args(files)
        .output()
        .unwrap();
    let seconds = start.elapsed().as_secs_f64();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_file(folder.join("merged.safetensors")).unwrap();
    (seconds, said.trim().parse().unwrap())
}

/// Merges, and prints the most memory that this process has had, in megabytes.
fn merge(arguments: &[String]) {
    let method: Method = arguments[0].parse().unwrap();
    let folder = Path::new(&arguments[1]);
    let paths = arguments[2..].iter().map(PathBuf::from).collect();
    let params = method.info().params.iter().map(|param| (param.name.to_owned(), vec![0.3.into()]));
    let params: Vec<_> = params.collect();
    let output = folder.join("merged.safetensors");
    let recipe = Recipe::of_one(method, paths, &params, None, output).unwrap();
    let plan = MergePlan { hash_cache: Some(folder.join("hashes.json")), ..recipe.plan().unwrap() };
    let report = run(&plan, &Interrupt::new(), &mut |_| ()).unwrap();
    assert_eq!(report.outcome, Outcome::Done);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let kilobytes: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("{}", kilobytes / 1e3);
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
