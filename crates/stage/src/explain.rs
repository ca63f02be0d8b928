//! An error and what lies behind it.

use std::{error::Error, fmt::Write};

/// An error with its causes, in one line: `a: b: c`.
pub fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.contains(&said) {
            let _ = write!(text, ": {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Said {
        text: &'static str,
        source: Option<Box<Said>>,
    }

    #[test]
    fn causes_follow_and_none_is_told_twice() {
        let said = |text, source: Option<Said>| Said { text, source: source.map(Box::new) };
        let error =
            said("cannot read `a`", Some(said("bad header: too short", Some(said("too short", None)))));
        assert_eq!(explain(&error), "cannot read `a`: bad header: too short");
    }
}
