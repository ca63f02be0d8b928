//! Comments in prompts, and networks that prompts name: `<lora:name:weight>`.

use std::{collections::BTreeMap, sync::LazyLock};

use regex::Regex;

use crate::{Error, Result};

/// One `<kind:argument:...>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraNetwork {
    /// `lora`, `hypernet`, `lyco`, or anything.
    pub kind: String,
    /// The arguments without a name, in order; the first is that of the network.
    pub positional: Vec<String>,
    /// The arguments with one, `te=0.5`.
    pub named: BTreeMap<String, String>,
}

/// A LoRA file with its weights for both networks.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraUse {
    /// The file's name without its ending.
    pub name: String,
    /// The weight in the text encoder.
    pub text_encoder: f64,
    /// The weight in the UNet.
    pub unet: f64,
}

static COMMENT_LINE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(^|\n)#[^\n]*(\n|$)").expect("a constant"));
static COMMENT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"#[^\n]*(\n|$)").expect("a constant"));
static NETWORK: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"<(\w+):([^>]+)>").expect("a constant"));

/// The prompt without what follows a `#` in a line (stable-diffusion-webui 1.10.1, `scripts/`, the option "Enable
/// comments", on by default).
pub fn strip_comments(prompt: &str) -> String {
    let without = COMMENT_LINE.replace_all(prompt, "\n");
    COMMENT.replace_all(&without, "\n").into_owned()
}

/// The prompt without its networks, and those (stable-diffusion-webui 1.10.1, `modules/extra_networks.py`).
pub fn take_networks(prompt: &str) -> (String, Vec<ExtraNetwork>) {
    let networks = NETWORK.captures_iter(prompt).map(|found| {
        let mut network =
            ExtraNetwork { kind: found[1].to_owned(), positional: Vec::new(), named: BTreeMap::new() };
        for argument in found[2].split(':') {
            match argument.split('=').collect::<Vec<_>>()[..] {
                [name, value] => {
                    network.named.insert(name.to_owned(), value.to_owned());
                }
                _ => network.positional.push(argument.to_owned()),
            }
        }
        network
    });
    let networks = networks.collect();
    (NETWORK.replace_all(prompt, "").into_owned(), networks)
}

impl ExtraNetwork {
    /// Reads `<lora:name:text encoder:unet>`, with `te=` and `unet=` in any place: one weight is for both, none is 1.
    ///
    /// # Errors
    /// A weight that is no number.
    pub fn lora(&self) -> Result<LoraUse> {
        let name = self.positional.first().cloned().unwrap_or_default();
        let read = |place: usize, key: &str, default: f64| {
            let text = self.named.get(key).or_else(|| self.positional.get(place));
            text.map_or(Ok(default), |text| {
                let error = |_| Error::NetworkWeight { network: name.clone(), found: text.clone() };
                text.trim().parse().map_err(error)
            })
        };
        let text_encoder = read(1, "te", 1.0)?;
        let unet = read(2, "unet", text_encoder)?;
        Ok(LoraUse { name, text_encoder, unet })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_go() {
        assert_eq!(strip_comments("a\n# whole line\nb # rest\nc"), "a\nb \nc");
        assert_eq!(strip_comments("#x"), "\n");
        assert_eq!(strip_comments("no comment"), "no comment");
    }

    #[test]
    fn networks_are_taken_out() {
        let (rest, networks) = take_networks("a <lora:x:0.5>, <hypernet:y> <b> <lora:z:unet=0.2:te=1.5>");
        assert_eq!(rest, "a ,  <b> ");
        let kinds: Vec<_> = networks.iter().map(|network| network.kind.as_str()).collect();
        assert_eq!(kinds, ["lora", "hypernet", "lora"]);
        let lora = |network: &ExtraNetwork| network.lora().map(|l| (l.name, l.text_encoder, l.unet));
        assert_eq!(lora(&networks[0]), Ok(("x".into(), 0.5, 0.5)));
        assert_eq!(lora(&networks[1]), Ok(("y".into(), 1.0, 1.0)));
        assert_eq!(lora(&networks[2]), Ok(("z".into(), 1.5, 0.2)));
        let (_, bad) = take_networks("<lora:x:much>");
        assert_eq!(bad[0].lora().unwrap_err().to_string(), "the weight `much` of `x` is no number");
    }
}
