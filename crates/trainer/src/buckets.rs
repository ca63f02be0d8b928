//! Aspect buckets: the few picture sizes that training batches have.

use serde::{Deserialize, Serialize};

/// A picture size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bucket {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

/// Pixels across and down.
type Size = (u32, u32);

/// The landscape sizes of EveryDream2 by class, widest last; the square comes first and the transposes are implied.
/// Source: victorchall/EveryDream2trainer, `data/aspects.py` at 5098db8 (2025-05); but for 320 and up from 1152 the same
/// at 974d3fa (2023-04).
const EVERYDREAM2: [(u32, &[Size]); 18] = [
    (256, &[(256, 256), (384, 192), (512, 128)]),
    (320, &[(320, 320), (384, 256), (448, 192), (576, 128)]),
    (384, &[(384, 384), (448, 320), (512, 256), (704, 192)]),
    (448, &[(448, 448), (512, 384), (640, 320), (768, 256)]),
    (512, &[(512, 512), (576, 448), (640, 384), (768, 320), (896, 256), (1024, 256)]),
    (576, &[(576, 576), (640, 512), (704, 448), (832, 384), (960, 320), (1152, 256)]),
    (
        640,
        &[(640, 640), (704, 576), (768, 512), (832, 448), (896, 448), (1024, 384), (1152, 320), (1280, 320)],
    ),
    (
        704,
        &[(704, 704), (768, 640), (832, 576), (960, 512), (1088, 448), (1152, 384), (1280, 384), (1280, 320)],
    ),
    (
        768,
        &[
            (768, 768),
            (832, 704),
            (896, 640),
            (960, 576),
            (1024, 576),
            (1152, 512),
            (1280, 448),
            (1408, 384),
            (1472, 320),
        ],
    ),
    (
        832,
        &[
            (832, 832),
            (896, 768),
            (960, 704),
            (1024, 640),
            (1152, 576),
            (1216, 512),
            (1344, 512),
            (1536, 448),
            (1600, 384),
        ],
    ),
    (896, &[(896, 896), (1024, 768), (1088, 704), (1216, 640), (1344, 576), (1536, 512), (1792, 448)]),
    // EveryDream2 has 1680, which is no multiple of 64, in place of 1664.
    (
        960,
        &[
            (960, 960),
            (1088, 832),
            (1152, 768),
            (1280, 704),
            (1408, 640),
            (1664, 576),
            (1792, 512),
            (2048, 448),
        ],
    ),
    (
        1024,
        &[
            (1024, 1024),
            (1152, 896),
            (1216, 832),
            (1344, 768),
            (1472, 704),
            (1600, 640),
            (1792, 576),
            (2048, 512),
        ],
    ),
    (
        1088,
        &[
            (1088, 1088),
            (1152, 1024),
            (1216, 896),
            (1408, 832),
            (1536, 768),
            (1664, 704),
            (1792, 640),
            (2048, 576),
            (2304, 512),
        ],
    ),
    (
        1152,
        &[
            (1152, 1152),
            (1280, 1024),
            (1344, 960),
            (1472, 896),
            (1536, 832),
            (1728, 768),
            (1856, 704),
            (2048, 640),
            (2304, 576),
        ],
    ),
    (
        1280,
        &[
            (1280, 1280),
            (1408, 1152),
            (1600, 1024),
            (1792, 896),
            (1920, 832),
            (2112, 768),
            (2304, 704),
            (2560, 640),
        ],
    ),
    (
        1408,
        &[
            (1408, 1408),
            (1536, 1280),
            (1664, 1152),
            (1920, 1024),
            (2048, 960),
            (2368, 832),
            (2560, 768),
            (2816, 704),
        ],
    ),
    (
        1536,
        &[
            (1536, 1536),
            (1728, 1344),
            (1792, 1280),
            (2048, 1152),
            (2304, 1024),
            (2432, 960),
            (2624, 896),
            (2816, 832),
            (3072, 768),
        ],
    ),
];

/// Portrait sizes that EveryDream2 has in place of a transpose, by what are evidently slips: class, the transpose, and
/// what is there.
const SLIPS: [(u32, Size, Size); 3] =
    [(320, (128, 576), (576, 640)), (1280, (1152, 1408), (1408, 1344)), (1408, (704, 2816), (704, 3072))];

/// The buckets of a class resolution: the square, then each landscape size with its portrait one, widest last.
///
/// Classes 256 to 1152, 1280, 1408 and 1536 are EveryDream2's own tables, where `stride` divides 64; with
/// `with_slips`, three portrait sizes in the classes 320, 1280 and 1408 are those that are written there, which are no
/// transposes (576 x 640, 1408 x 1344 and 704 x 3072). For the other classes the rule is: the short side goes from the
/// class down to half of it in steps of 64 (for classes below 256, of an eighth of the class), the long side is the
/// largest multiple of the same step with an area of at most the square's; both ways round. Steps are rounded up to a
/// multiple of `stride`, the pixels that one position of the network's deepest level covers.
pub fn buckets(class: u32, stride: u32, with_slips: bool) -> Vec<Bucket> {
    let landscape = match EVERYDREAM2.iter().find(|(known, _)| *known == class && 64 % stride == 0) {
        Some((_, table)) => table.to_vec(),
        None => of_about_equal_area(class, stride),
    };
    let mut buckets = Vec::new();
    for (width, height) in landscape {
        let slip = SLIPS.iter().find(|slip| with_slips && (slip.0, slip.1) == (class, (height, width)));
        let portrait = slip.map_or((height, width), |slip| slip.2);
        for (width, height) in [(width, height), portrait] {
            let bucket = Bucket { width, height };
            if !buckets.contains(&bucket) {
                buckets.push(bucket);
            }
        }
    }
    buckets
}

fn of_about_equal_area(class: u32, stride: u32) -> Vec<(u32, u32)> {
    let step = if class < 256 { class / 8 } else { 64 }.next_multiple_of(stride);
    let shorts = (1..=class / step).map(|n| n * step).filter(|short| 2 * short >= class);
    shorts.map(|short| (class * class / short / step * step, short)).rev().collect()
}

/// The bucket for a picture: the nearest by the ratio of width to height, as EveryDream2 chooses; of equally near
/// ones the first.
pub fn nearest(buckets: &[Bucket], width: u32, height: u32) -> Bucket {
    let ratio = f64::from(width) / f64::from(height);
    let distance = |bucket: &Bucket| (f64::from(bucket.width) / f64::from(bucket.height) - ratio).abs();
    *buckets.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).expect("every class has its square")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(class: u32, stride: u32) -> Vec<(u32, u32)> {
        buckets(class, stride, false).iter().map(|b| (b.width, b.height)).collect()
    }

    #[test]
    fn the_512_class_has_everydream2s_eleven_buckets() {
        let expected = [
            (512, 512),
            (576, 448),
            (448, 576),
            (640, 384),
            (384, 640),
            (768, 320),
            (320, 768),
            (896, 256),
            (256, 896),
            (1024, 256),
            (256, 1024),
        ];
        assert_eq!(sizes(512, 64), expected);
    }

    #[test]
    fn small_classes_have_buckets_of_about_equal_area() {
        let square_and_landscape: Vec<_> = sizes(64, 16).into_iter().filter(|(w, h)| w >= h).collect();
        assert_eq!(square_and_landscape, [(64, 64), (80, 48), (128, 32)]);
        assert_eq!(sizes(64, 64), [(64, 64)], "the full network has no other size this small");
    }

    #[test]
    fn every_bucket_fits_the_network_and_is_about_as_large_as_the_square() {
        for class in (64..=1536).step_by(64) {
            for stride in [8, 16, 32, 64] {
                let buckets = buckets(class, stride, false);
                assert!(buckets.contains(&Bucket { width: class, height: class }), "{class}");
                for Bucket { width, height } in buckets {
                    let multiple = if class < 256 { 8 } else { 64 };
                    assert!(width % multiple == 0 && height % multiple == 0, "{class}: {width}x{height}");
                    assert!(width % stride == 0 && height % stride == 0, "{class}: {width}x{height}");
                    let area = f64::from(width * height) / f64::from(class * class);
                    assert!((0.5..1.13).contains(&area), "{class}: {width}x{height}: {area}");
                }
            }
        }
    }

    #[test]
    fn every_class_of_everydream2_is_there() {
        // How many buckets `data/aspects.py` has for each.
        let counts = [
            (256, 5),
            (320, 7),
            (384, 7),
            (448, 7),
            (512, 11),
            (576, 11),
            (640, 15),
            (704, 15),
            (768, 17),
            (832, 17),
            (896, 13),
            (960, 15),
            (1024, 15),
            (1088, 17),
            (1152, 17),
            (1280, 15),
            (1408, 15),
            (1536, 17),
        ];
        for (class, count) in counts {
            let mended = sizes(class, 64);
            assert_eq!(mended.len(), count, "{class}");
            assert!(
                mended.iter().all(|(w, h)| mended.contains(&(*h, *w))),
                "{class}: no transpose is missing"
            );
            let there: Vec<_> = buckets(class, 64, true).iter().map(|b| (b.width, b.height)).collect();
            let changed: Vec<_> = there.iter().zip(&mended).filter(|(a, b)| a != b).collect();
            let expected = match class {
                320 => vec![(&(576, 640), &(128, 576))],
                1280 => vec![(&(1408, 1344), &(1152, 1408))],
                1408 => vec![(&(704, 3072), &(704, 2816))],
                _ => Vec::new(),
            };
            assert_eq!(changed, expected, "{class}");
        }
    }

    #[test]
    fn pictures_go_where_their_shape_is() {
        let buckets = buckets(512, 64, false);
        let nearest = |w, h| nearest(&buckets, w, h);
        assert_eq!(nearest(3000, 3000), Bucket { width: 512, height: 512 });
        assert_eq!(nearest(1920, 1080), Bucket { width: 640, height: 384 });
        assert_eq!(nearest(100, 1000), Bucket { width: 256, height: 1024 });
        assert_eq!(nearest(10000, 10), Bucket { width: 1024, height: 256 });
    }
}
