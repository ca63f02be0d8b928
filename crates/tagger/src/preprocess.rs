//! `preprocess.json`: the processing steps that deepghs writes beside a model.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{
    Error, Result,
    description::{Description, FirstSquare, Fit, PreprocessFile, Resampler, SIDE_MAX},
};

impl Description {
    /// Lets it do what the text of its file of processing steps says ([`Description::preprocess`]); nothing where it has no
    /// such file. The path is only for errors.
    ///
    /// # Errors
    /// When the text is no JSON, or a step cannot be followed; with its place.
    pub fn follow_steps(&mut self, text: &str, path: &Path) -> Result<()> {
        match self.preprocess.clone() {
            Some(file) => follow(self, &file, text, path),
            None => Ok(()),
        }
    }
}

/// Lets `description` do what the steps in `text` say. The path is only for errors.
fn follow(description: &mut Description, file: &PreprocessFile, text: &str, path: &Path) -> Result<()> {
    let wrong = |place, expected, found: &Value| Error::Preprocess {
        path: path.to_path_buf(),
        steps: file.steps.clone(),
        place,
        expected,
        found: found.to_string(),
    };
    let all: Value =
        serde_json::from_str(text).map_err(|source| Error::Json { path: path.to_path_buf(), source })?;
    let list = all.get(&file.steps).and_then(Value::as_array);
    let list = list.ok_or_else(|| wrong(0, "a list of steps", &Value::Null))?;
    let mut steps = Steps::default();
    for (place, step) in list.iter().enumerate() {
        let object = step.as_object().ok_or_else(|| wrong(place, "an object", step))?;
        steps.take(object).map_err(|expected| wrong(place, expected, step))?;
    }
    steps.write(description).map_err(|expected| wrong(list.len(), expected, &Value::Null))
}

/// What the steps so far have said.
#[derive(Default)]
struct Steps {
    padded: Option<(u32, Resampler, [u8; 3])>,
    resized: Option<(u32, Resampler)>,
    is_tensor: bool,
    normalized: Option<([f32; 3], [f32; 3])>,
}

impl Steps {
    /// Takes one more step, or says what could be followed instead.
    fn take(&mut self, step: &Map<String, Value>) -> Result<(), &'static str> {
        let only = |known: &[&str]| step.keys().all(|key| key == "type" || known.contains(&key.as_str()));
        match step.get("type").and_then(Value::as_str) {
            Some("pad_to_size") if self.padded.is_none() && self.resized.is_none() && !self.is_tensor => {
                let size = square(step.get("size")).ok_or("a square as `size`")?;
                let colour = colour(step.get("background_color"))
                    .ok_or("white, black or RGB as `background_color`")?;
                self.padded = Some((size, resampler(step)?, colour));
                only(&["size", "background_color", "interpolation"]).then_some(()).ok_or("no other key")
            }
            Some("resize") if self.resized.is_none() && !self.is_tensor => {
                let size = step.get("size");
                // One number is the shorter side's: of what is no square yet, the other side would stand out.
                let is_one = size.is_some_and(Value::is_number);
                if is_one && self.padded.is_none() {
                    return Err("two numbers as `size`, or `pad_to_size` before it");
                }
                self.resized = Some((square(size).ok_or("a square as `size`")?, resampler(step)?));
                let is_plain = step.get("max_size").is_none_or(Value::is_null)
                    && step.get("antialias").is_none_or(|value| value == true);
                let keys = ["size", "interpolation", "max_size", "antialias"];
                (is_plain && only(&keys)).then_some(()).ok_or("`antialias` true, no `max_size`, no other key")
            }
            Some("center_crop") if !self.is_tensor => {
                let is_whole = square(step.get("size")) == self.size() && only(&["size"]);
                is_whole.then_some(()).ok_or("a crop that leaves the whole square")
            }
            Some("to_tensor" | "maybe_to_tensor") if !self.is_tensor => {
                self.is_tensor = true;
                only(&[]).then_some(()).ok_or("no other key")
            }
            Some("normalize") if self.is_tensor && self.normalized.is_none() => {
                let triple = |key| triple(step.get(key));
                self.normalized = triple("mean").zip(triple("std"));
                let is_known = self.normalized.is_some() && only(&["mean", "std", "inplace"]);
                is_known.then_some(()).ok_or("three numbers as `mean` and as `std`")
            }
            _ => {
                Err("pad_to_size, resize, center_crop, to_tensor, normalize in this order, each once at most")
            }
        }
    }

    fn size(&self) -> Option<u32> {
        let padded = self.padded.map(|(size, _, _)| size);
        self.resized.map(|(size, _)| size).or(padded)
    }

    fn write(self, description: &mut Description) -> Result<(), &'static str> {
        if !self.is_tensor {
            return Err("to_tensor");
        }
        let picture = &mut description.picture;
        picture.size = Some(self.size().ok_or("pad_to_size or resize")?);
        picture.first = self.padded.map(|(size, resampler, _)| FirstSquare { size, resampler });
        picture.fit = Fit::Squash;
        if let Some((_, _, colour)) = self.padded {
            picture.pad = colour;
        }
        if let Some((_, resampler)) = self.resized {
            picture.resampler = resampler;
        }
        description.tensor.scale = 255.0;
        (description.tensor.mean, description.tensor.std) = self.normalized.unwrap_or(([0.0; 3], [1.0; 3]));
        Ok(())
    }
}

/// The side of a square: a number, or twice the same one; none that would ask for all memory.
fn square(size: Option<&Value>) -> Option<u32> {
    let side = |size: &u32| (1..=SIDE_MAX).contains(size);
    let number = |value: &Value| value.as_u64().and_then(|size| u32::try_from(size).ok()).filter(side);
    match size?.as_array().map(Vec::as_slice) {
        None => number(size?),
        Some([a, b]) if a == b => number(a),
        Some(_) => None,
    }
}

fn resampler(step: &Map<String, Value>) -> Result<Resampler, &'static str> {
    match step.get("interpolation").and_then(Value::as_str) {
        Some("bilinear") => Ok(Resampler::Bilinear),
        Some("bicubic") => Ok(Resampler::Bicubic),
        Some("lanczos") => Ok(Resampler::Lanczos),
        _ => Err("bilinear, bicubic or lanczos as `interpolation`"),
    }
}

fn colour(value: Option<&Value>) -> Option<[u8; 3]> {
    match value? {
        Value::String(name) if name == "white" => Some([255; 3]),
        Value::String(name) if name == "black" => Some([0; 3]),
        Value::Array(values) => {
            let byte = |value: &Value| value.as_u64().and_then(|value| u8::try_from(value).ok());
            values.iter().map(byte).collect::<Option<Vec<_>>>()?.try_into().ok()
        }
        _ => None,
    }
}

fn triple(value: Option<&Value>) -> Option<[f32; 3]> {
    let numbers = value?.as_array()?.iter().map(|value| Some(value.as_f64()? as f32));
    numbers.collect::<Option<Vec<_>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(text: &str) -> Result<Description> {
        let mut description = Description::default();
        let file = PreprocessFile { file: "preprocess.json".into(), steps: "test".into() };
        let text = format!("{{\"test\": [{text}]}}");
        follow(&mut description, &file, &text, Path::new("preprocess.json"))?;
        Ok(description)
    }

    const PAD: &str = r#"{"type": "pad_to_size", "size": [512, 512], "background_color": "white", "interpolation": "bilinear"}"#;
    const RESIZE: &str =
        r#"{"type": "resize", "size": 448, "interpolation": "bicubic", "max_size": null, "antialias": true}"#;
    const END: &str = r#"{"type": "center_crop", "size": [448, 448]}, {"type": "maybe_to_tensor"},
        {"type": "normalize", "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}"#;

    #[test]
    fn the_steps_of_the_family_are_followed() {
        let found = steps(&format!("{PAD}, {RESIZE}, {END}")).unwrap();
        let picture = &found.picture;
        assert_eq!(picture.first, Some(FirstSquare { size: 512, resampler: Resampler::Bilinear }));
        assert_eq!(
            (picture.size, picture.fit, picture.resampler),
            (Some(448), Fit::Squash, Resampler::Bicubic)
        );
        assert_eq!((found.tensor.mean, found.tensor.std), ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]));
        let pad_only = PAD.replace("\"white\"", "[1, 2, 3]");
        let found = steps(&format!("{pad_only}, {{\"type\": \"to_tensor\"}}")).unwrap().picture;
        assert_eq!((found.fit, found.size, found.pad), (Fit::Squash, Some(512), [1, 2, 3]));
        assert_eq!(found.first.map(|first| first.size), Some(512));
    }

    #[test]
    fn no_damage_is_a_panic() {
        let whole = format!("{PAD}, {RESIZE}, {END}");
        for at in 0..whole.len() {
            for piece in ["\"", "}", "[", "-1", "1e999", "99999999999", ""] {
                let damaged = format!("{}{piece}{}", &whole[..at], &whole[at + 1..]);
                if let Ok(description) = steps(&damaged) {
                    assert!(description.picture.size.is_some(), "{damaged}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_its_place() {
        let cases = [
            (
                format!("{RESIZE}, {END}"),
                "`test[0]`: expected two numbers as `size`, or `pad_to_size` before it",
            ),
            (format!("{PAD}, {{\"type\": \"rotate\"}}"), "`test[1]`: expected pad_to_size, resize"),
            (
                format!("{PAD}, {RESIZE}, {{\"type\": \"center_crop\", \"size\": 400}}"),
                "a crop that leaves the whole",
            ),
            (PAD.replace("512]", "400]"), "expected a square as `size`"),
            (PAD.replace("512", "60000"), "expected a square as `size`"),
            (PAD.replace("512", "0"), "expected a square as `size`"),
            (PAD.replace("bilinear", "nearest"), "expected bilinear, bicubic or lanczos"),
            (format!("{PAD}, {}", RESIZE.replace("null", "600")), "no `max_size`"),
            (PAD.to_owned(), "`test[1]`: expected to_tensor, found null"),
            ("{\"type\": \"to_tensor\"}".to_owned(), "expected pad_to_size or resize"),
            ("7".to_owned(), "expected an object, found 7"),
            ("{".to_owned(), "`preprocess.json` is not the JSON it should be"),
        ];
        for (text, expected) in cases {
            let found = steps(&text).unwrap_err().to_string();
            assert!(found.contains(expected), "{text}: {found}");
        }
    }
}
