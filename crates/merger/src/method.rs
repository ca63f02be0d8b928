//! The methods: what each is called, what it takes, its formula and where that is from.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use vodka_stage::nearest;

/// How checkpoints become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "Info::summary says it")]
pub enum Method {
    WeightedSum,
    AddDifference,
    SumTwice,
    TripleSum,
    TrainDifference,
    CosineA,
    CosineB,
    SmoothAdd,
    TensorSum,
    Slerp,
    Geometric,
    MultiplyDifference,
    Perpendicular,
    Ties,
    Dare,
    Della,
    Breadcrumbs,
    ModelStock,
    TopK,
    Clip,
    ApplyLora,
}

/// What is known of a method.
#[derive(Debug, Clone)]
pub struct Info {
    /// The method.
    pub method: Method,
    /// Its name in recipes and on the command line.
    pub name: &'static str,
    /// Its name where it comes from.
    pub title: &'static str,
    /// What it does, in one line.
    pub summary: &'static str,
    /// The formula, one line or more; A is the first checkpoint, M the multiplier, arithmetic fp32 unless said otherwise.
    pub formula: &'static str,
    /// The original whose arithmetic it is.
    pub source: &'static str,
    /// The checkpoints it takes.
    pub parents: Parents,
    /// Its numbers.
    pub params: &'static [Param],
    /// How often it goes over the parents' weights.
    pub passes: Passes,
    /// Whether it needs whole rows (of the first axis) at a time.
    pub by_row: bool,
    /// Whether it takes a seed.
    pub seeded: bool,
}

/// The checkpoints that a method takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parents {
    /// A and B.
    Two,
    /// A, B and C.
    Three,
    /// A and as many others (`models`), at least.
    Many(usize),
    /// A and at least one LoRA (`loras`).
    Loras,
}

impl Parents {
    /// The least number of checkpoints, A included.
    pub fn least(self) -> usize {
        match self {
            Self::Two | Self::Loras => 2,
            Self::Three => 3,
            Self::Many(others) => 1 + others,
        }
    }

    /// The largest number of checkpoints, A included, where there is one.
    pub fn most(self) -> Option<usize> {
        match self {
            Self::Two => Some(2),
            Self::Three => Some(3),
            Self::Many(_) | Self::Loras => None,
        }
    }

    /// The recipe keys of the parents behind A that stand for one each.
    pub fn letters(self) -> &'static [&'static str] {
        match self {
            Self::Two => &["b"],
            Self::Three => &["b", "c"],
            Self::Many(_) | Self::Loras => &[],
        }
    }

    /// The recipe key of the list of parents behind A, where it is a list.
    pub fn list(self) -> Option<&'static str> {
        match self {
            Self::Two | Self::Three => None,
            Self::Many(_) => Some("models"),
            Self::Loras => Some("loras"),
        }
    }
}

/// How often a method goes over the parents' weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passes {
    /// Once: each element of the result depends on the same element of the parents.
    One,
    /// As many times for each tensor: numbers of the whole tensor come first.
    Tensor(u64),
    /// Twice over the parents: numbers of the whole model come first.
    Model,
}

/// A number that a method takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// What it is where it is not given; none if it must be.
    pub default: Option<f64>,
    /// The least and the largest value; any finite one where absent.
    pub range: Option<(f64, f64)>,
    /// What it means.
    pub help: &'static str,
}

const fn share(help: &'static str) -> Param {
    Param { name: "multiplier", default: None, range: Some((0.0, 1.0)), help }
}

const fn factor(help: &'static str) -> Param {
    Param { name: "multiplier", default: None, range: None, help }
}

const fn strength(help: &'static str) -> Param {
    Param { name: "multiplier", default: Some(1.0), range: None, help }
}

const fn beta(help: &'static str) -> Param {
    Param { name: "beta", default: None, range: Some((0.0, 1.0)), help }
}

const fn density(default: f64) -> Param {
    Param {
        name: "density",
        default: Some(default),
        range: Some((0.0, 1.0)),
        help: "the part of each difference's elements that is kept",
    }
}

const A1111: &str = "AUTOMATIC1111/stable-diffusion-webui 82a973c modules/extras.py";
const SUPERMERGER: &str = "hako-mikan/sd-webui-supermerger 0b1c491 scripts/mergers/mergers.py";
const MEH: &str = "s1dlx/meh 003017e sd_meh/merge_methods.py";
const MERGEKIT: &str =
    "arcee-ai/mergekit a6e4028 mergekit/merge_methods/generalized_task_arithmetic.py, mergekit/sparsify.py";

/// A method that goes once over its parents, A and B; others differ from it.
const PLAIN: Info = Info {
    method: Method::WeightedSum,
    name: "",
    title: "",
    summary: "",
    formula: "",
    source: SUPERMERGER,
    parents: Parents::Two,
    params: &[],
    passes: Passes::One,
    by_row: false,
    seeded: false,
};

/// All methods.
pub static METHODS: [Info; 21] = [
    Info {
        method: Method::WeightedSum,
        name: "weighted-sum",
        title: "Weighted sum",
        summary: "A and B, mixed",
        formula: "A (1 - M) + B M",
        source: A1111,
        params: &[share("the share of B, 0 to 1")],
        ..PLAIN
    },
    Info {
        method: Method::AddDifference,
        name: "add-difference",
        title: "Add difference",
        summary: "A, and what B learned beyond C",
        formula: "A + M (B - C)",
        source: A1111,
        parents: Parents::Three,
        params: &[factor("how much of the difference is added")],
        ..PLAIN
    },
    Info {
        method: Method::SumTwice,
        name: "sum-twice",
        title: "Sum twice",
        summary: "A and B mixed, the result mixed with C",
        formula: "(1 - beta) ((1 - M) A + M B) + beta C",
        parents: Parents::Three,
        params: &[share("the share of B in the first mix, 0 to 1"), beta("the share of C, 0 to 1")],
        ..PLAIN
    },
    Info {
        method: Method::TripleSum,
        name: "triple-sum",
        title: "Triple sum",
        summary: "A, B and C, mixed",
        formula: "(1 - M - beta) A + M B + beta C",
        parents: Parents::Three,
        params: &[share("the share of B, 0 to 1"), beta("the share of C, 0 to 1")],
        ..PLAIN
    },
    Info {
        method: Method::TrainDifference,
        name: "train-difference",
        title: "trainDifference",
        summary: "A, trained as B was from C: differences count more where A is far from B",
        formula: "A + 1.8 M s |B - C|, with s = sign(B - C) |B - A| / (|B - C| + |B - A|), 0 where that is 0 / 0",
        parents: Parents::Three,
        params: &[factor("how much of the difference is added")],
        ..PLAIN
    },
    Info {
        method: Method::CosineA,
        name: "cosine-a",
        title: "cosineA",
        summary: "A and B, mixed by how alike their columns are; favours the structure of A",
        formula: "B (1 - k) + A k, for each column (along the first axis) k = clip((s - min) / (max - min) - |M|, 0, 1),\n\
                  s = (cos(A, B) of the column + cos of the two tensors with columns of length 1) / 2;\n\
                  min and max of cos over the columns of all tensors without the VAE, the lowest and highest 1 % cut off (f64)",
        params: &[share("0: columns that are alike are those of A; 1: B, 0 to 1")],
        passes: Passes::Model,
        ..PLAIN
    },
    Info {
        method: Method::CosineB,
        name: "cosine-b",
        title: "cosineB",
        summary: "A and B, mixed by how alike their columns and tensors are; favours the structure of B",
        formula: "B (1 - k) + A k, for each column (along the first axis) k = clip((s - min) / (max - min) - M, 0, 1),\n\
                  s = (cos(A, B) of the column + cos of the two tensors) / 2;\n\
                  min and max of s over all tensors without the VAE, the lowest and highest 1 % cut off (f64)",
        params: &[share("0: columns that are alike are those of A; 1: B, 0 to 1")],
        passes: Passes::Model,
        ..PLAIN
    },
    Info {
        method: Method::SmoothAdd,
        name: "smooth-add",
        title: "smoothAdd",
        summary: "A, and the smoothed difference of B and C",
        formula: "A + M gauss(median(B - C)): the median of 3 along every axis, then a Gaussian of sigma 1 cut at 4 (f64),\n\
                  edges mirrored",
        parents: Parents::Three,
        params: &[factor("how much of the difference is added")],
        passes: Passes::Tensor(2),
        ..PLAIN
    },
    Info {
        method: Method::TensorSum,
        name: "tensor-sum",
        title: "tensor",
        summary: "A with some rows of B",
        formula: "the rows of B from int(n beta) to int(n (M + beta)), else those of A; n is the extent of the first axis.\n\
                  Where M + beta > 1, A's from int(n (M + beta - 1)) to int(n beta), else those of B",
        params: &[share("the share of rows from B, 0 to 1"), beta("where they start, 0 to 1")],
        ..PLAIN
    },
    Info {
        method: Method::Slerp,
        name: "slerp",
        title: "slerp",
        summary: "A and B, mixed along the arc between them",
        formula: "(sin((1 - M) w) A / |A| + sin(M w) B / |B|) / sin(w) ((1 - M) |A| + M |B|), w the angle of the two tensors (f64);\n\
                  the weighted sum where sin(w) is 0",
        source: "ljleb/sd-mecha b8d4d88 sd_mecha/extensions/builtin/merge_methods/linear.py",
        params: &[share("the share of B, 0 to 1")],
        passes: Passes::Tensor(2),
        ..PLAIN
    },
    Info {
        method: Method::Geometric,
        name: "geometric",
        title: "geometric sum",
        summary: "the geometric mean of A and B",
        formula: "the real part of A^(1 - M) B^M (f64)",
        source: "ljleb/sd-mecha b8d4d88 sd_mecha/extensions/builtin/merge_methods/linear.py",
        params: &[share("the share of B, 0 to 1")],
        ..PLAIN
    },
    Info {
        method: Method::MultiplyDifference,
        name: "multiply-difference",
        title: "multiply difference",
        summary: "C, and the geometric mean of what A and B learned beyond it",
        formula: "C + copysign(|A - C|^(1 - M) |B - C|^M, (1 - beta) A + beta B - C) (powers f64)",
        source: MEH,
        parents: Parents::Three,
        params: &[share("the share of B in the size, 0 to 1"), beta("the share of B in the sign, 0 to 1")],
        ..PLAIN
    },
    Info {
        method: Method::Perpendicular,
        name: "perpendicular",
        title: "add perpendicular",
        summary: "A, and what B learned beyond C that A did not",
        formula: "A + M ((B - C) - (A - C) <A - C, B - C> / |A - C|^2), products of whole tensors (f64);\n\
                  A where A = C",
        source: "ljleb/sd-mecha b8d4d88 sd_mecha/extensions/builtin/merge_methods/wrappers.py",
        parents: Parents::Three,
        params: &[factor("how much is added")],
        passes: Passes::Tensor(2),
        ..PLAIN
    },
    Info {
        method: Method::Ties,
        name: "ties",
        title: "TIES",
        summary: "A, and the differences of the others, trimmed, where their signs agree",
        formula: "A + M sum(d_i [sign d_i = s]) / count(sign d_i = s), with d_i the largest int(density n) elements of X_i - A, else 0,\n\
                  and s = 1 where sum(d_i) >= 0, else -1. Elements as large as the smallest one kept are kept too",
        source: MERGEKIT,
        parents: Parents::Many(1),
        params: &[strength("how much of the difference is added, 1 by default"), density(0.2)],
        passes: Passes::Tensor(3),
        ..PLAIN
    },
    Info {
        method: Method::Dare,
        name: "dare",
        title: "DARE",
        summary: "A, and the mean of the others' differences, elements dropped at random",
        formula: "A + M mean(d_i m_i / density), with d_i = X_i - A and m_i 1 at `density` of the elements, at random, else 0",
        source: "yule-BUAA/MergeLM model_merging_methods/mask_weights_utils.py",
        parents: Parents::Many(1),
        params: &[strength("how much of the difference is added, 1 by default"), density(0.5)],
        seeded: true,
        ..PLAIN
    },
    Info {
        method: Method::Della,
        name: "della",
        title: "DELLA",
        summary: "A, and the others' differences, small elements dropped more often, where their signs agree",
        formula: "as ties, with d_i = (X_i - A) m_i / p_i, m_i 1 with the probability p_i, else 0;\n\
                  p_i from density - epsilon for the smallest element of a row to density + epsilon for the largest, by rank",
        source: MERGEKIT,
        parents: Parents::Many(1),
        params: &[
            strength("how much of the difference is added, 1 by default"),
            density(0.5),
            Param {
                name: "epsilon",
                default: Some(0.15),
                range: Some((0.0, 0.5)),
                help: "how far probabilities go from the density, 0.15 by default",
            },
        ],
        by_row: true,
        seeded: true,
        ..PLAIN
    },
    Info {
        method: Method::Breadcrumbs,
        name: "breadcrumbs",
        title: "model breadcrumbs",
        summary: "A, and the mean of the others' differences without their smallest and largest elements",
        formula: "A + M mean(d_i), with d_i the elements of X_i - A but for the largest int(gamma n), and of the rest the largest\n\
                  int(density n); else 0",
        source: MERGEKIT,
        parents: Parents::Many(1),
        params: &[
            strength("how much of the difference is added, 1 by default"),
            density(0.9),
            Param {
                name: "gamma",
                default: Some(0.01),
                range: Some((0.0, 1.0)),
                help: "the part of the elements, the largest, that is dropped, 0.01 by default",
            },
        ],
        passes: Passes::Tensor(3),
        ..PLAIN
    },
    Info {
        method: Method::ModelStock,
        name: "model-stock",
        title: "Model Stock",
        summary: "between A and the mean of the others, nearer to the mean the more these agree",
        formula: "t mean(X_i) + (1 - t) A, t = n c / (1 + (n - 1) c), c the mean cosine between the pairs of X_i - A (f64)",
        source: "arcee-ai/mergekit a6e4028 mergekit/merge_methods/model_stock.py",
        parents: Parents::Many(2),
        passes: Passes::Tensor(2),
        ..PLAIN
    },
    Info {
        method: Method::TopK,
        name: "top-k",
        title: "top-k tensor sum",
        summary: "A's values in the order of B's",
        formula: "where B has its k-th smallest element, A's k-th smallest, if the size of that is of the ranks from\n\
                  round(n beta) to round(n (M + beta)) of the sizes in A (around the end where M + beta > 1); else A",
        source: MEH,
        params: &[share("the share of ranks, 0 to 1"), beta("where they start, 0 to 1")],
        passes: Passes::Tensor(2),
        ..PLAIN
    },
    Info {
        method: Method::Clip,
        name: "clip",
        title: "weights clip",
        summary: "A, kept within the range of the others",
        formula: "min(max(A, min(X_i)), max(X_i))",
        source: "s1dlx/meh 003017e sd_meh/utils.py",
        parents: Parents::Many(2),
        ..PLAIN
    },
    Info {
        method: Method::ApplyLora,
        name: "apply-lora",
        title: "merge LoRA",
        summary: "A with LoRAs worked in",
        formula: "A + M sum(up_i down_i alpha_i / rank_i)",
        source: "kohya-ss/sd-scripts 48d368f networks/merge_lora.py",
        parents: Parents::Loras,
        params: &[strength("the strength, 1 by default")],
        ..PLAIN
    },
];

impl Method {
    /// What is known of it.
    pub fn info(self) -> &'static Info {
        let found = METHODS.iter().find(|info| info.method == self);
        found.expect("every method is in the table")
    }
}

impl Info {
    /// The place of a number among [`Info::params`]; `alpha` is another name of `multiplier`.
    pub fn param(&self, name: &str) -> Option<usize> {
        let name = if name == "alpha" { "multiplier" } else { name };
        self.params.iter().position(|param| param.name == name)
    }

    /// Whether the parent at a place, A being at 0, is a LoRA.
    pub(crate) fn takes_lora(&self, place: usize) -> bool {
        place > 0 && self.parents == Parents::Loras
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().name)
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || METHODS.iter().map(|info| info.name);
        let found = METHODS.iter().find(|info| info.name == text);
        found.map(|info| info.method).ok_or_else(|| {
            let advice = nearest(text, names()).map(|name| format!(", did you mean `{name}`?"));
            format!("unknown method `{text}`{}", advice.unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_configurations() {
        for info in &METHODS {
            assert_eq!(info.name.parse(), Ok(info.method));
            assert_eq!(serde_json::to_value(info.method).unwrap(), info.name);
            assert!(info.params.iter().all(|param| info.param(param.name).is_some()));
        }
        let said = "weighted-sun".parse::<Method>().unwrap_err();
        assert_eq!(said, "unknown method `weighted-sun`, did you mean `weighted-sum`?");
    }
}
