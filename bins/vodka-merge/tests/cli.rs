//! The binary from the outside: what it writes, what it says, and its exit codes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use assert_cmd::Command;
use vodka_checkpoint::{
    Checkpoint, ClipConfig, ModelConfig, Precision, Result, UNetConfig, VaeConfig, Values, keys,
    write_checkpoint,
};

fn model() -> ModelConfig {
    ModelConfig {
        unet: UNetConfig {
            block_out_channels: vec![4, 8],
            layers_per_block: 1,
            cross_attention: vec![true, false],
            cross_attention_dim: 6,
            attention_heads: 2,
            norm_groups: 2,
            ..UNetConfig::sd15()
        },
        vae: VaeConfig {
            block_out_channels: vec![2, 4],
            layers_per_block: 1,
            norm_groups: 2,
            ..VaeConfig::sd15()
        },
        clip: ClipConfig {
            vocab_size: 11,
            hidden_size: 6,
            intermediate_size: 8,
            layers: 2,
            heads: 3,
            max_positions: 5,
        },
        ..ModelConfig::sd15()
    }
}

/// Writes a model of which every weight is `value`.
fn write(path: &Path, value: f32) {
    let shapes: BTreeMap<_, _> = keys::all(&model()).into_iter().map(|key| (key.ldm, key.shape)).collect();
    let mut source = |name: &str| -> Result<Values> {
        Ok((shapes[name].clone(), vec![value; shapes[name].iter().product()]))
    };
    write_checkpoint(path, &model(), Precision::F16, &BTreeMap::new(), &mut source).unwrap();
}

/// A folder with `a.safetensors` (all 1), `b.safetensors` (all 2) and `c.safetensors` (all 4), the current one of the binary.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        for (name, value) in [("a", 1.0), ("b", 2.0), ("c", 4.0)] {
            write(&world.at(&format!("{name}.safetensors")), value);
        }
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new(assert_cmd::cargo_bin!("vodka-merge"));
        command.current_dir(self.0.path()).args(arguments.split_whitespace()).output().unwrap()
    }

    /// Runs with the given exit code and returns stderr.
    fn says(&self, arguments: &str, code: i32) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        said
    }

    /// The single value of all weights of a tensor.
    fn value(&self, file: &str, tensor: &str) -> f32 {
        let checkpoint = Checkpoint::open(self.at(file)).unwrap();
        checkpoint.verify().unwrap();
        let values = checkpoint.tensor(tensor).unwrap().to_f32();
        assert!(values.iter().all(|value| *value == values[0]));
        values[0]
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

const UNET: &str = "model.diffusion_model.out.2.bias";
const VAE: &str = "first_stage_model.quant_conv.bias";
const SUM: &str = "weighted-sum a.safetensors b.safetensors --multiplier 0.25 --output out.safetensors";
const PARENTS: [&str; 3] = ["a.safetensors", "b.safetensors", "c.safetensors"];

#[test]
fn a_weighted_sum_and_a_difference() {
    let world = World::new();
    let said = world.says(SUM, 0);
    let count = keys::all(&model()).len();
    assert!(said.contains(&format!("merged {count} tensors into `out.safetensors` (fp16, ")), "{said}");
    assert_eq!(world.value("out.safetensors", UNET), 1.25);
    assert_eq!(world.value("out.safetensors", VAE), 1.0, "the VAE is that of A");
    assert!(world.at("out.safetensors.run.json").exists());

    let said = world.says(SUM, 0);
    assert!(said.contains("`out.safetensors` is up to date"), "{said}");

    let arguments = "add-difference a.safetensors b.safetensors c.safetensors -m -0.5 -o deep/er/out.safetensors \
                     --vae merge --precision fp32";
    let said = world.says(arguments, 0);
    assert!(said.contains("(fp32, "), "{said}");
    assert_eq!(world.value("deep/er/out.safetensors", UNET), 2.0);
    assert_eq!(world.value("deep/er/out.safetensors", VAE), 2.0);
}

#[test]
fn the_plan_and_the_report_are_json_on_stdout() {
    let world = World::new();
    let json = |arguments: &str| {
        let output = world.run(arguments);
        assert!(output.status.success());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let plan = json(&format!("{SUM} --dry-run"));
    assert_eq!((&plan["method"], &plan["multiplier"]), (&"weighted-sum".into(), &0.25.into()));
    assert_eq!(world.files(), PARENTS, "a dry run writes nothing");

    let report = json(&format!("{SUM} --json"));
    assert_eq!(report["outcome"], "done");
    let hash = Checkpoint::open(world.at("out.safetensors")).unwrap().sha256().unwrap();
    assert_eq!(report["sha256"], hash.to_string());
    assert_eq!(json(&format!("{SUM} --json"))["outcome"], "unchanged");
}

#[test]
fn wrong_usage_ends_with_2() {
    let world = World::new();
    let says = |arguments: &str| world.says(arguments, 2);
    assert!(says("").contains("<COMMAND>"));
    assert!(
        says("weighted-sum a.safetensors b.safetensors --output out.safetensors")
            .contains("--multiplier <M>")
    );
    assert!(says(&SUM.replace("0.25", "25")).contains("multiplier is 25, expected 0 (all A) to 1 (all B)"));
    assert!(says(&format!("{SUM} --precision fp8")).contains("expected fp16, bf16 or fp32, found `fp8`"));
    assert!(says(&format!("{SUM} --vae b")).contains("invalid value 'b' for '--vae <VAE>'"));
    assert!(
        says(&SUM.replace("out.s", "./a.s")).contains("the output `./a.safetensors` is one of the inputs")
    );
    assert!(says(&SUM.replace("out.safetensors", "out.ckpt")).contains("does not end in .safetensors"));
    assert!(says("add-difference a b -m 1 -o out.safetensors").contains("<C>"));
    assert_eq!(world.files(), PARENTS);
}

#[test]
fn bad_parents_end_with_1_and_are_named() {
    let world = World::new();
    let b = world.at("b.safetensors");
    let whole = fs::read(&b).unwrap();
    let says = |bytes: &[u8]| {
        fs::write(&b, bytes).unwrap();
        let said = world.says(SUM, 1);
        assert_eq!(world.files(), PARENTS, "nothing is left behind");
        said
    };
    let length = whole.len();
    assert_eq!(
        says(&whole[..length - 1]),
        format!(
            "error: `b.safetensors` is truncated: its header asks for {length} bytes, the file has {}\n",
            length - 1
        )
    );

    let header = br#"{"conditioner.embedders.0.x":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}} "#;
    let sdxl = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &[0, 0]].concat();
    assert_eq!(
        says(&sdxl),
        "error: `b.safetensors` is a Stable Diffusion XL checkpoint, expected a Stable Diffusion 1.x checkpoint\n"
    );

    let mut nan = whole;
    nan[length - 2..].copy_from_slice(&0x7e00_u16.to_le_bytes());
    assert_eq!(
        says(&nan),
        "error: `b.safetensors`: the tensor `model.diffusion_model.time_embed.2.weight` holds NaN at element 255\n"
    );

    fs::remove_file(&b).unwrap();
    assert!(world.says(SUM, 1).starts_with("error: cannot read `b.safetensors`: "));
}

#[test]
fn a_folder_that_cannot_be_written_to_ends_with_1() {
    let world = World::new();
    fs::write(world.at("file"), "").unwrap();
    let said = world.says(&SUM.replace("out.s", "file/out.s"), 1);
    assert!(said.starts_with("error: cannot create the folder `file`: "), "{said}");
}

/// A limit on the size of files fails a write as a full disk does, once the signal that comes with it is ignored.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_with_1_and_leaves_what_was_there() {
    let world = World::new();
    fs::write(world.at("out.safetensors"), "as it was").unwrap();
    let binary = assert_cmd::cargo_bin!("vodka-merge").display().to_string();
    let script = format!("trap '' XFSZ; ulimit -f 16; exec {binary} {SUM}");
    let output = Command::new("sh").current_dir(world.0.path()).args(["-c", &script]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: cannot write `out.safetensors`: "), "{said}");
    assert_eq!(fs::read_to_string(world.at("out.safetensors")).unwrap(), "as it was");
    assert_eq!(world.files().len(), 4, "nothing else is left behind");
}

#[test]
fn a_recipe_says_what_the_options_would() {
    let world = World::new();
    let recipe =
        "method = \"weighted-sum\"\na = \"a.safetensors\"\nb = \"b.safetensors\"\nmultiplier = 0.25\n";
    fs::write(world.at("mix.toml"), format!("{recipe}output = \"out.safetensors\"\n")).unwrap();
    world.says("run mix.toml", 0);
    assert_eq!(world.value("out.safetensors", UNET), 1.25);
    assert!(world.says(SUM, 0).contains("up to date"), "the same merge, said in another way");

    fs::write(world.at("mix.toml"), format!("{recipe}outptu = \"out.safetensors\"\n")).unwrap();
    let said = world.says("run mix.toml", 2);
    assert!(said.contains("line 5") && said.contains("did you mean `output`?"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_log_that_cannot_be_written_does_not_stop_the_work() {
    let world = World::new();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = std::process::Command::new(assert_cmd::cargo_bin!("vodka-merge"));
    let status =
        command.current_dir(world.0.path()).args(SUM.split_whitespace()).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(world.value("out.safetensors", UNET), 1.25);
}
