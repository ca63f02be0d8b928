//! Whose behaviour a run has, where EveryDream2 and we differ.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{geometry::CropRule, target::LossType};

/// Whose behaviour a run has. What each differs in is asked of it by name, so that this file is the list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compat {
    /// EveryDream2 of April 2023 (974d3fa), which trained Vodka V2 and V3.
    #[serde(rename = "ed2-2023-04")]
    Ed2April2023,
    /// EveryDream2 of May 2025 (5098db8).
    #[serde(rename = "ed2-head")]
    Ed2Head,
    /// What EveryDream2 means, without its defects.
    #[default]
    #[serde(rename = "vodka")]
    Vodka,
}

/// What becomes of pictures that do not fill a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Runts {
    /// They make a smaller batch, in which each picture weighs as in any other.
    Small,
    /// They are repeated until the batch is full; the loss is multiplied by their share in it to this power.
    Repeated {
        /// 1 until 2023-06-27, 1.5 since.
        power: f64,
    },
}

impl Compat {
    /// What becomes of pictures that do not fill a batch.
    pub fn runts(self) -> Runts {
        match self {
            Self::Ed2April2023 => Runts::Repeated { power: 1.0 },
            Self::Ed2Head => Runts::Repeated { power: 1.5 },
            Self::Vodka => Runts::Small,
        }
    }

    /// How pictures are cut to the shape of their bucket; `variants` are our own mode's crops of each.
    pub fn crops(self, variants: u64) -> CropRule {
        match self {
            Self::Ed2April2023 => CropRule::April2023,
            Self::Ed2Head => CropRule::Head,
            Self::Vodka => CropRule::Fixed(variants),
        }
    }

    /// Whether three buckets are as EveryDream2 misspells them.
    pub fn misspells_buckets(self) -> bool {
        self != Self::Vodka
    }

    /// How an error becomes a loss where the configuration does not say it.
    pub fn loss_type(self) -> LossType {
        if self == Self::Ed2Head { LossType::MseHuber } else { LossType::Mse }
    }

    /// How much offset noise there is where the configuration does not say it.
    pub fn offset_noise(self) -> f64 {
        if self == Self::Vodka { 0.0 } else { 0.02 }
    }

    /// Whether epochs that `rated_dataset` makes smaller take each picture once, whatever its `multiply`.
    pub fn subsets_ignore_multiply(self) -> bool {
        self != Self::Vodka
    }

    /// Whether there is pyramid noise in validation too (defect D8).
    pub fn validates_with_pyramid_noise(self) -> bool {
        self == Self::Ed2Head
    }

    /// Whether the gradients of each batch are clipped, added to those before, rather than those of a whole optimizer step
    /// (defect D4; in fp16 they are still multiplied by the scaler's factor there).
    pub fn clips_every_batch(self) -> bool {
        self == Self::Ed2April2023
    }

    /// Whether accumulated gradients are averaged, rather than summed (defect D10).
    pub fn averages_gradients(self) -> bool {
        self == Self::Vodka
    }

    /// Whether `flip_p` of the configuration flips pictures (defect D1: only the files of folders do).
    pub fn obeys_flip_p(self) -> bool {
        self == Self::Vodka
    }

    /// Whether running means of the weights start fast.
    pub fn warms_up_ema(self) -> bool {
        self == Self::Vodka
    }

    /// Whether `keep_tags` keeps tags (defect D2).
    pub fn obeys_keep_tags(self) -> bool {
        self == Self::Vodka
    }

    /// Whether each picture's tags are shuffled in their own way, rather than all of an epoch in one.
    pub fn shuffles_apart(self) -> bool {
        self == Self::Vodka
    }

    /// Whether a picture without a caption is captioned by its name, up to the first `_`; else it is an error.
    pub fn names_are_captions(self) -> bool {
        self != Self::Vodka
    }

    /// Whether a file, whose name is a picture's, is one: EveryDream2 knows no GIF.
    pub fn takes(self, path: &Path) -> bool {
        self == Self::Vodka || !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gif"))
    }

    /// Whether a JSON file beside a picture is read (defect D11: it cannot be).
    pub fn reads_json_sidecars(self) -> bool {
        self == Self::Vodka
    }

    /// Whether zip files in the data folder are unpacked (defect D11: it fails).
    pub fn unpacks_zips(self) -> bool {
        self == Self::Vodka
    }

    /// Whether `multiply: 0` and `rating: 0` count as not said.
    pub fn nought_is_unsaid(self) -> bool {
        self != Self::Vodka
    }

    /// Whether min-SNR divides by the ratio alone also for v prediction (defect D6).
    pub fn min_snr_ignores_v(self) -> bool {
        self == Self::Ed2Head
    }

    /// Whether gradients of the text encoder are clipped (defect D3, not there yet in 2023-04: its parameters are used up
    /// before).
    pub fn clips_text_encoder(self) -> bool {
        self != Self::Ed2Head
    }

    /// Whether `text_encoder_lr_scale` does nothing where the UNet is frozen.
    pub fn scales_text_encoder_with_unet_only(self) -> bool {
        self == Self::Ed2April2023
    }

    /// How many of the batches of an optimizer step are done already when so many of the run are, at the start of an epoch.
    pub(crate) fn accumulated_before(self, done: u64, grad_accum: usize) -> usize {
        match self.counts_accumulation_over_epochs() {
            true => (done % grad_accum as u64) as usize,
            false => 0,
        }
    }

    /// Whether batches are counted over the whole run for accumulation, so that the first optimizer step of an epoch may
    /// have fewer than the others, rather than anew in each epoch.
    pub fn counts_accumulation_over_epochs(self) -> bool {
        self != Self::Vodka
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of `docs/training.md`; what each line does is tested where it is done.
    #[test]
    fn modes_differ_as_the_documentation_says() {
        let modes = [Compat::Vodka, Compat::Ed2Head, Compat::Ed2April2023];
        let each = |of: fn(Compat) -> bool| modes.map(of);
        let ours = [true, false, false];
        assert_eq!(each(Compat::averages_gradients), ours, "D10");
        assert_eq!(each(Compat::obeys_flip_p), ours, "D1");
        assert_eq!(each(Compat::obeys_keep_tags), ours, "D2");
        assert_eq!(each(Compat::shuffles_apart), ours);
        assert_eq!(each(Compat::warms_up_ema), ours);
        assert_eq!(each(Compat::reads_json_sidecars), ours, "D11");
        assert_eq!(each(Compat::unpacks_zips), ours, "D11");
        assert_eq!(each(|mode| mode.takes(Path::new("a.GIF"))), ours);
        assert_eq!(each(|mode| mode.takes(Path::new("a.png"))), [true; 3]);
        let theirs = [false, true, true];
        assert_eq!(each(Compat::names_are_captions), theirs);
        assert_eq!(each(Compat::nought_is_unsaid), theirs);
        assert_eq!(each(Compat::subsets_ignore_multiply), theirs);
        assert_eq!(each(Compat::misspells_buckets), theirs);
        assert_eq!(each(Compat::counts_accumulation_over_epochs), theirs);
        assert_eq!(each(Compat::clips_text_encoder), [true, false, true], "D3");
        assert_eq!(each(Compat::clips_every_batch), [false, false, true], "D4");
        assert_eq!(each(Compat::scales_text_encoder_with_unet_only), [false, false, true]);
        assert_eq!(each(Compat::min_snr_ignores_v), [false, true, false], "D6");
        assert_eq!(each(Compat::validates_with_pyramid_noise), [false, true, false], "D8");
        let power = |power| Runts::Repeated { power };
        assert_eq!(modes.map(Compat::runts), [Runts::Small, power(1.5), power(1.0)]);
        let crops = [CropRule::Fixed(3), CropRule::Head, CropRule::April2023];
        assert_eq!(modes.map(|mode| mode.crops(3)), crops);
        assert_eq!(modes.map(Compat::loss_type), [LossType::Mse, LossType::MseHuber, LossType::Mse]);
        assert_eq!(modes.map(Compat::offset_noise), [0.0, 0.02, 0.02]);
    }
}
