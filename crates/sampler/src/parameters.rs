//! The `parameters` text of a picture, from its settings and its model.

use std::{fmt, path::Path, str::FromStr};

use vodka_merger::ParentId;
use vodka_noise::{RandomSource, SamplerName};
use vodka_prompt::{Emphasis, Parameters};

use crate::{
    Error, Hires, HiresTarget, HiresUpscaler, ImageToImage, ModelId, Result, Settings, Size, Used,
    control::{is_unit, units_of},
};

/// The file name without its ending; a folder's name is whole.
pub(crate) fn model_name(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}

/// Lists as A1111 writes them: `name: hash, name: hash`.
fn hashes(of: &[(String, String)]) -> String {
    let entry = |(name, hash): &(String, String)| format!("{}: {hash}", name.replace([':', ','], ""));
    of.iter().map(entry).collect::<Vec<_>>().join(", ")
}

impl Settings {
    /// The text that A1111 would write for this picture, in its order, with the source of random numbers stated.
    ///
    /// "Model hash" is that of a file, by which A1111 and model pages find it. A merge that is in no file has none; in its
    /// place stand "Merge hash" (the same for the same weights, wherever they come from), "Merge" (the steps with their
    /// weights) and "Merge parents" (the hashes by which these are found).
    pub fn parameters(&self, model: &ModelId) -> Parameters {
        self.parameters_with(model, &Used::default())
    }

    /// The same with the files that the prompts name.
    pub fn parameters_with(&self, model: &ModelId, used: &Used) -> Parameters {
        let mut all = Parameters::new(self.prompt.trim(), self.negative_prompt.trim());
        let mut add = |name: &str, value: Option<String>| {
            all.fields.extend(value.map(|value| (name.to_owned(), value)));
        };
        add("Steps", Some(self.steps.to_string()));
        add("Sampler", Some(self.sampler.to_string()));
        add("Schedule type", Some(self.schedule.to_string()));
        add("CFG scale", Some(self.cfg_scale.to_string()));
        add("Seed", Some(self.seed.to_string()));
        add("Size", Some(self.size.to_string()));
        let merge = model.merge.as_ref();
        add("Model hash", merge.is_none().then(|| model.sha256.short(10)));
        add("Model", Some(model.name.clone()));
        add("Merge hash", merge.map(|_| model.sha256.short(10)));
        add("Merge", merge.map(|merge| merge.steps.clone()));
        let parent = |parent: &ParentId| format!("{}: {}", parent.name, parent.sha256.short(10));
        let parents = merge.map(|merge| merge.parents.iter().map(parent).collect::<Vec<_>>().join(", "));
        add("Merge parents", parents);
        add("VAE hash", model.vae.as_ref().map(|(_, sha256)| sha256.short(10)));
        add("VAE", model.vae.as_ref().map(|(path, _)| model_name(path)));
        let is_variation = self.subseed_strength != 0.0;
        add("Variation seed", is_variation.then(|| self.subseed.to_string()));
        add("Variation seed strength", is_variation.then(|| self.subseed_strength.to_string()));
        add("Seed resize from", self.seed_resize_from.map(|size| size.to_string()));
        let image = self.image.as_ref();
        let strength = image.map(|image| image.denoising_strength);
        let strength = strength.or(self.hires.as_ref().map(|hires| hires.denoising_strength));
        add("Denoising strength", strength.map(|strength| strength.to_string()));
        add("Clip skip", (self.clip_skip > 1).then(|| self.clip_skip.to_string()));
        add("ENSD", (self.ensd != 0 && self.sampler.uses_ensd()).then(|| self.ensd.to_string()));
        add("Init image hash", image.map(|image| image.hash.clone()).filter(|hash| !hash.is_empty()));
        add("RNG", Some(self.rng.to_string()));
        add("Tiling", self.tiling.then(|| "True".to_owned()));
        // From here on what A1111 calls extra, each with its own option or script.
        for (i, unit) in self.controls.iter().enumerate() {
            add(&format!("ControlNet {i}"), Some(unit.text()));
        }
        if let Some(hires) = &self.hires {
            hires_fields(self, hires).into_iter().for_each(|(name, value)| add(name, value));
        }
        add(
            "Resize mode",
            image.map(|i| i.resize_mode).filter(|m| *m != Default::default()).map(|m| m.to_string()),
        );
        add(EXACT_STEPS, image.filter(|image| image.exact_steps).map(|_| "True".to_owned()));
        add("Lora hashes", Some(hashes(&used.loras)).filter(|text| !text.is_empty()));
        add("TI hashes", Some(hashes(&used.embeddings)).filter(|text| !text.is_empty()));
        let has_brackets = self.prompt.contains(['(', '[']) || self.negative_prompt.contains(['(', '[']);
        let is_other = self.emphasis != Emphasis::Original && has_brackets;
        add("Emphasis", is_other.then(|| self.emphasis.to_string()));
        add(OLD_RULE, self.old_prompt_rule.then(|| "True".to_owned()));
        let eta = if self.sampler.has_timesteps() { "Eta DDIM" } else { "Eta" };
        add(eta, self.eta.map(|eta| eta.to_string()));
        add("Version", Some(format!("vodka {}", env!("CARGO_PKG_VERSION"))));
        all
    }
}

/// What a text says of a hires pass, beside its strength: what differs from the first pass.
fn hires_fields(first: &Settings, hires: &Hires) -> [(&'static str, Option<String>); 9] {
    let text = |own: &String, other: &String| Some(own.clone()).filter(|own| !own.is_empty() && own != other);
    let sampler = hires.sampler.filter(|sampler| *sampler != first.sampler);
    let schedule = hires.schedule.filter(|schedule| *schedule != first.schedule);
    let (scale, size) = match hires.target {
        HiresTarget::Scale(scale) => (Some(scale.to_string()), None),
        HiresTarget::Size(size) => (None, Some(size.to_string())),
    };
    let hash = Some(hires.upscaler_hash.clone()).filter(|hash| !hash.is_empty());
    [
        ("Hires sampler", sampler.map(|sampler| sampler.to_string())),
        ("Hires prompt", text(&hires.prompt, &first.prompt)),
        ("Hires negative prompt", text(&hires.negative_prompt, &first.negative_prompt)),
        ("Hires schedule type", schedule.map(|schedule| schedule.to_string())),
        ("Hires upscale", scale),
        ("Hires resize", size),
        ("Hires steps", (hires.steps > 0).then(|| hires.steps.to_string())),
        ("Hires upscaler", Some(hires.upscaler.to_string())),
        ("Hires upscaler hash", hash),
    ]
}

/// A1111's option "With img2img, do exactly the amount of steps the slider specifies", which has no key there.
const EXACT_STEPS: &str = "Exact steps";
/// A1111's option "Use old prompt editing timelines".
const OLD_RULE: &str = "Old prompt editing timelines";

impl Settings {
    /// The settings that a picture's text states; A1111's defaults for what it does not.
    ///
    /// A text without `RNG` is of a picture that was made with a GPU's random numbers, which are those of
    /// [`RandomSource::Nv`] as far as a picture fits one grid of the GPU. A text of a version before 1.6.0 has prompts by
    /// the rule of that time.
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
        let emphasis =
            |found: &str| found.parse().map_err(|_| field("Emphasis", "a mode of emphasis", found));
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
            emphasis: parameters.get("Emphasis").map_or(Ok(default.emphasis), emphasis)?,
            old_prompt_rule: is_true(parameters, OLD_RULE) || is_of_before_1_6(parameters),
            tiling: is_true(parameters, "Tiling"),
            seed_resize_from: read(parameters, "Seed resize from", "a size such as 512x768")?,
            image: image_of(parameters)?,
            controls: units_of(parameters),
            hires: hires_of(parameters)?,
        })
    }
}

fn is_true(parameters: &Parameters, field: &str) -> bool {
    parameters.get(field).is_some_and(|value| value.trim() == "True")
}

/// Whether a text is of a version of A1111 before 1.6.0, and the prompt has brackets that this makes a difference to.
fn is_of_before_1_6(parameters: &Parameters) -> bool {
    let version = parameters.get("Version").and_then(|version| version.trim().strip_prefix('v'));
    let mut numbers = version.unwrap_or_default().split('.').map(|number| number.parse::<u32>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (1, 6) && parameters.prompt.contains('['),
        _ => false,
    }
}

/// A picture that was made from another has a strength of denoising, and so has one with a hires pass, which has more.
fn image_of(parameters: &Parameters) -> Result<Option<ImageToImage>> {
    let strength = read(parameters, "Denoising strength", "a number")?;
    let Some(denoising_strength) = strength.filter(|_| !has_hires(parameters)) else { return Ok(None) };
    let resize_mode = parameters.get("Resize mode").map_or(Ok(Default::default()), str::parse)?;
    let hash = parameters.get("Init image hash").unwrap_or_default().to_owned();
    let exact_steps = is_true(parameters, EXACT_STEPS);
    Ok(Some(ImageToImage { denoising_strength, exact_steps, resize_mode, hash, after_calls: None }))
}

/// The hires pass that a text states, with A1111's defaults of its programming interface; an upscaler of a file has its name for
/// its path.
fn hires_of(parameters: &Parameters) -> Result<Option<Hires>> {
    if !has_hires(parameters) {
        return Ok(None);
    }
    let text = |field: &str| parameters.get(field).unwrap_or_default().to_owned();
    let size: Option<Size> = read(parameters, "Hires resize", "a size such as 512x768")?;
    let scale = read(parameters, "Hires upscale", "a number")?.unwrap_or(2.0);
    let (sampler, old_schedule) = match parameters.get("Hires sampler").map(SamplerName::split_old) {
        Some(found) => found.map(|(sampler, schedule)| (Some(sampler), Some(schedule)))?,
        None => (None, None),
    };
    let has_timesteps = sampler.is_some_and(SamplerName::has_timesteps);
    let schedule = match parameters.get("Hires schedule type") {
        Some(name) if !has_timesteps => Some(name.parse()?),
        // An old name says the schedule too; one without leaves it as it is in the first pass.
        _ => old_schedule.filter(|schedule| *schedule != Default::default()),
    };
    let upscaler = parameters.get("Hires upscaler").unwrap_or("Latent");
    let Ok(upscaler) = upscaler.parse::<HiresUpscaler>();
    Ok(Some(Hires {
        target: size.map_or(HiresTarget::Scale(scale), HiresTarget::Size),
        upscaler,
        upscaler_hash: text("Hires upscaler hash"),
        denoising_strength: read(parameters, "Denoising strength", "a number")?.unwrap_or(0.75),
        steps: read(parameters, "Hires steps", "a number")?.unwrap_or(0),
        sampler,
        schedule,
        prompt: text("Hires prompt"),
        negative_prompt: text("Hires negative prompt"),
    }))
}

fn has_hires(parameters: &Parameters) -> bool {
    ["Hires upscale", "Hires resize", "Hires upscaler"].iter().any(|field| parameters.get(field).is_some())
}

/// What a report tells of a text that was followed: what it asks for beyond, and files that are not those which it names.
pub(crate) fn tell_of_text(
    f: &mut fmt::Formatter<'_>,
    not_followed: &[String],
    other_files: &[String],
) -> fmt::Result {
    if !not_followed.is_empty() {
        write!(f, "\nthe text asks for more, which was not done: {}", not_followed.join(", "))?;
    }
    for other in other_files {
        write!(f, "\nanother file than the text's: {other}")?;
    }
    Ok(())
}

/// The fields of a picture's text that had to do with how it looks and that [`Settings`] do not follow: those of the refiner, of
/// scripts, of ControlNets with other preprocessors, of another checkpoint or guidance in the hires pass.
pub fn not_followed(parameters: &Parameters) -> Vec<String> {
    const STARTS: [&str; 16] = [
        "Ultimate SD upscale",
        "Hires checkpoint",
        "Hires CFG",
        "Postprocess ",
        "Refiner",
        "Image CFG scale",
        "Face restoration",
        "Conditional mask weight",
        "Token merging",
        "NGMS",
        "Skip Early CFG",
        "Mask ",
        "ControlNet",
        "Sigma ",
        "Pad conds",
        "Discard penultimate sigma",
    ];
    const MORE: [&str; 6] = [
        "Schedule m",
        "Schedule rho",
        "Downcast alphas_cumprod",
        "SGM noise multiplier",
        "Hypernet",
        "Soft inpainting",
    ];
    let is_one = |name: &&String| STARTS.iter().chain(&MORE).any(|start| name.starts_with(start));
    let others = parameters.fields.iter().filter(|field| !is_unit(field));
    others.map(|(name, _)| name).filter(is_one).cloned().collect()
}

fn field(name: &str, expected: &'static str, found: &str) -> Error {
    Error::Field { field: name.to_owned(), expected, found: found.to_owned() }
}

pub(crate) fn read<T: FromStr>(
    parameters: &Parameters,
    field: &str,
    expected: &'static str,
) -> Result<Option<T>> {
    let error = |found: &str| self::field(field, expected, found);
    parameters.get(field).map(|found| found.trim().parse().map_err(|_| error(found))).transpose()
}

#[cfg(test)]
mod tests {
    use vodka_stage::hash_bytes;

    use super::*;
    use crate::ControlUnit;

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
    fn files_that_prompts_name_have_their_hashes_in_the_text() {
        let model = ModelId {
            vae: Some(("dir/vae-ft-mse.pt".into(), hash_bytes("abcd"))),
            ..ModelId::new(Path::new("m.safetensors"), hash_bytes("abc"))
        };
        let pair = |name: &str, hash: &str| (name.to_owned(), hash.to_owned());
        let used = Used {
            loras: vec![pair("a", "1111"), pair("b:c", "2222")],
            embeddings: vec![pair("bad, hands", "3333")],
        };
        let text = Settings::default().parameters_with(&model, &used).to_string();
        assert!(text.starts_with("Steps: 20, "), "{text}");
        assert!(text.contains("Model: m, VAE hash: 88d4266fd4, VAE: vae-ft-mse, RNG: CPU, "), "{text}");
        let expected = r#"Lora hashes: "a: 1111, bc: 2222", TI hashes: "bad hands: 3333", "#;
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn the_text_makes_the_hires_pass_again() {
        let model = ModelId::new(Path::new("a.safetensors"), hash_bytes("abc"));
        let base = Settings { prompt: "a cat".into(), ..Settings::default() };
        let of = |hires: Hires| Settings { hires: Some(hires), ..base.clone() };
        let all = [
            Hires::default(),
            Hires {
                target: HiresTarget::Size("1024x0".parse().unwrap()),
                upscaler: HiresUpscaler::Pixels("4x-UltraSharp".to_owned().into()),
                upscaler_hash: "0123456789".into(),
                denoising_strength: 0.35,
                steps: 12,
                sampler: Some(SamplerName::Dpmpp2m),
                schedule: Some(vodka_noise::ScheduleName::Karras),
                prompt: "a large, sharp cat".into(),
                negative_prompt: "blurry".into(),
            },
            Hires { upscaler: "Latent (nearest-exact)".parse().unwrap(), ..Hires::default() },
            Hires {
                sampler: Some(SamplerName::Ddim),
                upscaler: "nearest".parse().unwrap(),
                ..Hires::default()
            },
        ];
        for hires in all {
            let settings = of(hires);
            let Ok(read) = settings.parameters(&model).to_string().parse();
            assert_eq!(
                Settings::from_parameters(&read).unwrap(),
                Settings { rng: RandomSource::Cpu, ..settings }
            );
            assert!(not_followed(&read).is_empty());
        }
        let hires = Hires { steps: 9, prompt: "a dog, a cat".into(), ..Hires::default() };
        let text = of(hires).parameters(&model).to_string();
        let expected = "Denoising strength: 0.7, RNG: CPU, Hires prompt: \"a dog, a cat\", Hires upscale: 2, Hires steps: 9, \
                        Hires upscaler: Latent, Version: vodka";
        assert!(text.contains(expected), "{text}");
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
                emphasis: Emphasis::NoNorm,
                old_prompt_rule: true,
                tiling: true,
                seed_resize_from: Some("256x64".parse().unwrap()),
                image: Some(ImageToImage {
                    denoising_strength: 0.4,
                    exact_steps: true,
                    resize_mode: crate::ResizeMode::Crop,
                    hash: "0123456789".into(),
                    after_calls: None,
                }),
                controls: vec![ControlUnit { name: "tile [0123abcd]".into(), ..ControlUnit::default() }],
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
        let Ok(hires) = "x\nSteps: 5, Sampler: Euler a, Seed: 1, Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent, \
             Refiner: x, Version: v1.5.2".parse();
        assert_eq!(Settings::from_parameters(&hires).unwrap().image, None);
        assert_eq!(not_followed(&hires), ["Refiner"]);
        let expected = Hires { denoising_strength: 0.5, ..Hires::default() };
        assert_eq!(Settings::from_parameters(&hires).unwrap().hires, Some(expected));
        let Ok(more) = "x\nSteps: 5, Hires upscale: 2, Hires CFG Scale: 3, Hires checkpoint: y".parse();
        assert_eq!(not_followed(&more), ["Hires CFG Scale", "Hires checkpoint"]);
        let Ok(image) = "[x:0.5]\nSteps: 5, Seed: 1, Denoising strength: 0.5, Version: v1.5.2".parse();
        let settings = Settings::from_parameters(&image).unwrap();
        assert_eq!(settings.image, Some(ImageToImage { denoising_strength: 0.5, ..ImageToImage::default() }));
        assert!(settings.old_prompt_rule);
        let Ok(bad) = "x\nSteps: 5, Hires upscale: two, Seed: 1".parse();
        let error = Settings::from_parameters(&bad).unwrap_err().to_string();
        assert_eq!(error, "Hires upscale: expected a number, found `two`");
        let Ok(bad) = "x\nSteps: many, Sampler: Euler, Seed: 1".parse();
        let error = Settings::from_parameters(&bad).unwrap_err().to_string();
        assert_eq!(error, "Steps: expected a number, found `many`");
    }
}
