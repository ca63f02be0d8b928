//! The rows of a Parquet file by the numbers that stand in them for names.
//!
//! Writers put each name once into a group of rows (its dictionary), and its number there into every row that has it; the
//! numbers of equal rows that follow each other are written once. Who takes the numbers as they are looks at the name of a
//! picture once a picture, and at that of a tag once a group. Polars would make a text of every one of them: most of the time
//! of an analysis. What is not written so, polars reads ([`walk`](super::walk)); it also says what is wrong with a file.
//!
//! Source: the format's description, apache/parquet-format, Encodings.md, "PLAIN", "RLE" and "RLE_DICTIONARY".

use std::{fs::File, path::Path};

use parquet::{
    basic::{Encoding, Type},
    column::page::Page,
    file::reader::{FileReader, SerializedFileReader},
};
use vodka_stage::catch_panic;

/// A tag table whose columns are of the kinds that can be taken as they are.
pub(super) struct Coded {
    file: SerializedFileReader<File>,
    columns: [Column; 3],
    /// The number of the first row of each group.
    first_rows: Vec<u64>,
}

/// A column of plain values.
#[derive(Clone, Copy)]
struct Column {
    place: usize,
    /// Whether each row says if it has a value.
    has_levels: bool,
}

/// The rows of a group.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) images: Names,
    /// Rows of one picture: the number of its name, and how many follow each other.
    pub(super) runs: Vec<(u32, u32)>,
    pub(super) tags: Names,
    /// By row, the number of its tag's name.
    pub(super) codes: Vec<u32>,
    /// By row.
    pub(super) scores: Vec<f32>,
}

/// Names by number.
#[derive(Default)]
pub(super) struct Names {
    text: String,
    ends: Vec<usize>,
}

/// A part of a column.
enum Values<'p> {
    /// All values that numbers stand for.
    Dictionary(&'p [u8], usize),
    /// So many numbers.
    Codes(&'p [u8], usize),
    /// So many values.
    Plain(&'p [u8], usize),
}

/// Numbers that follow each other.
enum Run<'p> {
    /// One number, so many times.
    Same(u32, usize),
    /// So many numbers of `width` bits each, the lowest bits first.
    Packed { bits: &'p [u8], width: u8, count: usize },
}

impl Coded {
    /// Opens a table; none where a column is of another kind.
    pub(super) fn open(path: &Path) -> Option<Self> {
        unless_broken(|| Self::opened(path))
    }

    fn opened(path: &Path) -> Option<Self> {
        let file = SerializedFileReader::new(File::open(path).ok()?).ok()?;
        let schema = file.metadata().file_metadata().schema_descr_ptr();
        let column = |name: &str, kind: Type| {
            let place = schema.columns().iter().position(|column| column.path().parts() == [name])?;
            let found = schema.column(place);
            let is_plain =
                found.physical_type() == kind && found.max_rep_level() == 0 && found.max_def_level() < 2;
            is_plain.then_some(Column { place, has_levels: found.max_def_level() > 0 })
        };
        let columns = [
            column("image", Type::BYTE_ARRAY)?,
            column("tag", Type::BYTE_ARRAY)?,
            column("score", Type::FLOAT)?,
        ];
        let mut rows = 0;
        let first_rows = file.metadata().row_groups().iter().map(|group| {
            // The reader takes it for granted that these are not negative.
            let is_there = |column: &Column| {
                let chunk = group.column(column.place);
                let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
                start >= 0 && chunk.compressed_size() >= 0
            };
            columns.iter().all(is_there).then_some(())?;
            let first = rows;
            rows += u64::try_from(group.num_rows()).ok()?;
            Some(first)
        });
        let first_rows = first_rows.collect::<Option<_>>()?;
        Some(Self { file, columns, first_rows })
    }

    /// How many groups of rows there are.
    pub(super) fn groups(&self) -> usize {
        self.first_rows.len()
    }

    /// The number of the first row of a group in the table.
    pub(super) fn first_row(&self, group: usize) -> u64 {
        self.first_rows[group]
    }

    /// Reads a group; none where it is written in another way, is broken, or lacks values.
    pub(super) fn read(&self, group: usize, rows: &mut Rows) -> Option<()> {
        rows.clear();
        unless_broken(|| self.read_into(group, rows))
    }

    fn read_into(&self, group: usize, rows: &mut Rows) -> Option<()> {
        let Rows { images, runs, tags, codes, scores } = rows;
        let [image, tag, score] = self.columns;
        self.pages(group, image, |values| push_images(values, images, runs))?;
        self.pages(group, tag, |values| push_tags(values, tags, codes))?;
        let mut dictionary = Vec::new();
        self.pages(group, score, |values| push_scores(values, &mut dictionary, scores))?;
        let count = usize::try_from(self.file.metadata().row_group(group).num_rows()).ok()?;
        let in_runs: usize = runs.iter().map(|(_, rows)| *rows as usize).sum();
        let is_whole = [in_runs, codes.len(), scores.len()] == [count; 3];
        let known = |names: &Names, code: Option<u32>| code.is_none_or(|code| (code as usize) < names.len());
        let known_images = known(images, runs.iter().map(|(image, _)| *image).max());
        (is_whole && known_images && known(tags, codes.iter().copied().max())).then_some(())
    }

    /// Hands over the parts of a column in a group.
    fn pages(
        &self,
        group: usize,
        column: Column,
        mut take: impl FnMut(Values<'_>) -> Option<()>,
    ) -> Option<()> {
        // No page may make more of it than there is room for.
        let mut left = usize::try_from(self.file.metadata().row_group(group).num_rows()).ok()?;
        let group = self.file.get_row_group(group).ok()?;
        let mut pages = group.get_column_page_reader(column.place).ok()?;
        while let Some(page) = pages.get_next_page().ok()? {
            let count = page.num_values() as usize;
            let bytes: &[u8] = page.buffer();
            let values = match &page {
                Page::DictionaryPage { .. } => Values::Dictionary(bytes, count),
                Page::DataPage { encoding, .. } if !column.has_levels => values(bytes, *encoding, count)?,
                Page::DataPage { encoding, def_level_encoding: Encoding::RLE, .. } => {
                    let (length, rest) = bytes.split_at_checked(4)?;
                    let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
                    let (levels, rest) = rest.split_at_checked(length)?;
                    all_there(levels, count)?;
                    values(rest, *encoding, count)?
                }
                Page::DataPageV2 {
                    encoding, num_nulls: 0, def_levels_byte_len, rep_levels_byte_len, ..
                } => {
                    let levels = *def_levels_byte_len as usize + *rep_levels_byte_len as usize;
                    values(bytes.get(levels..)?, *encoding, count)?
                }
                Page::DataPage { .. } | Page::DataPageV2 { .. } => return None,
            };
            if page.is_data_page() {
                left = left.checked_sub(count)?;
            }
            take(values)?;
        }
        Some(())
    }
}

impl Rows {
    fn clear(&mut self) {
        self.images.clear();
        self.runs.clear();
        self.tags.clear();
        self.codes.clear();
        self.scores.clear();
    }

    fn push_run(runs: &mut Vec<(u32, u32)>, image: u32, rows: usize) -> Option<()> {
        let rows = u32::try_from(rows).ok()?;
        match runs.last_mut() {
            Some((last, count)) if *last == image => *count = count.checked_add(rows)?,
            _ => runs.push((image, rows)),
        }
        Some(())
    }
}

impl Names {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, code: u32) -> &str {
        let code = code as usize;
        let start = if code == 0 { 0 } else { self.ends[code - 1] };
        &self.text[start..self.ends[code]]
    }

    fn push(&mut self, name: &str) {
        self.text.push_str(name);
        self.ends.push(self.text.len());
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }
}

/// None also where the reader finds by an assertion, not by an error, that a file is broken: polars then says what is wrong.
fn unless_broken<R>(read: impl FnOnce() -> Option<R>) -> Option<R> {
    // What was being read is thrown away.
    catch_panic(read).flatten()
}

fn values(bytes: &[u8], encoding: Encoding, count: usize) -> Option<Values<'_>> {
    match encoding {
        Encoding::PLAIN => Some(Values::Plain(bytes, count)),
        // Older writers give the second name to the same.
        Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY => Some(Values::Codes(bytes, count)),
        _ => None,
    }
}

fn push_images(values: Values<'_>, images: &mut Names, runs: &mut Vec<(u32, u32)>) -> Option<()> {
    match values {
        Values::Dictionary(bytes, count) => for_each_name(bytes, count, |name| {
            images.push(name);
            Some(())
        }),
        Values::Codes(bytes, count) => for_each_run(bytes, count, |run| match run {
            Run::Same(code, count) => Rows::push_run(runs, code, count),
            Run::Packed { bits, width, count } => {
                unpacked(bits, width, count)?.try_for_each(|code| Rows::push_run(runs, code, 1))
            }
        }),
        Values::Plain(bytes, count) => for_each_name(bytes, count, |name| {
            // In a group of many pictures writers leave off with numbers.
            let last = runs.last().map(|(image, _)| *image).filter(|image| (*image as usize) < images.len());
            let image = match last.filter(|last| images.get(*last) == name) {
                Some(last) => last,
                None => {
                    images.push(name);
                    u32::try_from(images.len() - 1).ok()?
                }
            };
            Rows::push_run(runs, image, 1)
        }),
    }
}

fn push_tags(values: Values<'_>, tags: &mut Names, codes: &mut Vec<u32>) -> Option<()> {
    match values {
        Values::Dictionary(bytes, count) => for_each_name(bytes, count, |name| {
            tags.push(name);
            Some(())
        }),
        Values::Codes(bytes, count) => for_each_run(bytes, count, |run| {
            match run {
                Run::Same(code, count) => codes.resize(codes.len() + count, code),
                Run::Packed { bits, width, count } => codes.extend(unpacked(bits, width, count)?),
            }
            Some(())
        }),
        Values::Plain(_, 0) => Some(()),
        Values::Plain(..) => None,
    }
}

fn push_scores(values: Values<'_>, dictionary: &mut Vec<f32>, scores: &mut Vec<f32>) -> Option<()> {
    let floats = |bytes: &[u8], count: usize| {
        let (floats, rest) = bytes.as_chunks();
        (floats.len() == count && rest.is_empty())
            .then(|| floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    };
    match values {
        Values::Dictionary(bytes, count) => *dictionary = floats(bytes, count)?,
        Values::Plain(bytes, count) => scores.append(&mut floats(bytes, count)?),
        Values::Codes(bytes, count) => for_each_run(bytes, count, |run| {
            match run {
                Run::Same(code, count) => {
                    scores.resize(scores.len() + count, *dictionary.get(code as usize)?);
                }
                Run::Packed { bits, width, count } => {
                    let mut is_known = true;
                    scores.extend(unpacked(bits, width, count)?.map(|code| {
                        let score = dictionary.get(code as usize);
                        is_known &= score.is_some();
                        score.copied().unwrap_or_default()
                    }));
                    return is_known.then_some(());
                }
            }
            Some(())
        })?,
    }
    Some(())
}

/// Texts, each after its length.
fn for_each_name(mut bytes: &[u8], count: usize, mut take: impl FnMut(&str) -> Option<()>) -> Option<()> {
    for _ in 0..count {
        let (length, rest) = bytes.split_at_checked(4)?;
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let (name, rest) = rest.split_at_checked(length)?;
        take(std::str::from_utf8(name).ok()?)?;
        bytes = rest;
    }
    Some(())
}

/// Numbers, after the byte that says of how many bits they are.
fn for_each_run<'p>(bytes: &'p [u8], count: usize, take: impl FnMut(Run<'p>) -> Option<()>) -> Option<()> {
    match bytes.split_first() {
        Some((width, bytes)) => runs(bytes, *width, count, take),
        None => (count == 0).then_some(()),
    }
}

fn runs<'p>(
    mut bytes: &'p [u8],
    width: u8,
    count: usize,
    mut take: impl FnMut(Run<'p>) -> Option<()>,
) -> Option<()> {
    if width > 32 {
        return None;
    }
    let mut left = count;
    while left > 0 {
        let header = varint(&mut bytes)?;
        let length = usize::try_from(header >> 1).ok()?;
        if length == 0 {
            return None;
        }
        let here;
        if header & 1 == 0 {
            let (value, rest) = bytes.split_at_checked(usize::from(width).div_ceil(8))?;
            let value = value.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            here = length.min(left);
            take(Run::Same(value, here))?;
            bytes = rest;
        } else {
            here = length.checked_mul(8)?.min(left);
            // Some writers leave out what fills up the last group of eight.
            let (bits, rest) = bytes.split_at(length.checked_mul(usize::from(width))?.min(bytes.len()));
            take(Run::Packed { bits, width, count: here })?;
            bytes = rest;
        }
        left -= here;
    }
    Some(())
}

/// Numbers of `width` bits each; none where there are fewer.
fn unpacked(bits: &[u8], width: u8, count: usize) -> Option<impl Iterator<Item = u32>> {
    let width = usize::from(width);
    (bits.len() >= (count * width).div_ceil(8)).then_some(())?;
    let mask = u32::MAX.checked_shr(32 - width as u32).unwrap_or(0);
    Some((0..count).map(move |k| {
        let bit = k * width;
        let (byte, shift) = (bit / 8, bit % 8);
        let eight = match bits.get(byte..byte + 8) {
            Some(eight) => u64::from_le_bytes(eight.try_into().expect("of eight bytes")),
            None => bits[byte..].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
        };
        (eight >> shift) as u32 & mask
    }))
}

/// Whether each row has a value: the level 1, in runs of one bit.
fn all_there(levels: &[u8], count: usize) -> Option<()> {
    runs(levels, 1, count, |run| match run {
        Run::Same(level, _) => (level == 1).then_some(()),
        Run::Packed { bits, width, count } => {
            unpacked(bits, width, count)?.all(|level| level == 1).then_some(())
        }
    })
}

/// A number in groups of seven bits, the lowest first.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use vodka_stage::is_panic_caught;

    use super::*;

    #[test]
    fn a_panic_of_the_reader_is_known_to_be_caught() {
        // Programs tell of a panic that is not.
        assert_eq!(unless_broken(|| Some(is_panic_caught())), Some(true));
        assert_eq!(unless_broken(|| -> Option<()> { panic!("a broken page") }), None);
    }
}
