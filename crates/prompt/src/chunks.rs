//! Prompts of any length as chunks of 75 tokens.

use std::collections::HashMap;

use crate::{BOS, CONTEXT_LENGTH, EOS, Error, MAX_TOKENS, Piece, Result, encode, parse_attention};

/// The token `,` at a word's end.
const COMMA: i64 = 267;

/// What the text encoder takes at once: [`BOS`], 75 tokens, [`EOS`].
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Token ids; 0 where an embedding goes.
    pub ids: [i64; CONTEXT_LENGTH],
    /// The weight of each token; 1 is none.
    pub weights: [f32; CONTEXT_LENGTH],
    /// Where embeddings go.
    pub embeddings: Vec<PlacedEmbedding>,
}

/// The place of an embedding in a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedEmbedding {
    /// The place of its first vector, [`BOS`] being at 0.
    pub at: usize,
    /// Its name.
    pub name: String,
}

/// How many tokens of a prompt count, and what it may name.
#[derive(Debug, Clone)]
pub struct ChunkOptions<'a> {
    /// A full chunk is cut at its last comma, if that is among so many last tokens; 0 for never. A1111's is 20.
    pub comma_backtrack: usize,
    /// Whether brackets weigh; else they are text.
    pub with_attention: bool,
    /// The embeddings that there are.
    pub embeddings: &'a EmbeddingNames,
}

/// The names of textual-inversion embeddings, by their tokens.
#[derive(Debug, Clone, Default)]
pub struct EmbeddingNames {
    /// By the first token, the longest names first.
    by_token: HashMap<i64, Vec<Name>>,
}

#[derive(Debug, Clone)]
struct Name {
    ids: Vec<i64>,
    name: String,
    vectors: usize,
}

impl EmbeddingNames {
    /// From names, each with the number of its vectors. A name without tokens is never found.
    ///
    /// # Errors
    /// An embedding that is longer than a chunk.
    pub fn new(names: impl IntoIterator<Item = (String, usize)>) -> Result<Self> {
        let mut by_token: HashMap<i64, Vec<Name>> = HashMap::new();
        for (name, vectors) in names {
            if vectors > MAX_TOKENS {
                return Err(Error::EmbeddingLength { name, vectors, max: MAX_TOKENS });
            }
            let ids = encode(&name);
            if let Some(first) = ids.first() {
                by_token.entry(*first).or_default().push(Name { ids, name, vectors });
            }
        }
        by_token.values_mut().for_each(|names| names.sort_by_key(|name| std::cmp::Reverse(name.ids.len())));
        Ok(Self { by_token })
    }

    fn find(&self, ids: &[i64]) -> Option<&Name> {
        self.by_token.get(ids.first()?)?.iter().find(|name| ids.starts_with(&name.ids))
    }
}

/// The chunks of a prompt without scheduling and `AND`, at least one (stable-diffusion-webui 1.10.1,
/// `modules/sd_hijack_clip.py`, `tokenize_line`).
///
/// # Errors
/// Those of [`parse_attention`].
pub fn chunks(prompt: &str, options: &ChunkOptions<'_>) -> Result<Vec<Chunk>> {
    let pieces = if options.with_attention {
        parse_attention(prompt)?
    } else {
        vec![Piece::Text { text: prompt.to_owned(), weight: 1.0 }]
    };
    let mut packer = Packer::new(options.comma_backtrack);
    for piece in pieces {
        match piece {
            Piece::Break => packer.close(),
            Piece::Text { text, weight } => {
                let ids = encode(&text);
                let mut at = 0;
                while at < ids.len() {
                    packer.make_room(ids[at]);
                    let name = options.embeddings.find(&ids[at..]);
                    match name {
                        Some(name) => packer.push_embedding(name, weight),
                        None => packer.push(ids[at], weight),
                    }
                    at += name.map_or(1, |name| name.ids.len());
                }
            }
        }
    }
    Ok(packer.finish())
}

/// A chunk without tokens, with which shorter prompts of a batch are padded.
pub fn empty_chunk() -> Chunk {
    frame(&[], Vec::new())
}

struct Packer {
    comma_backtrack: usize,
    done: Vec<Chunk>,
    tokens: Vec<(i64, f32)>,
    embeddings: Vec<PlacedEmbedding>,
    last_comma: Option<usize>,
}

impl Packer {
    fn new(comma_backtrack: usize) -> Self {
        Self {
            comma_backtrack,
            done: Vec::new(),
            tokens: Vec::new(),
            embeddings: Vec::new(),
            last_comma: None,
        }
    }

    fn close(&mut self) {
        self.done.push(frame(&self.tokens, std::mem::take(&mut self.embeddings)));
        self.tokens.clear();
        self.last_comma = None;
    }

    /// Closes a full chunk before the next token; what follows a late comma goes into the next.
    fn make_room(&mut self, next: i64) {
        if next == COMMA {
            self.last_comma = Some(self.tokens.len());
        } else if self.tokens.len() == MAX_TOKENS
            && let Some(comma) = self.last_comma
            && MAX_TOKENS - comma <= self.comma_backtrack
        {
            let moved = self.tokens.split_off(comma + 1);
            // What A1111 moves are the tokens, not the places of embeddings; here those go with them.
            let (stay, go) =
                std::mem::take(&mut self.embeddings).into_iter().partition(|e| e.at <= comma + 1);
            self.embeddings = stay;
            self.close();
            let shifted = |e: PlacedEmbedding| PlacedEmbedding { at: e.at - (comma + 1), name: e.name };
            self.embeddings = Vec::into_iter(go).map(shifted).collect();
            self.tokens = moved;
        }
        if self.tokens.len() == MAX_TOKENS {
            self.close();
        }
    }

    fn push(&mut self, id: i64, weight: f64) {
        self.tokens.push((id, weight as f32));
    }

    fn push_embedding(&mut self, name: &Name, weight: f64) {
        if self.tokens.len() + name.vectors > MAX_TOKENS {
            self.close();
        }
        self.embeddings.push(PlacedEmbedding { at: self.tokens.len() + 1, name: name.name.clone() });
        self.tokens.extend(std::iter::repeat_n((0, weight as f32), name.vectors));
    }

    fn finish(mut self) -> Vec<Chunk> {
        if !self.tokens.is_empty() || self.done.is_empty() {
            self.close();
        }
        self.done
    }
}

fn frame(tokens: &[(i64, f32)], embeddings: Vec<PlacedEmbedding>) -> Chunk {
    let mut chunk = Chunk { ids: [EOS; CONTEXT_LENGTH], weights: [1.0; CONTEXT_LENGTH], embeddings };
    chunk.ids[0] = BOS;
    for (i, (id, weight)) in tokens.iter().enumerate() {
        (chunk.ids[i + 1], chunk.weights[i + 1]) = (*id, *weight);
    }
    chunk
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pack(prompt: &str, embeddings: &EmbeddingNames) -> Vec<Chunk> {
        chunks(prompt, &ChunkOptions { comma_backtrack: 20, with_attention: true, embeddings }).unwrap()
    }

    fn lengths(prompt: &str) -> Vec<usize> {
        let count = |chunk: &Chunk| chunk.ids.iter().filter(|id| **id != EOS && **id != BOS).count();
        pack(prompt, &EmbeddingNames::default()).iter().map(count).collect()
    }

    #[test]
    fn a_full_chunk_is_cut_at_a_late_comma() {
        assert_eq!(lengths(""), [0]);
        assert_eq!(lengths(&"cat ".repeat(75)), [75]);
        assert_eq!(lengths(&"cat ".repeat(76)), [75, 1]);
        // 60 cats, a comma, 20 dogs: the comma is the 61st token, 15 before the end.
        assert_eq!(lengths(&format!("{}, {}", "cat ".repeat(60), "dog ".repeat(20))), [61, 20]);
        assert_eq!(lengths(&format!("{}, {}", "cat ".repeat(40), "dog ".repeat(40))), [75, 6]);
        // A comma may end a chunk or begin the next, but moves nothing.
        assert_eq!(lengths(&format!("{}, dog", "cat ".repeat(75))), [75, 2]);
    }

    #[test]
    fn a_break_begins_a_chunk() {
        assert_eq!(lengths("cat BREAK dog"), [1, 1]);
        assert_eq!(lengths("BREAK BREAK dog"), [0, 0, 1]);
        assert_eq!(lengths("cat BREAK"), [1]);
    }

    #[test]
    fn weights_go_with_their_tokens() {
        let chunk = &pack("a (cat:1.5) [dog]", &EmbeddingNames::default())[0];
        assert_eq!(chunk.ids[..5], [BOS, 320, 2368, 1929, EOS]);
        assert_eq!(chunk.weights[..5], [1.0, 1.0, 1.5, (1.0_f64 / 1.1) as f32, 1.0]);
    }

    #[test]
    fn embeddings_are_not_split() {
        let names = EmbeddingNames::new([("bad".into(), 2), ("bad-hands-5".into(), 8)]).unwrap();
        let found = pack("cat (bad-hands-5:0.5) bad", &names);
        let at: Vec<_> = found[0].embeddings.iter().map(|e| (e.at, e.name.as_str())).collect();
        assert_eq!(at, [(2, "bad-hands-5"), (10, "bad")]);
        assert_eq!(found[0].ids[1..13], [2368, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, EOS]);
        assert_eq!(found[0].weights[1..12], [1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0]);
        let found = pack(&format!("{} bad-hands-5", "cat ".repeat(70)), &names);
        assert_eq!((found.len(), found[0].embeddings.len(), found[1].embeddings[0].at), (2, 0, 1));
        // A comma before it takes it along.
        let found = pack(&format!("{}, bad-hands-5 {}", "cat ".repeat(60), "dog ".repeat(10)), &names);
        assert_eq!((found[0].embeddings.len(), found[1].embeddings[0].at), (0, 1));
        let error = EmbeddingNames::new([("long".into(), 76)]).unwrap_err();
        assert_eq!(error.to_string(), "the embedding `long` has 76 vectors, of which a chunk holds 75");
    }

    proptest! {
        #[test]
        fn no_token_is_lost(words in proptest::collection::vec("cat|dog|,|big tree|x", 0..300)) {
            let text = words.join(" ");
            let packed: Vec<i64> = pack(&text, &EmbeddingNames::default())
                .iter()
                .flat_map(|chunk| chunk.ids.iter().copied().filter(|id| *id != BOS && *id != EOS))
                .collect();
            prop_assert_eq!(packed, encode(&text));
        }
    }
}
