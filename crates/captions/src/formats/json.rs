//! Captions in kohya's metadata JSON and in JSON lines; what is not a caption stays as it is to the byte.

use std::{ops::Range, path::Path};

use super::{
    Columns, Edits, Row, column,
    spans::{Member, members, members_at, quoted, spliced},
};
use crate::{Error, Result};

/// The rows of kohya's metadata: `{"key": {"caption": "...", "tags": "..."}}`, of which the trainer makes
/// `caption, tags`.
pub(super) fn kohya_rows(path: &Path, text: &str) -> Result<Vec<Row>> {
    let row = |member: Member| {
        let place = format!("key `{}`", member.key);
        let (caption, tags) = kohya_parts(path, text, &member)?;
        let caption = match (caption, tags.filter(|tags| !tags.is_empty())) {
            (Some(caption), Some(tags)) => Some(format!("{caption}, {tags}")),
            (caption, tags) => caption.or(tags),
        };
        Ok(Row { key: member.key, caption, place })
    };
    kohya_members(path, text)?.into_iter().map(row).collect()
}

fn kohya_members(path: &Path, text: &str) -> Result<Vec<Member>> {
    members(text).map_err(|(line, found)| Error::CaptionFile {
        path: path.to_path_buf(),
        place: format!("line {line}"),
        expected: "an object with a member for each picture",
        found,
    })
}

/// The caption and the tags of a picture.
fn kohya_parts(path: &Path, text: &str, member: &Member) -> Result<(Option<String>, Option<String>)> {
    let place = || format!("key `{}`", member.key);
    if !text[member.value.clone()].starts_with('{') {
        return Err(Error::CaptionFile {
            path: path.to_path_buf(),
            place: place(),
            expected: "an object with `caption` or `tags`",
            found: text[member.value.clone()].chars().take(40).collect(),
        });
    }
    let fields = members_at(text, member.value.start);
    let read = |name: &str| string(path, text, &fields, name, &place);
    Ok((read("caption")?, read("tags")?))
}

/// A text among the fields; `null` is none.
fn string(
    path: &Path,
    text: &str,
    fields: &[Member],
    name: &str,
    place: &dyn Fn() -> String,
) -> Result<Option<String>> {
    let mut there = fields.iter().filter(|field| field.key == name);
    let (Some(field), None) = (there.next(), there.next()) else {
        let twice = fields.iter().any(|field| field.key == name);
        let found = || format!("`{name}` twice");
        return match twice {
            true => Err(Error::CaptionFile {
                path: path.to_path_buf(),
                place: place(),
                expected: "each field once",
                found: found(),
            }),
            false => Ok(None),
        };
    };
    let value = &text[field.value.clone()];
    serde_json::from_str(value).map_err(|_| Error::CaptionFile {
        path: path.to_path_buf(),
        place: place(),
        expected: "text",
        found: format!("`{name}`: {}", value.chars().take(40).collect::<String>()),
    })
}

/// kohya's metadata with some captions changed and some added.
pub(super) fn kohya_written(path: &Path, text: &str, edits: &Edits) -> Result<String> {
    let text = if text.trim().is_empty() { "{}" } else { text };
    let members = kohya_members(path, text)?;
    let mut changes = Vec::new();
    for (row, caption) in &edits.set {
        let member = &members[*row];
        let old = kohya_parts(path, text, member)?;
        for (name, new) in kohya_split(caption, &old) {
            changes.push(set(text, member.value.start, name, &new));
        }
    }
    let added = edits
        .add
        .iter()
        .map(|(key, caption)| format!("{}: {{\n    \"caption\": {}\n  }}", quoted(key), quoted(caption)));
    let added: Vec<_> = added.collect();
    if !added.is_empty() {
        let (at, before, after) = match members.last() {
            Some(last) => (last.value.end, ",\n  ", ""),
            None => (text.find('{').unwrap_or_default() + 1, "\n  ", "\n"),
        };
        changes.push((at..at, format!("{before}{}{after}", added.join(",\n  "))));
    }
    Ok(end_line(spliced(text, changes)))
}

/// Which fields to set so that `caption, tags` is the text, and as little as can be is changed.
fn kohya_split(text: &str, old: &(Option<String>, Option<String>)) -> Vec<(&'static str, String)> {
    let some = |old: &Option<String>| old.clone().filter(|old| !old.is_empty());
    match (some(&old.0), some(&old.1)) {
        (None, Some(_)) if old.0.is_none() => vec![("tags", text.to_owned())],
        (_, None) => vec![("caption", text.to_owned())],
        (caption, Some(tags)) => {
            let caption = caption.unwrap_or_default();
            if let Some(rest) = text.strip_suffix(&format!(", {tags}")) {
                vec![("caption", rest.to_owned())]
            } else if let Some(rest) =
                text.strip_prefix(&format!("{caption}, ")).filter(|rest| !rest.is_empty())
            {
                vec![("tags", rest.to_owned())]
            } else {
                vec![("caption", text.to_owned()), ("tags", String::new())]
            }
        }
    }
}

/// The change that sets a text in the object that begins at `start`.
fn set(text: &str, start: usize, name: &str, new: &str) -> (Range<usize>, String) {
    let fields = members_at(text, start);
    match fields.iter().find(|field| field.key == name) {
        Some(field) => (field.value.clone(), quoted(new)),
        None => {
            let comma = if fields.is_empty() { "" } else { ", " };
            (start + 1..start + 1, format!("{}: {}{comma}", quoted(name), quoted(new)))
        }
    }
}

/// A line of JSON lines that is not blank.
struct Line<'a> {
    /// Where it starts in the text, in bytes.
    start: usize,
    text: &'a str,
    fields: Vec<Member>,
    place: String,
}

fn lines<'a>(path: &Path, text: &'a str) -> Result<Vec<Line<'a>>> {
    let mut start = 0;
    let mut lines = Vec::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if !line.trim().is_empty() {
            let place = format!("line {}", number + 1);
            let fields = members(line).map_err(|(_, found)| Error::CaptionFile {
                path: path.to_path_buf(),
                place: place.clone(),
                expected: "an object",
                found,
            })?;
            lines.push(Line { start, text: line, fields, place });
        }
        start += line.len();
    }
    Ok(lines)
}

fn names(lines: &[Line]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for field in lines.iter().flat_map(|line| &line.fields) {
        if !names.contains(&field.key) {
            names.push(field.key.clone());
        }
    }
    names
}

/// The rows of JSON lines, such as the `metadata.jsonl` of Hugging Face's image folders.
pub(super) fn jsonl_rows(path: &Path, text: &str, columns: &Columns) -> Result<Vec<Row>> {
    let lines = lines(path, text)?;
    if lines.is_empty() {
        return Ok(Vec::new());
    }
    let names = names(&lines);
    let [image, caption] = [columns.image(path, &names)?, columns.caption(path, &names)?];
    let row = |line: &Line| {
        let place = || line.place.clone();
        let key = string(path, line.text, &line.fields, &names[image], &place)?;
        let key = key.ok_or_else(|| Error::CaptionFile {
            path: path.to_path_buf(),
            place: place(),
            expected: "the name of a picture",
            found: format!("no `{}`", names[image]),
        })?;
        let caption = string(path, line.text, &line.fields, &names[caption], &place)?;
        Ok(Row { key, caption, place: place() })
    };
    lines.iter().map(row).collect()
}

/// JSON lines with some captions changed and some added.
pub(super) fn jsonl_written(path: &Path, text: &str, columns: &Columns, edits: &Edits) -> Result<String> {
    let lines = lines(path, text)?;
    let names = names(&lines);
    let (image, caption) = match lines.is_empty() {
        true => (column(columns.image, "file_name"), column(columns.caption, "text")),
        false => (names[columns.image(path, &names)?].clone(), names[columns.caption(path, &names)?].clone()),
    };
    let mut changes: Vec<_> = edits
        .set
        .iter()
        .map(|(row, new)| {
            let line = &lines[*row];
            let start = line.text.find('{').unwrap_or_default();
            let (range, new) = set(line.text, start, &caption, new);
            (line.start + range.start..line.start + range.end, new)
        })
        .collect();
    let added = edits.add.iter().map(|(key, new)| {
        format!("{{{}: {}, {}: {}}}\n", quoted(&image), quoted(key), quoted(&caption), quoted(new))
    });
    let added: String = added.collect();
    if !added.is_empty() {
        let before = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        changes.push((text.len()..text.len(), format!("{before}{added}")));
    }
    Ok(spliced(text, changes))
}

fn end_line(text: String) -> String {
    if text.ends_with('\n') { text } else { text + "\n" }
}
