//! Marks the tags worth having: those on a list among the head of the general tags, with more or less of the user's choice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_stage::{Interrupt, Outcome, Report, RunKey, hash_bytes, nearest, record_path};

use crate::{
    Error, IMAGE_PRODUCTION, KAOMOJI, Result, canonical,
    caption::resolved,
    head,
    lists::{TagList, meant},
    names::category_named,
    selection::parse_count,
    sheet::{self, Sheet},
};

/// The category of general tags in a tagger's vocabulary.
const GENERAL: &str = "general";

/// The column that is added.
const INCLUDE: &str = "include";

/// A selection as a user writes it.
///
/// Candidates are the most frequent general tags, which together cover a share of all occurrences. Of them those are
/// taken that are on a list: [`IMAGE_PRODUCTION`] unless another is named.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectConfig {
    /// The tagger's vocabulary: CSV with the columns `name`, `category` and `count`.
    pub labels: PathBuf,
    /// The share of all occurrences of general tags that the candidates cover, from the most frequent down; 0 to 1.
    pub coverage: f64,
    /// A list of tags: a table with a column `name`, or a tag or a pattern on each line. Default: the shipped one.
    #[serde(default)]
    pub list: Option<PathBuf>,
    /// Takes all candidates, whatever any list says.
    #[serde(default)]
    pub all_head: bool,
    /// Tags to take besides, of whatever category and count: names, patterns with `*` and `?`, or `@FILE` for a list.
    #[serde(default)]
    pub include: Vec<String>,
    /// Tags to leave out, in the same way; this has the last word.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// The CSV to write: the vocabulary as it is, and the column `include`.
    pub output: PathBuf,
}

/// A selection whose settings have been checked; nothing has been read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SelectPlan {
    /// The tagger's vocabulary.
    pub labels: PathBuf,
    /// The share of all occurrences of general tags, 0 to 1.
    pub coverage: f64,
    /// Which of the candidates are taken.
    pub taken: Taken,
    /// Tags to take besides.
    pub include: Wishes,
    /// Tags to leave out.
    pub exclude: Wishes,
    /// The CSV to write.
    pub output: PathBuf,
}

/// Which candidates are taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// All of them.
    AllHead,
    /// Those on the shipped list.
    ImageProduction,
    /// Those on the list in a file.
    List(PathBuf),
}

/// Tags that a user names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Wishes {
    /// Names and patterns, canonical.
    pub tags: BTreeSet<String>,
    /// Lists in files.
    pub lists: Vec<PathBuf>,
}

impl Wishes {
    fn new(written: &[String]) -> Self {
        let mut wishes = Self::default();
        for text in written {
            match list_file(text) {
                Some(file) => wishes.lists.push(file.into()),
                None => drop(wishes.tags.insert(canonical(text))),
            }
        }
        wishes
    }
}

/// The file of a wish that is `@FILE`: all that begins so, but for the emoticon.
pub fn list_file(wish: &str) -> Option<&str> {
    wish.strip_prefix('@').filter(|file| !file.is_empty() && !KAOMOJI.contains(&wish))
}

impl SelectConfig {
    /// Checks what can be checked without reading.
    ///
    /// # Errors
    /// A coverage outside 0 to 1; a tag both included and excluded; both a list and `all_head`; an output that is an
    /// input.
    pub fn plan(&self) -> Result<SelectPlan> {
        let Self { labels, coverage, list, output, .. } = self.clone();
        if !(0.0..=1.0).contains(&coverage) {
            let expected = "a share from 0 to 1";
            return Err(Error::Range { setting: "coverage", found: coverage, expected });
        }
        let taken = match (list, self.all_head) {
            (Some(_), true) => return Err(Error::ListAndAllHead),
            (Some(list), false) => Taken::List(list),
            (None, true) => Taken::AllHead,
            (None, false) => Taken::ImageProduction,
        };
        let (include, exclude) = (Wishes::new(&self.include), Wishes::new(&self.exclude));
        if let Some(name) = include.tags.intersection(&exclude.tags).next() {
            return Err(Error::BothWays { name: name.clone() });
        }
        let plan = SelectPlan { labels, coverage, taken, include, exclude, output };
        match plan.inputs().iter().any(|(_, input)| resolved(input) == resolved(&plan.output)) {
            true => Err(Error::OutputIsInput { path: plan.output }),
            false => Ok(plan),
        }
    }
}

impl SelectPlan {
    /// All that the selection depends on.
    pub fn key(&self) -> Result<RunKey> {
        let taken = match &self.taken {
            Taken::AllHead => "all head".to_owned(),
            Taken::ImageProduction => hash_bytes(IMAGE_PRODUCTION).to_string(),
            Taken::List(_) => "list".to_owned(),
        };
        let (include, exclude) = (&self.include.tags, &self.exclude.tags);
        let settings =
            json!({ "coverage": self.coverage, "taken": taken, "include": include, "exclude": exclude });
        let mut key = RunKey::new("select", &settings, None);
        for (name, path) in self.inputs() {
            key = key.input(&name, path, |_| true)?;
        }
        Ok(key)
    }

    /// The files that are read, by name.
    fn inputs(&self) -> Vec<(String, &Path)> {
        let mut inputs = vec![("labels".to_owned(), self.labels.as_path())];
        if let Taken::List(list) = &self.taken {
            inputs.push(("list".to_owned(), list));
        }
        for (name, wishes) in [("include", &self.include), ("exclude", &self.exclude)] {
            inputs.extend(
                wishes.lists.iter().enumerate().map(|(k, list)| (format!("{name}_{k}"), list.as_path())),
            );
        }
        inputs
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
    /// How many of them are candidates: the head that covers the share asked for.
    pub candidates: usize,
    /// How many tags and patterns the list has; none where all candidates are taken.
    pub listed: Option<usize>,
    /// Tags of the list that are in the vocabulary and no candidates, in order of the vocabulary.
    pub below: Vec<String>,
    /// Tags of lists that the vocabulary lacks.
    pub lacking: Vec<String>,
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
        let Self { general, candidates, selected, covered, .. } = self;
        match self.outcome {
            Outcome::Unchanged => return write!(f, "`{output}` is up to date ({} tags)", selected.len()),
            Outcome::Interrupted => return write!(f, "stopped before `{output}` was written"),
            Outcome::Done | Outcome::Skipped => {}
        }
        write!(f, "selected {} tags into `{output}`: ", selected.len())?;
        write!(f, "{candidates} of {general} general tags are candidates; ")?;
        write!(f, "the selected ones make up {:.1} % of the occurrences", 100.0 * covered)?;
        if let Some(listed) = self.listed {
            let below = self.below.len();
            write!(f, "\nthe list has {listed} entries; {below} tags of it are too rare to be candidates")?;
            write!(f, "{}", names(&self.below))?;
        }
        if !self.lacking.is_empty() {
            write!(f, "\nthe vocabulary lacks {} listed tags{}", self.lacking.len(), names(&self.lacking))?;
        }
        if !self.doubles.is_empty() {
            write!(f, "\nnames that stand more than once: {}", self.doubles.join(", "))?;
        }
        Ok(())
    }
}

/// A colon and the names, if there are any.
fn names(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) }
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
/// A vocabulary that lacks a column, or holds an empty name or a count that is no number; an included or excluded tag that it does not
/// know, unless a list names it; a list that cannot be read; counts that are all 0, unless the coverage is 0; nothing left to select; an output that cannot be written.
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
    let chosen = choose(plan, &labels)?;
    let report = report(plan, &labels, &chosen);
    if interrupt.is_raised() {
        return Ok(SelectReport { outcome: Outcome::Interrupted, ..report });
    }
    let wanted = |label: &Label| chosen.names.contains(label.name.as_str());
    let header: Vec<_> = sheet.header.iter().map(String::as_str).chain([INCLUDE]).collect();
    let rows = sheet.rows.iter().zip(&labels).map(|(row, label)| {
        let flag = u8::from(wanted(label)).to_string();
        row.cells.iter().map(ToOwned::to_owned).chain([flag]).collect::<Vec<_>>()
    });
    let text = sheet::text(&header, rows);
    // Not over one that somebody has edited: selections are there for that.
    key.write_files(&record, &[(&plan.output, text.as_bytes())], &report)?;
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
        let named = canonical(&cells[name]);
        if named.is_empty() {
            return Err(sheet.cell(row, name, "the name of a tag"));
        }
        Ok(Label { name: named, general: category_named(&cells[category]) == GENERAL, count })
    };
    sheet.rows.iter().map(label).collect()
}

/// What has been found out about a vocabulary.
struct Chosen<'a> {
    names: BTreeSet<&'a str>,
    candidates: BTreeSet<&'a str>,
    head: usize,
    /// The tags that the list means, and how many entries it has.
    listed: Option<(BTreeSet<&'a str>, usize)>,
    lacking: BTreeSet<String>,
}

fn choose<'a>(plan: &SelectPlan, labels: &'a [Label]) -> Result<Chosen<'a>> {
    let known: BTreeSet<_> = labels.iter().map(|label| label.name.as_str()).collect();
    let mut lacking = BTreeSet::new();
    let (head, candidates) = candidates(plan, labels)?;
    let listed = match &plan.taken {
        Taken::AllHead => None,
        Taken::ImageProduction => Some(TagList::shipped()),
        Taken::List(path) => Some(TagList::read(path)?),
    };
    let listed = listed.map(|list| (found(&list, &known, &mut lacking), list.tags.len()));
    let include = wished(plan, &plan.include, &known, &mut lacking)?;
    let exclude = wished(plan, &plan.exclude, &known, &mut lacking)?;
    let names: BTreeSet<_> = candidates
        .iter()
        .copied()
        .filter(|name| listed.as_ref().is_none_or(|(listed, _)| listed.contains(name)))
        .chain(include)
        .filter(|name| !exclude.contains(name))
        .collect();
    match names.is_empty() {
        true => Err(Error::NothingSelected { path: plan.labels.clone() }),
        false => Ok(Chosen { names, candidates, head, listed, lacking }),
    }
}

/// How many tags the head has, and their names.
fn candidates<'a>(plan: &SelectPlan, labels: &'a [Label]) -> Result<(usize, BTreeSet<&'a str>)> {
    let general: Vec<_> = labels.iter().filter(|label| label.general).collect();
    let counts: Vec<_> = general.iter().map(|label| label.count).collect();
    if plan.coverage > 0.0 && counts.iter().all(|count| *count == 0) {
        return Err(Error::NoCounts { path: plan.labels.clone() });
    }
    let head = head(&counts, plan.coverage);
    Ok((head.len(), head.iter().map(|place| general[*place].name.as_str()).collect()))
}

/// The tags of a vocabulary that a list means. What it lacks is noted: lists are for several vocabularies.
fn found<'a>(list: &TagList, known: &BTreeSet<&'a str>, lacking: &mut BTreeSet<String>) -> BTreeSet<&'a str> {
    let mut all = BTreeSet::new();
    for tag in &list.tags {
        let names = meant(tag, known);
        if names.is_empty() {
            lacking.insert(tag.clone());
        }
        all.extend(names);
    }
    all
}

/// The tags that a user names on the command line must be there; those of lists need not.
fn wished<'a>(
    plan: &SelectPlan,
    wishes: &Wishes,
    known: &BTreeSet<&'a str>,
    lacking: &mut BTreeSet<String>,
) -> Result<BTreeSet<&'a str>> {
    let mut all = BTreeSet::new();
    for tag in &wishes.tags {
        let names = meant(tag, known);
        if names.is_empty() {
            let nearest = nearest(tag, known.iter().copied()).map(ToOwned::to_owned);
            return Err(Error::UnknownTag { path: plan.labels.clone(), name: tag.clone(), nearest });
        }
        all.extend(names);
    }
    for list in &wishes.lists {
        all.append(&mut found(&TagList::read(list)?, known, lacking));
    }
    Ok(all)
}

fn report(plan: &SelectPlan, labels: &[Label], chosen: &Chosen<'_>) -> SelectReport {
    let mut seen = BTreeMap::new();
    labels.iter().for_each(|label| *seen.entry(label.name.as_str()).or_insert(0) += 1);
    let general = || labels.iter().filter(|label| label.general);
    let count = |label: &Label| u128::from(label.count);
    let total: u128 = general().map(count).sum();
    let is_chosen = |label: &&Label| chosen.names.contains(label.name.as_str());
    let covered: u128 = general().filter(is_chosen).map(count).sum();
    // In order of the vocabulary, each name once.
    let in_order = |mut wanted: BTreeSet<&str>| -> Vec<String> {
        let names = labels.iter().filter(|label| wanted.remove(label.name.as_str()));
        names.map(|label| label.name.clone()).collect()
    };
    let below = chosen.listed.as_ref().map(|(listed, _)| listed - &chosen.candidates).unwrap_or_default();
    SelectReport {
        outcome: Outcome::Done,
        output: plan.output.clone(),
        general: general().count(),
        candidates: chosen.head,
        listed: chosen.listed.as_ref().map(|(_, entries)| *entries),
        below: in_order(below),
        lacking: chosen.lacking.iter().cloned().collect(),
        covered: covered as f64 / total.max(1) as f64,
        selected: in_order(chosen.names.clone()),
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
        SelectConfig {
            labels,
            coverage: 0.8,
            list: None,
            all_head: true,
            include: Vec::new(),
            exclude: Vec::new(),
            output,
        }
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
        assert_eq!((report.candidates, report.general, report.covered), (2, 5, 0.8));
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
    fn the_list_chooses_among_the_candidates() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = SelectConfig { all_head: false, ..config(dir.path()) };
        let report = run_config(&config).unwrap();
        assert_eq!(
            (report.selected, report.candidates, report.listed),
            (vec!["blurry".to_owned()], 2, Some(73))
        );
        assert_eq!((report.lacking.len(), report.below.len()), (72, 0));

        let list = dir.path().join("mine.txt");
        fs::write(&list, "# mine\nSolo\n1girl\nbokeh\nlens_*\n").unwrap();
        config.list = Some(list.clone());
        let report = run_config(&config).unwrap();
        assert_eq!((&report.selected, report.listed), (&vec!["1girl".to_owned()], Some(4)));
        assert_eq!(report.below, ["solo"]);
        assert_eq!(report.lacking, ["bokeh", "lens_*"]);
        let text = report.to_string();
        assert!(text.contains("2 of 5 general tags are candidates"), "{text}");
        assert!(
            text.contains("the list has 4 entries; 1 tags of it are too rare to be candidates: solo\n"),
            "{text}"
        );
        assert!(text.contains("the vocabulary lacks 2 listed tags: bokeh, lens_*\n"), "{text}");
        assert_eq!(run_config(&config).unwrap().outcome, Outcome::Unchanged);
        fs::write(&list, "blurry").unwrap();
        assert_eq!(run_config(&config).unwrap().selected, ["blurry"], "a changed list is noticed");
        config.coverage = 1.0;
        config.list = None;
        assert_eq!(run_config(&config).unwrap().selected, ["blurry"]);
        (config.list, config.all_head) = (Some(list), true);
        let error = config.plan().unwrap_err().to_string();
        assert_eq!(
            error,
            "`list` chooses among the candidates and `all_head` takes them all: set one of them"
        );
    }

    #[test]
    fn wishes_are_names_patterns_and_lists() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.include = vec!["m?ku".into(), "so*".into()];
        config.exclude = vec!["1*".into()];
        assert_eq!(run_config(&config).unwrap().selected, ["blurry", "solo", "miku"]);
        let list = dir.path().join("out.csv");
        fs::write(&list, "name;keep\nblurry;1\nbokeh;1\nsolo;0\n").unwrap();
        config.exclude = vec![format!("@{}", list.display())];
        let report = run_config(&config).unwrap();
        assert_eq!(report.selected, ["1girl", "solo", "miku"]);
        assert_eq!(report.lacking, ["bokeh"]);
        config.exclude = vec!["@_@".into()];
        assert!(run_config(&config).unwrap_err().to_string().starts_with("no tag `@_@` in"));
        config.exclude = vec!["@none.txt".into()];
        assert!(run_config(&config).unwrap_err().to_string().contains("none.txt"));
        config.exclude = vec!["x*".into()];
        assert!(run_config(&config).unwrap_err().to_string().starts_with("no tag `x*` in"));
    }

    #[test]
    fn an_edited_selection_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        run_config(&config).unwrap();
        config.exclude = vec!["1girl".into()];
        assert_eq!(run_config(&config).unwrap().outcome, Outcome::Done, "its own may be replaced");
        let edited = fs::read_to_string(&config.output).unwrap().replace("3,solo,0,15,0", "3,solo,0,15,1");
        fs::write(&config.output, &edited).unwrap();
        let error = run_config(&config).unwrap_err().to_string();
        assert!(error.contains("selection.csv` is in the way"), "{error}");
        assert_eq!(fs::read_to_string(&config.output).unwrap(), edited);
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
        let nameless = "name,category,count\na,0,1\n \u{200b},0,1\n";
        assert!(
            said(&|c| fs::write(&c.labels, nameless).unwrap())
                .contains("line 3, column `name`: expected the name of a tag")
        );
        assert!(said(&|c| c.output = c.labels.clone()).ends_with("is the input"));
        fs::create_dir(dir.path().join("sub")).unwrap();
        let other_spelling = dir.path().join("sub/../selected_tags.csv");
        assert!(said(&|c| c.output = other_spelling.clone()).ends_with("is the input"));
    }
}
