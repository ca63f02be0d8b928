//! The `parameters` text of a picture, from its settings and its model.

use std::{path::Path, str::FromStr};

use vodka_merger::ParentId;
use vodka_noise::{RandomSource, SamplerName};
use vodka_prompt::Parameters;

use crate::{Error, ModelId, Result, Settings};

/// The file name without its ending; a folder's name is whole.
pub(crate) fn model_name(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

impl Settings {
    /// The text that A1111 would write for this picture, in its order, with the source of random numbers stated.
    ///
    /// "Model hash" is that of a file, by which A1111 and model pages find it. A merge that is in no file has none; in its
    /// place stand "Merge hash" (the same for the same weights, wherever they come from), "Merge" (the steps with their
    /// weights) and "Merge parents" (the hashes by which these are found).
    pub fn parameters(&self, model: &ModelId) -> Parameters {
        let mut parameters = Parameters::new(self.prompt.trim(), self.negative_prompt.trim())
            .with("Steps", self.steps)
            .with("Sampler", self.sampler)
            .with("Schedule type", self.schedule)
            .with("CFG scale", self.cfg_scale)
            .with("Seed", self.seed)
            .with("Size", self.size);
        parameters = match &model.merge {
            None => parameters.with("Model hash", model.sha256.short(10)).with("Model", &model.name),
            Some(merge) => {
                let parent = |parent: &ParentId| format!("{}: {}", parent.name, parent.sha256.short(10));
                let parents: Vec<_> = merge.parents.iter().map(parent).collect();
                parameters
                    .with("Model", &model.name)
                    .with("Merge hash", model.sha256.short(10))
                    .with("Merge", &merge.steps)
                    .with("Merge parents", parents.join(", "))
            }
        };
        if self.subseed_strength != 0.0 {
            parameters = parameters
                .with("Variation seed", self.subseed)
                .with("Variation seed strength", self.subseed_strength);
        }
        if self.clip_skip > 1 {
            parameters = parameters.with("Clip skip", self.clip_skip);
        }
        if self.ensd != 0 && self.sampler.uses_ensd() {
            parameters = parameters.with("ENSD", self.ensd);
        }
        parameters = parameters.with("RNG", self.rng);
        if let Some(eta) = self.eta {
            let name = if self.sampler.has_timesteps() { "Eta DDIM" } else { "Eta" };
            parameters = parameters.with(name, eta);
        }
        parameters.with("Version", format!("vodka {}", env!("CARGO_PKG_VERSION")))
    }
}

impl Settings {
    /// The settings that a picture's text states; A1111's defaults for what it does not.
    ///
    /// A text without `RNG` is of a picture that was made with a GPU's random numbers, which are those of
    /// [`RandomSource::Nv`] as far as a picture fits one grid of the GPU.
    ///
    /// # Errors
    /// A value that is none, and samplers and schedules that do not exist.
    pub fn from_parameters(parameters: &Parameters) -> Result<Self> {
        let default = Self { rng: RandomSource::Nv, ..Self::default() };
        let (sampler, old_schedule) = match parameters.get("Sampler") {
            Some(name) => SamplerName::split_old(name)?,
            None => (default.sampler, default.schedule),
        };
        let schedule = match parameters.get("Schedule type") {
            // Samplers with timesteps have no choice, whatever A1111 writes.
            Some(name) if !sampler.has_timesteps() => name.parse()?,
            _ => old_schedule,
        };
        let eta = if sampler.has_timesteps() { "Eta DDIM" } else { "Eta" };
        Ok(Self {
            prompt: parameters.prompt.clone(),
            negative_prompt: parameters.negative_prompt.clone(),
            seed: read(parameters, "Seed", "0 to 4294967295")?.unwrap_or(default.seed),
            rng: parameters.get("RNG").map_or(Ok(default.rng), str::parse)?,
            subseed: read(parameters, "Variation seed", "0 to 4294967295")?.unwrap_or(0),
            subseed_strength: read(parameters, "Variation seed strength", "a number")?.unwrap_or(0.0),
            ensd: read(parameters, "ENSD", "0 to 4294967295")?.unwrap_or(0),
            eta: read(parameters, eta, "a number")?,
            steps: read(parameters, "Steps", "a number")?.unwrap_or(default.steps),
            cfg_scale: read(parameters, "CFG scale", "a number")?.unwrap_or(default.cfg_scale),
            size: read(parameters, "Size", "a size such as 512x768")?.unwrap_or(default.size),
            sampler,
            schedule,
            clip_skip: read(parameters, "Clip skip", "a number")?.unwrap_or(1),
        })
    }
}

fn read<T: FromStr>(parameters: &Parameters, field: &str, expected: &'static str) -> Result<Option<T>> {
    let error = |found: &str| Error::Field { field: field.to_owned(), expected, found: found.to_owned() };
    parameters.get(field).map(|found| found.trim().parse().map_err(|_| error(found))).transpose()
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

    #[test]
    fn the_text_makes_the_settings_again() {
        let model = ModelId::new(Path::new("a.safetensors"), hash_bytes("abc"));
        for sampler in SamplerName::ALL {
            let settings = Settings {
                prompt: "a (cat:1.2),\nBREAK [dog:3]".into(),
                negative_prompt: "blurry: yes".into(),
                seed: 7,
                subseed: 8,
                subseed_strength: 0.25,
                ensd: if sampler.uses_ensd() { 31337 } else { 0 },
                eta: Some(0.5),
                rng: RandomSource::Nv,
                sampler,
                size: "512x768".parse().unwrap(),
                clip_skip: 2,
                ..Settings::default()
            };
            let text = settings.parameters(&model).to_string();
            let Ok(read) = text.parse();
            assert_eq!(Settings::from_parameters(&read).unwrap(), settings);
        }
        let Ok(old) = "x\nSteps: 5, Sampler: DPM++ 2M Karras, Seed: 1".parse();
        let settings = Settings::from_parameters(&old).unwrap();
        assert_eq!(
            (settings.sampler.name(), settings.schedule.name(), settings.rng),
            ("DPM++ 2M", "Karras", RandomSource::Nv)
        );
        let Ok(bad) = "x\nSteps: many, Sampler: Euler, Seed: 1".parse();
        let error = Settings::from_parameters(&bad).unwrap_err().to_string();
        assert_eq!(error, "Steps: expected a number, found `many`");
    }
}
