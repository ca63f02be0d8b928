//! How much memory the networks take for a picture, and how much there is.
//!
//! What is counted are the feature maps that are alive at a time in the forward pass, in elements; `docs/sampling.md` has what was
//! measured beside it.

use std::{fs, path::Path};

use tch::Device;
use vodka_checkpoint::{RrdbConfig, UNetConfig, VaeConfig, keys::Key};

use crate::cuda;

/// Bytes that can be had on a device at the moment; `None` where that cannot be told.
///
/// For a processor the `MemAvailable` of `/proc/meminfo`, or what the limits of the process's control groups (of version 1 or 2)
/// leave, if that is less. For a GPU what its driver has left, and what libtorch holds without using it.
pub fn available(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => of_processor(Path::new("/")),
        Device::Cuda(_) => cuda::available_bytes(device),
        _ => None,
    }
}

/// Elements of all these weights.
pub fn weights(keys: &[Key]) -> u64 {
    keys.iter().map(elements).sum()
}

/// Elements of the largest of these weights, of which a processor's convolutions make a copy in another order.
pub fn largest(keys: &[Key]) -> u64 {
    keys.iter().filter(|key| key.shape.len() == 4).map(elements).max().unwrap_or(0)
}

fn elements(key: &Key) -> u64 {
    key.shape.iter().product::<usize>() as u64
}

/// Elements of what a ControlNet gives to a UNet of this form, for one row of a batch with latents of this height and width: as much as
/// the maps that wait for the way up, and the middle.
pub fn residuals(config: &UNetConfig, size: [i64; 2]) -> u64 {
    let widths = &config.block_out_channels;
    let level = |(i, channels): (usize, &i64)| {
        let pixels = |times| size.iter().map(|side| halved(*side, times)).product::<i64>();
        // The last level is not halved, but has the middle.
        let last = pixels((i + 1).min(widths.len() - 1));
        channels * (config.layers_per_block * pixels(i) + last)
    };
    let first = widths[0] * size[0] * size[1];
    (first + widths.iter().enumerate().map(level).sum::<i64>()) as u64
}

/// Elements of the feature maps of an ESRGAN upscaler at their most, for a picture of this height and width.
pub fn upscaler(config: &RrdbConfig, size: [i64; 2]) -> u64 {
    let RrdbConfig { features, growth, doublings, unshuffle, .. } = *config;
    let pixels: i64 =
        size.iter().map(|side| side.div_euclid(unshuffle) + i64::from(side % unshuffle > 0)).product();
    // What the blocks are given, what a block and a dense block are, and all that this has made, twice.
    let blocks = 4 * features + 2 * (features + 5 * growth);
    // What was made of the picture first, and behind the blocks; a map of a quarter, the larger one, that behind a convolution, and behind it.
    let up = |k: u32| 2 * features + (features << (2 * k)) * 3 + (features << (2 * k)) / 4;
    let most = (1..=doublings as u32).map(up).fold(blocks.max(5 * features), i64::max);
    (most * pixels) as u64
}

/// Elements of the UNet's feature maps at their most, for one row of a batch with latents of this height and width.
pub fn unet(config: &UNetConfig, size: [i64; 2]) -> u64 {
    let UNetConfig { block_out_channels: widths, cross_attention, layers_per_block, .. } = config;
    let pixels: Vec<i64> =
        (0..widths.len()).map(|i| size.iter().map(|side| halved(*side, i)).product()).collect();
    let coarsest = widths.len() - 1;
    // Maps that wait for the way up, the last of which is the one at hand.
    let mut skips = vec![(widths[0], pixels[0])];
    let waiting =
        |skips: &[(i64, i64)]| skips.iter().map(|(channels, pixels)| channels * pixels).sum::<i64>();
    let mut most = 0;
    for (i, channels) in widths.iter().enumerate() {
        for _ in 0..*layers_per_block {
            let input = skips[skips.len() - 1].0;
            let block = block(input, *channels, cross_attention[i]) - input;
            most = most.max(waiting(&skips) + block * pixels[i]);
            skips.push((*channels, pixels[i]));
        }
        if i < coarsest {
            skips.push((*channels, pixels[i + 1]));
        }
    }
    let mut current = widths[coarsest];
    most = most.max(waiting(&skips) + (block(current, current, true) - current) * pixels[coarsest]);
    for (i, channels) in widths.iter().enumerate().rev() {
        for _ in 0..=*layers_per_block {
            // The map, the skip and both beside each other.
            let (skip, _) = skips[skips.len() - 1];
            let block = current + block(current + skip, *channels, cross_attention[i]);
            most = most.max(waiting(&skips) + block * pixels[i]);
            skips.pop();
            current = *channels;
        }
        if i > 0 {
            most = most.max(waiting(&skips) + current * (pixels[i] + 2 * pixels[i - 1]));
        }
    }
    most as u64
}

/// Elements of the feature maps at their most when the VAE makes a picture of this height and width.
pub fn vae_decoder(config: &VaeConfig, size: [i64; 2]) -> u64 {
    let widths = &config.block_out_channels;
    let mut current = widths[widths.len() - 1];
    let mut most = middle(config, size, 7) as i64;
    for (i, channels) in widths.iter().enumerate().rev() {
        let pixels = pixels_of(size, i);
        most = most.max(resnet(current, *channels) * pixels);
        if i > 0 {
            // The map, and four times as large before and after a convolution.
            most = most.max(channels * 9 * pixels);
        }
        current = *channels;
    }
    most as u64
}

/// Elements of the feature maps at their most when the VAE encodes a picture of this height and width.
pub fn vae_encoder(config: &VaeConfig, size: [i64; 2]) -> u64 {
    let mut current = config.block_out_channels[0];
    let mut most = middle(config, size, 7) as i64;
    for (i, channels) in config.block_out_channels.iter().enumerate() {
        most = most.max(resnet(current, *channels) * pixels_of(size, i));
        current = *channels;
    }
    most as u64
}

/// The height and width that a tile of a picture has at most together with what its convolutions see around it.
pub fn tile(config: &VaeConfig, size: [i64; 2], side_px: i64) -> [i64; 2] {
    // Of each level of the decoder, which has more of them: two convolutions in a residual block, and one behind.
    let convolutions = 2 * (config.layers_per_block + 1) + 1;
    let around: i64 = (0..config.block_out_channels.len()).map(|level| convolutions << level).sum();
    size.map(|size| size.min(side_px + 2 * around))
}

/// Elements that either half needs at the least when it goes over a picture in tiles: the coarsest maps, or a tile, what the tiles
/// are made of and what becomes of them.
pub fn vae_in_tiles(config: &VaeConfig, size: [i64; 2], side_px: i64) -> u64 {
    let coarsest = config.block_out_channels.len() - 1;
    let ends = config.block_out_channels[coarsest] * pixels_of(size, coarsest)
        + config.in_channels * size[0] * size[1];
    let tile = tile(config, size, side_px);
    let tiles = ends as u64 + vae_decoder(config, tile).max(vae_encoder(config, tile));
    tiles.max(middle(config, size, 5))
}

/// The middle of either half: attention takes the map, the normalised one, queries, keys, values and what is seen, before and after
/// a matrix; queries that come in chunks are nothing beside the others, nor is what they see before the matrix.
fn middle(config: &VaeConfig, size: [i64; 2], maps: i64) -> u64 {
    let coarsest = config.block_out_channels.len() - 1;
    (maps * config.block_out_channels[coarsest] * pixels_of(size, coarsest)) as u64
}

/// Channels at a time in a residual block: the map, its norm, that behind SiLU and behind the convolution; or the map, the new one
/// and the same three of that.
fn resnet(input: i64, output: i64) -> i64 {
    (3 * input + output).max(input + 4 * output)
}

/// Channels at a time in a block of the UNet. The widest place of a transformer is its last: the block's input; the map before and
/// behind the first projection, both attentions and two norms; hidden layers of 8, 4 and 4 times the channels, and what they give.
fn block(input: i64, output: i64, attends: bool) -> i64 {
    let transformer = if attends { input + 23 * output } else { 0 };
    resnet(input, output).max(transformer)
}

fn pixels_of(size: [i64; 2], level: usize) -> i64 {
    size.iter().map(|side| halved(*side, level)).product()
}

/// A side that is halved so often, rounded up.
const fn halved(side: i64, times: usize) -> i64 {
    (side + (1 << times) - 1) >> times
}

/// What [`available`] says of a processor; files are looked for below `root`.
fn of_processor(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kilobytes: u64 = field(&meminfo, "MemAvailable:")?;
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let left = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        let group = match controllers {
            "" => Group {
                folder: "sys/fs/cgroup",
                most: "memory.max",
                now: "memory.current",
                unused: "inactive_file",
            },
            _ if controllers.split(',').any(|name| name == "memory") => Group {
                folder: "sys/fs/cgroup/memory",
                most: "memory.limit_in_bytes",
                now: "memory.usage_in_bytes",
                unused: "total_inactive_file",
            },
            _ => return None,
        };
        // A container may see its own group as the root.
        Path::new(path).ancestors().filter_map(|path| group.left(&root.join(group.folder).join(path))).min()
    });
    Some(left.fold(kilobytes * 1024, u64::min))
}

/// The files of a control group of one version.
struct Group {
    folder: &'static str,
    most: &'static str,
    now: &'static str,
    /// Pages of files that would be given up.
    unused: &'static str,
}

impl Group {
    /// What a group has left; `None` where it has no limit.
    fn left(&self, folder: &Path) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let unused = read("memory.stat").and_then(|stat| field(&stat, self.unused)).unwrap_or(0);
        let used = number(self.now)?.saturating_sub(unused);
        Some(number(self.most)?.saturating_sub(used))
    }
}

/// The number behind a word at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix([' ', '\t']))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use vodka_checkpoint::{ModelConfig, UNetConfig, keys};

    use super::*;

    #[test]
    fn the_smallest_limit_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(of_processor(dir.path()), None);
        write("proc/meminfo", "MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\n");
        assert_eq!(of_processor(dir.path()), Some(8_192_000_000));
        write("proc/self/cgroup", "0::/a/b\n");
        write("sys/fs/cgroup/a/b/memory.max", "max\n");
        write("sys/fs/cgroup/a/b/memory.current", "900\n");
        assert_eq!(of_processor(dir.path()), Some(8_192_000_000));
        write("sys/fs/cgroup/a/memory.max", "5000\n");
        write("sys/fs/cgroup/a/memory.current", "4000\n");
        assert_eq!(of_processor(dir.path()), Some(1000));
        write("sys/fs/cgroup/a/memory.stat", "anon 3000\nfile 1000\ninactive_file 800\n");
        assert_eq!(of_processor(dir.path()), Some(1800));
        // Version 1, in a container that does not see the path; more is used than there may be.
        write("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:hugetlb,memory:/docker/x\n0::/\n");
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "700\n");
        write("sys/fs/cgroup/memory/memory.usage_in_bytes", "950\n");
        write("sys/fs/cgroup/memory/memory.stat", "inactive_file 9\ntotal_inactive_file 100\n");
        assert_eq!(of_processor(dir.path()), Some(0));
        assert!(available(Device::Cpu).is_some() || !cfg!(target_os = "linux"));
        assert_eq!(available(Device::Mps), None);
    }

    #[test]
    fn maps_of_what_goes_with_it() {
        let config = UNetConfig::sd15();
        // Twelve of the way down, of which four are 320 channels, three and three 640 and 1280 of the next, and the middle.
        let expected = 320 * 3 * 4096 + (320 + 2 * 640) * 1024 + (640 + 2 * 1280) * 256 + 4 * 1280 * 64;
        assert_eq!(residuals(&config, [64, 64]), expected);
        let esrgan =
            RrdbConfig { features: 64, growth: 32, blocks: 23, doublings: 2, unshuffle: 1, plus: false };
        // Maps of the result's size: three and a quarter.
        assert_eq!(upscaler(&esrgan, [10, 20]), 200 * (64 * 16 * 13 / 4 + 2 * 64));
        let clearing = RrdbConfig { doublings: 0, ..esrgan };
        assert_eq!(upscaler(&clearing, [10, 20]), 200 * (4 * 64 + 2 * (64 + 5 * 32)));
        // Four pixels are one, and what is missing for that is added.
        let twice = RrdbConfig { unshuffle: 2, ..esrgan };
        assert_eq!(upscaler(&twice, [9, 20]), 50 * (64 * 16 * 13 / 4 + 2 * 64));
    }

    #[test]
    fn maps_of_stable_diffusion() {
        let config = ModelConfig::sd15();
        let keys = keys::unet(&config.unet);
        assert_eq!((weights(&keys), largest(&keys)), (859_520_964, 2560 * 1280 * 9));
        // 512 px: channels times pixels of the widest place.
        assert_eq!(vae_decoder(&config.vae, [512, 512]), (3 * 256 + 128) * 512 * 512);
        assert_eq!(vae_encoder(&config.vae, [512, 512]), 5 * 128 * 512 * 512);
        // The first block of the finest level on the way up: three skips, 640 channels, both beside each other, a transformer.
        assert_eq!(unet(&config.unet, [64, 64]), (3 * 320 + 640 + 960 + 23 * 320) * 4096);
        let four = unet(&config.unet, [128, 128]) as f64 / unet(&config.unet, [64, 64]) as f64;
        assert!((four - 4.0).abs() < 1e-9);
        assert_eq!(halved(65, 3), 9);
        // Tiles of 4096 px with all weights beside them in fp32.
        let tiles = vae_in_tiles(&config.vae, [4096, 4096], 512);
        let keys = [keys::vae(&config.vae), keys::clip(&config.clip)].map(|keys| weights(&keys));
        assert!(4 * (tiles + 859_520_964 + keys[0] + keys[1]) < 7_200_000_000, "{tiles}");
    }
}
