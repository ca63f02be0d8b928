//! Parity with transformers' CLIPTokenizer on odd lines, and with A1111 on odd prompts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use serde_json::{Value, json};
use vodka_prompt::{
    BOS, EOS, MAX_TOKENS, Piece, Timing, encode, parse_and, parse_attention, parse_schedule, token_count,
    token_ids,
};
use vodka_testkit::fixture;

#[test]
fn token_ids_are_those_of_transformers() {
    let text = std::fs::read_to_string(fixture("prompt/tokens/lines.jsonl")).unwrap();
    let bytes = std::fs::read(fixture("prompt/tokens/ids.bin")).unwrap();
    let mut numbers = bytes.as_chunks::<2>().0.iter().map(|number| i64::from(u16::from_le_bytes(*number)));
    let lines: Vec<String> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut wrong = Vec::new();
    for line in &lines {
        let count = numbers.next().unwrap() as usize;
        let golden: Vec<i64> = numbers.by_ref().take(count).collect();
        let found = encode(line);
        if found != golden || token_count(line) != count {
            wrong.push(format!("{line:?}:\n  found    {found:?}\n  expected {golden:?}"));
        }
        let framed = token_ids(line);
        let kept = count.min(MAX_TOKENS);
        assert!(framed[0] == BOS && framed[1..=kept] == found[..kept.min(found.len())] || found != golden);
        assert!(framed[kept + 1..].iter().all(|id| *id == EOS) || found != golden);
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        lines.len(),
        wrong[..wrong.len().min(15)].join("\n")
    );
    assert_eq!((lines.len(), numbers.next()), (1000, None));
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
