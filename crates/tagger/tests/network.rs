//! A network on the processor: what it says of itself, and runs from many threads at a time.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::thread;

use vodka_tagger::{Network, NetworkConfig, Provider, ndarray::ArrayD};
use vodka_testkit::{fixture, onnxruntime};

const SHAPE: [usize; 4] = [1, 64, 64, 3];

fn open(lanes: usize, threads: usize) -> Network {
    open_model("dynamic", lanes, threads)
}

fn open_model(name: &str, lanes: usize, threads: usize) -> Network {
    let config = NetworkConfig { onnxruntime: onnxruntime(), provider: Provider::Cpu, lanes, threads };
    Network::open(&fixture(&format!("tagger-tiny/{name}/model.onnx")), &config).unwrap()
}

/// Pixels that differ from seed to seed.
fn input(seed: usize) -> Vec<f32> {
    (0..SHAPE.iter().product()).map(|i: usize| ((i * (7 + seed) + i / 192 * 13) % 256) as f32).collect()
}

fn run(network: &Network, seed: usize) -> ArrayD<f32> {
    network.run(&input(seed), &SHAPE, &[0]).unwrap().remove(0)
}

#[test]
fn many_threads_get_what_one_gets() {
    let alone = open(1, 1);
    let expected: Vec<_> = (0..16).map(|seed| run(&alone, seed)).collect();
    assert_ne!(expected[0], expected[1], "the inputs tell the threads apart");
    for (lanes, threads) in [(4, 4), (3, 8), (1, 1)] {
        let network = open(lanes, threads);
        assert_eq!(network.lanes(), lanes);
        thread::scope(|scope| {
            for first in 0..8 {
                let (network, expected) = (&network, &expected);
                scope.spawn(move || {
                    for i in 0..40 {
                        let seed = (first * 5 + i) % expected.len();
                        let (found, expected) = (run(network, seed), &expected[seed]);
                        let furthest =
                            found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                        assert!(furthest < 1e-6, "{furthest} from seed {seed} alone");
                    }
                });
            }
        });
    }
}

#[test]
fn a_network_says_what_it_is() {
    let network = open(9, 2);
    assert_eq!(network.lanes(), 2, "no more than threads");
    assert_eq!(network.provider(), Provider::Cpu);
    assert!(network.nodes()["CPUExecutionProvider"] > 0);
    let [input] = network.inputs() else { panic!("{:?}", network.inputs()) };
    assert_eq!(input.dims, Some(vec![None, Some(64), Some(64), Some(3)]));
    assert_eq!(input.kind, "Tensor<f32>(N, 64, 64, 3)");
    assert_eq!(run(&network, 0).shape(), [1, 24]);
}

#[test]
fn a_run_that_fails_leaves_the_network_usable() {
    let network = open(1, 1);
    let before = run(&network, 3);
    let error = network.run(&[0.0; 12], &[1, 2, 2, 3], &[0]).unwrap_err();
    assert!(error.to_string().contains("ONNX Runtime fails on"), "{error}");
    assert_eq!(run(&network, 3), before);
}

#[test]
fn outputs_are_taken_by_their_index() {
    let network = open_model("foreign", 1, 1);
    assert_eq!(network.outputs().len(), 2);
    let twice: Vec<f32> = (0..16).map(|i| if i % 5 == 0 { 2.0 } else { 0.0 }).collect();
    let diagonals = |outputs: &[usize]| -> Vec<f32> {
        network.run(&twice, &[1, 4, 4], outputs).unwrap().iter().map(|output| output[[0, 3, 3]]).collect()
    };
    assert_eq!(diagonals(&[0, 1]), [0.5, 2.0]);
    assert_eq!(diagonals(&[1, 0]), [2.0, 0.5]);
    assert_eq!(diagonals(&[1]), [2.0]);
}
