//! Training steps against PyTorch's, and gradient accumulation against whole batches.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use tch::{Device, Kind, Tensor};
use vodka_checkpoint::Checkpoint;
use vodka_sd15::{Network, StableDiffusion};
use vodka_testkit::Case;
use vodka_trainer::{
    Arithmetic, OptimizerSettings,
    arithmetic::{Scaler, ScalerRule, ScalerState},
    optimizers::{Method, Optimizer, Part, step_together},
    step::{Batch, Objective},
    target::perturbation,
};

const UNET: OptimizerSettings = OptimizerSettings {
    method: Method::AdamW,
    lr: 1e-3,
    betas: [0.9, 0.999],
    epsilon: 1e-8,
    weight_decay: 0.01,
};
const TEXT: OptimizerSettings = OptimizerSettings { lr: 5e-4, ..UNET };

fn model(case: &Case) -> StableDiffusion {
    let checkpoint = Checkpoint::open(case.path().join("model")).unwrap();
    let mut model = StableDiffusion::load(&checkpoint, Device::Cpu, Kind::Float).unwrap();
    model.unet.unfreeze();
    model.clip.unfreeze();
    model
}

fn batch(case: &Case, step: usize) -> Batch {
    let tensor = |name: &str| {
        let array = case.array(&format!("{name}/{step}"));
        let shape: Vec<_> = array.shape.iter().map(|n| *n as i64).collect();
        Tensor::from_slice(&array.data).view(&shape[..])
    };
    Batch {
        latents: tensor("latents"),
        noise: tensor("noise"),
        timesteps: Vec::try_from(tensor("timesteps").to_kind(Kind::Int64)).unwrap(),
        ids: tensor("ids").to_kind(Kind::Int64),
        states: None,
        perturbation: None,
    }
}

fn optimizer(network: &impl Network, settings: OptimizerSettings) -> Optimizer {
    Optimizer::new(network.vars().variables(), settings)
}

fn check(case: &Case, name: &str, tensor: &Tensor) {
    let shape: Vec<_> = tensor.size().iter().map(|n| *n as usize).collect();
    let values = Vec::<f32>::try_from(tensor.detach().flatten(0, -1)).unwrap();
    case.check(name, &values, &shape);
}

#[test]
fn three_steps_are_those_of_pytorch_and_diffusers() {
    let case = Case::open("trainer/steps");
    let model = model(&case);
    let mut optimizers = [optimizer(&model.unet, UNET), optimizer(&model.clip, TEXT)];
    for step in 0..3 {
        let losses = Objective::default().losses(&model.clip, &model.unet, &batch(&case, step));
        let loss = losses.mean(Kind::Float);
        loss.backward();
        check(&case, &format!("loss/{step}"), &loss.view([1]));
        for optimizer in &mut optimizers {
            optimizer.step(optimizer.settings().lr);
            optimizer.zero_grad();
        }
    }
    for (prefix, variables) in
        [("unet/", model.unet.vars().variables()), ("text/", model.clip.vars().variables())]
    {
        let names = case.names();
        let names: Vec<_> = names.iter().filter_map(|name| name.strip_prefix(prefix)).collect();
        assert!(names.len() > 3, "{prefix}");
        for name in names {
            check(&case, &format!("{prefix}{name}"), &variables[name]);
        }
    }
}

#[test]
fn accumulated_gradients_are_those_of_the_whole_batch() {
    let case = Case::open("trainer/steps");
    let whole = batch(&case, 0);
    let part = |i: i64| Batch {
        latents: whole.latents.narrow(0, i, 1),
        noise: whole.noise.narrow(0, i, 1),
        timesteps: vec![whole.timesteps[i as usize]],
        ids: whole.ids.narrow(0, i, 1),
        states: None,
        perturbation: None,
    };
    let gradients = |batches: &[Batch]| {
        let model = model(&case);
        for batch in batches {
            let losses = Objective::default().losses(&model.clip, &model.unet, batch);
            (losses.sum(Kind::Float) / 2.0).backward();
        }
        let variables = model.unet.vars().variables().into_iter().chain(model.clip.vars().variables());
        let mut gradients: Vec<_> = variables.map(|(name, variable)| (name, variable.grad())).collect();
        gradients.sort_by(|a, b| a.0.cmp(&b.0));
        gradients
    };
    let accumulated = gradients(&[part(0), part(1)]);
    for ((name, a), (_, b)) in accumulated.into_iter().zip(gradients(&[whole])) {
        let difference = (&a - &b).norm().double_value(&[]);
        let size = b.norm().double_value(&[]);
        assert!(difference <= 1e-5 * size + 1e-9, "{name}: differs by {difference:e} of {size:e}");
    }
}

/// As `trainer/curves/generate.py` has them.
fn numbers(seed: i64) -> Tensor {
    let number = |i: i64| (((i * 104_729 + seed * 15_485_863) % 4001 - 2000) as f64 / 1155.0) as f32;
    let numbers: Vec<_> = (0..2 * 4 * 6 * 8).map(number).collect();
    Tensor::from_slice(&numbers).view([2, 4, 6, 8])
}

fn batch_of_curve(step: i64) -> Batch {
    let ids = (0..2).flat_map(|i| (0..16).map(move |j| (i * 7 + step % 4 * 5 + j * 3) % 64));
    Batch {
        latents: numbers(step % 4),
        noise: numbers(100 + step),
        timesteps: (0..2).map(|i| (step * 173 + i * 389) % 1000).collect(),
        ids: Tensor::from_slice(&ids.collect::<Vec<_>>()).view([2, 16]),
        states: None,
        perturbation: None,
    }
}

#[test]
fn a_perturbed_text_is_that_of_everydream2() {
    let (case, steps) = (Case::open("trainer/perturbation"), Case::open("trainer/steps"));
    let normals = (0..2 * 16 * 16).map(|i| ((i * 104_729 + 7 * 15_485_863) % 4001 - 2000) as f64 / 1155.0);
    let normals = normals.map(|number| number as f32).collect::<Vec<_>>();
    let normals = Tensor::from_slice(&normals).view([2, 16, 16]);
    let plain = || Batch { timesteps: vec![0, 389], ..batch_of_curve(0) };
    let mut found = Vec::new();
    for (name, strength) in [("0.5", 0.5), ("1.0", 1.0), ("4.0", 4.0)] {
        let model = model(&steps);
        let delta = perturbation(&normals, strength);
        check(&case, &format!("perturbation/{name}"), &delta.get(0).narrow(0, 0, 2).contiguous());
        let batch = Batch { perturbation: Some(delta), ..plain() };
        let losses = Objective::default().losses(&model.clip, &model.unet, &batch);
        losses.mean(Kind::Float).backward();
        check(&case, &format!("loss/{name}"), &losses);
        let weights = model.clip.vars().variables();
        check(&case, &format!("gradient/{name}"), &weights["text_model.final_layer_norm.weight"].grad());
        found.push(losses.double_value(&[0]));
    }
    assert!(found[0] != found[1] && found[1] != found[2], "{found:?}");
}

/// Twenty steps on the tiny model: the losses, and the scale after each step.
fn curve(arithmetic: Arithmetic) -> (Vec<f32>, Vec<f32>) {
    let mut model = model(&Case::open("trainer/steps"));
    model.unet.channels_last();
    let mut optimizers =
        [optimizer(&model.unet, UNET), optimizer(&model.clip, OptimizerSettings { lr: UNET.lr, ..TEXT })];
    let kind = arithmetic.autocast();
    let objective = Objective { unet_autocast: kind, text_autocast: kind, ..Objective::default() };
    let mut scaler =
        (arithmetic == Arithmetic::Fp16).then(|| Scaler::new(ScalerState::default(), Device::Cpu));
    let (mut losses, mut scales) = (Vec::new(), Vec::new());
    for step in 0..20 {
        let loss = objective.losses(&model.clip, &model.unet, &batch_of_curve(step)).mean(Kind::Float);
        let scale = scaler.as_ref().map(|scaler| scaler.scale().shallow_clone());
        scale.as_ref().map_or(loss.shallow_clone(), |scale| &loss * scale).backward();
        let parts = optimizers.each_mut().map(|optimizer| Part {
            optimizer: Some(optimizer),
            lr: UNET.lr,
            max_norm: None,
        });
        let (found_inf, _) = step_together(parts, &[], scale.as_ref(), step % 2 == 0);
        if let Some(scaler) = &mut scaler {
            scaler.update(&found_inf, ScalerRule { factor: 2.0, interval: 5 });
            scales.push(scaler.state().scale);
        }
        losses.push(loss.double_value(&[]) as f32);
    }
    (losses, scales)
}

#[test]
fn twenty_steps_are_those_of_a_plain_loop_in_every_precision() {
    let case = Case::open("trainer/curves");
    for (name, arithmetic) in
        [("fp32", Arithmetic::Fp32), ("bf16", Arithmetic::Bf16), ("fp16", Arithmetic::Fp16)]
    {
        let (losses, scales) = curve(arithmetic);
        let golden = case.array(&format!("loss/{name}")).data;
        let relative = losses.iter().zip(&golden).map(|(a, b)| ((a - b) / b).abs());
        println!("{name}: off by {:e}", relative.fold(0.0, f32::max));
        case.check(&format!("loss/{name}"), &losses, &[20]);
        if arithmetic == Arithmetic::Fp16 {
            // Two steps are left out in it.
            case.check("scale", &scales, &[20]);
        }
    }
}
