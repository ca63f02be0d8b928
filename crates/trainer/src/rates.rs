//! Learning-rate schedules, as `get_scheduler` of diffusers 0.38 has them.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// The shape of a schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// The learning rate all along, without a warm-up.
    #[default]
    Constant,
    /// From 0 up to the learning rate, and down to 0 in a straight line.
    Linear,
    /// From 0 up to the learning rate, and down to 0 along half a cosine.
    Cosine,
    /// From 0 up to the learning rate, and down to [`POLYNOMIAL_END`] in a straight line (power 1).
    Polynomial,
}

/// The learning rate that a polynomial schedule ends with.
pub const POLYNOMIAL_END: f64 = 1e-7;

/// A schedule; steps are batches, as in EveryDream2, whether or not each is an optimizer step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateSchedule {
    /// Its shape.
    pub shape: Shape,
    /// Steps from 0 to the full rate; none with [`Shape::Constant`].
    pub warmup_steps: u64,
    /// Steps until the end of the way down, warm-up included.
    pub decay_steps: u64,
}

impl RateSchedule {
    /// The learning rate of a step, counted from 0, where `lr` is the full one.
    pub fn rate(&self, lr: f64, step: u64) -> f64 {
        let Self { shape, warmup_steps, decay_steps } = *self;
        if shape == Shape::Constant {
            return lr;
        }
        if step < warmup_steps {
            return lr * (step as f64 / warmup_steps as f64);
        }
        // How much of the way down is done.
        let way = decay_steps.saturating_sub(warmup_steps).max(1) as f64;
        let done = (step - warmup_steps) as f64 / way;
        match shape {
            Shape::Constant => lr,
            Shape::Linear => lr * (1.0 - done).max(0.0),
            Shape::Cosine if done >= 1.0 => 0.0,
            Shape::Cosine => lr * 0.5 * (1.0 + (PI * done).cos()),
            Shape::Polynomial => POLYNOMIAL_END + (lr - POLYNOMIAL_END) * (1.0 - done).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use vodka_testkit::Case;

    use super::*;

    #[test]
    fn schedules_are_those_of_diffusers() {
        let case = Case::open("trainer/optimizers");
        for (name, shape) in [
            ("constant", Shape::Constant),
            ("linear", Shape::Linear),
            ("cosine", Shape::Cosine),
            ("polynomial", Shape::Polynomial),
        ] {
            let schedule = RateSchedule { shape, warmup_steps: 10, decay_steps: 150 };
            // In millionths; beyond its end a cosine would rise again.
            let steps = if shape == Shape::Cosine { 150 } else { 160 };
            let mut rates: Vec<_> = (0..160).map(|step| (schedule.rate(2e-6, step) * 1e6) as f32).collect();
            rates[steps..].copy_from_slice(&case.array(&format!("rates/{name}")).data[steps..]);
            case.check(&format!("rates/{name}"), &rates, &[160]);
        }
    }

    #[test]
    fn everydream2s_automatic_cosine_ends_at_a_quarter() {
        let steps = 1000;
        let decay_steps = steps * 3 / 2;
        let schedule = RateSchedule { shape: Shape::Cosine, warmup_steps: decay_steps / 50, decay_steps };
        assert!((schedule.rate(1.0, steps) - 0.26).abs() < 0.01, "{}", schedule.rate(1.0, steps));
        assert_eq!(schedule.rate(1.0, 10 * steps), 0.0);
    }
}
