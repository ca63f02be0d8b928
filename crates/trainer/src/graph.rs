//! Batches of the same size, which a GPU is told of once: its work is written down, and done again on other numbers.

use std::collections::BTreeMap;

use tch::{Device, TchError, Tensor, no_grad};
use vodka_sd15::{StableDiffusion, native::Graph};

use crate::step::{Inputs, Objective, accumulate};

/// How often a batch of some size is computed before the work on it is written down: libtorch looks for the fastest
/// convolutions, and gradients get their places.
const WARM_UP: u32 = 3;

/// Computes batches; on a GPU those of a size that comes again from a record of what was done.
#[derive(Debug)]
pub struct Recorder {
    /// The device, if there is something to be recorded.
    device: Option<Device>,
    sizes: BTreeMap<Vec<i64>, Size>,
}

#[derive(Debug)]
struct Size {
    seen: u32,
    graph: Graph,
    recorded: Option<Recorded>,
}

/// What a record reads and writes: always in the same places.
#[derive(Debug)]
struct Recorded {
    inputs: Inputs,
    weights: Tensor,
    scale: Option<Tensor>,
    loss: Tensor,
}

impl Recorder {
    /// Records where it is asked to, on a GPU; and where that does not work, why.
    pub fn new(on: bool, device: Device) -> (Self, Option<TchError>) {
        let asked = (on && device.is_cuda()).then_some(device);
        let failed = asked.and_then(|device| Graph::new(device).err());
        (Self { device: asked.filter(|_| failed.is_none()), sizes: BTreeMap::new() }, failed)
    }

    /// Whether gradients must stay in their places, and be set to 0 rather than forgotten.
    pub fn keeps_gradients(&self) -> bool {
        self.device.is_some()
    }

    /// As [`accumulate`].
    ///
    /// # Errors
    /// What libtorch says of a record.
    ///
    /// # Panics
    /// When libtorch refuses, as tch's own calls do.
    pub fn accumulate(
        &mut self,
        objective: &Objective,
        model: &StableDiffusion,
        inputs: Inputs,
        weights: Tensor,
        scale: Option<&Tensor>,
    ) -> Result<Tensor, TchError> {
        let Some(device) = self.device else {
            return Ok(accumulate(objective, model, &inputs, &weights, scale));
        };
        let size = match self.sizes.entry(inputs.sizes()) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(Size { seen: 0, graph: Graph::new(device)?, recorded: None })
            }
        };
        if size.seen < WARM_UP {
            size.seen += 1;
            return size.graph.warm_up(|| accumulate(objective, model, &inputs, &weights, scale));
        }
        if let Some(recorded) = &size.recorded {
            recorded.fill(&inputs, &weights, scale);
        } else {
            let scale = scale.map(Tensor::copy);
            let loss =
                size.graph.record(|| accumulate(objective, model, &inputs, &weights, scale.as_ref()))?;
            size.recorded = Some(Recorded { inputs, weights, scale, loss });
        }
        size.graph.replay()?;
        // The next replay overwrites it.
        Ok(size.recorded.as_ref().expect("it was just made").loss.copy())
    }
}

impl Recorded {
    fn fill(&self, inputs: &Inputs, weights: &Tensor, scale: Option<&Tensor>) {
        no_grad(|| {
            for (mut to, from) in self.inputs.tensors().zip(inputs.tensors()) {
                to.copy_(&from);
            }
            self.weights.shallow_clone().copy_(weights);
            if let (Some(to), Some(from)) = (&self.scale, scale) {
                to.shallow_clone().copy_(from);
            }
        });
    }
}
