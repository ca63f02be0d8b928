//! The training step, or pictures, on a GPU beside PyTorch's, in one table: needs Python with torch, and the folder of the peers.
//!
//! Where this program lies beside `vodka-bench-train` and `vodka-bench-sample`, it needs no cargo, no checkout and no network.

use std::{
    env, fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result,
    process::{cargo, run as run_command, say},
    root,
};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Folder with peer_train.py, peer_sample.py and make_sd.py, and with the wheels that the Python lacks (diffusers, say)
    #[arg(long)]
    peers: PathBuf,
    /// What is measured
    #[arg(long, value_enum, default_value_t = What::Training)]
    what: What,
    /// cuda, cuda:N, or cpu to try it
    #[arg(long, default_value = "cuda")]
    device: String,
    /// full (SD 1.5), small or tiny
    #[arg(long, default_value = "full")]
    size: String,
    /// A Python that has torch
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// For the model and what is unpacked; stays [default: vodka-gpu-bench in the folder for temporary files]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// What does not fit into this time is left out, and said to be
    #[arg(long, default_value_t = 8)]
    minutes: u64,
    /// Training steps that are timed, beside three before them; or steps of a picture
    #[arg(long, default_value_t = 20)]
    steps: usize,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// The training step, at batches of 4 and 16
    Training,
    /// Pictures in 16 bits, 1 and 8 at once: DPM++ 2M Karras, and the peer's DDIM, which calls the UNet as often
    Sampling,
}

/// Operations of one picture forth and back through the UNet of SD 1.5 at 512 pixels: three times 857 thousand million.
const OPERATIONS: f64 = 2.57e12;

/// What an H100 or H200 does in a second at most, in bf16.
const CHIP: f64 = 989e12;

/// One row of the table.
struct Row {
    name: String,
    batch: u32,
    /// `None`: why not.
    images_per_s: std::result::Result<f64, String>,
    peak_gib: Option<f64>,
}

pub fn run(options: &Options) -> Result {
    let until = Instant::now() + Duration::from_secs(60 * options.minutes);
    let bench = Bench::new(options, until)?;
    let on_gpu = options.device != "cpu";
    let batches: &[u32] = match (options.what, on_gpu) {
        (What::Training, true) => &[4, 16],
        (What::Training, false) => &[4],
        (What::Sampling, true) => &[1, 8],
        (What::Sampling, false) => &[1],
    };
    let (eager, compiled): (&[&str], &[&str]) = (&["--channels-last"], &["--channels-last", "--compile"]);
    // First what is asked for: time may run out.
    let (asked, other) = match options.what {
        What::Sampling if on_gpu => (compiled, eager),
        _ => (eager, compiled),
    };
    let mut rows = Vec::new();
    for &batch in batches {
        rows.push(bench.ours(batch, &[]));
        rows.push(bench.peer(batch, asked));
    }
    if on_gpu {
        rows.extend(batches.iter().map(|batch| bench.peer(*batch, other)));
        rows.extend(batches.iter().map(|batch| bench.ours(*batch, &["--no-graphs"])));
    }
    print(&rows, options, &format!("PyTorch {}", asked.join(" ")));
    let failed = rows.iter().filter(|row| row.images_per_s.is_err()).count();
    match failed {
        0 => Ok(()),
        n => Err(format!("{n} of {} measurements were not made", rows.len()).into()),
    }
}

/// Where everything is.
struct Bench<'o> {
    options: &'o Options,
    until: Instant,
    program: PathBuf,
    model: PathBuf,
    runtime: PathBuf,
    /// torch's libraries.
    libraries: PathBuf,
    /// Wheels that were unpacked.
    packages: PathBuf,
}

impl<'o> Bench<'o> {
    /// Unpacks the wheels, finds torch, makes the model.
    fn new(options: &'o Options, until: Instant) -> Result<Self> {
        let folder = options.folder.clone().unwrap_or_else(|| env::temp_dir().join("vodka-gpu-bench"));
        let packages = folder.join("packages");
        fs::create_dir_all(&packages)?;
        for entry in fs::read_dir(&options.peers).map_err(|e| format!("{}: {e}", options.peers.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "whl") {
                let mut unpack = Command::new(&options.python);
                run_command(unpack.args(["-m", "zipfile", "-e"]).arg(&path).arg(&packages))?;
            }
        }
        let program = program(options.what)?;
        let mut bench = Self {
            options,
            until,
            program,
            model: folder.join(format!("model-{}", options.size)),
            runtime: folder.join("runtime"),
            libraries: PathBuf::new(),
            packages,
        };
        let asked = "import torch, pathlib; print(pathlib.Path(torch.__file__).parent / 'lib')";
        bench.libraries = bench.finish(bench.python().args(["-c", asked]))?.trim().into();
        let libtorch = bench.runtime.join("libtorch");
        fs::create_dir_all(&libtorch)?;
        let link = libtorch.join("lib");
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link)?;
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink(&bench.libraries, &link)?;
        if !bench.model.join("model_index.json").exists() {
            say(&format!("making the model in {}", bench.model.display()));
            let script = options.peers.join("make_sd.py");
            let mut make = bench.python();
            make.arg(script).arg(&bench.model).args(["--size", &options.size, "--dtype", "float16"]);
            say(bench.finish(&mut make)?.trim());
        }
        Ok(bench)
    }

    fn python(&self) -> Command {
        let mut command = Command::new(&self.options.python);
        let before = env::var_os("PYTHONPATH").unwrap_or_default();
        let all = [self.packages.clone()].into_iter().chain(env::split_paths(&before));
        command.env("PYTHONPATH", env::join_paths(all).unwrap_or(before.clone()));
        command
    }

    /// What both sides are asked for, beside the model.
    fn common(&self, command: &mut Command, batch: u32, more: &[&str]) {
        let Options { device, steps, size, what, .. } = self.options;
        let (dtype, resolution) = match (device.as_str(), what) {
            ("cpu", _) => ("fp32", "256"),
            (_, What::Training) => ("bf16", "512"),
            (_, What::Sampling) => ("fp16", "512"),
        };
        let resolution = if size == "full" { "512" } else { resolution };
        command.args(["--device", device, "--dtype", dtype]);
        command.args(["--steps", &steps.to_string(), "--batch", &batch.to_string()]);
        match what {
            What::Training => command.args(["--text-encoder", "--resolution", resolution]),
            What::Sampling => command.args(["--size", resolution]),
        };
        command.args(more);
    }

    fn ours(&self, batch: u32, more: &[&str]) -> Row {
        let mut command = Command::new(&self.program);
        match self.options.what {
            What::Training => command.arg(&self.model),
            What::Sampling => {
                command.args(["pictures", "--sampler", "DPM++ 2M", "--schedule", "Karras", "--model"]);
                command.arg(&self.model)
            }
        };
        self.common(&mut command, batch, more);
        command.arg("--runtime").arg(&self.runtime).env("LD_LIBRARY_PATH", &self.libraries);
        let name = format!("vodka {}", more.join(" "));
        // Seconds first, bytes last.
        self.measured(name.trim_end(), batch, &mut command, |text| {
            let numbers: Vec<f64> = text.split_whitespace().map_while(|number| number.parse().ok()).collect();
            let (seconds, peak) = (*numbers.first()?, *numbers.last()?);
            Some((f64::from(batch) / seconds, Some(peak / f64::from(1 << 30))))
        })
    }

    fn peer(&self, batch: u32, more: &[&str]) -> Row {
        let mut command = self.python();
        let (script, cached): (_, &[&str]) = match self.options.what {
            What::Training => ("peer_train.py", &["--cached"]),
            What::Sampling => ("peer_sample.py", &[]),
        };
        command.arg(self.options.peers.join(script)).arg(&self.model);
        self.common(&mut command, batch, more);
        command.args(cached);
        self.measured(&format!("PyTorch {}", more.join(" ")), batch, &mut command, |text| {
            let number =
                |word: &str, end: &str| text.rsplit_once(word)?.1.split_once(end)?.0.trim().parse().ok();
            Some((number("s/step", "images/s")?, number("peak", "GiB")))
        })
    }

    fn measured(
        &self,
        name: &str,
        batch: u32,
        command: &mut Command,
        read: impl Fn(&str) -> Option<(f64, Option<f64>)>,
    ) -> Row {
        say(&format!("{name}, batch {batch}"));
        let found = self.finish(command).map_err(|error| error.to_string());
        let found = found.and_then(|text| read(&text).ok_or(format!("it said: {text}")));
        let peak_gib = found.as_ref().ok().and_then(|(_, peak)| *peak);
        Row { name: name.to_owned(), batch, images_per_s: found.map(|(speed, _)| speed), peak_gib }
    }

    /// What a command prints; it is ended where the time is up.
    fn finish(&self, command: &mut Command) -> Result<String> {
        if Instant::now() >= self.until {
            return Err("no time left".into());
        }
        let name = command.get_program().to_string_lossy().into_owned();
        let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| format!("cannot run `{name}`: {error}"))?;
        let reader = |mut from: Box<dyn Read + Send>| {
            thread::spawn(move || {
                let mut text = Vec::new();
                let _ = from.read_to_end(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            })
        };
        let stdout = reader(Box::new(child.stdout.take().ok_or("no output")?));
        let stderr = reader(Box::new(child.stderr.take().ok_or("no output")?));
        let status = loop {
            match child.try_wait()? {
                Some(status) => break Some(status),
                None if Instant::now() >= self.until => {
                    child.kill()?;
                    child.wait()?;
                    break None;
                }
                None => thread::sleep(Duration::from_millis(50)),
            }
        };
        let text = |reader: thread::JoinHandle<String>| reader.join().unwrap_or_default();
        let (said, complaint) = (text(stdout), text(stderr));
        match status {
            Some(status) if status.success() => Ok(said),
            Some(status) => {
                Err(format!("{status}: {}", complaint.trim().lines().last().unwrap_or("")).into())
            }
            None => Err("the time was up".into()),
        }
    }
}

/// `vodka-bench-train` or `vodka-bench-sample`: beside this program; or built, where cargo started this or there is none.
fn program(what: What) -> Result<PathBuf> {
    let name = match what {
        What::Training => "vodka-bench-train",
        What::Sampling => "vodka-bench-sample",
    };
    let name = format!("{name}{}", env::consts::EXE_SUFFIX);
    let beside = env::current_exe()?.with_file_name(&name);
    // What lies beside a program that cargo has just built may be older than the checkout.
    if beside.exists() && env::var_os("CARGO").is_none() {
        return Ok(beside);
    }
    run_command(cargo().args(["build", "--release", "--package", "vodka-bench-torch"]))?;
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(Path::new(&target).join("release").join(name))
}

fn print(rows: &[Row], options: &Options, peer_name: &str) {
    say(&format!("\n| | batch | images/s | to {peer_name} | peak GiB | of the chip |"));
    say("|---|---|---|---|---|---|");
    for Row { name, batch, images_per_s, peak_gib } in rows {
        let speed = match images_per_s {
            Ok(speed) => *speed,
            Err(reason) => {
                say(&format!("| {name} | {batch} | not measured: {reason} | | | |"));
                continue;
            }
        };
        let peer = rows.iter().find(|row| row.batch == *batch && row.name == peer_name);
        let ratio = peer.and_then(|peer| peer.images_per_s.as_ref().ok()).map(|peer| speed / peer);
        let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let peak = peak_gib.map_or(String::new(), |peak| format!("{peak:.1}"));
        let share = 100.0 * speed * OPERATIONS / CHIP;
        let is_known = options.what == What::Training && options.size == "full" && options.device != "cpu";
        let share = if is_known { format!("{share:.0} %") } else { String::new() };
        say(&format!("| {name} | {batch} | {speed:.2} | {ratio} | {peak} | {share} |"));
    }
}
