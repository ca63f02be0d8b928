//! A network with what it takes to ask it: how pictures go in, what its outputs mean, and whether they make sense.

use std::{borrow::Borrow, panic, path::PathBuf, thread};

use ndarray::{Array2, ArrayD, ArrayView1, ArrayView2, Axis, Ix2, concatenate, s};
use vodka_images::{Rgb, RgbImage};

use crate::{
    Activation, Description, Error, Labels, Layout, Network, Result, Scores,
    graph::{Input, Outputs},
    tensor::to_tensor,
};

/// What [`crate::Tagger`] asks.
#[derive(Debug)]
pub(crate) struct Model {
    pub network: Network,
    pub description: Description,
    pub labels: Labels,
    pub labels_path: PathBuf,
    pub input: Input,
    pub outputs: Outputs,
}

impl Model {
    /// The probabilities of one or more pictures, and their embeddings. For [`Model::check`] to look at.
    pub fn score<P: Borrow<RgbImage>>(&self, prepared: &[P]) -> Result<Scores> {
        let Scores { scores, embeddings } = self.infer(prepared)?;
        Ok(Scores { scores: self.probabilities(scores), embeddings })
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

    /// Whether the scores of pictures are probabilities.
    pub fn check<'a>(&self, rows: impl IntoIterator<Item = ArrayView1<'a, f32>>) -> Result<()> {
        let is_right = |score: &f32| (0.0..=1.0).contains(score);
        let Some(row) = rows.into_iter().find(|row| !row.iter().all(is_right)) else { return Ok(()) };
        let found = row.iter().enumerate().find(|(_, score)| !is_right(score));
        let (i, score) = found.expect("the row has one");
        let hint = if is_finite(row) {
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

    /// Compares the number of tags with the width of the scores, where the graph tells it.
    pub fn check_width(&self) -> Result<()> {
        self.outputs.width.map_or(Ok(()), |width| self.check_labels(width))
    }

    fn check_labels(&self, outputs: usize) -> Result<()> {
        if self.labels.fit(outputs) {
            return Ok(());
        }
        let (labels, rows) = (self.labels_path.clone(), self.labels.len());
        Err(Error::LabelCount { model: self.network.path().to_path_buf(), outputs, labels, rows })
    }

    /// Looks for the ways in which exported models are known to be wrong.
    pub fn try_out(&self) -> Result<()> {
        let values = self.scores_of_two(self.test_pictures())?; // (2, outputs)
        self.check_labels(values.ncols())?;
        let model = || self.network.path().to_path_buf();
        let is_probable = values.iter().all(|value| (0.0..=1.0).contains(value));
        let scores = self.probabilities(values);
        self.check(scores.outer_iter())?;
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
        if self.network.lanes() == 1 || self.input.batch.is_some_and(|batch| batch > 1) {
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

/// Whether a picture has a score for each label: for some a network may compute what is no number.
pub(crate) fn is_finite(row: ArrayView1<'_, f32>) -> bool {
    row.iter().all(|score| score.is_finite())
}
