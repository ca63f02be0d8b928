//! What solvers compute with.

/// A vector of latents: tensors on any device, or plain numbers.
pub trait Latent: Sized {
    /// The sum of the vectors, each times its factor. At least one is given.
    fn combine(terms: &[(f64, &Self)]) -> Self;

    /// The root mean square of `(low - high) / max(absolute, relative * max(|low|, |before|))`, over all elements: how
    /// wrong an adaptive step is.
    fn error(low: &Self, high: &Self, before: &Self, absolute: f64, relative: f64) -> f64;
}

impl Latent for Vec<f64> {
    fn combine(terms: &[(f64, &Self)]) -> Self {
        let length = terms.first().map_or(0, |(_, vector)| vector.len());
        (0..length).map(|i| terms.iter().map(|(factor, vector)| factor * vector[i]).sum()).collect()
    }

    fn error(low: &Self, high: &Self, before: &Self, absolute: f64, relative: f64) -> f64 {
        let sum: f64 = (0..low.len())
            .map(|i| {
                let allowed = absolute.max(relative * low[i].abs().max(before[i].abs()));
                ((low[i] - high[i]) / allowed).powi(2)
            })
            .sum();
        (sum / low.len() as f64).sqrt()
    }
}
