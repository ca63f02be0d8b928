//! What kind of thing a tag says.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of thing a tag says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Category {
    /// What can be seen.
    General,
    /// Who can be seen.
    Character,
    /// The work that the characters come from.
    Copyright,
    /// Who made the picture.
    Artist,
    /// The picture as a file: its resolution, its medium.
    Meta,
    /// For whom the picture is.
    Rating,
    /// How good the picture is.
    Quality,
    /// The model that made the picture.
    Model,
    /// When the picture was made.
    Year,
    /// Any other, by its name in lower case, or by its number.
    Other(String),
}

const NAMES: [(&str, Category); 9] = [
    ("general", Category::General),
    ("character", Category::Character),
    ("copyright", Category::Copyright),
    ("artist", Category::Artist),
    ("meta", Category::Meta),
    ("rating", Category::Rating),
    ("quality", Category::Quality),
    ("model", Category::Model),
    ("year", Category::Year),
];

impl Category {
    /// The name, as tables have it: `general`, `character`, ...
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(name) => name,
            known => NAMES.iter().find(|(_, category)| category == known).map_or("", |(name, _)| name),
        }
    }

    /// The category with one of Danbooru's numbers, 9 for ratings as the WD series has it, 10 for years as imgutils.
    pub(crate) fn of_number(number: u32) -> Self {
        match number {
            0 => Self::General,
            1 => Self::Artist,
            3 => Self::Copyright,
            4 => Self::Character,
            5 => Self::Meta,
            9 => Self::Rating,
            10 => Self::Year,
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<&str> for Category {
    /// The category with this name, in upper or lower case.
    fn from(name: &str) -> Self {
        let name = name.to_lowercase();
        let known = NAMES.into_iter().find(|(known, _)| *known == name);
        known.map_or(Self::Other(name), |(_, category)| category)
    }
}

impl From<String> for Category {
    fn from(name: String) -> Self {
        Self::from(name.as_str())
    }
}

impl From<Category> for String {
    fn from(category: Category) -> Self {
        category.as_str().to_owned()
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (name, category) in NAMES {
            assert_eq!((category.to_string().as_str(), Category::from(name)), (name, category.clone()));
        }
        assert_eq!(Category::from("General"), Category::General);
        assert_eq!(Category::from("Species").to_string(), "species");
        assert_eq!(Category::of_number(7).to_string(), "7");
    }
}
