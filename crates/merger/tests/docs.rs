//! The table of methods in docs/merging.md is made of the table in the code.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fmt::Write, fs, path::Path};

use vodka_merger::{Info, METHODS};

fn entry(info: &Info) -> String {
    let mut text = format!(
        "### `{}`\n\n{} ({}).\n\n```text\n{}\n```\n\n",
        info.name, info.summary, info.title, info.formula
    );
    let mut takes = vec!["a"];
    takes.extend(info.parents.letters());
    takes.extend(info.parents.list());
    let _ = writeln!(text, "Takes `{}`. From {}.", takes.join("`, `"), info.source);
    for param in info.params {
        let default = if param.default.is_none() { "; required" } else { "" };
        let _ = writeln!(text, "* `{}`: {}{default}", param.name, param.help);
    }
    if info.seeded {
        let _ = writeln!(text, "* `seed`: of what is dropped, 0 by default");
    }
    text
}

/// With `VODKA_BLESS` set, writes the entries instead.
#[test]
fn every_method_is_in_the_docs_as_it_is_in_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/merging.md");
    let text = fs::read_to_string(&path).unwrap();
    let entries = METHODS.iter().map(entry).collect::<Vec<_>>().join("\n");
    let (start, end) = ("<!-- methods -->\n", "<!-- end of methods -->\n");
    let (before, rest) = text.split_once(start).unwrap();
    let (found, after) = rest.split_once(end).unwrap();
    if std::env::var_os("VODKA_BLESS").is_some() {
        fs::write(&path, format!("{before}{start}{entries}{end}{after}")).unwrap();
        return;
    }
    assert!(found == entries, "run this test with VODKA_BLESS=1, and look at the difference");
}
