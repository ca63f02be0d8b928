//! The `parameters` text of a picture, from its settings and its model.

use std::path::Path;

use vodka_prompt::Parameters;
use vodka_stage::ContentHash;

use crate::Settings;

/// How a picture names the checkpoint that it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    /// The file name without its ending.
    pub name: String,
    /// The hash of the whole file.
    pub sha256: ContentHash,
}

impl ModelId {
    /// The name of the checkpoint at `path`, and its hash.
    pub fn new(path: &Path, sha256: ContentHash) -> Self {
        Self { name: model_name(path), sha256 }
    }
}

/// The file name without its ending; a folder's name is whole.
pub(crate) fn model_name(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

impl Settings {
    /// The text that A1111 would write for this picture, in its order, with the source of random numbers stated.
    pub fn parameters(&self, model: &ModelId) -> Parameters {
        let mut parameters = Parameters::new(self.prompt.trim(), self.negative_prompt.trim())
            .with("Steps", self.steps)
            .with("Sampler", self.sampler)
            .with("Schedule type", self.schedule)
            .with("CFG scale", self.cfg_scale)
            .with("Seed", self.seed)
            .with("Size", self.size)
            .with("Model hash", model.sha256.short(10))
            .with("Model", &model.name);
        if self.clip_skip > 1 {
            parameters = parameters.with("Clip skip", self.clip_skip);
        }
        parameters.with("RNG", "CPU").with("Version", format!("vodka {}", env!("CARGO_PKG_VERSION")))
    }
}

#[cfg(test)]
mod tests {
    use vodka_stage::hash_bytes;

    use super::*;

    #[test]
    fn the_text_is_that_of_a1111() {
        let model = ModelId::new(Path::new("models/v3, final.safetensors"), hash_bytes("abc"));
        let settings = Settings {
            prompt: "a cat".into(),
            negative_prompt: "blurry".into(),
            seed: 7,
            cfg_scale: 7.5,
            clip_skip: 2,
            ..Settings::default()
        };
        assert_eq!(
            settings.parameters(&model).to_string(),
            "a cat\nNegative prompt: blurry\nSteps: 20, Sampler: Euler, Schedule type: Automatic, CFG scale: 7.5, Seed: 7, \
             Size: 512x512, Model hash: ba7816bf8f, Model: \"v3, final\", Clip skip: 2, RNG: CPU, Version: vodka 0.1.0"
        );
    }
}
