//! What networks are filled from: a checkpoint, or anything else that has a model's tensors.

use std::error;

use crate::{Checkpoint, ModelConfig, TensorView};

/// The weights of a whole model, by their LDM names: a [`Checkpoint`], or a merge whose tensors are worked out when they
/// are asked for.
pub trait Weights {
    /// The model's configuration.
    fn config(&self) -> &ModelConfig;

    /// A tensor by its LDM name, in its LDM shape.
    ///
    /// # Errors
    /// Whatever keeps it from being had, as its owner says it.
    fn tensor(&self, name: &str) -> Result<TensorView<'_>, Box<dyn error::Error + Send + Sync>>;
}

impl Weights for Checkpoint {
    fn config(&self) -> &ModelConfig {
        self.config()
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>, Box<dyn error::Error + Send + Sync>> {
        Ok(self.tensor(name)?)
    }
}
