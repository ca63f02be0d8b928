//! What a network says about itself: the shape of its input, and its outputs. Names are not looked at: they differ from
//! export to export.

use std::path::Path;

use crate::{
    Error, Network, Port, Result,
    description::{Description, Layout, OutputRules},
};

/// The input and the outputs of a network.
#[derive(Debug, Clone)]
pub(crate) struct Graph {
    /// The extent of each axis of the only input, if it is one of float32; -1 where it is free.
    input: Option<Vec<i64>>,
    /// The inputs, for people.
    inputs: String,
    outputs: usize,
}

/// What the network wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Input {
    /// The side of a picture in pixels.
    pub side: u32,
    /// How many pictures it takes at once, where it takes no other number.
    pub batch: Option<usize>,
}

/// Where to find what among the outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outputs {
    pub scores: usize,
    pub embedding: Option<usize>,
}

impl Graph {
    pub fn of(network: &Network) -> Self {
        let extent = |dim: &Option<usize>| dim.map_or(-1, |dim| dim as i64);
        let input = match network.inputs() {
            [input] => input.dims.as_ref().map(|dims| dims.iter().map(extent).collect()),
            _ => None,
        };
        Self { input, inputs: list(network.inputs()), outputs: network.outputs().len() }
    }

    /// Compares the input with a description: its layout, and its size where both name one.
    pub fn input(&self, model: &Path, description: &Description) -> Result<Input> {
        let layout = description.tensor.layout;
        let (axes, shape) = match (layout, self.input.as_deref()) {
            (Layout::Nhwc, Some(&[batch, height, width, channels])) => {
                (Some((batch, height, width, channels)), "side, side, 3")
            }
            (Layout::Nchw, Some(&[batch, channels, height, width])) => {
                (Some((batch, height, width, channels)), "3, side, side")
            }
            (Layout::Nhwc, _) => (None, "side, side, 3"),
            (Layout::Nchw, _) => (None, "3, side, side"),
        };
        let wrong = |expected: String| Error::Graph {
            model: model.to_path_buf(),
            expected,
            found: self.inputs.clone(),
        };
        let fits = |(_, height, width, channels): &(i64, i64, i64, i64)| {
            height == width && (*channels == 3 || *channels < 0) && *height != 0
        };
        let (batch, side, ..) =
            axes.filter(fits).ok_or_else(|| wrong(format!("one input, float32 [batch, {shape}]")))?;
        let side = match (u32::try_from(side), description.picture.size) {
            (Ok(fixed), Some(said)) if description.preprocess.is_some() && fixed != said => {
                return Err(wrong(format!("a side of {said}, as the steps beside it make it")));
            }
            (Ok(fixed), _) => fixed,
            (Err(_), Some(said)) => said,
            (Err(_), None) => {
                return Err(wrong("a fixed side, or `picture.size` in a model.toml".to_owned()));
            }
        };
        Ok(Input { side, batch: usize::try_from(batch).ok().filter(|batch| *batch > 0) })
    }

    /// Compares the outputs with a description.
    pub fn outputs(&self, model: &Path, rules: &OutputRules) -> Result<Outputs> {
        let wrong = |expected: String| Error::Graph {
            model: model.to_path_buf(),
            expected,
            found: match self.outputs {
                1 => "one output".to_owned(),
                outputs => format!("{outputs} outputs"),
            },
        };
        if let Some(count) = rules.count.filter(|count| *count != self.outputs) {
            return Err(wrong(format!("{count} outputs")));
        }
        let place = |place: i64| {
            let outputs = self.outputs as i64;
            let place = if place < 0 { place.saturating_add(outputs) } else { place };
            usize::try_from(place).ok().filter(|place| *place < self.outputs)
        };
        let scores =
            place(rules.scores).ok_or_else(|| wrong(format!("scores as output {}", rules.scores)))?;
        Ok(Outputs { scores, embedding: rules.embedding.and_then(place).filter(|place| *place != scores) })
    }
}

fn list(inputs: &[Port]) -> String {
    let each = |input: &Port| format!("`{}` {}", input.name, input.kind);
    inputs.iter().map(each).collect::<Vec<_>>().join(", ")
}
