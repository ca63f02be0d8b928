//! Ctrl-C while everything is read: heard at once, even by a disk that does not answer.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs::{self, File},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use tempfile::TempDir;

/// A folder with a picture whose caption is a pipe that nobody ever writes to: reading it never ends.
fn world() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("images")).unwrap();
    fs::write(dir.path().join("images/a.png"), "").unwrap();
    let row = "image,tag_id,tag,category,score\na.png,1,blurry,general,0.9\n";
    fs::write(dir.path().join("tags.csv"), row).unwrap();
    fs::write(dir.path().join("selection.csv"), "name,include\nblurry,1\n").unwrap();
    fs::write(dir.path().join("theirs.csv"), "image,caption\na.png,a heart\n").unwrap();
    assert!(Command::new("mkfifo").arg(dir.path().join("images/a.txt")).status().unwrap().success());
    dir
}

/// The other end of a pipe, as soon as the process has opened it to read; none where it ends before.
fn pipe(path: &Path, process: &mut Child) -> Option<File> {
    // Without it, opening waits for a reader.
    const O_NONBLOCK: i32 = 0o4000;
    loop {
        match File::options().write(true).custom_flags(O_NONBLOCK).open(path) {
            Ok(pipe) => return Some(pipe),
            Err(_) if process.try_wait().unwrap().is_some() => return None,
            Err(_) => thread::yield_now(),
        }
    }
}

#[test]
fn an_interrupt_is_heard_while_captions_are_read() {
    const INPUTS: &str = "--tags tags.csv --selection selection.csv --images images";
    for line in [
        &format!("caption {INPUTS} --output out"),
        &format!("caption {INPUTS} --in-place"),
        &format!("caption {INPUTS} --output out --diff"),
        &format!("report {INPUTS} --output out"),
        &format!("analyse {INPUTS} --output out"),
        "recaption --images images --captions theirs.csv --output new.csv",
        "filter --query caption:heart --images images --count",
    ] {
        let dir = world();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vodka-curate"));
        command.current_dir(dir.path()).args(line.split(' ')).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pipe = pipe(&dir.path().join("images/a.txt"), &mut child);
        assert!(pipe.is_some(), "{line} reads the caption");
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{line}: {said}");
        assert!(!dir.path().join("out").exists() && !dir.path().join("new.csv").exists(), "{line}");
        drop(pipe);
    }
}
