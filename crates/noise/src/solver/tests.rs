//! Numbers of A1111's, orders of convergence, and what must be so.

use std::convert::Infallible;

use super::*;

/// A picture of which every pixel is normal, and noises given beforehand.
struct Gaussian<'a> {
    schedule: &'a Schedule,
    parameterization: Parameterization,
    noises: std::vec::IntoIter<f64>,
    calls: Vec<f64>,
}

const MEAN: f64 = 0.4;
const SPREAD: f64 = 0.7;

impl<'a> Gaussian<'a> {
    fn new(schedule: &'a Schedule, parameterization: Parameterization) -> Self {
        Self { schedule, parameterization, noises: Vec::new().into_iter(), calls: Vec::new() }
    }
}

impl Host<Vec<f64>> for Gaussian<'_> {
    type Stop = Infallible;

    /// The best answer there is: `D = (s^2 x + sigma^2 mean) / (s^2 + sigma^2)`.
    fn predict(&mut self, input: &Vec<f64>, timestep: f64) -> Result<Output<Vec<f64>>, Infallible> {
        self.calls.push(timestep);
        let sigma = self.schedule.t_to_sigma(timestep);
        let (s2, sigma2) = (SPREAD * SPREAD, sigma * sigma);
        let answer = |input: &f64| {
            let x = input * (1.0 + sigma2).sqrt();
            let picture = (s2 * x + sigma2 * MEAN) / (s2 + sigma2);
            let eps = (x - picture) / sigma;
            match self.parameterization {
                Parameterization::Epsilon => eps,
                Parameterization::V => (eps - sigma * picture) / (1.0 + sigma2).sqrt(),
            }
        };
        Ok(Output { guided: input.iter().map(answer).collect(), unguided: None })
    }

    fn noise(&mut self, _from: f64, _to: f64) -> Result<Vec<f64>, Infallible> {
        Ok(vec![self.noises.next().unwrap_or(0.0)])
    }
}

fn run(solver: &Solver, x: f64, parameterization: Parameterization) -> (f64, Vec<f64>) {
    let mut host = Gaussian::new(&solver.schedule, parameterization);
    let Ok(found) = solver.run(vec![x], parameterization, &mut host);
    (found[0], host.calls)
}

/// Where the probability-flow equation leads from `x` at one sigma to another.
fn exact(x: f64, from: f64, to: f64) -> f64 {
    MEAN + (x - MEAN) * ((SPREAD * SPREAD + to * to) / (SPREAD * SPREAD + from * from)).sqrt()
}

/// The order that the errors of `n` and `2n` steps show.
fn order(error: impl Fn(u32) -> f64, n: u32) -> f64 {
    (error(n) / error(2 * n)).log2()
}

#[test]
fn each_solver_over_sigmas_has_its_order() {
    // So smooth a schedule that its interpolation is none of the error.
    let schedule = smooth_schedule();
    let deterministic = SolverOptions { eta: Some(0.0), ..SolverOptions::default() };
    let mut wrong = Vec::new();
    for (sampler, expected) in [
        (SamplerName::Euler, 1.0),
        (SamplerName::EulerA, 1.0),
        (SamplerName::Heun, 2.0),
        (SamplerName::Restart, 2.0),
        (SamplerName::Dpm2, 2.0),
        (SamplerName::Dpm2A, 2.0),
        (SamplerName::Dpmpp2m, 2.0),
        (SamplerName::Dpmpp2sA, 2.0),
        (SamplerName::DpmppSde, 2.0),
        (SamplerName::Dpmpp2mSde, 2.0),
        (SamplerName::Dpmpp2mSdeHeun, 2.0),
        // Its second difference has half of its weight, in k-diffusion and the paper's code.
        (SamplerName::Dpmpp3mSde, 2.0),
        (SamplerName::Lms, 4.0),
        // Its last step is of first order, once.
        (SamplerName::DpmFast, 2.0),
    ] {
        let error = |n: u32| {
            let (from, to) = (5.0_f64, 0.2_f64);
            // Small steps first, so that what a multistep method begins with does not count.
            let way = |i: u32| (to / from).ln() * (f64::from(i) / f64::from(n)).powi(2);
            let sigmas = (0..=n).map(|i| from * way(i).exp()).collect();
            let solver = Solver::from_sigmas(&schedule, sampler, sigmas).with_options(deterministic);
            (run(&solver, 3.0, Parameterization::Epsilon).0 - exact(3.0, from, to)).abs()
        };
        // Restart takes another way from 20 steps on, and DPM fast a third of the steps.
        let n = if sampler == SamplerName::Restart { 9 } else { 96 };
        let found = order(error, n);
        if found < expected - 0.35 || found > expected + 1.1 {
            wrong.push((sampler, found));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}

fn smooth_schedule() -> Schedule {
    let (first, last) = (0.00085_f64.sqrt(), 0.012_f64.sqrt());
    let n = 200_000;
    let beta =
        |i: u32| (first + (last - first) * f64::from(i) / f64::from(n - 1)).powi(2) * 1000.0 / f64::from(n);
    // Less noise than that of sigma 0.2 there is not, since the way from there is not smooth in time.
    Schedule::from_betas([0.04].into_iter().chain((1..n).map(beta)))
}

#[test]
fn each_solver_over_timesteps_has_its_order() {
    let schedule = smooth_schedule();
    for (sampler, expected, n) in [
        (SamplerName::Ddim, 1.0, 100),
        // Its weights are those of evenly spaced sigmas, which evenly spaced timesteps are not.
        (SamplerName::Plms, 2.0, 100),
        // Its last step is of first order, once.
        (SamplerName::UniPc, 2.0, 100),
    ] {
        let error = |n: u32| {
            let solver = Solver::new(&schedule, sampler, ScheduleName::Automatic, n).unwrap();
            let mut host = Gaussian::new(&schedule, Parameterization::Epsilon);
            let Ok(found) = solver.run(vec![1.3], Parameterization::Epsilon, &mut host);
            let (first, last) = match sampler {
                SamplerName::UniPc => (schedule.timesteps() - 1, 0),
                _ => (host.calls[0] as usize, 1),
            };
            let [from, to] = [first, last].map(|t| (schedule.add_noise(t), schedule.t_to_sigma(t as f64)));
            let end = exact(1.3 / from.0.signal, from.1, to.1) * to.0.signal;
            (found[0] - end).abs()
        };
        let found = order(error, n);
        assert!(found > expected - 0.35, "{sampler}: {found}");
    }
}

#[test]
fn adaptive_steps_come_near_enough() {
    let schedule = Schedule::scaled_linear();
    let solver = Solver::new(&schedule, SamplerName::DpmAdaptive, ScheduleName::Automatic, 20).unwrap();
    let solver = solver.with_options(SolverOptions { eta: Some(0.0), ..SolverOptions::default() });
    let (from, to) = (solver.start(), solver.sigma_range().0);
    let (found, calls) = run(&solver, 20.0, Parameterization::Epsilon);
    assert!((found - exact(20.0, from, to)).abs() < 0.05, "{found}");
    assert!((15..200).contains(&calls.len()), "{}", calls.len());
}

#[test]
fn what_the_network_predicts_does_not_matter() {
    let schedule = Schedule::scaled_linear();
    for sampler in SamplerName::ALL {
        let solver = Solver::new(&schedule, sampler, ScheduleName::Automatic, 12).unwrap();
        let x = 1.1 * solver.start();
        let [(eps, calls), (v, _)] =
            [Parameterization::Epsilon, Parameterization::V].map(|p| run(&solver, x, p));
        // UniPC has its own way between timesteps and LCM asks for the nearest of 50, which the network here, who needs
        // the sigma for v, does not know.
        let allowed = match sampler {
            SamplerName::UniPc => 1e-5,
            SamplerName::Lcm => 1e-2,
            _ => 1e-9,
        };
        assert!((eps - v).abs() < allowed, "{sampler}: {eps} and {v}");
        let expected = solver.calls();
        assert!(
            calls.len() == expected || sampler == SamplerName::DpmAdaptive,
            "{sampler}: {} and {expected}",
            calls.len()
        );
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let check = |sampler, spacing, steps| Solver::check(sampler, spacing, steps).unwrap_err().to_string();
    assert_eq!(check(SamplerName::Euler, ScheduleName::Uniform, 0), "Euler takes 1 to 1000 steps, found 0");
    assert_eq!(check(SamplerName::Ddim, ScheduleName::Automatic, 1), "DDIM takes 2 to 1000 steps, found 1");
    assert!(check(SamplerName::Ddim, ScheduleName::Uniform, 9).contains("timesteps of its own"));
    let schedule = Schedule::scaled_linear();
    let denoising = Denoising { strength: 1.5, exact_steps: false };
    let image = Solver::image_to_image(&schedule, SamplerName::Euler, ScheduleName::Automatic, 20, denoising);
    assert_eq!(image.unwrap_err().to_string(), "the denoising strength is 1.5, expected 0 to 1");
}

#[test]
fn every_number_of_steps_runs() {
    let schedule = Schedule::scaled_linear();
    for sampler in SamplerName::ALL {
        for steps in (1..8).chain([20, 36, 50]) {
            let Ok(solver) = Solver::new(&schedule, sampler, ScheduleName::Automatic, steps) else {
                continue;
            };
            let (found, _) = run(&solver, solver.start(), Parameterization::Epsilon);
            assert!(found.is_finite(), "{sampler} {steps}");
        }
    }
}

#[test]
fn euler_starts_at_the_largest_sigma_and_ends_at_none() {
    let schedule = Schedule::scaled_linear();
    let euler = Solver::new(&schedule, SamplerName::Euler, ScheduleName::Automatic, 20).unwrap();
    assert_eq!(euler.start(), *schedule.sigmas().last().unwrap());
    let (_, calls) = run(&euler, 1.0, Parameterization::Epsilon);
    assert_eq!((calls.len(), calls[0], calls[19]), (20, 999.0, 0.0));
}

#[test]
fn ddim_makes_the_calls_that_a1111_makes() {
    let timesteps = |steps| {
        let solver =
            Solver::new(&Schedule::scaled_linear(), SamplerName::Ddim, ScheduleName::Automatic, steps)
                .unwrap();
        run(&solver, 1.0, Parameterization::Epsilon).1
    };
    let twenty = timesteps(20);
    assert_eq!((twenty.len(), twenty[0], twenty[18]), (19, 951.0, 51.0));
    let thirty = timesteps(30);
    assert_eq!((thirty.len(), thirty[0], thirty[29]), (30, 991.0, 34.0));
    assert_eq!(timesteps(1000).len(), 999);
}

#[test]
fn ancestral_steps_are_those_of_k_diffusion() {
    let sigmas = Schedule::scaled_linear().spaced_sigmas(ScheduleName::Uniform, 20);
    for (step, up, down) in [
        (0, 7.283_032_948, 7.902_606_801),
        (10, 0.673_184_463, 1.048_271_496),
        (18, 0.028_936_066, 0.003_664_316),
    ] {
        let found = ancestral_step(sigmas[step], sigmas[step + 1], 1.0);
        assert!((found.0 - down).abs() < 1e-8 && (found.1 - up).abs() < 1e-8, "{found:?}");
    }
}

#[test]
fn image_to_image_enters_where_a1111_enters() {
    for (steps, strength, exact, plain) in
        [(20, 0.75, (26, 19), 15), (20, 0.7, (28, 19), 14), (20, 0.35, (57, 19), 7), (28, 0.4, (70, 27), 11)]
    {
        assert_eq!(image_steps(steps, Denoising { strength, exact_steps: true }), exact);
        assert_eq!(image_steps(steps, Denoising { strength, exact_steps: false }), (steps, plain));
    }
    let schedule = Schedule::scaled_linear();
    let image = |sampler, strength, exact_steps| {
        let denoising = Denoising { strength, exact_steps };
        Solver::image_to_image(&schedule, sampler, ScheduleName::Automatic, 20, denoising).unwrap()
    };
    assert_eq!(image(SamplerName::Euler, 0.75, false).calls(), 16);
    assert_eq!(image(SamplerName::Euler, 0.75, true).calls(), 20);
    assert_eq!(image(SamplerName::Euler, 0.0, false).calls(), 1);
    assert_eq!(image(SamplerName::Euler, 1.0, false).calls(), 20);
    let ddim = image(SamplerName::Ddim, 0.75, false);
    assert_eq!((ddim.calls(), ddim.first()), (14, schedule.add_noise(751)));
    assert_eq!(image(SamplerName::Ddim, 0.0, false).calls(), 0);
    for sampler in SamplerName::ALL {
        let solver = image(sampler, 0.6, false);
        assert!(run(&solver, 0.5, Parameterization::Epsilon).0.is_finite(), "{sampler}");
    }
}
