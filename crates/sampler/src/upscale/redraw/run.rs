//! The redraw of one picture: larger, then tile by tile, with a journal of the tiles.

use std::{collections::BTreeMap, fs, io::Cursor, path::Path, sync::Arc};

use image::{DynamicImage, ImageFormat, RgbImage};
use serde::{Deserialize, Serialize};
use vodka_images::{Picture, decode};
use vodka_prompt::Parameters;
use vodka_sd15::parse_device;
use vodka_stage::{ContentHash, Interrupt, Journal, beside, hash_bytes};

use super::{
    draw::Drawing,
    geometry::{Pass, passes},
    mask::Depth,
    recipe::RedrawPlan,
    seam::SeamMeasure,
};
use crate::{
    ControlUnit, Error, ImageToImage, Load, ModelId, Pipeline, ResizeMode, Result, SamplerName, Settings,
    Size, UpscaleEvent, Upscaler,
    fit::fit,
    memory::{Job, There},
    pipeline::kind,
    redraw::{FinePicture, Part, fine, whole},
    upscale::{UpscalePlan, alpha, check_size},
};

/// A picture that is to be drawn again.
pub(crate) struct Source<'a> {
    pub(crate) picture: Picture,
    /// Its own text.
    pub(crate) text: Parameters,
    /// The hash of its file.
    pub(crate) sha256: ContentHash,
    /// That, and of what its prompts name.
    pub(crate) identity: ContentHash,
    /// How large it becomes, multiples of 8.
    pub(crate) size: Size,
    /// The file that is written of it.
    pub(crate) output: &'a Path,
}

/// What pictures are drawn again with.
pub(crate) struct Redrawing<'a> {
    plan: &'a UpscalePlan,
    redraw: &'a RedrawPlan,
    pub(crate) model: ModelId,
    /// All that pictures depend on, beside themselves.
    key: ContentHash,
    /// The pictures of ControlNets that have one of their own, by the numbers of the units.
    controls: Vec<Option<RgbImage>>,
    /// Loaded when the first tile is made.
    pipeline: Option<Pipeline>,
    /// Tiles that an ended run had left.
    pub(crate) kept: usize,
    /// How much the borders of the last picture's tiles show.
    pub(crate) seams: Option<SeamMeasure>,
}

/// A tile that is made, or, without a number, the larger picture that tiles are drawn in; as a PNG file.
#[derive(Debug, Serialize, Deserialize)]
struct Drawn {
    number: Option<u64>,
    png: Vec<u8>,
}

impl<'a> Redrawing<'a> {
    /// # Errors
    /// A ControlNet that is none, or one for another model, and a picture of one that cannot be read.
    pub(crate) fn new(
        plan: &'a UpscalePlan,
        redraw: &'a RedrawPlan,
        model: ModelId,
        key: ContentHash,
    ) -> Result<Self> {
        let units = &redraw.settings.controls;
        if !units.is_empty() {
            let opened = redraw.model.open()?;
            units.iter().try_for_each(|unit| unit.check_file(&opened.config().unet))?;
        }
        let own = |unit: &ControlUnit| {
            let picture = unit.image.as_deref().map(decode).transpose()?;
            Ok::<_, Error>(picture.map(Picture::into_rgb))
        };
        let controls = units.iter().map(own).collect::<Result<_>>()?;
        Ok(Self { plan, redraw, model, key, controls, pipeline: None, kept: 0, seams: None })
    }

    /// The larger picture, drawn again, and its text; `None` where it was interrupted. Tiles that are made lie in a journal beside the output,
    /// where the next run finds them.
    pub(crate) fn picture(
        &mut self,
        source: Source<'_>,
        upscaler: &Upscaler,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(UpscaleEvent<'_>),
    ) -> Result<Option<(Picture, Parameters)>> {
        let settings = self.settings(&source)?;
        let used = self.redraw.library.used_by(&settings)?;
        let size = source.size;
        let passes = self.passes(&settings, size)?;
        let (colours, opacity) = match source.picture {
            Picture::Rgb(picture) => (picture, None),
            Picture::Rgba(picture) => {
                let (colours, opacity) = alpha::apart(&picture);
                (colours, Some(fit(&opacity, size.width, size.height, ResizeMode::Just)))
            }
        };
        let path = beside(source.output, ".", ".tiles");
        let (mut known, mut base) = (BTreeMap::new(), None);
        let mut journal =
            Journal::open(&path, self.picture_key(&settings, source.identity), |_, drawn: Drawn| {
                let picture = image::load_from_memory_with_format(&drawn.png, ImageFormat::Png).map(kept);
                match (drawn.number, picture) {
                    (Some(number), Ok(picture)) => drop(known.insert(number as usize, picture)),
                    (None, Ok(picture)) => base = Some(picture),
                    (_, Err(_)) => {}
                }
            })?;
        self.kept += known.len();
        let base = base.filter(|base| base.dimensions() == (size.width, size.height));
        let mut canvas = match base {
            Some(base) => base,
            None => {
                let Some(larger) = enlarged(upscaler, colours, size, interrupt, on_event)? else {
                    return Ok(None);
                };
                journal.append(&Drawn { number: None, png: vodka_images::png(&larger) })?;
                fine(&larger)
            }
        };
        let tiles = self.redraw.tiles;
        let on_made = &mut |number: usize, picture: &FinePicture| {
            journal.append(&Drawn { number: Some(number as u64), png: png(picture, tiles.depth()) })?;
            Ok(())
        };
        if !self.draw(&mut canvas, &passes, &settings, known, on_made, interrupt, on_event)? {
            return Ok(None);
        }
        let canvas = whole(&canvas);
        self.seams = SeamMeasure::of(&canvas, tiles.size(), tiles.mask_blur.max(1));
        let text = self.redraw.text(&settings, &self.model, &used, &self.plan.upscaler.name());
        Ok(Some((
            match opacity {
                Some(opacity) => Picture::Rgba(alpha::together(&canvas, &opacity)),
                None => Picture::Rgb(canvas),
            },
            text,
        )))
    }

    /// Takes the journal of a picture away that is written.
    ///
    /// # Errors
    /// A file that cannot be removed.
    pub(crate) fn finish(output: &Path) -> Result<()> {
        let path = beside(output, ".", ".tiles");
        Ok(fs::remove_file(&path).map_err(|source| vodka_stage::Error::Write { path, source })?)
    }

    /// What ControlNets see of pictures of their own, as large as the picture that is drawn.
    fn controls(&self, Size { width, height }: Size) -> Vec<Option<RgbImage>> {
        let units = self.controls.iter().zip(&self.redraw.settings.controls);
        units.map(|(own, unit)| own.as_ref().map(|own| fit(own, width, height, unit.resize_mode))).collect()
    }

    /// The settings of the whole picture.
    fn settings(&self, source: &Source<'_>) -> Result<Settings> {
        let mut settings = self.redraw.settings(&source.text)?;
        settings.size = source.size;
        if let Some(image) = &mut settings.image {
            image.hash = source.sha256.short(10);
        }
        Ok(settings)
    }

    /// All passes, each of which the networks can make.
    fn passes(&self, settings: &Settings, Size { width, height }: Size) -> Result<Vec<Pass>> {
        check_size(width, height)?;
        let denoising = settings.image.as_ref().map_or(0.0, |image| image.denoising_strength);
        let passes = passes(self.redraw.tiles, &self.redraw.seams, denoising, (width, height));
        passes.iter().try_for_each(|pass| of_pass(settings, pass).check())?;
        Ok(passes)
    }

    /// All that this picture depends on.
    fn picture_key(&self, settings: &Settings, source: ContentHash) -> ContentHash {
        let settings = serde_json::to_string(settings).expect("settings are plain data");
        hash_bytes(format!("{} {source} {settings}", self.key))
    }

    /// Draws all passes; whether nothing was interrupted.
    #[expect(clippy::too_many_arguments, reason = "what a run of one picture has at hand")]
    fn draw(
        &mut self,
        canvas: &mut FinePicture,
        passes: &[Pass],
        settings: &Settings,
        mut known: BTreeMap<usize, FinePicture>,
        on_made: &mut dyn FnMut(usize, &FinePicture) -> Result<()>,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(UpscaleEvent<'_>),
    ) -> Result<bool> {
        let total = passes.iter().map(|pass| pass.jobs.len()).sum();
        let mut done = known.len();
        let is_alone = settings.sampler == SamplerName::DpmAdaptive;
        let batch = if is_alone { 1 } else { self.redraw.batch_size };
        let tiles = self.redraw.tiles;
        let controls = self.controls(settings.size);
        let make = &mut |pass: &Pass, parts: &[Part]| {
            if interrupt.is_raised() {
                return Ok(None);
            }
            on_event(UpscaleEvent::Redrawing { done, total });
            let settings = of_pass(settings, pass);
            let job = Job::new(&settings, parts.len())?;
            let Some(pipeline) = self.pipeline(&job, interrupt, on_event)? else { return Ok(None) };
            let made = pipeline.redraw(&settings, parts, interrupt, &mut |_, _| {})?;
            if let Some(reason) = pipeline.without_graphs() {
                on_event(UpscaleEvent::WithoutGraphs { reason: &reason });
            }
            done = (done + parts.len()).min(total);
            Ok(made)
        };
        Drawing { batch, noise: tiles.noise, controls: &controls, depth: tiles.depth() }
            .run(canvas, passes, &mut known, make, on_made)
    }

    fn pipeline(
        &mut self,
        job: &Job,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(UpscaleEvent<'_>),
    ) -> Result<Option<&Pipeline>> {
        if self.pipeline.is_none() {
            on_event(UpscaleEvent::LoadingModel);
            let RedrawPlan { model, vae, precision, vae_precision, library, .. } = self.redraw;
            let device = parse_device(&self.plan.device, &self.plan.runtime_dir)?;
            let (vae_kind, vae) = (kind(*vae_precision), vae.clone());
            let load = Load { vae_kind, vae, ..Load::new(device, kind(*precision)) };
            let model = model.open()?;
            job.check(model.config(), &load, There::default())?;
            let loaded = Pipeline::load_unless(None, model, &load, interrupt)?;
            self.pipeline = loaded.map(|pipeline| pipeline.with_library(Arc::clone(library)));
        }
        Ok(self.pipeline.as_ref())
    }
}

/// A tile as the journal has it, a PNG file: of 16 bits a channel where levels are not whole.
fn png(picture: &FinePicture, depth: Depth) -> Vec<u8> {
    match depth {
        Depth::Whole => vodka_images::png(&whole(picture)),
        Depth::Fine => {
            let mut bytes = Cursor::new(Vec::new());
            picture.write_to(&mut bytes, ImageFormat::Png).expect("memory takes every picture");
            bytes.into_inner()
        }
    }
}

/// What the journal has had.
fn kept(picture: DynamicImage) -> FinePicture {
    match picture {
        DynamicImage::ImageRgb16(picture) => picture,
        picture => fine(&picture.into_rgb8()),
    }
}

/// The settings of the tiles of a pass.
fn of_pass(settings: &Settings, pass: &Pass) -> Settings {
    let image = settings.image.clone().unwrap_or_default();
    let image = ImageToImage { denoising_strength: pass.denoising, ..image };
    Settings { size: pass.size, image: Some(image), ..settings.clone() }
}

/// The larger picture that tiles are drawn in: several times larger by the upscaler, as often as the original does it, then by LANCZOS what is
/// wanted. `None` where it was interrupted.
fn enlarged(
    upscaler: &Upscaler,
    mut picture: RgbImage,
    Size { width, height }: Size,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(UpscaleEvent<'_>),
) -> Result<Option<RgbImage>> {
    let longer = picture.width().max(picture.height());
    for factor in factors(width.max(height).div_ceil(longer)) {
        let on_tile = &mut |done, total| on_event(UpscaleEvent::Tile { done, total });
        let Some(larger) = upscaler.enlarge(&picture, factor.into(), interrupt, on_tile)? else {
            return Ok(None);
        };
        picture = fit(&larger, picture.width() * factor, picture.height() * factor, ResizeMode::Just);
    }
    Ok(Some(fit(&picture, width, height, ResizeMode::Just)))
}

/// Factors of 4, 3 and 2, the larger first, that make at least this much, and no more than need be.
fn factors(wanted: u32) -> Vec<u32> {
    let split = |mut rest: u32| {
        let mut all = Vec::new();
        for factor in [4, 3, 2] {
            while rest > 1 && rest.is_multiple_of(factor) {
                all.push(factor);
                rest /= factor;
            }
        }
        (rest == 1).then_some(all)
    };
    (wanted.max(1)..).find_map(split).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn the_journal_loses_no_bit_of_a_tile() {
        let picture = FinePicture::from_fn(64, 64, |x, y| Rgb([(x * 1020) as u16, (y * 777) as u16, 65280]));
        let read = |bytes: &[u8]| kept(image::load_from_memory(bytes).unwrap());
        assert_eq!(read(&png(&picture, Depth::Fine)), picture);
        let levels = fine(&whole(&picture));
        assert_eq!(read(&png(&levels, Depth::Whole)), levels);
        assert_ne!(read(&png(&picture, Depth::Whole)), picture);
    }

    #[test]
    fn enlargements_are_made_of_small_ones() {
        let expected: [(u32, &[u32]); 10] = [
            (0, &[]),
            (1, &[]),
            (2, &[2]),
            (3, &[3]),
            (4, &[4]),
            (5, &[3, 2]),
            (8, &[4, 2]),
            (9, &[3, 3]),
            (10, &[4, 3]),
            (13, &[4, 4]),
        ];
        for (wanted, expected) in expected {
            assert_eq!(factors(wanted), expected, "{wanted}");
        }
    }
}
