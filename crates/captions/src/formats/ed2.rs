//! EveryDream2's YAML beside a picture: `main_prompt`, `tags`, and settings that are none of our business.

use std::{collections::BTreeSet, path::Path};

use serde_norway::{Mapping, Value};

use crate::{Error, Result};

/// Main prompts and tags, of which the first prompt and all tags make the caption.
#[derive(Debug, Default)]
struct Prompt {
    mains: Vec<String>,
    /// Each with its weight; where several are the same, the first counts.
    tags: Vec<(String, f64)>,
    /// The same, by the bits of the weight.
    known: BTreeSet<(String, u64)>,
}

impl Prompt {
    /// What EveryDream2 makes of it: the first main prompt, and the tags from the heaviest down.
    fn caption(mut self) -> Option<String> {
        self.tags.sort_by(|a, b| b.1.total_cmp(&a.1));
        let parts: Vec<_> =
            self.mains.into_iter().take(1).chain(self.tags.into_iter().map(|tag| tag.0)).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    fn add(&mut self, main: String, tags: impl IntoIterator<Item = (String, f64)>) {
        if !main.is_empty() && !self.mains.contains(&main) {
            self.mains.push(main);
        }
        for tag in tags {
            if self.known.insert((tag.0.clone(), tag.1.to_bits())) {
                self.tags.push(tag);
            }
        }
    }

    /// A caption that stands for both, as in a `.txt`: up to the first comma the main prompt, then tags.
    fn add_text(&mut self, text: &str) {
        let (main, tags) = split(text);
        self.add(main, tags.into_iter().map(|tag| (tag, 1.0)));
    }
}

fn split(text: &str) -> (String, Vec<String>) {
    let mut parts = text.split(',').map(|part| part.trim().to_owned());
    (parts.next().unwrap_or_default(), parts.collect())
}

/// The caption that EveryDream2 makes of a YAML file (`data/dataset.py`, `from_dict`); none where it holds only settings.
///
/// # Errors
/// What is not YAML, no mapping, or has another type than EveryDream2 reads: with the place.
pub(super) fn read(path: &Path, text: &str) -> Result<Option<String>> {
    let mut prompt = Prompt::default();
    collect(path, &parse(path, text)?, &mut prompt)?;
    Ok(prompt.caption())
}

fn parse(path: &Path, text: &str) -> Result<Mapping> {
    let value = serde_norway::from_str(text).map_err(|error: serde_norway::Error| {
        let line = error.location().map_or(1, |location| location.line());
        wrong(path, &format!("line {line}"), "YAML", &error.to_string())
    })?;
    match value {
        Value::Null => Ok(Mapping::new()),
        Value::Mapping(mapping) => Ok(mapping),
        other => Err(wrong(path, "line 1", "keys with values", &shown(&other))),
    }
}

fn collect(path: &Path, mapping: &Mapping, prompt: &mut Prompt) -> Result<()> {
    // What is nested goes before what is around it.
    match mapping.get("caption") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(Value::String(text)) => prompt.add_text(text),
        Some(Value::Mapping(nested)) => collect(path, nested, prompt)?,
        Some(other) => {
            return Err(wrong(path, "`caption`", "text, or `main_prompt` and `tags`", &shown(other)));
        }
    }
    let mains = match mapping.get("main_prompt") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Sequence(mains)) => mains.iter().filter(|main| !main.is_null()).collect(),
        Some(main) => vec![main],
    };
    for main in mains {
        let main = scalar(main).ok_or_else(|| wrong(path, "`main_prompt`", "text", &shown(main)))?;
        prompt.add(main, []);
    }
    let tags = match mapping.get("tags") {
        None | Some(Value::Null) => &Vec::new(),
        Some(Value::Sequence(tags)) => tags,
        Some(other) => return Err(wrong(path, "`tags`", "a list", &shown(other))),
    };
    for found in tags {
        let tag =
            tag(found).ok_or_else(|| wrong(path, "`tags`", "text, or `tag` and `weight`", &shown(found)))?;
        prompt.add(String::new(), [tag]);
    }
    Ok(())
}

/// A tag and its weight.
fn tag(value: &Value) -> Option<(String, f64)> {
    let Value::Mapping(mapping) = value else { return Some((scalar(value)?, 1.0)) };
    let weight = match mapping.get("weight") {
        None | Some(Value::Null) => 1.0,
        Some(weight) => weight.as_f64()?,
    };
    Some((scalar(mapping.get("tag")?)?, weight))
}

/// Text, and what YAML takes for a number or a truth value though text was meant.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// A YAML file that EveryDream2 makes this caption of. Settings of the file it replaces stay; comments do not.
///
/// Where tags were put before or behind what was there, the main prompt or the tags stay as they were; a new file says what
/// a `.txt` with the caption would mean: up to the first comma the main prompt, then tags. Where EveryDream2 would make
/// something else of that (it drops doubled tags), all of it is the main prompt.
pub(super) fn written(path: &Path, old: Option<&str>, caption: &str) -> Result<String> {
    let old = old.map_or_else(|| Ok(Mapping::new()), |text| parse(path, text))?;
    for candidate in [before(&old, caption), behind(&old, caption), Some(split(caption))] {
        let Some((main, tags)) = candidate else { continue };
        let text = emitted(&old, &main, &tags);
        if read(path, &text)?.as_deref() == Some(caption) {
            return Ok(text);
        }
    }
    Ok(emitted(&old, caption, &[]))
}

/// The old tags, and before them a main prompt that has all the rest.
fn before(old: &Mapping, caption: &str) -> Option<(String, Vec<String>)> {
    let tags = old_tags(old);
    let rest = caption.strip_suffix(&tags.join(", "))?.strip_suffix(", ")?;
    (!tags.is_empty()).then(|| (rest.to_owned(), tags))
}

/// The old main prompt, and behind it the rest as tags.
fn behind(old: &Mapping, caption: &str) -> Option<(String, Vec<String>)> {
    let main = scalar(old.get("main_prompt")?)?;
    let rest = caption.strip_prefix(&main)?.strip_prefix(", ")?;
    Some((main, rest.split(',').map(|tag| tag.trim().to_owned()).collect()))
}

fn old_tags(old: &Mapping) -> Vec<String> {
    let tags = old.get("tags").and_then(Value::as_sequence).map(Vec::as_slice).unwrap_or_default();
    tags.iter().filter_map(tag).map(|tag| tag.0).collect()
}

fn emitted(old: &Mapping, main: &str, tags: &[String]) -> String {
    let mut new = old.clone();
    // What is nested goes before what is around it, here as in what EveryDream2 makes of it.
    while let Some(Value::Mapping(nested)) = new.shift_remove("caption") {
        for (key, value) in nested.into_iter().filter(|(key, _)| key != "main_prompt" && key != "tags") {
            new.insert(key, value);
        }
    }
    new.insert("main_prompt".into(), main.into());
    // A tag that had a weight keeps it.
    let kept = old.get("tags").and_then(Value::as_sequence).map(Vec::as_slice).unwrap_or_default();
    let value = |name: &String| {
        let kept = kept.iter().find(|value| tag(value).is_some_and(|tag| tag.0 == *name));
        kept.cloned().unwrap_or_else(|| name.as_str().into())
    };
    match tags.is_empty() {
        true => drop(new.shift_remove("tags")),
        false => drop(new.insert("tags".into(), Value::Sequence(tags.iter().map(value).collect()))),
    }
    shown_safely(&new)
}

/// YAML that says the same to those that read version 1.1, as EveryDream2's PyYAML does: there `on` is a truth value, and
/// `3:00` a number. Texts that may be anything but text are quoted; they are put in after the rest has been written.
fn shown_safely(mapping: &Mapping) -> String {
    let all = serde_norway::to_string(mapping).expect("what was read, texts and lists are YAML");
    let mut mark = "vodka-text-".to_owned();
    while all.contains(&mark) {
        mark.push('-');
    }
    let mut texts = Vec::new();
    let masked = masked(&Value::Mapping(mapping.clone()), &mark, &mut texts);
    let written = serde_norway::to_string(&masked).expect("marks are YAML");
    let mut pieces = written.split(mark.as_str());
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.zip(&texts).fold(first, |done, (piece, text)| done + &quoted(text) + piece)
}

/// The value with a mark for each text.
fn masked(value: &Value, mark: &str, texts: &mut Vec<String>) -> Value {
    match value {
        Value::String(text) => {
            texts.push(text.clone());
            mark.into()
        }
        Value::Sequence(values) => values.iter().map(|value| masked(value, mark, texts)).collect(),
        Value::Mapping(mapping) => {
            let members = mapping.iter().map(|(key, value)| (key.clone(), masked(value, mark, texts)));
            Value::Mapping(members.collect())
        }
        other => other.clone(),
    }
}

/// A text as a YAML scalar: as it is where no reader can take it for something else.
fn quoted(text: &str) -> String {
    const WORDS: [&str; 10] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "none"];
    let harmless =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | ',' | '(' | ')' | '\'' | '.' | '-');
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !text.ends_with(' ')
        && text.chars().all(harmless)
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if plain {
        return text.to_owned();
    }
    let unprintable = |c: char| {
        c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    let escaped = text.chars().map(|c| match c {
        '"' | '\\' => format!("\\{c}"),
        c if unprintable(c) => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

fn shown(value: &Value) -> String {
    let text = serde_norway::to_string(value).unwrap_or_default();
    format!("`{}`", text.trim().chars().take(40).collect::<String>())
}

fn wrong(path: &Path, place: &str, expected: &'static str, found: &str) -> Error {
    Error::CaptionFile {
        path: path.to_path_buf(),
        place: place.to_owned(),
        expected,
        found: found.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caption(text: &str) -> Option<String> {
        read(Path::new("a.yaml"), text).unwrap()
    }

    fn said(text: &str) -> String {
        read(Path::new("a.yaml"), text).unwrap_err().to_string()
    }

    #[test]
    fn settings_in_a_nested_caption_stay() {
        let old = "caption:\n  main_prompt: a cat\n  tags: [big]\n  multiply: 2\n  rating: 0.5\nmultiply: 3\nflip_p: 0.1\n";
        let new = written(Path::new("a.yaml"), Some(old), "blurry, a cat, big").unwrap();
        assert_eq!(read(Path::new("a.yaml"), &new).unwrap().as_deref(), Some("blurry, a cat, big"));
        let new: Mapping = serde_norway::from_str(&new).unwrap();
        let number = |name: &str| new.get(name).and_then(Value::as_f64);
        assert_eq!(["multiply", "rating", "flip_p"].map(number), [Some(2.0), Some(0.5), Some(0.1)]);
        assert_eq!(new.get("caption"), None);
    }

    #[test]
    fn captions_are_those_that_everydream2_makes() {
        assert_eq!(
            caption("main_prompt: a cat, in red\ntags: [dog, 1girl, dog, {tag: big, weight: 2}]\n").unwrap(),
            "a cat, in red, big, dog, 1girl"
        );
        assert_eq!(caption("main_prompt: out\ntags: [a]\ncaption: 'in, b, a'\n").unwrap(), "in, b, a");
        assert_eq!(caption("caption: {main_prompt: in, tags: [x]}\ntags: [y]\n").unwrap(), "in, x, y");
        assert_eq!(caption("main_prompt: [first, second]\n").unwrap(), "first");
        assert_eq!(caption("tags: [a, b]").unwrap(), "a, b");
        for settings in ["", "rating: 3\nmultiply: 2\n", "main_prompt: ''\ntags: []\n", "# nothing\n"] {
            assert_eq!(caption(settings), None);
        }
    }

    #[test]
    fn what_everydream2_cannot_read_is_an_error() {
        assert_eq!(said("tags: a, b"), "`a.yaml` `tags`: expected a list, found `a, b`");
        assert_eq!(said("- a\n- b"), "`a.yaml` line 1: expected keys with values, found `- a\n- b`");
        assert_eq!(said("main_prompt: {a: b}"), "`a.yaml` `main_prompt`: expected text, found `a: b`");
        assert!(said("a: b\nc: [").starts_with("`a.yaml` line "), "{}", said("a: b\nc: ["));
    }

    #[test]
    fn texts_stay_texts_for_readers_of_older_yaml() {
        let write = |caption: &str| written(Path::new("a.yaml"), Some("batch_id: 'no'\n"), caption).unwrap();
        assert_eq!(
            write("on, 3:00, =, 2001-01-01, a cat (big)"),
            "batch_id: \"no\"\nmain_prompt: \"on\"\ntags:\n- \"3:00\"\n- \"=\"\n- \"2001-01-01\"\n- a cat (big)\n"
        );
        assert_eq!(
            write("a\u{85}b\u{2028}\"\\\u{7f}é"),
            "batch_id: \"no\"\nmain_prompt: \"a\\u0085b\\u2028\\\"\\\\\\u007fé\"\n"
        );
    }

    #[test]
    fn settings_weights_and_what_was_there_stay() {
        let old = "rating: 3\nmain_prompt: a cat\ntags:\n- tag: big\n  weight: 2\n- dog\nflip_p: 0.5\n";
        let write = |caption: &str| {
            let text = written(Path::new("a.yaml"), Some(old), caption).unwrap();
            assert_eq!(read(Path::new("a.yaml"), &text).unwrap().as_deref(), Some(caption), "{text}");
            text
        };
        let before = write("blurry, a cat, big, dog");
        assert_eq!(before, old.replace("a cat", "blurry, a cat"));
        assert_eq!(write("a cat, big, dog, blurry"), old.replace("- dog\n", "- dog\n- blurry\n"));
        assert!(write("blurry, solo").contains("main_prompt: blurry\ntags:\n- solo\nflip_p"));
        assert!(
            write("x, dog, big").contains("main_prompt: x, dog, big\nflip_p"),
            "weights would change the order"
        );
        assert!(write("a, b, b").contains("main_prompt: a, b, b\n"), "EveryDream2 drops doubled tags");
        let new = written(Path::new("a.yaml"), None, "blurry, a cat").unwrap();
        assert_eq!(new, "main_prompt: blurry\ntags:\n- a cat\n");
    }
}
