//! What a LoRA adds to a weight.

use vodka_checkpoint::{Lora, LoraModule};

use crate::{Result, kernel::LoraDelta};

/// What a LoRA adds to a weight, by its LDM name, if it does.
///
/// # Errors
/// A tensor that cannot be read.
pub fn lora_delta(lora: &Lora, ldm: &str) -> Result<Option<LoraDelta>> {
    let Some(module) = lora.modules().get(ldm) else { return Ok(None) };
    let LoraModule { down, up, mid, rank, .. } = module;
    let (up, mut down_values) = (lora.tensor(up)?.to_f32(), lora.tensor(down)?.to_f32());
    if let Some(mid) = mid {
        let mid = lora.tensor(mid)?;
        let kernel = mid.shape[2..].iter().product();
        down_values = through_mid(&mid.to_f32(), &down_values, *rank, kernel);
    }
    Ok(Some(LoraDelta { up, down: down_values, rank: *rank, scale: module.scale() as f32 }))
}

/// The product of Tucker's middle tensor (rank, rank, kernel) and `down` (rank, in): (rank, in * kernel).
fn through_mid(mid: &[f32], down: &[f32], rank: usize, kernel: usize) -> Vec<f32> {
    let inputs = down.len() / rank;
    let mut product = vec![0.0; rank * inputs * kernel];
    for (row, product) in product.chunks_mut(inputs * kernel).enumerate() {
        for k in 0..rank {
            for (input, product) in product.chunks_mut(kernel).enumerate() {
                let mid = &mid[(row * rank + k) * kernel..][..kernel];
                product.iter_mut().zip(mid).for_each(|(p, mid)| *p += mid * down[k * inputs + input]);
            }
        }
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_tensor_is_worked_into_down() {
        // Rank 2, one input, a kernel of 2: product[a][k] = sum over b of mid[a][b][k] * down[b].
        let mid = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        assert_eq!(through_mid(&mid, &[10.0, 100.0], 2, 2), [310.0, 420.0, 750.0, 860.0]);
    }
}
