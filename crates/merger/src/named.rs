//! Merges that stand among other things: tables of a workflow, over models that it knows by name.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use toml::de::DeTable;

use crate::{
    Error, MergePlan, MismatchPolicy, Parent, Recipe, Result, VaePolicy, Weight,
    method::Info,
    plan::check_outputs,
    recipe::{Entry, Reader, Use, method_keys},
};

/// An entry of a table: its name, where that stands, and its value.
type Named<'t, 'i> = (String, Range<usize>, &'t Entry<'i>);

/// The keys of an output.
const OUTPUT_KEYS: [&str; 3] = ["precision", "vae", "mismatched"];

/// A merge with a name and one result, whose parents are models that somebody else knows.
///
/// Written as the keys of a step with those of an output beside them, the names of models in the place of parents:
///
/// ```toml
/// [[merge]]
/// name = "mix"
/// method = "weighted-sum"
/// a = "v3"
/// b = "v1"
/// multiplier = { preset = "GRAD_V", text_encoder = 0.2 }
/// ```
///
/// or as a recipe in a file of its own, with models in the place of some of its parents, and other weights:
///
/// ```toml
/// [[merge]]
/// name = "mix"
/// recipe = "mixes.toml"
/// output = "v3-with-v1"          # where the recipe has several
/// parents = { v3 = "v3@75" }
/// weights = { multiplier = 0.3 } # see Recipe::set_weight
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct NamedMerge {
    /// Its name.
    pub name: String,
    plan: MergePlan,
    /// The models that stand for parents, by the names of these.
    models: BTreeMap<String, String>,
}

impl NamedMerge {
    /// Reads all merges of a file: the array of tables `key`. The rest of the text is not looked at. Paths of recipes start
    /// at the folder of the file, and paths in these at theirs.
    ///
    /// # Errors
    /// What is wrong in a table, with its line and column; what is wrong in a recipe that it names.
    pub fn read_all(text: &str, path: &Path, key: &str) -> Result<Vec<Self>> {
        let reader = Reader::new(text, path);
        let table = reader.document()?;
        let Some(list) = table.get_ref().get(key) else { return Ok(Vec::new()) };
        let list = list.get_ref().as_array().ok_or_else(|| reader.wrong(list, "a list of tables"))?;
        list.iter().map(|merge| reader.named(merge)).collect()
    }

    /// The models that it is made of, each once.
    pub fn models(&self) -> impl Iterator<Item = &String> {
        self.models.values().collect::<BTreeSet<_>>().into_iter()
    }

    /// The plan, given the files of [`NamedMerge::models`] by their names and the file to write.
    ///
    /// # Errors
    /// An output that is an input, or does not end in `.safetensors`.
    ///
    /// # Panics
    /// When a model is missing.
    pub fn plan(&self, files: &BTreeMap<String, PathBuf>, output: PathBuf) -> Result<MergePlan> {
        let mut plan = self.plan.clone();
        for parent in &mut plan.graph.parents {
            if let Some(model) = self.models.get(&parent.name) {
                parent.path.clone_from(&files[model]);
                // That of the file in whose place it stands.
                parent.sha256 = None;
            }
        }
        plan.outputs[0].path = output;
        check_outputs(&plan.outputs, &plan.graph)?;
        Ok(plan)
    }
}

impl Reader<'_> {
    fn named(&self, value: &Entry) -> Result<NamedMerge> {
        let (table, of) = (self.table(value)?, value.span());
        let name = self.string(self.required(table, "name", &of)?)?.to_owned();
        let mut merge = match table.get("recipe") {
            Some(recipe) => self.by_recipe(name, table, recipe)?,
            None if table.contains_key("method") => self.by_step(name, table, &of)?,
            None => return Err(self.error(&of, "missing key `method`, or `recipe`")),
        };
        let output = &mut merge.plan.outputs[0];
        if let Some(precision) = table.get("precision") {
            output.precision = Some(self.parsed(precision)?);
        }
        if let Some(vae) = table.get("vae") {
            output.vae = self.parsed::<VaePolicy>(vae)?;
        }
        if let Some(mismatched) = table.get("mismatched") {
            output.mismatched = self.parsed::<MismatchPolicy>(mismatched)?;
        }
        Ok(merge)
    }

    /// A merge that says its one step itself.
    fn by_step(&self, name: String, table: &DeTable, of: &Range<usize>) -> Result<NamedMerge> {
        let info = self.method(table, of)?;
        let mut keys = vec!["name"];
        keys.extend(method_keys(info));
        keys.extend(OUTPUT_KEYS);
        self.check_keys(table, &keys)?;
        self.check_single(table, info)?;
        let found = self.operands(table, info, of)?;
        let uses: Vec<Use> = found
            .iter()
            .enumerate()
            .map(|(i, (name, span))| (name.clone(), span.clone(), info.takes_lora(i)))
            .collect();
        let names: BTreeSet<_> = found.iter().map(|(name, _)| name.clone()).collect();
        let parent =
            |name: &String| Parent { name: name.clone(), path: PathBuf::new(), sha256: None, lora: false };
        let mut parents: Vec<_> = names.iter().map(parent).collect();
        self.check_kinds(&uses, &mut parents, &[])?;
        let operands = found.into_iter().map(|(name, _)| name).collect();
        let step = self.step("merge", table, info, operands, of)?;
        let recipe = Recipe {
            parents,
            steps: vec![step],
            outputs: vec![self.output("merge".into(), PathBuf::new(), table)?],
        };
        let plan = recipe.one(None, &[])?;
        Ok(NamedMerge { name, plan, models: names.into_iter().map(|name| (name.clone(), name)).collect() })
    }

    /// A list of weights would make several models.
    fn check_single(&self, table: &DeTable, info: &Info) -> Result<()> {
        let params = info.params.iter().map(|param| param.name).chain(["alpha"]);
        match params.filter_map(|name| table.get(name)).find(|value| value.get_ref().is_array()) {
            None => Ok(()),
            Some(list) => {
                Err(self.error(&list.span(), "expected one weight, found a list: each merge makes one model"))
            }
        }
    }

    /// A merge by a recipe in a file of its own.
    fn by_recipe(&self, name: String, table: &DeTable, recipe: &Entry) -> Result<NamedMerge> {
        let keys = ["name", "recipe", "output", "parents", "weights"];
        self.check_keys(table, &[&keys[..], &OUTPUT_KEYS].concat())?;
        let path = self.folder().join(self.string(recipe)?);
        let mut read = Recipe::read(&path)?;
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            let folder = path.parent().unwrap_or(Path::new(""));
            read.parents.iter_mut().for_each(|parent| parent.path = folder.join(&parent.path));
        }
        let mut models = BTreeMap::new();
        for (parent, span, model) in self.entries(table, "parents")? {
            if !read.parents.iter().any(|known| known.name == parent) {
                let error = Error::NoParent { name: parent };
                return Err(self.error(&span, error.to_string()));
            }
            models.insert(parent, self.string(model)?.to_owned());
        }
        let weights = self.entries(table, "weights")?;
        let weights = weights.into_iter().map(|(name, _, weight)| Ok((name, self.weight(weight)?)));
        let weights = weights.collect::<Result<Vec<(String, Weight)>>>()?;
        let output = table.get("output").map(|output| self.string(output)).transpose()?;
        let place = table.get("output").unwrap_or(recipe).span();
        let plan = read.one(output, &weights).map_err(|error| self.error(&place, error.to_string()))?;
        models.retain(|parent, _| plan.graph.parents.iter().any(|known| known.name == *parent));
        Ok(NamedMerge { name, plan, models })
    }

    /// The entries of a table within a table, with their places; none where it is not there.
    fn entries<'t, 'i>(&self, table: &'t DeTable<'i>, key: &str) -> Result<Vec<Named<'t, 'i>>> {
        let inner = table.get(key).map(|value| self.table(value)).transpose()?;
        let entries = inner.into_iter().flatten();
        Ok(entries.map(|(name, value)| (name.get_ref().to_string(), name.span(), value)).collect())
    }
}
