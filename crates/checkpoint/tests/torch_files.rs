//! What `torch.save` writes, and what nobody should run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, io::Write, path::Path};

use safetensors::SafeTensors;
use vodka_checkpoint::{Dtype, Format, WeightFile};

fn fixture(name: &str) -> std::path::PathBuf {
    vodka_testkit::fixture(&format!("checkpoint/formats/{name}"))
}

/// Every tensor is that of the golden, bit for bit.
fn check(name: &str, format: Format) -> WeightFile {
    let golden = fs::read(fixture("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&golden).unwrap();
    let file = WeightFile::open(fixture(name)).unwrap();
    assert_eq!(file.format(), format);
    assert_eq!(file.names().count(), golden.len());
    for (tensor, expected) in golden.iter() {
        let found = file.tensor(tensor).unwrap();
        assert_eq!(found.dtype.name(), format!("{:?}", expected.dtype()), "{tensor}");
        assert_eq!(
            (&found.shape[..], &found.data[..]),
            (expected.shape(), expected.data()),
            "{name}: {tensor}"
        );
        let info = file.info(tensor).unwrap();
        assert_eq!((info.dtype, &info.shape), (found.dtype, &found.shape));
        if let Some(place) = info.place {
            let mut bytes = vec![0; place.bytes as usize];
            file.read_at(place.offset, &mut bytes).unwrap();
            assert_eq!(bytes, &found.data[..], "{name}: {tensor} with plain reads");
        }
    }
    file
}

#[test]
fn both_formats_of_pytorch_hold_what_was_saved() {
    for (name, format) in [("zip.ckpt", Format::TorchZip), ("legacy.ckpt", Format::TorchLegacy)] {
        let file = check(name, format);
        let left_over =
            ["callbacks", "epoch", "global_step", "lr_schedulers", "nested", "pytorch-lightning_version"];
        assert_eq!(file.left_over(), left_over);
        assert_eq!(file.info("position_ids").unwrap().dtype, Dtype::I64);
        assert!(file.info("rows").unwrap().place.is_some());
        assert!(file.info("columns").unwrap().place.is_none());
    }
}

#[test]
fn an_archive_that_somebody_compressed_is_read() {
    let file = check("deflated.ckpt", Format::TorchZip);
    assert!(file.info("half").unwrap().place.is_none());
}

/// What opening a file with these bytes says.
fn said(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("FILE");
    fs::write(&path, bytes).unwrap();
    said_of(&path)
}

fn said_of(path: &Path) -> String {
    let error = WeightFile::open(path).unwrap_err();
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}").replace(&path.display().to_string(), "FILE")
}

#[test]
fn a_pickle_that_wants_to_run_something_is_refused_by_name() {
    let refused = |module: &str| {
        format!(
            "`FILE` is not a pickle that can be read: it wants to import `{module}.system`, which no checkpoint \
             needs: refused, nothing was run"
        )
    };
    assert_eq!(said_of(&fixture("hostile.ckpt")), refused("posix"));
    assert_eq!(said_of(&fixture("hostile.pkl")), refused("posix"));
    // By hand: protocol 2 as Python 2 wrote it, and the old instruction that calls at once.
    assert_eq!(said(b"\x80\x02cos\nsystem\n(S'true'\ntR."), refused("os"));
    let inst = said(b"\x80\x02(S'true'\nios\nsystem\n.");
    assert_eq!(inst, refused("os"));
    let eval = said(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.....");
    assert!(eval.contains("it wants to import `builtins.eval`"), "{eval}");
    // What is known cannot be turned into something else.
    let get = said(b"\x80\x02(cos.path\njoin\nS'x'\no.........");
    assert!(get.contains("it wants to import `os.path.join`"), "{get}");
    let call = said(b"\x80\x02X\x01\x00\x00\x00x)R.....");
    assert!(call.contains("it calls text at byte 9, expected a known class"), "{call}");
    assert!(!Path::new("/tmp/vodka-was-here").exists());
}

#[test]
fn damaged_pickles_are_told_apart() {
    let pickle = |rest: &[u8]| {
        let said = said(&[b"\x80\x02".as_slice(), rest, b"........"].concat());
        said.strip_prefix("`FILE` is not a pickle that can be read: ").unwrap_or(&said).to_owned()
    };
    assert_eq!(pickle(b"}."), "`FILE` is a pickle, but not one that PyTorch saved");
    assert_eq!(pickle(b"X\xff\xff\xff\xff"), "the pickle is cut short at byte 15");
    assert_eq!(pickle(b"X\x02\x00\x00\x00\xff\xfe."), "text that is not UTF-8 at byte 7");
    assert_eq!(pickle(b"0"), "the pickle instruction `0` at byte 2 has no value");
    assert_eq!(pickle(b"h\x07."), "the pickle instruction `h` at byte 2 has no such value");
    assert_eq!(pickle(b"u"), "the pickle instruction `u` at byte 2 has no mark");
    assert_eq!(pickle(b"}(K\x01u"), "the pickle instruction `u` at byte 6 has no value for every key");
    assert_eq!(pickle(b"I1x\n."), "`1x` at byte 2 is no number");
    // A memo index of four billion costs nothing; a pickle may be as deep as it is long.
    assert_eq!(pickle(b"}r\xff\xff\xff\xff."), "`FILE` is a pickle, but not one that PyTorch saved");
    let deep = [b"]".repeat(500_000), b"a".repeat(499_999), b".".to_vec()].concat();
    assert_eq!(pickle(&deep), "`FILE` is a pickle, but not one that PyTorch saved");
    let many = b"N".repeat((1 << 23) + 1);
    assert_eq!(pickle(&many), "the pickle has more than 8388608 values");
    // Copies of copies of one dictionary.
    let copies = [
        b"ccollections\nOrderedDict\nq\x00(".as_slice(),
        &b"K\x00K\x00".repeat(1000),
        b"dq\x01",
        &b"h\x00h\x01\x85R0".repeat(1000),
    ]
    .concat();
    assert!(pickle(&copies).contains("more than"), "{}", pickle(&copies));
}

#[test]
fn damaged_archives_are_told_apart() {
    let whole = fs::read(fixture("zip.ckpt")).unwrap();
    let cut = said(&whole[..whole.len() - 100]);
    assert!(cut.starts_with("`FILE` is not a whole zip archive: "), "{cut}");
    let whole = fs::read(fixture("legacy.ckpt")).unwrap();
    assert!(said(&whole[..whole.len() - 1]).starts_with("`FILE` is truncated: "));
    assert!(said(&whole[..300]).contains("the pickle is cut short at byte "));
    // Any byte of the table of contents may be wrong: an error, or another table, never a panic.
    let dir = tempfile::tempdir().unwrap();
    for name in ["zip.ckpt", "legacy.ckpt", "deflated.ckpt", "golden.safetensors"] {
        let whole = fs::read(fixture(name)).unwrap();
        for at in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x15;
            let path = dir.path().join(format!("{name}.{at}"));
            fs::write(&path, &bytes).unwrap();
            if let Ok(file) = WeightFile::open(&path) {
                for tensor in file.names() {
                    let _ = file.tensor(tensor);
                }
            }
            fs::remove_file(&path).unwrap();
        }
    }
}

/// An archive of entries that are compressed, each with the size that it claims to have.
fn deflated(entries: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data, claimed) in entries {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(data).unwrap();
        let data = encoder.finish().unwrap();
        let offset = bytes.len() as u32;
        // Version, flags, method, time, date, checksum, sizes, lengths of name and extra field.
        let mut header = [20_u16, 0, 8, 0, 0x21].map(u16::to_le_bytes).concat();
        header.extend([0, data.len() as u32, *claimed].map(u32::to_le_bytes).concat());
        header.extend([name.len() as u16, 0].map(u16::to_le_bytes).concat());
        bytes.extend([b"PK\x03\x04".as_slice(), &header, name.as_bytes(), &data].concat());
        let place = [&[0; 10], offset.to_le_bytes().as_slice()].concat();
        directory.extend([b"PK\x01\x02\x14\x00".as_slice(), &header, &place, name.as_bytes()].concat());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let place = [(directory.len() as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes()].concat();
    let end = [b"PK\x05\x06\0\0\0\0".as_slice(), &count, &count, &place, &[0, 0]].concat();
    [bytes, directory, end].concat()
}

#[test]
fn archives_that_grow_are_not_unpacked() {
    // It works at all: an empty dictionary.
    assert_eq!(said_or_open(&deflated(&[("a/data.pkl", b"\x80\x02}.", 4)])), "opened");
    let zeros = vec![0; 40 << 20];
    let bomb = deflated(&[("a/data.pkl", &zeros, 40 << 20)]);
    assert!(bomb.len() < 100_000);
    assert_eq!(said(&bomb), "`FILE`: its pickle has 41943040 bytes, at most 33554432 are read");
    // A claim that is too small, or too large for what is there.
    let entry = "`FILE`: the entry `data.pkl` of the archive cannot be read";
    assert_eq!(said(&deflated(&[("a/data.pkl", &zeros, 1000)])), entry);
    assert_eq!(said(&deflated(&[("a/data.pkl", b"\x80\x02}.", 30 << 20)])), entry);
    // Without entries it is no archive of PyTorch, nor anything else.
    assert!(said(&deflated(&[])).starts_with("`FILE` is not a safetensors file: "));
    let two = deflated(&[("a/data.pkl", b"\x80\x02}.", 4), ("b/data.pkl", b"\x80\x02}.", 4)]);
    assert!(said(&two).starts_with("`FILE` is a zip archive with 2 entries `data.pkl`, expected one"));
    let number = deflated(&[("a/data.pkl", b"\x80\x02K\x01.", 5)]);
    assert_eq!(said(&number), "`FILE` holds no dictionary of tensors");
    let script = deflated(&[("a/data.pkl", b"\x80\x02}.", 4), ("a/constants.pkl", b"\x80\x02}.", 4)]);
    assert!(said(&script).starts_with("`FILE` is a TorchScript archive"));
    let big = deflated(&[("a/data.pkl", b"\x80\x02}.", 4), ("a/byteorder", b"big", 3)]);
    assert_eq!(said(&big), "`FILE` is big-endian, expected little-endian");
}

fn said_or_open(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("FILE");
    fs::write(&path, bytes).unwrap();
    WeightFile::open(&path).map_or_else(
        |error| {
            let source = std::error::Error::source(&error);
            source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
        },
        |_| "opened".to_owned(),
    )
}

#[test]
fn tensors_larger_than_their_storage_are_refused() {
    // A dictionary with one float tensor of 2 elements over storage 0 of `numel` elements, of which the file has 8 bytes.
    let file = |numel: u8, offset: u8, shape: &[u8], stride: &[u8]| {
        let tuple = |items: &[u8]| {
            [b"(".as_slice(), &items.iter().flat_map(|i| [b'K', *i]).collect::<Vec<_>>(), b"t"].concat()
        };
        let pickle = [
            b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
                .as_slice(),
            b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK",
            &[numel],
            b"tQK",
            &[offset],
            &tuple(shape),
            &tuple(stride),
            b"\x89}tRs.",
        ]
        .concat();
        let data = [1_f32.to_le_bytes(), 2_f32.to_le_bytes()].concat();
        said_or_open(&deflated(&[("a/data.pkl", &pickle, pickle.len() as u32), ("a/data/0", &data, 8)]))
    };
    assert_eq!(file(2, 0, &[2], &[1]), "opened");
    let longer = file(1, 0, &[1], &[1]);
    assert!(
        longer.ends_with("the tensor `w` is of a storage of 4 bytes, of which 8 are compressed"),
        "{longer}"
    );
    let ends = |said: String, expected: &str| assert!(said.ends_with(expected), "{said}");
    ends(file(3, 0, &[2], &[1]), "the tensor `w` needs 12 bytes, its storage has 8");
    ends(file(2, 1, &[2], &[1]), "the tensor `w` needs 12 bytes, its storage has 8");
    ends(file(2, 0, &[2], &[9]), "the tensor `w` needs 40 bytes, its storage has 8");
    ends(file(2, 0, &[200, 200], &[0, 0]), "the tensor `w` of shape [200, 200] is larger than its storage");
    let strides = file(2, 0, &[2, 1], &[1]);
    assert!(strides.contains("the tensor described before byte "), "{strides}");
    assert!(strides.ends_with(" has not as many strides as axes"), "{strides}");
    ends(file(2, 0, &[0], &[1]), "opened");
}
