//! ESRGAN upscalers give what spandrel gives, from weights and from files.

use tch::{Device, Kind};
use vodka_checkpoint::{RrdbConfig, Upscaler};
use vodka_sd15::{Network, Rrdb};
use vodka_testkit::{Case, fixture};

use crate::common::{Golden, weight};

#[test]
fn upscalers_of_every_form() {
    let case = Case::open("sd15/rrdb");
    let base = RrdbConfig { features: 8, growth: 32, blocks: 1, doublings: 2, unshuffle: 1, plus: false };
    let cases = [
        ("x4", 4, RrdbConfig { blocks: 2, ..base }),
        ("x2", 2, RrdbConfig { features: 6, doublings: 1, ..base }),
        ("x8", 8, RrdbConfig { features: 4, doublings: 3, ..base }),
        ("x1", 1, RrdbConfig { features: 4, doublings: 0, ..base }),
        ("x2_unshuffle", 2, RrdbConfig { unshuffle: 2, ..base }),
        ("x1_unshuffle", 1, RrdbConfig { unshuffle: 4, ..base }),
        ("plus", 4, RrdbConfig { blocks: 2, plus: true, ..base }),
    ];
    for (name, scale, config) in cases {
        assert_eq!(config.scale(), scale);
        // Half of what goes into an activation is lost there; see generate.py.
        let source = |tensor: &str, shape: &[i64]| {
            Ok(weight(name, tensor, shape) * if shape.len() > 1 { 1.25 } else { 1.0 })
        };
        let mut network = Rrdb::new(&config, Device::Cpu, Kind::Float, &source).unwrap();
        let pixels = case.tensor(&format!("pixels.{name}"));
        case.check_tensor(&format!("output/{name}"), &network.forward(&pixels));
        network.channels_last();
        case.check_tensor(&format!("output/{name}"), &network.forward(&pixels));
        assert_eq!(network.state().len(), config.weights().len());
    }
}

#[test]
fn files_of_pytorch_are_upscalers() {
    let case = Case::open("sd15/rrdb");
    let pixels = case.tensor("pixels.file");
    let form = RrdbConfig { features: 3, growth: 2, blocks: 2, doublings: 2, unshuffle: 1, plus: false };
    for (file, output) in [("body.pth", "file"), ("numbered.pth", "half")] {
        let file = Upscaler::open(fixture(&format!("sd15/rrdb/{file}"))).unwrap();
        assert_eq!(file.config(), &form);
        let network = Rrdb::load(&file, Device::Cpu, Kind::Float).unwrap();
        case.check_tensor(&format!("output/{output}"), &network.forward(&pixels));
    }
}

#[test]
fn pictures_of_one_pixel_are_no_trouble() {
    for (unshuffle, doublings) in [(1, 2), (2, 2), (4, 2)] {
        let config = RrdbConfig { features: 4, growth: 2, blocks: 1, doublings, unshuffle, plus: false };
        let source = |tensor: &str, shape: &[i64]| Ok(weight("one", tensor, shape));
        let network = Rrdb::new(&config, Device::Cpu, Kind::Float, &source).unwrap();
        for (height, width) in [(1, 1), (1, 5), (3, 1), (2, 2)] {
            let pixels = tch::Tensor::ones([1, 3, height, width], (Kind::Float, Device::Cpu));
            let scale = config.scale();
            assert_eq!(network.forward(&pixels).size(), [1, 3, scale * height, scale * width]);
        }
    }
}
