//! Reports: every page is taken apart; names of all kinds, missing and broken pictures, interruption, foreign files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use regex::Regex;
use tempfile::TempDir;
use vodka_captions::{
    analysis,
    caption::{self, CaptionConfig},
    filter::{self, Action, FilterConfig},
    query::Dataset,
    report::{self, GalleryConfig, ReportConfig, ReportData, ReportEvent, ReportSummary},
};
use vodka_stage::{Interrupt, Outcome, Report, record_path};

/// A picture of one colour, `width` x 30.
fn picture(width: u32, grey: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, 30);
    encoder.set_color(png::ColorType::Grayscale);
    let pixels = vec![grey; width as usize * 30];
    encoder.write_header().unwrap().write_image_data(&pixels).unwrap();
    bytes
}

fn write(dir: &TempDir, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn config(dir: &TempDir, groups: &[&str]) -> ReportConfig {
    let at = |name: &str| dir.path().join(name);
    ReportConfig {
        tags: at("tags.csv"),
        selection: at("selection.csv"),
        images: at("images"),
        output: at("report"),
        min_score: 0.3,
        groups: groups.iter().map(|word| (*word).to_owned()).collect(),
        pictures: None,
        labels: None,
        gallery: GalleryConfig::default(),
    }
}

/// Two pictures, a table and a selection.
fn world() -> (TempDir, ReportConfig) {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "images/a.png", picture(40, 10));
    write(&dir, "images/a.txt", "a heart");
    write(&dir, "images/b.png", picture(50, 200));
    write(&dir, "selection.csv", "name,include\nsolo,1\nblurry_background,1\n");
    write(
        &dir,
        "tags.csv",
        "image,tag_id,tag,category,score\na.png,1,blurry_background,general,0.9\n\
         a.png,2,very blurry background_art,general,0.4\nb.png,3,background_blurry,general,0.4\n\
         b.png,4,unblurry_background,general,0.4\nb.png,5,night,general,0.4\nb.png,6,solo,general,0.37\n",
    );
    let config = config(&dir, &["Blurry background", "night", "qqq"]);
    (dir, config)
}

fn run(config: &ReportConfig) -> ReportSummary {
    report::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap()
}

fn error(config: &ReportConfig) -> String {
    report::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap_err().to_string()
}

/// The files below a folder with their content, without the hidden ones.
fn tree(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).into_iter().flatten() {
            let name = folder.join(entry.unwrap().file_name());
            if root.join(&name).is_dir() {
                folders.push(name);
            } else if !name.file_name().unwrap().to_string_lossy().starts_with('.') {
                files.insert(name.to_string_lossy().replace('\\', "/"), fs::read(root.join(&name)).unwrap());
            }
        }
    }
    files
}

#[test]
fn a_group_of_two_words_is_found_and_one_without_a_selected_tag_is_named() {
    let (_dir, config) = world();
    let summary = run(&config);
    assert_eq!(summary.outcome, Outcome::Done);
    assert_eq!(summary.groups[0].tags, ["blurry_background", "very_blurry_background_art"]);
    assert_eq!(summary.groups[0].selected, ["blurry_background"]);
    let markdown = fs::read_to_string(config.output.join("report.md")).unwrap();
    assert!(markdown.contains("have a tag with `qqq` at any score; no selected tag has it\n"), "{markdown}");
    let text = summary.to_string();
    for line in [
        "50.0 % of the pictures have a tag with `blurry_background` at any score\n",
        "50.0 % of the pictures have a tag with `night` at any score; no selected tag has it\n",
        "0.0 % of the pictures have a tag with `qqq` at any score; no selected tag has it",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

/// Tags and pictures whose names mean something to HTML, to links, to file systems or to CSV.
const TAGS: [&str; 9] =
    ["blurry", ";)", ":)", r"\m/", "don't_say_\"lazy\"", "..", "<b>&amp;", "con", "日本語"];
const PICTURES: [&str; 7] = [
    "plain.png",
    "süb dir/50% <b>&\"quote\" #1.png",
    "süb dir/it's; a+b?=c.webp",
    "日本語 写真.jpg",
    "javascript:alert(1).png",
    "%2e%2e.png",
    "back\\slash & tab\t.png",
];

/// A dataset with all of them, a missing picture, a broken one and one without a row.
fn awkward() -> (TempDir, ReportConfig) {
    let dir = tempfile::tempdir().unwrap();
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["image", "tag_id", "tag", "category", "score"]).unwrap();
    let mut row = |image: &str, tag: &str, score: f64| {
        table.write_record([image, "1", tag, "general", &score.to_string()]).unwrap();
    };
    for (place, image) in PICTURES.iter().enumerate() {
        write(&dir, &format!("images/{image}"), picture(300 + place as u32, 30 * place as u8));
        for (other, tag) in TAGS.iter().enumerate() {
            row(image, tag, [0.36, 0.97, 0.2, 0.5][(place + other) % 4]);
        }
    }
    write(&dir, "images/broken.jpg", "no picture");
    write(&dir, "images/untagged.png", picture(20, 1));
    row("broken.jpg", "blurry", 0.99);
    row("gone <i>.png", "blurry", 0.99);
    row("plain.png", " Blurry ", 0.1);
    write(&dir, "tags.csv", table.into_inner().unwrap());
    let mut selection = csv::Writer::from_writer(Vec::new());
    selection.write_record(["name", "include"]).unwrap();
    for tag in TAGS.iter().map(|tag| (*tag).to_owned()).chain(["unused_".repeat(40)]) {
        selection.write_record([tag, "1".to_owned()]).unwrap();
    }
    write(&dir, "selection.csv", selection.into_inner().unwrap());
    let rows = "image,sharpness\nplain.png,100\n日本語 写真.jpg,20\n%2e%2e.png,300\n";
    write(&dir, "tags.pictures.csv", rows);
    let config = config(&dir, &["blurry", "<b>&amp;"]);
    (dir, config)
}

/// The value of each attribute called `name` in a page, with entities resolved.
fn attributes(page: &str, name: &str) -> Vec<String> {
    let pattern = Regex::new(&format!(r#"[ \n]{name}="([^"]*)""#)).unwrap();
    pattern.captures_iter(page).map(|found| unescaped(&found[1])).collect()
}

fn unescaped(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    text.replace("&#x27;", "'").replace("&#x2f;", "/").replace("&amp;", "&")
}

fn percent_decoded(link: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = link.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().unwrap(), rest.next().unwrap()].map(char::from);
            bytes.push(u8::from_str_radix(&digits.iter().collect::<String>(), 16).unwrap());
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Takes a page apart: every element that is opened is closed, in order; returns its text.
fn text_of(page: &str, name: &str) -> String {
    let void = ["meta", "link", "img", "input", "wbr"];
    let (mut open, mut text, mut rest) = (Vec::new(), String::new(), page);
    rest = rest.strip_prefix("<!DOCTYPE html>").unwrap_or(rest);
    while let Some(start) = rest.find('<') {
        text.push_str(&rest[..start]);
        let end = start + rest[start..].find('>').unwrap();
        let tag = &rest[start + 1..end];
        let word = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap().to_owned();
        assert!(word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()), "{name}: <{tag}>");
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(word), "{name}: <{tag}>");
        } else if !tag.ends_with('/') && !void.contains(&word.as_str()) {
            open.push(word);
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{name}: {open:?}");
    text + rest
}

#[cfg(unix)]
#[test]
fn every_page_is_whole_and_every_link_leads_somewhere() {
    let (_dir, config) = awkward();
    let summary = run(&config);
    let files = tree(&config.output);
    let pages: Vec<_> = files.keys().filter(|name| name.ends_with(".html")).collect();
    assert_eq!(pages.len(), 1 + TAGS.len() + 1);
    let mut originals = BTreeSet::new();
    for name in
        files.keys().filter(|name| [".html", ".svg", ".css", ".js"].iter().any(|end| name.ends_with(end)))
    {
        let text = std::str::from_utf8(&files[name]).unwrap();
        let own = text.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!own.contains("http://") && !own.contains("https://") && !own.contains("url("), "{name}");
        if name.ends_with(".css") || name.ends_with(".js") {
            continue;
        }
        text_of(text, name);
        let ids = attributes(text, "id");
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{name}: ids stand once");
        for link in attributes(text, "href").into_iter().chain(attributes(text, "src")) {
            if let Some(id) = link.strip_prefix('#') {
                assert!(ids.iter().any(|found| found == id), "{name}: {link}");
            } else if link != "data:," {
                assert!(
                    !link.contains([':', '\\', '"', '<', ' ']) && !link.starts_with('/'),
                    "{name}: {link}"
                );
                let path = config.output.join(name).parent().unwrap().join(percent_decoded(&link));
                assert!(path.exists(), "{name}: {link} leads to {}", path.display());
                if let Ok(image) =
                    path.canonicalize().unwrap().strip_prefix(config.images.canonicalize().unwrap())
                {
                    originals.insert(image.to_string_lossy().into_owned());
                }
            }
        }
    }
    let shown: BTreeSet<_> = PICTURES.iter().copied().chain(["broken.jpg"]).map(ToOwned::to_owned).collect();
    assert_eq!(originals, shown, "each picture is linked from where it is shown");
    assert_eq!(summary.shown, shown.len());
}

#[cfg(unix)]
#[test]
fn a_page_of_a_tag_compares_the_buckets_and_shows_names_as_they_are() {
    let (_dir, config) = awkward();
    run(&config);
    let data: ReportData =
        serde_json::from_slice(&fs::read(config.output.join("data.json")).unwrap()).unwrap();
    let images = Regex::new("<img [^>]*>").unwrap();
    for (tag, data_of_tag) in
        TAGS.iter().map(|tag| (tag, data.tags.iter().find(|data| data.tag == **tag).unwrap()))
    {
        let page = fs::read_to_string(config.output.join(format!("tags/{}.html", data_of_tag.slug))).unwrap();
        let text = unescaped(&text_of(&page, tag));
        assert!(text.contains(&format!("\n{tag}\n")), "{tag} is the heading\n{text}");
        let text = &text[text.find("Does the score mean what it says?").unwrap()..];
        let [high, low] = ["95 % and above", "35 to 40 %"].map(|name| text.find(name).unwrap());
        assert!(high < low && low < text.find("The other scores").unwrap_or(usize::MAX));
        let pictures: Vec<_> = data_of_tag.buckets.iter().flat_map(|bucket| &bucket.pictures).collect();
        assert_eq!(pictures.len(), if *tag == "blurry" { 8 } else { 7 });
        let mut shown = 0;
        for image in images.find_iter(&page) {
            let one = |name| attributes(image.as_str(), name).pop().unwrap();
            assert_eq!(one("loading"), "lazy");
            let alt = one("alt");
            let picture = pictures.iter().find(|picture| alt.starts_with(&picture.image)).unwrap();
            let thumbnail = picture.thumbnail.as_ref().unwrap();
            assert_eq!(
                [one("width"), one("height")],
                [thumbnail.width, thumbnail.height].map(|n| n.to_string())
            );
            assert_eq!((thumbnail.width, thumbnail.height < 30), (256, true));
            assert!(alt.ends_with(&format!(", {tag} {:.3}", picture.score)), "{alt}");
            shown += 1;
        }
        assert_eq!(shown, 7);
    }
}

#[cfg(unix)]
#[test]
fn missing_and_broken_pictures_are_listed() {
    let (_dir, config) = awkward();
    let summary = run(&config);
    assert_eq!(summary.outcome(), Outcome::Skipped);
    let text = summary.to_string();
    assert!(text.contains("\nskipped `gone <i>.png`: it is not in `"), "{text}");
    assert!(text.contains("\nskipped `broken.jpg`: expected PNG, JPEG, WebP, GIF or BMP, found"), "{text}");
    let problems = fs::read_to_string(config.output.join("problems.csv")).unwrap();
    assert!(problems.contains("untagged.png,not in the tag table\n"), "{problems}");
    let index = fs::read_to_string(config.output.join("index.html")).unwrap();
    for line in [
        "gone &lt;i&gt;.png: it is not in",
        "<li>untagged.png</li>",
        "blurry: &quot; Blurry &quot;, &quot;blurry&quot;",
        "unused_",
    ] {
        assert!(index.contains(line), "{line}\n{index}");
    }
    let page = fs::read_to_string(config.output.join("tags/blurry.html")).unwrap();
    assert!(page.contains("<span class=\"broken\">expected PNG"), "{page}");
    let again = run(&config);
    assert_eq!(again.outcome, Outcome::Unchanged);
    assert!(again.to_string().contains("is up to date\nskipped `gone"), "{again}");
}

#[test]
fn a_second_run_changes_nothing_and_another_place_gives_the_same_bytes() {
    let (dir, config) = world();
    run(&config);
    let (before, record) = (tree(&config.output), fs::read(record_path(&config.output)).unwrap());
    assert_eq!(run(&config).outcome, Outcome::Unchanged);
    assert_eq!(fs::read(record_path(&config.output)).unwrap(), record);
    let other = ReportConfig { output: dir.path().join("other"), ..config.clone() };
    assert_eq!(run(&other).outcome, Outcome::Done);
    assert_eq!(tree(&other.output), before);

    // A picture that is touched and is what it was is read, and changes nothing; another picture does.
    write(&dir, "images/a.png", picture(40, 10));
    assert_eq!(run(&config).outcome, Outcome::Unchanged);
    write(&dir, "images/a.png", picture(41, 10));
    assert_eq!(run(&config).outcome, Outcome::Done);
    let after = tree(&config.output);
    let thumbnails = |tree: &BTreeMap<String, Vec<u8>>| {
        tree.keys().filter(|name| name.starts_with("thumbnails/")).cloned().collect::<BTreeSet<_>>()
    };
    let [before, after] = [thumbnails(&before), thumbnails(&after)];
    assert_eq!((before.len(), after.len()), (2, 2));
    assert_eq!(before.intersection(&after).count(), 1, "the old one is gone, the other one stays");
}

#[test]
fn what_is_deleted_or_edited_is_made_again() {
    let (_dir, config) = world();
    run(&config);
    let before = tree(&config.output);
    let thumbnail = before.keys().find(|name| name.ends_with(".webp")).unwrap();
    fs::write(config.output.join(thumbnail), "no thumbnail").unwrap();
    fs::remove_file(config.output.join("style.css")).unwrap();
    assert_eq!(run(&config).outcome, Outcome::Done);
    assert_eq!(tree(&config.output), before);
}

#[test]
fn an_interrupted_report_has_no_index_and_goes_on() {
    let (_dir, config) = world();
    let plan = config.plan().unwrap();
    let all = {
        let mut count = 0;
        report::run(&plan, &Interrupt::new(), &mut |_| count += 1).unwrap();
        count
    };
    let whole = tree(&config.output);
    for events in 0..all {
        fs::remove_file(record_path(&config.output)).unwrap_or_default();
        let interrupt = Interrupt::new();
        let mut seen = 0;
        if events == 0 {
            fs::remove_dir_all(&config.output).unwrap();
            interrupt.raise();
        }
        let summary = report::run(&plan, &interrupt, &mut |_| {
            seen += 1;
            if seen == events {
                interrupt.raise();
            }
        });
        let summary = summary.unwrap();
        assert_eq!(summary.outcome, Outcome::Interrupted, "after {events} of {all} events");
        assert!(summary.to_string().starts_with("stopped before the report"), "{summary}");
        assert_eq!(config.output.exists(), events > 0, "one that is interrupted at once writes nothing");
        assert!(!config.output.join("index.html").exists() && !record_path(&config.output).exists());
        for (name, bytes) in tree(&config.output) {
            assert_eq!(bytes, whole[&name], "no half file: {name}");
        }
    }
    assert_eq!(run(&config).outcome, Outcome::Done);
    assert_eq!(tree(&config.output), whole);
}

#[test]
fn what_a_scrolling_table_is_about_does_not_scroll() {
    let (_dir, config) = world();
    run(&config);
    let index = fs::read_to_string(config.output.join("index.html")).unwrap();
    let boxes: Vec<_> = index.split("class=\"scroll\"").skip(1).collect();
    assert!(!boxes.is_empty());
    for text in boxes {
        let table = text.split("</table>").next().unwrap();
        assert!(table.contains("aria-labelledby") && !table.contains("<caption>"), "{table}");
    }
}

#[test]
fn the_index_is_written_last() {
    let (_dir, config) = world();
    let mut written = Vec::new();
    let plan = config.plan().unwrap();
    report::run(&plan, &Interrupt::new(), &mut |event| {
        if let ReportEvent::Wrote { path } = event {
            written.push(path);
        }
    })
    .unwrap();
    assert_eq!(written.last(), Some(&config.output.join("index.html")));
}

#[test]
fn foreign_files_stay_as_they_are() {
    let (dir, mut config) = world();
    write(&dir, "report/notes.txt", "mine");
    let text = error(&config);
    assert!(
        text.ends_with(
            "report` holds `notes.txt`, and no `.vodka-files` there says that a report has written it: choose an empty folder, or delete this one"
        ),
        "{text}"
    );
    assert_eq!(fs::read_dir(&config.output).unwrap().count(), 1);
    fs::remove_file(config.output.join("notes.txt")).unwrap();
    run(&config);
    let page = "report/tags/solo.html";
    assert!(dir.path().join(page).exists());

    // In a report, files of others stay, and the pages of tags that are no longer selected go.
    write(&dir, "report/tags/notes.txt", "mine");
    write(&dir, "report/thumbnails/mine.webp", "mine");
    write(&dir, "selection.csv", "name,include\nblurry_background,1\n");
    config.gallery.per_bucket = 0;
    assert_eq!(run(&config).outcome, Outcome::Done);
    assert!(!dir.path().join(page).exists() && !config.output.join("charts/tag-solo.svg").exists());
    assert_eq!(fs::read(config.output.join("tags/notes.txt")).unwrap(), b"mine");
    let thumbnails: Vec<_> = tree(&config.output.join("thumbnails")).into_keys().collect();
    assert_eq!(thumbnails, ["mine.webp"]);

    // One that stands where a page is to be is an error, and nothing has been changed by then.
    write(&dir, page, "mine");
    write(&dir, "selection.csv", "name,include\nblurry_background,1\nsolo,1\n");
    let before = tree(&config.output);
    let text = error(&config);
    assert!(
        text.ends_with("solo.html` is in the way: `.vodka-files` does not say that a run has put it there as it is; move or delete it"),
        "{text}"
    );
    assert_eq!(tree(&config.output), before);
}

#[test]
fn settings_and_tables_that_cannot_be_right_are_errors() {
    let (dir, mut config) = world();
    write(&dir, "tags.csv", "image,tag_id,tag,category,score\nc.png,1,solo,general,0.9\n");
    let text = error(&config);
    assert!(
        text.contains("is not about the pictures in")
            && text.contains("it names `c.png`, the folder holds `a.png`"),
        "{text}"
    );
    config.gallery.thumbnail_px = 8;
    let text = config.plan().unwrap_err().to_string();
    assert_eq!(text, "thumbnail_px is 8, expected 64 to 1024 pixels");
    let text = r#"{"tags": "", "selection": "", "images": "i", "output": "o"}"#;
    let config: ReportConfig = serde_json::from_str(text).unwrap();
    assert_eq!((config.gallery.per_bucket, config.gallery.thumbnail_px), (8, 256));
}

#[test]
fn captions_of_ten_megabytes_and_of_old_code_pages_go_through_every_stage() {
    let (dir, config) = world();
    write(&dir, "images/a.txt", "a photo of a cat, ".repeat(560_000));
    write(
        &dir,
        "images/b.txt",
        [b"ein sch\xf6nes M\xe4dchen, ".as_slice(), &b"wort".repeat(2_500_000)].concat(),
    );
    let at = |name: &str| dir.path().join(name);
    let told = |warnings: &[String]| {
        let guess = "1 files of captions are not UTF-8 and were read by a guess of their encoding: `";
        let told =
            warnings.iter().any(|told| told.starts_with(guess) && told.contains("b.txt as windows-1252`"));
        assert!(told, "{warnings:?}");
    };

    let report = report::run(&config.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    assert_eq!((report.captions.present, report.captions.too_long), (2, 2));
    assert!(report.captions.max_tokens > 2_000_000, "{}", report.captions.max_tokens);
    told(&report.warnings);

    let analyse = serde_json::json!({
        "tags": at("tags.csv"), "selection": at("selection.csv"), "images": at("images"), "output": at("analysis"),
        "max_tags": [3], "thresholds": [0.3],
    });
    let analyse: analysis::AnalyseConfig = serde_json::from_value(analyse).unwrap();
    let analysed = analysis::run(&analyse.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    assert_eq!(analysed.images, 2);
    told(&analysed.warnings);

    let dataset = Dataset { images: Some(at("images")), ..Dataset::default() };
    let query = Some("tokens>2000000".to_owned());
    let filter = FilterConfig { dataset, query, query_file: None, action: Action::List, explain: false };
    let filtered = filter::run(&filter.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    assert_eq!(filtered.listed, ["a.png", "b.png"]);
    told(&filtered.warnings);

    let caption = serde_json::json!({
        "tags": at("tags.csv"), "selection": at("selection.csv"), "images": at("images"), "output": at("captions"),
    });
    let caption: CaptionConfig = serde_json::from_value(caption).unwrap();
    let captioned = caption::run(&caption.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    assert_eq!((captioned.captions, captioned.too_long.len(), captioned.guessed.len()), (2, 2, 1));
}
