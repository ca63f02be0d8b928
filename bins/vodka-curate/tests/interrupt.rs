//! Ctrl-C while everything is read: heard at once, even by a disk that does not answer; and a kill while it is written.

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
    for pipe in ["images/a.txt", "pipe.csv"] {
        assert!(Command::new("mkfifo").arg(dir.path().join(pipe)).status().unwrap().success());
    }
    dir
}

fn curate(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vodka-curate"));
    command.current_dir(dir).args(line.split(' '));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
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
        "mix --captions pipe.csv --share 1 --output out",
        "duplicates --pictures pipe.csv --output new.csv",
    ] {
        let dir = world();
        let mut child = curate(dir.path(), line).spawn().unwrap();
        let name = if line.contains("pipe.csv") { "pipe.csv" } else { "images/a.txt" };
        let pipe = pipe(&dir.path().join(name), &mut child);
        assert!(pipe.is_some(), "{line} reads `{name}`");
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{line}: {said}");
        assert!(!dir.path().join("out").exists() && !dir.path().join("new.csv").exists(), "{line}");
        drop(pipe);
    }
}

/// The lock on the file in which a run makes `target` before it is put in its place: held, the run waits for it there.
fn held(target: &Path) -> File {
    let name = format!(".{}.partial", target.file_name().unwrap().to_str().unwrap());
    let file = File::options().create(true).append(true).open(target.with_file_name(name)).unwrap();
    file.try_lock().unwrap();
    file
}

/// Waits until a run has put a file in its place.
fn until_there(path: &Path, child: &mut Child) {
    while !path.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before `{}` was there", path.display());
        thread::yield_now();
    }
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A world in which everything can be read, with a table of pictures that are alike in some bits.
fn readable() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("labels.csv", "tag_id,name,category,count\n1,blurry,0,9\n2,solo,0,1\n");
    write(
        "tags.csv",
        "image,tag_id,tag,category,score\na.png,1,blurry,general,0.9\nb.png,1,blurry,general,0.5\n",
    );
    let row = |name: &str, hash: &str| format!("{name}.png,8,8,PNG,1,1,1,1,{hash},{}\n", "0f".repeat(8));
    let header = "image,width,height,format,sharpness,sharpness_tile_min,sharpness_tile_median,sharpness_tile_max,sha256,phash";
    let (a, b) = ("aa".repeat(32), "bb".repeat(32));
    write("pictures.csv", &format!("{header}\n{}{}", row("a", &a), row("b", &b)));
    fs::create_dir(dir.path().join("images")).unwrap();
    ["a", "b"].iter().for_each(|name| write(&format!("images/{name}.png"), ""));
    write("theirs.csv", "image,caption\na.png,a heart\nb.png,a star\n");
    write("pairs.csv", "image,original,new,model\na.png,old,new,m\nb.png,old,new,m\n");
    dir
}

#[test]
fn a_run_killed_between_its_output_and_its_record_is_in_nobodys_way() {
    // And in each case the same with another setting or input, whose output is another.
    let lines = [
        ("select --labels labels.csv --all-head --coverage 0.5 --output out.csv", "0.5", "1"),
        ("filter --tags tags.csv --query tag:blurry>0.7 --exclude out.csv", "0.7", "0.1"),
        ("duplicates --pictures pictures.csv --output out.csv", "duplicates", "duplicates --exact"),
        (
            "recaption --images images --captions theirs.csv --output out.csv --model m",
            "--model m",
            "--model n",
        ),
    ];
    for (line, setting, other) in lines {
        let dir = readable();
        let (out, record) = (dir.path().join("out.csv"), dir.path().join("out.csv.run.json"));
        // It says what it is about to write, waits to write it, then writes it, and waits to say so.
        let lock = held(&out);
        let mut child = curate(dir.path(), line).spawn().unwrap();
        until_there(&record, &mut child);
        let lock_of_record = held(&record);
        drop(lock);
        until_there(&out, &mut child);
        kill(child);
        drop(lock_of_record);
        let made = fs::read(&out).unwrap();
        for line in [&line.replacen(setting, other, 1), line] {
            let output = curate(dir.path(), line).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{line}: {said}");
            assert!(!said.contains("up to date"), "{line}: {said}");
        }
        assert_eq!(fs::read(&out).unwrap(), made, "{line}");
        fs::write(&out, "mine").unwrap();
        let output = curate(dir.path(), &line.replacen(setting, other, 1)).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("is in the way"), "{line}");
    }
}

#[test]
fn a_mix_that_is_killed_half_way_goes_on() {
    let dir = readable();
    let read = |name: &str| fs::read_to_string(dir.path().join("out").join(name)).unwrap();
    let line = "mix --captions pairs.csv --share 0 --output out";
    let lock = {
        fs::create_dir(dir.path().join("out")).unwrap();
        held(&dir.path().join("out/a.txt"))
    };
    let mut child = curate(dir.path(), line).spawn().unwrap();
    until_there(&dir.path().join("out/b.txt"), &mut child);
    kill(child);
    drop(lock);
    assert!(!dir.path().join("out/a.txt").exists() && !dir.path().join("out.run.json").exists());
    for (line, text) in [(line.replace("--share 0", "--share 1"), "new\n"), (line.to_owned(), "old\n")] {
        let output = curate(dir.path(), &line).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!((read("a.txt").as_str(), read("b.txt").as_str()), (text, text));
    }
    let left = fs::read_dir(dir.path().join("out")).unwrap().count();
    assert_eq!(left, 3, "two captions and the list");
}
