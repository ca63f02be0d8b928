//! How fast pictures become squares, one core, files in memory: `preprocess FOLDER [SIDE]`.

#![allow(clippy::print_stdout, reason = "it is a program")]

use std::{env, error::Error, fs, hint::black_box, path::Path, sync::LazyLock, time::Instant};

use vodka_images::{DecodeOptions, Filter, Fit, Picture, Rgb, Square, decode_bytes, find, measure};

const WHITE: Rgb<u8> = Rgb([255; 3]);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let folder = arguments.next().ok_or("usage: preprocess FOLDER [SIDE]")?;
    let side_px = arguments.next().map_or(Ok(448), |side| side.parse())?;
    let paths = find(Path::new(&folder))?;
    let files =
        paths.iter().map(|path| fs::read(Path::new(&folder).join(path))).collect::<Result<Vec<_>, _>>()?;
    let square = |filter| Square { side_px, fit: Fit::Pad, filter, pad: WHITE, under: WHITE };
    let full = DecodeOptions::default();
    let reduced = DecodeOptions { reduce_to: Some(2 * side_px), ..full };
    let decode = |bytes: &[u8], options: &_| decode_bytes(bytes, options).map(|decoded| decoded.picture);
    let pictures = files.iter().map(|bytes| decode(bytes, &full)).collect::<Result<Vec<_>, _>>()?;
    time("decode", &files, |bytes| {
        black_box(decode(bytes, &full).ok());
    });
    time("decode reduced", &files, |bytes| {
        black_box(decode(bytes, &reduced).ok());
    });
    for (name, filter) in [("bicubic", Filter::Bicubic), ("lanczos", Filter::Lanczos), ("area", Filter::Area)]
    {
        time(name, &pictures, |picture: &Picture| {
            black_box(square(filter).of(picture));
        });
    }
    time("measure", &pictures, |picture| {
        black_box(measure(picture));
    });
    let profiles = [
        ("reference", full, Filter::Bicubic),
        ("kohya", full, Filter::Area),
        ("fast", reduced, Filter::Bicubic),
    ];
    for (name, options, filter) in profiles {
        time(name, &files, |bytes: &Vec<u8>| {
            black_box(decode_bytes(bytes, &options).map(|decoded| square(filter).of_decoded(&decoded)).ok());
        });
    }
    Ok(())
}

/// Goes through all inputs a few times and tells of the best.
fn time<T>(what: &str, inputs: &[T], mut work: impl FnMut(&T)) {
    let mut once = |_| {
        let start = seconds();
        inputs.iter().for_each(&mut work);
        (seconds() - start) / inputs.len() as f64
    };
    let best = (0..5).map(&mut once).fold(f64::INFINITY, f64::min);
    println!("{what:>15} {:8.2} ms {:8.1} images/s", best * 1e3, 1.0 / best);
}

/// Time that this thread has had a core, where Linux tells; else time.
fn seconds() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = stat.split(' ').next().and_then(|field| field.parse::<f64>().ok());
    nanoseconds.map_or_else(|| START.elapsed().as_secs_f64(), |ns| ns * 1e-9)
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
