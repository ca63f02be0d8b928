//! Captions from an external captioner, beside those that the pictures have.

mod ask;
mod service;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_stage::{
    ContentHash, Error as StageError, Hasher, Interrupt, Outcome, Report, RunKey, RunRecord, hash_file,
    record_path, write_atomic,
};

use self::ask::Reply;
pub use self::ask::Secret;
use crate::{
    CaptionFormat, CaptionSet, CaptionSource, Error, Picture, Result,
    caption::{Skipped, check_apart, resolved},
    caption_table::{self, CaptionPair, Form},
    captioned::{self, Captioned},
    filter::lines,
    formats::format_of,
    heard, read_captions, stop_if,
};

/// New captions as a user wants them: from a file, or from a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecaptionConfig {
    /// The folder of pictures, with captions in any format for those that have one. Of captions that were changed in place
    /// the originals count.
    pub images: PathBuf,
    /// What a captioner has made, in any form that [`crate::read_captions`] knows: a table (kohya's JSON, JSONL, CSV or
    /// Parquet), or a folder of caption files in the same subfolders as the pictures.
    #[serde(default)]
    pub captions: Option<PathBuf>,
    /// The format of that. Default: what the table's name ends with; of a folder `.txt` files.
    #[serde(default)]
    pub format: Option<CaptionFormat>,
    /// The column of the table that names pictures, where that is not one of the usual.
    #[serde(default)]
    pub image_column: Option<String>,
    /// The column of the table that has captions, where that is not one of the usual.
    #[serde(default)]
    pub caption_column: Option<String>,
    /// The encoding of captions that have no byte-order mark and are not UTF-8; without it it is guessed.
    #[serde(default)]
    pub encoding: Option<String>,
    /// Or an OpenAI-compatible service, `https://HOST/v1`.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The model's name, for the service and for the table.
    #[serde(default)]
    pub model: Option<String>,
    /// What the service is asked.
    #[serde(default = "default_prompt")]
    pub prompt: String,
    /// The key for the service. It is sent to it alone, and written nowhere.
    #[serde(skip)]
    pub api_key: Option<Secret>,
    /// How many pictures are asked about at the same time.
    #[serde(default = "four")]
    pub concurrency: usize,
    /// How long an answer may take, in seconds.
    #[serde(default = "two_minutes")]
    pub timeout_s: u64,
    /// How often a question is put again that the service could not answer.
    #[serde(default = "five")]
    pub retries: u32,
    /// The pause before the first time, in milliseconds; then twice as long each time.
    #[serde(default = "a_second")]
    pub pause_ms: u64,
    /// The longest side of the pictures that are sent, in pixels.
    #[serde(default = "default_max_side")]
    pub max_side: u32,
    /// The most tokens of an answer. Default: the service's.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// The service's temperature. Default: the service's.
    #[serde(default)]
    pub temperature: Option<f32>,
    /// The table to write: CSV, JSONL or Parquet, with `image`, `original`, `new` and `model`.
    pub output: PathBuf,
}

fn default_prompt() -> String {
    RecaptionConfig::PROMPT.to_owned()
}

fn four() -> usize {
    4
}

fn five() -> u32 {
    5
}

fn two_minutes() -> u64 {
    120
}

fn a_second() -> u64 {
    1000
}

fn default_max_side() -> u32 {
    1024
}

/// A recaptioning whose settings have been checked; nothing has been read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecaptionPlan {
    /// The folder of pictures.
    pub images: PathBuf,
    /// Where captions come from.
    pub source: Source,
    /// The model's name; may be empty for captions from a file.
    pub model: String,
    /// The table to write.
    pub output: PathBuf,
}

/// Where new captions come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A captioner's table or folder.
    File(Theirs),
    /// A service.
    Service(Service),
}

/// What a captioner has made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Theirs {
    /// The table, or the folder of caption files.
    pub path: PathBuf,
    /// How it is read.
    pub source: CaptionSource,
}

/// An OpenAI-compatible service, and how it is asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Service {
    /// Its address, without what may be secret in it.
    #[serde(serialize_with = "without_secrets")]
    pub endpoint: String,
    /// What it is asked.
    pub prompt: String,
    /// Its key.
    #[serde(skip)]
    pub api_key: Secret,
    /// How many pictures at the same time.
    pub concurrency: usize,
    /// Seconds for an answer.
    pub timeout_s: u64,
    /// How often a question is put again.
    pub retries: u32,
    /// The first pause, in milliseconds.
    pub pause_ms: u64,
    /// The longest side of a picture, in pixels.
    pub max_side: u32,
    /// The most tokens of an answer.
    pub max_tokens: Option<u32>,
    /// The temperature.
    pub temperature: Option<f32>,
}

/// An address without user, password and query, where people put keys.
fn without_secrets<S: serde::Serializer>(endpoint: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let plain = endpoint.split(['?', '#']).next().unwrap_or_default();
    let (scheme, rest) = plain.split_once("://").unwrap_or(("", plain));
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.rsplit('@').next().unwrap_or_default();
    serializer.serialize_str(&format!("{scheme}://{host}/{path}"))
}

impl RecaptionConfig {
    /// What a service is asked unless the user knows better.
    pub const PROMPT: &str =
        "Describe this picture in one sentence, as a caption: what it shows, and how it is made.";

    /// Captions from a file, all else as it is by default.
    pub fn from_file(images: PathBuf, captions: PathBuf, output: PathBuf) -> Self {
        Self {
            images,
            captions: Some(captions),
            format: None,
            image_column: None,
            caption_column: None,
            encoding: None,
            endpoint: None,
            model: None,
            prompt: default_prompt(),
            api_key: None,
            concurrency: four(),
            timeout_s: two_minutes(),
            retries: five(),
            pause_ms: a_second(),
            max_side: default_max_side(),
            max_tokens: None,
            temperature: None,
            output,
        }
    }

    /// Checks what can be checked without reading.
    ///
    /// # Errors
    /// Both a file and a service, or neither; a service without a model; an address that is none; a key that no header can
    /// carry; a setting outside its range; an output among the pictures, that is the input, or of an unknown form.
    pub fn plan(&self) -> Result<RecaptionPlan> {
        let Self { images, captions, endpoint, model, output, .. } = self.clone();
        Form::of(&output)?;
        check_apart(&output, &images)?;
        let source = match (captions, endpoint) {
            (Some(file), None) if resolved(&file) == resolved(&output) => {
                return Err(Error::OutputIsInput { path: output });
            }
            (Some(path), None) => Source::File(self.theirs(path)?),
            (None, Some(endpoint)) => Source::Service(self.service(endpoint)?),
            (Some(_), Some(_)) => return Err(Error::CaptionSource { found: "both" }),
            (None, None) => return Err(Error::CaptionSource { found: "neither" }),
        };
        match (&source, model) {
            (Source::Service(_), None) => Err(Error::NoModel),
            (_, model) => Ok(RecaptionPlan { images, source, model: model.unwrap_or_default(), output }),
        }
    }

    fn theirs(&self, path: PathBuf) -> Result<Theirs> {
        let is_folder = path.is_dir();
        let format = match self.format {
            Some(format) => format,
            None if is_folder => CaptionFormat::Txt,
            None => format_of(&path)?,
        };
        if is_folder && format.extensions().is_empty() {
            return Err(Error::Setting {
                setting: "format",
                expected: "txt, caption or ed2-yaml for a folder of captions".to_owned(),
                found: format.to_string(),
            });
        }
        let Self { image_column, caption_column, encoding, .. } = self.clone();
        let (file, folder) = if is_folder { (None, Some(path.clone())) } else { (Some(path.clone()), None) };
        let source =
            CaptionSource { format, auto: false, file, folder, image_column, caption_column, encoding };
        source.check()?;
        Ok(Theirs { path, source })
    }

    fn service(&self, endpoint: String) -> Result<Service> {
        let Self {
            prompt, concurrency, timeout_s, retries, pause_ms, max_side, max_tokens, temperature, ..
        } = self.clone();
        let ranges = [
            ("concurrency", concurrency as f64, 1.0..=256.0, "1 to 256"),
            ("timeout_s", timeout_s as f64, 1.0..=86_400.0, "1 to 86400 seconds"),
            ("max_side", max_side.into(), 32.0..=16_384.0, "32 to 16384 pixels"),
            ("temperature", temperature.map_or(0.0, crate::caption::decimal), 0.0..=2.0, "0 to 2"),
        ];
        for (setting, found, range, expected) in ranges {
            if !range.contains(&found) {
                return Err(Error::Range { setting, found, expected });
            }
        }
        let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
        if host.is_none_or(|host| host.is_empty() || host.starts_with('/')) {
            return Err(Error::Address { found: endpoint });
        }
        let api_key = match &self.api_key {
            Some(key) if !key.is_usable() => return Err(Error::UnusableKey),
            key => key.clone().unwrap_or_default(),
        };
        Ok(Service {
            endpoint,
            prompt,
            api_key,
            concurrency,
            timeout_s,
            retries,
            pause_ms,
            max_side,
            max_tokens,
            temperature,
        })
    }
}

impl RecaptionPlan {
    /// All that the table depends on.
    ///
    /// # Errors
    /// The pictures or their captions cannot be read.
    pub fn key(&self) -> Result<RunKey> {
        self.key_of(&self.tasks(&Interrupt::new())?.0)
    }

    fn key_of(&self, tasks: &[Task]) -> Result<RunKey> {
        let form = self.output.extension().map(|ending| ending.to_string_lossy());
        let key = match &self.source {
            Source::File(Theirs { path, source }) => {
                let settings = json!({ "model": self.model, "form": form, "source": source.settings() });
                let endings = source.format.extensions();
                let is_caption = |path: &Path| {
                    endings.is_empty()
                        || path.extension().is_some_and(|ending| endings.iter().any(|known| ending == *known))
                };
                RunKey::new("recaption", &settings, None).input("captions", path, is_caption)?
            }
            Source::Service(service) => {
                let settings = json!({ "service": service.settings(&self.model), "form": form });
                RunKey::new("recaption", &settings, None)
            }
        };
        let (mut images, mut originals) = (Hasher::default(), Hasher::default());
        for task in tasks {
            images.piece(&task.picture.image).piece(task.hash.to_string());
            originals.piece(&task.picture.image).piece(&task.original);
        }
        let key = key.input_hashed("images", &self.images, images.finish());
        Ok(key.input_hashed("originals", &self.images, originals.finish()))
    }

    /// Makes sure that the output is not there, or holds captions from the same source: answers are dear.
    fn check_output(&self, record: &Path) -> Result<()> {
        let output = || self.output.clone();
        if !self.output.exists() {
            return Ok(());
        }
        let Ok(found) = RunRecord::read(record) else {
            // Where answers are still missing there is a journal and no record.
            return match &self.source {
                Source::Service(_) if !service::journal_path(&self.output).exists() => {
                    Err(StageError::InTheWay { path: output() }.into())
                }
                _ => Ok(()),
            };
        };
        let found = match found.settings["service"]["model"].as_str() {
            Some(model) => format!("the model `{model}`"),
            None => match found.inputs.get("captions") {
                Some(input) => format!("`{}`", input.path.display()),
                None => return Err(StageError::InTheWay { path: output() }.into()),
            },
        };
        let wanted = match &self.source {
            Source::Service(_) => format!("the model `{}`", self.model),
            Source::File(theirs) => format!("`{}`", theirs.path.display()),
        };
        match found == wanted {
            true => Ok(()),
            false => Err(Error::OtherSource { output: output(), found, wanted }),
        }
    }

    /// The pictures with their captions, and what there is to say about these. What file the picture is only matters where
    /// it is sent.
    fn tasks(&self, interrupt: &Interrupt) -> Result<(Vec<Task>, Vec<String>)> {
        let Captioned { pictures, captions, warnings, .. } = Captioned::originals(&self.images)?;
        let task = |picture: Picture| {
            stop_if(interrupt)?;
            let original = captions.get(&picture.image).map(|caption| caption.text.clone());
            let hash = match self.source {
                Source::File(_) => vodka_stage::hash_bytes(""),
                Source::Service(_) => hash_file(self.images.join(&picture.image))?,
            };
            Ok(Task { picture, original: original.unwrap_or_default(), hash })
        };
        let tasks: Vec<_> = pictures.into_par_iter().map(task).collect::<Result<_>>()?;
        Ok((tasks, warnings))
    }
}

/// A picture that is to get a caption.
struct Task {
    picture: Picture,
    /// The caption that it has.
    original: String,
    hash: ContentHash,
}

/// What a recaptioning tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecaptionEvent {
    /// The pictures have been found.
    Started {
        /// How many.
        images: u64,
        /// How many of them have an answer from an earlier run.
        answered: u64,
    },
    /// So many have an answer.
    Answered {
        /// How many.
        images: u64,
    },
    /// A picture gets no caption.
    Skipped(Skipped),
}

/// What a recaptioning has done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecaptionReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The table.
    pub output: PathBuf,
    /// How many pictures there are.
    pub images: u64,
    /// How many have a new caption.
    pub captions: u64,
    /// Pictures without a new caption.
    pub skipped: Vec<Skipped>,
    /// Pictures whose new caption ends where the answer had to end.
    pub cut: Vec<String>,
    /// Captions of the table that are of no picture in the folder.
    pub absent: u64,
    /// What the user should know about the captions that there are.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl Report for RecaptionReport {
    fn outcome(&self) -> Outcome {
        self.outcome.with_skips(!self.skipped.is_empty())
    }
}

impl fmt::Display for RecaptionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { output, images, captions, .. } = self;
        let output = output.display();
        match self.outcome {
            Outcome::Unchanged => write!(f, "`{output}` is up to date ({captions} new captions)")?,
            Outcome::Interrupted => {
                write!(f, "stopped before `{output}` was written; what was answered is kept")?;
            }
            Outcome::Done | Outcome::Skipped => {
                write!(f, "wrote new captions of {captions} of {images} pictures to `{output}`")?;
            }
        }
        lines(
            f,
            self.skipped.iter().map(|Skipped { image, reason }| format!("skipped `{image}`: {reason}")),
        )?;
        lines(f, self.cut.iter().map(|image| format!("`{image}`: the answer was cut off")))?;
        lines(f, self.warnings.iter().map(|warning| format!("warning: {warning}")))
    }
}

/// What has been found out about each picture: a reply, or why there is none yet.
type Replies = BTreeMap<String, Result<Reply, String>>;

/// Gets the captions and writes the table, unless it is there already.
///
/// Every answer is kept in `<output>.journal` the moment it comes: a run that was killed or stopped, or that could not
/// reach the service for some pictures, asks about the others only.
///
/// # Errors
/// No pictures; two that share a caption; a caption or a file of captions that cannot be read; a service that refuses the
/// key or the address, redirects, or gives no answer for several pictures in a row; an output that cannot be written, that
/// holds captions from another source, or that no run has written.
pub fn run(
    plan: &RecaptionPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(RecaptionEvent),
) -> Result<RecaptionReport> {
    match answer(plan, interrupt, on_event) {
        Err(Error::Stopped) => {
            let (_, report) = outcome(plan, &[], &Replies::new());
            Ok(RecaptionReport { outcome: Outcome::Interrupted, ..report })
        }
        done => done,
    }
}

fn answer(
    plan: &RecaptionPlan,
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(RecaptionEvent),
) -> Result<RecaptionReport> {
    let (asked, flag) = (plan.clone(), interrupt.clone());
    let (tasks, mut warnings, key) = heard(interrupt, move || {
        let (tasks, warnings) = asked.tasks(&flag)?;
        let key = asked.key_of(&tasks)?;
        Ok((tasks, warnings, key))
    })?;
    let record = record_path(&plan.output);
    if let Some(report) = key.made::<RecaptionReport>(&record)? {
        return Ok(RecaptionReport { outcome: Outcome::Unchanged, output: plan.output.clone(), ..report });
    }
    plan.check_output(&record)?;
    let mut absent = 0;
    let replies = match &plan.source {
        Source::File(theirs) => {
            let set = theirs.read(&plan.images, &tasks, interrupt)?;
            absent = set.unknown.len() as u64;
            warnings.extend(captioned::warnings(&set));
            theirs.replies(&set, &tasks)
        }
        Source::Service(service) => service::ask_all(plan, service, &tasks, interrupt, on_event)?,
    };
    let (pairs, mut report) = outcome(plan, &tasks, &replies);
    (report.absent, report.warnings) = (absent, warnings);
    if interrupt.is_raised() {
        return Ok(RecaptionReport { outcome: Outcome::Interrupted, ..report });
    }
    report.skipped.iter().for_each(|skipped| on_event(RecaptionEvent::Skipped(skipped.clone())));
    let table = caption_table::bytes(&plan.output, &pairs)?;
    match plan.source {
        Source::File(_) => drop(key.write_files(&record, &[(&plan.output, &table)], &report)?),
        Source::Service(_) => {
            write_atomic(&plan.output, table)?;
            // Without a record the next run asks again about what could not be answered.
            if tasks.iter().all(|task| matches!(replies.get(&task.picture.image), Some(Ok(_)))) {
                key.write(&record, &[&plan.output], &report)?;
            }
        }
    }
    Ok(report)
}

impl Theirs {
    fn read(&self, images: &Path, tasks: &[Task], interrupt: &Interrupt) -> Result<CaptionSet> {
        let pictures: Vec<_> = tasks.iter().map(|task| task.picture.clone()).collect();
        let (source, root) = (self.source.clone(), images.to_path_buf());
        heard(interrupt, move || read_captions(&source, &root, &pictures))
    }

    fn replies(&self, set: &CaptionSet, tasks: &[Task]) -> Replies {
        let reply = |task: &Task| {
            let image = &task.picture.image;
            let reply = match set.by_image.get(image).map(|found| found.caption.text.as_str()) {
                None => Reply::None(format!("no caption in `{}`", self.path.display())),
                Some("") => Reply::None("the new caption is empty".to_owned()),
                Some(text) => Reply::Caption { text: text.to_owned(), cut: false },
            };
            (image.clone(), Ok(reply))
        };
        tasks.iter().map(reply).collect()
    }
}

/// The rows of the table, and the report.
fn outcome(plan: &RecaptionPlan, tasks: &[Task], replies: &Replies) -> (Vec<CaptionPair>, RecaptionReport) {
    let mut report = RecaptionReport {
        outcome: Outcome::Done,
        output: plan.output.clone(),
        images: tasks.len() as u64,
        captions: 0,
        skipped: Vec::new(),
        cut: Vec::new(),
        absent: 0,
        warnings: Vec::new(),
    };
    let mut pairs = Vec::with_capacity(tasks.len());
    for Task { picture: Picture { image, .. }, original, .. } in tasks {
        let mut pair =
            CaptionPair { image: image.clone(), original: original.clone(), ..CaptionPair::default() };
        match replies.get(image) {
            Some(Ok(Reply::Caption { text, cut })) => {
                report.captions += 1;
                report.cut.extend(cut.then(|| image.clone()));
                (pair.new, pair.model) = (text.clone(), plan.model.clone());
            }
            Some(Ok(Reply::None(reason)) | Err(reason)) => {
                report.skipped.push(Skipped { image: image.clone(), reason: reason.clone() });
            }
            None => {}
        }
        pairs.push(pair);
    }
    if !report.skipped.is_empty() {
        report.outcome = Outcome::Skipped;
    }
    (pairs, report)
}
