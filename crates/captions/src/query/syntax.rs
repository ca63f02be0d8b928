//! What a query says, as data; its text form is one that parses to the same.

use std::fmt;

/// A condition on pictures.
#[derive(Debug, Clone, PartialEq)]
pub enum Expression {
    /// `a or b or c`; two or more.
    Any(Vec<Self>),
    /// `a and b and c`; two or more.
    All(Vec<Self>),
    /// `not a`.
    Not(Box<Self>),
    /// One test.
    Test(Test),
}

/// A condition without a part that is one.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// `tag:blurry`, `tag:blurry>0.9`: the highest score of the tags meant.
    Score {
        /// Which names are meant.
        kind: ScoreKind,
        /// The name.
        name: Pattern,
        /// Without one, the dataset's minimum score or above.
        bound: Option<Bound>,
    },
    /// `width>=768`.
    Number {
        /// What is compared.
        field: NumberField,
        /// With what.
        bound: Bound,
    },
    /// `caption:"a heart"`, `caption~"heart|star"`.
    Text {
        /// What is looked at.
        field: TextField,
        /// What must be in it.
        text: TextMatch,
    },
    /// `captioned`.
    Flag(Flag),
}

/// What has a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreKind {
    /// A tag.
    Tag,
    /// A tag of the category `rating`.
    Rating,
    /// All tags of a category.
    Category,
}

/// A name, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pattern {
    /// One canonical name.
    Exact(String),
    /// All canonical names that fit: `*` is any text, `?` any character. Holds one of them, and only what may stand in
    /// a name without quotes.
    Glob(String),
}

/// A comparison with a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// How it is compared.
    pub relation: Relation,
    /// As it is written, without the unit; not negative, finite.
    pub number: f64,
    /// What it is counted in.
    pub unit: Unit,
}

impl Bound {
    /// The number in the unit of the field, or as a share of 1.
    pub fn value(&self) -> f64 {
        match self.unit {
            // Not times 0.01, which is not exact.
            Unit::Percent => self.number / 100.0,
            unit => self.number * unit.factor(),
        }
    }
}

/// Makes an enum of words: each with its spelling in queries, in order of the documentation.
macro_rules! words {
    ($(#[$attribute:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The spelling in queries.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// The one that is spelled so.
            pub fn named(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|word| word.name() == text)
            }
        }
    };
}

words! {
    /// How a number is compared.
    Relation {
        /// `<`
        Less = "<",
        /// `<=`
        AtMost = "<=",
        /// `>`
        More = ">",
        /// `>=`
        AtLeast = ">=",
        /// `=`
        Equal = "=",
        /// `!=`
        Unequal = "!=",
    }
}

impl Relation {
    /// Whether `a` is in this relation to `b`.
    pub fn holds<T: PartialOrd>(self, a: T, b: T) -> bool {
        match self {
            Self::Less => a < b,
            Self::AtMost => a <= b,
            Self::More => a > b,
            Self::AtLeast => a >= b,
            Self::Equal => a == b,
            Self::Unequal => a != b,
        }
    }
}

words! {
    /// What a number is counted in.
    Unit {
        /// Nothing.
        One = "",
        /// Hundredths, of scores.
        Percent = "%",
        /// Pixels.
        Pixel = "px",
        /// Millions of pixels.
        Megapixel = "mp",
        /// 1,000 bytes.
        Kilobyte = "kb",
        /// 1,000,000 bytes.
        Megabyte = "mb",
        /// 1,000,000,000 bytes.
        Gigabyte = "gb",
        /// 1,024 bytes.
        Kibibyte = "kib",
        /// 1,048,576 bytes.
        Mebibyte = "mib",
        /// 1,073,741,824 bytes.
        Gibibyte = "gib",
    }
}

impl Unit {
    fn factor(self) -> f64 {
        match self {
            Self::One | Self::Pixel => 1.0,
            Self::Percent => 0.01,
            Self::Kilobyte => 1e3,
            Self::Megapixel | Self::Megabyte => 1e6,
            Self::Gigabyte => 1e9,
            Self::Kibibyte => 1024.0,
            Self::Mebibyte => 1_048_576.0,
            Self::Gibibyte => 1_073_741_824.0,
        }
    }
}

words! {
    /// What numbers a picture has.
    NumberField {
        /// Pixels, turned as the picture is shown.
        Width = "width",
        /// Pixels, turned as the picture is shown.
        Height = "height",
        /// Width times height.
        Pixels = "pixels",
        /// Width divided by height.
        Aspect = "aspect",
        /// The file's size.
        Bytes = "bytes",
        /// The file's size in 1,000,000 bytes.
        Megabytes = "megabytes",
        /// Of the whole picture, as the tagger measures it.
        Sharpness = "sharpness",
        /// Of the most blurred of 4 x 4 tiles.
        SharpnessMin = "sharpness_min",
        /// Of the tiles in the middle.
        SharpnessMedian = "sharpness_median",
        /// Of the sharpest tile.
        SharpnessMax = "sharpness_max",
        /// CLIP tokens of the caption; 0 without one.
        Tokens = "tokens",
        /// Words of the caption; 0 without one.
        Words = "words",
    }
}

impl NumberField {
    /// The units besides [`Unit::One`] that it may be counted in.
    pub fn units(self) -> &'static [Unit] {
        use Unit::{Gibibyte, Gigabyte, Kibibyte, Kilobyte, Mebibyte, Megabyte, Megapixel, Pixel};
        match self {
            Self::Width | Self::Height => &[Pixel],
            Self::Pixels => &[Pixel, Megapixel],
            Self::Bytes => &[Kilobyte, Megabyte, Gigabyte, Kibibyte, Mebibyte, Gibibyte],
            _ => &[],
        }
    }
}

words! {
    /// What text a picture has.
    TextField {
        /// The caption: `:` looks for a text in it, in any case.
        Caption = "caption",
        /// The name with its folders: `:` compares with a glob, of the last part if the glob has no `/`.
        Name = "name",
        /// The folder: `:` compares with a glob; pictures below such a folder count.
        Folder = "folder",
        /// The format, by the ending of the name.
        Format = "format",
        /// The SHA-256 of the file: `:` compares its first digits.
        Hash = "hash",
    }
}

words! {
    /// What is so or is not.
    Flag {
        /// The picture is on disk.
        Exists = "exists",
        /// It has a caption that is not empty.
        Captioned = "captioned",
        /// Another picture, which comes before it in order of name, has the same content.
        Duplicate = "duplicate",
        /// The tag table names it.
        Tagged = "tagged",
    }
}

impl ScoreKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tag, Self::Rating, Self::Category];

    /// The spelling in queries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tag => "tag",
            Self::Rating => "rating",
            Self::Category => "category",
        }
    }
}

/// What must be in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextMatch {
    /// After `:`; what it means is up to the field.
    Plain(String),
    /// After `~`: a regular expression that fits somewhere.
    Regex(String),
}

impl Test {
    /// The field's spelling in queries.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Score { kind, .. } => kind.name(),
            Self::Number { field, .. } => field.name(),
            Self::Text { field, .. } => field.name(),
            Self::Flag(flag) => flag.name(),
        }
    }
}

impl Expression {
    /// The tests, in order of the text.
    pub fn tests(&self) -> Vec<&Test> {
        match self {
            Self::Any(parts) | Self::All(parts) => parts.iter().flat_map(Self::tests).collect(),
            Self::Not(part) => part.tests(),
            Self::Test(test) => vec![test],
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, parts: &[Self], word: &str| {
            parts.iter().enumerate().try_for_each(|(i, part)| {
                let word = if i > 0 { word } else { "" };
                // `and` binds closer than `or`.
                match (self, part) {
                    (_, Self::Any(_)) | (Self::All(_), Self::All(_)) => write!(f, "{word}({part})"),
                    _ => write!(f, "{word}{part}"),
                }
            })
        };
        match self {
            Self::Any(parts) => joined(f, parts, " or "),
            Self::All(parts) => joined(f, parts, " and "),
            Self::Not(part) => match &**part {
                Self::Any(_) | Self::All(_) => write!(f, "not ({part})"),
                _ => write!(f, "not {part}"),
            },
            Self::Test(test) => test.fmt(f),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.field())?;
        match self {
            Self::Score { name, bound, .. } => {
                match name {
                    Pattern::Exact(name) => write!(f, ":{}", written(name, ""))?,
                    Pattern::Glob(glob) => write!(f, ":{glob}")?,
                }
                bound.iter().try_for_each(|bound| bound.fmt(f))
            }
            Self::Number { bound, .. } => bound.fmt(f),
            Self::Text { text: TextMatch::Plain(text), .. } => write!(f, ":{}", written(text, "*?")),
            Self::Text { text: TextMatch::Regex(regex), .. } => write!(f, "~{}", quoted(regex)),
            Self::Flag(_) => Ok(()),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.relation.name(), self.number, self.unit.name())
    }
}

/// A text as it may stand after `:`, in quotes if it holds more than letters, digits, a few signs, and `also`.
fn written(text: &str, also: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./'".contains(c) || also.contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { quoted(text) }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}
