//! A model, ready to score pictures.

use std::{borrow::Borrow, path::PathBuf, sync::Arc};

use ndarray::Array2;
use rayon::prelude::*;
use vodka_images::{Decoded, Picture, RgbImage};

use crate::{
    Description, Labels, Network, NetworkConfig, Profile, Provider, Result, Tags, Thresholds,
    folder::{ModelFolder, Settled},
    graph::Graph,
    model::{Model, is_finite},
    profile::Preparation,
    trial::{PATIENCE, Trial},
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
    model: Arc<Model>,
    trial: Trial,
    thresholds: Thresholds,
    preparation: Preparation,
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
    /// A large model is tried while the caller goes on; what is wrong with it is then said by the first call that asks
    /// for scores, before it gives any.
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
        let thresholds = Thresholds::of(&description, &config.model);
        let preparation = Preparation::new(&description, config.profile, input.side)?;
        let outputs = graph.outputs(&path, &description.output)?;
        let model = Arc::new(Model { network, description, labels, labels_path, input, outputs });
        model.check_width()?;
        let tried = Arc::clone(&model);
        let trial = Trial::start(PATIENCE, move || tried.try_out())?;
        Ok(Self { model, trial, thresholds, preparation })
    }

    /// The same tagger with other thresholds for [`Tagger::tag`] and [`Tagger::tag_batch`].
    #[must_use]
    pub fn with_thresholds(self, thresholds: Thresholds) -> Self {
        Self { thresholds, ..self }
    }

    /// The tags that the model knows, in the order of the scores.
    pub fn labels(&self) -> &Labels {
        &self.model.labels
    }

    /// How the model is used.
    pub fn description(&self) -> &Description {
        &self.model.description
    }

    /// From which scores on tags count: what the model's authors say, unless [`Tagger::with_thresholds`] has other ones.
    pub fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// How many pictures the network takes at once, where it takes no other number.
    pub fn fixed_batch(&self) -> Option<usize> {
        self.model.input.batch
    }

    /// How many batches may be scored at a time.
    pub fn lanes(&self) -> usize {
        self.model.network.lanes()
    }

    /// Whether the network gives away embeddings: [`Scores::embeddings`].
    pub fn has_embeddings(&self) -> bool {
        self.model.outputs.embedding.is_some()
    }

    /// Where the model runs.
    pub fn provider(&self) -> Provider {
        self.model.network.provider()
    }

    /// The side of the square that the model sees, in pixels: 448 for the WD series.
    pub fn size_px(&self) -> u32 {
        self.model.input.side
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
        let tags = |row: Vec<f32>| self.thresholds.choose(&self.model.labels, &row);
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
        let scores = self.score_each(prepared)?;
        self.model.check(scores.scores.outer_iter())?;
        Ok(scores)
    }

    /// The same, where the scores of some pictures may be no numbers: the model has been found to make sense, so it is not
    /// the model that is wrong with them.
    pub(crate) fn score_each<P: Borrow<RgbImage>>(&self, prepared: &[P]) -> Result<Scores> {
        if prepared.is_empty() {
            return Ok(Scores { scores: Array2::zeros((0, self.model.labels.len())), embeddings: None });
        }
        self.trial.verdict(|| self.model.try_out())?;
        let scores = self.model.score(prepared)?;
        self.model.check(scores.scores.outer_iter().filter(|row| is_finite(*row)))?;
        Ok(scores)
    }
}
