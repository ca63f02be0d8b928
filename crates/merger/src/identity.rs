//! What tells one result from another where there is no file to hash.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vodka_stage::{ContentHash, HashCache, Hasher, Interrupt};

use crate::{
    Graph, MergePlan, Operand, Result,
    eval::Evaluator,
    merged::precision,
    run::{check_parents, hash_parents},
};

/// What a result without a file is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// A hash of all that the weights depend on: the parents' contents, methods, weights, seeds, element type and policies,
    /// and neither names nor places. It is the hash of no file: that would have to be worked out and hashed whole, and
    /// would depend on its place through the paths in its recipe.
    pub sha256: ContentHash,
    /// The files that it is made of, in the recipe's order.
    pub parents: Vec<ParentId>,
    /// The steps on one line, for people: `mix = weighted-sum(a: v3, b: v1, multiplier: 0.5)`.
    pub steps: String,
}

/// A file that a result is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentId {
    /// Its name in the recipe.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// The hash of the file, or of the folder's files.
    pub sha256: ContentHash,
}

impl MergePlan {
    /// What one of the outputs is known by; opens the parents, checks that they fit, and hashes them.
    ///
    /// # Errors
    /// A parent that is not there, damaged, does not fit, or is not the file that the recipe means.
    ///
    /// # Panics
    /// When the plan has fewer outputs.
    pub fn identity(&self, output: usize) -> Result<Identity> {
        let mut cache = HashCache::open(self.hash_cache.as_deref());
        let identity = self.identity_by(output, &mut cache, &Interrupt::new())?;
        Ok(identity.expect("nobody has interrupted it"))
    }

    /// As [`identity`](Self::identity), with a cache of hashes that is open already; none where it was interrupted.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn identity_by(
        &self,
        output: usize,
        cache: &mut HashCache,
        interrupt: &Interrupt,
    ) -> Result<Option<Identity>> {
        let output = &self.outputs[output];
        let evaluator = Evaluator::open(self.graph.clone())?;
        check_parents(&evaluator, output)?;
        let Some(hashes) = hash_parents(self, cache, interrupt)? else { return Ok(None) };
        let mut hasher = Hasher::default();
        hasher.piece("merged").piece(content(&self.graph, &hashes, output.operand).to_string());
        hasher.piece(precision(&evaluator, output).to_string());
        hasher.piece(output.vae.to_string()).piece(output.mismatched.to_string());
        let parent = |index: usize| {
            let parent = &self.graph.parents[index];
            ParentId { name: parent.name.clone(), path: parent.path.clone(), sha256: hashes[index] }
        };
        Ok(Some(Identity {
            sha256: hasher.finish(),
            parents: self.parents_of(output).into_iter().map(parent).collect(),
            steps: in_words(&self.graph, output.operand),
        }))
    }
}

/// A hash of what an operand is, whatever it and those before it are called.
fn content(graph: &Graph, hashes: &[ContentHash], operand: Operand) -> ContentHash {
    let mut steps: Vec<ContentHash> = Vec::new();
    let of = |steps: &[ContentHash], operand: Operand| match operand {
        Operand::Parent(parent) => hashes[parent],
        Operand::Step(step) => steps[step],
    };
    for step in &graph.steps {
        let mut hasher = Hasher::default();
        hasher.piece(step.method.to_string()).piece(format!("{:?}", step.seed));
        hasher.piece(step.operands.len().to_string());
        for operand in &step.operands {
            hasher.piece(of(&steps, *operand).to_string());
        }
        for weight in &step.params {
            hasher.piece(weight.to_string());
        }
        steps.push(hasher.finish());
    }
    of(&steps, operand)
}

/// The steps that an operand needs, each once, in order.
fn in_words(graph: &Graph, operand: Operand) -> String {
    let name = |operand: &Operand| match operand {
        Operand::Parent(parent) => &graph.parents[*parent].name,
        Operand::Step(step) => &graph.steps[*step].name,
    };
    let step = |step: usize| {
        let step = &graph.steps[step];
        let info = step.method.info();
        let keys = std::iter::once("a").chain(info.parents.letters().iter().copied());
        let mut words: Vec<_> =
            keys.zip(&step.operands).map(|(key, operand)| format!("{key}: {}", name(operand))).collect();
        if let Some(list) = info.parents.list() {
            let others: Vec<_> = step.operands[1..].iter().map(|operand| name(operand).as_str()).collect();
            words.push(format!("{list}: [{}]", others.join(", ")));
        }
        words.extend(
            info.params.iter().zip(&step.params).map(|(param, weight)| format!("{}: {weight}", param.name)),
        );
        words.extend(step.seed.map(|seed| format!("seed: {seed}")));
        format!("{} = {}({})", step.name, step.method, words.join(", "))
    };
    match graph.steps_of(&[operand]) {
        steps if steps.is_empty() => name(&operand).clone(),
        steps => steps.into_iter().map(step).collect::<Vec<_>>().join("; "),
    }
}
