//! Parity with transformers' CLIPTokenizer on odd lines.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use vodka_prompt::{CONTEXT_LENGTH, token_count, token_ids};
use vodka_testkit::Case;

#[test]
fn token_ids_are_those_of_transformers() {
    let case = Case::open("prompt/tokens");
    let text = std::fs::read_to_string(case.path().join("lines.jsonl")).unwrap();
    let lines: Vec<String> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = case.array("ids");
    let counts = case.array("counts");
    let mut wrong = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let golden = &expected.data[i * CONTEXT_LENGTH..(i + 1) * CONTEXT_LENGTH];
        let ids = token_ids(line).map(|id| id as f32);
        if ids != golden || token_count(line) as f32 != counts.data[i] {
            wrong.push(format!("{line:?}:\n  found    {:?}\n  expected {:?}", &ids[..20], &golden[..20]));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), lines.len(), wrong.join("\n"));
}
