//! The names and shapes of all weights, in LDM form and in that of diffusers, for any number of levels and layers.
//!
//! LDM names number the UNet's blocks through (`input_blocks.4.1`), diffusers' by level and layer
//! (`down_blocks.1.attentions.0`). Sources: the layout of CompVis/stable-diffusion's `openaimodel.py` and `model.py`, and
//! diffusers' `loaders/single_file_utils.py`, whose output the fixture `checkpoint/keys` holds.

use crate::{ClipConfig, ControlNetConfig, ModelConfig, UNetConfig, VaeConfig};

/// One weight: its name and shape in both forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The name in a single file, `model.diffusion_model.input_blocks.0.0.weight`.
    pub ldm: String,
    /// The name in the part's own file of a diffusers folder, `conv_in.weight`.
    pub diffusers: String,
    /// The shape in a single file.
    pub shape: Vec<usize>,
    /// The shape in a diffusers folder: the VAE's attention is linear there and a 1x1 convolution here.
    pub diffusers_shape: Vec<usize>,
}

/// What UNet names begin with in a single file.
pub const UNET_PREFIX: &str = "model.diffusion_model.";
/// What VAE names begin with in a single file.
pub const VAE_PREFIX: &str = "first_stage_model.";
/// What text encoder names begin with in a single file; some files leave out the `text_model.` that follows.
pub const CLIP_PREFIX: &str = "cond_stage_model.transformer.";
/// What ControlNet names begin with in a single file; some files leave it out.
pub const CONTROL_PREFIX: &str = "control_model.";

/// All weights of a model.
pub fn all(config: &ModelConfig) -> Vec<Key> {
    let mut keys = unet(&config.unet);
    keys.extend(vae(&config.vae));
    keys.extend(clip(&config.clip));
    keys
}

/// All weights of a UNet.
pub fn unet(config: &UNetConfig) -> Vec<Key> {
    UNet { list: List::new(UNET_PREFIX), config }.build()
}

/// All weights of a ControlNet: the way down of a UNet and its middle, the layers that see the picture, and those that give the residuals.
pub fn control_net(config: &ControlNetConfig) -> Vec<Key> {
    let mut unet = UNet { list: List::new(CONTROL_PREFIX), config: &config.unet };
    let channels = sizes(&config.unet.block_out_channels);
    let skips = unet.encoder(&channels);
    let mut list = unet.list;
    let hints = sizes(&config.hint_channels);
    let at = |i: usize| format!("input_hint_block.{}", 2 * i);
    list.conv(&at(0), "controlnet_cond_embedding.conv_in", hints[0], ControlNetConfig::PICTURE_CHANNELS, 3);
    for (i, pair) in hints.windows(2).enumerate() {
        for (k, out) in pair.iter().enumerate() {
            let k = 2 * i + k;
            list.conv(&at(k + 1), &format!("controlnet_cond_embedding.blocks.{k}"), *out, pair[0], 3);
        }
    }
    let last = hints.len() - 1;
    list.conv(&at(2 * last + 1), "controlnet_cond_embedding.conv_out", channels[0], hints[last], 3);
    for (i, width) in skips.into_iter().enumerate() {
        list.conv(&format!("zero_convs.{i}.0"), &format!("controlnet_down_blocks.{i}"), width, width, 1);
    }
    let coarsest = channels[channels.len() - 1];
    list.conv("middle_block_out.0", "controlnet_mid_block", coarsest, coarsest, 1);
    list.keys
}

/// All weights of a VAE.
pub fn vae(config: &VaeConfig) -> Vec<Key> {
    let mut list = List::new(VAE_PREFIX);
    vae_encoder(&mut list, config);
    vae_decoder(&mut list, config);
    let latent = size(config.latent_channels);
    list.conv("quant_conv", "quant_conv", 2 * latent, 2 * latent, 1);
    list.conv("post_quant_conv", "post_quant_conv", latent, latent, 1);
    list.keys
}

/// All weights of a CLIP text encoder.
pub fn clip(config: &ClipConfig) -> Vec<Key> {
    let mut list = List::new(CLIP_PREFIX);
    let hidden = size(config.hidden_size);
    let inner = size(config.intermediate_size);
    let mut embedding = |name: &str, rows: i64| {
        let name = format!("text_model.embeddings.{name}.weight");
        list.push(&name, &name, vec![size(rows), hidden]);
    };
    embedding("token_embedding", config.vocab_size);
    embedding("position_embedding", config.max_positions);
    for i in 0..config.layers {
        let at = |name: &str| format!("text_model.encoder.layers.{i}.{name}");
        for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"] {
            list.linear(&at(name), &at(name), hidden, hidden);
        }
        list.norm(&at("layer_norm1"), &at("layer_norm1"), hidden);
        list.linear(&at("mlp.fc1"), &at("mlp.fc1"), inner, hidden);
        list.linear(&at("mlp.fc2"), &at("mlp.fc2"), hidden, inner);
        list.norm(&at("layer_norm2"), &at("layer_norm2"), hidden);
    }
    list.norm("text_model.final_layer_norm", "text_model.final_layer_norm", hidden);
    list.keys
}

/// Configurations are checked before they come here.
fn size(n: i64) -> usize {
    usize::try_from(n).unwrap_or_else(|_| panic!("a checked configuration has no size {n}"))
}

fn sizes(channels: &[i64]) -> Vec<usize> {
    channels.iter().map(|n| size(*n)).collect()
}

/// Keys as they are collected.
struct List {
    prefix: &'static str,
    keys: Vec<Key>,
}

impl List {
    fn new(prefix: &'static str) -> Self {
        Self { prefix, keys: Vec::new() }
    }

    fn push(&mut self, ldm: &str, diffusers: &str, shape: Vec<usize>) {
        let ldm = format!("{}{ldm}", self.prefix);
        let diffusers_shape = shape.clone();
        self.keys.push(Key { ldm, diffusers: diffusers.to_owned(), shape, diffusers_shape });
    }

    fn weight_and_bias(&mut self, ldm: &str, diffusers: &str, weight: Vec<usize>) {
        let out = weight[0];
        self.push(&format!("{ldm}.weight"), &format!("{diffusers}.weight"), weight);
        self.push(&format!("{ldm}.bias"), &format!("{diffusers}.bias"), vec![out]);
    }

    fn conv(&mut self, ldm: &str, diffusers: &str, out: usize, inp: usize, kernel: usize) {
        self.weight_and_bias(ldm, diffusers, vec![out, inp, kernel, kernel]);
    }

    fn linear(&mut self, ldm: &str, diffusers: &str, out: usize, inp: usize) {
        self.weight_and_bias(ldm, diffusers, vec![out, inp]);
    }

    /// A group or layer normalisation.
    fn norm(&mut self, ldm: &str, diffusers: &str, channels: usize) {
        self.weight_and_bias(ldm, diffusers, vec![channels]);
    }

    /// A 1x1 convolution here, linear in diffusers.
    fn conv_or_linear(&mut self, ldm: &str, diffusers: &str, channels: usize) {
        let weight = self.keys.len();
        self.conv(ldm, diffusers, channels, channels, 1);
        self.keys[weight].diffusers_shape.truncate(2);
    }
}

/// The UNet's keys as they are collected.
struct UNet<'a> {
    list: List,
    config: &'a UNetConfig,
}

impl UNet<'_> {
    fn build(mut self) -> Vec<Key> {
        let config = self.config;
        let channels = sizes(&config.block_out_channels);
        let first = channels[0];
        let skips = self.encoder(&channels);
        self.up(&channels, skips);
        self.list.norm("out.0", "conv_norm_out", first);
        self.list.conv("out.2", "conv_out", size(config.out_channels), first, 3);
        self.list.keys
    }

    /// What a ControlNet has too: all before the way up; returns the channels of each skip connection in the order they are made.
    fn encoder(&mut self, channels: &[usize]) -> Vec<usize> {
        let config = self.config;
        let (first, time) = (channels[0], size(config.time_embed_dim()));
        self.list.linear("time_embed.0", "time_embedding.linear_1", time, first);
        self.list.linear("time_embed.2", "time_embedding.linear_2", time, time);
        self.list.conv("input_blocks.0.0", "conv_in", first, size(config.in_channels), 3);
        let skips = self.down(channels);
        self.middle(channels[channels.len() - 1]);
        skips
    }

    /// The way down; returns the channels of each skip connection in the order they are made.
    fn down(&mut self, channels: &[usize]) -> Vec<usize> {
        let mut width = channels[0];
        let mut skips = vec![width];
        for (level, &out) in channels.iter().enumerate() {
            for layer in 0..self.config.layers_per_block {
                let ldm = format!("input_blocks.{}", skips.len());
                let diffusers = format!("down_blocks.{level}");
                self.resnet(&format!("{ldm}.0"), &format!("{diffusers}.resnets.{layer}"), width, out);
                if self.config.cross_attention[level] {
                    self.transformer(&format!("{ldm}.1"), &format!("{diffusers}.attentions.{layer}"), out);
                }
                width = out;
                skips.push(width);
            }
            if level + 1 < channels.len() {
                let ldm = format!("input_blocks.{}.0.op", skips.len());
                self.list.conv(&ldm, &format!("down_blocks.{level}.downsamplers.0.conv"), out, out, 3);
                skips.push(width);
            }
        }
        skips
    }

    fn middle(&mut self, channels: usize) {
        self.resnet("middle_block.0", "mid_block.resnets.0", channels, channels);
        self.transformer("middle_block.1", "mid_block.attentions.0", channels);
        self.resnet("middle_block.2", "mid_block.resnets.1", channels, channels);
    }

    /// The way up, which takes the skip connections off again, last one first.
    fn up(&mut self, channels: &[usize], mut skips: Vec<usize>) {
        let layers = self.config.layers_per_block + 1;
        let mut width = channels[channels.len() - 1];
        let mut index = 0;
        for (block, (level, &out)) in channels.iter().enumerate().rev().enumerate() {
            for layer in 0..layers {
                let ldm = format!("output_blocks.{index}");
                let diffusers = format!("up_blocks.{block}");
                let skip = skips.pop().expect("as many ways up as down");
                self.resnet(&format!("{ldm}.0"), &format!("{diffusers}.resnets.{layer}"), width + skip, out);
                let attends = self.config.cross_attention[level];
                if attends {
                    self.transformer(&format!("{ldm}.1"), &format!("{diffusers}.attentions.{layer}"), out);
                }
                if level > 0 && layer + 1 == layers {
                    let ldm = format!("{ldm}.{}.conv", if attends { 2 } else { 1 });
                    self.list.conv(&ldm, &format!("{diffusers}.upsamplers.0.conv"), out, out, 3);
                }
                width = out;
                index += 1;
            }
        }
    }

    fn resnet(&mut self, ldm: &str, diffusers: &str, inp: usize, out: usize) {
        let time = size(self.config.time_embed_dim());
        let at = |l: &str, d: &str| (format!("{ldm}.{l}"), format!("{diffusers}.{d}"));
        let (l, d) = at("in_layers.0", "norm1");
        self.list.norm(&l, &d, inp);
        let (l, d) = at("in_layers.2", "conv1");
        self.list.conv(&l, &d, out, inp, 3);
        let (l, d) = at("emb_layers.1", "time_emb_proj");
        self.list.linear(&l, &d, out, time);
        let (l, d) = at("out_layers.0", "norm2");
        self.list.norm(&l, &d, out);
        let (l, d) = at("out_layers.3", "conv2");
        self.list.conv(&l, &d, out, out, 3);
        if inp != out {
            let (l, d) = at("skip_connection", "conv_shortcut");
            self.list.conv(&l, &d, out, inp, 1);
        }
    }

    /// Self attention, attention to the text, GEGLU; named alike in both forms.
    fn transformer(&mut self, ldm: &str, diffusers: &str, channels: usize) {
        let context = size(self.config.cross_attention_dim);
        let list = &mut self.list;
        let at = |name: &str| (format!("{ldm}.{name}"), format!("{diffusers}.{name}"));
        let (l, d) = at("norm");
        list.norm(&l, &d, channels);
        let (l, d) = at("proj_in");
        list.conv(&l, &d, channels, channels, 1);
        for (name, inp) in [("attn1", channels), ("attn2", context)] {
            for (projection, inp) in [("to_q", channels), ("to_k", inp), ("to_v", inp)] {
                let (l, d) = at(&format!("transformer_blocks.0.{name}.{projection}.weight"));
                list.push(&l, &d, vec![channels, inp]);
            }
            let (l, d) = at(&format!("transformer_blocks.0.{name}.to_out.0"));
            list.linear(&l, &d, channels, channels);
        }
        let (l, d) = at("transformer_blocks.0.ff.net.0.proj");
        list.linear(&l, &d, 8 * channels, channels);
        let (l, d) = at("transformer_blocks.0.ff.net.2");
        list.linear(&l, &d, channels, 4 * channels);
        for name in ["norm1", "norm2", "norm3"] {
            let (l, d) = at(&format!("transformer_blocks.0.{name}"));
            list.norm(&l, &d, channels);
        }
        let (l, d) = at("proj_out");
        list.conv(&l, &d, channels, channels, 1);
    }
}

fn vae_encoder(list: &mut List, config: &VaeConfig) {
    let channels = sizes(&config.block_out_channels);
    let last = channels[channels.len() - 1];
    list.conv("encoder.conv_in", "encoder.conv_in", channels[0], size(config.in_channels), 3);
    let mut width = channels[0];
    for (level, &out) in channels.iter().enumerate() {
        for layer in 0..config.layers_per_block {
            let ldm = format!("encoder.down.{level}.block.{layer}");
            vae_resnet(list, &ldm, &format!("encoder.down_blocks.{level}.resnets.{layer}"), width, out);
            width = out;
        }
        if level + 1 < channels.len() {
            let ldm = format!("encoder.down.{level}.downsample.conv");
            list.conv(&ldm, &format!("encoder.down_blocks.{level}.downsamplers.0.conv"), out, out, 3);
        }
    }
    vae_middle(list, "encoder", last);
    list.norm("encoder.norm_out", "encoder.conv_norm_out", last);
    list.conv("encoder.conv_out", "encoder.conv_out", 2 * size(config.latent_channels), last, 3);
}

fn vae_decoder(list: &mut List, config: &VaeConfig) {
    let channels = sizes(&config.block_out_channels);
    let last = channels[channels.len() - 1];
    list.conv("decoder.conv_in", "decoder.conv_in", last, size(config.latent_channels), 3);
    vae_middle(list, "decoder", last);
    let mut width = last;
    for (block, (level, &out)) in channels.iter().enumerate().rev().enumerate() {
        for layer in 0..=config.layers_per_block {
            let ldm = format!("decoder.up.{level}.block.{layer}");
            vae_resnet(list, &ldm, &format!("decoder.up_blocks.{block}.resnets.{layer}"), width, out);
            width = out;
        }
        if level > 0 {
            let ldm = format!("decoder.up.{level}.upsample.conv");
            list.conv(&ldm, &format!("decoder.up_blocks.{block}.upsamplers.0.conv"), out, out, 3);
        }
    }
    list.norm("decoder.norm_out", "decoder.conv_norm_out", channels[0]);
    list.conv("decoder.conv_out", "decoder.conv_out", size(config.in_channels), channels[0], 3);
}

fn vae_middle(list: &mut List, half: &str, channels: usize) {
    let at =
        |ldm: &str, diffusers: &str| (format!("{half}.mid.{ldm}"), format!("{half}.mid_block.{diffusers}"));
    let (l, d) = at("block_1", "resnets.0");
    vae_resnet(list, &l, &d, channels, channels);
    let (l, d) = at("attn_1.norm", "attentions.0.group_norm");
    list.norm(&l, &d, channels);
    for (ldm, diffusers) in VAE_ATTENTION {
        let (l, d) = at(&format!("attn_1.{ldm}"), &format!("attentions.0.{diffusers}"));
        list.conv_or_linear(&l, &d, channels);
    }
    let (l, d) = at("block_2", "resnets.1");
    vae_resnet(list, &l, &d, channels, channels);
}

const VAE_ATTENTION: [(&str, &str); 4] =
    [("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")];

fn vae_resnet(list: &mut List, ldm: &str, diffusers: &str, inp: usize, out: usize) {
    list.norm(&format!("{ldm}.norm1"), &format!("{diffusers}.norm1"), inp);
    list.conv(&format!("{ldm}.conv1"), &format!("{diffusers}.conv1"), out, inp, 3);
    list.norm(&format!("{ldm}.norm2"), &format!("{diffusers}.norm2"), out);
    list.conv(&format!("{ldm}.conv2"), &format!("{diffusers}.conv2"), out, out, 3);
    if inp != out {
        list.conv(&format!("{ldm}.nin_shortcut"), &format!("{diffusers}.conv_shortcut"), out, inp, 1);
    }
}
