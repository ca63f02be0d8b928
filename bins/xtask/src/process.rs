//! Child processes, and what we say while they run.

use std::{env, path::Path, process::Command};

use crate::{Result, root};

/// Prints a line.
#[expect(clippy::print_stderr, reason = "xtask talks to people")]
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// Cargo, as it was called, in the root of the checkout.
///
/// Without what cargo told us about this package: the build scripts of some dependencies look at these variables, and
/// all that stands on them would compile again.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    let of_this_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_this_package)) {
        command.env_remove(name);
    }
    command
}

/// Runs a command to its end; another exit code than 0 is an error that shows the command.
pub fn run(command: &mut Command) -> Result {
    let shown = show(command);
    say(&format!("$ {shown}"));
    let status = command.status().map_err(|error| format!("cannot run `{shown}`: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{shown}` ended with {status}").into()) }
}

/// A command as it would be typed, with the checkout's folder left out.
fn show(command: &Command) -> String {
    let root = root().display().to_string() + "/";
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy();
    let mut text = name.into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy().replace(&root, ""));
    }
    text
}
