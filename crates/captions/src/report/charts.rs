//! The charts of a report as SVG: inside a page, where the page's colours hold, or as a file with its own.

use minijinja::Value;
use serde::Serialize;

use super::{
    data::{ReportData, TagData},
    gallery::{BUCKETS, bound},
    templates::render,
};

/// The width of all charts but the heat map, in user units: readable on a phone, where a unit is a little less than a
/// pixel, and not too large at twice that.
const WIDTH: f64 = 360.0;

/// The most tags of a heat map; more would be neither read nor printed.
pub(super) const HEAT_MAX: usize = 40;

/// The longest label of a row, in letters.
const LABEL_MAX: usize = 22;

/// Where a chart stands, which decides its links and colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// In `index.html` or a page of a tag.
    Page,
    /// In a file in `charts/`.
    File,
}

/// A chart to be drawn.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Chart {
    template: &'static str,
    width: f64,
    height: f64,
    /// What it shows, for those who cannot see it.
    label: String,
    /// What its template asks for.
    body: Value,
}

impl Chart {
    /// The SVG.
    pub(super) fn svg(&self, place: Place) -> String {
        #[derive(Serialize)]
        struct Context<'a> {
            place: Place,
            chart: &'a Chart,
        }
        render(self.template, Context { place, chart: self })
    }
}

/// Horizontal bars with a name each.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Rows {
    legend: [String; 2],
    rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    y: f64,
    name: String,
    title: String,
    /// Below the report's folder.
    link: String,
    all: f64,
    enough: f64,
    text: String,
    text_x: f64,
}

/// The tags by the number of their pictures.
pub(super) fn tags(data: &ReportData) -> Chart {
    const LEFT: f64 = 146.0;
    const FULL: f64 = 166.0;
    const STEP: f64 = 18.0;
    const TOP: f64 = 26.0;
    let most = data.analysis.tags.iter().map(|tag| tag.images).max().unwrap_or(0).max(1);
    let length = |images: u64| round(FULL * images as f64 / most as f64);
    let row = |(place, tag): (usize, &TagData)| {
        let images = data.analysis_of(tag).images;
        let enough = tag.images_at_min_score;
        let (all, text) = (length(images), thousands(images));
        Row {
            y: TOP + STEP * place as f64,
            name: shortened(&tag.tag, LABEL_MAX),
            title: format!(
                "{}: {text} pictures, {} at {} or more",
                tag.tag,
                thousands(enough),
                data.min_score
            ),
            link: format!("tags/{}.html", tag.slug),
            all,
            enough: length(enough),
            text,
            text_x: round(LEFT + all + 4.0),
        }
    };
    let rows: Vec<_> = data.tags.iter().enumerate().map(row).collect();
    Chart {
        template: "rows.svg",
        width: WIDTH,
        height: TOP + STEP * rows.len() as f64 + 4.0,
        label: "Pictures of each tag".to_owned(),
        body: Value::from_serialize(Rows {
            legend: [format!("at {} or more", data.min_score), "at any score".to_owned()],
            rows,
        }),
    }
}

/// Vertical bars over a scale.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Columns {
    lines: Vec<Tick>,
    ticks: Vec<Tick>,
    columns: Vec<Column>,
    /// Each with a line of text of its own, above the bars.
    marks: Vec<Mark>,
    /// Where the lines of the marks begin.
    top: f64,
    axis: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Mark {
    at: f64,
    y: f64,
    text: String,
    anchor: &'static str,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Tick {
    at: f64,
    text: String,
    /// `start`, `middle` or `end`.
    anchor: &'static str,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Column {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    class: &'static str,
    title: String,
    /// A place on the same page.
    link: Option<String>,
}

/// A bar before it has a place.
struct Bar {
    value: f64,
    class: &'static str,
    title: String,
    link: Option<String>,
}

const LEFT: f64 = 42.0;
const RIGHT: f64 = WIDTH - 12.0;
const BOTTOM: f64 = 158.0;
/// What a line of text takes.
const LINE: f64 = 14.0;

/// Draws bars side by side. Ticks and marks are at places counted in bars.
fn columns(
    label: String,
    axis: &str,
    bars: Vec<Bar>,
    ticks: Vec<(f64, String)>,
    marks: Vec<(f64, String)>,
) -> Chart {
    let most = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let (step, highest) = scale(most);
    let top = 8.0 + LINE * marks.len().max(1) as f64;
    let width = (RIGHT - LEFT) / bars.len().max(1) as f64;
    let x = |place: f64| round(LEFT + width * place);
    let y = |value: f64| round(BOTTOM - (BOTTOM - top) * value / highest);
    let column = |(place, bar): (usize, Bar)| {
        // What is there is seen, however little it is.
        let height = if bar.value > 0.0 { (BOTTOM - y(bar.value)).max(1.5) } else { 0.0 };
        Column {
            x: round(x(place as f64) + 0.08 * width),
            y: round(BOTTOM - height),
            width: round(0.84 * width),
            height: round(height),
            class: bar.class,
            title: bar.title,
            link: bar.link,
        }
    };
    let line = |n: u32| {
        let value = step * f64::from(n);
        Tick { at: y(value), text: short_number(value), anchor: "end" }
    };
    let lines = (0..).take_while(|n| step * f64::from(*n) <= highest * 1.001).map(line).collect();
    let tick = |(at, text)| Tick { at: x(at), text, anchor: "middle" };
    let mark = |(line, (at, text)): (usize, (f64, String))| {
        let (at, y) = (x(at), LINE * (line + 1) as f64 - 3.0);
        Mark { at, y, text, anchor: if at > WIDTH / 2.0 { "end" } else { "start" } }
    };
    Chart {
        template: "columns.svg",
        width: WIDTH,
        height: 192.0,
        label,
        body: Value::from_serialize(Columns {
            lines,
            ticks: ticks.into_iter().map(tick).collect(),
            columns: bars.into_iter().enumerate().map(column).collect(),
            marks: marks.into_iter().enumerate().map(mark).collect(),
            top: top - 4.0,
            axis: axis.to_owned(),
        }),
    }
}

/// The step of the lines, and the top of the scale, for values up to `most`.
fn scale(most: f64) -> (f64, f64) {
    let most = most.max(1e-9);
    let power = 10_f64.powf((most / 4.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| step * 4.0 >= most * 0.999);
    let step = step.unwrap_or(10.0 * power);
    (step, step * (most / step).ceil().max(1.0))
}

/// The scores of a tag.
pub(super) fn histogram(data: &ReportData, tag: &TagData) -> Chart {
    let numbers = data.analysis_of(tag);
    let bar = |(place, images): (usize, &u64)| Bar {
        value: *images as f64,
        class: if bound(place) >= data.min_score { "bar" } else { "pale" },
        title: format!("{}: {} pictures", bucket_name(place), thousands(*images)),
        link: (*images > 0).then(|| format!("#b{}", 100 * place / BUCKETS)),
    };
    let in_bars = |score: f32| f64::from(score) * BUCKETS as f64;
    let ticks = (0..=10_u32).step_by(2).map(|k| (f64::from(2 * k), format!("{:.1}", f64::from(k) / 10.0)));
    let mut marks = vec![(in_bars(data.min_score), format!("minimum {}", data.min_score))];
    marks.extend(suggested(data, tag).map(|score| (in_bars(score), format!("suggested {score:.2}"))));
    columns(
        format!("Scores of {}", tag.tag),
        "score",
        numbers.histogram.iter().enumerate().map(bar).collect(),
        ticks.collect(),
        marks,
    )
}

/// The threshold that the analysis suggests for a tag: from judged pictures, if there are any.
pub(super) fn suggested(data: &ReportData, tag: &TagData) -> Option<f32> {
    let suggestion = data.analysis_of(tag).suggestion.as_ref()?;
    suggestion.from_labels.as_ref().map(|labels| labels.threshold).or(suggestion.knee)
}

/// `35 to 40 %`, or `95 % and above`.
pub(super) fn bucket_name(place: usize) -> String {
    let percent = |place: usize| 100 * place / BUCKETS;
    match place + 1 {
        BUCKETS => format!("{} % and above", percent(place)),
        next => format!("{} to {} %", percent(place), percent(next)),
    }
}

/// Measured sharpness by the score of a tag.
pub(super) fn sharpness(data: &ReportData) -> Option<Chart> {
    let agreement = data.analysis.sharpness.as_ref()?;
    let bars = agreement.buckets.iter().map(|bucket| Bar {
        value: bucket.median.unwrap_or_default(),
        class: "bar",
        title: format!(
            "{} at {} to {}: median sharpness {:.0}, {} pictures",
            agreement.tag,
            bucket.from,
            bucket.to,
            bucket.median.unwrap_or_default(),
            thousands(bucket.images)
        ),
        link: None,
    });
    // Where there are many, every other bound is named.
    let every = agreement.buckets.len().div_ceil(11).max(1);
    let mut ticks: Vec<_> =
        agreement.buckets.iter().enumerate().map(|(place, bucket)| (place as f64, bucket.from)).collect();
    ticks.extend(agreement.buckets.last().map(|bucket| (agreement.buckets.len() as f64, bucket.to)));
    let ticks = ticks.into_iter().step_by(every).map(|(at, bound)| (at, trimmed(bound)));
    Some(columns(
        format!("Median sharpness by score of {}", agreement.tag),
        &format!("score of {}", shortened(&agreement.tag, 40)),
        bars.collect(),
        ticks.collect(),
        Vec::new(),
    ))
}

/// The captions by their tokens.
pub(super) fn captions(data: &ReportData) -> Chart {
    let last = data.caption_tokens.len().saturating_sub(1);
    let bars = data.caption_tokens.iter().enumerate().map(|(place, captions)| {
        let range = if place == last {
            format!("more than {}", 5 * place)
        } else {
            format!("{} to {}", 5 * place + 1, 5 * place + 5)
        };
        Bar {
            value: *captions as f64,
            class: if place == last { "warn" } else { "bar" },
            title: format!("{range} tokens: {} captions", thousands(*captions)),
            link: None,
        }
    });
    let ticks = (0..=last).step_by(3).map(|place| (place as f64, (5 * place).to_string()));
    columns(
        "Captions by their CLIP tokens".to_owned(),
        "CLIP tokens of a caption",
        bars.collect(),
        ticks.collect(),
        Vec::new(),
    )
}

/// Squares, one for each pair of tags.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Heat {
    rows: Vec<Label>,
    columns: Vec<Label>,
    cells: Vec<Cell>,
    cell: f64,
    left: f64,
    top: f64,
    side: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Label {
    at: f64,
    text: String,
    title: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Cell {
    x: f64,
    y: f64,
    /// In percent; none on the diagonal.
    strength: Option<u32>,
    title: String,
}

/// Which tags stand together: of the pictures with the tag of a row, how many have that of a column.
pub(super) fn cooccurrence(data: &ReportData) -> Option<Chart> {
    const CELL: f64 = 14.0;
    const LEFT: f64 = 156.0;
    const TOP: f64 = 132.0;
    let pairs = &data.analysis.cooccurrence;
    let shown = most_frequent(data);
    if shown.len() < 2 {
        return None;
    }
    let mut cells = Vec::new();
    for (y, a) in shown.iter().enumerate() {
        let own = pairs.counts[*a][*a];
        for (x, b) in shown.iter().enumerate() {
            let both = pairs.counts[*a][*b];
            if both == 0 {
                continue;
            }
            let percent = (100.0 * both as f64 / own.max(1) as f64).round() as u32;
            let title = match a == b {
                true => format!("{}: {} pictures", pairs.tags[*a], thousands(own)),
                false => format!(
                    "{percent} % of {} have {}: {} pictures",
                    pairs.tags[*a],
                    pairs.tags[*b],
                    thousands(both)
                ),
            };
            let [x, y] = [LEFT + CELL * x as f64, TOP + CELL * y as f64];
            cells.push(Cell { x, y, strength: (a != b).then_some(percent), title });
        }
    }
    let label = |start: f64| {
        move |(place, tag): (usize, &usize)| Label {
            at: start + CELL * place as f64 + CELL / 2.0,
            text: shortened(&pairs.tags[*tag], LABEL_MAX),
            title: pairs.tags[*tag].clone(),
        }
    };
    let side = CELL * shown.len() as f64;
    Some(Chart {
        template: "heat.svg",
        // The slanted names of the last columns lean out.
        width: LEFT + side + 90.0,
        height: TOP + side + 4.0,
        label: "Tags that stand together".to_owned(),
        body: Value::from_serialize(Heat {
            rows: shown.iter().enumerate().map(label(TOP)).collect(),
            columns: shown.iter().enumerate().map(label(LEFT)).collect(),
            cells,
            cell: CELL,
            left: LEFT,
            top: TOP,
            side,
        }),
    })
}

/// The places, in the co-occurrence, of the most frequent tags.
fn most_frequent(data: &ReportData) -> Vec<usize> {
    let pairs = &data.analysis.cooccurrence;
    let mut shown: Vec<_> = (0..pairs.tags.len()).filter(|tag| pairs.counts[*tag][*tag] > 0).collect();
    shown.sort_by_key(|tag| std::cmp::Reverse(pairs.counts[*tag][*tag]));
    shown.truncate(HEAT_MAX);
    shown
}

/// A histogram as the path of a small chart, 40 by 12.
pub(super) fn spark(histogram: &[u64]) -> String {
    let most = histogram.iter().copied().max().unwrap_or(0).max(1) as f64;
    let step = 40.0 / histogram.len().max(1) as f64;
    let bar = |(place, images): (usize, &u64)| {
        let height = round((12.0 * *images as f64 / most).max(0.6));
        (*images > 0)
            .then(|| format!("M{} 12v-{height}h{}v{height}z", round(step * place as f64), step - 0.3))
    };
    histogram.iter().enumerate().filter_map(bar).collect()
}

/// To a tenth of a unit, which is less than is seen.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// A name of at most so many letters; those of East Asian scripts, which are twice as wide, count as two.
fn shortened(name: &str, most: usize) -> String {
    let width = |c: char| if c >= '\u{2e80}' { 2 } else { 1 };
    if name.chars().map(width).sum::<usize>() <= most {
        return name.to_owned();
    }
    let mut room = most - 1;
    let fits = |c: &char| {
        let left = room.checked_sub(width(*c));
        room = left.unwrap_or(0);
        left.is_some()
    };
    name.chars().take_while(fits).chain(['…']).collect()
}

/// A number with a comma before every third digit from the end.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.char_indices() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A score or bound without digits that say nothing.
pub(super) fn trimmed(value: f32) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A number on a scale.
fn short_number(value: f64) -> String {
    if value >= 10_000.0 {
        format!("{}k", trimmed((value / 1000.0) as f32))
    } else if value >= 1000.0 {
        thousands(value as u64)
    } else {
        trimmed(value as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_at_a_glance() {
        assert_eq!([0, 12, 999, 1000, 1_234_567].map(thousands), ["0", "12", "999", "1,000", "1,234,567"]);
        assert_eq!([0.3, 0.35, 1.0, 0.0].map(trimmed), ["0.3", "0.35", "1", "0"]);
        assert_eq!([0.5, 20.0, 1500.0, 12_500.0].map(short_number), ["0.5", "20", "1,500", "12.5k"]);
        assert_eq!(shortened("blurry", 6), "blurry");
        assert_eq!(shortened("blurry_background", 6), "blurr…");
        assert_eq!(shortened("日本語写真", 10), "日本語写真");
        assert_eq!(shortened("日本語写真", 6), "日本…");
        assert_eq!([7, 19].map(bucket_name), ["35 to 40 %", "95 % and above"]);
    }

    #[test]
    fn a_scale_has_a_few_lines_and_holds_the_highest() {
        for most in [0.0, 0.7, 1.0, 3.0, 4.0, 9.0, 10.0, 47.0, 99.0, 1617.0, 1e6] {
            let (step, top) = scale(most);
            let lines = top / step;
            assert!(top >= most && (0.99..=4.01).contains(&lines), "{most}: {step} {top}");
        }
    }

    #[test]
    fn a_small_chart_has_a_bar_for_each_bucket_that_is_not_empty() {
        assert_eq!(spark(&[0, 1, 4, 2]), "M10 12v-3h9.7v3zM20 12v-12h9.7v12zM30 12v-6h9.7v6z");
        assert_eq!(spark(&[0, 0]), "");
    }
}
