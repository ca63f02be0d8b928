//! Calls of the denoiser, of which a GPU is told once for each shape: they are written down, and done again on other numbers.

use std::{collections::VecDeque, iter};

use tch::{Kind, TchError, Tensor};
use vodka_sd15::{Network, UNet, layers::Tiling, native::Graph};

/// How often a call of some shape is made before it is written down: libtorch sets itself up.
const WARM_UP: u32 = 2;
/// So many shapes are kept, those that were used latest: each has memory of its own.
const MOST: usize = 8;

/// Calls the denoiser of one pipeline; on a GPU those of a shape that comes again from a record of what was done. Weights may
/// change between calls, but not their places.
#[derive(Debug)]
pub(crate) struct Recorder {
    on: bool,
    /// The latest one last.
    shapes: VecDeque<Shape>,
    /// Why there are no records, where there should be, until it is told.
    untold: Option<String>,
}

/// What one call of the denoiser is made on.
#[derive(Debug)]
pub(crate) struct Inputs {
    /// `(B, 4, h, w)`
    pub(crate) latents: Tensor,
    /// `(B)`, fp32
    pub(crate) timesteps: Tensor,
    /// `(B, L, C)`
    pub(crate) context: Tensor,
    /// Of ControlNets, for each skip connection and the middle; none where there are none.
    pub(crate) residuals: Vec<Tensor>,
}

#[derive(Debug)]
struct Shape {
    sizes: Vec<Vec<i64>>,
    tiling: bool,
    seen: u32,
    graph: Graph,
    recorded: Option<Recorded>,
}

/// What a record reads and writes: always in the same places.
#[derive(Debug)]
struct Recorded {
    inputs: Inputs,
    output: Tensor,
}

impl Inputs {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        iter::chain([&self.latents, &self.timesteps, &self.context], &self.residuals)
    }

    fn of_its_own(&self) -> Self {
        let [latents, timesteps, context] = [&self.latents, &self.timesteps, &self.context].map(Tensor::copy);
        Self { latents, timesteps, context, residuals: self.residuals.iter().map(Tensor::copy).collect() }
    }

    /// What the denoiser makes of them, in fp32. `(B, 4, h, w)`
    pub(crate) fn through(&self, unet: &UNet) -> Tensor {
        let Self { latents, timesteps, context, residuals } = self;
        unet.forward_controlled(latents, timesteps, context, residuals).to_kind(Kind::Float)
    }
}

impl Recorder {
    /// Records where it is asked to, on a GPU whose library can.
    pub(crate) fn new(on: bool) -> Self {
        Self { on, shapes: VecDeque::new(), untold: None }
    }

    /// As [`Inputs::through`]; where libtorch cannot record, without records from then on.
    pub(crate) fn call(&mut self, unet: &UNet, inputs: &Inputs) -> Tensor {
        match self.on && unet.vars().device().is_cuda() {
            true => self.recorded(unet, inputs),
            false => inputs.through(unet),
        }
    }

    /// Why there are no records from now on, where there should be; once.
    pub(crate) fn given_up(&mut self) -> Option<String> {
        self.untold.take()
    }

    fn recorded(&mut self, unet: &UNet, inputs: &Inputs) -> Tensor {
        self.replayed(unet, inputs).unwrap_or_else(|error| {
            *self = Self { untold: Some(error.to_string()), ..Self::new(false) };
            inputs.through(unet)
        })
    }

    fn replayed(&mut self, unet: &UNet, inputs: &Inputs) -> Result<Tensor, TchError> {
        let sizes: Vec<_> = inputs.tensors().map(Tensor::size).collect();
        let tiling = Tiling::is_on();
        let is_it = |shape: &Shape| shape.sizes == sizes && shape.tiling == tiling;
        let place = self.shapes.iter().position(is_it);
        let shape = match place.and_then(|place| self.shapes.remove(place)) {
            Some(shape) => shape,
            None => {
                let graph = Graph::new(unet.vars().device())?;
                Shape { sizes, tiling, seen: 0, graph, recorded: None }
            }
        };
        if self.shapes.len() == MOST {
            self.shapes.pop_front();
        }
        self.shapes.push_back(shape);
        self.shapes.back_mut().expect("one was just added").call(unet, inputs)
    }
}

impl Shape {
    fn call(&mut self, unet: &UNet, inputs: &Inputs) -> Result<Tensor, TchError> {
        if self.seen < WARM_UP {
            self.seen += 1;
            return self.graph.warm_up(|| inputs.through(unet));
        }
        if let Some(recorded) = &self.recorded {
            for (to, from) in recorded.inputs.tensors().zip(inputs.tensors()) {
                to.shallow_clone().copy_(from);
            }
        } else {
            // What is written over again and again must be nobody else's.
            let inputs = inputs.of_its_own();
            let output = self.graph.record(|| inputs.through(unet))?;
            self.recorded = Some(Recorded { inputs, output });
        }
        self.graph.replay()?;
        // The next replay overwrites it.
        Ok(self.recorded.as_ref().expect("it was just made").output.copy())
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::ModelSource;

    /// As on a GPU that refuses: a processor does.
    #[test]
    fn what_cannot_be_recorded_is_done_and_told_once() {
        let model = ModelSource::Checkpoint(vodka_testkit::model("base")).open().unwrap();
        let unet = UNet::load(model.weights(), Device::Cpu, Kind::Float).unwrap();
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let inputs = Inputs {
            latents: random(&[1, 4, 8, 8]),
            timesteps: Tensor::from_slice(&[500f32]),
            context: random(&[1, 77, model.config().clip.hidden_size]),
            residuals: Vec::new(),
        };
        let _no_grad = tch::no_grad_guard();
        let expected = inputs.through(&unet);
        let mut recorder = Recorder::new(true);
        assert_eq!(recorder.call(&unet, &inputs), expected);
        assert_eq!(recorder.given_up(), None, "nothing is missed on a processor");
        assert_eq!(recorder.recorded(&unet, &inputs), expected);
        let told = recorder.given_up().unwrap();
        assert!(told.contains("CUDA graphs are for GPUs"), "{told}");
        assert_eq!((recorder.given_up(), recorder.on), (None, false));
    }
}
