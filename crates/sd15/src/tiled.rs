//! Either half of the VAE on a large picture: tile by tile, and to the last bits what it gives of the whole.
//!
//! A tile is computed from as much of the map around it as its convolutions see, with zeros beyond the picture's own edges
//! alone, so that it has no seams. Group norms want the mean and the variance of the whole map: at each of them all tiles are
//! gone through. Then their maps are kept as a whole, or, where memory does not allow that, computed again from the last that
//! are kept. (multidiffusion-upscaler, `scripts/tilevae.py`, keeps them all, and weighs the tiles' variances; diffusers'
//! `enable_tiling` has norms and attention see a tile alone.)

use tch::{Device, Kind, Tensor};

use crate::layers::{Conv2d, GroupNorm};

/// Below this side, in elements of its map, a tile is mostly surroundings.
const SIDE_MIN: i64 = 64;

/// What is done to a feature map.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'n> {
    /// A convolution that keeps the size.
    Conv(&'n Conv2d),
    /// A norm, and SiLU; with `forks`, what it is given is kept aside as well.
    Norm { norm: &'n GroupNorm, forks: bool },
    /// What was kept aside is added, through a convolution of one pixel where there is one.
    Join(Option<&'n Conv2d>),
    /// Twice the height and width, each element four times.
    Double,
    /// Half of both, by a convolution with zeros at the right and at the bottom.
    Half(&'n Conv2d),
}

/// A part of a side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: i64,
    end: i64,
}

impl Span {
    const fn len(self) -> i64 {
        self.end - self.start
    }
}

impl Step<'_> {
    /// How long a side of `size` becomes.
    const fn size(self, size: i64) -> i64 {
        match self {
            Self::Double => 2 * size,
            Self::Half(_) => size / 2,
            _ => size,
        }
    }

    /// What of a side of `size` a part of the result is made of.
    fn needs(self, Span { start, end }: Span, size: i64) -> Span {
        let (start, end) = match self {
            Self::Conv(conv) => (start - conv.padding, end + conv.padding),
            Self::Double => (start / 2, (end + 1) / 2),
            Self::Half(_) => (2 * start, 2 * end + 1),
            Self::Norm { .. } | Self::Join(_) => (start, end),
        };
        Span { start: start.max(0), end: end.min(size) }
    }

    /// What of the result a part of a side of `size` is enough for.
    fn gives(self, Span { start, end }: Span, size: i64) -> Span {
        let is_last = end == size;
        let (start, end) = match self {
            Self::Conv(conv) => {
                let padding = conv.padding;
                (if start == 0 { 0 } else { start + padding }, if is_last { size } else { end - padding })
            }
            Self::Double => (2 * start, 2 * end),
            Self::Half(_) => ((start + 1) / 2, if is_last { size / 2 } else { (end - 1) / 2 }),
            Self::Norm { .. } | Self::Join(_) => (start, end),
        };
        Span { start, end }
    }

    /// Channels of its result.
    fn channels(self, channels: i64) -> i64 {
        match self {
            Self::Conv(conv) | Self::Half(conv) => conv.weight.size()[0],
            _ => channels,
        }
    }

    /// Multiplications for an element of the result's map.
    fn work(self) -> f64 {
        match self {
            Self::Conv(conv) | Self::Half(conv) | Self::Join(Some(conv)) => conv.weight.numel() as f64,
            // Memory has to be gone through.
            _ => 1000.0,
        }
    }
}

/// What is known of the maps before a step.
#[derive(Debug, Clone, Copy)]
struct Layout {
    channels: i64,
    /// Channels of what is kept aside; 0 for nothing.
    fork: i64,
    /// Height and width.
    size: [i64; 2],
    /// Multiplications up to here.
    work: f64,
}

/// Maps before a step, as a whole or a part of them.
#[derive(Debug)]
struct Maps {
    /// The number of the step.
    at: usize,
    /// `(B, C, h, w)`
    map: Tensor,
    /// Its rows and columns.
    spans: [Span; 2],
    /// What is kept aside, and its rows and columns.
    fork: Option<(Tensor, [Span; 2])>,
}

/// A chain of steps over tiles.
#[derive(Debug)]
pub(crate) struct Tiled<'n> {
    steps: Vec<Step<'n>>,
    /// Before each step, and at the end.
    layouts: Vec<Layout>,
    /// Of the norms that have been reached: factors and summands. `(B, C, 1, 1)` in fp32
    norms: Vec<Option<[Tensor; 2]>>,
    /// Height and width of the picture.
    picture: [i64; 2],
    side_px: i64,
}

impl<'n> Tiled<'n> {
    /// Steps over a map of so many channels and this height and width, in tiles that are `side_px` wide and high in a picture of
    /// the size `picture`.
    pub(crate) fn new(
        steps: Vec<Step<'n>>,
        channels: i64,
        size: [i64; 2],
        picture: [i64; 2],
        side_px: i64,
    ) -> Self {
        let mut layouts = vec![Layout { channels, fork: 0, size, work: 0.0 }];
        for step in &steps {
            let before = layouts[layouts.len() - 1];
            let size = before.size.map(|size| step.size(size));
            let fork = match step {
                Step::Norm { forks: true, .. } => before.channels,
                Step::Join(_) => 0,
                _ => before.fork,
            };
            let work = before.work + step.work() * (size[0] * size[1]) as f64;
            layouts.push(Layout { channels: step.channels(before.channels), fork, size, work });
        }
        let norms = steps.iter().map(|_| None).collect();
        Self { steps, layouts, norms, picture, side_px }
    }

    /// Goes through all steps from `map (B, C, h, w)` on. Maps that are kept take `memory` bytes at most, unless the first and the last
    /// alone take more.
    pub(crate) fn run(mut self, map: Tensor, memory: u64) -> Tensor {
        let rows_bytes = map.size()[0] as u64 * map.kind().elt_size_in_bytes() as u64;
        let points = self.points();
        let kept = self.kept(&points, memory / rows_bytes.max(1));
        let spans = self.layouts[0].size.map(|size| Span { start: 0, end: size });
        let mut from = Maps { at: 0, map, spans, fork: None };
        for point in points {
            if let Some(maps) = self.pass(&from, point, kept.contains(&point)) {
                from = maps;
            }
        }
        from.map
    }

    /// The steps at which all tiles must have come together, and the end.
    fn points(&self) -> Vec<usize> {
        let is_norm = |(_, step): &(usize, &Step<'_>)| matches!(step, Step::Norm { .. });
        let norms = self.steps.iter().enumerate().filter(is_norm).map(|(i, _)| i);
        norms.chain([self.steps.len()]).collect()
    }

    /// Elements of the maps before a step.
    fn elements(&self, at: usize) -> u64 {
        let Layout { channels, fork, size, .. } = self.layouts[at];
        ((channels + fork) * size[0] * size[1]) as u64
    }

    /// The points whose maps are kept, so that the least is computed twice: no more than `memory` elements at a time, which are
    /// those of two of them, one after the other.
    fn kept(&self, points: &[usize], memory: u64) -> Vec<usize> {
        let all: Vec<usize> = [0].into_iter().chain(points.iter().copied().filter(|i| *i > 0)).collect();
        let last = all.len() - 1;
        // The least work up to each, and the one that is kept before it.
        let mut best = vec![(0.0, 0); all.len()];
        for to in 1..all.len() {
            let from = (0..to).filter_map(|from| {
                let fits = self.elements(all[from]) + self.elements(all[to]) <= memory;
                let is_needed = from == 0 && to == last;
                let again = |k: usize| self.layouts[all[k]].work - self.layouts[all[from]].work;
                let work: f64 = (from + 1..=to).map(again).sum();
                (fits || is_needed).then_some((best[from].0 + work, from))
            });
            best[to] = from.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, 0));
        }
        let mut kept = vec![all[last]];
        let mut at = best[last].1;
        while at > 0 {
            kept.push(all[at]);
            at = best[at].1;
        }
        kept
    }

    /// Computes the maps before a step tile by tile, and what its norm needs of them; the maps, if they are to be kept.
    fn pass(&mut self, from: &Maps, at: usize, keep: bool) -> Option<Maps> {
        let Layout { channels, fork, size, .. } = self.layouts[at];
        let norm = match self.steps.get(at) {
            Some(Step::Norm { norm, .. }) => Some(*norm),
            _ => None,
        };
        // What is there already needs no copy.
        let keep = keep && at != from.at;
        let new = |channels: i64| {
            let shape = [from.map.size()[0], size[0], size[1], channels];
            Tensor::empty(shape, (from.map.kind(), from.map.device())).permute([0, 3, 1, 2])
        };
        let kept = keep.then(|| (new(channels), (fork > 0).then(|| new(fork))));
        let whole = size.map(|size| Span { start: 0, end: size });
        let mut moments = norm.map(|_| Moments::default());
        for rows in self.parts(at, 0) {
            for columns in self.parts(at, 1) {
                let spans = [rows, columns];
                let tile = self.tile(from, at, spans);
                if let Some(moments) = &mut moments {
                    moments.add(&tile.map);
                }
                if let Some((map, fork)) = &kept {
                    cropped(map, whole, spans).copy_(&tile.map);
                    if let (Some(fork), Some((of_tile, _))) = (fork, &tile.fork) {
                        cropped(fork, whole, spans).copy_(of_tile);
                    }
                }
            }
        }
        if let (Some(norm), Some(moments)) = (norm, moments) {
            self.norms[at] = Some(moments.affine(norm, from.map.device()));
        }
        kept.map(|(map, fork)| Maps { at, map, spans: whole, fork: fork.map(|fork| (fork, whole)) })
    }

    /// Equal parts of a side of the map before a step.
    fn parts(&self, at: usize, axis: usize) -> Vec<Span> {
        let size = self.layouts[at].size[axis];
        let scale = (self.picture[axis] / size).max(1);
        let count = (size as u64).div_ceil((self.side_px / scale).max(SIDE_MIN) as u64) as i64;
        (0..count).map(|i| Span { start: i * size / count, end: (i + 1) * size / count }).collect()
    }

    /// A part of the maps before step `at`, computed from those that are kept.
    fn tile(&self, from: &Maps, at: usize, spans: [Span; 2]) -> Maps {
        let mut needed = spans;
        for i in (from.at..at).rev() {
            let size = self.layouts[i].size;
            needed = [0, 1].map(|axis| self.steps[i].needs(needed[axis], size[axis]));
        }
        let fork = from.fork.as_ref().map(|(fork, of)| (cropped(fork, *of, needed), needed));
        let map = cropped(&from.map, from.spans, needed);
        let mut maps = Maps { at: from.at, map, spans: needed, fork };
        while maps.at < at {
            self.step(&mut maps);
        }
        let map = cropped(&maps.map, maps.spans, spans);
        let fork = maps.fork.map(|(fork, of)| (cropped(&fork, of, spans), spans));
        Maps { at, map, spans, fork }
    }

    /// Takes the next step with a part of the maps.
    fn step(&self, maps: &mut Maps) {
        let step = self.steps[maps.at];
        let size = self.layouts[maps.at].size;
        let spans = [0, 1].map(|axis| step.gives(maps.spans[axis], size[axis]));
        let [rows, columns] = maps.spans;
        let is_first = [columns.start == 0, rows.start == 0].map(i64::from);
        let is_last = [columns.end == size[1], rows.end == size[0]].map(i64::from);
        maps.map = match step {
            Step::Conv(conv) => {
                let sides = [is_first[0], is_last[0], is_first[1], is_last[1]];
                conv.padded_by(&maps.map, sides.map(|side| side * conv.padding))
            }
            Step::Norm { norm: _, forks } => {
                if forks {
                    maps.fork = Some((maps.map.shallow_clone(), maps.spans));
                }
                let affine = self.norms[maps.at].as_ref().expect("all tiles have been here before");
                normalised(&maps.map, affine)
            }
            Step::Join(shortcut) => {
                let (fork, of) = maps.fork.take().expect("a map was kept aside");
                let fork = cropped(&fork, of, spans);
                match shortcut {
                    Some(conv) => conv.padded_by(&fork, [0; 4]) + &maps.map,
                    None => fork + &maps.map,
                }
            }
            Step::Double => {
                let (_, _, height, width) = maps.map.size4().expect("feature maps have four axes");
                maps.map.upsample_nearest2d([2 * height, 2 * width], None, None)
            }
            Step::Half(conv) => {
                // The result begins at an even row and column.
                let even = maps.spans.map(|Span { start, end }| Span { start: start + start % 2, end });
                conv.padded_by(&cropped(&maps.map, maps.spans, even), [0, is_last[0], 0, is_last[1]])
            }
        };
        maps.spans = spans;
        maps.at += 1;
    }
}

/// The part of a map with these rows and columns; the map has those of `of`.
fn cropped(map: &Tensor, of: [Span; 2], to: [Span; 2]) -> Tensor {
    let [rows, columns] = to;
    map.narrow(2, rows.start - of[0].start, rows.len()).narrow(3, columns.start - of[1].start, columns.len())
}

/// SiLU of a map times factors plus summands, in fp32 between.
fn normalised(map: &Tensor, [factors, summands]: &[Tensor; 2]) -> Tensor {
    let mut x = map.to_kind(Kind::Float) * factors;
    let _ = x.g_add_(summands);
    let _ = x.silu_();
    x.to_kind(map.kind())
}

/// The moments of the groups of a map, gathered tile by tile.
#[derive(Debug, Default)]
struct Moments {
    /// Elements of a channel.
    count: f64,
    /// Of each channel of each row of the batch: the sum, and the sum of squares.
    sums: Vec<[f64; 2]>,
}

impl Moments {
    fn add(&mut self, map: &Tensor) {
        let map = map.to_kind(Kind::Float);
        let (_, _, height, width) = map.size4().expect("feature maps have four axes");
        let count = (height * width) as f64;
        let mean = map.mean_dim([2, 3].as_slice(), true, Kind::Float); // (B, C, 1, 1)
        let mut spread = &map - &mean;
        let _ = spread.square_();
        let spread = spread.mean_dim([2, 3].as_slice(), false, Kind::Float); // (B, C)
        let [means, variances] = [mean, spread].map(|values| numbers(&values));
        self.sums.resize(means.len(), [0.0; 2]);
        for (sums, (mean, variance)) in self.sums.iter_mut().zip(means.into_iter().zip(variances)) {
            sums[0] += count * mean;
            sums[1] += count * (variance + mean * mean);
        }
        self.count += count;
    }

    /// What the norm multiplies each channel by and adds to it. `(B, C, 1, 1)` in fp32
    fn affine(&self, norm: &GroupNorm, device: Device) -> [Tensor; 2] {
        let [weight, bias] = [&norm.weight, &norm.bias].map(numbers);
        let channels = weight.len();
        let of_group = channels / norm.groups as usize;
        let (mut factors, mut summands) = (Vec::new(), Vec::new());
        for (group, sums) in self.sums.chunks(of_group).enumerate() {
            let n = self.count * of_group as f64;
            let [sum, squares] = [0, 1].map(|k| sums.iter().map(|sums| sums[k]).sum::<f64>() / n);
            let factor = 1.0 / ((squares - sum * sum).max(0.0) + norm.eps).sqrt();
            let first = group % norm.groups as usize * of_group;
            for channel in first..first + of_group {
                factors.push((weight[channel] * factor) as f32);
                summands.push((bias[channel] - sum * weight[channel] * factor) as f32);
            }
        }
        let shape = [self.sums.len().div_euclid(channels) as i64, channels as i64, 1, 1];
        [factors, summands].map(|values| Tensor::from_slice(&values).view(shape).to_device(device))
    }
}

/// All elements.
fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Double).flatten(0, -1);
    Vec::try_from(&flat).expect("a flat tensor of fp64")
}

#[cfg(test)]
mod tests {
    use tch::nn::VarStore;

    use super::*;
    use crate::Params;

    #[test]
    fn no_more_is_kept_than_memory_has_room_for() {
        let vars = VarStore::new(Device::Cpu);
        let source = |_: &str, shape: &[i64]| Ok(Tensor::ones(shape, (Kind::Float, Device::Cpu)));
        let params = Params::new(&vars, &source);
        let conv = Conv2d::new(&(&params / "conv"), 8, 8, 3).unwrap();
        let norm = GroupNorm::new(&(&params / "norm"), 4, 8, 1e-6).unwrap();
        let norm = |forks| Step::Norm { norm: &norm, forks };
        let conv = Step::Conv(&conv);
        let block = [norm(true), conv, norm(false), conv, Step::Join(None)];
        let steps: Vec<_> = [&block[..], &block, &[Step::Double, conv], &block, &block].concat();
        let tiled = Tiled::new(steps, 8, [64, 48], [128, 96], 64);
        let points = tiled.points();
        let last = tiled.steps.len();
        assert_eq!((points.len(), points[0], points[8]), (9, 0, last));
        let kept = |memory| {
            let mut kept = tiled.kept(&points, memory);
            kept.sort_unstable();
            kept
        };
        let mut least = f64::INFINITY;
        for memory in (0..500_000).step_by(5_000) {
            let all = [vec![0], kept(memory)].concat();
            let fits = |pair: &[usize]| tiled.elements(pair[0]) + tiled.elements(pair[1]) <= memory;
            assert!(all.windows(2).all(|pair| fits(pair) || pair == [0, last]), "{memory}: {all:?}");
            // More memory never costs more work.
            let before = |point: usize| *all.iter().rev().find(|kept| **kept < point).unwrap();
            let work = |point: usize| tiled.layouts[point].work - tiled.layouts[before(point)].work;
            let work: f64 = points[1..].iter().map(|point| work(*point)).sum();
            assert!(work <= least, "{memory}");
            least = work;
        }
        assert_eq!(kept(0), [last]);
        assert_eq!(kept(u64::MAX), points[1..]);
        assert!((least - tiled.layouts[last].work).abs() < 1.0);
    }

    #[test]
    fn a_tile_takes_what_its_part_is_made_of() {
        let vars = VarStore::new(Device::Cpu);
        let source = |_: &str, shape: &[i64]| Ok(Tensor::ones(shape, (Kind::Float, Device::Cpu)));
        let conv = Conv2d::new(&Params::new(&vars, &source), 4, 4, 3).unwrap();
        for step in [Step::Conv(&conv), Step::Double, Step::Half(&conv), Step::Join(None)] {
            for size in [2, 7, 12] {
                let result = step.size(size);
                for (start, end) in
                    (0..result).flat_map(|start| (start + 1..=result).map(move |end| (start, end)))
                {
                    let needed = step.needs(Span { start, end }, size);
                    let given = step.gives(needed, size);
                    assert!(needed.start >= 0 && needed.end <= size, "{step:?} {size}");
                    assert!(
                        given.start <= start && given.end >= end,
                        "{step:?} {size}: {start} to {end}, {given:?}"
                    );
                }
            }
        }
    }
}
