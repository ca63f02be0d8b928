//! A model's folder: which of its files count, and which description is the model's.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    Error, Labels, Result,
    description::{Description, LabelFile, MODEL_TOML, families},
    graph::Graph,
    int8,
};

const NETWORK: &str = "the network";
const LABELS: &str = "the names of the tags, one for each output";
const STEPS: &str = "how pictures are prepared";

/// What a folder holds, as far as can be told without loading the network.
#[derive(Debug)]
pub(crate) struct ModelFolder {
    path: PathBuf,
    /// The network.
    pub network: PathBuf,
    candidates: Vec<Candidate>,
}

/// A description whose files are there.
#[derive(Debug, Clone)]
struct Candidate {
    description: Description,
    labels: PathBuf,
    file: LabelFile,
}

/// A description that fits, with what it needed to know from the files.
#[derive(Debug)]
pub(crate) struct Settled {
    pub description: Description,
    pub labels: Labels,
    pub labels_path: PathBuf,
}

impl ModelFolder {
    /// Looks into a folder. The family that is named counts; else the `model.toml` in the folder; else all families
    /// whose files are there.
    pub fn open(path: &Path, family: Option<&str>) -> Result<Self> {
        let descriptions = descriptions(path, family)?;
        let network = find_network(path, &descriptions)?;
        let candidates: Vec<_> =
            descriptions.iter().filter_map(|description| Candidate::new(path, description)).collect();
        if candidates.is_empty() {
            let files = descriptions.iter().flat_map(|description| &description.labels);
            let names = listed(files.map(|label| &*label.file));
            return Err(Error::NoModelFile { folder: path.to_path_buf(), names, what: LABELS });
        }
        Ok(Self { path: path.to_path_buf(), network, candidates })
    }

    /// The file of labels; the first where it is not clear yet which one counts.
    pub fn labels(&self) -> &Path {
        &self.candidates[0].labels
    }

    /// Whether a file says how the network is to be used, beside [`ModelFolder::labels`].
    pub fn is_description(&self, path: &Path) -> bool {
        let steps =
            |it: &Candidate| it.description.preprocess.as_ref().map(|steps| self.path.join(&steps.file));
        path == self.path.join(MODEL_TOML)
            || self.candidates.iter().any(|it| it.labels == path && it.labels != self.labels())
            || self.candidates.iter().any(|it| steps(it).is_some_and(|steps| steps == path))
    }

    /// The description, where only one can be meant.
    pub fn only_description(&self) -> Option<&Description> {
        match &self.candidates[..] {
            [only] => Some(&only.description),
            _ => None,
        }
    }

    /// Decides on a description, now that the network is known.
    pub fn settle(self, graph: &Graph) -> Result<Settled> {
        let is_sure = self.candidates.len() == 1;
        let (mut fitting, mut reasons) = (Vec::<Settled>::new(), Reasons::default());
        for candidate in self.candidates {
            let name = candidate.description.name().to_owned();
            match candidate.settle(&self.path, &self.network, graph) {
                Ok(settled) => fitting.push(settled),
                Err(error) if is_sure => return Err(error),
                Err(error) => reasons.add(name, &error),
            }
        }
        // Names of models tell versions of a family apart, and where they do not, it makes no difference to the scores.
        let known = |it: &Settled| it.description.thresholds.of_model(&self.path).is_some();
        let best = fitting.iter().position(known).unwrap_or(0);
        let is_one = fitting.iter().all(|it| it.description.does_the_same_as(&fitting[best].description));
        match fitting.len() {
            0 => {
                Err(Error::NoFamily { folder: self.path, found: graph.to_string(), reasons: reasons.text() })
            }
            _ if is_one => Ok(fitting.swap_remove(best)),
            _ => Err(Error::Ambiguous {
                folder: self.path,
                candidates: listed(fitting.iter().map(|it| it.description.name())),
            }),
        }
    }
}

impl Candidate {
    fn new(folder: &Path, description: &Description) -> Option<Self> {
        let there = |file: &&LabelFile| folder.join(&file.file).is_file();
        let file = description.labels.iter().find(there)?.clone();
        Some(Self { description: description.clone(), labels: folder.join(&file.file), file })
    }

    /// Whether the network and the files are as the description says; what only the whole model shows comes later.
    fn settle(self, folder: &Path, network: &Path, graph: &Graph) -> Result<Settled> {
        let mut description = self.description;
        if let Some(file) = description.preprocess.clone() {
            let path = folder.join(&file.file);
            if !path.is_file() {
                let names = format!("`{}`", file.file);
                return Err(Error::NoModelFile { folder: folder.to_path_buf(), names, what: STEPS });
            }
            let text =
                fs::read_to_string(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
            description.follow_steps(&text, &path)?;
        }
        graph.input(network, &description)?;
        graph.outputs(network, &description.output)?;
        let labels = Labels::read(&self.labels, &self.file)?;
        Ok(Settled { description, labels, labels_path: self.labels })
    }
}

/// Why families do not fit, each reason once.
#[derive(Default)]
struct Reasons(Vec<(Vec<String>, String)>);

impl Reasons {
    fn add(&mut self, family: String, error: &Error) {
        let reason = match error {
            Error::Graph { expected, .. } => format!("expected {expected}"),
            Error::NoModelFile { names, .. } => format!("expected {names}"),
            Error::NoColumn { column, .. } => format!("expected a column `{column}` in the labels"),
            other => other.to_string(),
        };
        match self.0.iter_mut().find(|(_, known)| *known == reason) {
            Some((families, _)) => families.push(family),
            None => self.0.push((vec![family], reason)),
        }
    }

    fn text(&self) -> String {
        let each = |(families, reason): &(Vec<String>, String)| format!("{}: {reason}", families.join(", "));
        self.0.iter().map(each).collect::<Vec<_>>().join("; ")
    }
}

/// What a folder may be: of the family that is named, else what the `model.toml` in it says, else of any family.
fn descriptions(folder: &Path, family: Option<&str>) -> Result<Vec<Description>> {
    let model_toml = folder.join(MODEL_TOML);
    match family {
        Some(family) => Ok(vec![Description::family(family)?]),
        None if model_toml.is_file() => Ok(vec![Description::read(&model_toml)?]),
        None => families().map(Description::family).collect(),
    }
}

/// The names that the network of a folder may have; the first that is there counts.
pub(crate) fn network_names(folder: &Path, family: Option<&str>) -> Result<Vec<String>> {
    Ok(descriptions(folder, family)?.into_iter().flat_map(|description| description.network).collect())
}

/// The network of a folder, which need not have all that [`ModelFolder::open`] wants.
pub(crate) fn network(folder: &Path, family: Option<&str>) -> Result<PathBuf> {
    find_network(folder, &descriptions(folder, family)?)
}

/// The first of the names that is there, or the only network there is.
fn find_network(folder: &Path, descriptions: &[Description]) -> Result<PathBuf> {
    if !folder.is_dir() {
        return Err(Error::NoFolder { what: "the model", path: folder.to_path_buf() });
    }
    let names = || descriptions.iter().flat_map(|description| &description.network);
    let named = names().find_map(|name| Some(folder.join(name)).filter(|path| path.is_file()));
    named.or_else(|| only(networks_in(folder))).ok_or_else(|| {
        let names = listed(names().map(String::as_str));
        Error::NoModelFile { folder: folder.to_path_buf(), names, what: NETWORK }
    })
}

/// All files of a folder whose names are those of networks.
pub(crate) fn networks_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "onnx"))
}

/// The first, if it is the last too.
pub(crate) fn only<T>(mut all: impl Iterator<Item = T>) -> Option<T> {
    let first = all.next()?;
    all.next().is_none().then_some(first)
}

/// The files below the network's folder, by their paths relative to it, that its graph says hold weights. None of a file that
/// is no network.
pub(crate) fn weights_outside(network: &Path) -> Vec<String> {
    int8::locations(network).unwrap_or_default()
}

/// Whether a file beside the network is a part of it by its name: `model.onnx.data` or `model.onnx_data`.
pub(crate) fn is_external(network: &Path, path: &Path) -> bool {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    path.parent() == network.parent() && path != network && name(path).starts_with(&name(network))
}

/// Each name once, in backticks.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut once: Vec<String> = Vec::new();
    for name in names {
        let name = format!("`{name}`");
        if !once.contains(&name) {
            once.push(name);
        }
    }
    once.join(", ")
}
