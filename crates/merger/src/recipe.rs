//! Recipes: a graph of named steps as TOML, read and checked before any file is opened.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use vodka_checkpoint::{Checkpoint, Part, Precision};
use vodka_stage::{ConfigError, ContentHash, nearest};

use crate::{
    Error, Method, MismatchPolicy, Parent, Result, Selector, VaePolicy, Weight,
    blocks::{BLOCKS, PRESETS, preset},
    metadata::RECIPE_KEY,
    method::{Info, Param},
    plan::{Recipe, RecipeOutput, RecipeStep, letter},
};

impl Recipe {
    /// Reads a recipe: a TOML file, or a merged `.safetensors` file, whose metadata holds the recipe it was made by.
    ///
    /// Relative paths of a TOML file start at the current folder. Those of a merged file start at its own folder; a parent
    /// that is not there is looked for by its name in that folder and in the current one. `output` is the file to write
    /// where the recipe does not say: the merged file itself.
    ///
    /// # Errors
    /// A file that cannot be read; what is wrong in a recipe, with its line and column; a merged file without a recipe.
    pub fn read(path: &Path) -> Result<Self> {
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            let text = fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
            return Self::parse(&text, path);
        }
        let checkpoint = Checkpoint::open(path)?;
        let Some(text) = checkpoint.metadata().get(RECIPE_KEY) else {
            return Err(Error::NoRecipe { path: path.to_path_buf() });
        };
        let mut recipe = Self::parse(text, path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for parent in &mut recipe.parents {
            parent.path = find(folder, &parent.path);
        }
        for output in &mut recipe.outputs {
            path.clone_into(&mut output.file);
        }
        Ok(recipe)
    }

    /// Reads a recipe from its text; `path` is where it came from.
    ///
    /// # Errors
    /// What is wrong in it, with its line and column.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let reader = Reader::new(text, path);
        let table = reader.document()?;
        let table = table.get_ref();
        match table.contains_key("method") {
            true => reader.single(table),
            false => reader.graph(table),
        }
    }
}

/// Where a parent is, by its path in a merged file of this folder.
fn find(folder: &Path, stored: &Path) -> PathBuf {
    let by_name = |folder: &Path| folder.join(stored.file_name().unwrap_or_default());
    let candidates = [folder.join(stored), by_name(folder), by_name(Path::new(""))];
    let found = candidates.iter().find(|path| path.exists());
    found.unwrap_or(&candidates[0]).clone()
}

/// A recipe's text and where it came from, for errors.
pub(crate) struct Reader<'a> {
    text: &'a str,
    path: &'a Path,
}

pub(crate) type Entry<'i> = Spanned<DeValue<'i>>;
/// A name that a step takes, where it stands, and whether it is taken as a LoRA.
pub(crate) type Use = (String, Range<usize>, bool);

impl<'a> Reader<'a> {
    pub(crate) fn new(text: &'a str, path: &'a Path) -> Self {
        Self { text, path }
    }

    /// The text as TOML.
    pub(crate) fn document(&self) -> Result<Spanned<DeTable<'a>>> {
        DeTable::parse(self.text)
            .map_err(|error| self.error(&error.span().unwrap_or(0..0), error.message().to_owned()))
    }

    /// The folder of the file.
    pub(crate) fn folder(&self) -> &'a Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    pub(crate) fn error(&self, span: &Range<usize>, message: impl Into<String>) -> Error {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        ConfigError::Parse { path: self.path.to_path_buf(), line, column, message: message.into() }.into()
    }

    /// Only known keys.
    pub(crate) fn check_keys(&self, table: &DeTable, known: &[&str]) -> Result<()> {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if !known.contains(&name) {
                let advice = nearest(name, known.iter().copied());
                let advice = match advice {
                    Some(best) => format!(", did you mean `{best}`?"),
                    None => format!(", expected one of `{}`", known.join("`, `")),
                };
                return Err(self.error(&key.span(), format!("unknown key `{name}`{advice}")));
            }
        }
        Ok(())
    }

    pub(crate) fn required<'t, 'i>(
        &self,
        table: &'t DeTable<'i>,
        key: &str,
        of: &Range<usize>,
    ) -> Result<&'t Entry<'i>> {
        table.get(key).ok_or_else(|| self.error(of, format!("missing key `{key}`")))
    }

    pub(crate) fn wrong(&self, value: &Entry, expected: &str) -> Error {
        let found = value.get_ref().type_str();
        self.error(&value.span(), format!("expected {expected}, found a value of the type {found}"))
    }

    pub(crate) fn string<'t>(&self, value: &'t Entry) -> Result<&'t str> {
        value.get_ref().as_str().ok_or_else(|| self.wrong(value, "a string"))
    }

    pub(crate) fn table<'t, 'i>(&self, value: &'t Entry<'i>) -> Result<&'t DeTable<'i>> {
        value.get_ref().as_table().ok_or_else(|| self.wrong(value, "a table"))
    }

    fn strings(&self, value: &Entry) -> Result<Vec<(String, Range<usize>)>> {
        let array = value.get_ref().as_array().ok_or_else(|| self.wrong(value, "a list of strings"))?;
        array.iter().map(|item| Ok((self.string(item)?.to_owned(), item.span()))).collect()
    }

    pub(crate) fn parsed<T: std::str::FromStr<Err = String>>(&self, value: &Entry) -> Result<T> {
        self.string(value)?.parse().map_err(|message: String| self.error(&value.span(), message))
    }

    fn number(&self, value: &Entry) -> Result<f64> {
        let number = match value.get_ref() {
            DeValue::Float(float) => float.as_str().parse().ok(),
            DeValue::Integer(integer) => {
                i64::from_str_radix(integer.as_str(), integer.radix()).ok().map(|integer| integer as f64)
            }
            _ => return Err(self.wrong(value, "a number")),
        };
        let found = || self.text.get(value.span()).unwrap_or_default().to_owned();
        match number {
            Some(number) if f64::is_finite(number) => Ok(number),
            _ => Err(self.error(&value.span(), format!("expected a finite number, found {}", found()))),
        }
    }

    fn seed(&self, value: &Entry) -> Result<u64> {
        let DeValue::Integer(integer) = value.get_ref() else {
            return Err(self.wrong(value, "a whole number"));
        };
        u64::from_str_radix(integer.as_str(), integer.radix())
            .map_err(|_| self.error(&value.span(), "expected a whole number from 0 to 2^64 - 1"))
    }

    /// One merge: paths in the place of names, and the keys of its output beside those of the method.
    fn single(&self, table: &DeTable) -> Result<Recipe> {
        let whole = 0..0;
        let info = self.method(table, &whole)?;
        let mut known = method_keys(info);
        known.extend(["output", "precision", "vae", "mismatched"]);
        self.check_keys(table, &known)?;
        let paths = self.operands(table, info, &whole)?;
        let parent = |(i, (path, _)): (usize, &(String, Range<usize>))| Parent {
            name: letter(i),
            path: path.into(),
            sha256: None,
            lora: info.takes_lora(i),
        };
        let parents: Vec<_> = paths.iter().enumerate().map(parent).collect();
        let operands = parents.iter().map(|parent| parent.name.clone()).collect();
        let step = self.step("merge", table, info, operands, &whole)?;
        let output = self.required(table, "output", &whole)?;
        let output = self.output("merge".to_owned(), self.string(output)?.into(), table)?;
        Ok(Recipe { parents, steps: vec![step], outputs: vec![output] })
    }

    fn graph(&self, table: &DeTable) -> Result<Recipe> {
        self.check_keys(table, &["parents", "steps", "outputs"])?;
        let whole = 0..0;
        let parents = self.table(self.required(table, "parents", &whole)?)?;
        let mut parents = parents
            .iter()
            .map(|(name, value)| self.parent(name.get_ref(), value))
            .collect::<Result<Vec<_>>>()?;
        let steps = table.get("steps").map(|steps| self.table(steps)).transpose()?;
        let mut found = Vec::new();
        for (name, value) in steps.into_iter().flatten() {
            if parents.iter().any(|parent| parent.name == **name.get_ref()) {
                let message = format!("`{}` is the name of a parent already", name.get_ref());
                return Err(self.error(&name.span(), message));
            }
            let table = self.table(value)?;
            let info = self.method(table, &name.span())?;
            self.check_keys(table, &method_keys(info))?;
            let operands = self.operands(table, info, &name.span())?;
            found.push((name, table, info, operands));
        }
        let names: Vec<_> = parents.iter().map(|parent| parent.name.clone()).collect();
        let step_names: Vec<_> = found.iter().map(|(name, ..)| name.get_ref().to_string()).collect();
        let known = |name: &str, span: &Range<usize>| self.known(name, span, &names, &step_names);
        let mut steps = Vec::new();
        let mut uses: Vec<Use> = Vec::new();
        for (name, table, info, operands) in &found {
            for (i, (operand, span)) in operands.iter().enumerate() {
                known(operand, span)?;
                uses.push((operand.clone(), span.clone(), info.takes_lora(i)));
            }
            let operands = operands.iter().map(|(operand, _)| operand.clone()).collect();
            steps.push(self.step(name.get_ref(), table, info, operands, &name.span())?);
        }
        self.check_kinds(&uses, &mut parents, &step_names)?;
        let steps = in_order(steps).map_err(|(step, round)| {
            let name = found.iter().find(|(name, ..)| **name.get_ref() == step).expect("one of them").0;
            self.error(&name.span(), format!("the step `{step}` depends on itself: {}", round.join(" -> ")))
        })?;
        let outputs = self.outputs(self.required(table, "outputs", &whole)?, &known, &parents)?;
        Ok(Recipe { parents, steps, outputs })
    }

    fn parent(&self, name: &str, value: &Entry) -> Result<Parent> {
        let (path, sha256) = match value.get_ref() {
            DeValue::String(path) => (path.to_string(), None),
            DeValue::Table(table) => {
                self.check_keys(table, &["path", "sha256"])?;
                let path = self.string(self.required(table, "path", &value.span())?)?.to_owned();
                (path, table.get("sha256").map(|hash| self.parsed::<ContentHash>(hash)).transpose()?)
            }
            _ => return Err(self.wrong(value, "a path, or a table with `path` and `sha256`")),
        };
        Ok(Parent { name: name.to_owned(), path: path.into(), sha256, lora: false })
    }

    fn known(&self, name: &str, span: &Range<usize>, parents: &[String], steps: &[String]) -> Result<()> {
        let all = || parents.iter().chain(steps).map(String::as_str);
        if all().any(|known| known == name) {
            return Ok(());
        }
        let advice = nearest(name, all()).map(|best| format!(", did you mean `{best}`?"));
        Err(self.error(span, format!("no parent or step is called `{name}`{}", advice.unwrap_or_default())))
    }

    /// A LoRA stands where LoRAs do, and nowhere else: what is used as one anywhere is one.
    pub(crate) fn check_kinds(&self, uses: &[Use], parents: &mut [Parent], steps: &[String]) -> Result<()> {
        for (name, span, _) in uses.iter().filter(|(.., lora)| *lora) {
            if steps.contains(name) {
                return Err(
                    self.error(span, format!("`{name}` is a step, expected a LoRA among the parents"))
                );
            }
            let parent = parents.iter_mut().find(|parent| parent.name == *name);
            parent.expect("names are known").lora = true;
        }
        let is_lora = |name: &str| parents.iter().any(|parent| parent.lora && parent.name == name);
        match uses.iter().find(|(name, _, lora)| !lora && is_lora(name)) {
            None => Ok(()),
            Some((name, span, _)) => {
                Err(self.error(span, format!("`{name}` is used as a LoRA elsewhere, expected a checkpoint")))
            }
        }
    }

    pub(crate) fn method(&self, table: &DeTable, of: &Range<usize>) -> Result<&'static Info> {
        Ok(self.parsed::<Method>(self.required(table, "method", of)?)?.info())
    }

    /// What a step takes: A, and the others.
    pub(crate) fn operands(
        &self,
        table: &DeTable,
        info: &Info,
        of: &Range<usize>,
    ) -> Result<Vec<(String, Range<usize>)>> {
        let one = |key: &str| {
            let value = self.required(table, key, of)?;
            Ok::<_, Error>((self.string(value)?.to_owned(), value.span()))
        };
        let mut operands = vec![one("a")?];
        for letter in info.parents.letters() {
            operands.push(one(letter)?);
        }
        if let Some(list) = info.parents.list() {
            let value = self.required(table, list, of)?;
            operands.extend(self.strings(value)?);
            let (least, found) = (info.parents.least() - 1, operands.len() - 1);
            if found < least {
                return Err(
                    self.error(&value.span(), format!("{} needs at least {least}, found {found}", info.name))
                );
            }
        }
        Ok(operands)
    }

    pub(crate) fn step(
        &self,
        name: &str,
        table: &DeTable,
        info: &Info,
        operands: Vec<String>,
        of: &Range<usize>,
    ) -> Result<RecipeStep> {
        let mut params = Vec::new();
        for param in info.params {
            let other_name = (param.name == "multiplier").then(|| table.get("alpha")).flatten();
            params.push(match (table.get(param.name).or(other_name), param.default) {
                (Some(value), _) => self.weights(param, value)?,
                (None, Some(default)) => vec![default.into()],
                (None, None) => return Err(self.error(of, format!("missing key `{}`", param.name))),
            });
        }
        let seed =
            info.seeded.then(|| table.get("seed").map_or(Ok(0), |seed| self.seed(seed))).transpose()?;
        Ok(RecipeStep { name: name.to_owned(), method: info.method, operands, params, seed })
    }

    /// One weight, or a list of them, of which each gives a result of its own.
    fn weights(&self, param: &Param, value: &Entry) -> Result<Vec<Weight>> {
        let one = |value: &Entry| {
            let weight = self.weight(value)?;
            param.check(&weight).map_err(|error| self.error(&value.span(), error.to_string()))?;
            Ok(weight)
        };
        match value.get_ref() {
            DeValue::Array(list) if list.is_empty() => {
                Err(self.error(&value.span(), "expected one weight at least"))
            }
            DeValue::Array(list) => list.iter().map(one).collect(),
            _ => Ok(vec![one(value)?]),
        }
    }

    pub(crate) fn weight(&self, value: &Entry) -> Result<Weight> {
        match value.get_ref() {
            DeValue::String(name) => self.preset(name, &value.span()),
            DeValue::Table(table) => self.weight_table(table),
            DeValue::Float(_) | DeValue::Integer(_) => Ok(self.number(value)?.into()),
            _ => Err(self.wrong(value, "a number, the name of a preset, or a table")),
        }
    }

    fn preset(&self, name: &str, span: &Range<usize>) -> Result<Weight> {
        let Some(blocks) = preset(name) else {
            let advice = nearest(name, PRESETS).map(|best| format!(", did you mean `{best}`?"));
            return Err(self.error(span, format!("unknown preset `{name}`{}", advice.unwrap_or_default())));
        };
        Ok(Weight::of_blocks(Some(name.to_owned()), blocks))
    }

    fn weight_table(&self, table: &DeTable) -> Result<Weight> {
        self.check_keys(
            table,
            &["value", "preset", "blocks", "base", "text_encoder", "unet", "vae", "select"],
        )?;
        let mut weight = match (table.get("value"), table.get("preset"), table.get("blocks")) {
            (Some(value), None, None) => self.number(value)?.into(),
            (None, Some(name), None) => self.preset(self.string(name)?, &name.span())?,
            (None, None, Some(blocks)) => self.blocks(blocks)?,
            (None, None, None) => Weight::from(0.0),
            _ => {
                let span = table.keys().next().map_or(0..0, Spanned::span);
                return Err(self.error(&span, "expected one of `value`, `preset` and `blocks`"));
            }
        };
        if let Some(base) = table.get("base") {
            weight = weight.with_base(self.number(base)?);
        }
        for (key, part) in [("text_encoder", Part::TextEncoder), ("unet", Part::Unet), ("vae", Part::Vae)] {
            if let Some(value) = table.get(key) {
                weight = weight.with_part(part, self.number(value)?);
            }
        }
        let selectors = table
            .get("select")
            .map(|select| select.get_ref().as_array().ok_or_else(|| self.wrong(select, "a list of tables")));
        for selector in selectors.transpose()?.into_iter().flatten() {
            let of = selector.span();
            let selector = self.table(selector)?;
            self.check_keys(selector, &["keys", "block", "value"])?;
            let text = |key: &str| {
                selector.get(key).map(|value| self.string(value).map(ToOwned::to_owned)).transpose()
            };
            weight = weight.with_selector(Selector {
                keys: text("keys")?.unwrap_or_else(|| "*".to_owned()),
                block: text("block")?,
                value: self.number(self.required(selector, "value", &of)?)?,
            });
        }
        Ok(weight)
    }

    fn blocks(&self, value: &Entry) -> Result<Weight> {
        let list = value.get_ref().as_array().ok_or_else(|| self.wrong(value, "a list of 26 numbers"))?;
        let numbers = list.iter().map(|number| self.number(number)).collect::<Result<Vec<_>>>()?;
        let found = numbers.len();
        let blocks: [f64; BLOCKS] = numbers.try_into().map_err(|_| {
            let message =
                format!("expected 26 numbers (BASE, IN00 to IN11, M00, OUT00 to OUT11), found {found}");
            self.error(&value.span(), message)
        })?;
        Ok(Weight::of_blocks(None, blocks))
    }

    fn outputs(
        &self,
        value: &Entry,
        known: &dyn Fn(&str, &Range<usize>) -> Result<()>,
        parents: &[Parent],
    ) -> Result<Vec<RecipeOutput>> {
        let list = value
            .get_ref()
            .as_array()
            .ok_or_else(|| self.wrong(value, "a list of tables (`[[outputs]]`)"))?;
        let mut outputs = Vec::new();
        for value in list {
            let table = self.table(value)?;
            self.check_keys(table, &["step", "file", "precision", "vae", "mismatched"])?;
            let step = self.required(table, "step", &value.span())?;
            let name = self.string(step)?;
            known(name, &step.span())?;
            if parents.iter().any(|parent| parent.lora && parent.name == name) {
                return Err(
                    self.error(&step.span(), format!("`{name}` is a LoRA, expected a step or a checkpoint"))
                );
            }
            // Left out in merged files, which are what is written.
            let file = table.get("file").map(|file| self.string(file)).transpose()?.unwrap_or_default();
            outputs.push(self.output(name.to_owned(), file.into(), table)?);
        }
        match outputs.is_empty() {
            true => Err(self.error(&value.span(), "expected one output at least")),
            false => Ok(outputs),
        }
    }

    pub(crate) fn output(&self, step: String, file: PathBuf, table: &DeTable) -> Result<RecipeOutput> {
        let precision = table.get("precision").map(|value| self.parsed::<Precision>(value)).transpose()?;
        let vae = table.get("vae").map(|value| self.parsed::<VaePolicy>(value)).transpose()?;
        let mismatched =
            table.get("mismatched").map(|value| self.parsed::<MismatchPolicy>(value)).transpose()?;
        let (vae, mismatched) = (vae.unwrap_or_default(), mismatched.unwrap_or_default());
        Ok(RecipeOutput { step, file, precision, vae, mismatched })
    }
}

/// The keys that a method's step may have.
pub(crate) fn method_keys(info: &Info) -> Vec<&'static str> {
    let mut keys = vec!["method", "a"];
    keys.extend(info.parents.letters());
    keys.extend(info.parents.list());
    for param in info.params {
        keys.push(param.name);
        if param.name == "multiplier" {
            keys.push("alpha");
        }
    }
    keys.extend(info.seeded.then_some("seed"));
    keys
}

/// Steps in an order in which each comes after what it takes; else a step that depends on itself, and how.
fn in_order(steps: Vec<RecipeStep>) -> Result<Vec<RecipeStep>, (String, Vec<String>)> {
    let mut left: BTreeMap<_, _> = steps.into_iter().map(|step| (step.name.clone(), step)).collect();
    let mut ordered: Vec<RecipeStep> = Vec::new();
    while !left.is_empty() {
        let free = |step: &RecipeStep| step.operands.iter().all(|operand| !left.contains_key(operand));
        let Some(name) = left.values().find(|step| free(step)).map(|step| step.name.clone()) else {
            return Err(round(&left));
        };
        ordered.extend(left.remove(&name));
    }
    Ok(ordered)
}

/// A way from a step to itself, among steps of which each waits for another.
fn round(left: &BTreeMap<String, RecipeStep>) -> (String, Vec<String>) {
    let mut way: Vec<String> = left.keys().take(1).cloned().collect();
    loop {
        let step = &left[way.last().expect("one at least")];
        let next =
            step.operands.iter().find(|operand| left.contains_key(*operand)).expect("it waits for one");
        if let Some(start) = way.iter().position(|name| name == next) {
            way.push(next.clone());
            return (next.clone(), way.split_off(start));
        }
        way.push(next.clone());
    }
}
