//! What makes pictures larger: two rules, and networks from files.

use std::{
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use image::RgbImage;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};
use vodka_checkpoint::Upscaler as File;
use vodka_images::{Filter, MAX_SIDE_PX, resize};
use vodka_sd15::{Network, Rrdb, layers::Tiling};
use vodka_stage::Interrupt;

use crate::{Error, Result, Size, memory::check_upscaler, parameters::model_name, upscale::Tiles};

/// No picture is made of more pixels: three bytes each.
const PIXELS_MAX: u64 = 1 << 30;
/// A1111 applies a network so often at most.
const PASSES_MAX: usize = 3;

/// What makes pictures larger, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum UpscalerChoice {
    /// Each pixel becomes several (Pillow's `NEAREST`).
    Nearest,
    /// Pillow's `LANCZOS`.
    Lanczos,
    /// An ESRGAN upscaler in a file.
    Model(PathBuf),
}

impl UpscalerChoice {
    /// As `parameters` texts name it: `Nearest`, `Lanczos`, or the file's name without its ending.
    pub fn name(&self) -> String {
        match self {
            Self::Nearest => "Nearest".to_owned(),
            Self::Lanczos => "Lanczos".to_owned(),
            Self::Model(path) => model_name(path),
        }
    }

    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Model(path) => Some(path),
            _ => None,
        }
    }
}

impl FromStr for UpscalerChoice {
    type Err = Infallible;

    /// `Nearest` and `Lanczos`, in any case, are rules; all else is a path.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "nearest" => Self::Nearest,
            "lanczos" => Self::Lanczos,
            _ => Self::Model(text.into()),
        })
    }
}

impl From<String> for UpscalerChoice {
    fn from(text: String) -> Self {
        let Ok(choice) = text.parse();
        choice
    }
}

impl From<UpscalerChoice> for String {
    fn from(choice: UpscalerChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for UpscalerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model(path) => path.display().fmt(f),
            rule => f.write_str(&rule.name()),
        }
    }
}

/// Makes pictures larger.
#[derive(Debug)]
pub struct Upscaler {
    tiles: Tiles,
    how: How,
}

#[derive(Debug)]
enum How {
    Nearest,
    Lanczos,
    Model { file: File, network: Box<Rrdb> },
}

impl Upscaler {
    /// Loads a network, if it is one.
    ///
    /// # Errors
    /// A file that cannot be read, or is no ESRGAN upscaler (a checkpoint, say); tiles that are none.
    pub fn open(choice: &UpscalerChoice, tiles: Tiles, device: Device, kind: Kind) -> Result<Self> {
        tiles.check()?;
        let how = match choice {
            UpscalerChoice::Nearest => How::Nearest,
            UpscalerChoice::Lanczos => How::Lanczos,
            UpscalerChoice::Model(path) => {
                let file = File::open(path)?;
                let mut network = Rrdb::load(&file, device, kind)?;
                network.channels_last();
                How::Model { file, network: Box::new(network) }
            }
        };
        Ok(Self { tiles, how })
    }

    /// How many times as wide and as high a network makes pictures; rules make any size.
    pub fn scale(&self) -> Option<u32> {
        match &self.how {
            How::Model { network, .. } => Some(network.config().scale() as u32),
            _ => None,
        }
    }

    /// Makes a picture `ratio` times as wide and as high or, where that cannot be had exactly, larger; one that `ratio` makes
    /// no larger is as it was, unless a network does not change sizes. A network is applied three times at most
    /// (stable-diffusion-webui 1.10.1, `modules/upscaler.py`). `on_tile` is told how many tiles of how many are done; `None`
    /// where it was interrupted.
    ///
    /// # Errors
    /// A picture that would be too large, or needs more memory than there is; values that are not finite.
    pub fn enlarge(
        &self,
        picture: &RgbImage,
        ratio: f64,
        interrupt: &Interrupt,
        on_tile: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<RgbImage>> {
        let (width, height) = picture.dimensions();
        let (wide, high) = (scaled(width, ratio), scaled(height, ratio));
        check_size(wide, high)?;
        let (file, network) = match &self.how {
            How::Nearest if ratio > 1.0 => return Ok(Some(nearest(picture, wide, high))),
            How::Lanczos if ratio > 1.0 => return Ok(Some(resize(picture, wide, high, Filter::Lanczos))),
            How::Model { file, network } => (file, network),
            _ => return Ok(Some(picture.clone())),
        };
        let passes = passes((width, height), ratio, network.config().scale() as u32)?;
        if let Some((width, height)) = passes.last().copied() {
            let at = (network.vars().device(), network.vars().kind());
            check_upscaler(network.config(), Size { width, height }, self.tiles, at)?;
        }
        let total: usize = passes.iter().map(|(width, height)| self.tiles.count(*width, *height)).sum();
        let mut done = 0;
        let mut picture = picture.clone();
        for _ in passes {
            let mut on_tile = || {
                done += 1;
                on_tile(done, total);
                !interrupt.is_raised() || done == total
            };
            let Some(larger) = self.pass(&picture, file, network, &mut on_tile)? else { return Ok(None) };
            picture = larger;
        }
        Ok(Some(picture))
    }

    /// Applies a network once.
    fn pass(
        &self,
        picture: &RgbImage,
        file: &File,
        network: &Rrdb,
        on_tile: &mut dyn FnMut() -> bool,
    ) -> Result<Option<RgbImage>> {
        let _tiling = Tiling::enter(false);
        let (width, height) = picture.dimensions();
        let scale = network.config().scale() as u32;
        let (device, kind) = (network.vars().device(), network.vars().kind());
        let pixels = Tensor::from_slice(picture.as_raw()).view([height.into(), width.into(), 3]);
        let pixels = pixels.permute([2, 0, 1]); // (3, H, W)
        let mut make = |tile: &Tensor| {
            let tile = (tile.to_device(device).to_kind(Kind::Float) / 255.0).to_kind(kind).unsqueeze(0);
            let made = network.forward(&tile).to_kind(Kind::Float);
            if made.isfinite().all().int64_value(&[]) != 1 {
                file.check_finite()?;
                return Err(Error::NotFinite { checkpoint: file.path().to_path_buf(), what: "pixels" });
            }
            let made = made.squeeze_dim(0).to_device(Device::Cpu);
            Ok(on_tile().then_some(made))
        };
        let mut bytes = Vec::with_capacity(3 * (width * scale) as usize * (height * scale) as usize);
        let mut on_rows = |rows: &Tensor| {
            let rows =
                (rows.clamp(0.0, 1.0) * 255.0).round().permute([1, 2, 0]).to_kind(Kind::Uint8).contiguous();
            let start = bytes.len();
            bytes.resize(start + rows.numel(), 0);
            rows.copy_data(&mut bytes[start..], rows.numel());
        };
        let made = no_grad(|| self.tiles.enlarge(&pixels, scale, &mut make, &mut on_rows))?;
        let picture = || RgbImage::from_raw(width * scale, height * scale, bytes);
        Ok(made.map(|()| picture().expect("three bytes a pixel")))
    }
}

/// The sizes of the pictures that a network of this scale is given, one after the other, until they are `ratio` times as large.
///
/// # Errors
/// Pictures that would be too large.
pub(crate) fn passes((mut width, mut height): (u32, u32), ratio: f64, scale: u32) -> Result<Vec<(u32, u32)>> {
    if scale == 1 {
        return Ok(vec![(width, height)]);
    }
    let (wide, high) = (scaled(width, ratio), scaled(height, ratio));
    let mut sizes = Vec::new();
    while (width < wide || height < high) && sizes.len() < PASSES_MAX {
        sizes.push((width, height));
        (width, height) = (width.saturating_mul(scale), height.saturating_mul(scale));
        check_size(width, height)?;
    }
    Ok(sizes)
}

/// A side that many times as long, rounded down as A1111 does; at least a pixel.
pub(crate) fn scaled(side: u32, ratio: f64) -> u32 {
    ((f64::from(side) * ratio) as u32).max(1)
}

/// # Errors
/// [`Error::TooLarge`].
pub(crate) fn check_size(width: u32, height: u32) -> Result<()> {
    let pixels = u64::from(width) * u64::from(height);
    if width.max(height) > MAX_SIDE_PX || pixels > PIXELS_MAX {
        let gigabytes = 3.0 * pixels as f64 / 1e9;
        return Err(Error::TooLarge { width, height, gigabytes, max_side_px: MAX_SIDE_PX, max: PIXELS_MAX });
    }
    Ok(())
}

/// Pillow's `NEAREST`: the pixel whose middle is nearest.
fn nearest(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let (from_width, from_height) = picture.dimensions();
    let place = |i: u32, from: u32, to: u32| {
        let middle = (2 * u64::from(i) + 1) * u64::from(from) / (2 * u64::from(to));
        middle as u32
    };
    RgbImage::from_fn(width, height, |x, y| {
        *picture.get_pixel(place(x, from_width, width), place(y, from_height, height))
    })
}

#[cfg(test)]
mod tests {
    use vodka_testkit::fixture;

    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 3) as u8, (y * 3) as u8, 100]))
    }

    fn model() -> UpscalerChoice {
        UpscalerChoice::Model(fixture("sd15/rrdb/body.pth"))
    }

    fn open(choice: &UpscalerChoice, tile_px: u32, overlap_px: u32) -> Upscaler {
        Upscaler::open(choice, Tiles { tile_px, overlap_px }, Device::Cpu, Kind::Float).unwrap()
    }

    fn enlarge(upscaler: &Upscaler, picture: &RgbImage, ratio: f64) -> RgbImage {
        upscaler.enlarge(picture, ratio, &Interrupt::new(), &mut |_, _| {}).unwrap().unwrap()
    }

    #[test]
    fn names_are_those_of_rules_and_files() {
        let choice = |text: &str| UpscalerChoice::from(text.to_owned());
        assert_eq!(choice("LANCZOS"), UpscalerChoice::Lanczos);
        assert_eq!(choice("nearest").to_string(), "Nearest");
        let model = choice("models/4x-UltraSharp.pth");
        assert_eq!(
            (model.name(), model.to_string()),
            ("4x-UltraSharp".into(), "models/4x-UltraSharp.pth".into())
        );
    }

    #[test]
    fn nearest_takes_the_middle_as_pillow_does() {
        let picture = gradient(5, 3);
        let found = enlarge(&open(&UpscalerChoice::Nearest, 0, 0), &picture, 1.5);
        assert_eq!(found.dimensions(), (7, 4));
        // Image.resize((7, 4), Image.NEAREST)
        let columns: Vec<u32> = (0..7).map(|x| u32::from(found.get_pixel(x, 0).0[0]) / 3).collect();
        let rows: Vec<u32> = (0..4).map(|y| u32::from(found.get_pixel(0, y).0[1]) / 3).collect();
        assert_eq!((columns, rows), (vec![0, 1, 1, 2, 3, 3, 4], vec![0, 1, 1, 2]));
        let same = enlarge(&open(&UpscalerChoice::Lanczos, 0, 0), &picture, 1.0);
        assert_eq!(same, picture);
    }

    #[test]
    fn tiles_make_the_picture_that_the_whole_makes() {
        let picture = gradient(80, 70);
        let whole = enlarge(&open(&model(), 0, 0), &picture, 4.0);
        assert_eq!(whole.dimensions(), (320, 280));
        let mut told = Vec::new();
        let tiles = open(&model(), 64, 32);
        let on_tile = &mut |done, total| told.push((done, total));
        let tiled = tiles.enlarge(&picture, 4.0, &Interrupt::new(), on_tile).unwrap().unwrap();
        assert_eq!(told, [(1, 4), (2, 4), (3, 4), (4, 4)]);
        // What lies beyond a tile is zeros to the network; the ramps leave little of that.
        let most = whole.iter().zip(tiled.iter()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(most <= Some(3), "{most:?}");
    }

    #[test]
    fn a_network_is_applied_until_the_picture_is_large_enough() {
        let upscaler = open(&model(), 0, 0);
        assert_eq!(upscaler.scale(), Some(4));
        let picture = gradient(3, 2);
        for (ratio, expected) in [(0.5, 3), (1.0, 3), (2.0, 12), (4.0, 12), (4.5, 48), (300.0, 192)] {
            assert_eq!(enlarge(&upscaler, &picture, ratio).width(), expected, "{ratio}");
        }
        let interrupt = Interrupt::new();
        interrupt.raise();
        assert!(upscaler.enlarge(&picture, 8.0, &interrupt, &mut |_, _| {}).unwrap().is_none());
        let error = upscaler.enlarge(&gradient(9000, 1), 8.0, &Interrupt::new(), &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().starts_with("a picture of 72000x8 px"), "{error}");
    }
}
