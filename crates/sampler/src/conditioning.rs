//! Prompts on their way to the denoiser: parsed once, encoded once, chosen anew at each call.

use std::collections::HashMap;

use tch::{Kind, Tensor};
use vodka_prompt::{
    CONTEXT_LENGTH, Chunk, ChunkOptions, EmbeddingNames, Scheduled, Timing, chunks, parse_and,
    parse_schedule, strip_comments, take_networks,
};
use vodka_sd15::{ClipTextModel, Network};

use crate::{Error, Result, Settings};

/// How near to a chunk's end a comma must be for the chunk to end there (A1111's default).
const COMMA_BACKTRACK: usize = 20;

/// The prompts of a picture, parsed.
pub(crate) struct Prompts {
    /// What `AND` joins.
    parts: Vec<(f64, Timeline)>,
    /// The negative prompt, where there is guidance.
    negative: Option<Timeline>,
    /// Every text that is a prompt at some step.
    texts: Vec<Vec<Chunk>>,
}

/// The texts of a prompt by the last call for which each holds.
type Timeline = Vec<(u32, usize)>;

impl Prompts {
    /// # Errors
    /// A weight that is no number, and a network, which cannot be applied.
    pub(crate) fn parse(settings: &Settings) -> Result<Self> {
        let calls = settings.steps * if settings.sampler.is_second_order() { 2 } else { 1 };
        let timing = Timing::first_pass(calls);
        let (prompt, networks) = take_networks(&strip_comments(&settings.prompt));
        if let Some(network) = networks.first() {
            let name = network.positional.first().cloned().unwrap_or_default();
            return Err(Error::ExtraNetwork { kind: network.kind.clone(), name });
        }
        let mut texts = Texts::default();
        let parts: Result<Vec<_>> = parse_and(&prompt)
            .into_iter()
            .map(|part| Ok((part.weight, texts.timeline(parse_schedule(&part.text, timing))?)))
            .collect();
        let parts = parts?;
        let is_plain = parts.len() == 1 && parts[0].0 == 1.0 && settings.guidance() == 1.0;
        let negative = strip_comments(&settings.negative_prompt);
        let negative = match is_plain {
            true => None,
            false => Some(texts.timeline(parse_schedule(&negative, timing))?),
        };
        Ok(Self { parts, negative, texts: texts.chunks })
    }

    /// Encodes every text: chunks side by side, weighed, each with the mean that it had without weights.
    pub(crate) fn encode(self, clip: &ClipTextModel, clip_skip: i64) -> Conditioning {
        let encode = |chunks: &Vec<Chunk>| {
            let count = chunks.len() as i64;
            let length = CONTEXT_LENGTH as i64;
            let device = clip.vars().device();
            let ids: Vec<i64> = chunks.iter().flat_map(|chunk| chunk.ids).collect();
            let z =
                clip.forward(&Tensor::from_slice(&ids).view([count, length]).to_device(device), clip_skip);
            let weights: Vec<f32> = chunks.iter().flat_map(|chunk| chunk.weights).collect();
            let z = weigh(z, &weights); // (chunks, 77, C)
            z.flatten(0, 1) // (77 chunks, C)
        };
        let states = self.texts.iter().map(encode).collect();
        Conditioning { parts: self.parts, negative: self.negative, states }
    }
}

#[derive(Default)]
struct Texts {
    places: HashMap<String, usize>,
    chunks: Vec<Vec<Chunk>>,
}

impl Texts {
    fn timeline(&mut self, schedule: Vec<Scheduled>) -> Result<Timeline> {
        let embeddings = EmbeddingNames::default();
        let options =
            ChunkOptions { comma_backtrack: COMMA_BACKTRACK, with_attention: true, embeddings: &embeddings };
        let entry = |entry: Scheduled| {
            let place = match self.places.get(&entry.text) {
                Some(place) => *place,
                None => {
                    self.chunks.push(chunks(&entry.text, &options)?);
                    self.places.insert(entry.text, self.chunks.len() - 1);
                    self.chunks.len() - 1
                }
            };
            Ok((entry.end_at_step, place))
        };
        schedule.into_iter().map(entry).collect()
    }
}

/// [`vodka_prompt::Emphasis::Original`] for `z (chunks, 77, C)`.
fn weigh(z: Tensor, weights: &[f32]) -> Tensor {
    if weights.iter().all(|weight| *weight == 1.0) {
        return z;
    }
    let kind = z.kind();
    let z = z.to_kind(Kind::Float);
    let weights = Tensor::from_slice(weights).to_device(z.device()).view([z.size()[0], -1, 1]);
    let mean = |z: &Tensor| z.mean_dim([1, 2].as_slice(), true, Kind::Float); // (chunks, 1, 1)
    let weighed = &z * weights;
    let restore = mean(&z) / mean(&weighed);
    (weighed * restore).to_kind(kind)
}

/// The encoded prompts of a picture.
pub(crate) struct Conditioning {
    parts: Vec<(f64, Timeline)>,
    negative: Option<Timeline>,
    states: Vec<Tensor>,
}

/// What holds at one call of the denoiser.
pub(crate) struct Now {
    /// The parts of the prompt, of one length, `(parts, L, C)`.
    pub(crate) parts: Tensor,
    /// Their weights.
    pub(crate) weights: Vec<f64>,
    /// The negative prompt, where there is guidance, `(1, L', C)`.
    pub(crate) negative: Option<Tensor>,
}

impl Conditioning {
    /// For the call of that number, from 0.
    pub(crate) fn at(&self, call: u32) -> Now {
        let state = |timeline: &Timeline| {
            let place = timeline.iter().position(|(end, _)| call <= *end).unwrap_or(0);
            &self.states[timeline[place].1]
        };
        let parts: Vec<&Tensor> = self.parts.iter().map(|(_, timeline)| state(timeline)).collect();
        let longest = parts.iter().map(|part| part.size()[0]).max().unwrap_or(0);
        let padded = parts.iter().map(|part| {
            // As A1111 does it: the last vector again and again.
            let missing = longest - part.size()[0];
            let last = part.narrow(0, part.size()[0] - 1, 1).expand([missing, -1], false);
            Tensor::cat(&[(*part).shallow_clone(), last], 0)
        });
        Now {
            parts: Tensor::stack(&padded.collect::<Vec<_>>(), 0),
            weights: self.parts.iter().map(|(weight, _)| *weight).collect(),
            negative: self.negative.as_ref().map(|timeline| state(timeline).unsqueeze(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use vodka_prompt::Emphasis;

    use super::*;

    #[test]
    fn weights_act_as_the_formula_says() {
        let z: Vec<f32> = (0..24).map(|i| (i as f32 * 0.7).sin() + 0.2).collect();
        let weights = [1.0, 1.1, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0];
        let found = weigh(Tensor::from_slice(&z).view([2, 4, 3]), &weights);
        let mut expected = z;
        for (chunk, weights) in expected.chunks_mut(12).zip(weights.chunks(4)) {
            Emphasis::Original.apply(chunk, weights);
        }
        let expected = Tensor::from_slice(&expected).view([2, 4, 3]);
        assert!((found - expected).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn texts_are_shared_and_networks_refused() {
        let settings = |prompt: &str| Settings { prompt: prompt.into(), ..Settings::default() };
        let prompts = Prompts::parse(&settings("a [cat|dog] # x\nAND a [cat|dog]")).unwrap();
        assert_eq!((prompts.parts.len(), prompts.parts[0].1.len(), prompts.texts.len()), (2, 20, 5));
        let error = Prompts::parse(&settings("a <lora:style:0.5>")).err().unwrap().to_string();
        assert_eq!(error, "the prompt names <lora:style>, and no such network can be applied yet");
        let error = Prompts::parse(&settings("(a:1.2.3)")).err().unwrap().to_string();
        assert!(error.contains("1.2.3"), "{error}");
    }
}
