//! What is said where libtorch refuses, above all for want of memory: of what there was too much, and what helps.

use tch::TchError;
use vodka_sd15::is_out_of_memory;

use crate::{Arithmetic, Bucket, Error, TrainPlan, optimizers::Method, plan::Settings};

/// What was refused for so many pictures of a bucket.
pub(super) fn of_batch(
    place: String,
    pictures: usize,
    Bucket { width, height }: Bucket,
    lower: &[&str],
    source: TchError,
) -> Error {
    match is_out_of_memory(&source) {
        true => {
            let (lower, source) = (lower.join(", "), Box::new(source));
            Error::OutOfMemory { place, pictures, width, height, lower, source }
        }
        false => Error::Torch { doing: "computing a batch", source },
    }
}

/// What was refused for something else.
pub(super) fn of(what: &'static str, lower: &[&str], source: TchError) -> Error {
    match is_out_of_memory(&source) {
        true => Error::NoMemory { what, lower: lower.join(", "), source },
        false => Error::Torch { doing: "training", source },
    }
}

/// What makes a training step with so many pictures need less.
pub(super) fn lower_in_training(settings: &Settings, pictures: usize) -> Vec<&'static str> {
    let ema_on_gpu = settings.ema.is_some_and(|ema| !ema.on_processor);
    let all = [
        (pictures > 1, "a smaller `batch_size` (and a larger `grad_accum`)"),
        (!settings.arithmetic.gradient_checkpointing, "`gradient_checkpointing`"),
        (ema_on_gpu, "`ema_device` `cpu`"),
        (true, "a lower `resolution`"),
    ];
    all.into_iter().filter_map(|(helps, what)| helps.then_some(what)).collect()
}

/// The same for validation.
pub(super) fn lower_in_validation(pictures: usize) -> Vec<&'static str> {
    let all =
        [(pictures > 1, "a smaller `batch_size` of `validation_config`"), (true, "a lower `resolution`")];
    all.into_iter().filter_map(|(helps, what)| helps.then_some(what)).collect()
}

/// The same for the VAE, which sees one picture at a time.
pub(super) fn lower_in_vae(settings: &Settings) -> Vec<&'static str> {
    let exact = settings.arithmetic.vae == Arithmetic::Fp32;
    let all = [(exact, "`vae_precision` `bf16`"), (true, "a lower `resolution`")];
    all.into_iter().filter_map(|(helps, what)| helps.then_some(what)).collect()
}

/// What was refused before the first step: weights, their running means and what optimizers remember of them.
pub(super) fn in_preparation(plan: &TrainPlan, source: TchError) -> Error {
    let Settings { unet, text_encoder, ema, .. } = &plan.settings;
    let exact =
        [unet, text_encoder].into_iter().flatten().any(|part| part.optimizer.method != Method::AdamW8bit);
    let all = [
        (exact, "`optimizer` `adamw8bit`"),
        (ema.is_some_and(|ema| !ema.on_processor), "`ema_device` `cpu`"),
        (unet.is_some() && text_encoder.is_some(), "`disable_textenc_training`"),
        (true, "another device"),
    ];
    let lower: Vec<_> = all.into_iter().filter_map(|(helps, what)| helps.then_some(what)).collect();
    of("the networks and what is remembered of them", &lower, source)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::TrainConfig;

    fn plan(keys: serde_json::Value) -> TrainPlan {
        let mut config = TrainConfig {
            data_root: "in".into(),
            resume_ckpt: Some("base.safetensors".into()),
            output: Some("nowhere/out".into()),
            lr: Some(1e-6),
            ..TrainConfig::default()
        };
        keys.as_object().unwrap().iter().for_each(|(key, value)| config.set(key, value.clone()).unwrap());
        config.plan().unwrap()
    }

    fn refusal() -> TchError {
        TchError::Torch("CUDA out of memory. Tried to allocate 2.00 GiB".to_owned())
    }

    #[test]
    fn too_little_memory_is_told_with_the_batch_and_what_helps() {
        let bucket = Bucket { width: 640, height: 384 };
        let plan = plan(json!({"ema_decay_rate": 0.9, "ema_device": "cuda"}));
        let settings = &plan.settings;
        let said = |place: &str, pictures, lower: Vec<&str>| {
            of_batch(place.to_owned(), pictures, bucket, &lower, refusal()).to_string()
        };
        assert_eq!(
            said("epoch 2, step 7", 4, lower_in_training(settings, 4)),
            "not enough memory for 4 pictures of 640x384 pixels (epoch 2, step 7); what helps: a smaller `batch_size` \
             (and a larger `grad_accum`), `gradient_checkpointing`, `ema_device` `cpu`, a lower `resolution`"
        );
        assert!(!said("epoch 2, step 7", 1, lower_in_training(settings, 1)).contains("batch_size"));
        assert_eq!(
            said("validation on `val`", 4, lower_in_validation(4)),
            "not enough memory for 4 pictures of 640x384 pixels (validation on `val`); what helps: a smaller \
             `batch_size` of `validation_config`, a lower `resolution`"
        );
        assert_eq!(
            said("the VAE, `a.png`", 1, lower_in_vae(settings)),
            "not enough memory for 1 pictures of 640x384 pixels (the VAE, `a.png`); what helps: `vae_precision` \
             `bf16`, a lower `resolution`"
        );
    }

    #[test]
    fn too_little_memory_before_the_first_step_is_told() {
        let optimizer = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(optimizer.path(), r#"{"optimizer": "adamw"}"#).unwrap();
        let keys = json!({"optimizer_config": optimizer.path()});
        assert_eq!(
            in_preparation(&plan(keys), refusal()).to_string(),
            "not enough memory for the networks and what is remembered of them; what helps: `optimizer` \
             `adamw8bit`, `disable_textenc_training`, another device"
        );
        let other = TchError::Torch("shapes differ".to_owned());
        let error = in_preparation(&plan(json!({})), other);
        assert_eq!(error.to_string(), "libtorch failed while training");
    }
}
