//! What a network says about itself: the shape of its input, and its outputs. Names are not looked at: they differ from
//! export to export.

use std::{fmt, path::Path};

use crate::{
    Error, Network, Port, Result,
    description::{Description, Layout, OutputRules, SIDE_MAX},
    results::BATCH_MAX,
};

/// The inputs and the outputs of a network.
#[derive(Debug, Clone)]
pub(crate) struct Graph {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
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
    /// How many scores there are, where the graph tells it.
    pub width: Option<usize>,
    pub embedding: Option<usize>,
}

impl Graph {
    pub fn of(network: &Network) -> Self {
        Self { inputs: network.inputs().to_vec(), outputs: network.outputs().to_vec() }
    }

    /// What a file says of itself.
    pub fn new(inputs: Vec<Port>, outputs: Vec<Port>) -> Self {
        Self { inputs, outputs }
    }

    /// Compares the input with a description: its layout, and its size where both name one.
    pub fn input(&self, model: &Path, description: &Description) -> Result<Input> {
        let wrong = |expected: String| Error::Graph {
            model: model.to_path_buf(),
            expected,
            found: list(&self.inputs),
        };
        let (axes, shape) = match description.tensor.layout {
            Layout::Nhwc => ([1, 2, 3], "side, side, 3"),
            Layout::Nchw => ([2, 3, 1], "3, side, side"),
        };
        let dims = match &self.inputs[..] {
            [Port { dims: Some(dims), .. }] if dims.len() == 4 => {
                Some((dims[0], axes.map(|axis| dims[axis])))
            }
            _ => None,
        };
        let is_picture = |(_, [height, width, channels]): &(_, [Option<usize>; 3])| {
            height == width && channels.is_none_or(|channels| channels == 3)
        };
        let (batch, [side, ..]) =
            dims.filter(is_picture).ok_or_else(|| wrong(format!("one input, float32 [batch, {shape}]")))?;
        // A damaged graph must not ask for all memory.
        if batch > Some(BATCH_MAX) || side > Some(SIDE_MAX as usize) {
            return Err(wrong(format!("a batch of at most {BATCH_MAX} and a side of at most {SIDE_MAX}")));
        }
        let said = description.picture.size;
        match (side.map(|side| side as u32), said) {
            (Some(fixed), Some(said)) if description.preprocess.is_some() && fixed != said => {
                Err(wrong(format!("a side of {said}, as the steps beside it make it")))
            }
            (Some(side), _) | (None, Some(side)) => Ok(Input { side, batch }),
            (None, None) => Err(wrong("a fixed side, or `picture.size` in a model.toml".to_owned())),
        }
    }

    /// Compares the outputs with a description. What is no `[batch, width]` is no embedding.
    pub fn outputs(&self, model: &Path, rules: &OutputRules) -> Result<Outputs> {
        let wrong = |expected: String| Error::Graph {
            model: model.to_path_buf(),
            expected,
            found: format!("the outputs {}", list(&self.outputs)),
        };
        if let Some(count) = rules.count.filter(|count| *count != self.outputs.len()) {
            return Err(wrong(format!("{count} outputs")));
        }
        let place = |place: i64| {
            let outputs = self.outputs.len() as i64;
            let place = if place < 0 { place.saturating_add(outputs) } else { place };
            usize::try_from(place).ok().filter(|place| *place < self.outputs.len())
        };
        let is_flat = |place: &usize| self.outputs[*place].dims.as_ref().is_some_and(|dims| dims.len() == 2);
        let scores = place(rules.scores).filter(is_flat);
        let scores =
            scores.ok_or_else(|| wrong(format!("float32 [batch, tags] as output {}", rules.scores)))?;
        let embedding = rules.embedding.and_then(place).filter(|place| *place != scores && is_flat(place));
        let width = self.outputs[scores].dims.as_ref().and_then(|dims| dims[1]);
        Ok(Outputs { scores, width, embedding })
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the inputs {} and the outputs {}", list(&self.inputs), list(&self.outputs))
    }
}

fn list(ports: &[Port]) -> String {
    let each = |port: &Port| format!("`{}` {}", port.name, port.kind);
    ports.iter().map(each).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(dims: &[usize]) -> Port {
        let dims = dims.iter().map(|dim| Some(*dim).filter(|dim| *dim > 0)).collect();
        Port { name: "x".into(), kind: "Tensor<f32>".into(), dims: Some(dims) }
    }

    fn graph(input: &[usize], outputs: &[&[usize]]) -> Graph {
        Graph { inputs: vec![port(input)], outputs: outputs.iter().map(|dims| port(dims)).collect() }
    }

    #[test]
    fn size_and_batch_come_from_the_graph() {
        let family = |name| Description::family(name).unwrap();
        let input = |dims: &[usize], name| {
            graph(dims, &[]).input(Path::new("m"), &family(name)).map_err(|error| error.to_string())
        };
        assert_eq!(input(&[0, 448, 448, 3], "wd-v3"), Ok(Input { side: 448, batch: None }));
        assert_eq!(input(&[1, 320, 320, 3], "wd-v3"), Ok(Input { side: 320, batch: Some(1) }));
        assert_eq!(input(&[0, 3, 384, 384], "joytag"), Ok(Input { side: 384, batch: None }));
        assert_eq!(input(&[0, 0, 0, 0], "ml-danbooru"), Ok(Input { side: 448, batch: None }));
        for (dims, name, expected) in [
            (&[0, 448, 448, 3][..], "joytag", "expected one input, float32 [batch, 3, side, side]"),
            (&[0, 448, 320, 3], "wd-v3", "expected one input, float32 [batch, side, side, 3]"),
            (&[0, 448, 448], "wd-v3", "expected one input"),
            (&[0, 0, 0, 3], "wd-v3", "expected a fixed side, or `picture.size` in a model.toml"),
            (&[0, 99_999, 99_999, 3], "wd-v3", "a batch of at most 4096 and a side of at most 4096"),
            (&[9_999, 448, 448, 3], "wd-v3", "a batch of at most 4096"),
        ] {
            let found = input(dims, name).unwrap_err();
            assert!(found.contains(expected), "{dims:?}: {found}");
        }
    }

    #[test]
    fn outputs_are_counted_from_either_end() {
        let graph = graph(&[], &[&[0, 8], &[0, 9], &[0, 7, 7, 8]]);
        let outputs = |scores, embedding| {
            let rules = OutputRules { scores, embedding, ..OutputRules::default() };
            graph.outputs(Path::new("m"), &rules).map(|found| (found.scores, found.embedding)).ok()
        };
        assert_eq!(outputs(0, Some(1)), Some((0, Some(1))));
        assert_eq!(outputs(-2, Some(-3)), Some((1, Some(0))));
        // What the graph has not, or not in that form, is no embedding, and no scores at all.
        assert_eq!(
            [Some(2), Some(5), Some(0), Some(-9)].map(|place| outputs(0, place)),
            [Some((0, None)); 4]
        );
        assert_eq!([2, 3, -1, -4, i64::MIN].map(|place| outputs(place, None)), [None; 5]);
    }
}
