//! Parity of whole sampling loops with k-diffusion's and diffusers', over a denoiser with a closed form.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use tch::{Kind, Tensor};
use vodka_checkpoint::Prediction;
use vodka_noise::{Output, SamplerName, Schedule, ScheduleName, Solver};
use vodka_sampler::{Calls, solve};
use vodka_testkit::Case;

const CFG: f64 = 7.0;

fn network(x: &Tensor, t: f64, shift: f64) -> Tensor {
    (x * 0.9 + ((t / 150.0).sin() + shift)).tanh() + x * 0.1
}

fn guided(x: &Tensor, t: f64) -> Output<Tensor> {
    let (cond, uncond) = (network(x, t, 0.3), network(x, t, -0.2));
    Output { guided: &uncond + (cond - &uncond) * CFG, unguided: None }
}

fn no_noise(_: f64, _: f64) -> Tensor {
    panic!("these samplers add none")
}

fn run(solver: &Solver, prediction: Prediction, noise: &Tensor) -> Vec<f32> {
    let calls = Calls { predict: &mut guided, noise: &mut no_noise, go_on: &mut |_| true };
    let result = solve(solver, prediction, noise, calls).unwrap().to_kind(Kind::Float);
    let mut values = vec![0.0; result.numel()];
    result.contiguous().copy_data(&mut values, result.numel());
    values
}

#[test]
fn whole_loops_are_those_of_the_originals() {
    let case = Case::open("sampler/solvers");
    let golden = case.array("noise");
    let shape: Vec<i64> = golden.shape.iter().map(|n| *n as i64).collect();
    let noise = Tensor::from_slice(&golden.data).view(&shape[..]).to_kind(Kind::Double);
    let schedule = Schedule::scaled_linear();
    for (name, sampler) in [("euler", SamplerName::Euler), ("ddim", SamplerName::Ddim)] {
        for (kind, prediction) in [("eps", Prediction::Epsilon), ("v", Prediction::VPrediction)] {
            for steps in [5, 20] {
                let solver = Solver::new(&schedule, sampler, ScheduleName::Automatic, steps).unwrap();
                let found = run(&solver, prediction, &noise);
                case.check(&format!("{name}/{kind}/{steps}"), &found, &golden.shape);
            }
        }
    }
}

#[test]
fn a_loop_stops_when_it_is_told_to() {
    let solver =
        Solver::new(&Schedule::scaled_linear(), SamplerName::Euler, ScheduleName::Automatic, 5).unwrap();
    let noise = Tensor::zeros([1, 4, 2, 2], (Kind::Float, tch::Device::Cpu));
    for (last, is_whole) in [(1, false), (4, false), (5, true)] {
        let mut seen = 0;
        let mut go_on = |done| {
            seen = done;
            done < last
        };
        let calls = Calls { predict: &mut guided, noise: &mut no_noise, go_on: &mut go_on };
        let result = solve(&solver, Prediction::Epsilon, &noise, calls);
        assert_eq!((seen, result.is_some()), (last, is_whole));
    }
}
