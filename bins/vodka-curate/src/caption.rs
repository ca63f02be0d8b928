//! The arguments of `caption`.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};
use vodka_captions::{
    CaptionFormat, CaptionSource, Error, Position,
    caption::{self, CaptionConfig, CaptionDiff, CaptionEvent, Missing, Style},
};
use vodka_cli::{Exit, Session};

use crate::Inputs;

#[derive(Args)]
pub struct Caption {
    #[command(flatten)]
    inputs: Inputs,
    /// The most tags that a caption gets
    #[arg(long, value_name = "N", default_value_t = 3)]
    max_tags: usize,
    /// Where the tags go
    #[arg(long, value_enum, default_value_t = Place::Prepend)]
    position: Place,
    /// What happens to pictures without a caption
    #[arg(long, value_enum, default_value_t = WhenMissing::Skip)]
    missing: WhenMissing,
    /// Where captions are read: auto, txt, caption, ed2-yaml, kohya-json, jsonl, parquet, csv, png or file-name
    #[arg(long, value_name = "FORMAT", default_value = "txt", value_parser = source, help_heading = "Reading")]
    source: (bool, CaptionFormat),
    /// The table of kohya-json, jsonl, parquet or csv [default: meta_cap.json, metadata.jsonl, .parquet or .csv in --images]
    #[arg(long, value_name = "FILE", help_heading = "Reading")]
    source_file: Option<PathBuf>,
    /// The folder of txt, caption or ed2-yaml, in which they lie as the pictures do in --images, as `mix` writes them [default: --images]
    #[arg(long, value_name = "DIR", conflicts_with = "source_file", help_heading = "Reading")]
    source_folder: Option<PathBuf>,
    /// The column of the table that names pictures, if it has an unusual name
    #[arg(long, value_name = "NAME", help_heading = "Reading")]
    image_column: Option<String>,
    /// The column of the table that has captions, if it has an unusual name
    #[arg(long, value_name = "NAME", help_heading = "Reading")]
    caption_column: Option<String>,
    /// The encoding of captions that are not UTF-8 and have no byte-order mark, such as cp1251 or sjis [default: guessed]
    #[arg(long, value_name = "NAME", help_heading = "Reading")]
    encoding: Option<String>,
    /// Pictures that get no caption: a list that `filter --exclude` or `duplicates --exclude` has written, a CSV with a column
    /// `image`, or a name a line; may be given again
    #[arg(long, visible_alias = "exclude-list", value_name = "FILE", help_heading = "Reading")]
    without: Vec<PathBuf>,
    /// Tags that every caption begins with, as they are spelled here; separated by commas
    #[arg(long, value_name = "TAGS", value_delimiter = ',', help_heading = "Captions")]
    fixed: Vec<String>,
    /// The lowest score of one tag, such as blurry=0.5; may be given again
    #[arg(long = "threshold", value_name = "TAG=SCORE", value_parser = threshold, help_heading = "Captions")]
    thresholds: Vec<(String, f32)>,
    /// The lowest score of the tags of a category, such as character=0.85; may be given again
    #[arg(long = "category-threshold", value_name = "CATEGORY=SCORE", value_parser = threshold, help_heading = "Captions")]
    category_thresholds: Vec<(String, f32)>,
    /// What is between tags, and between them and the caption
    #[arg(long, value_name = "TEXT", default_value = ", ", help_heading = "Captions")]
    separator: String,
    /// What captions have where the tags are to be, with --position marker
    #[arg(long, value_name = "TEXT", default_value = vodka_captions::MARKER, help_heading = "Captions")]
    marker: String,
    /// Put a backslash before the brackets and backslashes of tags, as prompts want it
    #[arg(long, help_heading = "Captions")]
    escape: bool,
    /// A template (Jinja2's language) that says the whole caption: caption, tags, all_tags, rating, characters, image, file_name, stem, folder
    #[arg(long, value_name = "TEXT", help_heading = "Captions")]
    template: Option<String>,
    #[command(flatten)]
    destination: Destination,
    /// How captions are written to --output [default: txt]
    #[arg(long, value_name = "FORMAT")]
    format: Option<CaptionFormat>,
    /// Print what would change on stdout, and write nothing
    #[arg(long)]
    diff: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Destination {
    /// The folder to write captions to, in the same subfolders as the pictures
    #[arg(long, short, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Change the captions where they are; each original is kept as .orig, later runs start from it, and `undo` puts it back
    #[arg(long)]
    in_place: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Place {
    /// Before the caption, where tags act most strongly
    Prepend,
    /// After the caption
    Append,
    /// In place of the caption
    Replace,
    /// Where the caption has the marker
    Marker,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhenMissing {
    /// They get none and are listed; exit code 3
    Skip,
    /// They get a caption of tags alone
    Empty,
    /// Nothing is written; exit code 1
    Error,
}

fn source(text: &str) -> Result<(bool, CaptionFormat), String> {
    match text {
        "auto" => Ok((true, CaptionFormat::default())),
        name => Ok((false, name.parse().map_err(|error: Error| error.to_string())?)),
    }
}

/// A name may hold `=` itself, as `=_=` does.
fn threshold(text: &str) -> Result<(String, f32), String> {
    let expected = || "expected a name, `=` and a score from 0 to 1".to_owned();
    let (name, score) = text.rsplit_once('=').ok_or_else(expected)?;
    Ok((name.to_owned(), score.parse().map_err(|_| expected())?))
}

impl Caption {
    /// Runs the stage, or prints what it would change.
    pub fn run(self, session: &Session) -> ExitCode {
        let diff = self.diff;
        let plan = self.config().plan();
        if diff && !session.common().dry_run {
            return match plan {
                Ok(plan) => match caption::diff(&plan, session.interrupt()) {
                    Ok(diff) => print(session, diff),
                    Err(error @ Error::Stopped) => session.fail(&error, Exit::Interrupted),
                    Err(error) if error.is_usage() => session.fail(&error, Exit::Usage),
                    Err(error) => session.fail(&error, Exit::Failed),
                },
                Err(error) => session.fail(&error, Exit::Usage),
            };
        }
        crate::stage(session, plan, |plan, session| {
            let bar = session.progress("captions", 0);
            caption::run(plan, session.interrupt(), &mut |event| match event {
                CaptionEvent::Started { images } => bar.set_total(images),
                CaptionEvent::Skipped(_) => {}
                CaptionEvent::Captioned { images } => bar.set(images),
            })
        })
    }

    fn config(self) -> CaptionConfig {
        let Inputs { tags, selection, images, min_score } = self.inputs;
        let Destination { output, in_place } = self.destination;
        let position = match self.position {
            Place::Prepend => Position::Prepend,
            Place::Append => Position::Append,
            Place::Replace => Position::Replace,
            Place::Marker => Position::Marker,
        };
        let missing = match self.missing {
            WhenMissing::Skip => Missing::Skip,
            WhenMissing::Empty => Missing::Empty,
            WhenMissing::Error => Missing::Error,
        };
        let (auto, format) = self.source;
        let Self { image_column, caption_column, encoding, without, .. } = self;
        let (file, folder) = (self.source_file, self.source_folder);
        let source = CaptionSource { format, auto, file, folder, image_column, caption_column, encoding };
        let Self { separator, marker, escape, fixed, template, .. } = self;
        let (thresholds, category_thresholds) =
            (self.thresholds.into_iter().collect(), self.category_thresholds.into_iter().collect());
        let style = Style { separator, marker, escape, fixed, template, thresholds, category_thresholds };
        let (max_tags, format) = (self.max_tags, self.format);
        CaptionConfig {
            tags,
            selection,
            images,
            output,
            in_place,
            max_tags,
            min_score,
            position,
            missing,
            source,
            format,
            style,
            without,
        }
    }
}

/// A difference is data: it goes to stdout, coloured where that is a terminal.
fn print(session: &Session, mut diff: CaptionDiff) -> ExitCode {
    let exit = if diff.is_complete() { Exit::Done } else { Exit::Skipped };
    if session.common().json {
        return session.print_json(&diff, exit);
    }
    diff.coloured = std::io::stdout().is_terminal();
    session.print(&diff.to_string(), exit)
}
