//! A set of pictures of several models that is no grid: what is wanted, and the store that keeps it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use image::RgbImage;
use serde::Serialize;
use vodka_checkpoint::Precision;
use vodka_sd15::{check_device_name, device_type, parse_device};
use vodka_stage::{Interrupt, lossy};

use crate::{
    Error, Library, ModelId, ModelSource, Result, Settings, Used,
    making::{Made, Making, Wanted},
    model::ids,
    store::{Arithmetic, Entry, Store, has_others},
};

/// Pictures, each of a model with settings of its own. Their prompts name no files.
#[derive(Debug, Clone, Serialize)]
pub struct Pictures {
    /// The models.
    pub models: Vec<ModelSource>,
    /// What is to be there.
    #[serde(skip)]
    pub wanted: Vec<WantedPicture>,
    /// `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// What text encoder and UNet compute in.
    pub precision: Precision,
    /// What the VAE computes in.
    pub vae_precision: Precision,
    /// How many pictures are made at once.
    pub batch: usize,
    /// The folder that keeps them, and nothing else.
    #[serde(serialize_with = "lossy")]
    pub store: PathBuf,
    /// The file that remembers the hashes of models by path, size and time of change; none to hash them every time.
    #[serde(skip)]
    pub hash_cache: Option<PathBuf>,
    /// Where libtorch is.
    #[serde(skip)]
    pub runtime_dir: PathBuf,
}

/// A picture that is to be there.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedPicture {
    /// The number of its model.
    pub model: usize,
    /// Prompts and numbers.
    pub settings: Settings,
}

/// What happens while they are made.
#[derive(Debug)]
pub enum PictureEvent<'a> {
    /// A model is being loaded.
    Loading {
        /// Its path.
        checkpoint: &'a Path,
    },
    /// Each call of the UNet is told to the GPU anew: its CUDA graphs do not work. Pictures are the same, and slower.
    WithoutGraphs {
        /// Why.
        reason: String,
    },
    /// A picture is there; each is told of once.
    Picture {
        /// Its number in [`Pictures::wanted`].
        number: usize,
        /// Its pixels.
        picture: &'a RgbImage,
        /// Whether it was made now.
        is_new: bool,
    },
    /// A picture could not be made.
    Failed {
        /// Its number.
        number: usize,
        /// Why.
        reason: &'a Error,
    },
}

impl Pictures {
    /// # Errors
    /// A device that is none, and settings that make no picture.
    pub fn check(&self) -> Result<()> {
        check_device_name(&self.device)?;
        self.wanted.iter().try_for_each(|wanted| {
            wanted.settings.check()?;
            Library::default().loras(&wanted.settings).map(drop)
        })
    }

    /// Hashes the models, but for those that the cache knows.
    ///
    /// # Errors
    /// A model that cannot be read; [`Error::Interrupted`].
    pub fn ids(&self, interrupt: &Interrupt) -> Result<Vec<ModelId>> {
        Ok(ids(&self.models, &BTreeSet::new(), self.hash_cache.as_deref(), interrupt)?.0)
    }

    /// The names of the files in the store, in order; of equal settings there is one file.
    pub fn names(&self, ids: &[ModelId]) -> Vec<String> {
        (0..self.wanted.len()).map(|number| self.entry(ids, number).name).collect()
    }

    /// Whether the store has these files and no other picture.
    pub fn is_whole(&self, names: &[String]) -> bool {
        let known: BTreeSet<_> = names.iter().map(String::as_str).collect();
        known.iter().all(|name| self.store.join(name).is_file())
            && !has_others(&self.store, &|name| known.contains(name))
    }

    /// Makes what is missing and takes out what is not wanted; whether all is there, and nothing was interrupted.
    ///
    /// A file is named by all that decides it, so a killed run goes on where it was and loses the batch in hand at most.
    ///
    /// # Errors
    /// A model that cannot be loaded, a device that is not there, a store that cannot be written or that another run
    /// writes to.
    pub fn make(
        &self,
        ids: &[ModelId],
        interrupt: &Interrupt,
        on_event: &mut dyn FnMut(PictureEvent<'_>),
    ) -> Result<bool> {
        let device = parse_device(&self.device, &self.runtime_dir)?;
        let store = Store::open(&self.store)?;
        let making = Making {
            models: &self.models,
            device,
            precision: self.precision,
            vae_precision: self.vae_precision,
            library: &Arc::default(),
            batch: self.batch,
            store: &store,
            interrupt,
        };
        let wanted = |number: usize| {
            let WantedPicture { model, ref settings } = self.wanted[number];
            Wanted { model, vae: None, settings: settings.clone(), entry: self.entry(ids, number) }
        };
        let is_through = making.run(self.wanted.len(), &wanted, &mut |made| {
            match made {
                Made::Loading(checkpoint) => on_event(PictureEvent::Loading { checkpoint }),
                Made::WithoutGraphs(reason) => on_event(PictureEvent::WithoutGraphs { reason }),
                Made::Step(..) => {}
                Made::Kept(number, picture) => {
                    on_event(PictureEvent::Picture { number, picture, is_new: false });
                }
                Made::New(number, picture) => {
                    on_event(PictureEvent::Picture { number, picture, is_new: true });
                }
                Made::Failed(number, reason) => on_event(PictureEvent::Failed { number, reason }),
            }
            Ok(())
        })?;
        if is_through {
            let names: BTreeSet<_> = self.names(ids).into_iter().collect();
            store.prune(&|name| names.contains(name))?;
        }
        Ok(is_through)
    }

    fn entry(&self, ids: &[ModelId], number: usize) -> Entry {
        let WantedPicture { model, ref settings } = self.wanted[number];
        let Self { precision, vae_precision, batch, .. } = *self;
        let arithmetic =
            Arithmetic { device_type: device_type(&self.device), precision, vae_precision, batch };
        Entry::of(settings, &ids[model], &Used::default(), arithmetic)
    }
}
