//! Numbers for people: few digits, and round ones on the axes of charts.

/// Three digits that count.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => number_text((value * 1e4).round() / 1e4),
    }
}

/// The same with its sign.
pub fn signed(value: f64) -> String {
    if value > 0.0 { format!("+{}", short(value)) } else { short(value) }
}

/// Six digits are more than measures are worth.
pub(crate) fn number_text(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Round numbers in equal steps, from below the least to above the most; two or more.
pub fn ticks(least: f64, most: f64) -> Vec<f64> {
    let span = if most > least { most - least } else { most.abs().max(1e-3) };
    let power = 10_f64.powf((span / 4.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| span / step <= 5.0);
    let step = step.unwrap_or(10.0 * power);
    let first = (least / step).floor();
    let count = ((most / step).ceil() - first).max(1.0) as usize;
    (0..=count).map(|i| (first + i as f64) * step).collect()
}

/// As many decimals as the step between ticks has.
pub fn decimals(ticks: &[f64]) -> usize {
    let step = ticks[1] - ticks[0];
    (-(step.log10() + 1e-6).floor()).max(0.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_told_apart() {
        let of = |low, high| {
            let ticks = ticks(low, high);
            let decimals = decimals(&ticks);
            ticks.iter().map(|tick| format!("{tick:.decimals$}")).collect::<Vec<_>>()
        };
        assert_eq!(of(412.1, 412.9), ["412.0", "412.2", "412.4", "412.6", "412.8", "413.0"]);
        assert_eq!(of(0.0, 100.0), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!(of(0.0123, 0.0127), ["0.0123", "0.0124", "0.0125", "0.0126", "0.0127"]);
    }

    #[test]
    fn ticks_are_round_and_hold_all() {
        assert_eq!(ticks(0.0, 100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(ticks(-3.0, 7.0), [-4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0]);
        for (low, high) in [(0.0, 0.0), (5.0, 5.0), (1234.5, 1234.6), (-0.002, 0.0)] {
            let ticks = ticks(low, high);
            assert!(ticks.len() >= 2 && ticks.len() <= 8, "{ticks:?}");
            assert!(ticks[0] <= low && *ticks.last().unwrap() >= high, "{ticks:?}");
        }
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        let found = [1234.56, 45.678, 1.2345, 0.123_456, 0.0, -0.5].map(short);
        assert_eq!(found, ["1235", "45.7", "1.23", "0.1235", "0", "-0.5"]);
        assert_eq!((signed(0.5), signed(-0.5), signed(0.0)), ("+0.5".into(), "-0.5".into(), "0".into()));
    }
}
