//! Puts a tag table through cleaning rules, picture by picture.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_stage::{
    ContentHash, Interrupt, Outcome, Report, RunKey, RunRecord, hash_bytes, hash_file, record_path,
};

use crate::{
    Double, Error, Result, RuleFileUse, RuleHits, RuleUse, Rules, ScoredTag, canonical,
    caption::resolved,
    filter::lines,
    frame, merge_doubles,
    rows::{self, Row, Writer},
    stop_if,
};

/// So many pictures are cleaned between two looks at the interrupt.
const BATCH: u64 = 1024;

/// So many rows are looked through between two.
const LOOK: u64 = 1 << 16;

/// A cleaning as a user writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CleanConfig {
    /// The tag table: Parquet or CSV.
    pub tags: PathBuf,
    /// The rules file.
    pub rules: PathBuf,
    /// The tag table to write: `.parquet` or `.csv`.
    pub output: PathBuf,
}

/// A cleaning whose settings have been checked; nothing has been read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CleanPlan {
    /// The tag table.
    pub tags: PathBuf,
    /// The rules file.
    pub rules: PathBuf,
    /// The tag table to write.
    pub output: PathBuf,
}

impl CleanConfig {
    /// Checks what can be checked without reading.
    ///
    /// # Errors
    /// An output that is an input, or of a name that ends neither in `.parquet` nor in `.csv`.
    pub fn plan(&self) -> Result<CleanPlan> {
        let Self { tags, rules, output } = self.clone();
        if !output.extension().is_some_and(|ending| ending == "parquet" || ending == "csv") {
            return Err(Error::TableName { path: output });
        }
        match [&tags, &rules].iter().any(|input| resolved(input) == resolved(&output)) {
            true => Err(Error::OutputIsInput { path: output }),
            false => Ok(CleanPlan { tags, rules, output }),
        }
    }
}

impl CleanPlan {
    /// All that the cleaned table depends on. The rules file is read, for it names others.
    pub fn key(&self) -> Result<RunKey> {
        self.key_with(&Rules::read(&self.rules)?)
    }

    fn key_with(&self, rules: &Rules) -> Result<RunKey> {
        let settings = json!({ "form": self.output.extension().map(|ending| ending.to_string_lossy()) });
        let mut key = RunKey::new("clean", &settings, None).input("tags", &self.tags, |_| true)?;
        for (k, file) in rules.files().iter().enumerate() {
            let name = if k == 0 { "rules".to_owned() } else { format!("rules_{k}") };
            key = key.input(&name, file, |_| true)?;
        }
        Ok(key)
    }
}

/// What a cleaning tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CleanEvent {
    /// The table has been looked through.
    Started {
        /// How many pictures it names.
        images: u64,
    },
    /// So many pictures are done.
    Cleaned {
        /// How many.
        images: u64,
    },
}

/// What a cleaning has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CleanReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The cleaned table.
    pub output: PathBuf,
    /// How many pictures the table names.
    pub images: u64,
    /// How many rows it has.
    pub rows: u64,
    /// How many rows the cleaned table has.
    pub rows_left: u64,
    /// Tags that pictures had more than once before the rules, mostly because the table spells them in several ways; the
    /// highest score is kept.
    pub doubles: Vec<Double>,
    /// How many tags became one with another by the rules.
    pub merged: u64,
    /// The rules, and how often each did something.
    pub rules: Vec<RuleUse>,
    /// The files that the rules file names, and how many of their rules did something.
    pub files: Vec<RuleFileUse>,
    /// What is suspicious, as text.
    pub warnings: Vec<String>,
    /// Pictures of which no tag is left; the cleaned table does not name them.
    pub emptied: Vec<String>,
}

impl Report for CleanReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for CleanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { images, rows, rows_left, merged, .. } = self;
        let output = self.output.display();
        match self.outcome {
            Outcome::Unchanged => write!(f, "`{output}` is up to date ({rows_left} rows)")?,
            Outcome::Interrupted => return write!(f, "stopped before `{output}` was written"),
            Outcome::Done | Outcome::Skipped => {
                write!(
                    f,
                    "cleaned the tags of {images} pictures: {rows} rows, {rows_left} left in `{output}`"
                )?;
            }
        }
        for Double { tag, spellings, images } in &self.doubles {
            let spellings: Vec<_> = spellings.iter().map(|name| format!("{name:?}")).collect();
            write!(f, "\n{images} pictures had `{tag}` more than once ({})", spellings.join(", "))?;
        }
        let mut used: Vec<_> = self.rules.iter().filter(|rule| rule.hits > 0).collect();
        used.sort_by_key(|rule| std::cmp::Reverse(rule.hits));
        lines(f, used.iter().map(|rule| format!("{rule}: {} times", rule.hits)))?;
        for RuleFileUse { file, rules, used } in &self.files {
            write!(f, "\n`{}`: {used} of {rules} rules did something", file.display())?;
        }
        if *merged > 0 {
            write!(f, "\n{merged} tags became one with another of the same name")?;
        }
        lines(f, self.emptied.iter().map(|image| format!("`{image}`: no tag is left")))?;
        lines(f, self.warnings.iter().map(|warning| format!("warning: {warning}")))
    }
}

/// Writes the cleaned table, unless it is there already.
///
/// The table is read twice, and held in memory by the picture (a Parquet file: by the row group). The order of pictures
/// stays, and that of tags but for those that are added, which come last.
///
/// # Errors
/// Rules that cannot be read; a table that cannot be read, holds a score that no tagger gives, or whose pictures do not
/// lie together; an output that cannot be written.
pub fn run(
    plan: &CleanPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(CleanEvent),
) -> Result<CleanReport> {
    let record = record_path(&plan.output);
    let rules = Rules::read(&plan.rules)?;
    let key = plan.key_with(&rules)?;
    if let Some(report) = key.made::<CleanReport>(&record)? {
        return Ok(CleanReport { outcome: Outcome::Unchanged, output: plan.output.clone(), ..report });
    }
    // Of what is there only a table that a run has written, and nobody has changed since, is replaced.
    RunRecord::guard(&record, &plan.output, &[])?;
    let table = Survey::of(&plan.tags, interrupt)?;
    on_event(CleanEvent::Started { images: table.images.len() as u64 });
    let writer = Writer::create(&plan.output, frame::metadata(&plan.tags)?)?;
    let mut cleaner = Cleaner::new(&rules, &table, writer);
    let mut last = String::new();
    let done = rows::read(&plan.tags, &mut |row| {
        if row.image != last {
            cleaner.finish_picture(&last)?;
            row.image.clone_into(&mut last);
            if cleaner.images.is_multiple_of(BATCH) {
                on_event(CleanEvent::Cleaned { images: cleaner.images });
                stop_if(interrupt)?;
            }
        }
        cleaner.push(row);
        Ok(())
    });
    let done = done.and_then(|()| cleaner.finish_picture(&last));
    let report = cleaner.report(plan);
    match done {
        Err(Error::Stopped) => return Ok(CleanReport { outcome: Outcome::Interrupted, ..report }),
        done => done?,
    }
    let file = cleaner.writer.finish()?;
    let outputs = [(plan.output.as_path(), hash_file(file.partial())?)];
    key.announce(&record, &outputs)?;
    file.commit()?;
    key.write_hashed(&record, &outputs, &report)?;
    Ok(report)
}

/// What is to be known about a table before its first picture can be cleaned.
#[derive(Default)]
struct Survey {
    images: HashSet<ContentHash>,
    rows: u64,
    /// By spelling: the canonical name.
    names: HashMap<String, String>,
    /// By canonical name: how the table spells it, and what it says about it.
    tags: HashMap<String, Tag>,
}

#[derive(Default)]
struct Tag {
    spellings: BTreeSet<String>,
    id: Option<i64>,
    category: String,
}

impl Survey {
    /// Reads the whole table and checks it.
    fn of(path: &Path, interrupt: &Interrupt) -> Result<Self> {
        let mut survey = Self::default();
        let mut last = String::new();
        rows::read(path, &mut |row| {
            survey.rows += 1;
            if survey.rows.is_multiple_of(LOOK) {
                stop_if(interrupt)?;
            }
            if row.image != last {
                row.image.clone_into(&mut last);
                if !survey.images.insert(hash_bytes(row.image)) {
                    return Err(Error::Scattered { path: path.to_path_buf(), image: last.clone() });
                }
            }
            if !survey.names.contains_key(row.tag) {
                survey.add(row);
            }
            Ok(())
        })
        .or_else(|error| if matches!(error, Error::Stopped) { Ok(()) } else { Err(error) })?;
        Ok(survey)
    }

    fn add(&mut self, row: Row<'_>) {
        let name = canonical(row.tag);
        self.names.insert(row.tag.to_owned(), name.clone());
        let tag = self.tags.entry(name).or_insert_with(|| Tag {
            id: row.tag_id,
            category: row.category.to_owned(),
            ..Tag::default()
        });
        tag.id = tag.id.or(row.tag_id);
        tag.spellings.insert(row.tag.to_owned());
    }
}

/// The picture in hand, and what there is to report.
struct Cleaner<'a> {
    rules: &'a Rules,
    table: &'a Survey,
    writer: Writer,
    hits: RuleHits,
    tags: Vec<ScoredTag>,
    images: u64,
    rows_left: u64,
    doubled: BTreeMap<String, usize>,
    emptied: Vec<String>,
}

impl<'a> Cleaner<'a> {
    fn new(rules: &'a Rules, table: &'a Survey, writer: Writer) -> Self {
        Self {
            rules,
            table,
            writer,
            hits: RuleHits::default(),
            tags: Vec::new(),
            images: 0,
            rows_left: 0,
            doubled: BTreeMap::new(),
            emptied: Vec::new(),
        }
    }

    fn push(&mut self, row: Row<'_>) {
        let name = self.table.names.get(row.tag).cloned().unwrap_or_else(|| canonical(row.tag));
        let category = Some(row.category.to_owned());
        self.tags.push(ScoredTag { name, score: row.score, category });
    }

    fn finish_picture(&mut self, image: &str) -> Result<()> {
        if self.tags.is_empty() {
            return Ok(());
        }
        self.images += 1;
        self.count_doubles();
        self.rules.apply(&mut self.tags, &mut self.hits);
        if self.tags.is_empty() {
            self.emptied.push(image.to_owned());
        }
        self.rows_left += self.tags.len() as u64;
        for ScoredTag { name, score, category } in self.tags.drain(..) {
            let known = self.table.tags.get(&name);
            self.writer.push(Row {
                image,
                tag_id: known.and_then(|tag| tag.id),
                tag: &name,
                category: known.map_or(category.as_deref().unwrap_or_default(), |tag| &tag.category),
                score,
            })?;
        }
        Ok(())
    }

    /// Merges what has one name before any rule.
    fn count_doubles(&mut self) {
        let mut seen = HashSet::with_capacity(self.tags.len());
        let doubled: BTreeSet<_> = self
            .tags
            .iter()
            .filter(|tag| !seen.insert(tag.name.as_str()))
            .map(|tag| tag.name.clone())
            .collect();
        if !doubled.is_empty() {
            doubled.into_iter().for_each(|name| *self.doubled.entry(name).or_default() += 1);
            merge_doubles(&mut self.tags);
        }
    }

    fn report(&self, plan: &CleanPlan) -> CleanReport {
        let double = |(tag, images): (&String, &usize)| Double {
            tag: tag.clone(),
            spellings: self
                .table
                .tags
                .get(tag)
                .map(|tag| tag.spellings.iter().cloned().collect())
                .unwrap_or_default(),
            images: *images,
        };
        CleanReport {
            outcome: Outcome::Done,
            output: plan.output.clone(),
            images: self.table.images.len() as u64,
            rows: self.table.rows,
            rows_left: self.rows_left,
            doubles: self.doubled.iter().map(double).collect(),
            merged: self.hits.merged,
            rules: self.rules.report(&self.hits),
            files: self.rules.files_used(&self.hits),
            warnings: self.rules.warnings(&self.hits),
            emptied: self.emptied.clone(),
        }
    }
}
