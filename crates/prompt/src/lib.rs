//! CLIP token ids, and the `parameters` text of pictures.
//!
//! Prompts are literal text here: brackets, `AND`, `BREAK` and the rest of A1111's prompt language have no meaning yet,
//! and what lies beyond the 75th token is cut off, as EveryDream2's training and diffusers do it.

mod parameters;
mod tokens;

pub use parameters::Parameters;
pub use tokens::{BOS, CONTEXT_LENGTH, EOS, MAX_TOKENS, encode, token_count, token_ids};
