//! A night's run in small: thousands of files, some of them broken, and kills; and the memory that it takes.
//!
//! ```sh
//! cargo bench -p vodka-bench-light --bench tagging_endurance
//! ```
//!
//! Tags 2,000 generated files of which 5 % are broken, once undisturbed and once killed twice (`kill -9`), and compares
//! the tables byte for byte. Then tags 500, 2,000 and 8,000 files and draws the memory of each run over its share of the work
//! into `docs/images/tagging-memory.svg`. `VODKA_BENCH_MODEL` names another model than the fixture's. Linux only: memory is
//! read from `/proc`.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where it cannot go on"
)]

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use plotters::prelude::*;
use vodka_bench_light::{Format, photograph, save};
use vodka_stage::Interrupt;
use vodka_tagger::{ProviderChoice, TagConfig, TagEvent};
use vodka_testkit::{fixture, runtime_dir};

/// The first argument of a process that tags.
const CHILD: &str = "tag";

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if arguments.get(1).is_some_and(|word| word == CHILD) {
        return tag(Path::new(&arguments[2]), Path::new(&arguments[3]));
    }
    let folder = tempfile::tempdir().unwrap();
    println!("two kills in a run on 2,000 files, 5 % of them broken");
    let images = generate(folder.path(), 2000);
    let whole = folder.path().join("whole/tags.parquet");
    let undisturbed = Run::start(&images, &whole).finish();
    let parts = folder.path().join("parts/tags.parquet");
    for part in [0.3, 0.7] {
        let killed = Run::start(&images, &parts).until(part);
        println!("  killed after {} of 2000 files, {} of them from before", killed.done, killed.resumed);
    }
    let last = Run::start(&images, &parts).finish();
    println!("  went on after {} files", last.resumed);
    for extension in ["parquet", "pictures.parquet", "skipped.csv"] {
        let bytes = |table: &Path| fs::read(table.with_extension(extension)).unwrap();
        let same = bytes(&parts) == bytes(&whole);
        println!("  STEM.{extension:<18} {}", if same { "the same, byte for byte" } else { "DIFFERENT" });
        assert!(same);
    }
    let skipped = fs::read_to_string(whole.with_extension("skipped.csv")).unwrap();
    println!("  {} files skipped, as {:?}", skipped.lines().count() - 1, skipped.lines().nth(1).unwrap());
    let mut runs = vec![(2000, undisturbed)];
    for count in [500, 8000] {
        let images = generate(&folder.path().join(count.to_string()), count);
        let output = folder.path().join(format!("{count}.parquet"));
        runs.push((count, Run::start(&images, &output).finish()));
    }
    runs.sort_by_key(|(count, _)| *count);
    println!("memory (resident set), MB");
    for (count, run) in &runs {
        let peak = run.memory.iter().map(|(_, mb)| *mb).fold(0.0, f64::max);
        println!("  {count} files: highest {peak:.0}");
    }
    draw(&runs);
}

/// Tags, and says after each batch how many files are done.
fn tag(images: &Path, output: &Path) {
    let model = env::var_os("VODKA_BENCH_MODEL").map_or_else(|| fixture("tagger"), PathBuf::from);
    let (provider, onnxruntime) = ProviderChoice::default().resolve(&runtime_dir());
    let config = TagConfig { provider, onnxruntime, ..TagConfig::new(model, images, output) };
    vodka_tagger::run(&config.plan().unwrap(), &Interrupt::new(), &mut |event| match event {
        TagEvent::Started { total, resumed, .. } => println!("{total} {resumed}"),
        TagEvent::Progress { done, .. } => println!("{done}"),
        TagEvent::Skipped { .. } => {}
    })
    .unwrap();
}

/// A folder of small pictures in three formats; every twentieth is cut off, empty or no picture.
fn generate(folder: &Path, count: usize) -> PathBuf {
    let images = folder.join("images");
    fs::create_dir_all(&images).unwrap();
    for i in 0..count {
        let format = Format::ALL[i % 3];
        let path = images.join(format!("{i:05}.{}", format.extension()));
        let seed = i as u32;
        save(&photograph(160 + seed % 97, 120 + seed % 61, seed), &path, format).unwrap();
        if i % 20 == 7 {
            let whole = fs::read(&path).unwrap();
            match i / 20 % 3 {
                0 => fs::write(&path, &whole[..whole.len() / 2]),
                1 => fs::write(&path, b""),
                _ => fs::write(&path, b"<html>404</html>"),
            }
            .unwrap();
        }
    }
    images
}

/// A process that tags.
struct Run {
    child: Child,
    total: usize,
    resumed: usize,
    done: usize,
    /// The share of the files that are done, and the memory in MB.
    memory: Vec<(f64, f64)>,
}

impl Run {
    fn start(images: &Path, output: &Path) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.arg(CHILD).arg(images).arg(output).stdout(Stdio::piped());
        Self { child: command.spawn().unwrap(), total: 0, resumed: 0, done: 0, memory: Vec::new() }
    }

    fn finish(self) -> Self {
        let mut run = self.until(2.0);
        assert!(run.child.wait().unwrap().success());
        run
    }

    /// Kills it when this share is done.
    fn until(mut self, share: f64) -> Self {
        let said = BufReader::new(self.child.stdout.take().unwrap());
        for line in said.lines() {
            let numbers: Vec<usize> = line.unwrap().split(' ').map(|word| word.parse().unwrap()).collect();
            match numbers[..] {
                [total, resumed] => (self.total, self.resumed) = (total, resumed),
                _ => self.done = numbers[0],
            }
            let now = self.done as f64 / self.total as f64;
            self.memory.push((now, self.resident_mb()));
            if now >= share {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                break;
            }
        }
        self
    }

    fn resident_mb(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kb = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kb.map_or(0.0, |kb| kb.trim().parse::<f64>().unwrap() / 1000.0)
    }
}

fn draw(runs: &[(usize, Run)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/images/tagging-memory.svg");
    let highest = runs.iter().flat_map(|(_, run)| &run.memory).map(|(_, mb)| *mb).fold(0.0, f64::max);
    let area = SVGBackend::new(&path, (720, 320)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let mut chart = ChartBuilder::on(&area)
        .caption("Memory of a tagging run", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..100.0, 0.0..highest * 1.3)
        .unwrap();
    chart.configure_mesh().x_desc("files done, %").y_desc("resident set, MB").draw().unwrap();
    for (i, (count, run)) in runs.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        let points = run.memory.iter().filter(|(_, mb)| *mb > 0.0).map(|(share, mb)| (100.0 * share, *mb));
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))
            .unwrap()
            .label(format!("{count} files"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw().unwrap();
    area.present().unwrap();
    println!("drawn in {}", path.canonicalize().unwrap().display());
}
