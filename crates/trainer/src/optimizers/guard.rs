//! What stands between gradients and weights: whether a step may be taken, which only the device knows, and what its
//! gradients have to be divided by.

use tch::{Device, Kind, Tensor};
use vodka_sd15::native::{norms, scale};

/// Whether a step is taken. All on the device of the parameters: nothing waits for it.
#[derive(Debug)]
pub struct Guard {
    /// 1 where a gradient or a loss is not finite, else 0. 32-bit, without axes
    pub found_inf: Tensor,
    /// What gradients have to be divided by before they are used; `None`: nothing. 32-bit, without axes
    pub divisor: Option<Tensor>,
    /// 1 where the step is taken, else 0. 64-bit, without axes
    pub(super) ok: Tensor,
}

impl Guard {
    /// A step that is taken in any case, along gradients as they are.
    pub fn open(device: Device) -> Self {
        Self::of(Tensor::ones([], (Kind::Double, device)))
    }

    /// One for each network, of which none steps where any of `numbers`, a loss say, is infinite or not a number, or the
    /// norm of any network's gradients.
    ///
    /// Gradients come multiplied by `scale`, where there is one; those of a network are shrunk where their norm without it
    /// is more than its `max_norm`, as `torch.nn.utils.clip_grad_norm_` does. The norms go with them, without the scale.
    pub fn for_networks(
        networks: &[(&[Tensor], Option<f64>)],
        numbers: &[Tensor],
        scale: Option<&Tensor>,
    ) -> Vec<(Self, Tensor)> {
        let norms: Vec<_> = networks.iter().map(|(gradients, _)| norm(gradients)).collect();
        let looked_at: Vec<_> = norms.iter().flatten().chain(numbers).map(Tensor::shallow_clone).collect();
        let device = looked_at.first().map_or(Device::Cpu, Tensor::device);
        let ok = match looked_at.is_empty() {
            true => Tensor::ones([], (Kind::Double, device)),
            false => Tensor::stack(&looked_at, 0).isfinite().all().to_kind(Kind::Double),
        };
        let mut guards = Vec::new();
        for (norm, (_, max_norm)) in norms.into_iter().zip(networks) {
            let norm = norm.unwrap_or_else(|| Tensor::zeros([], (Kind::Float, device)));
            let norm: Tensor = scale.map_or_else(|| norm.shallow_clone(), |scale| &norm / scale);
            let factor = max_norm.map(|max_norm| -> Tensor { (max_norm / (&norm + 1e-6)).clamp_max(1.0) });
            let divisor = match (scale, factor) {
                (None, None) => None,
                (Some(scale), None) => Some(scale.shallow_clone()),
                (None, Some(factor)) => Some(factor.reciprocal()),
                (Some(scale), Some(factor)) => Some(scale / factor),
            };
            guards.push((Self { divisor, ..Self::of(ok.shallow_clone()) }, norm));
        }
        guards
    }

    /// From a 1 or a 0.
    pub(super) fn of(ok: Tensor) -> Self {
        let found_inf: Tensor = 1.0 - &ok;
        let found_inf = found_inf.to_kind(Kind::Float);
        Self { found_inf, divisor: None, ok }
    }

    /// Divides gradients by the divisor, and makes those that are not finite 0, so that 0 times them is 0.
    pub(super) fn clean(&self, gradients: &[Tensor]) {
        if let Some(divisor) = &self.divisor {
            scale(gradients, &divisor.reciprocal()).expect("gradients of one device");
        }
        for gradient in gradients {
            let _ = gradient.shallow_clone().nan_to_num_(0.0, 0.0, 0.0);
        }
    }

    /// `share`, or 0 where no step is taken.
    pub(super) fn weight(&self, share: f64) -> Tensor {
        &self.ok * share
    }

    /// `share`, or 0 where no step is taken.
    pub(super) fn weigh(&self, share: &Tensor) -> Tensor {
        self.choose(share, &share.zeros_like())
    }

    /// 1 - `share`, or 1 where no step is taken.
    pub(super) fn decay(&self, share: f64) -> Tensor {
        1.0 - &self.ok * share
    }

    /// 1 - `share`, or 1 where no step is taken.
    pub(super) fn decay_by(&self, share: Tensor) -> Tensor {
        1.0 - self.weigh(&share)
    }

    /// The first where the step is taken, else the second.
    pub(super) fn choose(&self, new: &Tensor, old: &Tensor) -> Tensor {
        new.where_self(&self.ok.to_kind(Kind::Bool), old)
    }
}

/// The norm of all tensors together; `None` without any.
pub(super) fn norm(tensors: &[Tensor]) -> Option<Tensor> {
    if tensors.is_empty() {
        return None;
    }
    let all = norms(tensors).expect("gradients of one device");
    Some(Tensor::stack(&all, 0).norm())
}
