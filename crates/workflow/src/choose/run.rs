//! Reads what a probe measured, and chooses.

use std::{
    collections::BTreeMap,
    error, fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_stage::{Outcome, Report, RunKey, RunRecord, create_dir, lossy, nearest, record_path};

use super::{
    By, Card, Choice, ChoosePlan, Pair,
    card::{FRIED, Measured, Seed, choose},
    config::Validation,
    page,
};
use crate::{
    Error, ProbeReport,
    judge::{column, write_table},
    probe::{Condition, Estimate, rows::Rows, table::told},
};

/// What the stage's functions return: any stage's error.
type Result<T, E = Box<dyn error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Raised when equal tables make another choice than before.
const ARITHMETIC: u32 = 2;

/// What the stage has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChooseReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The folder with scorecard and page.
    #[serde(serialize_with = "lossy")]
    pub output: PathBuf,
    /// The choice.
    pub choice: Choice,
    /// The rule, in words.
    pub rule: String,
    /// The tag whose response counts.
    pub tag: String,
    /// The model whose adherence is to be kept.
    pub against: String,
    /// Its numbers.
    pub reference: Card,
    /// The candidates.
    pub cards: Vec<Card>,
    /// The chosen one beside all others.
    pub pairs: Vec<Pair>,
}

impl ChooseReport {
    /// The candidates that the chosen one's response is not told apart from.
    pub fn not_separate(&self) -> Vec<&str> {
        let is_open = |pair: &&Pair| pair.measure == "response" && !pair.is_separate;
        self.pairs.iter().filter(is_open).map(|pair| pair.other.as_str()).collect()
    }

    /// What was chosen and why, in words.
    pub fn told(&self) -> String {
        let Choice { model, by, rule_takes } = &self.choice;
        let mut told = match by {
            By::Rule => format!("{model}: {}", self.rule),
            By::ResponseAlone => format!(
                "{model}: the candidate with the largest response to the tag, for no candidate keeps to the limits of the rule \
                 ({})",
                self.rule
            ),
            By::User => match rule_takes {
                Some(taken) if taken == model => {
                    format!("{model}: chosen in the recipe, and what the rule takes ({})", self.rule)
                }
                Some(taken) => {
                    format!("{model}: chosen in the recipe; the rule takes {taken} ({})", self.rule)
                }
                None => format!("{model}: chosen in the recipe; the rule takes none"),
            },
        };
        match self.not_separate()[..] {
            [] => {}
            ref open => {
                told += &format!(". By response the numbers do not tell it apart from {}", open.join(", "));
            }
        }
        told
    }
}

impl ChoosePlan {
    /// What the choice depends on.
    ///
    /// # Errors
    /// Tables that cannot be read.
    pub fn key(&self) -> Result<RunKey> {
        #[derive(Serialize)]
        struct Key<'a> {
            arithmetic: u32,
            page: String,
            choose: &'a super::Choose,
            epochs: BTreeMap<&'a str, u64>,
        }
        let config = &self.config;
        let epochs = config.validation.iter().map(|(name, found)| (name.as_str(), found.epoch)).collect();
        let page = crate::pages::version().to_string();
        let key = Key { arithmetic: ARITHMETIC, page, choose: &config.choose, epochs };
        let mut key = RunKey::new("choose", &key, None);
        key = key.input("pictures", &config.probe.join("pictures.csv"), |_| true)?;
        key = key.input("fried", &config.probe.join("fried.csv"), |_| true)?;
        for (name, Validation { table, .. }) in
            config.validation.iter().filter(|(_, found)| found.table.exists())
        {
            key = key.input(&format!("validation of {name}"), table, |_| true)?;
        }
        Ok(key)
    }

    /// The names of the candidates and of the reference.
    fn models(&self, probe: &ProbeReport) -> Result<(Vec<String>, String), Error> {
        let choose = &self.config.choose;
        let first = probe.against.clone();
        let known = |name: &String| match probe.models.contains(name) {
            true => Ok(name.clone()),
            false => Err(Error::ChooseModel {
                choose: choose.name.clone(),
                name: name.clone(),
                probe: self.config.probe.clone(),
                nearest: nearest(name, probe.models.iter().map(String::as_str)).map(ToOwned::to_owned),
            }),
        };
        let against = choose.against.as_ref().map_or(Ok(first), known)?;
        let among: Vec<_> = match choose.among.is_empty() {
            true => probe.models.iter().filter(|name| **name != against).cloned().collect(),
            false => choose.among.iter().map(known).collect::<Result<_, _>>()?,
        };
        if let Some(user) = &choose.choose
            && !among.contains(user)
        {
            return Err(Error::ChooseOverride {
                choose: choose.name.clone(),
                model: user.clone(),
                nearest: nearest(user, among.iter().map(String::as_str)).map(ToOwned::to_owned),
            });
        }
        Ok((among, against))
    }

    /// All that the cards are made of.
    fn measured(&self, probe: &ProbeReport, against: &str) -> Result<Measured> {
        let mut measured = self.read_pictures()?;
        let of = |model: &str, measure: &str| {
            probe.results.friedness.iter().find(|row| row.model == model && row.measure == measure)
        };
        measured.data = FRIED.map(|measure| {
            let row = of(against, measure);
            let level = row.and_then(|row| row.level).map(|level| level.value);
            row.and_then(|row| row.data).or(level).unwrap_or(f64::NAN)
        });
        let distances = probe.results.diversity.iter();
        measured.diversity = distances.filter_map(|row| Some((row.model.clone(), row.distance?))).collect();
        for (name, validation) in &self.config.validation {
            if let Some(loss) = validation_loss(validation)? {
                measured.validation.insert(name.clone(), loss);
            }
        }
        Ok(measured)
    }

    fn read_pictures(&self) -> Result<Measured> {
        let rows = Rows::read(&self.config.probe.join("pictures.csv"))?;
        let probability = rows.place(&format!("p:{}", self.tag)).ok_or_else(|| Error::ChooseTag {
            choose: self.config.choose.name.clone(),
            tag: self.config.choose.tag.clone(),
            probe: self.config.probe.clone(),
        })?;
        let looks = [rows.column(FRIED[0])?, rows.column(FRIED[1])?, rows.column(FRIED[2])?];
        let mut measured = Measured::default();
        for row in &rows.rows {
            let seeds = measured.seeds.entry(row.model.clone()).or_default();
            let of: &mut Seed = seeds.entry(row.seed).or_default();
            let is_tag = row.word.as_ref() == Some(&self.tag);
            match row.condition {
                Condition::Without => {
                    of.count = Some(row.count);
                    of.looks = Some(looks.map(|place| row.numbers[place]));
                }
                Condition::With if is_tag => of.with = Some(row.numbers[probability]),
                Condition::Negative if is_tag => of.negative = Some(row.numbers[probability]),
                Condition::With | Condition::Negative | Condition::Alone => {}
            }
        }
        Ok(measured)
    }
}

/// The loss after that epoch, over all validation sets together where there are several.
fn validation_loss(validation: &Validation) -> Result<Option<f64>, Error> {
    let Validation { table: path, epoch } = validation;
    if !path.exists() {
        return Ok(None);
    }
    let failed = |source| Error::Table { path: path.clone(), source };
    let mut table = csv::Reader::from_path(path).map_err(failed)?;
    let columns = table.headers().map_err(failed)?.clone();
    let [at, set, loss] =
        [column(path, &columns, "epoch")?, column(path, &columns, "set")?, column(path, &columns, "loss")?];
    let mut best: Option<(u64, bool, f64)> = None;
    for row in table.records() {
        let row = row.map_err(failed)?;
        let is_all = &row[set] == "_all_val_combined";
        let (Ok(found), Ok(value)) = (row[at].parse::<u64>(), row[loss].parse::<f64>()) else { continue };
        let is_better = best.is_none_or(|(epoch, all, _)| (found, is_all) >= (epoch, all));
        if (is_all || &row[set] == "val") && found <= *epoch && is_better {
            best = Some((found, is_all, value));
        }
    }
    Ok(best.map(|(_, _, loss)| loss))
}

/// Reads the tables of the probe, chooses, and writes the scorecard and the page.
///
/// # Errors
/// A probe that has not run, or has none of the models or not the tag; files that cannot be read or written.
pub fn run(plan: &ChoosePlan) -> Result<ChooseReport> {
    let output = &plan.config.output;
    let record = record_path(output);
    let probe = probe_report(&plan.config.probe)?;
    let key = plan.key()?;
    if let Some(report) = key.made::<ChooseReport>(&record)? {
        return Ok(ChooseReport { outcome: Outcome::Unchanged, output: output.clone(), ..report });
    }
    let (among, against) = plan.models(&probe)?;
    let measured = plan.measured(&probe, &against)?;
    let cards = measured.cards(&among, &against, &plan.rule);
    let reference = measured.cards(std::slice::from_ref(&against), &against, &plan.rule).remove(0);
    let choice = choose(&cards, plan.config.choose.choose.as_deref()).ok_or_else(|| Error::ChooseNone {
        choose: plan.config.choose.name.clone(),
        tag: plan.config.choose.tag.clone(),
        probe: plan.config.probe.clone(),
    })?;
    let report = ChooseReport {
        outcome: Outcome::Done,
        output: output.clone(),
        pairs: measured.pairs(&choice.model, &among),
        choice,
        rule: plan.rule.to_string(),
        tag: plan.tag.clone(),
        against,
        reference,
        cards,
    };
    create_dir(output)?;
    write_cards(&output.join("scorecard.csv"), &report)?;
    write_pairs(&output.join("pairs.csv"), &report)?;
    page::write(plan, &report)?;
    key.write(&record, &[output], &report)?;
    Ok(report)
}

/// What the probe has told.
pub(crate) fn probe_report(folder: &Path) -> Result<ProbeReport, Error> {
    let record = RunRecord::read(&record_path(folder))?;
    serde_json::from_value(record.report)
        .map_err(|source| Error::NoProbe { path: folder.to_path_buf(), source })
}

fn write_cards(path: &Path, report: &ChooseReport) -> Result<(), Error> {
    let measures = ["response", "adherence", "adherence_difference", "friedness", "diversity"];
    let columns = measures.map(|name| [name.to_owned(), format!("{name}_low"), format!("{name}_high")]);
    let tail = ["validation_loss", "on_front", "chosen", "refused"].map(ToOwned::to_owned);
    let head: Vec<String> =
        ["model".to_owned()].into_iter().chain(columns.into_iter().flatten()).chain(tail).collect();
    let row = |card: &Card| {
        let flag = |flag: bool| u8::from(flag).to_string();
        let Card { response, adherence, adherence_difference, friedness, diversity, .. } = *card;
        let numbers = [response, adherence, adherence_difference, friedness, diversity].map(told);
        let tail = [
            card.validation.map(|loss| format!("{loss:.6}")).unwrap_or_default(),
            flag(card.on_front && card.model != report.against),
            flag(card.model == report.choice.model),
            card.refused.join("; "),
        ];
        [card.model.clone()].into_iter().chain(numbers.into_iter().flatten()).chain(tail).collect::<Vec<_>>()
    };
    let reference =
        Some(&report.reference).filter(|card| !report.cards.iter().any(|c| c.model == card.model));
    let rows = report.cards.iter().chain(reference).map(row);
    write_table(path, &head.iter().map(String::as_str).collect::<Vec<_>>(), rows)
}

fn write_pairs(path: &Path, report: &ChooseReport) -> Result<(), Error> {
    let head = ["chosen", "other", "measure", "difference", "low", "high", "separate"];
    let rows = report.pairs.iter().map(|pair| {
        let names = [report.choice.model.clone(), pair.other.clone(), pair.measure.clone()];
        let is_separate = [u8::from(pair.is_separate).to_string()];
        names.into_iter().chain(told(pair.difference)).chain(is_separate).collect::<Vec<_>>()
    });
    write_table(path, &head, rows)
}

impl Report for ChooseReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for ChooseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.told())?;
        for card in &self.cards {
            let of = |estimate: &Option<Estimate>| {
                estimate.as_ref().map_or_else(|| "-".to_owned(), crate::pages::told)
            };
            write!(
                f,
                "\n{}: response {}, adherence {}, friedness {}, diversity {}",
                card.model,
                of(&card.response),
                of(&card.adherence),
                of(&card.friedness),
                of(&card.diversity)
            )?;
            if !card.refused.is_empty() {
                write!(f, "; not taken: {}", card.refused.join("; "))?;
            }
        }
        Ok(())
    }
}
