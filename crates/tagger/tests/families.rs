//! Every built-in family on a small model of its exact form, against what Python makes of the same pictures.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "`--nocapture` shows the table of differences")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use vodka_images::{RgbImage, decode};
use vodka_tagger::{
    Category, Channels, Description, Error, Fit, Picture, Profile, Resampler, Tagger, TaggerConfig,
    Thresholds, families, mcut, to_tensor,
};
use vodka_testkit::{Case, fixture, onnxruntime};

fn config(model: &Path) -> TaggerConfig {
    TaggerConfig { model: model.into(), onnxruntime: onnxruntime(), threads: 1, ..TaggerConfig::default() }
}

fn open(model: &str) -> Tagger {
    Tagger::open(&config(&fixture(&format!("tagger-families/{model}")))).unwrap()
}

fn message(model: &Path) -> String {
    let error = Tagger::open(&config(model)).unwrap_err();
    let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

fn picture(name: &str) -> Picture {
    decode(&fixture(&format!("images/awkward/{name}"))).unwrap()
}

/// The pictures that a family has golden scores of.
fn pictures(case: &Case, family: &str) -> Vec<String> {
    let start = format!("{family}/");
    case.names().iter().filter_map(|name| name.strip_prefix(&start)).map(str::to_owned).collect()
}

/// A copy of a model's folder with one more file.
fn with_file(model: &str, name: &str, content: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join(model);
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(fixture(&format!("tagger-families/{model}"))).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    fs::write(to.join(name), content).unwrap();
    (dir, to)
}

fn largest_difference(case: &Case, name: &str, row: &[f32]) -> f32 {
    let golden = case.array(name).data;
    row.iter().zip(golden).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_family_scores_and_tags_as_its_authors_do() {
    let case = Case::open("tagger-families");
    let text = fs::read_to_string(case.path().join("tags.json")).unwrap();
    let tags: BTreeMap<String, BTreeMap<String, Vec<String>>> = serde_json::from_str(&text).unwrap();
    println!("{:<14}{:>7}{:>6}{:>10}{:>16}", "family", "labels", "side", "pictures", "largest |d|");
    for family in families() {
        let tagger = open(family);
        let names = pictures(&case, family);
        let pictures: Vec<_> = names.iter().map(|name| picture(name)).collect();
        let prepared: Vec<_> = pictures.iter().map(|picture| tagger.prepare(picture)).collect();
        let scored = tagger.score_with_embeddings(&prepared).unwrap();
        let mut largest = 0.0_f32;
        for (i, name) in names.iter().enumerate() {
            let (row, golden) = (scored.scores.row(i).to_vec(), format!("{family}/{name}"));
            largest = largest.max(largest_difference(&case, &golden, &row));
            case.check(&golden, &row, &[tagger.labels().len()]);
            let found: Vec<_> = tagger.tag(&pictures[i]).unwrap().into_iter().map(|tag| tag.name).collect();
            assert_eq!(found, tags[family][name], "{golden}");
            if let Some(embeddings) = &scored.embeddings {
                let row = embeddings.row(i).to_vec();
                case.check(&format!("embedding/{golden}"), &row, &[row.len()]);
            }
        }
        let (labels, side) = (tagger.labels().len(), tagger.size_px());
        println!("{family:<14}{labels:>7}{side:>6}{:>10}{largest:>16.1e}", names.len());
        assert_eq!(names.len(), if family == "deepdanbooru" { 4 } else { 5 });
    }
}

#[test]
fn every_family_is_found_by_its_files_and_its_graph() {
    for family in families() {
        let tagger = open(family);
        let named = TaggerConfig {
            family: Some(family.into()),
            ..config(&fixture(&format!("tagger-families/{family}")))
        };
        let by_name = Tagger::open(&named).unwrap();
        // WD v1.4 and v3 differ in nothing but the thresholds of models that go by their names.
        let expected = if family == "wd-v1.4" { "wd-v3" } else { family };
        assert_eq!(tagger.description().family.as_deref(), Some(expected));
        assert_eq!(by_name.description().family.as_deref(), Some(family));
        assert_eq!(tagger.description().output, by_name.description().output);
        assert_eq!(tagger.labels(), by_name.labels());
    }
}

/// The largest difference to the golden scores when a family is changed by a few lines of a model.toml.
fn difference(case: &Case, family: &str, change: &str) -> f32 {
    let (_dir, folder) = with_file(family, "model.toml", &format!("family = \"{family}\"\n{change}\n"));
    let tagger = Tagger::open(&config(&folder)).unwrap();
    let of = |name: &String| {
        let row = tagger.score(&[tagger.prepare(&picture(name))]).unwrap().row(0).to_vec();
        largest_difference(case, &format!("{family}/{name}"), &row)
    };
    pictures(case, family).iter().map(of).fold(0.0, f32::max)
}

#[test]
fn no_rule_of_a_family_could_be_another() {
    let case = Case::open("tagger-families");
    for family in families() {
        let rules = Description::family(family).unwrap();
        let steps = rules.preprocess.is_some();
        let mut changes = vec![
            match rules.tensor.channels {
                Channels::Rgb => "[tensor]\nchannels = \"bgr\"",
                Channels::Bgr => "[tensor]\nchannels = \"rgb\"",
            },
            "[picture]\nunder = [255, 0, 255]",
        ];
        // Steps beside the model go before what a model.toml says of the rest.
        if !steps {
            changes.push(match rules.picture.resampler {
                Resampler::Bilinear => "[picture]\nresampler = \"lanczos\"",
                _ => "[picture]\nresampler = \"bilinear\"",
            });
            changes.push(match rules.picture.fit {
                Fit::Squash => "[picture]\nfit = \"pad\"",
                _ => "[picture]\nfit = \"squash\"",
            });
            changes.push("[tensor]\nmean = [0.1, 0.2, 0.3]");
            changes.push("[tensor]\nstd = [0.9, 1.1, 1.2]");
            changes.push("[tensor]\nscale = 200.0");
        }
        if !steps && matches!(rules.picture.fit, Fit::Pad | Fit::ResizeThenPad) {
            changes.push("[picture]\npad = [0, 255, 0]");
        }
        assert_eq!(difference(&case, family, "").max(1e-6), 1e-6, "{family} as it is");
        for change in changes {
            let found = difference(&case, family, change);
            assert!(found > 1e-4, "{family}: {change}: {found}");
        }
    }
}

#[test]
fn the_input_is_the_original_s_to_the_bit() {
    let case = Case::open("tagger-families");
    for name in case.names() {
        let Some(family) = name.strip_prefix("tensor/") else { continue };
        let tagger = open(family);
        let prepared = tagger.prepare(&picture("odd.png"));
        let tensor = to_tensor(&[prepared], &tagger.description().tensor);
        case.check(&name, &tensor, &case.array(&name).shape);
    }
}

#[test]
fn the_cut_is_the_demo_s() {
    let case = Case::open("tagger-families");
    let cuts: Vec<_> = case.names().into_iter().filter(|name| name.ends_with("/threshold")).collect();
    assert_eq!(cuts.len(), 7);
    for name in cuts {
        let scores = case.array(&name.replace("threshold", "scores")).data;
        case.check(&name, &[mcut(&scores).unwrap()], &[1]);
    }
}

#[test]
fn a_fixed_batch_and_a_largest_batch_change_nothing() {
    let free = open("wd-v3");
    let pictures: Vec<_> =
        ["odd.png", "rgba.png", "small.png", "row.png", "column.png", "la.png"].map(picture).into();
    let prepared: Vec<_> = pictures.iter().map(|picture| free.prepare(picture)).collect();
    let expected = free.score(&prepared).unwrap();
    let (_dir, limited) = with_file("wd-v3", "model.toml", "family = \"wd-v3\"\nmax_batch = 4\n");
    for tagger in [open("batch-of-four"), Tagger::open(&config(&limited)).unwrap()] {
        for count in [1, 3, 4, 6] {
            let scores = tagger.score(&prepared[..count]).unwrap();
            let difference =
                (&scores - &expected.slice(vodka_tagger::ndarray::s![..count, ..])).mapv(f32::abs);
            assert!(difference.iter().all(|d| *d < 1e-6), "{count}: {difference}");
        }
        assert_eq!(tagger.tag_batch(&pictures).unwrap(), free.tag_batch(&pictures).unwrap());
    }
    let of = |prepared: &[RgbImage]| {
        open("batch-of-four").score_with_embeddings(prepared).unwrap().embeddings.unwrap()
    };
    let (all, last) = (of(&prepared), of(&prepared[5..]));
    assert_eq!((all.dim(), last.dim()), ((6, 8), (1, 8)));
    assert!(
        all.row(5).iter().zip(last.row(0)).all(|(a, b)| (a - b).abs() < 1e-5) && all.row(0) != all.row(5)
    );
}

#[test]
fn the_name_of_a_model_sets_its_threshold() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("models--SmilingWolf--wd-v1-4-moat-tagger-v2/snapshots/8452cddf");
    fs::create_dir_all(&folder).unwrap();
    for name in ["model.onnx", "selected_tags.csv"] {
        fs::copy(fixture("tagger-families/wd-v1.4").join(name), folder.join(name)).unwrap();
    }
    let tagger = Tagger::open(&config(&folder)).unwrap();
    assert_eq!(tagger.description().family.as_deref(), Some("wd-v1.4"));
    assert_eq!(tagger.thresholds().defaults[&Category::General], 0.3771);
    assert_eq!(tagger.thresholds().defaults[&Category::Character], 0.85);
    assert_eq!(open("wd-v3").thresholds().defaults[&Category::General], 0.35);
}

#[test]
fn a_description_beside_the_model_goes_before_what_the_files_say() {
    let swapped =
        "family = \"wd-v3\"\n[tensor]\nchannels = \"rgb\"\n[thresholds]\ncategories = { general = 0.0 }\n";
    let (_dir, folder) = with_file("wd-v3", "model.toml", swapped);
    let tagger = Tagger::open(&config(&folder)).unwrap();
    let (mine, theirs) =
        (tagger.tag(&picture("rgba.png")).unwrap(), open("wd-v3").tag(&picture("rgba.png")).unwrap());
    assert_ne!(mine[0].score, theirs[0].score);
    assert_eq!(mine.of(Category::General).count(), 10);
    // A family that is named goes before it.
    let named = TaggerConfig { family: Some("wd-v3".into()), ..config(&folder) };
    assert_eq!(Tagger::open(&named).unwrap().tag(&picture("rgba.png")).unwrap(), theirs);
    // A model of no family at all.
    let whole = "[picture]\nfit = \"squash\"\nresampler = \"bilinear\"\n[output]\nscores = -1\nembedding = 0\n\
        [[labels]]\nfile = \"selected_tags.csv\"\nkind = \"csv\"\n";
    let (_dir, folder) = with_file("pixai-v0.9", "model.toml", whole);
    let tagger = Tagger::open(&config(&folder)).unwrap();
    assert_eq!(tagger.description().family, None);
    let scored = tagger.score_with_embeddings(&[tagger.prepare(&picture("odd.png"))]).unwrap();
    assert_eq!((scored.scores.dim(), scored.embeddings.unwrap().dim()), ((1, 13), (1, 8)));
}

#[test]
fn what_could_be_two_families_must_be_named() {
    let labels = fs::read_to_string(fixture("tagger-families/joytag/top_tags.txt")).unwrap();
    let (_dir, folder) = with_file("ml-danbooru", "top_tags.txt", &labels);
    let found = message(&folder);
    let expected = "could be of the families `joytag`, `ml-danbooru`; name one, or write `family = ...` into a model.toml";
    assert!(found.contains(expected), "{found}");
    let named = TaggerConfig { family: Some("ml-danbooru".into()), ..config(&folder) };
    assert_eq!(Tagger::open(&named).unwrap().labels().len(), 13);
    let named = TaggerConfig { family: Some("mldanbooru".into()), ..config(&folder) };
    let found = Tagger::open(&named).unwrap_err();
    assert!(matches!(found, Error::UnknownFamily { .. }), "{found}");
}

#[test]
fn a_wrong_description_is_told() {
    let cases = [
        ("joytag", "[output]\nactivation = \"none\"", "its outputs are logits; set activation = \"sigmoid\""),
        ("wd-v3", "[output]\nactivation = \"sigmoid\"", "already probabilities; set activation = \"none\""),
        (
            "joytag",
            "[tensor]\nlayout = \"nhwc\"",
            "expected one input, float32 [batch, side, side, 3], found `input`",
        ),
        (
            "joytag",
            "[output]\nscores = 1",
            "expected float32 [batch, tags] as output 1, found the outputs `tags` Tensor<f32>",
        ),
        ("joytag", "[output]\ncount = 2", "expected 2 outputs, found the outputs `tags`"),
        ("camie-v1", "[output]\ncount = 1", "expected 1 outputs, found the outputs `initial_logits`"),
        (
            "joytag",
            "[[labels]]\nfile = \"none.txt\"\nkind = \"text\"",
            "has no `none.txt` (the names of the tags",
        ),
        ("joytag", "network = []", "`network`: expected a name at least"),
        (
            "z3d-e621",
            "[[labels]]\nfile = \"tags-selected.csv\"\nkind = \"csv\"\ncolumns = [\"ips\"]",
            "has no column `ips`",
        ),
        ("joytag", "[pictures]\nsize = 1", "unknown field `pictures`, did you mean `picture`?"),
        ("cl-tagger-v1", "[output]\nembedding = 7", ""),
    ];
    for (family, changes, expected) in cases {
        let (keys, tables) = if changes.starts_with('[') { ("", changes) } else { (changes, "") };
        let text = format!("family = \"{family}\"\n{keys}\n{tables}\n");
        let (_dir, folder) = with_file(family, "model.toml", &text);
        match Tagger::open(&config(&folder)) {
            Ok(tagger) => {
                assert_eq!(expected, "", "{family}: {changes}");
                assert_eq!(tagger.score_with_embeddings::<RgbImage>(&[]).unwrap().embeddings, None);
            }
            Err(_) => {
                let found = message(&folder);
                assert!(!expected.is_empty() && found.contains(expected), "{family}: {changes}: {found}");
            }
        }
    }
    let free = "[[labels]]\nfile = \"mldanbooru_tags.csv\"\nkind = \"csv\"\ncategory = \"general\"\n";
    let (_dir, folder) = with_file("ml-danbooru", "model.toml", free);
    assert!(message(&folder).contains("expected a fixed side, or `picture.size` in a model.toml"));
}

#[test]
fn labels_must_be_as_many_as_outputs() {
    let (_dir, folder) = with_file("joytag", "top_tags.txt", "a\nb\n");
    let found = message(&folder);
    assert!(found.contains("scores 13 tags, but") && found.contains("top_tags.txt` has 2"), "{found}");
    let beyond = r#"{"0": {"tag": "a", "category": "General"}, "99": {"tag": "b", "category": "General"}}"#;
    let (_dir, folder) = with_file("cl-tagger-v1", "tag_mapping.json", beyond);
    assert!(message(&folder).contains("they do not belong together"));
}

#[test]
fn steps_beside_the_model_are_followed_or_refused() {
    let steps = fs::read_to_string(fixture("tagger-families/animetimm/preprocess.json")).unwrap();
    let (_dir, folder) = with_file("animetimm", "preprocess.json", &steps.replace("resize", "rotate"));
    let found = message(&folder);
    assert!(
        found.contains("`test[1]`: expected pad_to_size, resize") && found.contains("\"rotate\""),
        "{found}"
    );
    let (_dir, folder) = with_file("animetimm", "preprocess.json", &steps.replace("48", "40"));
    assert!(message(&folder).contains("expected a side of 40, as the steps beside it make it"));
    let (_dir, folder) = with_file("animetimm", "preprocess.json", "{}");
    assert!(message(&folder).contains("expected a list of steps"));
    let named = TaggerConfig { family: Some("animetimm".into()), ..config(&fixture("tagger-tiny/nchw")) };
    let found = Tagger::open(&named).unwrap_err().to_string();
    assert!(found.contains("has no `preprocess.json` (how pictures are prepared)"), "{found}");
}

#[test]
fn profiles_differ_a_little() {
    let folder = fixture("tagger-families/wd-v3");
    let open = |profile| Tagger::open(&TaggerConfig { profile, ..config(&folder) }).unwrap();
    let of = |profile: Profile| open(profile).prepare(&picture("odd.png")).into_raw();
    let (reference, kohya) = (of(Profile::Reference), of(Profile::Kohya));
    let mean = reference.iter().zip(&kohya).map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>()
        / reference.len() as f64;
    assert!(mean > 0.0 && mean < 8.0, "{mean}");
    assert_eq!(reference, of(Profile::Fast));
    let camie = TaggerConfig { profile: Profile::Kohya, ..config(&fixture("tagger-families/camie-v2")) };
    let found = Tagger::open(&camie).unwrap_err().to_string();
    assert!(
        found.contains("`kohya` is for families that pad a picture and then resize it; `camie-v2` does not")
    );
}

#[test]
fn thresholds_can_be_one_s_own() {
    let tagger = open("wd-v3");
    let everything = tagger.labels().iter().filter(|label| label.category != Category::Rating).count();
    let tagger = tagger.with_thresholds(Thresholds::at(0.0));
    let tags = tagger.tag(&picture("odd.png")).unwrap();
    assert_eq!((tags.len(), tags.ratings().len()), (everything, 4));
    assert!(tags.is_sorted_by(|a, b| a.score >= b.score));
    assert_eq!(
        tags.rating().map(|tag| tag.score),
        tags.ratings().iter().map(|tag| tag.score).max_by(f32::total_cmp)
    );
}

#[test]
fn a_family_s_file_is_a_model_toml() {
    for family in families() {
        let text = toml::to_string(&Description::family(family).unwrap()).unwrap();
        let (_dir, folder) = with_file(family, "model.toml", &text);
        let tagger = Tagger::open(&config(&folder)).unwrap();
        assert_eq!(tagger.tag(&picture("odd.png")).unwrap(), open(family).tag(&picture("odd.png")).unwrap());
    }
}

#[test]
fn the_example_in_the_readme_says_everything() {
    let readme = include_str!("../README.md");
    let example = readme.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let described = Description::parse(example, Path::new("README.md")).unwrap();
    let keys = |text: &str| {
        let table: toml::Table = text.parse().unwrap();
        let of = |(key, value): (&String, &toml::Value)| match value
            .as_array()
            .map_or(Some(value), |all| all.first())
        {
            Some(toml::Value::Table(inner)) => inner.keys().map(|inner| format!("{key}.{inner}")).collect(),
            _ => vec![key.clone()],
        };
        let mut keys: Vec<String> = table.iter().flat_map(of).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(example), keys(&toml::to_string(&described).unwrap()));
}
