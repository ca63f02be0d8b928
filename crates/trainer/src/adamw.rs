//! AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), as `torch.optim.AdamW` of torch 2.11 computes it.

use tch::{Kind, Tensor, no_grad};

use crate::AdamWSettings;

/// An optimizer with 32-bit state over named parameters.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    /// How often [`AdamW::step`] was called.
    steps: i64,
    parameters: Vec<Parameter>,
}

/// A parameter and its running means.
#[derive(Debug)]
pub struct Parameter {
    /// Its name in the network.
    pub name: String,
    /// The weights themselves.
    pub value: Tensor,
    /// The running mean of the gradient.
    pub mean: Tensor,
    /// The running mean of the gradient's square.
    pub square: Tensor,
}

impl AdamW {
    /// An optimizer that has not stepped yet, in which the parameters keep the given order.
    pub fn new(parameters: impl IntoIterator<Item = (String, Tensor)>, settings: AdamWSettings) -> Self {
        let parameter = |(name, value): (String, Tensor)| {
            let (mean, square) = no_grad(|| (value.zeros_like(), value.zeros_like()));
            Parameter { name, value, mean, square }
        };
        Self { settings, steps: 0, parameters: parameters.into_iter().map(parameter).collect() }
    }

    /// How many steps were taken.
    pub fn steps(&self) -> i64 {
        self.steps
    }

    /// The parameters and their state, to be saved.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The same to be restored, and how many steps they have taken.
    pub fn restore(&mut self, steps: i64) -> &mut [Parameter] {
        self.steps = steps;
        &mut self.parameters
    }

    /// Changes every parameter along its gradient; those without one stay as they are.
    pub fn step(&mut self) {
        self.steps += 1;
        for parameter in &mut self.parameters {
            let gradient = parameter.value.grad();
            if gradient.defined() {
                no_grad(|| update(parameter, &gradient, self.steps, &self.settings));
            }
        }
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        self.parameters.iter_mut().for_each(|parameter| parameter.value.zero_grad());
    }

    /// Whether all gradients are finite.
    pub fn gradients_are_finite(&self) -> bool {
        let gradients = self.parameters.iter().map(|parameter| parameter.value.grad());
        let sums: Vec<_> =
            gradients.filter(Tensor::defined).map(|gradient| gradient.abs().sum(Kind::Double)).collect();
        sums.is_empty() || Tensor::stack(&sums, 0).sum(Kind::Double).double_value(&[]).is_finite()
    }
}

/// One parameter's step number `step`, counted from 1, in torch's order of operations.
fn update(parameter: &mut Parameter, gradient: &Tensor, step: i64, settings: &AdamWSettings) {
    let AdamWSettings { lr, betas: [beta1, beta2], epsilon, weight_decay } = *settings;
    let Parameter { value, mean, square, .. } = parameter;
    let _ = value.g_mul_scalar_(1.0 - lr * weight_decay);
    let _ = mean.lerp_(gradient, 1.0 - beta1);
    let _ = square.g_mul_scalar_(beta2).g_add_(&(gradient * (1.0 - beta2) * gradient));
    let correction = |beta: f64| 1.0 - beta.powf(step as f64);
    let denominator = square.sqrt() / correction(beta2).sqrt() + epsilon;
    let _ = value.g_sub_(&(&*mean * (lr / correction(beta1)) / denominator));
}

#[cfg(test)]
mod tests {
    use tch::Device;
    use vodka_testkit::Case;

    use super::*;

    /// torch.optim.AdamW's weights after each of five steps, and its state after the last.
    #[test]
    fn five_steps_are_those_of_torch() {
        let case = Case::open("trainer/adamw");
        let tensor = |name: &str| {
            let array = case.array(name);
            let shape: Vec<_> = array.shape.iter().map(|n| *n as i64).collect();
            Tensor::from_slice(&array.data).view(&shape[..])
        };
        let check = |name: String, tensor: &Tensor| {
            let tensor = tensor.detach();
            let shape: Vec<_> = tensor.size().iter().map(|n| *n as usize).collect();
            let values = Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
            case.check(&name, &values, &shape);
        };
        let settings = AdamWSettings { lr: 1e-2, betas: [0.9, 0.99], epsilon: 1e-6, weight_decay: 0.1 };
        let start = tensor("start").set_requires_grad(true);
        let mut optimizer = AdamW::new([("w".to_owned(), start.shallow_clone())], settings);
        for step in 1..=5 {
            // The gradient of sum(w * g) is g.
            (&start * tensor(&format!("gradient/{step}"))).sum(Kind::Float).backward();
            optimizer.step();
            optimizer.zero_grad();
            check(format!("weights/{step}"), &start);
        }
        let parameter = &optimizer.parameters()[0];
        check("exp_avg".to_owned(), &parameter.mean);
        check("exp_avg_sq".to_owned(), &parameter.square);
    }

    #[test]
    fn parameters_without_a_gradient_stay() {
        let still = Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let settings = AdamWSettings { lr: 0.1, betas: [0.9, 0.99], epsilon: 1e-8, weight_decay: 0.5 };
        let mut optimizer = AdamW::new([("still".to_owned(), still.shallow_clone())], settings);
        optimizer.step();
        assert!(optimizer.gradients_are_finite());
        assert_eq!(Vec::<f32>::try_from(still.detach()).unwrap(), [1.0; 3]);
    }

    #[test]
    fn a_single_infinite_gradient_is_seen() {
        let weights = Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let settings = AdamWSettings { lr: 0.1, betas: [0.9, 0.99], epsilon: 1e-8, weight_decay: 0.5 };
        let optimizer = AdamW::new([("w".to_owned(), weights.shallow_clone())], settings);
        (&weights * Tensor::from_slice(&[1.0_f32, f32::INFINITY, f32::NEG_INFINITY]))
            .sum(Kind::Float)
            .backward();
        assert!(!optimizer.gradients_are_finite());
    }
}
