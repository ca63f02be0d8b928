//! A model's matrix products by constants, made products of 8-bit integers.

use std::collections::{HashMap, HashSet};

use super::{
    Flaw, Left, LeftReason,
    onnx::{
        Node, Tensor, graph, model, node_name, opset, put_floats, put_int8s, put_node, to_float, value_name,
    },
    weights::{Quantized, quantize_columns, transpose},
    wire::{Field, Message, put_bytes},
};

/// `DynamicQuantizeLinear` came with it.
const OPSET_MIN: i64 = 11;
/// Graphs within graphs; more is no model but an attack on the stack.
const DEPTH_MAX: usize = 32;

/// A model with int8 weights.
#[derive(Debug)]
pub struct Rewritten {
    pub bytes: Vec<u8>,
    pub quantized: usize,
    pub left: Vec<Left>,
}

/// Quantises what can be quantised in an ONNX file. What stays is the same byte for byte, in the same order.
pub fn rewrite(bytes: &[u8]) -> Result<Rewritten, Flaw> {
    let (mut main, mut version) = (None, 0);
    let fields: Vec<_> = Message { bytes, at: 0 }.fields().collect::<Result<_, _>>()?;
    for field in &fields {
        match field.number {
            model::GRAPH if main.is_some() => {
                return Err(Flaw::damaged(field.at, "one graph", "a second".into()));
            }
            model::GRAPH => main = Some(field.message()?),
            model::OPSET_IMPORT => version = opset(field.message()?)?.unwrap_or(version),
            _ => {}
        }
    }
    let main = main.ok_or_else(|| Flaw::damaged(bytes.len(), "a graph", "the end".into()))?;
    let mut rewriter = Rewriter::new(main)?;
    if version < OPSET_MIN {
        return Err(Flaw::Opset { version });
    }
    rewriter.quantize()?;
    let (graph, quantized) = (rewriter.graph(), rewriter.quantized);
    let mut bytes = Vec::with_capacity(graph.len() + 4096);
    for field in fields {
        match field.number {
            model::GRAPH => put_bytes(&mut bytes, model::GRAPH, &graph),
            _ => bytes.extend(field.raw),
        }
    }
    Ok(Rewritten { bytes, quantized, left: rewriter.left })
}

/// A field of the graph.
struct Part<'a> {
    node: Option<Node<'a>>,
    /// An initializer, or what a `Constant` node holds.
    constant: Option<Tensor<'a>>,
    raw: &'a [u8],
    /// What stands in its place.
    replacement: Option<Vec<u8>>,
}

impl<'a> Part<'a> {
    fn read(field: Field<'a>) -> Result<Self, Flaw> {
        let mut part = Self { node: None, constant: None, raw: field.raw, replacement: None };
        match field.number {
            graph::NODE => {
                let node = Node::read(field.message()?)?;
                part.constant = node.constant()?;
                part.node = Some(node);
            }
            graph::INITIALIZER => part.constant = Some(Tensor::read(field.message()?)?),
            _ => {}
        }
        Ok(part)
    }
}

/// The names of a quantised tensor, its scale and its zero point.
#[derive(Debug, Clone)]
struct Names {
    values: String,
    scale: String,
    zero_point: String,
}

/// A product by a constant matrix.
struct Product<'a> {
    activation: &'a str,
    weight: &'a str,
    /// The matrix comes as (columns, rows).
    transposed: bool,
    bias: Option<&'a str>,
    output: &'a str,
}

struct Rewriter<'a> {
    parts: Vec<Part<'a>>,
    /// The part that makes a value.
    makers: HashMap<&'a str, usize>,
    inputs: HashSet<&'a str>,
    /// How often a value is used, in the graph and in those within it.
    uses: HashMap<&'a str, usize>,
    names: HashSet<String>,
    /// By the part that holds the matrix, and whether it is taken transposed.
    weights: HashMap<(usize, bool), Result<Names, LeftReason>>,
    activations: HashMap<&'a str, Names>,
    /// New initializers, as fields of the graph.
    added: Vec<u8>,
    quantized: usize,
    left: Vec<Left>,
}

impl<'a> Rewriter<'a> {
    fn new(main: Message<'a>) -> Result<Self, Flaw> {
        let mut rewriter = Self {
            parts: Vec::new(),
            makers: HashMap::new(),
            inputs: HashSet::new(),
            uses: HashMap::new(),
            names: HashSet::new(),
            weights: HashMap::new(),
            activations: HashMap::new(),
            added: Vec::new(),
            quantized: 0,
            left: Vec::new(),
        };
        for (i, field) in main.fields().enumerate() {
            let field = field?;
            let part = Part::read(field)?;
            rewriter.makers.extend(part.constant.iter().map(|tensor| (tensor.name, i)));
            rewriter.makers.extend(part.node.iter().flat_map(|node| &node.outputs).map(|name| (*name, i)));
            rewriter.parts.push(part);
            if field.number == graph::INPUT {
                rewriter.inputs.insert(value_name(field.message()?)?);
            }
        }
        rewriter.count(main, 0)?;
        Ok(rewriter)
    }

    /// Counts what a graph and those within it use, and gathers the names that are taken.
    fn count(&mut self, within: Message<'a>, depth: usize) -> Result<(), Flaw> {
        if depth > DEPTH_MAX {
            return Err(Flaw::damaged(within.at, "graphs within graphs to a depth of 32", "more".into()));
        }
        for field in within.fields() {
            let field = field?;
            match field.number {
                graph::NODE => {
                    let node = Node::read(field.message()?)?;
                    self.names.extend(node.inputs.iter().chain(&node.outputs).map(|name| (*name).to_owned()));
                    for name in &node.inputs {
                        *self.uses.entry(name).or_default() += 1;
                    }
                    if depth > 0 && is_product(&node) {
                        self.left.push(Left::new(&node, LeftReason::Subgraph));
                    }
                    for inner in node.attributes.iter().flat_map(|attribute| &attribute.graphs) {
                        self.count(*inner, depth + 1)?;
                    }
                }
                graph::INITIALIZER => {
                    self.names.insert(Tensor::read(field.message()?)?.name.to_owned());
                }
                graph::OUTPUT => *self.uses.entry(value_name(field.message()?)?).or_default() += 1,
                graph::INPUT | graph::VALUE_INFO => {
                    self.names.insert(value_name(field.message()?)?.to_owned());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn quantize(&mut self) -> Result<(), Flaw> {
        for i in 0..self.parts.len() {
            let Some(node) = self.parts[i].node.take_if(|node| is_product(node)) else { continue };
            let quantized = match Product::of(&node) {
                Ok(product) => self.weight(&product)?.map(|weight| (product, weight)),
                Err(reason) => Err(reason),
            };
            match quantized {
                Ok((product, weight)) => {
                    self.parts[i].replacement = Some(self.nodes(&node, &product, &weight));
                    self.release(product.weight);
                    self.quantized += 1;
                }
                Err(reason) => self.left.push(Left::new(&node, reason)),
            }
        }
        Ok(())
    }

    /// The names of a product's int8 weights, which are made when a matrix is met for the first time.
    fn weight(&mut self, product: &Product<'a>) -> Result<Result<Names, LeftReason>, Flaw> {
        let Some(part) = self.constant(product.weight) else { return Ok(Err(LeftReason::NotConstant)) };
        let key = (part, product.transposed);
        if let Some(known) = self.weights.get(&key) {
            return Ok(known.clone());
        }
        let Some(tensor) = &self.parts[part].constant else { return Ok(Err(LeftReason::NotConstant)) };
        let name = tensor.name;
        let weight = match self.inputs.contains(name) {
            true => Err(LeftReason::Input),
            false => matrix(tensor, product.transposed)?,
        };
        let names = weight.map(|Quantized { values, scales }| {
            let names = self.names_of(name);
            let columns = scales.len();
            put_int8s(&mut self.added, &names.values, &[values.len() / columns, columns], &values);
            put_floats(&mut self.added, &names.scale, &[columns], &scales);
            put_int8s(&mut self.added, &names.zero_point, &[columns], &vec![0; columns]);
            names
        });
        self.weights.insert(key, names.clone());
        Ok(names)
    }

    /// The part that holds a constant, which may come through `Identity` nodes.
    fn constant(&self, mut name: &'a str) -> Option<usize> {
        // A graph has no more steps than parts; a damaged one may have a circle.
        for _ in 0..self.parts.len() {
            let maker = *self.makers.get(name)?;
            let part = &self.parts[maker];
            if part.constant.is_some() {
                return Some(maker);
            }
            name = part.node.as_ref()?.identity()?;
        }
        None
    }

    /// One use of a constant is gone. After the last one, so are the constant and what it came through.
    fn release(&mut self, mut name: &'a str) {
        while let (Some(uses), Some(maker)) = (self.uses.get_mut(name), self.makers.get(name)) {
            *uses -= 1;
            if *uses > 0 {
                return;
            }
            let part = &mut self.parts[*maker];
            part.replacement = Some(Vec::new());
            match part.node.as_ref().and_then(Node::identity) {
                Some(input) => name = input,
                None => return,
            }
        }
    }

    /// The nodes in the place of a product, in the shape that ONNX Runtime fuses into one kernel.
    fn nodes(&mut self, node: &Node<'a>, product: &Product<'a>, weight: &Names) -> Vec<u8> {
        let mut out = Vec::new();
        let input = match self.activations.get(product.activation) {
            Some(names) => names.clone(),
            None => {
                let names = self.names_of(product.activation);
                let Names { values, scale, zero_point } = &names;
                let outputs = [values.as_str(), scale, zero_point];
                put_node(&mut out, "DynamicQuantizeLinear", &[product.activation], &outputs, &[]);
                self.activations.insert(product.activation, names.clone());
                names
            }
        };
        let product_name = match product.bias {
            Some(_) => self.fresh(format!("{}_MatMul", product.output)),
            None => product.output.to_owned(),
        };
        let integers = self.fresh(format!("{product_name}_output_quantized"));
        let floats = self.fresh(format!("{integers}_cast_output"));
        let scales = self.fresh(format!("{product_name}_scales_mul"));
        let inputs = [&*input.values, &weight.values, &input.zero_point, &weight.zero_point];
        // The new node keeps the name by which a profile knows the product, and its documentation.
        let kept = [node_name(node.name), node.rest.clone()].concat();
        put_node(&mut out, "MatMulInteger", &inputs, &[&integers], &kept);
        put_node(&mut out, "Cast", &[&integers], &[&floats], &to_float());
        put_node(&mut out, "Mul", &[&input.scale, &weight.scale], &[&scales], &[]);
        put_node(&mut out, "Mul", &[&floats, &scales], &[&product_name], &[]);
        if let Some(bias) = product.bias {
            put_node(&mut out, "Add", &[&product_name, bias], &[product.output], &[]);
        }
        out
    }

    fn names_of(&mut self, name: &str) -> Names {
        Names {
            values: self.fresh(format!("{name}_quantized")),
            scale: self.fresh(format!("{name}_scale")),
            zero_point: self.fresh(format!("{name}_zero_point")),
        }
    }

    /// A name that nothing has yet.
    fn fresh(&mut self, base: String) -> String {
        let mut name = base.clone();
        let mut next = 2;
        while !self.names.insert(name.clone()) {
            name = format!("{base}_{next}");
            next += 1;
        }
        name
    }

    /// The graph as it is now.
    fn graph(&self) -> Vec<u8> {
        let parts = || self.parts.iter().map(|part| part.replacement.as_deref().unwrap_or(part.raw));
        let mut graph = Vec::with_capacity(parts().map(<[u8]>::len).sum::<usize>() + self.added.len());
        parts().for_each(|part| graph.extend(part));
        graph.extend(&self.added);
        graph
    }
}

fn is_product(node: &Node) -> bool {
    matches!(node.operator(), Some("MatMul" | "Gemm"))
}

impl<'a> Product<'a> {
    fn of(node: &Node<'a>) -> Result<Self, LeftReason> {
        let (&[activation, weight, ..], &[output]) = (&node.inputs[..], &node.outputs[..]) else {
            return Err(LeftReason::NotConstant);
        };
        let int = |name| node.attribute(name).and_then(|attribute| attribute.int).unwrap_or(0);
        let float = |name| node.attribute(name).and_then(|attribute| attribute.float).unwrap_or(1.0);
        // A `MatMul` has none of these attributes.
        if float("alpha") != 1.0 || float("beta") != 1.0 || int("transA") != 0 {
            return Err(LeftReason::Gemm);
        }
        let bias = node.inputs.get(2).copied().filter(|name| !name.is_empty());
        Ok(Self { activation, weight, transposed: int("transB") != 0, bias, output })
    }
}

/// A constant as an int8 matrix.
fn matrix(tensor: &Tensor, transposed: bool) -> Result<Result<Quantized, LeftReason>, Flaw> {
    if !tensor.is_float() {
        return Ok(Err(LeftReason::NotFloat));
    }
    let mut floats = tensor.floats()?;
    let &[rows @ 1..=i64::MAX, columns @ 1..=i64::MAX] = &tensor.dims[..] else {
        return Ok(Err(LeftReason::NotMatrix));
    };
    let columns = if transposed { rows } else { columns } as usize;
    if transposed {
        floats = transpose(&floats, columns);
    }
    Ok(quantize_columns(&floats, columns).ok_or(LeftReason::NotFinite))
}
