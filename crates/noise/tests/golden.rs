//! Parity with diffusers' schedulers, k-diffusion's sigmas and torch's generator.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use vodka_noise::{SamplerName, Schedule, ScheduleName, Solver, TorchRng};
use vodka_testkit::Case;

fn single(values: impl IntoIterator<Item = f64>) -> Vec<f32> {
    values.into_iter().map(|value| value as f32).collect()
}

#[test]
fn the_schedule_is_diffusers() {
    let alphas = single(Schedule::scaled_linear().alphas_cumprod().iter().copied());
    Case::open("noise/schedule").check("alphas_cumprod", &alphas, &[1000]);
}

#[test]
fn uniform_sigmas_are_k_diffusions() {
    let case = Case::open("noise/schedule");
    let schedule = Schedule::scaled_linear();
    for steps in [1, 7, 20, 50] {
        let sigmas = single(schedule.uniform_sigmas(steps));
        case.check(&format!("uniform_sigmas/{steps}"), &sigmas, &[steps as usize + 1]);
    }
}

#[test]
fn ddim_steps_are_diffusers() {
    let case = Case::open("noise/schedule");
    let schedule = Schedule::scaled_linear();
    for steps in [20, 50] {
        let solver = Solver::new(&schedule, SamplerName::Ddim, ScheduleName::Automatic, steps).unwrap();
        let rows = solver.steps.iter().flat_map(|step| [step.timestep, step.keep, step.move_by]);
        case.check(&format!("ddim/{steps}"), &single(rows), &[steps as usize - 1, 3]);
    }
}

#[test]
fn normal_numbers_are_torchs() {
    let case = Case::open("noise/schedule");
    for (seed, n) in [(0, 4096), (42, 4096), (4_294_967_295, 1009), (7, 16), (7, 17), (7, 15), (1, 3)] {
        case.check(&format!("randn/{seed}/{n}"), &TorchRng::new(seed).randn(n), &[n]);
    }
}
