//! Twenty steps of each optimizer against its original.

use tch::{Device, Kind, Tensor};
use vodka_testkit::Case;

use super::*;

const ADAM: OptimizerSettings = OptimizerSettings {
    method: Method::AdamW,
    lr: 1e-2,
    betas: [0.9, 0.99],
    epsilon: 1e-8,
    weight_decay: 0.1,
};

const ADAPTATION: Adaptation = Adaptation {
    d0: 1e-4,
    growth_rate: f64::INFINITY,
    decouple: true,
    use_bias_correction: false,
    safeguard_warmup: false,
};

const SHAPES: [(&str, [i64; 2]); 2] = [("small", [7, 11]), ("large", [60, 70])];

fn settings(name: &str) -> OptimizerSettings {
    let coupled = Adaptation { decouple: false, growth_rate: 1.5, ..ADAPTATION };
    let prodigy = Adaptation { use_bias_correction: true, safeguard_warmup: true, ..ADAPTATION };
    let (method, lr, betas) = match name {
        "adamw" => (Method::AdamW, 1e-2, [0.9, 0.99]),
        "adamw8bit" => (Method::AdamW8bit, 1e-2, [0.9, 0.99]),
        "lion" => (Method::Lion, 1e-3, [0.9, 0.99]),
        "dadapt_adam" => (Method::DAdaptAdam(ADAPTATION), 1.0, [0.9, 0.99]),
        "dadapt_adam_coupled" => {
            (Method::DAdaptAdam(Adaptation { use_bias_correction: true, ..coupled }), 0.5, [0.9, 0.99])
        }
        "prodigy" => (Method::Prodigy(prodigy), 1.0, [0.9, 0.999]),
        "prodigy_plain" => (Method::Prodigy(coupled), 0.5, [0.9, 0.99]),
        _ => panic!("no optimizer {name}"),
    };
    OptimizerSettings { method, lr, betas, ..ADAM }
}

/// As `generate.py` has it: weights from -1 to 1.
fn start(shape: [i64; 2]) -> Tensor {
    let values: Vec<_> =
        (0..shape[0] * shape[1]).map(|i| ((i * 7919 % 2003 - 1001) as f64 / 1001.0) as f32).collect();
    Tensor::from_slice(&values).view(shape).set_requires_grad(true)
}

/// As `generate.py` has it: towards 0.5, and noise of five sizes.
fn gradient(weights: &Tensor, step: i64) -> Tensor {
    let noise = |i: i64| {
        let noise = ((i * 104_729 + step * 15_485_863) % 4001 - 2000) as f64 / 2000.0;
        (noise * 2.0_f64.powi(-(i % 5 * 3) as i32)) as f32
    };
    let noise: Vec<_> = (0..weights.numel() as i64).map(noise).collect();
    (weights.detach() - 0.5) * 0.25 + Tensor::from_slice(&noise).view_as(weights)
}

/// The gradient of `sum(w * g)` is `g`.
fn set_gradient(weights: &Tensor, gradient: &Tensor) {
    (weights * gradient).sum(Kind::Float).backward();
}

fn check(case: &Case, name: &str, values: &Tensor) {
    let shape: Vec<_> = values.size().iter().map(|n| *n as usize).collect();
    case.check(name, &Vec::<f32>::try_from(values.detach().flatten(0, -1)).unwrap(), &shape);
}

fn follows_its_original(name: &str) {
    let case = Case::open("trainer/optimizers");
    let settings = settings(name);
    let weights = SHAPES.map(|(name, shape)| (name.to_owned(), start(shape)));
    let mut optimizer =
        Optimizer::new(weights.each_ref().map(|(name, w)| (name.clone(), w.shallow_clone())), settings);
    for step in 1..=20 {
        for (_, weights) in &weights {
            set_gradient(weights, &gradient(weights, step));
        }
        optimizer.step(settings.lr);
        optimizer.zero_grad();
        if [1, 5, 20].contains(&step) {
            let [(_, small), (_, large)] = &weights;
            check(&case, &format!("{name}/small/{step}"), small);
            let flat = large.detach().flatten(0, -1);
            let ends = Tensor::cat(&[flat.slice(0, None, 200, 1), flat.slice(0, -200, None, 1)], 0);
            check(&case, &format!("{name}/large/{step}"), &ends);
        }
    }
    if settings.method.adaptation().is_some() {
        case.check(&format!("{name}/d"), &[optimizer.numbers().d as f32], &[1]);
    }
}

#[test]
fn adamw_is_that_of_torch() {
    follows_its_original("adamw");
}

#[test]
fn adamw8bit_is_that_of_bitsandbytes() {
    let case = Case::open("trainer/optimizers");
    case.check("map/signed", &dynamic_map(true), &[256]);
    case.check("map/unsigned", &dynamic_map(false), &[256]);
    follows_its_original("adamw8bit");
}

#[test]
fn lion_is_that_of_lion_pytorch() {
    follows_its_original("lion");
}

#[test]
fn dadapt_adam_is_that_of_dadaptation() {
    follows_its_original("dadapt_adam");
    follows_its_original("dadapt_adam_coupled");
}

#[test]
fn prodigy_is_that_of_prodigyopt() {
    follows_its_original("prodigy");
    follows_its_original("prodigy_plain");
}

const ALL: [&str; 5] = ["adamw", "adamw8bit", "lion", "dadapt_adam", "prodigy"];

#[test]
fn parameters_without_a_gradient_stay_and_so_does_a_step_at_rate_nought() {
    for name in ALL {
        let still = start([64, 65]);
        let before = still.detach().copy();
        let settings = settings(name);
        let mut optimizer = Optimizer::new([("still".to_owned(), still.shallow_clone())], settings);
        optimizer.step(settings.lr);
        assert_eq!(still.detach(), before, "{name}");
        set_gradient(&still, &still.detach());
        optimizer.step(0.0);
        assert_eq!(still.detach(), before, "{name}");
    }
}

#[test]
fn eight_bits_are_as_near_as_their_codes() {
    let value = Tensor::zeros([5000], (Kind::Float, Device::Cpu));
    let settings = OptimizerSettings { betas: [0.0, 0.0], ..settings("adamw8bit") };
    let mut optimizer = Optimizer::new([("w".to_owned(), value.set_requires_grad(true))], settings);
    assert_eq!(optimizer.parameters()[0].state.len(), 4);
    let gradient = start([50, 100]).view([5000]).detach();
    set_gradient(&optimizer.parameters()[0].value, &gradient);
    optimizer.step(1e-3);
    let state = &optimizer.parameters()[0].state;
    assert_eq!(state[0].1.kind(), Kind::Uint8);
    assert_eq!(state[1].1.size(), [20]);
    // The widest gap of the signed map is 0.014 around 1.
    let map = Tensor::from_slice(&dynamic_map(true));
    let decoded = map.index_select(0, &state[0].1.to_kind(Kind::Int));
    let largest = state[1].1.repeat_interleave_self_int(256, 0, None).slice(0, None, 5000, 1);
    let off = (decoded * &largest - &gradient).abs() / largest;
    assert!(off.max().double_value(&[]) < 0.0071, "{off}");
}

/// A guard for one network, and the norm of its gradients.
fn guard(optimizer: &Optimizer, max_norm: Option<f64>, scale: Option<&Tensor>) -> (Guard, f64) {
    let gradients = optimizer.gradients();
    let (guard, norm) = Guard::for_networks(&[(&gradients, max_norm)], &[], scale).remove(0);
    (guard, norm.double_value(&[]))
}

#[test]
fn an_infinite_gradient_changes_nothing_and_the_next_step_is_the_first() {
    for name in ALL {
        let settings = settings(name);
        let run = |spoiled: &[usize]| {
            let weights = SHAPES.map(|(name, shape)| (name.to_owned(), start(shape)));
            let shared = weights.each_ref().map(|(name, w)| (name.clone(), w.shallow_clone()));
            let mut optimizer = Optimizer::new(shared, settings);
            for step in 0..5 {
                for (_, w) in &weights {
                    set_gradient(w, &gradient(w, 1));
                }
                if spoiled.contains(&step) {
                    let bad = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN][step % 3];
                    let _ = weights[1].1.grad().view([-1]).get(7).fill_(f64::from(bad));
                } else if spoiled.is_empty() && step > 2 {
                    break;
                }
                let (guard, _) = guard(&optimizer, Some(1e9), None);
                optimizer.step_guarded(settings.lr, &guard);
                optimizer.zero_grad();
            }
            let states = optimizer.parameters().iter().flat_map(|p| &p.state);
            let all = weights.iter().map(|(_, w)| w).chain(states.map(|(_, state)| state));
            let all: Vec<_> = all.map(|t| t.detach().to_kind(Kind::Float).flatten(0, -1)).collect();
            (Vec::<f32>::try_from(Tensor::cat(&all, 0)).unwrap(), optimizer.numbers())
        };
        // Gradients depend on the weights alone, so three good steps are three good steps.
        assert_eq!(run(&[0, 2]), run(&[]), "{name}");
    }
}

#[test]
fn an_infinite_loss_changes_nothing() {
    let weights = Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let mut optimizer = Optimizer::new([("w".to_owned(), weights.shallow_clone())], ADAM);
    set_gradient(&weights, &Tensor::from_slice(&[1.0_f32; 3]));
    let gradients = optimizer.gradients();
    let guards = Guard::for_networks(&[(&gradients, None)], &[Tensor::from(f32::NAN)], None);
    optimizer.step_guarded(0.1, &guards[0].0);
    assert_eq!(weights.detach(), Tensor::ones([3], (Kind::Float, Device::Cpu)));
    assert_eq!(optimizer.numbers().steps, 0);
}

#[test]
fn gradients_are_clipped_and_unscaled_alike_by_every_optimizer() {
    for name in ALL {
        let settings = settings(name);
        let after = |scale: Option<f32>, clip: Option<f64>, by_hand: f64| {
            let weights = start([60, 70]);
            let mut optimizer = Optimizer::new([("w".to_owned(), weights.shallow_clone())], settings);
            let gradient = gradient(&weights, 1) * f64::from(scale.unwrap_or(1.0)) * by_hand;
            set_gradient(&weights, &gradient);
            let scale = scale.map(Tensor::from);
            let (guard, norm) = guard(&optimizer, clip, scale.as_ref());
            optimizer.step_guarded(settings.lr, &guard);
            (weights.detach(), norm)
        };
        let (plain, norm) = after(None, None, 1.0);
        // A power of two is exact.
        let (scaled, scaled_norm) = after(Some(1024.0), None, 1.0);
        assert_eq!((&scaled, scaled_norm), (&plain, norm), "{name}");
        let (clipped, _) = after(Some(1024.0), Some(norm / 2.0), 1.0);
        let (halved, _) = after(None, None, 0.5);
        let difference = (clipped - halved).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{name}: {difference}");
    }
}

#[test]
fn clipping_looks_at_all_gradients_together_and_leaves_short_ones() {
    let [a, b] = [3.0, 4.0].map(|_| Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true));
    let both = [("a".to_owned(), a.shallow_clone()), ("b".to_owned(), b.shallow_clone())];
    let optimizer = Optimizer::new(both, ADAM);
    set_gradient(&a, &Tensor::from_slice(&[3.0_f32]));
    set_gradient(&b, &Tensor::from_slice(&[4.0_f32]));
    let divisor = |max_norm| guard(&optimizer, Some(max_norm), None).0.divisor.unwrap().double_value(&[]);
    assert_eq!(divisor(10.0), 1.0);
    assert!((divisor(1.0) - 5.0).abs() < 1e-5);
    assert_eq!(guard(&optimizer, None, None).1, 5.0);
}

#[test]
fn parameters_are_stepped_together_as_each_alone() {
    let shapes: [&[i64]; 6] = [&[7, 11], &[60, 70], &[32, 16, 3, 3], &[64, 64], &[3], &[40, 33, 3, 3]];
    let weights = || -> Vec<_> {
        let weight = |(i, shape): (usize, &&[i64])| {
            let weight = start([shape.iter().product(), 1]).detach().view(*shape);
            // Of two axes and in the order of channels_last.
            let weight = match shape.len() {
                4 => weight.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]),
                _ => weight.copy(),
            };
            (format!("{i}"), weight.set_requires_grad(true))
        };
        shapes.iter().enumerate().map(weight).collect()
    };
    let run = |optimizers: &mut [Optimizer]| {
        for step in 1..=4 {
            for optimizer in optimizers.iter_mut() {
                for Parameter { value, .. } in &optimizer.parameters {
                    set_gradient(value, &gradient(value, step));
                }
                optimizer.step(1e-2);
                optimizer.zero_grad();
            }
        }
        let parameters = optimizers.iter().flat_map(|optimizer| &optimizer.parameters);
        let tensors =
            parameters.flat_map(|p| [&p.value].into_iter().chain(p.state.iter().map(|(_, state)| state)));
        let floats = tensors.map(|t| t.detach().to_kind(Kind::Float).flatten(0, -1));
        floats.map(|t| Vec::<f32>::try_from(t).unwrap()).collect::<Vec<_>>()
    };
    let settings = settings("adamw8bit");
    let together = run(&mut [Optimizer::new(weights(), settings)]);
    let mut each: Vec<_> = weights().into_iter().map(|weight| Optimizer::new([weight], settings)).collect();
    assert_eq!(run(&mut each), together);
}
