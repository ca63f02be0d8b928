//! The comma-separated items of a prompt, as judges of pictures look at them.

use std::fmt;

use crate::{Piece, Result, parse_attention};

/// What stands between two items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Separator {
    /// A comma, or nothing before the first item.
    Comma,
    /// The end of a line.
    Line,
    /// The word `BREAK`.
    Break,
}

/// An item of a prompt: what stands between two commas, ends of lines or breaks.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptItem {
    /// What stands before it.
    pub after: Separator,
    /// Texts with their weights, without the syntax that gave them, and without spaces around the item; none where nothing
    /// stands between two separators.
    pub parts: Vec<(String, f64)>,
}

impl PromptItem {
    /// The texts without their weights.
    pub fn text(&self) -> String {
        self.parts.iter().map(|(text, _)| text.as_str()).collect()
    }

    fn new(after: Separator) -> Self {
        Self { after, parts: Vec::new() }
    }

    fn trim(&mut self) {
        let blank = |part: Option<&(String, f64)>| part.is_some_and(|(text, _)| text.trim().is_empty());
        while blank(self.parts.first()) {
            self.parts.remove(0);
        }
        while blank(self.parts.last()) {
            self.parts.pop();
        }
        if let Some((text, _)) = self.parts.first_mut() {
            *text = text.trim_start().to_owned();
        }
        if let Some((text, _)) = self.parts.last_mut() {
            *text = text.trim_end().to_owned();
        }
    }
}

/// Tells it from every other item.
impl fmt::Display for PromptItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.after)?;
        self.parts.iter().try_for_each(|(text, weight)| write!(f, " {text:?}:{weight}"))
    }
}

/// Splits a prompt, of which comments, networks and schedules have been taken, into its items; none for an empty one.
///
/// # Errors
/// Those of [`parse_attention`].
pub fn prompt_items(prompt: &str) -> Result<Vec<PromptItem>> {
    let mut items = vec![PromptItem::new(Separator::Comma)];
    for piece in parse_attention(prompt)? {
        let Piece::Text { text, weight } = piece else {
            items.push(PromptItem::new(Separator::Break));
            continue;
        };
        for part in text.split_inclusive([',', '\n']) {
            let (part, next) = match part.chars().next_back() {
                Some(',') => (&part[..part.len() - 1], Some(Separator::Comma)),
                Some('\n') => (&part[..part.len() - 1], Some(Separator::Line)),
                _ => (part, None),
            };
            if let Some(item) = items.last_mut().filter(|_| !part.is_empty()) {
                item.parts.push((part.to_owned(), weight));
            }
            items.extend(next.map(PromptItem::new));
        }
    }
    items.iter_mut().for_each(PromptItem::trim);
    if items.len() == 1 && items[0].parts.is_empty() {
        items.clear();
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(prompt: &str) -> Vec<String> {
        prompt_items(prompt).unwrap().iter().map(PromptItem::text).collect()
    }

    #[test]
    fn items_are_what_stands_between_commas() {
        assert_eq!(
            texts("A Red Circle, (upper body:1.2), [blurry], ((solo)), saber \\(fate\\)\nlooking at viewer,"),
            ["A Red Circle", "upper body", "blurry", "solo", "saber (fate)", "looking at viewer", ""]
        );
        assert_eq!(texts("smile, >_<, :3, a (red:1.2) circle"), ["smile", ">_<", ":3", "a red circle"]);
        assert_eq!(texts("BREAKFAST, a BREAK b"), ["BREAKFAST", "a", "b"]);
        assert_eq!(texts(""), [""; 0]);
        assert_eq!(texts(" ( ) "), [""; 0]);
        assert!(prompt_items("(x:1.2.3)").is_err());
    }

    #[test]
    fn items_of_other_weight_or_place_are_other_items() {
        let shown = |prompt: &str| prompt_items(prompt).unwrap().last().unwrap().to_string();
        let all =
            ["a, blurry", "a, (blurry:1.4)", "a\nblurry", "a BREAK blurry", "a, (blur:1.4)ry"].map(shown);
        for (i, item) in all.iter().enumerate() {
            assert!(!all[..i].contains(item), "{item}");
        }
        // However it is written.
        assert_eq!(shown("a, (b)"), shown("(a,  b )"));
    }
}
