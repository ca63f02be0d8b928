//! Which parts of a picture are drawn again, when, and with what around them.

use serde::{Deserialize, Serialize};

use super::mask::{Depth, Mask, Shape, reach};
use crate::{Error, Result, Size, settings::MULTIPLE};

/// The shortest side of a tile, in pixels.
const TILE_MIN_PX: u32 = 64;
/// The longest.
const TILE_MAX_PX: u32 = 2048;
/// The most context around a tile.
const PADDING_MAX_PX: u32 = 512;
/// The widest blur.
const BLUR_MAX_PX: u32 = 64;
/// What the sides of tiles are rounded up to with their context.
const ROUND_PX: u32 = 64;

/// In which order tiles are drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TileOrder {
    /// Row by row, each with all before it in sight.
    #[default]
    Linear,
    /// As a chessboard's: first those of one colour, then those of the other. A tile sees whole colours only, so that those of one can be made
    /// at once.
    Chess,
    /// Not at all: only seams are.
    None,
}

/// Where the noise of tiles comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TileNoise {
    /// Each has its part of one field for the whole picture, and is drawn at its own size.
    #[default]
    Global,
    /// All have the noise of the same seed, and are resized before and after, as in the original.
    SameSeed,
}

/// What is done about seams between tiles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeamFix {
    /// Nothing.
    #[default]
    None,
    /// A strip along each line between tiles is drawn again.
    Band,
    /// Tiles that lie half a tile further are.
    HalfTile,
    /// The same, and then those about the points where four tiles meet.
    HalfTileAndIntersections,
}

/// The tiles of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedrawTiles {
    /// Their order.
    #[serde(rename = "type")]
    pub order: TileOrder,
    /// Width in pixels; 0 for the height.
    pub width: u32,
    /// Height in pixels; 0 for the width.
    pub height: u32,
    /// How much of the picture around a tile is seen with it, in pixels.
    pub padding: u32,
    /// How softly a tile goes over into what is around it: the blur's sigma in pixels.
    pub mask_blur: u32,
    /// Where noise comes from.
    pub noise: TileNoise,
}

impl Default for RedrawTiles {
    /// The original's sizes: 512 px with 32 around and a blur of 8.
    fn default() -> Self {
        Self {
            order: TileOrder::Linear,
            width: 512,
            height: 0,
            padding: 32,
            mask_blur: 8,
            noise: TileNoise::Global,
        }
    }
}

/// What is done about seams, and how.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Seams {
    /// What.
    #[serde(rename = "type")]
    pub fix: SeamFix,
    /// How much is given up, 0 to 1.
    pub denoising: f64,
    /// The width of strips in pixels.
    pub width: u32,
    /// How much around it is seen, in pixels.
    pub padding: u32,
    /// The blur in pixels, of all but strips.
    pub mask_blur: u32,
}

impl Default for Seams {
    /// The original's.
    fn default() -> Self {
        Self { fix: SeamFix::None, denoising: 0.35, width: 64, padding: 16, mask_blur: 4 }
    }
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rect {
    pub(crate) left: u32,
    pub(crate) top: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

impl Rect {
    pub(crate) const fn right(self) -> u32 {
        self.left + self.width
    }

    pub(crate) const fn bottom(self) -> u32 {
        self.top + self.height
    }

    /// So much more on all sides, but not beyond 0.
    pub(crate) fn grown(self, by: u32) -> Self {
        let (left, top) = (self.left.saturating_sub(by), self.top.saturating_sub(by));
        Self { left, top, width: self.right() + by - left, height: self.bottom() + by - top }
    }

    /// What of it is in a picture of this size.
    pub(crate) fn within(self, (width, height): (u32, u32)) -> Self {
        let (left, top) = (self.left.min(width), self.top.min(height));
        Self { left, top, width: self.right().min(width) - left, height: self.bottom().min(height) - top }
    }
}

/// Parts that are drawn from the same picture: none sees another.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pass {
    /// How much is given up.
    pub(crate) denoising: f64,
    /// The size at which they are drawn.
    pub(crate) size: Size,
    pub(crate) jobs: Vec<Job>,
}

/// A part that is drawn again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    shape: Shape,
    at: Rect,
    blur: u32,
    crop: Crop,
}

/// What of the picture is seen with a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crop {
    /// This, which is of the size that it is drawn at.
    Fixed(Rect),
    /// What the mask has and so much around it, in the proportions of the size that it is drawn at.
    Around { padding: u32, size: Size },
}

impl Job {
    /// The mask, and what of the picture is seen.
    pub(crate) fn prepare(&self, canvas: (u32, u32)) -> (Mask, Rect) {
        let mask = Mask::draw(self.shape, self.at, self.blur, canvas);
        let crop = match self.crop {
            Crop::Fixed(crop) => crop,
            Crop::Around { padding, size } => {
                let bounds = mask.bounds().unwrap_or_else(|| self.at.within(canvas));
                expanded(bounds.grown(padding).within(canvas), size, canvas)
            }
        };
        (mask, crop)
    }
}

/// A crop in the proportions of `size`, as far as the picture allows (stable-diffusion-webui 1.10.1, `modules/masking.py`,
/// `expand_crop_region`).
fn expanded(crop: Rect, size: Size, (width, height): (u32, u32)) -> Rect {
    let ratio = f64::from(size.width) / f64::from(size.height);
    let (wide, high) = (f64::from(crop.width), f64::from(crop.height));
    let longer = |start: u32, len: u32, more: u32, side: u32| {
        let (start, end) = (i64::from(start) - i64::from(more / 2), i64::from(start + len + more - more / 2));
        let start = if end >= side.into() { start - (end - i64::from(side)) } else { start };
        let start = start.max(0) as u32;
        (start, (len + more).min(side - start))
    };
    if wide / high > ratio {
        let (top, height) = longer(crop.top, crop.height, (wide / ratio - high) as u32, height);
        Rect { top, height, ..crop }
    } else {
        let (left, width) = longer(crop.left, crop.width, (high * ratio - wide) as u32, width);
        Rect { left, width, ..crop }
    }
}

/// Parts that are alike, each with its column and row.
struct Group {
    shape: Shape,
    blur: u32,
    padding: u32,
    denoising: f64,
    /// The size at which the original draws them.
    size: Size,
    tiles: Vec<(u32, u32, Rect)>,
}

impl RedrawTiles {
    /// Width and height in pixels.
    pub(crate) fn size(self) -> (u32, u32) {
        let or = |side: u32, other: u32| if side == 0 { other } else { side };
        (or(self.width, self.height), or(self.height, self.width))
    }

    /// In what steps tiles are kept: those that may be made at once, and so differ in their last bits, in fine ones.
    pub(crate) fn depth(self) -> Depth {
        if self.order == TileOrder::Chess { Depth::Fine } else { Depth::Whole }
    }

    /// # Errors
    /// Tiles that are too small, too large or no multiples of 8, and what is too much around them.
    pub(crate) fn check(self) -> Result<()> {
        let (width, height) = self.size();
        let fits = |side: u32| (TILE_MIN_PX..=TILE_MAX_PX).contains(&side) && side.is_multiple_of(MULTIPLE);
        if !fits(width) || !fits(height) {
            let (multiple, min_px, max_px) = (MULTIPLE, TILE_MIN_PX, TILE_MAX_PX);
            return Err(Error::RedrawTile { width, height, multiple, min_px, max_px });
        }
        check_px("tiles.padding", self.padding, 0, PADDING_MAX_PX)?;
        check_px("tiles.mask_blur", self.mask_blur, 0, BLUR_MAX_PX)
    }
}

impl Seams {
    /// # Errors
    /// Numbers beyond what makes sense with these tiles.
    pub(crate) fn check(&self, tiles: RedrawTiles) -> Result<()> {
        let (width, height) = tiles.size();
        if !(0.0..=1.0).contains(&self.denoising) {
            return Err(Error::Share { field: "seams.denoising", found: self.denoising });
        }
        if self.fix == SeamFix::Band {
            check_px("seams.width", self.width, MULTIPLE, width.min(height))?;
        }
        check_px("seams.padding", self.padding, 0, PADDING_MAX_PX)?;
        check_px("seams.mask_blur", self.mask_blur, 0, BLUR_MAX_PX)
    }
}

fn check_px(field: &'static str, found: u32, min: u32, max: u32) -> Result<()> {
    if (min..=max).contains(&found) { Ok(()) } else { Err(Error::Pixels { field, found, min, max }) }
}

/// All that is drawn again of a picture, in the order of the original (Coyote-A/ultimate-upscale-for-automatic1111, 2322caa,
/// `scripts/ultimate-upscale.py`); both sides of the picture are multiples of 8.
pub(crate) fn passes(tiles: RedrawTiles, seams: &Seams, denoising: f64, canvas: (u32, u32)) -> Vec<Pass> {
    let redrawn = (tiles.order != TileOrder::None).then(|| redrawn(tiles, denoising, canvas));
    let groups = redrawn.into_iter().chain(seam_groups(tiles, seams, canvas));
    groups.flat_map(|group| ordered(&group, tiles, canvas)).collect()
}

fn grid(tiles: RedrawTiles, (width, height): (u32, u32)) -> (u32, u32) {
    let (wide, high) = tiles.size();
    (width.div_ceil(wide), height.div_ceil(high))
}

fn redrawn(tiles: RedrawTiles, denoising: f64, canvas: (u32, u32)) -> Group {
    let (columns, rows) = grid(tiles, canvas);
    let (wide, high) = tiles.size();
    // Pillow's rectangles have their last pixel too.
    let more = u32::from(tiles.noise == TileNoise::SameSeed);
    let at = |x: u32, y: u32| Rect { left: x * wide, top: y * high, width: wide + more, height: high + more };
    let side = |side: u32| (side + tiles.padding).next_multiple_of(ROUND_PX);
    Group {
        shape: Shape::Full,
        blur: tiles.mask_blur,
        padding: tiles.padding,
        denoising,
        size: Size { width: side(wide), height: side(high) },
        tiles: (0..rows).flat_map(|y| (0..columns).map(move |x| (x, y, at(x, y)))).collect(),
    }
}

fn seam_groups(tiles: RedrawTiles, seams: &Seams, canvas: (u32, u32)) -> Vec<Group> {
    let (columns, rows) = grid(tiles, canvas);
    let (wide, high) = tiles.size();
    let half = |blur: u32, padding: u32, shape: Shape, counts: (u32, u32), offset: (u32, u32)| {
        let at = move |x: u32, y: u32| Rect {
            left: x * wide + offset.0,
            top: y * high + offset.1,
            width: wide,
            height: high,
        };
        let size = Size { width: wide, height: high };
        let tiles = (0..counts.1).flat_map(|y| (0..counts.0).map(move |x| (x, y, at(x, y)))).collect();
        Group { shape, blur, padding, denoising: seams.denoising, size, tiles }
    };
    let (blur, padding) = (seams.mask_blur, seams.padding);
    let halves = || {
        [
            half(blur, padding, Shape::Rows, (columns, rows - 1), (0, high / 2)),
            half(blur, padding, Shape::Columns, (columns - 1, rows), (wide / 2, 0)),
        ]
    };
    match seams.fix {
        SeamFix::None => Vec::new(),
        SeamFix::Band => bands(tiles, seams, canvas),
        SeamFix::HalfTile => halves().into(),
        SeamFix::HalfTileAndIntersections => {
            let points = half(blur, 0, Shape::Radial, (columns - 1, rows - 1), (wide / 2, high / 2));
            halves().into_iter().chain([points]).collect()
        }
    }
}

/// Strips about the lines between tiles, those that run down first; they are not blurred.
fn bands(tiles: RedrawTiles, seams: &Seams, (width, height): (u32, u32)) -> Vec<Group> {
    let (columns, rows) = grid(tiles, (width, height));
    let (wide, high) = tiles.size();
    let across = seams.width;
    let start = |line: u32, side: u32| line * side - across / 2;
    let down = |x: u32| Rect { left: start(x, wide), top: 0, width: across, height };
    let flat = |y: u32| Rect { left: 0, top: start(y, high), width, height: across };
    let side = (across + 2 * seams.padding).next_multiple_of(MULTIPLE);
    let group = |shape, size, tiles| Group {
        shape,
        blur: 0,
        padding: seams.padding,
        denoising: seams.denoising,
        size,
        tiles,
    };
    let downs = (1..columns).map(|x| (x, 0, down(x))).collect();
    let flats = (1..rows).map(|y| (0, y, flat(y))).collect();
    vec![
        group(Shape::BandColumns, Size { width: side, height }, downs),
        group(Shape::BandRows, Size { width, height: side }, flats),
    ]
}

/// Puts the parts of a group into passes.
fn ordered(group: &Group, tiles: RedrawTiles, canvas: (u32, u32)) -> Vec<Pass> {
    let (size, crops) = match tiles.noise {
        TileNoise::SameSeed => {
            let around = Crop::Around { padding: group.padding, size: group.size };
            (group.size, vec![around; group.tiles.len()])
        }
        TileNoise::Global => windows(group, canvas),
    };
    let job = |((x, y, at), crop): (&(u32, u32, Rect), Crop)| {
        let job = Job { shape: group.shape, at: *at, blur: group.blur, crop };
        (x + y, job)
    };
    let jobs = group.tiles.iter().zip(crops).map(job);
    let colours: Vec<Vec<Job>> = if tiles.order == TileOrder::Chess {
        let (first, second): (Vec<_>, Vec<_>) = jobs.partition(|(place, _)| place % 2 == 0);
        [first, second].map(|colour| colour.into_iter().map(|(_, job)| job).collect()).into()
    } else {
        jobs.map(|(_, job)| vec![job]).collect()
    };
    let denoising = group.denoising;
    colours.into_iter().filter(|jobs| !jobs.is_empty()).map(|jobs| Pass { denoising, size, jobs }).collect()
}

/// What is seen with each part: as much for each, on the grid of latents and inside of the picture, so that nothing is resized. Around the
/// part are the padding and whatever its blur reaches.
fn windows(group: &Group, (width, height): (u32, u32)) -> (Size, Vec<Crop>) {
    let margin = group.padding.max(reach(group.blur));
    let spans = |of: fn(&Rect) -> (u32, u32)| group.tiles.iter().map(move |(_, _, at)| of(at));
    let (wide, lefts) = along(spans(|at| (at.left, at.right())), margin, width);
    let (high, tops) = along(spans(|at| (at.top, at.bottom())), margin, height);
    let crops = lefts.into_iter().zip(tops).map(|(left, top)| Rect { left, top, width: wide, height: high });
    (Size { width: wide, height: high }, crops.map(Crop::Fixed).collect())
}

/// Windows of one length over parts of a side, which is a multiple of 8.
fn along(parts: impl Iterator<Item = (u32, u32)>, margin: u32, side: u32) -> (u32, Vec<u32>) {
    let down = |place: u32| place / MULTIPLE * MULTIPLE;
    let seen = |(start, end): (u32, u32)| {
        (down(start.saturating_sub(margin)), (end + margin).next_multiple_of(MULTIPLE).min(side))
    };
    let seen: Vec<_> = parts.map(seen).collect();
    let longest = seen.iter().map(|(start, end)| end - start).max().unwrap_or_default();
    let len = longest.next_multiple_of(ROUND_PX).min(side);
    let start = |(start, end): &(u32, u32)| {
        let before = down((len - (end - start)) / 2);
        start.saturating_sub(before).min(side - len)
    };
    (len, seen.iter().map(start).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes of tiles, with what is around them, and of pictures.
    fn cases() -> impl Iterator<Item = (RedrawTiles, (u32, u32))> {
        let tiles = [(64, 64, 32, 8), (64, 96, 0, 8), (128, 64, 16, 0), (512, 0, 32, 8), (72, 0, 7, 3)];
        let canvases = [(64, 192), (256, 192), (200, 328), (8, 8)];
        let orders = [TileOrder::Linear, TileOrder::Chess];
        let noises = [TileNoise::Global, TileNoise::SameSeed];
        orders.into_iter().flat_map(move |order| {
            noises.into_iter().flat_map(move |noise| {
                tiles.into_iter().flat_map(move |(width, height, padding, mask_blur)| {
                    let tiles = RedrawTiles { order, width, height, padding, mask_blur, noise };
                    canvases.into_iter().map(move |canvas| (tiles, canvas))
                })
            })
        })
    }

    fn all_seams() -> [Seams; 4] {
        use SeamFix::{Band, HalfTile, HalfTileAndIntersections, None};
        [None, Band, HalfTile, HalfTileAndIntersections].map(|fix| Seams {
            fix,
            width: 24,
            ..Seams::default()
        })
    }

    fn jobs(passes: &[Pass]) -> Vec<Job> {
        passes.iter().flat_map(|pass| pass.jobs.iter().copied()).collect()
    }

    #[test]
    fn every_pixel_is_covered_and_every_crop_is_inside() {
        for (tiles, canvas) in cases() {
            tiles.check().unwrap();
            let (width, height) = canvas;
            for seams in all_seams() {
                seams.check(tiles).unwrap();
                let passes = passes(tiles, &seams, 0.5, canvas);
                let mut covered = vec![false; (width * height) as usize];
                for (pass, job) in passes.iter().flat_map(|pass| pass.jobs.iter().map(move |job| (pass, job)))
                {
                    let (mask, crop) = job.prepare(canvas);
                    let case = format!("{tiles:?} {seams:?} {canvas:?} {job:?}");
                    assert!(crop.right() <= width && crop.bottom() <= height, "{case}");
                    let bounds = mask.bounds().unwrap();
                    let (right, bottom) = (bounds.right() <= crop.right(), bounds.bottom() <= crop.bottom());
                    assert!(bounds.left >= crop.left && bounds.top >= crop.top && right && bottom, "{case}");
                    assert!(pass.size.width % MULTIPLE == 0 && pass.size.height % MULTIPLE == 0);
                    if tiles.noise == TileNoise::Global {
                        assert_eq!((crop.width, crop.height), (pass.size.width, pass.size.height), "{case}");
                        assert!(crop.left % MULTIPLE == 0 && crop.top % MULTIPLE == 0, "{case}");
                    }
                    let at = job.at.within(canvas);
                    for y in at.top..at.bottom() {
                        for x in at.left..at.right() {
                            covered[(y * width + x) as usize] = true;
                        }
                    }
                }
                assert!(covered.iter().all(|is| *is), "{tiles:?} {canvas:?}");
            }
        }
    }

    #[test]
    fn tiles_of_one_colour_do_not_touch_and_lines_are_drawn_one_by_one() {
        for (tiles, canvas) in cases().filter(|(tiles, _)| tiles.noise == TileNoise::Global) {
            for seams in all_seams() {
                let passes = passes(tiles, &seams, 0.5, canvas);
                for pass in &passes {
                    assert!(tiles.order == TileOrder::Chess || pass.jobs.len() == 1);
                    for (i, a) in pass.jobs.iter().enumerate() {
                        for b in &pass.jobs[i + 1..] {
                            let (a, b) = (a.at, b.at);
                            let columns = a.left.max(b.left).checked_sub(a.right().min(b.right()));
                            let rows = a.top.max(b.top).checked_sub(a.bottom().min(b.bottom()));
                            // Apart, or with nothing but a corner in common.
                            let is_apart =
                                columns.is_some_and(|gap| gap > 0) || rows.is_some_and(|gap| gap > 0);
                            assert!(is_apart || columns == Some(0) && rows == Some(0), "{a:?} {b:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn jobs_are_as_many_as_in_the_original() {
        let tiles = RedrawTiles { width: 64, ..RedrawTiles::default() };
        let (columns, rows) = (5, 3);
        let count = |seams: &Seams, tiles| jobs(&passes(tiles, seams, 0.5, (320, 192))).len() as u32;
        let halves = rows * (columns - 1) + (rows - 1) * columns;
        let expected = [0, rows + columns - 2, halves, halves + (rows - 1) * (columns - 1)];
        for order in [TileOrder::Linear, TileOrder::Chess] {
            let tiles = RedrawTiles { order, ..tiles };
            let found = all_seams().map(|seams| count(&seams, tiles) - rows * columns);
            assert_eq!(found, expected);
        }
        let tiles = RedrawTiles { order: TileOrder::None, ..tiles };
        assert_eq!(all_seams().map(|seams| count(&seams, tiles)), expected);
        // Rows first, then columns; a chessboard's first colour is that of the upper left corner.
        let lefts = |order| {
            let tiles = RedrawTiles { order, width: 64, ..RedrawTiles::default() };
            let jobs = jobs(&passes(tiles, &Seams::default(), 0.5, (192, 128)));
            jobs.iter().map(|job| (job.at.left / 64, job.at.top / 64)).collect::<Vec<_>>()
        };
        assert_eq!(lefts(TileOrder::Linear), [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]);
        assert_eq!(lefts(TileOrder::Chess), [(0, 0), (2, 0), (1, 1), (1, 0), (0, 1), (2, 1)]);
    }

    #[test]
    fn wrong_sizes_are_named() {
        let check = |tiles: RedrawTiles| tiles.check().unwrap_err().to_string();
        let base = RedrawTiles::default;
        let error = check(RedrawTiles { width: 56, height: 64, ..base() });
        assert_eq!(error, "tiles of 56x64 px: expected multiples of 8 from 64 to 2048 px");
        assert!(check(RedrawTiles { width: 100, ..base() }).starts_with("tiles of 100x100 px"));
        assert!(check(RedrawTiles { width: 0, ..base() }).starts_with("tiles of 0x0 px"));
        let error = check(RedrawTiles { padding: 600, ..base() });
        assert_eq!(error, "`tiles.padding` is 600 px, expected 0 to 512");
        let seams = |seams: Seams| seams.check(base()).unwrap_err().to_string();
        let band = Seams { fix: SeamFix::Band, ..Seams::default() };
        assert_eq!(seams(Seams { width: 600, ..band }), "`seams.width` is 600 px, expected 8 to 512");
        assert_eq!(seams(Seams { denoising: 1.5, ..band }), "`seams.denoising` is 1.5, expected 0 to 1");
        assert!(seams(Seams { mask_blur: 65, ..band }).starts_with("`seams.mask_blur` is 65 px"));
    }
}
