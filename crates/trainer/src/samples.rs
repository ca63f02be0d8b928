//! Sample pictures while training: the file that says which, and what is asked of whoever makes them.
//!
//! The keys and their meaning are EveryDream2's (victorchall/EveryDream2trainer, `utils/sample_generator.py` at 5098db8).

use std::{
    cell::RefCell,
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vodka_images::RgbImage;
use vodka_noise::{SamplerName, ScheduleName};
use vodka_sd15::StableDiffusion;

use crate::{
    Error, Result,
    keys::{Answer::Told, Idle, Neutral::Null, Vocabulary, read_json},
};

/// What a `.json` file of samples says. A key that is absent has the default stated here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleConfig {
    /// Class resolution in pixels, for samples that state no size. Default: that of training.
    pub resolution: Option<u32>,
    /// The CFG scales of a strip, from left to right. Default: 7, 4 and 1.01.
    pub cfgs: Vec<f64>,
    /// The sampler, by EveryDream2's name. Default: `ddim`.
    pub scheduler: String,
    /// Steps of the sampler. Default: 30.
    pub num_inference_steps: u32,
    /// Whether there are samples before training, too. Default: false.
    pub generate_pretrain_samples: bool,
    /// Batches between two rounds. Default: `sample_steps` of the training configuration.
    pub generate_samples_every_n_steps: Option<u64>,
    /// The seed of samples that state none; -1 draws one for each picture. Default: that of training.
    pub seed: Option<i64>,
    /// The pictures. Default: four captions of the batch in hand.
    pub samples: Option<Vec<SampleEntry>>,
}

/// A picture to be sampled.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SampleEntry {
    /// What it is to show.
    pub prompt: String,
    /// What it is not to show.
    pub negative_prompt: String,
    /// Its seed; -1 draws one. Default: that of the file.
    pub seed: Option<i64>,
    /// Width and height in pixels.
    pub size: Option<[u32; 2]>,
    /// Width over height, where there is no size: a size of this shape with about as many pixels as the resolution's
    /// square. Default: 1.
    pub aspect_ratio: Option<f64>,
    /// Whether a caption of the batch in hand stands in for the prompt. Default: false.
    pub random_caption: bool,
}

impl Default for SampleConfig {
    fn default() -> Self {
        Self {
            resolution: None,
            cfgs: vec![7.0, 4.0, 1.01],
            scheduler: "ddim".to_owned(),
            num_inference_steps: 30,
            generate_pretrain_samples: false,
            generate_samples_every_n_steps: None,
            seed: None,
            samples: None,
        }
    }
}

/// Keys that change no picture: here each is made by itself, and the caller shows how far it is.
const IDLE: &[Idle] = &[
    ("batch_size", &[Null], Told("each picture is made by itself")),
    ("show_progress_bars", &[Null], Told("the bar says how far it is")),
];

/// How many captions of a batch are sampled where nothing else is asked for.
const RANDOM_CAPTIONS: usize = 4;

impl SampleConfig {
    /// Reads a file: `.txt` with a prompt a line, or `.json`.
    pub fn read(path: &Path) -> Result<Self> {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let mut config = Self::default();
        match extension.to_str() {
            Some("txt") => {
                let wrong = |source| Error::Samples { path: path.to_path_buf(), source };
                let text = fs::read_to_string(path).map_err(wrong)?;
                let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
                let prompts = lines.filter(|line| !line.is_empty());
                let entry =
                    |prompt: &str| SampleEntry { prompt: prompt.to_owned(), ..SampleEntry::default() };
                config.samples = Some(prompts.map(entry).collect());
            }
            Some("json") => read_json(path, Vocabulary::of::<Self>(IDLE).fields_of(&mut config))?,
            _ => return Err(Error::SamplesName { path: path.to_path_buf() }),
        }
        let in_file = |source| Error::InFile { path: path.to_path_buf(), source: Box::new(source) };
        config.check().map_err(in_file)?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let within = |key, value: String, good: bool, expected| match good {
            true => Ok(()),
            false => Err(Error::OutOfRange { key, value, expected }),
        };
        for cfg in &self.cfgs {
            within("cfgs", cfg.to_string(), cfg.is_finite() && *cfg >= 0.0, "numbers from 0")?;
        }
        within("cfgs", "[]".into(), !self.cfgs.is_empty(), "one number or more")?;
        let steps = self.num_inference_steps;
        within("num_inference_steps", steps.to_string(), (1..=1000).contains(&steps), "1 to 1000")?;
        let every = self.generate_samples_every_n_steps.unwrap_or(1);
        within("generate_samples_every_n_steps", every.to_string(), every > 0, "at least 1")?;
        for entry in self.samples.iter().flatten() {
            let [width, height] = entry.size.unwrap_or([512; 2]);
            let good = [width, height].iter().all(|side| (64..=2048).contains(side) && side % 64 == 0);
            within("size", format!("{width}x{height}"), good, "two multiples of 64 from 64 to 2048")?;
            let ratio = entry.aspect_ratio.unwrap_or(1.0);
            let good = ratio.is_finite() && ratio > 0.0;
            within("aspect_ratio", ratio.to_string(), good, "a number above 0")?;
        }
        let seeds = self.samples.iter().flatten().filter_map(|entry| entry.seed).chain(self.seed);
        for seed in seeds {
            let good = (-1..=i64::from(u32::MAX)).contains(&seed);
            within("seed", seed.to_string(), good, "-1 (random) to 4294967295")?;
        }
        sampler(&self.scheduler).map(|_| ())
    }

    /// Sampler and spacing of the noise levels.
    pub(crate) fn sampler(&self) -> (SamplerName, ScheduleName) {
        sampler(&self.scheduler).expect("it was checked")
    }

    /// The pictures of a round: `captions` stand in for prompts, `seed` is that of training, and `draw` draws one for
    /// picture `n`.
    pub(crate) fn prompts(
        &self,
        captions: &[String],
        resolution: u32,
        seed: u64,
        draw: &dyn Fn(usize) -> u32,
    ) -> Vec<SamplePrompt> {
        let random = SampleEntry { random_caption: true, ..SampleEntry::default() };
        let random = || vec![random.clone(); captions.len().min(RANDOM_CAPTIONS)];
        let entries = self.samples.clone().filter(|samples| !samples.is_empty()).unwrap_or_else(random);
        let mut captions = captions.iter().cycle();
        let resolution = self.resolution.unwrap_or(resolution);
        let prompt = |(i, entry): (usize, SampleEntry)| {
            let caption = entry.random_caption.then(|| captions.next().cloned()).flatten();
            let stated = entry.seed.or(self.seed);
            let stated = stated.map_or_else(|| u32::try_from(seed).ok(), |seed| u32::try_from(seed).ok());
            let [width, height] =
                entry.size.unwrap_or_else(|| size_of(entry.aspect_ratio.unwrap_or(1.0), resolution));
            SamplePrompt {
                is_caption: entry.random_caption,
                prompt: caption.unwrap_or(entry.prompt),
                negative_prompt: entry.negative_prompt,
                seed: stated.unwrap_or_else(|| draw(i)),
                width,
                height,
            }
        };
        entries.into_iter().enumerate().map(prompt).collect()
    }
}

/// EveryDream2's names, and those of A1111 for the same, best first: the next ones are what comes nearest.
const SCHEDULERS: [(&str, &[&str]); 16] = [
    ("ddim", &["DDIM"]),
    ("pndm", &["PLMS", "LMS", "DDIM"]),
    ("ddpm", &["DDPM", "Euler a", "DDIM"]),
    ("lms", &["LMS", "Euler"]),
    ("euler", &["Euler"]),
    ("euler_a", &["Euler a", "Euler"]),
    ("kdpm2", &["DPM2 a", "DPM2", "Euler"]),
    ("dpm++", &["DPM++ 2M", "Euler"]),
    ("dpm++_2s", &["DPM++ 2S", "DPM++ 2M", "Euler"]),
    ("dpm++_2m", &["DPM++ 2M", "Euler"]),
    ("dpm++_sde", &["DPM++ SDE", "DPM++ 2M", "Euler"]),
    ("dpm++_2m_sde", &["DPM++ 2M SDE", "DPM++ 2M", "Euler"]),
    ("dpm++_2s_k", &["DPM++ 2S", "DPM++ 2M", "Euler"]),
    ("dpm++_2m_k", &["DPM++ 2M", "Euler"]),
    ("dpm++_sde_k", &["DPM++ SDE", "DPM++ 2M", "Euler"]),
    ("dpm++_2m_sde_k", &["DPM++ 2M SDE", "DPM++ 2M", "Euler"]),
];

fn sampler(scheduler: &str) -> Result<(SamplerName, ScheduleName)> {
    let unknown =
        |nearest: &str| Error::Scheduler { found: scheduler.to_owned(), nearest: nearest.to_owned() };
    let entry = |wanted: &str| SCHEDULERS.iter().find(|(name, _)| *name == wanted);
    let Some((_, names)) = entry(scheduler) else {
        let all = SCHEDULERS.iter().map(|(name, _)| *name).filter(|name| is_there(name));
        return Err(unknown(vodka_stage::nearest(scheduler, all).unwrap_or("ddim")));
    };
    if !is_there(scheduler) {
        // The first way to the same end that can be gone.
        let others = names[1..].iter().filter_map(|wanted| {
            SCHEDULERS
                .iter()
                .find(|(name, names)| names[0] == *wanted && is_there(name))
                .map(|(name, _)| *name)
        });
        return Err(unknown(others.into_iter().next().unwrap_or("ddim")));
    }
    let sampler = names[0].parse().expect("it is there");
    let schedule = match scheduler.ends_with("_k") {
        true => "Karras".parse().expect("it is there"),
        false => ScheduleName::default(),
    };
    Ok((sampler, schedule))
}

/// Whether the sampler can do it.
fn is_there(scheduler: &str) -> bool {
    let names = SCHEDULERS.iter().find(|(name, _)| *name == scheduler).map(|(_, names)| names);
    let karras = !scheduler.ends_with("_k") || "Karras".parse::<ScheduleName>().is_ok();
    karras && names.is_some_and(|names| names[0].parse::<SamplerName>().is_ok())
}

/// The size of a shape with about as many pixels as the square of the resolution; as EveryDream2 finds it.
fn size_of(aspect_ratio: f64, resolution: u32) -> [u32; 2] {
    let sides = || (256..1024_u32).step_by(64);
    let pixels = i64::from(resolution).pow(2);
    let sizes = sides().flat_map(|width| sides().map(move |height| [width, height]));
    let good = |[width, height]: &[u32; 2]| (i64::from(width * height) - pixels).abs() <= 128 * 64;
    let distance =
        |[width, height]: [u32; 2]| (1.0 - aspect_ratio / (f64::from(width) / f64::from(height))).abs();
    let best = sizes.filter(good).min_by(|a, b| distance(*a).total_cmp(&distance(*b)));
    best.unwrap_or([resolution, resolution])
}

/// The file of samples of a run, read again before each round.
#[derive(Debug)]
pub(crate) struct SampleFile {
    path: PathBuf,
    config: SampleConfig,
}

impl SampleFile {
    /// Reads the file; where it is not there yet, captions stand in for it.
    pub fn open(path: &Path) -> Result<Self> {
        let config = if path.exists() { SampleConfig::read(path)? } else { SampleConfig::default() };
        Ok(Self { path: path.to_path_buf(), config })
    }

    /// What it says, or said when it could last be read.
    pub fn config(&self) -> &SampleConfig {
        &self.config
    }

    /// Reads it again.
    pub fn reload(&mut self) -> Result<()> {
        self.config = SampleConfig::read(&self.path)?;
        Ok(())
    }
}

/// A picture that is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplePrompt {
    /// What it is to show.
    pub prompt: String,
    /// What it is not to show.
    pub negative_prompt: String,
    /// The seed of its noise.
    pub seed: u32,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Whether the prompt is a caption of the batch in hand.
    pub(crate) is_caption: bool,
}

/// Sample pictures are due: whoever can makes them with these networks, and [gives](SampleRound::give) them back.
#[derive(Debug, Clone, Copy)]
pub struct SampleRound<'a> {
    /// Batches that are done.
    pub step: u64,
    /// The networks as they are, or as their running means are.
    pub model: &'a StableDiffusion,
    /// Whether they are the running means.
    pub ema: bool,
    /// The pictures, a strip each.
    pub prompts: &'a [SamplePrompt],
    /// The CFG scales of a strip, from left to right.
    pub cfgs: &'a [f64],
    /// The sampler.
    pub sampler: SamplerName,
    /// Its spacing of the noise levels.
    pub schedule: ScheduleName,
    /// The sampler's steps.
    pub steps: u32,
    /// The text encoder's layer, counted from the last, which is 1.
    pub clip_skip: u32,
    pub(crate) strips: &'a Strips,
}

/// The strips of a round.
#[derive(Default)]
pub(crate) struct Strips(pub RefCell<Vec<(usize, RgbImage)>>);

impl fmt::Debug for Strips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Strips({})", self.0.borrow().len())
    }
}

impl SampleRound<'_> {
    /// Hands in the strip of prompt number `index`: a picture for each CFG scale, side by side.
    pub fn give(&self, index: usize, strip: RgbImage) {
        self.strips.0.borrow_mut().push((index, strip));
    }
}

impl SamplePrompt {
    /// The text beside the picture.
    pub(crate) fn text(&self) -> String {
        let negative = match self.negative_prompt.is_empty() {
            true => String::new(),
            false => format!("\n negative prompt: {}", self.negative_prompt),
        };
        format!("{}{negative}\n seed: {}", self.prompt, self.seed)
    }

    /// The prompt as a part of a file's name: letters, digits and spaces.
    pub(crate) fn name(&self) -> String {
        let mut name: String =
            self.prompt.chars().filter(|c| c.is_alphanumeric() || *c == ' ').take(100).collect();
        // File systems take 255 bytes, and there is more in the name.
        while name.len() > 200 {
            name.pop();
        }
        name.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use vodka_stage::explain;

    use super::*;

    fn read(name: &str, text: &str) -> Result<SampleConfig> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), text).unwrap();
        SampleConfig::read(&dir.path().join(name))
    }

    fn prompts(config: &SampleConfig, captions: &[&str]) -> Vec<SamplePrompt> {
        let captions: Vec<_> = captions.iter().map(|caption| (*caption).to_owned()).collect();
        config.prompts(&captions, 512, 555, &|i| 1000 + i as u32)
    }

    #[test]
    fn a_text_file_has_a_prompt_a_line() {
        let config = read("a.txt", "\u{feff}a cat\r\n\n  a dog  \n").unwrap();
        let made = prompts(&config, &[]);
        let said: Vec<_> = made.iter().map(|p| (p.prompt.as_str(), p.seed, p.width, p.height)).collect();
        assert_eq!(said, [("a cat", 555, 512, 512), ("a dog", 555, 512, 512)]);
        assert_eq!(config.sampler(), (SamplerName::Ddim, ScheduleName::Automatic));
    }

    #[test]
    fn an_empty_file_takes_captions_of_the_batch() {
        let config = read("a.txt", "").unwrap();
        let made = prompts(&config, &["one", "two", "three", "four", "five"]);
        let said: Vec<_> = made.iter().map(|prompt| prompt.prompt.as_str()).collect();
        assert_eq!(said, ["one", "two", "three", "four"]);
        assert!(made[0].is_caption && prompts(&config, &[]).is_empty());
    }

    #[test]
    fn a_json_file_says_more() {
        let config = read(
            "a.json",
            r#"{"batch_size": 3, "seed": 7, "cfgs": [1, 9.5], "scheduler": "euler", "num_inference_steps": 12,
            "generate_samples_every_n_steps": 100, "generate_pretrain_samples": true, "samples": [
                {"prompt": "a", "negative_prompt": "b", "size": [640, 384]},
                {"prompt": "c", "seed": -1, "aspect_ratio": 1.77778}, {"random_caption": true, "seed": 9}]}"#,
        )
        .unwrap();
        assert_eq!((config.cfgs.as_slice(), config.num_inference_steps), (&[1.0, 9.5][..], 12));
        let made = prompts(&config, &["from the batch"]);
        assert_eq!((made[0].seed, made[0].width, made[0].height), (7, 640, 384));
        // What EveryDream2's function says for 512 and 16:9.
        assert_eq!((made[1].seed, made[1].width, made[1].height), (1001, 704, 384));
        assert_eq!((made[2].seed, made[2].prompt.as_str()), (9, "from the batch"));
        assert_eq!(made[0].text(), "a\n negative prompt: b\n seed: 7");
    }

    #[test]
    fn names_of_files_are_safe() {
        let name = |prompt: &str| {
            SamplePrompt { prompt: prompt.into(), ..prompts(&read("a.txt", "x").unwrap(), &[])[0].clone() }
                .name()
        };
        assert_eq!(name("../a cat, (1.2) \"x\"  "), "a cat 12 x");
        assert!(name(&"猫".repeat(300)).len() <= 200);
    }

    #[test]
    fn what_is_wrong_in_a_file_is_told() {
        let said = |name: &str, text: &str| explain(&read(name, text).unwrap_err());
        assert!(said("a.json", r#"{"sampels": []}"#).contains("did you mean `samples`?"));
        assert!(said("a.json", r#"{"samples": [{"promt": 1}]}"#).contains("unknown field `promt`"));
        assert!(said("a.yaml", "").contains("expected a name that ends in .txt or .json"));
        let said_of_cfgs = said("a.json", r#"{"cfgs": []}"#);
        assert!(
            said_of_cfgs.ends_with("a.json`: `cfgs` is [], expected one number or more"),
            "{said_of_cfgs}"
        );
        assert!(said("a.json", r#"{"samples": [{"size": [100, 64]}]}"#).contains("`size` is 100x64"));
        assert!(
            said("a.json", r#"{"scheduler": "dim"}"#)
                .ends_with("no scheduler `dim`: the nearest that is there is `ddim`")
        );
    }

    #[test]
    fn every_scheduler_of_everydream2_works_or_names_one_that_does() {
        for (name, _) in SCHEDULERS {
            match sampler(name) {
                Ok(_) => {}
                Err(Error::Scheduler { nearest, .. }) => {
                    assert!(sampler(&nearest).is_ok(), "{name}: {nearest}");
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }
}
