//! What prompts say, item by item, read as the sampler reads them.

use vodka_prompt::{ExtraNetwork, PromptItem, prompt_items};

use crate::{Result, Settings, conditioning::TimedPrompts};

/// The items of a prompt by the last call of the denoiser for which they hold.
pub type TimedItems = Vec<(u32, Vec<PromptItem>)>;

/// A prompt, taken apart.
#[derive(Debug, Clone, PartialEq)]
pub struct TakenPrompt {
    /// What `AND` joins: its weight, and its items by the last call of the denoiser for which they hold.
    pub parts: Vec<(f64, TimedItems)>,
    /// The networks that it names.
    pub networks: Vec<ExtraNetwork>,
}

impl TakenPrompt {
    /// Takes prompt and negative prompt apart.
    ///
    /// # Errors
    /// A weight that is no number.
    pub fn both(settings: &Settings) -> Result<[Self; 2]> {
        let TimedPrompts { prompt, negative, networks } = TimedPrompts::of(settings);
        let items = |(weight, texts): (f64, Vec<vodka_prompt::Scheduled>)| {
            let texts = texts.into_iter().map(|text| Ok((text.end_at_step, prompt_items(&text.text)?)));
            Ok((weight, texts.collect::<Result<Vec<_>>>()?))
        };
        let prompt = Self { parts: prompt.into_iter().map(items).collect::<Result<_>>()?, networks };
        let negative = Self { parts: vec![items((1.0, negative))?], networks: Vec::new() };
        Ok([prompt, negative])
    }

    /// The items at any step, those that hold at several of them once for each.
    pub fn items(&self) -> impl Iterator<Item = &PromptItem> {
        self.parts.iter().flat_map(|(_, texts)| texts).flat_map(|(_, items)| items)
    }

    /// The items of a prompt that is not joined of several and stays what it is.
    pub fn plain(&self) -> Option<&[PromptItem]> {
        match &self.parts[..] {
            [(weight, texts)] if *weight == 1.0 && texts.len() == 1 => Some(&texts[0].1),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(prompt: &str) -> Vec<String> {
        let settings = Settings { prompt: prompt.into(), steps: 4, ..Settings::default() };
        let [prompt, _] = TakenPrompt::both(&settings).unwrap();
        prompt.items().map(PromptItem::text).collect()
    }

    #[test]
    fn prompts_are_read_as_the_sampler_reads_them() {
        assert_eq!(texts("smile, >_<, blurry, solo"), ["smile", ">_<", "blurry", "solo"]);
        assert_eq!(texts("a <lora:x,y:0.5>, b # not, this\n# nor this\nc, <a"), ["a", "b", "c", "<a"]);
        assert_eq!(texts("cat, [dog:wolf:2] AND sky"), ["cat", "dog", "cat", "wolf", "sky"]);
        let of = |prompt: &str| {
            TakenPrompt::both(&Settings { negative_prompt: prompt.into(), ..Settings::default() }).unwrap()
        };
        let [none, negative] = of("dark, <lora:x:1>");
        assert_eq!((none.plain(), none.networks.len()), (Some(&[][..]), 0));
        // A negative prompt names no networks.
        assert_eq!(negative.plain().unwrap().len(), 2);
        assert!(of("[a:b:2]")[1].plain().is_none());
    }
}
