//! Files of text that prompts are put together from: styles and wildcards.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use vodka_noise::PythonRng;
use vodka_prompt::{Styles, fill_wildcards};

use crate::{Error, Result, library::files};

/// Adds named styles of files to a prompt and a negative prompt; of two with one name that of the later file counts.
///
/// # Errors
/// A file that is none, and a name that no file has.
pub(crate) fn apply_styles(
    files: &[PathBuf],
    names: &[String],
    (prompt, negative): (&str, &str),
) -> Result<(String, String)> {
    let mut styles = Styles::default();
    for file in files {
        styles.extend(Styles::parse(&read(file)?)?);
    }
    Ok(styles.apply(names, prompt, negative)?)
}

/// A folder of wildcards: `__name__` in a prompt becomes a line of `name.txt`, `__folder/name__` one of a file in a folder.
#[derive(Debug, Default)]
pub(crate) struct Wildcards(BTreeMap<String, Vec<String>>);

impl Wildcards {
    /// Reads all files of the folder.
    ///
    /// # Errors
    /// A folder that is not there, and a file that is no text.
    pub(crate) fn open(folder: Option<&Path>) -> Result<Self> {
        let mut lines = BTreeMap::new();
        let is_text = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "txt");
        for path in files(folder)?.into_iter().filter(is_text) {
            let inner = folder.and_then(|folder| path.strip_prefix(folder).ok()).unwrap_or(&path);
            let name = inner.with_extension("").to_string_lossy().replace('\\', "/");
            lines.insert(name, read(&path)?.lines().map(ToOwned::to_owned).collect());
        }
        Ok(Self(lines))
    }

    /// Fills a prompt in; a name that no file has stays as it is. Python's generator with the picture's seed chooses, anew for
    /// each prompt, as the wildcards of A1111 do it (AUTOMATIC1111/stable-diffusion-webui-wildcards, `scripts/wildcards.py`).
    pub(crate) fn fill(&self, prompt: &str, seed: u32) -> String {
        let mut rng = PythonRng::new(seed.into());
        let lines = |name: &str| self.0.get(name).map(Vec::as_slice);
        fill_wildcards(prompt, &lines, &mut |count| rng.below(count as u32) as usize)
    }
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|source| vodka_stage::Error::Read { path: path.into(), source })?;
    String::from_utf8(bytes).map_err(|_| Error::NoText { path: path.to_path_buf() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_are_chosen_as_python_chooses() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/colour.txt"), "red\ngreen\nblue\nblack\nwhite\n").unwrap();
        let wildcards = Wildcards::open(Some(dir.path())).unwrap();
        let fill = |seed| wildcards.fill("a __sub/colour__ and __sub/colour__ __cat__", seed);
        // random.Random().seed(n); [choice("red green blue black white".split()) for _ in range(2)]
        assert_eq!(fill(0), "a black and black __cat__");
        assert_eq!(fill(1234), "a black and red __cat__");
        let error = Wildcards::open(Some(&dir.path().join("none"))).unwrap_err().to_string();
        assert!(error.contains("none"), "{error}");
        fs::write(dir.path().join("bad.txt"), [0xff]).unwrap();
        let error = Wildcards::open(Some(dir.path())).unwrap_err().to_string();
        assert!(error.contains("bad.txt"), "{error}");
    }

    #[test]
    fn styles_of_a_later_file_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a.csv"), "name,prompt,negative_prompt\nx,old,\ny,why,no").unwrap();
        fs::write(path("b.csv"), "name,prompt,negative_prompt\nx,new {prompt},").unwrap();
        let files = [path("a.csv"), path("b.csv")];
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let found = apply_styles(&files, &names(&["x", "y"]), ("cat", "")).unwrap();
        assert_eq!(found, ("new cat, why".to_owned(), "no".to_owned()));
        let error = apply_styles(&files, &names(&["z"]), ("", "")).unwrap_err().to_string();
        assert_eq!(error, "there is no style `z`; known are y, x");
    }
}
