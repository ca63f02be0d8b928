//! ControlNets give what diffusers gives, and UNets with their residuals too.

use tch::{Device, Kind, Tensor};
use vodka_checkpoint::{ControlNetConfig, ControlNetFile, UNetConfig};
use vodka_sd15::{ControlNet, Network, UNet};
use vodka_testkit::{Case, fixture};

use crate::{
    common::{Golden, values, weight, weights},
    parity::two_levels,
};

/// The network of the fixture.
fn config() -> ControlNetConfig {
    ControlNetConfig { unet: two_levels(), hint_channels: [4, 6, 8, 10] }
}

/// A picture of conditions, as generate.py draws it.
fn picture(i: usize, height: i64, width: i64) -> Tensor {
    let shape = [1, 3, height, width];
    let scale = ((shape[1] * height * width) as f64 / 3.0).sqrt();
    weight("controlnet", &format!("hint/{i}"), &shape) * (scale / 2.0) + 0.5
}

#[test]
fn residuals_and_what_a_unet_makes_of_them() {
    let case = Case::open("sd15/controlnet");
    let mut network =
        ControlNet::new(&config(), Device::Cpu, Kind::Float, &weights("controlnet", Kind::Float)).unwrap();
    let unet = UNet::new(&two_levels(), Device::Cpu, Kind::Float, &weights("unet_two_levels", Kind::Float));
    let unet = unet.unwrap();
    assert_eq!(network.state().len(), network.keys().len());
    for _ in 0..2 {
        for i in 0..2 {
            let [latents, context] = ["latents", "context"].map(|name| case.tensor(&format!("{name}/{i}")));
            let timesteps = case.integers(&format!("timesteps/{i}"));
            let (_, _, height, width) = latents.size4().unwrap();
            let hint = network.embed(&picture(i, 8 * height, 8 * width));
            let residuals = network.forward(&latents, &timesteps, &context, &hint);
            for (k, residual) in residuals.iter().enumerate() {
                case.check_tensor(&format!("residual/{i}.{k}"), residual);
            }
            assert_eq!(residuals.len(), 5);
            let residuals: Vec<_> = residuals.into_iter().map(|residual| residual * 0.7).collect();
            let output = unet.forward_controlled(&latents, &timesteps, &context, &residuals);
            case.check_tensor(&format!("output/{i}"), &output);
        }
        network.channels_last();
    }
}

#[test]
fn residuals_of_nothing_change_nothing() {
    let case = Case::open("sd15/controlnet");
    let unet = UNet::new(&two_levels(), Device::Cpu, Kind::Float, &weights("unet_two_levels", Kind::Float));
    let unet = unet.unwrap();
    let source = weights("controlnet", Kind::Float);
    let untrained = |name: &str, shape: &[i64]| {
        let is_last = name.starts_with("controlnet_down_blocks") || name.starts_with("controlnet_mid_block");
        Ok(source(name, shape)? * if is_last { 0.0 } else { 1.0 })
    };
    let network = ControlNet::new(&config(), Device::Cpu, Kind::Float, &untrained).unwrap();
    let [latents, context] = ["latents/0", "context/0"].map(|name| case.tensor(name));
    let timesteps = case.integers("timesteps/0");
    let hint = network.embed(&picture(0, 32, 48));
    let residuals = network.forward(&latents, &timesteps, &context, &hint);
    let with = unet.forward_controlled(&latents, &timesteps, &context, &residuals);
    assert_eq!(with, unet.forward(&latents, &timesteps, &context));
}

#[test]
fn the_full_network_has_thirteen_residuals_in_361_million_weights() {
    let config = ControlNetConfig::sd15();
    assert_eq!(config.unet, UNetConfig::sd15());
    let keys = vodka_checkpoint::keys::control_net(&config);
    let count: usize = keys.iter().map(|key| key.shape.iter().product::<usize>()).sum();
    // Of diffusers' ControlNetModel with its defaults for Stable Diffusion 1.5.
    assert_eq!((keys.len(), count), (340, 361_279_120));
    let zero = keys.iter().filter(|key| key.ldm.contains("zero_convs") && key.ldm.ends_with("bias"));
    assert_eq!(zero.count(), 12);
}

#[test]
fn a_file_of_the_first_trainer_has_each_weight_in_its_place() {
    let unet = UNetConfig {
        block_out_channels: vec![4, 8],
        cross_attention_dim: 6,
        attention_heads: 2,
        norm_groups: 4,
        ..two_levels()
    };
    let file = ControlNetFile::open(fixture("sd15/controlnet/ldm.pth"), &unet).unwrap();
    let config = ControlNetConfig { unet, hint_channels: [2, 3, 4, 5] };
    assert_eq!(file.config(), &config);
    let network = ControlNet::load(&file, Device::Cpu, Kind::Half).unwrap();
    let variables = network.vars().variables();
    assert_eq!(variables.len(), network.keys().len());
    for (name, found) in variables {
        let expected = weight("small", &name, &found.size()).to_kind(Kind::Half);
        assert_eq!(values(&found), values(&expected), "{name}");
    }
}
