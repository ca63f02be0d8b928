//! What a user says of a unit: `model=FILE,image=FILE,weight=0.8,...`, or the same keys of a table.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use vodka_checkpoint::ControlNetFile;
use vodka_stage::nearest;

use super::{ControlMode, ControlUnit, Preprocessor, text::without_signs};
use crate::{Error, ResizeMode, Result, library::file_named, parameters::model_name};

/// What is said of a unit; what is absent is that of the picture's text, else the extension's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// The ControlNet: a file or a diffusers folder.
    pub model: Option<PathBuf>,
    /// The picture of conditions; the picture that this one is made from, where there is one.
    pub image: Option<PathBuf>,
    /// What the residuals are multiplied by, 0 to 2; 1.
    pub weight: Option<f64>,
    /// The share of the steps before which it does nothing; 0.
    pub start: Option<f64>,
    /// The share behind which it does nothing any more; 1.
    pub end: Option<f64>,
    /// `balanced`, `prompt` or `control`; `balanced`.
    pub mode: Option<ControlMode>,
    /// `none`, `tile_resample`, `tile_colorfix`, `tile_colorfix+sharp` or `blur_gaussian`; `none`.
    pub preprocessor: Option<String>,
    /// Of `tile_resample`, how many times smaller; 1.
    pub rate: Option<f64>,
    /// Of `tile_colorfix`, how far colours may vary; 8.
    pub variation: Option<u32>,
    /// Of `tile_colorfix+sharp`; 1.
    pub sharpness: Option<f64>,
    /// Of `blur_gaussian`; 9.
    pub sigma: Option<f64>,
    /// The shorter side that `blur_gaussian` works at; 512.
    pub resolution: Option<u32>,
    /// Whether that is instead the one at which the picture is used; not.
    pub pixel_perfect: Option<bool>,
    /// How the picture is brought to the size; `crop`.
    pub resize_mode: Option<ResizeMode>,
}

/// The keys, as they are written.
const KEYS: [&str; 14] = [
    "model",
    "image",
    "weight",
    "start",
    "end",
    "mode",
    "preprocessor",
    "rate",
    "variation",
    "sharpness",
    "sigma",
    "resolution",
    "pixel_perfect",
    "resize_mode",
];

impl FromStr for ControlConfig {
    type Err = Error;

    /// Reads `key=value,key=value`. A comma before anything but a key belongs to the value: paths may have them.
    fn from_str(text: &str) -> Result<Self> {
        let mut pairs: Vec<(&str, String)> = Vec::new();
        for piece in text.split(',') {
            match (piece.split_once('='), pairs.last_mut()) {
                (Some((key, value)), _) if KEYS.contains(&key.trim()) => {
                    pairs.push((key.trim(), value.to_owned()));
                }
                (None, Some((_, value))) => *value = format!("{value},{piece}"),
                (pair, _) => {
                    let found = pair.map_or(piece, |(key, _)| key).trim().to_owned();
                    let nearest = nearest(&found, KEYS).map(ToOwned::to_owned);
                    return Err(Error::ControlKey { found, nearest });
                }
            }
        }
        let mut config = Self::default();
        for (key, value) in pairs {
            config.set(key, &value)?;
        }
        Ok(config)
    }
}

impl ControlConfig {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "model" => once(key, &mut self.model, Some(value.into())),
            "image" => once(key, &mut self.image, Some(value.into())),
            "weight" => once(key, &mut self.weight, parsed(key, "a number", value)?),
            "start" => once(key, &mut self.start, parsed(key, "a number", value)?),
            "end" => once(key, &mut self.end, parsed(key, "a number", value)?),
            "mode" => once(key, &mut self.mode, Some(value.parse()?)),
            "preprocessor" => once(key, &mut self.preprocessor, Some(value.to_owned())),
            "rate" => once(key, &mut self.rate, parsed(key, "a number", value)?),
            "variation" => once(key, &mut self.variation, parsed(key, "a whole number", value)?),
            "sharpness" => once(key, &mut self.sharpness, parsed(key, "a number", value)?),
            "sigma" => once(key, &mut self.sigma, parsed(key, "a number", value)?),
            "resolution" => once(key, &mut self.resolution, parsed(key, "a whole number", value)?),
            "pixel_perfect" => once(key, &mut self.pixel_perfect, parsed(key, "true or false", value)?),
            _ => once(key, &mut self.resize_mode, Some(value.parse()?)),
        }
    }

    /// The unit of that number: what is said here, and for the rest `base`, whose network is looked for by its name in `folder`.
    ///
    /// # Errors
    /// A network or a preprocessor that is not there, and numbers that belong to another preprocessor.
    pub(crate) fn unit(
        &self,
        number: usize,
        base: ControlUnit,
        folder: Option<&Path>,
    ) -> Result<ControlUnit> {
        let (model, name) = match &self.model {
            Some(model) => (model.clone(), name_of(model)?),
            None => {
                let model = known(number, &base.name, folder)?;
                let name = name_of(&model)?;
                (model, name)
            }
        };
        Ok(ControlUnit {
            model,
            name,
            image: self.image.clone().or(base.image),
            weight: self.weight.unwrap_or(base.weight),
            start: self.start.unwrap_or(base.start),
            end: self.end.unwrap_or(base.end),
            mode: self.mode.unwrap_or(base.mode),
            preprocessor: self.preprocessor(base.preprocessor)?,
            resolution_px: self.resolution.unwrap_or(base.resolution_px),
            pixel_perfect: self.pixel_perfect.unwrap_or(base.pixel_perfect),
            resize_mode: self.resize_mode.unwrap_or(base.resize_mode),
        })
    }

    /// The preprocessor with its numbers.
    fn preprocessor(&self, base: Preprocessor) -> Result<Preprocessor> {
        let mut found = match &self.preprocessor {
            None => base,
            Some(name) => Preprocessor::named(name).ok_or_else(|| Error::ControlOption {
                option: "preprocessor".to_owned(),
                expected: Preprocessor::ALL.map(Preprocessor::name).join(", "),
                found: name.clone(),
            })?,
        };
        let said = [
            ("rate", self.rate.is_some()),
            ("variation", self.variation.is_some()),
            ("sharpness", self.sharpness.is_some()),
            ("sigma", self.sigma.is_some()),
        ];
        let taken: &[&str] = match &mut found {
            Preprocessor::None => &[],
            Preprocessor::TileResample { rate } => {
                *rate = self.rate.unwrap_or(*rate);
                &["rate"]
            }
            Preprocessor::TileColorfix { variation } => {
                *variation = self.variation.unwrap_or(*variation);
                &["variation"]
            }
            Preprocessor::TileColorfixSharp { variation, sharpness } => {
                *variation = self.variation.unwrap_or(*variation);
                *sharpness = self.sharpness.unwrap_or(*sharpness);
                &["variation", "sharpness"]
            }
            Preprocessor::BlurGaussian { sigma } => {
                *sigma = self.sigma.unwrap_or(*sigma);
                &["sigma"]
            }
        };
        match said.into_iter().find(|(key, is_said)| *is_said && !taken.contains(key)) {
            Some((key, _)) => Err(Error::ControlNoNumber { key, preprocessor: found.name() }),
            None => Ok(found),
        }
    }
}

fn parsed<T: FromStr>(key: &str, expected: &str, value: &str) -> Result<Option<T>> {
    let error = || Error::ControlOption {
        option: key.to_owned(),
        expected: expected.to_owned(),
        found: value.to_owned(),
    };
    value.trim().parse().map(Some).map_err(|_| error())
}

/// Puts a value into a place that has none.
fn once<T>(key: &str, place: &mut Option<T>, value: Option<T>) -> Result<()> {
    match std::mem::replace(place, value) {
        Some(_) => Err(Error::ControlTwice { key: key.to_owned() }),
        None => Ok(()),
    }
}

/// How a picture's text names a ControlNet: as A1111 names checkpoints, with the first kind of hash.
pub(crate) fn name_of(model: &Path) -> Result<String> {
    Ok(format!("{} [{}]", model_name(model), ControlNetFile::legacy_hash_of(model)?))
}

/// The file of a ControlNet of which a text has told the name.
fn known(number: usize, name: &str, folder: Option<&Path>) -> Result<PathBuf> {
    if name.is_empty() {
        return Err(Error::NoControlModel { number });
    }
    // Without the hash.
    let found = name.rsplit_once(" [").map_or(name, |(name, _)| name).to_owned();
    let Some(folder) = folder else { return Err(Error::NoControlDir { found }) };
    let is_it = |path: &Path| name_of(path).is_ok_and(|full| without_signs(&full) == name);
    file_named(&found, folder, &is_it)?.map_err(|nearest| {
        let folder = folder.to_path_buf();
        Error::UnknownControlNet { found, folder, nearest }
    })
}

/// The units: what is said of each, and for the rest what a text states of the one of that number.
///
/// # Errors
/// What is wrong with one.
pub(crate) fn units(
    said: &[ControlConfig],
    stated: &[ControlUnit],
    folder: Option<&Path>,
) -> Result<Vec<ControlUnit>> {
    let unit = |number: usize| {
        let said = said.get(number).cloned().unwrap_or_default();
        said.unit(number, stated.get(number).cloned().unwrap_or_default(), folder)
    };
    (0..stated.len().max(said.len())).map(unit).collect()
}

/// Which networks are not those that a text states, where nobody has said another: the field, what it states, and what was found.
pub(crate) fn other_networks(
    said: &[ControlConfig],
    stated: &[ControlUnit],
    found: &[ControlUnit],
) -> Vec<String> {
    let pairs = stated.iter().zip(found).enumerate();
    let is_free = |number: usize| said.get(number).is_none_or(|said| said.model.is_none());
    let other = |(number, (stated, found)): (usize, (&ControlUnit, &ControlUnit))| {
        let (stated, found) = (&stated.name, without_signs(&found.name));
        // Not every text has the hash.
        (is_free(number) && stated.contains(" [") && *stated != found)
            .then(|| format!("ControlNet {number}: `{stated}`, found `{found}`"))
    };
    pairs.filter_map(other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> ControlConfig {
        text.parse().unwrap()
    }

    #[test]
    fn all_that_can_be_said_is_read() {
        let expected = ControlConfig {
            model: Some("a, b/tile.pth".into()),
            image: Some("x=1,2.png".into()),
            weight: Some(0.5),
            start: Some(0.1),
            end: Some(0.9),
            mode: Some(ControlMode::Control),
            preprocessor: Some("tile_colorfix+sharp".into()),
            variation: Some(5),
            sharpness: Some(1.5),
            resolution: Some(256),
            pixel_perfect: Some(true),
            resize_mode: Some(ResizeMode::Fill),
            ..ControlConfig::default()
        };
        let text = "model=a, b/tile.pth,image=x=1,2.png,weight=0.5,start=0.1,end=0.9,mode=control,\
                    preprocessor=tile_colorfix+sharp,variation=5,sharpness=1.5,resolution=256,pixel_perfect=true,resize_mode=fill";
        assert_eq!(read(text), expected);
        let numbers = read("rate=2,sigma=3");
        assert_eq!((numbers.rate, numbers.sigma), (Some(2.0), Some(3.0)));
        let toml: ControlConfig =
            vodka_stage::parse_toml("model = 'a, b/tile.pth'\nmode = 'control'", Path::new("x.toml"))
                .unwrap();
        assert_eq!((toml.model, toml.mode), (expected.model, expected.mode));
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let said = |text: &str| text.parse::<ControlConfig>().unwrap_err().to_string();
        assert_eq!(said("modell=x"), "a ControlNet has no `modell`, did you mean `model`?");
        assert_eq!(said("x"), "a ControlNet has no `x`");
        assert_eq!(said("weight=much"), "a ControlNet's weight: expected a number, found `much`");
        assert_eq!(said("variation=1.5"), "a ControlNet's variation: expected a whole number, found `1.5`");
        assert_eq!(
            said("pixel_perfect=1"),
            "a ControlNet's pixel_perfect: expected true or false, found `1`"
        );
        assert_eq!(said("mode=x"), "a ControlNet's mode: expected balanced, prompt or control, found `x`");
        assert_eq!(said("weight=1,weight=2"), "a ControlNet's `weight` is given twice");
        assert_eq!(said("resize_mode=x"), "unknown resize mode `x`; known are just, crop, fill");
    }

    #[test]
    fn numbers_are_of_their_preprocessors() {
        let of = |text: &str, base| {
            let config = if text.is_empty() { ControlConfig::default() } else { read(text) };
            config.preprocessor(base).map_err(|error| error.to_string())
        };
        let tile = Preprocessor::TileResample { rate: 3.0 };
        assert_eq!(of("", tile), Ok(tile));
        assert_eq!(of("rate=2", tile), Ok(Preprocessor::TileResample { rate: 2.0 }));
        assert_eq!(
            of("preprocessor=Tile_Resample", Preprocessor::None),
            Ok(Preprocessor::TileResample { rate: 1.0 })
        );
        let sharp = of("preprocessor=tile_colorfix+sharp,variation=4", tile);
        assert_eq!(sharp, Ok(Preprocessor::TileColorfixSharp { variation: 4, sharpness: 1.0 }));
        assert_eq!(of("preprocessor=blur_gaussian", tile), Ok(Preprocessor::BlurGaussian { sigma: 9.0 }));
        assert_eq!(of("sigma=2", tile).unwrap_err(), "the preprocessor tile_resample has no `sigma`");
        assert_eq!(of("rate=2", Preprocessor::None).unwrap_err(), "the preprocessor none has no `rate`");
        assert_eq!(
            of("preprocessor=canny", tile).unwrap_err(),
            "a ControlNet's preprocessor: expected none, tile_resample, tile_colorfix, tile_colorfix+sharp, blur_gaussian, found \
             `canny`"
        );
    }

    #[test]
    fn networks_that_texts_name_are_found_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tile_v11.safetensors");
        vodka_testkit::compose_control_net(&file).unwrap();
        let stated = |name: &str| ControlUnit { name: name.into(), ..ControlUnit::default() };
        let unit = |name: &str, folder| {
            ControlConfig::default().unit(1, stated(name), folder).map_err(|error| error.to_string())
        };
        let (first, true_name) = (&[ControlConfig::default()], name_of(&file).unwrap());
        let found = unit(&true_name, Some(dir.path())).unwrap();
        assert_eq!((&found.model, &found.name), (&file, &true_name));
        assert!(other_networks(first, &[stated(&true_name)], std::slice::from_ref(&found)).is_empty());
        // A file of this name with other contents is taken, has its own hash, and is told of.
        let found = unit("tile_v11 [a371b31b]", Some(dir.path())).unwrap();
        assert_eq!((&found.model, &found.name), (&file, &true_name));
        let told = other_networks(first, &[stated("tile_v11 [a371b31b]")], std::slice::from_ref(&found));
        assert_eq!(told, [format!("ControlNet 0: `tile_v11 [a371b31b]`, found `{true_name}`")]);
        let said = [ControlConfig { model: Some(file.clone()), ..ControlConfig::default() }];
        assert!(other_networks(&said, &[stated("other [a371b31b]")], &[found]).is_empty());
        // Of several of this name it is the one of this hash.
        let bytes = std::fs::read(&file).unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        let other = dir.path().join("a/tile_v11.safetensors");
        // A byte of a weight, within what the hash is of.
        let mut changed = bytes;
        changed[0x10_0100] ^= 1;
        std::fs::write(&other, changed).unwrap();
        for (path, is_same) in [(&file, true), (&other, false)] {
            let name = name_of(path).unwrap();
            assert_eq!((&unit(&name, Some(dir.path())).unwrap().model, name == true_name), (path, is_same));
        }
        assert_eq!(unit("tile_v11", Some(dir.path())).unwrap().model, other);
        std::fs::remove_file(other).unwrap();
        let error = unit("tile_v12 [a371b31b]", Some(dir.path())).unwrap_err();
        assert!(error.starts_with("there is no ControlNet `tile_v12` among the files of"), "{error}");
        assert!(error.ends_with("did you mean `tile_v11`?"), "{error}");
        let error = unit("tile", None).unwrap_err();
        assert_eq!(
            error,
            "the picture was made with the ControlNet `tile`: expected its file, or a folder of ControlNets"
        );
        assert_eq!(unit("", None).unwrap_err(), "the ControlNet 1 has no `model`");
    }
}
