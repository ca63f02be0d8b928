//! The hires pass: a picture made larger, and made again from that (A1111's "Hires. fix").

use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr};

use serde::{Serialize, Serializer};
use tch::Tensor;
use vodka_noise::{SamplerName, ScheduleName};
use vodka_stage::hash_file;

use crate::{
    Error, ImageToImage, Result, Settings, Size, UpscalerChoice,
    settings::MULTIPLE,
    upscale::{SCALE_MAX, check_size, scaled},
};

/// A second pass over a larger picture.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Hires {
    /// How large the picture becomes.
    pub target: HiresTarget,
    /// What makes it larger.
    pub upscaler: HiresUpscaler,
    /// The first ten digits of the SHA-256 of the upscaler's file; nothing where there is none, or it is not known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub upscaler_hash: String,
    /// How much of the larger picture is given up, 0 to 1.
    pub denoising_strength: f64,
    /// Steps, all of which are made; 0 for as many as the first pass has.
    pub steps: u32,
    /// The sampler; the first pass's where absent.
    pub sampler: Option<SamplerName>,
    /// The schedule; the first pass's where absent.
    pub schedule: Option<ScheduleName>,
    /// The prompt; the first pass's where empty.
    pub prompt: String,
    /// The negative prompt; the first pass's where empty.
    pub negative_prompt: String,
}

impl Default for Hires {
    /// What A1111 shows at first: twice the size, by latents, at 0.7.
    fn default() -> Self {
        Self {
            target: HiresTarget::Scale(2.0),
            upscaler: HiresUpscaler::Latent(LatentMode::Bilinear),
            upscaler_hash: String::new(),
            denoising_strength: 0.7,
            steps: 0,
            sampler: None,
            schedule: None,
            prompt: String::new(),
            negative_prompt: String::new(),
        }
    }
}

/// How large a picture becomes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HiresTarget {
    /// So many times as wide and as high.
    Scale(f64),
    /// This size, with what sticks out cut off; a side of 0 is the one that fits the other.
    Size(Size),
}

impl HiresTarget {
    /// What a user asks for; nothing where neither is said.
    ///
    /// # Errors
    /// Both.
    pub(crate) fn of(scale: Option<f64>, size: Option<Size>) -> Result<Option<Self>> {
        match (scale, size) {
            (Some(_), Some(_)) => Err(Error::ScaleAndSize),
            (scale, size) => Ok(scale.map(Self::Scale).or(size.map(Self::Size))),
        }
    }
}

/// How latents are made larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum LatentMode {
    /// Between four.
    Bilinear,
    /// The same with antialiasing, which makes a difference where they become fewer.
    BilinearAntialiased,
    /// Between sixteen.
    Bicubic,
    /// The same with antialiasing.
    BicubicAntialiased,
    /// The one at the upper left.
    Nearest,
    /// The one whose middle is nearest.
    NearestExact,
}

impl LatentMode {
    /// All modes.
    pub const ALL: [Self; 6] = [
        Self::Bilinear,
        Self::BilinearAntialiased,
        Self::Bicubic,
        Self::BicubicAntialiased,
        Self::Nearest,
        Self::NearestExact,
    ];

    /// A1111's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bilinear => "Latent",
            Self::BilinearAntialiased => "Latent (antialiased)",
            Self::Bicubic => "Latent (bicubic)",
            Self::BicubicAntialiased => "Latent (bicubic antialiased)",
            Self::Nearest => "Latent (nearest)",
            Self::NearestExact => "Latent (nearest-exact)",
        }
    }

    /// `latents (B, 4, h, w)` to `(B, 4, height, width)`: torch's `interpolate` with a size.
    pub(crate) fn resize(self, latents: &Tensor, height: i64, width: i64) -> Tensor {
        let size = [height, width];
        match self {
            Self::Bilinear => latents.upsample_bilinear2d(size, false, None, None),
            Self::BilinearAntialiased => latents.internal_upsample_bilinear2d_aa(size, false, None, None),
            Self::Bicubic => latents.upsample_bicubic2d(size, false, None, None),
            Self::BicubicAntialiased => latents.internal_upsample_bicubic2d_aa(size, false, None, None),
            Self::Nearest => latents.upsample_nearest2d(size, None, None),
            Self::NearestExact => latents.internal_upsample_nearest_exact2d(size, None, None),
        }
    }
}

/// What makes a picture larger between the passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HiresUpscaler {
    /// Its latents become more.
    Latent(LatentMode),
    /// It is decoded, made larger and encoded again.
    Pixels(UpscalerChoice),
}

impl FromStr for HiresUpscaler {
    type Err = Infallible;

    /// A1111's names, in any case, and the paths of files; `None` is LANCZOS there.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let text = text.trim();
        let latent = LatentMode::ALL.into_iter().find(|mode| mode.name().eq_ignore_ascii_case(text));
        Ok(match latent {
            Some(mode) => Self::Latent(mode),
            None if text.eq_ignore_ascii_case("none") => Self::Pixels(UpscalerChoice::Lanczos),
            None => Self::Pixels(text.to_owned().into()),
        })
    }
}

impl HiresUpscaler {
    /// The file, if it is one.
    pub(crate) fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Pixels(choice) => choice.path().map(ToOwned::to_owned),
            Self::Latent(_) => None,
        }
    }

    /// The first ten digits of the SHA-256 of the file; nothing where there is none.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn hash(&self) -> Result<String> {
        let hash = self.path().map(hash_file).transpose()?;
        Ok(hash.map(|hash| hash.short(10)).unwrap_or_default())
    }
}

impl fmt::Display for HiresUpscaler {
    /// As texts of pictures name it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latent(mode) => f.write_str(mode.name()),
            Self::Pixels(choice) => f.write_str(&choice.name()),
        }
    }
}

impl Serialize for HiresUpscaler {
    /// By its name: where its file lies makes no difference.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The larger picture: what it is made to, and what is cut off that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Enlarged {
    /// Its size in pixels.
    pub(crate) size: Size,
    /// Columns and rows of latents that are cut off, half on either side.
    pub(crate) cut: (u32, u32),
}

impl Enlarged {
    /// The size of the picture that comes out: latents that are left, eight pixels each.
    pub(crate) fn last(&self) -> Size {
        let side = |side: u32, cut: u32| (side / MULTIPLE).saturating_sub(cut) * MULTIPLE;
        Size { width: side(self.size.width, self.cut.0), height: side(self.size.height, self.cut.1) }
    }

    /// Cuts `latents (B, 4, h, w)`.
    pub(crate) fn cut(&self, latents: &Tensor) -> Tensor {
        let (_, _, height, width) = latents.size4().expect("latents have four axes");
        let (columns, rows) = (i64::from(self.cut.0), i64::from(self.cut.1));
        latents.narrow(2, rows / 2, height - rows).narrow(3, columns / 2, width - columns)
    }
}

impl Hires {
    /// The larger picture of one of this size (stable-diffusion-webui 1.10.1, `modules/processing.py`,
    /// `calculate_target_resolution`).
    pub(crate) fn enlarged(&self, first: Size) -> Enlarged {
        // Sizes are at most 2^32, their products fit.
        let other =
            |side: u32, to: u32, from: u32| (u64::from(side) * u64::from(to) / u64::from(from)) as u32;
        let by_width = |width| Size { width, height: other(width, first.height, first.width) };
        let by_height = |height| Size { width: other(height, first.width, first.height), height };
        match self.target {
            HiresTarget::Scale(scale) => {
                let size = Size { width: scaled(first.width, scale), height: scaled(first.height, scale) };
                Enlarged { size, cut: (0, 0) }
            }
            HiresTarget::Size(Size { width, height: 0 }) => Enlarged { size: by_width(width), cut: (0, 0) },
            HiresTarget::Size(Size { width: 0, height }) => Enlarged { size: by_height(height), cut: (0, 0) },
            HiresTarget::Size(Size { width, height }) => {
                let is_wider =
                    u64::from(first.width) * u64::from(height) < u64::from(width) * u64::from(first.height);
                let size = if is_wider { by_width(width) } else { by_height(height) };
                let cut = |side: u32, target: u32| side.saturating_sub(target) / MULTIPLE;
                Enlarged { size, cut: (cut(size.width, width), cut(size.height, height)) }
            }
        }
    }

    /// # Errors
    /// A scale or a size that is none, a picture that would be too large, and what [`Settings::check`] finds in the second pass.
    pub(crate) fn check(&self, first: &Settings) -> Result<()> {
        match self.target {
            HiresTarget::Scale(found) if !(found > 0.0 && found <= SCALE_MAX) => {
                return Err(Error::Scale { found, max: SCALE_MAX });
            }
            HiresTarget::Size(size) if size == (Size { width: 0, height: 0 }) => {
                return Err(Error::SizeForm { found: size.to_string() });
            }
            _ => {}
        }
        let Size { width, height } = self.enlarged(first.size).size;
        check_size(width, height)?;
        self.second(first).check()
    }

    /// The settings of the second pass, which is image to image with all of its steps.
    pub(crate) fn second(&self, first: &Settings) -> Settings {
        let or = |own: &String, other: &String| if own.is_empty() { other.clone() } else { own.clone() };
        let sampler = self.sampler.unwrap_or(first.sampler);
        let schedule = self.schedule.unwrap_or(first.schedule);
        Settings {
            prompt: or(&self.prompt, &first.prompt),
            negative_prompt: or(&self.negative_prompt, &first.negative_prompt),
            steps: if self.steps == 0 { first.steps } else { self.steps },
            sampler,
            // Samplers with timesteps have no choice.
            schedule: if sampler.has_timesteps() && self.schedule.is_none() {
                ScheduleName::Automatic
            } else {
                schedule
            },
            size: self.enlarged(first.size).last(),
            image: Some(ImageToImage {
                denoising_strength: self.denoising_strength,
                exact_steps: true,
                after_calls: Some(first.scheduled_calls()),
                ..ImageToImage::default()
            }),
            hires: None,
            ..first.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::conditioning::TimedPrompts;

    fn enlarged(first: &str, target: HiresTarget) -> (String, (u32, u32), String) {
        let found = Hires { target, ..Hires::default() }.enlarged(first.parse().unwrap());
        (found.size.to_string(), found.cut, found.last().to_string())
    }

    #[test]
    fn targets_are_those_of_a1111() {
        let size = |text: &str| HiresTarget::Size(text.parse().unwrap());
        let of = |size: &str, cut, last: &str| (size.to_owned(), cut, last.to_owned());
        assert_eq!(enlarged("512x768", HiresTarget::Scale(2.0)), of("1024x1536", (0, 0), "1024x1536"));
        assert_eq!(enlarged("512x512", HiresTarget::Scale(1.3)), of("665x665", (0, 0), "664x664"));
        assert_eq!(enlarged("512x768", size("1000x0")), of("1000x1500", (0, 0), "1000x1496"));
        assert_eq!(enlarged("512x768", size("0x1000")), of("666x1000", (0, 0), "664x1000"));
        // What sticks out is cut off: 1536 - 1024 of height are 64 rows of latents.
        assert_eq!(enlarged("512x768", size("1024x1024")), of("1024x1536", (0, 64), "1024x1024"));
        assert_eq!(enlarged("768x512", size("1000x1024")), of("1536x1024", (67, 0), "1000x1024"));
        assert_eq!(enlarged("512x512", size("1024x1024")), of("1024x1024", (0, 0), "1024x1024"));
        let latents = Tensor::arange(2 * 192 * 128, (Kind::Float, Device::Cpu)).view([1, 2, 192, 128]);
        let cut = Enlarged { size: "1024x1536".parse().unwrap(), cut: (1, 64) };
        let found = cut.cut(&latents);
        assert_eq!((found.size(), found.double_value(&[0, 0, 0, 0])), (vec![1, 2, 128, 127], 32.0 * 128.0));
    }

    #[test]
    fn steps_of_prompts_count_on_through_both_passes() {
        let hires = Hires { steps: 6, sampler: Some(SamplerName::Heun), ..Hires::default() };
        let first = Settings { prompt: "[a:b:0.5] [c:d:1.5]".into(), steps: 10, ..Settings::default() };
        let texts = |settings: &Settings| {
            let prompt = TimedPrompts::of(settings).prompt.remove(0).1;
            prompt.into_iter().map(|text| (text.end_at_step, text.text)).collect::<Vec<_>>()
        };
        assert_eq!(texts(&first), [(5, "a c".to_owned()), (10, "b c".to_owned())]);
        // Heun calls the network twice a step.
        assert_eq!(texts(&hires.second(&first)), [(6, "b c".to_owned()), (12, "b d".to_owned())]);
        let first = Settings { prompt: "[a:b:13]".into(), ..first };
        assert_eq!(texts(&hires.second(&first)), [(3, "a".to_owned()), (12, "b".to_owned())]);
    }

    #[test]
    fn names_are_those_of_a1111() {
        for mode in LatentMode::ALL {
            let Ok(found) = mode.name().to_uppercase().parse::<HiresUpscaler>();
            assert_eq!((found.to_string().as_str(), found), (mode.name(), HiresUpscaler::Latent(mode)));
        }
        let pixels = |text: &str| {
            let Ok(found) = text.parse::<HiresUpscaler>();
            (found.to_string(), found.path())
        };
        assert_eq!(pixels("None"), ("Lanczos".into(), None));
        assert_eq!(pixels("a/4x.pth"), ("4x".into(), Some("a/4x.pth".into())));
    }

    #[test]
    fn what_makes_no_picture_is_refused() {
        let check = |hires: Hires| {
            let settings = Settings { hires: Some(hires), ..Settings::default() };
            settings.check().map_err(|error| error.to_string())
        };
        let base = Hires::default;
        check(base()).unwrap();
        let scale = |scale| check(Hires { target: HiresTarget::Scale(scale), ..base() }).unwrap_err();
        assert!(scale(0.0).starts_with("a scale of 0: expected more than 0"));
        assert!(scale(f64::NAN).starts_with("a scale of NaN"));
        assert_eq!(scale(65.0), "a scale of 65: expected more than 0 and at most 64");
        assert!(scale(0.001).starts_with("size 0x0: expected multiples of 8"), "{}", scale(0.001));
        let size = Hires { target: HiresTarget::Size("70000x0".parse().unwrap()), ..base() };
        assert!(check(size).unwrap_err().starts_with("a picture of 70000x70000 px would take 14.7 GB"));
        assert!(scale(20.0).starts_with("size 10240x10240: expected multiples of 8 up to 8192"));
        let error = check(Hires { denoising_strength: 1.5, ..base() }).unwrap_err();
        assert!(error.contains("1.5"), "{error}");
        let error = check(Hires { steps: 5000, ..base() }).unwrap_err();
        assert!(error.contains("5000"), "{error}");
        let error = check(Hires { prompt: "(a:1.2.3)".into(), ..base() }).unwrap_err();
        assert!(error.contains("`1.2.3`"), "{error}");
        let both =
            Settings { image: Some(ImageToImage::default()), hires: Some(base()), ..Settings::default() };
        assert!(both.check().unwrap_err().to_string().contains("has no hires pass"));
        // A sampler of its own without a schedule of its own takes what it can.
        let ddim = Hires { sampler: Some(SamplerName::Ddim), ..base() };
        let settings = Settings { schedule: ScheduleName::Karras, hires: Some(ddim), ..Settings::default() };
        settings.check().unwrap();
    }
}
