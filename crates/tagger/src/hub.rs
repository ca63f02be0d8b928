//! Models by their name on the Hugging Face hub: found in its cache on this machine, or downloaded into it.
//!
//! The cache is the one that all of the hub's tools share:
//!
//! ```text
//! models--OWNER--NAME/refs/main               the commit that `main` was when it was asked for
//! models--OWNER--NAME/snapshots/COMMIT/...    the files of that commit: links to blobs
//! models--OWNER--NAME/blobs/ETAG              the contents; a large file's etag is its SHA-256
//! models--OWNER--NAME/.vodka/                 ours: what a download has so far, and which models are whole
//! ```
//!
//! A model that is there whole is taken as it is and no network is touched, also where `main` has gone on since: the
//! same name gives the same tags until somebody asks for another revision. What is downloaded gets into the cache only
//! after its size and, for large files, its SHA-256 have been found right.

use std::{
    error::Error as StdError,
    ffi::OsString,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{Api, ApiBuilder, ApiError},
};
use ureq::{Agent, Body, config::RedirectAuthHeaders, http::Response};
use vodka_stage::{
    ContentHash, Error as StageError, Interrupt, create_dir, hash_file, remove_all, try_lock, write_atomic,
};

use crate::{
    Description, Error, Result,
    description::MODEL_TOML,
    folder::{self, only},
};

/// The usual name of a network.
const MODEL: &str = "model.onnx";

/// Where the hub is.
pub const ENDPOINT: &str = "https://huggingface.co";

/// A model: a folder, or a name on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A repository on the hub.
    Hub {
        /// `OWNER/NAME`.
        name: String,
        /// The folder in it that is the model, where that is not the repository itself.
        subfolder: Option<String>,
        /// A branch, a tag or a commit.
        revision: String,
    },
}

impl ModelRef {
    /// Reads a path, or `OWNER/NAME`, `OWNER/NAME/SUBFOLDER`, both also with `@REVISION`. A folder that is there wins; what
    /// can be no name on the hub is taken for a folder too.
    pub fn parse(text: impl AsRef<Path>) -> Self {
        let path = text.as_ref();
        let hub = path.to_str().filter(|_| !path.exists()).and_then(|text| {
            let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
            let parts: Vec<&str> = name.split('/').collect();
            let [owner, model, subfolder @ ..] = &parts[..] else { return None };
            let is_name = parts.iter().copied().chain(revision.split('/')).all(is_part);
            is_name.then(|| Self::Hub {
                name: format!("{owner}/{model}"),
                subfolder: (!subfolder.is_empty()).then(|| subfolder.join("/")),
                revision: revision.to_owned(),
            })
        });
        hub.unwrap_or_else(|| Self::Folder(path.to_path_buf()))
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => path.display().fmt(f),
            Self::Hub { name, subfolder: None, revision } => write!(f, "{name}@{revision}"),
            Self::Hub { name, subfolder: Some(folder), revision } => write!(f, "{name}/{folder}@{revision}"),
        }
    }
}

/// Whether it can be one part of a name on the hub, and of a path: no separator, nothing that leads elsewhere.
fn is_part(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty() && !text.starts_with('.') && text.bytes().all(allowed)
}

/// How to get at the hub.
#[derive(Clone, PartialEq, Eq)]
pub struct HubConfig {
    /// The folder of the cache.
    pub cache: PathBuf,
    /// The hub: [`ENDPOINT`] or a mirror.
    pub endpoint: String,
    /// For models that are private or want their licence accepted.
    pub token: Option<String>,
    /// Uses no network.
    pub offline: bool,
    /// The SHA-256 that the network's file must have.
    pub sha256: Option<ContentHash>,
    /// The family of the model, which says what its network is called; found out where absent.
    pub family: Option<String>,
}

impl HubConfig {
    /// The settings that the hub's own tools would find: `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, the home folder;
    /// `HF_ENDPOINT`; `HF_TOKEN` or the file that `hf auth login` writes; `HF_HUB_OFFLINE`.
    ///
    /// `var` looks up a variable of the environment.
    pub fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Self {
        let var = |name| var(name).filter(|value| !value.is_empty());
        let text = |name| var(name).and_then(|value| value.into_string().ok());
        let path = |name| var(name).map(PathBuf::from);
        let user = path("HOME").or_else(|| path("USERPROFILE")).unwrap_or_default();
        let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| user.join(".cache"));
        let home = path("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let stored = || fs::read_to_string(path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"))).ok();
        let token = text("HF_TOKEN").or_else(stored).map(|token| token.trim().to_owned());
        let is_set = |value: String| ["1", "ON", "YES", "TRUE"].contains(&&*value.to_ascii_uppercase());
        Self {
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned()),
            token: token.filter(|token| !token.is_empty()),
            offline: text("HF_HUB_OFFLINE").is_some_and(is_set),
            sha256: None,
            family: None,
        }
    }
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cache, endpoint, token, offline, sha256, family } = self;
        let token = token.as_ref().map(|_| "(secret)");
        f.debug_struct("HubConfig")
            .field("cache", cache)
            .field("endpoint", endpoint)
            .field("token", &token)
            .field("offline", offline)
            .field("sha256", sha256)
            .field("family", family)
            .finish()
    }
}

/// How far the download of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Download<'a> {
    /// The file's name.
    pub file: &'a str,
    /// The bytes that are here.
    pub done: u64,
    /// The bytes it has.
    pub total: u64,
}

/// The folder of a model, downloaded where the cache has it not: the network, weights that lie outside it, and every
/// file of text beside it that may hold labels or settings.
///
/// Of several networks it is the one that a tagger of that folder and `config.family` opens. A download that was cut off
/// or interrupted goes on where it was.
///
/// # Errors
/// [`Error::Interrupted`]; when the hub has no such model or cannot be reached, when a file is not what the hub or `config.sha256` says it is,
/// when the cache cannot be written, and offline when the cache has no such model; when there is no such family.
pub fn resolve(
    model: &ModelRef,
    config: &HubConfig,
    interrupt: &Interrupt,
    on_progress: &mut dyn FnMut(Download<'_>),
) -> Result<PathBuf> {
    let folder = match model {
        ModelRef::Folder(path) => path.clone(),
        ModelRef::Hub { name, subfolder, revision } => {
            let fetch = Fetch::new(model, [name, revision], subfolder.as_deref(), config, interrupt)?;
            match (fetch.whole(), config.offline) {
                (Ok(folder), _) => folder,
                (Err(missing), true) => return Err(Error::NotCached { model: model.to_string(), missing }),
                (Err(_), false) => fetch.run(on_progress)?,
            }
        }
    };
    if let Some(expected) = config.sha256 {
        let network = folder::network(&folder, config.family.as_deref())?;
        check_hash(&network, &network, expected)?;
    }
    Ok(folder)
}

/// Whether [`resolve`] would download the model: it is a name, and the cache has not all of it. Uses no network.
///
/// # Errors
/// When there is no such family as `config.family`.
pub fn is_missing(model: &ModelRef, config: &HubConfig) -> Result<bool> {
    let ModelRef::Hub { name, subfolder, revision } = model else { return Ok(false) };
    let (online, never) = (HubConfig { offline: false, ..config.clone() }, Interrupt::new());
    Ok(Fetch::new(model, [name, revision], subfolder.as_deref(), &online, &never)?.whole().is_err())
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What of a folder's files a tagger needs: the network, which is the first of `networks` that is there or the only one;
/// and the others: what is called as weights of it are, and text.
fn needed<'a>(names: &[&'a str], networks: &[String]) -> Option<(&'a str, Vec<&'a str>)> {
    let at_top = || names.iter().copied().filter(|name| is_part(name));
    let named = networks.iter().find_map(|network| at_top().find(|name| name == network));
    let network = named.or_else(|| only(at_top().filter(|name| name.ends_with(".onnx"))))?;
    let is_text = |name: &str| [".csv", ".json", ".toml", ".txt"].iter().any(|ending| name.ends_with(ending));
    // Weights outside the network lie in `model.onnx.data` or `model.onnx_data`.
    let is_needed = |name: &&str| *name != network && (name.starts_with(network) || is_text(name));
    Some((network, at_top().filter(is_needed).collect()))
}

/// The download of a model.
struct Fetch<'a> {
    model: &'a ModelRef,
    name: &'a str,
    subfolder: Option<&'a str>,
    revision: &'a str,
    /// The repository's folder in the cache.
    folder: PathBuf,
    config: &'a HubConfig,
    interrupt: &'a Interrupt,
}

/// What the hub says of a file.
struct About {
    etag: String,
    size: u64,
}

impl<'a> Fetch<'a> {
    fn new(
        model: &'a ModelRef,
        [name, revision]: [&'a str; 2],
        subfolder: Option<&'a str>,
        config: &'a HubConfig,
        interrupt: &'a Interrupt,
    ) -> Result<Self> {
        config.family.as_deref().map(Description::family).transpose()?;
        let folder = config.cache.join(format!("models--{}", name.replace('/', "--")));
        Ok(Self { model, name, subfolder, revision, folder, config, interrupt })
    }

    /// The model's folder if it is whole, otherwise what is missing. Offline what looks like a model must do: other tools
    /// leave no list of what they downloaded.
    fn whole(&self) -> Result<PathBuf, PathBuf> {
        let reference = self.folder.join("refs").join(self.revision);
        let stored = fs::read_to_string(&reference).unwrap_or_else(|_| self.revision.to_owned());
        let commit = stored.trim();
        if !is_commit(commit) {
            return Err(reference);
        }
        let folder = self.folder_in(commit);
        match fs::read_to_string(self.list(commit)) {
            Ok(list) => match list.lines().find(|name| !folder.join(name).is_file()) {
                Some(missing) => Err(folder.join(missing)),
                None => Ok(folder),
            },
            Err(_) if self.config.offline && folder::network(&folder, self.family()).is_ok() => Ok(folder),
            Err(_) => Err(folder.join(MODEL)),
        }
    }

    /// The folder of the model in the snapshot of a commit.
    fn folder_in(&self, commit: &str) -> PathBuf {
        let snapshot = self.folder.join("snapshots").join(commit);
        self.subfolder.map_or_else(|| snapshot.clone(), |subfolder| snapshot.join(subfolder))
    }

    /// The list of the files of a model that is whole, one a line. The family is in its name, for it chooses among several
    /// networks.
    fn list(&self, commit: &str) -> PathBuf {
        let subfolder = self.subfolder.map(|folder| format!("+{}", folder.replace('/', "+")));
        let family = self.family().map(|family| format!("@{family}"));
        let name = [Some(commit.to_owned()), subfolder, family, Some(".files".to_owned())];
        self.folder.join(".vodka").join(name.into_iter().flatten().collect::<String>())
    }

    fn family(&self) -> Option<&str> {
        self.config.family.as_deref()
    }

    fn run(&self, on_progress: &mut dyn FnMut(Download<'_>)) -> Result<PathBuf> {
        let _alone = self.lock()?;
        if let Ok(folder) = self.whole() {
            return Ok(folder); // another process was faster
        }
        let api = self.api().map_err(|error| self.failed(error))?;
        let at = |revision: &str| {
            let (name, revision) = (self.name.to_owned(), revision.to_owned());
            api.repo(Repo::with_revision(name, RepoType::Model, revision))
        };
        let info = at(self.revision).info().map_err(|error| self.failed(error))?;
        if !is_commit(&info.sha) {
            return Err(self.odd("a commit of 40 hexadecimal digits", info.sha));
        }
        let all: Vec<&str> = info.siblings.iter().map(|file| &*file.rfilename).collect();
        let above = self.subfolder.map(|folder| format!("{folder}/")).unwrap_or_default();
        let names: Vec<&str> = all.iter().filter_map(|name| name.strip_prefix(&above)).collect();
        let (repo, folder) = (at(&info.sha), self.folder_in(&info.sha));
        let mut bring = |file: &str| match folder.join(file).is_file() {
            true => Ok(()),
            false => self.file(file, &repo.url(&format!("{above}{file}")), &folder, on_progress),
        };
        if self.family().is_none() && names.contains(&MODEL_TOML) {
            bring(MODEL_TOML)?; // it may say what the network is called
        }
        let networks = folder::network_names(&folder, self.family())?;
        let (network, mut files) = needed(&names, &networks).ok_or_else(|| self.no_network(&all))?;
        files.push(network);
        files.iter().try_for_each(|file| bring(file))?;
        // Weights may have any name; only the network knows.
        let outside = folder::weights_outside(&folder.join(network));
        let outside = names.iter().copied().filter(|name| outside.iter().any(|file| file == name));
        let outside = outside.filter(|name| name.split('/').all(is_part) && !files.contains(name));
        let outside: Vec<_> = outside.collect();
        outside.iter().try_for_each(|file| bring(file))?;
        files.extend(outside);
        write_atomic(self.list(&info.sha), files.join("\n"))?;
        if self.revision != info.sha {
            write_atomic(self.folder.join("refs").join(self.revision), &info.sha)?;
        }
        Ok(folder)
    }

    /// What there is instead: other networks, or whatever there is.
    fn no_network(&self, names: &[&str]) -> Error {
        let networks: Vec<&str> = names.iter().copied().filter(|name| name.ends_with(".onnx")).collect();
        let found = if networks.is_empty() { names } else { &networks };
        let expected = match self.subfolder {
            None => {
                "one network, or one that a family knows by its name, in its topmost folder (OWNER/NAME/FOLDER names another)"
            }
            Some(_) => "one network, or one that a family knows by its name, in that folder",
        };
        self.odd(expected, found.join(", "))
    }

    /// Waits until no other process downloads this model.
    fn lock(&self) -> Result<File> {
        let path = self.folder.join(".vodka/lock");
        create_dir(self.folder.join(".vodka"))?;
        let file = File::create(&path).map_err(cannot_write(&path))?;
        loop {
            if try_lock(&file) {
                return Ok(file);
            }
            self.go_on()?;
            thread::sleep(LOCK_TRIED_EVERY);
        }
    }

    /// An error where the user wants to stop.
    fn go_on(&self) -> Result<()> {
        match self.interrupt.is_raised() {
            true => Err(Error::Interrupted { what: format!("the download of {}", self.model) }),
            false => Ok(()),
        }
    }

    /// hf-hub for the listing and the addresses. Its downloads hand the token on to wherever the hub sends them, and show
    /// files in the cache before anything is verified.
    fn api(&self) -> Result<Api, ApiError> {
        ApiBuilder::from_cache(Cache::new(self.config.cache.clone()))
            .with_endpoint(self.endpoint().to_owned())
            .with_token(self.config.token.clone())
            .build()
    }

    fn endpoint(&self) -> &str {
        self.config.endpoint.trim_end_matches('/')
    }

    /// Brings one file into the cache, and shows it in a folder of the snapshot.
    fn file(
        &self,
        file: &str,
        url: &str,
        folder: &Path,
        on_progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<()> {
        self.go_on()?;
        let About { etag, size } = self.about(file, url)?;
        let blob = self.folder.join("blobs").join(&etag);
        if !blob.is_file() {
            let part = self.folder.join(".vodka").join(format!("{etag}.part"));
            self.download(&part, url, size, &mut |done| on_progress(Download { file, done, total: size }))?;
            let checked = check_size(&part, &blob, size).and_then(|()| match etag.parse() {
                Ok(hash) => check_hash(&part, &blob, hash),
                Err(_) => Ok(()), // a small file: its etag is git's hash, which is no SHA-256
            });
            if checked.is_err() {
                remove_all(&part)?;
            }
            checked?;
            create_dir(self.folder.join("blobs"))?;
            rename(&part, &blob)?;
        }
        let at = folder.join(file);
        create_dir(at.parent().unwrap_or(folder))?;
        let depth = self.subfolder.map_or(0, |subfolder| subfolder.split('/').count());
        link(&blob, &at, depth + file.matches('/').count())
    }

    /// Asks for one byte, and no further than the hub itself: of a large file that lies elsewhere it knows the hash.
    fn about(&self, file: &str, url: &str) -> Result<About> {
        let mut answer = self.get(&agent(0), url, "bytes=0-0")?;
        for _ in 0..REDIRECTS_MAX {
            let Some(place) = header(&answer, "location").filter(|place| place.starts_with('/')) else {
                break;
            };
            answer = self.get(&agent(0), &format!("{}{place}", self.endpoint()), "bytes=0-0")?;
        }
        let etag = header(&answer, "x-linked-etag").or_else(|| header(&answer, "etag")).unwrap_or_default();
        let etag = etag.trim_matches('"').to_owned();
        if !(is_hex(&etag) && matches!(etag.len(), 40 | 64)) {
            return Err(self.odd("an etag of 40 or 64 hexadecimal digits", format!("{etag:?} for {file}")));
        }
        let size = match header(&answer, "x-linked-size") {
            Some(size) => Some(size),
            None => total(&self.get(&agent(REDIRECTS_MAX), url, "bytes=0-0")?),
        };
        match size.as_deref().unwrap_or_default().parse() {
            Ok(size) => Ok(About { etag, size }),
            Err(_) => Err(self.odd("a size in bytes", format!("{size:?} for {file}"))),
        }
    }

    /// Downloads what is not here yet, and goes on after an interruption as long as something more arrives.
    fn download(&self, part: &Path, url: &str, size: u64, tell: &mut dyn FnMut(u64)) -> Result<()> {
        let here = || fs::metadata(part).map_or(0, |part| part.len());
        while here() < size {
            let before = here();
            match self.transfer(part, url, tell) {
                Err(error @ Error::Interrupted { .. }) => return Err(error),
                Err(error) if here() <= before => return Err(error),
                Ok(()) if here() <= before => break,
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds to a file what follows on what it has.
    fn transfer(&self, part: &Path, url: &str, tell: &mut dyn FnMut(u64)) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(part).map_err(cannot_write(part))?;
        let mut done = file.metadata().map_err(cannot_read(part))?.len();
        let answer = self.get(&agent(REDIRECTS_MAX), url, &format!("bytes={done}-"))?;
        if answer.status() != 206 {
            file.set_len(0).map_err(cannot_write(part))?; // all of it comes
            done = 0;
        }
        let mut body = answer.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            self.go_on()?;
            let n = body.read(&mut buffer).map_err(|error| self.failed(error))?;
            if n == 0 {
                return Ok(());
            }
            file.write_all(&buffer[..n]).map_err(cannot_write(part))?;
            done += n as u64;
            tell(done);
        }
    }

    fn get(&self, agent: &Agent, url: &str, range: &str) -> Result<Response<Body>> {
        let mut request = agent.get(url).header("Range", range).header("Accept-Encoding", "identity");
        if let Some(token) = &self.config.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|error| self.failed(error))
    }

    fn failed(&self, source: impl StdError + Send + Sync + 'static) -> Error {
        let (model, endpoint) = (self.model.to_string(), self.config.endpoint.clone());
        Error::Hub { model, endpoint, source: Box::new(source) }
    }

    fn odd(&self, expected: &'static str, found: String) -> Error {
        Error::HubAnswer { model: self.model.to_string(), expected, found }
    }
}

const REDIRECTS_MAX: u32 = 10;
/// How often it is looked whether another process is through with a model.
const LOCK_TRIED_EVERY: Duration = Duration::from_millis(100);

/// A client that keeps the token to the host it is for, and does not wait for ever for one that is silent.
fn agent(redirects: u32) -> Agent {
    Agent::config_builder()
        .max_redirects(redirects)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .user_agent(concat!("vodka/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// The size of the file that an answer holds a part of.
fn total(answer: &Response<Body>) -> Option<String> {
    let range = header(answer, "content-range").and_then(|range| range.rsplit('/').next().map(str::to_owned));
    range.or_else(|| header(answer, "content-length"))
}

fn header(answer: &Response<Body>, name: &str) -> Option<String> {
    answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// `name` is what the file will be called.
fn check_size(file: &Path, name: &Path, expected: u64) -> Result<()> {
    let found = fs::metadata(file).map_err(cannot_read(file))?.len();
    if found == expected {
        return Ok(());
    }
    let (expected, found) = (format!("{expected} bytes"), format!("{found} bytes"));
    Err(Error::WrongContent { path: name.to_path_buf(), expected, found })
}

fn check_hash(file: &Path, name: &Path, expected: ContentHash) -> Result<()> {
    let found = hash_file(file)?;
    if found == expected {
        return Ok(());
    }
    let (expected, found) = (format!("SHA-256 {expected}"), format!("SHA-256 {found}"));
    Err(Error::WrongContent { path: name.to_path_buf(), expected, found })
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(cannot_write(to))
}

/// Makes `snapshots/COMMIT/FILE`, or a file so many folders below, a link to a blob; a copy of it where links are not
/// allowed.
fn link(blob: &Path, at: &Path, depth: usize) -> Result<()> {
    remove_all(at)?;
    let target = Path::new(&"../".repeat(2 + depth)).join("blobs").join(blob.file_name().unwrap_or_default());
    #[cfg(unix)]
    let linked: io::Result<()> = std::os::unix::fs::symlink(&target, at);
    #[cfg(windows)]
    let linked: io::Result<()> = std::os::windows::fs::symlink_file(&target, at);
    #[cfg(not(any(unix, windows)))]
    let linked: io::Result<()> = Err(io::ErrorKind::Unsupported.into());
    let result = linked.or_else(|_| fs::copy(blob, at).map(drop));
    result.map_err(cannot_write(at))
}

fn cannot_read(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| StageError::Read { path: path.to_path_buf(), source }.into()
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| StageError::Write { path: path.to_path_buf(), source }.into()
}
