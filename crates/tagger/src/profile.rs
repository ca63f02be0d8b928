//! How exactly pictures are prepared: as the model's authors do, as kohya's script does, or fast.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use vodka_images::{Decoded, Filter, Fit as SquareFit, Picture, Rgb, RgbImage, Square};

use crate::{
    Error, Result,
    description::{Description, Fit, Resampler},
};

/// How exactly pictures are prepared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// As the authors of the model do it, to the level.
    #[default]
    Reference,
    /// As kohya's script does it: a white square, OpenCV's area when shrinking, Pillow's Lanczos when growing.
    Kohya,
    /// As the authors do it, on a picture that was decoded at a lower resolution where that is faster.
    Fast,
}

impl Profile {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Reference, Self::Kohya, Self::Fast];
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reference => "reference",
            Self::Kohya => "kohya",
            Self::Fast => "fast",
        })
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = || Self::ALL.map(|profile| profile.to_string()).join(", ");
        let found = Self::ALL.into_iter().find(|profile| profile.to_string() == text);
        found.ok_or_else(|| Error::UnknownProfile { known: known(), found: text.to_owned() })
    }
}

/// A description and a profile, as work on pixels.
#[derive(Debug, Clone)]
pub(crate) struct Preparation {
    first: Option<Square>,
    last: Square,
    profile: Profile,
}

impl Preparation {
    /// For a network that sees squares of `side` pixels.
    pub fn new(description: &Description, profile: Profile, side: u32) -> Result<Self> {
        let rules = &description.picture;
        let (pad, under) = (Rgb(rules.pad), Rgb(rules.under));
        let square = |fit| Square { side_px: side, fit, filter: filter_of(rules.resampler), pad, under };
        let first = rules.first.map(|first| Square {
            side_px: first.size,
            filter: filter_of(first.resampler),
            ..square(SquareFit::ResizeThenPadNearest)
        });
        let last = match rules.fit {
            Fit::Pad if profile == Profile::Kohya => {
                let white = Rgb([255; 3]);
                Square { filter: Filter::Area, pad: white, under: white, ..square(SquareFit::Pad) }
            }
            _ if profile == Profile::Kohya => {
                return Err(Error::Profile { profile, family: description.name().to_owned() });
            }
            Fit::Pad => square(SquareFit::Pad),
            Fit::ResizeThenPad => square(SquareFit::ResizeThenPad),
            Fit::PadEdge => square(SquareFit::ResizeThenPadEdge),
            Fit::Squash => square(SquareFit::Squash),
        };
        Ok(Self { first, last, profile })
    }

    /// The square that the network sees.
    pub fn square(&self, picture: &Picture) -> RgbImage {
        match &self.first {
            None => self.last.of(picture),
            Some(first) => self.last.of(&Picture::Rgb(first.of(picture))),
        }
    }

    /// The same of a picture that was perhaps decoded at a part of its size.
    pub fn square_of_decoded(&self, decoded: &Decoded) -> RgbImage {
        match &self.first {
            None => self.last.of_decoded(decoded),
            Some(first) => self.last.of(&Picture::Rgb(first.of_decoded(decoded))),
        }
    }

    /// Down to which length of the longer side a picture may be decoded. `None` for all of it: so are pictures that are
    /// squashed, of which the shorter side may need every pixel there is.
    pub fn reduce_to(&self) -> Option<u32> {
        let is_squashed = self.first.is_none() && self.last.fit == SquareFit::Squash;
        let side = self.first.map_or(self.last.side_px, |first| first.side_px.max(self.last.side_px));
        (self.profile == Profile::Fast && !is_squashed).then(|| (2 * side).max(768))
    }
}

fn filter_of(resampler: Resampler) -> Filter {
    match resampler {
        Resampler::Bilinear => Filter::Bilinear,
        Resampler::Bicubic => Filter::Bicubic,
        Resampler::Lanczos => Filter::Lanczos,
        Resampler::Area => Filter::Area,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_have_names() {
        for profile in Profile::ALL {
            assert_eq!(profile.to_string().parse::<Profile>().unwrap(), profile);
        }
        let error = "space".parse::<Profile>().unwrap_err().to_string();
        assert_eq!(error, "expected a profile (reference, kohya, fast), found `space`");
    }

    #[test]
    fn kohya_s_way_is_for_padded_pictures() {
        let of = |family, profile| Preparation::new(&Description::family(family).unwrap(), profile, 448);
        let kohya = of("wd-v3", Profile::Kohya).unwrap();
        assert_eq!((kohya.last.filter, kohya.reduce_to()), (Filter::Area, None));
        assert_eq!(of("wd-v3", Profile::Fast).unwrap().reduce_to(), Some(896));
        assert_eq!(of("pixai-v0.9", Profile::Fast).unwrap().reduce_to(), None);
        assert_eq!(of("animetimm", Profile::Fast).unwrap().reduce_to(), Some(1024));
        let error = of("pixai-v0.9", Profile::Kohya).unwrap_err().to_string();
        assert!(
            error.contains("`kohya` is for families that pad") && error.contains("`pixai-v0.9`"),
            "{error}"
        );
    }
}
