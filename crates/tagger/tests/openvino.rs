//! OpenVINO against the original's scores. A file of its own, for a process holds one ONNX Runtime.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::thread;

use vodka_images::decode;
use vodka_tagger::{Error, Network, NetworkConfig, Provider, ProviderChoice, Tagger, TaggerConfig};
use vodka_testkit::{Case, fixture, runtime_dir};

#[test]
fn openvino_scores_as_the_original_does_from_several_threads() {
    let (provider, onnxruntime) = ProviderChoice::Only(Provider::OpenVino).resolve(&runtime_dir());
    let model = fixture("tagger-tiny/dynamic");
    let config =
        TaggerConfig { onnxruntime: onnxruntime.clone(), provider, threads: 2, ..TaggerConfig::new(model) };
    let tagger = Tagger::open(&config).unwrap();
    assert_eq!(tagger.provider(), Provider::OpenVino);
    let case = Case::open("tagger-tiny");
    for golden in case.names() {
        let name = golden.strip_prefix("scores/").unwrap();
        let picture = decode(&fixture(&format!("images/awkward/{name}"))).unwrap();
        let scores = tagger.score(&[tagger.prepare(&picture)]).unwrap();
        case.check(&golden, scores.as_slice().unwrap(), &[scores.ncols()]);
    }

    let config = NetworkConfig { onnxruntime, provider, lanes: 2, threads: 2 };
    let network = Network::open(&fixture("tagger-tiny/dynamic/model.onnx"), &config).unwrap();
    assert_eq!(network.lanes(), 2);
    assert!(network.nodes()["OpenVINOExecutionProvider"] > 0, "{:?}", network.nodes());
    let input =
        |seed: usize| -> Vec<f32> { (0..64 * 64 * 3).map(|i| ((i * (seed + 7)) % 256) as f32).collect() };
    let run = |seed| network.run(&input(seed), &[1, 64, 64, 3], &[0]).unwrap().remove(0);
    let expected: Vec<_> = (0..8).map(run).collect();
    thread::scope(|scope| {
        for first in 0..4 {
            let (run, expected) = (&run, &expected);
            scope.spawn(move || {
                for i in 0..40 {
                    assert_eq!(run((first + i) % 8), expected[(first + i) % 8]);
                }
            });
        }
    });
}

#[test]
fn a_network_that_openvino_cannot_run_is_an_error() {
    let (provider, onnxruntime) = ProviderChoice::Only(Provider::OpenVino).resolve(&runtime_dir());
    let config = NetworkConfig { onnxruntime, provider, lanes: 1, threads: 1 };
    let error = Network::open(&fixture("tagger-tiny/foreign/model.onnx"), &config).unwrap_err();
    assert!(matches!(error, Error::Unused { .. }), "{error}");
    let expected = "the execution provider `openvino` can run no part of `";
    assert!(error.to_string().starts_with(expected), "{error}");
}
