//! What the demo must show, checked on the tables of a run: the question of V3, in numbers.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use crate::{Result, process::say};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// The folder of the run
    #[arg(default_value = "demo/v3")]
    pub run: PathBuf,
}

/// Tells each claim, and fails where one does not hold.
pub fn run(options: &Options) -> Result {
    let claims = check(&options.run)?;
    claims.iter().for_each(|claim| say(&claim.to_string()));
    match claims.iter().filter(|claim| !claim.holds).count() {
        0 => Ok(()),
        failed => Err(format!("{failed} of {} claims fail", claims.len()).into()),
    }
}

/// A line of a table, by column.
type Row = BTreeMap<String, String>;

/// What was expected, and what was found.
#[derive(Debug)]
struct Claim {
    text: String,
    found: String,
    holds: bool,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.holds { "holds" } else { "FAILS" };
        write!(f, "{verdict}  {}: {}", self.text, self.found)
    }
}

fn claim(text: impl Into<String>, holds: bool, found: impl Into<String>) -> Claim {
    Claim { text: text.into(), found: found.into(), holds }
}

/// A number with its interval.
#[derive(Debug, Clone, Copy)]
struct Number {
    n: usize,
    value: f64,
    low: f64,
    high: f64,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without a sign of what is rounded to 0.
        let [value, low, high] =
            [self.value, self.low, self.high].map(|v| (1000.0 * v).round() / 1000.0 + 0.0);
        write!(f, "{value:.3} ({low:.3} to {high:.3}), {} seeds", self.n)
    }
}

/// The tables of the probe that has all tags, and the card of what is released.
struct Tables {
    responses: Vec<Row>,
    verdicts: Vec<Row>,
    adherence: Vec<Row>,
    release: Vec<Row>,
}

/// Checks the run in a folder.
///
/// # Errors
/// A table that cannot be read, or without a line or a number that must be there.
fn check(run: &Path) -> Result<Vec<Claim>> {
    let probe = run.join("probes/tags");
    let table = |name: &str| read(&probe.join(name));
    let tables = Tables {
        responses: table("responses.csv")?,
        verdicts: table("verdicts.csv")?,
        adherence: table("adherence.csv")?,
        release: read(&run.join("chosen/release/scorecard.csv"))?,
    };
    let mut claims = tables.blur()?;
    claims.extend(tables.control()?);
    claims.push(tables.others()?);
    claims.extend(tables.adherence()?);
    Ok(claims)
}

fn read(path: &Path) -> Result<Vec<Row>> {
    let wrong = |error: csv::Error| format!("{}: {error}", path.display());
    let mut table = csv::Reader::from_path(path).map_err(wrong)?;
    Ok(table.deserialize().collect::<csv::Result<_>>().map_err(wrong)?)
}

fn find<'a>(rows: &'a [Row], wanted: &[(&str, &str)]) -> Result<&'a Row> {
    let is_it =
        |row: &&Row| wanted.iter().all(|(column, value)| row.get(*column).is_some_and(|v| v == value));
    Ok(rows.iter().find(is_it).ok_or_else(|| format!("no line with {wanted:?}"))?)
}

fn number(row: &Row, columns: [&str; 4]) -> Result<Number> {
    let of = |column: &str| -> Result<f64> {
        let text = row.get(column).ok_or_else(|| format!("no column {column}"))?;
        Ok(text.parse().map_err(|_| format!("{column}: expected a number, found {text:?} in {row:?}"))?)
    };
    let [n, value, low, high] = columns.map(of);
    Ok(Number { n: n? as usize, value: value?, low: low?, high: high? })
}

impl Tables {
    fn response(&self, model: &str, word: &str, condition: &str, measure: &str) -> Result<&Row> {
        let tag = if measure == "probability" { "blurry" } else { "" };
        let wanted =
            [("model", model), ("word", word), ("condition", condition), ("measure", measure), ("tag", tag)];
        find(&self.responses, &wanted)
    }

    fn level(&self, model: &str, condition: &str) -> Result<Number> {
        let row = self.response(model, "blurry", condition, "probability")?;
        number(row, ["n", "level", "level_low", "level_high"])
    }

    fn change(&self, model: &str, word: &str, condition: &str) -> Result<Number> {
        number(self.response(model, word, condition, "probability")?, ["pairs", "difference", "low", "high"])
    }

    fn ratio(&self, model: &str, word: &str, condition: &str) -> Result<Number> {
        number(
            self.response(model, word, condition, "sharpness")?,
            ["pairs", "ratio", "ratio_low", "ratio_high"],
        )
    }

    /// V3 knows what blur is.
    fn blur(&self) -> Result<Vec<Claim>> {
        let (with, negative) = (self.ratio("v3", "blurry", "with")?, self.ratio("v3", "blurry", "negative")?);
        let (asked, refused) = (self.level("v3", "with")?, self.level("v3", "negative")?);
        let least = [with.n, negative.n, asked.n, refused.n].into_iter().min().unwrap_or_default();
        Ok(vec![
            claim("V3 was measured with 64 seeds at least", least >= 64, least.to_string()),
            claim(
                "V3's sharpness with `blurry` is at most half that without",
                with.value <= 0.5,
                with.to_string(),
            ),
            claim(
                "with `blurry` in the negative prompt it is at least double",
                negative.value >= 2.0,
                negative.to_string(),
            ),
            claim(
                "and the two intervals lie apart",
                with.high < negative.low,
                format!("{:.3} < {:.3}", with.high, negative.low),
            ),
            claim("the tagger sees blur with the tag: 0.8 at least", asked.value >= 0.8, asked.to_string()),
            claim(
                "and none with it in the negative prompt: 0.1 at most",
                refused.value <= 0.1,
                refused.to_string(),
            ),
        ])
    }

    /// The words that stand in no caption.
    fn placebos(&self) -> Vec<&str> {
        let of = self.responses.iter().filter(|row| row["placebo"] == "1" && row["model"] == "control");
        let mut words: Vec<&str> = of.map(|row| row["word"].as_str()).collect();
        words.dedup();
        words
    }

    /// The control, which saw the same pictures as often, does not.
    fn control(&self) -> Result<Vec<Claim>> {
        let placebos = self.placebos();
        if placebos.is_empty() {
            return Err("no placebo was measured, so that nothing can be said of the control".into());
        }
        let mut claims = Vec::new();
        for (condition, told) in [("with", "before the prompt"), ("negative", "in the negative prompt")] {
            let (own, v3) =
                (self.change("control", "blurry", condition)?, self.change("v3", "blurry", condition)?);
            let changes =
                placebos.iter().map(|word| Ok(self.change("control", word, condition)?.value.abs()));
            let most = changes.collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max);
            let text =
                format!("`blurry` {told} changes the control's probability of blur no more than placebos do");
            claims.push(claim(text, own.value.abs() <= most, format!("{own}; placebos {most:.3}")));
            if condition == "with" {
                let text = "its interval lies below V3's, of probability before the prompt";
                claims.push(claim(text, own.high < v3.low, format!("{own}; V3 {v3}")));
            }
            // As V3 does it: blurred before the prompt, sharpened in the negative prompt.
            let sign = if condition == "with" { -1.0 } else { 1.0 };
            let effect = |ratio: Number| sign * ratio.value.ln();
            let (ratio, v3) =
                (self.ratio("control", "blurry", condition)?, self.ratio("v3", "blurry", condition)?);
            let effects = placebos.iter().map(|word| Ok(effect(self.ratio("control", word, condition)?)));
            let most = effects.collect::<Result<Vec<_>>>()?.into_iter().fold(0.0, f64::max);
            let text = format!(
                "`blurry` {told} changes the control's sharpness, in V3's direction, no more than placebos do"
            );
            claims.push(claim(
                text,
                effect(ratio) <= most,
                format!("{ratio}; placebos {:.3}", (sign * most).exp()),
            ));
            let apart = if condition == "with" { v3.high < ratio.low } else { ratio.high < v3.low };
            let text = format!("its interval lies apart from V3's, of sharpness {told}");
            claims.push(claim(text, apart, format!("{ratio}; V3 {v3}")));
        }
        Ok(claims)
    }

    /// Tags that are not about blur.
    fn others(&self) -> Result<Claim> {
        let of = |row: &&Row| row["model"] == "v3" && row["tag"] != "blurry" && row["responds"] == "1";
        let tags: Vec<&str> = self.verdicts.iter().filter(of).map(|row| row["tag"].as_str()).collect();
        Ok(claim("five tags besides respond in V3 at least", tags.len() >= 5, tags.join(", ")))
    }

    /// What was learnt did not cost what was known.
    fn adherence(&self) -> Result<[Claim; 2]> {
        let wanted = [("model", "v3"), ("word", ""), ("condition", "without"), ("thing", "all")];
        let v3 = find(&self.adherence, &wanted)?;
        let v3 = number(v3, ["requested", "difference", "difference_low", "difference_high"])?;
        let released = find(&self.release, &[("chosen", "1")])?;
        let columns =
            ["chosen", "adherence_difference", "adherence_difference_low", "adherence_difference_high"];
        let change = number(released, columns)?;
        let found =
            |change: Number| format!("{:+.3} ({:+.3} to {:+.3})", change.value, change.low, change.high);
        Ok([
            claim("V3 does what is asked as well as V2, within 5 points", v3.value >= -0.05, found(v3)),
            claim(
                "what is released does so too, on the prompts that it was chosen by",
                change.value >= -0.05,
                format!("{}: {}", released["model"], found(change)),
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a run of the shipped recipe made.
    fn results() -> PathBuf {
        crate::root().join("docs/results/v3")
    }

    #[test]
    fn the_shipped_results_show_what_they_must() {
        let claims = check(&results()).unwrap();
        assert_eq!(claims.len(), 16);
        assert!(claims.iter().all(|claim| claim.holds), "{claims:?}");
        let document = std::fs::read_to_string(crate::root().join("docs/experiment.md")).unwrap();
        for Claim { text, found, .. } in &claims {
            assert!(document.contains(&format!("| {text} | {found} |")), "{text}: {found}");
        }
    }

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    fn median(mut values: Vec<f64>) -> f64 {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
    }

    /// Level, difference and ratio in the table of responses are those of the pictures.
    #[test]
    fn the_shipped_numbers_are_those_of_the_shipped_pictures() {
        let probe = results().join("probes/tags");
        let [pictures, responses] =
            ["pictures.csv", "responses.csv"].map(|name| read(&probe.join(name)).unwrap());
        let seed = |row: &Row| row["seed"].parse::<u64>().unwrap();
        let of = |row: &Row, column: &str| row[column].parse::<f64>().unwrap();
        for response in responses.iter().filter(|row| row["condition"] != "without") {
            let column = match response["measure"].as_str() {
                "probability" => format!("p:{}", response["tag"]),
                measure => measure.to_owned(),
            };
            let own = pictures.iter().filter(|row| row["model"] == response["model"]);
            let (plain, own): (Vec<&Row>, Vec<&Row>) = own.partition(|row| row["condition"] == "without");
            let plain: BTreeMap<u64, f64> =
                plain.into_iter().map(|row| (seed(row), of(row, &column))).collect();
            let is_it =
                |row: &&&Row| row["word"] == response["word"] && row["condition"] == response["condition"];
            let pairs: Vec<_> =
                own.iter().filter(is_it).map(|row| (of(row, &column), plain[&seed(row)])).collect();
            let near = |name: &str, value: f64| {
                let told = of(response, name);
                assert!(
                    (told - value).abs() <= 2e-6 * value.abs().max(1.0),
                    "{name} of {response:?}: {value}"
                );
            };
            near("level", median(pairs.iter().map(|pair| pair.0).collect()));
            let differences: Vec<f64> = pairs.iter().map(|pair| pair.0 - pair.1).collect();
            let is_probability = response["measure"] == "probability";
            near("difference", if is_probability { mean(&differences) } else { median(differences) });
            if !response["ratio"].is_empty() {
                near("ratio", median(pairs.iter().map(|pair| pair.0 / pair.1).collect()));
            }
        }
    }

    /// What is said of tags follows from the responses, and adherence from the pictures.
    #[test]
    fn the_shipped_verdicts_and_shares_follow_from_what_was_counted() {
        let probe = results().join("probes/tags");
        let [pictures, responses, verdicts, adherence] =
            ["pictures.csv", "responses.csv", "verdicts.csv", "adherence.csv"]
                .map(|name| read(&probe.join(name)).unwrap());
        let of = |row: &Row, column: &str| row[column].parse::<f64>().unwrap();
        for verdict in &verdicts {
            let about = |row: &&Row, condition: &str| {
                row["model"] == verdict["model"]
                    && row["tag"] == verdict["tag"]
                    && row["condition"] == condition
            };
            let placebos = |condition: &str| {
                let rows = responses.iter().filter(|row| about(row, condition) && row["placebo"] == "1");
                rows.map(|row| of(row, "difference")).collect::<Vec<_>>()
            };
            let most = placebos("with").into_iter().fold(0.0, f64::max);
            let least = placebos("negative").into_iter().fold(0.0, f64::min);
            assert_eq!(
                (of(verdict, "placebo_high"), of(verdict, "placebo_low")),
                (most, least),
                "{verdict:?}"
            );
            let responds = of(verdict, "asked") >= 0.1 && of(verdict, "asked_low") > most;
            let refuses = of(verdict, "refused") <= -0.1 && of(verdict, "refused_high") < least;
            assert_eq!(
                [verdict["responds"] == "1", verdict["refuses"] == "1"],
                [responds, refuses],
                "{verdict:?}"
            );
        }
        for row in adherence.iter().filter(|row| row["thing"] == "all" && row["word"].is_empty()) {
            let plain =
                |picture: &&Row| picture["model"] == row["model"] && picture["condition"] == "without";
            let sum = |column| pictures.iter().filter(plain).map(|picture| of(picture, column)).sum::<f64>();
            assert_eq!((of(row, "requested"), of(row, "found")), (sum("requested"), sum("found")), "{row:?}");
        }
    }

    #[test]
    fn a_run_that_shows_nothing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let probe = dir.path().join("probes/tags");
        std::fs::create_dir_all(&probe).unwrap();
        assert!(check(dir.path()).unwrap_err().to_string().contains("responses.csv"));
        for name in ["responses.csv", "verdicts.csv", "adherence.csv"] {
            std::fs::copy(results().join("probes/tags").join(name), probe.join(name)).unwrap();
        }
        let card = "chosen/release/scorecard.csv";
        std::fs::create_dir_all(dir.path().join("chosen/release")).unwrap();
        std::fs::copy(results().join(card), dir.path().join(card)).unwrap();
        // As if V3 were the control, and the other way round.
        for name in ["responses.csv", "verdicts.csv"] {
            let text = std::fs::read_to_string(probe.join(name)).unwrap();
            let text =
                text.replace("\ncontrol,", "\nx,").replace("\nv3,", "\ncontrol,").replace("\nx,", "\nv3,");
            std::fs::write(probe.join(name), text).unwrap();
        }
        let claims = check(dir.path()).unwrap();
        assert!(claims.iter().filter(|claim| !claim.holds).count() >= 6, "{claims:?}");
        assert!(claims.iter().any(|claim| claim.to_string().starts_with("FAILS")));
    }
}
