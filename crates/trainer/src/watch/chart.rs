//! Graphs as SVG and PNG.

use std::sync::Once;

use plotters::{coord::Shift, prelude::*, style::register_font};
use vodka_images::RgbImage;

/// A graph.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plot {
    /// What is written above it.
    pub title: String,
    /// What the horizontal axis counts.
    pub x: String,
    /// What the vertical axis counts.
    pub y: String,
    /// Whether the horizontal axis goes by powers of ten.
    pub logarithmic: bool,
    /// What is drawn, first what is behind.
    pub lines: Vec<Line>,
}

/// One of the things in a graph.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    /// Its name in the legend.
    pub label: String,
    /// How it is drawn.
    pub marks: Marks,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// How a line is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marks {
    /// Pale, from the smallest to the largest of what falls together; values that are rare do not decide the axis.
    Band,
    /// A line.
    Line,
    /// A line with a dot at each point.
    Points,
}

const SIZE_PX: (u32, u32) = (1000, 560);
const FONT: &str = "sans-serif";
const TITLE_PX: u32 = 26;
const TEXT_PX: u32 = 19;
const PALE: RGBColor = RGBColor(158, 184, 218);
const COLOURS: [RGBColor; 6] = [
    RGBColor(24, 78, 150),
    RGBColor(205, 80, 10),
    RGBColor(20, 130, 70),
    RGBColor(140, 50, 150),
    RGBColor(150, 115, 0),
    RGBColor(80, 80, 80),
];

impl Plot {
    /// The graph as an SVG document.
    pub fn svg(&self) -> String {
        let mut text = String::new();
        self.draw(&SVGBackend::with_string(&mut text, SIZE_PX).into_drawing_area());
        text
    }

    /// The graph as a PNG file.
    pub fn png(&self) -> Vec<u8> {
        let (width, height) = SIZE_PX;
        let mut picture = RgbImage::new(width, height);
        self.draw(&BitMapBackend::with_buffer(&mut picture, SIZE_PX).into_drawing_area());
        vodka_images::png(&picture)
    }

    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) {
        register();
        self.try_draw(area).unwrap_or_else(|error| panic!("memory takes every graph: {error}"));
    }

    fn try_draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
    ) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
        area.fill(&WHITE)?;
        let lines: Vec<_> = self.lines.iter().map(|line| self.prepared(line)).collect();
        let (left, right) = span(lines.iter().flat_map(|line| line.points.iter().map(|point| point.0)));
        // So that the last dot is a whole one.
        let right = right + 0.01 * (right - left);
        let (bottom, top) = padded(span(lines.iter().flat_map(heights)));
        let mut chart = ChartBuilder::on(area)
            .margin(14)
            .caption(&self.title, (FONT, TITLE_PX))
            .x_label_area_size(56)
            .y_label_area_size(86)
            .build_cartesian_2d(left..right, bottom..top)?;
        chart
            .configure_mesh()
            .light_line_style(BLACK.mix(0.0))
            .bold_line_style(BLACK.mix(0.12))
            .label_style((FONT, TEXT_PX))
            .axis_desc_style((FONT, TEXT_PX))
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_labels(8)
            .y_labels(8)
            .x_label_formatter(&|x| self.x_label(*x))
            .y_label_formatter(&|y| y_label(*y, top - bottom))
            .draw()?;
        let mut colours = COLOURS.iter().cycle();
        for line in &lines {
            let (colour, width) = match line.marks {
                Marks::Band => (PALE, 1),
                _ => (*colours.next().expect("a cycle has no end"), 2),
            };
            let style = colour.stroke_width(width);
            let points: Vec<_> = line.points.iter().map(|(x, y)| (*x, y.clamp(bottom, top))).collect();
            if line.marks == Marks::Points {
                chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, colour.filled())))?;
            }
            chart
                .draw_series(LineSeries::new(points, style))?
                .label(&line.label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 26, y)], colour.stroke_width(3)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .margin(12)
            .legend_area_size(34)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font((FONT, TEXT_PX))
            .draw()?;
        area.present()
    }

    /// A line with finite points only, few enough for the width of the graph, in the units of the axes.
    fn prepared(&self, line: &Line) -> Line {
        let x = |x: f64| if self.logarithmic { x.log10() } else { x };
        let points = line.points.iter().map(|(at, y)| (x(*at), *y));
        let points: Vec<_> = points.filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        let together = points.len().div_ceil(SIZE_PX.0 as usize);
        let thinned = points.chunks(together.max(1)).flat_map(|chunk| {
            let last = chunk[chunk.len() - 1];
            let (low, high) = span(chunk.iter().map(|point| point.1));
            match line.marks {
                Marks::Band if chunk.len() > 1 => vec![(last.0, low), (last.0, high)],
                _ => vec![last],
            }
        });
        Line { label: line.label.clone(), marks: line.marks, points: thinned.collect() }
    }

    fn x_label(&self, x: f64) -> String {
        match (self.logarithmic, (x - x.round()).abs() < 1e-6) {
            (true, true) => format!("1e{}", x.round()),
            (true, false) => format!("{:.0e}", 10_f64.powf(x)),
            (false, _) => format!("{}", x.round()),
        }
    }
}

/// With so many decimals that neighbours on an axis of this length differ.
fn y_label(y: f64, length: f64) -> String {
    let decimals = (1.5 - length.log10()).ceil().clamp(0.0, 12.0) as usize;
    format!("{y:.decimals$}")
}

/// The values that decide the vertical axis: of a band all but the rarest.
fn heights(line: &Line) -> Vec<f64> {
    let mut heights: Vec<_> = line.points.iter().map(|point| point.1).collect();
    if line.marks == Marks::Band {
        heights.sort_by(f64::total_cmp);
        let rare = heights.len() / 100;
        heights = heights[rare..heights.len() - rare].to_vec();
    }
    heights
}

/// The smallest and the largest; never the same.
fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    match low < high {
        true => (low, high),
        false if low == high => (low - 0.5 * low.abs().max(1e-6), high + 0.5 * high.abs().max(1e-6)),
        false => (0.0, 1.0),
    }
}

fn padded((low, high): (f64, f64)) -> (f64, f64) {
    let pad = 0.05 * (high - low);
    (low - pad, high + pad)
}

/// Tells plotters the font, once: the one of comparison grids.
fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let font = epaint_default_fonts::UBUNTU_LIGHT;
        let registered = register_font(FONT, FontStyle::Normal, font).is_ok();
        assert!(registered, "the font is part of the program");
    });
}

#[cfg(test)]
mod tests {
    use vodka_images::{DecodeOptions, decode_bytes};

    use super::*;

    fn plot(points: Vec<(f64, f64)>) -> Plot {
        let line = |label: &str, marks| Line { label: label.into(), marks, points: points.clone() };
        let lines = vec![line("training", Marks::Band), line("validation: val", Marks::Points)];
        Plot { title: "Loss of v3".into(), x: "step".into(), y: "loss".into(), logarithmic: false, lines }
    }

    #[test]
    fn a_graph_says_what_it_shows_and_is_the_same_each_time() {
        let plot = plot((0..5000).map(|i| (f64::from(i), 0.1 + f64::from(i % 7))).collect());
        let svg = plot.svg();
        for text in ["Loss of v3", "training", "validation: val", "step", "loss", "4000"] {
            assert!(svg.contains(&format!("\n{text}\n")), "{text} in {svg:.2000}");
        }
        assert!(svg.len() < 200_000, "{} bytes for 5000 points", svg.len());
        let picture = decode_bytes(&plot.png(), &DecodeOptions::default()).unwrap().picture.into_rgb();
        assert_eq!(picture.dimensions(), SIZE_PX);
        let dark = picture.pixels().filter(|pixel| pixel.0.iter().all(|c| *c < 120)).count();
        assert!(dark > 500, "axes and letters: {dark} dark pixels");
        assert_eq!(plot.png(), plot.png());
    }

    #[test]
    fn a_graph_is_drawn_of_whatever_there_is() {
        for points in [vec![], vec![(1.0, 0.5)], vec![(1.0, 0.0), (2.0, f64::NAN), (3.0, f64::INFINITY)]] {
            assert!(plot(points).svg().ends_with("</svg>\n"));
        }
        let rates = Plot { logarithmic: true, ..plot(vec![(1e-7, 1.0), (1e-5, 0.5), (1e-3, 9.0)]) };
        assert!(rates.svg().contains("\n1e-5\n"), "{}", rates.svg());
    }

    #[test]
    fn labels_of_an_axis_differ() {
        assert_eq!(
            [y_label(0.125, 0.2), y_label(12.0, 40.0), y_label(0.00012, 0.0001)],
            ["0.125", "12", "0.000120"]
        );
    }
}
