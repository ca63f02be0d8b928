//! Answers the trainer's question for sample pictures.

use std::path::Path;

use vodka_cli::Progress;
use vodka_sampler::{Networks, Settings, Size, strip};
use vodka_stage::{Interrupt, explain};
use vodka_trainer::{SamplePrompt, SampleRound};

/// Makes the strips of a round and hands them in; what cannot be made is told, and training goes on.
pub fn answer(round: &SampleRound, interrupt: &Interrupt, bar: &Progress) {
    for (index, prompt) in round.prompts.iter().enumerate() {
        bar.message(format!("samples: {} of {}", index + 1, round.prompts.len()));
        match pictures(round, prompt, interrupt) {
            Ok(Some(pictures)) => round.give(index, strip(&pictures)),
            // Interrupted.
            Ok(None) => return,
            Err(error) => bar.line(format!(
                "step {}: no sample of `{}`: {}",
                round.step,
                prompt.prompt,
                explain(&error)
            )),
        }
    }
}

/// The pictures of a strip with their labels; `None` when interrupted.
fn pictures(
    round: &SampleRound,
    prompt: &SamplePrompt,
    interrupt: &Interrupt,
) -> vodka_sampler::Result<Option<Vec<(String, image::RgbImage)>>> {
    let model = round.model;
    let prediction = model.config.prediction;
    let zero_terminal_snr = model.config.zero_terminal_snr;
    let networks =
        Networks { clip: &model.clip, unet: &model.unet, vae: &model.vae, prediction, zero_terminal_snr };
    let picture = |cfg: &f64| {
        let settings = Settings {
            prompt: prompt.prompt.clone(),
            negative_prompt: prompt.negative_prompt.clone(),
            seed: prompt.seed,
            steps: round.steps,
            cfg_scale: *cfg,
            size: Size { width: prompt.width, height: prompt.height },
            sampler: round.sampler,
            schedule: round.schedule,
            clip_skip: round.clip_skip,
            ..Settings::default()
        };
        let picture =
            networks.generate(Path::new("the model in training"), &settings, interrupt, &mut |_, _| ())?;
        Ok(picture.map(|picture| (format!("cfg:{cfg:.1}"), picture)))
    };
    round.cfgs.iter().map(picture).collect()
}
