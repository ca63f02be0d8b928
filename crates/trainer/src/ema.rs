//! Running means of the trained weights, which are saved as checkpoints of their own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, no_grad};

use crate::optimizers::Parameter;

/// How the means are made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EmaSettings {
    /// How much of the mean stays in an update.
    pub strength: EmaStrength,
    /// Batches between two updates.
    pub interval: u64,
    /// Whether the first updates take more of the weights: the mean keeps at most (1 + n) / (10 + n) in update n.
    pub warm_up: bool,
    /// Whether the means are kept on the processor, wherever the networks are.
    pub on_processor: bool,
}

/// How much of the mean stays.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmaStrength {
    /// In each update, 0 to 1.
    Decay(f64),
    /// Of the first weights, over the whole run, 0 to 1.
    Target(f64),
}

impl EmaSettings {
    /// How much of the mean stays in update `n`, counted from 0, of a run of so many batches.
    fn decay(&self, n: u64, steps: u64) -> f64 {
        let decay = match self.strength {
            EmaStrength::Decay(decay) => decay,
            EmaStrength::Target(target) => target.powf(self.interval as f64 / steps as f64),
        };
        let most = (1.0 + n as f64) / (10.0 + n as f64);
        if self.warm_up { decay.min(most) } else { decay }
    }
}

/// The means of some parameters.
#[derive(Debug)]
pub struct Ema {
    settings: EmaSettings,
    /// All batches of the run.
    steps: u64,
    updates: u64,
    /// By name: the weights themselves, and their mean.
    means: Vec<(String, Tensor, Tensor)>,
}

impl Ema {
    /// Means that are the weights, in a run of so many batches.
    pub fn new<'p>(
        settings: EmaSettings,
        steps: u64,
        parameters: impl IntoIterator<Item = (String, &'p Parameter)>,
    ) -> Self {
        let device = |value: &Tensor| if settings.on_processor { Device::Cpu } else { value.device() };
        let mean = |(name, parameter): (String, &Parameter)| {
            let value = parameter.value.detach();
            let mean = value.to_device(device(&value)).copy();
            (name, value, mean)
        };
        Self { settings, steps, updates: 0, means: parameters.into_iter().map(mean).collect() }
    }

    /// How many updates there were.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The means, to be saved or overwritten with what was saved; and then how many updates there were.
    pub fn means(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.means.iter().map(|(name, _, mean)| (name.as_str(), mean))
    }

    /// Takes the means from these weights.
    ///
    /// # Errors
    /// The name of a weight that is not among them, or has another shape.
    pub fn start_from(&mut self, weights: &BTreeMap<String, Tensor>) -> Result<(), String> {
        for (name, _, mean) in &mut self.means {
            let weight = weights.get(name).filter(|weight| weight.size() == mean.size()).ok_or(&*name)?;
            no_grad(|| mean.copy_(&weight.to_device(mean.device())));
        }
        Ok(())
    }

    /// Goes on after so many updates.
    pub fn restore(&mut self, updates: u64) {
        self.updates = updates;
    }

    /// Updates the means where an update is due between the batches `before` and `done`.
    pub fn update(&mut self, before: u64, done: u64) {
        if done / self.settings.interval == before / self.settings.interval {
            return;
        }
        let weight = 1.0 - self.settings.decay(self.updates, self.steps);
        self.updates += 1;
        no_grad(|| {
            for (_, value, mean) in &mut self.means {
                let _ = mean.lerp_(&value.to_device(mean.device()), weight);
            }
        });
    }

    /// Does something while the weights are their means (and the means the weights). They change places one by one, which
    /// takes memory for the largest alone; also after a panic they are as before.
    pub fn in_place<R>(&self, act: impl FnOnce() -> R) -> R {
        let mut swapped = Swapped { ema: self, count: 0 };
        while swapped.count < self.means.len() {
            self.swap(swapped.count);
            swapped.count += 1;
        }
        act()
    }

    fn swap(&self, index: usize) {
        let (_, value, mean) = &self.means[index];
        no_grad(|| {
            let live = value.detach().copy();
            value.shallow_clone().copy_(mean);
            mean.shallow_clone().copy_(&live);
        });
    }
}

/// The first means of some, in the place of their weights until this is dropped.
struct Swapped<'e> {
    ema: &'e Ema,
    count: usize,
}

impl Drop for Swapped<'_> {
    fn drop(&mut self) {
        (0..self.count).for_each(|index| self.ema.swap(index));
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    const SETTINGS: EmaSettings =
        EmaSettings { strength: EmaStrength::Decay(0.75), interval: 2, warm_up: false, on_processor: true };

    fn value(tensor: &Tensor) -> f64 {
        tensor.double_value(&[0])
    }

    #[test]
    fn means_follow_the_weights_slowly_and_give_them_back() {
        let weights = Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let parameter = Parameter { name: "w".into(), value: weights.shallow_clone(), state: Vec::new() };
        let mut ema = Ema::new(SETTINGS, 100, [("unet/w".to_owned(), &parameter)]);
        let _ = no_grad(|| weights.shallow_clone().fill_(4.0));
        ema.update(0, 1);
        assert_eq!(value(ema.means().next().unwrap().1), 0.0, "not due");
        ema.update(1, 2);
        ema.update(2, 4);
        // 0, 1, 1.75
        assert_eq!((value(ema.means().next().unwrap().1), ema.updates()), (1.75, 2));
        assert_eq!(ema.in_place(|| value(&weights)), 1.75);
        assert_eq!(value(&weights), 4.0);
        let panics = || ema.in_place(|| panic!("{}", value(&weights)));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        assert_eq!((value(&weights), value(ema.means().next().unwrap().1)), (4.0, 1.75));
    }

    #[test]
    fn strength_is_for_the_whole_run_and_warm_up_begins_fast() {
        let target = EmaSettings { strength: EmaStrength::Target(0.25), ..SETTINGS };
        let all: f64 = (0..50).map(|n| target.decay(n, 100)).product();
        assert!((all - 0.25).abs() < 1e-12, "{all}");
        let warm = EmaSettings { warm_up: true, ..SETTINGS };
        assert_eq!([0, 8, 1000].map(|n| warm.decay(n, 100)), [0.1, 0.5, 0.75]);
    }
}
