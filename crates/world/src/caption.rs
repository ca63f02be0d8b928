//! What a user would type for a scene.

use rand::{Rng, seq::IndexedRandom};

use crate::scene::{Extra, Light, Place, Scene, Thing};

/// A caption: things, mostly their colours, sometimes the place and the hour. What is learnt from tags is not in it: no
/// blur, no missing colour, no framing, no number.
pub fn caption(rng: &mut impl Rng, scene: &Scene) -> String {
    let with_colours = !scene.monochrome && rng.random_bool(0.93);
    let names: Vec<String> = scene.things.iter().map(|thing| name(thing, with_colours)).collect();
    let mut text = match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, first)) => format!("{} and {last}", first.join(", ")),
        None => unreachable!("a scene has things"),
    };
    if rng.random_bool(0.5) {
        text += places(scene).choose(rng).copied().unwrap_or_default();
    }
    if scene.light == Light::Night && rng.random_bool(0.35) {
        text += " at night";
    }
    text
}

fn name(thing: &Thing, with_colour: bool) -> String {
    let shape = thing.shape.name();
    let noun = if with_colour { format!("{} {shape}", thing.colour.name) } else { shape.to_owned() };
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {noun}")
}

fn places(scene: &Scene) -> Vec<&'static str> {
    let mut places = match scene.place {
        Place::Outdoors => vec![" outside", " in a field", " on the grass"],
        Place::Indoors => vec![" in a room", " on the floor", " at home"],
        Place::Plain => Vec::new(),
    };
    places.extend(scene.extras.iter().map(|extra| match extra {
        Extra::Tree => " near a tree",
        Extra::Moon => " under the moon",
        Extra::Window => " by a window",
        Extra::Lamp => " beside a lamp",
    }));
    places
}
