//! What a run says of itself while it goes: losses, a log, TensorBoard's events, graphs, and how fast it is.

mod chart;
mod events;
mod growing;
mod log;
mod losses;
mod meter;
mod own;

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::json;
use vodka_stage::ContentHash;

pub(crate) use chart::{Line, Marks, Plot};
pub(crate) use events::Value;
pub(crate) use losses::{LossesFile, Row, ValidationRow, Validations, csv_cell};
pub(crate) use meter::Meter;
pub use meter::{Phase, Speed, Spent};

use crate::{Result, TrainPlan, validation::STABILIZED};
use events::Events;
use log::Log;

/// `log.jsonl`, the event file, and the clock.
#[derive(Debug)]
pub(crate) struct Watch {
    log: Log,
    events: Events,
    /// The clock.
    pub meter: Meter,
    /// How fast it went at the last step.
    pub speed: Speed,
    /// Steps between two entries of the event file.
    log_step: u64,
    /// What the gradients of UNet and text encoder are clipped to.
    max_norms: [Option<f64>; 2],
    /// The losses since the last entry.
    losses: Vec<f32>,
}

/// What a step is told with, beside its line in `losses.csv`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Extra {
    /// Its pictures.
    pub pictures: u64,
    /// The norms of the gradients of UNet and text encoder before they are clipped; at the last batch of an optimizer
    /// step, where they are asked for.
    pub norms: [Option<f64>; 2],
    /// What losses are multiplied by for fp16, after the step.
    pub grad_scale: Option<f32>,
}

impl Watch {
    /// Goes on after the steps whose losses are given, or starts anew.
    pub fn start(plan: &TrainPlan, key: ContentHash, done: Option<&[f32]>, meter: Meter) -> Result<Self> {
        let steps = done.map(|losses| losses.len() as u64);
        let losses = done.unwrap_or_default();
        let since = losses.len() / plan.log_step as usize * plan.log_step as usize;
        Ok(Self {
            max_norms: plan.settings.max_norms(),
            log: Log::start(&plan.output, key, steps)?,
            events: Events::start(&plan.event_folder(key), key, steps, time_s())?,
            meter,
            speed: Speed::default(),
            log_step: plan.log_step,
            losses: losses[since..].to_vec(),
        })
    }

    /// A batch is done.
    pub fn step(&mut self, row: Row, extra: Extra) -> Result<Speed> {
        let Row { epoch, step, loss, rates: [unet, text_encoder] } = row;
        let speed = self.meter.step(extra.pictures);
        self.speed = speed;
        let mut line = json!({"event": "step", "epoch": epoch, "step": step, "loss": loss, "lr_unet": unet,
            "lr_text_encoder": text_encoder, "pictures": extra.pictures});
        extra.grad_scale.into_iter().for_each(|scale| line["grad_scale"] = scale.into());
        let mut values = Vec::new();
        for (i, network) in ["unet", "te"].into_iter().enumerate() {
            let Some(norm) = extra.norms[i] else { continue };
            line[format!("grad_norm_{network}")] = norm.into();
            let mut scalar = |name: &str, norm: f64| {
                values.push((format!("optimizer/{network}_{name}"), Value::Scalar(norm as f32)));
            };
            if self.max_norms[i].is_some() {
                scalar("pre_clip_norm", norm);
            }
            scalar("grad_norm", self.max_norms[i].map_or(norm, |most| norm.min(most)));
        }
        line["time"] = json!(speed);
        self.log.append(&line)?;
        self.losses.push(loss);
        if step.is_multiple_of(self.log_step) {
            let mean = finite_mean(&std::mem::take(&mut self.losses));
            let mut scalar = |tag: &str, value: f32| values.push((tag.to_owned(), Value::Scalar(value)));
            scalar("hyperparameter/lr unet", unet as f32);
            scalar("hyperparameter/lr text encoder", text_encoder as f32);
            extra.grad_scale.into_iter().for_each(|scale| scalar("hyperparameter/grad scale", scale));
            scalar("loss/log_step", mean);
            scalar("performance/images per second", speed.images_per_s as f32);
            // In MiB, as there.
            let vram = speed.gpu_peak_bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
            vram.into_iter().for_each(|mib| scalar("performance/vram", mib as f32));
        }
        if !values.is_empty() {
            self.events.append(step, time_s(), &values)?;
        }
        Ok(speed)
    }

    /// All sets were validated on.
    pub fn validated(&mut self, rows: &[ValidationRow]) -> Result<()> {
        let mut values = Vec::new();
        for ValidationRow { epoch, step, set, loss } in rows {
            self.log.append(
                &json!({"event": "validation", "epoch": epoch, "step": step, "set": set, "loss": loss}),
            )?;
            values.push((format!("loss/{set}"), Value::Scalar(*loss)));
        }
        let Some(first) = rows.first() else { return Ok(()) };
        // As there: of all sets, that of training pictures included, where there is more than one.
        if rows.len() > 1 {
            let losses: Vec<_> = rows.iter().map(|row| row.loss).collect();
            values.push(("loss/_all_val_combined".to_owned(), Value::Scalar(mean(&losses))));
        }
        self.events.append(first.step, time_s(), &values)
    }

    /// The loss of a set has begun to rise.
    pub fn diverges(&mut self, step: u64, set: &str) -> Result<()> {
        self.log.append(&json!({"event": "diverges", "step": step, "set": set}))
    }

    /// A checkpoint is written.
    pub fn saved(&mut self, step: u64, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.log.append(&json!({"event": "checkpoint", "step": step, "name": name}))
    }

    /// An epoch is done.
    pub fn epoch(&mut self, epoch: u64, step: u64, loss: f32, minutes: f64) -> Result<()> {
        let line = json!({"event": "epoch", "epoch": epoch, "step": step, "loss": loss,
            "time": {"minutes": minutes}});
        self.log.append(&line)?;
        let values = [("loss/epoch", loss), ("performance/minutes per epoch", minutes as f32)];
        let values = values.map(|(tag, value)| (tag.to_owned(), Value::Scalar(value)));
        self.events.append(step, time_s(), &values)
    }

    /// A picture was sampled.
    pub fn sampled(&mut self, step: u64, tag: String, picture: Value) -> Result<()> {
        self.events.append(step, time_s(), &[(tag, picture)])
    }

    /// Makes all of it survive a power cut.
    pub fn sync(&self) -> Result<()> {
        self.log.sync()?;
        self.events.sync()
    }
}

/// Seconds since 1970.
fn time_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The mean of some losses.
pub(crate) fn mean(losses: &[f32]) -> f32 {
    (losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / losses.len() as f64) as f32
}

/// The mean of those losses that are finite: a step that was left out has none.
pub(crate) fn finite_mean(losses: &[f32]) -> f32 {
    mean(&losses.iter().copied().filter(|loss| loss.is_finite()).collect::<Vec<_>>())
}

/// The graph of a run's losses.
pub(crate) fn loss_graph(name: &str, losses: &[f32], sets: &[(&str, Vec<(u64, f32)>)]) -> Plot {
    let points = |losses: &[f32]| {
        let numbered = losses.iter().enumerate().map(|(i, loss)| ((i + 1) as f64, f64::from(*loss)));
        numbered.filter(|(_, loss)| loss.is_finite()).collect::<Vec<_>>()
    };
    let smooth: Vec<_> = smoothed(losses, losses.len() / 40).map(|loss| loss as f32).collect();
    let mut lines = vec![
        Line { label: "training".into(), marks: Marks::Band, points: points(losses) },
        Line { label: "training, smoothed".into(), marks: Marks::Line, points: points(&smooth) },
    ];
    for (name, values) in sets {
        let label = match *name {
            STABILIZED => "training pictures, stabilised".to_owned(),
            name => format!("validation: {name}"),
        };
        let points = values.iter().map(|(step, loss)| (*step as f64, f64::from(*loss))).collect();
        lines.push(Line { label, marks: Marks::Points, points });
    }
    Plot { title: format!("Loss of {name}"), x: "step".into(), y: "loss".into(), logarithmic: false, lines }
}

/// Running means that look back over about `window` values, without a bias to the first, as TensorBoard smooths.
pub(crate) fn smoothed(values: &[f32], window: usize) -> impl Iterator<Item = f64> {
    let stays = 1.0 - 1.0 / window.max(1) as f64;
    let mut state = (0.0, 0.0);
    values.iter().map(move |value| {
        if !value.is_finite() {
            return f64::NAN;
        }
        state = (state.0 * stays + f64::from(*value) * (1.0 - stays), state.1 * stays + (1.0 - stays));
        state.0 / state.1
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_a_constant_and_follows_a_step() {
        assert!(smoothed(&[2.0; 9], 4).all(|value| (value - 2.0).abs() < 1e-12));
        let values = [[0.0; 50], [1.0; 50]].concat();
        let smooth: Vec<_> = smoothed(&values, 5).collect();
        assert!(smooth[49] == 0.0 && smooth[52] < 0.5 && smooth[99] > 0.999, "{smooth:?}");
        assert_eq!(smoothed(&[1.0, 2.0], 0).collect::<Vec<_>>(), [1.0, 2.0], "no window, no smoothing");
    }
}
