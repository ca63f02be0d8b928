//! Pictures that are cut short, damaged or too large.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;

use vodka_images::{DecodeOptions, Error, Fault, decode, decode_bytes, decode_with};
use vodka_testkit::fixture;

/// The files of every format.
fn files() -> Vec<(String, Vec<u8>)> {
    let names = [
        "odd.png",
        "rgba16.png",
        "palette_key.png",
        "baseline.jpg",
        "progressive.jpg",
        "cmyk.jpg",
        "grey.jpg",
        "lossless.webp",
        "lossy.webp",
        "animated.webp",
        "animated.gif",
        "clear.gif",
        "still.bmp",
    ];
    names.map(|name| (name.to_owned(), fs::read(fixture("images/awkward").join(name)).unwrap())).to_vec()
}

#[test]
fn half_a_picture_is_an_error() {
    let options = DecodeOptions::default();
    for (name, bytes) in files() {
        let whole = decode_bytes(&bytes, &options).unwrap();
        let ends =
            (1..40).map(|part| bytes.len() * part / 40).chain(bytes.len().saturating_sub(30)..bytes.len());
        for end in ends {
            // What is cut off may be no part of the picture: a checksum, or the second frame.
            if let Ok(picture) = decode_bytes(&bytes[..end], &options) {
                assert!(picture == whole, "{name}: {end} of {} bytes make another picture", bytes.len());
            }
        }
    }
}

#[test]
fn damaged_bytes_never_end_the_process() {
    let options = DecodeOptions { max_pixels: 1 << 20, ..DecodeOptions::default() };
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for (_, bytes) in files() {
        for _ in 0..60 {
            let mut damaged = bytes.clone();
            for _ in 0..4 {
                let at = random(damaged.len());
                damaged[at] = random(256) as u8;
            }
            let _ = decode_bytes(&damaged, &options);
        }
    }
}

#[test]
fn too_many_pixels_are_refused_before_they_are_decoded() {
    let options = DecodeOptions { max_pixels: 97 * 61 - 1, ..DecodeOptions::default() };
    let error = decode_with(&fixture("images/awkward/odd.png"), &options).unwrap_err();
    let Error::Picture { path, source } = error else { panic!("{error}") };
    assert!(path.ends_with("odd.png"));
    assert_eq!(source.to_string(), "expected at most 5916 pixels, found 97 x 61");

    let mut bomb = fs::read(fixture("images/awkward/baseline.jpg")).unwrap();
    let frame = bomb.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    bomb[frame + 5..frame + 9].fill(0xff);
    let fault = decode_bytes(&bomb, &DecodeOptions::default()).unwrap_err();
    assert!(matches!(fault, Fault::TooLarge { width: 65_535, height: 65_535, .. }), "{fault}");
}

#[test]
fn a_picture_without_pixels_is_refused() {
    let gif = fs::read(fixture("images/awkward/clear.gif")).unwrap();
    // The width and the height of the logical screen, of two bytes each.
    for side in [6, 8] {
        let mut flat = gif.clone();
        flat[side..side + 2].fill(0);
        let fault = decode_bytes(&flat, &DecodeOptions::default()).unwrap_err();
        assert!(
            matches!(fault, Fault::NoPixels { width: 0, .. } | Fault::NoPixels { height: 0, .. }),
            "{fault}"
        );
    }
}

#[test]
fn the_world_s_bad_pictures_are_named() {
    let message = |name: &str| {
        let error = decode(&fixture("world/bad").join(name)).unwrap_err();
        let Error::Picture { path, source } = error else { panic!("{error}") };
        assert!(path.ends_with(name));
        source.reason()
    };
    assert_eq!(message("empty.jpg"), "the file is empty");
    assert_eq!(message("truncated.jpg"), "the JPEG file is truncated");
    assert!(
        message("text.png").starts_with("expected PNG, JPEG, WebP, GIF or BMP, found the text \"This is not")
    );
    let missing = decode("no/such.png".as_ref()).unwrap_err();
    assert_eq!(missing.to_string(), "cannot read the picture `no/such.png`");
}
