//! Aspect buckets: the few picture sizes that training batches have.

use std::collections::BTreeSet;

use serde::Serialize;

/// A picture size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Bucket {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

/// The landscape sizes of EveryDream2 by class, widest last; the square comes first and the transposes are implied.
const EVERYDREAM2: [(u32, &[(u32, u32)]); 6] = [
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
];

/// The buckets of a class resolution, in order of width.
///
/// Classes 448 to 768 are EveryDream2's own tables, where `stride` divides 64. For the others the rule is: the short
/// side goes from the class down to half of it in steps of 64 (for classes below 256, of an eighth of the class), the
/// long side is the largest multiple of the same step with an area of at most the square's; both ways round. Steps
/// are rounded up to a multiple of `stride`, the pixels that one position of the network's deepest level covers.
pub fn buckets(class: u32, stride: u32) -> Vec<Bucket> {
    let landscape = match EVERYDREAM2.iter().find(|(known, _)| *known == class && 64 % stride == 0) {
        Some((_, table)) => table.to_vec(),
        None => of_about_equal_area(class, stride),
    };
    let both = landscape
        .iter()
        .flat_map(|&(width, height)| [Bucket { width, height }, Bucket { width: height, height: width }]);
    both.collect::<BTreeSet<_>>().into_iter().collect()
}

fn of_about_equal_area(class: u32, stride: u32) -> Vec<(u32, u32)> {
    let step = if class < 256 { class / 8 } else { 64 }.next_multiple_of(stride);
    let shorts = (1..=class / step).map(|n| n * step).filter(|short| 2 * short >= class);
    shorts.map(|short| (class * class / short / step * step, short)).collect()
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
        buckets(class, stride).iter().map(|b| (b.width, b.height)).collect()
    }

    #[test]
    fn the_512_class_has_everydream2s_eleven_buckets() {
        let expected = [
            (256, 896),
            (256, 1024),
            (320, 768),
            (384, 640),
            (448, 576),
            (512, 512),
            (576, 448),
            (640, 384),
            (768, 320),
            (896, 256),
            (1024, 256),
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
                let buckets = buckets(class, stride);
                assert!(buckets.contains(&Bucket { width: class, height: class }), "{class}");
                for Bucket { width, height } in buckets {
                    let multiple = if class < 256 { 8 } else { 64 };
                    assert!(width % multiple == 0 && height % multiple == 0, "{class}: {width}x{height}");
                    assert!(width % stride == 0 && height % stride == 0, "{class}: {width}x{height}");
                    let area = f64::from(width * height) / f64::from(class * class);
                    assert!((0.5..1.03).contains(&area), "{class}: {width}x{height}: {area}");
                }
            }
        }
    }

    #[test]
    fn pictures_go_where_their_shape_is() {
        let buckets = buckets(512, 64);
        let nearest = |w, h| nearest(&buckets, w, h);
        assert_eq!(nearest(3000, 3000), Bucket { width: 512, height: 512 });
        assert_eq!(nearest(1920, 1080), Bucket { width: 640, height: 384 });
        assert_eq!(nearest(100, 1000), Bucket { width: 256, height: 1024 });
        assert_eq!(nearest(10000, 10), Bucket { width: 1024, height: 256 });
    }
}
