//! Whether a device's memory is enough for pictures, before they are begun.

use std::{collections::BTreeSet, path::PathBuf};

use serde::Serialize;
use tch::{Device, Kind};
use vodka_checkpoint::{ControlNetConfig, ModelConfig, RrdbConfig, Upscaler, keys};
use vodka_sd15::{VaeTiles, memory};

use crate::{
    Error, Load, Result, Settings, Size,
    conditioning::Prompts,
    upscale::{Tiles, passes},
};

/// What libtorch takes for itself.
const LIBTORCH_BYTES: u64 = 300_000_000;

/// Memory that pictures need, and that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The weights of all networks, with ControlNets and the hires pass's upscaler.
    pub weights_bytes: u64,
    /// The UNet's feature maps at their most, of the largest pass, with what ControlNets give to it, and a copy of its largest weight.
    pub unet_bytes: u64,
    /// Those of the hires pass's upscaler, which does one tile at a time, and what it makes; 0 without a network.
    pub upscaler_bytes: u64,
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
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Rows of the UNet's batch.
    rows: u64,
    /// Pixels of the largest pass.
    size: Size,
    /// Whether their edges are to fit together, for which the VAE needs them whole.
    tiling: bool,
    /// How many files ControlNets are from.
    controls: usize,
    /// The hires pass's upscaler, and the largest picture that it is given.
    upscaler: Option<(RrdbConfig, Size)>,
}

/// What is loaded already.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct There {
    /// The model.
    pub(crate) model: bool,
    /// How many of the ControlNets.
    pub(crate) controls: usize,
    /// The hires pass's upscaler.
    pub(crate) upscaler: bool,
}

impl Job {
    /// So many pictures with these settings.
    ///
    /// # Errors
    /// Prompts that cannot be read.
    pub(crate) fn new(settings: &Settings, count: usize) -> Result<Self> {
        let files: BTreeSet<&PathBuf> = settings.controls.iter().map(|unit| &unit.model).collect();
        let size = Size { width: 0, height: 0 };
        let (tiling, controls, upscaler) = (settings.tiling, files.len(), upscaler_of(settings));
        let mut job = Self { rows: 0, size, tiling, controls, upscaler };
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

    /// What it needs of a model of this form, beside what is there.
    pub(crate) fn need(
        &self,
        config: &ModelConfig,
        load: &Load,
        there: There,
        available: Option<u64>,
    ) -> Need {
        let bytes = |elements: u64, kind: Kind| elements * kind.elt_size_in_bytes() as u64;
        let unet = keys::unet(&config.unet);
        let networks = memory::weights(&unet) + memory::weights(&keys::clip(&config.clip));
        let vae = memory::weights(&keys::vae(&config.vae));
        let model = bytes(networks, load.kind) + bytes(vae, load.vae_kind);
        let control = ControlNetConfig { unet: config.unet.clone(), ..ControlNetConfig::sd15() };
        let controls =
            |count: usize| count as u64 * bytes(memory::weights(&keys::control_net(&control)), load.kind);
        let (upscaler, upscaler_bytes) = self.upscaler.as_ref().map_or((0, 0), |(upscaler, size)| {
            (
                bytes(upscaler_weights(upscaler), load.kind),
                applied(upscaler, *size, Tiles::default(), load.kind),
            )
        });
        let base = [
            if there.model { 0 } else { model + LIBTORCH_BYTES },
            controls(self.controls.saturating_sub(there.controls)),
            if there.upscaler { 0 } else { upscaler },
        ];
        let base: u64 = base.iter().sum();
        let size = [self.size.height, self.size.width].map(i64::from);
        let latents = size.map(|side| side / config.vae.downscale());
        let residuals = if self.controls > 0 { memory::residuals(&config.unet, latents) } else { 0 };
        let maps = (memory::unet(&config.unet, latents) + residuals) * self.rows;
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
            weights_bytes: model + controls(self.controls) + upscaler,
            unet_bytes,
            upscaler_bytes,
            vae_bytes,
            vae_in_tiles: in_tiles.is_some(),
            needed_bytes: base + unet_bytes.max(vae_bytes).max(upscaler_bytes),
            available_bytes: available,
        }
    }

    /// # Errors
    /// [`Error::Memory`] where the device has less than is needed.
    pub(crate) fn check(&self, config: &ModelConfig, load: &Load, there: There) -> Result<()> {
        let available = memory::available(load.device);
        let Need { needed_bytes, .. } = self.need(config, load, there, available);
        enough(self.size, self.rows, needed_bytes, available)
    }
}

fn enough(size: Size, rows: u64, needed_bytes: u64, available: Option<u64>) -> Result<()> {
    match available {
        Some(available_bytes) if needed_bytes > available_bytes => {
            Err(Error::Memory { size, rows, needed_bytes, available_bytes })
        }
        _ => Ok(()),
    }
}

/// The network that makes pictures larger before a hires pass, and the largest that it is given; none where its file cannot be read, which is
/// told when it is to be used.
fn upscaler_of(settings: &Settings) -> Option<(RrdbConfig, Size)> {
    let hires = settings.hires.as_ref()?;
    let config = Upscaler::open(hires.upscaler.path()?).ok()?.config().clone();
    let (Size { width, height }, enlarged) = (settings.size, hires.enlarged(settings.size).size);
    let ratio = |to: u32, from: u32| f64::from(to) / f64::from(from.max(1));
    let ratio = ratio(enlarged.width, width).max(ratio(enlarged.height, height));
    let sizes = passes((width, height), ratio, config.scale() as u32).ok()?;
    let (width, height) = sizes.last().copied()?;
    Some((config, Size { width, height }))
}

fn upscaler_weights(config: &RrdbConfig) -> u64 {
    config.weights().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
}

/// What an upscaler takes for a picture: its maps of a tile, two rows of tiles of what it makes in fp32, and all of that in bytes.
pub(crate) fn applied(config: &RrdbConfig, Size { width, height }: Size, tiles: Tiles, kind: Kind) -> u64 {
    let side = |side: u32| if tiles.tile_px == 0 { side } else { side.min(tiles.tile_px) };
    let tile = [side(height), side(width)];
    let maps = memory::upscaler(config, tile.map(i64::from)) * kind.elt_size_in_bytes() as u64;
    let scale = config.scale() as u64;
    let row = 3 * u64::from(width) * scale * scale;
    maps + 4 * 2 * row * u64::from(tile[0]) + row * u64::from(height)
}

/// # Errors
/// [`Error::Memory`] where a device has less than an upscaler takes for a picture.
pub(crate) fn check_upscaler(
    config: &RrdbConfig,
    size: Size,
    tiles: Tiles,
    (device, kind): (Device, Kind),
) -> Result<()> {
    enough(size, 1, applied(config, size, tiles, kind), memory::available(device))
}

/// What is needed before the device is used: of a GPU it is not known yet what there is.
pub(crate) fn planned(job: Job, config: &ModelConfig, load: &Load, is_processor: bool) -> Need {
    let available = if is_processor { memory::available(Device::Cpu) } else { None };
    job.need(config, load, There::default(), available)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vodka_testkit::fixture;

    use super::*;
    use crate::{ControlUnit, HiresUpscaler, UpscalerChoice};

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
        let need = |load: &Load, size: &str, available| {
            job(size, 1).need(&config, load, There::default(), available)
        };
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
        let job = Job::new(&settings, 1).unwrap();
        assert!(!job.need(&config, &load, There::default(), Some(1)).vae_in_tiles);
    }

    #[test]
    fn control_nets_and_the_upscaler_count() {
        let (config, load) = (ModelConfig::sd15(), Load::new(Device::Cpu, Kind::Half));
        let need = |settings: &Settings, there| {
            Job::new(settings, 1).unwrap().need(&config, &load, there, Some(u64::MAX))
        };
        let plain = Settings { prompt: "a".into(), ..Settings::default() };
        let without = need(&plain, There::default());
        assert_eq!(without.upscaler_bytes, 0);
        let unit = |model: &str| ControlUnit { model: model.into(), ..ControlUnit::default() };
        let controlled = Settings { controls: ["a", "b", "a"].map(unit).into(), ..plain.clone() };
        // Each file once, of 361 million numbers; what it gives to both rows is as much as waits for the way up.
        let with = need(&controlled, There::default());
        assert_eq!(with.weights_bytes - without.weights_bytes, 2 * 2 * 361_279_120);
        let residuals = 2 * 2 * memory::residuals(&config.unet, [64, 64]);
        assert_eq!(with.unet_bytes - without.unet_bytes, residuals);
        // The VAE's maps are more than the UNet's here, and what ControlNets give is not there when it works.
        assert_eq!(with.needed_bytes - without.needed_bytes, 4 * 361_279_120);
        let there = There { model: true, controls: 1, upscaler: false };
        assert_eq!(need(&controlled, there).needed_bytes, 2 * 361_279_120 + with.vae_bytes);

        let hires = |file: &Path| {
            let upscaler = HiresUpscaler::Pixels(UpscalerChoice::Model(file.into()));
            Settings { hires: Some(crate::Hires { upscaler, ..crate::Hires::default() }), ..plain.clone() }
        };
        let body = fixture("sd15/rrdb/body.pth");
        let latent = Settings { hires: Some(crate::Hires::default()), ..plain.clone() };
        let (latent, pixels) = (need(&latent, There::default()), need(&hires(&body), There::default()));
        let file = Upscaler::open(&body).unwrap();
        let weights = 2 * upscaler_weights(file.config());
        assert_eq!(pixels.weights_bytes - latent.weights_bytes, weights);
        assert_eq!(pixels.needed_bytes - latent.needed_bytes, weights);
        // A tile of 192 px, and a picture of 2048 px in fp32 as far as two rows of tiles go, and in bytes.
        let maps = 2 * memory::upscaler(file.config(), [192, 192]);
        let made = 3 * 2048 * (2 * 4 * 4 * 192 + 2048);
        assert_eq!(pixels.upscaler_bytes, maps + made);
        let there = There { upscaler: true, ..There::default() };
        assert_eq!(need(&hires(&body), there).needed_bytes, latent.needed_bytes);
        // What cannot be read is told of when it is to be used.
        assert_eq!(need(&hires(Path::new("none.pth")), There::default()).weights_bytes, latent.weights_bytes);
    }

    #[test]
    fn an_upscaler_needs_what_its_tiles_need() {
        let file = Upscaler::open(fixture("sd15/rrdb/body.pth")).unwrap();
        let size = |side| Size { width: side, height: side };
        let (whole, tiles) = (Tiles { tile_px: 0, overlap_px: 0 }, Tiles::default());
        let of = |side, tiles| applied(file.config(), size(side), tiles, Kind::Float);
        assert_eq!(of(100, whole), of(100, tiles));
        assert!(of(4000, whole) > 10 * of(4000, tiles));
        check_upscaler(file.config(), size(64), tiles, (Device::Cpu, Kind::Float)).unwrap();
        let error =
            check_upscaler(file.config(), size(60_000), whole, (Device::Cpu, Kind::Float)).unwrap_err();
        assert!(error.to_string().starts_with("60000x60000 px in a batch of 1 rows needs "), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let load = Load::new(Device::Cpu, Kind::Float);
        let config = ModelConfig::sd15();
        let there = There { model: true, ..There::default() };
        job("64x64", 1).check(&config, &load, there).unwrap();
        let error = job("8192x8192", 10_000).check(&config, &load, There::default()).unwrap_err().to_string();
        assert!(error.starts_with("8192x8192 px in a batch of 20000 rows needs "), "{error}");
    }
}
