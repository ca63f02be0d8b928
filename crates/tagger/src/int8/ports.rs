//! What a model takes and gives, as its file says: enough to tell its family without running it.

use super::{
    Flaw,
    onnx::{FLOAT, graph, model},
    wire::Message,
};
use crate::{Port, graph::Graph};

/// The inputs and the outputs of a model. What ONNX Runtime would have to work out is missing.
pub fn graph(bytes: &[u8]) -> Result<Graph, Flaw> {
    let (mut inputs, mut outputs, mut constants) = (Vec::new(), Vec::new(), Vec::new());
    for field in (Message { bytes, at: 0 }).fields() {
        let field = field?;
        if field.number != model::GRAPH {
            continue;
        }
        for field in field.message()?.fields() {
            let field = field?;
            match field.number {
                graph::INPUT => inputs.push(port(field.message()?)?),
                graph::OUTPUT => outputs.push(port(field.message()?)?),
                graph::INITIALIZER => constants.push(constant(field.message()?)?),
                _ => {}
            }
        }
    }
    // Old models count their weights among their inputs.
    inputs.retain(|input| !constants.contains(&&*input.name));
    Ok(Graph::new(inputs, outputs))
}

/// The name of a `TensorProto`.
fn constant(tensor: Message<'_>) -> Result<&str, Flaw> {
    let mut name = "";
    for field in tensor.fields() {
        let field = field?;
        if field.number == 8 {
            name = field.text()?;
        }
    }
    Ok(name)
}

/// Reads a `ValueInfoProto`.
fn port(value: Message<'_>) -> Result<Port, Flaw> {
    let (mut name, mut dims) = (String::new(), None);
    for field in value.fields() {
        let field = field?;
        match field.number {
            1 => name = field.text()?.to_owned(),
            2 => dims = float_dims(field.message()?)?,
            _ => {}
        }
    }
    let each = |dim: &Option<usize>| dim.map_or_else(|| "?".to_owned(), |dim| dim.to_string());
    let shape = |dims: &Vec<_>| format!("float32 [{}]", dims.iter().map(each).collect::<Vec<_>>().join(", "));
    let kind = dims.as_ref().map_or_else(|| "of no known shape".to_owned(), shape);
    Ok(Port { name, kind, dims })
}

/// The shape in a `TypeProto`, where that is one of a float32 tensor.
fn float_dims(kind: Message<'_>) -> Result<Option<Vec<Option<usize>>>, Flaw> {
    let (mut element, mut dims) = (0, None);
    for field in kind.fields() {
        let field = field?;
        if field.number != 1 {
            continue; // no tensor
        }
        for field in field.message()?.fields() {
            let field = field?;
            match field.number {
                1 => element = field.int()?,
                2 => dims = Some(shape(field.message()?)?),
                _ => {}
            }
        }
    }
    Ok(dims.filter(|_| element == FLOAT))
}

/// The extents in a `TensorShapeProto`, `None` where one is open.
fn shape(message: Message<'_>) -> Result<Vec<Option<usize>>, Flaw> {
    let mut dims = Vec::new();
    for field in message.fields() {
        let field = field?;
        if field.number != 1 {
            continue;
        }
        let mut dim = None;
        for field in field.message()?.fields() {
            let field = field?;
            if field.number == 1 {
                dim = usize::try_from(field.int()?).ok().filter(|dim| *dim > 0);
            }
        }
        dims.push(dim);
    }
    Ok(dims)
}
