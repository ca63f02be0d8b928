//! The picture world of the demo: coloured shapes indoors, outdoors or before a plain wall.
//!
//! Everything in a picture is known, so a small tagger can be trained on it and a model's pictures can be measured with
//! that tagger. Captions are what a user would type: they name things, colours and sometimes the place, and never the
//! blur, the missing colour or the framing. Just under 15 % of the pictures are blurred, wholly or behind the things, in
//! degrees spread evenly, as in the data set of the V3 experiment.
//!
//! ```
//! let picture = vodka_world::Picture::draw(2023, 7, 64);
//! assert_eq!(picture.image.dimensions(), (64, 64));
//! assert!(!picture.caption.contains("blur"));
//! ```

mod canvas;
mod caption;
mod folder;
mod render;
mod scene;
mod tags;

use image::RgbImage;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use folder::{Error, WorldConfig, write};
pub use scene::{Blur, COLOURS, Colour, Extra, Framing, Light, Place, SHAPES, Scene, Shape, Thing};
pub use tags::{GENERAL_TAGS, RATINGS, Strengths};

/// A picture, what a user would have typed to get it, and what is in it.
#[derive(Debug, Clone)]
pub struct Picture {
    /// RGB, square.
    pub image: RgbImage,
    /// One line, lower case, ASCII.
    pub caption: String,
    /// What an image captioner would say of it: longer, in other words. One line, lower case, ASCII.
    pub described: String,
    /// The tags that apply.
    pub tags: Strengths,
    /// What was decided before any pixel was drawn.
    pub scene: Scene,
}

impl Picture {
    /// Picture `index` of the world of `seed`, `size_px` pixels wide and high. The same arguments give the same picture.
    pub fn draw(seed: u64, index: u64, size_px: u32) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(index);
        let scene = Scene::decide(&mut rng);
        let caption = caption::caption(&mut rng, &scene);
        let image = render::render(&mut rng, &scene, size_px);
        let described = caption::described(&scene);
        Self { image, caption, described, tags: tags::tags(&scene), scene }
    }
}
