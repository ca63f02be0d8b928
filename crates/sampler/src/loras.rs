//! LoRA files in the weights of networks that are loaded already.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use tch::{Kind, Tensor, no_grad};
use vodka_checkpoint::{Lora, ModelConfig, Part};
use vodka_merger::lora_delta;
use vodka_prompt::LoraUse;

use crate::{Error, Result};

/// Which LoRA files are in the weights, and what these were without.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    loras: Vec<(PathBuf, LoraUse)>,
    /// By LDM name, on the processor.
    before: HashMap<String, Tensor>,
}

impl Applied {
    /// Changes the weights in place, so that they are those of the checkpoint plus these files' differences; to the bit those
    /// of the checkpoint where there are none. Sums are in fp32, rounded once.
    ///
    /// # Errors
    /// A file that is no LoRA for these networks, or holds values that are not finite; the weights are then as they were.
    ///
    /// Tells whether anything was changed.
    pub(crate) fn set(
        &mut self,
        wanted: Vec<(PathBuf, LoraUse)>,
        config: &ModelConfig,
        state: &dyn Fn() -> Vec<(String, Tensor)>,
    ) -> Result<bool> {
        if wanted == self.loras {
            return Ok(false);
        }
        no_grad(|| {
            let state: HashMap<String, Tensor> = state().into_iter().collect();
            let mut sums: BTreeMap<String, Tensor> = BTreeMap::new();
            for (path, lora) in &wanted {
                add(path, lora, config, &state, &mut sums)?;
            }
            for (name, before) in self.before.drain() {
                state[&name].shallow_clone().copy_(&before);
            }
            for (name, sum) in sums {
                let mut weight = state[&name].shallow_clone();
                self.before.insert(name, weight.to_device(tch::Device::Cpu).copy());
                let changed = weight.to_kind(Kind::Float) + sum;
                weight.copy_(&changed.to_kind(weight.kind()));
            }
            self.loras = wanted;
            Ok(true)
        })
    }
}

/// Adds what one file changes to the sums.
fn add(
    path: &Path,
    LoraUse { name, text_encoder, unet }: &LoraUse,
    config: &ModelConfig,
    state: &HashMap<String, Tensor>,
    sums: &mut BTreeMap<String, Tensor>,
) -> Result<()> {
    let lora = Lora::open(path, config)?;
    for (ldm, module) in lora.modules() {
        let factor = if Part::of(ldm) == Some(Part::TextEncoder) { *text_encoder } else { *unet };
        if factor == 0.0 {
            continue;
        }
        let weight = &state[ldm];
        let delta = lora_delta(&lora, ldm)?.expect("it is one of its modules");
        let matrix = |values: &[f32], shape: [i64; 2]| {
            Tensor::from_slice(values).view(shape).to_device(weight.device())
        };
        let rank = module.rank as i64;
        let product = matrix(&delta.up, [-1, rank]).matmul(&matrix(&delta.down, [rank, -1]));
        let product = product.view(&weight.size()[..]) * (f64::from(delta.scale) * factor);
        if product.isfinite().all().int64_value(&[]) == 0 {
            return Err(Error::LoraNotFinite { name: name.clone(), tensor: ldm.clone() });
        }
        let sum = match sums.remove(ldm) {
            Some(sum) => sum + product,
            None => product,
        };
        sums.insert(ldm.clone(), sum);
    }
    Ok(())
}
