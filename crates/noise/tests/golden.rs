//! Parity with k-diffusion's and diffusers' samplers, torchsde's tree and torch's generator.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::convert::Infallible;

use vodka_noise::{
    BrownianTree, Host, Output, Parameterization, SamplerName, Schedule, ScheduleName, Solver, SolverOptions,
    TorchRng,
};
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
        let sigmas = single(schedule.spaced_sigmas(ScheduleName::Uniform, steps));
        case.check(&format!("uniform_sigmas/{steps}"), &sigmas, &[steps as usize + 1]);
    }
}

/// The network of the golden's script, and its noises, in turn.
struct Toy {
    noises: std::vec::IntoIter<Vec<f64>>,
    rows: Vec<Vec<f64>>,
}

impl Host<Vec<f64>> for Toy {
    type Stop = Infallible;

    fn predict(&mut self, input: &Vec<f64>, timestep: f64) -> Result<Output<Vec<f64>>, Infallible> {
        let shift = (timestep / 150.0).sin() + 0.3;
        let guided = input.iter().map(|x| (x * 0.9 + shift).tanh() + x * 0.1).collect();
        Ok(Output { guided, unguided: None })
    }

    fn noise(&mut self, _from: f64, _to: f64) -> Result<Vec<f64>, Infallible> {
        Ok(self.noises.next().unwrap())
    }

    fn step(&mut self, _step: usize, x: &Vec<f64>, _denoised: &Vec<f64>) -> Result<(), Infallible> {
        self.rows.push(x.clone());
        Ok(())
    }
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// The latents before each step and at the end.
fn trace(case: &Case, solver: &Solver, parameterization: Parameterization) -> Vec<Vec<f64>> {
    let noises: Vec<_> = case.array("noises").data.chunks(4).map(doubles).collect();
    let mut toy = Toy { noises: noises.into_iter(), rows: Vec::new() };
    let x = case.array("x0").data.iter().map(|x| f64::from(*x) * solver.start()).collect();
    let Ok(last) = solver.run(x, parameterization, &mut toy);
    toy.rows.push(last);
    toy.rows
}

fn check(case: &Case, name: &str, rows: &[Vec<f64>]) {
    case.check(&format!("solver/{name}"), &single(rows.concat()), &[rows.len(), 4]);
}

#[test]
fn samplers_step_as_k_diffusions() {
    let case = Case::open("noise/solvers");
    let schedule = Schedule::scaled_linear();
    let sigmas = schedule.spaced_sigmas(ScheduleName::Karras, 7);
    for (kind, parameterization) in [("eps", Parameterization::Epsilon), ("v", Parameterization::V)] {
        for name in [
            "Euler",
            "Euler a",
            "Heun",
            "LMS",
            "DPM2",
            "DPM2 a",
            "DPM++ 2M",
            "DPM++ 2S a",
            "DPM++ SDE",
            "DPM++ 2M SDE",
            "DPM++ 2M SDE Heun",
            "DPM++ 3M SDE",
        ] {
            let solver = Solver::from_sigmas(&schedule, name.parse().unwrap(), sigmas.clone());
            check(&case, &format!("{name}/{kind}"), &trace(&case, &solver, parameterization));
        }
        for steps in [5, 6, 7] {
            let solver =
                Solver::new(&schedule, SamplerName::DpmFast, ScheduleName::Automatic, steps).unwrap();
            check(&case, &format!("DPM fast/{kind}/{steps}"), &trace(&case, &solver, parameterization));
        }
        let solver = Solver::new(&schedule, SamplerName::DpmAdaptive, ScheduleName::Automatic, 20).unwrap();
        // k-diffusion tells of the latents after each attempt, and so twice of the last.
        let mut rows = trace(&case, &solver, parameterization);
        rows.remove(0);
        rows.push(rows[rows.len() - 1].clone());
        check(&case, &format!("DPM adaptive/{kind}"), &rows);
    }
}

#[test]
fn churned_steps_are_k_diffusions() {
    let case = Case::open("noise/solvers");
    let schedule = Schedule::scaled_linear();
    let options = SolverOptions { s_churn: 2.0, s_tmin: 0.1, s_tmax: 5.0, s_noise: 1.01, eta: None };
    for name in ["Euler", "Heun", "DPM2"] {
        let sigmas = schedule.spaced_sigmas(ScheduleName::Karras, 7);
        let solver = Solver::from_sigmas(&schedule, name.parse().unwrap(), sigmas).with_options(options);
        check(&case, &format!("{name}/churn"), &trace(&case, &solver, Parameterization::Epsilon));
    }
}

#[test]
fn restart_lcm_plms_and_unipc_are_those_of_their_papers() {
    let case = Case::open("noise/solvers");
    let schedule = Schedule::scaled_linear();
    let rows = |sampler, steps| {
        let solver = Solver::new(&schedule, sampler, ScheduleName::Automatic, steps).unwrap();
        trace(&case, &solver, Parameterization::Epsilon)
    };
    for (sampler, steps) in [(SamplerName::Restart, 20), (SamplerName::Restart, 40), (SamplerName::Lcm, 4)] {
        check(&case, &format!("{sampler}/{steps}"), &rows(sampler, steps));
    }
    for (sampler, steps) in [(SamplerName::Plms, 8), (SamplerName::UniPc, 4), (SamplerName::UniPc, 5)] {
        check(
            &case,
            &format!("{sampler}/{steps}"),
            &rows(sampler, steps)[steps as usize - usize::from(sampler == SamplerName::Plms)..],
        );
    }
}

/// Answers one unit of noise, and keeps the latents.
struct Unit(Vec<(f64, Vec<f64>)>);

impl Host<Vec<f64>> for Unit {
    type Stop = Infallible;

    fn predict(&mut self, input: &Vec<f64>, timestep: f64) -> Result<Output<Vec<f64>>, Infallible> {
        self.0.push((timestep, input.clone()));
        Ok(Output { guided: vec![0.0, 1.0], unguided: None })
    }

    fn noise(&mut self, _from: f64, _to: f64) -> Result<Vec<f64>, Infallible> {
        panic!("DDIM with eta 0 takes no noise")
    }
}

#[test]
fn ddim_steps_are_diffusers() {
    let case = Case::open("noise/schedule");
    let schedule = Schedule::scaled_linear();
    for steps in [20, 50] {
        let solver = Solver::new(&schedule, SamplerName::Ddim, ScheduleName::Automatic, steps).unwrap();
        let mut host = Unit(Vec::new());
        let Ok(last) = solver.run(vec![1.0, 0.0], Parameterization::Epsilon, &mut host);
        host.0.push((0.0, last));
        let rows = host.0.windows(2).flat_map(|pair| {
            let [(timestep, x), (_, next)] = pair else { unreachable!() };
            let keep = next[0] / x[0];
            [*timestep, keep, next[1] - keep * x[1]]
        });
        case.check(&format!("ddim/{steps}"), &single(rows), &[steps as usize - 1, 3]);
    }
}

#[test]
fn brownian_noise_is_torchsdes() {
    let case = Case::open("noise/solvers");
    let walk = doubles(&case.array("walk").data);
    for seed in [0, 1_234_567_890_123] {
        let mut tree = BrownianTree::new(seed, 0.029_167_158_2, 14.614_641_229_3, 20);
        let rows: Vec<f32> = walk.windows(2).flat_map(|pair| tree.noise(pair[0], pair[1])).collect();
        case.check(&format!("brownian/{seed}"), &rows, &[4, 20]);
    }
}

#[test]
fn normal_numbers_are_torchs() {
    let case = Case::open("noise/schedule");
    for (seed, n) in [(0, 4096), (42, 4096), (4_294_967_295, 1009), (7, 16), (7, 17), (7, 15), (1, 3)] {
        case.check(&format!("randn/{seed}/{n}"), &TorchRng::new(seed).randn(n), &[n]);
    }
}
