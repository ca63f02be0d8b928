//! What no compiler checks: the arrows between the crates, and the habits of the files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};
use walkdir::WalkDir;

use crate::{
    Result,
    process::{cargo, say},
    root,
};

/// Which of our crates each package may use outside its tests. A package that is not here is an error: a new arrow is
/// a decision.
const ARROWS: &[(&str, &[&str])] = &[
    (UNIFIED, &[]),
    ("vodka-stage", &[]),
    ("vodka-noise", &[]),
    ("vodka-prompt", &[]),
    ("vodka-testkit", &[]),
    ("vodka-cli", &["vodka-stage"]),
    ("vodka-images", &["vodka-stage"]),
    ("vodka-checkpoint", &["vodka-stage"]),
    ("vodka-tagger", &["vodka-stage", "vodka-images"]),
    ("vodka-captions", &["vodka-stage", "vodka-images", "vodka-prompt"]),
    ("vodka-merger", &["vodka-stage", "vodka-checkpoint"]),
    ("vodka-sd15", &["vodka-checkpoint"]),
    (
        "vodka-trainer",
        &["vodka-stage", "vodka-sd15", "vodka-noise", "vodka-prompt", "vodka-images", "vodka-checkpoint"],
    ),
    (
        "vodka-sampler",
        &[
            "vodka-stage",
            "vodka-sd15",
            "vodka-noise",
            "vodka-prompt",
            "vodka-images",
            "vodka-checkpoint",
            "vodka-merger",
        ],
    ),
    (
        "vodka-workflow",
        &[
            "vodka-stage",
            "vodka-images",
            "vodka-tagger",
            "vodka-captions",
            "vodka-trainer",
            "vodka-merger",
            "vodka-sampler",
        ],
    ),
    ("vodka-tag", &["vodka-stage", "vodka-cli", "vodka-tagger"]),
    ("vodka-curate", &["vodka-stage", "vodka-cli", "vodka-captions"]),
    ("vodka-merge", &["vodka-stage", "vodka-cli", "vodka-checkpoint", "vodka-merger"]),
    ("vodka-train", &["vodka-stage", "vodka-cli", "vodka-trainer", "vodka-sampler"]),
    ("vodka-sample", &["vodka-stage", "vodka-cli", "vodka-sampler"]),
    ("vodka-grid", &["vodka-stage", "vodka-cli", "vodka-sampler"]),
    ("vodka", &["vodka-stage", "vodka-cli", "vodka-workflow"]),
    ("vodka-world", &[]),
    ("xtask", &["vodka-stage", "vodka-testkit", "vodka-world"]),
    ("vodka-bench-light", &[]),
    ("vodka-bench-curation", &[]),
    (
        "vodka-bench-torch",
        &["vodka-stage", "vodka-checkpoint", "vodka-sd15", "vodka-trainer", "vodka-sampler"],
    ),
];

/// The features of shared dependencies, which every package takes.
const UNIFIED: &str = "vodka-unified";

/// Who may name a heavy package as its own dependency.
const HEAVY: &[(&str, &[&str])] = &[
    ("ort", &["vodka-tagger"]),
    ("polars", &["vodka-captions"]),
    ("tch", &["vodka-sd15", "vodka-trainer", "vodka-sampler", "vodka-bench-torch"]),
];

/// Who may reach libtorch at all, tests included.
const WITH_LIBTORCH: &[&str] = &[
    "vodka-sd15",
    "vodka-trainer",
    "vodka-sampler",
    "vodka-workflow",
    "vodka-train",
    "vodka-sample",
    "vodka-grid",
    "vodka",
    "vodka-bench-torch",
];

/// What needs no libtorch and is run by name only: it takes minutes, and a gigabyte of disk.
const BY_NAME: &[&str] = &["vodka-bench-curation"];

/// The most that `fixtures/` may hold.
const FIXTURES_BYTES_MAX: u64 = 30_000_000;

pub fn run() -> Result {
    let metadata =
        MetadataCommand::new().current_dir(root()).other_options(vec!["--locked".into()]).exec()?;
    let mut faults = arrow_faults(&metadata);
    faults.extend(libtorch_faults(&metadata));
    faults.extend(default_member_faults(&metadata));
    faults.extend(feature_faults(&metadata)?);
    let files = files()?;
    faults.extend(files.iter().flat_map(|(path, text)| file_faults(path, text)));
    faults.extend(build_script_faults(&files));
    faults.extend(fixture_faults());
    for fault in &faults {
        say(fault);
    }
    match faults.len() {
        0 => {
            say(&format!("tidy: {} packages and {} files are in order", ARROWS.len(), files.len()));
            Ok(())
        }
        n => Err(format!("{n} things are not in order").into()),
    }
}

/// Dependencies, tests' apart, that are not in the tables.
fn arrow_faults(metadata: &Metadata) -> Vec<String> {
    let ours: BTreeSet<&str> =
        metadata.workspace_packages().iter().map(|package| package.name.as_str()).collect();
    let mut faults = Vec::new();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        let Some((_, allowed)) = ARROWS.iter().find(|(of, _)| *of == name) else {
            faults.push(format!("{name}: not in the table of arrows (bins/xtask/src/tidy.rs)"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development) {
            let to = dependency.name.as_str();
            if ours.contains(to) && to != UNIFIED && !allowed.contains(&to) {
                faults.push(format!("{name} -> {to}: not in the table of arrows (bins/xtask/src/tidy.rs)"));
            }
            if HEAVY.iter().any(|(heavy, users)| *heavy == to && !users.contains(&name)) {
                faults.push(format!("{name} -> {to}: only its one user may name this package"));
            }
        }
    }
    faults
}

/// Packages that reach libtorch, directly or through others, and may not.
fn libtorch_faults(metadata: &Metadata) -> Vec<String> {
    let resolve = metadata.resolve.as_ref().expect("cargo metadata resolves");
    let next: BTreeMap<&PackageId, &[PackageId]> =
        resolve.nodes.iter().map(|node| (&node.id, node.dependencies.as_slice())).collect();
    let reaches = |from: &PackageId| {
        let mut seen = BTreeSet::from([from]);
        let mut open = vec![from];
        while let Some(id) = open.pop() {
            if metadata[id].name.as_str() == "torch-sys" {
                return true;
            }
            open.extend(next[id].iter().filter(|id| seen.insert(*id)));
        }
        false
    };
    let packages = metadata.workspace_packages();
    let guilty = packages.iter().filter(|p| reaches(&p.id) && !WITH_LIBTORCH.contains(&p.name.as_str()));
    guilty.map(|package| format!("{}: reaches libtorch and may not", package.name)).collect()
}

/// The default members are all packages without libtorch, and no others.
fn default_member_faults(metadata: &Metadata) -> Vec<String> {
    let default: BTreeSet<_> =
        metadata.workspace_default_packages().iter().map(|p| p.name.to_string()).collect();
    let all = metadata.workspace_packages();
    let elsewhere = |name: &str| WITH_LIBTORCH.contains(&name) || BY_NAME.contains(&name);
    let light = all.iter().map(|p| p.name.to_string()).filter(|name| !elsewhere(name));
    let light: BTreeSet<_> = light.collect();
    let differing = default.symmetric_difference(&light);
    differing.map(|name| format!("{name}: `default-members` are the packages without libtorch")).collect()
}

/// Shared dependencies must have the same features whichever package is built, or they compile again for each.
fn feature_faults(metadata: &Metadata) -> Result<Vec<String>> {
    let together = tree(&["--workspace", "--edges", "normal,build,dev"])?;
    let mut faults = Vec::new();
    for package in metadata.workspace_packages() {
        let alone = tree(&["--package", &package.name, "--edges", "normal,build"])?;
        faults.extend(alone.difference(&together).map(|line| {
            format!(
                "{}: alone it builds `{line}`, with the others it does not: `cargo hakari generate`",
                package.name
            )
        }));
    }
    Ok(faults)
}

/// The lines of `cargo tree`: packages and their features.
fn tree(arguments: &[&str]) -> Result<BTreeSet<String>> {
    let common = ["tree", "--locked", "--prefix", "none", "--format", "{p} {f}"];
    let output = cargo().args(common).args(arguments).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().into());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().map(|line| line.trim_end_matches(" (*)").trim_end().to_owned()).collect())
}

/// Every Rust and Python file of ours, with its text.
fn files() -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for folder in ["crates", "bins", "benches", "fixtures"] {
        for entry in WalkDir::new(root().join(folder)).sort_by_file_name().into_iter().filter_map(|e| e.ok())
        {
            let path = entry.into_path();
            if path.extension().is_some_and(|extension| extension == "rs" || extension == "py") {
                let text =
                    fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                files.push((path.strip_prefix(root())?.to_path_buf(), text));
            }
        }
    }
    Ok(files)
}

fn file_faults(path: &Path, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let rust = path.extension().is_some_and(|extension| extension == "rs");
    let opening = if rust { "//!" } else { "\"\"\"" };
    if !text.starts_with(opening) {
        faults.push(format!(
            "{}:1: expected a line `{opening}` that says what the file is for",
            path.display()
        ));
    }
    // Spelt in two halves, so that this file does not accuse itself.
    for unwanted in [concat!("#[ign", "ore"), concat!("FIX", "ME"), concat!("allow(dead", "_code)")] {
        for (number, _) in text.lines().enumerate().filter(|(_, line)| line.contains(unwanted)) {
            faults.push(format!("{}:{}: `{unwanted}` is not wanted here", path.display(), number + 1));
        }
    }
    faults
}

/// The build scripts of the packages that link libtorch are copies of one.
fn build_script_faults(files: &[(PathBuf, String)]) -> Vec<String> {
    let linking = |text: &str| text.contains("libtorch");
    let scripts: Vec<_> =
        files.iter().filter(|(path, text)| path.ends_with("build.rs") && linking(text)).collect();
    let Some((first, text)) = scripts.first() else { return Vec::new() };
    let differing = scripts.iter().filter(|(_, other)| other != text);
    differing.map(|(path, _)| format!("{}: differs from {}", path.display(), first.display())).collect()
}

fn fixture_faults() -> Option<String> {
    let files =
        WalkDir::new(root().join("fixtures")).into_iter().filter_map(|entry| entry.ok()?.metadata().ok());
    let bytes: u64 = files.filter(|file| file.is_file()).map(|file| file.len()).sum();
    (bytes > FIXTURES_BYTES_MAX)
        .then(|| format!("fixtures/ holds {bytes} bytes, {FIXTURES_BYTES_MAX} are agreed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_it_is_for() {
        assert!(file_faults(Path::new("a.rs"), "//! Adds.\n").is_empty());
        assert_eq!(file_faults(Path::new("a.rs"), "fn main() {}\n").len(), 1);
        assert_eq!(file_faults(Path::new("a.py"), "import os\n").len(), 1);
        let ignored = concat!("//! Adds.\n#[ign", "ore]\n");
        assert!(file_faults(Path::new("a.rs"), ignored)[0].starts_with("a.rs:2:"));
    }

    #[test]
    fn a_copied_build_script_that_was_changed_is_found() {
        let file = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
        let same = [file("a/build.rs", "// libtorch"), file("b/build.rs", "// libtorch")];
        assert!(build_script_faults(&same).is_empty());
        assert_eq!(build_script_faults(&[same[0].clone(), file("c/build.rs", "// libtorch too")]).len(), 1);
    }

    #[test]
    fn the_arrows_of_this_checkout_are_the_agreed_ones() {
        run().unwrap();
    }
}
