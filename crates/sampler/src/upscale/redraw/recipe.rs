//! The recipe of a redraw: what a user writes, what it comes to, and what the picture's text says of it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use vodka_checkpoint::Precision;
use vodka_noise::{RandomSource, SamplerName, ScheduleName};
use vodka_prompt::Parameters;
use vodka_stage::{ContentHash, HashCache, Interrupt, hash_bytes, hash_file, lossy, parse_toml};

use super::geometry::{RedrawTiles, SeamFix, Seams, TileNoise, TileOrder};
use crate::{
    ControlConfig, ControlId, ControlUnit, Error, ImageToImage, Library, ModelId, ModelSource, Result,
    Settings, Size, UpscalerChoice, Used,
    control::{other_networks, units},
    model::control_hashes,
    parameters::{not_followed, read},
    sample::{count, parameters_of, upscaler_named},
};

/// How much of a picture is given up where nothing is said.
const DENOISING: f64 = 0.35;
/// What the keys of the original begin with.
const KEY: &str = "Ultimate SD upscale";

/// A recipe for `vodka-sample upscale`: what makes pictures larger, and with what their tiles are drawn again.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("upscale.toml");
/// # std::fs::write(&path,
/// r#"
/// checkpoint = "v3.safetensors"
/// prompt = "a portrait of an old sailor, oil painting"
/// sampler = "Euler a"
/// denoising = 0.3
/// upscaler = "Lanczos"
/// scale = 2
///
/// [tiles]
/// type = "chess"
/// width = 512
///
/// [seams]
/// type = "half_tile"
/// "#
/// # )?;
/// # let recipe = vodka_sampler::RedrawConfig::read(&path)?;
/// # assert_eq!(recipe.plan()?.tiles.padding, 32);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedrawConfig {
    /// A single-file checkpoint, a diffusers folder, or a merge recipe: `mix.toml`, or `mix.toml#OUTPUT`.
    pub checkpoint: PathBuf,
    /// A picture whose `parameters` text says what is not said here.
    #[serde(default)]
    pub from: Option<PathBuf>,
    /// What the picture shows; that of the picture's own text where neither this nor `from` says it.
    #[serde(default)]
    pub prompt: Option<String>,
    /// What it does not show; in the same way.
    #[serde(default)]
    pub negative: Option<String>,
    /// The seed; 0.
    #[serde(default)]
    pub seed: Option<u32>,
    /// Where random numbers come from; CPU.
    #[serde(default)]
    pub rng: Option<RandomSource>,
    /// Steps as A1111 counts them, of which the share `denoising` is made; 20.
    #[serde(default)]
    pub steps: Option<u32>,
    /// The CFG scale; 7.
    #[serde(default)]
    pub cfg: Option<f64>,
    /// The sampler; Euler.
    #[serde(default)]
    pub sampler: Option<SamplerName>,
    /// The schedule; Automatic.
    #[serde(default)]
    pub schedule: Option<ScheduleName>,
    /// The layer of the text encoder, counted from the end; 1, the last.
    #[serde(default)]
    pub clip_skip: Option<u32>,
    /// How much of the larger picture is given up, 0 to 1; 0.35.
    #[serde(default)]
    pub denoising: Option<f64>,
    /// Whether all steps are made, not the share `denoising` of them.
    #[serde(default)]
    pub exact_steps: Option<bool>,
    /// The ControlNets, each of which sees the tile, or the tile's part of its own picture; where `from` states some, the first of these
    /// says more of the first of those, and so on.
    #[serde(default)]
    pub control: Vec<ControlConfig>,
    /// The folder in which a ControlNet is looked for that the text of `from` names.
    #[serde(default)]
    pub control_dir: Option<PathBuf>,
    /// What makes the picture larger before it is drawn again: `Lanczos`, `Nearest`, or the file of an ESRGAN upscaler; `Lanczos`.
    #[serde(default)]
    pub upscaler: Option<UpscalerChoice>,
    /// The folder in which an upscaler is looked for that the text of `from` names.
    #[serde(default)]
    pub upscaler_dir: Option<PathBuf>,
    /// How many times as wide and as high, rounded up to multiples of 64; where neither this nor `size` is said, the size that the
    /// picture's text states.
    #[serde(default)]
    pub scale: Option<f64>,
    /// The size instead.
    #[serde(default)]
    pub size: Option<Size>,
    /// The tiles.
    #[serde(default)]
    pub tiles: Option<RedrawTiles>,
    /// What is done about seams.
    #[serde(default)]
    pub seams: Option<Seams>,
    /// How many tiles are made at once, where their order allows it; 1.
    #[serde(default)]
    pub batch_size: Option<u32>,
    /// Another file or folder with a VAE; the checkpoint's own where absent.
    #[serde(default)]
    pub vae: Option<PathBuf>,
    /// What text encoder and UNet compute in; fp32.
    #[serde(default)]
    pub precision: Option<Precision>,
    /// What the VAE computes in; fp32.
    #[serde(default)]
    pub vae_precision: Option<Precision>,
    /// The folder with the LoRA files that prompts name.
    #[serde(default)]
    pub lora_dir: Option<PathBuf>,
    /// The folder with the embeddings that prompts name.
    #[serde(default)]
    pub embedding_dir: Option<PathBuf>,
    /// The file that remembers the hashes of models; not part of the recipe.
    #[serde(skip)]
    pub hash_cache: Option<PathBuf>,
}

/// A checked [`RedrawConfig`].
#[derive(Debug, Clone, Serialize)]
pub struct RedrawPlan {
    /// The checkpoint, or the merge.
    pub model: ModelSource,
    /// A VAE in place of the checkpoint's.
    #[serde(serialize_with = "lossy_option")]
    pub vae: Option<PathBuf>,
    /// Prompts and numbers; the size is that of a tile.
    pub settings: Settings,
    /// Whether the prompt is that of each picture's text.
    pub is_own_prompt: bool,
    /// Whether the negative prompt is.
    pub is_own_negative: bool,
    /// The tiles.
    pub tiles: RedrawTiles,
    /// What is done about seams.
    pub seams: Seams,
    /// How many tiles at once.
    pub batch_size: usize,
    /// What text encoder and UNet compute in.
    pub precision: Precision,
    /// What the VAE computes in.
    pub vae_precision: Precision,
    /// What the text of [`RedrawConfig::from`] asks for and is not done: names of fields.
    pub not_followed: Vec<String>,
    /// Files that are not those which this text states: the field, what it states, and what was found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_files: Vec<String>,
    /// The upscaler that this text names.
    #[serde(skip)]
    pub(crate) upscaler: Option<UpscalerChoice>,
    /// LoRA files and embeddings.
    #[serde(skip)]
    pub library: Arc<Library>,
    /// The file that remembers the hashes of models.
    #[serde(skip)]
    pub hash_cache: Option<PathBuf>,
}

fn lossy_option<S: serde::Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => lossy(path, serializer),
        None => serializer.serialize_none(),
    }
}

impl RedrawConfig {
    /// Reads a recipe; relative paths in it start at the current folder.
    ///
    /// # Errors
    /// An unknown key, with its line and the nearest known one; a wrong value.
    pub fn read(path: &Path) -> Result<Self> {
        let read = |source| vodka_stage::ConfigError::Read { path: path.to_path_buf(), source };
        let text = fs::read_to_string(path).map_err(read)?;
        Ok(parse_toml(&text, path)?)
    }

    /// Checks all that can be told without a picture; no checkpoint is opened.
    ///
    /// # Errors
    /// Settings that are none, tiles that are too small, an upscaler that is not known.
    pub fn plan(&self) -> Result<RedrawPlan> {
        let from = self.from.as_deref().map(parameters_of).transpose()?;
        let stated = from.as_ref().map(Stated::read).transpose()?;
        let tiles = self.tiles.or(stated.as_ref().map(|stated| stated.tiles)).unwrap_or_default();
        let seams = self.seams.or(stated.as_ref().map(|stated| stated.seams)).unwrap_or_default();
        tiles.check()?;
        seams.check(tiles)?;
        let (named, pictures) =
            stated.map(|stated| (stated.upscaler, stated.control_pictures)).unwrap_or_default();
        let upscaler = match (&self.upscaler, named) {
            (Some(_), _) | (None, None) => None,
            (None, Some(named)) => Some(upscaler_named(named, "", self.upscaler_dir.as_deref())?),
        };
        let base = from.as_ref().map_or(Ok(Settings::default()), Settings::from_parameters)?;
        let controls = units(&self.control, &base.controls, self.control_dir.as_deref())?;
        check_pictures(&base, &controls)?;
        let mut other_files = other_networks(&self.control, &base.controls, &controls);
        other_files.extend(other_pictures(&pictures, &controls)?);
        let settings = Settings { controls, ..self.settings(base, tiles) };
        settings.check()?;
        let library = Library::open(self.lora_dir.as_deref(), self.embedding_dir.as_deref())?;
        library.used_by(&settings)?;
        Ok(RedrawPlan {
            model: ModelSource::read(&self.checkpoint, &[])?,
            vae: self.vae.clone(),
            settings,
            is_own_prompt: self.prompt.is_none() && from.is_none(),
            is_own_negative: self.negative.is_none() && from.is_none(),
            tiles,
            seams,
            batch_size: count("the batch size", self.batch_size.unwrap_or(1))? as usize,
            precision: self.precision.unwrap_or(Precision::F32),
            vae_precision: self.vae_precision.unwrap_or(Precision::F32),
            not_followed: from.as_ref().map(others).unwrap_or_default(),
            other_files,
            upscaler,
            library: Arc::new(library),
            hash_cache: self.hash_cache.clone(),
        })
    }

    /// What is said here, and for the rest `base`.
    fn settings(&self, base: Settings, tiles: RedrawTiles) -> Settings {
        let stated =
            base.image.unwrap_or(ImageToImage { denoising_strength: DENOISING, ..Default::default() });
        let image = ImageToImage {
            denoising_strength: self.denoising.unwrap_or(stated.denoising_strength),
            exact_steps: self.exact_steps.unwrap_or(stated.exact_steps),
            ..ImageToImage::default()
        };
        let (width, height) = tiles.size();
        Settings {
            prompt: self.prompt.clone().unwrap_or(base.prompt),
            negative_prompt: self.negative.clone().unwrap_or(base.negative_prompt),
            seed: self.seed.unwrap_or(base.seed),
            rng: self.rng.unwrap_or(base.rng),
            steps: self.steps.unwrap_or(base.steps),
            cfg_scale: self.cfg.unwrap_or(base.cfg_scale),
            sampler: self.sampler.unwrap_or(base.sampler),
            schedule: self.schedule.unwrap_or(base.schedule),
            clip_skip: self.clip_skip.unwrap_or(base.clip_skip),
            size: Size { width, height },
            image: Some(image),
            hires: None,
            tiling: false,
            seed_resize_from: None,
            ..base
        }
    }
}

/// What a picture's text says of how it was made larger.
#[derive(Debug, Clone, PartialEq)]
struct Stated {
    upscaler: Option<String>,
    /// The hashes of the pictures of ControlNets that had one of their own, by the numbers of the units.
    control_pictures: BTreeMap<usize, String>,
    tiles: RedrawTiles,
    seams: Seams,
}

impl Stated {
    /// Reads a text; what it does not state is what the original does.
    fn read(parameters: &Parameters) -> Result<Self> {
        let px = |name: &str| read(parameters, &key(name), "a number of pixels");
        let (tiles, seams) = (RedrawTiles::default(), Seams::default());
        let order = named(parameters, "type", &ORDERS, "Linear, Chess or None")?;
        let fix = named(parameters, "seams fix", &FIXES, "one of the original's modes")?;
        let is_global = parameters.get(&key("noise")) == Some(GLOBAL);
        let is_ours = parameters.fields.iter().any(|(name, _)| name.starts_with(KEY));
        let noise = if is_ours && !is_global { TileNoise::SameSeed } else { TileNoise::Global };
        let share = read(parameters, &key("seams denoise"), "a number")?;
        Ok(Self {
            upscaler: parameters.get(&key("upscaler")).map(ToOwned::to_owned),
            control_pictures: control_pictures(parameters)?,
            tiles: RedrawTiles {
                order: order.unwrap_or_default(),
                width: px("tile_width")?.unwrap_or(tiles.width),
                height: px("tile_height")?.unwrap_or(tiles.height),
                padding: px("padding")?.unwrap_or(tiles.padding),
                mask_blur: px("mask_blur")?.unwrap_or(tiles.mask_blur),
                noise,
            },
            seams: Seams {
                fix: fix.unwrap_or_default(),
                denoising: share.unwrap_or(seams.denoising),
                width: px("seams width")?.unwrap_or(seams.width),
                padding: px("seams padding")?.unwrap_or(seams.padding),
                mask_blur: px("seams mask blur")?.unwrap_or(seams.mask_blur),
            },
        })
    }
}

/// The original's names.
const ORDERS: [(TileOrder, &str); 3] =
    [(TileOrder::Linear, "Linear"), (TileOrder::Chess, "Chess"), (TileOrder::None, "None")];
const FIXES: [(SeamFix, &str); 4] = [
    (SeamFix::None, "None"),
    (SeamFix::Band, "Band pass"),
    (SeamFix::HalfTile, "Half tile offset pass"),
    (SeamFix::HalfTileAndIntersections, "Half tile offset pass + intersections"),
];
const GLOBAL: &str = "Global";
const CONTROL_PICTURES: &str = "control pictures";

/// Numbers of units, each with the first ten digits of the SHA-256 of its picture: `0: 0123456789, 2: ...`.
fn control_pictures(parameters: &Parameters) -> Result<BTreeMap<usize, String>> {
    let Some(text) = parameters.get(&key(CONTROL_PICTURES)) else { return Ok(BTreeMap::new()) };
    let entry = |entry: &str| {
        let (number, hash) = entry.split_once(':')?;
        Some((number.trim().parse().ok()?, hash.trim().to_owned()))
    };
    let all: Option<_> = text.split(',').map(entry).collect();
    let expected = "numbers of ControlNets with hashes";
    all.ok_or_else(|| Error::Field { field: key(CONTROL_PICTURES), expected, found: text.to_owned() })
}

/// Of a text of a picture that was made from noise alone, each unit had a picture of its own, which no text has.
///
/// # Errors
/// [`Error::NoControlImage`]: one that is not said.
fn check_pictures(base: &Settings, units: &[ControlUnit]) -> Result<()> {
    let of_text = &units[..base.controls.len().min(units.len())];
    match of_text.iter().position(|unit| unit.image.is_none()) {
        Some(number) if base.image.is_none() => Err(Error::NoControlImage { number }),
        _ => Ok(()),
    }
}

/// The pictures of units that are not those which a text states.
///
/// # Errors
/// One that is not said, since no text has it; one that cannot be read.
fn other_pictures(stated: &BTreeMap<usize, String>, units: &[ControlUnit]) -> Result<Vec<String>> {
    let mut others = Vec::new();
    for (number, stated) in stated {
        let Some(unit) = units.get(*number) else { continue };
        let (number, hash) = (*number, stated.clone());
        let path = unit.image.as_ref().ok_or(Error::NoStatedControlImage { number, hash })?;
        let found = hash_file(path)?.short(10);
        if found != *stated {
            others.push(format!("picture of ControlNet {number}: `{stated}`, found `{found}`"));
        }
    }
    Ok(others)
}

fn key(name: &str) -> String {
    format!("{KEY} {name}")
}

fn name_of<T: PartialEq>(names: &[(T, &'static str)], value: &T) -> &'static str {
    names.iter().find(|(known, _)| known == value).map_or("", |(_, name)| name)
}

fn named<T: Copy>(
    parameters: &Parameters,
    name: &str,
    names: &[(T, &str)],
    expected: &'static str,
) -> Result<Option<T>> {
    let Some(found) = parameters.get(&key(name)) else { return Ok(None) };
    let known = names.iter().find(|(_, known)| *known == found.trim());
    let error = || Error::Field { field: key(name), expected, found: found.to_owned() };
    known.map(|(value, _)| Some(*value)).ok_or_else(error)
}

/// What is not followed of a text that a redraw follows.
fn others(parameters: &Parameters) -> Vec<String> {
    let is_other = |name: &String| !name.starts_with(KEY) && !name.starts_with("Mask ");
    not_followed(parameters).into_iter().filter(is_other).collect()
}

impl RedrawPlan {
    /// The settings of a picture with this text.
    ///
    /// # Errors
    /// A prompt that cannot be read.
    pub(crate) fn settings(&self, own: &Parameters) -> Result<Settings> {
        let mut settings = self.settings.clone();
        if self.is_own_prompt {
            settings.prompt.clone_from(&own.prompt);
        }
        if self.is_own_negative {
            settings.negative_prompt.clone_from(&own.negative_prompt);
        }
        settings.check()?;
        Ok(settings)
    }

    /// The hash of a picture with this text, and of the files that its own prompts name.
    pub(crate) fn identity(&self, source: ContentHash, own: &Parameters) -> ContentHash {
        if !self.is_own_prompt && !self.is_own_negative {
            return source;
        }
        // Where they cannot be had, drawing the picture tells of it.
        let used =
            self.settings(own).and_then(|settings| self.library.used_by(&settings)).unwrap_or_default();
        let used = serde_json::to_string(&used).expect("names are plain data");
        hash_bytes(format!("{source} {used}"))
    }

    /// # Errors
    /// A file that cannot be read; [`Error::Interrupted`].
    pub(crate) fn id(&self, interrupt: &Interrupt) -> Result<ModelId> {
        let mut cache = HashCache::open(self.hash_cache.as_deref());
        let model = self.model.id(&mut cache, interrupt)?;
        let units = &self.settings.controls;
        let model = model.with_controls(units, &control_hashes(units, &mut cache, interrupt)?);
        let Some(vae) = &self.vae else { return Ok(model) };
        let hashes = cache.of(&[vae], interrupt)?.ok_or(Error::Interrupted)?;
        Ok(model.with_vae(vae, hashes[0]))
    }

    /// The text of a picture that was made with these settings: the original's keys, and of what it has no keys for what is not as there.
    pub(crate) fn text(
        &self,
        settings: &Settings,
        model: &ModelId,
        used: &Used,
        upscaler: &str,
    ) -> Parameters {
        let mut all = settings.parameters_with(model, used);
        let version = all.fields.pop();
        let (width, height) = self.tiles.size();
        let mut add = |name: &str, value: String| all.fields.push((name.to_owned(), value));
        add(&key("upscaler"), upscaler.to_owned());
        add(&key("tile_width"), width.to_string());
        add(&key("tile_height"), height.to_string());
        add(&key("mask_blur"), self.tiles.mask_blur.to_string());
        add(&key("padding"), self.tiles.padding.to_string());
        if self.tiles.order != TileOrder::Linear {
            add(&key("type"), name_of(&ORDERS, &self.tiles.order).to_owned());
        }
        if self.tiles.noise == TileNoise::Global {
            add(&key("noise"), GLOBAL.to_owned());
        }
        let picture = |(i, unit): (usize, &ControlId)| {
            Some(format!("{i}: {}", unit.image.as_ref().map(|(_, sha256)| sha256.short(10))?))
        };
        let pictures: Vec<_> = model.controls.iter().enumerate().filter_map(picture).collect();
        if !pictures.is_empty() {
            add(&key(CONTROL_PICTURES), pictures.join(", "));
        }
        let Seams { fix, denoising, width, padding, mask_blur } = self.seams;
        if fix != SeamFix::None {
            add(&key("seams fix"), name_of(&FIXES, &fix).to_owned());
            add(&key("seams denoise"), denoising.to_string());
            if fix == SeamFix::Band {
                add(&key("seams width"), width.to_string());
            } else {
                add(&key("seams mask blur"), mask_blur.to_string());
            }
            add(&key("seams padding"), padding.to_string());
        }
        all.fields.extend(version);
        all
    }
}

#[cfg(test)]
mod tests {
    use vodka_stage::hash_bytes;

    use super::*;
    use crate::write_png;

    fn recipe(text: &str) -> Result<RedrawConfig> {
        let text = format!("checkpoint = \"a.safetensors\"\n{text}");
        Ok(parse_toml(&text, Path::new("upscale.toml"))?)
    }

    fn plan(text: &str) -> Result<RedrawPlan> {
        recipe(text)?.plan()
    }

    #[test]
    fn what_is_not_said_is_as_in_the_original() {
        let plan = plan("").unwrap();
        assert_eq!(plan.tiles, RedrawTiles::default());
        assert_eq!(plan.tiles.size(), (512, 512));
        assert_eq!(plan.seams, Seams::default());
        assert_eq!(plan.settings.image.as_ref().unwrap().denoising_strength, 0.35);
        let Ok(own) = "a cat\nNegative prompt: blurry\nSteps: 5, Sampler: DDIM, Seed: 9".parse();
        let settings = plan.settings(&own).unwrap();
        assert_eq!((settings.prompt.as_str(), settings.negative_prompt.as_str()), ("a cat", "blurry"));
        // Of its own text the picture has its prompts alone.
        assert_eq!((settings.steps, settings.sampler), (20, SamplerName::Euler));
        let said = self::plan("prompt = \"\"").unwrap().settings(&own).unwrap();
        assert_eq!((said.prompt.as_str(), said.negative_prompt.as_str()), ("", "blurry"));
    }

    #[test]
    fn the_text_makes_the_same_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let cases = [
            "",
            "denoising = 0.2\nsteps = 9\n[tiles]\ntype = \"chess\"\nwidth = 128\nheight = 64\nnoise = \"same_seed\"",
            "[tiles]\npadding = 7\nmask_blur = 3\n[seams]\ntype = \"band\"\nwidth = 40\npadding = 8",
            "[tiles]\ntype = \"none\"\n[seams]\ntype = \"half_tile_and_intersections\"\ndenoising = 0.1\nmask_blur = 9",
        ];
        for case in cases {
            let made = plan(&format!("prompt = \"a cat\"\n{case}")).unwrap();
            let model = ModelId::new(Path::new("a.safetensors"), hash_bytes("a"));
            let text = made.text(&made.settings, &model, &Used::default(), "Lanczos").to_string();
            write_png(&path, &image::RgbImage::new(1, 1), &text).unwrap();
            let again = plan(&format!("from = \"{}\"", path.display())).unwrap();
            let (width, height) = made.tiles.size();
            assert_eq!((again.tiles, again.seams), (RedrawTiles { width, height, ..made.tiles }, made.seams));
            assert_eq!(again.settings, made.settings, "{text}");
            assert_eq!(again.upscaler, Some(UpscalerChoice::Lanczos));
            assert!(again.not_followed.is_empty());
        }
        let text = |text: &str| {
            write_png(&path, &image::RgbImage::new(1, 1), text).unwrap();
            plan(&format!("from = \"{}\"", path.display()))
        };
        // One of the original's.
        let original = "a cat\nSteps: 20, Sampler: Euler a, Seed: 1, Denoising strength: 0.3, Ultimate SD upscale upscaler: Nearest, \
                        Ultimate SD upscale tile_width: 640, Ultimate SD upscale tile_height: 512, Ultimate SD upscale mask_blur: 12, \
                        Ultimate SD upscale padding: 64, Mask blur: 12, Inpaint area: Only masked, Masked area padding: 64, Version: v1.10.1";
        let found = text(original).unwrap();
        let expected = RedrawTiles {
            width: 640,
            height: 512,
            mask_blur: 12,
            padding: 64,
            noise: TileNoise::SameSeed,
            ..RedrawTiles::default()
        };
        assert_eq!((found.tiles, found.upscaler), (expected, Some(UpscalerChoice::Nearest)));
        assert!(found.not_followed.is_empty(), "{:?}", found.not_followed);
        let error = text(&original.replace("Nearest", "4x-UltraSharp")).unwrap_err().to_string();
        assert!(error.contains("upscaler `4x-UltraSharp`"), "{error}");
        let error = text("x\nSteps: 1, Seed: 1, Ultimate SD upscale type: Round").unwrap_err().to_string();
        assert_eq!(error, "Ultimate SD upscale type: expected Linear, Chess or None, found `Round`");
        let error = text("x\nSteps: 1, Seed: 1, Ultimate SD upscale padding: far").unwrap_err().to_string();
        assert_eq!(error, "Ultimate SD upscale padding: expected a number of pixels, found `far`");
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let error = |text: &str| plan(text).unwrap_err().to_string();
        let wrong = error("[tiles]\nwidht = 512");
        assert!(wrong.contains("widht") && wrong.contains("line 3"), "{wrong}");
        assert!(error("[tiles]\ntype = \"round\"").contains("round"));
        assert!(error("[tiles]\nwidth = 32").starts_with("tiles of 32x32 px"));
        assert!(error("denoising = 1.5").contains("1.5"));
        assert!(error("steps = 0").contains('0'));
        assert!(error("batch_size = 0").starts_with("the batch size is 0"));
        assert!(error("[seams]\ndenoising = -1.0").contains("`seams.denoising` is -1"));
        assert!(error("prompt = \"<lora:none>\"").contains("no LoRA `none`"));
    }
}
