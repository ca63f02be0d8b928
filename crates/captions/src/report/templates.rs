//! The templates of a report: HTML and SVG, which escape whatever is put into them, CSS and a script.

use std::sync::LazyLock;

use minijinja::{AutoEscape, Environment, HtmlEscape, UndefinedBehavior, Value};
use serde::Serialize;
use vodka_stage::{ContentHash, Hasher};

/// Each template by its name.
const TEMPLATES: [(&str, &str); 8] = [
    ("base.html", include_str!("templates/base.html")),
    ("index.html", include_str!("templates/index.html")),
    ("tag.html", include_str!("templates/tag.html")),
    ("chart.svg", include_str!("templates/chart.svg")),
    ("rows.svg", include_str!("templates/rows.svg")),
    ("columns.svg", include_str!("templates/columns.svg")),
    ("heat.svg", include_str!("templates/heat.svg")),
    ("style.css", include_str!("templates/style.css")),
];

/// The script that remembers the choice of colours. Every page works without it.
pub(super) const SCRIPT: &str = include_str!("templates/report.js");

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|name| match name.rsplit_once('.') {
        Some((_, "html" | "svg")) => AutoEscape::Html,
        _ => AutoEscape::None,
    });
    environment.add_filter("breakable", breakable);
    for (name, text) in TEMPLATES {
        environment.add_template(name, text).expect("the templates are ours");
    }
    environment
});

/// Escaped text that may be broken after its underscores, as the names of tags should be.
fn breakable(text: &str) -> Value {
    Value::from_safe_string(HtmlEscape(text).to_string().replace('_', "_<wbr>"))
}

/// Fills a template.
///
/// # Panics
/// Where template and context do not fit, which is our mistake and seen by every test.
pub(super) fn render(template: &str, context: impl Serialize) -> String {
    let filled = ENVIRONMENT.get_template(template).and_then(|template| template.render(context));
    filled.unwrap_or_else(|error| panic!("the template `{template}`: {error:#}"))
}

/// The hash of all templates: other templates make another report.
pub(super) fn version() -> ContentHash {
    let mut hasher = Hasher::default();
    for (name, text) in TEMPLATES.iter().chain(&[("report.js", SCRIPT)]) {
        hasher.piece(name).piece(text);
    }
    hasher.finish()
}
