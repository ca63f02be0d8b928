//! The sheet of a grid: its cells with a legend above and to the left, in the manner of A1111's X/Y/Z plot.

use ab_glyph::{Font, FontRef, GlyphId, OutlinedGlyph, PxScale, ScaleFont, point};
use image::{Rgb, RgbImage, imageops};

use crate::{Result, Size, picture_file::OnBand};

const WHITE: Rgb<u8> = Rgb([255, 255, 255]);
const BLACK: [f32; 3] = [0.0; 3];
const RED: [f32; 3] = [170.0, 20.0, 20.0];
const BLANK: Rgb<u8> = Rgb([232, 232, 232]);
const GAP_PX: u32 = 4;
/// Cells are shown enlarged by the largest whole factor that keeps their longer side within this.
const ENLARGE_TO_PX: u32 = 256;
const MAX_FONT_PX: u32 = 40;
const MIN_FONT_PX: u32 = 9;

/// What is drawn, apart from the pictures.
#[derive(Debug, Clone)]
pub(crate) struct Legend {
    /// What stands over all of it; nothing where empty.
    pub(crate) title: String,
    /// What stands above each column.
    pub(crate) columns: Vec<String>,
    /// What stands beside each row.
    pub(crate) rows: Vec<String>,
}

/// The pictures of a sheet, by row and column, one at a time; `None` for one that could not be made, which is marked.
pub type Cells<'a> = dyn FnMut(usize, usize) -> Result<Option<RgbImage>> + 'a;

/// Draws a sheet from the top, in bands that are as high as a row of cells: `on_band` gets one after the other, and no
/// more than one is in memory. All cells are shown in an area of one size, smaller ones in its middle.
///
/// # Errors
/// Those of `cell` and `on_band`.
pub(crate) fn draw(
    legend: &Legend,
    layout: &Layout,
    cell: &mut Cells<'_>,
    on_band: &mut OnBand<'_>,
) -> Result<()> {
    let width = layout.width(legend.columns.len());
    if layout.top() > 0 {
        on_band(&head(legend, layout, width))?;
    }
    let last = legend.rows.len().saturating_sub(1);
    for (row, label) in legend.rows.iter().enumerate() {
        let gap = if row == last { 0 } else { GAP_PX };
        let mut band = RgbImage::from_pixel(width, layout.cell.height + gap, WHITE);
        let area = Area { x: 0, y: 0, width: layout.side, height: layout.cell.height };
        write_centred(&mut band, label, area, layout.font, BLACK);
        for column in 0..legend.columns.len() {
            let area = Area { x: layout.column_x(column), ..layout.cell };
            match cell(row, column)? {
                Some(picture) => place(&mut band, &picture, area, layout.zoom),
                None => mark_missing(&mut band, area, layout.font),
            }
        }
        on_band(&band)?;
    }
    Ok(())
}

/// A sheet in memory: pictures of at most `size`, shown with their longer side in about `shown_px`, with labels above the
/// columns and beside the rows. `cell` is asked for each by row and column; what it has not is marked as not made.
///
/// # Errors
/// Those of `cell`.
pub fn labelled(
    [columns, rows]: [Vec<String>; 2],
    size: Size,
    shown_px: u32,
    cell: &mut Cells<'_>,
) -> Result<RgbImage> {
    let legend = Legend { title: String::new(), columns, rows };
    let side = size.width.max(size.height);
    let scale = f64::from(shown_px) / f64::from(side * (ENLARGE_TO_PX / side).max(1));
    let layout = Layout::new(&legend, size, scale);
    let mut sheet =
        RgbImage::from_pixel(layout.width(legend.columns.len()), layout.height(legend.rows.len()), WHITE);
    let mut y = 0;
    draw(&legend, &layout, cell, &mut |band| {
        imageops::replace(&mut sheet, band, 0, y);
        y += i64::from(band.height());
        Ok(())
    })?;
    Ok(sheet)
}

/// The title, and the labels of the columns.
fn head(legend: &Legend, layout: &Layout, width: u32) -> RgbImage {
    let mut head = RgbImage::from_pixel(width, layout.top(), WHITE);
    let area = Area { x: 0, y: 0, width, height: layout.title };
    write_centred(&mut head, &legend.title, area, layout.font, BLACK);
    for (i, label) in legend.columns.iter().enumerate() {
        let area =
            Area { x: layout.column_x(i), y: layout.title, width: layout.cell.width, height: layout.head };
        write_centred(&mut head, label, area, layout.font, BLACK);
    }
    head
}

/// Pictures of one size side by side, each with its label in the lower right corner, as EveryDream2 shows its samples.
pub fn strip(pictures: &[(String, RgbImage)]) -> RgbImage {
    let size = |(_, picture): &(String, RgbImage)| picture.dimensions();
    let (width, height) = pictures.first().map_or((0, 0), size);
    let mut strip = RgbImage::from_pixel(width * pictures.len() as u32, height, WHITE);
    let font = (height / 25).clamp(MIN_FONT_PX, MAX_FONT_PX);
    for (i, (label, picture)) in pictures.iter().enumerate() {
        let left = i as u32 * width;
        imageops::replace(&mut strip, picture, left.into(), 0);
        let text = width_of(label, font).ceil() as u32;
        let (wide, high) = ((text + 2 * MARGIN_PX).min(width), (line_height(font) + MARGIN_PX).min(height));
        let (x, y) = (left + width - wide, height - high);
        imageops::replace(&mut strip, &RgbImage::from_pixel(wide, high, WHITE), x.into(), y.into());
        write_line(&mut strip, label, (x + MARGIN_PX) as f32, y + MARGIN_PX / 2, font, BLACK);
    }
    strip
}

/// A rectangle of the sheet, in pixels.
#[derive(Debug, Clone, Copy)]
struct Area {
    x: u32,
    y: u32,
    width: u32,
    height: u32,
}

impl Area {
    /// Without a margin all around.
    fn inset(self, margin: u32) -> Self {
        let less = |side: u32| side.saturating_sub(2 * margin);
        Self { x: self.x + margin, y: self.y + margin, width: less(self.width), height: less(self.height) }
    }
}

/// Where everything goes.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// How many times as large as they are the cells are shown.
    zoom: f64,
    cell: Area,
    /// The width of the legend at the left.
    side: u32,
    /// The height of the title.
    title: u32,
    /// The height of the legend above the columns.
    head: u32,
    font: u32,
}

impl Layout {
    /// For cells of at most this size, shown `scale` times as large as they would be: tiny ones are enlarged.
    pub(crate) fn new(legend: &Legend, size: Size, scale: f64) -> Self {
        let enlarge = (ENLARGE_TO_PX / size.width.max(size.height)).max(1);
        let zoom = f64::from(enlarge) * scale;
        let shown = |side: u32| (f64::from(side) * zoom).round().max(1.0) as u32;
        let cell = Area { x: 0, y: 0, width: shown(size.width), height: shown(size.height) };
        let font = ((cell.width + cell.height) / 25).clamp(MIN_FONT_PX, MAX_FONT_PX);
        let side = if legend.rows.iter().all(String::is_empty) { 0 } else { cell.width * 3 / 4 };
        let height =
            |lines: u32, most: u32| if lines == 0 { 0 } else { (lines * line_height(font) + font).min(most) };
        let lines = legend.columns.iter().map(|label| wrap(label, font, inner(cell.width)).len()).max();
        let head = height(lines.unwrap_or_default() as u32, cell.height);
        let mut layout = Self { zoom, cell, side, title: 0, head, font };
        let wide = inner(layout.width(legend.columns.len()));
        layout.title = height(wrap(&legend.title, font, wide).len() as u32, cell.height);
        layout
    }

    /// The height of all that is above the cells.
    fn top(&self) -> u32 {
        self.title + self.head
    }

    fn column_x(&self, column: usize) -> u32 {
        self.side + column as u32 * (self.cell.width + GAP_PX)
    }

    /// In pixels.
    pub(crate) fn width(&self, columns: usize) -> u32 {
        self.column_x(columns) - GAP_PX
    }

    /// In pixels.
    pub(crate) fn height(&self, rows: usize) -> u32 {
        self.top() + rows as u32 * (self.cell.height + GAP_PX) - GAP_PX
    }

    /// How many columns go into this width; at least one.
    pub(crate) fn columns_in(&self, width: u32) -> usize {
        ((width.saturating_sub(self.side) + GAP_PX) / (self.cell.width + GAP_PX)).max(1) as usize
    }

    /// How many rows go into this height; at least one.
    pub(crate) fn rows_in(&self, height: u32) -> usize {
        ((height.saturating_sub(self.top()) + GAP_PX) / (self.cell.height + GAP_PX)).max(1) as usize
    }
}

/// Shows a picture in the middle of its area; larger by whole pixels, smaller by means of them.
fn place(band: &mut RgbImage, picture: &RgbImage, area: Area, zoom: f64) {
    let shown = |side: u32, most: u32| ((f64::from(side) * zoom).round() as u32).clamp(1, most);
    let (width, height) = (shown(picture.width(), area.width), shown(picture.height(), area.height));
    let filter = match zoom.fract() == 0.0 {
        true => imageops::FilterType::Nearest,
        false => imageops::FilterType::CatmullRom,
    };
    let picture = imageops::resize(picture, width, height, filter);
    let (x, y) = (area.x + (area.width - width) / 2, area.y + (area.height - height) / 2);
    imageops::replace(band, &picture, x.into(), y.into());
}

/// Greys the cell and says so.
fn mark_missing(sheet: &mut RgbImage, area: Area, font: u32) {
    for y in area.y..area.y + area.height {
        for x in area.x..area.x + area.width {
            sheet.put_pixel(x, y, BLANK);
        }
    }
    write_centred(sheet, "not made", area, font, RED);
}

/// The margin between a text and its area's border, as wide at both sides.
const MARGIN_PX: u32 = 6;

fn inner(width: u32) -> u32 {
    width.saturating_sub(2 * MARGIN_PX)
}

/// Writes a text, wrapped, and smaller than `font` where it would not fit; what still does not fit is cut off.
fn write_centred(sheet: &mut RgbImage, text: &str, area: Area, font: u32, colour: [f32; 3]) {
    let area = area.inset(MARGIN_PX);
    let fits = |px: &u32| wrap(text, *px, area.width).len() as u32 * line_height(*px) <= area.height;
    let px = (MIN_FONT_PX..=font).rev().find(fits).unwrap_or(MIN_FONT_PX);
    let mut lines = wrap(text, px, area.width);
    lines.truncate((area.height / line_height(px)) as usize);
    let mut y = area.y + (area.height - lines.len() as u32 * line_height(px)) / 2;
    for line in lines {
        let x = area.x as f32 + (area.width as f32 - width_of(&line, px)).max(0.0) / 2.0;
        write_line(sheet, &line, x, y, px, colour);
        y += line_height(px);
    }
}

/// Draws one line with its top at `y`.
fn write_line(sheet: &mut RgbImage, text: &str, x: f32, y: u32, px: u32, colour: [f32; 3]) {
    let font = font();
    let scale = PxScale::from(px as f32);
    let scaled = font.as_scaled(scale);
    let baseline = y as f32 + scaled.ascent();
    let mut x = x;
    for (glyph, advance) in glyphs(text, px) {
        let glyph = glyph.with_scale_and_position(scale, point(x, baseline));
        if let Some(outline) = font.outline_glyph(glyph) {
            blend(sheet, &outline, colour);
        }
        x += advance;
    }
}

fn blend(sheet: &mut RgbImage, outline: &OutlinedGlyph, colour: [f32; 3]) {
    let bounds = outline.px_bounds();
    outline.draw(|dx, dy, coverage| {
        let (x, y) = (bounds.min.x as i64 + i64::from(dx), bounds.min.y as i64 + i64::from(dy));
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
        let Some(pixel) = sheet.get_pixel_mut_checked(x, y) else { return };
        for (channel, ink) in pixel.0.iter_mut().zip(colour) {
            let under = f32::from(*channel);
            *channel = (under + (ink - under) * coverage.min(1.0)).round() as u8;
        }
    });
}

/// Ubuntu Light: it has Latin, Greek and Cyrillic letters; others are shown as boxes.
fn font() -> FontRef<'static> {
    FontRef::try_from_slice(epaint_default_fonts::UBUNTU_LIGHT).expect("the font is part of the program")
}

fn line_height(px: u32) -> u32 {
    px * 6 / 5
}

/// The glyphs of a line, each with the way to the next.
fn glyphs(text: &str, px: u32) -> Vec<(GlyphId, f32)> {
    let font = font();
    let font = font.as_scaled(PxScale::from(px as f32));
    let ids: Vec<_> = text.chars().map(|c| font.glyph_id(c)).collect();
    let kern = |i: usize| ids.get(i + 1).map_or(0.0, |next| font.kern(ids[i], *next));
    ids.iter().enumerate().map(|(i, id)| (*id, font.h_advance(*id) + kern(i))).collect()
}

fn width_of(text: &str, px: u32) -> f32 {
    glyphs(text, px).iter().map(|(_, advance)| advance).sum()
}

/// Breaks a text into lines at spaces, and within words that are wider than a line.
fn wrap(text: &str, px: u32, width: u32) -> Vec<String> {
    let fits = |line: &str| width_of(line, px) <= width as f32;
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let longer = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
            if fits(&longer) {
                line = longer;
                continue;
            }
            if !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            line = break_word(word, &fits, &mut lines);
        }
        lines.push(line);
    }
    lines
}

/// Moves full lines of a long word to `lines` and returns its end. Every line takes at least one character.
fn break_word(word: &str, fits: &dyn Fn(&str) -> bool, lines: &mut Vec<String>) -> String {
    let mut line = String::new();
    for c in word.chars() {
        line.push(c);
        if !fits(&line) && line.chars().nth(1).is_some() {
            line.pop();
            lines.push(std::mem::replace(&mut line, c.to_string()));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn legend(columns: &[&str], rows: &[&str]) -> Legend {
        Legend { title: String::new(), columns: names(columns), rows: names(rows) }
    }

    /// The bands one below the other.
    fn drawn(legend: &Legend, layout: &Layout, cell: &mut Cells<'_>) -> RgbImage {
        let mut bytes = Vec::new();
        draw(legend, layout, cell, &mut |band| {
            bytes.extend_from_slice(band);
            Ok(())
        })
        .unwrap();
        let (width, height) = (layout.width(legend.columns.len()), layout.height(legend.rows.len()));
        RgbImage::from_raw(width, height, bytes).expect("the bands are the sheet, no more and no less")
    }

    #[test]
    fn a_sheet_has_its_cells_in_place() {
        let size = Size { width: 64, height: 128 };
        let colour = |row: usize, column: usize| Rgb([100 + 50 * row as u8, 10 * column as u8, 7]);
        let mut cell = |row, column| Ok(Some(RgbImage::from_pixel(64, 128, colour(row, column))));
        let mut legend = legend(&["one", "two", "three"], &["a", "b"]);
        legend.title = "all of it".into();
        let layout = Layout::new(&legend, size, 1.0);
        let sheet = drawn(&legend, &layout, &mut cell);
        assert_eq!((layout.zoom, layout.cell.width, layout.cell.height), (2.0, 128, 256));
        assert_eq!(sheet.width(), 96 + 3 * 128 + 2 * GAP_PX);
        assert_eq!(sheet.height(), layout.title + layout.head + 2 * 256 + GAP_PX);
        for row in 0..2 {
            for column in 0..3 {
                let (x, y) = (layout.column_x(column), layout.top() + row as u32 * (256 + GAP_PX));
                assert_eq!(*sheet.get_pixel(x, y), colour(row, column));
                assert_eq!(*sheet.get_pixel(x + 127, y + 255), colour(row, column));
            }
        }
        let is_dark = |area: RgbImage| area.pixels().any(|pixel| pixel.0.iter().all(|channel| *channel < 96));
        assert!(
            is_dark(imageops::crop_imm(&sheet, 0, 0, sheet.width(), layout.title).to_image()),
            "the title"
        );
        let labels = imageops::crop_imm(&sheet, 0, layout.title, sheet.width(), layout.head).to_image();
        assert!(is_dark(labels), "the legend");
    }

    #[test]
    fn cells_of_other_sizes_lie_in_the_middle_and_are_shown_smaller_where_asked() {
        let legend = legend(&["", ""], &[""]);
        let mut cell = |_, column| Ok(Some(RgbImage::from_pixel([256, 512][column], 512, Rgb([9, 9, 9]))));
        let layout = Layout::new(&legend, Size { width: 512, height: 512 }, 0.25);
        let sheet = drawn(&legend, &layout, &mut cell);
        assert_eq!(sheet.dimensions(), (2 * 128 + GAP_PX, 128));
        let row: Vec<u8> = (0..128).map(|x| sheet.get_pixel(x, 64)[0]).collect();
        assert!(row[..32].iter().chain(&row[96..]).all(|level| *level == 255), "{row:?}");
        assert!(row[32..96].iter().all(|level| *level == 9), "{row:?}");
        assert_eq!(sheet.get_pixel(128 + GAP_PX, 0)[0], 9);
        assert_eq!((layout.columns_in(259), layout.columns_in(260), layout.columns_in(1)), (1, 2, 1));
        assert_eq!((layout.rows_in(259), layout.rows_in(260)), (1, 2));
    }

    #[test]
    fn a_strip_has_its_pictures_side_by_side_with_their_labels() {
        let grey = |level: u8| RgbImage::from_pixel(128, 64, Rgb([level; 3]));
        let strip = strip(&[("cfg:7.0".to_owned(), grey(150)), ("cfg:1.0".to_owned(), grey(200))]);
        assert_eq!(strip.dimensions(), (256, 64));
        assert_eq!((strip.get_pixel(0, 0)[0], strip.get_pixel(128, 0)[0]), (150, 200));
        for right in [128, 256] {
            let corner = imageops::crop_imm(&strip, right - 40, 50, 40, 14).to_image();
            assert!(corner.pixels().any(|pixel| pixel[0] < 96), "a label");
        }
        assert_eq!(super::strip(&[]).dimensions(), (0, 0));
    }

    #[test]
    fn a_missing_cell_is_marked() {
        let legend = legend(&[""], &[""]);
        let layout = Layout::new(&legend, Size { width: 64, height: 64 }, 1.0);
        let sheet = drawn(&legend, &layout, &mut |_, _| Ok(None));
        assert_eq!((sheet.width(), sheet.height()), (256, 256));
        assert_eq!(*sheet.get_pixel(1, 1), BLANK);
        assert!(sheet.pixels().any(|pixel| pixel.0[0] > pixel.0[1]), "with red letters");
    }

    #[test]
    fn text_is_wrapped_at_spaces_and_within_long_words() {
        let lines = wrap("a cat sits on a mat", 20, 80);
        assert!(lines.len() > 1);
        assert_eq!(lines.join(" "), "a cat sits on a mat");
        assert!(lines.iter().all(|line| width_of(line, 20) <= 80.0), "{lines:?}");
        let word = "m".repeat(40);
        let lines = wrap(&word, 20, 80);
        assert!(lines.len() > 5);
        assert_eq!(lines.concat(), word);
        assert_eq!(wrap("mm", 20, 1), ["m", "m"]);
        assert!(wrap("", 20, 80).is_empty());
    }

    #[test]
    fn a_long_label_becomes_smaller_and_stays_in_its_area() {
        let label = "a red circle and a blue star in front of a house ".repeat(20);
        let legend = legend(&["x"], &[&label, &label]);
        let layout = Layout::new(&legend, Size { width: 64, height: 64 }, 1.0);
        let mut cell = |_, _| Ok(Some(RgbImage::from_pixel(64, 64, Rgb([9, 9, 9]))));
        let sheet = drawn(&legend, &layout, &mut cell);
        let gap = layout.top() + layout.cell.height + 1;
        assert!(
            (0..layout.side).all(|x| *sheet.get_pixel(x, gap) == WHITE),
            "nothing runs into the next row"
        );
    }
}
