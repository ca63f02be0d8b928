//! A VAE in tiles gives what it gives of the whole, within the stated bounds.

use tch::{Device, Kind, Tensor, no_grad};
use vodka_checkpoint::{Checkpoint, VaeConfig};
use vodka_sd15::{Vae, VaeTiles, layers::Tiling, memory};

use crate::common::weights;

/// The most that a pixel, which is in -1..1, may differ: a part in 78 of a step of 8 bits. Found: 1.3e-5.
const PIXELS_MAX: f64 = 1e-4;
/// The most that a latent may differ, before it is scaled. Found: 5e-6.
const LATENTS_MAX: f64 = 1e-4;

/// Numbers in -1..1 that look like nothing: waves that differ from place to place.
fn picture(channels: i64, [height, width]: [i64; 2]) -> Tensor {
    let count = channels * height * width;
    let numbers = Tensor::arange(count, (Kind::Double, Device::Cpu));
    let waves = (&numbers * 0.37).sin() * (&numbers * 0.000_13).cos() + (&numbers * 0.011).sin() * 0.5;
    (waves / 1.5).to_kind(Kind::Float).view([1, channels, height, width])
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Float) - b.to_kind(Kind::Float)).abs().max().double_value(&[])
}

/// Memory enough to keep all maps, some memory, and none.
const MEMORIES: [u64; 3] = [u64::MAX, 4_000_000, 0];

/// The largest differences of pixels and latents in tiles of that side.
fn differences(vae: &mut Vae, size: [i64; 2], side_px: u32, memories: &[u64]) -> [f64; 2] {
    let downscale = vae.config().downscale();
    let latents = picture(4, size.map(|side| side / downscale)) * 3.0;
    let pixels = picture(3, size);
    no_grad(|| {
        vae.set_tiles(None);
        let (decoded, encoded) = (vae.decode(&latents), vae.encode(&pixels).mean);
        let mut most = [0.0_f64; 2];
        for memory in memories {
            vae.set_tiles(Some(VaeTiles { side_px: Some(side_px), memory: Some(*memory) }));
            most[0] = most[0].max(difference(&vae.decode(&latents), &decoded));
            most[1] = most[1].max(difference(&vae.encode(&pixels).mean, &encoded));
        }
        most
    })
}

/// The VAE of `fixtures/sd15/vae`.
fn fixture() -> Vae {
    let config = VaeConfig {
        block_out_channels: vec![8, 16, 16],
        layers_per_block: 2,
        norm_groups: 4,
        ..VaeConfig::sd15()
    };
    Vae::new(&config, Device::Cpu, Kind::Float, &weights("vae", Kind::Float)).unwrap()
}

fn base() -> Vae {
    let checkpoint = Checkpoint::open(vodka_testkit::model("base")).unwrap();
    Vae::load(&checkpoint, Device::Cpu, Kind::Float).unwrap()
}

/// The demo's own, which is trained.
fn demo() -> Vae {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("demo.safetensors");
    vodka_testkit::compose_demo_model("base", &path).unwrap();
    Vae::load(&Checkpoint::open(&path).unwrap(), Device::Cpu, Kind::Float).unwrap()
}

fn within(name: &str, [pixels, latents]: [f64; 2]) {
    assert!(pixels < PIXELS_MAX && latents < LATENTS_MAX, "{name}: pixels {pixels:e}, latents {latents:e}");
}

#[test]
fn tiles_of_small_networks_are_the_whole() {
    // Sides that tiles divide, that they do not, and one that fits into a tile.
    for size in [[256, 256], [328, 200], [64, 392]] {
        within("fixture", differences(&mut fixture(), size, 64, &MEMORIES));
        within("base", differences(&mut base(), size, 64, &MEMORIES));
        within("demo", differences(&mut demo(), size, 64, &MEMORIES));
    }
    within("base", differences(&mut base(), [512, 384], 256, &MEMORIES));
}

#[test]
fn tiles_of_stable_diffusion_are_the_whole() {
    // Its form with random weights: fewer channels would hide how sums are rounded.
    tch::manual_seed(5);
    let source = |name: &str, shape: &[i64]| {
        let fan_in = shape[1..].iter().product::<i64>() as f64;
        let numbers = Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let is_factor = shape.len() == 1 && name.ends_with("weight");
        Ok(if is_factor { numbers * 0.1 + 1.0 } else { numbers / fan_in.sqrt() })
    };
    let mut vae = Vae::new(&VaeConfig::sd15(), Device::Cpu, Kind::Float, &source).unwrap();
    within("SD 1.5", differences(&mut vae, [104, 80], 64, &[u64::MAX]));
}

#[test]
fn sixteen_bits_are_as_near_as_they_are() {
    let checkpoint = Checkpoint::open(vodka_testkit::model("base")).unwrap();
    let mut vae = Vae::load(&checkpoint, Device::Cpu, Kind::BFloat16).unwrap();
    let latents = picture(4, [32, 24]) * 3.0;
    let exact = no_grad(|| base().decode(&latents));
    let latents = latents.to_kind(Kind::BFloat16);
    let whole = no_grad(|| vae.decode(&latents));
    vae.set_tiles(Some(VaeTiles { side_px: Some(64), memory: None }));
    let tiled = no_grad(|| vae.decode(&latents));
    assert_eq!(tiled.kind(), Kind::BFloat16);
    let mean = |a: &Tensor| (a.to_kind(Kind::Float) - &exact).abs().mean(Kind::Double).double_value(&[]);
    assert!(mean(&tiled) < 1.5 * mean(&whole) + 1e-6, "{} and {}", mean(&tiled), mean(&whole));
}

#[test]
fn pictures_are_cut_where_memory_does_not_suffice() {
    let mut vae = base();
    let latents = picture(4, [80, 72]);
    let decode = |vae: &Vae| no_grad(|| vae.decode(&latents));
    let whole = decode(&vae);
    let is_same = |a: &Tensor| difference(a, &whole) == 0.0;
    // As a whole to the bit, where memory is enough: without a limit it is what the machine has.
    let needed = 4 * memory::vae_decoder(vae.config(), [640, 576]);
    for memory in [None, Some(needed)] {
        vae.set_tiles(Some(VaeTiles { side_px: None, memory }));
        assert!(is_same(&decode(&vae)), "{memory:?}");
    }
    vae.set_tiles(Some(VaeTiles { side_px: None, memory: Some(needed - 1) }));
    assert!(!is_same(&decode(&vae)));
    // One that fits into a tile is not cut.
    vae.set_tiles(Some(VaeTiles { side_px: Some(640), memory: Some(0) }));
    assert!(is_same(&decode(&vae)));
    // Edges that fit together need the opposite ones.
    vae.set_tiles(Some(VaeTiles { side_px: Some(64), memory: Some(0) }));
    let _tiling = Tiling::enter(true);
    let round = decode(&vae);
    vae.set_tiles(None);
    assert_eq!(difference(&round, &decode(&vae)), 0.0);
}
