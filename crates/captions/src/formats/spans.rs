//! Where things are in JSON text, so that one value can be changed and every other byte stay.

use std::ops::Range;

use serde::de::IgnoredAny;

/// A member of an object: its key, and where its value is in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub key: String,
    pub value: Range<usize>,
}

/// The members of the object that is the whole of the text.
///
/// # Errors
/// What is not JSON, with the line and what the parser says; or another value than an object.
pub(super) fn members(text: &str) -> Result<Vec<Member>, (usize, String)> {
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| (error.line(), error.to_string()))?;
    let start = skip_space(text.as_bytes(), 0);
    match text.as_bytes().get(start) {
        Some(b'{') => Ok(members_at(text, start)),
        _ => Err((1, "another value".to_owned())),
    }
}

/// The members of the object that begins at `start`, of text that is JSON.
pub(super) fn members_at(text: &str, start: usize) -> Vec<Member> {
    let bytes = text.as_bytes();
    let mut members = Vec::new();
    let mut at = skip_space(bytes, start + 1);
    while bytes.get(at) == Some(&b'"') {
        let end = end_of_string(bytes, at);
        let key = serde_json::from_str(&text[at..end]).unwrap_or_default();
        let from = skip_space(bytes, skip_space(bytes, end) + 1);
        let to = end_of_value(bytes, from);
        members.push(Member { key, value: from..to });
        at = skip_space(bytes, to);
        if bytes.get(at) == Some(&b',') {
            at = skip_space(bytes, at + 1);
        }
    }
    members
}

/// The text with some ranges replaced; they do not overlap.
pub(super) fn spliced(text: &str, mut edits: Vec<(Range<usize>, String)>) -> String {
    edits.sort_by_key(|(range, _)| range.start);
    let mut result =
        String::with_capacity(text.len() + edits.iter().map(|(_, new)| new.len()).sum::<usize>());
    let mut done = 0;
    for (range, new) in edits {
        result += &text[done..range.start];
        result += &new;
        done = range.end;
    }
    result + &text[done..]
}

/// Text as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn skip_space(bytes: &[u8], from: usize) -> usize {
    let space = bytes[from.min(bytes.len())..].iter().take_while(|byte| byte.is_ascii_whitespace());
    from + space.count()
}

fn end_of_value(bytes: &[u8], from: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at = end_of_string(bytes, at);
                if depth == 0 {
                    return at;
                }
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return at,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            byte if depth == 0 && (byte == b',' || byte.is_ascii_whitespace()) => return at,
            _ => {}
        }
        at += 1;
    }
    at
}

fn end_of_string(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_whatever_is_in_them() {
        let text = "\n{ \"a\\\"\" : {\"x\": [1, \"}\"]} ,\"b\":12.50,\n\"c\": \"\\\\\", \"d\" : null}\n";
        let found = members(text).unwrap();
        let found: Vec<_> =
            found.iter().map(|member| (member.key.as_str(), &text[member.value.clone()])).collect();
        assert_eq!(found, [("a\"", "{\"x\": [1, \"}\"]}"), ("b", "12.50"), ("c", "\"\\\\\""), ("d", "null")]);
        assert_eq!(members(" {} ").unwrap(), []);
        assert_eq!(members("[]").unwrap_err().0, 1);
        assert_eq!(members("{\n\"a\": }").unwrap_err().0, 2);
        assert_eq!(spliced("abcdef", vec![(4..5, "-".to_owned()), (1..1, "+".to_owned())]), "a+bcd-f");
    }
}
