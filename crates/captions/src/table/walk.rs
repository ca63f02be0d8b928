//! A tag table picture by picture, in one pass that holds no more than a few batches of rows.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use polars::prelude::{Column, DataFrame, PlHashMap, StringChunked, col};
use vodka_stage::Interrupt;

use super::{parallel, scan, text as cell_text, wrong_row};
use crate::{
    Result, canonical,
    frame::{broken, check_fields, for_each_batch, is_parquet},
};

/// What looks at the pictures of a table. What it finds out must not depend on the order of pictures, of scores, or of
/// a tag's spellings.
pub(crate) trait Visitor: Send {
    /// A tag that the table names, by its canonical name, before its first score. Tags are numbered from 0 in the order
    /// of these calls. Tells whether the scores of this tag are wanted.
    fn tag(&mut self, tag: &str) -> bool;

    /// A picture; each is handed over once.
    fn picture(&mut self, picture: &Scored<'_>);

    /// Takes in what another has found out about other pictures of the table, all of whose tags this one has met.
    fn absorb(&mut self, other: Self);
}

/// What a table says about a picture.
pub(crate) struct Scored<'a> {
    pub(crate) image: &'a str,
    /// How many rows it has, of wanted tags or not.
    pub(crate) rows: u64,
    /// The lowest score of these.
    pub(crate) lowest: f32,
    /// The wanted tags, by number, with the highest score of each.
    pub(crate) scores: &'a [(u32, f32)],
}

/// A pass that has come to the end.
pub(crate) struct Walked<V> {
    pub(crate) visitor: V,
    /// Each spelling in the table, with its canonical form.
    pub(crate) spellings: Vec<(String, String)>,
    /// The first row of each wanted tag, by canonical name.
    pub(crate) first_rows: HashMap<String, u64>,
}

/// Hands over each picture of a table; none if interrupted.
///
/// Tables in order of their pictures, as the tagger writes them, are passed through, by each processor a part; of others the
/// wanted scores are gathered first.
///
/// # Errors
/// As [`TagTable::open`](super::TagTable::open).
pub(crate) fn walk<V: Visitor>(
    path: &Path,
    interrupt: &Interrupt,
    fresh: impl Fn() -> V + Sync,
) -> Result<Option<Walked<V>>> {
    check_fields(path)?;
    // Says what is wrong with the columns.
    let _ = scan(path)?;
    let coded = if is_parquet(path)? { parallel::pass(path, interrupt, &fresh) } else { None };
    let passed = match coded {
        Some(passed) => passed,
        None => pass(path, interrupt, Walker::new(path, fresh(), false))?,
    };
    let passed = match passed {
        Passed::Scattered => pass(path, interrupt, Walker::new(path, fresh(), true))?,
        passed => passed,
    };
    match passed {
        Passed::Through(walked) => Ok(Some(walked)),
        Passed::Interrupted => Ok(None),
        Passed::Scattered => unreachable!("who gathers can take any order"),
    }
}

/// What reads a table of any form, in order.
#[cfg(test)]
pub(super) fn walk_in_order<V: Visitor>(path: &Path, visitor: V) -> Result<Walked<V>> {
    match pass(path, &Interrupt::new(), Walker::new(path, visitor, false))? {
        Passed::Through(walked) => Ok(walked),
        Passed::Scattered | Passed::Interrupted => panic!("the rows are not in order"),
    }
}

/// The category in each of these rows, which are in ascending order.
///
/// # Errors
/// The table cannot be read.
pub(crate) fn categories(path: &Path, rows: &[u64]) -> Result<Vec<String>> {
    let mut categories = Vec::with_capacity(rows.len());
    let mut before = 0;
    // A query of its own, as for every row of the table it would take a third of the time.
    for_each_batch(path, scan(path)?.select([col("category")]), |batch| {
        let column = batch.column("category").and_then(Column::str).map_err(broken(path))?;
        let end = before + batch.height() as u64;
        let here = rows[categories.len()..].iter().take_while(|row| **row < end);
        let here: Vec<_> =
            here.map(|row| column.get((row - before) as usize).unwrap_or_default().to_owned()).collect();
        categories.extend(here);
        before = end;
        Ok(categories.len() < rows.len())
    })?;
    Ok(categories)
}

pub(super) enum Passed<V> {
    Through(Walked<V>),
    /// The pictures do not stand in order.
    Scattered,
    Interrupted,
}

fn pass<V: Visitor>(path: &Path, interrupt: &Interrupt, mut walker: Walker<V>) -> Result<Passed<V>> {
    let rows = scan(path)?.select([col("image"), col("tag"), col("score")]);
    let mut is_scattered = false;
    for_each_batch(path, rows, |mut batch| {
        batch.rechunk_mut();
        is_scattered = !walker.take(&batch)?;
        Ok(!is_scattered && !interrupt.is_raised())
    })?;
    Ok(match (interrupt.is_raised(), is_scattered) {
        (true, _) => Passed::Interrupted,
        (_, true) => Passed::Scattered,
        (false, false) => Passed::Through(walker.finish()),
    })
}

struct Walker<V> {
    path: PathBuf,
    visitor: V,
    known: Known,
    recent: Recent,
    picture: Picture,
    /// How many rows came in earlier batches.
    rows: u64,
    gathered: Option<Gathered>,
}

impl<V: Visitor> Walker<V> {
    fn new(path: &Path, visitor: V, gathers: bool) -> Self {
        Self {
            path: path.to_path_buf(),
            visitor,
            known: Known::default(),
            recent: Recent::new(),
            picture: Picture::default(),
            rows: 0,
            gathered: gathers.then(Gathered::default),
        }
    }

    /// Takes rows; false where the pictures are not in order, unless rows are gathered.
    fn take(&mut self, batch: &DataFrame) -> Result<bool> {
        let path = self.path.clone();
        let column = |name| batch.column(name).map_err(broken(&path));
        let (image, tag, score) = (column("image")?, column("tag")?, column("score")?);
        self.check_nulls([image, tag, score])?;
        let (images, tags) = (text(&path, image)?, text(&path, tag)?);
        let scores = score.f32().map_err(broken(&path))?;
        let (Some(images), Some(tags), Some(scores)) =
            (images.downcast_iter().next(), tags.downcast_iter().next(), scores.downcast_iter().next())
        else {
            return Ok(true);
        };
        self.recent.next_batch();
        // Equal views are equal texts, within a batch.
        let mut last = None;
        let views = images.views().iter().zip(tags.views().iter()).zip(scores.values().iter());
        for (row, ((image, tag), score)) in views.enumerate() {
            let (image, score) = (image.as_u128(), *score);
            if last != Some(image) {
                last = Some(image);
                if !self.begin(images.value(row)) {
                    return Ok(false);
                }
            }
            if !(0.0..=1.0).contains(&score) {
                let [image, tag] = [images, tags].map(|texts| Some(texts.value(row).to_owned()));
                return Err(wrong_row(&self.path, image, tag, Some(score.to_string())));
            }
            self.picture.rows += 1;
            self.picture.lowest = self.picture.lowest.min(score);
            let key = Key { view: tag.as_u128(), is_inline: tag.is_inline() };
            let met = || self.known.number(tags.value(row), self.rows + row as u64, &mut self.visitor);
            if let Some(number) = self.recent.number(key, met) {
                self.picture.push(number, score);
            }
        }
        self.rows += batch.height() as u64;
        Ok(true)
    }

    /// Goes on with this picture; false where it is not the next in order.
    fn begin(&mut self, image: &str) -> bool {
        if self.picture.rows > 0 {
            if self.picture.image == image {
                return true;
            }
            // In a strict order no picture comes again.
            if self.gathered.is_none() && !comes_before(&self.picture.image, image) {
                return false;
            }
            self.end();
        }
        self.picture.begin(image);
        true
    }

    /// Hands over the picture in hand.
    fn end(&mut self) {
        if self.picture.rows == 0 {
            return;
        }
        match &mut self.gathered {
            Some(gathered) => gathered.add(&self.picture),
            None => self.visitor.picture(&self.picture.scored()),
        }
    }

    fn finish(mut self) -> Walked<V> {
        self.end();
        if let Some(gathered) = self.gathered {
            gathered.hand_over(&mut self.visitor);
        }
        let (spellings, first_rows) = self.known.finish();
        Walked { visitor: self.visitor, spellings, first_rows }
    }

    fn check_nulls(&self, columns: [&Column; 3]) -> Result<()> {
        let Some(row) = columns.iter().filter_map(|column| first_null(column)).min() else { return Ok(()) };
        let [image, tag, score] =
            columns.map(|column| column.get(row).ok().and_then(|cell| cell_text(&cell)));
        Err(wrong_row(&self.path, image, tag, score))
    }
}

fn first_null(column: &Column) -> Option<usize> {
    let nulls = column.is_null();
    (column.null_count() > 0).then(|| nulls.iter().position(|null| null == Some(true))).flatten()
}

fn text<'a>(path: &Path, column: &'a Column) -> Result<&'a StringChunked> {
    column.str().map_err(broken(path))
}

/// Whether a picture comes before another as the tagger lists them: folder by folder, so that `/` is the lowest of all
/// characters.
pub(super) fn comes_before(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    // Names in a folder begin alike: eight bytes at a time.
    let eight = |(a, b): &(&[u8; 8], &[u8; 8])| a == b;
    let alike = 8 * a.as_chunks().0.iter().zip(b.as_chunks().0).take_while(eight).count();
    let differ = a[alike..].iter().zip(&b[alike..]).find(|(a, b)| a != b);
    match differ {
        None => a.len() < b.len(),
        Some((b'/', _)) => true,
        Some((_, b'/')) => false,
        Some((a, b)) => a < b,
    }
}

/// The picture in hand.
#[derive(Default)]
pub(super) struct Picture {
    pub(super) image: String,
    pub(super) rows: u64,
    pub(super) lowest: f32,
    pub(super) scores: Vec<(u32, f32)>,
    /// How many pictures have begun.
    count: u32,
    /// By tag: the last picture that had it, and where in its scores.
    last: Vec<(u32, u32)>,
}

impl Picture {
    pub(super) fn begin(&mut self, image: &str) {
        self.image.clear();
        self.image.push_str(image);
        self.rows = 0;
        self.lowest = f32::INFINITY;
        self.scores.clear();
        self.count += 1;
    }

    /// Adds a score; of a tag's scores the highest counts.
    pub(super) fn push(&mut self, tag: u32, score: f32) {
        let tag_place = tag as usize;
        if self.last.len() <= tag_place {
            self.last.resize(tag_place + 1, (0, 0));
        }
        let (picture, place) = &mut self.last[tag_place];
        if *picture == self.count {
            let best = &mut self.scores[*place as usize].1;
            *best = best.max(score);
        } else {
            (*picture, *place) = (self.count, self.scores.len() as u32);
            self.scores.push((tag, score));
        }
    }

    pub(super) fn scored(&self) -> Scored<'_> {
        Scored { image: &self.image, rows: self.rows, lowest: self.lowest, scores: &self.scores }
    }
}

/// The pictures of a table whose rows stand in any order.
#[derive(Default)]
struct Gathered {
    numbers: HashMap<String, u32>,
    /// By picture: its rows, and the lowest of all their scores.
    rows: Vec<(u64, f32)>,
    /// Picture, tag and score.
    scores: Vec<(u32, u32, f32)>,
}

impl Gathered {
    /// Adds some rows of a picture.
    fn add(&mut self, part: &Picture) {
        let next = self.rows.len() as u32;
        let number = match self.numbers.get(&part.image) {
            Some(number) => *number,
            None => {
                self.numbers.insert(part.image.clone(), next);
                self.rows.push((0, f32::INFINITY));
                next
            }
        };
        let (rows, lowest) = &mut self.rows[number as usize];
        *rows += part.rows;
        *lowest = lowest.min(part.lowest);
        self.scores.extend(part.scores.iter().map(|(tag, score)| (number, *tag, *score)));
    }

    fn hand_over(mut self, visitor: &mut impl Visitor) {
        let mut images: Vec<_> = self.numbers.into_iter().collect();
        images.sort_unstable_by_key(|(_, number)| *number);
        self.scores.sort_unstable_by_key(|(picture, tag, _)| (*picture, *tag));
        let mut rest = self.scores.as_slice();
        let mut picture = Picture::default();
        for ((image, number), (rows, lowest)) in images.into_iter().zip(self.rows) {
            let here;
            (here, rest) = rest.split_at(rest.iter().take_while(|(picture, ..)| *picture == number).count());
            picture.begin(&image);
            (picture.rows, picture.lowest) = (rows, lowest);
            here.iter().for_each(|(_, tag, score)| picture.push(*tag, *score));
            visitor.picture(&picture.scored());
        }
    }
}

/// The tags that have come so far.
#[derive(Default)]
pub(super) struct Known {
    /// By spelling: the tag's number where its scores are wanted.
    spelled: PlHashMap<String, Option<u32>>,
    /// The same by canonical name.
    named: PlHashMap<String, Option<u32>>,
    /// By canonical name, of wanted tags.
    first_rows: HashMap<String, u64>,
}

impl Known {
    /// The number of a tag whose scores are wanted.
    pub(super) fn number(&mut self, spelling: &str, row: u64, visitor: &mut impl Visitor) -> Option<u32> {
        match self.spelled.get(spelling) {
            Some(number) => *number,
            None => self.meet(spelling.to_owned(), row, visitor),
        }
    }

    fn meet(&mut self, spelling: String, row: u64, visitor: &mut impl Visitor) -> Option<u32> {
        let name = canonical(&spelling);
        let number = self.named(&name, visitor);
        if number.is_some() {
            let first = self.first_rows.entry(name).or_insert(row);
            *first = row.min(*first);
        }
        self.spelled.insert(spelling, number);
        number
    }

    fn named(&mut self, name: &str, visitor: &mut impl Visitor) -> Option<u32> {
        let next = self.named.len() as u32;
        match self.named.get(name) {
            Some(number) => *number,
            None => {
                let number = visitor.tag(name).then_some(next);
                self.named.insert(name.to_owned(), number);
                number
            }
        }
    }

    /// Takes in the tags that another has met; gives for each of its numbers the one they have here.
    pub(super) fn absorb(&mut self, other: Self, visitor: &mut impl Visitor) -> Vec<Option<u32>> {
        let mut numbers = vec![None; other.named.len()];
        for (name, theirs) in &other.named {
            let ours = self.named(name, visitor);
            if let Some(theirs) = theirs {
                numbers[*theirs as usize] = ours;
            }
        }
        for (name, row) in other.first_rows {
            let first = self.first_rows.entry(name).or_insert(row);
            *first = row.min(*first);
        }
        let number = |theirs: Option<u32>| theirs.and_then(|theirs| numbers[theirs as usize]);
        self.spelled.extend(other.spelled.into_iter().map(|(spelling, theirs)| (spelling, number(theirs))));
        numbers
    }

    /// Each spelling with its canonical form, in order, and the first row of each wanted tag.
    pub(super) fn finish(self) -> (Vec<(String, String)>, HashMap<String, u64>) {
        let spelled = self.spelled.into_keys();
        let mut spellings: Vec<_> =
            spelled.map(|spelling| (spelling.clone(), canonical(&spelling))).collect();
        spellings.sort();
        (spellings, self.first_rows)
    }
}

/// The tags of the last rows by their views: hashing every name would take most of the time.
struct Recent {
    slots: Box<[Slot]>,
    batch: u32,
}

/// A text's view: its length and either all of its bytes or where they lie in the batch.
#[derive(Clone, Copy)]
struct Key {
    view: u128,
    /// Whether the view is all of the text, and so means the same in every batch.
    is_inline: bool,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    view: u128,
    /// From 1; views into a batch mean nothing in another.
    batch: u32,
    number: Option<u32>,
}

impl Recent {
    /// As a power of two: several times as many as taggers have tags, so that few share a slot.
    const SLOTS: u32 = 15;

    fn new() -> Self {
        Self { slots: vec![Slot::default(); 1 << Self::SLOTS].into_boxed_slice(), batch: 0 }
    }

    fn next_batch(&mut self) {
        self.batch += 1;
    }

    /// The number of a tag whose scores are wanted; `met` finds it by its spelling.
    #[inline]
    fn number(&mut self, key: Key, met: impl FnOnce() -> Option<u32>) -> Option<u32> {
        // Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4) of both halves.
        let folded = key.view as u64 ^ ((key.view >> 64) as u64).rotate_left(29);
        let slot = (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - Self::SLOTS)) as usize;
        let slot = &mut self.slots[slot];
        if slot.view == key.view && (slot.batch == self.batch || (key.is_inline && slot.batch > 0)) {
            return slot.number;
        }
        let number = met();
        *slot = Slot { view: key.view, batch: self.batch, number };
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_in_the_order_of_paths() {
        let order = [
            "a",
            "a/b/c.png",
            "a/b.png",
            "a b/c.png",
            "a.png",
            "b",
            "b.png",
            "of many letters/a/1.png",
            "of many letters/a/2.png",
            "of many letters/a.png",
        ];
        let paths: Vec<_> = order.iter().map(Path::new).collect();
        assert!(paths.is_sorted(), "as the tagger lists them");
        for (k, a) in order.iter().enumerate() {
            for (l, b) in order.iter().enumerate() {
                assert_eq!(comes_before(a, b), k < l, "{a} {b}");
            }
        }
    }
}
