//! One result of a recipe, with weights of one's own: what a picture or a column of a grid is made with.

use std::path::Path;

use crate::{Error, Graph, MergePlan, Operand, OutputPlan, Recipe, RecipeOutput, Result, Weight};

impl Recipe {
    /// The plan of one of the recipe's outputs and nothing else: that of this name, or the only one there is. `weights` go
    /// before those of the recipe, see [`Recipe::set_weight`].
    ///
    /// An output's name is that of its step, or of its file without the ending. It needs no file.
    ///
    /// # Errors
    /// No output of this name, or several to choose from; a weight that no step of the output has, or that is out of range;
    /// what [`Recipe::plan`] says.
    pub fn one(&self, output: Option<&str>, weights: &[(String, Weight)]) -> Result<MergePlan> {
        let mut recipe = self.clone();
        let of_step = |found: &RecipeOutput| output.is_none_or(|name| found.step == name);
        if recipe.outputs.iter().any(of_step) {
            recipe.outputs.retain(of_step);
        }
        for found in recipe.outputs.iter_mut().filter(|found| found.file.as_os_str().is_empty()) {
            found.file = format!("{}.safetensors", found.step).into();
        }
        for (name, weight) in weights {
            recipe.set_weight(name, weight)?;
        }
        let MergePlan { graph, outputs, hash_cache } = recipe.plan()?;
        let known = || outputs.iter().map(|output| stem(&output.path)).collect();
        let is_named = |found: &&OutputPlan, name: &str| {
            stem(&found.path) == name || recipe.outputs.iter().any(|output| output.step == name)
        };
        let chosen = outputs.iter().filter(|found| output.is_none_or(|name| is_named(found, name)));
        match (chosen.collect::<Vec<_>>().as_slice(), output) {
            ([only], _) => {
                let (graph, operand) = graph.only(only.operand);
                let output = OutputPlan { operand, ..(*only).clone() };
                Ok(MergePlan { graph, outputs: vec![output], hash_cache })
            }
            ([], Some(name)) => Err(Error::NoOutput { name: name.to_owned(), known: known() }),
            _ => Err(Error::ChooseOutput { known: known() }),
        }
    }

    /// Puts a weight in the place of what the recipe has for a parameter of a step: `step.multiplier`, or `multiplier`
    /// alone where one step has it. It counts for the name of the file as well.
    ///
    /// # Errors
    /// No such parameter among the steps that the outputs need, or several; a weight out of range.
    pub fn set_weight(&mut self, name: &str, weight: &Weight) -> Result<()> {
        let mut wanted = self.outputs.iter().flat_map(|output| self.wanted(&output.step)).collect::<Vec<_>>();
        wanted.sort_unstable();
        let (mut known, mut found) = (Vec::new(), Vec::new());
        for (i, step) in self.steps.iter().enumerate() {
            let info = step.method.info();
            if wanted.binary_search(&step.name.as_str()).is_err() {
                continue;
            }
            let of_step = name.strip_prefix(step.name.as_str()).and_then(|name| name.strip_prefix('.'));
            known.extend(info.params.iter().map(|param| format!("{}.{}", step.name, param.name)));
            found.extend(of_step.or(Some(name)).and_then(|name| info.param(name)).map(|param| (i, param)));
        }
        let [(step, param)] = *found.as_slice() else {
            let name = name.to_owned();
            return Err(match found.is_empty() {
                true => Error::NoWeight { name, known },
                false => {
                    let qualified = |(step, _): &(usize, usize)| format!("{}.{name}", self.steps[*step].name);
                    Error::SeveralWeights { found: found.iter().map(qualified).collect(), name }
                }
            });
        };
        let step = &mut self.steps[step];
        let info = step.method.info();
        info.params[param].check(weight)?;
        step.params[param] = vec![weight.clone()];
        let (step, param, label) = (&step.name, info.params[param].name, weight.label());
        for output in &mut self.outputs {
            if let Some(file) = output.file.to_str().filter(|file| file.contains('{')) {
                let file = file.replace(&format!("{{{step}.{param}}}"), &label);
                output.file = file.replace(&format!("{{{param}}}"), &label).into();
            }
        }
        Ok(())
    }
}

impl Graph {
    /// What an operand needs, and nothing else.
    fn only(&self, operand: Operand) -> (Self, Operand) {
        let (parents, steps) = (self.parents_of(&[operand]), self.steps_of(&[operand]));
        let moved = |operand: Operand| match operand {
            Operand::Parent(old) => Operand::Parent(parents.partition_point(|parent| *parent < old)),
            Operand::Step(old) => Operand::Step(steps.partition_point(|step| *step < old)),
        };
        let mut only = Self {
            parents: parents.iter().map(|parent| self.parents[*parent].clone()).collect(),
            steps: steps.iter().map(|step| self.steps[*step].clone()).collect(),
        };
        for operand in only.steps.iter_mut().flat_map(|step| &mut step.operands) {
            *operand = moved(*operand);
        }
        (only, moved(operand))
    }
}

/// The name of an output: that of its file without the ending.
pub(crate) fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = r#"
        [parents]
        a = "a.safetensors"
        b = "b.safetensors"
        c = "c.safetensors"
        [steps.half]
        method = "weighted-sum"
        a = "a"
        b = "b"
        multiplier = [0.25, 0.5]
        [steps.more]
        method = "add-difference"
        a = "half"
        b = "c"
        c = "a"
        multiplier = 1.0
        [steps.other]
        method = "weighted-sum"
        a = "a"
        b = "c"
        multiplier = 0.5
        [[outputs]]
        step = "half"
        file = "half-{multiplier}.safetensors"
        [[outputs]]
        step = "more"
        file = "more-{half.multiplier}-{more.multiplier}.safetensors"
        [[outputs]]
        step = "other"
    "#;

    fn one(output: Option<&str>, weights: &[(&str, f64)]) -> Result<MergePlan> {
        let weights: Vec<_> = weights.iter().map(|(name, x)| ((*name).to_owned(), (*x).into())).collect();
        Recipe::parse(RECIPE, Path::new("recipe.toml")).unwrap().one(output, &weights)
    }

    fn said(output: Option<&str>, weights: &[(&str, f64)]) -> String {
        one(output, weights).unwrap_err().to_string()
    }

    #[test]
    fn an_output_is_chosen_by_its_step_or_its_file_and_brings_what_it_needs() {
        let plan = one(Some("half-0.25"), &[]).unwrap();
        let names = |plan: &MergePlan| {
            let parents = plan.graph.parents.iter().map(|parent| parent.name.as_str());
            parents
                .chain(plan.graph.steps.iter().map(|step| step.name.as_str()))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(names(&plan), "a b half");
        assert_eq!(plan.graph.steps[0].params[0].constant(), Some(0.25));
        let other = one(Some("other"), &[("multiplier", 0.75)]).unwrap();
        assert_eq!((names(&other).as_str(), stem(&other.outputs[0].path).as_str()), ("a c other", "other"));
        assert_eq!(other.outputs[0].operand, Operand::Step(0));
        assert_eq!(other.graph.steps[0].operands, [Operand::Parent(0), Operand::Parent(1)]);
        assert_eq!(other.graph.steps[0].params[0].constant(), Some(0.75));
    }

    #[test]
    fn weights_go_before_those_of_the_recipe_and_into_the_name() {
        let plan = one(Some("more"), &[("half.multiplier", 0.1), ("more.alpha", 2.0)]).unwrap();
        assert_eq!(stem(&plan.outputs[0].path), "more-0.1-2");
        let weights: Vec<_> = plan.graph.steps.iter().map(|step| step.params[0].constant()).collect();
        assert_eq!(weights, [Some(0.1), Some(2.0)]);
    }

    #[test]
    fn what_cannot_be_chosen_is_told() {
        let known = "`half-0.25`, `half-0.5`, ";
        let text = said(Some("halve"), &[]);
        assert!(text.starts_with("no output is called `halve`, expected one of ") && text.contains(known));
        assert!(said(None, &[]).contains(known), "{}", said(None, &[]));
        assert!(said(Some("half"), &[]).ends_with("expected one of `half-0.25`, `half-0.5`"));
        assert!(said(Some("more"), &[("multiplier", 1.0)]).contains(
            "`multiplier` is a weight of several steps, expected `half.multiplier` or `more.multiplier`"
        ));
        assert!(
            said(Some("other"), &[("half.multiplier", 1.0)]).ends_with("expected one of `other.multiplier`")
        );
        assert!(said(Some("other"), &[("multiplier", f64::NAN)]).contains("expected"));
    }
}
