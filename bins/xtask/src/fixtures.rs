//! Makes the fixtures anew, each with the script that lies beside it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use walkdir::WalkDir;

use crate::{
    Result,
    process::{run as run_command, say},
    root,
};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// A Python that has the packages of fixtures/requirements.txt; without it an environment is made in .runtime/
    #[arg(long)]
    python: Option<PathBuf>,
    /// Only the fixtures whose path holds this text
    filter: Option<String>,
}

pub fn run(options: &Options) -> Result {
    let python = match &options.python {
        Some(python) => python.clone(),
        None => environment()?,
    };
    let filter = options.filter.as_deref().unwrap_or_default();
    let scripts = generators().into_iter().filter(|script| script.to_string_lossy().contains(filter));
    let mut made = 0;
    for script in scripts {
        let folder = script.parent().expect("a script lies in a folder");
        run_command(Command::new(&python).arg(&script).current_dir(folder))?;
        made += 1;
    }
    say(&format!("{made} fixtures made; `git diff --stat fixtures` shows what changed"));
    Ok(())
}

/// Every `generate.py`, in order of path.
fn generators() -> Vec<PathBuf> {
    let files =
        WalkDir::new(root().join("fixtures")).sort_by_file_name().into_iter().filter_map(|entry| entry.ok());
    files.map(walkdir::DirEntry::into_path).filter(|path| path.ends_with("generate.py")).collect()
}

/// A virtual environment with the reference implementations, made once.
fn environment() -> Result<PathBuf> {
    let folder = root().join(".runtime/reference");
    let python = folder.join("bin/python");
    let requirements = root().join("fixtures/requirements.txt");
    if !python.exists() {
        run_command(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    }
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    run_command(Command::new(&python).args(pip).arg(Path::new(&requirements)))?;
    Ok(python)
}
