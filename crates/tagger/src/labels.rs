//! The vocabulary of a model, from each of the files that taggers come with.

use std::{
    collections::{HashMap, HashSet},
    fmt, fs,
    marker::PhantomData,
    ops::Deref,
    path::Path,
    str,
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use crate::{Category, Error, LabelFile, LabelKind, Result, description::line_at};

/// One tag that the model knows.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    /// The tag's number in the booru's database; its output's place where the file has no such numbers.
    pub tag_id: i64,
    /// The canonical name: as in the file, without spaces around it and with underscores for those within.
    pub name: String,
    /// What kind of thing it says.
    pub category: Category,
    /// From which score on the model's author counts it, where the file says so.
    pub threshold: Option<f32>,
}

/// The labels of all outputs that have one, in the order of the outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Labels {
    labels: Vec<Label>,
    /// The output of each label, where some outputs have none.
    outputs: Option<Vec<usize>>,
}

impl Deref for Labels {
    type Target = [Label];

    fn deref(&self) -> &[Label] {
        &self.labels
    }
}

impl From<Vec<Label>> for Labels {
    /// One label for each output, in order.
    fn from(labels: Vec<Label>) -> Self {
        Self { labels, outputs: None }
    }
}

impl Labels {
    /// Reads a file of labels.
    ///
    /// # Errors
    /// When it cannot be read, and as [`Labels::parse`].
    pub fn read(path: &Path, file: &LabelFile) -> Result<Self> {
        let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        Self::parse(&bytes, file, path)
    }

    /// Reads the content of a file of labels, with or without a byte order mark. The path is only for errors.
    ///
    /// # Errors
    /// When it is not of the kind that `file` says, a name is missing or there twice, or there are none; with the line
    /// or the output.
    pub fn parse(bytes: &[u8], file: &LabelFile, path: &Path) -> Result<Self> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = || {
            str::from_utf8(bytes).map_err(|error| Error::NotUtf8 {
                path: path.to_path_buf(),
                line: line_at(bytes, error.valid_up_to()),
            })
        };
        let parser = Parser { file, path };
        let (mut labels, outputs) = match file.kind {
            LabelKind::Csv => (parser.csv(bytes)?, None),
            LabelKind::Text => (parser.text(text()?)?, None),
            LabelKind::IdxToTag => (parser.idx_to_tag(parser.json(text()?)?)?, None),
            LabelKind::DatasetInfo => {
                let metadata: Metadata = parser.json(text()?)?;
                (parser.idx_to_tag(metadata.dataset_info.tag_mapping)?, None)
            }
            LabelKind::TagMapping => {
                let (labels, outputs) = parser.tag_mapping(parser.json(text()?)?)?;
                (labels, Some(outputs))
            }
            LabelKind::TagMap => (parser.tag_map(parser.json(text()?)?)?, None),
        };
        for (_, label) in &mut labels {
            label.name = canonical(&label.name);
        }
        let mut seen = HashSet::new();
        for (place, label) in &labels {
            if label.name.is_empty() {
                return Err(parser.wrong(*place, "a name", ""));
            }
            if !seen.insert((&label.name, &label.category)) {
                return Err(parser.wrong(*place, "a name that is not there yet", &label.name));
            }
        }
        if labels.is_empty() {
            return Err(parser.wrong(Place::Line(1), "a tag at least", ""));
        }
        Ok(Self { labels: labels.into_iter().map(|(_, label)| label).collect(), outputs })
    }

    /// The output of each label; all of them in order where `None`.
    pub(crate) fn outputs(&self) -> Option<&[usize]> {
        self.outputs.as_deref()
    }

    /// Whether a model with so many outputs can be meant.
    pub(crate) fn fit(&self, outputs: usize) -> bool {
        match &self.outputs {
            None => self.labels.len() == outputs,
            Some(places) => places.iter().all(|place| *place < outputs),
        }
    }
}

/// A name as boorus have it. Files with spaces have them for underscores in all names, emoticons included: `> <` is `>_<`.
fn canonical(name: &str) -> String {
    name.trim().replace(' ', "_")
}

/// Where something is in a file of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A line, counted from 1.
    Line(u64),
    /// What is said of an output, counted from 0.
    Output(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Output(output) => write!(f, "output {output}"),
        }
    }
}

/// A row of `selected_tags.csv`, of which only the name is in every family's.
#[derive(Deserialize)]
struct Row {
    name: String,
    tag_id: Option<String>,
    category: Option<String>,
    best_threshold: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    dataset_info: DatasetInfo,
}

#[derive(Deserialize)]
struct DatasetInfo {
    tag_mapping: IdxToTag,
}

#[derive(Deserialize)]
struct IdxToTag {
    idx_to_tag: Pairs<String>,
    tag_to_category: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Mapped {
    tag: String,
    category: String,
}

#[derive(Deserialize)]
struct TagMap {
    tag_map: Pairs<u64>,
    tag_split: TagSplit,
}

#[derive(Deserialize)]
struct TagSplit {
    gen_tag_count: u64,
    character_tag_count: u64,
}

/// A JSON object with all its pairs: a map would keep one of two with the same key.
struct Pairs<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Collect<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<T>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Collect(PhantomData))
    }
}

/// Reads one file. Each label comes with its place, for what is found out later.
struct Parser<'a> {
    file: &'a LabelFile,
    path: &'a Path,
}

type Placed = Vec<(Place, Label)>;

impl Parser<'_> {
    fn wrong(&self, place: Place, expected: &'static str, found: &str) -> Error {
        Error::Labels { path: self.path.to_path_buf(), place, expected, found: found.to_owned() }
    }

    fn csv(&self, bytes: &[u8]) -> Result<Placed> {
        let csv = |source| Error::LabelsCsv { path: self.path.to_path_buf(), source };
        let mut reader = csv::Reader::from_reader(bytes);
        let header = reader.headers().map_err(csv)?.clone();
        for column in self.file.columns.iter().map(String::as_str).chain(["name"]) {
            if !header.iter().any(|there| there == column) {
                let (path, column) = (self.path.to_path_buf(), column.to_owned());
                return Err(Error::NoColumn { path, column });
            }
        }
        let mut labels = Vec::new();
        for record in reader.records() {
            let record = record.map_err(csv)?;
            let place = Place::Line(record.position().map_or(0, csv::Position::line));
            let row: Row = record.deserialize(Some(&header)).map_err(csv)?;
            labels.push((place, self.row(row, place, labels.len() as i64)?));
        }
        Ok(labels)
    }

    fn row(&self, row: Row, place: Place, output: i64) -> Result<Label> {
        let tag_id = match row.tag_id.as_deref() {
            None => output,
            Some(id) => id.parse().map_err(|_| self.wrong(place, "a number as `tag_id`", id))?,
        };
        let category = match row.category.as_deref() {
            None => self.unnamed(place)?,
            Some(number) => match (self.file.categories.get(number), number.parse()) {
                (Some(category), _) => category.clone(),
                (None, Ok(number)) => Category::of_number(number),
                (None, Err(_)) => return Err(self.wrong(place, "a number as `category`", number)),
            },
        };
        let threshold = match row.best_threshold.as_deref().map(str::trim) {
            None | Some("") => None,
            Some(text) => match text.parse() {
                Ok(threshold) if (0.0..=1.0).contains(&threshold) => Some(threshold),
                _ => return Err(self.wrong(place, "0 to 1 as `best_threshold`", text)),
            },
        };
        Ok(Label { tag_id, name: row.name, category, threshold })
    }

    /// The category of a tag of which the file says none.
    fn unnamed(&self, place: Place) -> Result<Category> {
        self.file.category.clone().ok_or_else(|| self.wrong(place, "a category", ""))
    }

    /// The category that the file calls so.
    fn named(&self, name: &str) -> Category {
        self.file.categories.get(name).cloned().unwrap_or_else(|| Category::from(name))
    }

    fn text(&self, text: &str) -> Result<Placed> {
        let lines = text.trim_end().lines().enumerate();
        let label = |(i, line): (usize, &str)| {
            let (name, place) = (line.trim().to_owned(), Place::Line(i as u64 + 1));
            let is_rating = name.starts_with("rating:");
            let category = if is_rating { Category::Rating } else { self.unnamed(place)? };
            Ok((place, Label { tag_id: i as i64, name, category, threshold: None }))
        };
        lines.map(label).collect()
    }

    fn json<'de, T: Deserialize<'de>>(&self, text: &'de str) -> Result<T> {
        let json = |source| Error::Json { path: self.path.to_path_buf(), source };
        serde_json::from_str(text).map_err(json)
    }

    fn idx_to_tag(&self, mapping: IdxToTag) -> Result<Placed> {
        let tags = self.keyed(mapping.idx_to_tag)?;
        let tags = self.without_gaps(tags)?.into_iter().enumerate();
        let label = |(i, name): (usize, String)| {
            let place = Place::Output(i as u64);
            let category = match mapping.tag_to_category.get(&name) {
                Some(category) => self.named(category),
                None => self.unnamed(place)?,
            };
            Ok((place, Label { tag_id: i as i64, name, category, threshold: None }))
        };
        tags.map(label).collect()
    }

    fn tag_mapping(&self, mapping: Pairs<Mapped>) -> Result<(Placed, Vec<usize>)> {
        let tags = self.keyed(mapping)?.into_iter();
        let label = |(output, mapped): (u64, Mapped)| {
            let category = self.named(&mapped.category);
            let label = Label { tag_id: output as i64, name: mapped.tag, category, threshold: None };
            ((Place::Output(output), label), output as usize)
        };
        Ok(tags.map(label).unzip())
    }

    fn tag_map(&self, map: TagMap) -> Result<Placed> {
        let TagSplit { gen_tag_count, character_tag_count } = map.tag_split;
        let mut tags: Vec<_> = map.tag_map.0.into_iter().map(|(name, output)| (output, name)).collect();
        tags.sort_by_key(|(output, _)| *output);
        let tags = self.without_gaps(tags)?;
        let said = gen_tag_count.checked_add(character_tag_count);
        if said != Some(tags.len() as u64) {
            let found = format!("{gen_tag_count} + {character_tag_count}");
            return Err(self.wrong(Place::Line(1), "a `tag_split` into as many tags as there are", &found));
        }
        let label = |(i, name): (usize, String)| {
            let is_general = (i as u64) < gen_tag_count;
            let category = if is_general { Category::General } else { Category::Character };
            (Place::Output(i as u64), Label { tag_id: i as i64, name, category, threshold: None })
        };
        Ok(tags.into_iter().enumerate().map(label).collect())
    }

    /// Pairs whose keys are the places of outputs, in their order.
    fn keyed<T>(&self, pairs: Pairs<T>) -> Result<Vec<(u64, T)>> {
        let number = |(key, value): (String, T)| match key.parse() {
            Ok(output) if output < u64::from(u32::MAX) => Ok((output, value)),
            _ => Err(self.wrong(Place::Line(1), "the number of an output as key", &key)),
        };
        let mut pairs: Vec<_> = pairs.0.into_iter().map(number).collect::<Result<_>>()?;
        pairs.sort_by_key(|(output, _)| *output);
        match pairs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(self.wrong(Place::Output(pair[0].0), "one tag", "two")),
            None => Ok(pairs),
        }
    }

    /// The values of outputs 0, 1, 2 and so on, of which none may be missing.
    fn without_gaps<T>(&self, pairs: Vec<(u64, T)>) -> Result<Vec<T>> {
        let value = |(i, (output, value)): (usize, (u64, T))| {
            if output == i as u64 {
                return Ok(value);
            }
            let found = format!("output {output} next");
            Err(self.wrong(Place::Output(i as u64), "a tag", &found))
        };
        pairs.into_iter().enumerate().map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: LabelKind, text: &str) -> Result<Labels> {
        let file = LabelFile { category: Some(Category::General), ..LabelFile::new("labels", kind) };
        Labels::parse(text.as_bytes(), &file, Path::new("labels"))
    }

    fn message(kind: LabelKind, text: &str) -> String {
        let error = parse(kind, text).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {cause}")
    }

    /// Names with the first letters of their categories.
    fn names(kind: LabelKind, text: &str) -> Vec<String> {
        let labels = parse(kind, text).unwrap();
        labels.iter().map(|label| format!("{:.4} {}", label.category, label.name)).collect()
    }

    #[test]
    fn odd_names_survive_everywhere() {
        let csv = "tag_id,name,category,count\n1,general,9,5\n2,\"don't_say_\"\"lazy\"\"\",4,1\n3,\\m/,0,2\n";
        let expected = ["rati general", "char don't_say_\"lazy\"", "gene \\m/"];
        assert_eq!(names(LabelKind::Csv, csv), expected);
        let mapping = r#"{"idx_to_tag": {"2": "\\m/", "0": "general", "1": "don't_say_\"lazy\""},
            "tag_to_category": {"general": "rating", "don't_say_\"lazy\"": "character"}}"#;
        assert_eq!(names(LabelKind::IdxToTag, mapping), expected);
        let inside = format!("{{\"dataset_info\": {{\"x\": 1, \"tag_mapping\": {mapping}}}}}");
        assert_eq!(names(LabelKind::DatasetInfo, &inside), expected);
        let text = "rating:safe\n;)\ndon't_say_\"lazy\"\n\\m/\n";
        assert_eq!(
            names(LabelKind::Text, text),
            ["rati rating:safe", "gene ;)", "gene don't_say_\"lazy\"", "gene \\m/"]
        );
        let map = r#"{"tag_map": {"\\m/": 0, "hatsune_miku": 1}, "tag_split": {"gen_tag_count": 1, "character_tag_count": 1}}"#;
        assert_eq!(names(LabelKind::TagMap, map), ["gene \\m/", "char hatsune_miku"]);
    }

    #[test]
    fn outputs_without_a_label_are_left_out() {
        let text = r#"{"7": {"tag": "solo", "category": "General"}, "2": {"tag": "best_quality", "category": "Quality"}}"#;
        let labels = parse(LabelKind::TagMapping, text).unwrap();
        assert_eq!(labels.outputs(), Some(&[2, 7][..]));
        assert_eq!(names(LabelKind::TagMapping, text), ["qual best_quality", "gene solo"]);
        assert!(labels.fit(8) && labels.fit(100) && !labels.fit(7));
    }

    #[test]
    fn a_byte_order_mark_and_other_line_ends_change_nothing() {
        let csv = "tag_id,name,category\n1,a,0\n2,b,4\n";
        let (text, json) = ("a\nb\n", r#"{"0": {"tag": "a", "category": "x"}}"#);
        for (kind, text) in [(LabelKind::Csv, csv), (LabelKind::Text, text), (LabelKind::TagMapping, json)] {
            let other = format!("\u{feff}{}", text.replace('\n', "\r\n"));
            assert_eq!(parse(kind, text).unwrap(), parse(kind, &other).unwrap());
        }
    }

    #[test]
    fn names_are_canonical_whatever_the_file_has() {
        let text = "long hair\n ^ ^ \n>_<\n:d\na (costume) (series)\n\\m/\n3:\n";
        let expected = ["long_hair", "^_^", ">_<", ":d", "a_(costume)_(series)", "\\m/", "3:"]
            .map(|it| format!("gene {it}"));
        assert_eq!(names(LabelKind::Text, text), expected);
        assert_eq!(names(LabelKind::Csv, &format!("name\n{text}")), expected);
        let json = r#"{"0": {"tag": "long hair", "category": "general"}}"#;
        assert_eq!(names(LabelKind::TagMapping, json), ["gene long_hair"]);
        // What is said of a name is said of it as the file has it.
        let mapping =
            r#"{"idx_to_tag": {"0": "hatsune miku"}, "tag_to_category": {"hatsune miku": "character"}}"#;
        assert_eq!(names(LabelKind::IdxToTag, mapping), ["char hatsune_miku"]);
        let found = message(LabelKind::Text, "long hair\nlong_hair\n");
        assert!(
            found.contains("line 2: expected a name that is not there yet, found \"long_hair\""),
            "{found}"
        );
        assert!(message(LabelKind::Csv, "name\n\" \"\n").contains("line 2: expected a name"));
    }

    #[test]
    fn what_the_columns_say_is_kept() {
        let csv = "id,tag_id,name,category,count,best_threshold\n0,5,a,0,1,0.25\n1,6,b,7,1,\n";
        let labels = parse(LabelKind::Csv, csv).unwrap();
        assert_eq!(labels.iter().map(|label| label.threshold).collect::<Vec<_>>(), [Some(0.25), None]);
        assert_eq!((labels[1].tag_id, labels[1].category.as_str()), (6, "7"));
        let bare = parse(LabelKind::Csv, "name\na\nb\n").unwrap();
        assert_eq!((bare[1].tag_id, &bare[1].category), (1, &Category::General));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let cases = [
            (
                LabelKind::Csv,
                "tag_id,name,category\nx,a,0\n",
                "line 2: expected a number as `tag_id`, found \"x\"",
            ),
            (LabelKind::Csv, "tag_id,name,category\n1,a,0\n2,,0\n", "line 3: expected a name"),
            (
                LabelKind::Csv,
                "tag_id,name,category\n1,a,0\n2,a,0\n",
                "line 3: expected a name that is not there yet",
            ),
            (
                LabelKind::Csv,
                "tag_id,name,category\n1,a,b\n",
                "line 2: expected a number as `category`, found \"b\"",
            ),
            (LabelKind::Csv, "name,best_threshold\na,1.5\n", "line 2: expected 0 to 1 as `best_threshold`"),
            (LabelKind::Csv, "tag_id,name,category\n", "line 1: expected a tag at least"),
            (LabelKind::Csv, "tag_id,category\na,0\n", "has no column `name`"),
            (LabelKind::Csv, "name\na,b\n", "cannot read the labels `labels`"),
            (LabelKind::Text, "a\n\nb\n", "line 2: expected a name"),
            (LabelKind::Text, "a\nb\na", "line 3: expected a name that is not there yet, found \"a\""),
            (LabelKind::Text, "\n", "line 1: expected a tag at least"),
            (LabelKind::TagMapping, "{", "`labels` is not the JSON it should be: EOF while parsing"),
            (
                LabelKind::TagMapping,
                r#"{"x": {"tag": "a", "category": "b"}}"#,
                "the number of an output as key, found \"x\"",
            ),
            (
                LabelKind::IdxToTag,
                r#"{"idx_to_tag": {"0": "a", "0": "b"}, "tag_to_category": {}}"#,
                "output 0: expected one tag, found \"two\"",
            ),
            (
                LabelKind::IdxToTag,
                r#"{"idx_to_tag": {"0": "a", "2": "b"}, "tag_to_category": {}}"#,
                "output 1: expected a tag, found \"output 2 next\"",
            ),
            (
                LabelKind::TagMap,
                r#"{"tag_map": {"a": 0}, "tag_split": {"gen_tag_count": 1, "character_tag_count": 1}}"#,
                "expected a `tag_split` into as many tags as there are, found \"1 + 1\"",
            ),
        ];
        for (kind, text, expected) in cases {
            let found = message(kind, text);
            assert!(found.contains(expected), "{text:?}: {found}");
        }
        let error =
            Labels::parse(b"a\n\xff\n", &LabelFile::new("l", LabelKind::Text), Path::new("l")).unwrap_err();
        assert_eq!(error.to_string(), "`l` line 2: expected UTF-8");
        let error =
            Labels::parse(b"name\na\n", &LabelFile::new("l", LabelKind::Csv), Path::new("l")).unwrap_err();
        assert_eq!(error.to_string(), "`l` line 2: expected a category, found \"\"");
    }
}
