//! Whether a device's memory is enough for pictures, before they are begun.

use serde::Serialize;
use tch::{Device, Kind};
use vodka_checkpoint::{ModelConfig, keys};
use vodka_sd15::{VaeTiles, memory};

use crate::{Error, Load, Result, Settings, Size, conditioning::Prompts};

/// What libtorch takes for itself.
const LIBTORCH_BYTES: u64 = 300_000_000;

/// Memory that pictures need, and that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The weights of all networks.
    pub weights_bytes: u64,
    /// The UNet's feature maps at their most, of the largest pass, and a copy of its largest weight.
    pub unet_bytes: u64,
    /// Those of the VAE, which does one picture at a time.
    pub vae_bytes: u64,
    /// Whether the VAE goes over it in tiles, because it is asked to, or because memory would not be enough otherwise.
    pub vae_in_tiles: bool,
    /// All that is needed at a time.
    pub needed_bytes: u64,
    /// What the device has; absent where that is not known (of a GPU, before it is used).
    pub available_bytes: Option<u64>,
}

/// Pictures that are made at once, as far as memory depends on them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    /// Rows of the UNet's batch.
    rows: u64,
    /// Pixels of the largest pass.
    size: Size,
    /// Whether their edges are to fit together, for which the VAE needs them whole.
    tiling: bool,
}

impl Job {
    /// So many pictures with these settings.
    ///
    /// # Errors
    /// Prompts that cannot be read.
    pub(crate) fn new(settings: &Settings, count: usize) -> Result<Self> {
        let mut job = Self { rows: 0, size: Size { width: 0, height: 0 }, tiling: settings.tiling };
        let pixels = |size: Size| u64::from(size.width) * u64::from(size.height);
        let enlarged = settings.hires.as_ref().map(|hires| hires.enlarged(settings.size).size);
        for size in [Some(settings.size), enlarged].into_iter().flatten() {
            if pixels(size) > pixels(job.size) {
                job.size = size;
            }
        }
        for pass in settings.passes() {
            job.rows = job.rows.max(Prompts::rows(&pass)? * count as u64);
        }
        Ok(job)
    }

    /// What it needs of a model of this form. `weights` says whether these are yet to be loaded.
    pub(crate) fn need(
        self,
        config: &ModelConfig,
        load: &Load,
        weights: bool,
        available: Option<u64>,
    ) -> Need {
        let bytes = |elements: u64, kind: Kind| elements * kind.elt_size_in_bytes() as u64;
        let unet = keys::unet(&config.unet);
        let networks = memory::weights(&unet) + memory::weights(&keys::clip(&config.clip));
        let vae = memory::weights(&keys::vae(&config.vae));
        let weights_bytes = bytes(networks, load.kind) + bytes(vae, load.vae_kind);
        let base = if weights { weights_bytes + LIBTORCH_BYTES } else { 0 };
        let size = [self.size.height, self.size.width].map(i64::from);
        let latents = size.map(|side| side / config.vae.downscale());
        let maps = memory::unet(&config.unet, latents) * self.rows;
        let unet_bytes = bytes(maps + memory::largest(&unet), load.kind);
        let whole = memory::vae_decoder(&config.vae, size).max(memory::vae_encoder(&config.vae, size));
        let whole = bytes(whole, load.vae_kind);
        let tiles = load.vae_tiles.filter(|_| !self.tiling);
        let in_tiles = tiles.and_then(|VaeTiles { side_px, .. }| {
            let is_asked = side_px.is_some();
            let side_px = i64::from(side_px.unwrap_or(VaeTiles::SIDE_PX));
            let is_cut = size.iter().any(|side| *side > side_px);
            let is_short = available.is_some_and(|available| base + whole > available);
            (is_cut && (is_asked || is_short))
                .then(|| bytes(memory::vae_in_tiles(&config.vae, size, side_px), load.vae_kind))
        });
        let vae_bytes = in_tiles.unwrap_or(whole);
        Need {
            weights_bytes,
            unet_bytes,
            vae_bytes,
            vae_in_tiles: in_tiles.is_some(),
            needed_bytes: base + unet_bytes.max(vae_bytes),
            available_bytes: available,
        }
    }

    /// # Errors
    /// [`Error::Memory`] where the device has less than is needed.
    pub(crate) fn check(self, config: &ModelConfig, load: &Load, weights: bool) -> Result<()> {
        let available = memory::available(load.device);
        let Need { needed_bytes, .. } = self.need(config, load, weights, available);
        match available {
            Some(available) if needed_bytes > available => {
                let Self { rows, size, .. } = self;
                Err(Error::Memory { size, rows, needed_bytes, available_bytes: available })
            }
            _ => Ok(()),
        }
    }
}

/// What is needed before the device is used: of a GPU it is not known yet what there is.
pub(crate) fn planned(job: Job, config: &ModelConfig, load: &Load, is_processor: bool) -> Need {
    let available = if is_processor { memory::available(Device::Cpu) } else { None };
    job.need(config, load, true, available)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(size: &str, count: usize) -> Job {
        let settings = Settings { size: size.parse().unwrap(), ..Settings::default() };
        Job::new(&settings, count).unwrap()
    }

    #[test]
    fn batches_and_passes_count() {
        let rows = |settings: &Settings, count| {
            let Job { rows, size, .. } = Job::new(settings, count).unwrap();
            (rows, size.to_string())
        };
        let base = || Settings { prompt: "a".into(), ..Settings::default() };
        assert_eq!(rows(&base(), 3), (6, "512x512".into()));
        assert_eq!(rows(&Settings { cfg_scale: 1.0, ..base() }, 3), (3, "512x512".into()));
        let joined = Settings { prompt: "a AND b AND c".into(), ..base() };
        assert_eq!(rows(&joined, 2), (8, "512x512".into()));
        let hires = crate::Hires { prompt: "a AND b".into(), ..crate::Hires::default() };
        assert_eq!(rows(&Settings { hires: Some(hires), ..base() }, 1), (3, "1024x1024".into()));
    }

    #[test]
    fn tiles_are_taken_where_memory_is_short() {
        let config = ModelConfig::sd15();
        let load = Load::new(Device::Cpu, Kind::Half);
        let need = |load: &Load, size: &str, available| job(size, 1).need(&config, load, true, available);
        let small = need(&load, "512x512", Some(8_000_000_000));
        assert_eq!(small.weights_bytes, 2 * 982_581_444 + 4 * 83_653_863);
        assert!(!small.vae_in_tiles && small.needed_bytes < 4_000_000_000, "{small:?}");
        // A picture of 2048 px, whose VAE alone would take 15 GB.
        let large = need(&load, "2048x2048", Some(8_000_000_000));
        assert!(large.vae_in_tiles && large.needed_bytes < 8_000_000_000, "{large:?}");
        let whole = Load { vae_tiles: None, ..load.clone() };
        for (load, available) in
            [(&load, None), (&load, Some(100_000_000_000)), (&whole, Some(8_000_000_000))]
        {
            let need = need(load, "2048x2048", available);
            assert!(!need.vae_in_tiles && need.needed_bytes > 12_000_000_000, "{need:?}");
        }
        let asked = Load { vae_tiles: Some(VaeTiles { side_px: Some(256), memory: None }), ..load.clone() };
        assert!(need(&asked, "512x512", None).vae_in_tiles && !need(&asked, "256x256", None).vae_in_tiles);
        // Edges that fit together need all of it.
        let settings = Settings { size: "2048x2048".parse().unwrap(), tiling: true, ..Settings::default() };
        assert!(!Job::new(&settings, 1).unwrap().need(&config, &load, true, Some(1)).vae_in_tiles);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let load = Load::new(Device::Cpu, Kind::Float);
        let config = ModelConfig::sd15();
        job("64x64", 1).check(&config, &load, false).unwrap();
        let error = job("8192x8192", 10_000).check(&config, &load, true).unwrap_err().to_string();
        assert!(error.starts_with("8192x8192 px in a batch of 20000 rows needs "), "{error}");
    }
}
