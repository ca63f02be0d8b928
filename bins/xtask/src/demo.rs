//! The V3 experiment in small: draws the pictures, composes the models, builds the binary, runs the recipe.

use std::{path::PathBuf, time::Instant};

use vodka_world::WorldConfig;

use crate::{
    Result,
    process::{cargo, one_thread, run as run_command, say},
    root, setup,
};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Run this recipe instead
    #[arg(long, default_value = "docs/recipes/v3-demo.toml")]
    recipe: PathBuf,
}

pub fn run(options: &Options) -> Result {
    setup::run(&setup::Options::default())?;
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
    let started = Instant::now();
    run_command(cargo().args(["build", "--package", "vodka"]))?;
    say(&format!("built in {} s", started.elapsed().as_secs()));
    let started = Instant::now();
    let recipe = root().join(&options.recipe);
    let mut vodka = cargo();
    vodka.args(["run", "--quiet", "--package", "vodka", "--", "run"]).arg(&recipe);
    run_command(one_thread(&mut vodka))?;
    say(&format!("ran the recipe in {} s", started.elapsed().as_secs()));
    Ok(())
}
