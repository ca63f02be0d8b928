//! The rewriting of models: against the original's weights, on small graphs made here, and on damage.

use std::path::Path;

use vodka_testkit::{Case, fixture};

use super::{
    Flaw, Left, LeftReason,
    LeftReason::*,
    onnx,
    onnx::{Node, Tensor, put_floats, put_node},
    rewrite::{Rewritten, rewrite},
    wire::{Field, Message, put_bytes, put_int},
};

fn fields(bytes: &[u8]) -> Vec<Field<'_>> {
    Message { bytes, at: 0 }.fields().map(Result::unwrap).collect()
}

/// The fields of a model's graph.
fn graph(model: &[u8]) -> Vec<Field<'_>> {
    let graph = fields(model).into_iter().find(|field| field.number == onnx::model::GRAPH).unwrap();
    graph.message().unwrap().fields().map(Result::unwrap).collect()
}

fn nodes(model: &[u8]) -> Vec<Node<'_>> {
    let is_node = |field: &Field| field.number == onnx::graph::NODE;
    graph(model).into_iter().filter(is_node).map(|f| Node::read(f.message().unwrap()).unwrap()).collect()
}

fn operators(model: &[u8]) -> Vec<&str> {
    nodes(model).iter().map(|node| node.operator().unwrap()).collect()
}

fn initializers(model: &[u8]) -> Vec<Tensor<'_>> {
    let is_one = |field: &Field| field.number == onnx::graph::INITIALIZER;
    graph(model).into_iter().filter(is_one).map(|f| Tensor::read(f.message().unwrap()).unwrap()).collect()
}

fn tiny() -> Vec<u8> {
    std::fs::read(fixture("tagger-int8/model/model.onnx")).unwrap()
}

#[test]
fn a_file_says_what_goes_in_and_comes_out() {
    let ports = |model: &[u8]| super::ports::graph(model).unwrap().to_string();
    let model = tiny();
    let expected = "the inputs `input` float32 [1, 32, 32, 3] and the outputs `output` float32 [1, 24]";
    assert_eq!(ports(&model), expected);
    assert_eq!(ports(&rewrite(&model).unwrap().bytes), expected);
    // Old models count their weights among their inputs, and some say nothing of shapes.
    let mut old: Vec<u8> = graph(&model).iter().flat_map(|field| field.raw.to_vec()).collect();
    for name in [initializers(&model)[0].name, "more"] {
        let mut value = Vec::new();
        put_bytes(&mut value, 1, name.as_bytes());
        put_bytes(&mut old, onnx::graph::INPUT, &value);
    }
    let mut bytes = Vec::new();
    put_bytes(&mut bytes, onnx::model::GRAPH, &old);
    assert_eq!(ports(&bytes), expected.replace(" and", ", `more` of no known shape and"));
}

#[test]
fn weights_and_scales_are_those_of_the_original() {
    let case = Case::open("tagger-int8");
    let bytes = rewrite(&tiny()).unwrap().bytes;
    let constants = initializers(&bytes);
    let tensor = |name: &str| constants.iter().find(|tensor| tensor.name == name).unwrap();
    let shape = |tensor: &Tensor| tensor.dims.iter().map(|dim| *dim as usize).collect::<Vec<_>>();
    let ints = |tensor: &Tensor| tensor.data.concat().iter().map(|v| f32::from(*v as i8)).collect::<Vec<_>>();
    let mut checked = 0;
    for node in nodes(&bytes) {
        if node.operator() == Some("MatMulInteger") {
            let weight = tensor(node.inputs[1]);
            case.check(&format!("weights/{}", node.name), &ints(weight), &shape(weight));
            let zero_point = tensor(node.inputs[3]);
            assert!(ints(zero_point).iter().all(|zero| *zero == 0.0));
            let scale = tensor(&weight.name.replace("_quantized", "_scale"));
            case.check(&format!("scales/{}", node.name), &scale.floats().unwrap(), &shape(scale));
            checked += 2;
        }
    }
    assert_eq!(checked, case.names().len());
}

#[test]
fn shared_weights_are_there_once_and_the_old_ones_no_more() {
    let before = tiny();
    let after = rewrite(&before).unwrap();
    assert_eq!(after.quantized, 5);
    let left = |node: &str| Left { node: node.into(), reason: NotConstant };
    assert_eq!(after.left, [left("gram"), left("attended")]);
    // Four matrices become three tensors each; one of them was no initializer but a Constant.
    assert_eq!(initializers(&after.bytes).len(), initializers(&before).len() - 3 + 4 * 3);
    let count = |operator| operators(&after.bytes).iter().filter(|found| **found == operator).count();
    assert_eq!(["Identity", "Constant", "Gemm", "MatMul", "MatMulInteger"].map(count), [0, 0, 0, 2, 5]);
    assert!(after.bytes.len() < before.len());
}

#[test]
fn what_is_not_quantised_stays_byte_for_byte() {
    // Fields that no ONNX has, in the model, the graph and a node.
    let mut inner: Vec<u8> = graph(&tiny()).iter().flat_map(|field| field.raw).copied().collect();
    put_bytes(&mut inner, 901, b"graph");
    put_node(
        &mut inner,
        "MatMul",
        &["pooled", "1.fc1.weight"],
        &["z"],
        &[0xb2, 0x38, 4, b'n', b'o', b'd', b'e'],
    );
    let mut model = Vec::new();
    put_bytes(&mut model, 900, b"model");
    for field in fields(&tiny()) {
        match field.number {
            onnx::model::GRAPH => put_bytes(&mut model, onnx::model::GRAPH, &inner),
            _ => model.extend(field.raw),
        }
    }
    let after = rewrite(&model).unwrap().bytes;
    let unread = |model| fields(model).into_iter().filter(|field| field.number != 7).map(|f| f.raw);
    assert!(unread(&model).eq(unread(&after)));
    let old: Vec<_> = graph(&model).iter().map(|field| field.raw.to_vec()).collect();
    let new: Vec<_> = graph(&after).iter().map(|field| field.raw.to_vec()).collect();
    let kept: Vec<_> = old.iter().filter(|field| new.contains(field)).collect();
    // Gone are six products, the Identity, the Constant and three initializers.
    assert_eq!(kept.len(), old.len() - 11);
    assert!(new.iter().filter(|field| old.contains(field)).eq(kept), "in the same order");
    let product = nodes(&after).into_iter().find(|node| node.rest.ends_with(b"node")).unwrap();
    assert_eq!(product.operator(), Some("MatMulInteger"));
}

#[test]
fn the_same_model_becomes_the_same_bytes() {
    let once = rewrite(&tiny()).unwrap().bytes;
    assert_eq!(once, rewrite(&tiny()).unwrap().bytes);
    let again = rewrite(&once).unwrap();
    assert_eq!((again.quantized, again.left.len()), (0, 2));
    assert_eq!(again.bytes, once);
}

#[test]
fn damage_never_panics() {
    let model = tiny();
    for end in (0..model.len()).step_by(13) {
        assert!(rewrite(&model[..end]).is_err(), "cut at {end}");
    }
    for i in (0..model.len()).step_by(11) {
        let mut damaged = model.clone();
        damaged[i] ^= 1 << (i % 8);
        // Whether it is noticed depends on the place: a flipped weight is a weight.
        let _ = rewrite(&damaged);
    }
}

/// A model of opset 17 whose graph has these fields.
fn model_of(graph: &[u8]) -> Vec<u8> {
    let mut opset = Vec::new();
    put_int(&mut opset, 2, 17);
    let mut model = Vec::new();
    put_bytes(&mut model, onnx::model::OPSET_IMPORT, &opset);
    put_bytes(&mut model, onnx::model::GRAPH, graph);
    model
}

fn put_value(graph: &mut Vec<u8>, number: u32, name: &str) {
    let mut value = Vec::new();
    put_bytes(&mut value, 1, name.as_bytes());
    put_bytes(graph, number, &value);
}

/// `y = x @ w`, after whatever `graph` has.
fn product(mut graph: Vec<u8>) -> Result<Rewritten, Flaw> {
    put_node(&mut graph, "MatMul", &["x", "w"], &["y"], &[]);
    rewrite(&model_of(&graph))
}

fn with(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut graph = Vec::new();
    put(&mut graph);
    graph
}

fn weights() -> Vec<u8> {
    with(|graph| put_floats(graph, "w", &[2, 2], &[1.0, 2.0, 3.0, 4.0]))
}

#[test]
fn each_reason_to_stay_in_float32_is_told() {
    let reason = |graph| {
        let found = product(graph).unwrap();
        assert_eq!(found.quantized, 0);
        assert_eq!(found.left[0].node, "y");
        found.left[0].reason
    };
    let tensor = |dims: &[usize], values: &[f32]| with(|graph| put_floats(graph, "w", dims, values));
    assert_eq!(reason(Vec::new()), NotConstant);
    assert_eq!(
        reason(with(|graph| put_node(graph, "Identity", &["w"], &["w"], &[]))),
        NotConstant,
        "a circle"
    );
    assert_eq!(reason(with(|graph| put_node(graph, "Constant", &[], &["w"], &[]))), NotConstant);
    assert_eq!(reason(with(|graph| onnx::put_int8s(graph, "w", &[1, 1], &[1]))), NotFloat);
    assert_eq!(reason(tensor(&[1, 2, 1], &[1.0, 2.0])), NotMatrix);
    assert_eq!(reason(tensor(&[2, 0], &[])), NotMatrix);
    assert_eq!(reason(tensor(&[1, 2], &[1.0, f32::NAN])), NotFinite);
    assert_eq!(reason([weights(), with(|graph| put_value(graph, onnx::graph::INPUT, "w"))].concat()), Input);
}

/// An attribute with one field, as a field of a node.
fn attribute(name: &str, put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut inner = Vec::new();
    put_bytes(&mut inner, 1, name.as_bytes());
    put(&mut inner);
    with(|node| put_bytes(node, 5, &inner))
}

#[test]
fn a_scaled_gemm_stays() {
    let alpha = attribute("alpha", |inner| inner.extend([(2 << 3) | 5, 0, 0, 0, 63]));
    let transposed = attribute("transA", |inner| put_int(inner, 3, 1));
    for rest in [alpha, transposed] {
        let mut graph = weights();
        put_node(&mut graph, "Gemm", &["x", "w"], &["y"], &rest);
        let found = rewrite(&model_of(&graph)).unwrap();
        assert_eq!((found.quantized, found.left[0].reason), (0, Gemm));
    }
}

#[test]
fn weights_that_something_else_uses_stay_too() {
    let output = with(|graph| put_value(graph, onnx::graph::OUTPUT, "w"));
    let user = with(|graph| put_node(graph, "Relu", &["w"], &["v"], &[]));
    let mut inner = Vec::new();
    put_node(&mut inner, "MatMul", &["z", "w"], &["inner"], &[]);
    let within = attribute("then_branch", |attribute| put_bytes(attribute, 6, &inner));
    let within = with(|graph| put_node(graph, "If", &["c"], &["v"], &within));
    for (other, left) in [(output, &[][..]), (user, &[]), (within, &[Subgraph])] {
        let found = product([weights(), other].concat()).unwrap();
        assert_eq!(found.quantized, 1);
        assert_eq!(found.left.iter().map(|left| left.reason).collect::<Vec<LeftReason>>(), left);
        assert!(initializers(&found.bytes).iter().any(|tensor| tensor.name == "w"));
    }
    assert!(!initializers(&product(weights()).unwrap().bytes).iter().any(|tensor| tensor.name == "w"));
}

#[test]
fn one_activation_is_quantised_once_and_no_name_is_taken_twice() {
    let mut graph = weights();
    // The names that would come first.
    put_node(&mut graph, "Relu", &["a"], &["w_quantized"], &[]);
    put_node(&mut graph, "Relu", &["b"], &["x_scale"], &[]);
    put_node(&mut graph, "MatMul", &["x", "w"], &["v"], &[]);
    let found = product(graph).unwrap();
    assert_eq!(found.quantized, 2);
    assert_eq!(operators(&found.bytes).iter().filter(|name| **name == "DynamicQuantizeLinear").count(), 1);
    let (nodes, constants) = (nodes(&found.bytes), initializers(&found.bytes));
    let made = nodes.iter().flat_map(|node| node.outputs.clone());
    let mut names: Vec<_> = made.chain(constants.iter().map(|tensor| tensor.name)).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn floats_one_by_one_are_floats() {
    let mut tensor = Vec::new();
    put_bytes(&mut tensor, 1, &[2, 2]); // dims, packed
    put_int(&mut tensor, 2, 1);
    for value in [1.0_f32, 2.0, 3.0, 4.0] {
        tensor.push((4 << 3) | 5);
        tensor.extend(value.to_le_bytes());
    }
    put_bytes(&mut tensor, 8, b"w");
    let found = product(with(|graph| put_bytes(graph, onnx::graph::INITIALIZER, &tensor))).unwrap();
    assert_eq!(found.bytes, product(weights()).unwrap().bytes);
}

#[test]
fn what_cannot_be_a_model_is_refused() {
    let message = |flaw: Flaw| flaw.in_model(Path::new("m.onnx")).to_string();
    let refused = |bytes: &[u8]| message(rewrite(bytes).unwrap_err());
    let damaged = "`m.onnx` is no ONNX model or damaged: at byte";
    assert_eq!(refused(&[]), format!("{damaged} 0 expected a graph, found the end"));
    assert_eq!(
        refused(b"GIF89a"),
        format!("{damaged} 0 expected a field of the wire type 0, 1, 2 or 5, found 7")
    );
    let two = model_of(&weights()).repeat(2);
    assert!(refused(&two).ends_with("expected one graph, found a second"), "{}", refused(&two));
    let short = with(|graph| put_floats(graph, "w", &[2, 2], &[1.0]));
    let found = message(product(short).unwrap_err());
    assert!(
        found.ends_with("expected 4 bytes for each element, found 4 bytes for the shape [2, 2] of `w`"),
        "{found}"
    );
    let old = with(|model| put_bytes(model, onnx::model::GRAPH, &weights()));
    assert_eq!(refused(&old), "`m.onnx` is of opset 0, expected 11 or later");
    let deep = (0..40).fold(Vec::new(), |inner, _| {
        let within = attribute("body", |attribute| put_bytes(attribute, 6, &inner));
        with(|graph| put_node(graph, "Loop", &[], &[], &within))
    });
    assert!(
        refused(&model_of(&deep)).ends_with("expected graphs within graphs to a depth of 32, found more")
    );
}

/// A tensor `w` of the shape 2x2 whose elements lie elsewhere, as an initializer.
fn outside(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut tensor = Vec::new();
    put_bytes(&mut tensor, 1, &[2, 2]);
    put_int(&mut tensor, 2, 1);
    put_bytes(&mut tensor, 8, b"w");
    for (key, value) in entries {
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, key.as_bytes());
        put_bytes(&mut entry, 2, value.as_bytes());
        put_bytes(&mut tensor, 13, &entry);
    }
    put_int(&mut tensor, 14, 1);
    tensor
}

/// Writes `y = x @ w` with such a `w` and 20 bytes beside it, and quantises it.
fn quantize_outside(folder: &Path, entries: &[(&str, &str)]) -> crate::Result<Vec<u8>> {
    let mut graph = with(|graph| put_bytes(graph, onnx::graph::INITIALIZER, &outside(entries)));
    put_node(&mut graph, "MatMul", &["x", "w"], &["y"], &[]);
    std::fs::write(folder.join("model.onnx"), model_of(&graph)).unwrap();
    let floats = [9.0_f32, 1.0, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat();
    std::fs::write(folder.join("model.onnx.data"), floats).unwrap();
    super::quantize(&folder.join("model.onnx"), &folder.join("int8.onnx"))?;
    Ok(std::fs::read(folder.join("int8.onnx")).unwrap())
}

#[test]
fn weights_beside_the_model_are_taken_in() {
    let inside = product(weights()).unwrap().bytes;
    let file = ("location", "model.onnx.data");
    for entries in
        [&[file, ("offset", "4"), ("length", "16"), ("checksum", "?")][..], &[("offset", "4"), file]]
    {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(quantize_outside(dir.path(), entries).unwrap(), inside);
    }
}

#[test]
fn weights_that_are_not_beside_the_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |entries: &[_]| {
        let text = quantize_outside(dir.path(), entries).unwrap_err().to_string();
        text.replace(dir.path().to_str().unwrap(), "m")
    };
    let file = ("location", "model.onnx.data");
    assert_eq!(
        refused(&[file, ("offset", "8"), ("length", "16")]),
        "`m/model.onnx` keeps `w` in `model.onnx.data`: expected a part of that file, found 16 bytes from byte 8 of 20"
    );
    assert!(refused(&[file, ("offset", "many")]).ends_with("expected a number, found \"many\""));
    assert!(refused(&[file]).ends_with("found 20 bytes for the shape [2, 2] of `w`"));
    assert_eq!(refused(&[("location", "gone.data")]), "cannot read `m/gone.data`");
    for elsewhere in ["../model.onnx.data", "/etc/hostname"] {
        let expected = format!("expected a file beside the model or below it, found {elsewhere}");
        assert!(refused(&[("location", elsewhere)]).ends_with(&expected));
    }
    let constant = attribute("value", |attribute| put_bytes(attribute, 5, &outside(&[file])));
    let constant = with(|graph| put_node(graph, "Constant", &[], &["w"], &constant));
    assert_eq!(
        product(constant).unwrap_err().in_model(Path::new("m.onnx")).to_string(),
        "`m.onnx` keeps `w` in `model.onnx.data`: expected only initializers of the outer graph there, found another tensor"
    );
}

#[test]
fn a_model_says_in_which_files_its_weights_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let locations = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        super::locations(&path)
    };
    let model = tiny();
    assert_eq!(locations(&model).unwrap(), [""; 0], "all of them inside");
    let mut graph = Vec::new();
    for place in ["weights.bin", "./deep/part.1", "weights.bin", "deep/part.1", "../elsewhere", "/etc/hosts"]
    {
        put_bytes(&mut graph, onnx::graph::INITIALIZER, &outside(&[("location", place)]));
        // Weights that are inside, more than are looked at.
        let mut large = Vec::new();
        put_bytes(&mut large, 9, &vec![0xff; 100_000]);
        put_bytes(&mut graph, onnx::graph::INITIALIZER, &large);
    }
    let mut bytes = model;
    put_bytes(&mut bytes, onnx::model::GRAPH, &graph);
    assert_eq!(locations(&bytes).unwrap(), ["weights.bin", "deep/part.1"]);
    for end in [1, 7, bytes.len() / 2, bytes.len() - 1] {
        assert!(locations(&bytes[..end]).is_err(), "cut at {end}");
    }
    assert!(locations(b"no model").is_err());
}
