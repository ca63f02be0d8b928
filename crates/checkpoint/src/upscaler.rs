//! Files of ESRGAN upscalers: three ways of naming one network, and what shapes tell of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use crate::{Architecture, Error, Mismatch, Result, TensorView, WeightFile, WrongShape, detect};

/// The form of an RRDB network (Wang et al. 2018, arXiv:1809.00219).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RrdbConfig {
    /// Channels between the blocks ("nf").
    pub features: i64,
    /// Channels that each convolution of a dense block adds ("gc").
    pub growth: i64,
    /// Residual-in-residual dense blocks ("nb").
    pub blocks: i64,
    /// How often the feature maps are doubled behind the blocks.
    pub doublings: i64,
    /// How many pixels, in each direction, become channels before the first convolution: 1, 2 or 4.
    pub unshuffle: i64,
    /// Whether dense blocks have the shortcuts of ESRGAN+ (Rakotonirina and Rasoanaivo 2020, arXiv:2001.08073).
    pub plus: bool,
}

impl RrdbConfig {
    /// How many times as wide and as high pictures become.
    pub fn scale(&self) -> i64 {
        (1 << self.doublings) / self.unshuffle
    }

    /// All weights: names as Real-ESRGAN gives them, and shapes.
    pub fn weights(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = Vec::new();
        let mut conv = |name: String, input: i64, output: i64| {
            let [input, output] = [input, output].map(|n| n as usize);
            all.push((format!("{name}.weight"), vec![output, input, 3, 3]));
            all.push((format!("{name}.bias"), vec![output]));
        };
        let (features, growth) = (self.features, self.growth);
        conv("conv_first".into(), CHANNELS * self.unshuffle * self.unshuffle, features);
        for (i, j, k) in convolutions(self.blocks) {
            let output = if k == 5 { features } else { growth };
            // A hostile file may state any shapes.
            let input = features.saturating_add(growth.saturating_mul(k - 1));
            conv(format!("body.{i}.rdb{j}.conv{k}"), input, output);
        }
        conv("conv_body".into(), features, features);
        (1..=self.doublings).for_each(|k| conv(format!("conv_up{k}"), features, features));
        conv("conv_hr".into(), features, features);
        conv("conv_last".into(), features, CHANNELS);
        if self.plus {
            let shape = vec![growth as usize, features as usize, 1, 1];
            let names = (0..self.blocks).flat_map(|i| (1..=3).map(move |j| (i, j)));
            all.extend(names.map(|(i, j)| (format!("body.{i}.rdb{j}.conv1x1.weight"), shape.clone())));
        }
        all
    }
}

/// Pictures are red, green and blue.
const CHANNELS: i64 = 3;
/// 16 times: none that was published makes more of a picture.
const DOUBLINGS_MAX: i64 = 4;

/// Block, dense block and convolution of each convolution in `blocks` blocks.
fn convolutions(blocks: i64) -> impl Iterator<Item = (i64, i64, i64)> {
    (0..blocks).flat_map(|i| (1..=3).flat_map(move |j| (1..=5).map(move |k| (i, j, k))))
}

/// How a file names the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// `model.1.sub.0.RDB1.conv1.0.weight`: ESRGAN's first training code, and most that came of it.
    Numbered,
    /// `RRDB_trunk.0.RDB1.conv1.weight`: ESRGAN's later code, BSRGAN, RealSR.
    Trunk,
    /// `body.0.rdb1.conv1.weight`: Real-ESRGAN and BasicSR.
    Body,
}

impl Names {
    const ALL: [Self; 3] = [Self::Numbered, Self::Trunk, Self::Body];

    /// The name in the file of a weight by its Real-ESRGAN name.
    fn of(self, name: &str, config: &RrdbConfig) -> String {
        let (layer, kind) = name.rsplit_once('.').expect("weights have a layer");
        let (doublings, blocks) = (config.doublings, config.blocks);
        let layer = match (self, layer) {
            (Self::Body, _) => return name.to_owned(),
            (Self::Numbered, "conv_first") => "model.0".to_owned(),
            (Self::Numbered, "conv_body") => format!("model.1.sub.{blocks}"),
            (Self::Numbered, "conv_hr") => format!("model.{}", 3 * doublings + 2),
            (Self::Numbered, "conv_last") => format!("model.{}", 3 * doublings + 4),
            (Self::Trunk, "conv_body") => "trunk_conv".to_owned(),
            (Self::Trunk, "conv_hr") => "HRconv".to_owned(),
            _ => match (self, layer.strip_prefix("conv_up"), layer.strip_prefix("body.")) {
                (Self::Numbered, Some(k), _) => format!("model.{}", 3 * k.parse::<i64>().unwrap_or_default()),
                (Self::Trunk, Some(k), _) => format!("upconv{k}"),
                (Self::Numbered, _, Some(block)) => {
                    // A convolution with its activation is a list there; that of 1x1 has none.
                    let item = if layer.ends_with("conv1x1") { "" } else { ".0" };
                    format!("model.1.sub.{}{item}", block.replace("rdb", "RDB"))
                }
                (Self::Trunk, _, Some(block)) => format!("RRDB_trunk.{}", block.replace("rdb", "RDB")),
                _ => layer.to_owned(),
            },
        };
        format!("{layer}.{kind}")
    }

    /// A name that files named in this way have, and no others.
    fn first(self) -> &'static str {
        match self {
            Self::Numbered => "model.1.sub.0.RDB1.conv1.0.weight",
            Self::Trunk => "RRDB_trunk.0.RDB1.conv1.weight",
            Self::Body => "body.0.rdb1.conv1.weight",
        }
    }
}

/// What training programs put before all names.
const PREFIXES: [&str; 3] = ["module.", "netG.", ""];

/// Whether a file with these names is an upscaler.
pub(crate) fn is_upscaler<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| {
        let bare = |prefix: &&str| name.strip_prefix(*prefix);
        PREFIXES.iter().filter_map(bare).any(|name| Names::ALL.iter().any(|form| form.first() == name))
    })
}

/// A file with an ESRGAN upscaler (ESRGAN, ESRGAN+, BSRGAN, RealSR, Real-ESRGAN), whichever way its weights are named.
#[derive(Debug)]
pub struct Upscaler {
    file: WeightFile,
    config: RrdbConfig,
    /// The names in the file by those of Real-ESRGAN.
    names: BTreeMap<String, String>,
}

impl Upscaler {
    /// Opens a `.pth` or `.safetensors` file, and tells from its shapes what it makes. Weights are not read yet. Which names and
    /// shapes there are is from chaiNNer-org/spandrel 0.4.2, `architectures/ESRGAN`.
    ///
    /// # Errors
    /// A file that cannot be read, or is something else: [`Error::NotUpscaler`]; one with other channels than red, green and
    /// blue, or that makes pictures smaller; weights that are missing, left over or of another shape.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = WeightFile::open(path)?;
        let prefix = PREFIXES.into_iter().find(|prefix| {
            let mut names = file.names().peekable();
            names.peek().is_some() && names.all(|name| name.starts_with(prefix))
        });
        let prefix = prefix.unwrap_or_default();
        let has = |form: &Names| file.tensors.contains_key(&format!("{prefix}{}", form.first()));
        let Some(form) = Names::ALL.into_iter().find(has) else {
            let found = detect::foreign(&file).unwrap_or(Architecture::StableDiffusion1);
            return Err(Error::NotUpscaler { path: path.to_path_buf(), found });
        };
        let config = Shapes { file: &file, prefix, form }.config()?;
        let in_file = |name: &str| format!("{prefix}{}", form.of(name, &config));
        check(&file, &config, &in_file)?;
        let names = config.weights().into_iter().map(|(name, _)| (in_file(&name), name));
        let names = names.map(|(stored, name)| (name, stored)).collect();
        Ok(Self { file, config, names })
    }

    /// Where it lies, as given.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The form of the network.
    pub fn config(&self) -> &RrdbConfig {
        &self.config
    }

    /// A weight by its Real-ESRGAN name ([`RrdbConfig::weights`]).
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.file.tensor(self.names.get(name).map_or(name, String::as_str))
    }

    /// Searches all weights for a value that is no number.
    ///
    /// # Errors
    /// [`Error::NotFinite`], by its name in the file; a weight that cannot be read.
    pub fn check_finite(&self) -> Result<()> {
        for name in self.names.values() {
            if let Some((index, value)) = self.file.tensor(name)?.first_not_finite() {
                let (path, tensor) = (self.path().to_path_buf(), name.clone());
                return Err(Error::NotFinite { path, tensor, index, value });
            }
        }
        Ok(())
    }
}

/// A file's shapes by Real-ESRGAN's names.
struct Shapes<'a> {
    file: &'a WeightFile,
    prefix: &'a str,
    form: Names,
}

impl Shapes<'_> {
    fn config(&self) -> Result<RrdbConfig> {
        let path = self.file.path();
        let blocks =
            (0..).take_while(|i| self.has(&format!("body.{i}.rdb1.conv1.weight"), 0, 0)).count() as i64;
        // Where doublings have numbers of their own they are counted; else the last number tells.
        let doublings = match self.form {
            Names::Numbered => (self.last_number() - 4) / 3,
            _ => (1..).take_while(|k| self.has(&format!("conv_up{k}.weight"), 0, blocks)).count() as i64,
        };
        let size = |name: &str, axis: usize| self.size(name, axis, doublings, blocks);
        let (input, output) = (size("conv_first.weight", 1)?, size("conv_last.weight", 0)?);
        let unshuffle = [1, 2, 4].into_iter().find(|n| input == CHANNELS * n * n);
        let Some(unshuffle) = unshuffle.filter(|_| output == CHANNELS) else {
            return Err(Error::UpscalerChannels { path: path.to_path_buf(), input, output });
        };
        if !(0..=DOUBLINGS_MAX).contains(&doublings) || 1 << doublings < unshuffle {
            return Err(Error::UpscalerScale { path: path.to_path_buf(), doublings, unshuffle });
        }
        Ok(RrdbConfig {
            features: size("conv_first.weight", 0)?,
            growth: size("body.0.rdb1.conv1.weight", 0)?,
            blocks,
            doublings,
            unshuffle,
            plus: self.has("body.0.rdb1.conv1x1.weight", 0, blocks),
        })
    }

    fn name(&self, name: &str, doublings: i64, blocks: i64) -> String {
        let none = RrdbConfig { features: 0, growth: 0, blocks, doublings, unshuffle: 1, plus: false };
        format!("{}{}", self.prefix, self.form.of(name, &none))
    }

    fn has(&self, name: &str, doublings: i64, blocks: i64) -> bool {
        self.file.tensors.contains_key(&self.name(name, doublings, blocks))
    }

    fn size(&self, name: &str, axis: usize, doublings: i64, blocks: i64) -> Result<i64> {
        let name = self.name(name, doublings, blocks);
        let size = self.file.tensors.get(&name).and_then(|stored| stored.shape.get(axis).copied());
        let size = size.and_then(|size| i64::try_from(size).ok());
        size.ok_or_else(|| Error::Mismatch {
            path: self.file.path().to_path_buf(),
            mismatch: Box::new(Mismatch { missing: vec![name], ..Mismatch::default() }),
        })
    }

    /// The largest N of `model.N.weight`.
    fn last_number(&self) -> i64 {
        let number = |name: &str| {
            let name = name.strip_prefix(self.prefix)?.strip_prefix("model.")?;
            name.strip_suffix(".weight")?.parse::<i64>().ok()
        };
        self.file.names().filter_map(number).max().unwrap_or_default()
    }
}

/// Whether exactly the network's weights are there.
fn check(file: &WeightFile, config: &RrdbConfig, in_file: &dyn Fn(&str) -> String) -> Result<()> {
    let mut mismatch = Mismatch::default();
    let mut known = BTreeSet::new();
    for (name, expected) in config.weights() {
        let name = in_file(&name);
        match file.tensors.get(&name) {
            None => mismatch.missing.push(name.clone()),
            Some(stored) if stored.shape != expected => {
                let (tensor, found) = (name.clone(), stored.shape.clone());
                mismatch.wrong_shape.push(WrongShape { tensor, expected, found });
            }
            Some(_) => {}
        }
        known.insert(name);
    }
    mismatch.unexpected.extend(file.names().filter(|name| !known.contains(*name)).map(ToOwned::to_owned));
    match mismatch.is_empty() {
        true => Ok(()),
        false => Err(Error::Mismatch { path: file.path().to_path_buf(), mismatch: Box::new(mismatch) }),
    }
}
