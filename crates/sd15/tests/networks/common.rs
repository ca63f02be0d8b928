//! What the parity tests share: the weights of a fixture, which are a function of their names, and its tensors.

use tch::{Device, Kind, Tensor};
use vodka_sd15::Result;
use vodka_testkit::Case;

/// The `count` numbers in -1..1 that belong to `name`; see `fixtures/sd15/common.py`.
fn uniform(name: &str, count: usize) -> impl Iterator<Item = f64> + use<> {
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    (1..=count as u64).map(move |i| {
        let x = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 * 2_f64.powi(-52) - 1.0
    })
}

/// The layers that write to a residual stream: faint in the cases that end in `_faint`.
const WRITERS: [&str; 12] = [
    "conv_in",
    "conv",
    "conv2",
    "conv_shortcut",
    "proj_in",
    "proj_out",
    "to_out.0",
    "ff.net.2",
    "out_proj",
    "fc2",
    "token_embedding",
    "position_embedding",
];

/// The parameter `name` of a case, as the generator made it.
pub fn weight(case: &str, name: &str, shape: &[i64]) -> Tensor {
    let (of, add) = match shape {
        [_] if name.ends_with("weight") => (0.2, 1.0),
        [_] => (0.2, 0.0),
        _ if name.ends_with("embedding.weight") => (3_f64.sqrt(), 0.0),
        _ => ((3.0 / shape[1..].iter().product::<i64>() as f64).sqrt(), 0.0),
    };
    let layer = format!(".{}", name.rsplit_once('.').map_or("", |(layer, _)| layer));
    let writes = WRITERS.iter().any(|writer| layer.ends_with(&format!(".{writer}")));
    let gain = if writes && case.ends_with("_faint") { 0.004 } else { 1.0 };
    let count = shape.iter().product::<i64>() as usize;
    let numbers = uniform(&format!("{case}/{name}"), count);
    let values: Vec<f32> = numbers.map(|u| (gain * (add + of * u)) as f32).collect();
    Tensor::from_slice(&values).view(shape)
}

/// The weights of a case, as a network asks for them.
pub fn weights(case: &str, kind: Kind) -> impl Fn(&str, &[i64]) -> Result<Tensor> + use<> {
    let case = case.to_owned();
    move |name, shape| Ok(weight(&case, name, shape).to_kind(kind))
}

/// The tensors of a golden case.
pub trait Golden {
    /// A stored tensor as fp32.
    fn tensor(&self, name: &str) -> Tensor;

    /// A stored tensor of whole numbers.
    fn integers(&self, name: &str) -> Tensor {
        self.tensor(name).to_kind(Kind::Int64)
    }

    /// Compares with the golden of this name, within its tolerance.
    fn check_tensor(&self, name: &str, actual: &Tensor);
}

impl Golden for Case {
    fn tensor(&self, name: &str) -> Tensor {
        let array = self.array(name);
        let shape: Vec<i64> = array.shape.iter().map(|n| *n as i64).collect();
        Tensor::from_slice(&array.data).view(&shape[..])
    }

    fn check_tensor(&self, name: &str, actual: &Tensor) {
        let shape: Vec<usize> = actual.size().iter().map(|n| *n as usize).collect();
        self.check(name, &values(actual), &shape);
    }
}

/// All elements, row-major.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).flatten(0, -1);
    Vec::try_from(&flat).expect("a flat tensor of fp32")
}
