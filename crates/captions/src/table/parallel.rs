//! A tag table picture by picture, its groups of rows side by side on all processors.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use rayon::prelude::*;
use vodka_stage::Interrupt;

use super::{
    coded::{Coded, Rows},
    walk::{Known, Passed, Picture, Visitor, Walked, comes_before},
};

/// A tag of a group that no row has named yet.
const UNMET: u32 = u32::MAX;

/// A tag whose scores are not wanted.
const UNWANTED: u32 = u32::MAX - 1;

/// Goes through a table; none where it is not written as [`Coded`] reads it, or something is wrong with it, which is said by
/// who reads it in order.
pub(super) fn pass<V: Visitor>(
    path: &Path,
    interrupt: &Interrupt,
    fresh: &(impl Fn() -> V + Sync),
) -> Option<Passed<V>> {
    let groups = Coded::open(path)?.groups();
    let (next, stops) = (AtomicUsize::new(0), AtomicBool::new(false));
    let workers = rayon::current_num_threads().clamp(1, groups.max(1));
    let shares: Vec<_> = (0..workers)
        .into_par_iter()
        .map(|_| {
            let mut share = Share::new(fresh());
            let ended =
                share.take_all(path, &next, || stops.load(Ordering::Relaxed) || interrupt.is_raised());
            stops.fetch_or(!matches!(ended, Ended::Through), Ordering::Relaxed);
            (share, ended)
        })
        .collect();
    if interrupt.is_raised() {
        return Some(Passed::Interrupted);
    }
    let mut through = Vec::with_capacity(shares.len());
    let mut is_scattered = false;
    for (share, ended) in shares {
        match ended {
            Ended::Through => through.push(share),
            Ended::Scattered => is_scattered = true,
            Ended::Unknown => return None,
        }
    }
    Some(if is_scattered { Passed::Scattered } else { joined(through) })
}

enum Ended {
    Through,
    /// The pictures of a group do not stand in order.
    Scattered,
    /// A group cannot be read so, or has a score that is none.
    Unknown,
}

/// What one processor has been through.
struct Share<V> {
    visitor: V,
    known: Known,
    picture: Picture,
    ends: Vec<End>,
}

/// The first or last picture of a group, of which its neighbour may have rows, too.
struct End {
    group: usize,
    image: String,
    rows: u64,
    lowest: f32,
    scores: Vec<(u32, f32)>,
}

impl<V: Visitor> Share<V> {
    fn new(visitor: V) -> Self {
        Self { visitor, known: Known::default(), picture: Picture::default(), ends: Vec::new() }
    }

    /// Takes the next group as long as there is one.
    fn take_all(&mut self, path: &Path, next: &AtomicUsize, stops: impl Fn() -> bool) -> Ended {
        // A file of one's own, as the place in it is where one reads.
        let Some(table) = Coded::open(path) else { return Ended::Unknown };
        let mut rows = Rows::default();
        loop {
            let group = next.fetch_add(1, Ordering::Relaxed);
            if group >= table.groups() || stops() {
                return Ended::Through;
            }
            if table.read(group, &mut rows).is_none() {
                return Ended::Unknown;
            }
            match self.take(group, table.first_row(group), &rows) {
                Ended::Through => {}
                ended => return ended,
            }
        }
    }

    fn take(&mut self, group: usize, first_row: u64, rows: &Rows) -> Ended {
        let mut numbers = vec![UNMET; rows.tags.len()];
        let (mut at, mut last) = (0, None);
        for (place, (image, count)) in rows.runs.iter().enumerate() {
            let image = rows.images.get(*image);
            if last.is_some_and(|last| !comes_before(last, image)) {
                return Ended::Scattered;
            }
            last = Some(image);
            let here = at..at + *count as usize;
            let (codes, scores) = (&rows.codes[here.clone()], &rows.scores[here]);
            // Without a branch, so that several are looked at at once.
            if !scores.iter().fold(true, |good, score| good & (0.0..=1.0).contains(score)) {
                return Ended::Unknown;
            }
            self.picture.begin(image);
            self.picture.rows = u64::from(*count);
            self.picture.lowest = scores.iter().fold(f32::INFINITY, |lowest, score| lowest.min(*score));
            for (row, (code, score)) in codes.iter().zip(scores).enumerate() {
                let number = &mut numbers[*code as usize];
                if *number == UNMET {
                    let row = first_row + (at + row) as u64;
                    let met = self.known.number(rows.tags.get(*code), row, &mut self.visitor);
                    *number = met.unwrap_or(UNWANTED);
                }
                if *number != UNWANTED {
                    self.picture.push(*number, *score);
                }
            }
            at += *count as usize;
            if place == 0 || place + 1 == rows.runs.len() {
                self.ends.push(End::new(group, &self.picture));
            } else {
                self.visitor.picture(&self.picture.scored());
            }
        }
        Ended::Through
    }
}

impl End {
    fn new(group: usize, picture: &Picture) -> Self {
        let Picture { image, rows, lowest, scores, .. } = picture;
        Self { group, image: image.clone(), rows: *rows, lowest: *lowest, scores: scores.clone() }
    }
}

/// Makes one of the shares, with the pictures at the ends of groups.
fn joined<V: Visitor>(shares: Vec<Share<V>>) -> Passed<V> {
    let mut shares = shares.into_iter();
    let Share { mut visitor, mut known, mut picture, mut ends } = shares.next().expect("at least one works");
    for other in shares {
        let numbers = known.absorb(other.known, &mut visitor);
        visitor.absorb(other.visitor);
        ends.extend(other.ends.into_iter().map(|mut end| {
            end.scores.iter_mut().for_each(|(tag, _)| *tag = numbers[*tag as usize].expect("wanted by both"));
            end
        }));
    }
    // Both ends of a group come from one share, the first one first.
    ends.sort_by_key(|end| end.group);
    for (place, end) in ends.iter().enumerate() {
        match place.checked_sub(1).map(|before| ends[before].image.as_str()) {
            Some(last) if last == end.image => {}
            Some(last) if !comes_before(last, &end.image) => return Passed::Scattered,
            last => {
                if last.is_some() {
                    visitor.picture(&picture.scored());
                }
                picture.begin(&end.image);
            }
        }
        picture.rows += end.rows;
        picture.lowest = picture.lowest.min(end.lowest);
        end.scores.iter().for_each(|(tag, score)| picture.push(*tag, *score));
    }
    if !ends.is_empty() {
        visitor.picture(&picture.scored());
    }
    let (spellings, first_rows) = known.finish();
    Passed::Through(Walked { visitor, spellings, first_rows })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs::File, sync::Arc};

    use parquet::{
        basic::Compression,
        data_type::{ByteArray, ByteArrayType, DataType, FloatType, Int64Type},
        file::{
            properties::{WriterProperties, WriterVersion},
            writer::SerializedFileWriter,
        },
        schema::{parser::parse_message_type, types::ColumnPath},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::table::walk::{Scored, walk, walk_in_order};

    /// What a table says, by picture: rows, the lowest score, and the scores of the tags that are wanted.
    #[derive(Debug, Default, PartialEq)]
    struct Seen {
        tags: Vec<String>,
        pictures: BTreeMap<String, (u64, f32, BTreeMap<String, f32>)>,
    }

    impl Visitor for Seen {
        fn tag(&mut self, tag: &str) -> bool {
            self.tags.push(tag.to_owned());
            tag != "unwanted"
        }

        fn picture(&mut self, Scored { image, rows, lowest, scores }: &Scored<'_>) {
            let scores = scores.iter().map(|(tag, score)| (self.tags[*tag as usize].clone(), *score));
            let before = self.pictures.insert((*image).to_owned(), (*rows, *lowest, scores.collect()));
            assert_eq!(before, None, "{image} comes once");
        }

        fn absorb(&mut self, other: Self) {
            self.pictures.extend(other.pictures);
        }
    }

    type Row = (String, String, f32);

    /// How a table is written.
    #[derive(Debug, Clone, Copy)]
    struct Form {
        group: usize,
        is_optional: bool,
        version: WriterVersion,
        /// Whether pictures and scores have dictionaries.
        has_dictionary: bool,
        are_tags_plain: bool,
    }

    const USUAL: Form = Form {
        group: 4,
        is_optional: false,
        version: WriterVersion::PARQUET_1_0,
        has_dictionary: true,
        are_tags_plain: false,
    };

    fn write(path: &Path, rows: &[Row], form: Form) {
        let kind = if form.is_optional { "OPTIONAL" } else { "REQUIRED" };
        let schema = format!(
            "message table {{ {kind} BYTE_ARRAY image (UTF8); {kind} INT64 tag_id; {kind} BYTE_ARRAY tag (UTF8); \
             {kind} BYTE_ARRAY category (UTF8); {kind} FLOAT score; }}"
        );
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_writer_version(form.version)
            .set_dictionary_enabled(form.has_dictionary)
            .set_column_dictionary_enabled(ColumnPath::from("tag"), !form.are_tags_plain)
            .set_data_page_row_count_limit(3)
            .set_write_batch_size(2);
        let schema = Arc::new(parse_message_type(&schema).unwrap());
        let mut writer =
            SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties.build()))
                .unwrap();
        for rows in rows.chunks(form.group) {
            let mut group = writer.next_row_group().unwrap();
            let texts = |of: &dyn Fn(&Row) -> &str| {
                rows.iter().map(|row| ByteArray::from(of(row))).collect::<Vec<_>>()
            };
            let levels = vec![1_i16; rows.len()];
            let levels = form.is_optional.then_some(levels.as_slice());
            let mut put = Put { group: &mut group, levels };
            put.column::<ByteArrayType>(&texts(&|row| &row.0));
            put.column::<Int64Type>(&vec![1; rows.len()]);
            put.column::<ByteArrayType>(&texts(&|row| &row.1));
            put.column::<ByteArrayType>(&texts(&|_| "general"));
            put.column::<FloatType>(&rows.iter().map(|row| row.2).collect::<Vec<_>>());
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    struct Put<'g, 'w> {
        group: &'g mut parquet::file::writer::SerializedRowGroupWriter<'w, File>,
        levels: Option<&'g [i16]>,
    }

    impl Put<'_, '_> {
        fn column<T: DataType>(&mut self, values: &[T::T]) {
            let mut column = self.group.next_column().unwrap().unwrap();
            column.typed::<T>().write_batch(values, self.levels, None).unwrap();
            column.close().unwrap();
        }
    }

    fn coded(path: &Path) -> Option<Passed<Seen>> {
        pass(path, &Interrupt::new(), &Seen::default)
    }

    fn row(image: &str, tag: &str, score: f32) -> Row {
        (image.to_owned(), tag.to_owned(), score)
    }

    fn form() -> impl Strategy<Value = Form> {
        let version = prop_oneof![Just(WriterVersion::PARQUET_1_0), Just(WriterVersion::PARQUET_2_0)];
        (1..9_usize, any::<bool>(), version, any::<bool>()).prop_map(
            |(group, is_optional, version, has_dictionary)| Form {
                group,
                is_optional,
                version,
                has_dictionary,
                are_tags_plain: false,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn side_by_side_is_as_in_order(
            rows in prop::collection::vec((0..6_usize, 0..4_usize, 0..=8_u32), 1..60),
            form in form(),
        ) {
            let tags = ["blurry", " Blurry", "unwanted", "a tag of a name that is long"];
            let mut rows: Vec<_> = rows
                .into_iter()
                .map(|(image, tag, score)| row(&format!("a folder/{image}.png"), tags[tag], score as f32 / 8.0))
                .collect();
            rows.sort_by(|a, b| a.0.cmp(&b.0));
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("t.parquet");
            write(&path, &rows, form);
            let in_order = walk_in_order(&path, Seen::default()).unwrap();
            // Version 2 writes plain texts in encodings of its own.
            if let Some(passed) = coded(&path) {
                let Passed::Through(coded) = passed else { panic!("the rows are in order") };
                prop_assert_eq!(coded.visitor.pictures, in_order.visitor.pictures);
                prop_assert_eq!(coded.spellings, in_order.spellings);
                prop_assert_eq!(coded.first_rows, in_order.first_rows);
            } else {
                prop_assert!(!form.has_dictionary && form.version == WriterVersion::PARQUET_2_0, "{:?}", form);
            }
        }
    }

    #[test]
    fn what_cannot_be_taken_is_left_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.parquet");
        let rows = [row("a.png", "blurry", 0.5), row("a.png", "solo", 0.25), row("b.png", "solo", 1.0)];
        write(&path, &rows, USUAL);
        assert!(matches!(coded(&path), Some(Passed::Through(_))), "the tagger's own tables are taken");
        write(&path, &rows, Form { are_tags_plain: true, ..USUAL });
        assert!(coded(&path).is_none());
        let walked = walk(&path, &Interrupt::new(), Seen::default).unwrap().unwrap();
        assert_eq!(walked.visitor.pictures.len(), 2);

        let mut wrong = rows.clone();
        wrong[2].2 = f32::NAN;
        write(&path, &wrong, USUAL);
        assert!(coded(&path).is_none());
        let error = walk(&path, &Interrupt::new(), Seen::default).err().unwrap().to_string();
        assert!(error.contains("b.png") && error.contains("solo"), "{error}");

        for group in [1, 4] {
            let scattered = [rows[2].clone(), rows[0].clone(), rows[1].clone()];
            write(&path, &scattered, Form { group, ..USUAL });
            assert!(matches!(coded(&path), Some(Passed::Scattered)));
            let walked = walk(&path, &Interrupt::new(), Seen::default).unwrap().unwrap();
            assert_eq!(walked.visitor.pictures.len(), 2);
        }

        write(&path, &rows, USUAL);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            let mut broken = whole.clone();
            broken[cut] ^= 0x55;
            std::fs::write(&path, broken).unwrap();
            // Whatever it finds, it ends.
            drop(coded(&path));
        }
    }
}
