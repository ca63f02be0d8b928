//! The binary from the outside: what it writes, what it says, and its exit codes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../../crates/merger/tests/model/mod.rs"]
mod model;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use assert_cmd::Command;
use model::model;
use vodka_checkpoint::{Checkpoint, Precision, Result, Values, keys, write_checkpoint};
use vodka_stage::{RunRecord, hash_file};

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
        command.current_dir(self.0.path()).env("XDG_CACHE_HOME", self.0.path().join(".cache"));
        command.args(arguments.split_whitespace()).output().unwrap()
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
        names.retain(|name| name != ".cache");
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
fn a_parent_needs_no_vae_where_that_of_a_is_taken() {
    let world = World::new();
    world.says("convert b.safetensors bare.safetensors --drop-vae -q", 0);
    world.says("weighted-sum a.safetensors bare.safetensors -m 0.25 -o bare-sum.safetensors", 0);
    world.says(SUM, 0);
    for name in [UNET, VAE] {
        assert_eq!(world.value("bare-sum.safetensors", name), world.value("out.safetensors", name));
    }
    world.says("verify bare-sum.safetensors", 0);

    let refused = "weighted-sum a.safetensors bare.safetensors -m 0.25 --vae merge -o x.safetensors";
    assert!(world.says(refused, 1).contains("`bare.safetensors` has no VAE"));
    let refused = "weighted-sum bare.safetensors a.safetensors -m 0.25 -o x.safetensors";
    assert!(world.says(refused, 1).contains("`bare.safetensors` has no VAE"));
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
    let step = &plan["plan"]["graph"]["steps"][0];
    assert_eq!((&step["method"], &step["params"][0]), (&"weighted-sum".into(), &"0.25".into()));
    assert!(plan["read_bytes"].as_u64() > plan["write_bytes"].as_u64(), "{plan}");
    assert_eq!(world.files(), PARENTS, "a dry run writes nothing");

    let report = json(&format!("{SUM} --json"));
    assert_eq!(report["outcome"], "done");
    let hash = Checkpoint::open(world.at("out.safetensors")).unwrap().sha256().unwrap();
    assert_eq!(report["outputs"][0]["sha256"], hash.to_string());
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
    assert!(says(&SUM.replace("0.25", "25")).contains("multiplier is 25, expected 0 to 1"));
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
    let output = Command::new("sh")
        .env("XDG_CACHE_HOME", world.at(".cache"))
        .current_dir(world.0.path())
        .args(["-c", &script])
        .output()
        .unwrap();
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
    let status = command
        .env("XDG_CACHE_HOME", world.at(".cache"))
        .current_dir(world.0.path())
        .args(SUM.split_whitespace())
        .stderr(full)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(world.value("out.safetensors", UNET), 1.25);
}

/// A limit on the size of files ends the process by a signal in the midst of writing, as `kill -9` does.
#[cfg(target_os = "linux")]
#[test]
fn a_killed_run_leaves_no_half_file_and_the_next_one_goes_through() {
    let world = World::new();
    let binary = assert_cmd::cargo_bin!("vodka-merge").display().to_string();
    let script = format!("ulimit -c 0; ulimit -f 16; exec {binary} {SUM}");
    let mut command = std::process::Command::new("sh");
    command.env("XDG_CACHE_HOME", world.at(".cache")).current_dir(world.0.path()).args(["-c", &script]);
    assert_eq!(command.status().unwrap().code(), None, "killed by a signal");
    assert!(!world.at("out.safetensors").exists());
    assert!(world.at(".out.safetensors.partial").exists());
    world.says(SUM, 0);
    assert!(!world.at(".out.safetensors.partial").exists());
    assert_eq!(world.value("out.safetensors", UNET), 1.25);
}

#[cfg(unix)]
#[test]
fn an_output_that_is_a_hard_link_to_an_input_is_refused() {
    let world = World::new();
    fs::hard_link(world.at("b.safetensors"), world.at("out.safetensors")).unwrap();
    assert!(world.says(SUM, 2).contains("the output `out.safetensors` is one of the inputs"));
}

#[test]
fn numbers_that_are_none_and_recipes_that_are_wrong_end_with_2() {
    let world = World::new();
    for number in ["nan", "inf", "-inf"] {
        let said = world.says(&SUM.replace("0.25", number), 2);
        assert!(said.contains("multiplier is ") && said.contains("expected 0 to 1"), "{said}");
        let said = world.says(&format!("add-difference a b c -m {number} -o out.safetensors"), 2);
        assert!(said.contains("expected a finite number"), "{said}");
    }
    assert!(world.says(&SUM.replace("0.25", "GRAD_X"), 2).contains("did you mean `GRAD_"));
    let says = |recipe: &str| {
        fs::write(world.at("mix.toml"), recipe).unwrap();
        world.says("run mix.toml", 2)
    };
    let parents = "[parents]\na = \"a.safetensors\"\nb = \"b.safetensors\"\n";
    let step = |body: &str| {
        format!(
            "{parents}[steps.mix]\nmethod = \"weighted-sum\"\n{body}\n[[outputs]]\nstep = \"mix\"\nfile = \"o.safetensors\"\n"
        )
    };
    let cases = [
        (step("a = \"a\"\nb = \"c\"\nmultiplier = 0.5"), "line 7, column 5: no parent or step is called `c`"),
        (
            step("a = \"a\"\nb = \"mix\"\nmultiplier = 0.5"),
            "line 4, column 8: the step `mix` depends on itself: mix -> mix",
        ),
        (
            step("a = \"a\"\nb = \"b\"\nmultiplier = 1.5"),
            "line 8, column 14: multiplier is 1.5, expected 0 to 1",
        ),
        (
            step("a = \"a\"\nb = \"b\"\nmultiplier = nan"),
            "line 8, column 14: expected a finite number, found nan",
        ),
        (
            step("a = \"a\"\nb = \"b\"\nmultiplyer = 1"),
            "line 8, column 1: unknown key `multiplyer`, did you mean `multiplier`?",
        ),
        (step("a = \"a\"\nb = \"b\""), "line 4, column 8: missing key `multiplier`"),
        (
            step("a = \"a\"\nb = \"b\"\nmultiplier = { preset = \"COSIN\" }"),
            "unknown preset `COSIN`, did you mean `COSINE`?",
        ),
        (step("a = \"a\"\nb = \"b\"\nmultiplier = { blocks = [1, 2] }"), "expected 26 numbers"),
        (step("a = \"a\"\nb = \"b\"\nmultiplier = [0.1, 0.2]"), "two outputs are called `o.safetensors`"),
        (
            format!("{parents}[steps.mix]\nmethod = \"tie\"\n"),
            "line 5, column 10: unknown method `tie`, did you mean `ties`?",
        ),
        (format!("outputs = []\n{parents}"), "expected one output at least"),
        (
            "method = \"ties\"\na = 1".to_owned(),
            "line 2, column 5: expected a string, found a value of the type integer",
        ),
        ("a = [".to_owned(), "line 1"),
    ];
    for (recipe, expected) in cases {
        let said = says(&recipe);
        assert!(said.contains(expected), "{said}expected: {expected}\n{recipe}");
    }
}

#[test]
fn a_lora_is_no_checkpoint_and_a_checkpoint_no_lora() {
    let world = World::new();
    let said = world.says("apply-lora a.safetensors b.safetensors -o out.safetensors", 1);
    assert!(said.contains("`b.safetensors` is a Stable Diffusion 1.x checkpoint"), "{said}");
    let header = br#"{"lora_unet_x.lora_up.weight":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}  "#;
    let lora = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &[0, 0]].concat();
    fs::write(world.at("b.safetensors"), lora).unwrap();
    let said = world.says(SUM, 1);
    assert!(said.contains("`b.safetensors` is a LoRA"), "{said}");
    let header = br#"{"cond_stage_model.model.x":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}    "#;
    let other = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &[0, 0]].concat();
    fs::write(world.at("b.safetensors"), other).unwrap();
    let said = world.says(SUM, 1);
    assert!(said.contains("`b.safetensors` is a Stable Diffusion 2.x checkpoint"), "{said}");
}

/// The recipe that is shipped, with the fixture's generations in the place of V1, V2 and V3.
#[test]
fn the_three_mixes_of_v3_come_from_one_recipe_in_one_pass() {
    let world = World::new();
    for (name, generation) in [("v1", "base"), ("v2", "v1"), ("v3", "v2")] {
        fs::copy(vodka_testkit::model(generation), world.at(&format!("vodka-{name}.safetensors"))).unwrap();
    }
    let recipe = vodka_testkit::fixture("../docs/recipes/v3-mixes.toml");
    let said = world.says(&format!("run {}", recipe.display()), 0);
    assert_eq!(said.lines().count(), 3, "{said}");
    let singly = [
        ("weighted-sum vodka-v3.safetensors vodka-v1.safetensors -m 0.5", "v3-with-v1"),
        ("weighted-sum vodka-v3.safetensors vodka-v2.safetensors -m 0.5", "v3-with-v2"),
        (
            "add-difference vodka-v3.safetensors vodka-v1.safetensors vodka-v2.safetensors -m 1",
            "v3-plus-difference",
        ),
    ];
    for (arguments, name) in singly {
        world.says(&format!("{arguments} -o single.safetensors"), 0);
        let open = |name: &str| Checkpoint::open(world.at(&format!("{name}.safetensors"))).unwrap();
        let (single, mixed) = (open("single"), open(name));
        for tensor in single.names() {
            assert_eq!(single.tensor(tensor).unwrap(), mixed.tensor(tensor).unwrap(), "{name}: {tensor}");
        }
    }
    // Each says how it was made, makes itself again, and is what it says.
    world.says("run v3-with-v1.safetensors --output again.safetensors", 0);
    let bytes = |name: &str| fs::read(world.at(name)).unwrap();
    assert!(bytes("again.safetensors") == bytes("v3-with-v1.safetensors"));
    let said = world.says("verify v3-plus-difference.safetensors", 0);
    assert!(said.contains(" tensors are what its recipe makes"), "{said}");
    // The first byte behind the header is one of `position_ids`.
    let mut changed = bytes("again.safetensors");
    let header = u64::from_le_bytes(changed[..8].try_into().unwrap()) as usize;
    changed[8 + header] ^= 1;
    fs::write(world.at("again.safetensors"), changed).unwrap();
    assert!(world.says("verify again.safetensors", 1).contains("text_model.embeddings.position_ids"));
    let mut changed = bytes("v3-with-v1.safetensors");
    let last = changed.len() - 1;
    changed[last] ^= 1;
    fs::write(world.at("again.safetensors"), changed).unwrap();
    let said = world.says("verify again.safetensors", 1);
    assert!(said.contains("1 of ") && said.contains("model.diffusion_model.time_embed.2.weight"), "{said}");
    fs::rename(world.at("vodka-v1.safetensors"), world.at("old.safetensors")).unwrap();
    assert!(world.says("verify v3-with-v1.safetensors", 1).contains("vodka-v1.safetensors"));
    world.says("verify v3-with-v1.safetensors --parent v1=old.safetensors", 0);
    let said = world.says("verify v3-with-v1.safetensors --parent v1=vodka-v2.safetensors", 1);
    assert!(said.contains("the recipe asks for"), "{said}");
    assert!(world.says("verify old.safetensors", 1).contains("holds no recipe"));
}

#[test]
fn differences_are_told_by_block_and_tensor() {
    let world = World::new();
    let output = world.run("diff a.safetensors b.safetensors --csv d.csv --svg d.svg --most 2");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    // All 1 against all 2: the same direction, as far as the length.
    let line = text.lines().find(|line| line.starts_with("IN01")).unwrap();
    assert!(line.contains("1.0000000") && line.contains("1.000e0"), "{line}");
    assert_eq!(text.lines().filter(|line| line.contains("model.")).count(), 2, "{text}");
    let csv = fs::read_to_string(world.at("d.csv")).unwrap();
    assert_eq!(csv.lines().filter(|line| line.starts_with("tensor,")).count(), keys::all(&model()).len());
    assert!(csv.contains("\nblock,VAE,"), "{csv}");
    let svg = fs::read_to_string(world.at("d.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.matches("<rect").count() > 5);
    let output = world.run("diff a.safetensors a.safetensors");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("most changed") && text.contains("  0  "), "{text}");
}

#[test]
fn what_is_extracted_and_applied_is_what_was_trained() {
    let world = World::new();
    let [base, tuned] = ["base", "v2"].map(|name| vodka_testkit::model(name).display().to_string());
    let extract =
        format!("extract-lora {tuned} {base} --clamp-quantile 1 --min-difference 0 --precision fp32");
    let said = world.says(&format!("{extract} --rank 4096 -o whole.safetensors"), 0);
    assert!(said.contains("100.00 % of the difference"), "{said}");
    let said = world.says(&format!("{extract} --rank 4096 -o whole.safetensors"), 0);
    assert_eq!(said, "`whole.safetensors` is up to date\n");
    let apply = format!("apply-lora {base} whole.safetensors --precision fp32 -o applied.safetensors");
    let said = world.says(&apply, 0);
    assert!(!said.contains("the same in all parents"), "there is but one checkpoint: {said}");
    assert!(world.says(&apply, 0).contains("`applied.safetensors` is up to date"));
    for (file, stage) in [("whole", "extract-lora"), ("applied", "merge")] {
        let record = RunRecord::read(&world.at(&format!("{file}.safetensors.run.json"))).unwrap();
        assert_eq!((record.stage.as_str(), record.inputs.len()), (stage, 2), "{record:?}");
        let hash = hash_file(world.at(&format!("{file}.safetensors"))).unwrap();
        assert_eq!(record.outputs[0].sha256, hash);
    }
    let open = |path: &Path| Checkpoint::open(path).unwrap();
    let (applied, tuned_file) = (open(&world.at("applied.safetensors")), open(Path::new(&tuned)));
    let name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight";
    for (found, expected) in
        applied.tensor(name).unwrap().to_f32().iter().zip(tuned_file.tensor(name).unwrap().to_f32())
    {
        assert!((found - expected).abs() < 1e-5, "{found}, expected {expected}");
    }
    let said = world.says(&format!("{extract} --rank 1 -o thin.safetensors"), 0);
    assert!(said.contains("extracted ") && !said.contains("100.00 %"), "{said}");
    assert!(
        world
            .says(&format!("{extract} --rank 0 -o o.safetensors"), 2)
            .contains("rank is 0, expected 1 to 4096")
    );
}
