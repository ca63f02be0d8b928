//! The decisions behind a picture: what it shows, where, in what light, how framed, how blurred.

use rand::{Rng, seq::IndexedRandom, seq::SliceRandom};

/// A colour of a thing: its name and its sRGB.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Colour {
    /// The word of captions, and the tag.
    pub name: &'static str,
    /// 0..255.
    pub rgb: [f32; 3],
}

/// The colours of things.
pub const COLOURS: [Colour; 8] = [
    Colour { name: "red", rgb: [214.0, 40.0, 40.0] },
    Colour { name: "orange", rgb: [244.0, 128.0, 28.0] },
    Colour { name: "yellow", rgb: [250.0, 214.0, 44.0] },
    Colour { name: "green", rgb: [30.0, 150.0, 70.0] },
    Colour { name: "blue", rgb: [40.0, 80.0, 214.0] },
    Colour { name: "purple", rgb: [124.0, 50.0, 178.0] },
    Colour { name: "pink", rgb: [250.0, 130.0, 190.0] },
    Colour { name: "white", rgb: [250.0, 250.0, 246.0] },
];

/// The shape of a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what it says")]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Heart,
    Cross,
}

/// All shapes.
pub const SHAPES: [Shape; 6] =
    [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Star, Shape::Heart, Shape::Cross];

impl Shape {
    /// The word of captions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
            Self::Heart => "heart",
            Self::Cross => "cross",
        }
    }
}

/// What a picture shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thing {
    /// Its shape.
    pub shape: Shape,
    /// Its colour.
    pub colour: Colour,
}

/// Where the things are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what it says")]
pub enum Place {
    Outdoors,
    Indoors,
    Plain,
}

/// The time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what it says")]
pub enum Light {
    Day,
    Night,
}

/// How large the things are in the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what it says")]
pub enum Framing {
    Close,
    Normal,
    Wide,
}

/// What stands about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is what it says")]
pub enum Extra {
    Tree,
    Moon,
    Window,
    Lamp,
}

/// What is out of focus, by a degree of 0..1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "each is what it says")]
pub enum Blur {
    None,
    Whole(f32),
    Background(f32),
}

/// The decisions behind a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// Where the things are.
    pub place: Place,
    /// The time of day; before a plain wall it is day.
    pub light: Light,
    /// How large the things are.
    pub framing: Framing,
    /// One to three, of different shapes and colours, from left to right.
    pub things: Vec<Thing>,
    /// What stands about.
    pub extras: Vec<Extra>,
    /// Whether it is grey.
    pub monochrome: bool,
    /// What is out of focus.
    pub blur: Blur,
}

/// Shares of all pictures: together just under 15 %, as the authors of V3 counted.
const SHARE_WHOLE: f32 = 0.09;
const SHARE_BACKGROUND: f32 = 0.057;
const SHARE_MONOCHROME: f64 = 0.1;

impl Scene {
    /// Decides what a picture shows.
    pub fn decide(rng: &mut impl Rng) -> Self {
        let place = match rng.random::<f32>() {
            x if x < 0.44 => Place::Outdoors,
            x if x < 0.8 => Place::Indoors,
            _ => Place::Plain,
        };
        let blur = decide_blur(rng);
        let place = match (place, blur) {
            // Nothing in a plain wall could be out of focus.
            (Place::Plain, Blur::Background(_)) => Place::Outdoors,
            (place, _) => place,
        };
        let light = if place != Place::Plain && rng.random_bool(0.27) { Light::Night } else { Light::Day };
        let count = *[1, 1, 1, 1, 1, 2, 2, 2, 3].choose(rng).expect("it is not empty");
        let framing = match rng.random::<f32>() {
            x if x < 0.2 && count == 1 => Framing::Close,
            x if x > 0.84 => Framing::Wide,
            _ => Framing::Normal,
        };
        Self {
            place,
            light,
            framing,
            things: decide_things(rng, count),
            extras: decide_extras(rng, place, light),
            monochrome: rng.random_bool(SHARE_MONOCHROME),
            blur,
        }
    }
}

fn decide_blur(rng: &mut impl Rng) -> Blur {
    let (which, degree) = (rng.random::<f32>(), rng.random::<f32>());
    if which < SHARE_WHOLE {
        Blur::Whole(degree)
    } else if which < SHARE_WHOLE + SHARE_BACKGROUND {
        Blur::Background(degree)
    } else {
        Blur::None
    }
}

fn decide_things(rng: &mut impl Rng, count: usize) -> Vec<Thing> {
    let (mut shapes, mut colours) = (SHAPES, COLOURS);
    shapes.shuffle(rng);
    colours.shuffle(rng);
    shapes.into_iter().zip(colours).take(count).map(|(shape, colour)| Thing { shape, colour }).collect()
}

fn decide_extras(rng: &mut impl Rng, place: Place, light: Light) -> Vec<Extra> {
    let odds = match (place, light) {
        (Place::Outdoors, Light::Day) => &[(Extra::Tree, 0.45)][..],
        (Place::Outdoors, Light::Night) => &[(Extra::Tree, 0.45), (Extra::Moon, 0.75)],
        (Place::Indoors, _) => &[(Extra::Window, 0.55), (Extra::Lamp, 0.4)],
        (Place::Plain, _) => &[],
    };
    odds.iter().filter(|(_, odds)| rng.random_bool(*odds)).map(|(extra, _)| *extra).collect()
}
