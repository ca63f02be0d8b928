//! What pictures are made with: a checkpoint on disk, or a merge that is worked out while it is loaded.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::Serialize;
use vodka_checkpoint::{Checkpoint, ModelConfig, Weights};
use vodka_merger::{Identity, MergePlan, Merged, Recipe, Weight};
use vodka_prompt::{CONTEXT_LENGTH, EOS};
use vodka_stage::{ContentHash, HashCache, Interrupt, RunKey, hash_file, lossy};

use crate::{ControlUnit, Result, parameters::model_name};

/// A model by what a user calls it. Neither a checkpoint nor the parents of a merge have been opened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelSource {
    /// A single file, or a diffusers folder.
    Checkpoint(#[serde(serialize_with = "lossy")] PathBuf),
    /// A result of a merge recipe, of which no file is written.
    Merge {
        /// The recipe.
        #[serde(serialize_with = "lossy")]
        recipe: PathBuf,
        /// The plan of this one result.
        plan: Box<MergePlan>,
    },
}

impl ModelSource {
    /// What is at a path: `recipe.toml` is a merge recipe ([`Recipe::read`]) with one output, `recipe.toml#NAME` the output
    /// of this name, everything else a checkpoint. `weights` go before those of the recipe: `multiplier`, or
    /// `step.multiplier` where several steps have one ([`Recipe::one`]).
    ///
    /// # Errors
    /// What is wrong in a recipe; an output or a weight that it does not have; weights for a checkpoint.
    pub fn read(path: &Path, weights: &[(String, Weight)]) -> Result<Self> {
        let Some((recipe, output)) = split(path) else {
            return match weights.first() {
                None => Ok(Self::Checkpoint(path.to_path_buf())),
                Some((name, _)) => {
                    Err(crate::Error::NoRecipe { path: path.to_path_buf(), weight: name.clone() })
                }
            };
        };
        let plan = Recipe::read(&recipe)?.one(output.as_deref(), weights)?;
        Ok(Self::Merge { recipe, plan: Box::new(plan) })
    }

    /// Where it lies: the checkpoint, or the recipe.
    pub fn path(&self) -> &Path {
        match self {
            Self::Checkpoint(path) => path,
            Self::Merge { recipe, .. } => recipe,
        }
    }

    /// How pictures call it: the name of the file without its ending, of a merge that which its file would have.
    pub fn name(&self) -> String {
        match self {
            Self::Checkpoint(path) => model_name(path),
            Self::Merge { plan, .. } => model_name(&plan.outputs[0].path),
        }
    }

    /// Hashes the file, or the merge's parents, but for those that the cache knows.
    ///
    /// # Errors
    /// A file that cannot be read; parents of which no merge can be made; [`Error::Interrupted`](crate::Error::Interrupted).
    pub fn id(&self, cache: &mut HashCache, interrupt: &Interrupt) -> Result<ModelId> {
        let interrupted = crate::Error::Interrupted;
        match self {
            Self::Checkpoint(path) => {
                let hashes = cache.of(&[path], interrupt)?.ok_or(interrupted)?;
                Ok(ModelId::new(path, hashes[0]))
            }
            Self::Merge { plan, recipe } => {
                let merge = plan.identity_by(0, cache, interrupt)?.ok_or(interrupted)?;
                let (name, path, sha256) = (self.name(), recipe.clone(), merge.sha256);
                Ok(ModelId {
                    name,
                    path,
                    sha256,
                    merge: Some(Box::new(merge)),
                    vae: None,
                    controls: Vec::new(),
                })
            }
        }
    }

    /// Opens it. Weights are not read yet.
    ///
    /// # Errors
    /// A file that cannot be read, is cut short, or is of another architecture; parents that do not fit each other.
    pub fn open(&self) -> Result<Model> {
        let model = match self {
            Self::Checkpoint(path) => Model::Checkpoint(Box::new(open(path)?)),
            Self::Merge { recipe, plan } => {
                Model::Merged { recipe: recipe.clone(), merged: Box::new(Merged::open(plan, 0)?) }
            }
        };
        let checked = model.config().check_text_to_image(EOS + 1, CONTEXT_LENGTH as i64);
        checked.map_err(|source| vodka_checkpoint::Error::NotTextToImage {
            path: model.path().to_path_buf(),
            source: Box::new(source),
        })?;
        Ok(model)
    }
}

fn open(path: &Path) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path)?;
    checkpoint.check_names()?;
    Ok(checkpoint)
}

/// A recipe's file and the output behind its `#`; none for what is no recipe.
fn split(path: &Path) -> Option<(PathBuf, Option<String>)> {
    let is_recipe = |path: &Path| {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml")) && !path.is_dir()
    };
    if is_recipe(path) {
        return Some((path.to_path_buf(), None));
    }
    let (recipe, output) = path.to_str()?.rsplit_once('#')?;
    is_recipe(recipe.as_ref()).then(|| (recipe.into(), Some(output.to_owned())))
}

/// An open model, of which networks can be made.
#[derive(Debug)]
pub enum Model {
    /// A checkpoint.
    Checkpoint(Box<Checkpoint>),
    /// A merge: each tensor is worked out when it is asked for.
    Merged {
        /// The recipe.
        recipe: PathBuf,
        /// The merge.
        merged: Box<Merged>,
    },
}

impl Model {
    /// Where it lies: the checkpoint, or the recipe.
    pub fn path(&self) -> &Path {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.path(),
            Self::Merged { recipe, .. } => recipe,
        }
    }

    /// Its weights.
    pub fn weights(&self) -> &dyn Weights {
        match self {
            Self::Checkpoint(checkpoint) => &**checkpoint,
            Self::Merged { merged, .. } => &**merged,
        }
    }

    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        self.weights().config()
    }

    /// Looks for a weight that is not finite. A merge has none, or it could not be loaded.
    pub(crate) fn verify(&self) -> Result<()> {
        match self {
            Self::Checkpoint(checkpoint) => Ok(checkpoint.verify()?),
            Self::Merged { .. } => Ok(()),
        }
    }
}

/// How pictures name the model that they came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelId {
    /// The file name without its ending.
    pub name: String,
    /// The file or folder, or the recipe.
    pub path: PathBuf,
    /// The hash of the whole file; of a merge [`Identity::sha256`], which is no file's.
    pub sha256: ContentHash,
    /// What a merge is made of.
    pub merge: Option<Box<Identity>>,
    /// Path and hash of the VAE, where it is another file.
    pub vae: Option<(PathBuf, ContentHash)>,
    /// The files of the ControlNets that steer it, by the numbers of their units.
    pub controls: Vec<ControlId>,
}

/// The files of a ControlNet's unit, each with its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlId {
    /// The network.
    pub model: (PathBuf, ContentHash),
    /// Its picture, where it has one of its own.
    pub image: Option<(PathBuf, ContentHash)>,
}

/// What models are known by, and the hashes of VAEs: all files are hashed side by side, but for those that the cache knows.
///
/// # Errors
/// As [`ModelSource::id`].
pub(crate) fn ids(
    models: &[ModelSource],
    vaes: &BTreeSet<PathBuf>,
    hash_cache: Option<&Path>,
    interrupt: &Interrupt,
) -> Result<(Vec<ModelId>, BTreeMap<PathBuf, ContentHash>)> {
    let mut cache = HashCache::open(hash_cache);
    let checkpoints = models.iter().filter_map(|model| match model {
        ModelSource::Checkpoint(path) => Some(path),
        ModelSource::Merge { .. } => None,
    });
    let paths: Vec<&Path> = checkpoints.chain(vaes).map(PathBuf::as_path).collect();
    let hashes = cache.of(&paths, interrupt)?.ok_or(crate::Error::Interrupted)?;
    let hashes: BTreeMap<_, _> = paths.into_iter().zip(hashes).collect();
    let id = |model: &ModelSource| match model {
        ModelSource::Checkpoint(path) => Ok(ModelId::new(path, hashes[path.as_path()])),
        merge @ ModelSource::Merge { .. } => merge.id(&mut cache, interrupt),
    };
    let models = models.iter().map(id).collect::<Result<_>>()?;
    Ok((models, vaes.iter().map(|path| (path.clone(), hashes[path.as_path()])).collect()))
}

/// The hashes of the files of units: of networks those that the cache knows, pictures anew.
///
/// # Errors
/// A file that cannot be read; [`Error::Interrupted`](crate::Error::Interrupted).
pub(crate) fn control_hashes<'a>(
    units: impl IntoIterator<Item = &'a ControlUnit>,
    cache: &mut HashCache,
    interrupt: &Interrupt,
) -> Result<BTreeMap<PathBuf, ContentHash>> {
    let (mut networks, mut hashes) = (BTreeSet::new(), BTreeMap::new());
    for unit in units {
        networks.insert(unit.model.as_path());
        if let Some(image) = unit.image.as_ref().filter(|image| !hashes.contains_key(*image)) {
            hashes.insert(image.clone(), hash_file(image)?);
        }
    }
    let networks: Vec<&Path> = networks.into_iter().collect();
    let known = cache.of(&networks, interrupt)?.ok_or(crate::Error::Interrupted)?;
    hashes.extend(networks.into_iter().map(Path::to_path_buf).zip(known));
    Ok(hashes)
}

impl ModelId {
    /// The name of the checkpoint at `path`, and its hash.
    pub fn new(path: &Path, sha256: ContentHash) -> Self {
        let (name, path) = (model_name(path), path.to_path_buf());
        Self { name, path, sha256, merge: None, vae: None, controls: Vec::new() }
    }

    /// The same with the VAE at `path`, whose hash this is.
    #[must_use]
    pub fn with_vae(self, path: &Path, sha256: ContentHash) -> Self {
        Self { vae: Some((path.to_path_buf(), sha256)), ..self }
    }

    /// The same with these units, whose files have been hashed ([`control_hashes`]).
    #[must_use]
    pub(crate) fn with_controls(
        self,
        units: &[ControlUnit],
        hashes: &BTreeMap<PathBuf, ContentHash>,
    ) -> Self {
        let of = |path: &PathBuf| (path.clone(), hashes[path]);
        let id =
            |unit: &ControlUnit| ControlId { model: of(&unit.model), image: unit.image.as_ref().map(of) };
        Self { controls: units.iter().map(id).collect(), ..self }
    }

    /// Adds it to what a run depends on, under `name`, and a merge's parents under names behind that.
    pub fn add_to(&self, key: RunKey, name: &str) -> RunKey {
        let parents = self.merge.iter().flat_map(|merge| &merge.parents);
        let key = parents.fold(key, |key, parent| {
            key.input_hashed(&format!("{name}, parent {}", parent.name), &parent.path, parent.sha256)
        });
        let key = key.input_hashed(name, &self.path, self.sha256);
        let key = match &self.vae {
            Some((path, sha256)) => key.input_hashed(&format!("{name}, VAE"), path, *sha256),
            None => key,
        };
        self.controls.iter().enumerate().fold(key, |key, (i, ControlId { model: (path, sha256), image })| {
            let key = key.input_hashed(&format!("ControlNet {i}"), path, *sha256);
            match image {
                Some((path, sha256)) => key.input_hashed(&format!("ControlNet {i}, picture"), path, *sha256),
                None => key,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_told_by_its_ending() {
        let of = |path: &str| split(Path::new(path));
        assert_eq!(of("a.safetensors"), None);
        assert_eq!(of("folder#1"), None);
        assert_eq!(of("a#b.safetensors"), None);
        assert_eq!(of("mix.toml"), Some(("mix.toml".into(), None)));
        assert_eq!(of("my#1/mix.TOML#half"), Some(("my#1/mix.TOML".into(), Some("half".to_owned()))));
        let weights = [("multiplier".to_owned(), Weight::from(0.5))];
        let error = ModelSource::read(Path::new("a.safetensors"), &weights).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`a.safetensors` is no merge recipe (.toml), and has no weight `multiplier` to change"
        );
    }
}
