//! `vodka-curate recaption` and `mix` as a user runs them, against a server of ours; killed and started again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    sync::mpsc::{self, Receiver, Sender},
    thread,
};

use serde_json::Value;
use tempfile::TempDir;
use vodka_testkit::fixture;

const KEY: &str = "sk-very-secret-key";

/// Answers every request but those for which `answers` says no, and hands over what was asked and with which key.
fn serve(answers: impl Fn(usize) -> bool + Send + 'static) -> (String, Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1", listener.local_addr().unwrap());
    let (sender, asked) = mpsc::channel();
    thread::spawn(move || {
        for (place, stream) in listener.incoming().enumerate() {
            let (sender, answer): (Sender<_>, bool) = (sender.clone(), answers(place));
            thread::spawn(move || one(stream.unwrap(), &sender, answer));
        }
    });
    (endpoint, asked)
}

fn one(stream: TcpStream, sender: &Sender<(String, String)>, answer: bool) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let header = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let mut body = vec![0; header("content-length").unwrap().parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    let question: Value = serde_json::from_slice(&body).unwrap();
    let picture = question["messages"][0]["content"][1]["image_url"]["url"].as_str().unwrap().to_owned();
    sender.send((picture, header("authorization").unwrap_or_default())).unwrap();
    let mut stream = reader.into_inner();
    if answer {
        let text = r#"{"choices":[{"message":{"content":"a drawing"}}]}"#;
        let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", text.len());
        stream.write_all(format!("{head}{text}").as_bytes()).unwrap();
    } else {
        // Until who asked is gone.
        let _ = stream.read(&mut [0]);
    }
}

/// Five pictures, the first with a caption.
fn world() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    let mut pictures: Vec<_> =
        fs::read_dir(fixture("world/images")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pictures.retain(|path| path.extension().is_some_and(|ending| ending != "txt"));
    pictures.sort();
    for (k, picture) in pictures.iter().take(5).enumerate() {
        let ending = picture.extension().unwrap().to_str().unwrap();
        fs::copy(picture, images.join(format!("{k}.{ending}"))).unwrap();
    }
    fs::write(images.join("0.txt"), "a circle").unwrap();
    dir
}

fn command(dir: &TempDir, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vodka-curate"));
    command.current_dir(dir.path()).env("MY_KEY", KEY).args(line.split_whitespace());
    command
}

fn said(dir: &TempDir, line: &str, code: i32) -> String {
    let Output { status, stderr, .. } = command(dir, line).output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{line}\n{text}");
    text
}

fn holds_key(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => holds_key(&path),
            false => fs::read(path).unwrap().windows(KEY.len()).any(|window| window == KEY.as_bytes()),
        }
    })
}

const RECAPTION: &str =
    "recaption --images images --model m --api-key-env MY_KEY --concurrency 1 --output new.csv";

#[test]
fn a_killed_run_asks_nothing_twice_that_was_answered() {
    let dir = world();
    // The fourth question has no answer; when it comes, the first three answers have been kept.
    let (endpoint, asked) = serve(|place| place < 3);
    let mut child = command(&dir, &format!("{RECAPTION} --endpoint {endpoint}")).spawn().unwrap();
    let first: Vec<_> = (0..4).map(|_| asked.recv().unwrap()).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!dir.path().join("new.csv").exists());
    assert!(first.iter().all(|(_, key)| key == "Bearer sk-very-secret-key"));

    let (endpoint, asked) = serve(|_| true);
    let text = said(&dir, &format!("{RECAPTION} --endpoint {endpoint}"), 0);
    assert!(text.contains("wrote new captions of 5 of 5 pictures to `new.csv`"), "{text}");
    let second: Vec<_> = asked.try_iter().collect();
    assert_eq!(second.len(), 2);
    assert_eq!(second[0].0, first[3].0, "it goes on with what was not answered");
    let table = fs::read_to_string(dir.path().join("new.csv")).unwrap();
    assert!(table.starts_with("image,original,new,model\n0."), "{table}");
    assert!(table.contains(",a circle,a drawing,m\n"), "{table}");
    assert!(!holds_key(dir.path()), "the key is in no file");
    assert!(said(&dir, &format!("{RECAPTION} --endpoint {endpoint}"), 0).contains("up to date"));

    let mix = "mix --captions new.csv --share 1 --output mixed";
    assert!(said(&dir, mix, 0).contains("wrote captions to `mixed`: 0 original ones, 5 new ones"));
    assert_eq!(fs::read_to_string(dir.path().join("mixed/0.txt")).unwrap(), "a drawing\n");
    assert!(said(&dir, mix, 0).contains("up to date"));
    let text = said(&dir, &mix.replace("--share 1", "--share 0"), 0);
    assert!(text.contains("1 original ones, 4 new ones"), "{text}");
    assert!(text.contains("4 pictures have only one of the two"), "{text}");
}

#[test]
fn wrong_settings_end_with_2_and_missing_captions_with_3() {
    let dir = world();
    let text = said(&dir, "recaption --images images --output new.csv", 2);
    assert!(text.contains("expected either a file of captions or an endpoint, found neither"), "{text}");
    let text = said(&dir, &format!("{} --endpoint http://host/v1", RECAPTION.replace("MY_KEY", "NO_KEY")), 2);
    assert!(text.contains("the environment variable `NO_KEY` holds no key"), "{text}");
    assert!(said(&dir, "mix --captions new.csv --share 2 --output mixed", 2).contains("share is 2"));

    let plan = command(&dir, &format!("{RECAPTION} --endpoint http://host/v1 --dry-run")).output().unwrap();
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.contains("http://host/v1") && !plan.contains(KEY), "{plan}");

    fs::write(dir.path().join("theirs.jsonl"), "{\"image\":\"gone.png\",\"caption\":\"x\"}\n").unwrap();
    let text = said(&dir, "recaption --images images --captions theirs.jsonl --output new.jsonl", 3);
    assert!(text.contains("wrote new captions of 0 of 5 pictures"), "{text}");
    assert!(text.contains("warning: 1 captions are of no picture in the folder: `gone.png`"), "{text}");
}
