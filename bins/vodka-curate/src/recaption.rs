//! `vodka-curate recaption`: captions from an external captioner.

use std::{env, fmt, path::PathBuf, process::ExitCode};

use clap::Args;
use vodka_captions::{
    CaptionFormat,
    recaption::{self, RecaptionConfig, RecaptionEvent, Secret},
};
use vodka_cli::{Exit, Session};

#[derive(Args)]
pub struct Recaption {
    /// The folder of pictures, with captions in any format for those that have one
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Take the captions of this table (kohya's JSON, JSONL, CSV or Parquet), or of this folder of caption files
    #[arg(long, value_name = "PATH", conflicts_with = "endpoint")]
    captions: Option<PathBuf>,
    /// The format of --captions: txt, caption, ed2-yaml, kohya-json, jsonl, parquet or csv [default: by the table's ending; of a folder txt]
    #[arg(long, value_name = "FORMAT", requires = "captions")]
    format: Option<CaptionFormat>,
    /// The column of the table that names pictures, if it has an unusual name
    #[arg(long, value_name = "NAME", requires = "captions")]
    image_column: Option<String>,
    /// The column of the table that has captions, if it has an unusual name
    #[arg(long, value_name = "NAME", requires = "captions")]
    caption_column: Option<String>,
    /// The encoding of --captions that are not UTF-8 and have no byte-order mark, such as cp1251 or sjis [default: guessed]
    #[arg(long, value_name = "NAME", requires = "captions")]
    encoding: Option<String>,
    /// Or ask this OpenAI-compatible service, https://HOST/v1
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// The model's name
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// What the service is asked about each picture
    #[arg(long, value_name = "TEXT", default_value = RecaptionConfig::PROMPT)]
    prompt: String,
    /// The environment variable that holds the key for the service
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    api_key_env: Option<String>,
    /// Ask about so many pictures at the same time
    #[arg(long, value_name = "N", default_value_t = 4)]
    concurrency: usize,
    /// Wait so long for an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Put a question again so often that the service could not answer
    #[arg(long, value_name = "N", default_value_t = 5)]
    retries: u32,
    /// Send pictures with no side longer than this
    #[arg(long, value_name = "PIXELS", default_value_t = 1024)]
    max_side: u32,
    /// The most tokens of an answer [default: the service's]
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,
    /// The temperature [default: the service's]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// The table to write, .csv, .jsonl or .parquet (columns: image, original, new, model)
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

/// The variable that should hold the key.
#[derive(Debug)]
struct NoKey(String);

impl fmt::Display for NoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the environment variable `{}` holds no key", self.0)
    }
}

impl std::error::Error for NoKey {}

impl Recaption {
    fn config(self) -> Result<RecaptionConfig, NoKey> {
        let key = |name: String| match env::var(&name) {
            Ok(key) if !key.trim().is_empty() => Ok(Secret::new(&key)),
            _ => Err(NoKey(name)),
        };
        let api_key = self.api_key_env.map(key).transpose()?;
        let Self { images, captions, endpoint, model, prompt, concurrency, timeout, .. } = self;
        Ok(RecaptionConfig {
            images,
            captions,
            format: self.format,
            image_column: self.image_column,
            caption_column: self.caption_column,
            encoding: self.encoding,
            endpoint,
            model,
            prompt,
            api_key,
            concurrency,
            timeout_s: timeout,
            retries: self.retries,
            pause_ms: 1000,
            max_side: self.max_side,
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            output: self.output,
        })
    }
}

impl Recaption {
    /// Runs the stage.
    pub fn run(self, session: &Session) -> ExitCode {
        let config = match self.config() {
            Ok(config) => config,
            Err(error) => return session.fail(&error, Exit::Usage),
        };
        crate::stage(session, config.plan(), |plan, session| {
            let bar = session.progress("images", 0);
            recaption::run(plan, session.interrupt(), &mut |event| match event {
                RecaptionEvent::Started { images, answered } => {
                    bar.set_total(images);
                    bar.start_at(answered);
                }
                RecaptionEvent::Answered { images } => bar.set(images),
                RecaptionEvent::Skipped(_) => {}
            })
        })
    }
}
