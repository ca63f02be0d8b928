//! The files of CLIP's tokenizer, which diffusers wants in a folder.

use std::io::Read;

use flate2::read::DeflateDecoder;
use serde_json::{Map, Value, json};

/// The 48,894 merges of openai/CLIP's `bpe_simple_vocab_16e6.txt` (MIT), one a line, compressed.
const MERGES: &[u8] = include_bytes!("../data/clip_merges.deflate");

/// Names and contents of the four files.
pub(crate) fn files(positions: i64) -> [(&'static str, String); 4] {
    let mut merges = String::new();
    DeflateDecoder::new(MERGES).read_to_string(&mut merges).expect("the merges are part of the program");
    let token = |text: &str| json!({"content": text, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false});
    let special = json!({
        "bos_token": token("<|startoftext|>"),
        "eos_token": token("<|endoftext|>"),
        "pad_token": "<|endoftext|>",
        "unk_token": token("<|endoftext|>"),
    });
    let mut config = special.clone();
    config["add_prefix_space"] = false.into();
    config["do_lower_case"] = true.into();
    config["errors"] = "replace".into();
    config["model_max_length"] = positions.into();
    config["tokenizer_class"] = "CLIPTokenizer".into();
    let text = |value: &Value| serde_json::to_string_pretty(value).expect("plain data") + "\n";
    [
        ("vocab.json", vocabulary(&merges).to_string()),
        ("special_tokens_map.json", text(&special)),
        ("tokenizer_config.json", text(&config)),
        ("merges.txt", format!("#version: 0.2\n{merges}")),
    ]
}

/// Tokens by number: the bytes, the bytes at the end of a word, what the merges make, and two marks.
fn vocabulary(merges: &str) -> Value {
    let bytes: Vec<_> = byte_letters().into_iter().map(String::from).collect();
    let ends = bytes.iter().map(|letter| format!("{letter}</w>"));
    let merged = merges.lines().map(|line| line.replace(' ', ""));
    let marks = ["<|startoftext|>", "<|endoftext|>"].map(ToOwned::to_owned);
    let all = bytes.iter().cloned().chain(ends).chain(merged).chain(marks);
    Value::Object(all.enumerate().map(|(id, token)| (token, id.into())).collect::<Map<_, _>>())
}

/// A letter for each byte, in the order in which GPT-2 numbers them: those that can be seen first, then the others,
/// which borrow letters from 256 on.
fn byte_letters() -> Vec<char> {
    let seen = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let hidden = (0..256).filter(|byte| !seen(byte)).zip(256..).map(|(_, letter)| letter);
    let all = (0..256).filter(seen).chain(hidden);
    all.map(|letter| char::from_u32(letter).expect("a letter of the first 512")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vocabulary_is_that_of_clip() {
        let [(_, vocabulary), ..] = files(77);
        let vocabulary: Map<String, Value> = serde_json::from_str(&vocabulary).unwrap();
        assert_eq!(vocabulary.len(), 49408);
        // From the vocabulary of openai/clip-vit-large-patch14.
        for (token, id) in [
            ("!", 0),
            ("a</w>", 320),
            ("cat</w>", 2368),
            ("<|startoftext|>", 49406),
            ("<|endoftext|>", 49407),
        ] {
            assert_eq!(vocabulary[token], id, "{token}");
        }
    }
}
