//! LoRA files: two thin matrices for each weight that they change.
//!
//! Names are those of kohya's scripts (`lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight`, or with LDM's
//! block names), or those of diffusers and PEFT (`unet.down_blocks.0.attentions.0.proj_in.lora_A.weight`).

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use crate::{
    Architecture, Error, LoraShapes, ModelConfig, Part, Result, TensorInfo, TensorView, WeightFile, detect,
    keys::{self, Key},
    lora_adapter::Adapter,
};

/// An open LoRA.
#[derive(Debug)]
pub struct Lora {
    file: WeightFile,
    modules: BTreeMap<String, LoraModule>,
    unused: Vec<String>,
}

/// What a LoRA adds to one weight: `up * down * alpha / rank`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraModule {
    /// The tensor `(rank, in)` or `(rank, in, k, k)`, by its name in the file.
    pub down: String,
    /// The tensor `(out, rank)` or `(out, rank, 1, 1)`.
    pub up: String,
    /// The tensor `(rank, rank, k, k)` between them, where a convolution is taken apart further (LoCon with Tucker's
    /// decomposition); `down` is then `(rank, in, 1, 1)`.
    pub mid: Option<String>,
    /// Columns of `up` and rows of `down`.
    pub rank: usize,
    /// The numerator of the scale: of the tensor `alpha`, else of PEFT's configuration in the metadata
    /// (`lora_adapter_metadata`), else the rank.
    pub alpha: f64,
}

impl LoraModule {
    /// What `up * down` is multiplied by.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// The name by which kohya's scripts know a weight: `lora_unet_` or `lora_te_`, and diffusers' name with underscores.
/// None for biases, norms and embeddings, and for the VAE, which a LoRA does not change.
pub fn lora_name(key: &Key) -> Option<String> {
    let (prefix, inner) = (lora_prefix(key)?, key.diffusers.strip_suffix(".weight")?);
    Some(format!("{prefix}{}", inner.replace('.', "_")))
}

fn lora_prefix(key: &Key) -> Option<&'static str> {
    let is_matrix = matches!(key.shape.len(), 2 | 4) && !key.ldm.contains("embedding.weight");
    match Part::of(&key.ldm).filter(|_| is_matrix)? {
        Part::Unet => Some("lora_unet_"),
        Part::TextEncoder => Some("lora_te_"),
        Part::Vae => None,
    }
}

/// What diffusers calls a part, in front of the names of its modules.
pub(crate) fn network(part: Part) -> &'static str {
    if part == Part::Unet { "unet" } else { "text_encoder" }
}

/// All names that files give to a weight, without what tells `down` from `up`.
fn module_names(key: &Key) -> Vec<String> {
    let Some(kohya) = lora_name(key) else { return Vec::new() };
    let part = Part::of(&key.ldm).expect("it has a name");
    let ldm = key.ldm.strip_prefix(part.prefix()).and_then(|name| name.strip_suffix(".weight"));
    let ldm = ldm.expect("the name of a weight").replace('.', "_");
    let diffusers = key.diffusers.strip_suffix(".weight").expect("the name of a weight");
    let model = network(part);
    let mut names = vec![
        kohya,
        format!("{}{ldm}", lora_prefix(key).expect("it has a name")),
        format!("{model}.{diffusers}"),
        format!("base_model.model.{model}.{diffusers}"),
        // Of a file for one network (`save_lora_adapter`, `save_pretrained`).
        diffusers.to_owned(),
        format!("base_model.model.{diffusers}"),
    ];
    // diffusers of 2023: `attn1.processor.to_q_lora`.
    if let Some((attention, projection)) = diffusers.rsplit_once(".to_") {
        let projection = projection.trim_end_matches(".0");
        names.push(format!("{model}.{attention}.processor.to_{projection}_lora"));
        names.push(format!("{attention}.processor.to_{projection}_lora"));
    }
    names
}

/// Which of a module's tensors a name is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Down,
    Up,
    Mid,
    Alpha,
}

const ROLES: [(&str, Role); 11] = [
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_mid.weight", Role::Mid),
    (".alpha", Role::Alpha),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora_A.default.weight", Role::Down),
    (".lora_B.default.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    // Last, for they end in what others end in.
    (".lora.down.weight", Role::Down),
];

/// The relatives of LoRA that are told by a part of their names.
const OTHER_KINDS: [(&str, &str); 6] = [
    (".hada_w1", "a LoHa"),
    (".lokr_w1", "a LoKr"),
    (".oft_", "an OFT"),
    (".dora_scale", "a DoRA"),
    (".on_input", "an IA3"),
    (".diff", "full differences"),
];

fn role(name: &str) -> Option<(&str, Role)> {
    let of_table = ROLES.iter().find_map(|(end, role)| Some((name.strip_suffix(end)?, *role)));
    of_table
        .or_else(|| Some((name.strip_suffix(".lora.up.weight")?, Role::Up)))
        .or_else(|| Some((name.strip_suffix(".down.weight").filter(|n| n.ends_with("_lora"))?, Role::Down)))
        .or_else(|| Some((name.strip_suffix(".up.weight").filter(|n| n.ends_with("_lora"))?, Role::Up)))
}

/// A module as its tensors are found.
#[derive(Default)]
struct Parts {
    down: Option<String>,
    up: Option<String>,
    mid: Option<String>,
    alpha: Option<String>,
}

impl Lora {
    /// Opens a LoRA for a model of this configuration. Weights are not read yet, but for the scales.
    ///
    /// # Errors
    /// A file that cannot be read; that holds a checkpoint, a LoRA of another kind (LoHa, LoKr, ...) or for another
    /// architecture; that has one half of a module only, or matrices of other shapes than the weight asks for.
    pub fn open(path: impl Into<PathBuf>, config: &ModelConfig) -> Result<Self> {
        let path = path.into();
        let file = WeightFile::open(&path)?;
        check_kind(&path, &file)?;
        let keys = keys::all(config);
        let names: HashMap<_, _> =
            keys.iter().flat_map(|key| module_names(key).into_iter().map(move |name| (name, key))).collect();
        let (mut found, mut unused): (BTreeMap<&str, (&Key, Parts)>, _) = Default::default();
        for name in file.names() {
            let place = role(name).and_then(|(module, role)| Some((*names.get(module)?, role)));
            let Some((key, role)) = place else {
                let unused: &mut Vec<String> = &mut unused;
                unused.push(name.to_owned());
                continue;
            };
            let (_, parts) = found.entry(&key.ldm).or_insert_with(|| (key, Parts::default()));
            let slot = match role {
                Role::Down => &mut parts.down,
                Role::Up => &mut parts.up,
                Role::Mid => &mut parts.mid,
                Role::Alpha => &mut parts.alpha,
            };
            if slot.replace(name.to_owned()).is_some() {
                return Err(Error::Duplicate { path, tensor: name.to_owned() });
            }
        }
        if found.is_empty() {
            return Err(Error::LoraForeign { path, names: unused.into_iter().take(3).collect() });
        }
        let mut modules = BTreeMap::new();
        let adapter = Adapter::of(file.metadata());
        for (ldm, (key, parts)) in found {
            modules.insert(ldm.to_owned(), module(&path, &file, &adapter, key, parts)?);
        }
        Ok(Self { file, modules, unused })
    }

    /// Where the file lies, as given.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// What kohya's scripts tell of the training (`ss_...`), and the rest of the header's `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.file.metadata()
    }

    /// The modules by the LDM name of the weight that they change.
    pub fn modules(&self) -> &BTreeMap<String, LoraModule> {
        &self.modules
    }

    /// Tensors that belong to no weight of the model.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// A tensor by its name in the file ([`LoraModule::down`] and its like).
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        self.file.tensor(name)
    }
}

fn check_kind(path: &Path, file: &WeightFile) -> Result<()> {
    let other = |found| Error::NotLora { path: path.to_path_buf(), found };
    match detect::foreign(file) {
        Some(Architecture::Lora | Architecture::Unknown(_)) => {}
        Some(found) => return Err(other(found)),
        None => return Err(other(Architecture::StableDiffusion1)),
    }
    for (part, kind) in OTHER_KINDS {
        if file.names().any(|name| name.contains(part)) {
            return Err(Error::LoraKind { path: path.to_path_buf(), kind });
        }
    }
    let is_sdxl = |name: &str| {
        ["lora_te1_", "lora_te2_", "text_encoder_2."].iter().any(|start| name.starts_with(start))
    };
    match file.names().any(is_sdxl) {
        true => Err(other(Architecture::SdxlLora)),
        false => Ok(()),
    }
}

/// Checks the halves of a module against each other and against its weight.
fn module(path: &Path, file: &WeightFile, adapter: &Adapter, key: &Key, parts: Parts) -> Result<LoraModule> {
    let half = |tensor: &str| Error::LoraHalf { path: path.to_path_buf(), tensor: tensor.to_owned() };
    let (down, up) = match (parts.down, parts.up) {
        (Some(down), Some(up)) => (down, up),
        (Some(one), None) | (None, Some(one)) => return Err(half(&one)),
        (None, None) => return Err(half(&key.ldm)),
    };
    let (down_info, up_info) = (file.info(&down)?, file.info(&up)?);
    let rank = down_info.shape.first().copied().unwrap_or(0);
    let mid = parts.mid.map(|name| Ok::<_, Error>((file.info(&name)?, name))).transpose()?;
    if !fits(&key.shape, rank, &down_info, &up_info, mid.as_ref().map(|(info, _)| info)) {
        let shapes = LoraShapes { weight: key.shape.clone(), down: down_info.shape, up: up_info.shape };
        return Err(Error::LoraShape { path: path.to_path_buf(), tensor: down, shapes: Box::new(shapes) });
    }
    let alpha = match parts.alpha {
        Some(name) => file.tensor(&name)?.to_f32().first().copied().map_or(rank as f64, f64::from),
        None => role(&down).map_or(rank as f64, |(module, _)| adapter.alpha(module, rank)),
    };
    Ok(LoraModule { down, up, mid: mid.map(|(_, name)| name), rank, alpha })
}

fn fits(weight: &[usize], rank: usize, down: &TensorInfo, up: &TensorInfo, mid: Option<&TensorInfo>) -> bool {
    let matrix = |shape: &[usize]| matches!(shape, [_, _] | [_, _, 1, 1]);
    let kernel = weight.get(2..).unwrap_or(&[]);
    let down_kernel = down.shape.get(2..).unwrap_or(&[]);
    let kernel_fits = match mid {
        Some(mid) => {
            matrix(&down.shape)
                && mid.shape.get(..2) == Some(&[rank, rank])
                && mid.shape.get(2..) == Some(kernel)
        }
        // A 1x1 convolution may be given as a matrix, and a matrix as a 1x1 convolution.
        None => down_kernel == kernel || matrix(&down.shape) && kernel.iter().all(|size| *size == 1),
    };
    rank > 0
        && matrix(&up.shape)
        && up.shape[0] == weight[0]
        && up.shape[1] == rank
        && down.shape.get(1) == weight.get(1)
        && kernel_fits
}
