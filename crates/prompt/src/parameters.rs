//! The text that A1111 and its followers keep in a picture's `parameters`, "infotext".

use std::{convert::Infallible, fmt, str::FromStr};

const NEGATIVE: &str = "Negative prompt:";
/// A last line with fewer pairs than this is part of the prompt.
const MIN_FIELDS: usize = 3;

/// A picture's prompt, negative prompt and settings.
///
/// ```
/// # use vodka_prompt::Parameters;
/// let text = "a cat\nNegative prompt: blurry\nSteps: 20, Sampler: Euler, Size: 512x512, Note: \"a, b\"";
/// let parameters: Parameters = text.parse().unwrap();
/// assert_eq!(parameters.negative_prompt, "blurry");
/// assert_eq!(parameters.get("Note"), Some("a, b"));
/// assert_eq!(parameters.to_string(), text);
/// ```
///
/// Reading back what was written gives the same, provided that the lines of the prompts have no spaces around them,
/// none of them starts with `Negative prompt:`, the first is not empty, and there are at least three fields (A1111's
/// form has no escape for prompts). Field names are two or more letters, digits, `_`, ` `, `-` or `/`, the first of
/// them no space or sign; values are free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// The prompt.
    pub prompt: String,
    /// The negative prompt; empty for none.
    pub negative_prompt: String,
    /// The settings, `Steps` and so on, in order.
    pub fields: Vec<(String, String)>,
}

impl Parameters {
    /// Parameters without fields.
    pub fn new(prompt: impl Into<String>, negative_prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), negative_prompt: negative_prompt.into(), fields: Vec::new() }
    }

    /// Adds a field at the end.
    pub fn with(mut self, name: impl Into<String>, value: impl fmt::Display) -> Self {
        self.fields.push((name.into(), value.to_string()));
        self
    }

    /// The value of a field; of the last where there are several, as in A1111.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().rev().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prompt)?;
        // Nothing comes before the first line, as in A1111.
        let mut line = if self.prompt.is_empty() { "" } else { "\n" };
        if !self.negative_prompt.is_empty() {
            write!(f, "{line}{NEGATIVE} {}", self.negative_prompt)?;
            line = "\n";
        }
        for (i, (name, value)) in self.fields.iter().enumerate() {
            let before = if i == 0 { line } else { ", " };
            write!(f, "{before}{name}: {}", quote(value))?;
        }
        Ok(())
    }
}

impl FromStr for Parameters {
    type Err = Infallible;

    /// Reads any text: what is not settings is the prompt (stable-diffusion-webui 1.10.1, `modules/infotext_utils.py`,
    /// `parse_generation_parameters`).
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let text = text.trim();
        let (body, last) = text.rsplit_once('\n').unwrap_or(("", text));
        let fields = read_fields(last);
        let (body, fields) = if fields.len() < MIN_FIELDS { (text, Vec::new()) } else { (body, fields) };
        let mut parameters = Self { fields, ..Self::default() };
        let mut negative = false;
        for line in body.split('\n') {
            let mut line = line.trim();
            if let Some(rest) = line.strip_prefix(NEGATIVE) {
                negative = true;
                line = rest.trim();
            }
            let target = if negative { &mut parameters.negative_prompt } else { &mut parameters.prompt };
            if !target.is_empty() {
                target.push('\n');
            }
            target.push_str(line);
        }
        Ok(parameters)
    }
}

/// All `name: value` pairs of a line, as A1111's `\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)` finds them.
fn read_fields(line: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    let mut rest = line;
    while let Some(start) = rest.find(is_word) {
        rest = &rest[start..];
        let (name, after) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
        let is_pair = after.starts_with(':') && name.chars().nth(1).is_some();
        if !is_pair {
            rest = after;
            continue;
        }
        let after = after[1..].trim_start();
        let length = quoted_length(after).unwrap_or_else(|| after.find(',').unwrap_or(after.len()));
        fields.push((name.to_owned(), unquote(&after[..length])));
        rest = after[length..].strip_prefix(',').unwrap_or_default();
    }
    fields
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_name(c: char) -> bool {
    is_word(c) || matches!(c, ' ' | '-' | '/')
}

/// The length of the quoted value that the text starts with, if it does and a comma or the end follows it.
fn quoted_length(text: &str) -> Option<usize> {
    let inside = text.strip_prefix('"')?;
    let mut escaped = false;
    for (i, c) in inside.char_indices() {
        if c == '"' && !escaped {
            let after = &inside[i + 1..];
            let whole = i > 0 && (after.is_empty() || after.starts_with(','));
            return whole.then_some(i + 2);
        }
        escaped = c == '\\' && !escaped;
    }
    None
}

/// The value as a JSON string where it would not be read back otherwise.
fn quote(value: &str) -> String {
    let plain = !value.is_empty()
        && value.trim() == value
        && !value.starts_with('"')
        && !value.contains([',', ':', '\n']);
    if plain { value.to_owned() } else { serde_json::Value::from(value).to_string() }
}

/// The content of a JSON string; anything else as it is.
fn unquote(text: &str) -> String {
    let quoted = text.len() >= 2 && text.starts_with('"') && text.ends_with('"');
    let content = if quoted { serde_json::from_str(text).ok() } else { None };
    content.unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Parameters {
        let Ok(parameters) = text.parse();
        parameters
    }

    #[test]
    fn a_picture_of_a1111_is_read() {
        let text = "a (cat:1.2),\nstudio light\nNegative prompt: blurry,\nugly\n\
                    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x768, \
                    Model hash: 6ce0161689, Model: v1-5-pruned, Lora hashes: \"a: 1, b: 2\", Version: v1.10.1";
        let found = parse(text);
        assert_eq!(found.prompt, "a (cat:1.2),\nstudio light");
        assert_eq!(found.negative_prompt, "blurry,\nugly");
        assert_eq!(found.get("Schedule type"), Some("Karras"));
        assert_eq!(found.get("Lora hashes"), Some("a: 1, b: 2"));
        assert_eq!(found.fields.len(), 10);
        assert_eq!(found.to_string(), text);
    }

    #[test]
    fn a_last_line_with_few_pairs_is_prompt() {
        let found = parse("a clock\nShows: ten, Hands: two");
        assert_eq!(found.prompt, "a clock\nShows: ten, Hands: two");
        assert!(found.fields.is_empty());
        assert_eq!(parse(""), Parameters::default());
    }

    #[test]
    fn odd_lines_are_read_as_the_regular_expression_reads_them() {
        let pairs = |line: &str| -> Vec<String> {
            read_fields(line).into_iter().map(|(k, v)| format!("{k}={v}")).collect()
        };
        assert_eq!(pairs("a:bc: 1,, -de: 2"), ["bc=1", "de=2"]);
        assert_eq!(
            pairs(r#"Ab: "x" y, Cd: "u\"v", Ef: "", Gh:"#),
            [r#"Ab="x" y"#, r#"Cd=u"v"#, "Ef=", "Gh="]
        );
        assert_eq!(pairs(r#"Ab: "open, Cd: 1"#), [r#"Ab="open"#, "Cd=1"]);
        assert_eq!(pairs("Größe/x-y 1: 5 "), ["Größe/x-y 1=5 "]);
        assert!(pairs(&"x ".repeat(50_000)).is_empty());
    }

    fn prompt() -> impl Strategy<Value = String> {
        let line = r#"[a-z(][ -~äß’猫]{0,20}[a-z).:"]"#;
        proptest::collection::vec(line, 0..4).prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            prompt in prompt(),
            negative_prompt in prompt(),
            fields in proptest::collection::vec(("[A-Z][a-z0-9 /_-]{1,10}", any::<String>()), 3..8),
        ) {
            let written = Parameters { prompt, negative_prompt, fields };
            prop_assert_eq!(parse(&written.to_string()), written);
        }

        #[test]
        fn any_text_is_read(text in any::<String>()) {
            parse(&text);
        }
    }
}
