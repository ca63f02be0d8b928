//! The values of an axis, in the syntax of A1111's X/Y/Z plot: `1, 2, 4`, `1-5 (+2)`, `1-10 [5]`, quotes around commas.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, SeqAccess, Visitor},
};

/// What stands behind `values`: a text to be split at its commas, or a list of texts and numbers, or one number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Values(Vec<String>);

/// The most values an axis may have: a slip in a range shall not fill the memory.
const MAX_VALUES: usize = 100_000;

impl Values {
    /// Splits a text at its commas and line ends as Python's `csv` does it with `skipinitialspace`: quotes hold a value
    /// together, two quotes within quotes are one. Values without quotes lose the spaces around them, and empty ones are
    /// left out; `""` is an empty value.
    ///
    /// # Errors
    /// A quote that is not closed, and text behind one that is; with the place, counted in characters from 1.
    pub fn split(text: &str) -> Result<Self, String> {
        let mut values = Vec::new();
        let mut chars = (1..).zip(text.chars()).peekable();
        while chars.peek().is_some() {
            while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {}
            let Some((start, first)) = chars.peek().copied() else { break };
            if first != '"' {
                let mut value = String::new();
                while let Some((_, c)) = chars.next_if(|(_, c)| !is_end(*c)) {
                    value.push(c);
                }
                values.extend(Some(value.trim().to_owned()).filter(|value| !value.is_empty()));
                chars.next();
                continue;
            }
            chars.next();
            values.push(
                quoted(&mut chars).ok_or_else(|| format!("the quote at character {start} is not closed"))?,
            );
            while chars.next_if(|(_, c)| c.is_whitespace() && !is_end(*c)).is_some() {}
            match chars.next() {
                Some((at, c)) if !is_end(c) => {
                    return Err(format!("expected a comma at character {at}, behind the quote, found `{c}`"));
                }
                _ => {}
            }
        }
        Ok(Self(values))
    }

    /// One value.
    pub fn one(value: impl ToString) -> Self {
        Self(vec![value.to_string()])
    }

    /// As they are.
    pub fn texts(&self) -> &[String] {
        &self.0
    }

    pub(super) fn texts_mut(&mut self) -> &mut [String] {
        &mut self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As numbers, ranges spread out.
    ///
    /// `1-5` is 1 to 5, `1-5 (+2)` every second of them; `0-1 [5]` are five in equal steps, the ends among them. A
    /// range never passes its end (A1111's does, where the step is a fraction), and one with a negative step reaches it.
    ///
    /// # Errors
    /// What is no number and no range, with its place from 1.
    pub fn numbers(&self) -> Result<Vec<f64>, String> {
        self.each(|text| range(text, false))
    }

    /// As whole numbers, ranges spread out; those of `1-10 [4]` are cut off, as A1111 does it.
    ///
    /// # Errors
    /// As [`Values::numbers`].
    pub fn integers(&self) -> Result<Vec<i64>, String> {
        Ok(self.each(|text| range(text, true))?.into_iter().map(|number| number as i64).collect())
    }

    /// As texts, those that are ranges of numbers spread out.
    ///
    /// # Errors
    /// A range that cannot be, with its place from 1; too many values.
    pub fn spread(&self) -> Result<Vec<String>, String> {
        let mut texts = Vec::new();
        for (place, text) in (1..).zip(&self.0) {
            match range(text, false) {
                Ok(numbers) => texts.extend(numbers.iter().map(ToString::to_string)),
                Err(error) if is_range(text) => return Err(format!("value {place}, `{text}`: {error}")),
                Err(_) => texts.push(text.clone()),
            }
            if texts.len() > MAX_VALUES {
                return Err(format!("value {place}, `{text}`: more than {MAX_VALUES} values"));
            }
        }
        Ok(texts)
    }

    fn each(&self, spread: impl Fn(&str) -> Result<Vec<f64>, String>) -> Result<Vec<f64>, String> {
        let mut numbers = Vec::new();
        for (place, text) in (1..).zip(&self.0) {
            numbers.extend(spread(text).map_err(|error| format!("value {place}, `{text}`: {error}"))?);
            if numbers.len() > MAX_VALUES {
                return Err(format!("value {place}, `{text}`: more than {MAX_VALUES} values"));
            }
        }
        Ok(numbers)
    }
}

fn is_end(c: char) -> bool {
    matches!(c, ',' | '\n' | '\r')
}

/// The rest of a quoted value; `None` where no quote closes it.
fn quoted(chars: &mut std::iter::Peekable<impl Iterator<Item = (usize, char)>>) -> Option<String> {
    let mut value = String::new();
    loop {
        match chars.next()?.1 {
            '"' if chars.next_if(|(_, c)| *c == '"').is_some() => value.push('"'),
            '"' => return Some(value),
            c => value.push(c),
        }
    }
}

const EXPECTED: &str = "expected a number, or a range such as 1-5, 1-5 (+2) or 1-10 [4]";

/// The numbers of one value.
fn range(text: &str, whole: bool) -> Result<Vec<f64>, String> {
    let text = text.trim();
    if let Some(number) = number(text, whole) {
        return Ok(vec![number]);
    }
    let (ends, rule) = match text.find(['(', '[']) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let (start, end) = ends_of(ends.trim(), whole).ok_or(EXPECTED)?;
    let inner = |open, close| rule.trim().strip_prefix(open)?.strip_suffix(close).map(str::trim);
    if let Some(count) = inner('[', ']') {
        let count = count.parse::<usize>().ok().filter(|count| (1..=MAX_VALUES).contains(count));
        let count =
            count.ok_or_else(|| format!("expected a count of 1 to {MAX_VALUES} in the square brackets"))?;
        let at = |i: usize| start + (end - start) * i as f64 / (count - 1).max(1) as f64;
        let round = |value: f64| if whole { value.trunc() } else { tidy(value) };
        return Ok((0..count).map(|i| round(at(i))).collect());
    }
    let step = match inner('(', ')') {
        Some(step) => number(step, whole).ok_or("expected a step such as (+2) in the round brackets")?,
        None if rule.is_empty() => 1.0,
        None => return Err(EXPECTED.into()),
    };
    let steps = (end - start) / step;
    if step == 0.0 || !steps.is_finite() || steps < 0.0 {
        return Err(format!("a step of {step} does not lead from {start} to {end}"));
    }
    if steps >= MAX_VALUES as f64 {
        return Err(format!("more than {MAX_VALUES} values"));
    }
    // A hair more, for steps such as 0.1 that have no exact form.
    let count = (steps + 1e-9).floor() as usize + 1;
    Ok((0..count).map(|i| tidy(start + step * i as f64)).collect())
}

/// Whether a text is meant as a range: it begins as one.
fn is_range(text: &str) -> bool {
    let ends = text.find(['(', '[']).map_or(text, |at| &text[..at]);
    ends_of(ends.trim(), false).is_some()
}

/// A value as [`Values::split`] reads it back.
pub(super) fn quoted_value(value: &str) -> String {
    let is_plain = !value.is_empty() && value.trim() == value && !value.contains([',', '"', '\n', '\r']);
    if is_plain { value.to_owned() } else { format!("\"{}\"", value.replace('"', "\"\"")) }
}

/// `1-5`, `-1 - -5`: the hyphen that is no sign.
fn ends_of(text: &str, whole: bool) -> Option<(f64, f64)> {
    let hyphens = text.match_indices('-').map(|(at, _)| at).filter(|at| *at > 0);
    hyphens.into_iter().find_map(|at| Some((number(&text[..at], whole)?, number(&text[at + 1..], whole)?)))
}

fn number(text: &str, whole: bool) -> Option<f64> {
    let text = text.trim();
    let is_decimal = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
    if !text.chars().all(is_decimal) {
        return None;
    }
    match whole {
        // Beyond 2^53 a float is no longer that number.
        true => text.parse::<i64>().ok().filter(|n| n.unsigned_abs() < 1 << 53).map(|n| n as f64),
        false => text.parse::<f64>().ok().filter(|n| n.is_finite()),
    }
}

/// Without the last digits of a sum of fractions: 0.3 and not 0.30000000000000004.
fn tidy(value: f64) -> f64 {
    format!("{value:.10}").parse().unwrap_or(value)
}

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValuesVisitor)
    }
}

struct ValuesVisitor;

impl<'de> Visitor<'de> for ValuesVisitor {
    type Value = Values;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text such as \"1-5 (+2)\", a number, or a list of these")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Values, E> {
        Values::split(text).map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Values, E> {
        Ok(Values::one(number))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Values, E> {
        Ok(Values::one(number))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Values, A::Error> {
        let mut values = Vec::new();
        while let Some(Item(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Values(values))
    }
}

/// A text or a number in a list; a text stays whole.
struct Item(String);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl Visitor<'_> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a number")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Item, E> {
        Ok(Item(text.to_owned()))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Item, E> {
        Ok(Item(number.to_string()))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Item, E> {
        Ok(Item(number.to_string()))
    }
}

impl Serialize for Values {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<T: ToString> FromIterator<T> for Values {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        Self(values.into_iter().map(|value| value.to_string()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integers(text: &str) -> Vec<i64> {
        Values::split(text).unwrap().integers().unwrap()
    }

    fn numbers(text: &str) -> Vec<f64> {
        Values::split(text).unwrap().numbers().unwrap()
    }

    #[test]
    fn ranges_are_those_of_a1111() {
        assert_eq!(integers("1, 2,4"), [1, 2, 4]);
        assert_eq!(integers("1-5"), [1, 2, 3, 4, 5]);
        assert_eq!(integers("1-5 (+2), 9"), [1, 3, 5, 9]);
        assert_eq!(integers("1-6(+2)"), [1, 3, 5]);
        assert_eq!(integers("10-1 (-3)"), [10, 7, 4, 1]);
        assert_eq!(integers("1-10 [5]"), [1, 3, 5, 7, 10]);
        assert_eq!(integers("-3 - -1"), [-3, -2, -1]);
        assert_eq!(integers("7-7"), [7]);
        assert_eq!(numbers("0-1 (+0.1)"), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]);
        assert_eq!(numbers("1-2 (+0.3)"), [1.0, 1.3, 1.6, 1.9]);
        assert_eq!(numbers("0-1 [5], 7.5"), [0.0, 0.25, 0.5, 0.75, 1.0, 7.5]);
        assert_eq!(numbers("3-9 [1]"), [3.0]);
        let spread = |text: &str| Values::split(text).unwrap().spread();
        assert_eq!(spread("0-1 [3], GRAD_V").unwrap(), ["0", "0.5", "1", "GRAD_V"]);
        let error = spread("0.5, 0-1 [0]").unwrap_err();
        assert!(error.starts_with("value 2, `0-1 [0]`: expected a count of 1"), "{error}");
        assert!(spread("1-0").unwrap_err().contains("does not lead from 1 to 0"));
        assert!(spread("0-1 (+0.1").is_err() && spread("0-1 [1000000]").is_err());
    }

    #[test]
    fn commas_within_quotes_do_not_split() {
        let texts = |text: &str| Values::split(text).unwrap().texts().to_vec();
        assert_eq!(texts(r#"blurry, "sharp, in focus",  foggy "#), ["blurry", "sharp, in focus", "foggy"]);
        assert_eq!(texts(r#""a ""b"" c" , d"#), [r#"a "b" c"#, "d"]);
        assert_eq!(texts("a,,b,\nc\n"), ["a", "b", "c"]);
        assert_eq!(texts(r#""", blurry"#), ["", "blurry"]);
        assert_eq!(texts("5\" wide, b"), ["5\" wide", "b"]);
        assert_eq!(texts(" , "), [""; 0]);
    }

    #[test]
    fn quoted_values_are_read_back() {
        let values = ["a", "", " b", "c, d", "say \"x\"", "two\nlines"];
        let text = values.map(quoted_value).join(", ");
        assert_eq!(Values::split(&text).unwrap().texts(), values);
        assert_eq!(quoted_value("5-7 wide"), "5-7 wide");
    }

    #[test]
    fn faults_are_told_by_place() {
        let split = |text: &str| Values::split(text).unwrap_err();
        assert_eq!(split(r#"a, "b, c"#), "the quote at character 4 is not closed");
        assert_eq!(split(r#""a" b"#), "expected a comma at character 5, behind the quote, found `b`");
        let said = |text: &str| Values::split(text).unwrap().integers().unwrap_err();
        for text in
            ["1, x", "1, 1.5", "1, 2-", "1, 1-5 (2", "1, --", "1, 1-5 {2}", "1, inf", "1, 9007199254740993"]
        {
            let error = said(text);
            assert!(error.starts_with("value 2, `") && error.contains("expected"), "{text}: {error}");
        }
        assert!(said("5-1").contains("a step of 1 does not lead from 5 to 1"));
        assert!(said("1-5 (+0)").contains("a step of 0"));
        assert!(said("1-5 [0]").contains("a count of 1 to"));
        assert!(said("1-100000000").contains("more than 100000 values"));
        assert!(Values::split("0-1 (+nan)").unwrap().numbers().is_err());
    }

    #[test]
    fn lists_and_numbers_are_values_too() {
        #[derive(Deserialize)]
        struct Axis {
            values: Values,
        }
        let read = |text: &str| vodka_stage::parse_toml::<Axis>(text, std::path::Path::new("g.toml"));
        let texts = |text: &str| read(text).unwrap().values.texts().to_vec();
        assert_eq!(texts("values = 7"), ["7"]);
        assert_eq!(texts("values = [1, 2.5, \"a, b\"]"), ["1", "2.5", "a, b"]);
        assert_eq!(texts("values = \"a, b\""), ["a", "b"]);
        let error = read("\nvalues = '\"a'").err().unwrap().to_string();
        assert!(error.contains("line 2, column 10") && error.contains("not closed"), "{error}");
        assert!(read("values = [[1]]").is_err() && read("values = true").is_err());
    }
}
