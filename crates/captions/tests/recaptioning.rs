//! New captions from files and from a service, and every way in which a service can fail.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod service;

use std::{fs, path::Path};

use service::{Answer, Server, caption, grey};
use tempfile::TempDir;
use vodka_captions::{
    CaptionFormat, Error, Result,
    mix::{self, MixConfig, MixReport},
    recaption::{self, RecaptionConfig, RecaptionEvent, RecaptionReport, Secret},
};
use vodka_stage::{Interrupt, Outcome};

const KEY: &str = "sk-very-secret-key";

/// A folder with pictures, of which the first has a caption.
fn world(pictures: u8) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("images/sub")).unwrap();
    for k in 0..pictures {
        grey(k, 40, 20).save(dir.path().join(name(k))).unwrap();
    }
    fs::write(dir.path().join("images/p00.txt"), "a circle\n").unwrap();
    dir
}

/// The second one lies in a subfolder, and comes last.
fn name(k: u8) -> String {
    if k == 1 { "images/sub/p01.png".to_owned() } else { format!("images/p{k:02}.png") }
}

fn config(dir: &TempDir, endpoint: &str) -> RecaptionConfig {
    RecaptionConfig {
        images: dir.path().join("images"),
        captions: None,
        format: None,
        image_column: None,
        caption_column: None,
        encoding: None,
        endpoint: Some(endpoint.to_owned()),
        model: Some("painter-7b".to_owned()),
        prompt: "What is it?".to_owned(),
        api_key: Some(Secret::new(KEY)),
        concurrency: 1,
        timeout_s: 60,
        retries: 3,
        pause_ms: 1,
        max_side: 32,
        max_tokens: Some(50),
        temperature: Some(0.2),
        output: dir.path().join("new.csv"),
    }
}

fn run(config: &RecaptionConfig) -> Result<RecaptionReport> {
    recaption::run(&config.plan()?, &Interrupt::new(), &mut |_| {})
}

fn read(dir: &TempDir, name: &str) -> String {
    fs::read_to_string(dir.path().join(name)).unwrap()
}

/// Whether any file in the folder holds these bytes.
fn is_anywhere(folder: &Path, bytes: &str) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => is_anywhere(&path, bytes),
            false => fs::read(path).unwrap().windows(bytes.len()).any(|window| window == bytes.as_bytes()),
        }
    })
}

#[test]
fn a_service_is_asked_once_for_each_picture() {
    let dir = world(3);
    let server = Server::start(|_, asked| caption(&format!(" A grey\n of {} ", asked.number())));
    let report = run(&config(&dir, &server.endpoint)).unwrap();
    assert_eq!((report.outcome, report.images, report.captions), (Outcome::Done, 3, 3));
    assert_eq!(
        read(&dir, "new.csv"),
        "image,original,new,model\np00.png,a circle,A grey of 0,painter-7b\n\
         p02.png,,A grey of 2,painter-7b\nsub/p01.png,,A grey of 1,painter-7b\n"
    );
    assert_eq!(server.numbers(), [0, 2, 1]);
    let asked = &server.asked()[0];
    assert_eq!(asked.path, "/v1/chat/completions");
    assert_eq!(asked.authorization.as_deref(), Some("Bearer sk-very-secret-key"));
    assert_eq!(asked.picture().dimensions(), (32, 16), "pictures are scaled down");
    let body = &asked.body;
    assert_eq!((&body["model"], &body["max_tokens"]), (&"painter-7b".into(), &50.into()));
    assert_eq!(body["temperature"].to_string(), "0.2");
    assert_eq!(body["messages"][0]["content"][0]["text"], "What is it?");
    assert!(!is_anywhere(dir.path(), KEY), "no key is ever written to a file");
    let plan = config(&dir, "http://me:hunter2@host:8000/v1?key=hunter2").plan().unwrap();
    let shown = serde_json::to_string(&plan).unwrap();
    assert!(
        !shown.contains("secret") && !shown.contains("hunter2") && shown.contains("http://host:8000/v1"),
        "{shown}"
    );
    assert!(!format!("{plan:?}").contains(KEY));

    assert_eq!(run(&config(&dir, &server.endpoint)).unwrap().outcome, Outcome::Unchanged);
    let jsonl = RecaptionConfig {
        output: dir.path().join("new.jsonl"),
        api_key: None,
        ..config(&dir, &server.endpoint)
    };
    run(&jsonl).unwrap();
    let line = read(&dir, "new.jsonl").lines().next().unwrap().to_owned();
    assert_eq!(line, r#"{"image":"p00.png","original":"a circle","new":"A grey of 0","model":"painter-7b"}"#);
    assert_eq!(server.asked().last().unwrap().authorization, None);
}

#[test]
fn answers_are_kept_and_only_what_has_changed_is_asked_again() {
    let dir = world(4);
    let interrupt = Interrupt::new();
    let stop = interrupt.clone();
    // Who asks has the second answer and no third question when it looks.
    let server = Server::start(move |place, asked| {
        if place == 1 {
            stop.raise();
        }
        caption(&format!("{}", asked.number()))
    });
    let config = config(&dir, &server.endpoint);
    let report = recaption::run(&config.plan().unwrap(), &interrupt, &mut |_| {}).unwrap();
    assert_eq!(report.outcome, Outcome::Interrupted);
    assert!(!config.output.exists());
    let before = 2;
    assert_eq!(server.numbers().len(), before);
    let mut started = Vec::new();
    let report =
        recaption::run(&config.plan().unwrap(), &Interrupt::new(), &mut |event| started.push(event)).unwrap();
    assert_eq!((report.outcome, report.captions), (Outcome::Done, 4));
    assert_eq!(started[0], RecaptionEvent::Started { images: 4, answered: before as u64 });
    assert_eq!(server.numbers(), [0, 2, 3, 1], "nothing is asked twice");

    grey(9, 30, 30).save(dir.path().join(name(2))).unwrap();
    assert!(run(&config).unwrap().outcome == Outcome::Done && read(&dir, "new.csv").contains("p02.png,,9,"));
    assert_eq!(server.numbers()[4..], [9]);
    fs::write(dir.path().join("images/p00.txt"), "a square").unwrap();
    run(&config).unwrap();
    assert!(read(&dir, "new.csv").contains("p00.png,a square,0,"));
    assert_eq!(server.numbers().len(), 5, "another original is no other question");
    run(&RecaptionConfig { prompt: "And now?".to_owned(), ..config }).unwrap();
    assert_eq!(server.numbers().len(), 9);
}

#[test]
fn what_may_come_later_is_asked_again() {
    let dir = world(1);
    let server = Server::start(|place, _| match place {
        0 => Answer::Say(429, "Retry-After: 0\r\n".to_owned(), String::new()),
        1 => Answer::Say(500, String::new(), "{\"error\":\"out of memory\"}".to_owned()),
        2 => Answer::Say(200, String::new(), "<html>".to_owned()),
        _ => caption("a circle"),
    });
    assert_eq!(run(&config(&dir, &server.endpoint)).unwrap().outcome, Outcome::Done);
    assert_eq!(server.asked().len(), 4);

    let dir = world(3);
    let server = Server::start(|place, _| match place {
        0..=2 => Answer::Say(
            503,
            String::new(),
            "{\"error\":{\"message\":\"busy with sk-very-secret-key\"}}".to_owned(),
        ),
        _ => caption("a circle"),
    });
    let once = RecaptionConfig { retries: 0, ..config(&dir, &server.endpoint) };
    let report = run(&once).unwrap();
    assert_eq!((report.outcome, report.captions, report.skipped.len()), (Outcome::Skipped, 0, 3));
    assert_eq!(report.skipped[0].reason, "the server answers 503: busy with ***");
    assert!(read(&dir, "new.csv").contains("p00.png,a circle,,\n"));
    assert_eq!(run(&once).unwrap().captions, 3, "what was not answered is no answer");
}

#[test]
fn refusals_are_answers_without_a_caption() {
    let dir = world(4);
    fs::write(dir.path().join("images/p09.png"), "no picture").unwrap();
    let server = Server::start(|_, asked| match asked.number() {
        0 => caption("I'm sorry, but I can't help with that."),
        1 => caption("  "),
        2 => Answer::Say(400, String::new(), "{\"error\":{\"message\":\"too small\"}}".to_owned()),
        _ => caption("fine"),
    });
    let config = config(&dir, &server.endpoint);
    let report = run(&config).unwrap();
    assert_eq!((report.outcome, report.captions), (Outcome::Skipped, 1));
    let reasons: Vec<_> =
        report.skipped.iter().map(|skipped| (skipped.image.as_str(), skipped.reason.as_str())).collect();
    assert_eq!(reasons[0], ("p00.png", "refused: I'm sorry, but I can't help with that."));
    assert_eq!(reasons[1], ("p02.png", "the server answers 400: too small"));
    assert_eq!(reasons[2].0, "p09.png");
    assert_eq!(reasons[3], ("sub/p01.png", "an empty answer"));
    run(&config).unwrap();
    assert_eq!(server.numbers(), [0, 2, 3, 1], "a picture that the service cannot read is not sent again");
}

#[test]
fn pictures_that_the_service_refuses_do_not_end_the_run() {
    let refuses = || Answer::Say(422, String::new(), "too small".to_owned());
    let dir = world(14);
    let server =
        Server::start(move |place, _| if matches!(place, 0 | 13) { caption("fine") } else { refuses() });
    let report = run(&config(&dir, &server.endpoint)).unwrap();
    assert_eq!((report.outcome, report.captions, report.skipped.len()), (Outcome::Skipped, 2, 12));
    assert_eq!(run(&config(&dir, &server.endpoint)).unwrap().outcome, Outcome::Unchanged);

    let dir = world(12);
    let server = Server::start(move |_, _| refuses());
    let error = run(&config(&dir, &server.endpoint)).unwrap_err().to_string();
    assert!(error.starts_with("no answer for 10 pictures in a row"), "{error}");
    assert_eq!(read(&dir, "new.csv.journal").matches("too small").count(), 0, "it may be the question");

    let server = Server::start(|_, _| Answer::Say(402, String::new(), "no credit".to_owned()));
    let error = run(&config(&dir, &server.endpoint)).unwrap_err().to_string();
    assert_eq!(error, "the endpoint answers 402: no credit");
}

#[test]
fn a_service_that_refuses_everything_ends_the_run() {
    let dir = world(12);
    let elsewhere = Server::start(|_, _| caption("stolen"));
    let to = elsewhere.endpoint.clone();
    for status in [301, 302, 307, 308] {
        let target = format!("{to}/x");
        let server =
            Server::start(move |_, _| Answer::Say(status, format!("Location: {target}\r\n"), String::new()));
        let error = run(&config(&dir, &server.endpoint)).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("the endpoint redirects to `{to}/x`, which is not followed")),
            "{error}"
        );
    }
    assert!(elsewhere.asked().is_empty(), "no key is sent to a redirect's target");

    let server = Server::start(|_, _| {
        Answer::Say(401, String::new(), format!("{{\"error\":{{\"message\":\"Incorrect key {KEY}\"}}}}"))
    });
    let error = run(&config(&dir, &server.endpoint)).unwrap_err().to_string();
    assert_eq!(error, "the endpoint answers 401: Incorrect key ***");
    assert_eq!(server.asked().len(), 1);

    let server = Server::start(|_, _| Answer::Say(503, String::new(), "down".to_owned()));
    let error =
        run(&RecaptionConfig { retries: 0, ..config(&dir, &server.endpoint) }).unwrap_err().to_string();
    assert_eq!(error, "no answer for 10 pictures in a row; the last: the server answers 503: down");
    assert!(!dir.path().join("new.csv").exists());
    assert!(!is_anywhere(dir.path(), KEY));
}

#[test]
fn a_service_that_says_nothing_is_not_waited_for_for_ever() {
    let dir = world(1);
    let server = Server::start(|_, _| Answer::Nothing);
    let report =
        run(&RecaptionConfig { timeout_s: 1, retries: 0, ..config(&dir, &server.endpoint) }).unwrap();
    assert!(report.skipped[0].reason.contains("timeout"), "{}", report.skipped[0].reason);
}

#[test]
fn many_pictures_at_once_come_out_in_order() {
    let dir = world(20);
    let server = Server::start(|_, asked| caption(&format!("grey {}", asked.number())));
    let many = RecaptionConfig { concurrency: 8, ..config(&dir, &server.endpoint) };
    assert_eq!(run(&many).unwrap().captions, 20);
    let mut expected = String::from("image,original,new,model\n");
    for k in (0..20).filter(|k| *k != 1).chain([1]) {
        let original = if k == 0 { "a circle" } else { "" };
        expected += &format!("{},{original},grey {k},painter-7b\n", name(k).replace("images/", ""));
    }
    assert_eq!(read(&dir, "new.csv"), expected);
}

fn of_file(dir: &TempDir, name: &str, text: &str) -> RecaptionConfig {
    fs::write(dir.path().join(name), text).unwrap();
    RecaptionConfig { captions: Some(dir.path().join(name)), endpoint: None, model: None, ..config(dir, "") }
}

#[test]
fn captions_come_from_files_too() {
    let dir = world(3);
    let report = run(&of_file(
        &dir,
        "c.csv",
        "\u{feff}note;file_name;text\r\nx;p00.png;\"A; circle\"\r\n;p02.png; \r\n;gone.png;x\r\n",
    ))
    .unwrap();
    assert_eq!((report.outcome, report.captions, report.absent), (Outcome::Skipped, 1, 1));
    assert_eq!(
        read(&dir, "new.csv"),
        "image,original,new,model\np00.png,a circle,A; circle,\np02.png,,,\nsub/p01.png,,,\n"
    );
    let reasons: Vec<_> = report.skipped.iter().map(|skipped| skipped.reason.clone()).collect();
    assert!(
        reasons[0] == "the new caption is empty" && reasons[1].starts_with("no caption in"),
        "{reasons:?}"
    );

    let lines = "{\"image\":\"sub\\\\p01.png\",\"caption\":\"One\\ntwo\"}\n\n{\"caption\":\"x\",\"image\":\"p00.png\",\"other\":1}\n";
    let config = RecaptionConfig {
        output: dir.path().join("new.parquet"),
        model: Some("blip".to_owned()),
        ..of_file(&dir, "c.jsonl", lines)
    };
    assert_eq!(run(&config).unwrap().captions, 2);
    assert_eq!(run(&config).unwrap().outcome, Outcome::Unchanged);
    mix(&dir, "new.parquet", 1.0, 0).unwrap();
    assert_eq!(read(&dir, "mixed/sub/p01.txt"), "One two\n");

    let said = |name: &str, text: &str| {
        let error = run(&of_file(&dir, name, text)).unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        format!("{error}: {cause}").replace(&dir.path().display().to_string(), "DIR")
    };
    assert!(
        said("c.csv", "image,caption\np00,1\np02,2\np00.png,3\n").contains(
            "two captions for the picture `p00.png`: `DIR/c.csv` (line 2) and `DIR/c.csv` (line 4)"
        )
    );
    assert!(
        said("c.csv", "image,caption,text\na,1,2\n")
            .contains("expected one column of captions (caption_column)")
    );
    assert!(said("c.csv", "image,note\na,1\n").contains(
        "expected a column of captions (caption_column): text, caption, prompt, description, found the columns image, note"
    ));
    fs::remove_file(dir.path().join("new.csv")).unwrap();
    fs::remove_file(dir.path().join("new.csv.run.json")).unwrap();
    let broken = said("c.jsonl", "{\"image\":\"a\",\"caption\":\"b\"}\n[1]\n");
    assert!(broken.contains("line 2: expected an object"), "{broken}");
    assert!(
        said("c.jsonl", "{\"image\":\"p00\",\"caption\":7}\n")
            .contains("line 1: expected text, found `caption`: 7")
    );
    let format = "expected a name that ends with .json, .jsonl, .parquet or .csv";
    assert!(said("c.docx", "").contains(format), "{}", said("c.docx", ""));
    let hinted = of_file(&dir, "c.csv", "sep=;\nfile_name;text\np00.png;A, B\n");
    assert_eq!(run(&hinted).unwrap().captions, 1);
}

/// The column `new` of what the captions in `of` make, and the warnings.
fn news(config: &RecaptionConfig) -> (Vec<String>, Vec<String>) {
    let report = run(config).unwrap();
    let text = fs::read_to_string(&config.output).unwrap();
    let mut rows = csv::Reader::from_reader(text.as_bytes());
    (rows.records().map(|row| row.unwrap()[2].to_owned()).collect(), report.warnings)
}

#[test]
fn captions_come_in_every_form_that_captions_are_read_in() {
    let dir = world(3);
    let at = |name: &str| dir.path().join(name);
    let onto = |output: &str, config: RecaptionConfig| RecaptionConfig { output: at(output), ..config };
    let kohya =
        r#"{"/data/other/p00": {"caption": "a", "tags": "b"}, "C:\\set\\p01.png": {"tags": "c"}, "x": {}}"#;
    let (new, warnings) = news(&onto("kohya.csv", of_file(&dir, "meta_lat.json", kohya)));
    assert_eq!(new, ["a, b", "", "c"]);
    assert_eq!(warnings, ["1 captions are of no picture in the folder: `x`"]);

    let lines = "{\"key\":\"p00\",\"vlm\":\"a\",\"caption\":\"old\"}\n{\"key\":\"sub/p01\",\"vlm\":null}\n";
    let own = of_file(&dir, "c.ndjson", lines);
    assert!(run(&own).unwrap_err().to_string().contains("a column of names of pictures (image_column)"));
    let own = RecaptionConfig {
        image_column: Some("key".to_owned()),
        caption_column: Some("vlm".to_owned()),
        ..own
    };
    assert_eq!(news(&onto("own.csv", own)).0, ["a", "", ""]);

    let russian = "красная машина на улице города";
    fs::write(
        at("c.csv"),
        encoding_rs::WINDOWS_1251.encode(&format!("image;text\r\np00.png;{russian}\r\n")).0,
    )
    .unwrap();
    let table = RecaptionConfig { captions: Some(at("c.csv")), ..of_file(&dir, "x", "") };
    let (new, warnings) = news(&onto("guessed.csv", table.clone()));
    assert_eq!((new[0].as_str(), warnings.len()), (russian, 1));
    assert!(
        warnings[0].contains("read by a guess of their encoding") && warnings[0].contains("windows-1251")
    );
    let told = RecaptionConfig { encoding: Some("cp1251".to_owned()), ..table };
    assert_eq!(news(&onto("told.csv", told.clone())), (new, Vec::new()));
    let wrong = RecaptionConfig { encoding: Some("klingon".to_owned()), ..told };
    assert!(wrong.plan().unwrap_err().to_string().contains("encoding"));

    fs::create_dir_all(at("theirs/sub")).unwrap();
    fs::write(at("theirs/p00.caption"), b"\xff\xfea\0\n\0b\0").unwrap();
    fs::write(at("theirs/sub/p01.caption"), "c").unwrap();
    fs::write(at("theirs/p00.txt"), "other").unwrap();
    let folder = RecaptionConfig { captions: Some(at("theirs")), ..of_file(&dir, "x", "") };
    assert_eq!(news(&onto("txt.csv", folder.clone())).0, ["other", "", ""]);
    let folder = RecaptionConfig { format: Some(CaptionFormat::Caption), ..folder };
    assert_eq!(news(&onto("caption.csv", folder.clone())).0, ["a b", "", "c"]);
    assert_eq!(run(&onto("caption.csv", folder.clone())).unwrap().outcome, Outcome::Unchanged);
    fs::write(at("theirs/p02.caption"), "d").unwrap();
    assert_eq!(news(&onto("caption.csv", folder.clone())).0, ["a b", "d", "c"]);
    let table = RecaptionConfig { format: Some(CaptionFormat::Csv), ..folder };
    assert!(table.plan().unwrap_err().to_string().contains("for a folder of captions"));
    let file = RecaptionConfig { format: Some(CaptionFormat::Txt), ..of_file(&dir, "y.json", "") };
    assert!(file.plan().unwrap_err().to_string().contains("which is not one file"));
}

#[test]
fn an_interrupt_is_heeded_while_pictures_are_hashed() {
    let dir = world(3);
    let interrupt = Interrupt::new();
    interrupt.raise();
    let mut events = 0;
    let plan = config(&dir, "http://127.0.0.1:9/v1").plan().unwrap();
    let report = recaption::run(&plan, &interrupt, &mut |_| events += 1).unwrap();
    assert_eq!((report.outcome, report.images, events), (Outcome::Interrupted, 0, 0));
    assert!(!dir.path().join("new.csv.journal").exists());
}

#[test]
fn wrong_settings_are_refused_by_the_plan() {
    let dir = world(1);
    let said = |change: &dyn Fn(&mut RecaptionConfig)| {
        let mut config = config(&dir, "https://host/v1");
        change(&mut config);
        config.plan().unwrap_err().to_string()
    };
    assert_eq!(
        said(&|c| c.captions = Some("a.csv".into())),
        "expected either a file of captions or an endpoint, found both"
    );
    assert_eq!(
        said(&|c| c.endpoint = None),
        "expected either a file of captions or an endpoint, found neither"
    );
    assert_eq!(said(&|c| c.model = None), "an endpoint needs the name of a model");
    assert!(said(&|c| c.endpoint = Some("host:80".into())).ends_with("found `host:80`"));
    assert_eq!(said(&|c| c.concurrency = 0), "concurrency is 0, expected 1 to 256");
    assert_eq!(said(&|c| c.temperature = Some(f32::NAN)), "temperature is NaN, expected 0 to 2");
    assert_eq!(said(&|c| c.max_side = 1), "max_side is 1, expected 32 to 16384 pixels");
    assert!(
        said(&|c| c.api_key = Some(Secret::new("a\nb"))).starts_with("the key is empty, or holds spaces")
    );
    assert!(said(&|c| c.output = "new.txt.zip".into()).contains("ends neither in"));
    assert!(said(&|c| c.output = dir.path().join("images/new.csv")).contains("lie in each other"));
}

fn mix(dir: &TempDir, table: &str, share: f64, seed: u64) -> Result<MixReport> {
    let [captions, output] = [table, "mixed"].map(|name| dir.path().join(name));
    mix::run(&MixConfig { captions, share, seed, output }.plan()?, &Interrupt::new(), &mut |_| {})
}

#[test]
fn original_and_new_captions_are_mixed_by_a_share() {
    let dir = tempfile::tempdir().unwrap();
    let table = |pictures: usize| {
        let rows: Vec<_> = (0..pictures).map(|k| format!("d/{k}.png,old {k},new {k},m\n")).collect();
        let text = format!("image,original,new,model\n{}only.png,old,,\nnone.png,,,\n", rows.concat());
        fs::write(dir.path().join("t.csv"), text).unwrap();
    };
    let news = || -> Vec<usize> {
        (0..100).filter(|k| read(&dir, &format!("mixed/d/{k}.txt")).starts_with("new")).collect()
    };
    table(100);
    let report = mix(&dir, "t.csv", 0.5, 3).unwrap();
    assert_eq!((report.outcome, report.original + report.new), (Outcome::Skipped, 101));
    assert_eq!(report.skipped[0].image, "none.png");
    let half = news();
    assert!((35..65).contains(&half.len()));
    assert_eq!(mix(&dir, "t.csv", 0.5, 3).unwrap().outcome, Outcome::Unchanged);
    table(150);
    mix(&dir, "t.csv", 0.5, 3).unwrap();
    assert_eq!(news(), half, "pictures that are added change nothing for the others");
    mix(&dir, "t.csv", 0.5, 4).unwrap();
    assert_ne!(news(), half);
    let report = mix(&dir, "t.csv", 0.0, 3).unwrap();
    assert_eq!((report.new, news().len()), (0, 0));
    let report = mix(&dir, "t.csv", 1.0, 3).unwrap();
    assert_eq!((report.original, report.new, news().len()), (1, 150, 100));
    assert_eq!(report.fell_back, ["only.png"]);
    table(100);
    mix(&dir, "t.csv", 1.0, 3).unwrap();
    assert!(!dir.path().join("mixed/d/120.txt").exists(), "no caption of an earlier mix is left");

    fs::write(dir.path().join("mixed/d/1.txt"), "mine").unwrap();
    let error = mix(&dir, "t.csv", 0.5, 3).unwrap_err().to_string();
    assert!(error.contains("mixed/d/1.txt` is in the way"), "{error}");
    assert_eq!(read(&dir, "mixed/d/1.txt"), "mine");
}

#[test]
fn a_mix_that_was_killed_before_its_record_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("t.csv"), "image,original,new,model\na.png,old,new,m\n.b.png,old,new,m\n").unwrap();
    mix(&dir, "t.csv", 0.0, 0).unwrap();
    let old = read(&dir, "mixed.run.json");
    mix(&dir, "t.csv", 1.0, 0).unwrap();
    fs::write(at("mixed.run.json"), old).unwrap();
    let report = mix(&dir, "t.csv", 1.0, 0).unwrap();
    assert_eq!((report.outcome, report.new), (Outcome::Done, 2));
    assert_eq!((read(&dir, "mixed/a.txt"), read(&dir, "mixed/.b.txt")), ("new\n".into(), "new\n".into()));
    assert_eq!(mix(&dir, "t.csv", 1.0, 0).unwrap().outcome, Outcome::Unchanged);
    // Without any record.
    fs::remove_file(at("mixed.run.json")).unwrap();
    assert_eq!(mix(&dir, "t.csv", 0.0, 0).unwrap().original, 2);
    assert_eq!(read(&dir, "mixed/.b.txt"), "old\n");
}

#[test]
fn a_mix_touches_nothing_that_it_has_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let table = |rows: &str| fs::write(at("t.csv"), format!("image,original,new,model\n{rows}")).unwrap();
    table("a.png,old,new,m\n.b.png,old,new,m\n");
    fs::create_dir_all(at("mixed/.git")).unwrap();
    let theirs = ["mixed/.notes", "mixed/my.run.json", "mixed/.git/head", "mixed/c.txt"];
    theirs.iter().for_each(|name| fs::write(at(name), "mine").unwrap());
    mix(&dir, "t.csv", 0.0, 0).unwrap();
    fs::write(at("mixed/.b.txt"), "mine").unwrap();
    let said = |share| mix(&dir, "t.csv", share, 0).unwrap_err().to_string();
    assert!(said(0.0).contains(".b.txt` is in the way"), "hidden captions count too");
    assert!(said(1.0).contains(".b.txt` is in the way"));
    assert_eq!(read(&dir, "mixed/a.txt"), "old\n", "nothing was written");
    table("a.png,old,new,m\nc.png,old,new,m\n");
    assert!(said(1.0).contains("c.txt` is in the way"));
    table("d.png,old,new,m\n");
    mix(&dir, "t.csv", 1.0, 0).unwrap();
    assert!(!at("mixed/a.txt").exists(), "ours goes with its row");
    theirs.iter().chain(&["mixed/.b.txt"]).for_each(|name| assert_eq!(read(&dir, name), "mine", "{name}"));
}

#[test]
fn tables_that_lead_elsewhere_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let said = |rows: &str| {
        fs::write(dir.path().join("t.csv"), format!("image,original,new,model\n{rows}")).unwrap();
        mix(&dir, "t.csv", 0.5, 0).unwrap_err().to_string()
    };
    for image in ["../a.png", "/etc/a.png", "a/../../b.png", "..", "a\\..\\b.png"] {
        assert!(
            said(&format!("{image},a,b,m\n")).ends_with("which does not lie in the folder of pictures"),
            "{image}"
        );
    }
    assert!(said("a.png,a,b,m\na.jpg,a,b,m\n").contains("share the caption `a.txt`"));
    assert!(said("a.png,a,b,m\na.png,a,b,m\n").contains("two captions for the picture `a.png`"));
    assert!(!dir.path().join("mixed").exists());
    assert!(matches!(mix(&dir, "t.csv", 1.5, 0), Err(Error::Range { .. })));
    assert!(matches!(mix(&dir, "mixed/t.csv", 0.5, 0), Err(Error::OutputIsInput { .. })));
}

#[test]
fn captions_changed_in_place_count_as_they_were() {
    use vodka_captions::{CaptionSource, Position, caption};
    let dir = world(2);
    let at = |name: &str| dir.path().join(name);
    fs::write(at("tags.csv"), "image,tag_id,tag,category,score\np00.png,1,solo,general,0.9\n").unwrap();
    fs::write(at("selection.csv"), "name,include\nsolo,1\n").unwrap();
    let in_place = caption::CaptionConfig {
        tags: at("tags.csv"),
        selection: at("selection.csv"),
        images: at("images"),
        output: None,
        in_place: true,
        max_tags: 3,
        min_score: 0.3,
        position: Position::Prepend,
        missing: caption::Missing::Skip,
        source: CaptionSource::default(),
        format: None,
        style: caption::Style::default(),
        without: Vec::new(),
    };
    caption::run(&in_place.plan().unwrap(), &Interrupt::new(), &mut |_| {}).unwrap();
    assert_eq!(read(&dir, "images/p00.txt"), "solo, a circle\n");
    fs::write(at("theirs.csv"), "image,caption\np00.png,a disc\nsub/p01.png,a box\n").unwrap();
    let from_file = |output: &str| RecaptionConfig {
        captions: Some(at("theirs.csv")),
        endpoint: None,
        model: None,
        output: at(output),
        ..config(&dir, "")
    };
    run(&from_file("new.csv")).unwrap();
    assert!(read(&dir, "new.csv").contains("p00.png,a circle,a disc,"), "{}", read(&dir, "new.csv"));
}

#[test]
fn a_table_of_another_source_is_not_overwritten() {
    let dir = world(2);
    let at = |name: &str| dir.path().join(name);
    let server = Server::start(|_, asked| caption(&format!("{}", asked.number())));
    let from_service = config(&dir, &server.endpoint);
    run(&from_service).unwrap();
    let answered = read(&dir, "new.csv");
    fs::write(at("theirs.csv"), "image,caption\np00.png,a disc\nsub/p01.png,a box\n").unwrap();
    let from_file = RecaptionConfig {
        captions: Some(at("theirs.csv")),
        endpoint: None,
        model: None,
        ..config(&dir, &server.endpoint)
    };
    let said = |config: &RecaptionConfig| {
        run(config).unwrap_err().to_string().replace(&format!("{}/", dir.path().display()), "")
    };
    assert_eq!(
        said(&from_file),
        "`new.csv` holds the captions of the model `painter-7b`, not of `theirs.csv`: name another output, or move it away"
    );
    let other = RecaptionConfig { model: Some("painter-8b".to_owned()), ..from_service.clone() };
    assert!(said(&other).contains("of the model `painter-7b`, not of the model `painter-8b`"));
    assert_eq!(read(&dir, "new.csv"), answered);
    // Another question to the same model is another run of it.
    run(&RecaptionConfig { prompt: "Well?".to_owned(), ..from_service }).unwrap();

    // A file of nobody's stays; what a killed run has written without a record is written again.
    fs::write(at("mine.csv"), "image,caption\nx.png,mine\n").unwrap();
    let onto = |name: &str| RecaptionConfig { output: at(name), ..from_file.clone() };
    assert!(said(&onto("mine.csv")).starts_with("`mine.csv` is in the way"));
    let service_onto = RecaptionConfig { output: at("mine.csv"), ..config(&dir, &server.endpoint) };
    assert!(said(&service_onto).starts_with("`mine.csv` is in the way"));
    run(&onto("file.csv")).unwrap();
    fs::remove_file(at("file.csv.run.json")).unwrap();
    assert_eq!(run(&onto("file.csv")).unwrap().outcome, Outcome::Done);
    assert_eq!(run(&onto("file.csv")).unwrap().outcome, Outcome::Unchanged);
    fs::write(at("file.csv"), "image,original,new,model\np00.png,a,b,\n").unwrap();
    assert!(said(&onto("file.csv")).starts_with("`file.csv` is in the way"), "nor one that was edited");
}
