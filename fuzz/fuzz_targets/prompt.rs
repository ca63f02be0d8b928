//! Prompts, on the whole way from text to tokens.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vodka_prompt::{
    BOS, ChunkOptions, EOS, EmbeddingNames, Styles, Timing, chunks, parse_and, parse_schedule, strip_comments,
    take_networks,
};

fuzz_target!(|text: &str| {
    let (prompt, networks) = take_networks(&strip_comments(text));
    for network in &networks {
        let _ = network.lora();
    }
    let embeddings = EmbeddingNames::new([("bad".to_owned(), 7), ("a b".to_owned(), 75)]).expect("short enough");
    let options = ChunkOptions { comma_backtrack: 20, with_attention: true, embeddings: &embeddings };
    for part in parse_and(&prompt) {
        let schedule = parse_schedule(&part.text, Timing { steps: 3, hires_steps: Some(2), old_rule: false });
        assert_eq!(schedule.last().map(|entry| entry.end_at_step), Some(2));
        for entry in schedule {
            let Ok(chunks) = chunks(&entry.text, &options) else { continue };
            assert!(chunks.iter().all(|chunk| chunk.ids[0] == BOS && chunk.ids[76] == EOS));
        }
    }
    let _ = Styles::parse(text);
});
