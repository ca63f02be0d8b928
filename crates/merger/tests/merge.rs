//! Whole merges of tiny checkpoints, and the arithmetic against A1111's formulas.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod model;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use vodka_checkpoint::{Checkpoint, ModelConfig, Precision, Prediction, Result, Values, keys};
use vodka_merger::{
    Kept, MergePlan, MergeReport, Merged, Method, MismatchPolicy, OutputReport, Recipe, VaePolicy,
    add_difference, run, weighted_sum,
};
use vodka_stage::{Interrupt, Outcome, record_path};
use vodka_testkit::Case;

use model::model;

const UNET_TENSOR: &str = "model.diffusion_model.middle_block.0.in_layers.2.weight";
const VAE_TENSOR: &str = "first_stage_model.decoder.conv_in.weight";
const CLIP_TENSOR: &str = "cond_stage_model.transformer.text_model.final_layer_norm.weight";

/// A merge of one step.
#[derive(Debug, Clone)]
struct MergeConfig {
    method: Method,
    a: PathBuf,
    b: PathBuf,
    c: Option<PathBuf>,
    multiplier: f64,
    output: PathBuf,
    precision: Option<Precision>,
    vae: VaePolicy,
}

impl MergeConfig {
    fn plan(&self) -> vodka_merger::Result<MergePlan> {
        let mut paths = vec![self.a.clone(), self.b.clone()];
        paths.extend(self.c.clone());
        let params = vec![("multiplier".to_owned(), vec![self.multiplier.into()])];
        let mut recipe = Recipe::of_one(self.method, paths, &params, None, self.output.clone())?;
        (recipe.outputs[0].precision, recipe.outputs[0].vae) = (self.precision, self.vae);
        recipe.plan()
    }
}

/// A folder with the parents a, b and c.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
            world.write(name, &model(), seed, Precision::F16);
        }
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.safetensors"))
    }

    /// Writes a model of weights that fp16 holds exactly, zeros of both signs among them.
    fn write(&self, name: &str, model: &ModelConfig, seed: u32, precision: Precision) {
        let shapes: BTreeMap<_, _> = keys::all(model).into_iter().map(|key| (key.ldm, key.shape)).collect();
        let mut source = |name: &str| -> Result<Values> {
            let shape = shapes[name].clone();
            let value = |i: usize| match (i as u32).wrapping_add(seed).wrapping_mul(2_654_435_761) % 2048 {
                0..8 => -0.0,
                n => n as f32 / 1024.0 - 1.0,
            };
            Ok((shape.clone(), (0..shape.iter().product()).map(value).collect()))
        };
        vodka_checkpoint::write_checkpoint(self.at(name), model, precision, &BTreeMap::new(), &mut source)
            .unwrap();
    }

    fn sum(&self, multiplier: f64) -> MergeConfig {
        MergeConfig {
            method: Method::WeightedSum,
            a: self.at("a"),
            b: self.at("b"),
            c: None,
            multiplier,
            output: self.at("out"),
            precision: None,
            vae: VaePolicy::A,
        }
    }

    fn difference(&self, multiplier: f64) -> MergeConfig {
        MergeConfig { method: Method::AddDifference, c: Some(self.at("c")), ..self.sum(multiplier) }
    }

    fn open(&self, name: &str) -> Checkpoint {
        Checkpoint::open(self.at(name)).unwrap()
    }

    fn values(&self, file: &str, tensor: &str) -> Vec<f32> {
        self.open(file).tensor(tensor).unwrap().to_f32()
    }

    /// The error of a merge, which must leave nothing behind.
    fn said(&self, config: &MergeConfig) -> String {
        let error = run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| ()).unwrap_err();
        assert!(!self.at("out").exists() && !record_path(&self.at("out")).exists());
        error.to_string().replace(&format!("{}/", self.0.path().display()), "")
    }
}

fn merge(config: &MergeConfig) -> OutputReport {
    let MergeReport { outcome, mut outputs } =
        run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| ()).unwrap();
    assert_eq!((outcome, outputs.len()), (outputs[0].outcome, 1));
    outputs.remove(0)
}

/// Every weight of both files, bit for bit.
fn assert_same_weights(a: &Checkpoint, b: &Checkpoint, which: impl Fn(&str) -> bool) {
    for name in a.names().filter(|name| which(name)) {
        assert_eq!(a.tensor(name).unwrap(), b.tensor(name).unwrap(), "{name}");
    }
}

#[test]
fn the_arithmetic_is_that_of_a1111() {
    let case = Case::open("merger/a1111");
    let [a, b, c] = ["a", "b", "c"].map(|name| case.array(name).data);
    // As f64: the case's own reader rounds to f32, and 1 - M is taken before rounding.
    for (i, multiplier) in [0.0, 0.05, 0.3, 1.0 / 3.0, 0.5, 0.85, 1.0].into_iter().enumerate() {
        assert_eq!(case.array("multipliers").data[i], multiplier as f32);
        let mut merged = a.clone();
        weighted_sum(&mut merged, &b, multiplier);
        case.check(&format!("weighted_sum/{i}"), &merged, &[a.len()]);
        let mut merged = a.clone();
        add_difference(&mut merged, &b, &c, multiplier);
        case.check(&format!("add_difference/{i}"), &merged, &[a.len()]);
    }
}

#[test]
fn nothing_of_b_is_a_and_all_of_b_is_b() {
    let world = World::new();
    merge(&world.sum(0.0));
    assert_same_weights(&world.open("a"), &world.open("out"), |_| true);
    merge(&world.difference(0.0));
    assert_same_weights(&world.open("a"), &world.open("out"), |_| true);
    merge(&MergeConfig { vae: VaePolicy::Merge, ..world.sum(1.0) });
    assert_same_weights(&world.open("b"), &world.open("out"), |_| true);
    merge(&world.sum(1.0));
    let is_vae = |name: &str| name.starts_with(keys::VAE_PREFIX);
    assert_same_weights(&world.open("b"), &world.open("out"), |name| !is_vae(name));
    assert_same_weights(&world.open("a"), &world.open("out"), is_vae);
}

#[test]
fn sums_and_differences_are_of_the_right_parents() {
    let world = World::new();
    for tensor in [UNET_TENSOR, CLIP_TENSOR] {
        let [a, b, c] = ["a", "b", "c"].map(|file| world.values(file, tensor));
        merge(&MergeConfig { precision: Some(Precision::F32), ..world.sum(0.25) });
        let sum: Vec<_> = a.iter().zip(&b).map(|(a, b)| 0.75 * a + 0.25 * b).collect();
        assert_eq!(world.values("out", tensor), sum, "{tensor}");
        merge(&MergeConfig { precision: Some(Precision::F32), ..world.difference(-0.5) });
        let difference: Vec<_> = (0..a.len()).map(|i| a[i] - 0.5 * (b[i] - c[i])).collect();
        assert_eq!(world.values("out", tensor), difference, "{tensor}");
    }
    assert_eq!(world.values("out", VAE_TENSOR), world.values("a", VAE_TENSOR));
}

#[test]
fn the_precision_is_that_of_a_unless_told() {
    let world = World::new();
    assert_eq!(merge(&world.sum(0.5)).precision, Precision::F16);
    world.write("a", &model(), 1, Precision::F32);
    assert_eq!(merge(&world.sum(0.5)).precision, Precision::F32);
    assert_eq!(world.open("out").precision(), Precision::F32);
    let report = merge(&MergeConfig { precision: Some(Precision::F16), ..world.sum(0.5) });
    assert_eq!((report.precision, world.open("out").precision()), (Precision::F16, Precision::F16));
}

#[test]
fn a_second_run_does_nothing_and_a_changed_one_all() {
    let world = World::new();
    let first = merge(&world.sum(0.5));
    let total = keys::all(&model()).len() as u64;
    assert_eq!((first.outcome, first.tensors, first.equal), (Outcome::Done, total, 0));
    let bytes = fs::read(world.at("out")).unwrap();

    let mut events = Vec::new();
    let plan = world.sum(0.5).plan().unwrap();
    let second = run(&plan, &Interrupt::new(), &mut |event| events.push(event)).unwrap();
    assert_eq!((second.outcome, second.outputs[0].sha256), (Outcome::Unchanged, first.sha256));
    assert!(events.is_empty());

    assert_eq!(merge(&world.sum(0.25)).outcome, Outcome::Done);
    assert_ne!(fs::read(world.at("out")).unwrap(), bytes);
    world.write("b", &model(), 4, Precision::F16);
    assert_eq!(merge(&world.sum(0.25)).outcome, Outcome::Done);
    world.write("b", &model(), 2, Precision::F16);
    merge(&world.sum(0.5));
    assert_eq!(fs::read(world.at("out")).unwrap(), bytes, "the same merge makes the same bytes");
}

#[test]
fn the_result_names_its_ancestors() {
    let world = World::new();
    merge(&MergeConfig { output: world.at("first"), ..world.sum(0.5) });
    merge(&MergeConfig { a: world.at("first"), ..world.difference(1.0) });
    let hash = |name: &str| world.open(name).sha256().unwrap().to_string();
    let result = world.open("out");
    let json = |entry: &str| serde_json::from_str::<serde_json::Value>(&result.metadata()[entry]).unwrap();

    let recipe = json("sd_merge_recipe");
    assert_eq!(recipe["primary_model_hash"], hash("first"));
    assert_eq!(recipe["secondary_model_hash"], hash("b"));
    assert_eq!(recipe["tertiary_model_hash"], hash("c"));
    assert_eq!(recipe["interp_method"], "Add difference");
    assert_eq!(recipe["multiplier"], 1.0);
    assert_eq!(recipe["save_as_half"], true);
    assert_eq!(recipe["is_inpainting"], false);
    let said = |entry: &str| result.metadata()[&format!("modelspec.{entry}")].clone();
    assert_eq!(said("architecture"), "stable-diffusion-v1");
    assert_eq!(said("title"), "Add difference of first.safetensors, b.safetensors, c.safetensors");
    assert_eq!(said("merged_from"), "first.safetensors, b.safetensors, c.safetensors");

    let models = json("sd_merge_models");
    assert_eq!(models.as_object().unwrap().len(), 4, "first, b, c, and a through first");
    assert_eq!(models[hash("first")]["name"], "first.safetensors");
    assert_eq!(models[hash("first")]["sd_merge_recipe"]["interp_method"], "Weighted sum");
    assert_eq!(models[hash("a")]["sd_merge_recipe"], serde_json::Value::Null);
    assert_eq!(models[hash("a")]["legacy_hash"], "e3b0c442");
}

#[test]
fn parents_that_do_not_fit_are_refused_by_name() {
    let world = World::new();
    let mut wider = model();
    wider.clip.vocab_size += 1;
    wider.clip.layers -= 1;
    world.write("b", &wider, 2, Precision::F16);
    let said = world.said(&world.sum(0.5));
    let start = "`b.safetensors` does not fit `a.safetensors`: 16 missing: \
                 cond_stage_model.transformer.text_model.encoder.layers.1.layer_norm1.bias, ";
    let end = "1 of another shape: cond_stage_model.transformer.text_model.embeddings.token_embedding.weight \
               ([12, 6], expected [11, 6])";
    assert!(said.starts_with(start) && said.ends_with(end), "{said}");
    let said = world.said(&MergeConfig { a: world.at("b"), b: world.at("a"), ..world.sum(0.5) });
    assert!(said.contains("16 unexpected: "), "{said}");
}

#[test]
fn a_weight_that_is_not_finite_is_named_with_its_file() {
    let world = World::new();
    // In fp16 the last weight of a file is that of the tensor whose name sorts last.
    let mut bytes = fs::read(world.at("b")).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&0x7e00_u16.to_le_bytes());
    fs::write(world.at("b"), bytes).unwrap();
    let name = "model.diffusion_model.time_embed.2.weight";
    // The weight is looked at even where it would not count.
    for config in [world.sum(0.0), world.sum(0.5), world.difference(1.0)] {
        assert_eq!(
            world.said(&config),
            format!("`b.safetensors`: the tensor `{name}` holds NaN at element 255")
        );
    }
}

#[test]
fn an_interrupted_merge_leaves_nothing_behind() {
    let world = World::new();
    let plan = world.sum(0.5).plan().unwrap();
    let interrupt = Interrupt::new();
    let report = run(&plan, &interrupt, &mut |_| interrupt.raise()).unwrap();
    assert_eq!(report.outcome, Outcome::Interrupted);
    assert!(!world.at("out").exists() && !record_path(&world.at("out")).exists());
    assert_eq!(fs::read_dir(world.0.path()).unwrap().count(), 3);
    assert_eq!(merge(&world.sum(0.5)).outcome, Outcome::Done);
}

#[test]
fn a_diffusers_folder_can_be_a_parent() {
    let world = World::new();
    let folder = vodka_testkit::fixture("checkpoint/folder/model");
    merge(&MergeConfig { a: folder.clone(), b: folder.clone(), ..world.sum(0.5) });
    let (folder, merged) = (Checkpoint::open(folder).unwrap(), world.open("out"));
    assert_eq!(merged.config(), folder.config());
    assert_same_weights(&folder, &merged, |_| true);
}

#[test]
fn parents_whose_settings_differ_do_not_merge_however_alike_their_shapes() {
    let world = World::new();
    let other = ModelConfig { prediction: Prediction::VPrediction, ..model() };
    world.write("b", &other, 2, Precision::F16);
    let said = world.said(&world.sum(0.5));
    assert!(said.contains("`prediction` is \"v_prediction\", expected \"epsilon\""), "{said}");
}

/// Writes a recipe's files.
fn run_recipe(text: &str) -> MergeReport {
    let plan = Recipe::parse(text, Path::new("recipe.toml")).unwrap().plan().unwrap();
    run(&plan, &Interrupt::new(), &mut |_| ()).unwrap()
}

#[test]
fn a_graph_of_steps_is_what_its_steps_are_one_after_the_other() {
    let world = World::new();
    let path = |name: &str| world.at(name).display().to_string().replace('\\', "/");
    let [a, b, c, out] = ["a", "b", "c", "{multiplier}"].map(path);
    let report = run_recipe(&format!(
        "[parents]\na = '{a}'\nb = '{b}'\nc = '{c}'\n\
         [steps.mix]\nmethod = 'weighted-sum'\na = 'a'\nb = 'b'\nmultiplier = [0.25, 0.5]\n\
         [steps.added]\nmethod = 'add-difference'\na = 'mix'\nb = 'b'\nc = 'c'\nalpha = 0.5\n\
         [[outputs]]\nstep = 'added'\nfile = '{out}'\nprecision = 'fp32'\nvae = 'merge'\n"
    ));
    assert_eq!(report.outputs.len(), 2);
    for share in ["0.25", "0.5"] {
        let sum = MergeConfig {
            precision: Some(Precision::F32),
            vae: VaePolicy::Merge,
            ..world.sum(share.parse().unwrap())
        };
        merge(&MergeConfig { output: world.at("sum"), ..sum.clone() });
        merge(&MergeConfig {
            a: world.at("sum"),
            method: Method::AddDifference,
            c: Some(world.at("c")),
            multiplier: 0.5,
            ..sum
        });
        assert_same_weights(&world.open("out"), &world.open(share), |_| true);
    }
    // What is written says how to make it again, and makes the same bytes, however the file is called.
    let first = fs::read(world.at("0.25")).unwrap();
    let mut again = Recipe::read(&world.at("0.25")).unwrap();
    again.outputs[0].file = world.at("again");
    run(&again.plan().unwrap(), &Interrupt::new(), &mut |_| ()).unwrap();
    assert_eq!(fs::read(world.at("again")).unwrap(), first);
    world.write("b", &model(), 9, Precision::F16);
    let error = run(&again.plan().unwrap(), &Interrupt::new(), &mut |_| ()).unwrap_err().to_string();
    assert!(
        error.contains("b.safetensors` has the hash ") && error.contains("the recipe asks for "),
        "{error}"
    );
}

#[test]
fn block_weights_tell_tensors_apart() {
    let world = World::new();
    let path = |name: &str| world.at(name).display().to_string().replace('\\', "/");
    let [a, b, out] = ["a", "b", "out"].map(path);
    run_recipe(&format!(
        "method = 'weighted-sum'\na = '{a}'\nb = '{b}'\noutput = '{out}'\nprecision = 'fp32'\n\
         multiplier = {{ preset = 'OUT12_5', text_encoder = 0.25, select = [{{ keys = '*.in_layers.*', value = 1 }}] }}\n"
    ));
    let share = |tensor: &str, share: f32| {
        let [a, b] = ["a", "b"].map(|file| world.values(file, tensor));
        let expected: Vec<_> = a.iter().zip(&b).map(|(a, b)| (1.0 - share) * a + share * b).collect();
        assert_eq!(world.values("out", tensor), expected, "{tensor}");
    };
    share(CLIP_TENSOR, 0.25);
    share(UNET_TENSOR, 1.0);
    share("model.diffusion_model.middle_block.1.norm.weight", 0.5);
    share("model.diffusion_model.input_blocks.1.1.norm.weight", 0.0);
    share("model.diffusion_model.time_embed.0.weight", 0.0);
}

#[test]
fn a_selector_that_matches_nothing_is_told() {
    let world = World::new();
    let recipe = |select: &str| {
        let text = format!(
            "method = 'weighted-sum'\na = '{}'\nb = '{}'\noutput = '{}'\n\
             multiplier = {{ value = 0.5, select = [{{ {select}, value = 1 }}] }}\n",
            world.at("a").display(),
            world.at("b").display(),
            world.at("out").display()
        );
        let plan = Recipe::parse(&text, Path::new("recipe.toml")).unwrap().plan().unwrap();
        let said = run(&plan, &Interrupt::new(), &mut |_| ()).err().map(|error| error.to_string());
        said.map(|said| said.replace(&world.at("a").display().to_string(), "FILE"))
    };
    assert_eq!(
        recipe("keys = '*atn2*'").unwrap(),
        "the selector { keys = \"*atn2*\", value = 1.0 } of the step `merge` matches no tensor of `FILE`"
    );
    assert!(recipe("keys = '*norm*', block = 'OUT99'").unwrap().contains("block = \"OUT99\""));
    assert_eq!(recipe("keys = '*norm*', block = 'M00'"), None);
}

#[test]
fn a_result_without_a_file_is_what_the_file_would_hold() {
    let world = World::new();
    let config = world.difference(0.75);
    merge(&config);
    let (file, merged) = (world.open("out"), Merged::open(&config.plan().unwrap(), 0).unwrap());
    assert_eq!((merged.config(), merged.precision()), (file.config(), Precision::F16));
    assert!(merged.names().iter().map(String::as_str).eq(file.names()));
    for name in file.names() {
        assert_eq!(merged.tensor(name).unwrap(), file.tensor(name).unwrap(), "{name}");
    }
}

#[test]
fn what_is_not_merged_is_listed_with_the_reason() {
    let world = World::new();
    let report = merge(&world.sum(0.5));
    let vae: Vec<_> = keys::vae(&model().vae).into_iter().map(|key| key.ldm).collect();
    assert_eq!((report.kept.len(), &report.kept[0].why), (1, &Kept::Vae));
    assert_eq!(report.kept[0].tensors.len(), vae.len());

    let mut other = model();
    other.clip.vocab_size += 1;
    other.clip.layers -= 1;
    world.write("b", &other, 2, Precision::F16);
    let mut recipe = Recipe::of_one(
        Method::WeightedSum,
        vec![world.at("a"), world.at("b")],
        &[("alpha".to_owned(), vec![1.0.into()])],
        None,
        world.at("out"),
    )
    .unwrap();
    recipe.outputs[0].mismatched = MismatchPolicy::KeepA;
    let report = run(&recipe.plan().unwrap(), &Interrupt::new(), &mut |_| ()).unwrap();
    let kept: Vec<_> =
        report.outputs[0].kept.iter().map(|kept| (kept.why.clone(), kept.tensors.len())).collect();
    let b = || "b".to_owned();
    let expected = [
        (Kept::Vae, vae.len()),
        (Kept::Missing { parent: b() }, 16),
        (Kept::Shape { parent: b(), found: vec![12, 6] }, 1),
    ];
    assert_eq!(kept, expected);
    assert_eq!(world.values("out", UNET_TENSOR), world.values("b", UNET_TENSOR));
    let text = report.to_string();
    assert!(
        text.contains("; 16 are those of A, for `b` has none; 1 are those of A, for `b` has another shape"),
        "{text}"
    );
}

/// The reason for A's own tensor is of interest only where the result is A's.
#[test]
fn what_a_later_step_merges_is_not_listed() {
    let world = World::new();
    let mut other = model();
    other.clip.vocab_size += 1;
    world.write("b", &other, 2, Precision::F16);
    let path = |name: &str| world.at(name).display().to_string().replace('\\', "/");
    let [a, b, c, out] = ["a", "b", "c", "out"].map(path);
    let report = run_recipe(&format!(
        "[parents]\na = '{a}'\nb = '{b}'\nc = '{c}'\n\
         [steps.first]\nmethod = 'weighted-sum'\na = 'a'\nb = 'b'\nmultiplier = 0.5\n\
         [steps.second]\nmethod = 'weighted-sum'\na = 'first'\nb = 'c'\nmultiplier = 0.5\n\
         [[outputs]]\nstep = 'second'\nfile = '{out}'\nprecision = 'fp32'\nmismatched = 'keep-a'\n"
    ));
    let whys: Vec<_> = report.outputs[0].kept.iter().map(|kept| &kept.why).collect();
    assert_eq!(whys, [&Kept::Vae]);
    let name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight";
    let [a, c] = ["a", "c"].map(|file| world.values(file, name));
    let expected: Vec<_> = a.iter().zip(&c).map(|(a, c)| 0.5 * a + 0.5 * c).collect();
    assert_eq!(world.values("out", name), expected);
}

#[test]
fn outputs_of_unlike_models_are_each_what_they_are_alone() {
    let world = World::new();
    let mut wide = model();
    wide.unet.in_channels = 9;
    world.write("wide", &wide, 4, Precision::F16);
    let path = |name: &str| world.at(name).display().to_string().replace('\\', "/");
    let [a, b, wide] = ["a", "b", "wide"].map(path);
    let recipe = |outputs: &str| {
        run_recipe(&format!(
            "[parents]\na = '{a}'\nb = '{b}'\nwide = '{wide}'\n\
             [steps.narrow]\nmethod = 'weighted-sum'\na = 'a'\nb = 'b'\nmultiplier = 0.5\n\
             [steps.wide-sum]\nmethod = 'weighted-sum'\na = 'wide'\nb = 'b'\nmultiplier = 0.25\n{outputs}"
        ))
    };
    let output = |step: &str, file: &str| format!("[[outputs]]\nstep = '{step}'\nfile = '{}'\n", path(file));
    let both = recipe(&(output("wide-sum", "wide-1") + &output("narrow", "narrow-1")));
    assert_eq!((both.outcome, both.outputs.len()), (Outcome::Done, 2));
    recipe(&output("wide-sum", "wide-2"));
    recipe(&output("narrow", "narrow-2"));
    for name in ["wide", "narrow"] {
        let [one, two] = ["1", "2"].map(|n| fs::read(world.at(&format!("{name}-{n}"))).unwrap());
        assert!(one == two, "{name}");
    }
}

#[test]
fn a_step_that_two_names_mean_can_be_read_back_from_the_file() {
    let world = World::new();
    let path = |name: &str| world.at(name).display().to_string().replace('\\', "/");
    let [a, b, out] = ["a", "b", "{p.multiplier}"].map(path);
    run_recipe(&format!(
        "[parents]\na = '{a}'\nb = '{b}'\n\
         [steps.p]\nmethod = 'weighted-sum'\na = 'a'\nb = 'b'\nmultiplier = [0.25, 0.5]\n\
         [steps.q]\nmethod = 'weighted-sum'\na = 'a'\nb = 'b'\nmultiplier = 0.25\n\
         [steps.both]\nmethod = 'weighted-sum'\na = 'p'\nb = 'q'\nmultiplier = 0.5\n\
         [[outputs]]\nstep = 'both'\nfile = '{out}'\n"
    ));
    let checkpoint = world.open("0.5");
    let text = &checkpoint.metadata()[vodka_merger::RECIPE_KEY];
    let recipe = Recipe::parse(text, checkpoint.path()).unwrap();
    assert_eq!(recipe.steps.len(), 3, "{text}");
}

#[test]
fn a_merge_that_does_nothing_says_so() {
    let world = World::new();
    assert_eq!(merge(&world.sum(0.0)).same_as.as_deref(), Some("a"));
    assert_eq!(merge(&world.sum(0.5)).same_as, None);
    assert_eq!(merge(&world.sum(1.0)).same_as.as_deref(), Some("b"));
    // So little that fp16 does not see it.
    assert_eq!(merge(&world.sum(1e-9)).same_as.as_deref(), Some("a"));
    let report = merge(&MergeConfig { b: world.at("a"), ..world.sum(0.5) });
    assert_eq!(report.equal, (keys::all(&model()).len() - keys::vae(&model().vae).len()) as u64);
}

#[test]
fn four_channels_are_merged_into_a_model_that_takes_more() {
    // Inpainting, InstructPix2Pix.
    for channels in [9, 8] {
        four_are_merged_into(channels);
    }
    let world = World::new();
    for (name, channels) in [("a", 8), ("b", 9)] {
        let mut wide = model();
        wide.unet.in_channels = channels;
        world.write(name, &wide, 1, Precision::F16);
    }
    let said = world.said(&world.sum(0.25));
    assert!(said.contains("of another shape: model.diffusion_model.input_blocks.0.0.weight"), "{said}");
}

fn four_are_merged_into(channels: usize) {
    let world = World::new();
    let mut wide = model();
    wide.unet.in_channels = channels as i64;
    world.write("a", &wide, 1, Precision::F16);
    let report = merge(&MergeConfig { precision: Some(Precision::F32), ..world.sum(0.25) });
    let name = "model.diffusion_model.input_blocks.0.0.weight";
    let [a, b, out] = ["a", "b", "out"].map(|file| world.values(file, name));
    for (place, out) in out.iter().enumerate() {
        let (row, channel, kernel) = (place / 9 / channels, place / 9 % channels, place % 9);
        let expected = match channel {
            0..4 => 0.75 * a[place] + 0.25 * b[row * 36 + channel * 9 + kernel],
            _ => a[place],
        };
        assert_eq!(*out, expected, "{row} {channel} {kernel}");
    }
    assert!(
        report.kept.iter().any(|kept| kept.why == Kept::Channels { merged: 4 } && kept.tensors == [name])
    );
    let said = world_error(&MergeConfig {
        a: world.at("b"),
        b: world.at("a"),
        output: world.at("other"),
        ..world.sum(0.25)
    });
    assert!(said.contains("of another shape: model.diffusion_model.input_blocks.0.0.weight"), "{said}");
}

fn world_error(config: &MergeConfig) -> String {
    run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| ()).unwrap_err().to_string()
}

#[test]
fn too_large_for_fp16_is_an_error_that_says_what_to_do() {
    let world = World::new();
    let said = world.said(&world.difference(1e6));
    assert!(said.contains("more than fp16 can hold (65504): write fp32"), "{said}");
}
