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
//! | `VODKA_BENCH_PROFILE` | profile from end to end | `reference` |
//! | `VODKA_BENCH_FORMATS` | `jpg`, `png`, `webp` | all three |
//! | `VODKA_BENCH_FILES` | pictures to measure with instead of generated ones | none |
//! | `VODKA_BENCH_TURNS` | how often inference and end to end take turns | 1 |
//! | `VODKA_BENCH_PEER` | command that measures a peer on the same files: `python peer_tag.py` | none |

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where it cannot go on"
)]

use std::{
    env, fs,
    hint::black_box,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use vodka_bench_light::{Format, photograph, save};
use vodka_images::{DecodeOptions, RgbImage, decode_bytes, decode_with, measure};
use vodka_stage::{Interrupt, hash_bytes};
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
    megapixels: Vec<f64>,
    batch: usize,
    profile: Profile,
    formats: Vec<Format>,
    files: Vec<PathBuf>,
    turns: usize,
    peer: Option<String>,
    cores: usize,
}

impl Bench {
    fn from_environment() -> Self {
        let set = |name: &str| env::var(format!("VODKA_BENCH_{name}")).ok().filter(|value| !value.is_empty());
        let number = |name: &str, default: usize| set(name).map_or(default, |value| value.parse().unwrap());
        let megapixels = set("MEGAPIXELS").unwrap_or("1 12".to_owned());
        let formats = set("FORMATS").unwrap_or("jpg png webp".to_owned());
        let is_wanted = |format: &Format| formats.split_whitespace().any(|name| name == format.extension());
        Self {
            model: set("MODEL").map_or_else(|| fixture("tagger"), PathBuf::from),
            provider: set("PROVIDER").map_or(ProviderChoice::default(), |name| name.parse().unwrap()),
            images: number("IMAGES", 240),
            megapixels: megapixels.split_whitespace().map(|word| word.parse().unwrap()).collect(),
            batch: number("BATCH", 0),
            profile: set("PROFILE").map_or(Profile::default(), |name| name.parse().unwrap()),
            formats: Format::ALL.into_iter().filter(is_wanted).collect(),
            files: set("FILES").unwrap_or_default().split_whitespace().map(Into::into).collect(),
            turns: number("TURNS", 1),
            peer: set("PEER"),
            cores: thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

fn main() {
    let bench = Bench::from_environment();
    let folder = tempfile::tempdir().unwrap();
    println!("tagging, images per second, {} cores, model {}", bench.cores, bench.model.display());
    for file in &bench.files {
        bench.measure(&file.file_name().unwrap().to_string_lossy(), file);
    }
    for megapixels in bench.megapixels.iter().filter(|_| bench.files.is_empty()) {
        for format in &bench.formats {
            let format = *format;
            let kind = format!("{megapixels} MP {}", format.extension());
            let file = folder.path().join(format!("{megapixels}.{}", format.extension()));
            let (width, height) = sides(*megapixels);
            save(&photograph(width, height, 1 + *megapixels as u32), &file, format).unwrap();
            bench.measure(&kind, &file);
        }
    }
}

/// A picture of 4 to 3.
fn sides(megapixels: f64) -> (u32, u32) {
    let height = (megapixels * 1e6 * 3.0 / 4.0).sqrt();
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

/// The sum of what so many threads reach at the same time.
fn on_threads(threads: usize, rate: impl Fn() -> f64 + Sync) -> f64 {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(&rate)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

impl Bench {
    fn config(&self, images: &Path, output: &Path) -> TagConfig {
        let (provider, onnxruntime) = self.provider.resolve(&runtime_dir());
        let (batch, profile) = (self.batch, self.profile);
        TagConfig { provider, onnxruntime, batch, profile, ..TagConfig::new(&self.model, images, output) }
    }

    fn measure(&self, kind: &str, file: &Path) {
        let reading = self.reading(kind, file);
        for _ in 0..self.turns {
            let inference = self.inference();
            println!("  {:<44} {inference:9.2}", "inference alone (ready tensors)");
            self.end_to_end(kind, file, inference, reading);
        }
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
        on_threads(plan.lanes, lane)
    }

    fn on_all_cores(&self, rate: impl Fn() -> f64 + Sync) -> f64 {
        on_threads(self.cores, rate)
    }

    /// Reading by itself, on one core; and all that the stage does to read a picture, on all cores at the same time, which is
    /// what it tells, for the profile from end to end.
    fn reading(&self, kind: &str, file: &Path) -> f64 {
        let (provider, onnxruntime) = self.provider.resolve(&runtime_dir());
        let mut reading = 0.0;
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
            let whole = || {
                let bytes = fs::read(file).unwrap();
                let decoded = decode_bytes(&bytes, &options).unwrap();
                black_box((hash_bytes(&bytes), measure(&decoded.picture), tagger.prepare_decoded(&decoded)));
            };
            let all = self.on_all_cores(|| rate(whole));
            println!("  {:<44} {all:9.2}", format!("{kind}, hashed and measured, all cores, {profile}"));
            if profile == self.profile {
                reading = all;
            }
        }
        let picture = decode_with(file, &DecodeOptions::default()).unwrap().picture;
        let measured = rate(|| {
            black_box(measure(&picture));
        });
        println!("  {:<44} {measured:9.2}", format!("{kind}, one core, measures"));
        reading
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
        let limit = match config.provider.is_processor() {
            true => 1.0 / (1.0 / inference + 1.0 / reading),
            false => inference.min(reading),
        };
        println!(
            "  {:<44} {:9.2}   limit {limit:9.2}  share {:5.3}  of inference {:5.3}  network busy {:3.0} %",
            format!("{kind}, end to end, {}", self.profile),
            speed.images_per_s,
            speed.images_per_s / limit,
            speed.images_per_s / inference,
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
        let output =
            command.output().unwrap_or_else(|error| panic!("cannot start the peer `{peer}`: {error}"));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the peer ends with {}:\n{said}", output.status);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}
