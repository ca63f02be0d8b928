//! A tag table picture by picture, in one pass that holds no more than a few batches of rows.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    mem,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, sync_channel},
    thread,
};

use polars::prelude::{Column, DataFrame, Engine, PlanCallback};
use vodka_stage::Interrupt;

use super::{broken, scan};
use crate::{Error, Result, canonical};

/// So many batches of rows may wait.
const BATCHES: usize = 2;

/// What looks at the pictures of a table. What it finds out must not depend on the order of pictures, of scores, or of
/// a tag's spellings.
pub(crate) trait Visitor {
    /// A tag that the table names, by its canonical name, before its first score. Tags are numbered from 0 in the order
    /// of these calls. Tells whether the scores of this tag are wanted.
    fn tag(&mut self, tag: &str, category: &str) -> bool;

    /// A picture; each is handed over once.
    fn picture(&mut self, picture: &Scored<'_>);
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
}

/// Hands over each picture of a table; none if interrupted.
///
/// Tables that have the rows of each picture together, as taggers write them, are passed through; of others the
/// wanted scores are gathered first.
///
/// # Errors
/// As [`TagTable::open`](super::TagTable::open).
pub(crate) fn walk<V: Visitor>(
    path: &Path,
    interrupt: &Interrupt,
    fresh: impl Fn() -> V,
) -> Result<Option<Walked<V>>> {
    for gathers in [false, true] {
        match pass(path, interrupt, Walker::new(path, fresh(), gathers))? {
            Passed::Through(walked) => return Ok(Some(walked)),
            Passed::Interrupted => return Ok(None),
            Passed::Scattered => {}
        }
    }
    unreachable!("who gathers can take any order")
}

enum Passed<V> {
    Through(Walked<V>),
    /// The rows of a picture do not stand together.
    Scattered,
    Interrupted,
}

fn pass<V: Visitor>(path: &Path, interrupt: &Interrupt, walker: Walker<V>) -> Result<Passed<V>> {
    let (send, batches) = sync_channel(BATCHES);
    // Polars stops where nobody wants more.
    let hand_over = PlanCallback::new(move |batch| Ok(send.send(batch).is_err()));
    let rows = scan(path)?.sink_batches(hand_over, true, None).map_err(|source| broken(path, source))?;
    thread::scope(|scope| {
        let reader = scope.spawn(move || rows.collect_with_engine(Engine::Streaming));
        let passed = take_all(batches, interrupt, walker);
        let read = reader.join().expect("polars says by an error what went wrong");
        // After a failure to read, what was taken is not the whole table.
        read.map_err(|source| broken(path, source))?;
        passed
    })
}

fn take_all<V: Visitor>(
    batches: Receiver<DataFrame>,
    interrupt: &Interrupt,
    mut walker: Walker<V>,
) -> Result<Passed<V>> {
    for mut batch in batches {
        if interrupt.is_raised() {
            return Ok(Passed::Interrupted);
        }
        batch.rechunk_mut();
        if !walker.take(&batch)? {
            return Ok(Passed::Scattered);
        }
    }
    Ok(walker.finish().map_or(Passed::Scattered, Passed::Through))
}

struct Walker<V> {
    path: PathBuf,
    visitor: V,
    tags: Tags,
    picture: Picture,
    /// The hashes of the pictures that are complete.
    complete: HashSet<u64>,
    gathered: Option<Gathered>,
}

impl<V: Visitor> Walker<V> {
    fn new(path: &Path, visitor: V, gathers: bool) -> Self {
        Self {
            path: path.to_path_buf(),
            visitor,
            tags: Tags::new(),
            picture: Picture::default(),
            complete: HashSet::new(),
            gathered: gathers.then(Gathered::default),
        }
    }

    /// Takes rows; false where a picture comes again, unless rows are gathered.
    fn take(&mut self, batch: &DataFrame) -> Result<bool> {
        let column = |name| batch.column(name).map_err(|source| broken(&self.path, source));
        let (image, tag, category, score) =
            (column("image")?, column("tag")?, column("category")?, column("score")?);
        self.check_nulls([image, tag, score])?;
        let text = |column: &'_ Column| column.str().cloned().map_err(|source| broken(&self.path, source));
        let (images, tags, categories) = (text(image)?, text(tag)?, text(category)?);
        let scores = score.f32().cloned().map_err(|source| broken(&self.path, source))?;
        let (Some(images), Some(tags), Some(categories), Some(scores)) = (
            images.downcast_iter().next(),
            tags.downcast_iter().next(),
            categories.downcast_iter().next(),
            scores.downcast_iter().next(),
        ) else {
            return Ok(true);
        };
        self.tags.next_batch();
        // Equal views are equal texts, within a batch.
        let mut last = None;
        for (row, score) in scores.values().iter().copied().enumerate() {
            let view = images.views()[row].as_u128();
            if last != Some(view) {
                last = Some(view);
                if !self.begin(images.value(row)) {
                    return Ok(false);
                }
            }
            if !(0.0..=1.0).contains(&score) {
                return Err(self.wrong(images.value(row), tags.value(row), &score.to_string()));
            }
            self.picture.rows += 1;
            self.picture.lowest = self.picture.lowest.min(score);
            let view = tags.views()[row];
            let key = Key { view: view.as_u128(), is_inline: view.is_inline() };
            let text = || (tags.value(row), categories.get(row).unwrap_or_default());
            let number = self.tags.number(key, text, &mut self.visitor);
            if let Some(number) = number {
                self.picture.push(number, score);
            }
        }
        Ok(true)
    }

    /// Goes on with this picture; false where it was complete already.
    fn begin(&mut self, image: &str) -> bool {
        if self.picture.rows > 0 && self.picture.image == image {
            return true;
        }
        if !self.end() {
            return false;
        }
        self.picture.begin(image);
        true
    }

    /// Hands over the picture in hand; false where it had been already.
    fn end(&mut self) -> bool {
        if self.picture.rows == 0 {
            return true;
        }
        if let Some(gathered) = &mut self.gathered {
            gathered.add(&self.picture);
            return true;
        }
        // Two pictures of one hash are gathered for nothing, once in ten million tables of a million pictures.
        if !self.complete.insert(hash(&self.picture.image)) {
            return false;
        }
        self.visitor.picture(&self.picture.scored());
        true
    }

    fn finish(mut self) -> Option<Walked<V>> {
        if !self.end() {
            return None;
        }
        if let Some(gathered) = self.gathered {
            gathered.hand_over(&mut self.visitor);
        }
        Some(Walked { visitor: self.visitor, spellings: self.tags.spellings() })
    }

    fn check_nulls(&self, columns: [&Column; 3]) -> Result<()> {
        let Some(row) = columns.iter().filter_map(|column| first_null(column)).min() else { return Ok(()) };
        let [image, tag, score] = columns
            .map(|column| column.get(row).map(|cell| cell.str_value().into_owned()).unwrap_or_default());
        Err(self.wrong(&image, &tag, &score))
    }

    fn wrong(&self, image: &str, tag: &str, found: &str) -> Error {
        let [image, tag, found] = [image, tag, found].map(ToOwned::to_owned);
        Error::Score { path: self.path.clone(), image, tag, found }
    }
}

fn first_null(column: &Column) -> Option<usize> {
    let nulls = column.is_null();
    (column.null_count() > 0).then(|| nulls.iter().position(|null| null == Some(true))).flatten()
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// The picture in hand.
#[derive(Default)]
struct Picture {
    image: String,
    rows: u64,
    lowest: f32,
    scores: Vec<(u32, f32)>,
    /// How many pictures have begun.
    count: u32,
    /// By tag: the last picture that had it, and where in its scores.
    last: Vec<(u32, u32)>,
}

impl Picture {
    fn begin(&mut self, image: &str) {
        self.image.clear();
        self.image.push_str(image);
        self.rows = 0;
        self.lowest = f32::INFINITY;
        self.scores.clear();
        self.count += 1;
    }

    /// Adds a score; of a tag's scores the highest counts.
    fn push(&mut self, tag: u32, score: f32) {
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

    fn scored(&self) -> Scored<'_> {
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
            (here, rest) = rest.split_at(rest.partition_point(|(picture, ..)| *picture <= number));
            picture.begin(&image);
            (picture.rows, picture.lowest) = (rows, lowest);
            here.iter().for_each(|(_, tag, score)| picture.push(*tag, *score));
            visitor.picture(&picture.scored());
        }
    }
}

/// The tags that have come so far.
struct Tags {
    /// By spelling: the tag's number where its scores are wanted.
    spelled: HashMap<String, Option<u32>>,
    /// By canonical name.
    named: HashMap<String, Option<u32>>,
    /// The tags of the last rows, by their views: hashing every name would take most of the time.
    recent: Box<[Recent]>,
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
struct Recent {
    view: u128,
    /// From 1; views into a batch mean nothing in another.
    batch: u32,
    number: Option<u32>,
}

impl Tags {
    /// As a power of two.
    const RECENT: u32 = 13;

    fn new() -> Self {
        let recent = vec![Recent::default(); 1 << Self::RECENT].into_boxed_slice();
        Self { spelled: HashMap::new(), named: HashMap::new(), recent, batch: 0 }
    }

    fn next_batch(&mut self) {
        self.batch += 1;
    }

    /// The number of a tag whose scores are wanted; `text` gives its spelling and its category.
    #[inline]
    fn number<'a>(
        &mut self,
        key: Key,
        text: impl FnOnce() -> (&'a str, &'a str),
        visitor: &mut impl Visitor,
    ) -> Option<u32> {
        // Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4) of both halves.
        let folded = key.view as u64 ^ ((key.view >> 64) as u64).rotate_left(29);
        let slot = (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - Self::RECENT)) as usize;
        let recent = self.recent[slot];
        if recent.view == key.view && (recent.batch == self.batch || (key.is_inline && recent.batch > 0)) {
            return recent.number;
        }
        let (spelling, category) = text();
        let number = match self.spelled.get(spelling) {
            Some(number) => *number,
            None => self.meet(spelling, category, visitor),
        };
        self.recent[slot] = Recent { view: key.view, batch: self.batch, number };
        number
    }

    fn meet(&mut self, spelling: &str, category: &str, visitor: &mut impl Visitor) -> Option<u32> {
        let name = canonical(spelling);
        let next = self.named.len() as u32;
        let number = match self.named.get(&name) {
            Some(number) => *number,
            None => {
                let number = visitor.tag(&name, category).then_some(next);
                self.named.insert(name, number);
                number
            }
        };
        self.spelled.insert(spelling.to_owned(), number);
        number
    }

    fn spellings(&mut self) -> Vec<(String, String)> {
        let spelled = mem::take(&mut self.spelled).into_keys();
        let mut spellings: Vec<_> =
            spelled.map(|spelling| (spelling.clone(), canonical(&spelling))).collect();
        spellings.sort();
        spellings
    }
}
