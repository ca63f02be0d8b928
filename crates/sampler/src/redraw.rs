//! Parts of a larger picture that are made again: what they begin with, what of them stays, and their noise.

use std::borrow::Cow;

use image::{GrayImage, ImageBuffer, Rgb, RgbImage};
use tch::{Device, Kind, Tensor};
use vodka_checkpoint::Prediction;
use vodka_noise::{BrownianTree, Output, PictureNoise, Schedule, Solver};

use crate::Settings;

/// A picture in 256ths of a level of 255, so that what is drawn in it again and again does not lose its last bits each time.
pub(crate) type FinePicture = ImageBuffer<Rgb<u16>, Vec<u16>>;

/// Steps of a [`FinePicture`] in a level.
pub(crate) const FINE: u16 = 256;

/// The same picture in finer steps.
pub(crate) fn fine(picture: &RgbImage) -> FinePicture {
    let values = picture.iter().map(|value| u16::from(*value) * FINE).collect();
    ImageBuffer::from_raw(picture.width(), picture.height(), values).expect("as many values")
}

/// The picture in whole levels, the nearest.
pub(crate) fn whole(picture: &FinePicture) -> RgbImage {
    let level = |value: &u16| (value.saturating_add(FINE / 2) / FINE) as u8;
    let values = picture.iter().map(level).collect();
    RgbImage::from_raw(picture.width(), picture.height(), values).expect("as many values")
}

/// A part of a larger picture, of the size that the settings state.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// What is there.
    pub(crate) picture: FinePicture,
    /// What is made again, in latents: 255, and 0 what stays.
    pub(crate) mask: GrayImage,
    /// Where it lies, if its noise is a part of that of the whole.
    pub(crate) place: Option<Place>,
    /// What ControlNets see of pictures of their own, by the numbers of the units; none of one that sees the part.
    pub(crate) controls: Vec<Option<RgbImage>>,
}

impl Part {
    /// What the ControlNet of that number sees.
    pub(crate) fn control(&self, number: usize) -> Cow<'_, RgbImage> {
        let own = self.controls.get(number).and_then(Option::as_ref);
        own.map_or_else(|| Cow::Owned(whole(&self.picture)), Cow::Borrowed)
    }
}

/// A place in the latents of a larger picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Columns and rows of the whole.
    pub(crate) whole: (usize, usize),
    pub(crate) left: usize,
    pub(crate) top: usize,
}

/// The random numbers of all pictures that are made at once.
pub(crate) struct Noise {
    numbers: Vec<PictureNoise>,
    trees: Option<Vec<BrownianTree>>,
    /// What is drawn at once, `[4, h, w]`.
    drawn: [usize; 3],
    /// What is taken of that for each picture: one field is cut into the parts of one picture.
    shape: [usize; 3],
    places: Vec<Place>,
    device: Device,
}

impl Noise {
    /// Of pictures with latents of this shape, each with a seed of its own; or of parts of one picture.
    pub(crate) fn new(
        all: &[Settings],
        parts: Option<&[Part]>,
        shape: [usize; 3],
        solver: &Solver,
        device: Device,
    ) -> Self {
        let places: Vec<_> = parts.into_iter().flatten().filter_map(|part| part.place).collect();
        let whole = places.first().map(|place| place.whole);
        let drawn = whole.map_or(shape, |(columns, rows)| [shape[0], rows, columns]);
        let all = if whole.is_some() { &all[..1] } else { all };
        let (low, high) = solver.sigma_range();
        let tree = |s: &Settings| BrownianTree::new(s.seed.into(), low, high, drawn.iter().product());
        Self {
            numbers: all.iter().map(|s| PictureNoise::new(s.picture_seed(), drawn)).collect(),
            trees: all[0].sampler.is_brownian().then(|| all.iter().map(tree).collect()),
            drawn,
            shape,
            places,
            device,
        }
    }

    /// What pictures begin with. `(B, 4, h, w)`, unit normal
    pub(crate) fn first(&mut self) -> Tensor {
        let drawn = self.numbers.iter_mut().map(PictureNoise::first).collect();
        self.stacked(drawn)
    }

    /// What a sampler adds in the step from one sigma to another, in the same form.
    pub(crate) fn more(&mut self, from: f64, to: f64) -> Tensor {
        let drawn = match &mut self.trees {
            Some(trees) => trees.iter_mut().map(|tree| tree.noise(from, to)).collect(),
            None => self.numbers.iter_mut().map(PictureNoise::more).collect(),
        };
        self.stacked(drawn)
    }

    fn stacked(&self, drawn: Vec<Vec<f32>>) -> Tensor {
        let fields: Vec<_> = drawn
            .iter()
            .map(|values| Tensor::from_slice(values).view(self.drawn.map(|n| n as i64))) // (4, h, w)
            .collect();
        let [_, height, width] = self.shape.map(|n| n as i64);
        let part =
            |place: &Place| fields[0].narrow(1, place.top as i64, height).narrow(2, place.left as i64, width);
        let parts: Vec<_> = self.places.iter().map(part).collect();
        Tensor::stack(if parts.is_empty() { &fields } else { &parts }, 0).to_device(self.device)
    }
}

/// What of pictures stays while they are made.
pub(crate) struct Held {
    /// 1 where something is made, else 0. `(B, 1, h, w)` in fp32
    made: Tensor,
    /// What is there, scaled. `(B, 4, h, w)` in fp32
    latents: Tensor,
}

impl Held {
    /// Of parts whose latents, scaled, are these.
    pub(crate) fn new(parts: &[Part], latents: Tensor) -> Self {
        let mask = |part: &Part| {
            let (width, height) = part.mask.dimensions();
            Tensor::from_slice(part.mask.as_raw()).view([1, height.into(), width.into()])
        };
        let masks: Vec<_> = parts.iter().map(mask).collect();
        let made = Tensor::stack(&masks, 0).to_kind(Kind::Float).to_device(latents.device()) / 255.0;
        Self { made, latents }
    }

    pub(crate) fn latents(&self) -> &Tensor {
        &self.latents
    }

    /// Finished latents with what stays in its place.
    pub(crate) fn laid_over(&self, latents: &Tensor) -> Tensor {
        latents * &self.made + &self.latents * (1.0 - &self.made)
    }

    /// The answer of a network that would see, in what stays, what is there: whatever a sampler works out from it, it keeps that
    /// (stable-diffusion-webui 1.10.1, `modules/sd_samplers_cfg_denoiser.py`, where what is seen is mixed). `input` has unit variance.
    pub(crate) fn answer(
        &self,
        output: Output<Tensor>,
        input: &Tensor,
        timestep: f64,
        (table, prediction): (&Schedule, Prediction),
    ) -> Output<Tensor> {
        let sigma = table.t_to_sigma(timestep);
        let signal = 1.0 / (1.0 + sigma * sigma).sqrt();
        let noise = sigma * signal;
        let epsilon = (input - &self.latents * signal) / noise;
        let wanted = match prediction {
            Prediction::Epsilon => epsilon,
            Prediction::VPrediction => epsilon * signal - &self.latents * noise,
        };
        let mixed = |made: Tensor| made * &self.made + &wanted * (1.0 - &self.made);
        Output { guided: mixed(output.guided), unguided: output.unguided.map(mixed) }
    }
}

#[cfg(test)]
mod tests {
    use vodka_noise::{RandomSource, SamplerName, ScheduleName};

    use super::*;

    fn part(place: Option<Place>) -> Part {
        let picture = FinePicture::new(32, 16);
        Part { picture, mask: GrayImage::new(4, 2), place, controls: Vec::new() }
    }

    #[test]
    fn noise_of_parts_is_cut_out_of_one_field() {
        let whole = (9, 7);
        let at = |left, top| part(Some(Place { whole, left, top }));
        let parts = [at(0, 0), at(5, 5), at(2, 1)];
        for sampler in [SamplerName::EulerA, SamplerName::DpmppSde] {
            let settings = Settings { seed: 5, sampler, rng: RandomSource::Cpu, ..Settings::default() };
            let table = Schedule::scaled_linear();
            let solver = Solver::new(&table, sampler, ScheduleName::Karras, 5).unwrap();
            let all = vec![settings.clone(); 3];
            let device = Device::Cpu;
            let mut field = Noise::new(&all[..1], None, [4, 7, 9], &solver, device);
            let mut found = Noise::new(&all, Some(&parts), [4, 2, 4], &solver, device);
            let mut alone = Noise::new(&all[..1], Some(&parts[1..2]), [4, 2, 4], &solver, device);
            let pairs = [
                (field.first(), found.first(), alone.first()),
                (field.more(3.0, 2.0), found.more(3.0, 2.0), alone.more(3.0, 2.0)),
                (field.more(2.0, 0.5), found.more(2.0, 0.5), alone.more(2.0, 0.5)),
            ];
            for (field, found, alone) in pairs {
                for (i, (left, top)) in [(0, 0), (5, 5), (2, 1)].into_iter().enumerate() {
                    assert_eq!(found.get(i as i64), field.get(0).narrow(1, top, 2).narrow(2, left, 4));
                }
                assert_eq!(alone.get(0), found.get(1));
            }
            // Parts without a place all have the noise of the seed.
            let mut same =
                Noise::new(&all, Some(&[part(None), part(None), part(None)]), [4, 2, 4], &solver, device);
            let mut one = Noise::new(&all[..1], None, [4, 2, 4], &solver, device);
            let (same, one) = (same.first(), one.first());
            assert!((0..3).all(|i| same.get(i) == one.get(0)));
        }
    }

    #[test]
    fn whole_levels_are_whole_in_finer_steps_too() {
        let levels = RgbImage::from_fn(16, 16, |x, y| Rgb([(16 * y + x) as u8, 255, 0]));
        let mut picture = fine(&levels);
        assert_eq!(picture.get_pixel(15, 15).0, [255 * FINE, 255 * FINE, 0]);
        assert_eq!(whole(&picture), levels);
        picture.put_pixel(0, 0, Rgb([FINE / 2 - 1, FINE / 2, u16::MAX]));
        assert_eq!(whole(&picture).get_pixel(0, 0).0, [0, 1, 255]);
    }

    #[test]
    fn what_stays_is_what_a_sampler_sees() {
        let table = Schedule::scaled_linear();
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (latents, input, output) = (random(&[1, 4, 2, 4]), random(&[1, 4, 2, 4]), random(&[1, 4, 2, 4]));
        let mut part = part(None);
        part.mask.put_pixel(1, 1, image::Luma([255]));
        let held = Held::new(&[part], latents.copy());
        for timestep in [999.0, 400.5, 0.0] {
            let sigma = table.t_to_sigma(timestep);
            let (signal, noise) = (1.0 / (1.0 + sigma * sigma).sqrt(), sigma / (1.0 + sigma * sigma).sqrt());
            for prediction in [Prediction::Epsilon, Prediction::VPrediction] {
                let answer = Output { guided: output.copy(), unguided: Some(output.copy()) };
                let found = held.answer(answer, &input, timestep, (&table, prediction));
                let seen = match prediction {
                    Prediction::Epsilon => (&input - &found.guided * noise) / signal,
                    Prediction::VPrediction => &input * signal - &found.guided * noise,
                };
                let most = |tensor: Tensor| tensor.abs().max().double_value(&[]);
                // In fp32, and at the first timestep the signal is a fifteenth.
                assert!(most((&seen - &latents).narrow(2, 0, 1)) < 1e-4, "{timestep}");
                assert_eq!(found.guided.double_value(&[0, 2, 1, 1]), output.double_value(&[0, 2, 1, 1]));
                assert_eq!(found.unguided.unwrap(), found.guided);
            }
        }
        let laid = held.laid_over(&output);
        assert_eq!(laid.double_value(&[0, 3, 1, 1]), output.double_value(&[0, 3, 1, 1]));
        assert_eq!(laid.double_value(&[0, 3, 1, 2]), latents.double_value(&[0, 3, 1, 2]));
    }
}
