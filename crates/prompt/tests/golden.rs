//! Parity with transformers' CLIPTokenizer on odd lines, and with A1111 on odd prompts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Read;

use flate2::read::ZlibDecoder;
use serde_json::{Value, json};
use vodka_prompt::{
    BOS, EOS, MAX_TOKENS, Piece, Timing, encode, parse_and, parse_attention, parse_schedule, token_count,
    token_ids,
};
use vodka_testkit::fixture;

#[test]
fn token_ids_are_those_of_transformers() {
    let packed = std::fs::read(fixture("prompt/tokens/lines.jsonl.zlib")).unwrap();
    let mut text = String::new();
    ZlibDecoder::new(packed.as_slice()).read_to_string(&mut text).unwrap();
    let lines: Vec<String> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Of each line how many ids it has, and their CRC-32.
    let bytes = std::fs::read(fixture("prompt/tokens/ids.bin")).unwrap();
    let (golden, rest) = bytes.as_chunks::<6>();
    assert_eq!((lines.len(), golden.len(), rest.len()), (1000, 1000, 0));
    let mut wrong = Vec::new();
    for (line, [c0, c1, crc @ ..]) in lines.iter().zip(golden) {
        let (ids, framed) = (encode(line), token_ids(line));
        let bytes: Vec<u8> = ids.iter().flat_map(|id| (*id as u16).to_le_bytes()).collect();
        let count = usize::from(u16::from_le_bytes([*c0, *c1]));
        if ids.len() != count || crc32fast::hash(&bytes) != u32::from_le_bytes(*crc) {
            wrong.push(format!("{line:?}: {count} expected, found {ids:?}"));
        }
        let kept = ids.len().min(MAX_TOKENS);
        assert_eq!((framed[0], &framed[1..=kept], token_count(line)), (BOS, &ids[..kept], ids.len()));
        assert!(framed[kept + 1..].iter().all(|id| *id == EOS));
    }
    let shown = wrong[..wrong.len().min(15)].join("\n");
    assert!(wrong.is_empty(), "{} of {}:\n{shown}", wrong.len(), lines.len());
}

fn schedule(prompt: &str, timing: Timing) -> Value {
    parse_schedule(prompt, timing).iter().map(|entry| json!([entry.end_at_step, entry.text])).collect()
}

fn attention(prompt: &str) -> Value {
    let Ok(pieces) = parse_attention(prompt) else { return Value::Null };
    let pair = |piece: Piece| match piece {
        Piece::Text { text, weight } => json!([text, weight]),
        Piece::Break => json!(["BREAK", -1]),
    };
    pieces.into_iter().map(pair).collect()
}

fn is_same(found: &Value, golden: &Value) -> bool {
    match (found, golden) {
        (Value::Array(found), Value::Array(golden)) => {
            found.len() == golden.len() && found.iter().zip(golden).all(|(f, g)| is_same(f, g))
        }
        (Value::Number(found), Value::Number(golden)) => {
            (found.as_f64().unwrap() - golden.as_f64().unwrap()).abs() <= 1e-12
        }
        _ => found == golden,
    }
}

/// A pair of brackets with a stray bracket or colon right behind it: what A1111's general parser makes of these depends on
/// what is before them, and is text or not. Here they are never text.
const STRAY: [&str; 1] = ["][[+2:.4]: 1.3 ]:.5 ["];

#[test]
fn prompts_mean_what_they_mean_to_a1111() {
    let text = std::fs::read_to_string(fixture("prompt/language/golden.jsonl")).unwrap();
    let mut wrong = Vec::new();
    for line in text.lines() {
        let golden: Vec<Value> = serde_json::from_str(line).unwrap();
        let prompt = golden[0].as_str().unwrap();
        if STRAY.contains(&prompt) {
            continue;
        }
        let first = Timing::first_pass(5);
        let hires = Timing { hires_steps: Some(4), ..first };
        let parts = parse_and(prompt).into_iter().map(|part| json!([part.text, part.weight])).collect();
        let found = [
            schedule(prompt, first),
            schedule(prompt, hires),
            schedule(prompt, Timing { old_rule: true, ..hires }),
            attention(prompt),
            parts,
        ];
        for (found, golden) in found.iter().zip(&golden[1..]) {
            if !is_same(found, golden) {
                wrong.push(format!("{prompt:?}:\n  found    {found}\n  expected {golden}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong[..wrong.len().min(12)].join("\n"));
}
