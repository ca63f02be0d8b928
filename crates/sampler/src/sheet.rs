//! The sheet of a grid: its cells with a legend above and to the left, in the manner of A1111's X/Y/Z plot.

use ab_glyph::{Font, FontRef, GlyphId, OutlinedGlyph, PxScale, ScaleFont, point};
use image::{Rgb, RgbImage, imageops};

use crate::{Result, Size};

const WHITE: Rgb<u8> = Rgb([255, 255, 255]);
const BLACK: [f32; 3] = [0.0; 3];
const RED: [f32; 3] = [170.0, 20.0, 20.0];
const BLANK: Rgb<u8> = Rgb([232, 232, 232]);
const GAP_PX: u32 = 4;
/// Cells are shown enlarged by the largest whole factor that keeps their longer side within this.
const ENLARGE_TO_PX: u32 = 256;
const MAX_FONT_PX: u32 = 40;
const MIN_FONT_PX: u32 = 9;

/// Draws `rows` by `columns` cells of one size, each named by its label; `cell` gives the pictures, by row and column,
/// one at a time, and `None` for one that could not be made, which is marked.
///
/// # Errors
/// Those of `cell`.
pub(crate) fn draw(
    columns: &[String],
    rows: &[String],
    size: Size,
    cell: &mut dyn FnMut(usize, usize) -> Result<Option<RgbImage>>,
) -> Result<RgbImage> {
    let layout = Layout::new(columns, rows, size);
    let mut sheet = RgbImage::from_pixel(layout.width(columns.len()), layout.height(rows.len()), WHITE);
    for (i, label) in columns.iter().enumerate() {
        let area = Area { x: layout.column_x(i), y: 0, width: layout.cell.width, height: layout.head };
        write_centred(&mut sheet, label, area, layout.font, BLACK);
    }
    for (row, label) in rows.iter().enumerate() {
        let y = layout.row_y(row);
        let area = Area { x: 0, y, width: layout.side, height: layout.cell.height };
        write_centred(&mut sheet, label, area, layout.font, BLACK);
        for column in 0..columns.len() {
            let x = layout.column_x(column);
            match cell(row, column)? {
                Some(picture) => place(&mut sheet, &picture, x, y, layout.enlarge),
                None => mark_missing(&mut sheet, Area { x, y, ..layout.cell }, layout.font),
            }
        }
    }
    Ok(sheet)
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
#[derive(Debug)]
struct Layout {
    enlarge: u32,
    cell: Area,
    /// The width of the legend at the left.
    side: u32,
    /// The height of the legend above.
    head: u32,
    font: u32,
}

impl Layout {
    fn new(columns: &[String], rows: &[String], size: Size) -> Self {
        let enlarge = (ENLARGE_TO_PX / size.width.max(size.height)).max(1);
        let cell = Area { x: 0, y: 0, width: enlarge * size.width, height: enlarge * size.height };
        let font = ((cell.width + cell.height) / 25).clamp(MIN_FONT_PX, MAX_FONT_PX);
        let side = if rows.iter().all(String::is_empty) { 0 } else { cell.width * 3 / 4 };
        let lines = columns.iter().map(|label| wrap(label, font, inner(cell.width)).len()).max();
        let lines = lines.unwrap_or_default() as u32;
        let head = if lines == 0 { 0 } else { (lines * line_height(font) + font).min(cell.height) };
        Self { enlarge, cell, side, head, font }
    }

    fn column_x(&self, column: usize) -> u32 {
        self.side + column as u32 * (self.cell.width + GAP_PX)
    }

    fn row_y(&self, row: usize) -> u32 {
        self.head + row as u32 * (self.cell.height + GAP_PX)
    }

    fn width(&self, columns: usize) -> u32 {
        self.column_x(columns) - GAP_PX
    }

    fn height(&self, rows: usize) -> u32 {
        self.row_y(rows) - GAP_PX
    }
}

fn place(sheet: &mut RgbImage, picture: &RgbImage, x: u32, y: u32, enlarge: u32) {
    let (width, height) = (enlarge * picture.width(), enlarge * picture.height());
    let picture = imageops::resize(picture, width, height, imageops::FilterType::Nearest);
    imageops::replace(sheet, &picture, x.into(), y.into());
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

    #[test]
    fn a_sheet_has_its_cells_in_place() {
        let size = Size { width: 64, height: 128 };
        let colour = |row: usize, column: usize| Rgb([100 + 50 * row as u8, 10 * column as u8, 7]);
        let mut cell = |row, column| Ok(Some(RgbImage::from_pixel(64, 128, colour(row, column))));
        let sheet = draw(&names(&["one", "two", "three"]), &names(&["a", "b"]), size, &mut cell).unwrap();
        let layout = Layout::new(&names(&["one"]), &names(&["a"]), size);
        assert_eq!((layout.enlarge, layout.cell.width, layout.cell.height), (2, 128, 256));
        assert_eq!(sheet.width(), 96 + 3 * 128 + 2 * GAP_PX);
        assert_eq!(sheet.height(), layout.head + 2 * 256 + GAP_PX);
        for row in 0..2 {
            for column in 0..3 {
                let (x, y) = (layout.column_x(column), layout.row_y(row));
                assert_eq!(*sheet.get_pixel(x, y), colour(row, column));
                assert_eq!(*sheet.get_pixel(x + 127, y + 255), colour(row, column));
            }
        }
        assert!(
            sheet.pixels().any(|pixel| pixel.0.iter().all(|channel| *channel < 96)),
            "the legend is dark"
        );
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
        let size = Size { width: 64, height: 64 };
        let sheet = draw(&names(&[""]), &names(&[""]), size, &mut |_, _| Ok(None)).unwrap();
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
        let size = Size { width: 64, height: 64 };
        let label = "a red circle and a blue star in front of a house ".repeat(20);
        let mut cell = |_, _| Ok(Some(RgbImage::from_pixel(64, 64, Rgb([9, 9, 9]))));
        let sheet = draw(&names(&["x"]), &[label.clone(), label], size, &mut cell).unwrap();
        let layout = Layout::new(&names(&["x"]), &names(&["y"]), size);
        let gap = layout.row_y(1) - 1;
        assert!(
            (0..layout.side).all(|x| *sheet.get_pixel(x, gap) == WHITE),
            "nothing runs into the next row"
        );
    }
}
