//! Marks the tags worth having: the head of the general tags, with more or less of the user's choice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_stage::{Interrupt, Outcome, Report, RunKey, nearest, record_path};

use crate::{
    Error, Result, canonical,
    caption::resolved,
    head,
    selection::parse_count,
    sheet::{self, Sheet},
};

/// The category of general tags in a tagger's vocabulary, as Danbooru numbers it.
const GENERAL: &str = "0";

/// The column that is added.
const INCLUDE: &str = "include";

/// A selection as a user writes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectConfig {
    /// The tagger's vocabulary: CSV with the columns `name`, `category` and `count`.
    pub labels: PathBuf,
    /// The share of all occurrences of general tags that the chosen ones cover, from the most frequent down; 0 to 1.
    pub coverage: f64,
    /// Tags to take besides, of whatever category and count.
    #[serde(default)]
    pub include: Vec<String>,
    /// Tags to leave out.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// The CSV to write: the vocabulary as it is, and the column `include`.
    pub output: PathBuf,
}

/// A selection whose settings have been checked; the vocabulary has not been read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SelectPlan {
    /// The tagger's vocabulary.
    pub labels: PathBuf,
    /// The share of all occurrences of general tags, 0 to 1.
    pub coverage: f64,
    /// Tags to take besides, by canonical name.
    pub include: BTreeSet<String>,
    /// Tags to leave out, by canonical name.
    pub exclude: BTreeSet<String>,
    /// The CSV to write.
    pub output: PathBuf,
}

impl SelectConfig {
    /// Checks what can be checked without reading the vocabulary.
    ///
    /// # Errors
    /// A coverage outside 0 to 1; a tag both included and excluded; an output that is the vocabulary.
    pub fn plan(&self) -> Result<SelectPlan> {
        let found = self.coverage;
        if !(0.0..=1.0).contains(&found) {
            return Err(Error::Range { setting: "coverage", found, expected: "a share from 0 to 1" });
        }
        let names = |list: &[String]| list.iter().map(|name| canonical(name)).collect::<BTreeSet<_>>();
        let (include, exclude) = (names(&self.include), names(&self.exclude));
        if let Some(name) = include.intersection(&exclude).next() {
            return Err(Error::BothWays { name: name.clone() });
        }
        if resolved(&self.labels) == resolved(&self.output) {
            return Err(Error::OutputIsInput { path: self.output.clone() });
        }
        let Self { labels, coverage, output, .. } = self.clone();
        Ok(SelectPlan { labels, coverage, include, exclude, output })
    }
}

impl SelectPlan {
    /// All that the selection depends on.
    pub fn key(&self) -> Result<RunKey> {
        let settings = json!({ "coverage": self.coverage, "include": self.include, "exclude": self.exclude });
        Ok(RunKey::new("select", &settings, None).input("labels", &self.labels, |_| true)?)
    }
}

/// What a selection tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SelectEvent {
    /// The vocabulary has been read.
    Read {
        /// How many tags it has.
        tags: u64,
    },
}

/// What a selection has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SelectReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The file.
    pub output: PathBuf,
    /// How many general tags the vocabulary has.
    pub general: usize,
    /// How many of them make up the head that covers the share asked for.
    pub head: usize,
    /// The share of all occurrences of general tags that the selected ones cover.
    pub covered: f64,
    /// The selected tags, in order of the vocabulary.
    pub selected: Vec<String>,
    /// Canonical names that stand more than once in the vocabulary; all their rows are selected, or none.
    pub doubles: Vec<String>,
}

impl Report for SelectReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for SelectReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let output = self.output.display();
        let Self { general, head, selected, covered, .. } = self;
        match self.outcome {
            Outcome::Unchanged => return write!(f, "`{output}` is up to date ({} tags)", selected.len()),
            Outcome::Interrupted => return write!(f, "stopped before `{output}` was written"),
            Outcome::Done | Outcome::Skipped => {}
        }
        write!(f, "selected {} tags into `{output}`: ", selected.len())?;
        write!(f, "the head is {head} of {general} general tags; ")?;
        write!(f, "the selected ones make up {:.1} % of the occurrences", 100.0 * covered)?;
        if !self.doubles.is_empty() {
            write!(f, "\nnames that stand more than once: {}", self.doubles.join(", "))?;
        }
        Ok(())
    }
}

/// A row of the vocabulary.
struct Label {
    name: String,
    general: bool,
    count: u64,
}

/// Writes the selection, unless it is there already.
///
/// # Errors
/// A vocabulary that lacks a column or holds a count that is no number; an included or excluded tag that it does not
/// know; counts that are all 0, unless the coverage is 0; nothing left to select; an output that cannot be written.
pub fn run(
    plan: &SelectPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(SelectEvent),
) -> Result<SelectReport> {
    let record = record_path(&plan.output);
    let sheet = Sheet::read(&plan.labels)?;
    let key = plan.key()?;
    if let Some(report) = key.made::<SelectReport>(&record)? {
        return Ok(SelectReport { outcome: Outcome::Unchanged, output: plan.output.clone(), ..report });
    }
    let labels = labels(&sheet)?;
    on_event(SelectEvent::Read { tags: labels.len() as u64 });
    check_names(plan, &labels)?;
    let (head, chosen) = selected_names(plan, &labels)?;
    let report = report(plan, &labels, head, &chosen);
    if interrupt.is_raised() {
        return Ok(SelectReport { outcome: Outcome::Interrupted, ..report });
    }
    let wanted = |label: &Label| chosen.contains(label.name.as_str());
    let header: Vec<_> = sheet.header.iter().map(String::as_str).chain([INCLUDE]).collect();
    let rows = sheet.rows.iter().zip(&labels).map(|(row, label)| {
        let flag = u8::from(wanted(label)).to_string();
        row.cells.iter().map(ToOwned::to_owned).chain([flag]).collect()
    });
    sheet::write(&plan.output, &header, rows)?;
    key.write(&record, &[&plan.output], &report)?;
    Ok(report)
}

fn labels(sheet: &Sheet) -> Result<Vec<Label>> {
    let (name, category, count) = (sheet.column("name")?, sheet.column("category")?, sheet.column("count")?);
    if sheet.find(INCLUDE)?.is_some() {
        return Err(sheet.columns(format!("the tagger's own vocabulary, without a column `{INCLUDE}`")));
    }
    let label = |row: &sheet::Row| {
        let cells = &row.cells;
        let count =
            parse_count(cells[count].trim()).ok_or_else(|| sheet.cell(row, count, "a whole number"))?;
        Ok(Label { name: canonical(&cells[name]), general: cells[category].trim() == GENERAL, count })
    };
    sheet.rows.iter().map(label).collect()
}

/// Every tag that the user names must be in the vocabulary.
fn check_names(plan: &SelectPlan, labels: &[Label]) -> Result<()> {
    let known: BTreeSet<_> = labels.iter().map(|label| label.name.as_str()).collect();
    let unknown = plan.include.iter().chain(&plan.exclude).find(|name| !known.contains(name.as_str()));
    unknown.map_or(Ok(()), |name| {
        let nearest = nearest(name, known).map(ToOwned::to_owned);
        Err(Error::UnknownTag { path: plan.labels.clone(), name: name.clone(), nearest })
    })
}

/// How many tags the head has, and the names of the selected tags.
fn selected_names<'a>(plan: &SelectPlan, labels: &'a [Label]) -> Result<(usize, BTreeSet<&'a str>)> {
    let general: Vec<_> = labels.iter().filter(|label| label.general).collect();
    let counts: Vec<_> = general.iter().map(|label| label.count).collect();
    if plan.coverage > 0.0 && counts.iter().all(|count| *count == 0) {
        return Err(Error::NoCounts { path: plan.labels.clone() });
    }
    let head = head(&counts, plan.coverage);
    let in_head: BTreeSet<_> = head.iter().map(|place| general[*place].name.as_str()).collect();
    let chosen: BTreeSet<_> = labels
        .iter()
        .map(|label| label.name.as_str())
        .filter(|name| in_head.contains(name) || plan.include.contains(*name))
        .filter(|name| !plan.exclude.contains(*name))
        .collect();
    match chosen.is_empty() {
        true => Err(Error::NothingSelected { path: plan.labels.clone() }),
        false => Ok((head.len(), chosen)),
    }
}

fn report(plan: &SelectPlan, labels: &[Label], head: usize, chosen: &BTreeSet<&str>) -> SelectReport {
    let mut seen = BTreeMap::new();
    labels.iter().for_each(|label| *seen.entry(label.name.as_str()).or_insert(0) += 1);
    let general = || labels.iter().filter(|label| label.general);
    let total: u64 = general().map(|label| label.count).sum();
    let covered: u64 =
        general().filter(|label| chosen.contains(label.name.as_str())).map(|label| label.count).sum();
    let mut selected: Vec<_> = labels.iter().map(|label| label.name.clone()).collect();
    let mut left = chosen.clone();
    selected.retain(|name| left.remove(name.as_str()));
    SelectReport {
        outcome: Outcome::Done,
        output: plan.output.clone(),
        general: general().count(),
        head,
        covered: covered as f64 / total.max(1) as f64,
        selected,
        doubles: seen.into_iter().filter(|(_, n)| *n > 1).map(|(name, _)| name.to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::Selection;

    const LABELS: &str = "tag_id,name,category,count\n9,general,9,900\n1,1girl,0,50\n2,blurry,0,30\n3,solo,0,15\n\
                          4,\"don't_say_\"\"lazy\"\"\",0,5\n5,miku,4,70\n6,blurry ,0,0\n";

    fn config(dir: &Path) -> SelectConfig {
        let labels = dir.join("selected_tags.csv");
        fs::write(&labels, LABELS).unwrap();
        let output = dir.join("selection.csv");
        SelectConfig { labels, coverage: 0.8, include: Vec::new(), exclude: Vec::new(), output }
    }

    fn run_config(config: &SelectConfig) -> Result<SelectReport> {
        run(&config.plan()?, &Interrupt::new(), &mut |_| {})
    }

    #[test]
    fn the_head_is_selected_and_the_vocabulary_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        let report = run_config(&config).unwrap();
        assert_eq!(report.selected, ["1girl", "blurry"]);
        assert_eq!((report.head, report.general, report.covered), (2, 5, 0.8));
        assert_eq!(report.doubles, ["blurry"]);
        let text = fs::read_to_string(&config.output).unwrap();
        assert!(
            text.starts_with("tag_id,name,category,count,include\n9,general,9,900,0\n1,1girl,0,50,1\n"),
            "{text}"
        );
        assert!(text.contains("4,\"don't_say_\"\"lazy\"\"\",0,5,0\n"), "{text}");
        assert_eq!(Selection::read(&config.output).unwrap().names(), ["1girl", "blurry"]);

        assert_eq!(run_config(&config).unwrap().outcome, Outcome::Unchanged);
        config.include = vec!["Miku".into(), "don't say \"lazy\"".into()];
        config.exclude = vec!["1girl".into()];
        let report = run_config(&config).unwrap();
        assert_eq!(report.outcome, Outcome::Done);
        assert_eq!(report.selected, ["blurry", "don't_say_\"lazy\"", "miku"]);
    }

    #[test]
    fn an_interrupted_selection_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let interrupt = Interrupt::new();
        interrupt.raise();
        let report = run(&config.plan().unwrap(), &interrupt, &mut |_| {}).unwrap();
        assert_eq!(report.outcome, Outcome::Interrupted);
        assert!(report.to_string().starts_with("stopped before"), "{report}");
        assert!(!config.output.exists() && !record_path(&config.output).exists());
        assert_eq!(run_config(&config).unwrap().outcome, Outcome::Done);
    }

    #[test]
    fn wrong_wishes_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let said = |change: &dyn Fn(&mut SelectConfig)| {
            let mut config = config(dir.path());
            change(&mut config);
            run_config(&config).unwrap_err().to_string()
        };
        assert_eq!(said(&|c| c.coverage = 80.0), "coverage is 80, expected a share from 0 to 1");
        assert!(said(&|c| c.include = vec!["blury".into()]).ends_with("did you mean `blurry`?"));
        assert!(said(&|c| c.exclude = vec!["qqqqqqqqqq".into()]).starts_with("no tag `qqqqqqqqqq` in"));
        let both = said(&|c| (c.include, c.exclude) = (vec!["solo".into()], vec!["SOLO".into()]));
        assert_eq!(both, "the tag `solo` is to be both included and excluded");
        assert!(said(&|c| c.coverage = 0.0).starts_with("no tag is selected in"));
        assert!(
            said(&|c| fs::write(&c.labels, "name,category\na,0\n").unwrap()).contains("a column `count`")
        );
        let counts = "name,category,count\na,0,0\n";
        assert!(
            said(&|c| fs::write(&c.labels, counts).unwrap()).contains("counts of the general tags are all 0")
        );
        let wrong = "name,category,count\na,0,many\n";
        assert!(said(&|c| fs::write(&c.labels, wrong).unwrap()).contains("line 2, column `count`"));
        assert!(said(&|c| c.output = c.labels.clone()).ends_with("is the input"));
        fs::create_dir(dir.path().join("sub")).unwrap();
        let other_spelling = dir.path().join("sub/../selected_tags.csv");
        assert!(said(&|c| c.output = other_spelling.clone()).ends_with("is the input"));
    }
}
