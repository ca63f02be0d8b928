//! Merges Stable Diffusion 1.x checkpoints.

mod convert;
mod diagnose;
mod extract;
mod inspect;
mod methods;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use vodka_cli::{Common, Exit, Session, hash_cache};
use vodka_merger::{Error, MergeEvent, MergePlan, Preview, Recipe, Result, run};

use methods::MergeCommand;

/// Merges Stable Diffusion 1.x checkpoints, in fp32, a block at a time
///
/// A checkpoint is a single file or a diffusers folder. The result is a single .safetensors file whose metadata holds the
/// recipe and names its parents. Exit codes: 0 done, 1 failed, 2 wrong usage, 4 interrupted.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Merge(MergeCommand),
    /// What a TOML recipe says, or once more what a merged file was made by
    Run {
        /// The recipe, or a merged .safetensors file; relative paths in a recipe start at the current folder
        recipe: PathBuf,
        /// The file to write, where the recipe has one output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        moved: Moved,
    },
    /// Tell by block and tensor in what two checkpoints differ
    Diff(diagnose::DiffArguments),
    /// Tell whether a merged file is, bit for bit, what the recipe in its metadata makes
    Verify(diagnose::VerifyArguments),
    /// Make a LoRA of the difference of two checkpoints
    ExtractLora(extract::Arguments),
    /// Tell what is in a file: architecture, precision, parts, hashes, metadata, ranges of values
    Inspect(inspect::Arguments),
    /// Write a checkpoint in another form: format, precision, without its EMA copy, with another VAE
    Convert(convert::Arguments),
}

/// Parents that are not where a recipe says.
#[derive(Debug, clap::Args)]
struct Moved {
    /// Where a parent is, for recipes whose parents have moved
    #[arg(long = "parent", value_name = "NAME=PATH", value_parser = parent)]
    parents: Vec<(String, PathBuf)>,
}

fn parent(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or_else(|| format!("expected NAME=PATH, found `{text}`"))?;
    Ok((name.to_owned(), path.into()))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let session = Session::start(arguments.common);
    match arguments.command {
        Command::Merge(merge) => merge_by(&session, merge.recipe()),
        Command::Run { recipe, output, moved } => merge_by(&session, recipe_at(&recipe, output, &moved)),
        Command::Diff(arguments) => arguments.run(&session),
        Command::Verify(arguments) => arguments.run(&session),
        Command::ExtractLora(arguments) => arguments.run(&session),
        Command::Inspect(arguments) => arguments.run(&session),
        Command::Convert(arguments) => arguments.run(&session),
    }
}

/// A recipe with what the command line says otherwise.
fn recipe_at(path: &Path, output: Option<PathBuf>, moved: &Moved) -> Result<Recipe> {
    let mut recipe = Recipe::read(path)?;
    for (name, path) in &moved.parents {
        let known = recipe.parents.iter_mut().find(|parent| parent.name == *name);
        known.ok_or_else(|| Error::NoParent { name: name.clone() })?.path.clone_from(path);
    }
    if let Some(output) = output {
        let [only] = recipe.outputs.as_mut_slice() else {
            return Err(Error::SeveralOutputs { found: recipe.outputs.len() });
        };
        only.file = output;
    }
    Ok(recipe)
}

fn merge_by(session: &Session, recipe: Result<Recipe>) -> ExitCode {
    let plan = recipe.and_then(|recipe| recipe.plan()).map(with_cache);
    if session.common().dry_run {
        return match plan {
            Err(error) => session.fail(&error, Exit::Usage),
            Ok(plan) => match Preview::of(&plan) {
                Err(error) => session.fail(&error, Exit::Failed),
                Ok(preview) => session.print_json(&preview, Exit::Done),
            },
        };
    }
    session.stage(plan, |plan, session| {
        let bar = session.progress("MB", 0);
        run(plan, session.interrupt(), &mut |event| match event {
            MergeEvent::Started { bytes } => bar.set_total(bytes / 1_000_000),
            MergeEvent::Merged { bytes } => bar.set(bytes / 1_000_000),
        })
    })
}

fn with_cache(plan: MergePlan) -> MergePlan {
    MergePlan { hash_cache: hash_cache(), ..plan }
}
