//! How a picture looks, in numbers: sharp or blurred, clipped, over-saturated ("fried"), flat.

use image::RgbImage;
use vodka_images::{Picture, measure};

/// Measured on one picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Look {
    /// Variance of the Laplacian of the grey picture, in squared levels ([`vodka_images::measure`]): low is blurred.
    pub sharpness: f64,
    /// The same of the most blurred of 4 x 4 tiles.
    pub sharpness_min: f64,
    /// The same of the sharpest tile: high with a low minimum is a sharp subject before a blurred ground.
    pub sharpness_max: f64,
    /// The share of pixels with a channel at 0 or 255. 0 to 1.
    pub clipped: f64,
    /// The share of pixels whose colour was pushed out of what can be shown: a channel at 0 or 255, and 128 levels or more
    /// between the highest and the lowest. 0 to 1.
    pub fried: f64,
    /// The mean saturation, (highest - lowest) / highest channel, as HSV has it. 0 to 1.
    pub saturation: f64,
    /// Hasler and Süsstrunk 2003, "Measuring colourfulness in natural images", equation 10: 0 is grey, 109 extremely
    /// colourful.
    pub colourfulness: f64,
    /// The standard deviation of the grey levels, of 127.5 which is the most there can be. 0 to 1.
    pub contrast: f64,
    /// Whether there is nothing to see: less than `FLAT_LEVELS` levels between the darkest and the brightest grey.
    pub flat: bool,
}

/// A picture with fewer levels of grey from end to end is flat.
const FLAT_LEVELS: f64 = 8.0;

/// A measure that tables and charts have.
#[derive(Debug, Clone, Copy)]
pub struct Measure {
    /// Its name in files.
    pub key: &'static str,
    /// Its name for people.
    pub name: &'static str,
    /// Its value.
    pub of: fn(&Look) -> f64,
}

/// All that are judged.
pub const MEASURES: [Measure; 8] = [
    Measure { key: "sharpness", name: "Sharpness", of: |look| look.sharpness },
    Measure { key: "sharpness_min", name: "Most blurred tile", of: |look| look.sharpness_min },
    Measure { key: "sharpness_max", name: "Sharpest tile", of: |look| look.sharpness_max },
    Measure { key: "clipped", name: "Clipped", of: |look| look.clipped },
    Measure { key: "fried", name: "Fried", of: |look| look.fried },
    Measure { key: "saturation", name: "Saturation", of: |look| look.saturation },
    Measure { key: "colourfulness", name: "Colourfulness", of: |look| look.colourfulness },
    Measure { key: "contrast", name: "Contrast", of: |look| look.contrast },
];

impl Look {
    /// Measures a picture.
    ///
    /// # Panics
    /// When it has no pixels.
    pub fn of(picture: &RgbImage) -> Self {
        let count = f64::from(picture.width()) * f64::from(picture.height());
        let mut sums = Sums::default();
        picture.pixels().for_each(|pixel| sums.add(pixel.0));
        let measured = measure(&Picture::Rgb(picture.clone()));
        let mean = |sum: f64| sum / count;
        let deviation = |sum: f64, squares: f64| (mean(squares) - mean(sum).powi(2)).max(0.0).sqrt();
        let [rg, yb] = [sums.rg, sums.yb].map(|(sum, squares)| (mean(sum), deviation(sum, squares)));
        let (grey, greys) = sums.grey;
        Self {
            sharpness: measured.sharpness.into(),
            sharpness_min: measured.tiles.min.into(),
            sharpness_max: measured.tiles.max.into(),
            clipped: mean(sums.clipped as f64),
            fried: mean(sums.fried as f64),
            saturation: mean(sums.saturation),
            colourfulness: rg.1.hypot(yb.1) + 0.3 * rg.0.hypot(yb.0),
            contrast: deviation(grey, greys) / 127.5,
            flat: sums.brightest - sums.darkest < FLAT_LEVELS,
        }
    }
}

/// Sums, and sums of squares, over the pixels.
struct Sums {
    clipped: u64,
    fried: u64,
    saturation: f64,
    rg: (f64, f64),
    yb: (f64, f64),
    grey: (f64, f64),
    darkest: f64,
    brightest: f64,
}

impl Default for Sums {
    fn default() -> Self {
        let (clipped, fried, saturation, none) = (0, 0, 0.0, (0.0, 0.0));
        let (darkest, brightest) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { clipped, fried, saturation, rg: none, yb: none, grey: none, darkest, brightest }
    }
}

impl Sums {
    fn add(&mut self, pixel: [u8; 3]) {
        let [r, g, b] = pixel.map(f64::from);
        let highest = *pixel.iter().max().expect("three channels");
        let lowest = *pixel.iter().min().expect("three channels");
        let clipped = highest == 255 || lowest == 0;
        self.clipped += u64::from(clipped);
        self.fried += u64::from(clipped && highest - lowest >= 128);
        self.saturation += f64::from(highest - lowest) / f64::from(highest.max(1));
        let grey = 0.299 * r + 0.587 * g + 0.114 * b;
        for (sums, value) in
            [(&mut self.rg, r - g), (&mut self.yb, f64::midpoint(r, g) - b), (&mut self.grey, grey)]
        {
            sums.0 += value;
            sums.1 += value * value;
        }
        self.darkest = self.darkest.min(grey);
        self.brightest = self.brightest.max(grey);
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use vodka_testkit::Case;

    use super::*;

    #[test]
    fn looks_are_those_of_numpy() {
        // generate.py draws the same pictures and measures them with numpy and OpenCV.
        let case = Case::open("sampler/look");
        let noise = |x: u32, y: u32| (x * 7919 + y * 104_729) % 251;
        let pictures = [
            RgbImage::from_fn(48, 40, |x, y| Rgb([x as u8 * 5, y as u8 * 6, 90])),
            RgbImage::from_fn(48, 40, |x, y| {
                Rgb([noise(x, y) as u8, noise(y, x) as u8, (x * y % 256) as u8])
            }),
            RgbImage::from_fn(48, 40, |x, _| if x < 24 { Rgb([255, 20, 0]) } else { Rgb([250, 251, 252]) }),
        ];
        for (i, picture) in pictures.iter().enumerate() {
            let look = Look::of(picture);
            let check = |name: &str, values: &[f64]| {
                let values: Vec<f32> = values.iter().map(|value| *value as f32).collect();
                case.check(&format!("{name}/{i}"), &values, &[values.len()]);
            };
            check("sharpness", &[look.sharpness, look.sharpness_min, look.sharpness_max]);
            check("colour", &[look.clipped, look.fried, look.saturation, look.colourfulness, look.contrast]);
            assert!(!look.flat);
        }
    }

    #[test]
    fn a_picture_of_one_colour_is_flat() {
        for colour in [[0, 0, 0], [128, 128, 128], [255, 0, 0]] {
            let look = Look::of(&RgbImage::from_pixel(16, 16, Rgb(colour)));
            assert!(look.flat && look.contrast < 1e-6 && look.sharpness == 0.0, "{look:?}");
        }
        assert!(Look::of(&RgbImage::from_pixel(16, 16, Rgb([255, 0, 0]))).fried == 1.0);
    }
}
