//! The V3 experiment in small: draws the pictures, composes the models, builds the binary, runs the recipe.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use vodka_world::WorldConfig;

use crate::{
    Result, claims,
    process::{cargo, run as run_command, say},
    root, setup,
};

const RECIPE: &str = "docs/recipes/v3-demo.toml";
const QUICK: &str = "docs/recipes/v3-quick.toml";

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Run this recipe instead
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// A first look: less training, fewer pictures, one probe
    #[arg(long, conflicts_with = "recipe")]
    quick: bool,
    /// Train with another seed, into demo/NAME-seed-N
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Make everything anew in demo/check, and check what the experiment must show
    #[arg(long, conflicts_with_all = ["recipe", "quick", "seed"])]
    check: bool,
}

impl Options {
    fn recipe(&self) -> PathBuf {
        let of = if self.quick { QUICK } else { RECIPE };
        root().join(self.recipe.as_deref().unwrap_or(Path::new(of)))
    }

    /// Another folder than the recipe's.
    fn output(&self) -> Option<PathBuf> {
        let recipe = self.recipe();
        let name = recipe.file_stem().unwrap_or_default().to_string_lossy();
        let of_seed = |seed| format!("{}-seed-{seed}", name.trim_end_matches("-demo"));
        let folder = if self.check { Some("check".to_owned()) } else { self.seed.map(of_seed) };
        folder.map(|folder| root().join("demo").join(folder))
    }
}

pub fn run(options: &Options) -> Result {
    setup::run(&setup::Options::default())?;
    make_inputs()?;
    let started = Instant::now();
    run_command(cargo().args(["build", "--package", "vodka"]))?;
    say(&format!("built in {} s", started.elapsed().as_secs()));
    let output = options.output();
    let started = Instant::now();
    let mut vodka = cargo();
    vodka.args(["run", "--quiet", "--package", "vodka", "--", "run"]).arg(options.recipe());
    if let Some(output) = &output {
        if options.check && output.exists() {
            fs::remove_dir_all(output).map_err(|error| format!("{}: {error}", output.display()))?;
        }
        vodka.arg("--output").arg(output);
    }
    if let Some(seed) = options.seed {
        vodka.args(["--seed", &seed.to_string()]);
    }
    run_command(&mut vodka)?;
    say(&format!("ran the recipe in {} s", started.elapsed().as_secs()));
    match output {
        Some(run) if options.check => claims::run(&claims::Options { run }),
        _ => Ok(()),
    }
}

/// Draws the pictures and composes the models.
fn make_inputs() -> Result {
    let started = Instant::now();
    for name in vodka_testkit::MODELS {
        let file = root().join(format!("demo/models/{name}.safetensors"));
        let composed = vodka_testkit::compose_demo_model(name, &file);
        composed.map_err(|error| format!("{}: {error}", file.display()))?;
    }
    vodka_world::write(&WorldConfig {
        count: 5000,
        seed: 2023,
        size_px: 64,
        output: root().join("demo/world"),
    })?;
    say(&format!("drew the pictures in {} s", started.elapsed().as_secs()));
    Ok(())
}
