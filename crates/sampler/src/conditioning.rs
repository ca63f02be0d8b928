//! Prompts on their way to the denoiser: parsed once, encoded once, chosen anew at each call.

use std::collections::HashMap;

use tch::{Kind, Tensor};
use vodka_prompt::{
    CONTEXT_LENGTH, Chunk, ChunkOptions, EmbeddingNames, Emphasis, ExtraNetwork, LoraUse, Scheduled,
    Subprompt, Timing, chunks, parse_and, parse_schedule, strip_comments, take_networks,
};
use vodka_sd15::{ClipTextModel, Network};

use crate::{Error, Library, Result, Settings};

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
    emphasis: Emphasis,
}

/// Both prompts as they are from call to call of the denoiser.
pub(crate) struct TimedPrompts {
    /// What `AND` joins, with its weights.
    pub(crate) prompt: Vec<(f64, Vec<Scheduled>)>,
    pub(crate) negative: Vec<Scheduled>,
    /// What the prompt names; a negative prompt names none.
    pub(crate) networks: Vec<ExtraNetwork>,
}

impl TimedPrompts {
    pub(crate) fn of(settings: &Settings) -> Self {
        let calls = settings.scheduled_calls();
        let timing = match settings.image.as_ref().and_then(|image| image.after_calls) {
            Some(before) => Timing { hires_steps: Some(calls), ..Timing::first_pass(before) },
            None => Timing::first_pass(calls),
        };
        let timing = Timing { old_rule: settings.old_prompt_rule, ..timing };
        let (prompt, networks) = take_networks(&strip_comments(&settings.prompt));
        let part = |part: Subprompt| (part.weight, parse_schedule(&part.text, timing));
        let negative = parse_schedule(&strip_comments(&settings.negative_prompt), timing);
        Self { prompt: parse_and(&prompt).into_iter().map(part).collect(), negative, networks }
    }
}

/// How many chunks of 77 tokens plain prompts have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lengths {
    prompt: usize,
    /// None without guidance.
    negative: Option<usize>,
}

/// The texts of a prompt by the last call for which each holds.
type Timeline = Vec<(u32, usize)>;

impl Prompts {
    /// Whether the prompts can be used, whatever files they name.
    ///
    /// # Errors
    /// Those of [`Prompts::parse`] and [`Prompts::loras`].
    pub(crate) fn check(settings: &Settings) -> Result<()> {
        Self::loras(settings)?;
        Self::parse(settings, &EmbeddingNames::default()).map(drop)
    }

    /// Rows of the denoiser's batch that a picture has: one for each prompt that `AND` joins, and one for the negative prompt.
    ///
    /// # Errors
    /// Those of [`Prompts::parse`].
    pub(crate) fn rows(settings: &Settings) -> Result<u64> {
        let Self { parts, negative, .. } = Self::parse(settings, &EmbeddingNames::default())?;
        Ok(parts.len() as u64 + u64::from(negative.is_some()))
    }

    /// The LoRA files that the prompt names; a negative prompt names none, as in A1111.
    ///
    /// # Errors
    /// A weight that is no number, and networks that are no LoRA.
    pub(crate) fn loras(settings: &Settings) -> Result<Vec<LoraUse>> {
        let networks = TimedPrompts::of(settings).networks;
        let lora = |network: ExtraNetwork| match network.kind.as_str() {
            "lora" | "lyco" => Ok(network.lora()?),
            _ => {
                let name = network.positional.first().cloned().unwrap_or_default();
                Err(Error::ExtraNetwork { kind: network.kind, name })
            }
        };
        networks.into_iter().map(lora).collect()
    }

    /// # Errors
    /// A weight that is no number.
    pub(crate) fn parse(settings: &Settings, embeddings: &EmbeddingNames) -> Result<Self> {
        let TimedPrompts { prompt, negative, .. } = TimedPrompts::of(settings);
        let options = ChunkOptions {
            comma_backtrack: COMMA_BACKTRACK,
            with_attention: settings.emphasis != Emphasis::None,
            embeddings,
        };
        let mut texts = Texts { options, places: HashMap::new(), chunks: Vec::new() };
        let parts: Result<Vec<_>> =
            prompt.into_iter().map(|(weight, part)| Ok((weight, texts.timeline(part)?))).collect();
        let parts = parts?;
        let is_plain = parts.len() == 1 && parts[0].0 == 1.0 && settings.guidance() == 1.0;
        let negative = if is_plain { None } else { Some(texts.timeline(negative)?) };
        Ok(Self { parts, negative, texts: texts.chunks, emphasis: settings.emphasis })
    }

    /// How long both prompts are, where they are plain: not joined of several, of one weight, and the same at each step.
    pub(crate) fn lengths(&self) -> Option<Lengths> {
        let chunks = |timeline: &Timeline| match timeline[..] {
            [(_, place)] => Some(self.texts[place].len()),
            _ => None,
        };
        match &self.parts[..] {
            [(weight, prompt)] if *weight == 1.0 => Some(Lengths {
                prompt: chunks(prompt)?,
                negative: match &self.negative {
                    Some(negative) => Some(chunks(negative)?),
                    None => None,
                },
            }),
            _ => None,
        }
    }

    /// The largest weight of a word, without its sign, and which prompt has it.
    pub(crate) fn heaviest(&self) -> (&'static str, f32) {
        let of = |timeline: &Timeline| {
            let chunks = timeline.iter().flat_map(|(_, place)| &self.texts[*place]);
            let weights = chunks.flat_map(|chunk| chunk.weights).map(f32::abs);
            // NaN is what becomes of infinity that is taken back again.
            weights.map(|weight| if weight.is_nan() { f32::INFINITY } else { weight }).fold(0.0, f32::max)
        };
        let prompt = self.parts.iter().map(|(_, timeline)| of(timeline)).fold(0.0, f32::max);
        let negative = self.negative.as_ref().map_or(0.0, of);
        if negative > prompt { ("negative prompt", negative) } else { ("prompt", prompt) }
    }

    /// The names of embeddings in use, some of them more than once.
    pub(crate) fn embeddings(&self) -> impl Iterator<Item = &str> {
        let placed = self.texts.iter().flatten().flat_map(|chunk| &chunk.embeddings);
        placed.map(|embedding| embedding.name.as_str())
    }

    /// Encodes every text that `known` does not have: chunks side by side, weighed, each with the mean that it had without
    /// weights.
    pub(crate) fn encode(
        self,
        clip: &ClipTextModel,
        clip_skip: i64,
        library: &Library,
        known: &mut States,
    ) -> Conditioning {
        let encode = |chunks: &Vec<Chunk>| {
            let tokens = embed(chunks, clip, library);
            let z = clip.forward_embedded(&tokens, clip_skip);
            let weights: Vec<f32> = chunks.iter().flat_map(|chunk| chunk.weights).collect();
            let z = weigh(z, &weights, self.emphasis); // (chunks, 77, C)
            z.flatten(0, 1) // (77 chunks, C)
        };
        let state = |chunks| known.get(chunks, clip_skip, self.emphasis, encode);
        let states = self.texts.iter().map(state).collect();
        Conditioning { parts: self.parts, negative: self.negative, states }
    }
}

/// Texts that were encoded before, by one text encoder whose weights have not changed since, and with the same embeddings.
#[derive(Debug, Default)]
pub(crate) struct States {
    /// The latest one last.
    known: Vec<State>,
    #[cfg(test)]
    encoded: usize,
}

#[derive(Debug)]
struct State {
    chunks: Vec<Chunk>,
    clip_skip: i64,
    emphasis: Emphasis,
    /// `(77 chunks, C)`
    tensor: Tensor,
}

impl States {
    /// A text of 77 tokens of SD 1.5 takes 0.24 MB.
    const MOST: usize = 128;

    /// The state of a text; `encode` makes it where it is not there.
    fn get(
        &mut self,
        chunks: &Vec<Chunk>,
        clip_skip: i64,
        emphasis: Emphasis,
        encode: impl FnOnce(&Vec<Chunk>) -> Tensor,
    ) -> Tensor {
        let is_it = |state: &State| {
            state.clip_skip == clip_skip && state.emphasis == emphasis && state.chunks == *chunks
        };
        let state = if let Some(place) = self.known.iter().position(is_it) {
            self.known.remove(place)
        } else {
            if self.known.len() == Self::MOST {
                self.known.remove(0);
            }
            #[cfg(test)]
            {
                self.encoded += 1;
            }
            State { chunks: chunks.clone(), clip_skip, emphasis, tensor: encode(chunks) }
        };
        let tensor = state.tensor.shallow_clone();
        self.known.push(state);
        tensor
    }
}

/// The tokens' vectors, with those of embeddings in their places. `(chunks, 77, C)`
fn embed(chunks: &[Chunk], clip: &ClipTextModel, library: &Library) -> Tensor {
    let (count, length) = (chunks.len() as i64, CONTEXT_LENGTH as i64);
    let (device, kind) = (clip.vars().device(), clip.vars().kind());
    let ids: Vec<i64> = chunks.iter().flat_map(|chunk| chunk.ids).collect();
    let tokens = clip.embed(&Tensor::from_slice(&ids).view([count, length]).to_device(device));
    for (chunk, i) in chunks.iter().zip(0..) {
        for placed in &chunk.embeddings {
            let found = library.embedding(&placed.name);
            let vectors = Tensor::from_slice(&found.values).view([found.vectors as i64, -1]);
            let (at, vectors) = (placed.at as i64, vectors.to_device(device).to_kind(kind));
            tokens.get(i).narrow(0, at, found.vectors as i64).copy_(&vectors);
        }
    }
    tokens
}

struct Texts<'a> {
    options: ChunkOptions<'a>,
    places: HashMap<String, usize>,
    chunks: Vec<Vec<Chunk>>,
}

impl Texts<'_> {
    fn timeline(&mut self, schedule: Vec<Scheduled>) -> Result<Timeline> {
        let entry = |entry: Scheduled| {
            let place = match self.places.get(&entry.text) {
                Some(place) => *place,
                None => {
                    self.chunks.push(chunks(&entry.text, &self.options)?);
                    self.places.insert(entry.text, self.chunks.len() - 1);
                    self.chunks.len() - 1
                }
            };
            Ok((entry.end_at_step, place))
        };
        schedule.into_iter().map(entry).collect()
    }
}

/// [`Emphasis::apply`] for `z (chunks, 77, C)`.
fn weigh(z: Tensor, weights: &[f32], emphasis: Emphasis) -> Tensor {
    let is_without = weights.iter().all(|weight| *weight == 1.0);
    if is_without || matches!(emphasis, Emphasis::None | Emphasis::Ignore) {
        return z;
    }
    let kind = z.kind();
    let z = z.to_kind(Kind::Float);
    let weights = Tensor::from_slice(weights).to_device(z.device()).view([z.size()[0], -1, 1]);
    let weighed = &z * weights;
    if emphasis == Emphasis::NoNorm {
        return weighed.to_kind(kind);
    }
    let mean = |z: &Tensor| z.mean_dim([1, 2].as_slice(), true, Kind::Float); // (chunks, 1, 1)
    let (before, after) = (mean(&z), mean(&weighed));
    let least = mean(&z.square()).sqrt() * Emphasis::NO_MEAN;
    let is_mean = before.abs().minimum(&after.abs()).greater_tensor(&least);
    let restore = (&before / &after).where_self(&is_mean, &before.ones_like());
    (weighed * restore).to_kind(kind)
}

/// The encoded prompts of a picture.
pub(crate) struct Conditioning {
    parts: Vec<(f64, Timeline)>,
    negative: Option<Timeline>,
    states: Vec<Tensor>,
}

/// What holds at one call of the denoiser, for all pictures of a batch.
pub(crate) struct Now {
    /// All pictures with the first part of their prompts, all with the second, ...; of one length, `(parts * B, L, C)`.
    pub(crate) parts: Tensor,
    /// The weights of the parts.
    pub(crate) weights: Vec<f64>,
    /// The negative prompts, where there is guidance, `(B, L', C)`.
    pub(crate) negative: Option<Tensor>,
}

impl Now {
    /// For the call of that number, from 0: of a prompt that all pictures share, or of one plain prompt for each.
    pub(crate) fn of(all: &[Conditioning], call: u32, pictures: i64) -> Self {
        if let [shared] = all {
            let (parts, weights, negative) = shared.at(call);
            let for_all = |states: Tensor| states.repeat_interleave_self_int(pictures, 0, None);
            return Self { parts: for_all(parts), weights, negative: negative.map(for_all) };
        }
        let of_each: Vec<_> = all.iter().map(|conditioning| conditioning.at(call)).collect();
        let stacked = |states: Vec<&Tensor>| Tensor::cat(&states, 0);
        let negative: Option<Vec<_>> = of_each.iter().map(|(_, _, negative)| negative.as_ref()).collect();
        Self {
            parts: stacked(of_each.iter().map(|(parts, _, _)| parts).collect()),
            weights: of_each[0].1.clone(),
            negative: negative.map(stacked),
        }
    }
}

impl Conditioning {
    /// For the call of that number, from 0: the parts of the prompt, of one length, `(parts, L, C)`, their weights, and the
    /// negative prompt where there is guidance, `(1, L', C)`.
    fn at(&self, call: u32) -> (Tensor, Vec<f64>, Option<Tensor>) {
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
        let weights = self.parts.iter().map(|(weight, _)| *weight).collect();
        let negative = self.negative.as_ref().map(|timeline| state(timeline).unsqueeze(0));
        (Tensor::stack(&padded.collect::<Vec<_>>(), 0), weights, negative)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_act_as_the_formula_says() {
        let z: Vec<f32> = (0..24).map(|i| (i as f32 * 0.7).sin() + 0.2).collect();
        let weights = [1.0, 1.1, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0];
        for emphasis in Emphasis::ALL {
            let found = weigh(Tensor::from_slice(&z).view([2, 4, 3]), &weights, emphasis);
            let mut expected = z.clone();
            for (chunk, weights) in expected.chunks_mut(12).zip(weights.chunks(4)) {
                emphasis.apply(chunk, weights);
            }
            let expected = Tensor::from_slice(&expected).view([2, 4, 3]);
            assert!((found - expected).abs().max().double_value(&[]) < 1e-6, "{emphasis}");
        }
    }

    #[test]
    fn a_mean_that_is_rounding_is_not_restored() {
        // Each row has the mean 0, as behind a norm that was never trained.
        let z = Tensor::from_slice(&[1.0_f32, -1.0, 3.0, -3.0]).view([1, 2, 2]);
        let found = weigh(z, &[1.0, 1.2], Emphasis::Original);
        assert_eq!(Vec::<f32>::try_from(found.flatten(0, -1)).unwrap(), [1.0, -1.0, 3.0 * 1.2, -3.0 * 1.2]);
    }

    #[test]
    fn texts_are_shared() {
        let settings = |prompt: &str| Settings { prompt: prompt.into(), ..Settings::default() };
        let names = EmbeddingNames::default();
        let prompts = Prompts::parse(&settings("a [cat|dog] # x\nAND a [cat|dog]"), &names).unwrap();
        assert_eq!((prompts.parts.len(), prompts.parts[0].1.len(), prompts.texts.len()), (2, 20, 5));
        let error = Prompts::check(&settings("(a:1.2.3)")).unwrap_err().to_string();
        assert!(error.contains("1.2.3"), "{error}");
        let plain = Settings { emphasis: Emphasis::None, ..settings("(a:1.2.3)") };
        Prompts::check(&plain).unwrap();
    }

    #[test]
    fn a_text_is_encoded_once() {
        let settings = Settings { prompt: "a [cat|dog]".into(), ..Settings::default() };
        let texts = Prompts::parse(&settings, &EmbeddingNames::default()).unwrap().texts;
        let mut states = States::default();
        let mut get = |chunks: &Vec<Chunk>, clip_skip, emphasis, value: f64| {
            let found = states.get(chunks, clip_skip, emphasis, |_| Tensor::from(value));
            (found.double_value(&[]), states.encoded)
        };
        assert_eq!(get(&texts[0], 1, Emphasis::Original, 1.0), (1.0, 1));
        assert_eq!(get(&texts[1], 1, Emphasis::Original, 2.0), (2.0, 2));
        assert_eq!(get(&texts[0], 2, Emphasis::Original, 3.0), (3.0, 3));
        assert_eq!(get(&texts[0], 1, Emphasis::NoNorm, 4.0), (4.0, 4));
        assert_eq!(get(&texts[0], 1, Emphasis::Original, 5.0), (1.0, 4));
        let mut other = texts[0].clone();
        other[0].weights[3] = 1.5;
        assert_eq!(get(&other, 1, Emphasis::Original, 6.0), (6.0, 5));
        // What was used least lately goes first.
        for i in 0..States::MOST as i64 - 1 {
            get(&texts[1], 10 + i, Emphasis::Original, 0.0);
        }
        let before = get(&other, 1, Emphasis::Original, 7.0);
        assert_eq!(before, (6.0, 4 + States::MOST));
        assert_eq!(get(&texts[0], 1, Emphasis::Original, 8.0), (8.0, 5 + States::MOST));
    }

    #[test]
    fn the_prompt_names_networks_and_the_negative_prompt_none() {
        let settings = |prompt: &str| Settings { prompt: prompt.into(), ..Settings::default() };
        let loras = Prompts::loras(&settings("a <lora:x:0.5> # <lora:y>")).unwrap();
        assert_eq!(loras.iter().map(|l| (l.name.as_str(), l.unet)).collect::<Vec<_>>(), [("x", 0.5)]);
        let negative = Settings { negative_prompt: "<lora:x>".into(), ..Settings::default() };
        assert!(Prompts::loras(&negative).unwrap().is_empty());
        let error = Prompts::check(&settings("a <hypernet:style:0.5>")).unwrap_err().to_string();
        assert_eq!(error, "the prompt names <hypernet:style>, and LoRA files alone can be applied");
        let error = Prompts::check(&settings("<lora:x:y>")).unwrap_err().to_string();
        assert_eq!(error, "the weight `y` of `x` is no number");
    }

    #[test]
    fn the_rule_of_before_counts_steps_from_one() {
        let settings = Settings { prompt: "[a:b:1.0]".into(), ..Settings::default() };
        let parts = |old_prompt_rule| {
            let settings = Settings { old_prompt_rule, ..settings.clone() };
            Prompts::parse(&settings, &EmbeddingNames::default()).unwrap().parts[0].1.clone()
        };
        assert_eq!(parts(false).len(), 1);
        assert_eq!(parts(true).iter().map(|(end, _)| *end).collect::<Vec<_>>(), [1, 20]);
    }
}
