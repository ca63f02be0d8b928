//! Files that are written in any order.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, fs, thread};

use proptest::prelude::*;
use safetensors::SafeTensors;
use vodka_checkpoint::{
    Dtype, Precision, SafetensorsWriter, TensorSpec, WeightFile, check_free_space, in_file_order,
};

fn specs() -> Vec<TensorSpec> {
    let spec =
        |name: &str, dtype, shape: &[usize]| TensorSpec { name: name.into(), dtype, shape: shape.to_vec() };
    let mut specs = vec![
        spec("b", Dtype::F16, &[3, 5]),
        spec("empty", Dtype::F16, &[0]),
        spec("a", Dtype::F16, &[7]),
        spec("ids", Dtype::I64, &[1, 4]),
        spec("c", Dtype::F32, &[]),
    ];
    in_file_order(&mut specs);
    specs
}

/// Bytes that differ from tensor to tensor.
fn bytes(index: usize, spec: &TensorSpec) -> Vec<u8> {
    (0..spec.bytes()).map(|i| (i as u8).wrapping_mul(7).wrapping_add(index as u8)).collect()
}

#[test]
fn tensors_are_written_in_any_order_by_several_threads() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.safetensors");
    let metadata = BTreeMap::from([("author".to_owned(), "nobody".to_owned())]);
    let names: Vec<_> = specs().into_iter().map(|spec| spec.name).collect();
    assert_eq!(names, ["ids", "c", "a", "b", "empty"]);
    let writer = SafetensorsWriter::create(&path, specs(), &metadata).unwrap();
    thread::scope(|scope| {
        for (index, spec) in writer.specs().iter().enumerate().rev() {
            let writer = &writer;
            scope.spawn(move || {
                for (start, byte) in bytes(index, spec).into_iter().enumerate().rev() {
                    writer.write_at(index, start as u64, &[byte]).unwrap();
                }
            });
        }
    });
    assert!(!path.exists(), "nothing is there before the end");
    let places: Vec<_> = (0..5).map(|index| writer.place(index)).collect();
    assert_eq!(places[0].offset, writer.header_bytes());
    assert_eq!(places[4].offset + places[4].bytes, writer.file_bytes());
    writer.commit().unwrap();

    let written = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&written).unwrap();
    for (index, spec) in specs().iter().enumerate() {
        let tensor = file.tensor(&spec.name).unwrap();
        assert_eq!((tensor.shape(), tensor.data()), (&spec.shape[..], &bytes(index, spec)[..]));
    }
    let file = WeightFile::open(&path).unwrap();
    assert_eq!(file.metadata()["author"], "nobody");
    for (index, place) in places.into_iter().enumerate() {
        assert_eq!(file.info(&specs()[index].name).unwrap().place, Some(place));
    }

    // Runs over several neighbours, cut anywhere, make the same file.
    let again = dir.path().join("again.safetensors");
    let writer = SafetensorsWriter::create(&again, specs(), &metadata).unwrap();
    let all: Vec<_> = specs().iter().enumerate().flat_map(|(index, spec)| bytes(index, spec)).collect();
    let first = writer.place(0).bytes as usize;
    let cut = first + bytes(1, &specs()[1]).len() / 2;
    writer.write_run(1, (cut - first) as u64, &all[cut..]).unwrap();
    writer.write_run(0, 0, &all[..cut]).unwrap();
    for (index, spec) in specs().iter().enumerate() {
        assert_eq!(writer.read_back(index).unwrap(), bytes(index, spec));
    }
    writer.commit().unwrap();
    assert_eq!(fs::read(&again).unwrap(), written);
}

#[test]
fn a_writer_that_is_given_up_leaves_the_target_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.safetensors");
    fs::write(&path, "as it was").unwrap();
    drop(SafetensorsWriter::create(&path, specs(), &BTreeMap::new()).unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "as it was");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_file_larger_than_the_disk_is_not_begun() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.safetensors");
    let large = vec![TensorSpec { name: "w".into(), dtype: Dtype::F32, shape: vec![1 << 30, 1 << 20] }];
    let error = SafetensorsWriter::create(&path, large, &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("it needs 4503599627370") && error.ends_with(" are free"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    check_free_space(&path, 1).unwrap();
}

proptest! {
    #[test]
    fn values_are_rounded_to_the_nearest(bits in proptest::collection::vec(any::<u32>(), 1..40), odd in any::<bool>()) {
        let values: Vec<_> = bits.into_iter().map(f32::from_bits).collect();
        let start = usize::from(odd);
        let mut buffer = vec![0; start + 2 * values.len()];
        let half = |bytes: &[u8]| half::f16::from_le_bytes([bytes[0], bytes[1]]);
        Precision::F16.encode(&values, &mut buffer[start..]);
        for (value, bytes) in values.iter().zip(buffer[start..].chunks(2)) {
            let expected = half::f16::from_f32(*value);
            prop_assert!(half(bytes) == expected || value.is_nan() && half(bytes).is_nan());
            prop_assert_eq!(value.is_finite() && half(bytes).is_infinite(), value.is_finite() && value.abs() >= Precision::F16.overflow());
        }
        Precision::BF16.encode(&values, &mut buffer[start..]);
        for (value, bytes) in values.iter().zip(buffer[start..].chunks(2)) {
            let found = half::bf16::from_le_bytes([bytes[0], bytes[1]]);
            prop_assert!(found == half::bf16::from_f32(*value) || value.is_nan() && found.is_nan());
            prop_assert_eq!(value.is_finite() && found.is_infinite(), value.is_finite() && value.abs() >= Precision::BF16.overflow());
        }
    }
}
