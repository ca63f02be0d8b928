//! The arguments of `vodka-curate filter`, and those that every command has that asks a query.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use vodka_captions::{
    Error,
    filter::{self, Action, FilterConfig, FilterEvent, FilterPlan, Method},
    query::Dataset,
};
use vodka_cli::Session;

/// What a query is asked of.
#[derive(Args)]
pub struct DatasetArguments {
    /// The folder of pictures; without it, the pictures are those that the tables name
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// The tag table, Parquet or CSV (columns: image, tag_id, tag, category, score)
    #[arg(long, value_name = "FILE")]
    tags: Option<PathBuf>,
    /// The table of pictures [default: TAGS.pictures.parquet beside TAGS.parquet, if it is there]
    #[arg(long, value_name = "FILE")]
    pictures: Option<PathBuf>,
    /// The folder of captions, in whatever format, in the same subfolders as the pictures [default: the folder of pictures]
    #[arg(long, value_name = "DIR")]
    captions: Option<PathBuf>,
    /// The tagger's selected_tags.csv: tags that may be asked for though no picture has them
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Pictures to leave out: a list that --exclude has written, a CSV with a column `image`, or a name a line; may be given again
    #[arg(long, value_name = "FILE")]
    without: Vec<PathBuf>,
    /// The score at which a tag counts as there where the query does not compare, 0 to 1
    #[arg(long, value_name = "SCORE", default_value_t = 0.3)]
    min_score: f32,
    /// Say so and go on where the query names a tag that is not there
    #[arg(long)]
    lenient: bool,
}

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    dataset: DatasetArguments,
    #[command(flatten)]
    query: QueryArguments,
    #[command(flatten)]
    action: ActionArguments,
    /// Separate the names that --list prints by NUL instead of line feeds, as `xargs -0` takes them
    #[arg(long, requires = "list")]
    null: bool,
    /// Tell how many pictures fit each part of the query
    #[arg(long)]
    explain: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct QueryArguments {
    /// Which pictures: `tag:blurry>0.9 and not tag:monochrome and width>=768 and tokens<=75` (docs/query.md)
    #[arg(long, value_name = "QUERY")]
    query: Option<String>,
    /// A file with the query, in which `#` starts a comment
    #[arg(long, value_name = "FILE")]
    query_file: Option<PathBuf>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct ActionArguments {
    /// Only count the pictures that fit
    #[arg(long)]
    count: bool,
    /// Print their names, one a line
    #[arg(long)]
    list: bool,
    /// Write them to a CSV (image, reason) that --without takes
    #[arg(long, value_name = "FILE")]
    exclude: Option<PathBuf>,
    /// Copy them with their captions into another folder, in the same subfolders
    #[arg(long, value_name = "DIR")]
    copy: Option<PathBuf>,
    /// The same, with hard links instead of copies of the pictures
    #[arg(long, value_name = "DIR")]
    link: Option<PathBuf>,
    /// The same, with symbolic links
    #[arg(long, value_name = "DIR")]
    symlink: Option<PathBuf>,
}

impl DatasetArguments {
    fn config(self) -> Dataset {
        let Self { images, tags, pictures, captions, labels, without, min_score, lenient } = self;
        Dataset { images, tags, pictures, captions, labels, without, min_score, lenient }
    }
}

impl ActionArguments {
    fn config(self) -> Action {
        let place = |output, method| Action::Place { output, method };
        let Self { count: _, list, exclude, copy, link, symlink } = self;
        let placed = copy.map(|output| place(output, Method::Copy));
        let placed = placed.or(link.map(|output| place(output, Method::HardLink)));
        let placed = placed.or(symlink.map(|output| place(output, Method::Symlink)));
        let excluded = exclude.map(|output| Action::Exclude { output });
        placed.or(excluded).unwrap_or(if list { Action::List } else { Action::Count })
    }
}

impl Arguments {
    pub fn run(self, session: &Session) -> ExitCode {
        let end = if self.null { b'\0' } else { b'\n' };
        let QueryArguments { query, query_file } = self.query;
        let (dataset, action, explain) = (self.dataset.config(), self.action.config(), self.explain);
        // With --json the names are in the report.
        let prints = action == Action::List && !session.common().json;
        let plan = FilterConfig { dataset, query, query_file, action, explain }.plan();
        let is_usage = |error: &io::Error| {
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
            cause.is_some_and(Error::is_usage)
        };
        let run = |plan: &FilterPlan, session: &Session| {
            let bar = session.progress("files", 0);
            let mut names = Vec::new();
            let report = filter::run(plan, session.interrupt(), &mut |event| match event {
                FilterEvent::Fits { image } if prints => {
                    names.extend_from_slice(image.as_bytes());
                    names.push(end);
                }
                FilterEvent::Fits { .. } => {}
                FilterEvent::Placing { files } => bar.set_total(files),
                FilterEvent::Placed { files } => bar.set(files),
            });
            print(&names)?;
            report.map_err(io::Error::other)
        };
        session.stage_with(plan.map_err(io::Error::other), run, is_usage)
    }
}

fn print(names: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout();
    match stdout.write_all(names).and_then(|()| stdout.flush()) {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(io::Error::new(error.kind(), format!("cannot write the names: {error}")))
        }
        _ => Ok(()),
    }
}
