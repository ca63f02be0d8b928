//! Parity with Pillow on awkward pictures: `fixtures/images/awkward`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::PathBuf;

use vodka_images::{Anchor, Picture, RgbImage, decode, fit_crop, flatten, resize_bicubic, white_square};
use vodka_testkit::Case;

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

#[test]
fn white_squares_of_lossless_pictures_are_exact() {
    let case = case();
    for name in group(&case, "exact") {
        let picture = decode(&file(&case, &name)).unwrap();
        check(&case, &format!("exact/{name}"), &white_square(&picture, 64));
    }
}

#[test]
fn jpegs_are_near() {
    let case = case();
    for name in group(&case, "jpeg") {
        let picture = decode(&file(&case, &name)).unwrap();
        check(&case, &format!("jpeg/{name}"), &picture.clone().into_rgb());
        check(&case, &format!("jpeg_square/{name}"), &white_square(&picture, 64));
    }
}

#[test]
fn lossy_webps_are_near() {
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
