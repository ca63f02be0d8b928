//! Globs over names.

/// Whether the glob matches the whole text: `*` any characters, `?` one.
pub fn glob_matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut g, mut t) = (0, 0);
    // Where the last star was, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    (g, t) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::glob_matches as matches;

    const ATTENTION: &str = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";

    #[test]
    fn globs_match_whole_names() {
        assert!(matches("*attn2*", ATTENTION) && matches("*", "") && matches("a?c", "abc"));
        assert!(matches("*.weight", ATTENTION) && matches("*a*b", "aab") && matches("IN0?", "IN01"));
        assert!(!matches("attn2", ATTENTION) && !matches("a?", "a") && !matches("*x", ATTENTION));
    }
}
