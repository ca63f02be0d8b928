//! The laws of the picture world: what is drawn is what is said, in the shares that are said.

use std::collections::BTreeMap;

use vodka_world::{Blur, GENERAL_TAGS, Picture, RATINGS, Scene, WorldConfig, write};

/// 3000 scenes, their captions and tags; pixels as few as can be.
fn many() -> Vec<Picture> {
    (0..3000).map(|index| Picture::draw(1, index, 1)).collect()
}

fn laplacian(picture: &Picture) -> f64 {
    let image = &picture.image;
    let grey = |x: u32, y: u32| image.get_pixel(x, y).0.iter().map(|v| f64::from(*v)).sum::<f64>() / 3.0;
    let size = image.width();
    let inner = (1..size - 1).flat_map(|y| (1..size - 1).map(move |x| (x, y)));
    let values: Vec<f64> = inner
        .map(|(x, y)| grey(x - 1, y) + grey(x + 1, y) + grey(x, y - 1) + grey(x, y + 1) - 4.0 * grey(x, y))
        .collect();
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64
}

#[test]
fn the_same_arguments_draw_the_same_picture_and_others_another() {
    let picture = |seed, index| Picture::draw(seed, index, 32);
    assert_eq!(picture(5, 9).image, picture(5, 9).image);
    assert_eq!(picture(5, 9).caption, picture(5, 9).caption);
    assert_ne!(picture(5, 9).image, picture(5, 10).image);
    assert_ne!(picture(5, 9).image, picture(6, 9).image);
}

#[test]
fn just_under_15_per_cent_are_blurred_and_degrees_are_spread_evenly() {
    let pictures = many();
    let degrees: Vec<f32> = pictures
        .iter()
        .filter_map(|picture| match picture.scene.blur {
            Blur::Whole(degree) | Blur::Background(degree) => Some(degree),
            Blur::None => None,
        })
        .collect();
    let share = degrees.len() as f64 / pictures.len() as f64;
    assert!((0.125..0.165).contains(&share), "{share}");
    for quarter in 0..4 {
        let low = quarter as f32 / 4.0;
        let inside = degrees.iter().filter(|degree| (low..low + 0.25).contains(*degree)).count();
        let share = inside as f64 / degrees.len() as f64;
        assert!((0.18..0.32).contains(&share), "{low}: {share}");
    }
}

#[test]
fn captions_name_what_is_there_and_never_how_the_picture_is_made() {
    for picture in many() {
        let caption = &picture.caption;
        for word in ["blur", "grey", "mono", "close", "wide", "big", "small", "day", "solo"] {
            assert!(!caption.contains(word), "{caption}");
        }
        let Scene { things, monochrome, .. } = &picture.scene;
        for thing in things {
            assert!(caption.contains(thing.shape.name()), "{caption}");
            assert!(!(*monochrome && caption.contains(thing.colour.name)), "{caption}");
        }
    }
}

#[test]
fn a_captioner_says_all_that_is_there_and_nothing_of_focus() {
    for Picture { described, scene, .. } in many() {
        assert!(!described.contains("blur") && !described.contains("focus"), "{described}");
        assert_eq!(described.contains("black and white"), scene.monochrome, "{described}");
        for thing in scene.things {
            assert!(described.contains(thing.shape.name()), "{described}");
            assert_eq!(
                described.contains(&format!("{} {}", thing.colour.name, thing.shape.name())),
                !scene.monochrome,
                "{described}"
            );
        }
    }
}

#[test]
fn tags_are_of_the_vocabulary_and_each_of_it_applies_somewhere() {
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for picture in many() {
        for (tag, strength) in picture.tags {
            assert!(strength > 0.0 && strength <= 1.0, "{tag}: {strength}");
            assert!(GENERAL_TAGS.contains(&tag) || tag == RATINGS[0], "{tag}");
            *found.entry(tag).or_default() += 1;
        }
    }
    for tag in GENERAL_TAGS {
        assert!(found.get(tag).is_some_and(|count| *count >= 60), "{tag}: {:?}", found.get(tag));
    }
}

#[test]
fn what_is_tagged_is_in_the_pixels() {
    let pictures: Vec<Picture> = (0..400).map(|index| Picture::draw(2, index, 64)).collect();
    let median = |choose: &dyn Fn(&Picture) -> bool| {
        let mut values: Vec<f64> = pictures.iter().filter(|p| choose(p)).map(laplacian).collect();
        assert!(values.len() >= 10, "{}", values.len());
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (sharp, blurred) = (
        median(&|picture| picture.scene.blur == Blur::None),
        median(&|picture| matches!(picture.scene.blur, Blur::Whole(_))),
    );
    assert!(sharp > 10.0 * blurred, "{sharp} {blurred}");
    for picture in pictures.iter().filter(|picture| picture.scene.monochrome) {
        assert!(picture.image.pixels().all(|pixel| pixel.0[0] == pixel.0[1] && pixel.0[1] == pixel.0[2]));
    }
}

#[test]
fn a_second_writing_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = WorldConfig { count: 5, seed: 3, size_px: 16, output: dir.path().to_path_buf() };
    write(&config).unwrap();
    let changed = || {
        let file = |name| std::fs::metadata(dir.path().join(name)).unwrap().modified().unwrap();
        ["truth.csv", "images/00004.png", "images/00000.txt"].map(file)
    };
    let before = changed();
    write(&config).unwrap();
    assert_eq!(changed(), before);
    let truth = std::fs::read_to_string(dir.path().join("truth.csv")).unwrap();
    assert!(truth.starts_with("image,tag,strength\n00000.png,general,1.000\n"), "{truth}");
    let blocked = WorldConfig { output: dir.path().join("truth.csv"), ..config };
    assert!(write(&blocked).unwrap_err().to_string().starts_with("cannot write "));
}
