//! A LoRA from the difference of two checkpoints, as kohya's `extract_lora_from_models.py` makes it.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use vodka_checkpoint::{
    Dtype, Part, Precision, SafetensorsWriter, TensorSpec, in_file_order,
    keys::{self, Key},
    lora_name, same_file,
};
use vodka_stage::{HashCache, Interrupt, Outcome, Report, RunKey, lossy, record_path};

use crate::{
    Error, Graph, MismatchPolicy, Operand, OutputPlan, Parent, Result, VaePolicy, eval::Evaluator,
    kernel::mix, run,
};

/// What to extract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtractConfig {
    /// The checkpoint that was trained.
    pub tuned: PathBuf,
    /// The checkpoint that it was trained from.
    pub base: PathBuf,
    /// The file to write.
    pub output: PathBuf,
    /// The rank of linear layers and 1x1 convolutions.
    pub rank: usize,
    /// The rank of the residual blocks' 3x3 convolutions; without it the residual blocks are left out, as by kohya.
    pub conv_rank: Option<usize>,
    /// The element type of the file.
    pub precision: Precision,
    /// The part of a module's numbers, in order, beyond which they are cut off; 1 for none.
    pub clamp_quantile: f64,
    /// The text encoder is left out where none of its weights has changed by more than this.
    pub min_difference: f64,
    /// The file that remembers hashes of checkpoints by path, size and time of change; none to hash them every time.
    #[serde(skip)]
    pub hash_cache: Option<PathBuf>,
}

/// What was extracted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExtractReport {
    /// How it ended.
    pub outcome: Outcome,
    /// The file.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Modules in it.
    pub modules: u64,
    /// Modules that are the same in both checkpoints, and left out.
    pub equal: u64,
    /// Whether the text encoder was left out, for it has hardly changed.
    pub without_text_encoder: bool,
    /// The part of the squared length of all differences that the file holds, before it is cut off and rounded.
    pub energy: f64,
}

impl Report for ExtractReport {
    fn outcome(&self) -> Outcome {
        self.outcome
    }
}

impl fmt::Display for ExtractReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.outcome == Outcome::Interrupted {
            return write!(f, "stopped; nothing was written");
        }
        if self.outcome == Outcome::Unchanged {
            return write!(f, "`{}` is up to date", self.path.display());
        }
        let Self { path, modules, equal, energy, .. } = self;
        let (path, percent) = (path.display(), 100.0 * energy);
        write!(f, "extracted {modules} modules into `{path}`: {percent:.2} % of the difference")?;
        if *equal > 0 {
            write!(f, "; {equal} modules are the same in both and left out")?;
        }
        if self.without_text_encoder {
            write!(f, "; the text encoder has hardly changed and is left out")?;
        }
        Ok(())
    }
}

/// A module's two matrices.
struct Extracted {
    key: Key,
    rank: usize,
    up: Vec<f32>,
    down: Vec<f32>,
}

/// Extracts a LoRA, unless it is there and of these checkpoints. `<output>.run.json` says what made it.
///
/// # Errors
/// Checkpoints that do not fit each other; a rank of 0; a quantile or difference that makes no sense; an output that is
/// an input, or cannot be written.
pub fn extract(
    config: &ExtractConfig,
    interrupt: &Interrupt,
    on_module: &mut dyn FnMut(u64, u64),
) -> Result<ExtractReport> {
    check(config)?;
    let evaluator = open(config)?;
    let Some(key) = key(config, interrupt)? else { return Ok(interrupted(config)) };
    let record = record_path(&config.output);
    if let Some(report) = key.made::<ExtractReport>(&record)? {
        let path = config.output.clone();
        return Ok(ExtractReport { outcome: Outcome::Unchanged, path, ..report });
    }
    let report = extract_from(&evaluator, config, interrupt, on_module)?;
    if report.outcome == Outcome::Done {
        key.write(&record, &[&config.output], &report)?;
    }
    Ok(report)
}

/// Of an extraction that was ended: nothing is written.
fn interrupted(config: &ExtractConfig) -> ExtractReport {
    ExtractReport {
        outcome: Outcome::Interrupted,
        path: config.output.clone(),
        modules: 0,
        equal: 0,
        without_text_encoder: false,
        energy: 0.0,
    }
}

/// All that a LoRA depends on; none where it was interrupted.
fn key(config: &ExtractConfig, interrupt: &Interrupt) -> Result<Option<RunKey>> {
    let mut cache = HashCache::open(config.hash_cache.as_deref());
    let Some(hashes) = cache.of(&[&config.tuned, &config.base], interrupt)? else { return Ok(None) };
    let ExtractConfig { rank, conv_rank, precision, clamp_quantile, min_difference, .. } = config;
    let settings = json!({"rank": rank, "conv_rank": conv_rank, "precision": precision,
        "clamp_quantile": clamp_quantile, "min_difference": min_difference});
    let key = RunKey::new("extract-lora", &settings, None);
    Ok(Some(key.input_hashed("tuned", &config.tuned, hashes[0]).input_hashed(
        "base",
        &config.base,
        hashes[1],
    )))
}

fn extract_from(
    evaluator: &Evaluator,
    config: &ExtractConfig,
    interrupt: &Interrupt,
    on_module: &mut dyn FnMut(u64, u64),
) -> Result<ExtractReport> {
    let all = keys::all(evaluator.config(Operand::Parent(0)));
    let mut wanted: Vec<_> = all.into_iter().filter(|key| rank_of(config, key).is_some()).collect();
    let without_text_encoder = !text_encoder_changed(evaluator, &wanted, config.min_difference)?;
    if without_text_encoder {
        wanted.retain(|key| Part::of(&key.ldm) != Some(Part::TextEncoder));
    }
    let (mut modules, mut equal, mut energy, mut held) = (Vec::new(), 0, 0.0, 0.0);
    for (i, keys) in wanted.chunks(rayon::current_num_threads()).enumerate() {
        if interrupt.is_raised() {
            return Ok(ExtractReport { equal, without_text_encoder, ..interrupted(config) });
        }
        let done = keys.par_iter().map(|key| module(evaluator, config, key)).collect::<Result<Vec<_>>>()?;
        for (found, of_difference, of_file) in done {
            energy += of_difference;
            held += of_file;
            match found {
                Some(found) => modules.push(found),
                None => equal += 1,
            }
        }
        on_module((i * rayon::current_num_threads() + keys.len()) as u64, wanted.len() as u64);
    }
    write(config, &modules)?;
    let (outcome, path) = (Outcome::Done, config.output.clone());
    let energy = if energy > 0.0 { held / energy } else { 1.0 };
    Ok(ExtractReport { outcome, path, modules: modules.len() as u64, equal, without_text_encoder, energy })
}

fn check(config: &ExtractConfig) -> Result<()> {
    let check = |name, found: f64, least: f64, most: f64| match (least..=most).contains(&found) {
        true => Ok(()),
        false => Err(Error::Param { name, found, expected: format!("{least} to {most}") }),
    };
    check("rank", config.rank as f64, 1.0, 4096.0)?;
    check("conv-rank", config.conv_rank.unwrap_or(1) as f64, 1.0, 4096.0)?;
    check("clamp-quantile", config.clamp_quantile, 0.5, 1.0)?;
    check("min-difference", config.min_difference, 0.0, f64::MAX)?;
    let path = config.output.clone();
    if path.extension().is_none_or(|extension| extension != "safetensors") {
        return Err(Error::OutputName { path });
    }
    match same_file(&config.tuned, &path) || same_file(&config.base, &path) {
        true => Err(Error::OutputIsInput { path }),
        false => Ok(()),
    }
}

fn open(config: &ExtractConfig) -> Result<Evaluator> {
    let parent = |name: &str, path: &Path| Parent {
        name: name.to_owned(),
        path: path.to_path_buf(),
        sha256: None,
        lora: false,
    };
    let parents = vec![parent("tuned", &config.tuned), parent("base", &config.base)];
    let evaluator = Evaluator::open(Graph { parents, steps: Vec::new() })?;
    let output = OutputPlan {
        path: config.output.clone(),
        operand: Operand::Parent(0),
        precision: None,
        vae: VaePolicy::A,
        mismatched: MismatchPolicy::Error,
    };
    run::check_fit(&evaluator, &output, 0, 1)?;
    Ok(evaluator)
}

/// The rank of a weight's module; none for what is left out: kohya takes the transformers, and with `conv_rank` the
/// residual blocks, but never the time embedding and the first and last convolution.
fn rank_of(config: &ExtractConfig, key: &Key) -> Option<usize> {
    lora_name(key)?;
    let name = &key.diffusers;
    let small = key.shape.iter().skip(2).all(|size| *size == 1);
    let in_transformer =
        name.contains(".attentions.") || name.contains(".self_attn.") || name.contains(".mlp.");
    let in_residual = [".resnets.", ".downsamplers.", ".upsamplers."].iter().any(|part| name.contains(part));
    match in_residual {
        true => config.conv_rank.map(|conv_rank| if small { config.rank } else { conv_rank }),
        false => in_transformer.then_some(config.rank),
    }
}

/// Tuned minus base.
fn difference(evaluator: &Evaluator, key: &Key) -> Result<Vec<f32>> {
    let operands = [Operand::Parent(0), Operand::Parent(1)];
    let plan = evaluator.plan(&key.ldm, &operands.map(|operand| (operand, false)))?;
    let mut difference = Vec::with_capacity(plan.len());
    for range in plan.chunks() {
        evaluator.chunk(&plan, &operands, range, &mut |_, values| {
            difference.extend(values[0].iter().zip(values[1]).map(|(tuned, base)| tuned - base));
        })?;
    }
    Ok(difference)
}

fn text_encoder_changed(evaluator: &Evaluator, keys: &[Key], least: f64) -> Result<bool> {
    for key in keys.iter().filter(|key| Part::of(&key.ldm) == Some(Part::TextEncoder)) {
        if difference(evaluator, key)?.iter().any(|d| f64::from(d.abs()) > least) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The matrices of a module (none where nothing has changed), and the squared lengths of the difference and of what they hold.
fn module(evaluator: &Evaluator, config: &ExtractConfig, key: &Key) -> Result<(Option<Extracted>, f64, f64)> {
    let values = difference(evaluator, key)?;
    let energy: f64 = values.iter().map(|d| f64::from(*d) * f64::from(*d)).sum();
    if energy == 0.0 {
        return Ok((None, 0.0, 0.0));
    }
    let (rows, inputs) = (key.shape[0], key.shape[1]);
    let columns = values.len() / rows;
    let rank = rank_of(config, key).expect("keys are chosen by it").min(rows).min(inputs);
    let matrix = Array2::from_shape_vec((rows, columns), values).expect("as many as the shape says");
    let (up, down, held) = cut_factors(&matrix, rank, config.clamp_quantile);
    Ok((Some(Extracted { key: key.clone(), rank, up, down }), energy, held))
}

/// The matrices of a difference, row-major, cut at the quantile; and the squared length of what they hold before that.
fn cut_factors(difference: &Array2<f32>, rank: usize, quantile: f64) -> (Vec<f32>, Vec<f32>, f64) {
    let matrix = difference.mapv(f64::from);
    let (up, down) = factors(matrix.view(), rank, mix(matrix.ncols() as u64));
    let held = up.iter().map(|u| u * u).sum();
    let mut up: Vec<f32> = up.iter().map(|u| *u as f32).collect();
    let mut down: Vec<f32> = down.iter().map(|v| *v as f32).collect();
    clamp(&mut up, &mut down, quantile);
    (up, down, held)
}

/// kohya's cut: at the quantile of all numbers of both matrices, on both sides.
fn clamp(up: &mut [f32], down: &mut [f32], quantile: f64) {
    if quantile >= 1.0 {
        return;
    }
    let mut all: Vec<f32> = up.iter().chain(&*down).copied().collect();
    all.sort_unstable_by(f32::total_cmp);
    let place = quantile * (all.len() - 1) as f64;
    let (below, above) = (all[place.floor() as usize], all[place.ceil() as usize]);
    let limit = (f64::from(below) + place.fract() * f64::from(above - below)) as f32;
    if limit > 0.0 {
        up.iter_mut().chain(down).for_each(|x| *x = x.clamp(-limit, limit));
    }
}

/// The best approximation of a rank, as (rows, rank) with the singular values in it and (rank, columns) with orthonormal
/// rows; the largest element of each row of the second is positive, which no decomposition says.
///
/// The leading eigenvectors of the smaller Gram matrix, by subspace iteration until these hold no more of it.
fn factors(matrix: ArrayView2<f64>, rank: usize, seed: u64) -> (Array2<f64>, Array2<f64>) {
    let wide = matrix.nrows() <= matrix.ncols();
    let gram = if wide { matrix.dot(&matrix.t()) } else { matrix.t().dot(&matrix) };
    let vectors = leading(&gram, rank, seed);
    let (mut up, mut down) = match wide {
        true => (vectors.clone(), vectors.t().dot(&matrix)),
        false => (matrix.dot(&vectors), vectors.t().to_owned()),
    };
    for k in 0..rank {
        let (mut column, mut row) = (up.column_mut(k), down.row_mut(k));
        let largest = row.iter().fold(0.0_f64, |most, x| if x.abs() > most.abs() { *x } else { most });
        let sign = if largest < 0.0 { -1.0 } else { 1.0 };
        let length = if wide { row.dot(&row).sqrt() } else { 1.0 };
        row.mapv_inplace(|x| if length > 0.0 { sign * x / length } else { 0.0 });
        column.mapv_inplace(|x| sign * x * length);
    }
    (up, down)
}

/// The eigenvectors of the largest eigenvalues of a symmetric matrix, as columns.
fn leading(gram: &Array2<f64>, rank: usize, seed: u64) -> Array2<f64> {
    const SPARE: usize = 16;
    const MOST: usize = 100;
    let n = gram.nrows();
    let width = (rank + SPARE).min(n);
    let random = |i: usize| mix(seed.wrapping_add(i as u64)) as f64 / u64::MAX as f64 - 0.5;
    let mut basis = match width == n {
        true => Array2::eye(n),
        false => Array2::from_shape_fn((width, n), |(j, i)| random(i * width + j)),
    };
    orthonormalise(&mut basis);
    let mut image = basis.dot(gram);
    let mut before = 0.0;
    for _ in 0..if width == n { 0 } else { MOST } {
        basis = image;
        orthonormalise(&mut basis);
        image = basis.dot(gram);
        let held = (&basis * &image).sum();
        if held - before <= 1e-12 * held {
            break;
        }
        before = held;
    }
    let (values, vectors) = eigen(basis.dot(&image.t()));
    let mut order: Vec<_> = (0..width).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    basis.t().dot(&vectors.select(Axis(1), &order[..rank]))
}

/// Gram and Schmidt by rows, twice over, which is as good as it gets; a row without a direction of its own becomes zero.
fn orthonormalise(basis: &mut Array2<f64>) {
    for k in 0..basis.nrows() {
        let (done, mut rest) = basis.multi_slice_mut((s![..k, ..], s![k, ..]));
        for row in done.rows().into_iter().chain(done.rows()) {
            let share = row.dot(&rest);
            rest.scaled_add(-share, &row);
        }
        let length = rest.dot(&rest).sqrt();
        rest.mapv_inplace(|x| if length > 1e-150 { x / length } else { 0.0 });
    }
}

/// Eigenvalues and eigenvectors (columns) of a small symmetric matrix, by Jacobi's rotations.
fn eigen(mut a: Array2<f64>) -> (Vec<f64>, Array2<f64>) {
    const SWEEPS: usize = 60;
    let n = a.nrows();
    let mut vectors = Array2::eye(n);
    let total: f64 = a.iter().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let off: f64 = (0..n).map(|i| (0..i).map(|j| a[[i, j]] * a[[i, j]]).sum::<f64>()).sum();
        if off <= 1e-30 * total {
            break;
        }
        for i in 0..n {
            for j in i + 1..n {
                if a[[i, j]] != 0.0 {
                    rotate(&mut a, &mut vectors, i, j);
                }
            }
        }
    }
    (a.diag().to_vec(), vectors)
}

/// One rotation, which makes the element (i, j) zero (Golub and Van Loan, Matrix Computations, 8.5).
fn rotate(a: &mut Array2<f64>, vectors: &mut Array2<f64>, i: usize, j: usize) {
    let tau = (a[[j, j]] - a[[i, i]]) / (2.0 * a[[i, j]]);
    let t = tau.signum() / (tau.abs() + tau.hypot(1.0));
    let t = if tau == 0.0 { 1.0 } else { t };
    let cos = 1.0 / t.hypot(1.0);
    let sin = t * cos;
    for k in 0..a.nrows() {
        let (x, y) = (a[[k, i]], a[[k, j]]);
        (a[[k, i]], a[[k, j]]) = (cos * x - sin * y, sin * x + cos * y);
    }
    for k in 0..a.nrows() {
        let (x, y) = (a[[i, k]], a[[j, k]]);
        (a[[i, k]], a[[j, k]]) = (cos * x - sin * y, sin * x + cos * y);
        let (x, y) = (vectors[[k, i]], vectors[[k, j]]);
        (vectors[[k, i]], vectors[[k, j]]) = (cos * x - sin * y, sin * x + cos * y);
    }
}

fn write(config: &ExtractConfig, modules: &[Extracted]) -> Result<()> {
    let dtype: Dtype = config.precision.dtype();
    let mut values = BTreeMap::new();
    let mut specs = Vec::new();
    for Extracted { key, rank, up, down } in modules {
        let module = lora_name(key).expect("modules have names");
        let ones = vec![1; key.shape.len() - 2];
        let up_shape = [vec![key.shape[0], *rank], ones].concat();
        let down_shape = [vec![*rank], key.shape[1..].to_vec()].concat();
        let parts = [
            ("lora_up.weight", up_shape, up.clone()),
            ("lora_down.weight", down_shape, down.clone()),
            ("alpha", Vec::new(), vec![*rank as f32]),
        ];
        for (part, shape, numbers) in parts {
            let name = format!("{module}.{part}");
            values.insert(name.clone(), numbers);
            specs.push(TensorSpec { name, dtype, shape });
        }
    }
    in_file_order(&mut specs);
    let arguments = config.conv_rank.map_or_else(
        || "{}".to_owned(),
        |rank| format!("{{\"conv_dim\": \"{rank}\", \"conv_alpha\": \"{rank}.0\"}}"),
    );
    let metadata = [
        ("ss_v2", "False".to_owned()),
        ("ss_base_model_version", "sd_v1".to_owned()),
        ("ss_network_module", "networks.lora".to_owned()),
        ("ss_network_dim", config.rank.to_string()),
        ("ss_network_alpha", format!("{}.0", config.rank)),
        ("ss_network_args", arguments),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into_iter().collect();
    let writer = SafetensorsWriter::create(&config.output, specs, &metadata)?;
    for (index, spec) in writer.specs().iter().enumerate() {
        let numbers = &values[&spec.name];
        let mut bytes = vec![0; numbers.len() * config.precision.size()];
        crate::merged::encode(&config.output, &spec.name, config.precision, 0, numbers, &mut bytes)?;
        writer.write_at(index, 0, &bytes)?;
    }
    Ok(writer.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
        let number =
            |i: usize| mix(seed.wrapping_mul(1000).wrapping_add(i as u64)) as f64 / u64::MAX as f64 - 0.5;
        Array2::from_shape_fn((rows, columns), |(i, j)| number(i * columns + j))
    }

    #[test]
    fn matrices_are_those_of_kohyas_script() {
        let case = vodka_testkit::Case::open("merger/extract_lora");
        for i in 0..3 {
            let [difference, up, quantile] =
                ["difference", "up", "quantile"].map(|name| case.array(&format!("{name}/{i}")));
            let (rows, columns, rank) = (difference.shape[0], difference.shape[1], up.shape[1]);
            let matrix = Array2::from_shape_vec((rows, columns), difference.data).unwrap();
            let (up, down, _) = cut_factors(&matrix, rank, f64::from(quantile.data[0]));
            case.check(&format!("up/{i}"), &up, &[rows, rank]);
            case.check(&format!("down/{i}"), &down, &[rank, columns]);
        }
    }

    #[test]
    fn a_matrix_of_the_rank_is_found_again() {
        for (rows, columns) in [(40, 60), (60, 40), (12, 12), (5, 70)] {
            let matrix = random(rows, 4, 1).dot(&random(4, columns, 2));
            let (up, down) = factors(matrix.view(), 4, 3);
            let worst = (&up.dot(&down) - &matrix).iter().fold(0.0_f64, |worst, x| worst.max(x.abs()));
            assert!(worst < 1e-7, "{rows} x {columns}: {worst}");
            let unit = down.dot(&down.t()) - Array2::<f64>::eye(4);
            assert!(unit.iter().all(|x| x.abs() < 1e-7));
        }
    }

    /// What the best approximation leaves is what the smaller singular values hold (Eckart and Young).
    #[test]
    fn nothing_of_the_rank_is_nearer() {
        let matrix = random(50, 80, 4);
        let (values, _) = eigen(matrix.dot(&matrix.t()));
        let mut values = values;
        values.sort_by(f64::total_cmp);
        let left: f64 = values[..50 - 6].iter().sum();
        let (up, down) = factors(matrix.view(), 6, 5);
        let rest = &matrix - &up.dot(&down);
        let found: f64 = rest.iter().map(|x| x * x).sum();
        assert!((found - left).abs() < 1e-6 * left, "{found}, at best {left}");
    }
}
