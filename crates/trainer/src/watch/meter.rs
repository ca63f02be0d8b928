//! How fast a run is, and where its time goes.

use std::{
    cell::Cell,
    collections::VecDeque,
    fs,
    ops::Range,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tch::Device;
use vodka_sd15::native::peak_bytes;

/// What a run does at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Decoding, cropping and reading pictures; making batches; waiting for them.
    Data,
    /// Pictures through the VAE.
    Vae,
    /// Text encoder and UNet, forward and backward.
    Networks,
    /// Clipping, optimizers, running means.
    Optimizer,
    /// Validation.
    Validation,
    /// Sample pictures.
    Samples,
    /// Checkpoints and states.
    Saving,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 7] = [
        Self::Data,
        Self::Vae,
        Self::Networks,
        Self::Optimizer,
        Self::Validation,
        Self::Samples,
        Self::Saving,
    ];

    /// How people are told of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Vae => "VAE",
            Self::Networks => "UNet and text encoder",
            Self::Optimizer => "optimizer",
            Self::Validation => "validation",
            Self::Samples => "samples",
            Self::Saving => "saving",
        }
    }

    /// Whether it is part of a training step.
    const fn trains(self) -> bool {
        matches!(self, Self::Data | Self::Vae | Self::Networks | Self::Optimizer)
    }
}

/// How fast a run is at a step, and what it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Speed {
    /// Pictures trained on in a second over the last steps, waiting for them included; validation, samples and saving are
    /// not.
    pub images_per_s: f64,
    /// Seconds since training began or went on.
    pub elapsed_s: f64,
    /// Seconds until the end, at the pace so far, with all that is beside training.
    pub left_s: f64,
    /// The process's memory; 0 where the system does not tell.
    pub memory_bytes: u64,
    /// The most that the GPU has held for the run so far.
    pub gpu_peak_bytes: Option<u64>,
}

/// How long a phase took altogether.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spent {
    /// What was done.
    pub phase: Phase,
    /// How long it took.
    pub seconds: f64,
}

/// Measures a run.
#[derive(Debug)]
pub(crate) struct Meter {
    clock: Instant,
    book: Book,
    /// A GPU works on its own; where time goes is measured in some steps only, which wait for it.
    gpu: Option<i64>,
    measures: bool,
    /// In the VAE since the phase in hand began, which is not of it.
    vae: Cell<Duration>,
}

impl Meter {
    /// Measures a run on this device, from now on.
    pub fn new(device: Device) -> Self {
        let gpu = if let Device::Cuda(index) = device { Some(index as i64) } else { None };
        Self { clock: Instant::now(), book: Book::default(), gpu, measures: true, vae: Cell::default() }
    }

    /// What follows is this phase.
    pub fn enter(&mut self, phase: Phase) {
        if let Some(gpu) = self.gpu.filter(|_| self.measures) {
            tch::Cuda::synchronize(gpu);
        }
        self.book.enter(self.clock.elapsed(), phase, self.measures);
        self.book.take_out(self.vae.take());
    }

    /// Runs the VAE, in whatever phase.
    pub fn vae<R>(&self, act: impl FnOnce() -> R) -> R {
        let start = self.clock.elapsed();
        let result = act();
        if self.measures {
            self.vae.set(self.vae.get() + (self.clock.elapsed() - start));
        }
        result
    }

    /// Training begins, or goes on, with `left` steps.
    pub fn start(&mut self, left: u64) {
        self.book.start(self.clock.elapsed(), left);
        self.measures = self.gpu.is_none();
    }

    /// These batches, of one optimizer step, begin.
    pub fn begin(&mut self, batches: Range<u64>) {
        self.measures = self.gpu.is_none() || is_measured(batches);
    }

    /// A step with so many pictures is done, and was looked at.
    pub fn step(&mut self, pictures: u64) -> Speed {
        let speed = self.book.step(self.clock.elapsed(), pictures);
        let gpu_peak_bytes = self.gpu.and_then(|index| peak_bytes(Device::Cuda(index as usize)));
        Speed { memory_bytes: memory_bytes(), gpu_peak_bytes, ..speed }
    }

    /// How long each phase took so far; on a GPU: in the steps that were measured.
    pub fn spent(&self) -> Vec<Spent> {
        let spent = self.book.spent(self.clock.elapsed());
        let spent = |phase: Phase| Spent { phase, seconds: spent[phase as usize].as_secs_f64() };
        Phase::ALL.map(spent).into_iter().filter(|spent| spent.seconds > 0.0).collect()
    }
}

/// Batches between two that wait for the GPU.
const EVERY: u64 = 64;

/// Whether one of the batches is one that waits.
fn is_measured(batches: Range<u64>) -> bool {
    batches.end.saturating_sub(1) / EVERY > batches.start.saturating_sub(1) / EVERY
}

/// Times by phase; its clock is an argument.
#[derive(Debug, Default)]
struct Book {
    phase: Option<(Phase, Duration, bool)>,
    /// The phase before it.
    left_phase: Option<Phase>,
    spent: [Duration; Phase::ALL.len()],
    /// In training steps, measured or not.
    training: Duration,
    started: Duration,
    left: u64,
    done: u64,
    /// For each of the last steps the training time at its end, and its pictures.
    recent: VecDeque<(Duration, u64)>,
}

impl Book {
    /// Steps that the pace is told from.
    const RECENT: usize = 50;

    fn enter(&mut self, now: Duration, phase: Phase, measures: bool) {
        if let Some((before, since, measured)) = self.phase {
            let took = now.saturating_sub(since);
            if measured {
                self.spent[before as usize] += took;
            }
            if before.trains() {
                self.training += took;
            }
        }
        self.left_phase = self.phase.map(|(phase, ..)| phase);
        self.phase = Some((phase, now, measures));
    }

    /// Counts so much of the phase that has just ended as the VAE's.
    fn take_out(&mut self, vae: Duration) {
        if let Some(phase) = self.left_phase.filter(|_| vae > Duration::ZERO) {
            let vae = vae.min(self.spent[phase as usize]);
            self.spent[phase as usize] -= vae;
            self.spent[Phase::Vae as usize] += vae;
        }
    }

    /// By phase, with that in hand.
    fn spent(&self, now: Duration) -> [Duration; Phase::ALL.len()] {
        let mut spent = self.spent;
        if let Some((phase, since, true)) = self.phase {
            spent[phase as usize] += now.saturating_sub(since);
        }
        spent
    }

    fn start(&mut self, now: Duration, left: u64) {
        if let Some((phase, _, measured)) = self.phase {
            self.enter(now, phase, measured);
        }
        (self.started, self.left, self.done) = (now, left, 0);
        self.recent = VecDeque::from([(self.training, 0)]);
    }

    fn step(&mut self, now: Duration, pictures: u64) -> Speed {
        if let Some((phase, _, measured)) = self.phase {
            self.enter(now, phase, measured);
        }
        self.done += 1;
        self.left = self.left.saturating_sub(1);
        self.recent.push_back((self.training, pictures));
        if self.recent.len() > Self::RECENT + 1 {
            self.recent.pop_front();
        }
        // The pictures of the first belong to the time before.
        let since = self.recent.front().map_or(Duration::ZERO, |(at, _)| *at);
        let pictures: u64 = self.recent.iter().skip(1).map(|(_, pictures)| pictures).sum();
        let elapsed_s = now.saturating_sub(self.started).as_secs_f64();
        Speed {
            images_per_s: pictures as f64 / (self.training - since).as_secs_f64().max(1e-9),
            elapsed_s,
            left_s: elapsed_s / self.done as f64 * self.left as f64,
            memory_bytes: 0,
            gpu_peak_bytes: None,
        }
    }
}

/// What the process holds in memory, as Linux tells it.
fn memory_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_default() << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn waiting_for_data_counts_and_saving_does_not() {
        let mut book = Book::default();
        book.enter(at(0), Phase::Vae, true);
        book.start(at(10), 4);
        book.enter(at(10), Phase::Data, true);
        book.enter(at(13), Phase::Networks, true);
        let speed = book.step(at(14), 8);
        // Three seconds of waiting and one of work for eight pictures.
        assert_eq!((speed.images_per_s, speed.elapsed_s, speed.left_s), (2.0, 4.0, 12.0));
        book.enter(at(14), Phase::Saving, true);
        book.enter(at(114), Phase::Networks, true);
        let speed = book.step(at(118), 8);
        assert_eq!(speed.images_per_s, 2.0);
        assert_eq!(speed.left_s, 108.0, "but time left has all of it");
        let spent = book.spent(at(120));
        let of = |phase: Phase| spent[phase as usize];
        assert_eq!([Phase::Saving, Phase::Vae, Phase::Networks].map(of), [at(100), at(10), at(7)]);
    }

    #[test]
    fn the_vae_is_counted_by_itself_wherever_it_runs() {
        let mut book = Book::default();
        book.enter(at(0), Phase::Data, true);
        book.enter(at(10), Phase::Networks, true);
        book.take_out(at(7));
        let spent = book.spent(at(12));
        let of = |phase: Phase| spent[phase as usize];
        assert_eq!([Phase::Data, Phase::Vae, Phase::Networks].map(of), [at(3), at(7), at(2)]);
    }

    #[test]
    fn the_pace_is_that_of_the_last_steps() {
        let mut book = Book::default();
        book.enter(at(0), Phase::Networks, true);
        book.start(at(0), 1000);
        let slow: Vec<_> = (1..=200).map(|step| book.step(at(step * 10), 4).images_per_s).collect();
        let fast: Vec<_> = (1..=50).map(|step| book.step(at(2000 + step), 4).images_per_s).collect();
        assert_eq!((slow[199], fast[49]), (0.4, 4.0));
    }

    #[test]
    fn one_batch_of_sixty_four_is_waited_for_however_they_are_grouped() {
        let measured = |size: u64| {
            let groups = (0..320 / size).map(|group| 1 + group * size..1 + (group + 1) * size);
            groups.filter(|group| is_measured(group.clone())).map(|group| group.end - 1).collect::<Vec<_>>()
        };
        assert_eq!(measured(1), [64, 128, 192, 256, 320]);
        assert_eq!(measured(10), [70, 130, 200, 260, 320]);
    }

    #[test]
    fn the_processs_memory_is_known() {
        assert!(memory_bytes() > 1 << 20);
    }
}
