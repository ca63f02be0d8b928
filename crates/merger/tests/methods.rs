//! Every method against the arithmetic of its original, and through the engine.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod model;

use std::{collections::BTreeMap, path::PathBuf};

use half::{bf16, f16};
use vodka_checkpoint::{Checkpoint, Precision, keys, write_checkpoint};
use vodka_merger::{
    METHODS, Method, Parents, Passes, Recipe, VaePolicy,
    kernel::{
        Blocks, Context, DellaParams, LoraDelta, Range, State, apply, dare, della, prepare, similarities,
    },
    run,
};
use vodka_stage::Interrupt;
use vodka_testkit::Case;

use model::model;

/// Tensors in memory, in blocks of some rows.
struct Memory<'a> {
    shape: &'a [usize],
    values: Vec<&'a [f32]>,
    block: usize,
}

impl Blocks for Memory<'_> {
    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn block_len(&self) -> usize {
        self.block
    }

    fn read(&self, index: usize, take: &mut dyn FnMut(usize, &[&[f32]])) -> vodka_merger::Result<()> {
        let start = index * self.block;
        let end = (start + self.block).min(self.values[0].len());
        let values: Vec<_> = self.values.iter().map(|values| &values[start..end]).collect();
        take(start, &values);
        Ok(())
    }
}

/// A tensor that a method makes, in blocks.
fn merged(
    method: Method,
    shape: &[usize],
    parents: &[&[f32]],
    params: &[f64],
    state: Option<&State>,
) -> Vec<f32> {
    let row = shape[1..].iter().product::<usize>().max(1);
    let block = if shape.len() == 1 { shape[0] } else { 2 * row };
    let memory = Memory { shape, values: parents.to_vec(), block };
    let prepared = prepare(method, &memory, params).unwrap();
    let state = state.unwrap_or(&prepared);
    let mut out = parents[0].to_vec();
    for start in (0..out.len()).step_by(block) {
        let end = (start + block).min(out.len());
        let others: Vec<_> = parents[1..].iter().map(|parent| &parent[start..end]).collect();
        let context = Context { params, seed: 7, start, shape, state };
        apply(method, &mut out[start..end], &others, &context);
    }
    out
}

/// A number of the order of the floats.
fn ordered(x: f32) -> i64 {
    let bits = i64::from(x.to_bits() as i32);
    if bits < 0 { i64::from(i32::MIN) - bits } else { bits }
}

fn check(name: &str, found: &[f32], expected: &[f32], ulps: i64) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let apart = (ordered(*found) - ordered(*expected)).abs();
        assert!(apart <= ulps, "{name}: {found} at {i}, expected {expected}: {apart} units apart");
        // The types that files are of.
        let halves = f16::from_f32(*found).to_f32() - f16::from_f32(*expected).to_f32();
        assert!(f64::from(halves.abs()) <= f64::from(expected.abs()) / 1024.0 + 6e-8, "{name}: fp16 at {i}");
        let brains = bf16::from_f32(*found).to_f32() - bf16::from_f32(*expected).to_f32();
        assert!(brains.abs() <= expected.abs() / 128.0, "{name}: bf16 at {i}");
    }
}

const TENSORS: [&str; 3] = ["linear", "conv", "bias"];

#[test]
fn methods_are_those_of_their_originals() {
    let case = Case::open("merger/methods");
    for tensor in TENSORS {
        let [a, b, c] = ["a", "b", "c"].map(|name| case.array(&format!("{name}/{tensor}")));
        let shape = a.shape.clone();
        for (i, [alpha, beta]) in [[0.3, 0.25], [0.75, 0.5]].into_iter().enumerate() {
            let check = |method: Method, params: &[f64], ulps: i64| {
                let name = format!("{method}/{tensor}/{i}");
                let two = method.info().parents == Parents::Two;
                let parents: &[&[f32]] = if two { &[&a.data, &b.data] } else { &[&a.data, &b.data, &c.data] };
                let found = merged(method, &shape, parents, params, None);
                check(&name, &found, &case.array(&name).data, ulps);
            };
            check(Method::SumTwice, &[alpha, beta], 0);
            check(Method::TripleSum, &[alpha, beta], 0);
            check(Method::TrainDifference, &[alpha], 0);
            check(Method::TensorSum, &[alpha, beta], 0);
            check(Method::Clip, &[], 0);
            check(Method::TopK, &[alpha, beta], 0);
            check(Method::Ties, &[alpha, beta], 0);
            check(Method::Breadcrumbs, &[alpha, beta, 0.1], 0);
            check(Method::SmoothAdd, &[alpha], 1);
            check(Method::Slerp, &[alpha], 1);
            check(Method::Geometric, &[alpha], 1);
            check(Method::MultiplyDifference, &[alpha, beta], 1);
            check(Method::Perpendicular, &[alpha], 1);
            check(Method::ModelStock, &[], 1);
        }
    }
}

/// The same parents through the original packages, not through formulas restated.
#[test]
fn methods_are_those_of_the_original_packages() {
    let (inputs, case) = (Case::open("merger/methods"), Case::open("merger/originals"));
    let (alpha, beta) = (0.3, 0.25);
    for tensor in TENSORS {
        let [a, b, c] = ["a", "b", "c"].map(|name| inputs.array(&format!("{name}/{tensor}")));
        let found = |method: Method, params: &[f64]| {
            let two = method.info().parents == Parents::Two;
            let parents: &[&[f32]] = if two { &[&a.data, &b.data] } else { &[&a.data, &b.data, &c.data] };
            let expected = case.array(&format!("{method}/{tensor}")).data;
            (merged(method, &a.shape, parents, params, None), expected)
        };
        for (method, params, ulps) in [
            (Method::WeightedSum, &[alpha][..], 0),
            (Method::AddDifference, &[alpha], 0),
            (Method::SumTwice, &[alpha, beta], 0),
            (Method::TripleSum, &[alpha, beta], 0),
            (Method::TensorSum, &[alpha, beta], 0),
            (Method::TopK, &[alpha, beta], 0),
            (Method::Clip, &[], 0),
            (Method::Ties, &[alpha, beta], 0),
            (Method::Breadcrumbs, &[alpha, beta, 0.1], 0),
            (Method::Slerp, &[alpha], 1),
            (Method::Geometric, &[alpha], 1),
            (Method::Perpendicular, &[alpha], 1),
        ] {
            let (found, expected) = found(method, params);
            check(&format!("{method}/{tensor}"), &found, &expected, ulps);
        }
        // Powers in fp32, a division in another order, differences in f64: some units of the largest number involved.
        for (method, params) in [
            (Method::MultiplyDifference, &[alpha, beta][..]),
            (Method::TrainDifference, &[alpha]),
            (Method::ModelStock, &[]),
        ] {
            let (found, expected) = found(method, params);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let size =
                    [a.data[i], b.data[i], c.data[i]].into_iter().fold(expected.abs(), |n, x| n.max(x.abs()));
                let apart = (found - expected).abs();
                assert!(
                    apart <= 2.0 * f32::EPSILON * size,
                    "{method}/{tensor} {i}: {found}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn what_is_dropped_at_random_is_dropped_as_in_the_originals() {
    let case = Case::open("merger/methods");
    for tensor in TENSORS {
        let array = |name: &str| case.array(&format!("{name}/{tensor}"));
        let [a, b, c] = ["a", "b", "c"].map(array);
        let row = if a.shape.len() == 1 { a.data.len() } else { a.shape[1..].iter().product() };
        let mask = [0, 1].map(|other| case.array(&format!("mask/{tensor}/{other}")).data);
        let chance = [0, 1].map(|other| case.array(&format!("chance/{tensor}/{other}")).data);
        let mut found = a.data.clone();
        dare(&mut found, &[&b.data, &c.data], 0.7, 0.4, |other, i| mask[other][i] == 1.0);
        check("dare", &found, &array("dare").data, 0);
        let mut found = a.data.clone();
        let params = DellaParams { multiplier: 0.7, density: 0.4, epsilon: 0.2 };
        della(&mut found, &[&b.data, &c.data], params, row, |other, i, found| {
            assert!((found - chance[other][i]).abs() <= f32::EPSILON, "{found} {}", chance[other][i]);
            mask[other][i] == 1.0
        });
        check("della", &found, &array("della").data, 1);
    }
}

#[test]
fn mixes_by_cosine_look_at_the_whole_model() {
    let case = Case::open("merger/methods");
    for method in [Method::CosineA, Method::CosineB] {
        let tensors = TENSORS.map(|tensor| ["a", "b"].map(|name| case.array(&format!("{name}/{tensor}"))));
        let found = tensors.each_ref().map(|[a, b]| {
            let block = 2 * a.shape[1..].iter().product::<usize>() + 1;
            similarities(method, &Memory { shape: &a.shape, values: vec![&a.data, &b.data], block }).unwrap()
        });
        let pooled = found.iter().flat_map(|found| found.pooled.clone()).collect();
        let range = Range::of(pooled).unwrap();
        for ((tensor, [a, b]), found) in TENSORS.iter().zip(&tensors).zip(&found) {
            let state = State::Columns(range.shares(&found.combined, 0.3));
            let merged = merged(method, &a.shape, &[&a.data, &b.data], &[0.3], Some(&state));
            let expected = case.array(&format!("{method}/{tensor}")).data;
            // k is a difference of numbers near each other, and A and B may cancel: a unit of the larger of them.
            for (i, (found, expected)) in merged.iter().zip(&expected).enumerate() {
                let size = a.data[i].abs().max(b.data[i].abs()) * 2.0 * f32::EPSILON;
                assert!(
                    (found - expected).abs() <= size,
                    "{method} {tensor} {i}: {found}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn a_lora_adds_the_product_of_its_matrices() {
    let case = Case::open("merger/methods");
    for tensor in ["linear", "conv"] {
        let [up, down, expected] =
            ["lora_up", "lora_down", "lora"].map(|name| case.array(&format!("{name}/{tensor}")).data);
        let delta = LoraDelta { up, down, rank: 4, scale: 0.5 };
        for len in [1, 7, expected.len()] {
            let mut found = vec![0.0; expected.len()];
            for (i, found) in found.chunks_mut(len).enumerate() {
                delta.read(i * len, found);
            }
            // Four products that may cancel: a unit of the largest sum.
            let size = expected.iter().fold(0.0_f32, |size, x| size.max(x.abs())) * f32::EPSILON;
            assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() <= size));
        }
    }
}

fn write(path: &PathBuf, seed: u32, precision: Precision) {
    let shapes: BTreeMap<_, _> = keys::all(&model()).into_iter().map(|key| (key.ldm, key.shape)).collect();
    let mut source = |name: &str| -> vodka_checkpoint::Result<vodka_checkpoint::Values> {
        let shape = shapes[name].clone();
        let value = |i: usize| {
            let noise = |seed: u32| {
                ((i as u32).wrapping_mul(seed).wrapping_add(name.len() as u32).wrapping_mul(2_654_435_761)
                    >> 8) as f32
                    / (1 << 23) as f32
                    - 1.0
            };
            noise(3) + 0.25 * noise(2 * seed + 5)
        };
        Ok((shape.clone(), (0..shape.iter().product()).map(value).collect()))
    };
    write_checkpoint(path, &model(), precision, &BTreeMap::new(), &mut source).unwrap();
}

fn recipe(dir: &std::path::Path, method: Method, others: usize) -> Recipe {
    let paths =
        ["a", "b", "c"][..1 + others].iter().map(|name| dir.join(format!("{name}.safetensors"))).collect();
    let params = method.info().params.iter().map(|param| (param.name.to_owned(), vec![0.3.into()]));
    let mut recipe =
        Recipe::of_one(method, paths, &params.collect::<Vec<_>>(), Some(7), dir.join("out.safetensors"))
            .unwrap();
    recipe.outputs[0].vae = VaePolicy::Merge;
    recipe
}

/// All methods of checkpoints, in files of every type, and by any number of threads.
#[test]
fn the_engine_does_what_the_kernels_do() {
    for precision in [Precision::F16, Precision::BF16, Precision::F32] {
        let dir = tempfile::tempdir().unwrap();
        for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
            write(&dir.path().join(format!("{name}.safetensors")), seed, precision);
        }
        let open = |name: &str| Checkpoint::open(dir.path().join(format!("{name}.safetensors"))).unwrap();
        let parents = ["a", "b", "c"].map(open);
        for info in METHODS.iter().filter(|info| info.parents != Parents::Loras) {
            let others = info.parents.least().max(2) - 1;
            let recipe = recipe(dir.path(), info.method, others);
            let bytes = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let plan = recipe.plan().unwrap();
                pool.install(|| run(&plan, &Interrupt::new(), &mut |_| ()).unwrap());
                let bytes = std::fs::read(dir.path().join("out.safetensors")).unwrap();
                std::fs::remove_file(dir.path().join("out.safetensors")).unwrap();
                bytes
            };
            let first = bytes(3);
            if precision == Precision::F16 {
                assert!(bytes(1) == first, "{}: one thread and three", info.name);
            }
            if info.passes == Passes::Model || info.seeded {
                continue;
            }
            std::fs::write(dir.path().join("out.safetensors"), &first).unwrap();
            let out = open("out");
            for key in keys::all(&model()) {
                let values: Vec<_> = parents[..1 + others]
                    .iter()
                    .map(|parent| parent.tensor(&key.ldm).unwrap().to_f32())
                    .collect();
                let values: Vec<_> = values.iter().map(Vec::as_slice).collect();
                let params = vec![0.3; info.params.len()];
                let expected = merged(info.method, &key.shape, &values, &params, None);
                let mut rounded = vec![0; expected.len() * precision.size()];
                precision.encode(&expected, &mut rounded);
                assert!(
                    *out.tensor(&key.ldm).unwrap().data == *rounded,
                    "{} {precision} {}",
                    info.name,
                    key.ldm
                );
            }
        }
    }
}
