//! How exactly pictures are prepared: as the model's authors do, as kohya's script does, or fast.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use vodka_images::{Decoded, Filter, Fit as SquareFit, Picture, Rgb, RgbImage, Square, flatten_over, resize};

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
    first: Option<Frame>,
    last: Square,
    profile: Profile,
}

impl Preparation {
    /// For a network that sees squares of `side` pixels.
    pub fn new(description: &Description, profile: Profile, side: u32) -> Result<Self> {
        let rules = &description.picture;
        let (pad, under) = (Rgb(rules.pad), Rgb(rules.under));
        let frame = |side, resampler, fill| Frame { side, filter: filter_of(resampler), fill, under };
        let square = |fit| Square { side_px: side, fit, filter: filter_of(rules.resampler), pad, under };
        let first = match (rules.first, rules.fit) {
            (Some(first), _) => Some(frame(first.size, first.resampler, Fill::Colour(pad))),
            (None, Fit::PadEdge) => Some(frame(side, rules.resampler, Fill::Edge)),
            (None, _) => None,
        };
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
            // What is framed is a square already.
            Fit::Squash | Fit::PadEdge => square(SquareFit::Squash),
        };
        Ok(Self { first, last, profile })
    }

    /// The square that the network sees.
    pub fn square(&self, picture: &Picture) -> RgbImage {
        match &self.first {
            None => self.last.of(picture),
            Some(first) => self.last.of(&Picture::Rgb(first.of(picture, picture.size()))),
        }
    }

    /// The same of a picture that was perhaps decoded at a part of its size.
    pub fn square_of_decoded(&self, decoded: &Decoded) -> RgbImage {
        match &self.first {
            None => self.last.of_decoded(decoded),
            Some(first) => {
                let size = (decoded.width, decoded.height);
                self.last.of(&Picture::Rgb(first.of(&decoded.picture, size)))
            }
        }
    }

    /// Down to which length of the longer side a picture may be decoded. `None` for all of it: so are pictures that are
    /// squashed, of which the shorter side may need every pixel there is.
    pub fn reduce_to(&self) -> Option<u32> {
        let is_squashed = self.first.is_none() && self.last.fit == SquareFit::Squash;
        let side = self.first.map_or(self.last.side_px, |first| first.side.max(self.last.side_px));
        (self.profile == Profile::Fast && !is_squashed).then(|| (2 * side).max(768))
    }
}

/// A square around a picture that is first resized until its longer side fits.
#[derive(Debug, Clone, Copy)]
struct Frame {
    side: u32,
    filter: Filter,
    fill: Fill,
    under: Rgb<u8>,
}

/// What is around the picture, and with it whose rounding the shorter side has.
#[derive(Debug, Clone, Copy)]
enum Fill {
    /// imgutils' `pad_image_to_size`: rounded to the nearest, and of two to the even one.
    Colour(Rgb<u8>),
    /// The pixels at the edges, as DeepDanbooru's users have it: rounded down.
    Edge,
}

impl Frame {
    /// The square of a picture that had `size` when it was whole.
    fn of(&self, picture: &Picture, size: (u32, u32)) -> RgbImage {
        let flat;
        let image = match picture {
            Picture::Rgb(image) => image,
            Picture::Rgba(image) => {
                flat = flatten_over(image, self.under);
                &flat
            }
        };
        let (width, height) = self.fitted(size);
        let small = resize(image, width, height, self.filter);
        let (left, top) = ((self.side - width) / 2, (self.side - height) / 2);
        RgbImage::from_fn(self.side, self.side, |x, y| {
            let (inside_x, inside_y) =
                (x.saturating_sub(left).min(width - 1), y.saturating_sub(top).min(height - 1));
            match self.fill {
                Fill::Colour(colour) if (inside_x + left, inside_y + top) != (x, y) => colour,
                _ => *small.get_pixel(inside_x, inside_y),
            }
        })
    }

    fn fitted(&self, (width, height): (u32, u32)) -> (u32, u32) {
        let (side, longer) = (f64::from(self.side), f64::from(width.max(height)));
        let fit = |length: u32| {
            let length = match self.fill {
                Fill::Colour(_) => (f64::from(length) * (side / longer)).round_ties_even(),
                Fill::Edge => side * f64::from(length) / longer,
            };
            (length as u32).clamp(1, self.side)
        };
        (fit(width), fit(height))
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
    fn frames_round_as_their_authors_do() {
        let frame = |fill| Frame { side: 80, filter: Filter::Bilinear, fill, under: Rgb([255; 3]) };
        let (white, edge) = (frame(Fill::Colour(Rgb([255; 3]))), frame(Fill::Edge));
        assert_eq!((white.fitted((50, 66)), edge.fitted((50, 66))), ((61, 80), (60, 80)));
        assert_eq!((white.fitted((32, 5)), white.fitted((32, 3))), ((80, 12), (80, 8)));
        assert_eq!((white.fitted((1, 4000)), edge.fitted((4000, 1))), ((1, 80), (80, 1)));
        let picture = Picture::Rgb(RgbImage::from_fn(2, 1, |x, _| Rgb([x as u8; 3])));
        let square = Frame { side: 2, ..edge }.of(&picture, (2, 1));
        assert_eq!(square.into_raw(), [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]);
        let square = Frame { side: 2, ..white }.of(&picture, (2, 1));
        assert_eq!(square.into_raw(), [0, 0, 0, 1, 1, 1, 255, 255, 255, 255, 255, 255]);
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
