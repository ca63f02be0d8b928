//! What a user would type for a scene.

use rand::{Rng, seq::IndexedRandom};

use crate::scene::{Extra, Light, Place, Scene, Thing};

/// A caption: things, mostly their colours, sometimes the place and the hour. What is learnt from tags is not in it: no
/// blur, no missing colour, no framing, no number.
pub fn caption(rng: &mut impl Rng, scene: &Scene) -> String {
    let with_colours = !scene.monochrome && rng.random_bool(0.75);
    let mut text = listed(scene, with_colours);
    if rng.random_bool(0.5) {
        text += places(scene).choose(rng).copied().unwrap_or_default();
    }
    if scene.light == Light::Night && rng.random_bool(0.35) {
        text += " at night";
    }
    text
}

/// What an image captioner would say: whole sentences in its own words, everything that is there, and nothing of focus.
pub fn described(scene: &Scene) -> String {
    let kind = if scene.monochrome { "a black and white drawing of" } else { "a drawing of" };
    let light = if scene.light == Light::Night { "dark " } else { "" };
    let place = match scene.place {
        Place::Outdoors => format!("on a {light}meadow under a {light}sky"),
        Place::Indoors => format!("inside a {light}house"),
        Place::Plain => "in front of a wall".to_owned(),
    };
    let extras = scene.extras.iter().map(|extra| match extra {
        Extra::Tree => " with a tree in the distance",
        Extra::Moon => " with a moon above",
        Extra::Window => " with a window behind",
        Extra::Lamp => " with a lamp standing there",
    });
    format!("{kind} {} {place}{}", listed(scene, !scene.monochrome), extras.collect::<String>())
}

/// All things, in words.
fn listed(scene: &Scene, with_colours: bool) -> String {
    let names: Vec<String> = scene.things.iter().map(|thing| name(thing, with_colours)).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, first)) => format!("{} and {last}", first.join(", ")),
        None => unreachable!("a scene has things"),
    }
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
