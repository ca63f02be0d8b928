//! Draws the tiles of a picture again, one pass after the other.

use std::collections::BTreeMap;

use image::{GrayImage, Luma, RgbImage, imageops};
use vodka_images::{Filter, resize};

use super::{
    geometry::{Job, Pass, Rect, TileNoise},
    mask::{Depth, Mask},
};
use crate::{
    ResizeMode, Result, Size,
    fit::{fit, fit_fine},
    redraw::{FINE, FinePicture, Part, Place, fine, whole},
    settings::MULTIPLE,
};

/// Makes parts of one pass, not cut off to whole levels; `None` where it was interrupted.
pub(crate) type Make<'a> = dyn FnMut(&Pass, &[Part]) -> Result<Option<Vec<FinePicture>>> + 'a;

/// How parts are made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawing<'a> {
    /// How many of a pass at once.
    pub(crate) batch: usize,
    pub(crate) noise: TileNoise,
    /// The pictures of ControlNets that have one of their own, as large as what is drawn, by the numbers of the units.
    pub(crate) controls: &'a [Option<RgbImage>],
    pub(crate) depth: Depth,
}

impl Drawing<'_> {
    /// Draws all passes. Parts that are in `known`, by their numbers, are not made again, unless one that was to be made with them is
    /// missing: so that they are, to the bit, what they would be in an undisturbed run. `on_made` is told of each that is new. Whether all
    /// is drawn, and nothing was interrupted.
    ///
    /// # Errors
    /// Those of `make` and `on_made`.
    pub(crate) fn run(
        self,
        canvas: &mut FinePicture,
        passes: &[Pass],
        known: &mut BTreeMap<usize, FinePicture>,
        make: &mut Make<'_>,
        on_made: &mut dyn FnMut(usize, &FinePicture) -> Result<()>,
    ) -> Result<bool> {
        let mut first = 0;
        for pass in passes {
            let mut made = Vec::new();
            for (i, jobs) in pass.jobs.chunks(self.batch).enumerate() {
                let numbers = first + i * self.batch..first + i * self.batch + jobs.len();
                let found: Vec<_> = numbers.clone().filter_map(|number| known.remove(&number)).collect();
                if found.len() == jobs.len() && found.iter().all(|part| is_of_size(part, pass.size)) {
                    made.extend(found);
                    continue;
                }
                let parts: Vec<_> = jobs.iter().map(|job| self.part(job, pass.size, canvas)).collect();
                let Some(mut pictures) = make(pass, &parts)? else { return Ok(false) };
                pictures.iter_mut().for_each(|picture| self.cut_off(picture));
                for (number, picture) in numbers.zip(&pictures) {
                    on_made(number, picture)?;
                }
                made.extend(pictures);
            }
            for (job, picture) in pass.jobs.iter().zip(&made) {
                self.paste(job, picture, canvas);
            }
            first += pass.jobs.len();
        }
        Ok(true)
    }

    /// A1111 cuts off what is not a whole level, which is half a level where it is not known.
    fn cut_off(self, picture: &mut FinePicture) {
        for value in picture.iter_mut() {
            *value = match self.depth {
                Depth::Whole => *value / FINE * FINE,
                Depth::Fine => value.saturating_sub(FINE / 2),
            };
        }
    }

    fn fit(self, picture: &FinePicture, width: u32, height: u32, mode: ResizeMode) -> FinePicture {
        match self.depth {
            Depth::Whole => fine(&fit(&whole(picture), width, height, mode)),
            Depth::Fine => fit_fine(picture, width, height, mode),
        }
    }

    fn paste(self, job: &Job, picture: &FinePicture, canvas: &mut FinePicture) {
        let (mask, crop) = job.prepare(canvas.dimensions());
        let picture = self.fit(picture, crop.width, crop.height, ResizeMode::Crop);
        mask.paste(&picture, crop, canvas, self.depth);
    }

    fn part(self, job: &Job, Size { width, height }: Size, canvas: &FinePicture) -> Part {
        let (mask, crop) = job.prepare(canvas.dimensions());
        // stable-diffusion-webui cuts what ControlNets see in the same way (sd-webui-controlnet, `scripts/controlnet.py`).
        let seen = |whole: &RgbImage| {
            let cut = imageops::crop_imm(whole, crop.left, crop.top, crop.width, crop.height).to_image();
            fit(&cut, width, height, ResizeMode::Fill)
        };
        let place = (self.noise == TileNoise::Global).then(|| {
            let latents = |pixels: u32| (pixels / MULTIPLE) as usize;
            let whole = (latents(canvas.width()), latents(canvas.height()));
            Place { whole, left: latents(crop.left), top: latents(crop.top) }
        });
        let controls = self.controls.iter().map(|own| own.as_ref().map(seen)).collect();
        let picture = imageops::crop_imm(canvas, crop.left, crop.top, crop.width, crop.height).to_image();
        let picture = self.fit(&picture, width, height, ResizeMode::Fill);
        Part { picture, mask: latent_mask(&mask, crop, width, height), place, controls }
    }
}

fn is_of_size(picture: &FinePicture, size: Size) -> bool {
    picture.dimensions() == (size.width, size.height)
}

/// Where latents are made: the mask at the size of the crop, brought to theirs by Pillow's `BICUBIC` and rounded.
fn latent_mask(mask: &Mask, crop: Rect, width: u32, height: u32) -> GrayImage {
    let fitted = fit(&mask.cropped(crop), width, height, ResizeMode::Fill);
    let (columns, rows) = (width / MULTIPLE, height / MULTIPLE);
    let small = resize(&fitted, columns, rows, Filter::Bicubic);
    GrayImage::from_fn(columns, rows, |x, y| Luma([if small.get_pixel(x, y).0[0] >= 128 { 255 } else { 0 }]))
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::{
        super::geometry::{RedrawTiles, SeamFix, Seams, TileOrder, passes},
        *,
    };
    use crate::Error;

    fn gradient(width: u32, height: u32) -> FinePicture {
        fine(&RgbImage::from_fn(width, height, |x, y| Rgb([(x * 3) as u8, (y * 5) as u8, (x + y) as u8])))
    }

    fn tiles(order: TileOrder, noise: TileNoise) -> RedrawTiles {
        RedrawTiles { order, width: 64, padding: 8, mask_blur: 2, noise, ..RedrawTiles::default() }
    }

    /// Darker, and marked by how bright what is seen is: so that it tells what a tile has seen.
    fn darker(part: &Part) -> FinePicture {
        let sum: u64 = part.picture.iter().map(|value| u64::from(*value)).sum();
        let mark = (sum % 16) as u16 * FINE;
        let mut made = part.picture.clone();
        made.iter_mut().for_each(|value| *value = *value / 2 + mark);
        made
    }

    fn draw(
        tiles: RedrawTiles,
        seams: &Seams,
        batch: usize,
        known: &mut BTreeMap<usize, FinePicture>,
        stop_at: usize,
    ) -> (Option<FinePicture>, BTreeMap<usize, FinePicture>) {
        let mut canvas = gradient(200, 136);
        let passes = passes(tiles, seams, 0.5, canvas.dimensions());
        let (mut told, mut calls) = (BTreeMap::new(), 0);
        let drawing = Drawing { batch, noise: tiles.noise, controls: &[], depth: tiles.depth() };
        let make = &mut |pass: &Pass, parts: &[Part]| {
            calls += 1;
            assert!(parts.len() <= batch && parts.iter().all(|part| is_of_size(&part.picture, pass.size)));
            Ok((calls <= stop_at).then(|| parts.iter().map(darker).collect()))
        };
        let on_made = &mut |number, picture: &FinePicture| {
            told.insert(number, picture.clone());
            Ok(())
        };
        let is_through = drawing.run(&mut canvas, &passes, known, make, on_made).unwrap();
        (is_through.then_some(canvas), told)
    }

    #[test]
    fn batches_make_no_difference_and_a_run_goes_on_where_it_was() {
        for order in [TileOrder::Linear, TileOrder::Chess, TileOrder::None] {
            for noise in [TileNoise::Global, TileNoise::SameSeed] {
                for fix in [SeamFix::Band, SeamFix::HalfTileAndIntersections] {
                    let (tiles, seams) = (tiles(order, noise), Seams { fix, ..Seams::default() });
                    let whole = draw(tiles, &seams, 1, &mut BTreeMap::new(), usize::MAX);
                    for batch in [1, 3] {
                        let again = draw(tiles, &seams, batch, &mut BTreeMap::new(), usize::MAX);
                        assert!(again == whole, "{tiles:?} {fix:?} {batch}");
                        for stop_at in [0, 1, 4] {
                            let (none, mut known) = draw(tiles, &seams, batch, &mut BTreeMap::new(), stop_at);
                            assert!(none.is_none());
                            // What a kill has left of the last batch.
                            known.pop_last();
                            let kept = known.clone();
                            let (rest, told) = draw(tiles, &seams, batch, &mut known, usize::MAX);
                            assert!(rest == whole.0, "{tiles:?} {fix:?} {batch} {stop_at}");
                            // Of what was kept, only what is in one batch with a tile that was not is made again.
                            let again = told.keys().filter(|number| kept.contains_key(number)).count();
                            assert!(again < batch, "{tiles:?} {fix:?} {batch} {stop_at}: {again}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_control_picture_is_cut_where_the_tile_is() {
        let own =
            RgbImage::from_fn(200, 136, |x, y| Rgb([255 - (x * 3) as u8, (y * 5) as u8, (x + y) as u8]));
        for noise in [TileNoise::Global, TileNoise::SameSeed] {
            let tiles = tiles(TileOrder::Chess, noise);
            let passes = passes(tiles, &Seams::default(), 0.5, own.dimensions());
            let controls = [Some(own.clone())];
            let drawing = Drawing { batch: 3, noise, controls: &controls, depth: Depth::Whole };
            let make = &mut |_: &Pass, parts: &[Part]| {
                for part in parts {
                    // What is seen of either goes through the same arithmetic, and differs in red alone.
                    let (tile, own) = (whole(&part.picture), part.control(0));
                    let mut pairs = tile.pixels().zip(own.pixels());
                    assert!(pairs.all(|(tile, own)| tile.0[1..] == own.0[1..]) && tile != *own);
                }
                Ok(Some(parts.iter().map(|part| part.picture.clone()).collect()))
            };
            let (canvas, known) = (&mut gradient(200, 136), &mut BTreeMap::new());
            // The second pass of a chessboard would see what the first has drawn.
            drawing.run(canvas, &passes[..1], known, make, &mut |_, _| Ok(())).unwrap();
        }
    }

    #[test]
    fn all_is_made_again_and_nothing_but_that_is_seen() {
        // Every pixel is darker, whatever the tiles.
        for order in [TileOrder::Linear, TileOrder::Chess] {
            for noise in [TileNoise::Global, TileNoise::SameSeed] {
                let (found, _) = draw(tiles(order, noise), &Seams::default(), 4, &mut BTreeMap::new(), 100);
                let (found, before) = (found.unwrap(), gradient(200, 136));
                let bright =
                    before.pixels().zip(found.pixels()).filter(|(before, _)| before.0[1] > 100 * FINE);
                assert!(
                    bright.into_iter().all(|(before, after)| after.0[1] < before.0[1]),
                    "{order:?} {noise:?}"
                );
            }
        }
        // One tile that covers the picture is made as it is, without its surroundings.
        let mut canvas = gradient(64, 64);
        let one = tiles(TileOrder::Linear, TileNoise::Global);
        let passes = passes(one, &Seams::default(), 0.5, (64, 64));
        let own = RgbImage::from_pixel(64, 64, Rgb([7, 8, 9]));
        let controls = [None, Some(own.clone())];
        let drawing =
            Drawing { batch: 1, noise: TileNoise::Global, controls: &controls, depth: Depth::Whole };
        let make = &mut |_: &Pass, parts: &[Part]| {
            assert_eq!(parts[0].place, Some(Place { whole: (8, 8), left: 0, top: 0 }));
            assert!(parts[0].mask.iter().all(|value| *value == 255));
            assert!(*parts[0].control(0) == whole(&parts[0].picture) && *parts[0].control(1) == own);
            Ok(Some(vec![FinePicture::from_pixel(64, 64, Rgb([1, 2, 3].map(|level| level * FINE + 255)))]))
        };
        assert!(drawing.run(&mut canvas, &passes, &mut BTreeMap::new(), make, &mut |_, _| Ok(())).unwrap());
        assert!(canvas.pixels().all(|pixel| pixel.0 == [1, 2, 3].map(|level| level * FINE)));
        let failing = &mut |_: &Pass, _: &[Part]| Err(Error::NoImage);
        drawing.run(&mut canvas, &passes, &mut BTreeMap::new(), failing, &mut |_, _| Ok(())).unwrap_err();
    }
}
