//! `vodka probe` through the real binary: made once, gone on with after a kill, grown; what is wrong is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;
use vodka_testkit::{fixture, model};

struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        let lab = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(lab.at("captions")).unwrap();
        fs::write(lab.at("captions/1.txt"), "a red circle, quite plain").unwrap();
        fs::write(lab.at("selection.csv"), "name,include\nblurry,1\nsolo,0\n").unwrap();
        lab.write("");
        lab
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The probe, with more keys in `[probe]`, or others in the place of those below.
    fn write(&self, more: &str) {
        let of = |key: &str, value: &str| {
            let is_there = more.lines().any(|line| line.starts_with(key));
            if is_there { String::new() } else { format!("{key} = {value}\n") }
        };
        let prompts = "[{ prompt = \"a red circle\", expect = [\"red\", \"circle\"] }, { prompt = \"a blue star\", expect = [\"blue\"] }]";
        let text = format!(
            "selection = \"selection.csv\"\ncaptions = [\"captions\"]\ndata = {:?}\n[models]\nv2 = {:?}\nv3 = {:?}\n\
             [tag]\nmodel = {:?}\n[probe]\nname = \"response\"\nsize = \"64x64\"\nsteps = 2\nsample = 6\n{}{}{}{}{}{more}\n",
            fixture("world/images"),
            model("v2"),
            model("v1"),
            fixture("tagger"),
            of("models", "[\"v2\", \"v3\"]"),
            of("tags", "[\"blurry\", \"monochrome\"]"),
            of("placebo", "[\"glorp\"]"),
            of("prompts", prompts),
            of("seeds ", "6"),
        );
        fs::write(self.at("probe.toml"), text).unwrap();
    }

    fn command(&self, output: &str) -> Command {
        let mut vodka = Command::new(assert_cmd::cargo::cargo_bin!("vodka"));
        vodka.arg("probe").arg(self.at("probe.toml")).arg("--output").arg(self.at(output));
        // More threads only get into each other's way with models this small.
        vodka.env("OMP_NUM_THREADS", "1").env("XDG_CACHE_HOME", self.at(".cache"));
        vodka
    }

    fn probe(&self, output: &str, code: i32) -> String {
        let output = self.command(output).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        text
    }

    fn table(&self, path: &str) -> Vec<BTreeMap<String, String>> {
        let mut table = csv::Reader::from_path(self.at(path)).unwrap();
        table.deserialize().map(|row| row.unwrap()).collect()
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(below, bytes)| (format!("{name}/{below}"), bytes)));
        } else {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

/// A run that was killed ends as the one in `out`.
fn killed(lab: &Lab) {
    let mut child = lab.command("killed").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let is_begun = || lab.at("killed/cells").read_dir().is_ok_and(|cells| cells.count() > 0);
    while !is_begun() && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    lab.probe("killed", 0);
    let (killed, whole) = (files(&lab.at("killed")), files(&lab.at("out")));
    let other: Vec<_> = whole
        .iter()
        .filter(|(name, bytes)| !name.ends_with(".run.json") && killed.get(*name) != Some(bytes))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("cells/") || name.ends_with(".csv"))
        .collect();
    assert!(other.is_empty(), "{other:?}");
}

#[test]
fn a_probe_is_made_once_gone_on_with_and_grown() {
    let lab = Lab::new();
    // Two models, each with 6 pictures without a word, 18 of each of two tags, and 12 of a placebo.
    let text = lab.probe("out", 0);
    assert!(text.contains("108 pictures, 108 made") && text.contains("v3 responds to"), "{text}");
    let pictures = lab.table("out/pictures.csv");
    assert_eq!(pictures.len(), 108);
    let find = |model: &str, word: &str, condition: &str| {
        let is_it = |row: &&BTreeMap<String, String>| {
            row["model"] == model
                && row["word"] == word
                && row["condition"] == condition
                && row["seed"] == "2"
        };
        pictures.iter().find(is_it).unwrap()
    };
    let told = |row: &BTreeMap<String, String>| (row["prompt"].clone(), row["negative_prompt"].clone());
    assert_eq!(told(find("v2", "blurry", "with")), ("blurry, a blue star".into(), String::new()));
    assert_eq!(told(find("v2", "blurry", "negative")), ("a blue star".into(), "blurry".into()));
    assert_eq!(told(find("v3", "blurry", "alone")), ("blurry".into(), String::new()));
    assert!(pictures.iter().all(|row| row["word"] != "glorp" || row["condition"] != "alone"));
    assert_eq!(told(find("v3", "", "without")), ("a blue star".into(), String::new()));
    assert!(find("v3", "", "without")["p:monochrome"].parse::<f64>().unwrap() >= 0.0);
    assert!(lab.at("out").join(&find("v2", "blurry", "with")["file"]).exists());

    // What the tables say is what the pictures say.
    let responses = lab.table("out/responses.csv");
    let row = responses
        .iter()
        .find(|row| {
            row["model"] == "v3"
                && row["word"] == "blurry"
                && row["condition"] == "with"
                && row["measure"] == "probability"
        })
        .unwrap();
    let changes: Vec<f64> = (1..=6)
        .map(|seed| {
            let of = |word: &str, condition: &str| {
                let is_it = |row: &&BTreeMap<String, String>| {
                    row["model"] == "v3"
                        && row["word"] == word
                        && row["condition"] == condition
                        && row["seed"] == seed.to_string()
                };
                pictures.iter().find(is_it).unwrap()["p:blurry"].parse::<f64>().unwrap()
            };
            of("blurry", "with") - of("", "without")
        })
        .collect();
    let mean = changes.iter().sum::<f64>() / changes.len() as f64;
    assert!((row["difference"].parse::<f64>().unwrap() - mean).abs() < 2e-6, "{row:?} {changes:?}");
    assert!(row["pairs"] == "6" && !row["low"].is_empty());
    let page = fs::read_to_string(lab.at("out/index.html")).unwrap();
    assert!(page.contains("href=\"responses.csv#row=") && page.contains("data:image/jpeg;base64,"));
    assert!(!page.contains("src=\"http") && page.matches("<svg").count() >= 4);
    assert!(lab.at("out/gallery/01-blurry.png").exists() && lab.at("out/charts/models-with.svg").exists());
    assert!(lab.table("out/fried.csv").iter().all(|row| !row["data"].is_empty()));

    let text = lab.probe("out", 0);
    assert!(text.contains("is there already, with 108 pictures"), "{text}");
    choices(&lab);

    killed(&lab);
    // A third word makes its own pictures alone.
    lab.write("tags = [\"blurry\", \"monochrome\", \"solo\"]\nseeds_of = { blurry = 8 }\n");
    let text = lab.probe("out", 0);
    // Of each model 2 more without a word, 6 more of blurry, 18 of solo.
    assert!(text.contains("160 pictures, 52 made"), "{text}");
}

/// One model is chosen of the probe in `out`.
fn choices(lab: &Lab) {
    let choose = |more: &[&str], code: i32| {
        let mut vodka = Command::new(assert_cmd::cargo::cargo_bin!("vodka"));
        vodka.arg("choose").arg(lab.at("out")).arg("--output").arg(lab.at("chosen/best")).args(more);
        let output = vodka.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        text
    };
    let text = choose(&["--tag", "blurry", "--max-adherence-loss", "1", "--max-fried", "1"], 0);
    assert!(
        text.starts_with("v3: the candidate with the largest response to the tag, among those"),
        "{text}"
    );
    let cards = lab.table("chosen/best/scorecard.csv");
    assert_eq!(cards.iter().map(|card| &*card["model"]).collect::<Vec<_>>(), ["v3", "v2"]);
    // What the card says is what the pictures say.
    let pictures = lab.table("out/pictures.csv");
    let of = |condition: &str, seed: usize| {
        let is_it = |row: &&BTreeMap<String, String>| {
            row["model"] == "v3"
                && row["word"] == "blurry"
                && row["condition"] == condition
                && row["seed"] == seed.to_string()
        };
        pictures.iter().find(is_it).unwrap()["p:blurry"].parse::<f64>().unwrap()
    };
    let changes: Vec<f64> = (1..=6).map(|seed| of("with", seed) - of("negative", seed)).collect();
    let mean = changes.iter().sum::<f64>() / changes.len() as f64;
    let response = cards[0]["response"].parse::<f64>().unwrap();
    assert!((response - mean).abs() < 2e-6, "{response} {changes:?}");
    assert!(lab.at("chosen/best/pareto.svg").exists() && lab.at("chosen/best.run.json").exists());
    let page = fs::read_to_string(lab.at("chosen/best/index.html")).unwrap().replace("&#x2f;", "/");
    assert!(page.contains("href=\"../../out/index.html\"") && page.contains("<svg"), "{page}");
    let both = ["--tag", "blurry", "--among", "v2", "--among", "v3", "--choose", "v2"];
    let text = choose(&both, 0);
    assert!(text.starts_with("v2: chosen in the recipe"), "{text}");
    assert_eq!(choose(&both, 0).lines().count(), 3);
    assert!(choose(&["--tag", "night"], 2).contains("has not measured the tag `night`"));
    assert!(choose(&["--tag", "blurry", "--among", "v4"], 2).contains("has no model `v4`, did you mean"));
    assert!(choose(&["--tag", "blurry", "--choose", "v2"], 2).contains("none of its candidates"));
    assert!(
        choose(&["--tag", "blurry", "--max-fried", "2"], 2).contains("`max_fried` is 2, expected 0 to 1")
    );
}

#[test]
fn what_is_wrong_is_told_before_anything_is_made() {
    let lab = Lab::new();
    let said = |more: &str| {
        lab.write(more);
        lab.probe("out", 2)
    };
    let has = |more: &str, expected: &str| {
        let text = said(more);
        assert!(text.contains(expected), "{more}: {text}");
    };
    has("tags = [\"blury\"]", "there is no tag `blury` in");
    has("tags = [\"blury\"]", "did you mean `blurry`?");
    has("tags = []", "has no tags");
    has("tags = \"all\"", "expected \"selection\" or a list of tags");
    has("models = []", "has no models");
    has("models = [\"v4\"]", "there is no model `v4`, did you mean");
    has("against = \"v4\"", "`against` is `v4`, expected one of its models, did you mean");
    has("prompts = []", "has no prompts");
    has("prompts = [{ prompt = \"x\" }]", "the prompt \"x\" has no `expect`");
    has("prompts = [{ prompt = \"x\", expect = [\"sircle\"] }]", "no tag `sircle`");
    has("seeds = 0", "has no seeds");
    has("seeds_of = { blurry = 0 }", "has no seeds");
    has("seeds_of = { blury = 3 }", "names `blury`, which is not probed, did you mean `blurry`?");
    has("placebo = [\"solo\"]", "the placebo `solo` stands in the tagger's vocabulary");
    has("placebo = [\"plain\"]", "captions/1.txt`, expected a word that stands in no caption");
    has("placebo = [\"glorp\", \"glorp\"]", "has `glorp` twice");
    has("size_ = \"64x64\"", "unknown field `size_`, did you mean `size`?");
    has("sampler = \"Eular\"", "did you mean `Euler`?");
    assert!(!lab.at("out").exists(), "nothing was made");
    fs::write(lab.at("selection.csv"), "name,include\nblurry,0\n").unwrap();
    lab.write("tags = \"selection\"");
    // As in every stage that reads one.
    let text = lab.probe("out", 1);
    assert!(text.contains("no tag is selected in") && text.contains("selection.csv`"), "{text}");
    fs::remove_file(lab.at("probe.toml")).unwrap();
    assert!(lab.probe("out", 2).contains("cannot read the configuration"));
}

fn compare(lab: &Lab, arguments: &[&str], code: i32) -> String {
    let mut vodka = Command::new(assert_cmd::cargo::cargo_bin!("vodka"));
    vodka.current_dir(lab.dir.path()).arg("compare").args(arguments).args(["--output", "compared"]);
    let output = vodka.output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[test]
fn experiments_are_put_beside_each_other() {
    let lab = Lab::new();
    lab.probe("first", 0);
    lab.write("tags = [\"blurry\"]");
    lab.probe("part", 0);
    // As a run has it.
    lab.write("cfg = 2.0");
    lab.probe("other/probes/response", 0);

    let text = compare(&lab, &["first", "part", "other"], 0);
    for told in ["part/v2 is first/v2", "part/v3 is first/v3", "4 models of 3 runs"] {
        assert!(text.contains(told), "{told} in {text}");
    }
    let rows = lab.table("compared/comparison.csv");
    let of = |run: &str, measure: &str, tag: &str| {
        let is_it = |row: &&BTreeMap<String, String>| {
            row["run"] == run && row["model"] == "v3" && row["measure"] == measure && row["tag"] == tag
        };
        rows.iter().find(is_it).unwrap_or_else(|| panic!("no {measure} of {run}")).clone()
    };
    // What the probe itself has told of that model.
    let responses = lab.table("other/probes/response/responses.csv");
    let own = responses.iter().find(|row| {
        [("model", "v3"), ("word", "blurry"), ("condition", "with"), ("measure", "probability")]
            .iter()
            .all(|(column, wanted)| row[*column] == *wanted)
    });
    let own = own.unwrap();
    let asked = of("other", "probability with the tag", "blurry");
    assert_eq!((&asked["value"], &asked["low"]), (&own["difference"], &own["low"]));
    assert!(!asked["difference"].is_empty() && !asked["difference_low"].is_empty(), "{asked:?}");
    assert_eq!(of("first", "sharpness ratio with the tag", "monochrome")["difference"], "");
    assert_ne!(of("other", "adherence", "")["difference"], "");
    let page = fs::read_to_string(lab.at("compared/index.html")).unwrap();
    assert!(
        page.contains("first&#x2f;v2") && page.contains("<svg") && page.contains("comparison.csv#row="),
        "{page}"
    );
    let markdown = fs::read_to_string(lab.at("compared/comparison.md")).unwrap();
    assert!(markdown.contains("| first/v2 | first/v3 | other/v2 | other/v3 |"), "{markdown}");
    let settings = lab.table("compared/settings.csv");
    let guidance = settings.iter().find(|row| row["setting"] == "probe.cfg").unwrap();
    assert_eq!([&guidance["job"], &guidance["first"], &guidance["other"]], ["probe", "7.0", "2.0"]);
    assert!(settings.iter().all(|row| !row["setting"].starts_with("file: ")), "{settings:?}");
    let before = fs::read(lab.at("compared/index.html")).unwrap();
    compare(&lab, &["first", "part", "other"], 0);
    assert_eq!(fs::read(lab.at("compared/index.html")).unwrap(), before);
    assert!(compare(&lab, &["first", "other", "--model", "v3"], 0).contains("2 models of 2 runs"));

    assert!(compare(&lab, &["first", "captions"], 2).contains("neither a probe nor a run with one"));
    assert!(compare(&lab, &["first", "other", "--model", "v4"], 2).contains("did you mean `v"));
    assert!(compare(&lab, &["first", "first"], 2).contains("both called `first`"));
    assert!(
        compare(&lab, &["first", "other", "--probe", "responce"], 2).contains("did you mean `response`?")
    );
    assert!(compare(&lab, &["first"], 2).contains("2"));
    lab.write("tags = [\"blurry\"]");
    lab.probe("other/probes/second", 0);
    assert!(
        compare(&lab, &["first", "other"], 2)
            .contains("has several probes, expected the name of one of `response`, `second`")
    );
    fs::write(lab.at("first/pictures.csv"), "model,word\n").unwrap();
    assert!(compare(&lab, &["first", "part"], 1).contains("has no column `placebo`"));
}
