//! The stage that makes pictures larger: one, or all in a folder.

mod alpha;
mod redraw;
mod tiles;
mod upscaler;

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
};

use image::RgbImage;
use serde::{Deserialize, Serialize};
use vodka_checkpoint::Precision;
use vodka_images::{DecodeOptions, MAX_SIDE_PX, Picture, decode_bytes, find, is_image, relative_name};
use vodka_prompt::Parameters;
use vodka_sd15::{check_device_name, device_type, parse_device};
use vodka_stage::{
    ContentHash, Interrupt, Journal, Outcome, Report, RunKey, beside, explain, hash_bytes, hash_file, lossy,
    record_path,
};

use crate::{
    Error, ModelId, PictureFormat, ResizeMode, Result, Settings, Size, Used,
    fit::fit,
    parameters::{read, tell_of_text},
    picture_file::{read_parameters, write_any},
    pipeline::{self, kind},
    settings::MULTIPLE,
};
use redraw::{Redrawing, Source};

pub use redraw::{RedrawConfig, RedrawPlan, RedrawTiles, SeamFix, SeamMeasure, Seams, TileNoise, TileOrder};
pub use tiles::Tiles;
pub(crate) use tiles::{TILE_MAX_PX, TILE_MIN_PX};
pub use upscaler::{Upscaler, UpscalerChoice};
pub(crate) use upscaler::{check_size, passes, scaled};

/// Counts up whenever the same settings make other pixels.
const ARITHMETIC: u32 = 1;
/// The same of those that are drawn again.
const REDRAW_ARITHMETIC: u32 = 2;
/// The largest factor.
pub(crate) const SCALE_MAX: f64 = 64.0;

/// What a user asks for: pictures, what makes them larger, and how large.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpscaleConfig {
    /// A picture, or a folder of pictures.
    pub input: PathBuf,
    /// The larger picture (PNG, JPEG or WebP), or the folder for them, in which they are PNG files.
    pub output: PathBuf,
    /// `Lanczos`, `Nearest`, or the file of an ESRGAN upscaler; what the recipe says, and else `Lanczos`.
    #[serde(default)]
    pub upscaler: Option<UpscalerChoice>,
    /// A recipe ([`RedrawConfig`]) by which the larger picture is drawn again tile by tile.
    #[serde(default)]
    pub recipe: Option<PathBuf>,
    /// In place of the recipe's.
    #[serde(default)]
    pub checkpoint: Option<PathBuf>,
    /// In place of the recipe's.
    #[serde(default)]
    pub prompt: Option<String>,
    /// In place of the recipe's.
    #[serde(default)]
    pub negative: Option<String>,
    /// In place of the recipe's.
    #[serde(default)]
    pub seed: Option<u32>,
    /// In place of the recipe's.
    #[serde(default)]
    pub denoising: Option<f64>,
    /// How many times as wide and as high; where neither this nor `size` is said, what the recipe says, and without one what the
    /// network makes.
    #[serde(default)]
    pub scale: Option<f64>,
    /// The size instead.
    #[serde(default)]
    pub size: Option<Size>,
    /// How pictures are brought to `size`.
    #[serde(default)]
    pub resize_mode: ResizeMode,
    /// How pictures are cut for a network.
    #[serde(default)]
    pub tiles: Tiles,
    /// What a network computes in; fp32.
    #[serde(default)]
    pub precision: Option<Precision>,
    /// `cpu`, `cuda` or `cuda:N`; `cpu` where absent.
    #[serde(default = "crate::sample::default_device")]
    pub device: String,
    /// Where `cargo xtask setup` put libtorch.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
    /// The file that remembers the hashes of models; none to hash them every time.
    #[serde(skip)]
    pub hash_cache: Option<PathBuf>,
}

/// How large pictures become.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// As the network makes them; where they are drawn again, as their texts state.
    Own,
    /// So many times as wide and as high; where they are drawn again, rounded up to multiples of 64.
    Scale(f64),
    /// This size.
    Size(Size, ResizeMode),
}

/// A checked [`UpscaleConfig`].
#[derive(Debug, Clone, Serialize)]
pub struct UpscalePlan {
    /// The picture, or the folder of pictures.
    #[serde(serialize_with = "lossy")]
    pub input: PathBuf,
    /// The larger picture, or the folder for them.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
    /// What makes them larger.
    pub upscaler: UpscalerChoice,
    /// How large they become.
    pub target: Target,
    /// How they are cut.
    pub tiles: Tiles,
    /// What a network computes in.
    pub precision: Precision,
    /// How they are drawn again, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redraw: Option<RedrawPlan>,
    /// The device's name.
    pub device: String,
    /// Each picture, relative to a folder as `input`, and its file.
    #[serde(skip)]
    pub pictures: Vec<(PathBuf, PathBuf)>,
    /// How many there are.
    pub count: usize,
    /// Where libtorch is.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
}

/// How far the stage is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum UpscaleEvent<'a> {
    /// The network is being loaded.
    Loading,
    /// Pictures that are done, kept or skipped, of all.
    Pictures {
        /// Done.
        done: usize,
        /// All.
        total: usize,
    },
    /// Tiles of the picture at hand.
    Tile {
        /// Done.
        done: usize,
        /// All.
        total: usize,
    },
    /// The checkpoint is being loaded.
    LoadingModel,
    /// Tiles that are drawn again of the picture at hand.
    Redrawing {
        /// Done, or there already.
        done: usize,
        /// All.
        total: usize,
    },
    /// Each call of the UNet is told to the GPU anew: its CUDA graphs do not work. Pictures are the same, and slower.
    WithoutGraphs {
        /// Why.
        reason: &'a str,
    },
    /// A picture that cannot be read, or would be too large.
    Skipped {
        /// The picture.
        picture: &'a Path,
        /// Why.
        reason: &'a str,
    },
}

/// What the stage has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpscaleReport {
    /// How it ended.
    pub outcome: Outcome,
    /// How many pictures are there.
    pub pictures: usize,
    /// How many of them were there before.
    pub kept: usize,
    /// How many tiles of the others were.
    #[serde(default)]
    pub kept_tiles: usize,
    /// How much the borders of tiles show, of each picture that was drawn again in this run and has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seams: Vec<(String, SeamMeasure)>,
    /// What the text that the recipe is from asks for and was not done: names of fields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_followed: Vec<String>,
    /// Files that are not those which this text states: the field, what it states, and what was found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_files: Vec<String>,
    /// What could not be read, and why.
    pub skipped: Vec<(String, String)>,
    /// The picture, or the folder.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
}

/// A picture that was made.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    name: String,
    source: ContentHash,
    output: ContentHash,
}

impl UpscaleConfig {
    /// Checks the settings and lists the pictures; none is opened.
    pub fn plan(&self) -> Result<UpscalePlan> {
        self.tiles.check()?;
        check_device_name(&self.device)?;
        let recipe = self.recipe()?;
        let redraw = recipe.as_ref().map(RedrawConfig::plan).transpose()?;
        let stated = redraw.as_ref().and_then(|redraw| redraw.upscaler.clone());
        let upscaler = self.upscaler.clone().or(recipe.as_ref().and_then(|recipe| recipe.upscaler.clone()));
        let upscaler = upscaler.or(stated).unwrap_or(UpscalerChoice::Lanczos);
        let target = self.target(recipe.as_ref(), &upscaler)?;
        let pictures = self.pictures()?;
        Ok(UpscalePlan {
            input: self.input.clone(),
            output: self.output.clone(),
            upscaler,
            target,
            tiles: self.tiles,
            redraw,
            precision: self.precision.unwrap_or(Precision::F32),
            device: self.device.clone(),
            count: pictures.len(),
            pictures,
            runtime_dir: self.runtime_dir.clone(),
        })
    }

    /// The recipe, with what is said here in its place.
    fn recipe(&self) -> Result<Option<RedrawConfig>> {
        let Some(path) = &self.recipe else { return Ok(None) };
        let recipe = RedrawConfig::read(path)?;
        Ok(Some(RedrawConfig {
            checkpoint: self.checkpoint.clone().unwrap_or(recipe.checkpoint),
            prompt: self.prompt.clone().or(recipe.prompt),
            negative: self.negative.clone().or(recipe.negative),
            seed: self.seed.or(recipe.seed),
            denoising: self.denoising.or(recipe.denoising),
            hash_cache: self.hash_cache.clone(),
            ..recipe
        }))
    }

    fn target(&self, recipe: Option<&RedrawConfig>, upscaler: &UpscalerChoice) -> Result<Target> {
        let said = recipe
            .map(|recipe| (recipe.scale, recipe.size))
            .filter(|_| self.scale.is_none() && self.size.is_none());
        match said.unwrap_or((self.scale, self.size)) {
            (None, Some(Size { width, height }))
                if recipe.is_some()
                    && !(width.is_multiple_of(MULTIPLE) && height.is_multiple_of(MULTIPLE)) =>
            {
                Err(Error::Size { width, height, multiple: MULTIPLE, max: MAX_SIDE_PX })
            }
            (None, None) if recipe.is_some() => Ok(Target::Own),
            (Some(_), Some(_)) => Err(Error::ScaleAndSize),
            (Some(scale), None) if scale > 0.0 && scale <= SCALE_MAX => Ok(Target::Scale(scale)),
            (Some(found), None) => Err(Error::Scale { found, max: SCALE_MAX }),
            (None, Some(size)) if size.width > 0 && size.height > 0 => {
                check_size(size.width, size.height)?;
                Ok(Target::Size(size, self.resize_mode))
            }
            (None, Some(size)) => Err(Error::SizeForm { found: size.to_string() }),
            (None, None) if upscaler.path().is_some() => Ok(Target::Own),
            (None, None) => Err(Error::NoScale { upscaler: upscaler.name() }),
        }
    }

    /// What is read, and what is written of it.
    fn pictures(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        let absolute = |path: &Path| fs::canonicalize(path).or_else(|_| std::path::absolute(path)).ok();
        let (input, output) = (absolute(&self.input), absolute(&self.output));
        let is_same = input.is_some() && input == output;
        let is_inside =
            self.input.is_dir() && input.is_some_and(|input| output.is_some_and(|o| o.starts_with(input)));
        if is_same || is_inside {
            return Err(Error::OutputIsInput { path: self.output.clone() });
        }
        if !self.input.is_dir() {
            PictureFormat::of(&self.output)?;
            return Ok(vec![(self.input.clone(), self.output.clone())]);
        }
        let found = find(&self.input)?;
        if found.is_empty() {
            return Err(Error::NoPictures { path: self.input.clone() });
        }
        let mut taken = BTreeMap::new();
        for path in &found {
            *taken.entry(path.with_extension("png")).or_insert(0) += 1;
        }
        let name = |path: PathBuf| {
            let plain = path.with_extension("png");
            // Of two that differ in their endings alone, each keeps its own.
            let plain = if taken[&plain] > 1 { beside(&path, "", ".png") } else { plain };
            let output = self.output.join(plain);
            (path, output)
        };
        Ok(found.into_iter().map(name).collect())
    }
}

impl UpscalePlan {
    fn is_folder(&self) -> bool {
        self.input.is_dir()
    }

    /// All that the pictures depend on, beside themselves.
    fn common_key(&self, model: Option<&ModelId>) -> Result<RunKey> {
        #[derive(Serialize)]
        struct Key<'a> {
            arithmetic: u32,
            upscaler: String,
            target: Target,
            tiles: Option<Tiles>,
            device: &'a str,
            precision: Precision,
            #[serde(skip_serializing_if = "Option::is_none")]
            redraw: Option<RedrawKey<'a>>,
        }
        let file = self.upscaler.path();
        let key = Key {
            arithmetic: ARITHMETIC,
            upscaler: self.upscaler.name(),
            target: self.target,
            tiles: file.map(|_| self.tiles),
            device: device_type(&self.device),
            precision: self.precision,
            redraw: self.redraw.as_ref().map(RedrawKey::of).transpose()?,
        };
        let seed = self.redraw.as_ref().map(|redraw| redraw.settings.seed.into());
        let key = RunKey::new("upscale", &key, seed);
        let key = model.map_or(key.clone(), |model| model.add_to(key, "checkpoint"));
        match file {
            Some(path) => Ok(key.input_hashed("upscaler", path, hash_file(path)?)),
            None => Ok(key),
        }
    }

    /// What tiles are drawn with, if they are.
    fn model(&self, interrupt: &Interrupt) -> Result<Option<ModelId>> {
        self.redraw.as_ref().map(|redraw| redraw.id(interrupt)).transpose()
    }

    /// All that the pictures depend on.
    pub fn key(&self) -> Result<RunKey> {
        self.key_of(self.model(&Interrupt::new())?.as_ref())
    }

    fn key_of(&self, model: Option<&ModelId>) -> Result<RunKey> {
        let key = self.common_key(model)?;
        let key = key.input("images", &self.input, |path| !self.is_folder() || is_image(path))?;
        let own = |redraw: &&RedrawPlan| redraw.is_own_prompt || redraw.is_own_negative;
        let Some(redraw) = self.redraw.as_ref().filter(own) else { return Ok(key) };
        let named = self
            .pictures
            .iter()
            .map(|(picture, _)| redraw.identity(hash_bytes(""), &text_of(&self.source(picture))).to_string());
        let named = hash_bytes(named.collect::<String>());
        Ok(key.input_hashed("what their prompts name", &self.input, named))
    }

    /// The picture's file as it is read.
    fn source(&self, picture: &Path) -> PathBuf {
        if self.is_folder() { self.input.join(picture) } else { picture.to_path_buf() }
    }
}

/// What drawn tiles depend on, beside the model.
#[derive(Serialize)]
struct RedrawKey<'a> {
    /// That of pictures, and that of tiles.
    arithmetic: [u32; 2],
    settings: &'a Settings,
    used: Used,
    own: (bool, bool),
    tiles: RedrawTiles,
    seams: Seams,
    batch_size: usize,
    precision: Precision,
    vae_precision: Precision,
}

impl<'a> RedrawKey<'a> {
    fn of(plan: &'a RedrawPlan) -> Result<Self> {
        let RedrawPlan { ref settings, tiles, seams, batch_size, precision, vae_precision, .. } = *plan;
        let arithmetic = [pipeline::ARITHMETIC, REDRAW_ARITHMETIC];
        let used = plan.library.used_by(settings)?;
        let own = (plan.is_own_prompt, plan.is_own_negative);
        Ok(Self { arithmetic, settings, used, own, tiles, seams, batch_size, precision, vae_precision })
    }
}

/// Makes the pictures larger that are not there yet; what cannot be read is skipped and listed.
///
/// # Errors
/// An upscaler that is none, a device that is not there, a file that cannot be written; of a single picture also that it cannot
/// be read.
pub fn run(
    plan: &UpscalePlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(UpscaleEvent<'_>),
) -> Result<UpscaleReport> {
    let mut report = UpscaleReport {
        outcome: Outcome::Done,
        pictures: 0,
        kept: 0,
        kept_tiles: 0,
        seams: Vec::new(),
        not_followed: plan.redraw.as_ref().map(|redraw| redraw.not_followed.clone()).unwrap_or_default(),
        other_files: plan.redraw.as_ref().map(|redraw| redraw.other_files.clone()).unwrap_or_default(),
        skipped: Vec::new(),
        output: plan.output.clone(),
    };
    let model = match plan.model(interrupt) {
        Err(Error::Interrupted) => return Ok(UpscaleReport { outcome: Outcome::Interrupted, ..report }),
        model => model?,
    };
    let (key, record) = (plan.key_of(model.as_ref())?, record_path(&plan.output));
    if let Some(made) = key.made::<UpscaleReport>(&record)? {
        let outcome = Outcome::Unchanged.with_skips(!made.skipped.is_empty());
        let (kept, output) = (made.pictures, plan.output.clone());
        let UpscaleReport { not_followed, other_files, .. } = report;
        return Ok(UpscaleReport { outcome, kept, output, not_followed, other_files, ..made });
    }
    let common = plan.common_key(model.as_ref())?;
    let mut work = Work::open(plan, &common, key.inputs.get("upscaler").map(|input| input.sha256), model)?;
    let mut outputs: Vec<(&Path, ContentHash)> = Vec::new();
    // Memory may be there another time.
    let mut is_final = true;
    let total = plan.pictures.len();
    for (done, (picture, output)) in plan.pictures.iter().enumerate() {
        if interrupt.is_raised() {
            return Ok(UpscaleReport { outcome: Outcome::Interrupted, ..report });
        }
        let made = work.picture(picture, output, interrupt, on_event);
        report.kept_tiles = work.redraw.as_ref().map_or(0, |redraw| redraw.kept);
        match made {
            Ok(Some((hash, kept))) => {
                outputs.push((output, hash));
                report.pictures += 1;
                report.kept += usize::from(kept);
                let seams = work.redraw.as_mut().and_then(|redraw| redraw.seams.take());
                report.seams.extend(seams.map(|seams| (relative_name(picture), seams)));
            }
            Ok(None) => return Ok(UpscaleReport { outcome: Outcome::Interrupted, ..report }),
            Err(error) if plan.is_folder() && is_of_one_picture(&error) => {
                is_final &= !matches!(error, Error::Memory { .. });
                let reason = explain(&error);
                on_event(UpscaleEvent::Skipped { picture, reason: &reason });
                report.skipped.push((relative_name(picture), reason));
            }
            Err(error) => return Err(error),
        }
        on_event(UpscaleEvent::Pictures { done: done + 1, total });
    }
    report.outcome = Outcome::Done.with_skips(!report.skipped.is_empty());
    if is_final {
        key.write_hashed(&record, &outputs, &report)?;
    }
    // Of a single picture: only now can it not be lost any more.
    if plan.redraw.is_some() && !plan.is_folder() {
        Redrawing::finish(&plan.output)?;
    }
    Ok(report)
}

/// The text of a picture; one that cannot be had is no reason to go without the picture.
fn text_of(path: &Path) -> Parameters {
    let Ok(text) = read_parameters(path).ok().flatten().unwrap_or_default().parse();
    text
}

/// Whether an error is of the picture at hand and of no other.
fn is_of_one_picture(error: &Error) -> bool {
    // What a recipe says has been checked before, so that prompts, fields and sizes are those of the picture's own text.
    matches!(error, Error::Images(_) | Error::TooLarge { .. } | Error::NoSize { .. } | Error::Size { .. })
        || matches!(error, Error::UnknownLora { .. } | Error::ExtraNetwork { .. } | Error::Field { .. })
        || matches!(error, Error::Memory { .. })
        || error.is_of_one_picture()
}

/// A run at work.
struct Work<'a> {
    plan: &'a UpscalePlan,
    sha256: Option<ContentHash>,
    /// Loaded when the first picture needs it.
    upscaler: Option<Upscaler>,
    /// Where pictures are drawn again.
    redraw: Option<Redrawing<'a>>,
    /// Of a folder, what is made already.
    journal: Option<Journal>,
    made: BTreeMap<String, Made>,
}

impl<'a> Work<'a> {
    fn open(
        plan: &'a UpscalePlan,
        common: &RunKey,
        sha256: Option<ContentHash>,
        model: Option<ModelId>,
    ) -> Result<Self> {
        let mut made = BTreeMap::new();
        let journal = if plan.is_folder() {
            let path = beside(&plan.output, ".", ".journal");
            Some(Journal::open(path, common.hash(), |_, entry: Made| {
                made.insert(entry.name.clone(), entry);
            })?)
        } else {
            None
        };
        let redraw = plan.redraw.as_ref().zip(model);
        let redraw = redraw.map(|(redraw, model)| Redrawing::new(plan, redraw, model, common.hash()));
        let redraw = redraw.transpose()?;
        Ok(Self { plan, sha256, upscaler: None, redraw, journal, made })
    }

    /// Makes a picture larger, unless that is there; the hash of its file, and whether it was there. `None` where it was
    /// interrupted.
    fn picture(
        &mut self,
        picture: &Path,
        output: &Path,
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(UpscaleEvent<'_>),
    ) -> Result<Option<(ContentHash, bool)>> {
        let (path, name) = (self.plan.source(picture), relative_name(picture));
        let of = |source| vodka_images::Error::Picture { path: path.clone(), source };
        let bytes = fs::read(&path).map_err(|source| of(vodka_images::Fault::Read { source }))?;
        let sha256 = hash_bytes(&bytes);
        let text = text_of(&path);
        let source = self.plan.redraw.as_ref().map_or(sha256, |redraw| redraw.identity(sha256, &text));
        if let Some(made) = self.made.get(&name)
            && made.source == source
            && hash_file(output).is_ok_and(|found| found == made.output)
        {
            return Ok(Some((made.output, true)));
        }
        let decoded = decode_bytes(&bytes, &DecodeOptions::default()).map_err(of)?.picture;
        if self.upscaler.is_none() {
            on_event(UpscaleEvent::Loading);
            let device = parse_device(&self.plan.device, &self.plan.runtime_dir)?;
            let UpscalePlan { upscaler, tiles, precision, .. } = self.plan;
            self.upscaler = Some(Upscaler::open(upscaler, *tiles, device, kind(*precision))?);
        }
        let upscaler = self.upscaler.as_ref().expect("it was loaded");
        let made = match &mut self.redraw {
            Some(redraw) => {
                let size = redrawn_size(self.plan.target, &decoded, &text, &path)?;
                let source = Source { picture: decoded, text, sha256, identity: source, size, output };
                redraw.picture(source, upscaler, interrupt, on_event)?
            }
            None => {
                let on_tile = &mut |done, total| on_event(UpscaleEvent::Tile { done, total });
                let larger = larger(upscaler, decoded, self.plan.target, interrupt, on_tile)?;
                larger.map(|larger| {
                    let text = self.text(text, &larger);
                    (larger, text)
                })
            }
        };
        let Some((larger, text)) = made else { return Ok(None) };
        write_any(output, &larger, &text.to_string())?;
        let made = hash_file(output)?;
        if let Some(journal) = &mut self.journal {
            journal.append(&Made { name, source, output: made })?;
            if self.redraw.is_some() {
                Redrawing::finish(output)?;
            }
        }
        Ok(Some((made, false)))
    }

    /// The text of the picture that it was made from, with what A1111 adds.
    fn text(&self, parameters: Parameters, larger: &Picture) -> Parameters {
        let parameters = match self.plan.target {
            Target::Size(..) => {
                let size = format!("{}x{}", larger.width(), larger.height());
                parameters.with("Postprocess upscale to", size)
            }
            Target::Scale(scale) => parameters.with("Postprocess upscale by", scale),
            Target::Own => {
                let scale = self.upscaler.as_ref().and_then(Upscaler::scale).unwrap_or(1);
                parameters.with("Postprocess upscale by", scale)
            }
        };
        let parameters = parameters.with("Postprocess upscaler", self.plan.upscaler.name());
        let parameters = match self.sha256 {
            Some(sha256) => parameters.with("Postprocess upscaler hash", sha256.short(10)),
            None => parameters,
        };
        if parameters.get("Version").is_some() {
            return parameters;
        }
        parameters.with("Version", concat!("vodka ", env!("CARGO_PKG_VERSION")))
    }
}

/// How large a picture becomes that is drawn again.
fn redrawn_size(target: Target, picture: &Picture, text: &Parameters, path: &Path) -> Result<Size> {
    let (width, height) = picture.size();
    match target {
        Target::Size(size, _) => Ok(size),
        Target::Scale(scale) => {
            let side = |side: u32| ((f64::from(side) * scale / 64.0).ceil() as u32).saturating_mul(64);
            Ok(Size { width: side(width), height: side(height) })
        }
        Target::Own => {
            let size: Option<Size> = read(text, "Size", "a size such as 512x768")?;
            let Size { width, height } = size.ok_or_else(|| Error::NoSize { path: path.to_path_buf() })?;
            let up = |side: u32| side.max(1).checked_next_multiple_of(MULTIPLE).unwrap_or(u32::MAX);
            Ok(Size { width: up(width), height: up(height) })
        }
    }
}

/// Makes a picture larger, its opacity by LANCZOS; `None` where it was interrupted.
fn larger(
    upscaler: &Upscaler,
    picture: Picture,
    target: Target,
    interrupt: &Interrupt,
    on_tile: &mut dyn FnMut(usize, usize),
) -> Result<Option<Picture>> {
    let (from_width, from_height) = picture.size();
    let own = f64::from(upscaler.scale().unwrap_or(1));
    let ((width, height), ratio, mode) = match target {
        Target::Own => ((scaled(from_width, own), scaled(from_height, own)), own, ResizeMode::Just),
        Target::Scale(scale) => {
            ((scaled(from_width, scale), scaled(from_height, scale)), scale, ResizeMode::Just)
        }
        Target::Size(Size { width, height }, mode) => {
            let ratios = [(width, from_width), (height, from_height)]
                .map(|(to, from)| f64::from(to) / f64::from(from));
            let ratio =
                if mode == ResizeMode::Fill { ratios[0].min(ratios[1]) } else { ratios[0].max(ratios[1]) };
            ((width, height), ratio, mode)
        }
    };
    check_size(width, height)?;
    let (colours, opacity) = match picture {
        Picture::Rgb(picture) => (picture, None),
        Picture::Rgba(picture) => {
            let (colours, opacity) = alpha::apart(&picture);
            (colours, Some(opacity))
        }
    };
    let Some(colours) = upscaler.enlarge(&colours, ratio, interrupt, on_tile)? else { return Ok(None) };
    let colours = fit(&colours, width, height, mode);
    let opacity = opacity.map(|opacity: RgbImage| fit(&opacity, width, height, mode));
    Ok(Some(match opacity {
        Some(opacity) => Picture::Rgba(alpha::together(&colours, &opacity)),
        None => Picture::Rgb(colours),
    }))
}

impl Report for UpscaleReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for UpscaleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outcome, pictures, kept, kept_tiles, seams, output, skipped, .. } = self;
        let output = output.display();
        match (outcome, pictures) {
            (Outcome::Unchanged, 1) => write!(f, "{output} is there already"),
            (Outcome::Done, 1) if *kept_tiles > 0 => {
                write!(f, "{output}; {kept_tiles} of its tiles were there")
            }
            (Outcome::Done, 1) => write!(f, "{output}"),
            (Outcome::Interrupted, _) => write!(f, "interrupted; {pictures} pictures are there"),
            _ => write!(f, "{pictures} pictures in {output}; {kept} of them were there"),
        }?;
        for (picture, seams) in seams.iter().filter(|(_, seams)| seams.ratio().is_finite()) {
            write!(
                f,
                "\n{picture}: across borders of tiles it changes {:.2} times as much as inside",
                seams.ratio()
            )?;
        }
        for (picture, reason) in skipped {
            write!(f, "\nskipped: {picture}: {reason}")?;
        }
        tell_of_text(f, &self.not_followed, &self.other_files)
    }
}
