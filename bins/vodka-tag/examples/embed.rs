//! The tagger in a program of one's own: `cargo run -p vodka-tag --example embed -- MODEL PICTURE...`

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::{env, ops::ControlFlow, path::PathBuf};

use vodka_tagger::{ProviderChoice, Result, StreamOptions, TaggedPath, Tagger, TaggerConfig};

fn main() -> Result<()> {
    let mut paths = env::args_os().skip(1).map(PathBuf::from);
    let model = paths.next().unwrap_or_default();
    let (provider, onnxruntime) = ProviderChoice::Auto.resolve(&vodka_cli::runtime_dir());
    let tagger = Tagger::open(&TaggerConfig { provider, onnxruntime, ..TaggerConfig::new(model) })?;
    tagger.tag_paths(
        &paths.collect::<Vec<_>>(),
        &StreamOptions::default(),
        &mut |TaggedPath { path, tags }| {
            let names =
                tags.map(|tags| tags.iter().map(|tag| tag.name.clone()).collect::<Vec<_>>().join(", "));
            println!("{}: {}", path.display(), names.unwrap_or_else(|reason| format!("({reason})")));
            ControlFlow::Continue(())
        },
    )
}
