//! A smoothed difference: SuperMerger's `smoothAdd`, which filters with scipy.

use std::ops::Range;

use rayon::prelude::*;

use super::{Blocks, Context, State, median::Median};
use crate::Result;

/// B - C after a median of 3 along every axis at once and a Gaussian of sigma 1 along each axis.
pub(super) fn smoothed_difference(blocks: &dyn Blocks) -> Result<State> {
    let form = Form::of(blocks.shape());
    let mut filtered = vec![0.0; form.rows * form.row()];
    let median = Median::new(form.has_rows, &form.kernel);
    let rows = form.slab_rows();
    filtered.par_chunks_mut((rows * form.row()).max(1)).enumerate().try_for_each(|(index, out)| {
        let first = index * rows;
        let last = first + out.len() / form.row();
        slab(blocks, &form, &median, first..last, out)
    })?;
    Ok(State::Whole(filtered))
}

/// `a + alpha * filtered`.
pub(super) fn add(a: &mut [f32], alpha: f64, context: &Context) {
    let State::Whole(filtered) = context.state else { panic!("prepared: {:?}", context.state) };
    let alpha = alpha as f32;
    for (a, filtered) in a.iter_mut().zip(&filtered[context.start..]) {
        *a += alpha * filtered;
    }
}

/// A shape as it is filtered: the first axis in slabs, the second one as lanes of vector code.
struct Form {
    rows: usize,
    has_rows: bool,
    lanes: usize,
    has_lanes: bool,
    /// The extents of all other axes; of a convolution, its kernel.
    kernel: Vec<usize>,
}

impl Form {
    fn of(shape: &[usize]) -> Self {
        // An axis of one element is its own mirror: it changes neither filter.
        let shape: Vec<_> = shape.iter().copied().filter(|extent| *extent != 1).collect();
        match *shape.as_slice() {
            [] => Self { rows: 1, has_rows: false, lanes: 1, has_lanes: false, kernel: Vec::new() },
            [lanes] => Self { rows: 1, has_rows: false, lanes, has_lanes: true, kernel: Vec::new() },
            [rows, lanes, ref kernel @ ..] => {
                Self { rows, has_rows: true, lanes, has_lanes: true, kernel: kernel.to_vec() }
            }
        }
    }

    /// Elements that differ from each other in the kernel's axes alone.
    fn planes(&self) -> usize {
        self.kernel.iter().product()
    }

    fn row(&self) -> usize {
        self.lanes * self.planes()
    }

    /// Enough that what neighbouring slabs both work out is little, and so few that slabs stay small beside the tensor.
    fn slab_rows(&self) -> usize {
        const ELEMENTS: usize = 1 << 20;
        (ELEMENTS / self.row().max(1)).max(32)
    }
}

/// Rows of a tensor that are filtered, plane by plane: (rows, planes, lanes).
struct Slab<T> {
    first: usize,
    /// From one plane to the next, in elements.
    stride: usize,
    planes: usize,
    values: Vec<T>,
}

impl<T: Copy + Default> Slab<T> {
    fn new(rows: &Range<usize>, planes: usize, stride: usize) -> Self {
        let values = vec![T::default(); rows.len() * planes * stride];
        Self { first: rows.start, stride, planes, values }
    }

    fn at(&self, row: usize, plane: usize) -> usize {
        ((row - self.first) * self.planes + plane) * self.stride
    }

    fn line(&self, row: usize, plane: usize, lanes: usize) -> &[T] {
        &self.values[self.at(row, plane)..][..lanes]
    }

    fn line_mut(&mut self, row: usize, plane: usize, lanes: usize) -> &mut [T] {
        let start = self.at(row, plane);
        &mut self.values[start..start + lanes]
    }
}

impl Slab<f64> {
    fn rounded(self) -> Slab<f32> {
        let Self { first, stride, planes, values } = self;
        Slab { first, stride, planes, values: values.into_iter().map(|value| value as f32).collect() }
    }
}

/// Filters some rows, from all the rows around that they depend on.
fn slab(
    blocks: &dyn Blocks,
    form: &Form,
    median: &Median,
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    let around = |rows: &Range<usize>, n: usize| rows.start.saturating_sub(n)..(rows.end + n).min(form.rows);
    let to_weigh = around(&rows, RADIUS);
    let to_sort = around(&to_weigh, 1);
    let keys = read(blocks, form, &to_sort)?;
    let (lanes, planes) = (form.lanes, form.planes());
    let mut sorted: Slab<f64> = Slab::new(&to_weigh, planes, lanes);
    for row in to_weigh {
        let neighbours = [row.saturating_sub(1), row, (row + 1).min(form.rows - 1)];
        let neighbours = neighbours.map(|row| &keys.values[keys.at(row, 0)..keys.at(row + 1, 0)]);
        let start = sorted.at(row, 0);
        median.of_row(&neighbours, keys.stride, lanes, &mut sorted.values[start..start + planes * lanes]);
    }
    drop(keys);
    let mut filtered = match form.has_rows {
        true => along_rows(form, &sorted, &rows),
        false => sorted.rounded(),
    };
    for row in rows.clone() {
        if form.has_lanes {
            along_lanes(form, row, &mut filtered);
        }
        along_kernel(form, row, &mut filtered);
    }
    for (row, out) in rows.zip(out.chunks_mut(form.row())) {
        for plane in 0..planes {
            let line = filtered.line(row, plane, lanes);
            out[plane..].iter_mut().step_by(planes).zip(line).for_each(|(out, value)| *out = *value);
        }
    }
    Ok(())
}

/// B - C of some rows as keys, each line with its edge elements once more at its ends, and room behind.
fn read(blocks: &dyn Blocks, form: &Form, rows: &Range<usize>) -> Result<Slab<i32>> {
    let (planes, row) = (form.planes(), form.row());
    let mut keys = Slab::new(rows, planes, Median::stride(form.lanes));
    let (start, end) = (rows.start * row, rows.end * row);
    for block in start / blocks.block_len()..end.div_ceil(blocks.block_len()) {
        blocks.read(block, &mut |at, values| {
            let (from, to) = (start.max(at), end.min(at + values[1].len()));
            let (b, c) = (&values[1][from - at..to - at], &values[2][from - at..to - at]);
            let (mut lane, mut plane) = (from % row / planes, from % planes);
            let mut line = keys.at(from / row, 0);
            for (b, c) in b.iter().zip(c) {
                keys.values[line + plane * keys.stride + 1 + lane] = Median::key(b - c);
                plane += 1;
                if plane == planes {
                    (plane, lane) = (0, lane + 1);
                    if lane == form.lanes {
                        (lane, line) = (0, line + planes * keys.stride);
                    }
                }
            }
        })?;
    }
    for line in keys.values.chunks_mut(keys.stride) {
        line[0] = line[1];
        line[form.lanes + 1] = line[form.lanes];
    }
    Ok(keys)
}

/// Standard deviations at which the Gaussian is cut, as scipy's default.
const RADIUS: usize = 4;

/// The elements of a line that one of the result is made of: at the distances -4 to 4. As f64, since each is looked at nine times.
type Around<'a> = [&'a [f64]; 2 * RADIUS + 1];

vodka_stage::for_avx2! {
    /// scipy's `gaussian_filter1d` with sigma 1: sums in f64, symmetrical pairs first.
    fn weigh(weights: &[f64; RADIUS + 1], around: &Around, out: &mut [f32]) {
        let n = out.len();
        let around = around.map(|line| &line[..n]);
        for i in 0..n {
            let at = |place: usize| around[place][i];
            let mut sum = at(RADIUS) * weights[0];
            for distance in (1..=RADIUS).rev() {
                sum += (at(RADIUS - distance) + at(RADIUS + distance)) * weights[distance];
            }
            out[i] = sum as f32;
        }
    }
}

fn along_rows(form: &Form, from: &Slab<f64>, rows: &Range<usize>) -> Slab<f32> {
    let weights = gaussian_weights();
    let mut to = Slab::new(rows, from.planes, form.lanes);
    for row in rows.clone() {
        for plane in 0..from.planes {
            let around: Around =
                std::array::from_fn(|i| from.line(mirror(row + i, form.rows), plane, form.lanes));
            weigh(&weights, &around, to.line_mut(row, plane, form.lanes));
        }
    }
    to
}

fn along_lanes(form: &Form, row: usize, slab: &mut Slab<f32>) {
    let (weights, lanes) = (gaussian_weights(), form.lanes);
    let mut line = vec![0.0; lanes + 2 * RADIUS];
    for plane in 0..slab.planes {
        let out = slab.line_mut(row, plane, lanes);
        line[RADIUS..].iter_mut().zip(&*out).for_each(|(wide, value)| *wide = f64::from(*value));
        for i in (0..RADIUS).chain(lanes + RADIUS..lanes + 2 * RADIUS) {
            line[i] = f64::from(out[mirror(i, lanes)]);
        }
        weigh(&weights, &std::array::from_fn(|i| &line[i..i + lanes]), out);
    }
}

fn along_kernel(form: &Form, row: usize, slab: &mut Slab<f32>) {
    let (weights, lanes) = (gaussian_weights(), form.lanes);
    let mut stride = slab.planes;
    let mut lines = Vec::new();
    for extent in &form.kernel {
        stride /= extent;
        for first in (0..slab.planes).filter(|plane| (plane / stride).is_multiple_of(*extent)) {
            let plane = |i: usize| first + i * stride;
            lines.clear();
            for i in 0..*extent {
                lines.extend(slab.line(row, plane(i), lanes).iter().map(|value| f64::from(*value)));
            }
            for i in 0..*extent {
                let around =
                    std::array::from_fn(|place| &lines[mirror(i + place, *extent) * lanes..][..lanes]);
                weigh(&weights, &around, slab.line_mut(row, plane(i), lanes));
            }
        }
    }
}

/// Where the element `i` of a line that is extended by the radius on both sides is taken from: `c b a | a b c | c b a`.
fn mirror(i: usize, extent: usize) -> usize {
    let period = 2 * extent as isize;
    let place = (i as isize - RADIUS as isize).rem_euclid(period) as usize;
    if place < extent { place } else { 2 * extent - 1 - place }
}

/// exp(-x^2 / 2) for the distances 0 to 4, with the sum 1 over both sides.
fn gaussian_weights() -> [f64; RADIUS + 1] {
    let mut weights: [f64; RADIUS + 1] = std::array::from_fn(|x| (-0.5 * (x * x) as f64).exp());
    let sum = weights[0] + 2.0 * weights[1..].iter().sum::<f64>();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    weights
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::kernel::tests::{Memory, bits};

    /// Places at a distance of at most 1 along each axis; an edge is its own neighbour.
    fn neighbours(place: usize, shape: &[usize]) -> Vec<usize> {
        let (mut places, mut left, mut stride) = (vec![0], place, 1);
        for extent in shape.iter().rev() {
            let at = left % extent;
            left /= extent;
            let around = [at.saturating_sub(1), at, (at + 1).min(extent - 1)];
            places = places.iter().flat_map(|place| around.map(|at| place + at * stride)).collect();
            stride *= extent;
        }
        places
    }

    /// The same, an element after the other.
    fn plain(memory: &Memory) -> Vec<f32> {
        let shape: Vec<_> = memory.shape.iter().copied().filter(|extent| *extent != 1).collect();
        let [_, b, c] = memory.values.as_slice() else { panic!("three tensors") };
        let difference: Vec<f32> = b.iter().zip(c).map(|(b, c)| b - c).collect();
        let median = |place| {
            let mut around: Vec<f32> =
                neighbours(place, &shape).into_iter().map(|place| difference[place]).collect();
            around.sort_by(f32::total_cmp);
            around[around.len() / 2]
        };
        let mut values: Vec<f32> = (0..difference.len()).map(median).collect();
        let weights = gaussian_weights();
        for axis in 0..shape.len() {
            let (extent, stride) = (shape[axis], shape[axis + 1..].iter().product::<usize>());
            let weighed = |place: usize| {
                let at = place / stride % extent;
                let first = place - at * stride;
                let value = |i: usize| f64::from(values[first + mirror(i, extent) * stride]);
                let mut sum = value(at + RADIUS) * weights[0];
                for distance in (1..=RADIUS).rev() {
                    sum +=
                        (value(at + RADIUS - distance) + value(at + RADIUS + distance)) * weights[distance];
                }
                sum as f32
            };
            values = (0..values.len()).map(weighed).collect();
        }
        values
    }

    fn check(memory: &Memory) {
        let State::Whole(found) = smoothed_difference(memory).unwrap() else { panic!("a value an element") };
        assert_eq!(bits(&found), bits(&plain(memory)), "{:?}", memory.shape);
    }

    fn memory(shape: &[usize], block: usize, mut value: impl FnMut() -> f32) -> Memory {
        let n: usize = shape.iter().product();
        let values = (0..3).map(|_| (0..n).map(|_| value()).collect()).collect();
        Memory { shape: shape.to_vec(), values, block }
    }

    /// Numbers that are all over the place, and often equal.
    fn noise() -> impl FnMut() -> f32 {
        let mut state = 1_u32;
        move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 22) as f32 / 64.0 - 8.0
        }
    }

    #[test]
    fn slabs_fit_together() {
        // Some slabs each, the last one short; lanes that fill no vector.
        for shape in [&[131, 7, 3, 3][..], &[70, 37], &[40_000, 1, 1, 1], &[67, 5, 2, 4], &[65, 1, 3, 3]] {
            check(&memory(shape, 1000, noise()));
        }
    }

    proptest! {
        #[test]
        fn vector_code_filters_as_an_element_after_the_other(
            shape in vec(1..6_usize, 0..5),
            values in vec(prop_oneof![Just(0.0_f32), Just(-0.0_f32), -1e4_f32..1e4], 1..97),
            block in 1..50_usize,
        ) {
            let mut values = values.into_iter().cycle();
            check(&memory(&shape, block, || values.next().unwrap()));
        }
    }
}
