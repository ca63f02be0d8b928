//! What two checkpoints differ in: by block and by tensor.

use std::{fmt::Write, path::Path};

use rayon::prelude::*;
use serde::Serialize;
use vodka_checkpoint::keys;

use crate::{
    Graph, MismatchPolicy, Operand, OutputPlan, Parent, Result, VaePolicy,
    blocks::{BLOCKS, block_name, block_of},
    eval::Evaluator,
    run,
};

/// How a set of weights of B differs from the same weights of A.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Difference {
    /// The block (`BASE`, `IN00`, ..., with `CLIP` and `VAE` apart from it) or the tensor's LDM name.
    pub name: String,
    /// How many tensors.
    pub tensors: u64,
    /// How many of them are not equal.
    pub changed: u64,
    /// The cosine of the angle between A and B, as one vector each.
    pub cosine: f64,
    /// The length of B - A by that of A.
    pub relative: f64,
    /// The largest change of one weight.
    pub largest: f64,
    #[serde(skip)]
    sums: Sums,
}

/// Sums over elements: of A and B squared, of their product, of the difference squared; and its largest size.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Sums {
    a: f64,
    b: f64,
    ab: f64,
    d: f64,
    largest: f64,
}

/// What a fine-tune, a merge or anything else has changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// All weights.
    pub all: Difference,
    /// By block, those that the model has: CLIP, VAE, and the UNet's from IN00 to OUT11.
    pub blocks: Vec<Difference>,
    /// Every tensor, the most changed (by the relative distance) first.
    pub tensors: Vec<Difference>,
}

/// Compares two checkpoints of one shape.
///
/// # Errors
/// What [`run`](crate::run) says about parents that do not fit.
pub fn compare(a: &Path, b: &Path) -> Result<Comparison> {
    let parent = |name: &str, path: &Path| Parent {
        name: name.to_owned(),
        path: path.to_path_buf(),
        sha256: None,
        lora: false,
    };
    // A step whose parents are checked against each other; its numbers are never used.
    let graph = Graph { parents: vec![parent("a", a), parent("b", b)], steps: Vec::new() };
    let evaluator = Evaluator::open(graph)?;
    run::check_fit(&evaluator, &output(), 0, 1)?;
    let operands = [Operand::Parent(0), Operand::Parent(1)];
    let mut tensors = Vec::new();
    for key in keys::all(evaluator.config(operands[0])) {
        let plan = evaluator.plan(&key.ldm, &operands.map(|operand| (operand, false)))?;
        let chunks: Vec<_> = plan.chunks().collect();
        let sums = chunks.into_par_iter().map(|range| {
            let mut sums = Sums::default();
            evaluator
                .chunk(&plan, &operands, range, &mut |_, values| sums.add(&Sums::of(values[0], values[1])))?;
            Ok(sums)
        });
        let mut total = Sums::default();
        sums.collect::<Result<Vec<_>>>()?.iter().for_each(|sums| total.add(sums));
        tensors.push(Difference::of(key.ldm, 1, u64::from(total.d > 0.0), total));
    }
    Ok(Comparison::of(tensors))
}

/// A comparison's demands on its parents: all alike, the VAE too.
fn output() -> OutputPlan {
    OutputPlan {
        path: "none".into(),
        operand: Operand::Parent(0),
        precision: None,
        vae: VaePolicy::Merge,
        mismatched: MismatchPolicy::Error,
    }
}

impl Sums {
    fn of(a: &[f32], b: &[f32]) -> Self {
        let mut sums = Self::default();
        for (a, b) in a.iter().zip(b) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            sums.a += a * a;
            sums.b += b * b;
            sums.ab += a * b;
            sums.d += (b - a) * (b - a);
            sums.largest = sums.largest.max((b - a).abs());
        }
        sums
    }

    fn add(&mut self, other: &Self) {
        self.a += other.a;
        self.b += other.b;
        self.ab += other.ab;
        self.d += other.d;
        self.largest = self.largest.max(other.largest);
    }
}

impl Difference {
    fn of(name: String, tensors: u64, changed: u64, sums: Sums) -> Self {
        let norms = (sums.a * sums.b).sqrt();
        let cosine = if norms > 0.0 { sums.ab / norms } else { f64::from(u8::from(sums.d == 0.0)) };
        let relative = if sums.d > 0.0 { (sums.d / sums.a).sqrt() } else { 0.0 };
        Self { name, tensors, changed, cosine, relative, largest: sums.largest, sums }
    }

    fn of_all<'a>(name: String, tensors: impl Iterator<Item = &'a Self>) -> Self {
        let (mut count, mut changed, mut sums) = (0, 0, Sums::default());
        for tensor in tensors {
            count += tensor.tensors;
            changed += tensor.changed;
            sums.add(&tensor.sums);
        }
        Self::of(name, count, changed, sums)
    }
}

/// The row of a tensor: BASE is told apart into CLIP and VAE.
fn row_of(name: &str) -> String {
    match block_of(name) {
        0 if name.starts_with(keys::VAE_PREFIX) => "VAE".to_owned(),
        0 if name.starts_with(keys::CLIP_PREFIX) => "CLIP".to_owned(),
        block => block_name(block),
    }
}

impl Comparison {
    fn of(mut tensors: Vec<Difference>) -> Self {
        let all = Difference::of_all("all".to_owned(), tensors.iter());
        let rows = ["CLIP".to_owned(), "VAE".to_owned()].into_iter().chain((0..BLOCKS).map(block_name));
        let blocks = rows.filter_map(|row| {
            let of_row = || tensors.iter().filter(|tensor| row_of(&tensor.name) == row);
            of_row().next()?;
            Some(Difference::of_all(row.clone(), of_row()))
        });
        let blocks = blocks.collect();
        tensors.sort_by(|a, b| b.relative.total_cmp(&a.relative).then_with(|| a.name.cmp(&b.name)));
        Self { all, blocks, tensors }
    }

    /// A table for people: the blocks, and the `most` most changed tensors.
    pub fn text(&self, most: usize) -> String {
        let mut text = String::from("block    tensors  changed      cosine    relative     largest\n");
        let line = |row: &Difference| {
            let Difference { name, tensors, changed, cosine, relative, largest, .. } = row;
            format!("{name:<8} {tensors:>7} {changed:>8} {cosine:>11.7} {relative:>11.3e} {largest:>11.3e}\n")
        };
        self.blocks.iter().chain([&self.all]).for_each(|row| text.push_str(&line(row)));
        let changed: Vec<_> = self.tensors.iter().filter(|tensor| tensor.changed > 0).take(most).collect();
        if !changed.is_empty() {
            text.push_str("\nmost changed (relative, largest):\n");
        }
        for Difference { name, relative, largest, .. } in changed {
            let _ = writeln!(text, "{relative:>11.3e} {largest:>11.3e}  {name}");
        }
        text
    }

    /// All blocks and tensors as CSV.
    pub fn csv(&self) -> String {
        let mut text = String::from("kind,name,tensors,changed,cosine,relative,largest\n");
        let rows = self.blocks.iter().map(|row| ("block", row)).chain([("all", &self.all)]);
        for (kind, row) in rows.chain(self.tensors.iter().map(|row| ("tensor", row))) {
            let Difference { name, tensors, changed, cosine, relative, largest, .. } = row;
            let _ = writeln!(text, "{kind},{name},{tensors},{changed},{cosine},{relative},{largest}");
        }
        text
    }

    /// A bar for the relative distance of each block.
    pub fn svg(&self) -> String {
        const BAR: usize = 20;
        const WIDTH: f64 = 520.0;
        let most = self.blocks.iter().map(|block| block.relative).fold(0.0, f64::max);
        let height = BAR * (self.blocks.len() + 2);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"8\" y=\"15\">|B - A| / |A| by block</text>\n"
        );
        for (i, block) in self.blocks.iter().enumerate() {
            let y = BAR * (i + 1) + 4;
            let width = if most > 0.0 { block.relative / most * WIDTH } else { 0.0 };
            let (name, text, baseline, end) = (&block.name, block.relative, y + 12, 72.0 + width);
            let _ = writeln!(
                svg,
                "<text x=\"8\" y=\"{baseline}\">{name}</text>\
                 <rect x=\"64\" y=\"{y}\" width=\"{width:.1}\" height=\"14\" fill=\"#4477aa\"/>\
                 <text x=\"{end:.1}\" y=\"{baseline}\">{text:.2e}</text>"
            );
        }
        svg + "</svg>\n"
    }
}
