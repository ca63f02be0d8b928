//! One training step gives the loss and the gradients that PyTorch gives.

use std::{borrow::Cow, collections::HashMap};

use tch::{Device, Kind, Reduction, Tensor};
use vodka_checkpoint::{ClipConfig, Dtype, ModelConfig, TensorView, UNetConfig, Weights};
use vodka_sd15::{ClipTextModel, Network, UNet};
use vodka_testkit::Case;

use crate::common::{Golden, weights};

/// The relative error that a gradient may have by its norm: fp32 sums in another order.
const TOLERANCE: f64 = 1e-5;

/// Gradients that vanish in exact arithmetic (a key's bias moves no softmax) are rounding errors on both sides. So the
/// norm that an error is compared with is at least this part of the largest gradient's: times the tolerance it is one
/// unit in the last place of fp32.
const NEGLIGIBLE: f64 = 1e-3;

fn unet_config() -> UNetConfig {
    UNetConfig {
        block_out_channels: vec![16, 32],
        layers_per_block: 1,
        cross_attention: vec![true, false],
        cross_attention_dim: 24,
        attention_heads: 4,
        norm_groups: 4,
        ..UNetConfig::sd15()
    }
}

fn clip_config() -> ClipConfig {
    ClipConfig {
        vocab_size: 200,
        hidden_size: 24,
        intermediate_size: 64,
        layers: 2,
        heads: 2,
        max_positions: 77,
    }
}

fn norm(tensor: &Tensor) -> f64 {
    tensor.to_kind(Kind::Double).norm().double_value(&[])
}

/// Compares every gradient of a network with its golden; returns the largest relative error.
fn check_gradients(case: &Case, part: &str, network: &dyn Network) -> f64 {
    let variables = network.vars().variables();
    let goldens: Vec<_> =
        variables.keys().map(|name| (name, case.tensor(&format!("{part}/{name}")))).collect();
    let largest = goldens.iter().map(|(_, golden)| norm(golden)).fold(0.0, f64::max);
    let mut worst = 0.0;
    for (name, golden) in goldens {
        let error = norm(&(variables[name].grad() - &golden)) / norm(&golden).max(NEGLIGIBLE * largest);
        assert!(error <= TOLERANCE, "{part}/{name}: relative error {error:e} of norm {:e}", norm(&golden));
        worst = f64::max(worst, error);
    }
    worst
}

/// The networks of the case, unfrozen.
fn networks() -> (UNet, ClipTextModel) {
    let source = weights("training_step/unet", Kind::Float);
    let mut unet = UNet::new(&unet_config(), Device::Cpu, Kind::Float, &source).unwrap();
    let source = weights("training_step/clip", Kind::Float);
    let mut clip = ClipTextModel::new(&clip_config(), Device::Cpu, Kind::Float, &source).unwrap();
    unet.unfreeze();
    clip.unfreeze();
    (unet, clip)
}

/// One step up to the gradients: what is predicted, and the loss.
fn step(case: &Case, unet: &UNet, clip: &ClipTextModel) -> (Tensor, Tensor) {
    let context = clip.forward(&case.integers("ids"), 1);
    let prediction = unet.forward(&case.tensor("noisy"), &case.integers("timesteps"), &context);
    let loss = prediction.mse_loss(&case.tensor("noise"), Reduction::Mean);
    loss.backward();
    (prediction, loss)
}

#[test]
fn a_training_step_has_the_loss_and_the_gradients_of_pytorch() {
    let case = Case::open("sd15/training_step");
    for channels_last in [false, true] {
        let (mut unet, clip) = networks();
        if channels_last {
            unet.channels_last();
        }
        let (prediction, loss) = step(&case, &unet, &clip);
        case.check_tensor("prediction", &prediction);
        case.check_tensor("loss", &loss.view([1]));

        let goldens = case.names().iter().filter(|name| name.contains('/')).count();
        assert_eq!(goldens, unet.vars().len() + clip.vars().len(), "every parameter has a golden");
        let worst = [check_gradients(&case, "unet", &unet), check_gradients(&case, "clip", &clip)];
        println!("largest relative errors: UNet {:e}, CLIP {:e}", worst[0], worst[1]);
    }
}

#[test]
fn gradients_are_the_same_with_checkpointing() {
    let case = Case::open("sd15/training_step");
    let gradients = |checkpointing: bool, train_unet: bool| {
        let (mut unet, mut clip) = networks();
        unet.set_gradient_checkpointing(checkpointing);
        clip.set_gradient_checkpointing(checkpointing);
        if !train_unet {
            unet.freeze();
        }
        let (prediction, _) = step(&case, &unet, &clip);
        let all = [unet.vars().variables(), clip.vars().variables()].into_iter().flatten();
        let mut gradients: Vec<_> = all.map(|(name, variable)| (name, variable.grad())).collect();
        gradients.retain(|(_, gradient)| gradient.defined());
        gradients.sort_by(|a, b| a.0.cmp(&b.0));
        (prediction, gradients)
    };
    for train_unet in [true, false] {
        let (plain, checked) = (gradients(false, train_unet), gradients(true, train_unet));
        assert_eq!(plain.0, checked.0);
        assert_eq!(plain.1.len(), checked.1.len());
        let largest = plain.1.iter().map(|(_, gradient)| norm(gradient)).fold(0.0, f64::max);
        for ((name, a), (_, b)) in plain.1.iter().zip(&checked.1) {
            // The biases of keys, whose gradients vanish, are rounding errors; those of the text add up in another order.
            let error = norm(&(a - b)) / norm(a).max(10.0 * NEGLIGIBLE * largest);
            assert!(error <= 1e-6, "{name}: {error:e}");
        }
    }
}

#[test]
fn with_the_channels_last_a_network_has_the_same_values() {
    let (mut unet, _) = networks();
    let before: Vec<_> = unet.state().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
    unet.channels_last();
    assert_eq!(unet.state(), before);
    let laid_out = unet.vars().variables()["conv_in.weight"].stride();
    assert_eq!(laid_out, [4 * 9, 1, 4 * 3, 4]);
}

/// The weights of a network, some in 16 bits, none where a number of its type would start.
struct Elsewhere {
    config: ModelConfig,
    state: HashMap<String, Tensor>,
}

impl Weights for Elsewhere {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>, Box<dyn std::error::Error + Send + Sync>> {
        let tensor = self.state.get(name).ok_or("not there")?.contiguous();
        let shape = tensor.size().iter().map(|n| *n as usize).collect();
        let dtype = if tensor.kind() == Kind::Half { Dtype::F16 } else { Dtype::F32 };
        let mut bytes = vec![0; tensor.numel() * dtype.size() + 1];
        tensor.copy_data_u8(&mut bytes[1..], tensor.numel());
        // A vector's bytes lie at an even place, so that these do not.
        let data = Cow::Borrowed(&Box::leak(bytes.into_boxed_slice())[1..]);
        Ok(TensorView { dtype, shape, data })
    }
}

#[test]
fn weights_take_the_place_of_others_in_memory_and_layout() {
    let (mut unet, _) = networks();
    unet.channels_last();
    let change = |(i, (name, tensor)): (usize, (String, Tensor))| {
        let kind = if i % 2 == 0 { Kind::Half } else { Kind::Float };
        (name, (tensor * 0.5 + 0.25).to_kind(kind))
    };
    let state: HashMap<_, _> = unet.state().into_iter().enumerate().map(change).collect();
    let laid_out = |unet: &UNet| {
        let variables = unet.vars().variables().into_iter();
        variables.map(|(name, v)| (name, (v.stride(), v.data_ptr()))).collect::<HashMap<_, _>>()
    };
    let before = laid_out(&unet);
    let mut config = ModelConfig::sd15();
    config.unet = unet_config();
    let mut weights = Elsewhere { config, state };
    unet.fill(&weights).unwrap();
    assert_eq!(laid_out(&unet), before);
    for (name, tensor) in unet.state() {
        assert_eq!(tensor, weights.state[&name].to_kind(Kind::Float), "{name}");
    }
    let name = "model.diffusion_model.out.2.weight";
    weights.state.insert(name.into(), Tensor::ones([2], (Kind::Float, Device::Cpu)));
    let error = unet.fill(&weights).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("[2]"), "{error}");
    weights.state.remove(name);
    assert!(unet.fill(&weights).unwrap_err().to_string().contains("not there"));
}

#[test]
fn a_frozen_network_tracks_nothing() {
    let source = weights("training_step/unet", Kind::Float);
    let mut unet = UNet::new(&unet_config(), Device::Cpu, Kind::Float, &source).unwrap();
    let inputs = || (Tensor::ones([1, 4, 4, 4], (Kind::Float, Device::Cpu)), Tensor::from_slice(&[5_i64]));
    let context = Tensor::ones([1, 3, 24], (Kind::Float, Device::Cpu));
    let tracks = |unet: &UNet| unet.forward(&inputs().0, &inputs().1, &context).requires_grad();
    assert!(!tracks(&unet), "as it was built");
    unet.unfreeze();
    assert!(tracks(&unet), "unfrozen");
    unet.freeze();
    assert!(!tracks(&unet), "frozen again");
}
