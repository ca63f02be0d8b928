//! The three networks of a checkpoint together.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use tch::{Device, Kind, Tensor};
use vodka_checkpoint::{Checkpoint, ModelConfig, Precision, write_checkpoint, write_diffusers};

use crate::{ClipTextModel, Error, Network, Result, UNet, Vae};

/// A Stable Diffusion 1.x model.
#[derive(Debug)]
pub struct StableDiffusion {
    /// The text encoder.
    pub clip: ClipTextModel,
    /// The denoiser.
    pub unet: UNet,
    /// The image encoder and decoder.
    pub vae: Vae,
    /// The shapes of all three, and what the denoiser predicts.
    pub config: ModelConfig,
}

impl StableDiffusion {
    /// Builds the networks with the weights of `checkpoint`, frozen, in `kind` on `device`.
    ///
    /// # Errors
    /// Missing, unexpected and wrongly shaped tensors, all listed, and a device without the memory for it. Values are
    /// not looked at; [`Checkpoint::verify`] finds those that are not finite.
    pub fn load(checkpoint: &Checkpoint, device: Device, kind: Kind) -> Result<Self> {
        checkpoint.check_names()?;
        Ok(Self {
            clip: ClipTextModel::load(checkpoint, device, kind)?,
            unet: UNet::load(checkpoint, device, kind)?,
            vae: Vae::load(checkpoint, device, kind)?,
            config: checkpoint.config().clone(),
        })
    }

    /// All parameters under their LDM names; they share the networks' memory.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        [self.unet.state(), self.vae.state(), self.clip.state()].into_iter().flatten().collect()
    }

    /// Writes a single-file checkpoint, whole or not at all; the same weights give the same bytes.
    ///
    /// # Errors
    /// A value that is not finite or too large for `precision`, and a disk that is full.
    pub fn save(
        &self,
        path: impl AsRef<Path>,
        precision: Precision,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        write_checkpoint(path, &self.config, precision, metadata, &mut self.reader())
    }

    /// Writes a diffusers folder, whole or not at all; the same weights give the same bytes.
    ///
    /// # Errors
    /// As [`StableDiffusion::save`].
    pub fn save_diffusers(&self, path: impl AsRef<Path>, precision: Precision) -> Result<()> {
        write_diffusers(path, &self.config, precision, &mut self.reader())
    }

    /// Shape and elements of each parameter, by LDM name.
    fn reader(&self) -> impl FnMut(&str) -> Result<(Vec<usize>, Vec<f32>)> {
        let state: HashMap<String, Tensor> = self.state().into_iter().collect();
        move |name| {
            let tensor =
                state.get(name).unwrap_or_else(|| panic!("{name} is in the key list and not in the model"));
            values(name, tensor)
        }
    }
}

/// The shape and the elements of a tensor on any device and in any kind.
fn values(name: &str, tensor: &Tensor) -> Result<(Vec<usize>, Vec<f32>)> {
    let download = |source| Error::Download { name: name.to_owned(), source };
    let shape = tensor.size().iter().map(|n| *n as usize).collect();
    let mut values = vec![0.0; tensor.numel()];
    let tensor = tensor.f_to_device(Device::Cpu).and_then(|t| t.f_to_kind(Kind::Float)).map_err(download)?;
    let tensor = tensor.f_contiguous().map_err(download)?;
    tensor.f_copy_data(&mut values, tensor.numel()).map_err(download)?;
    Ok((shape, values))
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn what_does_not_come_back_is_told() {
        let dense = Tensor::from_slice(&[1.0_f32, 2.0]);
        assert_eq!(values("a.weight", &dense).unwrap(), (vec![2], vec![1.0, 2.0]));
        // A sparse tensor has no elements in a row.
        let error = values("a.weight", &dense.to_sparse_sparse_dim(1)).unwrap_err();
        assert_eq!(error.to_string(), "cannot copy `a.weight` from its device");
        assert!(error.source().is_some());
    }
}
