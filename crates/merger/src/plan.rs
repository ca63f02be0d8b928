//! What to merge: recipes in memory, and what comes of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use vodka_checkpoint::{Precision, same_file};

use crate::{Error, Graph, Method, Operand, Parent, Result, Step, Weight, method::Param};

/// Where the result's VAE comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VaePolicy {
    /// From A, as it is.
    #[default]
    A,
    /// Merged like the rest, as A1111 does.
    Merge,
}

impl FromStr for VaePolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "a" => Ok(Self::A),
            "merge" => Ok(Self::Merge),
            _ => Err(format!("expected a or merge, found `{text}`")),
        }
    }
}

impl fmt::Display for VaePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::Merge => "merge",
        })
    }
}

/// What happens to a tensor that a parent does not have, or has in another shape than A.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MismatchPolicy {
    /// The merge is refused.
    #[default]
    Error,
    /// It stays as it is in A, and is listed; what A does not have is dropped, and listed.
    KeepA,
}

impl FromStr for MismatchPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "error" => Ok(Self::Error),
            "keep-a" => Ok(Self::KeepA),
            _ => Err(format!("expected error or keep-a, found `{text}`")),
        }
    }
}

impl fmt::Display for MismatchPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::KeepA => "keep-a",
        })
    }
}

/// A recipe as it is written: names for operands, lists for weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// The files.
    pub parents: Vec<Parent>,
    /// The steps, each after those it takes.
    pub steps: Vec<RecipeStep>,
    /// What is written.
    pub outputs: Vec<RecipeOutput>,
}

/// A step of a [`Recipe`].
#[derive(Debug, Clone, PartialEq)]
pub struct RecipeStep {
    /// Its name.
    pub name: String,
    /// The method.
    pub method: Method,
    /// The names of parents or steps: A, and the others.
    pub operands: Vec<String>,
    /// For each of the method's parameters, the weights to try.
    pub params: Vec<Vec<Weight>>,
    /// The seed, for methods that have one.
    pub seed: Option<u64>,
}

/// A file that a [`Recipe`] makes; several where a step has lists of weights.
#[derive(Debug, Clone, PartialEq)]
pub struct RecipeOutput {
    /// The step, or a parent to copy.
    pub step: String,
    /// The file; `{multiplier}` or `{step.multiplier}` stands for the weight, where there is a list of them.
    pub file: PathBuf,
    /// The element type; where absent, the one that holds all of A.
    pub precision: Option<Precision>,
    /// Where the VAE comes from.
    pub vae: VaePolicy,
    /// What happens to tensors that not all parents have alike.
    pub mismatched: MismatchPolicy,
}

/// A merge that has been checked; the parents have not been opened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MergePlan {
    /// What is worked out from what.
    pub graph: Graph,
    /// What is written.
    pub outputs: Vec<OutputPlan>,
    /// The file that remembers the hashes of files by path, size and time of change; none to hash every time.
    #[serde(skip)]
    pub hash_cache: Option<PathBuf>,
}

/// A file that a merge writes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputPlan {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub operand: Operand,
    /// The element type; where absent, the one that holds all of A.
    pub precision: Option<Precision>,
    /// Where the VAE comes from.
    pub vae: VaePolicy,
    /// What happens to tensors that not all parents have alike.
    pub mismatched: MismatchPolicy,
}

/// The name of the n-th parent of a merge without names: a, b, c, ...
pub(crate) fn letter(n: usize) -> String {
    match u8::try_from(n) {
        Ok(n) if n < 26 => char::from(b'a' + n).to_string(),
        _ => format!("p{n}"),
    }
}

impl Param {
    /// Whether all numbers of a weight are in the range.
    ///
    /// # Errors
    /// [`Error::Param`].
    pub fn check(&self, weight: &Weight) -> Result<()> {
        let (least, most) = self.range.unwrap_or((f64::MIN, f64::MAX));
        match weight.values().find(|value| !(least..=most).contains(value)) {
            None => Ok(()),
            Some(found) => {
                let expected = self.range.map(|(least, most)| format!("{least} to {most}"));
                let expected = expected.unwrap_or_else(|| "a finite number".to_owned());
                Err(Error::Param { name: self.name, found, expected })
            }
        }
    }
}

impl Recipe {
    /// A recipe of one step, `merge`, over parents called a, b, c, ...; `params` are weights by the names of the method's
    /// parameters.
    ///
    /// # Errors
    /// Too few or too many parents; a parameter that the method does not have, one that is missing, a weight out of range.
    pub fn of_one(
        method: Method,
        paths: Vec<PathBuf>,
        params: &[(String, Vec<Weight>)],
        seed: Option<u64>,
        file: PathBuf,
    ) -> Result<Self> {
        let info = method.info();
        let (least, most, found) = (info.parents.least(), info.parents.most(), paths.len());
        if found < least || most.is_some_and(|most| found > most) {
            return Err(Error::Parents { method, least, most, found });
        }
        if let Some((name, _)) = params.iter().find(|(name, _)| info.param(name).is_none()) {
            return Err(Error::NoParam { method, name: name.clone() });
        }
        let mut weights = Vec::new();
        for (i, param) in info.params.iter().enumerate() {
            let given = params.iter().find(|(name, _)| info.param(name) == Some(i));
            let given = given.map(|(_, weights)| weights.clone());
            let given = given.or_else(|| param.default.map(|default| vec![default.into()]));
            let given = given.ok_or(Error::MissingParam { method, name: param.name })?;
            given.iter().try_for_each(|weight| param.check(weight))?;
            weights.push(given);
        }
        let parent = |(i, path)| Parent { name: letter(i), path, sha256: None, lora: info.takes_lora(i) };
        let parents: Vec<_> = paths.into_iter().enumerate().map(parent).collect();
        let operands = parents.iter().map(|parent| parent.name.clone()).collect();
        let seed = info.seeded.then_some(seed.unwrap_or(0));
        let step = RecipeStep { name: "merge".to_owned(), method, operands, params: weights, seed };
        let output = RecipeOutput {
            step: step.name.clone(),
            file,
            precision: None,
            vae: VaePolicy::default(),
            mismatched: MismatchPolicy::default(),
        };
        Ok(Self { parents, steps: vec![step], outputs: vec![output] })
    }

    /// What is to be done: every list of weights gives results of its own.
    ///
    /// # Errors
    /// An output that is an input or another output, does not end in `.safetensors`, or whose name does not tell the
    /// weights of a list apart.
    pub fn plan(&self) -> Result<MergePlan> {
        let mut graph = Graph { parents: self.parents.clone(), steps: Vec::new() };
        let mut outputs = Vec::new();
        for output in &self.outputs {
            for choice in self.choices(&output.step)? {
                let operand = self.build(&mut graph, &output.step, &choice);
                outputs.push(OutputPlan {
                    path: self.file_name(&output.file, &choice)?,
                    operand,
                    precision: output.precision,
                    vae: output.vae,
                    mismatched: output.mismatched,
                });
            }
        }
        check_outputs(&outputs, &graph)?;
        Ok(MergePlan { graph, outputs, hash_cache: None })
    }

    fn step(&self, name: &str) -> Option<&RecipeStep> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// All ways to take one weight from each list that a step depends on.
    fn choices(&self, step: &str) -> Result<Vec<Choice>> {
        const MOST: usize = 1000;
        let wanted = self.wanted(step);
        let mut choices = vec![Choice::default()];
        for step in self.steps.iter().filter(|step| wanted.contains(step.name.as_str())) {
            for (param, weights) in step.params.iter().enumerate().filter(|(_, weights)| !weights.is_empty())
            {
                if choices.len() * weights.len() > MOST {
                    return Err(Error::TooMany { most: MOST });
                }
                let with = |choice: &Choice, index| choice.with(&step.name, param, index);
                choices = choices
                    .iter()
                    .flat_map(|choice| (0..weights.len()).map(move |index| with(choice, index)))
                    .collect();
            }
        }
        Ok(choices)
    }

    /// Puts a step and those it needs into the graph.
    fn build(&self, graph: &mut Graph, name: &str, choice: &Choice) -> Operand {
        let parents = self.parents.iter().enumerate();
        let mut built: BTreeMap<&str, Operand> =
            parents.map(|(i, parent)| (parent.name.as_str(), Operand::Parent(i))).collect();
        let wanted = self.wanted(name);
        for step in self.steps.iter().filter(|step| wanted.contains(step.name.as_str())) {
            let operands = step.operands.iter().map(|operand| built[operand.as_str()]).collect();
            let weights = step.params.iter().enumerate();
            let params =
                weights.map(|(param, weights)| weights[choice.of(&step.name, param)].clone()).collect();
            let (name, method, seed) = (step.name.clone(), step.method, step.seed);
            let index = graph.intern(Step { name, method, operands, params, seed });
            built.insert(&step.name, Operand::Step(index));
        }
        built[name]
    }

    /// The steps and parents that a step depends on, and itself.
    pub(crate) fn wanted<'a>(&'a self, step: &'a str) -> BTreeSet<&'a str> {
        let mut wanted = BTreeSet::from([step]);
        for step in self.steps.iter().rev() {
            if wanted.contains(step.name.as_str()) {
                wanted.extend(step.operands.iter().map(String::as_str));
            }
        }
        wanted
    }

    /// The name of a file with the weights of a choice in it.
    fn file_name(&self, pattern: &Path, choice: &Choice) -> Result<PathBuf> {
        let Some(text) = pattern.to_str().filter(|text| text.contains('{')) else {
            return Ok(pattern.to_path_buf());
        };
        let mut text = text.to_owned();
        let of_list = |(step, param, _): &&(String, usize, usize)| {
            self.step(step).is_some_and(|step| step.params[*param].len() > 1)
        };
        // A short placeholder means a list before it means a single weight.
        let (lists, singles): (Vec<_>, Vec<_>) = choice.0.iter().partition(of_list);
        for (step, param, index) in lists.into_iter().chain(singles) {
            let step = self.step(step).expect("choices are of steps");
            let label = step.params[*param][*index].label();
            let name = step.method.info().params[*param].name;
            for placeholder in [format!("{{{}.{name}}}", step.name), format!("{{{name}}}")] {
                text = text.replace(&placeholder, &label);
            }
        }
        Ok(text.into())
    }
}

/// For each list of weights, by step and parameter, which of them is taken.
#[derive(Debug, Clone, Default)]
struct Choice(Vec<(String, usize, usize)>);

impl Choice {
    fn with(&self, step: &str, param: usize, index: usize) -> Self {
        let mut choice = self.clone();
        choice.0.push((step.to_owned(), param, index));
        choice
    }

    fn of(&self, step: &str, param: usize) -> usize {
        self.0.iter().find(|(s, p, _)| s == step && *p == param).map_or(0, |(_, _, index)| *index)
    }
}

pub(crate) fn check_outputs(outputs: &[OutputPlan], graph: &Graph) -> Result<()> {
    for (i, output) in outputs.iter().enumerate() {
        let path = output.path.clone();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            return Err(Error::OutputName { path });
        }
        if graph.parents.iter().any(|parent| same_file(&parent.path, &path)) {
            return Err(Error::OutputIsInput { path });
        }
        if outputs[..i].iter().any(|other| same_file(&other.path, &path)) {
            return Err(Error::SameOutput { path });
        }
    }
    Ok(())
}

impl MergePlan {
    /// The parents that one of the outputs needs.
    pub(crate) fn parents_of(&self, output: &OutputPlan) -> Vec<usize> {
        self.graph.parents_of(&[output.operand])
    }
}

/// The file's or folder's own name.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
