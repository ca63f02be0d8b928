//! Models by name, from a server of ours that speaks the hub's URLs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    error::Error as _,
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
};

use vodka_stage::{Interrupt, hash_bytes};
use vodka_tagger::{
    Error,
    hub::{Download, HubConfig, ModelRef, is_missing, resolve},
};

const NAME: &str = "someone/a-tagger";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Default)]
struct Content {
    files: BTreeMap<&'static str, Vec<u8>>,
    /// Says that the network has this hash, whatever it has.
    etag: Option<String>,
    /// Sends only so many bytes of the network in one answer.
    cut: Option<usize>,
    requests: Vec<String>,
}

/// A hub with one model.
struct Server {
    content: Arc<Mutex<Content>>,
    url: String,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut content = Content::default();
        content.files.insert("model.onnx", network());
        content.files.insert("model.onnx.data", b"weights".to_vec());
        content.files.insert("selected_tags.csv", b"tag_id,name,category,count\n".to_vec());
        content.files.insert("model.safetensors", b"the same for other programs".to_vec());
        content.files.insert("onnx/model.onnx", b"another".to_vec());
        let content = Arc::new(Mutex::new(content));
        let shared = Arc::clone(&content);
        // Ends with the process: it waits for a client that does not come.
        thread::spawn(move || listener.incoming().for_each(|stream| serve(stream.unwrap(), &shared)));
        Self { content, url }
    }

    fn change(&self, change: impl FnOnce(&mut Content)) {
        change(&mut self.content.lock().unwrap());
    }

    /// What was asked for since the last time.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.content.lock().unwrap().requests)
    }
}

/// So long that it comes in several pieces.
fn network() -> Vec<u8> {
    (0..300_000_u32).map(|i| ((i * 7919) >> 8) as u8).collect()
}

/// Answers one request, and closes.
fn serve(mut stream: TcpStream, content: &Mutex<Content>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let request = lines.next().unwrap_or_default();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let (_, value) = headers
            .iter()
            .filter_map(|line| line.split_once(": "))
            .find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        Some(value.to_owned())
    };
    let range = header("range").map(|range| range.strip_prefix("bytes=").unwrap().to_owned());
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut content = content.lock().unwrap();
    content.requests.push(format!("{path} {}", range.clone().unwrap_or_default()).trim_end().to_owned());
    if let Some(token) = header("authorization") {
        let place = if path.starts_with("/storage/") { "storage" } else { "hub" };
        content.requests.push(format!("{token} to the {place}"));
    }
    let port = stream.local_addr().unwrap().port();
    let answer = answer(&content, port, &path, range.as_deref());
    let _ = stream.write_all(&answer); // a client that has gone away is its own affair
}

fn answer(content: &Content, port: u16, path: &str, range: Option<&str>) -> Vec<u8> {
    let reply = |status: &str, headers: &str, length: usize, body: &[u8]| {
        let head =
            format!("HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n");
        [head.as_bytes(), body].concat()
    };
    if ["main", COMMIT].iter().any(|revision| path == format!("/api/models/{NAME}/revision/{revision}")) {
        let files: Vec<_> =
            content.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": files }).to_string();
        return reply("200 OK", "", body.len(), body.as_bytes());
    }
    let on_hub = path.strip_prefix(&format!("/{NAME}/resolve/{COMMIT}/"));
    let name = on_hub
        .or_else(|| path.strip_prefix("/storage/"))
        .or_else(|| path.strip_prefix("/cached/"))
        .unwrap_or_default();
    let Some(file) = content.files.get(name) else {
        return reply("404 Not Found", "", 0, b"");
    };
    // Large files lie elsewhere; the hub knows their hash, and the storage calls them by another name.
    if on_hub.is_some() && (name.contains(".onnx") || name.ends_with(".bin")) {
        let hash = hash_bytes(file).to_string();
        let etag = content.etag.as_ref().filter(|_| name == "model.onnx").unwrap_or(&hash);
        let headers = format!(
            "x-repo-commit: {COMMIT}\r\nx-linked-etag: \"{etag}\"\r\nLocation: http://localhost:{port}/storage/{name}\r\n"
        );
        // Not every mirror says how large it is.
        let size =
            if name == "model.onnx" { format!("x-linked-size: {}\r\n", file.len()) } else { String::new() };
        return reply("302 Found", &(headers + &size), 0, b"");
    }
    // Small files the hub serves from another of its own addresses.
    if on_hub.is_some() {
        return reply("307 Temporary Redirect", &format!("Location: /cached/{name}\r\n"), 0, b"");
    }
    let (from, to) = range.and_then(|range| range.split_once('-')).unwrap();
    let from: usize = from.parse().unwrap();
    let part = &file[from..to.parse().map_or(file.len(), |to: usize| to + 1)];
    let sent = content.cut.filter(|_| name == "model.onnx").map_or(part.len(), |cut| cut.min(part.len()));
    // As long as git's hash, which nobody checks.
    let git_hash = &hash_bytes(file).to_string()[..40];
    let headers = format!(
        "x-repo-commit: {COMMIT}\r\netag: \"{git_hash}\"\r\nContent-Range: bytes {from}-{}/{}\r\n",
        from + part.len() - 1,
        file.len()
    );
    reply("206 Partial Content", &headers, part.len(), &part[..sent])
}

fn config(server: &Server, cache: &Path) -> HubConfig {
    HubConfig {
        cache: cache.to_path_buf(),
        endpoint: server.url.clone(),
        token: None,
        offline: false,
        sha256: None,
        family: None,
    }
}

fn get(config: &HubConfig) -> Result<PathBuf, Error> {
    get_from("", config)
}

/// From a folder of the repository, given with a slash before it.
fn get_from(folder: &str, config: &HubConfig) -> Result<PathBuf, Error> {
    resolve(&ModelRef::parse(format!("{NAME}{folder}")), config, &Interrupt::new(), &mut |_| {})
}

/// The names of the files of a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

fn message(result: Result<PathBuf, Error>) -> String {
    let error = result.unwrap_err();
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

fn repository(cache: &Path) -> PathBuf {
    cache.join("models--someone--a-tagger")
}

#[test]
fn a_model_is_downloaded_once_into_the_layout_of_the_hub() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let mut progress = vec![];
    let with_token = HubConfig { token: Some("secret".to_owned()), ..config(&server, dir.path()) };
    let folder = resolve(
        &ModelRef::parse(NAME),
        &with_token,
        &Interrupt::new(),
        &mut |Download { file, done, total }| {
            progress.push((file.to_owned(), done, total));
        },
    )
    .unwrap();
    let snapshot = repository(dir.path()).join("snapshots").join(COMMIT);
    assert_eq!(folder, snapshot);
    assert_eq!(names(&folder), ["model.onnx", "model.onnx.data", "selected_tags.csv"], "and nothing else");
    assert_eq!(fs::read(folder.join("model.onnx")).unwrap(), network());
    let blob = repository(dir.path()).join("blobs").join(hash_bytes(network()).to_string());
    assert_eq!(folder.join("model.onnx").canonicalize().unwrap(), blob.canonicalize().unwrap());
    assert_eq!(fs::read_to_string(repository(dir.path()).join("refs/main")).unwrap(), COMMIT);
    assert!(progress.contains(&("model.onnx".to_owned(), 300_000, 300_000)), "{progress:?}");
    let asked = server.requests();
    assert!(asked.contains(&"Bearer secret to the hub".to_owned()), "{asked:?}");
    assert!(!asked.contains(&"Bearer secret to the storage".to_owned()), "{asked:?}");

    assert_eq!(get(&config(&server, dir.path())).unwrap(), snapshot);
    assert_eq!(server.requests(), [""; 0], "the second time no network is needed");
    let pinned = ModelRef::parse(format!("{NAME}@{COMMIT}"));
    let nowhere = HubConfig { endpoint: "http://127.0.0.1:1".to_owned(), ..config(&server, dir.path()) };
    assert_eq!(resolve(&pinned, &nowhere, &Interrupt::new(), &mut |_| {}).unwrap(), snapshot);
    assert_eq!(get(&HubConfig { offline: true, ..nowhere }).unwrap(), snapshot);
}

/// A network that keeps tensors in these files.
fn network_with_weights_in(locations: &[&str]) -> Vec<u8> {
    let field = |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8][..], content].concat();
    let tensor = |location: &&str| {
        let entry = [field(1, b"location"), field(2, location.as_bytes())].concat();
        field(5, &[field(13, &entry), vec![14 << 3, 1]].concat())
    };
    field(7, &locations.iter().flat_map(tensor).collect::<Vec<u8>>())
}

#[test]
fn weights_come_with_the_network_whatever_they_are_called() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let locations = ["weights.bin", "./parts/0.bin", "../secret.bin", "gone.bin"];
    server.change(|content| {
        content.files.insert("v1/model.onnx", network_with_weights_in(&locations));
        content.files.insert("v1/weights.bin", vec![1; 70_000]);
        content.files.insert("v1/parts/0.bin", vec![2; 1000]);
        content.files.insert("v1/other.bin", vec![3; 1000]);
        content.files.insert("secret.bin", vec![4; 1000]);
    });
    let folder = get_from("/v1", &config(&server, dir.path())).unwrap();
    assert_eq!(names(&folder), ["model.onnx", "parts", "weights.bin"]);
    assert_eq!(fs::read(folder.join("parts/0.bin")).unwrap(), [2; 1000]);
    server.requests();
    get_from("/v1", &config(&server, dir.path())).unwrap();
    assert_eq!(server.requests(), [""; 0], "it is whole");
    fs::remove_file(folder.join("parts/0.bin")).unwrap();
    get_from("/v1", &config(&server, dir.path())).unwrap();
    assert!(folder.join("parts/0.bin").is_file(), "and was not");
}

#[test]
fn what_would_be_downloaded_is_known_without_a_network() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let missing = |model: &str, config: &HubConfig| is_missing(&ModelRef::parse(model), config);
    let here = config(&server, dir.path());
    assert!(missing(NAME, &here).unwrap());
    assert!(!missing(dir.path().to_str().unwrap(), &here).unwrap(), "a folder");
    let unknown = HubConfig { family: Some("none".to_owned()), ..here.clone() };
    assert!(missing(NAME, &unknown).unwrap_err().to_string().starts_with("no family `none`"));
    assert_eq!(server.requests(), [""; 0]);
    get(&here).unwrap();
    assert!(!missing(NAME, &here).unwrap());
}

#[test]
fn a_file_that_was_lost_is_fetched_again() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let folder = get(&config(&server, dir.path())).unwrap();
    fs::remove_file(folder.join("model.onnx")).unwrap();
    server.requests();
    assert_eq!(get(&config(&server, dir.path())).unwrap(), folder);
    assert_eq!(fs::read(folder.join("model.onnx")).unwrap(), network());
    let asked = server.requests();
    assert!(
        !asked.iter().any(|request| request.ends_with("model.onnx 0-")),
        "its blob is still there: {asked:?}"
    );
}

#[test]
fn a_file_with_another_hash_is_refused() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let promised = hash_bytes("something else").to_string();
    server.change(|content| content.etag = Some(promised.clone()));
    let found = message(get(&config(&server, dir.path())));
    let sent = hash_bytes(network());
    assert!(
        found.contains(&format!("expected SHA-256 {promised}, found SHA-256 {sent}"))
            && found.contains("a-tagger"),
        "{found}"
    );
    assert!(!repository(dir.path()).join("blobs").join(&promised).exists());
    assert!(!repository(dir.path()).join("refs/main").exists());

    server.change(|content| content.etag = None);
    let folder = get(&config(&server, dir.path())).expect("nothing of the wrong file is left");
    assert_eq!(fs::read(folder.join("model.onnx")).unwrap(), network());
}

#[test]
fn the_hash_that_was_asked_for_is_checked_each_time() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let with = |hash| HubConfig { sha256: Some(hash), ..config(&server, dir.path()) };
    get(&with(hash_bytes(network()))).unwrap();
    let other = hash_bytes("another network");
    let found = message(get(&with(other)));
    let sent = hash_bytes(network());
    assert!(found.contains(&format!("expected SHA-256 {other}, found SHA-256 {sent}")), "{found}");
    assert!(found.contains("model.onnx` is not the file it should be"), "{found}");
}

#[test]
fn a_download_that_was_cut_off_goes_on_where_it_was() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    server.change(|content| content.cut = Some(0));
    let found = message(get(&config(&server, dir.path())));
    assert!(found.contains("cannot get the model `someone/a-tagger@main` from http://127.0.0.1:"), "{found}");

    server.change(|content| content.cut = Some(100_000));
    server.requests();
    let folder = get(&config(&server, dir.path())).unwrap();
    assert_eq!(fs::read(folder.join("model.onnx")).unwrap(), network());
    let asked = server.requests();
    for from in [0, 100_000, 200_000] {
        let part = format!("/storage/model.onnx {from}-");
        assert!(asked.contains(&part), "{part} is not in {asked:?}");
    }
}

#[test]
fn an_interrupted_download_goes_on_where_it_was() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let (config, interrupt) = (config(&server, dir.path()), Interrupt::new());
    let stopped = resolve(&ModelRef::parse(NAME), &config, &interrupt, &mut |download| {
        if download.file == "model.onnx" {
            interrupt.raise();
        }
    });
    assert_eq!(message(stopped), "the download of someone/a-tagger@main is interrupted");
    server.requests();
    let folder = get(&config).unwrap();
    assert_eq!(fs::read(folder.join("model.onnx")).unwrap(), network());
    let from = |request: &str| {
        request.strip_prefix("/storage/model.onnx ")?.strip_suffix('-')?.parse::<usize>().ok()
    };
    let asked: Vec<_> = server.requests().iter().filter_map(|request| from(request)).collect();
    assert!(matches!(asked[..], [from] if from > 0), "{asked:?}");
    // Nothing is asked for once it is there, interrupted or not.
    assert_eq!(resolve(&ModelRef::parse(NAME), &config, &interrupt, &mut |_| {}).unwrap(), folder);
}

#[test]
fn what_an_earlier_run_left_is_used() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let ours = repository(dir.path()).join(".vodka");
    fs::create_dir_all(&ours).unwrap();
    let part = ours.join(format!("{}.part", hash_bytes(network())));
    fs::write(&part, &network()[..250_000]).unwrap();
    let folder = get(&config(&server, dir.path())).unwrap();
    assert_eq!(fs::read(folder.join("model.onnx")).unwrap(), network());
    assert!(server.requests().iter().any(|request| request.ends_with("model.onnx 250000-")));
    assert!(!part.exists());
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let other = ModelRef::parse("someone/else@v2");
    let found = message(resolve(&other, &config(&server, dir.path()), &Interrupt::new(), &mut |_| {}));
    let expected = "no such folder, and cannot get the model `someone/else@v2` from http://127.0.0.1:";
    assert!(found.contains(expected), "{found}");
    assert!(found.contains("404"), "{found}");

    server.change(|content| {
        content.files.remove("model.onnx");
        content.files.remove("model.onnx.data");
    });
    let found = message(get(&config(&server, dir.path())));
    assert!(
        found.contains("in its topmost folder (OWNER/NAME/FOLDER names another), found onnx/model.onnx"),
        "{found}"
    );
    let found = message(get_from("/other", &config(&server, dir.path())));
    assert!(
        found.contains("`someone/a-tagger/other@main`") && found.contains("in that folder, found onnx/"),
        "{found}"
    );
}

/// What a server with these files, all text but for networks, gives.
fn serve_files(server: &Server, files: &[&'static str]) {
    let content = |name: &&'static str| (*name, format!("this is {name}").into_bytes());
    server.change(|there| there.files = files.iter().map(content).collect());
}

#[test]
fn of_several_networks_the_one_that_a_family_names_is_taken() {
    let several =
        ["TResnet.onnx", "ml_caformer_m36_dec-3-80000.onnx", "ml_caformer_m36_dec-5-97527.onnx", "tags.csv"];
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    serve_files(&server, &several);
    let folder = get(&config(&server, dir.path())).unwrap();
    assert_eq!(names(&folder), ["ml_caformer_m36_dec-5-97527.onnx", "tags.csv"]);

    let camie = ["metadata.json", "model_initial.onnx", "model_refined.onnx", "model_refined.onnx.data"];
    let dir = tempfile::tempdir().unwrap();
    serve_files(&server, &camie);
    let folder = get(&config(&server, dir.path())).unwrap();
    assert_eq!(names(&folder), ["metadata.json", "model_refined.onnx", "model_refined.onnx.data"]);

    let dir = tempfile::tempdir().unwrap();
    serve_files(&server, &["one.onnx", "two.onnx", "tags.txt"]);
    let found = message(get(&config(&server, dir.path())));
    assert!(found.contains("one that a family knows by its name, in its topmost folder"), "{found}");
    assert!(found.ends_with("found one.onnx, two.onnx"), "{found}");
}

#[test]
fn a_named_family_or_a_description_chooses_the_network() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    serve_files(
        &server,
        &["model.onnx", "model_refined.onnx", "deepdanbooru.onnx", "tags.txt", "metadata.json"],
    );
    let of = |family: &str| HubConfig { family: Some(family.to_owned()), ..config(&server, dir.path()) };
    get(&config(&server, dir.path())).unwrap();
    server.change(|content| drop(content.files.remove("model.onnx")));
    // What was whole without a family need not be with one.
    let folder = get(&of("deepdanbooru")).unwrap();
    assert_eq!(names(&folder), ["deepdanbooru.onnx", "metadata.json", "model.onnx", "tags.txt"]);
    server.requests();
    get(&of("deepdanbooru")).unwrap();
    get(&config(&server, dir.path())).unwrap();
    assert_eq!(server.requests(), [""; 0], "both are whole");
    let found = message(get(&of("deepdanboru")));
    assert!(found.contains("no family `deepdanboru`: there are wd-v3"), "{found}");

    let dir = tempfile::tempdir().unwrap();
    serve_files(&server, &["a.onnx", "b.onnx", "c.onnx", "tags.txt"]);
    let description = b"family = \"deepdanbooru\"\nnetwork = [\"b.onnx\"]\n".to_vec();
    server.change(|content| drop(content.files.insert("model.toml", description)));
    let folder = get(&config(&server, dir.path())).unwrap();
    assert_eq!(names(&folder), ["b.onnx", "model.toml", "tags.txt"]);
}

#[test]
fn a_folder_of_a_repository_is_a_model() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    serve_files(
        &server,
        &[
            "README.txt",
            "v1/model_optimized.onnx",
            "v1/tag_mapping.json",
            "v2/deep/model.onnx",
            "v2/deep/tags.csv",
        ],
    );
    let snapshot = repository(dir.path()).join("snapshots").join(COMMIT);
    let first = get_from("/v1", &config(&server, dir.path())).unwrap();
    assert_eq!(
        (&first, names(&first)),
        (&snapshot.join("v1"), vec!["model_optimized.onnx".into(), "tag_mapping.json".into()])
    );
    let second = get_from("/v2/deep", &config(&server, dir.path())).unwrap();
    assert_eq!(
        (&second, names(&second)),
        (&snapshot.join("v2/deep"), vec!["model.onnx".into(), "tags.csv".into()])
    );
    assert_eq!(names(&snapshot), ["v1", "v2"]);
    assert_eq!(
        fs::read_to_string(first.join("model_optimized.onnx")).unwrap(),
        "this is v1/model_optimized.onnx"
    );
    assert_eq!(fs::read_to_string(second.join("tags.csv")).unwrap(), "this is v2/deep/tags.csv");
    assert!(fs::symlink_metadata(second.join("model.onnx")).unwrap().is_symlink() || cfg!(windows));
    server.requests();
    assert_eq!(get_from("/v1", &config(&server, dir.path())).unwrap(), first);
    let offline = HubConfig { offline: true, ..config(&server, dir.path()) };
    assert_eq!(get_from("/v2/deep", &offline).unwrap(), second);
    let found = message(get_from("/v2", &offline));
    assert!(found.contains("`someone/a-tagger/v2@main` is not in the hub's cache: no `"), "{found}");
    assert_eq!(server.requests(), [""; 0]);
}

#[test]
fn the_hash_is_that_of_the_network_which_runs() {
    let dir = tempfile::tempdir().unwrap();
    let unused = HubConfig::from_vars(|_| None);
    let check = |family: Option<&str>, content: &str| {
        let config = HubConfig {
            sha256: Some(hash_bytes(content)),
            family: family.map(str::to_owned),
            ..unused.clone()
        };
        resolve(&ModelRef::Folder(dir.path().to_path_buf()), &config, &Interrupt::new(), &mut |_| {})
            .map(drop)
    };
    for network in ["model_initial.onnx", "model_refined.onnx"] {
        fs::write(dir.path().join(network), network).unwrap();
    }
    check(None, "model_refined.onnx").unwrap();
    let found = check(None, "model_initial.onnx").unwrap_err().to_string();
    assert!(found.contains("model_refined.onnx` is not the file it should be"), "{found}");
    let found = check(Some("wd-v3"), "model_refined.onnx").unwrap_err().to_string();
    assert!(found.contains("has no `model.onnx` (the network)"), "{found}");
    fs::write(dir.path().join("model.onnx"), "model.onnx").unwrap();
    check(None, "model.onnx").unwrap();
    let description = "family = \"camie-v1\"\nnetwork = [\"model_initial.onnx\"]\n";
    fs::write(dir.path().join("model.toml"), description).unwrap();
    check(None, "model_initial.onnx").unwrap();
    check(Some("camie-v1"), "model.onnx").unwrap();
}

#[test]
fn offline_a_missing_model_is_named_and_nothing_is_asked() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let offline = HubConfig { offline: true, ..config(&server, dir.path()) };
    let found = message(get(&offline));
    assert!(
        found.contains(
            "no such folder, offline, and the model `someone/a-tagger@main` is not in the hub's cache: no `"
        ) && found.contains("models--someone--a-tagger/refs/main"),
        "{found}"
    );
    let pinned = ModelRef::parse(format!("{NAME}@{COMMIT}"));
    let found = message(resolve(&pinned, &offline, &Interrupt::new(), &mut |_| {}));
    assert!(found.contains(&format!("snapshots/{COMMIT}/model.onnx")), "{found}");
    assert_eq!(server.requests(), [""; 0]);
}

#[test]
fn offline_what_other_tools_downloaded_will_do() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let snapshot = repository(dir.path()).join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository(dir.path()).join("refs")).unwrap();
    fs::write(repository(dir.path()).join("refs/main"), COMMIT).unwrap();
    fs::write(snapshot.join("model.onnx"), network()).unwrap();
    let offline = HubConfig { offline: true, ..config(&server, dir.path()) };
    assert_eq!(get(&offline).unwrap(), snapshot);
    assert_eq!(server.requests(), [""; 0]);
    get(&config(&server, dir.path())).unwrap();
    assert!(snapshot.join("selected_tags.csv").is_file(), "with a network what is missing is added");
    assert!(!server.requests().iter().any(|request| request.contains("model.onnx ")), "the rest is not");
}

#[test]
fn a_server_cannot_lead_outside_the_cache() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    server.change(|content| content.etag = Some("../../../elsewhere".to_owned()));
    let found = message(get(&config(&server, dir.path())));
    assert!(found.contains("expected an etag of 40 or 64 hexadecimal digits"), "{found}");
}

#[test]
fn a_name_is_told_from_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let hub = |name: &str, subfolder: Option<&str>, revision: &str| ModelRef::Hub {
        name: name.to_owned(),
        subfolder: subfolder.map(str::to_owned),
        revision: revision.to_owned(),
    };
    assert_eq!(ModelRef::parse("a/b-c_d.e"), hub("a/b-c_d.e", None, "main"));
    assert_eq!(ModelRef::parse("a/b@refs/pr/5"), hub("a/b", None, "refs/pr/5"));
    assert_eq!(ModelRef::parse("a/b/c"), hub("a/b", Some("c"), "main"));
    assert_eq!(ModelRef::parse("a/b/c/d@v1"), hub("a/b", Some("c/d"), "v1"));
    assert_eq!(ModelRef::parse("a/b/c/d@v1").to_string(), "a/b/c/d@v1");
    for folder in [
        "b", "a/b/../c", "a/b/c/", "./b", "../b", "a/..", "/b", "a/", "a/b@", "a/b@../x", "a/b@/x", "a b/c",
        "ä/b",
    ] {
        assert_eq!(ModelRef::parse(folder), ModelRef::Folder(folder.into()));
    }
    let there = dir.path().join("a");
    fs::create_dir(&there).unwrap();
    assert_eq!(ModelRef::parse(&there), ModelRef::Folder(there.clone()));
    let unused = HubConfig::from_vars(|_| None);
    assert_eq!(
        resolve(&ModelRef::Folder(there.clone()), &unused, &Interrupt::new(), &mut |_| {}).unwrap(),
        there
    );
}

#[test]
fn the_environment_says_what_it_says_to_the_hubs_own_tools() {
    let dir = tempfile::tempdir().unwrap();
    let from = |vars: &[(&str, &str)]| {
        let vars: BTreeMap<String, String> =
            vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        HubConfig::from_vars(|name| vars.get(name).map(Into::into))
    };
    let plain = from(&[("HOME", "/home/me")]);
    assert_eq!(plain.cache, Path::new("/home/me/.cache/huggingface/hub"));
    assert_eq!((&*plain.endpoint, plain.token, plain.offline), ("https://huggingface.co", None, false));
    assert_eq!(
        from(&[("HOME", "/home/me"), ("XDG_CACHE_HOME", "/c")]).cache,
        Path::new("/c/huggingface/hub")
    );
    assert_eq!(from(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/cache")]).cache, Path::new("/cache"));
    fs::write(dir.path().join("token"), "stored\n").unwrap();
    let home = dir.path().to_str().unwrap();
    let set = from(&[("HF_HOME", home), ("HF_ENDPOINT", "http://mirror"), ("HF_HUB_OFFLINE", "1")]);
    assert_eq!((&*set.endpoint, set.token.as_deref(), set.offline), ("http://mirror", Some("stored"), true));
    let set = from(&[("HF_HOME", home), ("HF_TOKEN", "given"), ("HF_HUB_OFFLINE", "0")]);
    assert_eq!((set.token.as_deref(), set.offline), (Some("given"), false));
    assert!(!format!("{set:?}").contains("given"), "a token is not shown");
}
