//! What pages share: templates, style, links, and numbers in words.

use std::{
    path::{Component, Path, PathBuf},
    sync::LazyLock,
};

use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value};
use serde::Serialize;
use vodka_sampler::numbers::{short, signed};
use vodka_stage::{ContentHash, Hasher};

use crate::probe::Estimate;

const PAGE_STYLE: &str = include_str!("templates/page.css");
const CHART_STYLE: &str = include_str!("templates/chart.css");

/// Each template by its name.
const TEMPLATES: [(&str, &str); 7] = [
    ("probe.html", include_str!("templates/probe.html")),
    ("choose.html", include_str!("templates/choose.html")),
    ("compare.html", include_str!("templates/compare.html")),
    ("compare.md", include_str!("templates/compare.md")),
    ("forest.svg", include_str!("templates/forest.svg")),
    ("scatter.svg", include_str!("templates/scatter.svg")),
    ("variables.css", include_str!("templates/variables.css")),
];

/// Of the notebook, which is written after every run: they decide no stage's outputs.
const NOTEBOOK: [(&str, &str); 2] = [
    ("notebook.html", include_str!("templates/notebook.html")),
    ("notebook.md", include_str!("templates/notebook.md")),
];

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|name| {
        if name.ends_with(".md") { AutoEscape::None } else { AutoEscape::Html }
    });
    environment.add_global("style_of_charts", Value::from_safe_string(CHART_STYLE.to_owned()));
    for (name, text) in TEMPLATES.into_iter().chain(NOTEBOOK) {
        environment.add_template(name, text).expect("the templates are ours");
    }
    environment
});

pub(crate) fn render(template: &str, context: impl Serialize) -> String {
    let filled = ENVIRONMENT.get_template(template).and_then(|template| template.render(context));
    filled.unwrap_or_else(|error| panic!("the template `{template}`: {error:#}"))
}

/// The hash of the stages' templates: other templates make another page.
pub(crate) fn version() -> ContentHash {
    let mut hasher = Hasher::default();
    hasher.piece(PAGE_STYLE).piece(CHART_STYLE);
    for (name, text) in TEMPLATES {
        hasher.piece(name).piece(text);
    }
    hasher.finish()
}

/// The style of pages with charts.
pub(crate) fn style() -> Value {
    Value::from_safe_string(format!("{PAGE_STYLE}\n{CHART_STYLE}"))
}

/// A link to a line of a table, which counts from 0, without the header; the fragment is RFC 7111's, in which the header is row 1.
pub(crate) fn line(table: &str, line: usize) -> String {
    format!("{table}#row={}", line + 2)
}

/// A link from a page in a folder to a file elsewhere: relative, so that both may move together.
pub(crate) fn link_from(folder: &Path, file: &Path) -> String {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let (folder, file) = (absolute(folder), absolute(file));
    let shared = folder.components().zip(file.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| Component::ParentDir);
    let path: PathBuf = up.chain(file.components().skip(shared)).collect();
    path.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// The number and its interval, in words.
pub(crate) fn told(estimate: &Estimate) -> String {
    let range = estimate.range.map(|[low, high]| format!(" ({} to {})", short(low), short(high)));
    short(estimate.value) + &range.unwrap_or_default()
}

/// The same with signs.
pub(crate) fn signed_told(estimate: &Estimate) -> String {
    let range = estimate.range.map(|[low, high]| format!(" ({} to {})", signed(low), signed(high)));
    signed(estimate.value) + &range.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_from_folder_to_file() {
        let link = |folder: &str, file: &str| link_from(Path::new(folder), Path::new(file));
        assert_eq!(
            link("out/chosen/best", "out/probes/response/index.html"),
            "../../probes/response/index.html"
        );
        assert_eq!(link("a", "a/b.csv"), "b.csv");
        assert_eq!(line("a.csv", 0), "a.csv#row=2");
    }
}
