//! What the trainer does with a picture before the VAE sees it: images per second of one core, and of all.
//!
//! ```sh
//! cargo bench -p vodka-bench-light --bench data_path
//! ```
//!
//! Decoding, and cutting the middle and resizing it to 512 x 512, of pictures of 1 and 4 megapixels; and what a cached picture
//! costs in its place: reading 128 KiB (the moments of a picture of 512 x 512) with their checksum.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and ends where it cannot go on"
)]

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use vodka_bench_light::{Format, photograph, save};
use vodka_images::{crop, decode, resize_bicubic};

/// How long each step is measured at least.
const SPAN: Duration = Duration::from_secs(2);

fn main() {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let folder = tempfile::tempdir().unwrap();
    println!("data path to 512 x 512, images per second, {cores} cores");
    for (megapixels, width, height) in [(1, 1155, 866), (4, 2310, 1732)] {
        let image = photograph(width, height, megapixels);
        for format in Format::ALL {
            let file = folder.path().join(format!("{megapixels}.{}", format.extension()));
            save(&image, &file, format).unwrap();
            let one = rate(|| drop(prepare(&file)));
            let decoded = rate(|| drop(decode(&file).unwrap()));
            let all: f64 = thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..cores).map(|_| scope.spawn(|| rate(|| drop(prepare(&file))))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            let name = format!("{megapixels} MP {}", format.extension());
            println!(
                "  {name:<12} one core {one:8.1}   (decoding alone {decoded:8.1})   all cores {all:8.1}"
            );
        }
    }
    let file = folder.path().join("moments");
    fs::write(&file, vec![7; 128 << 10]).unwrap();
    let hits = rate(|| {
        std::hint::black_box(crc32fast::hash(&fs::read(&file).unwrap()));
    });
    println!("  {:<12} one core {hits:8.1}", "cached");
}

/// The middle square in 512 x 512.
fn prepare(file: &Path) -> vodka_images::RgbImage {
    let image = decode(file).unwrap().into_rgb();
    let (width, height) = image.dimensions();
    let side = width.min(height);
    let square = crop(&image, (width - side) / 2, (height - side) / 2, side, side);
    resize_bicubic(&square, 512, 512)
}

/// Calls a second of `work`, on one thread.
fn rate(mut work: impl FnMut()) -> f64 {
    work();
    let (start, mut calls) = (Instant::now(), 0_u32);
    while calls < 8 || start.elapsed() < SPAN {
        work();
        calls += 1;
    }
    f64::from(calls) / start.elapsed().as_secs_f64()
}
