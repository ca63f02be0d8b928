//! Tables to look at before tags are written: frequencies, histograms, groups, and the captions as they are.

use std::{
    fmt::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_prompt::{MAX_TOKENS, token_count};
use vodka_stage::{Interrupt, Outcome, Report, RunKey, record_path, write_atomic};

use crate::{
    Caption, Result, Selection, TagFrequency, TagTable, canonical,
    caption::{check_apart, check_min_score, decimal},
    originals::Original,
    sheet,
    table::BUCKETS,
};

/// A report as a user wants it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportConfig {
    /// The tag table: Parquet or CSV.
    pub tags: PathBuf,
    /// The selection.
    pub selection: PathBuf,
    /// The folder of pictures, with a `.txt` caption beside each.
    pub images: PathBuf,
    /// The folder to write the tables to.
    pub output: PathBuf,
    /// The score from which on a tag counts as good enough to write, 0 to 1.
    #[serde(default = "three_tenths")]
    pub min_score: f32,
    /// Words, or several in a row: for each, the share of pictures that have any tag with them in its name.
    #[serde(default = "blurry")]
    pub groups: Vec<String>,
}

/// A report whose settings have been checked; nothing has been read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReportPlan {
    /// The tag table.
    pub tags: PathBuf,
    /// The selection.
    pub selection: PathBuf,
    /// The folder of pictures.
    pub images: PathBuf,
    /// The folder to write the tables to.
    pub output: PathBuf,
    /// The score from which on a tag counts as good enough to write.
    pub min_score: f32,
    /// Words, canonical.
    pub groups: Vec<String>,
}

fn three_tenths() -> f32 {
    0.3
}

fn blurry() -> Vec<String> {
    vec!["blurry".to_owned()]
}

impl ReportConfig {
    /// Checks what can be checked without reading.
    ///
    /// # Errors
    /// A minimum score outside 0 to 1; an output folder in the folder of pictures, or the other way round.
    pub fn plan(&self) -> Result<ReportPlan> {
        check_min_score(self.min_score)?;
        check_apart(&self.output, &self.images)?;
        let Self { tags, selection, images, output, min_score, .. } = self.clone();
        let groups = self.groups.iter().map(|word| canonical(word)).collect();
        Ok(ReportPlan { tags, selection, images, output, min_score, groups })
    }
}

impl ReportPlan {
    /// All that the tables depend on: settings, tag table, selection, and the captions.
    pub fn key(&self) -> Result<RunKey> {
        self.key_of(&Original::read_all(&self.images, false)?)
    }

    fn key_of(&self, originals: &[Original]) -> Result<RunKey> {
        let settings = json!({ "min_score": decimal(self.min_score), "groups": self.groups });
        let mut key = RunKey::new("report", &settings, None).input("tags", &self.tags, |_| true)?.input(
            "selection",
            &self.selection,
            |_| true,
        )?;
        key.inputs.insert("captions".to_owned(), Original::input(&self.images, originals, false));
        Ok(key)
    }
}

/// What a report tells while it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportEvent {
    /// A table has been written.
    Wrote {
        /// The file.
        path: PathBuf,
    },
}

/// What a report says in short; the tables say it at length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReportSummary {
    /// How it ended.
    pub outcome: Outcome,
    /// The folder.
    pub output: PathBuf,
    /// How many pictures are in the folder of pictures.
    pub images: usize,
    /// How many of them the tag table names.
    pub tagged: usize,
    /// How many tags are selected.
    pub tags: usize,
    /// The groups.
    pub groups: Vec<Group>,
    /// The captions.
    pub captions: CaptionStatistics,
    /// Tags that the table spells in several ways, and how; they were counted as one.
    pub spellings: Vec<(String, Vec<String>)>,
}

/// The tags that share a word, or several in a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The word or words, canonical: with underscores.
    pub word: String,
    /// The tags of the table that have it, selected or not.
    pub tags: Vec<String>,
    /// The selected tags that have it, in the table or not.
    pub selected: Vec<String>,
    /// How many pictures have at least one of them, at any score that the table holds.
    pub images: u64,
    /// The same as a share of all pictures.
    pub share: f64,
}

impl Group {
    /// What must be said where no caption will have such a tag.
    fn note(&self) -> &'static str {
        if self.selected.is_empty() { "; no selected tag has it" } else { "" }
    }
}

/// The captions as they are. Tokens are CLIP tokens without begin and end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CaptionStatistics {
    /// Pictures with a caption.
    pub present: usize,
    /// Pictures without.
    pub missing: usize,
    /// Pictures with an empty one.
    pub empty: usize,
    /// Captions of several lines.
    pub several_lines: usize,
    /// The mean number of tokens of a caption.
    pub mean_tokens: f64,
    /// The most tokens of a caption.
    pub max_tokens: usize,
    /// Captions of more than 75 tokens, of which trainers cut off the rest.
    pub too_long: usize,
}

impl Report for ReportSummary {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for ReportSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = self.output.display();
        match self.outcome {
            Outcome::Unchanged => return write!(f, "the report in `{output}` is up to date"),
            Outcome::Interrupted => return write!(f, "stopped before the report in `{output}` was complete"),
            Outcome::Done | Outcome::Skipped => {}
        }
        let Self { tags, images, tagged, .. } = self;
        write!(f, "wrote a report on {tags} tags of {images} pictures ({tagged} tagged) to `{output}`")?;
        for group in &self.groups {
            let Group { word, share, .. } = group;
            write!(f, "\n{:.1} % of the pictures have a tag with `{word}` at any score", 100.0 * share)?;
            f.write_str(group.note())?;
        }
        for (tag, spellings) in &self.spellings {
            write!(f, "\n`{tag}` is spelled in {} ways", spellings.len())?;
        }
        Ok(())
    }
}

/// One picture's caption, measured.
struct Measured {
    image: String,
    status: &'static str,
    tokens: usize,
    parts: usize,
}

/// Writes `tags.csv`, `histogram.csv`, `groups.csv`, `captions.csv` and `report.md`, unless they are there already.
///
/// # Errors
/// No pictures; two that share a caption; a caption, table or selection that cannot be read; an output that cannot be
/// written.
pub fn run(
    plan: &ReportPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(ReportEvent),
) -> Result<ReportSummary> {
    let originals = Original::read_all(&plan.images, false)?;
    let key = plan.key_of(&originals)?;
    let record = record_path(&plan.output);
    if let Some(summary) = key.made::<ReportSummary>(&record)? {
        return Ok(ReportSummary { outcome: Outcome::Unchanged, output: plan.output.clone(), ..summary });
    }
    let selection = Selection::read(&plan.selection)?;
    let names = selection.names();
    let mut table = TagTable::open(&plan.tags)?;
    table.restrict(originals.iter().map(|original| original.picture.image.as_str()))?;
    let mut frequencies = table.frequencies(&names, plan.min_score)?;
    // Stable: tags that are equally frequent stay in order of the vocabulary.
    frequencies.sort_by_key(|tag| std::cmp::Reverse(tag.images_at_min_score));
    let measured =
        originals.iter().map(|original| measure(&plan.images, original)).collect::<Result<Vec<_>>>()?;
    let summary = ReportSummary {
        outcome: Outcome::Done,
        output: plan.output.clone(),
        images: originals.len(),
        tagged: table.images()?.len(),
        tags: selection.tags.len(),
        groups: plan
            .groups
            .iter()
            .map(|word| group(&table, &names, word, originals.len()))
            .collect::<Result<_>>()?,
        captions: statistics(&measured),
        spellings: table.respelled(),
    };
    let tables: [(&str, Writer<'_>); 5] = [
        ("tags.csv", &|path| write_tags(path, &frequencies, &selection)),
        ("histogram.csv", &|path| write_histogram(path, &frequencies)),
        ("groups.csv", &|path| write_groups(path, &summary.groups)),
        ("captions.csv", &|path| write_captions(path, &measured)),
        ("report.md", &|path| Ok(write_atomic(path, markdown(plan, &summary, &frequencies))?)),
    ];
    for (name, write) in &tables {
        if interrupt.is_raised() {
            return Ok(ReportSummary { outcome: Outcome::Interrupted, ..summary });
        }
        let path = plan.output.join(name);
        write(&path)?;
        on_event(ReportEvent::Wrote { path });
    }
    key.write(&record, &[&plan.output], &summary)?;
    Ok(summary)
}

/// Writes one of the report's files.
type Writer<'a> = &'a dyn Fn(&Path) -> Result<()>;

fn group(table: &TagTable, selected: &[&str], word: &str, images: usize) -> Result<Group> {
    let has_word = |tag: &&str| format!("_{tag}_").contains(&format!("_{word}_"));
    let tags: Vec<_> = table.tags().into_iter().filter(has_word).collect();
    let with_any = table.images_with_any(&tags)?;
    Ok(Group {
        word: word.to_owned(),
        tags: tags.into_iter().map(ToOwned::to_owned).collect(),
        selected: selected.iter().copied().filter(has_word).map(ToOwned::to_owned).collect(),
        images: with_any,
        share: with_any as f64 / images as f64,
    })
}

fn measure(root: &Path, original: &Original) -> Result<Measured> {
    let caption = original.caption(root)?;
    let status = match &caption {
        None => "missing",
        Some(Caption { text, .. }) if text.is_empty() => "empty",
        Some(Caption { joined: true, .. }) => "several lines",
        Some(_) => "ok",
    };
    let text = caption.unwrap_or_default().text;
    let parts = text.split(',').filter(|part| !part.trim().is_empty()).count();
    Ok(Measured { image: original.picture.image.clone(), status, tokens: token_count(&text), parts })
}

fn statistics(measured: &[Measured]) -> CaptionStatistics {
    let with = |status| measured.iter().filter(|caption| caption.status == status).count();
    let [missing, empty] = ["missing", "empty"].map(with);
    let present = measured.len() - missing - empty;
    let tokens = || measured.iter().map(|caption| caption.tokens);
    CaptionStatistics {
        present,
        missing,
        empty,
        several_lines: with("several lines"),
        mean_tokens: tokens().sum::<usize>() as f64 / present.max(1) as f64,
        max_tokens: tokens().max().unwrap_or(0),
        too_long: tokens().filter(|tokens| *tokens > MAX_TOKENS).count(),
    }
}

/// A mean score with four digits, or nothing.
fn mean(tag: &TagFrequency) -> String {
    tag.mean_score.map(|mean| format!("{mean:.4}")).unwrap_or_default()
}

fn write_tags(path: &Path, frequencies: &[TagFrequency], selection: &Selection) -> Result<()> {
    let header = ["tag", "images", "images_at_min_score", "mean_score", "count"];
    let count =
        |tag: &str| selection.tags.iter().find(|selected| selected.name == tag).and_then(|tag| tag.count);
    let rows = frequencies.iter().map(|tag| {
        let count = count(&tag.tag).map(|count| count.to_string()).unwrap_or_default();
        vec![tag.tag.clone(), tag.images.to_string(), tag.images_at_min_score.to_string(), mean(tag), count]
    });
    sheet::write(path, &header, rows)
}

fn write_histogram(path: &Path, frequencies: &[TagFrequency]) -> Result<()> {
    let bound = |k: usize| k as f64 / BUCKETS as f64;
    let buckets = (0..BUCKETS).map(|k| format!("{:.1} to {:.1}", bound(k), bound(k + 1)));
    let header: Vec<_> = ["tag".to_owned()].into_iter().chain(buckets).collect();
    let rows = frequencies
        .iter()
        .map(|tag| [tag.tag.clone()].into_iter().chain(tag.histogram.iter().map(u64::to_string)).collect());
    sheet::write(path, &header, rows)
}

fn write_groups(path: &Path, groups: &[Group]) -> Result<()> {
    let rows = groups.iter().map(|group| {
        vec![
            group.word.clone(),
            group.tags.join(" "),
            group.images.to_string(),
            format!("{:.4}", group.share),
        ]
    });
    sheet::write(path, &["word", "tags", "images", "share"], rows)
}

fn write_captions(path: &Path, measured: &[Measured]) -> Result<()> {
    let rows = measured.iter().map(|Measured { image, status, tokens, parts }| {
        vec![image.clone(), (*status).to_owned(), tokens.to_string(), parts.to_string()]
    });
    sheet::write(path, &["image", "status", "tokens", "parts"], rows)
}

/// The report for people. Writing to a string cannot fail.
fn markdown(plan: &ReportPlan, summary: &ReportSummary, frequencies: &[TagFrequency]) -> String {
    let ReportSummary { images, tagged, tags, captions, .. } = summary;
    let mut text =
        format!("# Tags\n\n{images} pictures, {tagged} of them in the tag table; {tags} selected tags.\n\n");
    for group in &summary.groups {
        let Group { word, tags, images, share, .. } = group;
        let share = 100.0 * share;
        let tags: Vec<_> = tags.iter().map(|tag| code(tag)).collect();
        let _ = writeln!(
            text,
            "- **{share:.1} %** ({images}) have a tag with {} at any score{}{}{}",
            code(word),
            if tags.is_empty() { "" } else { ": " },
            tags.join(", "),
            group.note()
        );
    }
    for (tag, spellings) in &summary.spellings {
        let spellings: Vec<_> = spellings.iter().map(|name| code(&format!("{name:?}"))).collect();
        let _ = writeln!(
            text,
            "- {} is spelled in {} ways: {}",
            code(tag),
            spellings.len(),
            spellings.join(", ")
        );
    }
    let min_score = plan.min_score;
    let _ = write!(
        text,
        "\n| tag | pictures, any score | at {min_score} or more | mean score | scores by tenths |\n"
    );
    text.push_str("|---|---:|---:|---:|---|\n");
    for tag in frequencies {
        let TagFrequency { tag: name, images, images_at_min_score, histogram, .. } = tag;
        let (name, mean, bars) = (code(name), mean(tag), bars(histogram));
        let _ = writeln!(text, "| {name} | {images} | {images_at_min_score} | {mean} | {bars} |");
    }
    let CaptionStatistics { present, missing, empty, several_lines, mean_tokens, max_tokens, too_long } =
        captions;
    let _ = write!(
        text,
        "\n# Captions\n\n{present} pictures have a caption, {missing} have none, {empty} have an empty one; \
         {several_lines} captions have several lines.\nTokens: {mean_tokens:.1} on average, {max_tokens} at most; \
         {too_long} captions have more than {MAX_TOKENS}.\n"
    );
    text
}

/// Code in a table cell of Markdown.
fn code(text: &str) -> String {
    let fence = if text.contains('`') { "``" } else { "`" };
    format!("{fence}{}{fence}", text.replace('|', "\\|"))
}

/// A histogram as a line of blocks; a space is an empty bucket.
fn bars(histogram: &[u64]) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = histogram.iter().copied().max().unwrap_or(0).max(1);
    histogram.iter().map(|n| BLOCKS[(n * 8).div_ceil(most) as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_drawn_to_its_highest_bucket() {
        assert_eq!(bars(&[0, 1, 4, 8]), " ▁▄█");
        assert_eq!(bars(&[0, 0]), "  ");
    }
}
