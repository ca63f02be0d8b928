//! Files of ESRGAN upscalers: the ways of naming, what shapes tell, and what is none.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs, path::Path};

use vodka_checkpoint::{Checkpoint, RrdbConfig, SafetensorsWriter, TensorSpec, Upscaler, WeightFile};
use vodka_testkit::{fixture, model};

/// Writes the tensors of the fixture `body.pth` under other names, without those that get none.
fn write(path: &Path, rename: impl Fn(&str) -> Option<String>) {
    let file = WeightFile::open(fixture("sd15/rrdb/body.pth")).unwrap();
    let names: Vec<_> = file.names().filter_map(|name| Some((name, rename(name)?))).collect();
    let spec = |(name, renamed): &(&str, String)| {
        let tensor = file.tensor(name).unwrap();
        TensorSpec { name: renamed.clone(), dtype: tensor.dtype, shape: tensor.shape }
    };
    let specs = names.iter().map(spec).collect();
    let writer = SafetensorsWriter::create(path, specs, &BTreeMap::new()).unwrap();
    for (i, (name, _)) in names.iter().enumerate() {
        writer.write_at(i, 0, &file.tensor(name).unwrap().data).unwrap();
    }
    writer.commit().unwrap();
}

fn trunk(name: &str) -> String {
    let names = [("conv_body", "trunk_conv"), ("conv_hr", "HRconv"), ("conv_up", "upconv")];
    let name = names.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to));
    name.replace("body.", "RRDB_trunk.").replace("rdb", "RDB")
}

#[test]
fn one_network_has_many_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let expected = RrdbConfig { features: 3, growth: 2, blocks: 2, doublings: 2, unshuffle: 1, plus: false };
    let original = Upscaler::open(fixture("sd15/rrdb/body.pth")).unwrap();
    assert_eq!((original.config(), original.config().scale()), (&expected, 4));
    let check = |rename: &dyn Fn(&str) -> String| {
        write(&path, |name| Some(rename(name)));
        let found = Upscaler::open(&path).unwrap();
        assert_eq!(found.config(), &expected);
        for (name, _) in expected.weights() {
            assert_eq!(found.tensor(&name).unwrap(), original.tensor(&name).unwrap(), "{name}");
        }
        found.check_finite().unwrap();
    };
    check(&trunk);
    check(&|name| format!("module.{name}"));
    check(&|name| format!("netG.{}", trunk(name)));
    let numbered = Upscaler::open(fixture("sd15/rrdb/numbered.pth")).unwrap();
    assert_eq!(numbered.config(), &expected);
    let (half, full) = (numbered.tensor("conv_up2.bias"), original.tensor("conv_up2.bias"));
    let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-3;
    assert!(half.unwrap().to_f32().iter().zip(&full.unwrap().to_f32()).all(near));
}

#[test]
fn what_is_no_upscaler_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let said = |path: &Path| Upscaler::open(path).unwrap_err().to_string();
    assert!(
        said(&model("base")).ends_with("is a Stable Diffusion 1.x checkpoint, expected an ESRGAN upscaler")
    );
    write(&path, |name| (name == "conv_last.bias").then(|| "lora_unet_x.lora_up.weight".to_owned()));
    assert!(said(&path).ends_with("is a LoRA, expected an ESRGAN upscaler"), "{}", said(&path));
    write(&path, |name| Some(format!("other.{name}")));
    assert!(said(&path).contains("is no diffusion model (it begins with other."), "{}", said(&path));
    write(&path, |name| (name == "conv_last.bias").then(|| name.to_owned()));
    assert!(said(&path).contains("no diffusion model (it begins with conv_last.bias)"), "{}", said(&path));
    write(&path, |name| (name != "body.1.rdb2.conv3.bias").then(|| name.to_owned()));
    assert!(said(&path).ends_with("1 missing: body.1.rdb2.conv3.bias"), "{}", said(&path));
    write(&path, |name| (name != "conv_first.weight").then(|| name.to_owned()));
    assert!(said(&path).ends_with("1 missing: conv_first.weight"), "{}", said(&path));
    write(&path, |name| Some(if name == "conv_hr.bias" { "conv_hrr.bias" } else { name }.to_owned()));
    assert!(said(&path).ends_with("1 missing: conv_hr.bias; 1 unexpected: conv_hrr.bias"), "{}", said(&path));
    let swap = |name: &str| match name {
        "conv_last.weight" => "conv_first.weight".to_owned(),
        "conv_first.weight" => "conv_last.weight".to_owned(),
        "conv_up1.weight" => "body.0.rdb1.conv1.weight".to_owned(),
        "body.0.rdb1.conv1.weight" => "conv_up1.weight".to_owned(),
        name => name.to_owned(),
    };
    write(&path, |name| Some(swap(name)));
    let text = said(&path);
    assert!(text.contains(" of another shape: body.0.rdb1.conv1.bias ([2], expected [3]), "), "{text}");
    let bytes = fs::read(fixture("sd15/rrdb/body.pth")).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(said(&path).contains("is not a whole zip archive"), "{}", said(&path));
    let error = Checkpoint::open(fixture("sd15/rrdb/body.pth")).unwrap_err().to_string();
    assert!(error.ends_with("is an ESRGAN upscaler, expected a Stable Diffusion 1.x checkpoint"), "{error}");
}
