//! The whole workflow through the real binary: made once, not made twice, continued after a kill, remade where a number
//! changed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;
use vodka_testkit::{fixture, model};

/// A folder with a recipe, a few pictures of the world, and links to tagger and models.
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pictures = dir.path().join("pictures");
        fs::create_dir(&pictures).unwrap();
        let mut captioned: Vec<PathBuf> = fs::read_dir(fixture("world/images"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.extension().is_some_and(|e| e != "txt") && path.with_extension("txt").exists()
            })
            .collect();
        captioned.sort();
        for path in captioned.iter().take(8) {
            for file in [path.clone(), path.with_extension("txt")] {
                fs::copy(&file, pictures.join(file.file_name().unwrap())).unwrap();
            }
        }
        let lab = Self { dir };
        lab.write_recipe(0.3, 2, "");
        lab
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_recipe(&self, min_score: f64, epochs: u32, more: &str) {
        let [tagger, base, v1, v2] = [fixture("tagger"), model("base"), model("v1"), model("v2")];
        let text = format!(
            r#"
            [workflow]
            images = "pictures"
            output = "out"
            [models]
            base = {base:?}
            v1 = {v1:?}
            v2 = {v2:?}
            [tag]
            model = {tagger:?}
            [select]
            coverage = 0.5
            all_head = true
            include = ["blurry"]
            [report]
            [caption]
            min_score = {min_score}
            [[train]]
            name = "v3"
            base = "base"
            [train.config]
            resolution = 64
            batch_size = 2
            threads = 1
            max_epochs = {epochs}
            save_every_n_epochs = 1
            lr = 1e-4
            state_every_n_steps = 1
            [[grid]]
            name = "mixes"
            models = ["v3@1", "v3", "mix"]
            size = "64x64"
            steps = 2
            judge = true
            prompts = [{{ prompt = "a red circle", negative = "blurry" }}, {{ prompt = "a red circle" }}]
            [[merge]]
            name = "mix"
            method = "add-difference"
            a = "v3"
            b = "v1"
            c = "v2"
            multiplier = 1.0
            {more}"#
        );
        fs::write(self.at("recipe.toml"), text).unwrap();
    }

    fn command(&self, command: &str) -> Command {
        let mut vodka = Command::new(assert_cmd::cargo::cargo_bin!("vodka"));
        // More threads only get into each other's way with models this small.
        vodka.arg(command).arg(self.at("recipe.toml")).env("OMP_NUM_THREADS", "1");
        vodka.env("XDG_CACHE_HOME", self.at(".cache"));
        vodka
    }

    /// Runs a command, checks its exit code, and returns stdout and stderr.
    fn vodka(&self, command: &str, code: i32) -> String {
        said(&self.command(command).output().unwrap(), code)
    }

    /// The hashes in the records of all that was made, by file.
    fn record(&self, output: &str) -> String {
        let text = fs::read_to_string(self.at("out").join(format!("{output}.run.json"))).unwrap();
        let record: serde_json::Value = serde_json::from_str(&text).unwrap();
        record["outputs"].to_string()
    }

    fn checkpoints(&self) -> Vec<PathBuf> {
        let mut found: Vec<_> = fs::read_dir(self.at("out/train/v3"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .filter(|path| path.file_name().unwrap().to_string_lossy().contains("v3-ep"))
            .collect();
        found.sort();
        found
    }
}

fn said(output: &Output, code: i32) -> String {
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

fn line<'a>(text: &'a str, job: &str) -> &'a str {
    text.lines()
        .find(|line| line.trim_start().starts_with(job))
        .unwrap_or_else(|| panic!("no {job} in\n{text}"))
}

#[test]
fn a_recipe_is_run_once_and_again_only_where_a_number_changed() {
    let lab = Lab::new();
    let text = lab.vodka("status", 0);
    assert!(line(&text, "due    tag").contains("not made yet"), "{text}");
    assert!(text.contains("waits  train v3: for `caption`"), "{text}");

    let text = lab.vodka("run", 0);
    assert!(text.contains("grids/mixes/index.html"), "{text}");
    assert!(lab.at("out/grids/mixes/grid.png").exists() && lab.at("out/mixes/mix.safetensors").exists());
    let judged = |name: &str| fs::read_to_string(lab.at(&format!("out/judged/mixes/{name}"))).unwrap();
    assert!(judged("effects.csv").contains("mix,blurry,negative,1,"), "{}", judged("effects.csv"));
    assert!(judged("requested.csv").contains("v3@1,circle,2,"), "{}", judged("requested.csv"));
    assert_eq!(lab.checkpoints().len(), 2);
    let notebook = |name: &str| fs::read_to_string(lab.at(&format!("out/notebook.{name}"))).unwrap();
    let (page, markdown) = (notebook("html"), notebook("md"));
    let shown = page.replace("&#x2f;", "/");
    for told in
        ["train v3", "merge mix", "grids/mixes/grid.png", "data:image/jpeg;base64,", "train/v3.run.json"]
    {
        assert!(shown.contains(told), "{told}");
    }
    assert!(markdown.contains("![grids/mixes/grid.png](grids/mixes/grid.png)"), "{markdown}");
    assert!(text.contains("notebook.html"), "{text}");
    let before = (lab.record("train/v3"), lab.record("grids/mixes"));

    let text = lab.vodka("run", 0);
    assert!(text.contains("nothing to do: all 8 jobs are done already"), "{text}");
    assert_eq!((notebook("html"), notebook("md")), (page, markdown));
    assert!(lab.vodka("status", 0).lines().all(|line| line.starts_with("done")));

    // Another seed in another folder: the training is made anew, and nothing here is touched.
    let output = lab.at("out-2");
    let other = |command: &str| {
        let mut vodka = lab.command(command);
        vodka.args(["--seed", "7", "--output"]).arg(&output);
        said(&vodka.output().unwrap(), 0)
    };
    assert!(line(&other("status"), "due    tag").contains("not made yet"));
    other("run");
    let seed_of = |output: &str| {
        let record = fs::read_to_string(lab.at(output).join("train/v3.run.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&record).unwrap()["seed"].clone()
    };
    assert_eq!((seed_of("out-2"), seed_of("out")), (7.into(), 555.into()));
    assert!(other("status").lines().all(|line| line.starts_with("done")));
    assert!(lab.vodka("status", 0).lines().all(|line| line.starts_with("done")));

    lab.write_recipe(0.95, 2, "");
    let text = lab.vodka("status", 0);
    assert!(
        line(&text, "done   tag").len() > 1 && line(&text, "due    caption").contains("min_score"),
        "{text}"
    );
    let text = lab.vodka("run", 0);
    assert!(
        line(&text, "tag").contains("unchanged") && line(&text, "select").contains("unchanged"),
        "{text}"
    );
    assert!(
        !line(&text, "train v3").contains("unchanged") && !line(&text, "grid").contains("unchanged"),
        "{text}"
    );
    assert_ne!((lab.record("train/v3"), lab.record("grids/mixes")), before);
}

#[test]
fn a_choice_is_a_model_for_what_comes_after_it() {
    let lab = Lab::new();
    let more = |choose: &str| {
        format!(
            r#"
            [[probe]]
            name = "response"
            models = ["base", "v3@1", "v3@2"]
            tags = ["blurry"]
            placebo = ["glorp"]
            size = "64x64"
            steps = 1
            seeds = 6
            sample = 4
            prompts = [{{ prompt = "a red circle", expect = ["circle"] }}]
            [[choose]]
            name = "best"
            probe = "response"
            tag = "blurry"
            max_adherence_loss = 1.0
            max_fried = 1.0
            {choose}
            [[merge]]
            name = "best-with-v2"
            method = "weighted-sum"
            a = "best"
            b = "v2"
            multiplier = 0.5
            "#
        )
    };
    lab.write_recipe(0.3, 2, &more("choose = \"v3@1\""));
    let text = lab.vodka("status", 0);
    assert!(text.contains("waits  choose best: for `probe response`"), "{text}");
    assert!(text.contains("waits  merge best-with-v2: for `choose best`"), "{text}");
    let text = lab.vodka("run", 0);
    assert!(line(&text, "choose best").contains("v3@1: chosen in the recipe"), "{text}");
    assert!(text.contains("probes/response/index.html") && text.contains("chosen/best/index.html"), "{text}");
    let first = lab.record("mixes/best-with-v2.safetensors");
    assert!(lab.vodka("run", 0).contains("nothing to do"));

    // Another choice makes another mix, and nothing else anew.
    lab.write_recipe(0.3, 2, &more("choose = \"v3@2\""));
    let text = lab.vodka("run", 0);
    assert!(line(&text, "probe response").contains("unchanged"), "{text}");
    assert_ne!(lab.record("mixes/best-with-v2.safetensors"), first);

    lab.write_recipe(0.3, 2, &more("choose = \"v3@3\""));
    assert!(lab.vodka("run", 2).contains("has no model `v3@3`, did you mean `v3@1`?"));
    lab.write_recipe(0.3, 2, &more("").replace("probe = \"response\"", "probe = \"responce\""));
    assert!(lab.vodka("run", 2).contains("asks for the probe `responce`"));
    lab.write_recipe(0.3, 2, &more("").replace("\"base\", \"v3@1\"", "\"best\", \"v3@1\""));
    assert!(lab.vodka("run", 2).contains("is made of itself"));
}

#[test]
fn pictures_are_left_out_and_a_captioner_s_captions_mixed_in() {
    let lab = Lab::new();
    fs::create_dir(lab.at("theirs")).unwrap();
    let names = || fs::read_dir(lab.at("pictures")).unwrap().map(|entry| entry.unwrap().path());
    let pictures: Vec<_> = names().filter(|path| path.extension().unwrap() != "txt").collect();
    for picture in &pictures {
        let caption = lab.at("theirs").join(picture.with_extension("txt").file_name().unwrap());
        fs::write(caption, "in other words").unwrap();
    }
    let out = pictures[0].file_name().unwrap().to_str().unwrap();
    let more = |share: f64| {
        let query = format!("not name:\"{out}\"");
        format!(
            "[filter]\nquery = {query:?}\n[recaption]\ncaptions = \"theirs\"\nmodel = \"blip\"\nshare = {share}\n"
        )
    };
    lab.write_recipe(0.3, 2, &more(1.0));
    assert!(lab.vodka("status", 0).contains("waits  caption: for `tag`"));
    let text = lab.vodka("run", 0);
    assert!(line(&text, "filter").contains("7"), "{text}");
    let captions = || -> Vec<String> {
        let files = fs::read_dir(lab.at("out/captions")).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "txt"));
        files.map(|path| fs::read_to_string(path).unwrap()).collect()
    };
    assert_eq!(captions().len(), 7);
    assert!(
        captions().iter().all(|caption| caption.trim_end().ends_with("in other words")),
        "{:?}",
        captions()
    );
    let audit = fs::read_to_string(lab.at("out/train/v3/audit.csv")).unwrap();
    assert!(!audit.contains(out), "{audit}");
    assert!(lab.vodka("run", 0).contains("nothing to do"));
    assert!(lab.vodka("status", 0).lines().all(|line| line.starts_with("done")));

    lab.write_recipe(0.3, 2, &more(0.0));
    let text = lab.vodka("run", 0);
    assert!(
        line(&text, "filter").contains("unchanged") && line(&text, "recaption").contains("unchanged"),
        "{text}"
    );
    assert!(captions().iter().all(|caption| !caption.contains("in other words")), "{:?}", captions());

    lab.write_recipe(0.3, 2, &more(1.5));
    assert!(lab.vodka("run", 2).contains("the settings of `mix` are wrong"));
    lab.write_recipe(0.3, 2, "[filter]\nquery = \"not tag:blury>0.9\"\n");
    let text = lab.vodka("run", 2);
    assert!(text.contains("blury") && text.contains("did you mean"), "{text}");
}

#[test]
fn a_training_that_was_killed_ends_with_the_same_bytes() {
    let undisturbed = Lab::new();
    undisturbed.write_recipe(0.3, 12, "");
    undisturbed.vodka("run", 0);

    let in_training = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.lines().count() >= 3);
    // Whoever watches may come too late, on a machine with other work: then all of it begins again.
    let lab = loop {
        let lab = Lab::new();
        lab.write_recipe(0.3, 12, "");
        let losses = lab.at("out/train/v3/losses.csv");
        let mut child =
            lab.command("run").stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary runs");
        while !in_training(&losses) && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert!(in_training(&losses), "it ended before it trained: {status}");
        if !lab.at("out/train/v3.run.json").exists() {
            break lab;
        }
    };
    assert!(line(&lab.vodka("status", 0), "due    train v3").contains("not made yet"));
    let notebook = || fs::read_to_string(lab.at("out/notebook.html")).unwrap();
    assert!(notebook().contains("At work: train v3") && notebook().contains("http-equiv=\"refresh\""));

    lab.vodka("run", 0);
    assert!(!notebook().contains("At work") && !notebook().contains("http-equiv=\"refresh\""));
    let hashes = |lab: &Lab| -> Vec<_> {
        lab.checkpoints().iter().map(|path| vodka_stage::hash_file(path).unwrap()).collect()
    };
    assert_eq!(hashes(&lab), hashes(&undisturbed));
    assert_eq!(lab.record("grids/mixes"), undisturbed.record("grids/mixes"));
}

/// The recipe with two trainings more, as many at a time as `at_once` says.
fn write_trainings(lab: &Lab, at_once: usize, last: &str) {
    let training = |name: &str, rest: &str| {
        format!(
            "\n[[train]]\nname = {name:?}\nbase = \"base\"\ncaptions = \"original\"\n[train.config]\nresolution = 64\n\
             batch_size = 2\nmax_epochs = 2\nlr = 1e-4\n{rest}\n"
        )
    };
    lab.write_recipe(0.3, 2, &(training("control", "threads = 1") + &training("late", last)));
    let text = fs::read_to_string(lab.at("recipe.toml")).unwrap();
    let more = format!("output = \"out\"\ntrainings_at_once = {at_once}\n");
    fs::write(lab.at("recipe.toml"), text.replacen("output = \"out\"", &more, 1)).unwrap();
}

#[test]
fn trainings_side_by_side_end_with_the_same_bytes() {
    let names = ["v3", "control", "late"];
    let trained = |at_once: usize| {
        let lab = Lab::new();
        write_trainings(&lab, at_once, "threads = 1");
        let text = lab.vodka("run", 0);
        names.iter().for_each(|name| assert!(line(&text, &format!("train {name}")).contains("done")));
        names.map(|name| lab.record(&format!("train/{name}")))
    };
    assert_eq!(trained(1), trained(2));
}

#[test]
fn a_training_that_fails_leaves_those_beside_it_to_end() {
    let lab = Lab::new();
    write_trainings(&lab, 2, "threads = 1");
    // A folder stands where the control's list of losses goes.
    fs::create_dir_all(lab.at("out/train/control/log.jsonl")).unwrap();
    let text = lab.vodka("run", 1);
    assert!(text.contains("train control") && text.contains("log.jsonl"), "{text}");
    assert!(line(&text, "train v3").contains("done"), "{text}");
    assert!(!lab.at("out/train/late").exists() && !lab.at("out/grids").exists());
    let notebook = fs::read_to_string(lab.at("out/notebook.html")).unwrap();
    assert!(!notebook.contains("http-equiv=\"refresh\"") && notebook.contains("train control"), "{notebook}");

    fs::remove_dir(lab.at("out/train/control/log.jsonl")).unwrap();
    let text = lab.vodka("run", 0);
    assert!(line(&text, "train v3").contains("unchanged"), "{text}");
    assert!(line(&text, "train control").contains("done") && line(&text, "train late").contains("done"));
}

#[test]
fn trainings_side_by_side_need_the_same_of_what_a_process_has_once() {
    let lab = Lab::new();
    for (other, key, values) in [
        ("threads = 2", "threads", ["1", "2"]),
        ("", "threads", ["1", "not set"]),
        ("threads = 1\ntf32 = false", "tf32", ["true", "false"]),
        ("threads = 1\ndeterministic = true", "deterministic", ["false", "true"]),
    ] {
        write_trainings(&lab, 2, other);
        if key != "threads" {
            // On a processor they do nothing.
            lab.vodka("status", 0);
            let text = fs::read_to_string(lab.at("recipe.toml")).unwrap();
            let of_gpu = "output = \"out\"\ndevice = \"cuda\"\n";
            fs::write(lab.at("recipe.toml"), text.replacen("output = \"out\"\n", of_gpu, 1)).unwrap();
        }
        let text = lab.vodka("run", 2);
        let [first, last] = values;
        let expected = format!(
            "`workflow.trainings_at_once` is 2, for which all trainings need the same `{key}`: it is {first} for `v3` \
             and {last} for `late`"
        );
        assert!(text.contains(&expected), "{text}");
        write_trainings(&lab, 1, other);
        lab.vodka("status", 0);
    }
}

#[test]
fn a_bad_picture_is_listed_and_the_rest_goes_on() {
    let lab = Lab::new();
    fs::write(lab.at("pictures/broken.png"), "this is no picture").unwrap();
    fs::write(lab.at("pictures/broken.txt"), "a broken thing").unwrap();
    let text = lab.vodka("run", 3);
    assert!(text.contains("skipped broken.png"), "{text}");
    assert!(lab.at("out/grids/mixes/grid.png").exists());
}

#[test]
fn a_wrong_recipe_is_told_with_its_line_and_the_nearest_name() {
    let lab = Lab::new();
    lab.write_recipe(0.3, 2, "multiplyer = 2.0");
    let text = lab.vodka("run", 2);
    assert!(text.contains("recipe.toml` line") && text.contains("did you mean `multiplier`?"), "{text}");

    let grid = "[[grid]]\nname = \"other\"\nmodels = [\"v3@3\"]\nprompts = [{ prompt = \"x\" }]";
    lab.write_recipe(0.3, 2, grid);
    let text = lab.vodka("run", 2);
    assert!(text.contains("there is no model `v3@3`, did you mean `v3@1`?"), "{text}");
    assert!(!lab.at("out").exists(), "nothing was made");

    let grid =
        "[[grid]]\nname = \"other\"\nmodels = [\"v3\"]\nsize = \"100x64\"\nprompts = [{ prompt = \"x\" }]";
    lab.write_recipe(0.3, 2, grid);
    let text = lab.vodka("run", 2);
    assert!(
        text.contains("the settings of `grid other` are wrong") && text.contains("multiples of 8"),
        "{text}"
    );
    assert!(!lab.at("out").exists(), "told before the first job");

    fs::remove_file(lab.at("recipe.toml")).unwrap();
    assert!(lab.vodka("run", 2).contains("cannot read the configuration"));
}

#[test]
fn init_writes_a_recipe_and_never_over_one() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("recipe.toml");
    let init =
        || Command::new(assert_cmd::cargo::cargo_bin!("vodka")).arg("init").arg(&recipe).output().unwrap();
    let shown =
        Command::new(assert_cmd::cargo::cargo_bin!("vodka")).args(["init", "--dry-run"]).output().unwrap();
    assert!(said(&shown, 0).contains("lr = 1.5e-7"));
    said(&init(), 0);
    assert!(fs::read_to_string(&recipe).unwrap().contains("lr = 1.5e-7"));
    assert!(said(&init(), 2).contains("is there already"));
    let run = Command::new(assert_cmd::cargo::cargo_bin!("vodka")).arg("run").arg(&recipe).output().unwrap();
    let text = said(&run, 2);
    assert!(text.contains("the model `base` is not at"), "{text}");
}

#[test]
fn a_tagger_may_be_named_as_the_hub_names_it() {
    let lab = Lab::new();
    let text = fs::read_to_string(lab.at("recipe.toml")).unwrap();
    let folder = format!("model = {:?}", fixture("tagger"));
    assert!(text.contains(&folder));
    fs::write(lab.at("recipe.toml"), text.replace(&folder, "model = \"someone/a-tagger\"")).unwrap();
    let status = || lab.command("status").env("HF_HUB_CACHE", lab.at("hub")).output().unwrap();
    let found = said(&status(), 2);
    assert!(found.contains("the model `someone/a-tagger@main` is not in the hub's cache"), "{found}");

    // As the hub's tools lay out what they have downloaded.
    let (repository, commit) =
        (lab.at("hub/models--someone--a-tagger"), "0123456789abcdef0123456789abcdef01234567");
    let snapshot = repository.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), commit).unwrap();
    for file in ["model.onnx", "selected_tags.csv"] {
        fs::copy(fixture("tagger").join(file), snapshot.join(file)).unwrap();
    }
    let found = said(&status(), 0);
    assert!(line(&found, "due").contains("tag: not made yet"), "{found}");
}

#[test]
fn a_tag_that_the_vocabulary_lacks_is_the_recipe_s_fault() {
    let lab = Lab::new();
    let text = fs::read_to_string(lab.at("recipe.toml")).unwrap();
    let wrong = text.replace("include = [\"blurry\"]", "include = [\"blury\"]");
    fs::write(lab.at("recipe.toml"), wrong).unwrap();
    let found = lab.vodka("run", 2);
    assert!(found.contains("no tag `blury` in") && found.contains("did you mean `blurry`?"), "{found}");
}
