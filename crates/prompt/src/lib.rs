//! The prompt language of A1111, CLIP token ids, and the `parameters` text of pictures.
//!
//! A prompt goes through, in this order: [`strip_comments`], [`take_networks`], [`parse_and`], [`parse_schedule`], and
//! [`chunks`], which parses attention and gives what the text encoder takes. Training takes prompts as literal text
//! instead: [`token_ids`], which cuts off what lies beyond the 75th token, as EveryDream2 and diffusers do it.

mod attention;
mod chunks;
mod compose;
mod emphasis;
mod error;
mod ftfy;
mod items;
mod networks;
mod parameters;
mod schedule;
mod styles;
mod tokens;

pub use attention::{Piece, parse_attention};
pub use chunks::{Chunk, ChunkOptions, EmbeddingNames, PlacedEmbedding, chunks, empty_chunk};
pub use compose::{Subprompt, parse_and};
pub use emphasis::Emphasis;
pub use error::{Error, Result};
pub use items::{PromptItem, Separator, prompt_items};
pub use networks::{ExtraNetwork, LoraUse, strip_comments, take_networks};
pub use parameters::Parameters;
pub use schedule::{Scheduled, Timing, parse_schedule, scheduled_at};
pub use styles::{Style, Styles, fill_wildcards};
pub use tokens::{BOS, CONTEXT_LENGTH, EOS, MAX_TOKENS, encode, token_count, token_ids};
