//! The V3 experiment in small: composes the models, builds the binary, runs the recipe.

use std::{path::PathBuf, time::Instant};

use crate::{
    Result,
    process::{cargo, run as run_command, say},
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
    for name in vodka_testkit::MODELS {
        let file = root().join(format!("demo/models/{name}.safetensors"));
        vodka_testkit::compose_model(name, &file).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    let started = Instant::now();
    run_command(cargo().args(["build", "--package", "vodka"]))?;
    say(&format!("built in {} s", started.elapsed().as_secs()));
    let started = Instant::now();
    let recipe = root().join(&options.recipe);
    run_command(cargo().args(["run", "--quiet", "--package", "vodka", "--", "run"]).arg(&recipe))?;
    say(&format!("ran the recipe in {} s", started.elapsed().as_secs()));
    Ok(())
}
