//! From a prompt to pixels.

use std::{
    cell::{Cell, RefCell},
    error,
    path::{Path, PathBuf},
    sync::Arc,
};

use image::RgbImage;
use tch::{Device, Kind, Tensor};
use vodka_checkpoint::{Checkpoint, ModelConfig, Precision, Prediction, TensorView, VaeConfig, Weights};
use vodka_noise::{Host, Latent, Output, Parameterization, PictureSeed, SamplerName, Schedule, Solver};
use vodka_sd15::{ClipTextModel, Network, UNet, Vae, VaeTiles, layers::Tiling};
use vodka_stage::Interrupt;

use crate::{
    Error, Library, Model, ModelSource, ResizeMode, Result, Settings, Size,
    conditioning::{Conditioning, Lengths, Now, Prompts, States},
    control::{Guides, LoadedNets, Prepared},
    fit::fit,
    graph::{Inputs, Recorder},
    hires::{Hires, HiresUpscaler},
    loras::Applied,
    memory::{Job, There},
    redraw::{FINE, FinePicture, Held, Noise, Part},
    upscale::{Tiles, Upscaler, UpscalerChoice},
};

/// Counts up whenever the same settings make other pixels: what an older arithmetic has made is made anew.
pub(crate) const ARITHMETIC: u32 = 2;

/// Words of no prompt that works weigh more.
const WEIGHT_MAX: f32 = 1000.0;

/// The networks of one model on one device, ready to make pictures.
#[derive(Debug)]
pub struct Pipeline {
    model: Model,
    /// Where the VAE is from another file.
    vae_file: Option<Checkpoint>,
    clip: ClipTextModel,
    unet: UNet,
    vae: Vae,
    library: Arc<Library>,
    loras: RefCell<Applied>,
    states: RefCell<States>,
    recorder: RefCell<Recorder>,
    upscaler: RefCell<LoadedUpscaler>,
    controls: RefCell<LoadedNets>,
    load: Load,
}

/// The upscaler that a hires pass has used last.
type LoadedUpscaler = Option<(UpscalerChoice, Upscaler)>;

/// How networks are loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// Where they are to be.
    pub device: Device,
    /// What text encoder and UNet compute in.
    pub kind: Kind,
    /// What the VAE computes in; where pictures then are not finite, it does them again in fp32.
    pub vae_kind: Kind,
    /// Another file or folder with a VAE; the checkpoint's own where absent.
    pub vae: Option<PathBuf>,
    /// How the VAE cuts large pictures; `None`: not at all.
    pub vae_tiles: Option<VaeTiles>,
    /// Whether a GPU is told of calls of the UNet once, to do them again (CUDA graphs).
    pub graphs: bool,
}

impl Load {
    /// All in `kind` but the VAE, which is in fp32 and the checkpoint's, and cuts pictures for which memory does not suffice; with
    /// graphs.
    pub fn new(device: Device, kind: Kind) -> Self {
        let vae_tiles = Some(VaeTiles::default());
        Self { device, kind, vae_kind: Kind::Float, vae: None, vae_tiles, graphs: true }
    }
}

/// libtorch's name for it.
pub(crate) fn kind(precision: Precision) -> Kind {
    match precision {
        Precision::F32 => Kind::Float,
        Precision::F16 => Kind::Half,
        Precision::BF16 => Kind::BFloat16,
    }
}

/// Weights of which none is had any more once somebody asks to stop.
struct Interruptible<'w> {
    weights: &'w dyn Weights,
    interrupt: &'w Interrupt,
}

/// Somebody has asked to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

impl Weights for Interruptible<'_> {
    fn config(&self) -> &ModelConfig {
        self.weights.config()
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>, Box<dyn error::Error + Send + Sync>> {
        match self.interrupt.is_raised() {
            true => Err(Interrupted.into()),
            false => self.weights.tensor(name),
        }
    }
}

/// Borrowed networks: a model in training makes its previews with them.
#[derive(Debug, Clone, Copy)]
pub struct Networks<'a> {
    /// The text encoder.
    pub clip: &'a ClipTextModel,
    /// The denoiser.
    pub unet: &'a UNet,
    /// The decoder; better in fp32 whatever the others are, since fp16 overflows in it.
    pub vae: &'a Vae,
    /// What the denoiser predicts.
    pub prediction: Prediction,
    /// Whether they were trained with nothing but noise at the last timestep (`rescale_betas_zero_snr`).
    pub zero_terminal_snr: bool,
}

/// What is made in one go.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// One for each picture, all of one [`Form`]: they differ in their seeds and subseeds, and in prompts that are plain.
    pub settings: &'a [Settings],
    /// The picture that they are made from, where the settings speak of one, in any size.
    pub image: Option<&'a RgbImage>,
}

impl Batch<'_> {
    /// Whether the second picture can be made together with the first. DPM adaptive takes steps that depend on all.
    pub fn fits(first: &Settings, second: &Settings) -> bool {
        let Settings { seed, subseed, .. } = *second;
        first.sampler != SamplerName::DpmAdaptive && Settings { seed, subseed, ..first.clone() } == *second
    }
}

/// What pictures share that one model can make together.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// All but seeds and, where they are plain, prompts.
    settings: Settings,
    /// Of plain prompts, how long they are.
    lengths: Option<Lengths>,
}

impl Pipeline {
    /// Loads the checkpoint at `path`: text encoder and UNet in `kind`, the VAE in fp32.
    ///
    /// # Errors
    /// A file that cannot be read, is cut short, is of another architecture, or does not fit into the device's memory.
    pub fn open(path: &Path, device: Device, kind: Kind) -> Result<Self> {
        Self::load(ModelSource::Checkpoint(path.to_path_buf()).open()?, device, kind)
    }

    /// Loads a model that has been opened ([`ModelSource::open`]), in the same way. The tensors of a merge are worked out one
    /// by one and rounded to its element type, so that the networks are those of the file that it would be.
    ///
    /// # Errors
    /// Weights that cannot be read, or do not fit into the device's memory; those of a merge that are not finite.
    pub fn load(model: Model, device: Device, kind: Kind) -> Result<Self> {
        Self::load_with(model, &Load::new(device, kind))
    }

    /// As [`Pipeline::load`], with more to say.
    ///
    /// # Errors
    /// In addition, a VAE that cannot be read, or is of another form than the model's.
    pub fn load_with(model: Model, load: &Load) -> Result<Self> {
        Self::load_through(model, load, &Interrupt::new())
    }

    /// As [`Pipeline::load_with`], or [`Pipeline::replace`] where there is one before; `None` where it is interrupted,
    /// which is heard between two tensors: to work out a merge takes a while.
    ///
    /// # Errors
    /// As there.
    pub fn load_unless(
        before: Option<Self>,
        model: Model,
        load: &Load,
        interrupt: &Interrupt,
    ) -> Result<Option<Self>> {
        let loaded = match before {
            Some(before) => before.replace_through(model, load, interrupt),
            None => Self::load_through(model, load, interrupt),
        };
        match loaded {
            Err(Error::Networks(vodka_sd15::Error::Weights(error))) if error.is::<Interrupted>() => Ok(None),
            loaded => loaded.map(Some),
        }
    }

    fn load_through(model: Model, load: &Load, interrupt: &Interrupt) -> Result<Self> {
        let Load { device, kind, vae_kind, ref vae, vae_tiles, graphs } = *load;
        let weights = &Interruptible { weights: model.weights(), interrupt };
        let vae_file = vae.as_deref().map(|path| open_vae(path, &weights.config().vae)).transpose()?;
        let vae_weights: &dyn Weights = vae_file.as_ref().map_or(weights, |file| file);
        let mut unet = UNet::load(weights, device, kind)?;
        unet.channels_last();
        let mut vae = Vae::load(vae_weights, device, vae_kind)?;
        vae.channels_last();
        vae.set_tiles(vae_tiles);
        Ok(Self {
            clip: ClipTextModel::load(weights, device, kind)?,
            unet,
            vae,
            model,
            vae_file,
            library: Arc::default(),
            loras: RefCell::default(),
            states: RefCell::default(),
            recorder: RefCell::new(Recorder::new(graphs)),
            upscaler: RefCell::default(),
            controls: RefCell::default(),
            load: load.clone(),
        })
    }

    /// Puts another model in the place of this one: its weights go into the networks that are there, which are built anew only
    /// where they are of another form or are to be elsewhere. The library stays. Pictures are to the bit those of
    /// [`Pipeline::load_with`].
    ///
    /// # Errors
    /// As [`Pipeline::load_with`].
    pub fn replace(self, model: Model, load: &Load) -> Result<Self> {
        self.replace_through(model, load, &Interrupt::new())
    }

    fn replace_through(mut self, model: Model, load: &Load, interrupt: &Interrupt) -> Result<Self> {
        let form = |load: &Load| (load.device, load.kind, load.vae_kind, load.graphs);
        let [before, after] = [&self.model, &model].map(Model::config);
        if form(load) != form(&self.load) || (&before.clip, &before.unet) != (&after.clip, &after.unet) {
            let library = self.library;
            // Two models may be too many for the memory.
            drop((self.clip, self.unet, self.vae, self.recorder, self.controls));
            return Ok(Self::load_through(model, load, interrupt)?.with_library(library));
        }
        let weights: &dyn Weights = &Interruptible { weights: model.weights(), interrupt };
        // A VAE of its own takes from its model what no tensor tells.
        if load.vae.is_none() || load.vae != self.load.vae || before.vae != after.vae {
            let file = load.vae.as_deref().map(|path| open_vae(path, &after.vae)).transpose()?;
            let weights: &dyn Weights = file.as_ref().map_or(weights, |file| file);
            if weights.config().vae == *self.vae.config() {
                self.vae.fill(weights)?;
            } else {
                self.vae = Vae::load(weights, load.device, load.vae_kind)?;
                self.vae.channels_last();
            }
            self.vae_file = file;
        }
        self.vae.set_tiles(load.vae_tiles);
        self.clip.fill(weights)?;
        self.unet.fill(weights)?;
        self.loras.take();
        self.states.take();
        Ok(Self { model, load: load.clone(), ..self })
    }

    /// The same, with LoRA files and embeddings that prompts may name.
    pub fn with_library(mut self, library: Arc<Library>) -> Self {
        self.library = library;
        self.states.take();
        self
    }

    /// Makes one picture; `on_step` is told after each call of the UNet how many of how many are done. `None` where
    /// `interrupt` was raised on the way.
    ///
    /// # Errors
    /// As [`Pipeline::generate_batch`].
    pub fn generate(
        &self,
        settings: &Settings,
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<RgbImage>> {
        let batch = Batch { settings: std::slice::from_ref(settings), image: None };
        Ok(self.generate_batch(batch, interrupt, on_step)?.and_then(|pictures| pictures.into_iter().next()))
    }

    /// The form of a picture: those of equal forms can be made together. Prompts may differ that are plain, which is: that stay what
    /// they are from step to step, are not joined of several, name no LoRA, and are encoded in equally many chunks of 77
    /// tokens. With DPM adaptive, which takes steps that depend on all pictures, only equal settings have equal forms.
    ///
    /// # Errors
    /// Prompts that cannot be read.
    pub fn form(&self, settings: &Settings) -> Result<Form> {
        if settings.sampler == SamplerName::DpmAdaptive {
            return Ok(Form { settings: settings.clone(), lengths: None });
        }
        let common = Settings { seed: 0, subseed: 0, ..settings.clone() };
        if settings.hires.is_some() {
            // Prompts that are plain in one pass may not be so in the other.
            return Ok(Form { settings: common, lengths: None });
        }
        let names = self.library.names(self.clip.config().hidden_size as usize);
        let lengths = match Prompts::loras(settings)?.is_empty() {
            true => Prompts::parse(settings, &names)?.lengths(),
            false => None,
        };
        let plain = lengths.map(|_| Settings {
            prompt: String::new(),
            negative_prompt: String::new(),
            ..common.clone()
        });
        Ok(Form { settings: plain.unwrap_or(common), lengths })
    }

    /// Makes several pictures at once, each as it would be alone but for the last bits of its numbers.
    ///
    /// # Errors
    /// Settings that the model cannot do; pictures that need more memory than there is; a LoRA that is not there, or for other networks; a black picture; values that are
    /// not finite: then the weights are searched, and the error names the tensor if it is one of them.
    pub fn generate_batch(
        &self,
        batch: Batch<'_>,
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<Vec<RgbImage>>> {
        self.generate_from(batch, None, interrupt, on_step, |networks, latents, path| {
            networks.decode(latents, path)
        })
    }

    /// Makes parts of a larger picture again, all with these settings, which have their size: image to image of which stays what is
    /// not in their masks. A part that comes out black is no error, and none is cut off to whole levels.
    ///
    /// # Errors
    /// As [`Pipeline::generate_batch`].
    pub(crate) fn redraw(
        &self,
        settings: &Settings,
        parts: &[Part],
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<Vec<FinePicture>>> {
        let settings = vec![settings.clone(); parts.len()];
        let batch = Batch { settings: &settings, image: None };
        self.generate_from(batch, Some(parts), interrupt, on_step, |networks, latents, path| {
            Ok(to_fine(&networks.pixels(latents, path)?))
        })
    }

    fn generate_from<T>(
        &self,
        batch: Batch<'_>,
        parts: Option<&[Part]>,
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(usize, usize),
        decode: Decode<T>,
    ) -> Result<Option<Vec<T>>> {
        let Some(first) = batch.settings.first() else { return Ok(Some(Vec::new())) };
        let state = || [self.clip.state(), self.unet.state()].into_iter().flatten().collect();
        let config = self.model.config();
        if let [_, others @ ..] = batch.settings
            && !others.iter().all(|other| Batch::fits(first, other))
        {
            let forms =
                batch.settings.iter().map(|settings| self.form(settings)).collect::<Result<Vec<_>>>()?;
            assert!(forms.iter().all(|form| *form == forms[0]), "batch of {:?}", batch.settings);
        }
        Job::new(first, batch.settings.len())?.check(config, &self.load, self.there(first))?;
        let prepare = |pass: &Settings| {
            if self.loras.borrow_mut().set(self.library.loras(pass)?, config, &state)? {
                self.states.take();
            }
            Ok(())
        };
        let path = self.model.path();
        let (library, states, recorder) = (&*self.library, &self.states, &self.recorder);
        let (prepare, upscaler, controls) = (&prepare, &self.upscaler, &self.controls);
        let run = Run {
            path,
            batch,
            parts,
            library,
            interrupt,
            states,
            recorder,
            prepare,
            upscaler,
            controls,
            prepared: &[],
        };
        let result = self.networks().generate_batch(run, on_step, decode);
        if let Err(Error::NotFinite { .. }) = result {
            self.model.verify()?;
            self.vae_file.iter().try_for_each(check_finite)?;
            self.controls.borrow().check_finite()?;
            batch.settings.iter().try_for_each(|settings| self.check_weights(settings))?;
        }
        result
    }

    /// What of the networks for these settings is loaded.
    fn there(&self, settings: &Settings) -> There {
        let upscaler = self.upscaler.borrow();
        let known = upscaler.as_ref().and_then(|(choice, _)| choice.path());
        let wanted = settings.hires.as_ref().and_then(|hires| hires.upscaler.path());
        let controls = self.controls.borrow().count(&settings.controls);
        There { model: true, controls, upscaler: known.is_some() && known == wanted.as_deref() }
    }

    /// Of a picture that is not finite: whether the weights in its prompts can have been its end.
    fn check_weights(&self, settings: &Settings) -> Result<()> {
        let names = self.library.names(self.clip.config().hidden_size as usize);
        settings.passes().iter().try_for_each(|pass| {
            let (prompt, weight) = Prompts::parse(pass, &names)?.heaviest();
            match weight <= WEIGHT_MAX {
                true => Ok(()),
                false => Err(Error::PromptWeight { prompt, weight }),
            }
        })
    }

    /// Why a GPU is told of each call of the UNet again, where it should not be; once.
    pub fn without_graphs(&self) -> Option<String> {
        self.recorder.borrow_mut().given_up()
    }

    fn networks(&self) -> Networks<'_> {
        let config = self.model.config();
        let (prediction, zero_terminal_snr) = (config.prediction, config.zero_terminal_snr);
        Networks { clip: &self.clip, unet: &self.unet, vae: &self.vae, prediction, zero_terminal_snr }
    }
}

/// A VAE that takes the place of the model's own.
fn open_vae(path: &Path, own: &VaeConfig) -> Result<Checkpoint> {
    let file = Checkpoint::open_vae_like(path, own)?;
    file.check_vae()?;
    let other = &file.config().vae;
    let form = |vae: &VaeConfig| (vae.latent_channels, vae.downscale());
    if form(own) != form(other) {
        let (expected, found) = (form(own), form(other));
        return Err(Error::VaeForm { path: path.to_path_buf(), expected, found });
    }
    Ok(file)
}

/// Whether all weights of a file are finite.
fn check_finite(file: &Checkpoint) -> Result<()> {
    for name in file.names() {
        if let Some((index, value)) = file.tensor(name)?.first_not_finite() {
            let (path, tensor) = (file.path().to_path_buf(), name.to_owned());
            return Err(vodka_checkpoint::Error::NotFinite { path, tensor, index, value }.into());
        }
    }
    Ok(())
}

/// Makes what is wanted of scaled latents `(1, 4, h, w)` in fp32; errors name the model by the path.
type Decode<T> = fn(&Networks<'_>, &Tensor, &Path) -> Result<T>;

/// One call of [`Pipeline::generate_batch`].
#[derive(Clone, Copy)]
struct Run<'a> {
    /// By what errors name the model.
    path: &'a Path,
    batch: Batch<'a>,
    /// What the pictures are parts of, where they are.
    parts: Option<&'a [Part]>,
    library: &'a Library,
    interrupt: &'a Interrupt,
    states: &'a RefCell<States>,
    recorder: &'a RefCell<Recorder>,
    /// Called before each pass: it brings the weights to what the pass's prompt names.
    prepare: &'a dyn Fn(&Settings) -> Result<()>,
    upscaler: &'a RefCell<LoadedUpscaler>,
    controls: &'a RefCell<LoadedNets>,
    /// The ControlNets with what they see, once they are loaded.
    prepared: &'a [Prepared<'a>],
}

impl Networks<'_> {
    /// Makes one picture, as [`Pipeline::generate`] does; errors name the model by `path`. Prompts can name no files.
    pub fn generate(
        &self,
        path: &Path,
        settings: &Settings,
        interrupt: &Interrupt,
        on_step: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<RgbImage>> {
        let library = Library::default();
        let prepare = |pass: &Settings| library.loras(pass).map(drop);
        let batch = Batch { settings: std::slice::from_ref(settings), image: None };
        // Its weights, and their places, may have changed since the last call.
        let (states, recorder) = (RefCell::default(), RefCell::new(Recorder::new(false)));
        let (states, recorder, upscaler, controls) =
            (&states, &recorder, &RefCell::default(), &RefCell::default());
        let (library, prepare) = (&library, &prepare);
        let run = Run {
            path,
            batch,
            parts: None,
            library,
            interrupt,
            states,
            recorder,
            prepare,
            upscaler,
            controls,
            prepared: &[],
        };
        let pictures =
            self.generate_batch(run, on_step, |networks, latents, path| networks.decode(latents, path))?;
        Ok(pictures.and_then(|pictures| pictures.into_iter().next()))
    }

    fn generate_batch<T>(
        &self,
        run: Run<'_>,
        on_step: &mut dyn FnMut(usize, usize),
        decode: Decode<T>,
    ) -> Result<Option<Vec<T>>> {
        let all = run.batch.settings;
        let settings = &all[0];
        all.iter().try_for_each(Settings::check)?;
        let _tiling = Tiling::enter(settings.tiling);
        tch::no_grad(|| {
            let (device, kind) = (self.unet.vars().device(), self.unet.vars().kind());
            run.controls.borrow_mut().load(&settings.controls, self.unet.config(), device, kind)?;
            let nets = run.controls.borrow();
            let prepared = Prepared::all(settings, run.batch.image, run.parts, &nets)?;
            let run = Run { prepared: &prepared, ..run };
            let latents = match &settings.hires {
                None => self.pass(&run, None, on_step)?,
                Some(hires) => self.both_passes(&run, hires, on_step)?,
            };
            let Some(latents) = latents else { return Ok(None) };
            let picture = |i: usize| decode(self, &latents.narrow(0, i as i64, 1), run.path);
            (0..all.len()).map(picture).collect::<Result<Vec<_>>>().map(Some)
        })
    }

    /// The first pass, its latents or pictures made larger, and the second pass from those.
    fn both_passes(
        &self,
        run: &Run<'_>,
        hires: &Hires,
        on_step: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<Tensor>> {
        let all = run.batch.settings;
        let first: Vec<_> = all.iter().map(|s| Settings { hires: None, ..s.clone() }).collect();
        let second: Vec<_> = first.iter().map(|first| hires.second(first)).collect();
        let table = Schedule::scaled_linear();
        let [before, after] = [&first[0], &second[0]].map(|pass| pass.solver(&table));
        let (before, after) = (before?.calls(), after?.calls());
        let run_of = |settings| Run { batch: Batch { settings, image: None }, ..*run };
        let mut made = before;
        let mut on_first = |done: usize, total: usize| {
            made = done;
            on_step(done, total + after);
        };
        let Some(latents) = self.pass(&run_of(&first), None, &mut on_first)? else { return Ok(None) };
        if run.interrupt.is_raised() {
            return Ok(None);
        }
        let Some(larger) = self.larger(&latents, hires, first[0].size, run)? else { return Ok(None) };
        self.pass(&run_of(&second), Some(&larger), &mut |done, total| on_step(made + done, made + total))
    }

    /// Scaled latents `(B, 4, h, w)` of pictures of the size `first` as those of larger pictures.
    fn larger(&self, latents: &Tensor, hires: &Hires, first: Size, run: &Run<'_>) -> Result<Option<Tensor>> {
        let enlarged = hires.enlarged(first);
        let Size { width, height } = enlarged.size;
        let larger = match &hires.upscaler {
            HiresUpscaler::Latent(mode) => {
                let downscale = self.vae.config().downscale();
                mode.resize(latents, i64::from(height) / downscale, i64::from(width) / downscale)
            }
            HiresUpscaler::Pixels(choice) => {
                let mut loaded = run.upscaler.borrow_mut();
                if loaded.as_ref().is_none_or(|(known, _)| known != choice) {
                    let (device, kind) = (self.unet.vars().device(), self.unet.vars().kind());
                    *loaded = Some((choice.clone(), Upscaler::open(choice, Tiles::default(), device, kind)?));
                }
                let (_, upscaler) = loaded.as_ref().expect("it was loaded");
                let ratio = |to: u32, from: u32| f64::from(to) / f64::from(from);
                let ratio = ratio(width, first.width).max(ratio(height, first.height));
                let mut encoded = Vec::new();
                for i in 0..latents.size()[0] {
                    let picture = self.decode(&latents.narrow(0, i, 1), run.path)?;
                    let larger = upscaler.enlarge(&picture, ratio, run.interrupt, &mut |_, _| {})?;
                    let Some(larger) = larger else { return Ok(None) };
                    encoded.push(self.encode(&fit(&larger, width, height, ResizeMode::Just))?);
                }
                Tensor::cat(&encoded, 0) * self.vae.config().scaling_factor
            }
        };
        Ok(Some(enlarged.cut(&larger)))
    }

    /// From scaled latents `(1, 4, h, w)` in fp32 to a picture, which is not black.
    fn decode(&self, latents: &Tensor, path: &Path) -> Result<RgbImage> {
        let picture = to_picture(&self.pixels(latents, path)?);
        match picture.iter().all(|value| *value == 0) {
            true => Err(Error::Black { checkpoint: path.to_path_buf() }),
            false => Ok(picture),
        }
    }

    /// From scaled latents `(1, 4, h, w)` in fp32 to pixels `(1, 3, H, W)` in fp32, nearly all in -1..1.
    fn pixels(&self, latents: &Tensor, path: &Path) -> Result<Tensor> {
        let not_finite = |what| Error::NotFinite { checkpoint: path.to_path_buf(), what };
        if !is_finite(latents) {
            return Err(not_finite("latents"));
        }
        let kind = self.vae.vars().kind();
        let latents = latents / self.vae.config().scaling_factor;
        let mut pixels = self.vae.decode(&latents.to_kind(kind)).to_kind(Kind::Float); // (1, 3, H, W)
        if !is_finite(&pixels) && kind != Kind::Float {
            // 16 bits were too few for this picture; the next one is tried in them again.
            pixels = self.vae_fp32()?.decode(&latents);
        }
        if !is_finite(&pixels) {
            return Err(not_finite("pixels"));
        }
        Ok(pixels)
    }

    /// The VAE with its weights as they are, in fp32.
    fn vae_fp32(&self) -> Result<Vae> {
        let variables = self.vae.vars().variables();
        let source = |name: &str, _: &[i64]| Ok(variables[name].to_kind(Kind::Float));
        let mut vae = Vae::new(self.vae.config(), self.vae.vars().device(), Kind::Float, &source)?;
        vae.set_tiles(self.vae.tiles());
        Ok(vae)
    }

    /// The latents that the pictures of a batch begin with; `noise (B, 4, h, w)` is unit normal.
    fn first_latents(&self, solver: &Solver, run: &Run<'_>, noise: &Tensor) -> Result<Tensor> {
        let settings = &run.batch.settings[0];
        let Some(image) = &settings.image else { return Ok(noise * solver.start()) };
        let picture = run.batch.image.ok_or(Error::NoImage)?;
        let Size { width, height } = settings.size;
        let latents = self.encode(&fit(picture, width, height, image.resize_mode))?;
        let first = solver.first();
        Ok(latents * (self.vae.config().scaling_factor * first.signal) + noise * first.noise) // (B, 4, h, w)
    }

    /// What of parts stays.
    fn held(&self, parts: &[Part]) -> Result<Held> {
        let encode = |part: &Part| {
            let levels: Vec<_> =
                part.picture.iter().map(|value| f32::from(*value) / f32::from(FINE)).collect();
            self.encode_levels(&Tensor::from_slice(&levels), part.picture.dimensions())
        };
        let latents = parts.iter().map(encode).collect::<Result<Vec<_>>>()?;
        Ok(Held::new(parts, Tensor::cat(&latents, 0) * self.vae.config().scaling_factor))
    }

    /// The means of a picture's latents, not yet scaled. `(1, 4, H/8, W/8)` in fp32
    pub(crate) fn encode(&self, picture: &RgbImage) -> Result<Tensor> {
        self.encode_levels(&Tensor::from_slice(picture.as_raw()), picture.dimensions())
    }

    /// The same of levels 0..=255 of any kind, row by row, three a pixel.
    fn encode_levels(&self, levels: &Tensor, (width, height): (u32, u32)) -> Result<Tensor> {
        let pixels = levels.view([1, height.into(), width.into(), 3]);
        let (kind, device) = (self.vae.vars().kind(), self.vae.vars().device());
        let pixels = pixels.to_device(device).permute([0, 3, 1, 2]).to_kind(Kind::Float) / 127.5 - 1.0;
        let encode = |vae: &Vae, kind| vae.encode(&pixels.to_kind(kind)).mean.to_kind(Kind::Float);
        let mut latents = encode(self.vae, kind);
        if !is_finite(&latents) && kind != Kind::Float {
            latents = encode(&self.vae_fp32()?, Kind::Float);
        }
        Ok(latents)
    }

    /// The latents of the pictures in fp32, scaled, `(B, 4, H/8, W/8)`; made from `start`, in the same form, where that is given.
    fn pass(
        &self,
        run: &Run<'_>,
        start: Option<&Tensor>,
        on_step: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<Tensor>> {
        let all = run.batch.settings;
        let settings = &all[0];
        (run.prepare)(settings)?;
        let table = Schedule::scaled_linear();
        let table =
            if self.zero_terminal_snr { table.zero_terminal_snr().with_finite_sigmas() } else { table };
        let solver = settings.solver(&table)?;
        let shape = self.shape(settings)?;
        let conditionings = self.conditionings(run)?;
        let mut numbers = Noise::new(all, run.parts, shape, &solver, self.unet.vars().device());
        let noise = numbers.first();
        let held = run.parts.map(|parts| self.held(parts)).transpose()?;
        let first = match start.or(held.as_ref().map(Held::latents)) {
            Some(latents) => latents * solver.first().signal + noise * solver.first().noise,
            None => self.first_latents(&solver, run, &noise)?,
        };
        let mut noise = |from: f64, to: f64| numbers.more(from, to);
        let guides = Guides::new(run.prepared, settings, self, &table)?;
        let (step, steps) = (Cell::new(0), f64::from(settings.steps_of_run()));
        let mut call = 0;
        let mut predict = |input: &Tensor, timestep: f64| {
            let now = Now::of(&conditionings, call, all.len() as i64);
            call += 1;
            // As A1111 tells it: a step counts once its first call is through.
            let share = step.get() as f64 / steps;
            let forward = &mut |inputs, of_prompt| {
                let call = &mut |inputs: &Inputs| run.recorder.borrow_mut().call(self.unet, inputs);
                guides.forward(inputs, of_prompt, share, timestep, call)
            };
            let output = guided(input, timestep, &now, settings.guidance(), forward);
            match &held {
                Some(held) => held.answer(output, input, timestep, (&table, self.prediction)),
                None => output,
            }
        };
        let count = solver.calls();
        let mut go_on = |done| {
            on_step(done, count.max(done));
            !run.interrupt.is_raised()
        };
        let calls = Calls { predict: &mut predict, noise: &mut noise, go_on: &mut go_on };
        let made = solve_from(&solver, self.prediction, first, calls, &step);
        Ok(made.map(|latents| held.iter().fold(latents, |latents, held| held.laid_over(&latents))))
    }

    /// The shape of the latents, `[4, H/8, W/8]`.
    fn shape(&self, settings: &Settings) -> Result<[usize; 3]> {
        let config = self.vae.config();
        let multiple = config.downscale() as u32;
        let Size { width, height } = settings.size;
        if !width.is_multiple_of(multiple) || !height.is_multiple_of(multiple) {
            return Err(Error::Size { width, height, multiple, max: u32::MAX });
        }
        Ok([config.latent_channels as usize, (height / multiple) as usize, (width / multiple) as usize])
    }

    /// The encoded prompts of each picture, or those that all share.
    fn conditionings(&self, run: &Run<'_>) -> Result<Vec<Conditioning>> {
        let max = self.clip.config().layers as u32;
        let names = run.library.names(self.clip.config().hidden_size as usize);
        let all = run.batch.settings;
        let is_shared = all.iter().all(|other| all.len() == 1 || Batch::fits(&all[0], other));
        let of = |settings: &Settings| {
            if !(1..=max).contains(&settings.clip_skip) {
                return Err(Error::ClipSkip { found: settings.clip_skip, max });
            }
            let prompts = Prompts::parse(settings, &names)?;
            let known = &mut run.states.borrow_mut();
            Ok(prompts.encode(self.clip, settings.clip_skip.into(), run.library, known))
        };
        all[..if is_shared { 1 } else { all.len() }].iter().map(of).collect()
    }
}

/// One call of the denoiser for all prompts, or one for the prompt and one for the negative prompt where these are not
/// equally long. `input (B, 4, h, w)`; `forward` gives fp32, and is told how many rows are the prompt's, which come first.
fn guided(
    input: &Tensor,
    timestep: f64,
    now: &Now,
    guidance: f64,
    forward: &mut dyn FnMut(Inputs, i64) -> Tensor,
) -> Output<Tensor> {
    let kind = now.parts.kind();
    let pictures = input.size()[0];
    let parts = now.weights.len() as i64;
    let mut call = |context: Tensor, parts: i64| {
        let rows = context.size()[0];
        let latents = input.to_kind(kind).repeat([rows / pictures, 1, 1, 1]);
        let timesteps = Tensor::full([rows], timestep, (Kind::Float, context.device()));
        forward(Inputs { latents, timesteps, context, residuals: Vec::new() }, parts * pictures)
    };
    let of = |all: &Tensor, first: i64, count: i64| all.narrow(0, first * pictures, count * pictures);
    let (with, without) = match &now.negative {
        None => return Output { guided: call(now.parts.shallow_clone(), parts), unguided: None },
        Some(negative) if negative.size()[1] == now.parts.size()[1] => {
            let both = call(Tensor::cat(&[&now.parts, negative], 0), parts);
            (of(&both, 0, parts), of(&both, parts, 1))
        }
        Some(negative) => (call(now.parts.shallow_clone(), parts), call(negative.shallow_clone(), 0)),
    };
    let towards = |guided: Tensor, (i, weight): (usize, &f64)| {
        guided + (of(&with, i as i64, 1) - &without) * (weight * guidance)
    };
    let guided = now.weights.iter().enumerate().fold(without.shallow_clone(), towards);
    Output { guided, unguided: Some(without) } // (B, 4, h, w)
}

impl Settings {
    /// What decides the noise.
    pub(crate) fn picture_seed(&self) -> PictureSeed {
        PictureSeed {
            seed: self.seed.into(),
            source: self.rng,
            eta_seed_delta: self.ensd.into(),
            variation: (self.subseed_strength != 0.0).then_some((self.subseed.into(), self.subseed_strength)),
            resize_from: self
                .seed_resize_from
                .map(|size| ((size.height / 8) as usize, (size.width / 8) as usize)),
        }
    }
}

/// What [`solve`] calls.
pub struct Calls<'a> {
    /// The network with its guidance, from its input and a timestep to its output.
    pub predict: &'a mut dyn FnMut(&Tensor, f64) -> Output<Tensor>,
    /// Unit normal noise for the step from one sigma to another.
    pub noise: &'a mut dyn FnMut(f64, f64) -> Tensor,
    /// Told after each call of the network how many there were; ends it all by `false`, unless it was the last.
    pub go_on: &'a mut dyn FnMut(usize) -> bool,
}

/// Runs a solver from unit normal `noise` to latents, both in fp32; `None` where it was ended.
pub fn solve(solver: &Solver, prediction: Prediction, noise: &Tensor, calls: Calls<'_>) -> Option<Tensor> {
    solve_from(solver, prediction, noise * solver.start(), calls, &Cell::default())
}

/// The same from the first latents; `step` becomes the number of each step once its first call is through.
fn solve_from(
    solver: &Solver,
    prediction: Prediction,
    first: Tensor,
    calls: Calls<'_>,
    step: &Cell<usize>,
) -> Option<Tensor> {
    let parameterization = match prediction {
        Prediction::Epsilon => Parameterization::Epsilon,
        Prediction::VPrediction => Parameterization::V,
    };
    // How many calls an adaptive sampler makes, it does not know.
    let last = if solver.sampler() == SamplerName::DpmAdaptive { usize::MAX } else { solver.calls() };
    let mut host = Counted { calls, done: 0, last, step };
    solver.run(Latents(first), parameterization, &mut host).ok().map(|latents| latents.0)
}

/// Latents of pictures, `(B, 4, h, w)`.
struct Latents(Tensor);

impl Latent for Latents {
    fn combine(terms: &[(f64, &Self)]) -> Self {
        let sum = terms.iter().map(|(factor, latents)| &latents.0 * *factor).reduce(|sum, more| sum + more);
        Self(sum.expect("at least one term"))
    }

    fn error(low: &Self, high: &Self, before: &Self, absolute: f64, relative: f64) -> f64 {
        let allowed = (low.0.abs().maximum(&before.0.abs()) * relative).clamp_min(absolute);
        ((&low.0 - &high.0) / allowed).square().mean(Kind::Double).sqrt().double_value(&[])
    }
}

struct Counted<'a, 's> {
    calls: Calls<'a>,
    done: usize,
    last: usize,
    step: &'s Cell<usize>,
}

/// The run was ended by who asked for it.
struct Stopped;

impl Host<Latents> for Counted<'_, '_> {
    type Stop = Stopped;

    fn predict(&mut self, input: &Latents, timestep: f64) -> Result<Output<Latents>, Stopped> {
        let Output { guided, unguided } = (self.calls.predict)(&input.0, timestep);
        self.done += 1;
        if !(self.calls.go_on)(self.done) && self.done != self.last {
            return Err(Stopped);
        }
        Ok(Output { guided: Latents(guided), unguided: unguided.map(Latents) })
    }

    fn noise(&mut self, from: f64, to: f64) -> Result<Latents, Stopped> {
        Ok(Latents((self.calls.noise)(from, to)))
    }

    fn step(&mut self, step: usize, _: &Latents, _: &Latents) -> Result<(), Stopped> {
        self.step.set(step);
        Ok(())
    }
}

fn is_finite(tensor: &Tensor) -> bool {
    tensor.isfinite().all().int64_value(&[]) == 1
}

/// From `(1, 3, H, W)` in -1..1 to levels 0..=255 of a kind, cut off to it, on the processor. `(H, W, 3)`
fn levels(pixels: &Tensor, steps: f64, kind: Kind) -> Tensor {
    let pixels = ((pixels.squeeze_dim(0) + 1.0) / 2.0).clamp(0.0, 1.0) * 255.0 * steps; // (3, H, W)
    pixels.permute([1, 2, 0]).to_kind(kind).contiguous().to_device(Device::Cpu)
}

/// From `(1, 3, H, W)` in -1..1 to 8 bits, cut off as A1111 does it, not rounded.
fn to_picture(pixels: &Tensor) -> RgbImage {
    let pixels = levels(pixels, 1.0, Kind::Uint8); // (H, W, 3)
    let (height, width, _) = pixels.size3().expect("a picture has three axes");
    let mut bytes = vec![0; pixels.numel()];
    pixels.copy_data(&mut bytes, pixels.numel());
    RgbImage::from_raw(width as u32, height as u32, bytes).expect("three bytes a pixel")
}

/// The same to 256ths of a level.
fn to_fine(pixels: &Tensor) -> FinePicture {
    let pixels = levels(pixels, FINE.into(), Kind::Int); // (H, W, 3)
    let (height, width, _) = pixels.size3().expect("a picture has three axes");
    let mut values = vec![0_i32; pixels.numel()];
    pixels.copy_data(&mut values, pixels.numel());
    let values = values.into_iter().map(|value| value as u16).collect();
    FinePicture::from_raw(width as u32, height as u32, values).expect("three values a pixel")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checkpoint during whose third tensor somebody asks to stop.
    struct Stops<'a> {
        checkpoint: &'a Checkpoint,
        interrupt: &'a Interrupt,
        asked: Cell<usize>,
    }

    impl Weights for Stops<'_> {
        fn config(&self) -> &ModelConfig {
            self.checkpoint.config()
        }

        fn tensor(&self, name: &str) -> Result<TensorView<'_>, Box<dyn error::Error + Send + Sync>> {
            self.asked.set(self.asked.get() + 1);
            if self.asked.get() == 3 {
                self.interrupt.raise();
            }
            Weights::tensor(self.checkpoint, name)
        }
    }

    #[test]
    fn who_asks_to_stop_is_heard_between_two_tensors() {
        let (checkpoint, interrupt) =
            (Checkpoint::open(vodka_testkit::model("base")).unwrap(), Interrupt::new());
        let weights = Stops { checkpoint: &checkpoint, interrupt: &interrupt, asked: Cell::default() };
        let heard = Interruptible { weights: &weights, interrupt: &interrupt };
        let Err(vodka_sd15::Error::Weights(error)) = UNet::load(&heard, Device::Cpu, Kind::Float) else {
            panic!("it was to stop");
        };
        assert!(error.is::<Interrupted>() && weights.asked.get() == 3);
        let load = Load::new(Device::Cpu, Kind::Float);
        let model = || ModelSource::Checkpoint(vodka_testkit::model("base")).open().unwrap();
        assert!(Pipeline::load_unless(None, model(), &load, &interrupt).unwrap().is_none());
        let pipeline = Pipeline::load_unless(None, model(), &load, &Interrupt::new()).unwrap();
        assert!(pipeline.is_some());
        assert!(Pipeline::load_unless(pipeline, model(), &load, &interrupt).unwrap().is_none());
    }
}
