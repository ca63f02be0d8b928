//! Reading JSON objects key by key, so that a wrong key is named with its line, its column and what was probably meant.

use std::{fmt, fs, path::Path};

use serde::{
    Serialize,
    de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor},
};
use serde_json::Value;
use vodka_stage::nearest;

use crate::{Error, Result};

/// The value at which a key asks for nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Neutral {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number.
    Number(f64),
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
            Self::Number(expected) => value.as_f64() == Some(expected),
            Self::Text(expected) => value.as_str() == Some(expected),
            Self::Any => true,
        }
    }
}

impl fmt::Display for Neutral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(value) => write!(f, "\"{value}\""),
            Self::Any => f.write_str("anything"),
        }
    }
}

/// A key of EveryDream2 that is understood and not done, and the values at which that makes no difference.
pub(crate) type Refused = (&'static str, &'static [Neutral]);

/// The keys of one JSON object.
pub(crate) struct Vocabulary {
    /// Keys that do something.
    pub known: Vec<String>,
    /// Keys that are accepted at a neutral value only.
    pub refused: &'static [Refused],
}

impl Vocabulary {
    /// The keys of `T` as it is written, and those that are `refused`.
    pub fn of<T: Default + Serialize>(refused: &'static [Refused]) -> Self {
        let value = serde_json::to_value(T::default()).expect("configurations are plain data");
        let known = value.as_object().expect("a struct").keys().cloned().collect();
        Self { known, refused }
    }

    /// Whether the key is one of these, to be used or to be refused.
    pub fn has(&self, key: &str) -> bool {
        self.known
            .iter()
            .map(String::as_str)
            .chain(self.refused.iter().map(|(name, _)| *name))
            .any(|name| name == key)
    }

    /// Reads an object into the fields of `target`.
    pub fn fields_of<'v, T: Serialize + DeserializeOwned>(
        &'v self,
        target: &'v mut T,
    ) -> Pairs<'v, impl FnMut(&str, Value) -> Result<()> + use<'v, T>> {
        Pairs { vocabulary: self, take: |key: &str, value| set_field(target, key, value) }
    }

    /// Whether the pair is to be used (`true`) or says nothing (`false`).
    pub fn admits(&self, key: &str, value: &Value) -> Result<bool> {
        if self.known.iter().any(|known| known == key) {
            return Ok(true);
        }
        let Some((_, neutral)) = self.refused.iter().find(|(refused, _)| *refused == key) else {
            return Err(Error::UnknownKey { key: key.to_owned(), nearest: self.nearest(key) });
        };
        if neutral.iter().any(|neutral| neutral.is(value)) {
            return Ok(false);
        }
        let allowed: Vec<_> = neutral.iter().map(ToString::to_string).collect();
        Err(Error::UnsupportedKey {
            key: key.to_owned(),
            value: value.clone(),
            allowed: allowed.join(" or "),
        })
    }

    /// The key that is spelt most like `key`, if any is.
    fn nearest(&self, key: &str) -> Option<String> {
        let refused = self.refused.iter().map(|(name, _)| *name);
        let all = self.known.iter().map(String::as_str).chain(refused);
        nearest(key, all).map(ToOwned::to_owned)
    }
}

/// Sets the field of `target` that is written as `key`.
pub(crate) fn set_field<T: Serialize + DeserializeOwned>(
    target: &mut T,
    key: &str,
    value: Value,
) -> Result<()> {
    let mut whole = serde_json::to_value(&*target).expect("configurations are plain data");
    whole[key] = value;
    *target =
        serde_json::from_value(whole).map_err(|source| Error::KeyValue { key: key.to_owned(), source })?;
    Ok(())
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
            if let Err(error @ Error::UnknownKey { .. }) = self.vocabulary.admits(&key, &Value::Null) {
                return Err(A::Error::custom(error));
            }
            if seen.contains(&key) {
                return Err(A::Error::custom(Error::RepeatedKey { key }));
            }
            let value = map.next_value()?;
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

/// An error with its causes: serde keeps only the text.
pub(crate) fn explain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", explain(source)),
        None => error.to_string(),
    }
}
