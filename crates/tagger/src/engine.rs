//! A model, ready to score pictures.

use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView2, Axis, Ix2, concatenate, s};
use rayon::prelude::*;
use vodka_images::{Picture, Rgb, RgbImage, white_square};

use crate::{Error, Labels, Network, NetworkConfig, Port, Provider, Result};

pub(crate) const MODEL: &str = "model.onnx";
pub(crate) const LABELS: &str = "selected_tags.csv";

/// What [`Tagger::open`] needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggerConfig {
    /// The folder with `model.onnx` and `selected_tags.csv`.
    pub model: PathBuf,
    /// The ONNX Runtime library: `libonnxruntime.so`, `libonnxruntime.dylib` or `onnxruntime.dll`.
    pub onnxruntime: PathBuf,
    /// Where the model runs.
    pub provider: Provider,
    /// How many threads one inference may use; 0 for one per core.
    pub threads: usize,
    pub family: Option<String>,
    pub profile: crate::Profile,
    pub lanes: usize,
}

impl TaggerConfig {
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self { model: model.into(), onnxruntime: PathBuf::new(), provider: Provider::Cpu, threads: 0, family: None, profile: crate::Profile::Reference, lanes: 1 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile { #[default] Reference, Kohya, Fast }
impl std::fmt::Display for Profile { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("reference") } }

pub(crate) fn model_files(folder: &Path, _family: Option<&str>) -> Result<Vec<(&'static str, Vec<PathBuf>)>> {
    let (model, labels) = check_folder(folder)?;
    Ok(vec![("model", vec![model]), ("labels", vec![labels])])
}

impl TaggerConfig {
    fn network(&self) -> NetworkConfig {
        let Self { onnxruntime, provider, threads, .. } = self;
        NetworkConfig { onnxruntime: onnxruntime.clone(), provider: *provider, lanes: self.lanes, threads: *threads }
    }
}

/// A WD14 tagger.
#[derive(Debug)]
pub struct Tagger {
    network: Network,
    labels: Labels,
    size: u32,
    fixed_batch: Option<usize>,
}

impl Tagger {
    /// Loads a model and its labels, and tries the model on two made-up pictures.
    ///
    /// ONNX Runtime is loaded at the first call in a process; later calls must name the same library.
    ///
    /// # Errors
    /// When a file is missing or malformed, the provider is not available, labels and outputs do not match, or the
    /// outputs are no probabilities.
    pub fn open(config: &TaggerConfig) -> Result<Self> {
        let (path, labels) = check_folder(&config.model)?;
        let labels_read = Labels::read(&labels)?;
        let network = Network::open(&path, &config.network())?;
        let (size, fixed_batch) = input_of(&network)?;
        let tagger = Self { network, labels: labels_read, size, fixed_batch };
        tagger.try_out(&labels)?;
        Ok(tagger)
    }

    /// The tags, in the order of the scores.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Where the model runs.
    pub fn provider(&self) -> Provider {
        self.network.provider()
    }

    /// The side of the square that the model sees, in pixels: 448 for the WD series.
    pub fn size_px(&self) -> u32 {
        self.size
    }

    /// The scores of pictures, 0 to 1. // (pictures, labels)
    ///
    /// All are prepared at once, on all cores, and scored as one batch; where the model's batch is fixed, in as many
    /// batches as needed.
    ///
    /// # Errors
    /// When ONNX Runtime fails, or a score is no probability.
    pub fn tag(&self, pictures: &[Picture]) -> Result<Array2<f32>> {
        let prepared: Vec<_> = pictures.par_iter().map(|picture| self.prepare(picture)).collect();
        self.score(&prepared)
    }

    /// A picture as the model wants to see it: over white, on a white square, scaled to [`Tagger::size_px`].
    pub fn prepare(&self, picture: &Picture) -> RgbImage {
        white_square(picture, self.size)
    }

    /// The scores of prepared pictures, 0 to 1. // (pictures, labels)
    ///
    /// # Errors
    /// As [`Tagger::tag`].
    ///
    /// # Panics
    /// When a picture is not of the size that [`Tagger::prepare`] makes.
    pub fn score<I: std::borrow::Borrow<RgbImage>>(&self, prepared: &[I]) -> Result<Array2<f32>> {
        let scores = self.infer(prepared)?;
        for row in scores.outer_iter() {
            if let Some((i, score)) = row.iter().enumerate().find(|(_, score)| !(0.0..=1.0).contains(*score))
            {
                let tag = self.labels[i].name.clone();
                return Err(Error::NotAProbability { model: self.path(), tag, score: *score });
            }
        }
        Ok(scores)
    }

    /// The model's output, whatever it is. // (pictures, outputs)
    fn infer<I: std::borrow::Borrow<RgbImage>>(&self, prepared: &[I]) -> Result<Array2<f32>> {
        let Some(batch) = self.fixed_batch.filter(|_| !prepared.is_empty()) else {
            return self.infer_batch(prepared, prepared.len());
        };
        let parts: Vec<_> =
            prepared.chunks(batch).map(|chunk| self.infer_batch(chunk, batch)).collect::<Result<_>>()?;
        let views: Vec<ArrayView2<f32>> = parts.iter().map(|part| part.view()).collect();
        Ok(concatenate(Axis(0), &views).expect("one model makes rows of one width"))
    }

    /// One run of the model on `batch` pictures, of which those that are not there are black and left out again.
    fn infer_batch<I: std::borrow::Borrow<RgbImage>>(&self, prepared: &[I], batch: usize) -> Result<Array2<f32>> {
        if batch == 0 {
            return Ok(Array2::zeros((0, self.labels.len())));
        }
        let side = self.size as usize;
        let pixels = to_bgr(prepared, side, batch);
        let outputs = self.network.run(&pixels, &[batch, side, side, 3], &[0])?;
        let scores = outputs.into_iter().next().expect("one output was asked for");
        let found = scores.shape().to_vec();
        match scores.into_dimensionality::<Ix2>() {
            Ok(scores) if scores.nrows() == batch && scores.ncols() > 0 => {
                Ok(scores.slice_move(s![..prepared.len(), ..]))
            }
            _ => Err(Error::Graph {
                model: self.path(),
                expected: "an output of the shape [batch, tags]",
                found: format!("{found:?} for a batch of {batch}"),
            }),
        }
    }

    pub fn counts(&self, _label: usize, score: f32) -> bool { score >= 0.35 }

    /// Looks for the ways in which exported models are known to be wrong.
    fn try_out(&self, labels: &Path) -> Result<()> {
        let scores = self.infer(&self.test_pictures())?; // (2, outputs)
        let model = || self.path();
        let (outputs, rows) = (scores.ncols(), self.labels.len());
        if outputs != rows {
            return Err(Error::LabelCount { model: model(), outputs, labels: labels.to_path_buf(), rows });
        }
        if let Some(((_, i), score)) = scores.indexed_iter().find(|(_, score)| !(0.0..=1.0).contains(*score))
        {
            let tag = self.labels[i].name.clone();
            return Err(Error::NotAProbability { model: model(), tag, score: *score });
        }
        let lowest = scores.iter().copied().fold(f32::INFINITY, f32::min);
        if lowest >= 0.5 {
            return Err(Error::AllHigh { model: model(), lowest });
        }
        if scores.row(0) == scores.row(1) {
            return Err(Error::Constant { model: model() });
        }
        Ok(())
    }

    /// Two pictures that have little in common: coloured stripes that slowly change, and grey noise.
    fn test_pictures(&self) -> [RgbImage; 2] {
        let stripes = |x: u32, y: u32| Rgb([(x * 5) as u8, (y * 3) as u8, ((x + y) / 16 * 40) as u8]);
        let noise =
            |x: u32, y: u32| Rgb([((x * 7919 + y * 104_729).wrapping_mul(2_654_435_761) >> 24) as u8; 3]);
        [RgbImage::from_fn(self.size, self.size, stripes), RgbImage::from_fn(self.size, self.size, noise)]
    }

    fn path(&self) -> PathBuf {
        self.network.path().to_path_buf()
    }
}

/// The paths of a model's two files.
pub(crate) fn check_folder(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    if !folder.is_dir() {
        return Err(Error::NoFolder { what: "the model", path: folder.to_path_buf() });
    }
    let file = |name, what| {
        let path = folder.join(name);
        if path.is_file() {
            Ok(path)
        } else {
            Err(Error::NoModelFile { folder: folder.to_path_buf(), name, what })
        }
    };
    Ok((file(MODEL, "the network")?, file(LABELS, "the names of the tags, one row for each output")?))
}

/// Whether a file beside the network is a part of it: weights lie outside it as `model.onnx.data` or `model.onnx_data`.
pub(crate) fn is_external(folder: &Path, path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.parent() == Some(folder) && name.starts_with(MODEL) && name != MODEL
}

/// The side of the picture the graph wants, and its batch where that is fixed. The input is taken by its place, for
/// its name differs from export to export.
fn input_of(network: &Network) -> Result<(u32, Option<usize>)> {
    let inputs = network.inputs();
    let dims = match inputs {
        [input] => input.dims.as_deref(),
        _ => None,
    };
    match dims {
        Some(&[batch, Some(height), Some(width), Some(3)]) if height == width => Ok((height as u32, batch)),
        _ => Err(Error::Graph {
            model: network.path().to_path_buf(),
            expected: "one input, float32 [batch, side, side, 3]",
            found: describe(inputs),
        }),
    }
}

fn describe(inputs: &[Port]) -> String {
    let each = |input: &Port| format!("`{}` {}", input.name, input.kind);
    inputs.iter().map(each).collect::<Vec<_>>().join(", ")
}

/// Pixels as the model wants them: BGR, 0..255, zeros for the pictures that are missing to `batch`. // (N, H, W, 3)
fn to_bgr<I: std::borrow::Borrow<RgbImage>>(prepared: &[I], side: usize, batch: usize) -> Vec<f32> {
    let mut pixels = Vec::with_capacity(batch * side * side * 3);
    for image in prepared {
        let image = image.borrow();
        assert_eq!(
            image.dimensions(),
            (side as u32, side as u32),
            "the picture is not prepared for this model"
        );
        pixels
            .extend(image.pixels().flat_map(|Rgb([r, g, b])| [f32::from(*b), f32::from(*g), f32::from(*r)]));
    }
    pixels.resize(batch * side * side * 3, 0.0);
    pixels
}
