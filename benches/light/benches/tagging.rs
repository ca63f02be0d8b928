//! Tagging throughput: images per second of each step and from end to end, and beside it what the limit allows.
//!
//! ```sh
//! cargo bench -p vodka-bench-light --bench tagging
//! ```
//!
//! By default with the fixture's small tagger. These environment variables choose something else:
//!
//! | variable | what | default |
//! |---|---|---|
//! | `VODKA_BENCH_MODEL` | folder of a model | `fixtures/tagger` |
//! | `VODKA_BENCH_PROVIDER` | `cpu`, `openvino`, ..., or `auto` | `cpu` |
//! | `VODKA_BENCH_IMAGES` | pictures from end to end, of each kind | 240 |
//! | `VODKA_BENCH_MEGAPIXELS` | sizes of the pictures | `1 12` |
//! | `VODKA_BENCH_BATCH` | pictures in a batch; 0 for what suits the provider | 0 |
//! | `VODKA_BENCH_PEER` | command that measures a peer on the same files: `python peer_tag.py` | none |

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where it cannot go on"
)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use vodka_bench_light::{Format, photograph, save};
use vodka_images::{DecodeOptions, RgbImage, decode_with, measure};
use vodka_stage::Interrupt;
use vodka_tagger::{Profile, ProviderChoice, TagConfig, TagReport, Tagger, TaggerConfig};
use vodka_testkit::{fixture, runtime_dir};

/// How long each step is measured at least.
const SPAN: Duration = Duration::from_secs(2);
/// How often at least.
const CALLS_MIN: u32 = 8;

/// What to measure with.
struct Bench {
    model: PathBuf,
    provider: ProviderChoice,
    images: usize,
    megapixels: Vec<u32>,
    batch: usize,
    peer: Option<String>,
    cores: usize,
}

impl Bench {
    fn from_environment() -> Self {
        let set = |name: &str| env::var(format!("VODKA_BENCH_{name}")).ok().filter(|value| !value.is_empty());
        let number = |name: &str, default: usize| set(name).map_or(default, |value| value.parse().unwrap());
        let megapixels = set("MEGAPIXELS").unwrap_or("1 12".to_owned());
        Self {
            model: set("MODEL").map_or_else(|| fixture("tagger"), PathBuf::from),
            provider: set("PROVIDER").map_or(ProviderChoice::default(), |name| name.parse().unwrap()),
            images: number("IMAGES", 240),
            megapixels: megapixels.split_whitespace().map(|word| word.parse().unwrap()).collect(),
            batch: number("BATCH", 0),
            peer: set("PEER"),
            cores: thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

fn main() {
    let bench = Bench::from_environment();
    let folder = tempfile::tempdir().unwrap();
    println!("tagging, images per second, {} cores, model {}", bench.cores, bench.model.display());
    let inference = bench.inference();
    println!("  {:<44} {inference:9.2}", "inference alone (ready tensors)");
    for megapixels in &bench.megapixels {
        for format in Format::ALL {
            let kind = format!("{megapixels} MP {}", format.extension());
            let file = folder.path().join(format!("{megapixels}.{}", format.extension()));
            let (width, height) = sides(*megapixels);
            save(&photograph(width, height, *megapixels), &file, format).unwrap();
            let reading = bench.reading(&kind, &file);
            bench.end_to_end(&kind, &file, inference, reading);
        }
    }
}

/// A picture of 4 to 3.
fn sides(megapixels: u32) -> (u32, u32) {
    let height = (f64::from(megapixels) * 1e6 * 3.0 / 4.0).sqrt();
    ((height * 4.0 / 3.0).round() as u32, height.round() as u32)
}

/// Calls a second of `work`, on one thread.
fn rate(mut work: impl FnMut()) -> f64 {
    work();
    let (start, mut calls) = (Instant::now(), 0_u32);
    while calls < CALLS_MIN || start.elapsed() < SPAN {
        work();
        calls += 1;
    }
    f64::from(calls) / start.elapsed().as_secs_f64()
}

impl Bench {
    fn config(&self, images: &Path, output: &Path) -> TagConfig {
        let (provider, onnxruntime) = self.provider.resolve(&runtime_dir());
        TagConfig { provider, onnxruntime, batch: self.batch, ..TagConfig::new(&self.model, images, output) }
    }

    /// The network by itself, on as many lanes as the stage uses.
    fn inference(&self) -> f64 {
        let plan = self.config(Path::new("."), Path::new("tags.csv")).plan().unwrap();
        let (provider, onnxruntime) = self.provider.resolve(&runtime_dir());
        let start = Instant::now();
        let tagger = Tagger::open(&TaggerConfig {
            provider,
            onnxruntime,
            lanes: plan.lanes,
            threads: self.cores,
            ..TaggerConfig::new(&self.model)
        })
        .unwrap();
        println!(
            "  provider {provider}, {} lanes, batches of {}, opened in {:.2} s",
            plan.lanes,
            plan.config.batch,
            start.elapsed().as_secs_f64()
        );
        let side = tagger.size_px();
        let batch: Vec<RgbImage> =
            (0..plan.config.batch).map(|seed| photograph(side, side, seed as u32)).collect();
        let lane = || rate(|| drop(tagger.score(&batch).unwrap())) * batch.len() as f64;
        thread::scope(|scope| {
            let lanes: Vec<_> = (0..plan.lanes).map(|_| scope.spawn(lane)).collect();
            lanes.into_iter().map(|lane| lane.join().unwrap()).sum()
        })
    }

    /// Reading by itself, on one core; tells the rate of the `reference`.
    fn reading(&self, kind: &str, file: &Path) -> f64 {
        let (provider, onnxruntime) = self.provider.resolve(&runtime_dir());
        let mut rates = Vec::new();
        for profile in Profile::ALL {
            let config = TaggerConfig {
                profile,
                provider,
                onnxruntime: onnxruntime.clone(),
                ..TaggerConfig::new(&self.model)
            };
            let tagger = Tagger::open(&config).unwrap();
            let options = DecodeOptions { reduce_to: tagger.reduce_to(), ..DecodeOptions::default() };
            let decode = rate(|| drop(decode_with(file, &options).unwrap()));
            let picture = decode_with(file, &options).unwrap();
            let resize = rate(|| drop(tagger.prepare_decoded(&picture)));
            let both = rate(|| drop(tagger.prepare_decoded(&decode_with(file, &options).unwrap())));
            println!(
                "  {:<44} {both:9.2}   decode {decode:9.2}  resize {resize:9.2}",
                format!("{kind}, one core, {profile}")
            );
            rates.push(both);
        }
        let picture = decode_with(file, &DecodeOptions::default()).unwrap().picture;
        let measured = rate(|| {
            std::hint::black_box(measure(&picture));
        });
        println!("  {:<44} {measured:9.2}", format!("{kind}, one core, measures"));
        rates[0]
    }

    /// The stage, on copies of a file.
    fn end_to_end(&self, kind: &str, file: &Path, inference: f64, reading: f64) {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        fs::create_dir(&images).unwrap();
        for i in 0..self.images {
            let name = format!("{i:05}.{}", file.extension().unwrap().display());
            fs::hard_link(file, images.join(&name))
                .or_else(|_| fs::copy(file, images.join(name)).map(drop))
                .unwrap();
        }
        let config = self.config(&images, &folder.path().join("tags.parquet"));
        let report: TagReport =
            vodka_tagger::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
        let speed = report.speed.unwrap();
        // On a processor inference and reading share the cores; elsewhere the slower of the two is the limit.
        let cores = self.cores as f64;
        let limit = match config.provider.is_processor() {
            true => cores / (cores / inference + 1.0 / reading),
            false => inference.min(cores * reading),
        };
        println!(
            "  {:<44} {:9.2}   limit {limit:9.2}  share {:5.3}  network busy {:3.0} %",
            format!("{kind}, end to end"),
            speed.images_per_s,
            speed.images_per_s / limit,
            100.0 * speed.network_busy
        );
        if let Some(peer) = &self.peer {
            println!("  {:<44} {}", format!("{kind}, peer"), self.measure_peer(peer, &images, folder.path()));
        }
    }

    /// What the peer says of itself.
    fn measure_peer(&self, peer: &str, images: &Path, folder: &Path) -> String {
        let mut words = peer.split_whitespace();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg(&self.model).arg(images).arg(folder.join("peer.csv"));
        command.args(["--threads", &self.cores.to_string()]);
        String::from_utf8_lossy(&command.output().unwrap().stdout).trim().to_owned()
    }
}
