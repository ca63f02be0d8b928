//! The true tags of a scene, and the vocabulary they are taken from.

use crate::scene::{Blur, Extra, Framing, Light, Place, Scene, Shape};

/// The ratings that a WD14 vocabulary starts with; of this world `general` always applies.
pub const RATINGS: [&str; 4] = ["general", "sensitive", "questionable", "explicit"];

/// All general tags of this world.
pub const GENERAL_TAGS: [&str; 28] = [
    "solo",
    "outdoors",
    "indoors",
    "simple_background",
    "night",
    "day",
    "blurry",
    "blurry_background",
    "monochrome",
    "close-up",
    "wide_shot",
    "tree",
    "moon",
    "window",
    "circle",
    "square",
    "triangle",
    "star_(symbol)",
    "heart",
    "cross",
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "white",
];

/// Tags that apply and how much, 0..1: below 1 only those of blur, which has degrees.
pub type Strengths = Vec<(&'static str, f32)>;

/// The true tags of a scene.
pub fn tags(scene: &Scene) -> Strengths {
    let mut found = vec![("general", 1.0)];
    let mut apply = |tag, strength| found.push((tag, strength));
    match scene.place {
        Place::Outdoors => apply("outdoors", 1.0),
        Place::Indoors => apply("indoors", 1.0),
        Place::Plain => apply("simple_background", 1.0),
    }
    match (scene.place, scene.light) {
        (_, Light::Night) => apply("night", 1.0),
        (Place::Outdoors, Light::Day) => apply("day", 1.0),
        _ => {}
    }
    match scene.framing {
        Framing::Close => apply("close-up", 1.0),
        Framing::Wide => apply("wide_shot", 1.0),
        Framing::Normal => {}
    }
    if scene.monochrome {
        apply("monochrome", 1.0);
    }
    if scene.things.len() == 1 {
        apply("solo", 1.0);
    }
    match scene.blur {
        Blur::Whole(degree) => apply("blurry", 0.6 + 0.4 * degree),
        // A sharp thing before a blurred background is blurry only a little.
        Blur::Background(degree) => {
            apply("blurry", 0.1 + 0.3 * degree);
            apply("blurry_background", 0.6 + 0.4 * degree);
        }
        Blur::None => {}
    }
    for extra in &scene.extras {
        match extra {
            Extra::Tree => apply("tree", 1.0),
            Extra::Moon => apply("moon", 1.0),
            Extra::Window => apply("window", 1.0),
            Extra::Lamp => {}
        }
    }
    for thing in &scene.things {
        let name = thing.shape.name();
        apply(if thing.shape == Shape::Star { "star_(symbol)" } else { name }, 1.0);
        if !scene.monochrome {
            apply(thing.colour.name, 1.0);
        }
    }
    found
}
