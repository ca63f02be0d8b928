//! `data_root`: where the pictures come from, in every form that EveryDream2 knows.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::Value;
use vodka_stage::nearest;

/// Where pictures come from: folders, and lists of pictures in JSON files, in order.
///
/// Written as a path, as a list, or as an object with `resolver`: `{"resolver": "directory", "path": ...}`, `"json"` the
/// same, `{"resolver": "multi", "resolvers": [...]}`; each within the other. As in EveryDream2, whether a path is a folder
/// or a list is for what lies there to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataRoot(Vec<PathBuf>);

impl DataRoot {
    /// The folders and lists.
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<P: Into<PathBuf>> From<P> for DataRoot {
    fn from(path: P) -> Self {
        let path: PathBuf = path.into();
        Self(if path.as_os_str().is_empty() { Vec::new() } else { vec![path] })
    }
}

impl Serialize for DataRoot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [] => Path::new("").serialize(serializer),
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for DataRoot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut paths = Vec::new();
        resolve(&Value::deserialize(deserializer)?, &mut paths).map_err(D::Error::custom)?;
        Ok(Self(paths))
    }
}

fn resolve(value: &Value, paths: &mut Vec<PathBuf>) -> Result<(), String> {
    match value {
        Value::String(path) if path.is_empty() => Ok(()),
        Value::String(path) => {
            paths.push(path.into());
            Ok(())
        }
        Value::Array(values) => values.iter().try_for_each(|value| resolve(value, paths)),
        Value::Object(object) => {
            if let Some(key) = object.keys().find(|key| !KEYS.contains(&key.as_str())) {
                let meant =
                    nearest(key, KEYS).map_or(String::new(), |near| format!(" (did you mean `{near}`?)"));
                return Err(format!("unknown key `{key}`{meant}"));
            }
            let of = |key: &str| object.get(key).ok_or_else(|| format!("`{key}` is missing"));
            match of("resolver")?.as_str() {
                Some("directory" | "json") => match of("path")? {
                    path @ Value::String(_) => resolve(path, paths),
                    other => Err(format!("`path` is {other}, expected a text")),
                },
                Some("multi") => match of("resolvers")? {
                    list @ Value::Array(_) => resolve(list, paths),
                    other => Err(format!("`resolvers` is {other}, expected a list")),
                },
                _ => Err(format!(
                    "`resolver` is {}, expected `directory`, `json` or `multi`",
                    object["resolver"]
                )),
            }
        }
        other => Err(format!("found {other}, expected a path, a list, or an object with `resolver`")),
    }
}

const KEYS: [&str; 3] = ["resolver", "path", "resolvers"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(value: Value) -> Vec<String> {
        let root: DataRoot = serde_json::from_value(value).unwrap();
        let again: DataRoot = serde_json::from_value(serde_json::to_value(&root).unwrap()).unwrap();
        assert_eq!(again, root);
        root.paths().iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(paths(json!("a")), ["a"]);
        assert_eq!(paths(json!("")), [""; 0]);
        assert_eq!(paths(json!(["a", "b.json"])), ["a", "b.json"]);
        assert_eq!(paths(json!({"resolver": "directory", "path": "a"})), ["a"]);
        let nested = json!({"resolver": "multi", "resolvers":
            [{"resolver": "json", "path": "a.json"}, "b", {"resolver": "multi", "resolvers": ["c"]}]});
        assert_eq!(paths(nested), ["a.json", "b", "c"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let said = |value| serde_json::from_value::<DataRoot>(value).unwrap_err().to_string();
        assert_eq!(said(json!(3)), "found 3, expected a path, a list, or an object with `resolver`");
        assert_eq!(
            said(json!({"resolver": "zip"})),
            "`resolver` is \"zip\", expected `directory`, `json` or `multi`"
        );
        assert_eq!(said(json!({"path": "a"})), "`resolver` is missing");
        assert_eq!(said(json!({"resolver": "json"})), "`path` is missing");
        assert_eq!(
            said(json!({"resolver": "multi", "resolver s": []})),
            "unknown key `resolver s` (did you mean `resolvers`?)"
        );
    }
}
