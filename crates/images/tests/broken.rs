//! Pictures that are cut short, damaged or too large.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;

use vodka_images::{
    DecodeOptions, Decoded, Error, Fault, Filter, Fit, Rgb, RgbImage, Square, decode, decode_bytes,
    decode_with, measure,
};
use vodka_testkit::fixture;

const FILTERS: [Filter; 4] = [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos, Filter::Area];

const FITS: [Fit; 5] =
    [Fit::Pad, Fit::ResizeThenPad, Fit::ResizeThenPadNearest, Fit::ResizeThenPadEdge, Fit::Squash];

/// The files of every format.
fn files() -> Vec<(String, Vec<u8>)> {
    let names = [
        "odd.png",
        "rgba16.png",
        "palette_key.png",
        "baseline.jpg",
        "progressive.jpg",
        "cmyk.jpg",
        "restart.jpg",
        "tall_chroma.jpg",
        "ycck.jpg",
        "grey.jpg",
        "lossless.webp",
        "lossy.webp",
        "animated.webp",
        "animated.gif",
        "clear.gif",
        "still.bmp",
        "palette.bmp",
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

/// What `fuzz/fuzz_targets/picture.rs` does for hours.
#[test]
fn damaged_bytes_never_end_the_process() {
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut decoded = 0;
    for (_, bytes) in files() {
        for round in 0..60 {
            let mut damaged = bytes.clone();
            for _ in 0..4 {
                let at = random(damaged.len());
                damaged[at] = random(256) as u8;
            }
            let reduce_to = [None, Some(5), Some(20)][round % 3];
            let options = DecodeOptions { max_pixels: 1 << 18, reduce_to, ..DecodeOptions::default() };
            let Ok(picture) = decode_bytes(&damaged, &options) else { continue };
            decoded += 1;
            squares_and_measures(&picture, 1 + random(30) as u32);
        }
    }
    assert!(decoded > 100, "only {decoded} damaged files could be decoded");
}

fn squares_and_measures(decoded: &Decoded, side_px: u32) {
    for filter in FILTERS {
        for fit in FITS {
            let square = Square { side_px, fit, filter, pad: Rgb([255, 0, 9]), under: Rgb([1, 2, 250]) };
            assert_eq!(square.of_decoded(decoded).dimensions(), (side_px, side_px));
        }
    }
    let tiles = measure(&decoded.picture).tiles;
    assert!(tiles.min <= tiles.median && tiles.median <= tiles.max, "{tiles:?}");
}

/// What every reader forgives: fill bytes and stray ones between the headers, and anything after the end.
#[test]
fn a_jpeg_may_be_untidy() {
    let options = DecodeOptions::default();
    let tidy = fs::read(fixture("images/awkward/baseline.jpg")).unwrap();
    let whole = decode_bytes(&tidy, &options).unwrap();
    // After the first segment, which follows the two bytes of the start.
    let at = 4 + usize::from(u16::from_be_bytes([tidy[4], tidy[5]]));
    for stray in [&[0xff, 0xff][..], &[0, 0, 0]] {
        let untidy = [&tidy[..at], stray, &tidy[at..], b"and more"].concat();
        assert!(decode_bytes(&untidy, &options).unwrap() == whole, "{stray:?}");
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

/// A PNG of this size.
fn drawing(width: u32, height: u32) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("strip.png");
    RgbImage::from_fn(width, height, |x, y| Rgb([(x / 5) as u8, (y / 7) as u8, 99])).save(&path).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn too_long_a_side_is_refused() {
    let options = DecodeOptions::default();
    for (width, height) in [(65_536, 1), (1, 65_536)] {
        let fault = decode_bytes(&drawing(width, height), &options).unwrap_err();
        let expected = format!("expected at most 65535 pixels a side, found {width} x {height}");
        assert_eq!(fault.reason(), expected);
    }
    assert_eq!(decode_bytes(&drawing(65_535, 1), &options).unwrap().width, 65_535);
}

/// A square costs as much as its pixels, the picture's, and those of one as high as the picture and as wide as the square.
#[test]
fn strips_are_pictures() {
    let (pad, under) = (Rgb([255, 0, 9]), Rgb([1, 2, 250]));
    for (width, height) in [(60_000, 1), (1, 60_000)] {
        let decoded = decode_bytes(&drawing(width, height), &DecodeOptions::default()).unwrap();
        for (fit, filter) in FITS.into_iter().flat_map(|fit| FILTERS.map(|filter| (fit, filter))) {
            // One of these is like a picture of 27 megapixels.
            if height > 1 && fit == Fit::Squash && filter != Filter::Bilinear {
                continue;
            }
            let square = Square { side_px: 448, fit, filter, pad, under }.of_decoded(&decoded);
            let is_ground = *square.get_pixel(0, 0) == pad;
            assert_eq!(
                is_ground,
                !matches!(fit, Fit::Squash | Fit::ResizeThenPadEdge),
                "{fit:?}, {filter:?}"
            );
        }
        measure(&decoded.picture);
    }
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
