//! Pixels as a network wants them.

use std::borrow::Borrow;

use vodka_images::RgbImage;

use crate::description::{Channels, Layout, TensorRules};

/// The input of a network: `(pixel / scale - mean[c]) / std[c]` in f32, for pictures that are all of one size.
/// // (N, H, W, 3) or (N, 3, H, W)
///
/// # Panics
/// When the pictures differ in size.
pub fn to_tensor(pictures: &[impl Borrow<RgbImage>], rules: &TensorRules) -> Vec<f32> {
    let size = pictures.first().map_or((0, 0), |picture| picture.borrow().dimensions());
    let area = size.0 as usize * size.1 as usize;
    let values = Values::new(rules);
    let mut tensor = vec![0.0; pictures.len() * area * 3];
    for (picture, part) in pictures.iter().zip(tensor.chunks_exact_mut((area * 3).max(1))) {
        let picture = picture.borrow();
        assert_eq!(picture.dimensions(), size, "the pictures of a batch are of one size");
        let pixels = || picture.as_raw().chunks_exact(3);
        match rules.layout {
            Layout::Nhwc => {
                for (pixel, out) in pixels().zip(part.chunks_exact_mut(3)) {
                    out.copy_from_slice(&[0, 1, 2].map(|channel| values.at(pixel, channel)));
                }
            }
            Layout::Nchw => {
                for (channel, plane) in part.chunks_exact_mut(area).enumerate() {
                    for (pixel, out) in pixels().zip(plane) {
                        *out = values.at(pixel, channel);
                    }
                }
            }
        }
    }
    tensor
}

/// What each value of a pixel becomes in each channel.
struct Values {
    table: [[f32; 256]; 3],
    /// Where each channel of the network is in a pixel.
    sources: [usize; 3],
}

impl Values {
    fn new(rules: &TensorRules) -> Self {
        let value = |pixel: usize, channel: usize| {
            (pixel as f32 / rules.scale - rules.mean[channel]) / rules.std[channel]
        };
        let table = std::array::from_fn(|channel| std::array::from_fn(|pixel| value(pixel, channel)));
        let sources = match rules.channels {
            Channels::Rgb => [0, 1, 2],
            Channels::Bgr => [2, 1, 0],
        };
        Self { table, sources }
    }

    fn at(&self, pixel: &[u8], channel: usize) -> f32 {
        self.table[channel][usize::from(pixel[self.sources[channel]])]
    }
}

#[cfg(test)]
mod tests {
    use vodka_images::Rgb;

    use super::*;

    #[test]
    fn layout_and_channels_are_as_asked() {
        let picture = RgbImage::from_fn(2, 1, |x, _| Rgb([x as u8, 10 + x as u8, 20 + x as u8]));
        let tensor = |layout, channels| {
            let rules = TensorRules { layout, channels, scale: 1.0, mean: [0.0; 3], std: [1.0; 3] };
            to_tensor(std::slice::from_ref(&picture), &rules)
        };
        assert_eq!(tensor(Layout::Nhwc, Channels::Rgb), [0.0, 10.0, 20.0, 1.0, 11.0, 21.0]);
        assert_eq!(tensor(Layout::Nhwc, Channels::Bgr), [20.0, 10.0, 0.0, 21.0, 11.0, 1.0]);
        assert_eq!(tensor(Layout::Nchw, Channels::Bgr), [20.0, 21.0, 10.0, 11.0, 0.0, 1.0]);
    }

    #[test]
    fn mean_and_std_go_with_the_network_s_channels() {
        let picture = RgbImage::from_pixel(1, 1, Rgb([255, 102, 51]));
        let (mean, std) = ([0.5, 0.25, 0.0], [0.5, 2.0, 1.0]);
        let rules = TensorRules { layout: Layout::Nhwc, channels: Channels::Bgr, scale: 255.0, mean, std };
        let found = to_tensor(&[picture.clone(), picture], &rules);
        assert_eq!(found, [-0.6, (0.4 - 0.25) / 2.0, 1.0, -0.6, (0.4 - 0.25) / 2.0, 1.0]);
    }
}
