//! The sampler against `peer_sample.py` (PyTorch eager, diffusers), in turns, and what a grid and a change of the checkpoint
//! cost: `cargo bench -p vodka-bench-torch --bench sampling`.
//!
//! `VODKA_BENCH_MODEL` is the model's folder, `VODKA_PEER_PYTHON` a Python with the peers' packages and
//! `VODKA_BENCH_PEERS` the folder of `peer_sample.py`; without a Python it is our side alone. `VODKA_BENCH_PARTS` names some of
//! picture, four, change, grid, hires, ultimate (Ultimate upscale, `VODKA_BENCH_BATCH` tiles at once against one at a time) and upscale. The
//! last is an ESRGAN upscaler of random weights beside spandrel's, with the same tiles (`peer_upscale.py`, which needs spandrel); it needs a
//! Python and no model. `VODKA_BENCH_STEPS` and `VODKA_BENCH_SIZE` are for all parts, `VODKA_BENCH_DEVICE`, `VODKA_BENCH_DTYPE` and
//! `VODKA_RUNTIME` for our side.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and one that cannot go on has failed"
)]

use std::{env, path::Path, process::Command};

fn main() {
    let parts = env::var("VODKA_BENCH_PARTS");
    let parts = parts.unwrap_or_else(|_| "picture,four,change,grid,hires,ultimate".to_owned());
    let model = env::var("VODKA_BENCH_MODEL").ok();
    let Some(model) = model.or_else(|| (parts == "upscale").then(|| "none".to_owned())) else {
        println!("VODKA_BENCH_MODEL=DIR names the model: `make_sd.py DIR --size small` writes one");
        return;
    };
    let text = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let count = |name: &str, default: &str| text(name, default).parse::<usize>().unwrap();
    let bench = Bench {
        model,
        turns: count("VODKA_BENCH_TURNS", "3"),
        steps: count("VODKA_BENCH_STEPS", "5"),
        size: count("VODKA_BENCH_SIZE", "512"),
        batch: text("VODKA_BENCH_BATCH", "4"),
        device: text("VODKA_BENCH_DEVICE", "cpu"),
        dtype: text("VODKA_BENCH_DTYPE", "fp32"),
        runtime: text("VODKA_RUNTIME", concat!(env!("CARGO_MANIFEST_DIR"), "/../../.runtime")),
        python: env::var("VODKA_PEER_PYTHON").ok(),
    };
    for part in parts.split(',') {
        match part {
            "picture" => bench.picture(),
            "four" => bench.four(),
            "change" => bench.change(),
            "grid" => bench.grid(),
            "hires" => bench.hires(),
            "ultimate" => bench.ultimate(),
            "upscale" => bench.upscale(),
            other => panic!("VODKA_BENCH_PARTS: no part is called `{other}`"),
        }
    }
}

struct Bench {
    model: String,
    turns: usize,
    steps: usize,
    size: usize,
    batch: String,
    device: String,
    dtype: String,
    runtime: String,
    python: Option<String>,
}

impl Bench {
    /// One picture: a step is a call of the UNet for both prompts, with its share of the VAE.
    fn picture(&self) {
        let steps = self.steps as f64;
        let (mut ours, mut limits, mut peers, mut plain) = (vec![], vec![], vec![], vec![]);
        for _ in 0..self.turns {
            ours.push(self.ours(&["pictures"])[0] / steps);
            limits.push(self.ours(&["networks"])[0] / steps);
            peers.extend(self.peer(&["--channels-last"]).map(|seconds| seconds / steps));
            plain.extend(self.peer(&[]).map(|seconds| seconds / steps));
        }
        print("one picture, vodka", "s a step", &ours);
        println!("  limit: the networks alone {:.3}", median(&limits));
        compare("peer, channels last", "s a step", &peers, &ours);
        compare("peer", "s a step", &plain, &ours);
    }

    /// Four pictures of one prompt.
    fn four(&self) {
        let (mut single, mut batch, mut peers) = (vec![], vec![], vec![]);
        for _ in 0..self.turns {
            single.push(self.ours(&["pictures", "--count", "4"])[0]);
            batch.push(self.ours(&["pictures", "--batch", "4"])[0]);
            peers.extend(self.peer(&["--channels-last", "--batch", "4"]));
        }
        print("four pictures one by one, vodka", "s", &single);
        print("four pictures at once, vodka", "s", &batch);
        println!("  one by one: {:.3} times as fast as at once", median(&batch) / median(&single));
        compare("peer, four at once, channels last", "s", &peers, &batch);
    }

    /// Another checkpoint: the same again, from the system's cache.
    fn change(&self) {
        let numbers = self.ours(&["change", &self.model]);
        println!("change of the checkpoint: {:.3} s; to read its files {:.3} s", numbers[2], numbers[0]);
        println!("  to load it anew {:.3} s", numbers[1]);
    }

    fn grid(&self) {
        let folder = env::temp_dir().join(format!("vodka-bench-grid-{}", std::process::id()));
        let (mut grids, mut alone) = (vec![], vec![]);
        for _ in 0..self.turns {
            let numbers = self.ours(&["grid", folder.to_str().unwrap()]);
            grids.push(numbers[0]);
            alone.push(numbers[1]);
        }
        std::fs::remove_dir_all(&folder).unwrap();
        print("grid of 2 x 2, with its sheet and page", "s", &grids);
        print("its pictures one after the other", "s", &alone);
        println!("  the grid: {:+.1} %", 100.0 * (median(&grids) / median(&alone) - 1.0));
    }

    /// The hires pass costs what its passes cost, alone and one after the other.
    fn hires(&self) {
        let (mut both, mut sums) = (vec![], vec![]);
        for _ in 0..self.turns {
            let numbers = self.ours(&["hires"]);
            both.push(numbers[0]);
            sums.push(numbers[1] + numbers[2]);
        }
        print("hires pass to twice the size", "s", &both);
        print("its passes alone", "s", &sums);
        println!("  the hires pass: {:+.1} %", 100.0 * (median(&both) / median(&sums) - 1.0));
    }

    /// A picture of four times the width and height in sixteen tiles, several at once against one at a time.
    fn ultimate(&self) {
        let folder = env::temp_dir().join(format!("vodka-bench-ultimate-{}", std::process::id()));
        let (mut single, mut batch) = (vec![], vec![]);
        for _ in 0..self.turns {
            let tiles = |count: &str| self.ours(&["ultimate", folder.to_str().unwrap(), "--batch", count])[0];
            single.push(tiles("1"));
            batch.push(tiles(&self.batch));
        }
        std::fs::remove_dir_all(&folder).unwrap();
        print(
            &format!("Ultimate upscale of {} px to {}, one tile at a time", self.size, 4 * self.size),
            "s a tile",
            &single,
        );
        print(&format!("{} at once", self.batch), "s a tile", &batch);
        println!("  at once: {:.3} times as fast", median(&single) / median(&batch));
    }

    fn upscale(&self) {
        let Some(python) = &self.python else {
            return println!("upscale: VODKA_PEER_PYTHON names no Python");
        };
        let file = env::temp_dir().join(format!("vodka-bench-{}.pth", std::process::id()));
        let (name, size) = (file.to_str().unwrap(), self.size.to_string());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peer_upscale.py");
        let peer = |what: &str| said(Command::new(python).args([script, what, name, &size]));
        peer("write");
        let (mut ours, mut peers) = (vec![], vec![]);
        for _ in 0..self.turns {
            ours.extend(self.ours(&["upscale", name]));
            peers.push(peer("run").trim().parse().unwrap());
        }
        std::fs::remove_file(&file).unwrap();
        print("ESRGAN of 64 features and 23 blocks, vodka", "s", &ours);
        compare("spandrel", "s", &peers, &ours);
    }

    fn common(&self) -> [String; 4] {
        ["--steps".to_owned(), self.steps.to_string(), "--size".to_owned(), self.size.to_string()]
    }

    fn ours(&self, arguments: &[&str]) -> Vec<f64> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vodka-bench-sample"));
        command.args(arguments).args(["--model", &self.model]).args(self.common());
        command.args(["--device", &self.device, "--dtype", &self.dtype, "--runtime", &self.runtime]);
        let output = said(&mut command);
        output.split_whitespace().map(|number| number.parse().unwrap()).collect()
    }

    /// The seconds of a batch.
    fn peer(&self, more: &[&str]) -> Option<f64> {
        let python = self.python.as_ref()?;
        let folder =
            env::var("VODKA_BENCH_PEERS").expect("VODKA_BENCH_PEERS is the folder of peer_sample.py");
        let script = Path::new(&folder).join("peer_sample.py");
        let output = said(Command::new(python).arg(script).arg(&self.model).args(self.common()).args(more));
        let before = output.split(" s/batch").next().unwrap();
        Some(before.split_whitespace().last().unwrap().parse().unwrap())
    }
}

fn compare(name: &str, unit: &str, peers: &[f64], ours: &[f64]) {
    if !peers.is_empty() {
        print(name, unit, peers);
        println!("  vodka: {:.3} times as fast", median(peers) / median(ours));
    }
}

fn print(name: &str, unit: &str, numbers: &[f64]) {
    let list: Vec<_> = numbers.iter().map(|number| format!("{number:.3}")).collect();
    println!("{name}: {:.3} {unit} ({})", median(numbers), list.join(" "));
}

fn median(numbers: &[f64]) -> f64 {
    let mut numbers = numbers.to_vec();
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}
