//! Asks a service about many pictures at once, and keeps every answer the moment it comes.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vodka_images::{DecodeOptions, Filter, decode_bytes, jpeg, shrink};
use vodka_stage::{ContentHash, Interrupt, Journal, RunKey};

use super::{
    RecaptionEvent, RecaptionPlan, Replies, Service, Task,
    ask::{Client, Failure, Reply, Wording, pause},
};
use crate::{Error, Result};

/// After so many pictures in a row without any answer the service is taken to be gone.
const GIVE_UP: u32 = 10;

/// The quality of the pictures that are sent, 1 to 100.
const QUALITY: u8 = 90;

/// So long a raised interrupt may go unnoticed in a pause.
const LOOK: Duration = Duration::from_millis(50);

/// An answer in the journal.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    image: String,
    /// Of the picture's file.
    hash: ContentHash,
    reply: Reply,
}

impl Service {
    /// What the answers depend on: neither the key nor the address, behind which the same model may be.
    pub(super) fn settings(&self, model: &str) -> Value {
        let Self { prompt, max_side, max_tokens, temperature, .. } = self;
        json!({ "model": model, "prompt": prompt, "max_side": max_side, "max_tokens": max_tokens, "temperature": temperature })
    }
}

/// What the threads share.
struct Shared<'a> {
    root: &'a Path,
    service: &'a Service,
    client: Client,
    due: Vec<&'a Task>,
    next: AtomicUsize,
    journal: Mutex<Journal>,
    failed_in_a_row: AtomicU32,
    /// Whether the service has ever answered, in this run or an earlier one: then it is the picture that it cannot read.
    has_answered: AtomicBool,
    stopped: AtomicBool,
    interrupt: &'a Interrupt,
}

/// What a thread tells: the picture, and its reply or why there is none.
type Told = Result<(String, Result<Reply, String>)>;

/// Asks about every picture that has no answer yet. Pictures that were not asked about before an interrupt have no entry.
pub(super) fn ask_all(
    plan: &RecaptionPlan,
    service: &Service,
    tasks: &[Task],
    interrupt: &Interrupt,
    on_event: &mut dyn FnMut(RecaptionEvent),
) -> Result<Replies> {
    let key = RunKey::new("recaption answers", &service.settings(&plan.model), None).hash();
    let mut known: HashMap<String, (ContentHash, Reply)> = HashMap::new();
    let journal = Journal::open(journal_path(&plan.output), key, |_, Entry { image, hash, reply }| {
        known.insert(image, (hash, reply));
    })?;
    let has_answered = AtomicBool::new(!known.is_empty());
    let mut replies = BTreeMap::new();
    for task in tasks {
        if let Some((_, reply)) = known.remove(&task.picture.image).filter(|(hash, _)| *hash == task.hash) {
            replies.insert(task.picture.image.clone(), Ok(reply));
        }
    }
    let (images, answered) = (tasks.len() as u64, replies.len() as u64);
    on_event(RecaptionEvent::Started { images, answered });
    let wording = Wording {
        model: &plan.model,
        prompt: &service.prompt,
        max_tokens: service.max_tokens,
        temperature: service.temperature,
    };
    let timeout = Duration::from_secs(service.timeout_s);
    let shared = Shared {
        root: &plan.images,
        service,
        client: Client::new(&service.endpoint, service.api_key.clone(), &wording, timeout),
        due: tasks.iter().filter(|task| !replies.contains_key(&task.picture.image)).collect(),
        next: AtomicUsize::new(0),
        journal: Mutex::new(journal),
        failed_in_a_row: AtomicU32::new(0),
        has_answered,
        stopped: AtomicBool::new(false),
        interrupt,
    };
    thread::scope(|scope| {
        let (sender, told) = mpsc::channel();
        for _ in 0..service.concurrency.min(shared.due.len()) {
            let (sender, shared) = (sender.clone(), &shared);
            scope.spawn(move || shared.work(&sender));
        }
        drop(sender);
        let mut first_error = None;
        for told in told {
            match told {
                Ok((image, reply)) => {
                    replies.insert(image, reply);
                    on_event(RecaptionEvent::Answered { images: replies.len() as u64 });
                }
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    })?;
    Ok(replies)
}

/// Where the answers are kept: `new.csv` has `new.csv.journal` beside it.
pub(super) fn journal_path(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(".journal");
    output.with_file_name(name)
}

impl Shared<'_> {
    fn is_over(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.interrupt.is_raised()
    }

    /// Takes pictures until there are none left.
    fn work(&self, tell: &Sender<Told>) {
        while !self.is_over() {
            let Some(task) = self.due.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            let told = self.one(task).transpose();
            if matches!(told, Some(Err(_))) {
                self.stopped.store(true, Ordering::Relaxed);
            }
            // Who listens is there until all threads are through.
            told.into_iter().for_each(|told| drop(tell.send(told)));
        }
    }

    /// The reply about a picture; none where an interrupt came before it.
    fn one(&self, task: &Task) -> Result<Option<(String, Result<Reply, String>)>> {
        let image = &task.picture.image;
        // What can be read and is no picture is none in the next run, either.
        let picture = match fs::read(self.root.join(image)).map(|bytes| self.picture(&bytes)) {
            Ok(Ok(picture)) => picture,
            Ok(Err(reason)) => return Ok(Some((image.clone(), Ok(Reply::None(reason))))),
            Err(error) => return Ok(Some((image.clone(), Err(error.to_string())))),
        };
        let reply = match self.ask(&picture) {
            Ok(reply) => reply,
            Err(Failure::All(error)) => return Err(error),
            Err(Failure::Picture(reason)) if self.has_answered.load(Ordering::Relaxed) => Reply::None(reason),
            Err(_) if self.is_over() => return Ok(None),
            Err(Failure::Again { reason, .. } | Failure::Picture(reason)) => {
                let failed = self.failed_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
                return match failed < GIVE_UP {
                    true => Ok(Some((image.clone(), Err(reason)))),
                    false => Err(Error::NoAnswers { pictures: failed, reason }),
                };
            }
        };
        self.failed_in_a_row.store(0, Ordering::Relaxed);
        self.has_answered.store(true, Ordering::Relaxed);
        let entry = Entry { image: image.clone(), hash: task.hash, reply };
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).append(&entry)?;
        Ok(Some((entry.image, Ok(entry.reply))))
    }

    /// The picture as it is sent: upright, without transparency, no side longer than wanted.
    fn picture(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let max_side = self.service.max_side;
        let options =
            DecodeOptions { reduce_to: Some(max_side.saturating_mul(2)), ..DecodeOptions::default() };
        let decoded = decode_bytes(bytes, &options).map_err(|fault| fault.to_string())?;
        Ok(jpeg(&shrink(decoded.picture.into_rgb(), max_side, Filter::Lanczos), QUALITY))
    }

    /// Asks, and asks again as often as it is worth it.
    fn ask(&self, picture: &[u8]) -> Result<Reply, Failure> {
        let mut failures = 0;
        loop {
            match self.client.ask(picture) {
                Err(Failure::Again { after, .. }) if failures < self.service.retries && !self.is_over() => {
                    let base = Duration::from_millis(self.service.pause_ms);
                    self.wait(pause(failures, base, after));
                    failures += 1;
                }
                result => return result,
            }
        }
    }

    /// Waits, unless there is nothing to wait for any more.
    fn wait(&self, length: Duration) {
        let start = Instant::now();
        while !self.is_over() {
            let left = length.saturating_sub(start.elapsed());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(LOOK));
        }
    }
}
