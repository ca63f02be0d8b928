//! How much noise a timestep has.

/// The factors of `x_t = signal * x_0 + noise * eps`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficients {
    /// The factor of the picture, the square root of alphas_cumprod.
    pub signal: f64,
    /// The factor of the noise, the square root of 1 - alphas_cumprod.
    pub noise: f64,
}

/// The noise of each training timestep, from the least to the most.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    alphas_cumprod: Vec<f64>,
    log_sigmas: Vec<f64>,
}

impl Schedule {
    /// The schedule of every Stable Diffusion 1.x: 1000 timesteps, beta from 0.00085 to 0.012, linear in its square
    /// root (CompVis/stable-diffusion, `ldm/modules/diffusionmodules/util.py`, `make_beta_schedule("linear")`; diffusers
    /// calls it `scaled_linear`).
    pub fn scaled_linear() -> Self {
        let (first, last) = (0.00085_f64.sqrt(), 0.012_f64.sqrt());
        Self::from_betas((0..1000).map(|i| (first + (last - first) * f64::from(i) / 999.0).powi(2)))
    }

    /// The schedule with these variances of the single steps, each in 0..1.
    pub fn from_betas(betas: impl IntoIterator<Item = f64>) -> Self {
        let mut product = 1.0;
        let next = |beta: f64| {
            product *= 1.0 - beta;
            product
        };
        Self::from_alphas_cumprod(betas.into_iter().map(next).collect())
    }

    fn from_alphas_cumprod(alphas_cumprod: Vec<f64>) -> Self {
        let log_sigmas = alphas_cumprod.iter().map(|a| 0.5 * ((1.0 - a) / a).ln()).collect();
        Self { alphas_cumprod, log_sigmas }
    }

    /// The same schedule with nothing but noise at the last timestep: the signals, square roots of alphas_cumprod, are
    /// shifted so that the last is 0 and scaled so that the first stays (Lin et al. 2023, arXiv:2305.08891, algorithm
    /// 1; diffusers' `rescale_betas_zero_snr`).
    pub fn zero_terminal_snr(&self) -> Self {
        let signals: Vec<_> = self.alphas_cumprod.iter().map(|a| a.sqrt()).collect();
        let (first, last) = (signals[0], signals[signals.len() - 1]);
        let alphas_cumprod = signals.iter().map(|signal| ((signal - last) * first / (first - last)).powi(2));
        Self::from_alphas_cumprod(alphas_cumprod.collect())
    }

    /// The same schedule without an infinite sigma, for sampling: a last alphas_cumprod of 0 becomes 2^-24, as in diffusers'
    /// Euler scheduler with `rescale_betas_zero_snr` (0.38, `scheduling_euler_discrete.py`).
    #[must_use]
    pub fn with_finite_sigmas(&self) -> Self {
        const SMALLEST: f64 = 1.0 / (1 << 24) as f64;
        Self::from_alphas_cumprod(self.alphas_cumprod.iter().map(|a| a.max(SMALLEST)).collect())
    }

    /// The number of timesteps.
    pub fn timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// For each timestep the share of the picture in the variance, descending within 0..1.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// For each timestep the ratio of noise to picture, sqrt((1 - a) / a), ascending.
    pub fn sigmas(&self) -> Vec<f64> {
        self.log_sigmas.iter().map(|log| log.exp()).collect()
    }

    /// How the training example of timestep `t` is mixed.
    ///
    /// # Panics
    /// When `t` is not below [`Schedule::timesteps`].
    pub fn add_noise(&self, t: usize) -> Coefficients {
        let a = self.alphas_cumprod[t];
        Coefficients { signal: a.sqrt(), noise: (1.0 - a).sqrt() }
    }

    /// The signal-to-noise ratio of timestep `t`, a / (1 - a) (Hang et al. 2023, arXiv 2303.09556, uses it for weights).
    ///
    /// # Panics
    /// When `t` is not below [`Schedule::timesteps`].
    pub fn snr(&self, t: usize) -> f64 {
        let a = self.alphas_cumprod[t];
        a / (1.0 - a)
    }

    /// The sigma of a fractional timestep: the logarithm of sigma is interpolated linearly (k-diffusion,
    /// `DiscreteSchedule.t_to_sigma`). Outside the table the nearest end counts.
    pub fn t_to_sigma(&self, t: f64) -> f64 {
        let last = self.timesteps() - 1;
        let t = t.clamp(0.0, last as f64);
        let low = (t.floor() as usize).min(last.saturating_sub(1));
        let high = (low + 1).min(last);
        let w = t - low as f64;
        ((1.0 - w) * self.log_sigmas[low] + w * self.log_sigmas[high]).exp()
    }

    /// The fractional timestep of a sigma, the inverse of [`Schedule::t_to_sigma`].
    pub fn sigma_to_t(&self, sigma: f64) -> f64 {
        let log = sigma.ln();
        let last = self.timesteps() - 1;
        let low =
            self.log_sigmas.partition_point(|l| *l <= log).saturating_sub(1).min(last.saturating_sub(1));
        let high = (low + 1).min(last);
        let span = self.log_sigmas[high] - self.log_sigmas[low];
        let w = if span > 0.0 { (log - self.log_sigmas[low]) / span } else { 0.0 };
        low as f64 + w.clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ScheduleName;

    fn near(actual: f64, expected: f64, relative: f64) {
        assert!((actual - expected).abs() <= relative * expected.abs(), "{actual} is not {expected}");
    }

    #[test]
    fn the_table_is_the_published_one() {
        let schedule = Schedule::scaled_linear();
        let a = schedule.alphas_cumprod();
        near(a[0], 0.99915, 1e-12);
        near(a[1], 0.998_296_027_8, 1e-9);
        near(a[500], 0.276_332_683_8, 1e-9);
        near(a[999], 0.004_660_098_5, 1e-8);
        let sigmas = schedule.sigmas();
        near(sigmas[0], 0.029_167_158_2, 1e-8);
        near(sigmas[999], 14.614_641_229_3, 1e-10);
    }

    #[test]
    fn signal_and_noise_keep_the_variance() {
        let schedule = Schedule::scaled_linear();
        for t in [0, 1, 500, 999] {
            let mix = schedule.add_noise(t);
            near(mix.signal.powi(2) + mix.noise.powi(2), 1.0, 1e-14);
            near((mix.signal / mix.noise).powi(2), schedule.snr(t), 1e-12);
        }
    }

    #[test]
    fn without_terminal_signal_the_first_timestep_stays() {
        let (plain, zero) = (Schedule::scaled_linear(), Schedule::scaled_linear().zero_terminal_snr());
        near(zero.alphas_cumprod()[0], plain.alphas_cumprod()[0], 1e-14);
        assert_eq!(zero.snr(999), 0.0);
        assert!(zero.alphas_cumprod().windows(2).all(|pair| pair[0] > pair[1]));
    }

    #[test]
    fn sigma_and_t_are_inverse_and_clamped() {
        let schedule = Schedule::scaled_linear();
        for t in [0.0, 0.25, 1.0, 499.5, 998.0, 998.75, 999.0] {
            assert!((schedule.sigma_to_t(schedule.t_to_sigma(t)) - t).abs() < 1e-9, "{t}");
        }
        assert_eq!(schedule.sigma_to_t(100.0), 999.0);
        assert_eq!(schedule.sigma_to_t(0.001), 0.0);
        assert_eq!(schedule.sigma_to_t(0.0), 0.0);
    }

    #[test]
    fn fractional_timesteps_are_those_of_the_karras_sigmas() {
        // k-diffusion's Karras sigmas of 20 steps, with the timesteps it asks the network at.
        let schedule = Schedule::scaled_linear();
        for (sigma, t) in [(11.72536, 961.7327), (3.46475, 709.5293), (0.27304, 69.2563), (0.04848, 1.7829)] {
            let found = schedule.sigma_to_t(sigma);
            assert!((found - t).abs() < 0.01, "{sigma}: {found}");
        }
    }

    #[test]
    fn uniform_sigmas_are_the_published_ones() {
        let schedule = Schedule::scaled_linear();
        let ten = [
            14.61464123,
            7.83988287,
            4.60917413,
            2.91830712,
            1.95016147,
            1.34492778,
            0.93235797,
            0.62497692,
            0.36865775,
            0.02916716,
            0.0,
        ];
        let twenty = [
            14.61464, 10.74680, 8.08152, 6.20493, 4.85565, 3.86538, 3.12376, 2.55717, 2.11566, 1.76482,
            1.48058, 1.24581, 1.04814, 0.87843, 0.72972, 0.59643, 0.47358, 0.35555, 0.23216, 0.02917, 0.0,
        ];
        for (steps, expected) in [(10, &ten[..]), (20, &twenty[..])] {
            let found = schedule.spaced_sigmas(ScheduleName::Uniform, steps);
            assert_eq!(found.len(), expected.len());
            for (f, e) in found.iter().zip(expected) {
                assert!((f - e).abs() < 6e-6, "{f} is not {e}");
            }
        }
        assert_eq!(schedule.spaced_sigmas(ScheduleName::Uniform, 1).len(), 2);
        near(schedule.spaced_sigmas(ScheduleName::Uniform, 1)[0], 14.614_641_229_3, 1e-10);
    }
}
