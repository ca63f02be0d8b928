//! From a scene to pixels.

use std::f32::consts::{PI, TAU};

use image::RgbImage;
use rand::Rng;

use crate::{
    canvas::{Canvas, Rgb3, disc, mix, polygon, rectangle},
    scene::{Blur, Extra, Framing, Light, Place, Scene, Shape},
};

/// The sigma of the blur as a share of the side, at degree 0 and 1.
const BLUR_SIGMA: [f32; 2] = [0.022, 0.055];

/// Draws a scene, `size_px` wide and high.
pub fn render(rng: &mut impl Rng, scene: &Scene, size_px: u32) -> RgbImage {
    let (mut canvas, horizon) = match scene.place {
        Place::Outdoors => landscape(rng, scene, size_px),
        Place::Indoors => room(rng, scene, size_px),
        Place::Plain => wall(rng, size_px),
    };
    if let Blur::Background(degree) = scene.blur {
        canvas.blur(sigma(degree));
    }
    things(rng, scene, &mut canvas, horizon);
    if scene.light == Light::Night {
        canvas.tint([0.62, 0.64, 0.86]);
    }
    if let Blur::Whole(degree) = scene.blur {
        canvas.blur(sigma(degree));
    }
    if scene.monochrome {
        canvas.grey();
    }
    canvas.into_image()
}

fn sigma(degree: f32) -> f32 {
    BLUR_SIGMA[0] + degree * (BLUR_SIGMA[1] - BLUR_SIGMA[0])
}

/// Sky, sun or moon, trees, grass; and where the ground begins on which things may stand.
fn landscape(rng: &mut impl Rng, scene: &Scene, size_px: u32) -> (Canvas, f32) {
    let horizon = rng.random_range(0.52..0.62);
    let (top, bottom, grass) = match scene.light {
        Light::Day => ([96.0, 168.0, 236.0], [196.0, 226.0, 246.0], [116.0, 178.0, 84.0]),
        Light::Night => ([14.0, 18.0, 56.0], [44.0, 52.0, 116.0], [44.0, 78.0, 66.0]),
    };
    let mut canvas = Canvas::gradient(size_px, top, bottom);
    let lamp = [rng.random_range(0.12..0.88), rng.random_range(0.12..0.2)];
    match scene.light {
        Light::Day => canvas.fill([255.0, 244.0, 190.0], disc(lamp, 0.065)),
        Light::Night if scene.extras.contains(&Extra::Moon) => {
            canvas.fill([252.0, 248.0, 214.0], disc(lamp, 0.085));
            canvas.fill(mix(top, bottom, 0.15), disc([lamp[0] + 0.045, lamp[1] - 0.02], 0.07));
        }
        Light::Night => {}
    }
    canvas.fill(grass, rectangle([-1.0, horizon], [2.0, 2.0]));
    canvas.fill(mix(grass, [0.0; 3], 0.16), rectangle([-1.0, horizon + 0.2], [2.0, 2.0]));
    if scene.extras.contains(&Extra::Tree) {
        let x = if rng.random_bool(0.5) { rng.random_range(0.06..0.2) } else { rng.random_range(0.8..0.94) };
        tree(&mut canvas, [x, horizon + 0.06], rng.random_range(0.32..0.42), scene.light);
    }
    (canvas, horizon + 0.14)
}

fn tree(canvas: &mut Canvas, [x, y]: [f32; 2], tall: f32, light: Light) {
    let shade = if light == Light::Night { 0.5 } else { 0.0 };
    let trunk = tall * 0.09;
    let bark = mix([110.0, 72.0, 42.0], [0.0; 3], shade);
    canvas.fill(bark, rectangle([x - trunk, y - tall * 0.45], [x + trunk, y]));
    canvas.fill(mix([34.0, 106.0, 56.0], [0.0; 3], shade), disc([x, y - tall * 0.68], tall * 0.34));
}

/// Wall, floor, window and lamp.
fn room(rng: &mut impl Rng, scene: &Scene, size_px: u32) -> (Canvas, f32) {
    let floor = rng.random_range(0.6..0.68);
    let papers: [Rgb3; 3] = [[226.0, 206.0, 176.0], [198.0, 208.0, 196.0], [214.0, 190.0, 196.0]];
    let paper = papers[rng.random_range(0..papers.len())];
    let night = scene.light == Light::Night;
    let paper = if night { mix(paper, [40.0, 36.0, 60.0], 0.6) } else { paper };
    let boards = if night { [84.0, 60.0, 52.0] } else { [160.0, 112.0, 72.0] };
    let mut canvas = Canvas::gradient(size_px, paper, mix(paper, [0.0; 3], 0.08));
    canvas.fill(boards, rectangle([-1.0, floor], [2.0, 2.0]));
    canvas.fill(mix(boards, [0.0; 3], 0.35), rectangle([-1.0, floor], [2.0, floor + 0.03]));
    let left = rng.random_bool(0.5);
    if scene.extras.contains(&Extra::Window) {
        window(&mut canvas, if left { 0.22 } else { 0.78 }, night);
    }
    if scene.extras.contains(&Extra::Lamp) {
        lamp(&mut canvas, if left { 0.86 } else { 0.14 }, floor);
    }
    (canvas, floor + 0.1)
}

fn window(canvas: &mut Canvas, x: f32, night: bool) {
    let frame = if night { [150.0, 140.0, 150.0] } else { [250.0, 248.0, 240.0] };
    let pane = if night { [22.0, 28.0, 80.0] } else { [140.0, 200.0, 246.0] };
    canvas.fill(frame, rectangle([x - 0.15, 0.08], [x + 0.15, 0.42]));
    for (dx, dy) in [(-0.065, 0.165), (0.065, 0.165), (-0.065, 0.335), (0.065, 0.335)] {
        canvas.fill(pane, rectangle([x + dx - 0.05, dy - 0.07], [x + dx + 0.05, dy + 0.07]));
    }
}

fn lamp(canvas: &mut Canvas, x: f32, floor: f32) {
    canvas.glow([255.0, 236.0, 170.0], [x, floor - 0.34], 0.16, 0.7);
    canvas.fill([70.0, 60.0, 58.0], rectangle([x - 0.012, floor - 0.32], [x + 0.012, floor + 0.04]));
    canvas.fill(
        [255.0, 226.0, 140.0],
        polygon(vec![
            [x - 0.05, floor - 0.42],
            [x + 0.05, floor - 0.42],
            [x + 0.09, floor - 0.28],
            [x - 0.09, floor - 0.28],
        ]),
    );
}

/// A plain wall of a pale colour.
fn wall(rng: &mut impl Rng, size_px: u32) -> (Canvas, f32) {
    let colours: [Rgb3; 4] =
        [[236.0, 232.0, 220.0], [212.0, 224.0, 232.0], [180.0, 184.0, 188.0], [222.0, 212.0, 228.0]];
    let colour = colours[rng.random_range(0..colours.len())];
    (Canvas::gradient(size_px, colour, mix(colour, [0.0; 3], 0.06)), 0.66)
}

/// The things beside each other on the ground, each with its shadow.
fn things(rng: &mut impl Rng, scene: &Scene, canvas: &mut Canvas, ground: f32) {
    let count = scene.things.len() as f32;
    let side: f32 = match scene.framing {
        Framing::Close => rng.random_range(0.76..0.9),
        Framing::Normal => rng.random_range(0.42..0.54),
        Framing::Wide => rng.random_range(0.2..0.25),
    };
    let slot = 1.0 / count;
    let side = side.min(slot * 0.9);
    for (i, thing) in scene.things.iter().enumerate() {
        let spare = slot - side;
        let left = i as f32 * slot + spare * rng.random_range(0.3..0.7);
        let bottom = match scene.framing {
            Framing::Close => 0.5 + side / 2.0,
            _ => (ground + rng.random_range(0.04..0.22)).clamp(side + 0.03, 0.95),
        };
        let centre = [left + side / 2.0, bottom - side / 2.0];
        if scene.framing != Framing::Close {
            shadow(canvas, centre, side);
        }
        let edge = mix(thing.colour.rgb, [0.0; 3], 0.45);
        // An outline, so that a white thing shows before a white wall.
        canvas.fill(edge, outline(thing.shape, centre, side / 2.0));
        canvas.fill(thing.colour.rgb, outline(thing.shape, centre, side / 2.0 * 0.86));
    }
}

fn shadow(canvas: &mut Canvas, [x, y]: [f32; 2], side: f32) {
    let (flat, low) = (4.0, y + side * 0.5);
    let disc = disc([x, low * flat], side * 0.42);
    canvas.fill([52.0, 50.0, 54.0], move |[px, py]| disc([px, py * flat]) / flat);
}

/// The distance to a shape of half-width `r`.
fn outline(shape: Shape, [cx, cy]: [f32; 2], r: f32) -> Box<dyn Fn([f32; 2]) -> f32> {
    let at = |x: f32, y: f32| [cx + x * r, cy + y * r];
    match shape {
        Shape::Circle => Box::new(disc([cx, cy], r)),
        Shape::Square => Box::new(rectangle(at(-0.88, -0.88), at(0.88, 0.88))),
        Shape::Triangle => Box::new(polygon(vec![at(0.0, -0.95), at(1.0, 0.85), at(-1.0, 0.85)])),
        Shape::Star => {
            let corner = |i: u32| {
                let (angle, reach) = (PI * i as f32 / 5.0, if i.is_multiple_of(2) { 1.0 } else { 0.44 });
                at(reach * angle.sin(), 0.06 - reach * angle.cos())
            };
            Box::new(polygon((0..10).map(corner).collect()))
        }
        Shape::Heart => {
            let corner = |i: u32| {
                let t = TAU * i as f32 / 36.0;
                let y = 13.0 * t.cos() - 5.0 * (2.0 * t).cos() - 2.0 * (3.0 * t).cos() - (4.0 * t).cos();
                at(t.sin().powi(3), -(y + 2.5) / 15.0)
            };
            Box::new(polygon((0..36).map(corner).collect()))
        }
        Shape::Cross => {
            let (upright, across) =
                (rectangle(at(-0.34, -1.0), at(0.34, 1.0)), rectangle(at(-1.0, -0.34), at(1.0, 0.34)));
            Box::new(move |point| upright(point).min(across(point)))
        }
    }
}
