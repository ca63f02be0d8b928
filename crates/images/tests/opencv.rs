//! Parity with OpenCV's resizing and blurring: `fixtures/images/opencv`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use vodka_images::{Rgb, RgbImage, blur_gaussian, resize_cubic, resize_nearest};
use vodka_testkit::Case;

/// As generate.py draws it.
fn picture(width: u32, height: u32) -> RgbImage {
    let value = |x: u32, y: u32, c: u32| ((x * 37 + y * 91 + c * 53 + x * y * 7) % 256) as u8;
    RgbImage::from_fn(width, height, |x, y| Rgb([0, 1, 2].map(|c| value(x, y, c))))
}

fn check(case: &Case, name: &str, image: &RgbImage) {
    let values: Vec<f32> = image.as_raw().iter().map(|value| f32::from(*value)).collect();
    case.check(name, &values, &[image.height() as usize, image.width() as usize, 3]);
}

#[test]
fn resizing_is_that_of_opencv() {
    let case = Case::open("images/opencv");
    let cases = [
        ("larger", (13, 9), (29, 20)),
        ("double", (8, 6), (16, 12)),
        ("wider", (7, 11), (31, 12)),
        ("line", (1, 5), (6, 11)),
        ("same", (6, 5), (6, 5)),
    ];
    for (name, (w, h), (width, height)) in cases {
        check(&case, &format!("cubic/{name}"), &resize_cubic(&picture(w, h), width, height));
        check(&case, &format!("nearest/{name}"), &resize_nearest(&picture(w, h), width, height));
    }
    check(&case, "nearest/smaller", &resize_nearest(&picture(29, 20), 13, 9));
}

#[test]
fn blurring_is_that_of_opencv() {
    let case = Case::open("images/opencv");
    let cases = [
        ("wide", (23, 17), 9.0),
        ("narrow", (16, 12), 0.8),
        ("small", (4, 3), 2.5),
        ("none", (5, 4), 0.01),
        ("pixel", (1, 3), 1.5),
    ];
    for (name, (width, height), sigma) in cases {
        check(&case, &format!("blur/{name}"), &blur_gaussian(&picture(width, height), sigma));
    }
}
