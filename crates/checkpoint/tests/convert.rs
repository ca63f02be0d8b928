//! From one form to another, and back: nothing is lost that the form can hold.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use common::{Raw, raw, tiny, tiny_with_defaults, weights, write_raw};
use safetensors::Dtype as FileDtype;
use vodka_checkpoint::{
    CONFIG_KEY, Checkpoint, Dtype, Ema, Format, ModelConfig, Part, Precision, WeightFile,
    convert::{self, ConvertConfig, ConvertReport, PositionIds, Target, Vae},
    ema_name,
    inspect::{Depth, inspect},
    keys,
};
use vodka_stage::{Interrupt, Outcome, Report, RunRecord, hash_file, record_path};

const POSITION_IDS: &str = "cond_stage_model.transformer.text_model.embeddings.position_ids";

struct World(tempfile::TempDir);

impl World {
    /// A folder with `in.safetensors`: all that the original trainer leaves in a file.
    fn new(config: &ModelConfig) -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        world.write("in.safetensors", config, &full(config));
        world
    }

    fn write(&self, name: &str, config: &ModelConfig, tensors: &Raw) {
        let text = serde_json::to_string(config).unwrap();
        write_raw(
            &self.at(name),
            tensors,
            &[(CONFIG_KEY, &text), ("author", "nobody"), ("modelspec.hash_sha256", "0x1")],
        );
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self, input: &str, output: &str) -> ConvertConfig {
        ConvertConfig::new(self.at(input), self.at(output))
    }

    fn convert(&self, input: &str, output: &str, change: impl FnOnce(&mut ConvertConfig)) -> ConvertReport {
        let mut config = self.config(input, output);
        change(&mut config);
        convert::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| ()).unwrap()
    }

    /// What it says when it fails.
    fn says(&self, input: &str, output: &str, change: impl FnOnce(&mut ConvertConfig)) -> String {
        let mut config = self.config(input, output);
        change(&mut config);
        let result = config.plan().and_then(|plan| convert::run(&plan, &Interrupt::new(), &mut |_| ()));
        let error = result.unwrap_err();
        let source =
            std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        format!("{error}{source}").replace(&format!("{}/", self.0.path().display()), "")
    }

    fn open(&self, name: &str) -> Checkpoint {
        Checkpoint::open(self.at(name)).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".run.json"))
            .collect();
        names.sort();
        names
    }
}

/// A model with an EMA copy, buffers, and `position_ids` that somebody has averaged.
fn full(config: &ModelConfig) -> Raw {
    let mut tensors = raw(config);
    for key in keys::unet(&config.unet) {
        let name = ema_name(&key.ldm).unwrap();
        let values = weights(&name, key.shape.iter().product());
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.insert(name, (FileDtype::F32, key.shape, bytes));
    }
    tensors.insert("model_ema.num_updates".into(), (FileDtype::I32, vec![], vec![7, 0, 0, 0]));
    tensors.insert("betas".into(), (FileDtype::F64, vec![2], vec![1; 16]));
    let positions = (0..config.clip.max_positions).flat_map(|i| (i as f32 + 0.25).to_le_bytes()).collect();
    tensors.insert(
        POSITION_IDS.into(),
        (FileDtype::F32, vec![1, config.clip.max_positions as usize], positions),
    );
    tensors
}

/// All tensors of a file under the names in it.
fn all(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let file = WeightFile::open(path).unwrap();
    let tensor = |name: &str| {
        let view = file.tensor(name).unwrap();
        (name.to_owned(), (view.dtype, view.shape.clone(), view.data.to_vec()))
    };
    file.names().map(tensor).collect()
}

/// The weights of a model: all must be alike, bit for bit.
fn assert_same_model(a: &Checkpoint, b: &Checkpoint) {
    assert_eq!(a.config(), b.config());
    assert!(a.names().eq(b.names()));
    for name in a.names() {
        let (left, right) = (a.tensor(name).unwrap(), b.tensor(name).unwrap());
        assert!(left == right, "{name}: {:?} {:?}", left.dtype, right.dtype);
    }
}

#[test]
fn every_form_holds_the_model_bit_for_bit() {
    for config in [tiny(), tiny_with_defaults()] {
        let world = World::new(&config);
        let report = world.convert("in.safetensors", "a.ckpt", |_| ());
        assert_eq!((report.outcome, report.converted), (Outcome::Done, 0));
        assert_eq!(report.position_ids, PositionIds::Repaired);
        assert_eq!(report.dropped_metadata, ["modelspec.hash_sha256"]);
        world.convert("a.ckpt", "b.safetensors", |_| ());
        let (input, output) = (all(&world.at("in.safetensors")), all(&world.at("b.safetensors")));
        assert_eq!(input.len(), output.len());
        for (name, tensor) in &input {
            match name.as_str() {
                POSITION_IDS => assert_eq!(output[name].0, Dtype::I64),
                _ => assert!(output[name] == *tensor, "{name}"),
            }
        }
        assert_eq!(all(&world.at("a.ckpt")), output);
        let back = world.open("b.safetensors");
        assert_eq!(back.metadata()["author"], "nobody");
        assert_eq!((back.ema(), world.open("a.ckpt").format()), (Ema::Beside, Format::TorchZip));
        back.verify().unwrap();

        // A folder holds no more than the weights.
        let report = world.convert("a.ckpt", "folder", |_| ());
        assert_eq!(report.dropped.len(), keys::unet(&config.unet).len() + 2);
        assert!(report.to_string().contains("\ndropped metadata: author"), "{report}");
        assert_same_model(&world.open("folder"), &back);
        world.convert("folder", "c.safetensors", |_| ());
        assert_same_model(&world.open("c.safetensors"), &back);
        // The same input makes the same bytes, whatever the way.
        world.convert("c.safetensors", "d.ckpt", |_| ());
        world.convert("d.ckpt", "e.safetensors", |_| ());
        assert_eq!(
            fs::read(world.at("c.safetensors")).unwrap(),
            fs::read(world.at("e.safetensors")).unwrap()
        );
    }
}

#[test]
fn precision_is_exact_where_it_can_be_and_told_where_not() {
    let config = tiny();
    let world = World::new(&config);
    let report = world.convert("in.safetensors", "wide.safetensors", |c| {
        c.precision = Some(Precision::F32);
        c.prune = true;
    });
    assert_eq!(report.converted, keys::all(&config).len() as u64);
    world.convert("wide.safetensors", "half.safetensors", |c| c.precision = Some(Precision::F16));
    assert_eq!(world.open("half.safetensors").precision(), Precision::F16);
    assert_same_model(&world.open("half.safetensors"), &world.open("in.safetensors"));
    world.convert("wide.safetensors", "bf.ckpt", |c| c.precision = Some(Precision::BF16));
    let name = "model.diffusion_model.out.2.weight";
    let (wide, bf) = (world.open("wide.safetensors"), world.open("bf.ckpt"));
    let expected: Vec<_> =
        wide.tensor(name).unwrap().to_f32().into_iter().map(|x| half::bf16::from_f32(x).to_f32()).collect();
    assert_eq!((bf.precision(), bf.tensor(name).unwrap().to_f32()), (Precision::BF16, expected));

    let mut tensors = raw(&config);
    let values = [1.0_f32, 70_000.0, -1e6, f32::NAN];
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    tensors.insert("model.diffusion_model.out.2.bias".into(), (FileDtype::F32, vec![4], bytes));
    world.write("large.safetensors", &config, &tensors);
    let report =
        world.convert("large.safetensors", "small.safetensors", |c| c.precision = Some(Precision::F16));
    assert_eq!((report.outcome, report.not_finite), (Outcome::Skipped, 1));
    let said = report.to_string();
    assert!(
        said.contains(
            "`model.diffusion_model.out.2.bias`: 2 values became infinite, the largest was 1000000"
        ),
        "{said}"
    );
    // Found there another time, it lacks the same values, and is told so.
    let again =
        world.convert("large.safetensors", "small.safetensors", |c| c.precision = Some(Precision::F16));
    assert_eq!((again.outcome, Report::outcome(&again)), (Outcome::Unchanged, Outcome::Skipped));
    let lost = said.split_once("\nthe input holds").unwrap().1;
    let small = world.at("small.safetensors");
    assert_eq!(again.to_string(), format!("`{}` is up to date\nthe input holds{lost}", small.display()));
    let report =
        world.convert("large.safetensors", "bf.safetensors", |c| c.precision = Some(Precision::BF16));
    assert_eq!((report.outcome, report.overflowed.len()), (Outcome::Done, 0));
}

#[test]
fn the_ema_copy_is_dropped_or_used() {
    let config = tiny();
    let world = World::new(&config);
    let report = world.convert("in.safetensors", "pruned.safetensors", |c| c.prune = true);
    let unet = keys::unet(&config.unet).len();
    assert_eq!(report.dropped.len(), unet + 2, "{:?}", report.dropped);
    let pruned = world.open("pruned.safetensors");
    assert_eq!((pruned.ema(), pruned.extras().count()), (Ema::None, 1));
    assert_same_model(&pruned, &world.open("in.safetensors"));

    world.convert("in.safetensors", "ema.ckpt", |c| c.use_ema = true);
    let ema = world.open("ema.ckpt");
    assert_eq!(ema.ema(), Ema::None);
    let name = "model.diffusion_model.input_blocks.0.0.weight";
    let copy = ema_name(name).unwrap();
    assert_eq!(copy, "model_ema.diffusion_modelinput_blocks00weight");
    let found = ema.tensor(name).unwrap();
    assert_eq!((found.dtype, found.to_f32()), (Dtype::F32, weights(&copy, found.numel())));

    // Where there is nothing else, it is the model.
    let mut only = full(&config);
    only.retain(|name, _| !name.starts_with(keys::UNET_PREFIX));
    world.write("only.safetensors", &config, &only);
    assert_eq!(world.open("only.safetensors").ema(), Ema::Only);
    world.convert("only.safetensors", "from_only.safetensors", |_| ());
    assert_same_model(&world.open("from_only.safetensors"), &ema);
    // Its shapes tell the configuration as well.
    let defaults = tiny_with_defaults();
    let mut only = full(&defaults);
    only.retain(|name, _| !name.starts_with(keys::UNET_PREFIX));
    write_raw(&world.at("shapes.safetensors"), &only, &[]);
    assert_eq!(world.open("shapes.safetensors").config(), &defaults);

    assert_eq!(
        world.says("pruned.safetensors", "x.safetensors", |c| c.use_ema = true),
        "`pruned.safetensors` has no EMA weights (`model_ema.`)"
    );
}

#[test]
fn a_vae_is_baked_or_dropped() {
    let config = tiny_with_defaults();
    let world = World::new(&config);
    let report = world.convert("in.safetensors", "bare.safetensors", |c| c.vae = Vae::Drop);
    let vae = keys::vae(&config.vae).len();
    assert_eq!(report.dropped.len(), vae);
    let bare = world.open("bare.safetensors");
    assert!(bare.has(Part::Unet) && bare.has(Part::TextEncoder) && !bare.has(Part::Vae));
    assert_eq!(bare.check_names().unwrap_err().to_string().split('`').nth(2), Some(" has no VAE"));
    assert_eq!(world.says("bare.safetensors", "folder", |_| ()), "`bare.safetensors` has no VAE");

    // As A1111's users keep VAEs: LDM names without the prefix, a loss beside.
    let mut tensors = Raw::new();
    for key in keys::vae(&config.vae) {
        let name = key.ldm.strip_prefix(keys::VAE_PREFIX).unwrap().to_owned();
        let bytes = vec![0x3c; 2 * key.shape.iter().product::<usize>()];
        tensors.insert(name, (FileDtype::F16, key.shape, bytes));
    }
    tensors.insert("loss.logvar".into(), (FileDtype::F32, vec![], vec![0; 4]));
    write_raw(&world.at("vae.safetensors"), &tensors, &[]);
    let baked = |name: &str| {
        let checkpoint = world.open(name);
        checkpoint.verify().unwrap();
        let bias = checkpoint.tensor("first_stage_model.decoder.conv_out.bias").unwrap();
        assert!(bias.data.iter().all(|byte| *byte == 0x3c), "{name}");
    };
    let bake = |input: &str, vae: &str, output: &str| {
        world.convert(input, output, |c| c.vae = Vae::Bake(world.at(vae)));
        baked(output);
    };
    bake("bare.safetensors", "vae.safetensors", "a.safetensors");
    bake("in.safetensors", "vae.safetensors", "b.ckpt");
    bake("bare.safetensors", "b.ckpt", "c.safetensors");
    bake("bare.safetensors", "vae.safetensors", "folder");
    bake("bare.safetensors", "folder", "d.safetensors");
    bake("bare.safetensors", "folder/vae", "e.safetensors");
    bake("bare.safetensors", "folder/vae/diffusion_pytorch_model.safetensors", "f.safetensors");
    // Without its configuration, shapes tell.
    fs::copy(world.at("folder/vae/diffusion_pytorch_model.safetensors"), world.at("g.safetensors")).unwrap();
    bake("bare.safetensors", "g.safetensors", "h.safetensors");

    // A VAE alone may change its form, and its names.
    world.convert("vae.safetensors", "vae.pt", |_| ());
    assert_eq!(all(&world.at("vae.pt")), all(&world.at("vae.safetensors")));
    let report = world.convert("folder/vae", "vae2.safetensors", |_| ());
    assert_eq!(report.tensors as usize, vae);
    bake("bare.safetensors", "vae2.safetensors", "i.safetensors");
    bake("bare.safetensors", "vae.pt", "j.safetensors");

    assert_eq!(
        world.says("in.safetensors", "x.safetensors", |c| c.vae = Vae::Bake(world.at("bare.safetensors"))),
        "`bare.safetensors` has no VAE"
    );
    let lora =
        Raw::from([("lora_unet_x.lora_down.weight".to_owned(), (FileDtype::F16, vec![1], vec![0; 2]))]);
    write_raw(&world.at("lora.safetensors"), &lora, &[]);
    assert_eq!(
        world.says("in.safetensors", "x.safetensors", |c| c.vae = Vae::Bake(world.at("lora.safetensors"))),
        "`lora.safetensors` is a LoRA, expected a VAE or a checkpoint with one"
    );
    tensors.remove("decoder.conv_out.bias").unwrap();
    write_raw(&world.at("vae.safetensors"), &tensors, &[]);
    assert_eq!(
        world.says("in.safetensors", "x.safetensors", |c| c.vae = Vae::Bake(world.at("vae.safetensors"))),
        "`vae.safetensors` does not fit its architecture: 1 missing: first_stage_model.decoder.conv_out.bias"
    );
}

#[test]
fn folders_of_shards_and_pickles_are_read() {
    let config = tiny();
    let world = World::new(&config);
    world.convert("in.safetensors", "folder", |_| ());
    let expected = world.open("folder");
    world.convert("in.safetensors", "other", |_| ());
    // The UNet in two shards, the text encoder as a pickle, the VAE as an fp16 variant.
    let unet = world.at("other/unet/diffusion_pytorch_model.safetensors");
    let (mut shards, mut map) = ([Raw::new(), Raw::new()], BTreeMap::new());
    for (i, (name, (_, shape, bytes))) in all(&unet).into_iter().enumerate() {
        map.insert(name.clone(), format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", i % 2 + 1));
        shards[i % 2].insert(name, (FileDtype::F16, shape, bytes));
    }
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("diffusion_pytorch_model-0000{}-of-00002.safetensors", i + 1);
        write_raw(&unet.with_file_name(name), shard, &[]);
    }
    fs::remove_file(&unet).unwrap();
    let index = unet.with_file_name("diffusion_pytorch_model.safetensors.index.json");
    let text = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    fs::write(&index, &text).unwrap();
    let vae = world.at("other/vae/diffusion_pytorch_model.safetensors");
    fs::rename(&vae, vae.with_file_name("diffusion_pytorch_model.fp16.safetensors")).unwrap();
    assert_same_model(&world.open("other"), &expected);
    assert_eq!(world.open("other").files().count(), 4);

    fs::write(&index, text.replace("diffusion_pytorch_model-00001-of", "../x-00001-of")).unwrap();
    let said = Checkpoint::open(world.at("other")).unwrap_err().to_string();
    assert!(
        said.contains("weight_map is ../x-00001-of-00002.safetensors, expected names of files in"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_converted_is_said_before_anything_is_written() {
    let world = World::new(&tiny());
    let before = world.names();
    let says = |output: &str| world.says("in.safetensors", output, |_| ());
    assert_eq!(says("in.safetensors"), "the output `in.safetensors` is one of the inputs");
    fs::write(world.at("there.ckpt"), "mine").unwrap();
    fs::create_dir(world.at("pictures")).unwrap();
    assert_eq!(says("there.ckpt"), "the output `there.ckpt` is there already");
    // Not even if asked to: a folder that is no model may hold anything.
    let said = world.says("in.safetensors", "pictures", |c| c.overwrite = true);
    assert_eq!(said, "the output `pictures` is there already");
    let said = world.says("in.safetensors", "pictures", |c| {
        c.overwrite = true;
        c.target = Some(Target::Ckpt);
    });
    assert_eq!(said, "the output `pictures` is there already");
    let said = world.says("in.safetensors", "folder", |c| c.vae = Vae::Drop);
    assert_eq!(said, "`folder` has no VAE");
    fs::remove_dir(world.at("pictures")).unwrap();
    world.convert("in.safetensors", "there.ckpt", |c| c.overwrite = true);
    assert_eq!(world.open("there.ckpt").names().count(), keys::all(&tiny()).len());
    fs::remove_file(world.at("there.ckpt")).unwrap();
    assert_eq!(world.names(), before, "nothing else is left");

    // A folder that is a model is replaced as a whole.
    world.convert("in.safetensors", "folder", |_| ());
    fs::write(world.at("folder/old.txt"), "old").unwrap();
    world.convert("in.safetensors", "folder", |c| c.overwrite = true);
    assert!(!world.at("folder/old.txt").exists());
    assert_eq!(world.names(), ["folder", "in.safetensors"]);

    // But not one that holds what is read.
    world.convert("in.safetensors", "folder/in.safetensors", |_| ());
    let said = world.says("folder/in.safetensors", "folder", |c| c.overwrite = true);
    assert_eq!(said, "the output `folder` is one of the inputs");
    let said = world.says("in.safetensors", "folder", |c| {
        c.overwrite = true;
        c.vae = Vae::Bake(world.at("folder/vae"));
    });
    assert_eq!(said, "the output `folder` is one of the inputs");
    fs::remove_file(world.at("folder/in.safetensors")).unwrap();

    // Stopped, it leaves what was there.
    let raised = Interrupt::new();
    raised.raise();
    for output in ["folder", "x.ckpt", "x.safetensors"] {
        let (overwrite, precision) = (true, Some(Precision::F32));
        let config = ConvertConfig { overwrite, precision, ..world.config("in.safetensors", output) };
        let report = convert::run(&config.plan().unwrap(), &raised, &mut |_| ()).unwrap();
        assert_eq!(report.outcome, Outcome::Interrupted);
    }
    assert_eq!(world.names(), ["folder", "in.safetensors"]);
    world.open("folder").verify().unwrap();
}

#[test]
fn a_conversion_leaves_a_record_and_is_not_repeated() {
    let world = World::new(&tiny());
    let input = hash_file(world.at("in.safetensors")).unwrap();
    for output in ["out.ckpt", "folder"] {
        world.convert("in.safetensors", output, |c| c.prune = true);
        let record = RunRecord::read(&record_path(&world.at(output))).unwrap();
        assert_eq!((record.stage.as_str(), &record.settings["prune"]), ("convert", &true.into()));
        assert_eq!((record.inputs["input"].sha256, record.outputs.len()), (input, 1));
        assert_eq!(record.outputs[0].path, Path::new(output));
        assert_eq!(record.report["outcome"], "done");
        let report = world.convert("in.safetensors", output, |c| c.prune = true);
        assert_eq!(report.outcome, Outcome::Unchanged);
        assert_eq!(report.to_string(), format!("`{}` is up to date", world.at(output).display()));
        // Another conversion, or of another input, or what somebody has edited since, is not replaced unasked.
        let refused = format!("the output `{output}` is there already");
        assert_eq!(world.says("in.safetensors", output, |_| ()), refused);
        let whole = fs::read(world.at("in.safetensors")).unwrap();
        let mut other = whole.clone();
        *other.last_mut().unwrap() ^= 1;
        fs::write(world.at("in.safetensors"), other).unwrap();
        assert_eq!(world.says("in.safetensors", output, |c| c.prune = true), refused);
        fs::write(world.at("in.safetensors"), whole).unwrap();
        let edited = if output == "folder" { "folder/model_index.json" } else { output };
        fs::OpenOptions::new().append(true).open(world.at(edited)).unwrap().write_all(b" ").unwrap();
        assert_eq!(world.says("in.safetensors", output, |c| c.prune = true), refused);
        let report = world.convert("in.safetensors", output, |c| (c.prune, c.overwrite) = (true, true));
        assert_eq!(report.outcome, Outcome::Done);
    }
    // With a VAE that is baked in, its hash belongs to it.
    world.convert("in.safetensors", "baked.safetensors", |c| c.vae = Vae::Bake(world.at("folder/vae")));
    let record = RunRecord::read(&record_path(&world.at("baked.safetensors"))).unwrap();
    assert!(record.inputs.contains_key("vae"));
}

#[test]
fn a_unet_of_eight_channels_goes_through_all_forms() {
    let mut config = tiny_with_defaults();
    config.unet.in_channels = 8;
    let world = World(tempfile::tempdir().unwrap());
    // Nothing but shapes tells it.
    write_raw(&world.at("in.safetensors"), &raw(&config), &[]);
    let found = inspect(world.at("in.safetensors"), Depth { hashes: false, values: false }).unwrap();
    let said = found.to_string();
    assert!(said.contains("InstructPix2Pix (8 input channels)"), "{said}");
    let before = world.open("in.safetensors");
    assert_eq!(before.config(), &config);
    let mut from = "in.safetensors";
    for to in ["a.ckpt", "folder", "b.safetensors"] {
        world.convert(from, to, |_| ());
        assert_same_model(&world.open(to), &before);
        from = to;
    }
    let unet = fs::read_to_string(world.at("folder/unet/config.json")).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&unet).unwrap()["in_channels"], 8);
}
