//! What prompts may name: LoRA files, and embeddings of textual inversion.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Mutex,
};

use serde::Serialize;
use vodka_checkpoint::{Hashes, WeightFile};
use vodka_prompt::{EmbeddingNames, LoraUse};
use vodka_stage::{explain, nearest};
use walkdir::WalkDir;

use crate::{
    Error, Result, Settings, conditioning::Prompts, control::without_signs, embedding::Embedding,
    parameters::model_name,
};

/// Files by the names that prompts give them.
#[derive(Debug, Default)]
pub struct Library {
    loras: BTreeMap<String, PathBuf>,
    embeddings: BTreeMap<String, Embedding>,
    /// By the width of the text encoder that they are for.
    names: BTreeMap<usize, EmbeddingNames>,
    skipped: Vec<(PathBuf, String)>,
    /// Of LoRA files, as they are asked for.
    hashes: Mutex<HashMap<PathBuf, String>>,
}

/// What the prompts of a picture name, with the hashes that the picture's text states.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Used {
    /// Names and hashes of LoRA files, in the order of the prompt.
    pub loras: Vec<(String, String)>,
    /// Names and hashes of embeddings.
    pub embeddings: Vec<(String, String)>,
}

impl Library {
    /// Looks into folders and what is below them; of embeddings with one name the later path counts, of LoRA files too.
    ///
    /// What is no embedding, or none for these networks, is passed over: see [`Library::skipped`].
    ///
    /// # Errors
    /// A folder that is not there.
    pub fn open(lora_dir: Option<&Path>, embedding_dir: Option<&Path>) -> Result<Self> {
        let mut library = Self::default();
        for path in files(lora_dir)? {
            let ending = path.extension().unwrap_or_default();
            if ["safetensors", "pt", "ckpt", "bin"].iter().any(|known| ending.eq_ignore_ascii_case(known)) {
                library.loras.insert(stem(&path), path);
            }
        }
        for path in files(embedding_dir)?.into_iter().filter(|path| Embedding::is_one(path)) {
            match Embedding::read(&path) {
                Ok(Some(found)) => {
                    library.embeddings.insert(found.name.clone(), found);
                }
                Ok(None) => {}
                Err(error) => library.skipped.push((path, explain(&error))),
            }
        }
        let mut widths: BTreeMap<usize, Vec<(String, usize)>> = BTreeMap::new();
        for Embedding { name, vectors, width, .. } in library.embeddings.values() {
            widths.entry(*width).or_default().push((name.clone(), *vectors));
        }
        for (width, names) in widths {
            library.names.insert(width, EmbeddingNames::new(names)?);
        }
        Ok(library)
    }

    /// Files in the folder of embeddings that are none, and why.
    pub fn skipped(&self) -> &[(PathBuf, String)] {
        &self.skipped
    }

    /// What the prompts name, as far as files are concerned: embeddings of any width.
    ///
    /// # Errors
    /// A LoRA that is not there, and whatever is wrong about the prompts.
    pub fn used_by(&self, settings: &Settings) -> Result<Used> {
        let mut used = Used::default();
        for pass in settings.passes() {
            self.add_used(&pass, &mut used)?;
        }
        Ok(used)
    }

    fn add_used(&self, pass: &Settings, used: &mut Used) -> Result<()> {
        for lora in Prompts::loras(pass)? {
            let hash = self.lora_hash(self.lora(&lora.name)?)?;
            if !used.loras.iter().any(|(name, _)| *name == lora.name) {
                used.loras.push((lora.name, hash));
            }
        }
        for names in self.names.values() {
            for name in Prompts::parse(pass, names)?.embeddings() {
                let hash = self.embeddings[name].sha256()?.short(12);
                if !used.embeddings.iter().any(|(known, _)| known == name) {
                    used.embeddings.push((name.to_owned(), hash));
                }
            }
        }
        Ok(())
    }

    /// The file of a LoRA.
    pub(crate) fn lora(&self, name: &str) -> Result<&Path> {
        let unknown = || Error::UnknownLora {
            found: name.to_owned(),
            nearest: nearest(name, self.loras.keys().map(String::as_str)).map(ToOwned::to_owned),
        };
        self.loras.get(name).map(PathBuf::as_path).ok_or_else(unknown)
    }

    /// The LoRA files that a prompt names, each with its weights.
    pub(crate) fn loras(&self, settings: &Settings) -> Result<Vec<(PathBuf, LoraUse)>> {
        let found = |lora: LoraUse| Ok((self.lora(&lora.name)?.to_path_buf(), lora));
        Prompts::loras(settings)?.into_iter().map(found).collect()
    }

    /// The embeddings for a text encoder of this width.
    pub(crate) fn names(&self, width: usize) -> EmbeddingNames {
        self.names.get(&width).cloned().unwrap_or_default()
    }

    /// `(vectors, width)` of an embedding.
    pub(crate) fn embedding(&self, name: &str) -> &Embedding {
        &self.embeddings[name]
    }

    /// The first twelve digits of AutoV3, or of the SHA-256 where the file is no safetensors file; what the file's own
    /// metadata state (`sshs_model_hash`) is taken at its word, as A1111 does.
    fn lora_hash(&self, path: &Path) -> Result<String> {
        let known = self.hashes.lock().expect("nothing panics with it").get(path).cloned();
        if let Some(hash) = known {
            return Ok(hash);
        }
        let file = WeightFile::open(path)?;
        let hash = match file.metadata().get("sshs_model_hash") {
            Some(hash) => hash.chars().take(12).collect(),
            None => {
                let Hashes { auto_v2, auto_v3, .. } = Hashes::of(&file)?;
                auto_v3.unwrap_or(auto_v2).short(12)
            }
        };
        self.hashes.lock().expect("nothing panics with it").insert(path.to_path_buf(), hash.clone());
        Ok(hash)
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// All files in a folder and below, in the order of their paths; links are followed, as A1111 does.
pub(crate) fn files(folder: Option<&Path>) -> Result<Vec<PathBuf>> {
    let Some(folder) = folder else { return Ok(Vec::new()) };
    let entries = WalkDir::new(folder).follow_links(true).sort_by_file_name();
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| vodka_stage::Error::Read {
            path: source.path().unwrap_or(folder).to_path_buf(),
            source: source.into(),
        })?;
        if entry.file_type().is_file() {
            found.push(entry.into_path());
        }
    }
    Ok(found)
}

/// The file in a folder, or below it, that has the name which a picture's text tells (texts may have no commas and colons in names); of
/// several the first that `is_it` takes, else the first. Where none has it, the most similar name.
///
/// # Errors
/// A folder that cannot be read.
pub(crate) fn file_named(
    found: &str,
    folder: &Path,
    is_it: &dyn Fn(&Path) -> bool,
) -> Result<std::result::Result<PathBuf, Option<String>>> {
    let files = files(Some(folder))?;
    let names: Vec<String> = files.iter().map(|path| without_signs(&model_name(path))).collect();
    let wanted = without_signs(found);
    let named: Vec<&PathBuf> =
        files.iter().zip(&names).filter(|(_, name)| **name == wanted).map(|(path, _)| path).collect();
    let exact = named.iter().find(|path| named.len() > 1 && is_it(path));
    Ok(match exact.or(named.first()) {
        Some(path) => Ok((*path).clone()),
        None => Err(nearest(&wanted, names.iter().map(String::as_str)).map(ToOwned::to_owned)),
    })
}
