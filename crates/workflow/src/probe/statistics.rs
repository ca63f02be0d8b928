//! Numbers of pictures, and of pairs of pictures, with their intervals. Values in, values out.

use serde::{Deserialize, Serialize};
use vodka_sampler::{bootstrap, median};

/// The seed of the intervals.
const SEED: u64 = 0;

/// A number with its 95 % interval over seeds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// How many seeds there were.
    pub n: usize,
    /// The number.
    pub value: f64,
    /// The ends of its interval; none of fewer than six seeds.
    pub range: Option<[f64; 2]>,
}

impl Estimate {
    /// What `statistic` makes of samples, which it gets by their numbers; none where that is NaN.
    pub(crate) fn of(count: usize, mut statistic: impl FnMut(&[usize]) -> f64) -> Option<Self> {
        let value = statistic(&(0..count).collect::<Vec<_>>());
        let range = bootstrap(count, SEED, &mut statistic).map(|(low, high)| [low, high]);
        (count > 0 && !value.is_nan()).then_some(Self { n: count, value, range })
    }

    /// The same number and interval on another scale, which rises with this one.
    pub(crate) fn map(self, scale: fn(f64) -> f64) -> Self {
        Self { value: scale(self.value), range: self.range.map(|range| range.map(scale)), ..self }
    }

    /// The lower end of the interval; none without one.
    pub fn low(&self) -> Option<f64> {
        self.range.map(|[low, _]| low)
    }

    /// The upper end.
    pub fn high(&self) -> Option<f64> {
        self.range.map(|[_, high]| high)
    }

    /// Whether there is an interval that does not hold 0.
    pub fn is_clear(&self) -> bool {
        self.range.is_some_and(|[low, high]| low > 0.0 || high < 0.0)
    }
}

/// The median of the finite values.
pub fn level(values: impl IntoIterator<Item = f64>) -> Option<Estimate> {
    let values: Vec<_> = values.into_iter().filter(|value| value.is_finite()).collect();
    let mut buffer = Vec::new();
    Estimate::of(values.len(), |drawn| {
        buffer.clear();
        buffer.extend(drawn.iter().map(|place| values[*place]));
        median(&mut buffer)
    })
}

/// The mean of the finite values.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<Estimate> {
    let values: Vec<_> = values.into_iter().filter(|value| value.is_finite()).collect();
    Estimate::of(values.len(), |drawn| {
        drawn.iter().map(|place| values[*place]).sum::<f64>() / drawn.len() as f64
    })
}

/// The median of the differences between the first and the second value of each pair, of those that are finite.
pub fn difference(pairs: &[(f64, f64)]) -> Option<Estimate> {
    level(pairs.iter().map(|(first, second)| first - second))
}

/// The mean of these differences, for probabilities: many are near 0 or near 1, and between the two a median jumps.
pub fn mean_difference(pairs: &[(f64, f64)]) -> Option<Estimate> {
    mean(pairs.iter().map(|(first, second)| first - second))
}

/// The geometric mean of the first value over the second of each pair, of those ratios that are finite and above 0.
pub fn ratio(pairs: &[(f64, f64)]) -> Option<Estimate> {
    mean(pairs.iter().map(|(first, second)| (first / second).ln())).map(|mean| mean.map(f64::exp))
}

/// Where one more number of the kind lies with 95 %, for numbers that are spread normally: their mean, and a Student's
/// quantile times their deviation times the root of 1 + 1/n to both sides. Of fewer than four the outermost ends of their own
/// intervals.
pub fn further(numbers: &[Estimate]) -> Option<Estimate> {
    let n = numbers.len();
    let mean = numbers.iter().map(|number| number.value).sum::<f64>() / n as f64;
    let range = if n < FEW {
        let ends = || numbers.iter().flat_map(|number| number.range.unwrap_or([number.value; 2]));
        [ends().fold(f64::INFINITY, f64::min), ends().fold(f64::NEG_INFINITY, f64::max)]
    } else {
        let squares: f64 = numbers.iter().map(|number| (number.value - mean).powi(2)).sum();
        let deviation = (squares / (n - 1) as f64).sqrt();
        let reach = student((n - 1) as f64) * deviation * (1.0 + 1.0 / n as f64).sqrt();
        [mean - reach, mean + reach]
    };
    (n > 0).then_some(Estimate { n, value: mean, range: Some(range) })
}

/// Fewer numbers than this say nothing of their spread.
const FEW: usize = 4;

/// Student's 97.5 % quantile, within 1 % from 3 degrees of freedom on (Abramowitz and Stegun, 26.7.5).
fn student(degrees: f64) -> f64 {
    let z = 1.959_963_984_540_054_f64;
    let terms = [
        (z.powi(3) + z) / 4.0,
        (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0,
        (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0,
    ];
    terms.iter().zip(1..).fold(z, |sum, (term, power)| sum + term / degrees.powi(power))
}

/// How many things were found, and how many were asked for, in one picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Of those that were asked for.
    pub found: usize,
    /// Asked for.
    pub requested: usize,
}

/// The share of requested things that were found, in all pictures together.
pub fn share(counts: &[Count]) -> Option<Estimate> {
    Estimate::of(counts.len(), |drawn| share_of(drawn.iter().map(|place| counts[*place])))
}

/// The difference of two such shares, of pairs of pictures, which are drawn whole.
pub fn share_difference(pairs: &[(Count, Count)]) -> Option<Estimate> {
    Estimate::of(pairs.len(), |drawn| {
        let of =
            |side: fn(&(Count, Count)) -> Count| share_of(drawn.iter().map(|place| side(&pairs[*place])));
        of(|pair| pair.0) - of(|pair| pair.1)
    })
}

/// NaN where nothing was asked for.
fn share_of(counts: impl Iterator<Item = Count>) -> f64 {
    let (found, requested) =
        counts.fold((0, 0), |sums, count| (sums.0 + count.found, sums.1 + count.requested));
    found as f64 / requested as f64
}

/// How different pictures of one prompt are: the mean over prompts of the mean distance between two of their pictures, which
/// are numbers 0 to 1 of equal length; a distance is the root of the mean square. Prompts are drawn anew, each with all its
/// pictures; those with fewer than two count not.
pub fn diversity(prompts: &[Vec<&[f32]>]) -> Option<Estimate> {
    mean(prompts.iter().map(|pictures| {
        let mut sum = 0.0;
        for (i, picture) in pictures.iter().enumerate() {
            sum += pictures[..i].iter().map(|other| distance(picture, other)).sum::<f64>();
        }
        // NaN of fewer than two pictures.
        sum / (pictures.len() * pictures.len().saturating_sub(1) / 2) as f64
    }))
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (squares / a.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(n: usize, of: impl Fn(f64) -> (f64, f64)) -> Vec<(f64, f64)> {
        (0..n).map(|i| of(i as f64)).collect()
    }

    #[test]
    fn pairs_tell_what_levels_cannot() {
        // Seeds differ by far more than the tag changes, and the tag changes each alike.
        let pairs = pairs(16, |i| (100.0 * i + 1.0, 100.0 * i));
        let change = difference(&pairs).unwrap();
        assert_eq!((change.n, change.value, change.range), (16, 1.0, Some([1.0, 1.0])));
        assert!(change.is_clear());
        let level = level(pairs.iter().map(|pair| pair.0)).unwrap();
        assert!(level.high().unwrap() - level.low().unwrap() > 300.0, "{level:?}");
    }

    #[test]
    fn ratios_are_of_pairs() {
        // Whatever pairs are drawn, the ratio is 3, however different their values.
        let found = ratio(&pairs(20, |i| (3.0 * (i + 1.0), i + 1.0))).unwrap();
        assert!((found.value - 3.0).abs() < 1e-12);
        assert!(found.range.unwrap().iter().all(|end| (end - 3.0).abs() < 1e-12), "{found:?}");
        assert_eq!(ratio(&pairs(20, |i| (i, 0.0))), None);
        assert_eq!(ratio(&[]), None);
    }

    #[test]
    fn a_ratio_of_two_kinds_of_pictures_lies_between_both() {
        // Half of the prompts follow with a factor of 2, half with 8.
        let found = ratio(&pairs(40, |i| (if i % 2.0 == 0.0 { 2.0 } else { 8.0 }, 1.0))).unwrap();
        assert!((found.value - 4.0).abs() < 1e-12);
        // A standard error of the logarithm is ln 2 / sqrt(40).
        let [low, high] = found.range.unwrap().map(f64::ln);
        assert!((high - low - 2.0 * 1.96 * 2.0_f64.ln() / 40.0_f64.sqrt()).abs() < 0.1, "{low} {high}");
    }

    #[test]
    fn one_more_number_lies_where_the_others_say() {
        let number = |value: f64| Estimate { n: 24, value, range: Some([value - 0.5, value + 0.5]) };
        // scipy.stats.t.ppf(0.975, [3, 7, 9, 30])
        for (degrees, quantile) in [(3.0, 3.182_446), (7.0, 2.364_624), (9.0, 2.262_157), (30.0, 2.042_272)] {
            assert!((student(degrees) / quantile - 1.0).abs() < 0.01, "{degrees}");
        }
        let found = further(&[1.0, 2.0, 3.0, 4.0, 5.0].map(number)).unwrap();
        let reach = 2.776_445 * 2.5_f64.sqrt() * 1.2_f64.sqrt();
        let [low, high] = found.range.unwrap();
        assert_eq!((found.n, found.value), (5, 3.0));
        assert!((low - 3.0 + reach).abs() < 0.03 && (high - 3.0 - reach).abs() < 0.03, "{found:?}");
        // More words that do nothing make one that does something no less of an outlier.
        let mut many = vec![number(0.0); 20];
        assert_eq!(further(&many).unwrap().range, Some([0.0, 0.0]));
        many.push(number(1.0));
        assert!(further(&many).unwrap().high().unwrap() < 0.6);
        assert_eq!(further(&[1.0, 3.0].map(number)).unwrap().range, Some([0.5, 3.5]));
        assert_eq!(further(&[]), None);
    }

    #[test]
    fn a_mean_tells_how_many_pictures_changed() {
        // A tag that brings a thing into half of the pictures: the median is a matter of one seed.
        let found = mean_difference(&pairs(40, |i| (1.0, i % 2.0))).unwrap();
        assert_eq!(found.value, 0.5);
        // The standard error of 40 coins is 0.079.
        let [low, high] = found.range.unwrap();
        assert!((high - low - 2.0 * 1.96 * 0.079).abs() < 0.04, "{low} {high}");
        assert_eq!(mean_difference(&[(f64::NAN, 1.0), (4.0, 2.0)]).unwrap().value, 2.0);
        assert_eq!(mean_difference(&[]), None);
    }

    #[test]
    fn numbers_that_are_none_are_left_out() {
        let values = [f64::NAN, 1.0, 2.0, f64::INFINITY, 3.0];
        let found = level(values).unwrap();
        assert_eq!((found.n, found.value, found.range), (3, 2.0, None));
        assert_eq!(level([f64::NAN]), None);
        assert_eq!(difference(&[(1.0, f64::NAN)]), None);
        assert_eq!(difference(&[(1.0, f64::NAN), (3.0, 1.0)]).unwrap().value, 2.0);
        assert_eq!(ratio(&[(f64::NAN, 1.0), (4.0, 2.0)]).unwrap().value, 2.0);
    }

    #[test]
    fn shares_weigh_each_thing_alike() {
        let count = |found, requested| Count { found, requested };
        assert_eq!(share(&[count(1, 1), count(1, 3)]).unwrap().value, 0.5);
        assert_eq!(share(&[count(0, 0)]), None);
        let found = share_difference(&[(count(2, 2), count(1, 2)), (count(2, 2), count(0, 2))]).unwrap();
        assert_eq!((found.n, found.value), (2, 0.75));
        // A standard error of the share of 64 coins is 0.0625.
        let coins: Vec<_> = (0..64).map(|i| count(i % 2, 1)).collect();
        let [low, high] = share(&coins).unwrap().range.unwrap();
        assert!((high - low - 2.0 * 1.96 * 0.0625).abs() < 0.03, "{low} {high}");
    }

    #[test]
    fn diversity_is_of_pictures_of_one_prompt() {
        let [black, white, grey] = [0.0_f32, 1.0, 0.5].map(|value| vec![value; 4]);
        let of = |prompts: &[Vec<&[f32]>]| diversity(prompts).map(|found| found.value);
        assert_eq!(of(&[vec![&black, &white]]), Some(1.0));
        assert_eq!(of(&[vec![&black, &black], vec![&white, &white]]), Some(0.0));
        let three: f64 = (1.0 + 0.5 + 0.5) / 3.0;
        assert!((of(&[vec![&black, &white, &grey]]).unwrap() - three).abs() < 1e-9);
        // One picture is like no other.
        assert_eq!(of(&[vec![&black], vec![&black, &grey]]), Some(0.5));
        assert_eq!(of(&[vec![&black]]), None);
    }

    proptest! {
        #[test]
        fn an_interval_holds_its_number_and_follows_shifts(
            values in prop::collection::vec(-50.0..50.0_f64, 6..40),
            shift in -100.0..100.0_f64,
        ) {
            let plain = level(values.iter().copied()).unwrap();
            let moved = level(values.iter().map(|value| value + shift)).unwrap();
            let [low, high] = plain.range.unwrap();
            prop_assert!(low <= plain.value && plain.value <= high);
            prop_assert!((plain.value + shift - moved.value).abs() < 1e-9);
            let both: Vec<_> = values.iter().map(|value| (value + shift, *value)).collect();
            prop_assert!((difference(&both).unwrap().value - shift).abs() < 1e-9);
        }

        #[test]
        fn a_difference_is_minus_its_reverse(values in prop::collection::vec((-50.0..50.0_f64, -50.0..50.0_f64), 1..30)) {
            let turned: Vec<_> = values.iter().map(|(a, b)| (*b, *a)).collect();
            let (there, back) = (difference(&values).unwrap(), difference(&turned).unwrap());
            prop_assert!((there.value + back.value).abs() < 1e-9);
            prop_assert_eq!(there.range.is_some(), values.len() >= 6);
        }
    }
}
