//! A square canvas on which shapes are filled by their distance functions, with smooth edges.

use image::{Rgb, Rgb32FImage, RgbImage, imageops};

/// sRGB in 0..255.
pub type Rgb3 = [f32; 3];

/// A square canvas; places and lengths are shares of its side, (0, 0) is top left.
pub struct Canvas {
    pixels: Rgb32FImage,
}

impl Canvas {
    /// A canvas of a vertical gradient.
    pub fn gradient(size_px: u32, top: Rgb3, bottom: Rgb3) -> Self {
        let row = |y: u32| mix(top, bottom, (y as f32 + 0.5) / size_px as f32);
        Self { pixels: Rgb32FImage::from_fn(size_px, size_px, |_, y| Rgb(row(y))) }
    }

    /// Paints where `distance` to a shape's edge is negative.
    pub fn fill(&mut self, colour: Rgb3, distance: impl Fn([f32; 2]) -> f32) {
        let size = self.pixels.width() as f32;
        self.paint(|point| (colour, (0.5 - distance(point) * size).clamp(0.0, 1.0)));
    }

    /// Adds a soft light.
    pub fn glow(&mut self, colour: Rgb3, centre: [f32; 2], radius: f32, strength: f32) {
        self.paint(|[x, y]| {
            let squared = (x - centre[0]).powi(2) + (y - centre[1]).powi(2);
            (colour, strength * (-squared / (2.0 * radius * radius)).exp())
        });
    }

    /// Multiplies all colours.
    pub fn tint(&mut self, by: Rgb3) {
        for pixel in self.pixels.pixels_mut() {
            pixel.0 = std::array::from_fn(|i| pixel.0[i] * by[i]);
        }
    }

    /// Takes the colour out, by Rec. 601's weights.
    pub fn grey(&mut self) {
        for pixel in self.pixels.pixels_mut() {
            let [r, g, b] = pixel.0;
            pixel.0 = [0.299 * r + 0.587 * g + 0.114 * b; 3];
        }
    }

    /// Blurs all that is there by a Gaussian, whose `sigma` is a share of the side.
    pub fn blur(&mut self, sigma: f32) {
        self.pixels = imageops::blur(&self.pixels, sigma * self.pixels.width() as f32);
    }

    /// The picture in 8 bits.
    pub fn into_image(self) -> RgbImage {
        let (width, height) = self.pixels.dimensions();
        let bytes = self.pixels.into_raw().into_iter().map(|v| v.round().clamp(0.0, 255.0) as u8).collect();
        RgbImage::from_raw(width, height, bytes).expect("three bytes a pixel")
    }

    /// Puts a colour over each pixel as far as its share says.
    fn paint(&mut self, colour_at: impl Fn([f32; 2]) -> (Rgb3, f32)) {
        let size = self.pixels.width() as f32;
        for (x, y, pixel) in self.pixels.enumerate_pixels_mut() {
            let (colour, share) = colour_at([(x as f32 + 0.5) / size, (y as f32 + 0.5) / size]);
            if share > 0.0 {
                pixel.0 = mix(pixel.0, colour, share);
            }
        }
    }
}

/// The colour between two.
pub fn mix(a: Rgb3, b: Rgb3, t: f32) -> Rgb3 {
    std::array::from_fn(|i| a[i] + (b[i] - a[i]) * t)
}

/// The distance to a disc.
pub fn disc(centre: [f32; 2], radius: f32) -> impl Fn([f32; 2]) -> f32 {
    move |[x, y]| (x - centre[0]).hypot(y - centre[1]) - radius
}

/// The distance to a rectangle from (left, top) to (right, bottom).
pub fn rectangle([left, top]: [f32; 2], [right, bottom]: [f32; 2]) -> impl Fn([f32; 2]) -> f32 {
    let (centre, half) =
        ([(left + right) / 2.0, (top + bottom) / 2.0], [(right - left) / 2.0, (bottom - top) / 2.0]);
    move |[x, y]| {
        let (dx, dy) = ((x - centre[0]).abs() - half[0], (y - centre[1]).abs() - half[1]);
        dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0)
    }
}

/// The distance to a polygon: to its nearest edge, negative where a ray crosses its edges an odd number of times.
pub fn polygon(corners: Vec<[f32; 2]>) -> impl Fn([f32; 2]) -> f32 {
    move |[x, y]| {
        let mut nearest = f32::INFINITY;
        let mut inside = false;
        let ends = corners.iter().skip(1).chain(corners.first());
        for (&[ax, ay], &[bx, by]) in corners.iter().zip(ends) {
            let (ex, ey) = (bx - ax, by - ay);
            let along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0.0, 1.0);
            nearest = nearest.min((x - ax - ex * along).hypot(y - ay - ey * along));
            if (ay > y) != (by > y) && x < ax + (y - ay) / ey * ex {
                inside = !inside;
            }
        }
        if inside { -nearest } else { nearest }
    }
}
