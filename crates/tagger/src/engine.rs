//! A model, ready to score pictures.

use std::{
    borrow::Borrow,
    panic,
    path::{Path, PathBuf},
    thread,
};

use ndarray::{Array2, ArrayD, ArrayView2, Axis, Ix2, concatenate, s};
use rayon::prelude::*;
use vodka_images::{Decoded, Picture, Rgb, RgbImage};

use crate::{
    Activation, Description, Error, Labels, Layout, Network, NetworkConfig, Profile, Provider, Result, Tags,
    Thresholds,
    folder::{ModelFolder, Settled},
    graph::{Graph, Input, Outputs},
    profile::Preparation,
    tensor::to_tensor,
};

/// What [`Tagger::open`] needs to know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaggerConfig {
    /// The folder with the network and the names of the tags, as the model's authors publish them.
    pub model: PathBuf,
    /// The model's family, where its files do not tell. See [`crate::families`].
    pub family: Option<String>,
    /// How exactly pictures are prepared.
    pub profile: Profile,
    /// The ONNX Runtime library: `libonnxruntime.so`, `libonnxruntime.dylib` or `onnxruntime.dll`.
    pub onnxruntime: PathBuf,
    /// Where the model runs.
    pub provider: Provider,
    /// How many batches may be scored at a time, each from a thread of the caller's; 0 and 1 are one. Providers for GPUs do
    /// one at a time whatever is said.
    pub lanes: usize,
    /// How many threads all of them together may use; 0 for one per core.
    pub threads: usize,
}

impl TaggerConfig {
    /// A model of this folder with the default settings; where ONNX Runtime is, is still to be said.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self { model: model.into(), ..Self::default() }
    }

    fn network(&self) -> NetworkConfig {
        NetworkConfig {
            onnxruntime: self.onnxruntime.clone(),
            provider: self.provider,
            lanes: self.lanes.max(1),
            threads: self.threads,
        }
    }
}

/// A tagger.
#[derive(Debug)]
pub struct Tagger {
    network: Network,
    description: Description,
    labels: Labels,
    thresholds: Thresholds,
    preparation: Preparation,
    input: Input,
    outputs: Outputs,
}

/// What a network says of pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// The probability of each tag, 0 to 1. // (pictures, labels)
    pub scores: Array2<f32>,
    /// What the network sees in each picture, for finding similar ones; of networks that give it away.
    /// // (pictures, width)
    pub embeddings: Option<Array2<f32>>,
}

impl Tagger {
    /// Loads a model and its labels, and tries the model on two made-up pictures.
    ///
    /// How the model is used is said by the family that is named, else by the `model.toml` beside it, else by the one
    /// family that its files and its graph fit.
    ///
    /// ONNX Runtime is loaded at the first call in a process; later calls must name the same library.
    ///
    /// # Errors
    /// When a file is missing or malformed, the provider is not available, no family or more than one fits, labels and
    /// outputs do not match, or the outputs are no probabilities.
    pub fn open(config: &TaggerConfig) -> Result<Self> {
        let folder = ModelFolder::open(&config.model, config.family.as_deref())?;
        let path = folder.network.clone();
        let network = Network::open(&path, &config.network())?;
        let graph = Graph::of(&network);
        let Settled { description, labels, labels_path } = folder.settle(&graph)?;
        let input = graph.input(&path, &description)?;
        let tagger = Self {
            thresholds: Thresholds::of(&description, &config.model),
            preparation: Preparation::new(&description, config.profile, input.side)?,
            outputs: graph.outputs(&path, &description.output)?,
            network,
            description,
            labels,
            input,
        };
        tagger.try_out(&labels_path)?;
        Ok(tagger)
    }

    /// The same tagger with other thresholds for [`Tagger::tag`] and [`Tagger::tag_batch`].
    #[must_use]
    pub fn with_thresholds(self, thresholds: Thresholds) -> Self {
        Self { thresholds, ..self }
    }

    /// The tags that the model knows, in the order of the scores.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// How the model is used.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// From which scores on tags count: what the model's authors say, unless [`Tagger::with_thresholds`] has other ones.
    pub fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// How many pictures the network takes at once, where it takes no other number.
    pub fn fixed_batch(&self) -> Option<usize> {
        self.input.batch
    }

    /// How many batches may be scored at a time.
    pub fn lanes(&self) -> usize {
        self.network.lanes()
    }

    /// Where the model runs.
    pub fn provider(&self) -> Provider {
        self.network.provider()
    }

    /// The side of the square that the model sees, in pixels: 448 for the WD series.
    pub fn size_px(&self) -> u32 {
        self.input.side
    }

    /// Down to which length of its longer side, in pixels, a picture may be decoded for this tagger; `None` where it must
    /// be decoded whole. For [`vodka_images::DecodeOptions::reduce_to`].
    pub fn reduce_to(&self) -> Option<u32> {
        self.preparation.reduce_to()
    }

    /// The tags of a picture.
    ///
    /// # Errors
    /// When ONNX Runtime fails, or a score is no probability.
    pub fn tag(&self, picture: &Picture) -> Result<Tags> {
        let scores = self.score(&[self.prepare(picture)])?;
        Ok(self.choose(&scores).remove(0))
    }

    /// The tags of pictures.
    ///
    /// All are prepared at once, on all cores, and scored as one batch; where the model's batch is limited, in as many
    /// batches as needed.
    ///
    /// # Errors
    /// As [`Tagger::tag`].
    pub fn tag_batch(&self, pictures: &[Picture]) -> Result<Vec<Tags>> {
        let prepared: Vec<_> = pictures.par_iter().map(|picture| self.prepare(picture)).collect();
        Ok(self.choose(&self.score(&prepared)?))
    }

    fn choose(&self, scores: &Array2<f32>) -> Vec<Tags> {
        let tags = |row: Vec<f32>| self.thresholds.choose(&self.labels, &row);
        scores.outer_iter().map(|row| tags(row.to_vec())).collect()
    }

    /// A picture as the model wants to see it: a square of [`Tagger::size_px`].
    pub fn prepare(&self, picture: &Picture) -> RgbImage {
        self.preparation.square(picture)
    }

    /// The same of a picture that was decoded down to [`Tagger::reduce_to`].
    pub fn prepare_decoded(&self, decoded: &Decoded) -> RgbImage {
        self.preparation.square_of_decoded(decoded)
    }

    /// The scores of prepared pictures, 0 to 1. // (pictures, labels)
    ///
    /// # Errors
    /// As [`Tagger::tag`].
    ///
    /// # Panics
    /// When a picture is not of the size that [`Tagger::prepare`] makes.
    pub fn score<P: Borrow<RgbImage>>(&self, prepared: &[P]) -> Result<Array2<f32>> {
        Ok(self.score_with_embeddings(prepared)?.scores)
    }

    /// The scores of prepared pictures, and their embeddings where the network has them, from one pass.
    ///
    /// # Errors
    /// As [`Tagger::tag`].
    ///
    /// # Panics
    /// As [`Tagger::score`].
    pub fn score_with_embeddings<P: Borrow<RgbImage>>(&self, prepared: &[P]) -> Result<Scores> {
        if prepared.is_empty() {
            return Ok(Scores { scores: Array2::zeros((0, self.labels.len())), embeddings: None });
        }
        let Scores { scores, embeddings } = self.infer(prepared)?;
        let scores = self.probabilities(scores);
        self.check(&scores)?;
        Ok(Scores { scores, embeddings })
    }

    /// Makes probabilities of labels of an output's values.
    fn probabilities(&self, values: Array2<f32>) -> Array2<f32> {
        let values = match self.labels.outputs() {
            None => values,
            Some(outputs) => values.select(Axis(1), outputs),
        };
        match self.description.output.activation {
            Activation::None => values,
            Activation::Sigmoid => values.mapv_into(|logit| 1.0 / (1.0 + (-logit).exp())),
        }
    }

    fn check(&self, scores: &Array2<f32>) -> Result<()> {
        let is_wrong = |score: f32| !(0.0..=1.0).contains(&score);
        let Some(((_, i), score)) = scores.indexed_iter().find(|(_, score)| is_wrong(**score)) else {
            return Ok(());
        };
        let hint = if scores.iter().all(|score| score.is_finite()) {
            "its outputs are logits; set activation = \"sigmoid\""
        } else {
            "its outputs are no numbers"
        };
        let tag = self.labels[i].name.clone();
        Err(Error::NotAProbability { model: self.network.path().to_path_buf(), tag, score: *score, hint })
    }

    /// The outputs for one or more pictures, whatever they are. // (pictures, outputs), (pictures, width)
    fn infer<P: Borrow<RgbImage>>(&self, prepared: &[P]) -> Result<Scores> {
        let batch = match (self.input.batch, self.description.max_batch) {
            (Some(fixed), _) => fixed,
            (None, most) => prepared.len().min(most.unwrap_or(usize::MAX)),
        };
        let parts: Vec<_> =
            prepared.chunks(batch).map(|chunk| self.infer_batch(chunk)).collect::<Result<_>>()?;
        let joined = |parts: &[ArrayView2<f32>]| {
            concatenate(Axis(0), parts).expect("one model makes rows of one width")
        };
        let views = |of: fn(&Scores) -> Option<&Array2<f32>>| -> Vec<_> {
            parts.iter().filter_map(of).map(|rows| rows.view()).collect()
        };
        let embeddings = views(|part| part.embeddings.as_ref());
        Ok(Scores {
            scores: joined(&views(|part| Some(&part.scores))),
            embeddings: (!embeddings.is_empty()).then(|| joined(&embeddings)),
        })
    }

    /// One run of the network. Pictures that are missing to a fixed batch are zeros, and left out again.
    fn infer_batch<P: Borrow<RgbImage>>(&self, prepared: &[P]) -> Result<Scores> {
        let (side, batch) = (self.input.side, self.input.batch.unwrap_or(prepared.len()));
        for picture in prepared {
            assert_eq!(
                picture.borrow().dimensions(),
                (side, side),
                "the picture is not prepared for this model"
            );
        }
        let side = side as usize;
        let mut pixels = to_tensor(prepared, &self.description.tensor);
        pixels.resize(batch * side * side * 3, 0.0);
        let shape = match self.description.tensor.layout {
            Layout::Nhwc => [batch, side, side, 3],
            Layout::Nchw => [batch, 3, side, side],
        };
        let wanted: Vec<usize> = [self.outputs.scores].into_iter().chain(self.outputs.embedding).collect();
        let outputs = self.network.run(&pixels, &shape, &wanted)?;
        let mut rows =
            wanted.iter().zip(outputs).map(|(place, it)| self.rows(*place, it, batch, prepared.len()));
        let scores = rows.next().expect("the scores were asked for")?;
        Ok(Scores { scores, embeddings: rows.next().transpose()? })
    }

    /// The first rows of an output. // (rows, width)
    fn rows(&self, place: usize, output: ArrayD<f32>, batch: usize, rows: usize) -> Result<Array2<f32>> {
        let found = output.shape().to_vec();
        match output.into_dimensionality::<Ix2>() {
            Ok(values) if values.nrows() == batch && values.ncols() > 0 => {
                Ok(values.slice_move(s![..rows, ..]))
            }
            _ => Err(Error::Graph {
                model: self.network.path().to_path_buf(),
                expected: format!("an output {place} of the shape [batch, width]"),
                found: format!("{found:?} for a batch of {batch}"),
            }),
        }
    }

    /// Looks for the ways in which exported models are known to be wrong.
    fn try_out(&self, labels: &Path) -> Result<()> {
        let values = self.scores_of_two(self.test_pictures())?; // (2, outputs)
        let model = || self.network.path().to_path_buf();
        let outputs = values.ncols();
        if !self.labels.fit(outputs) {
            let (labels, rows) = (labels.to_path_buf(), self.labels.len());
            return Err(Error::LabelCount { model: model(), outputs, labels, rows });
        }
        let is_probable = values.iter().all(|value| (0.0..=1.0).contains(value));
        let scores = self.probabilities(values);
        self.check(&scores)?;
        let lowest = scores.iter().copied().fold(f32::INFINITY, f32::min);
        if lowest >= 0.5 {
            let hint = match self.description.output.activation {
                Activation::Sigmoid if is_probable => {
                    "its outputs are already probabilities; set activation = \"none\""
                }
                _ => "its graph puts the logistic function twice",
            };
            return Err(Error::AllHigh { model: model(), lowest, hint });
        }
        if scores.row(0) == scores.row(1) {
            return Err(Error::Constant { model: model() });
        }
        Ok(())
    }

    /// The scores of two pictures, at the same time where there are lanes for it: a large network takes its time.
    fn scores_of_two(&self, pictures: [RgbImage; 2]) -> Result<Array2<f32>> {
        if self.lanes() == 1 || self.input.batch.is_some_and(|batch| batch > 1) {
            return Ok(self.infer(&pictures)?.scores);
        }
        let [first, second] = pictures;
        let (first, second) = thread::scope(|scope| {
            let first = scope.spawn(move || self.infer(&[first]));
            let second = self.infer(&[second]);
            (first.join(), second)
        });
        let first = first.unwrap_or_else(|panic| panic::resume_unwind(panic))?.scores;
        let joined = concatenate(Axis(0), &[first.view(), second?.scores.view()]);
        Ok(joined.expect("one model makes rows of one width"))
    }

    /// Two pictures that have little in common: coloured stripes that slowly change, and grey noise.
    fn test_pictures(&self) -> [RgbImage; 2] {
        let stripes = |x: u32, y: u32| Rgb([(x * 5) as u8, (y * 3) as u8, ((x + y) / 16 * 40) as u8]);
        let noise = |x: u32, y: u32| {
            Rgb([(x.wrapping_mul(7919).wrapping_add(y * 104_729).wrapping_mul(2_654_435_761) >> 24) as u8; 3])
        };
        let side = self.input.side;
        [RgbImage::from_fn(side, side, stripes), RgbImage::from_fn(side, side, noise)]
    }
}
