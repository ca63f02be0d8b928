//! Reading JSON objects key by key, so that a wrong key is named with its line, its column and what was probably meant.

use std::{cell::RefCell, fmt, fs, path::Path};

use serde::{
    Serialize,
    de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor},
};
use serde_json::Value;
use vodka_stage::{explain, in_plain_words, nearest};

use crate::{Error, Result};

/// The value at which a key asks for nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Neutral {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A text.
    Text(&'static str),
    /// Whatever it is: the key does not touch the result of what is supported.
    Any,
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::Bool(expected) => value.as_bool() == Some(expected),
            Self::Text(expected) => value.as_str() == Some(expected),
            Self::Any => true,
        }
    }
}

/// A key that was said and does not do what it says, or nothing at all.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Notice {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// What comes of it.
    pub why: String,
}

impl Notice {
    pub(crate) fn new(key: &str, value: impl Into<Value>, why: impl Into<String>) -> Self {
        Self { key: key.to_owned(), value: value.into(), why: why.into() }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` ({}): {}", self.key, self.value, self.why)
    }
}

/// A key of EveryDream2 for which nothing is done, the values at which that goes without saying, and what is said at
/// others.
pub(crate) type Idle = (&'static str, &'static [Neutral], Answer);

/// What is said of an idle key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// It is told of, and the run goes on.
    Told(&'static str),
    /// It is an error.
    Refused(&'static str),
}

/// The keys of one JSON object.
#[derive(Default)]
pub(crate) struct Vocabulary {
    /// Keys that do something.
    known: Vec<String>,
    /// Keys for which nothing is done.
    idle: &'static [Idle],
    /// Older names of keys, and what they are called now.
    renamed: &'static [(&'static str, &'static str)],
    /// Each key's default, which `null` stands for.
    defaults: Value,
    /// What is to be told of the keys that were read.
    notices: RefCell<Vec<Notice>>,
}

impl Vocabulary {
    /// The keys of `T` as it is written, and those that are `idle`.
    pub fn of<T: Default + Serialize>(idle: &'static [Idle]) -> Self {
        let defaults = serde_json::to_value(T::default()).expect("configurations are plain data");
        let known = defaults.as_object().expect("a struct").keys().cloned().collect();
        Self { known, idle, defaults, ..Self::default() }
    }

    /// Keys that stand for objects of their own.
    pub fn sections(names: &[&str], idle: &'static [Idle]) -> Self {
        let known = names.iter().map(|name| (*name).to_owned()).collect();
        Self { known, idle, ..Self::default() }
    }

    /// With older names of keys.
    pub fn renamed(self, renamed: &'static [(&'static str, &'static str)]) -> Self {
        Self { renamed, ..self }
    }

    /// A key as it is called now.
    fn current(&self, key: String, value: &Value) -> String {
        match self.renamed.iter().find(|(old, _)| *old == key) {
            Some((old, new)) => {
                let why = format!("is the old name of `{new}`");
                self.notices.borrow_mut().push(Notice::new(old, value.clone(), why));
                (*new).to_owned()
            }
            None => key,
        }
    }

    /// What is to be told of the keys that were read so far.
    pub fn notices(&self) -> Vec<Notice> {
        self.notices.take()
    }

    /// All keys.
    fn all(&self) -> impl Iterator<Item = &str> {
        let idle = self.idle.iter().map(|(name, ..)| *name);
        let renamed = self.renamed.iter().map(|(old, _)| *old);
        self.known.iter().map(String::as_str).chain(idle).chain(renamed)
    }

    /// The keys that do something.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.known.iter().map(String::as_str)
    }

    /// Whether the key is one of these, to be used or not.
    pub fn has(&self, key: &str) -> bool {
        self.all().any(|name| name == key)
    }

    /// Reads an object into the fields of `target`.
    pub fn fields_of<'v, T: Serialize + DeserializeOwned>(
        &'v self,
        target: &'v mut T,
    ) -> Pairs<'v, impl FnMut(&str, Value) -> Result<()> + use<'v, T>> {
        Pairs { vocabulary: self, take: |key: &str, value| self.set(target, key, value) }
    }

    /// Sets the field of `target` that is written as `key`; `null` is its default.
    pub fn set<T: Serialize + DeserializeOwned>(
        &self,
        target: &mut T,
        key: &str,
        value: Value,
    ) -> Result<()> {
        let mut whole = serde_json::to_value(&*target).expect("configurations are plain data");
        whole[key] = if value.is_null() { self.defaults[key].clone() } else { value };
        *target = serde_json::from_value(whole).map_err(|error| Error::KeyValue {
            key: key.to_owned(),
            reason: in_plain_words(&error.to_string()),
        })?;
        Ok(())
    }

    /// Reads one pair into the fields of `target`, as [`Vocabulary::fields_of`] does it.
    pub fn take<T: Serialize + DeserializeOwned, E: serde::de::Error>(
        &self,
        target: &mut T,
        key: &str,
        value: Value,
    ) -> Result<(), E> {
        let taken = self.admits(key, &value).and_then(|admitted| match admitted {
            true => self.set(target, key, value),
            false => Ok(()),
        });
        taken.map_err(|error| E::custom(explain(&error)))
    }

    /// Whether the key is known, to be used or not.
    ///
    /// # Errors
    /// [`Error::UnknownKey`]
    fn know(&self, key: &str) -> Result<()> {
        match self.has(key) {
            true => Ok(()),
            false => Err(Error::UnknownKey { key: key.to_owned(), nearest: self.nearest(key) }),
        }
    }

    /// Whether the pair is to be used (`true`) or says nothing (`false`).
    pub fn admits(&self, key: &str, value: &Value) -> Result<bool> {
        self.know(key)?;
        if self.known.iter().any(|known| known == key) {
            return Ok(true);
        }
        let says_nothing = |neutral: &[Neutral]| neutral.iter().any(|neutral| neutral.is(value));
        match self.idle.iter().find(|(idle, ..)| *idle == key) {
            Some((_, neutral, _)) if says_nothing(neutral) => Ok(false),
            Some((_, _, Answer::Told(why))) => {
                self.notices.borrow_mut().push(Notice::new(key, value.clone(), *why));
                Ok(false)
            }
            Some((_, _, Answer::Refused(why))) => {
                Err(Error::RefusedKey { key: key.to_owned(), value: value.clone(), why })
            }
            None => Ok(false),
        }
    }

    /// The key that is spelt most like `key`, if any is.
    fn nearest(&self, key: &str) -> Option<String> {
        nearest(key, self.all()).map(ToOwned::to_owned)
    }
}

/// Reads the file `path`, which holds one object.
pub(crate) fn read_json(path: &Path, seed: impl for<'de> DeserializeSeed<'de, Value = ()>) -> Result<()> {
    let wrong = |source| Error::Config { path: path.to_path_buf(), source };
    let text = fs::read_to_string(path).map_err(|error| wrong(serde_json::Error::io(error)))?;
    // Some editors put a byte-order mark before it.
    let mut reader = serde_json::Deserializer::from_str(text.trim_start_matches('\u{feff}'));
    seed.deserialize(&mut reader).and_then(|()| reader.end()).map_err(wrong)
}

/// Reads an object, handing each admitted pair to `take`; an error of it gets the place where the pair ends.
pub(crate) struct Pairs<'v, F> {
    pub vocabulary: &'v Vocabulary,
    pub take: F,
}

impl<'de, F: FnMut(&str, Value) -> Result<()>> DeserializeSeed<'de> for Pairs<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(&str, Value) -> Result<()>> Visitor<'de> for Pairs<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut seen = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            // An unknown key is reported at the key, before its value is read.
            self.vocabulary.know(&key).map_err(A::Error::custom)?;
            if seen.contains(&key) {
                return Err(A::Error::custom(Error::RepeatedKey { key }));
            }
            let value = map.next_value()?;
            let key = self.vocabulary.current(key, &value);
            let result = self.vocabulary.admits(&key, &value).and_then(|admitted| match admitted {
                true => (self.take)(&key, value),
                false => Ok(()),
            });
            result.map_err(|error| A::Error::custom(explain(&error)))?;
            seen.push(key);
        }
        Ok(())
    }
}
