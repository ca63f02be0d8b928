//! The store of cells: a folder of PNG files, each named by the hash of all that decides its pixels and its text.
//!
//! A file is there whole or not at all, whoever is killed and whatever disk is full, and a name says what the file holds.
//! So a grid that goes on, grows, shrinks or changes its order takes from the store what is there and makes the rest,
//! and grids that share a store share their cells. One run at a time writes to it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use image::RgbImage;
use vodka_checkpoint::Precision;
use vodka_stage::{ContentHash, FolderLock, Hasher, create_dir, remove_all};

use crate::{
    ControlId, Error, ModelId, Result, Settings, Used,
    picture_file::{read_parameters, read_rgb, write_png},
    pipeline::ARITHMETIC,
};

/// A store that no other run may write to.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    _lock: FolderLock,
}

/// A cell in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The file's name.
    pub(crate) name: String,
    /// The `parameters` text in it.
    pub(crate) text: String,
}

/// Where the numbers of a cell are worked out, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arithmetic<'a> {
    /// `cpu` or `cuda`.
    pub(crate) device_type: &'a str,
    /// Of text encoder and UNet.
    pub(crate) precision: Precision,
    /// Of the VAE.
    pub(crate) vae_precision: Precision,
    /// How many pictures are made at once, which may change the last bits of each.
    pub(crate) batch: usize,
}

impl Entry {
    /// The cell that `settings` make of `model`, with the files that their prompts name, where and in how many bits
    /// `arithmetic` says.
    pub(crate) fn of(settings: &Settings, model: &ModelId, used: &Used, arithmetic: Arithmetic<'_>) -> Self {
        let Arithmetic { device_type, precision, vae_precision, batch } = arithmetic;
        let text = settings.parameters_with(model, used).to_string();
        let settings = serde_json::to_string(settings).expect("settings are plain data");
        let mut hasher = Hasher::default();
        hasher.piece("vodka cell").piece(ARITHMETIC.to_le_bytes()).piece(device_type);
        hasher.piece(precision.to_string()).piece(vae_precision.to_string());
        let vae = model.vae.as_ref().map(|(_, sha256)| sha256.to_string()).unwrap_or_default();
        hasher.piece(model.sha256.to_string()).piece(vae).piece(settings).piece(&text);
        for ControlId { model: (_, network), image } in &model.controls {
            let image = image.as_ref().map(|(_, sha256)| sha256.to_string()).unwrap_or_default();
            hasher.piece(network.to_string()).piece(image);
        }
        if batch > 1 {
            hasher.piece((batch as u64).to_le_bytes());
        }
        Self { name: file_name(&hasher.finish()), text }
    }
}

/// 32 digits of the hash are enough, and leave names that people can handle.
fn file_name(hash: &ContentHash) -> String {
    format!("{}.png", hash.short(32))
}

fn is_cell(name: &str) -> bool {
    name.strip_suffix(".png")
        .is_some_and(|hash| hash.len() == 32 && hash.bytes().all(|c| c.is_ascii_hexdigit()))
}

impl Store {
    /// Takes the folder, which is made where there is none.
    ///
    /// # Errors
    /// Another run has it.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        create_dir(folder)?;
        Ok(Self { folder: folder.to_path_buf(), _lock: FolderLock::take(folder)? })
    }

    pub(crate) fn path(&self, entry: &Entry) -> PathBuf {
        self.folder.join(&entry.name)
    }

    /// The picture of a cell that is there: its text is the one that would be written, and its pixels can be read.
    pub(crate) fn find(&self, entry: &Entry) -> Option<RgbImage> {
        let path = self.path(entry);
        let is_it = matches!(read_parameters(&path), Ok(Some(found)) if found == entry.text);
        if is_it { read_rgb(&path).ok().flatten() } else { None }
    }

    /// The picture of a cell; `None` where there is none.
    ///
    /// # Errors
    /// A file that was damaged or replaced since.
    pub(crate) fn get(&self, entry: &Entry) -> Result<Option<RgbImage>> {
        let path = self.path(entry);
        if !path.exists() {
            return Ok(None);
        }
        match read_rgb(&path)? {
            Some(picture) => Ok(Some(picture)),
            None => Err(Error::CellChanged { path }),
        }
    }

    /// Puts a cell in, whole or not at all.
    pub(crate) fn put(&self, entry: &Entry, picture: &RgbImage) -> Result<()> {
        write_png(&self.path(entry), picture, &entry.text)
    }

    /// Takes a damaged cell out.
    pub(crate) fn remove(&self, entry: &Entry) -> Result<()> {
        Ok(remove_all(&self.path(entry))?)
    }

    /// Takes out all cells but those that `keep` names, and what killed runs have left half written; other files stay.
    pub(crate) fn prune(&self, keep: &dyn Fn(&str) -> bool) -> Result<usize> {
        let mut removed = 0;
        let failed = |source| vodka_stage::Error::Read { path: self.folder.clone(), source };
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let half =
                name.strip_prefix('.').and_then(|name| name.strip_suffix(".partial")).is_some_and(is_cell);
            if half || (is_cell(&name) && !keep(&name)) {
                remove_all(&entry.path())?;
                removed += usize::from(!half);
            }
        }
        Ok(removed)
    }
}

/// Whether a store has cells that are not of these names.
pub(crate) fn has_others(folder: &Path, names: &dyn Fn(&str) -> bool) -> bool {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .any(|name| is_cell(&name) && !names(&name))
}

#[cfg(test)]
mod tests {
    use vodka_stage::hash_bytes;

    use super::*;

    const CPU: Arithmetic<'_> =
        Arithmetic { device_type: "cpu", precision: Precision::F32, vae_precision: Precision::F32, batch: 1 };

    fn entry(settings: &Settings) -> Entry {
        Entry::of(settings, &ModelId::new(Path::new("a.safetensors"), hash_bytes("a")), &Used::default(), CPU)
    }

    #[test]
    fn the_name_is_of_all_that_decides_the_cell() {
        let base = Settings { prompt: "a".into(), ..Settings::default() };
        let model = |name: &str, content: &str| ModelId::new(Path::new(name), hash_bytes(content));
        let none = Used::default();
        let lora = Used { loras: vec![("x".into(), "1234".into())], ..Used::default() };
        let with_vae = ModelId { vae: Some(("v.pt".into(), hash_bytes("v"))), ..model("a.safetensors", "a") };
        let other = [
            Entry::of(&base, &model("a.safetensors", "a"), &lora, CPU),
            Entry::of(&base, &with_vae, &none, CPU),
            Entry::of(&base, &model("b.safetensors", "a"), &none, CPU),
            Entry::of(&base, &model("a.safetensors", "b"), &none, CPU),
            Entry::of(&base, &model("a.safetensors", "a"), &none, Arithmetic { device_type: "cuda", ..CPU }),
            Entry::of(
                &base,
                &model("a.safetensors", "a"),
                &none,
                Arithmetic { precision: Precision::BF16, ..CPU },
            ),
            Entry::of(
                &base,
                &model("a.safetensors", "a"),
                &none,
                Arithmetic { vae_precision: Precision::BF16, ..CPU },
            ),
            Entry::of(&base, &model("a.safetensors", "a"), &none, Arithmetic { batch: 8, ..CPU }),
            entry(&Settings { seed: 1, ..base.clone() }),
            entry(&Settings { negative_prompt: "a".into(), ..base.clone() }),
            // The text does not tell these apart from the default.
            entry(&Settings { eta: Some(1.0), ..base.clone() }),
        ];
        let mut names: Vec<_> = other.iter().chain([&entry(&base)]).map(|entry| entry.name.clone()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 12);
        assert!(names.iter().all(|name| is_cell(name)), "{names:?}");
        assert_eq!(entry(&base), entry(&base.clone()));
    }

    #[test]
    fn a_store_is_one_runs_at_a_time_and_keeps_what_is_not_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cells")).unwrap();
        let error = Store::open(&dir.path().join("cells")).unwrap_err();
        assert!(error.to_string().contains("is held by another run"), "{error}");
        let cells = [0, 1].map(|seed| entry(&Settings { seed, ..Settings::default() }));
        let picture = RgbImage::from_pixel(8, 8, image::Rgb([1, 2, 3]));
        for cell in &cells {
            assert!(store.find(cell).is_none());
            store.put(cell, &picture).unwrap();
            assert!(store.find(cell).is_some());
        }
        assert_eq!(store.get(&cells[0]).unwrap(), Some(picture));
        fs::write(dir.path().join("cells/mine.png"), "x").unwrap();
        fs::write(dir.path().join("cells").join(format!(".{}.partial", cells[1].name)), "x").unwrap();
        assert_eq!(store.prune(&|name| name == cells[0].name).unwrap(), 1);
        assert!(store.find(&cells[0]).is_some() && store.find(&cells[1]).is_none());
        assert_eq!(fs::read_dir(dir.path().join("cells")).unwrap().count(), 2);
        // Another cell's file in its place is not this cell.
        fs::copy(store.path(&cells[0]), store.path(&cells[1])).unwrap();
        assert!(store.find(&cells[1]).is_none());
        drop(store);
        Store::open(&dir.path().join("cells")).unwrap();
    }
}
