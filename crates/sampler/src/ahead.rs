//! Reads the next model's files while pictures are made, so that the disk is not waited for when it is loaded.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

/// A thread that brings files into the system's cache; it ends when this is dropped, finished or not.
#[derive(Debug)]
pub(crate) struct Ahead {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Ahead {
    /// Starts reading; folders with all that is directly in them or one level below, as diffusers has it.
    pub(crate) fn start(files: Vec<PathBuf>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let read = move || files.iter().map(|path| read(path, &flag, 2)).sum();
        Self { stop, thread: Some(thread::spawn(read)) }
    }

    /// Waits until all is read, and tells how many bytes there were.
    #[cfg(test)]
    fn finish(mut self) -> u64 {
        self.thread.take().map_or(0, |thread| thread.join().unwrap_or(0))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Only a reader: what it could not read, the loader will tell.
            let _ = thread.join();
        }
    }
}

/// A megabyte at a time: the system reads on by itself, and the flag is looked at often enough.
const CHUNK: usize = 1 << 20;

fn read(path: &Path, stop: &AtomicBool, depth: usize) -> u64 {
    if path.is_dir() && depth > 0 {
        let entries = path.read_dir().into_iter().flatten().flatten();
        return entries.map(|entry| read(&entry.path(), stop, depth - 1)).sum();
    }
    let Ok(mut file) = File::open(path) else { return 0 };
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    while !stop.load(Ordering::Relaxed) {
        match file.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => total += count as u64,
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_are_read_and_missing_ones_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("model/unet")).unwrap();
        std::fs::write(at("model/unet/weights"), vec![1; CHUNK + 5]).unwrap();
        std::fs::write(at("a"), "12345").unwrap();
        let files = vec![at("model"), at("a"), at("none")];
        assert_eq!(Ahead::start(files.clone()).finish(), CHUNK as u64 + 10);
        drop(Ahead::start(files));
    }
}
