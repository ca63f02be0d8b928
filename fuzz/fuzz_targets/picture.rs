//! The way of a picture from the bytes of a file to what the tagger takes from it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vodka_images::{DecodeOptions, Filter, Fit, Rgb, Square, decode_bytes, measure};

const FITS: [Fit; 5] =
    [Fit::Pad, Fit::ResizeThenPad, Fit::ResizeThenPadNearest, Fit::ResizeThenPadEdge, Fit::Squash];

fuzz_target!(|data: &[u8]| {
    // The first byte chooses, so that a file is decoded once.
    let Some((&choice, bytes)) = data.split_first() else { return };
    let pick = usize::from(choice);
    let options = DecodeOptions {
        max_pixels: 1 << 18,
        reduce_to: [None, Some(8), Some(64)][pick % 3],
        ..DecodeOptions::default()
    };
    let Ok(decoded) = decode_bytes(bytes, &options) else { return };
    for filter in [Filter::Bilinear, Filter::Bicubic, Filter::Lanczos, Filter::Area] {
        for fit in FITS {
            let side_px = 1 + choice as u32 % 40;
            let square = Square { side_px, fit, filter, pad: Rgb([255, 0, 9]), under: Rgb([1, 2, 250]) };
            assert_eq!(square.of_decoded(&decoded).dimensions(), (side_px, side_px));
        }
    }
    let measures = measure(&decoded.picture);
    assert!(measures.tiles.min <= measures.tiles.max);
});
