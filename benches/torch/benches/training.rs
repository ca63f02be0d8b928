//! The training step against `peer_train.py` (PyTorch eager, diffusers), in turns: `cargo bench -p vodka-bench-torch`.
//!
//! `VODKA_BENCH_MODEL` is the model's folder, `VODKA_PEER_PYTHON` a Python with the peers' packages and
//! `VODKA_BENCH_PEERS` the folder of `peer_train.py`; without a Python it is our side alone.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and one that cannot go on has failed"
)]

use std::{env, path::Path, process::Command};

const BATCH: f64 = 4.0;

/// What one side took.
#[derive(Clone, Copy)]
struct Run {
    step_s: f64,
    peak_bytes: f64,
    /// What the networks take of a step; ours only.
    networks_s: Option<f64>,
}

fn main() {
    let Ok(model) = env::var("VODKA_BENCH_MODEL") else {
        println!("VODKA_BENCH_MODEL=DIR names the model: `make_sd.py DIR --size small` writes one");
        return;
    };
    let count = |name: &str, default: usize| env::var(name).map_or(default, |n| n.parse().unwrap());
    let (turns, steps) = (count("VODKA_BENCH_TURNS", 3), count("VODKA_BENCH_STEPS", 7));
    let options = env::var("VODKA_BENCH_OPTIONS").unwrap_or_default();
    let options: Vec<_> = options.split_whitespace().map(ToOwned::to_owned).collect();
    let common = ["--resolution", "256", "--batch", "4"].map(ToOwned::to_owned);
    let steps = ["--steps".to_owned(), steps.to_string()];
    let shared = [&common[..], &steps, &options].concat();
    let python = env::var("VODKA_PEER_PYTHON").ok();
    let cached = ["--cached", "--channels-last"];
    let (mut ours, mut peers, mut uncached) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..turns {
        ours.push(our_step(&model, &shared));
        if let Some(python) = &python {
            peers.push(peer_step(python, &model, &shared, &cached));
            uncached.push(peer_step(python, &model, &shared, &[]));
        }
    }
    print("vodka", &ours);
    let networks: Vec<_> = ours.iter().filter_map(|run| run.networks_s).collect();
    println!("  limit: networks forth and back {:.2} images/s", BATCH / median(&networks));
    for (name, runs) in [("peer, cached, channels last", &peers), ("peer, uncached", &uncached)] {
        if runs.is_empty() {
            continue;
        }
        print(name, runs);
        let ratio = median(&seconds(runs)) / median(&seconds(&ours));
        let memory = peak(&ours) / peak(runs);
        println!("  vodka: {ratio:.3} times as fast, {memory:.2} times the memory");
    }
}

fn print(name: &str, runs: &[Run]) {
    let list: Vec<_> = runs.iter().map(|run| format!("{:.3}", run.step_s)).collect();
    let speed = BATCH / median(&seconds(runs));
    println!("{name}: {speed:.2} images/s, {} s a step, peak {:.0} MB", list.join(" "), peak(runs) / 1e6);
}

fn seconds(runs: &[Run]) -> Vec<f64> {
    runs.iter().map(|run| run.step_s).collect()
}

fn peak(runs: &[Run]) -> f64 {
    runs.iter().map(|run| run.peak_bytes).fold(0.0, f64::max)
}

fn median(numbers: &[f64]) -> f64 {
    let mut numbers = numbers.to_vec();
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn our_step(model: &str, options: &[String]) -> Run {
    let output = said(Command::new(env!("CARGO_BIN_EXE_vodka-bench-train")).arg(model).args(options));
    let numbers: Vec<f64> = output.split_whitespace().map(|number| number.parse().unwrap()).collect();
    Run { step_s: numbers[0], networks_s: Some(numbers[1]), peak_bytes: numbers[2] }
}

fn peer_step(python: &str, model: &str, options: &[String], more: &[&str]) -> Run {
    /// The script, and then the most memory that it had.
    const WRAPPER: &str = "import resource, runpy, sys; sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)";
    let folder = env::var("VODKA_BENCH_PEERS").expect("VODKA_BENCH_PEERS is the folder of peer_train.py");
    let script = Path::new(&folder).join("peer_train.py");
    let output =
        said(Command::new(python).args(["-c", WRAPPER]).arg(script).arg(model).args(options).args(more));
    let after = |word: &str| {
        let rest = output.split(word).nth(1).unwrap_or_else(|| panic!("{output}"));
        rest.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    Run { step_s: after("median "), networks_s: None, peak_bytes: after("\npeak ") }
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
