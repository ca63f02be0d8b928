//! The scheduling part of A1111's prompt language: `[from:to:when]` and `[a|b]`.
//!
//! A1111 reads it with a grammar for brackets that nest. Here one pass pairs the brackets, and a second decides for each
//! pair, the inner before the outer, whether it has a form of the grammar; those that have none are text. Nothing
//! recurses, so that brackets may nest as deep as a prompt is long.

use std::sync::LazyLock;

use regex::Regex;

/// How a prompt's `when` becomes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The model calls of the first pass: its steps, twice that for samplers of second order.
    pub steps: u32,
    /// The model calls of the hires pass, where the prompt is for that.
    pub hires_steps: Option<u32>,
    /// The rule before version 1.6.0: below 1 a share of the steps, else a step, whatever the pass.
    pub old_rule: bool,
}

/// A text, and the last step at which it is the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduled {
    /// The step, from 1.
    pub end_at_step: u32,
    /// The prompt.
    pub text: String,
}

impl Timing {
    /// The rule of today for a first pass of this many model calls.
    pub fn first_pass(steps: u32) -> Self {
        Self { steps, hires_steps: None, old_rule: false }
    }

    fn pass_steps(self) -> u32 {
        if self.old_rule { self.steps } else { self.hires_steps.unwrap_or(self.steps) }
    }

    /// A number with a point is a share, from 0 to 1 of the first pass and from 1 to 2 of the hires pass; one without is
    /// a step, counted on through both.
    fn step(self, when: &str) -> i64 {
        let value: f64 = when.parse().unwrap_or(f64::INFINITY);
        let steps = f64::from(self.pass_steps());
        let is_hires = self.hires_steps.is_some();
        let at = match (self.old_rule, when.contains('.')) {
            (true, _) if value < 1.0 => value * steps,
            (true, _) => value,
            (false, true) => (value - f64::from(u8::from(is_hires))) * steps,
            (false, false) if is_hires => value - f64::from(self.steps),
            (false, false) => value,
        };
        (at as i64).min(i64::from(self.pass_steps()))
    }
}

/// The texts that a prompt is, one after the other; the last to the last step (stable-diffusion-webui 1.10.1,
/// `modules/prompt_parser.py`, `get_learned_conditioning_prompt_schedules`).
///
/// Where a stray bracket or colon follows a pair directly (`x[a:3]]`), A1111's parser takes the pair as text in some
/// surroundings and not in others; here it keeps its meaning.
///
/// A prompt with a `|` outside of `[a|b]`, or a `\` before a line's end or the prompt's, is text as a whole.
pub fn parse_schedule(prompt: &str, timing: Timing) -> Vec<Scheduled> {
    let steps = timing.pass_steps();
    let Some(tree) = Tree::parse(prompt, timing) else {
        return vec![Scheduled { end_at_step: steps, text: prompt.to_owned() }];
    };
    let scheduled = |end_at_step| Scheduled { end_at_step, text: tree.text_at(end_at_step) };
    tree.boundaries(steps).into_iter().map(scheduled).collect()
}

/// The text at a step, counted from 0 as samplers do: that of the first entry that ends there or later, else the first.
pub fn scheduled_at(schedule: &[Scheduled], step: u32) -> usize {
    schedule.iter().position(|entry| step <= entry.end_at_step).unwrap_or(0)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Open,
    Close,
    Colon,
    Pipe,
}

/// A stretch of the prompt.
#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    kind: Kind,
    text: &'a str,
}

/// What a pair of brackets means.
#[derive(Debug, Clone)]
enum Form {
    /// Brackets for the attention parser; not to be touched.
    Emphasis,
    /// `[before:after:when]`, by the places of the tokens where the parts begin and end.
    Scheduled { before: (usize, usize), after: (usize, usize), when: i64 },
    /// `[a|b|c]`, likewise.
    Alternate(Vec<(usize, usize)>),
}

struct Tree<'a> {
    tokens: Vec<Token<'a>>,
    /// For each opening bracket of a pair with a form: that, and the place of the closing one.
    pairs: Vec<Option<(Form, usize)>>,
}

static TOKEN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|]").expect("a constant"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*$").expect("a constant")
});

/// A pair that is still open: its bracket, and the colons and pipes right in it.
struct Open {
    at: usize,
    colons: Vec<usize>,
    pipes: Vec<usize>,
    /// Whether all pairs in it have a form, which it needs to have one.
    is_sound: bool,
}

impl<'a> Tree<'a> {
    /// `None` for what A1111's grammar does not take.
    fn parse(prompt: &'a str, timing: Timing) -> Option<Self> {
        let tokens = tokens(prompt)?;
        let mut pairs = vec![None; tokens.len()];
        let mut open: Vec<Open> = Vec::new();
        let mut used_pipes = 0;
        for (at, token) in tokens.iter().enumerate() {
            match token.kind {
                Kind::Plain => {}
                Kind::Open => open.push(Open { at, colons: Vec::new(), pipes: Vec::new(), is_sound: true }),
                Kind::Colon => {
                    if let Some(inner) = open.last_mut() {
                        inner.colons.push(at);
                    }
                }
                Kind::Pipe => {
                    if let Some(inner) = open.last_mut() {
                        inner.pipes.push(at);
                    }
                }
                Kind::Close => {
                    let is_pair = open.last().is_some_and(|inner| {
                        (tokens[inner.at].text, token.text) == ("(", ")")
                            || (tokens[inner.at].text, token.text) == ("[", "]")
                    });
                    if !is_pair {
                        // A stray bracket: no pair around it has a form.
                        open.clear();
                        continue;
                    }
                    let Some(inner) = open.pop() else { continue };
                    let form = inner.is_sound.then(|| form(&tokens, &inner, at, timing)).flatten();
                    match form {
                        Some(form) => {
                            used_pipes += inner.pipes.len();
                            pairs[inner.at] = Some((form, at));
                        }
                        None => {
                            if let Some(outer) = open.last_mut() {
                                outer.is_sound = false;
                            }
                        }
                    }
                }
            }
        }
        let pipes = tokens.iter().filter(|token| token.kind == Kind::Pipe).count();
        (pipes == used_pipes).then_some(Self { tokens, pairs })
    }

    /// The steps at which the text changes, ascending, and the last.
    fn boundaries(&self, steps: u32) -> Vec<u32> {
        let mut found = vec![steps];
        for (form, _) in self.pairs.iter().flatten() {
            match form {
                Form::Emphasis => {}
                Form::Scheduled { when, .. } => {
                    found.extend(u32::try_from(*when).ok().filter(|step| *step >= 1));
                }
                Form::Alternate(_) => found.extend(1..=steps),
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn text_at(&self, step: u32) -> String {
        let mut text = String::new();
        // What is still to be written, the last first.
        let mut rest = vec![(0, self.tokens.len())];
        while let Some((at, end)) = rest.pop() {
            if at == end {
                continue;
            }
            let part = match &self.pairs[at] {
                None | Some((Form::Emphasis, _)) => {
                    text.push_str(self.tokens[at].text);
                    rest.push((at + 1, end));
                    continue;
                }
                Some((Form::Scheduled { before, after, when }, close)) => {
                    rest.push((close + 1, end));
                    if i64::from(step) <= *when { *before } else { *after }
                }
                Some((Form::Alternate(parts), close)) => {
                    rest.push((close + 1, end));
                    parts[(step as usize).saturating_sub(1) % parts.len()]
                }
            };
            rest.push(part);
        }
        text
    }
}

fn tokens(prompt: &str) -> Option<Vec<Token<'_>>> {
    let mut tokens = Vec::new();
    let mut end = 0;
    for found in TOKEN.find_iter(prompt) {
        if found.start() != end {
            return None;
        }
        end = found.end();
        let kind = match found.as_str() {
            "(" | "[" => Kind::Open,
            ")" | "]" => Kind::Close,
            ":" => Kind::Colon,
            "|" => Kind::Pipe,
            _ => Kind::Plain,
        };
        tokens.push(Token { kind, text: found.as_str() });
    }
    (end == prompt.len()).then_some(tokens)
}

fn form(tokens: &[Token<'_>], inner: &Open, close: usize, timing: Timing) -> Option<Form> {
    let is_square = tokens[inner.at].text == "[";
    let first = inner.at + 1;
    match (inner.colons.as_slice(), inner.pipes.as_slice()) {
        ([], []) => Some(Form::Emphasis),
        ([_], []) if !is_square => Some(Form::Emphasis),
        ([], pipes) if is_square => {
            let starts = [first].into_iter().chain(pipes.iter().map(|pipe| pipe + 1));
            let ends = pipes.iter().copied().chain([close]);
            Some(Form::Alternate(starts.zip(ends).collect()))
        }
        ([.., last], []) if is_square && inner.colons.len() <= 2 => {
            let (before, after) = match inner.colons[..] {
                [middle, _] => ((first, middle), (middle + 1, *last)),
                _ => ((first, first), (first, *last)),
            };
            let number = tokens[last + 1..close].first().filter(|_| close == last + 2)?;
            let when = NUMBER.captures(number.text)?;
            Some(Form::Scheduled { before, after, when: timing.step(&when[1]) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prompt: &str, timing: Timing, expected: &[(u32, &str)]) {
        let found = parse_schedule(prompt, timing);
        let found: Vec<_> = found.iter().map(|entry| (entry.end_at_step, entry.text.as_str())).collect();
        assert_eq!(found, expected, "{prompt}");
    }

    #[test]
    fn the_examples_of_a1111() {
        let ten = Timing::first_pass(10);
        for (prompt, expected) in [
            ("test", &[(10, "test")][..]),
            ("a [b:3]", &[(3, "a "), (10, "a b")]),
            ("a [b: 3]", &[(3, "a "), (10, "a b")]),
            ("a [[[b]]:2]", &[(2, "a "), (10, "a [[b]]")]),
            ("[(a:2):3]", &[(3, ""), (10, "(a:2)")]),
            ("a [b : c : 1] d", &[(1, "a b  d"), (10, "a  c  d")]),
            ("a[b:[c:d:2]:1]e", &[(1, "abe"), (2, "ace"), (10, "ade")]),
            ("a [unbalanced", &[(10, "a [unbalanced")]),
            ("a [b:.5] c", &[(5, "a  c"), (10, "a b c")]),
            ("((a][:b:c [d:3]", &[(3, "((a][:b:c "), (10, "((a][:b:c d")]),
            ("a [b::3] c", &[(3, "a b c"), (10, "a  c")]),
            ("a [b:0]", &[(10, "a b")]),
            ("a [b:99]", &[(10, "a ")]),
        ] {
            check(prompt, ten, expected);
        }
        let alternating = |prompt: &str, texts: &[&str]| {
            let expected: Vec<_> =
                (1..=10).map(|step| (step, texts[(step as usize - 1) % texts.len()])).collect();
            check(prompt, ten, &expected);
        };
        alternating("[a|(b:1.1)]", &["a", "(b:1.1)"]);
        alternating("[fe|]male", &["female", "male"]);
        alternating("[fe|||]male", &["female", "male", "male", "male"]);
    }

    #[test]
    fn the_hires_pass_counts_on() {
        let hires = Timing { steps: 10, hires_steps: Some(10), old_rule: false };
        check("a [b:.5] c", hires, &[(10, "a b c")]);
        check("a [b:1.5] c", hires, &[(5, "a  c"), (10, "a b c")]);
        check("a [b:15] c", hires, &[(5, "a  c"), (10, "a b c")]);
        let old = Timing { old_rule: true, ..hires };
        check("a [b:.5] c", old, &[(5, "a  c"), (10, "a b c")]);
        check("a [b:1.5] c", old, &[(1, "a  c"), (10, "a b c")]);
    }

    #[test]
    fn what_the_grammar_does_not_take_is_text() {
        let ten = Timing::first_pass(10);
        for prompt in
            ["a|[b:3]", r"[b:3]\", "[a|b:3]", "(a|b)", "[b:3:]", "[a:b:c:3]", "[b:x3]", "([b:c] d", ""]
        {
            check(prompt, ten, &[(10, prompt)]);
        }
        check(r"\[b:3] [c:3]", ten, &[(3, r"\[b:3] "), (10, r"\[b:3] c")]);
    }

    #[test]
    fn depth_is_no_danger() {
        let deep = format!("{}a{}", "[".repeat(50_000), ":3]".repeat(50_000));
        assert_eq!(parse_schedule(&deep, Timing::first_pass(10)).len(), 2);
        check(&"(".repeat(50_000), Timing::first_pass(1), &[(1, &"(".repeat(50_000))]);
    }

    #[test]
    fn steps_are_counted_from_0() {
        let schedule = parse_schedule("[a:b:3]", Timing::first_pass(10));
        let at: Vec<_> = [0, 3, 4, 10, 11].map(|step| scheduled_at(&schedule, step)).into();
        assert_eq!(at, [0, 0, 1, 1, 0]);
    }
}
