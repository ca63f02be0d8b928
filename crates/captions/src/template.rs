//! Captions from a template of the user's (minijinja: Jinja2's language).

use std::collections::BTreeSet;

use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use crate::{Caption, Error, Result};

/// What a template can say about a picture.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Facts<'a> {
    /// The caption as it was read, on one line.
    pub caption: &'a str,
    /// What `tags` would be put into the caption, the fixed ones first, as captions write them.
    pub tags: &'a [String],
    /// All selected tags with a score that is high enough, however many, as captions write them.
    pub all_tags: &'a [String],
    /// The rating with the highest score, or nothing.
    pub rating: &'a str,
    /// The characters with a score that is high enough, as captions write them.
    pub characters: &'a [String],
    /// The picture's path in the folder of pictures, with `/`.
    pub image: &'a str,
    /// The last part of that.
    pub file_name: &'a str,
    /// The file name without its extension.
    pub stem: &'a str,
    /// The name of the folder that the picture is in; empty at the top.
    pub folder: &'a str,
}

/// The names of the fields of [`Facts`].
const NAMES: [&str; 9] =
    ["caption", "tags", "all_tags", "rating", "characters", "image", "file_name", "stem", "folder"];

/// A template that has been read and tried.
#[derive(Debug)]
pub struct Template<'a> {
    environment: Environment<'a>,
}

impl<'a> Template<'a> {
    /// Reads a template, and tries it on a made-up picture.
    ///
    /// # Errors
    /// What does not parse, names no field of [`Facts`], or cannot be rendered: with the line.
    pub fn new(text: &'a str) -> Result<Self> {
        let mut environment = Environment::new();
        // The first of no characters is nothing; names are checked below.
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.add_template("caption", text).map_err(|error| broken(&error))?;
        let template = Self { environment };
        let found = template.get()?.undeclared_variables(false);
        let functions: BTreeSet<_> =
            template.environment.globals().map(|(name, _)| name.to_owned()).collect();
        let known = |name: &String| NAMES.contains(&name.as_str()) || functions.contains(name);
        if let Some(name) = found.into_iter().filter(|name| !known(name)).min() {
            let line = text.lines().position(|line| line.contains(&name)).map_or(1, |line| line + 1);
            let reason = format!("no variable `{name}`, expected {}", NAMES.join(", "));
            return Err(Error::Template { line, reason });
        }
        let tags = ["solo".to_owned()];
        let facts =
            Facts { caption: "a heart", tags: &tags, all_tags: &tags, image: "a.png", ..Facts::default() };
        template.render(&facts)?;
        Ok(template)
    }

    /// The caption of a picture: what the template says, on one line.
    ///
    /// # Errors
    /// What this picture makes fail.
    pub fn render(&self, facts: &Facts) -> Result<String> {
        let text = self.get()?.render(facts).map_err(|error| broken(&error))?;
        Ok(Caption::new(&text).text)
    }

    fn get(&self) -> Result<minijinja::Template<'_, 'a>> {
        self.environment.get_template("caption").map_err(|error| broken(&error))
    }
}

fn broken(error: &minijinja::Error) -> Error {
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    Error::Template { line: error.line().unwrap_or(1), reason: format!("{}{detail}", error.kind()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        Template::new(text).unwrap_err().to_string()
    }

    #[test]
    fn a_template_says_what_is_known() {
        let tags = ["blurry".to_owned(), ";)".to_owned()];
        let facts = Facts {
            caption: "a <heart>",
            tags: &tags,
            rating: "general",
            stem: "a",
            folder: "sub",
            ..Facts::default()
        };
        let render = |text: &str| Template::new(text).unwrap().render(&facts).unwrap();
        assert_eq!(render("{{ tags | join(', ') }}, {{ caption }}"), "blurry, ;), a <heart>");
        assert_eq!(
            render("{{ folder }}/{{ stem }}\n{% if rating != 'general' %}{{ rating }}{% endif %}\n x"),
            "sub/a x"
        );
        assert_eq!(
            render("{% for tag in tags %}[{{ tag }}]{% endfor %}{{ characters | length }}"),
            "[blurry][;)]0"
        );
    }

    #[test]
    fn a_wrong_template_is_an_error_with_its_line() {
        assert_eq!(
            said("{{ caption }}\n{{ taggs }}"),
            "the template's line 2: no variable `taggs`, expected caption, tags, all_tags, rating, characters, image, \
             file_name, stem, folder"
        );
        assert!(
            said("a\n{{ caption").starts_with("the template's line 2: syntax error"),
            "{}",
            said("a\n{{ caption")
        );
        assert!(said("{{ caption | shout }}").starts_with("the template's line 1: unknown filter"));
        assert!(said("{{ tags.x.y }}").starts_with("the template's line 1: "));
    }
}
