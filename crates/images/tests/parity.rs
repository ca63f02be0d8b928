//! Parity with Pillow and OpenCV on awkward pictures: `fixtures/images/awkward`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;

use vodka_images::{
    Anchor, DecodeOptions, Filter, Fit, Picture, Rgb, RgbImage, Square, decode, decode_bytes, decode_with,
    fit_crop, flatten, measure, resize_bicubic,
};
use vodka_testkit::Case;

const WHITE: Rgb<u8> = Rgb([255; 3]);

fn case() -> Case {
    Case::open("images/awkward")
}

fn file(case: &Case, name: &str) -> PathBuf {
    case.path().join(name)
}

fn check(case: &Case, name: &str, image: &RgbImage) {
    let values: Vec<f32> = image.as_raw().iter().map(|value| f32::from(*value)).collect();
    case.check(name, &values, &[image.height() as usize, image.width() as usize, 3]);
}

/// The names of the goldens in a group, without the group.
fn group(case: &Case, group: &str) -> Vec<String> {
    let prefix = format!("{group}/");
    let mut names: Vec<_> =
        case.names().iter().filter_map(|name| Some(name.strip_prefix(&prefix)?.to_owned())).collect();
    names.sort();
    assert!(!names.is_empty(), "no golden in {group}");
    names
}

fn size(name: &str) -> (u32, u32) {
    let (width, height) = name.split_once('x').unwrap();
    (width.parse().unwrap(), height.parse().unwrap())
}

/// The white square of the demo, or of kohya's script, by the filter.
fn white_square(side_px: u32, filter: Filter) -> Square {
    Square { side_px, fit: Fit::Pad, filter, pad: WHITE, under: WHITE }
}

/// The largest difference, and the mean one.
fn difference(ours: &RgbImage, golden: &[f32]) -> (f64, f64) {
    assert_eq!(ours.as_raw().len(), golden.len());
    let each = ours.as_raw().iter().zip(golden).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    each.clone().fold((0.0, 0.0), |(max, mean), d| (d.max(max), mean + d / golden.len() as f64))
}

/// The promise of each profile, from the file: `cargo test -p vodka-images --test parity -- --nocapture profiles`
/// prints the table.
#[test]
fn profiles_keep_their_promises() {
    let case = case();
    let full = DecodeOptions::default();
    println!("{:<10} {:>8} {:>6} {:>8} {:>12}", "profile", "pictures", "max", "mean", "worst mean");
    for (profile, golden, filter, fast, allowed) in [
        ("reference", "reference", Filter::Bicubic, false, (0.0, 0.0)),
        ("kohya", "kohya", Filter::Area, false, (0.0, 0.0)),
        ("fast", "reference", Filter::Bicubic, true, (f64::INFINITY, 1.0)),
    ] {
        let (mut count, mut max, mut sum, mut worst) = (0, 0_f64, 0.0, 0_f64);
        for name in group(&case, golden) {
            let expected = case.array(&format!("{golden}/{name}"));
            let side = expected.shape[0] as u32;
            let options = DecodeOptions { reduce_to: fast.then_some(2 * side), ..full };
            let decoded = decode_with(&file(&case, &name), &options).unwrap();
            if fast && decoded.reduction == 1 {
                continue;
            }
            let square = white_square(side, filter).of_decoded(&decoded);
            let (largest, mean) = difference(&square, &expected.data);
            assert!(
                largest <= allowed.0 && mean <= allowed.1,
                "{profile}: {name}: {largest}, on average {mean}"
            );
            (count, max, sum, worst) = (count + 1, max.max(largest), sum + mean, worst.max(mean));
        }
        assert!(count >= if fast { 3 } else { 40 }, "{profile}: {count} pictures");
        println!("{profile:<10} {count:>8} {max:>6} {:>8.4} {worst:>12.4}", sum / f64::from(count));
    }
}

#[test]
fn squares_of_448_are_exact() {
    let case = case();
    for (golden, filter) in [("reference448", Filter::Bicubic), ("kohya448", Filter::Area)] {
        for name in group(&case, golden) {
            let square = white_square(448, filter).of(&decode(&file(&case, &name)).unwrap());
            let rows = RgbImage::from_fn(448, 16, |x, y| *square.get_pixel(x, 28 * y));
            check(&case, &format!("{golden}/{name}"), &rows);
        }
    }
}

#[test]
fn every_fit_is_exact_with_every_filter() {
    let case = case();
    let fits = [
        ("pad", Fit::Pad),
        ("squash", Fit::Squash),
        ("resize_then_pad", Fit::ResizeThenPad),
        ("resize_then_pad_nearest", Fit::ResizeThenPadNearest),
        ("resize_then_pad_edge", Fit::ResizeThenPadEdge),
    ];
    let filters = [
        ("bilinear", Filter::Bilinear),
        ("bicubic", Filter::Bicubic),
        ("lanczos", Filter::Lanczos),
        ("area", Filter::Area),
    ];
    let (pad, under) = (Rgb([124, 116, 104]), Rgb([30, 80, 200]));
    for (fit_name, fit) in fits {
        for (filter_name, filter) in filters {
            let names = group(&case, &format!("square/{fit_name}/{filter_name}"));
            assert_eq!(names.len(), 4);
            for name in names {
                let picture = decode(&file(&case, &name)).unwrap();
                let square = Square { side_px: 24, fit, filter, pad, under }.of(&picture);
                check(&case, &format!("square/{fit_name}/{filter_name}/{name}"), &square);
            }
        }
    }
}

#[test]
fn measures_are_those_of_opencv_and_imagehash() {
    let case = case();
    for name in group(&case, "measures") {
        let measures = measure(&decode(&file(&case, &name)).unwrap());
        let tiles = measures.tiles;
        case.check(
            &format!("measures/{name}"),
            &[measures.sharpness, tiles.min, tiles.median, tiles.max],
            &[4],
        );
        if !case.names().contains(&format!("phash/{name}")) {
            continue;
        }
        let bits: Vec<f32> = (0..64).rev().map(|bit| (measures.phash >> bit & 1) as f32).collect();
        case.check(&format!("phash/{name}"), &bits, &[64]);
    }
}

/// A part of a pixel at an end of a reduced picture counts as a part, at whichever end it lies.
#[test]
fn reduced_jpegs_may_be_turned() {
    let jpeg = std::fs::read(file(&case(), "photo.jpg")).unwrap();
    for orientation in 1..=8 {
        let entry = [0x12, 1, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0];
        let exif = [&[0xff, 0xe1, 0, 34][..], b"Exif\0\0II*\0\x08\0\0\0\x01\0", &entry, &[0; 4]].concat();
        let turned = [&jpeg[..2], &exif, &jpeg[2..]].concat();
        let square = |reduce_to| {
            let options = DecodeOptions { reduce_to, ..DecodeOptions::default() };
            let decoded = decode_bytes(&turned, &options).unwrap();
            let size = if orientation < 5 { (300, 225) } else { (225, 300) };
            assert_eq!((decoded.width, decoded.height), size);
            white_square(48, Filter::Bicubic).of_decoded(&decoded)
        };
        let golden: Vec<f32> = square(None).as_raw().iter().map(|value| f32::from(*value)).collect();
        let (_, mean) = difference(&square(Some(96)), &golden);
        assert!(mean < 0.8, "orientation {orientation}: {mean}");
    }
}

/// Whether the chroma is halved in one direction only.
fn uneven(name: &str) -> bool {
    ["half_chroma.jpg", "tall_chroma.jpg"].contains(&name)
}

#[test]
fn reduced_jpegs_are_exact_and_tell_their_full_size() {
    let case = case();
    for by in [2, 4, 8] {
        for name in group(&case, &format!("reduced/{by}")) {
            let full = decode(&file(&case, &name)).unwrap();
            let longer = full.width().max(full.height());
            let options = DecodeOptions {
                reduce_to: Some(longer.div_ceil(if uneven(&name) { 2 * by } else { by })),
                ..DecodeOptions::default()
            };
            let decoded = decode_with(&file(&case, &name), &options).unwrap();
            assert_eq!((decoded.width, decoded.height), full.size());
            check(&case, &format!("reduced/{by}/{name}"), &decoded.picture.into_rgb());
        }
    }
    // Turned on its side, and no smaller than asked for.
    let options = DecodeOptions { reduce_to: Some(13), ..DecodeOptions::default() };
    let decoded = decode_with(&file(&case, "orientation_6.jpg"), &options).unwrap();
    assert_eq!((decoded.width, decoded.height, decoded.picture.size()), (24, 40, (12, 20)));
}

#[test]
fn jpegs_are_exact() {
    let case = case();
    for name in group(&case, "jpeg") {
        let picture = decode(&file(&case, &name)).unwrap();
        check(&case, &format!("jpeg/{name}"), &picture.into_rgb());
    }
}

#[test]
fn lossy_webps_are_exact() {
    let case = case();
    for name in group(&case, "webp") {
        let picture = decode(&file(&case, &name)).unwrap();
        check(&case, &format!("webp/{name}"), &picture.into_rgb());
    }
}

#[test]
fn resizing_is_exact_for_any_shape() {
    let case = case();
    let odd = decode(&file(&case, "odd.png")).unwrap().into_rgb();
    for name in group(&case, "resize") {
        let (width, height) = size(&name);
        check(&case, &format!("resize/{name}"), &resize_bicubic(&odd, width, height));
    }
    for name in group(&case, "fit") {
        let (width, height) = size(&name);
        check(&case, &format!("fit/{name}"), &fit_crop(&odd, width, height, Anchor::CENTRE));
    }
}

#[test]
fn every_value_at_every_alpha_is_exact() {
    let case = case();
    let Picture::Rgba(image) = decode(&file(&case, "flatten.png")).unwrap() else {
        panic!("expected transparency")
    };
    let values: Vec<f32> = flatten(&image).pixels().map(|pixel| f32::from(pixel.0[0])).collect();
    case.check("flatten", &values, &[256, 256]);
}
