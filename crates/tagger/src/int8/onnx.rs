//! The parts of an ONNX file that are looked at, and how new ones are written.
//!
//! Numbers of fields: <https://github.com/onnx/onnx/blob/v1.19.0/onnx/onnx.proto>.

use super::{
    Flaw,
    wire::{Message, put_bytes, put_int},
};

/// Fields of a `ModelProto`.
pub mod model {
    pub const GRAPH: u32 = 7;
    pub const OPSET_IMPORT: u32 = 8;
}

/// Fields of a `GraphProto`.
pub mod graph {
    pub const NODE: u32 = 1;
    pub const INITIALIZER: u32 = 5;
    pub const INPUT: u32 = 11;
    pub const OUTPUT: u32 = 12;
    pub const VALUE_INFO: u32 = 13;
}

/// The type of float32 elements.
pub const FLOAT: i64 = 1;
const INT8: i64 = 3;

/// A `NodeProto`.
#[derive(Debug)]
pub struct Node<'a> {
    pub inputs: Vec<&'a str>,
    pub outputs: Vec<&'a str>,
    pub name: &'a str,
    pub attributes: Vec<Attribute<'a>>,
    /// Its documentation and whatever else it has, as it stands.
    pub rest: Vec<u8>,
    operator: &'a str,
    domain: &'a str,
}

impl<'a> Node<'a> {
    pub fn read(message: Message<'a>) -> Result<Self, Flaw> {
        let mut node = Self {
            inputs: Vec::new(),
            outputs: Vec::new(),
            name: "",
            attributes: Vec::new(),
            rest: Vec::new(),
            operator: "",
            domain: "",
        };
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => node.inputs.push(field.text()?),
                2 => node.outputs.push(field.text()?),
                3 => node.name = field.text()?,
                4 => node.operator = field.text()?,
                5 => node.attributes.push(Attribute::read(field.message()?)?),
                7 => node.domain = field.text()?,
                _ => node.rest.extend(field.raw),
            }
        }
        Ok(node)
    }

    /// Its operator, where that is one of ONNX itself.
    pub fn operator(&self) -> Option<&'a str> {
        is_onnx(self.domain).then_some(self.operator)
    }

    pub fn attribute(&self, name: &str) -> Option<&Attribute<'a>> {
        self.attributes.iter().find(|attribute| attribute.name == name)
    }

    /// What goes through it unchanged.
    pub fn identity(&self) -> Option<&'a str> {
        (self.operator() == Some("Identity")).then(|| self.inputs.first().copied())?
    }

    /// The tensor of a `Constant` node, under the name of its output.
    pub fn constant(&self) -> Result<Option<Tensor<'a>>, Flaw> {
        let is_constant = self.operator() == Some("Constant");
        let value = self.attribute("value").filter(|_| is_constant).and_then(|attribute| attribute.tensor);
        let (Some(value), Some(name)) = (value, self.outputs.first()) else { return Ok(None) };
        Ok(Some(Tensor { name, ..Tensor::read(value)? }))
    }

    /// What to call it: by its name, or by what it makes.
    pub fn label(&self) -> &'a str {
        if self.name.is_empty() { self.outputs.first().copied().unwrap_or_default() } else { self.name }
    }
}

/// Whether a domain of operators is ONNX's own.
fn is_onnx(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

/// An `AttributeProto`.
#[derive(Debug, Default)]
pub struct Attribute<'a> {
    name: &'a str,
    pub float: Option<f32>,
    pub int: Option<i64>,
    pub tensor: Option<Message<'a>>,
    pub graphs: Vec<Message<'a>>,
}

impl<'a> Attribute<'a> {
    fn read(message: Message<'a>) -> Result<Self, Flaw> {
        let mut attribute = Self::default();
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => attribute.name = field.text()?,
                2 => attribute.float = field.floats()?.first_chunk().map(|bytes| f32::from_le_bytes(*bytes)),
                3 => attribute.int = Some(field.int()?),
                5 => attribute.tensor = Some(field.message()?),
                6 | 11 => attribute.graphs.push(field.message()?),
                _ => {}
            }
        }
        Ok(attribute)
    }
}

/// A `TensorProto`.
#[derive(Debug)]
pub struct Tensor<'a> {
    pub name: &'a str,
    pub dims: Vec<i64>,
    pub at: usize,
    kind: i64,
    /// `raw_data` or `float_data`: little-endian where the type is float32.
    pub data: Vec<&'a [u8]>,
}

impl<'a> Tensor<'a> {
    pub fn read(message: Message<'a>) -> Result<Self, Flaw> {
        let mut tensor = Self { name: "", dims: Vec::new(), at: message.at, kind: 0, data: Vec::new() };
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => field.ints(&mut tensor.dims)?,
                2 => tensor.kind = field.int()?,
                4 => tensor.data.push(field.floats()?),
                8 => tensor.name = field.text()?,
                9 => tensor.data.push(field.bytes()?),
                _ => {}
            }
        }
        match Outside::read(message)? {
            Some(Outside { name, location, .. }) => {
                Err(Flaw::Outside { tensor: name.into(), location: location.into() })
            }
            None => Ok(tensor),
        }
    }

    pub fn is_float(&self) -> bool {
        self.kind == FLOAT
    }

    /// The elements of a float32 tensor, row-major.
    pub fn floats(&self) -> Result<Vec<f32>, Flaw> {
        let length = |dim: &i64| usize::try_from(*dim).ok();
        let elements = self.dims.iter().try_fold(1_usize, |product, dim| product.checked_mul(length(dim)?));
        let bytes: usize = self.data.iter().map(|part| part.len()).sum();
        if elements.and_then(|elements| elements.checked_mul(4)) != Some(bytes) {
            let found = format!("{bytes} bytes for the shape {:?} of `{}`", self.dims, self.name);
            return Err(Flaw::damaged(self.at, "4 bytes for each element", found));
        }
        let mut floats = Vec::with_capacity(bytes / 4);
        for part in &self.data {
            floats.extend(part.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        Ok(floats)
    }
}

/// A `TensorProto` whose elements lie in a file of their own.
#[derive(Debug)]
pub struct Outside<'a> {
    pub name: &'a str,
    /// The file, relative to the model's folder.
    pub location: &'a str,
    pub offset: u64,
    /// To the end of the file where it is not said.
    pub length: Option<u64>,
    /// Its other fields, as they stand.
    rest: Vec<u8>,
}

impl<'a> Outside<'a> {
    /// `None` where the elements are inside, as they mostly are.
    pub fn read(message: Message<'a>) -> Result<Option<Self>, Flaw> {
        const EXTERNAL: i64 = 1;
        let mut tensor = Self { name: "", location: "", offset: 0, length: None, rest: Vec::new() };
        let mut is_outside = false;
        for field in message.fields() {
            let field = field?;
            match field.number {
                8 => tensor.name = field.text()?,
                13 => tensor.entry(field.message()?)?,
                14 => is_outside = field.int()? == EXTERNAL,
                _ => {}
            }
        }
        if !is_outside {
            return Ok(None);
        }
        for field in message.fields() {
            let field = field?;
            if !matches!(field.number, 13 | 14) {
                tensor.rest.extend(field.raw);
            }
        }
        Ok(Some(tensor))
    }

    /// Reads one entry of `external_data`.
    fn entry(&mut self, message: Message<'a>) -> Result<(), Flaw> {
        let (mut key, mut value) = ("", "");
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => key = field.text()?,
                2 => value = field.text()?,
                _ => {}
            }
        }
        let number =
            || value.parse().map_err(|_| Flaw::damaged(message.at, "a number", format!("{value:?}")));
        match key {
            "location" => self.location = value,
            "offset" => self.offset = number()?,
            "length" => self.length = Some(number()?),
            _ => {}
        }
        Ok(())
    }

    /// The `TensorProto` with its elements.
    pub fn inside(mut self, data: &[u8]) -> Vec<u8> {
        put_bytes(&mut self.rest, 9, data);
        self.rest
    }
}

/// The name of a `ValueInfoProto`.
pub fn value_name(message: Message<'_>) -> Result<&str, Flaw> {
    let mut name = "";
    for field in message.fields() {
        let field = field?;
        if field.number == 1 {
            name = field.text()?;
        }
    }
    Ok(name)
}

/// The version of an `OperatorSetIdProto` of ONNX itself.
pub fn opset(message: Message<'_>) -> Result<Option<i64>, Flaw> {
    let (mut domain, mut version) = ("", 0);
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => domain = field.text()?,
            2 => version = field.int()?,
            _ => {}
        }
    }
    Ok(is_onnx(domain).then_some(version))
}

/// Appends a node of ONNX itself to a graph; `rest` are further fields of it.
pub fn put_node(out: &mut Vec<u8>, operator: &str, inputs: &[&str], outputs: &[&str], rest: &[u8]) {
    let mut node = Vec::new();
    for input in inputs {
        put_bytes(&mut node, 1, input.as_bytes());
    }
    for output in outputs {
        put_bytes(&mut node, 2, output.as_bytes());
    }
    put_bytes(&mut node, 4, operator.as_bytes());
    node.extend(rest);
    put_bytes(out, graph::NODE, &node);
}

/// The field of a node that holds its name.
pub fn node_name(name: &str) -> Vec<u8> {
    let mut field = Vec::new();
    put_bytes(&mut field, 3, name.as_bytes());
    field
}

/// The attribute of a `Cast` to float32.
pub fn to_float() -> Vec<u8> {
    const INT: u64 = 2;
    let mut attribute = Vec::new();
    put_bytes(&mut attribute, 1, b"to");
    put_int(&mut attribute, 3, FLOAT as u64);
    put_int(&mut attribute, 20, INT);
    let mut field = Vec::new();
    put_bytes(&mut field, 5, &attribute);
    field
}

/// Appends float32 numbers to a graph's initializers.
pub fn put_floats(out: &mut Vec<u8>, name: &str, dims: &[usize], values: &[f32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    put_tensor(out, name, dims, FLOAT, &bytes);
}

/// Appends int8 numbers to a graph's initializers.
pub fn put_int8s(out: &mut Vec<u8>, name: &str, dims: &[usize], values: &[i8]) {
    let bytes: Vec<u8> = values.iter().map(|value| *value as u8).collect();
    put_tensor(out, name, dims, INT8, &bytes);
}

fn put_tensor(out: &mut Vec<u8>, name: &str, dims: &[usize], kind: i64, bytes: &[u8]) {
    let mut tensor = Vec::with_capacity(bytes.len() + name.len() + 64);
    for dim in dims {
        put_int(&mut tensor, 1, *dim as u64);
    }
    put_int(&mut tensor, 2, kind as u64);
    put_bytes(&mut tensor, 8, name.as_bytes());
    put_bytes(&mut tensor, 9, bytes);
    put_bytes(out, graph::INITIALIZER, &tensor);
}
