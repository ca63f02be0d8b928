//! Optimizers over named parameters: how gradients become steps.
//!
//! Each follows its original to the order of operations, so that 20 steps agree to the last bits of 32-bit floats
//! (`fixtures/trainer/optimizers`). All state is tensors on the parameters' device and a few numbers, and goes into the
//! training state as it is.

use std::array;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};
use vodka_sd15::native;

mod adamw;
mod adamw8bit;
mod dadapt_adam;
mod guard;
mod lion;
mod prodigy;

pub use adamw8bit::dynamic_map;
pub use guard::Guard;

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
    counters: Counters,
    /// For codes of 8 bits.
    maps: Option<adamw8bit::Maps>,
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

/// The same on the device, 64-bit and without axes: how far an optimizer has come, only the device knows, since steps
/// with infinite gradients are not taken.
#[derive(Debug)]
struct Counters {
    steps: Tensor,
    d: Tensor,
    d_max: Tensor,
    numerator: Tensor,
}

impl Counters {
    fn new(numbers: Numbers, device: Device) -> Self {
        let number = |value: f64| Tensor::full([], value, (Kind::Double, device));
        let Numbers { steps, d, d_max, numerator } = numbers;
        Self { steps: number(steps as f64), d: number(d), d_max: number(d_max), numerator: number(numerator) }
    }

    /// Waits for the device.
    fn read(&self) -> Numbers {
        let [steps, d, d_max, numerator] =
            [&self.steps, &self.d, &self.d_max, &self.numerator].map(|number| number.double_value(&[]));
        Numbers { steps: steps as i64, d, d_max, numerator }
    }
}

/// A parameter that has a gradient.
struct Moving<'p> {
    parameter: &'p mut Parameter,
    gradient: Tensor,
}

impl Adaptation {
    /// What the rate of the step after `steps` is multiplied by, so that means that began with 0 make full steps.
    fn bias_correction(self, [beta1, beta2]: [f64; 2], steps: &Tensor) -> Tensor {
        match self.use_bias_correction {
            true => correction(beta2, steps).sqrt() / correction(beta1, steps),
            false => steps.ones_like(),
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
        let parameters: Vec<_> = parameters.into_iter().map(parameter).collect();
        let device = parameters.first().map_or(Device::Cpu, |parameter| parameter.value.device());
        let numbers = Numbers { steps: 0, d, d_max: d, numerator: 0.0 };
        let maps = (settings.method == Method::AdamW8bit).then(|| adamw8bit::Maps::new(device));
        Self { settings, parameters, counters: Counters::new(numbers, device), maps }
    }

    /// Its settings.
    pub fn settings(&self) -> &OptimizerSettings {
        &self.settings
    }

    /// The parameters and their state, to be saved or overwritten with what was saved.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// What it remembers beside tensors. Waits for the device.
    pub fn numbers(&self) -> Numbers {
        self.counters.read()
    }

    /// Goes on from numbers that were saved; the tensors are overwritten through [`Optimizer::parameters`].
    pub fn restore(&mut self, numbers: Numbers) {
        self.counters = Counters::new(numbers, self.counters.steps.device());
    }

    /// Changes every parameter along its gradient, with this learning rate; those without a gradient stay as they are.
    ///
    /// D-Adaptation and Prodigy take no step while all gradients or the learning rate are 0.
    pub fn step(&mut self, lr: f64) {
        self.step_guarded(lr, &Guard::open(self.counters.steps.device()));
    }

    /// The same, where the guard lets it: nothing changes with gradients that are not finite. The host does not wait for
    /// the device.
    pub fn step_guarded(&mut self, lr: f64, guard: &Guard) {
        no_grad(|| self.step_without_grad(lr, guard));
    }

    fn step_without_grad(&mut self, lr: f64, guard: &Guard) {
        let settings = OptimizerSettings { lr, ..self.settings };
        let adapts = settings.method.adaptation().is_some();
        let mut moving: Vec<_> = with_gradient(&mut self.parameters).collect();
        if moving.is_empty() || adapts && lr <= 0.0 {
            return;
        }
        if settings.method != Method::AdamW {
            let gradients: Vec<_> = moving.iter().map(|moving| moving.gradient.shallow_clone()).collect();
            guard.clean(&gradients);
        }
        let counters = &mut self.counters;
        let stepped = match settings.method {
            Method::AdamW => {
                adamw::step(&mut moving, &counters.steps, guard, &settings);
                guard.ok.shallow_clone()
            }
            Method::AdamW8bit => {
                let maps = self.maps.as_ref().expect("they were made with the optimizer");
                adamw8bit::step(&moving, &counters.steps, guard, &settings, maps);
                guard.ok.shallow_clone()
            }
            Method::Lion => {
                moving.iter_mut().for_each(|one| lion::update(one, &counters.steps, guard, &settings));
                guard.ok.shallow_clone()
            }
            Method::DAdaptAdam(adaptation) => {
                dadapt_adam::step(&mut moving, counters, guard, &settings, adaptation)
            }
            Method::Prodigy(adaptation) => prodigy::step(&mut moving, counters, guard, &settings, adaptation),
        };
        counters.steps += stepped;
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        self.clear_gradients(false);
    }

    /// Forgets all gradients, or sets them to 0 where they must `keep` their places.
    fn clear_gradients(&mut self, keep: bool) {
        let values: Vec<_> =
            self.parameters.iter().map(|parameter| parameter.value.shallow_clone()).collect();
        native::clear_gradients(&values, keep).expect("gradients of one device");
    }

    /// The gradients that there are.
    pub fn gradients(&self) -> Vec<Tensor> {
        self.parameters.iter().map(|parameter| parameter.value.grad()).filter(Tensor::defined).collect()
    }

    /// Shrinks all gradients by one factor where their norm is more than `max_norm`, as they are.
    pub(crate) fn clip_gradients(&self, max_norm: f64) {
        no_grad(|| {
            let gradients = self.gradients();
            let Some(norm) = guard::norm(&gradients) else { return };
            let factor: Tensor = max_norm / (norm + 1e-6);
            native::scale(&gradients, &factor.clamp_max(1.0)).expect("gradients of one device");
        });
    }
}

/// One network's part in a step.
#[derive(Debug)]
pub struct Part<'o> {
    /// Its optimizer; `None` where it is not trained.
    pub optimizer: Option<&'o mut Optimizer>,
    /// The learning rate.
    pub lr: f64,
    /// The largest norm of its gradients.
    pub max_norm: Option<f64>,
}

/// Steps along the gradients of all parts, and forgets them; or forgets them alone, where one of them or of `losses` is
/// infinite or not a number. Then 1, else 0; 32-bit, without axes. And the norms of both networks' gradients before they
/// are shrunk, without the scale. Nothing waits for the device. With `keep_gradients` they
/// are 0 in their places afterwards.
pub fn step_together(
    parts: [Part<'_>; 2],
    losses: &[Tensor],
    scale: Option<&Tensor>,
    keep_gradients: bool,
) -> (Tensor, [Tensor; 2]) {
    let gradients = parts.each_ref().map(|part| part.optimizer.as_ref().map(|o| o.gradients()));
    let gradients = gradients.map(Option::unwrap_or_default);
    let networks = [0, 1].map(|i| (gradients[i].as_slice(), parts[i].max_norm));
    let guards = no_grad(|| Guard::for_networks(&networks, losses, scale));
    let found_inf = guards[0].0.found_inf.shallow_clone();
    let norms = [0, 1].map(|i| guards[i].1.shallow_clone());
    for (part, (guard, _)) in parts.into_iter().zip(guards) {
        let Some(optimizer) = part.optimizer else { continue };
        optimizer.step_guarded(part.lr, &guard);
        optimizer.clear_gradients(keep_gradients);
    }
    (found_inf, norms)
}

fn with_gradient(parameters: &mut [Parameter]) -> impl Iterator<Item = Moving<'_>> {
    parameters.iter_mut().filter_map(|parameter| {
        let gradient = parameter.value.grad();
        gradient.defined().then_some(Moving { parameter, gradient })
    })
}

/// The state of a parameter, in the order of [`Method::state_of`].
fn parts<'s, const N: usize>(state: &'s mut [(&'static str, Tensor)]) -> [&'s mut Tensor; N] {
    let mut state = state.iter_mut();
    array::from_fn(|_| &mut state.next().expect("a parameter has the state of its method").1)
}

/// `1 - beta^step` for the step after `steps`: what a running mean that began with 0 has to be divided by.
fn correction(beta: f64, steps: &Tensor) -> Tensor {
    1.0 - Tensor::pow_scalar(beta, &(steps + 1.0))
}

/// The sum of one number for each parameter, in 64 bits.
fn total(numbers: &[Tensor]) -> Tensor {
    Tensor::stack(numbers, 0).sum(Kind::Double)
}

#[cfg(test)]
mod tests;
