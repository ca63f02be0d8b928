//! Pictures with transparency: colours and opacity are made larger apart.

use std::collections::VecDeque;

use image::{Rgb, RgbImage, Rgba, RgbaImage};

/// Colours and opacity (as grey). Where nothing is to be seen, the colour is that of the nearest pixel that is: what was stored
/// there, black most often, would seep into the edges.
pub(crate) fn apart(picture: &RgbaImage) -> (RgbImage, RgbImage) {
    let (width, height) = picture.dimensions();
    let mut colours = RgbImage::from_fn(width, height, |x, y| {
        let Rgba([r, g, b, _]) = *picture.get_pixel(x, y);
        Rgb([r, g, b])
    });
    let opacity = RgbImage::from_fn(width, height, |x, y| Rgb([picture.get_pixel(x, y).0[3]; 3]));
    let mut is_known: Vec<bool> = picture.pixels().map(|pixel| pixel.0[3] > 0).collect();
    let place = |x: u32, y: u32| y as usize * width as usize + x as usize;
    let mut edge: VecDeque<(u32, u32)> = picture
        .enumerate_pixels()
        .filter(|(_, _, pixel)| pixel.0[3] > 0)
        .map(|(x, y, _)| (x, y))
        .filter(|(x, y)| neighbours(*x, *y, width, height).any(|(x, y)| picture.get_pixel(x, y).0[3] == 0))
        .collect();
    while let Some((x, y)) = edge.pop_front() {
        let colour = *colours.get_pixel(x, y);
        for (x, y) in neighbours(x, y, width, height) {
            if !std::mem::replace(&mut is_known[place(x, y)], true) {
                colours.put_pixel(x, y, colour);
                edge.push_back((x, y));
            }
        }
    }
    (colours, opacity)
}

/// The pixels above, below and beside.
fn neighbours(x: u32, y: u32, width: u32, height: u32) -> impl Iterator<Item = (u32, u32)> {
    let all = [(x.wrapping_sub(1), y), (x + 1, y), (x, y.wrapping_sub(1)), (x, y + 1)];
    all.into_iter().filter(move |(x, y)| *x < width && *y < height)
}

/// Colours and opacity of one size, put together.
pub(crate) fn together(colours: &RgbImage, opacity: &RgbImage) -> RgbaImage {
    let (width, height) = colours.dimensions();
    RgbaImage::from_fn(width, height, |x, y| {
        let Rgb([r, g, b]) = *colours.get_pixel(x, y);
        Rgba([r, g, b, opacity.get_pixel(x, y).0[0]])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_takes_the_colour_beside_it() {
        let mut picture = RgbaImage::from_pixel(7, 3, Rgba([0, 0, 0, 0]));
        picture.put_pixel(0, 1, Rgba([200, 10, 10, 255]));
        picture.put_pixel(6, 1, Rgba([10, 10, 200, 40]));
        let (colours, opacity) = apart(&picture);
        assert_eq!((colours.get_pixel(2, 0).0, colours.get_pixel(5, 2).0), ([200, 10, 10], [10, 10, 200]));
        assert_eq!((opacity.get_pixel(2, 0).0[0], opacity.get_pixel(6, 1).0[0]), (0, 40));
        let again = together(&colours, &opacity);
        assert!(again.pixels().zip(picture.pixels()).all(|(a, b)| a == b || a.0[3] == 0 && b.0[3] == 0));
        let nothing = RgbaImage::new(2, 2);
        assert_eq!(apart(&nothing).0, RgbImage::new(2, 2));
    }
}
