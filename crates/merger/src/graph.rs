//! What is worked out from what: parents, and steps that take parents or other steps.

use std::path::PathBuf;

use serde::{Serialize, Serializer};
use vodka_stage::ContentHash;

use crate::{Method, Weight};

/// A file that a merge reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parent {
    /// Its name in the recipe.
    pub name: String,
    /// A single file or a diffusers folder; a `.safetensors` file for a LoRA.
    pub path: PathBuf,
    /// What its content must hash to, where the recipe says so.
    pub sha256: Option<ContentHash>,
    /// Whether it is a LoRA.
    pub lora: bool,
}

/// One of the things that a step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operand {
    /// A parent, by its index.
    Parent(usize),
    /// The result of an earlier step, by its index.
    Step(usize),
}

/// A method and what it is applied to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// Its name in the recipe.
    pub name: String,
    /// The method.
    pub method: Method,
    /// A, and the others.
    pub operands: Vec<Operand>,
    /// The method's numbers, in the order of its parameters.
    #[serde(serialize_with = "as_text")]
    pub params: Vec<Weight>,
    /// The seed, for methods that have one.
    pub seed: Option<u64>,
}

fn as_text<S: Serializer>(weights: &[Weight], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(weights.iter().map(ToString::to_string))
}

/// Parents and steps; a step takes only what stands before it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Graph {
    /// The files.
    pub parents: Vec<Parent>,
    /// The steps.
    pub steps: Vec<Step>,
}

impl Graph {
    /// The parent that the result keeps where nothing is merged: A of A of the step, and so on.
    pub fn first(&self, operand: Operand) -> usize {
        let mut operand = operand;
        loop {
            match operand {
                Operand::Parent(parent) => return parent,
                Operand::Step(step) => operand = self.steps[step].operands[0],
            }
        }
    }

    /// The steps that the operands depend on, earlier ones first.
    pub fn steps_of(&self, operands: &[Operand]) -> Vec<usize> {
        let mut wanted = vec![false; self.steps.len()];
        let mark = |wanted: &mut [bool], operands: &[Operand]| {
            for operand in operands {
                if let Operand::Step(step) = operand {
                    wanted[*step] = true;
                }
            }
        };
        mark(&mut wanted, operands);
        for step in (0..self.steps.len()).rev() {
            if wanted[step] {
                mark(&mut wanted, &self.steps[step].operands);
            }
        }
        (0..wanted.len()).filter(|step| wanted[*step]).collect()
    }

    /// The parents that the operands depend on, in order.
    pub fn parents_of(&self, operands: &[Operand]) -> Vec<usize> {
        let steps = self.steps_of(operands);
        let of_steps = steps.iter().flat_map(|step| &self.steps[*step].operands);
        let parent = |operand: &Operand| match operand {
            Operand::Parent(parent) => Some(*parent),
            Operand::Step(_) => None,
        };
        let mut parents: Vec<_> = operands.iter().chain(of_steps).filter_map(parent).collect();
        parents.sort_unstable();
        parents.dedup();
        parents
    }

    /// Adds a step, or finds the equal one that is there. Of another name it is another one: a file's recipe names its
    /// steps.
    pub fn intern(&mut self, step: Step) -> usize {
        self.steps.iter().position(|other| *other == step).unwrap_or_else(|| {
            self.steps.push(step);
            self.steps.len() - 1
        })
    }
}
