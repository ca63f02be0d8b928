//! Optimizers over named parameters: how gradients become steps.
//!
//! Each follows its original to the order of operations, so that 20 steps agree to the last bits of 32-bit floats
//! (`fixtures/trainer/optimizers`). All state is tensors on the parameters' device and a few numbers, and goes into the
//! training state as it is.

use std::array;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

mod adamw;
mod adamw8bit;
mod dadapt_adam;
mod lion;
mod prodigy;

pub use adamw8bit::dynamic_map;

/// Which optimizer, and the numbers that only it has.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Loshchilov and Hutter 2019, arXiv:1711.05101, as `torch.optim.AdamW` of torch 2.11.
    AdamW,
    /// The same with 8-bit states in blocks of 256 (Dettmers et al. 2022, arXiv:2110.02861), as `AdamW8bit` of
    /// bitsandbytes 0.50.2, but for the rounding: to the nearest code, as its GPU kernels do.
    #[serde(rename = "adamw8bit")]
    AdamW8bit,
    /// Chen et al. 2023, arXiv:2302.06675, as lion-pytorch 0.2.5.
    Lion,
    /// Defazio and Mishchenko 2023, arXiv:2301.07733, as `DAdaptAdam` of dadaptation 3.2.
    DAdaptAdam(Adaptation),
    /// Mishchenko and Defazio 2024, arXiv:2306.06101, as prodigyopt 1.1.2.
    Prodigy(Adaptation),
}

/// The numbers of the optimizers that find the learning rate themselves; `lr` is then a factor, 1 as a rule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adaptation {
    /// The first estimate of the distance to the solution.
    pub d0: f64,
    /// The estimate grows by this factor at most in one step; infinite: without bound.
    pub growth_rate: f64,
    /// Whether weights decay as in AdamW, rather than through the gradient.
    pub decouple: bool,
    /// Whether Adam's bias correction is on.
    pub use_bias_correction: bool,
    /// Whether the learning rate stays out of Prodigy's estimate, so that a warm-up does not disturb it.
    pub safeguard_warmup: bool,
}

/// What an optimizer is set to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OptimizerSettings {
    /// Which one.
    pub method: Method,
    /// Learning rate, before any schedule.
    pub lr: f64,
    /// Decay rates of the running means of the gradient and of its square (for Lion: of the two uses of the mean).
    pub betas: [f64; 2],
    /// Added to the denominator; Lion has none.
    pub epsilon: f64,
    /// The share, times the learning rate, by which weights shrink in each step.
    pub weight_decay: f64,
}

/// An optimizer over named parameters.
#[derive(Debug)]
pub struct Optimizer {
    settings: OptimizerSettings,
    parameters: Vec<Parameter>,
    numbers: Numbers,
}

/// A parameter and what the optimizer remembers of it.
#[derive(Debug)]
pub struct Parameter {
    /// Its name in the network.
    pub name: String,
    /// The weights themselves.
    pub value: Tensor,
    /// Running means and the like, by name. The kind is `Float`, or `Uint8` for codes.
    pub state: Vec<(&'static str, Tensor)>,
}

/// What an optimizer remembers beside tensors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    /// How many steps it has taken.
    pub steps: i64,
    /// The estimate of the distance to the solution.
    pub d: f64,
    /// The largest estimate so far; Prodigy only.
    pub d_max: f64,
    /// The running numerator of the estimate.
    pub numerator: f64,
}

impl Adaptation {
    /// What the rate of step number `step` is multiplied by, so that means that began with 0 make full steps.
    fn bias_correction(self, [beta1, beta2]: [f64; 2], step: i64) -> f64 {
        match self.use_bias_correction {
            true => correction(beta2, step).sqrt() / correction(beta1, step),
            false => 1.0,
        }
    }
}

impl Method {
    fn adaptation(self) -> Option<Adaptation> {
        match self {
            Self::DAdaptAdam(adaptation) | Self::Prodigy(adaptation) => Some(adaptation),
            Self::AdamW | Self::AdamW8bit | Self::Lion => None,
        }
    }

    /// What the method remembers of a parameter that has not stepped yet.
    fn state_of(self, value: &Tensor) -> Vec<(&'static str, Tensor)> {
        let zeros = |name| (name, value.zeros_like().to_kind(Kind::Float));
        match self {
            Self::AdamW => vec![zeros("exp_avg"), zeros("exp_avg_sq")],
            Self::AdamW8bit => adamw8bit::state_of(value),
            Self::Lion => vec![zeros("exp_avg")],
            Self::DAdaptAdam(_) => vec![zeros("exp_avg"), zeros("exp_avg_sq"), zeros("s")],
            Self::Prodigy(_) => {
                vec![zeros("exp_avg"), zeros("exp_avg_sq"), zeros("s"), ("p0", value.detach().copy())]
            }
        }
    }
}

impl Optimizer {
    /// An optimizer that has not stepped yet, in which the parameters keep the given order.
    pub fn new(parameters: impl IntoIterator<Item = (String, Tensor)>, settings: OptimizerSettings) -> Self {
        let parameter = |(name, value): (String, Tensor)| {
            let state = no_grad(|| settings.method.state_of(&value));
            Parameter { name, value, state }
        };
        let d = settings.method.adaptation().map_or(0.0, |adaptation| adaptation.d0);
        Self {
            settings,
            parameters: parameters.into_iter().map(parameter).collect(),
            numbers: Numbers { steps: 0, d, d_max: d, numerator: 0.0 },
        }
    }

    /// Its settings.
    pub fn settings(&self) -> &OptimizerSettings {
        &self.settings
    }

    /// The parameters and their state, to be saved or overwritten with what was saved.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// What it remembers beside tensors.
    pub fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// Goes on from numbers that were saved; the tensors are overwritten through [`Optimizer::parameters`].
    pub fn restore(&mut self, numbers: Numbers) {
        self.numbers = numbers;
    }

    /// Changes every parameter along its gradient, with this learning rate; those without a gradient stay as they are.
    ///
    /// D-Adaptation and Prodigy take no step while all gradients or the learning rate are 0.
    pub fn step(&mut self, lr: f64) {
        no_grad(|| self.step_without_grad(lr));
    }

    fn step_without_grad(&mut self, lr: f64) {
        let settings = OptimizerSettings { lr, ..self.settings };
        let mut moving: Vec<_> = with_gradient(&mut self.parameters).collect();
        let stepped = match settings.method {
            Method::DAdaptAdam(adaptation) => {
                dadapt_adam::step(&mut moving, &mut self.numbers, &settings, adaptation)
            }
            Method::Prodigy(adaptation) => {
                prodigy::step(&mut moving, &mut self.numbers, &settings, adaptation)
            }
            method @ (Method::AdamW | Method::AdamW8bit | Method::Lion) => {
                let update = match method {
                    Method::AdamW8bit => adamw8bit::update,
                    Method::Lion => lion::update,
                    _ => adamw::update,
                };
                let step = self.numbers.steps + 1;
                moving
                    .iter_mut()
                    .for_each(|(parameter, gradient)| update(parameter, gradient, step, &settings));
                true
            }
        };
        self.numbers.steps += i64::from(stepped);
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        self.parameters.iter_mut().for_each(|parameter| parameter.value.zero_grad());
    }

    /// The gradients that there are.
    fn gradients(&self) -> impl Iterator<Item = Tensor> {
        self.parameters.iter().map(|parameter| parameter.value.grad()).filter(Tensor::defined)
    }

    /// Whether all gradients are finite.
    pub fn gradients_are_finite(&self) -> bool {
        let sums: Vec<_> = self.gradients().map(|gradient| gradient.abs().sum(Kind::Double)).collect();
        sums.is_empty() || Tensor::stack(&sums, 0).sum(Kind::Double).double_value(&[]).is_finite()
    }

    /// The norm of all gradients together; 0 without any.
    pub fn gradient_norm(&self) -> f64 {
        no_grad(|| self.gradient_norm_tensor().map_or(0.0, |norm| norm.double_value(&[])))
    }

    fn gradient_norm_tensor(&self) -> Option<Tensor> {
        let norms: Vec<_> = self.gradients().map(|gradient| gradient.norm()).collect();
        (!norms.is_empty()).then(|| Tensor::stack(&norms, 0).norm())
    }

    /// Shrinks all gradients by one factor where their norm is more than `max_norm`, as
    /// `torch.nn.utils.clip_grad_norm_` does.
    pub fn clip_gradients(&mut self, max_norm: f64) {
        no_grad(|| {
            let Some(norm) = self.gradient_norm_tensor() else { return };
            let factor: Tensor = (max_norm / (norm + 1e-6)).clamp_max(1.0);
            self.gradients().for_each(|mut gradient| {
                let _ = gradient.g_mul_(&factor);
            });
        });
    }
}

fn with_gradient(parameters: &mut [Parameter]) -> impl Iterator<Item = (&mut Parameter, Tensor)> {
    parameters.iter_mut().filter_map(|parameter| {
        let gradient = parameter.value.grad();
        gradient.defined().then_some((parameter, gradient))
    })
}

/// The state of a parameter, in the order of [`Method::state_of`].
fn parts<'s, const N: usize>(state: &'s mut [(&'static str, Tensor)]) -> [&'s mut Tensor; N] {
    let mut state = state.iter_mut();
    array::from_fn(|_| &mut state.next().expect("a parameter has the state of its method").1)
}

/// `1 - beta^step`: what a running mean that began with 0 has to be divided by.
fn correction(beta: f64, step: i64) -> f64 {
    1.0 - beta.powf(step as f64)
}

/// The sum of one number for each parameter, in 64 bits; one look at the device.
fn total(numbers: &[Tensor]) -> f64 {
    match numbers.is_empty() {
        true => 0.0,
        false => Tensor::stack(numbers, 0).sum(Kind::Double).double_value(&[]),
    }
}

#[cfg(test)]
mod tests;
