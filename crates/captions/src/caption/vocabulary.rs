//! The tags that captions may have, each with the score that it must reach.

use std::collections::BTreeMap;

use super::{CaptionPlan, Style};
use crate::{Error, Result, Selection, canonical, names::category_named, sheet::Sheet};

/// Tags by their places: the selected ones in the order of the selection, behind them what templates want besides.
#[derive(Debug)]
pub(super) struct Vocabulary {
    pub names: Vec<String>,
    /// How many of them are selected.
    pub selected: usize,
    /// The lowest score of each.
    pub floors: Vec<f32>,
    /// The category of each, where the selection tells.
    pub categories: Vec<Option<String>>,
}

/// What the selection says of a tag besides whether it is wanted.
#[derive(Debug, Clone, Default)]
struct Facts {
    category: Option<String>,
    threshold: Option<f32>,
}

impl Vocabulary {
    pub(super) fn read(plan: &CaptionPlan) -> Result<Self> {
        let selection = Selection::read(&plan.selection)?;
        let facts = facts(plan)?;
        let mut names: Vec<_> = selection.tags.into_iter().map(|tag| tag.name).collect();
        let selected = names.len();
        if plan.style.template.is_some() {
            let besides = facts.iter().filter(|(name, facts)| {
                matches!(facts.category.as_deref(), Some("rating" | "character")) && !names.contains(name)
            });
            let besides: Vec<_> = besides.map(|(name, _)| name.clone()).collect();
            names.extend(besides);
        }
        let of = |name: &String| facts.get(name).cloned().unwrap_or_default();
        let categories: Vec<_> = names.iter().map(|name| of(name).category).collect();
        let Style { thresholds, category_thresholds, .. } = &plan.style;
        let thresholds = check_tags(plan, thresholds, &names)?;
        let by_category = check_categories(plan, category_thresholds, &facts)?;
        let floor = |name: &String| {
            let Facts { category, threshold } = of(name);
            let by_category = category.and_then(|category| by_category.get(&category).copied());
            thresholds.get(name).copied().or(threshold).or(by_category).unwrap_or(plan.min_score)
        };
        let floors = names.iter().map(floor).collect();
        Ok(Self { names, selected, floors, categories })
    }

    pub(super) fn is(&self, tag: usize, category: &str) -> bool {
        self.categories[tag].as_deref() == Some(category)
    }
}

/// What the selection's columns `category` and `threshold` say, by canonical name.
fn facts(plan: &CaptionPlan) -> Result<BTreeMap<String, Facts>> {
    let sheet = Sheet::read(&plan.selection)?;
    let name = sheet.column("name")?;
    let [category, threshold] = [sheet.find("category")?, sheet.find("threshold")?];
    let mut facts = BTreeMap::new();
    for row in &sheet.rows {
        let cell = |column: usize| Some(row.cells[column].trim()).filter(|cell| !cell.is_empty());
        let floor = threshold.and_then(|column| Some((column, cell(column)?)));
        let floor = floor.map(|(column, text)| {
            // German and French spreadsheets write 0,35.
            let score = text.replace(',', ".").parse::<f32>().ok();
            let score = score.filter(|score| (0.0..=1.0).contains(score));
            score.ok_or_else(|| sheet.cell(row, column, "a score from 0 to 1, or nothing"))
        });
        let fact =
            Facts { category: category.and_then(cell).map(category_named), threshold: floor.transpose()? };
        facts.entry(canonical(&row.cells[name])).or_insert(fact);
    }
    Ok(facts)
}

/// Thresholds by canonical name; each must be of a tag that there is.
fn check_tags(
    plan: &CaptionPlan,
    thresholds: &BTreeMap<String, f32>,
    names: &[String],
) -> Result<BTreeMap<String, f32>> {
    let check = |(name, score): (&String, &f32)| {
        let name = canonical(name);
        if names.contains(&name) {
            return Ok((name, *score));
        }
        let nearest = vodka_stage::nearest(&name, names.iter().map(String::as_str)).map(ToOwned::to_owned);
        Err(Error::UnknownTag { path: plan.selection.clone(), name, nearest })
    };
    thresholds.iter().map(check).collect()
}

fn check_categories(
    plan: &CaptionPlan,
    thresholds: &BTreeMap<String, f32>,
    facts: &BTreeMap<String, Facts>,
) -> Result<BTreeMap<String, f32>> {
    let mut known: Vec<_> = facts.values().filter_map(|facts| facts.category.clone()).collect();
    known.sort();
    known.dedup();
    let check = |(name, score): (&String, &f32)| {
        let category = category_named(name.trim());
        match known.contains(&category) {
            true => Ok((category, *score)),
            false => Err(Error::Setting {
                setting: "category threshold",
                expected: match known.is_empty() {
                    true => format!("none: `{}` has no column `category`", plan.selection.display()),
                    false => known.join(", "),
                },
                found: name.clone(),
            }),
        }
    };
    thresholds.iter().map(check).collect()
}
