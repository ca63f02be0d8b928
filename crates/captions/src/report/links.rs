//! What tags and pictures are called in a report: file names for tags, relative links to pictures.

use std::{
    collections::BTreeSet,
    fmt::Write,
    path::{Component, Path, PathBuf},
};

use vodka_stage::hash_bytes;

use crate::caption::resolved;

/// The most letters of a tag in a file name.
const SLUG_MAX: usize = 60;

/// Names that Windows keeps for devices.
const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];

/// File names (without extension) for tags, in their order: each unique, of `a-z`, `0-9`, `_` and `-` alone.
///
/// A tag that is such a name already is called by it; from any other as much as will do is taken, and some digits of
/// its hash, so that `;)` and `:)` are two names.
pub(super) fn slugs(tags: &[&str]) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let mut slugs = Vec::with_capacity(tags.len());
    for tag in tags {
        let wanted = slug(tag);
        let with = |n: u32| if n == 1 { wanted.clone() } else { format!("{wanted}-{n}") };
        let free = (1..).map(with).find(|slug| !taken.contains(slug)).unwrap_or_default();
        taken.insert(free.clone());
        slugs.push(free);
    }
    slugs
}

fn slug(tag: &str) -> String {
    let safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    if (1..=SLUG_MAX).contains(&tag.len()) && tag.chars().all(safe) && !is_device(tag) {
        return tag.to_owned();
    }
    let mut words = String::new();
    for c in tag.chars().take(SLUG_MAX) {
        if safe(c) {
            words.push(c);
        } else if !words.is_empty() && !words.ends_with('-') {
            words.push('-');
        }
    }
    let hash = hash_bytes(tag).short(8);
    match words.trim_matches('-') {
        "" => format!("tag-{hash}"),
        words => format!("{words}-{hash}"),
    }
}

fn is_device(name: &str) -> bool {
    let port = |prefix| {
        name.strip_prefix(prefix).is_some_and(|n| n.len() == 1 && n.chars().all(|c| c.is_ascii_digit()))
    };
    DEVICES.contains(&name) || port("com") || port("lpt")
}

/// The link from a page in the folder `from` to the folder `to`, with a slash at its end: relative where both are on
/// one drive.
pub(super) fn link_to_folder(from: &Path, to: &Path) -> String {
    let (from, to) = (whole(from), whole(to));
    let [from, to] = [&from, &to].map(|path| path.components().collect::<Vec<_>>());
    let prefix = |path: &[Component<'_>]| match path.first() {
        Some(Component::Prefix(prefix)) => Some(prefix.as_os_str().to_owned()),
        _ => None,
    };
    let mut link = String::new();
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    if prefix(&from) == prefix(&to) {
        link.extend(from[common..].iter().map(|_| "../"));
    } else {
        link.push_str("file:///");
    }
    let rest = if link.starts_with("file") { &to[..] } else { &to[common..] };
    for part in rest.iter().filter(|part| !matches!(part, Component::RootDir)) {
        match part {
            // `C:` stays as it is.
            Component::Prefix(prefix) => link.push_str(&prefix.as_os_str().to_string_lossy()),
            part => encode(part.as_os_str().as_encoded_bytes(), &mut link),
        }
        link.push('/');
    }
    link
}

/// The link to a picture, given the link to its folder.
pub(super) fn link_to_picture(folder: &str, image: &str) -> String {
    let mut link = folder.to_owned();
    for (place, part) in image.split('/').enumerate() {
        if place > 0 {
            link.push('/');
        }
        encode(part.as_bytes(), &mut link);
    }
    link
}

/// An absolute path without `..`. Links are followed only where a `..` asks for it: browsers take paths by the letter.
fn whole(path: &Path) -> PathBuf {
    let climbs = path.components().any(|part| part == Component::ParentDir);
    let path = if climbs {
        resolved(path)
    } else {
        std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
    };
    let mut whole = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                whole.pop();
            }
            Component::CurDir => {}
            part => whole.push(part),
        }
    }
    whole
}

/// Percent-encodes all bytes but those that have no meaning in any part of a link (RFC 3986, "unreserved").
fn encode(bytes: &[u8], link: &mut String) {
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                link.push(char::from(*byte));
            }
            // Writing to a string cannot fail.
            byte => {
                let _ = write!(link, "%{byte:02X}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_safe_and_unique() {
        let long = "very_".repeat(100);
        let tags = [
            "blurry",
            ";)",
            ":)",
            r"\m/",
            "don't_say_\"lazy\"",
            "..",
            "",
            &long,
            "con",
            "com1",
            "ö",
            "é",
            "tag-2",
            "<b>",
            "a/b",
            "a&b",
        ];
        let slugs = slugs(&tags);
        assert_eq!(slugs[0], "blurry");
        assert!(slugs[4].starts_with("don-t_say_-lazy-"), "{}", slugs[4]);
        for slug in &slugs {
            let safe = slug.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c));
            assert!(safe && (1..80).contains(&slug.len()) && !is_device(slug), "{slug}");
        }
        assert_eq!(slugs.iter().collect::<BTreeSet<_>>().len(), tags.len(), "{slugs:?}");
    }

    #[test]
    fn a_tag_that_is_called_like_the_file_of_another_gets_a_name_of_its_own() {
        let smile = slug(";)");
        assert_eq!(
            slugs(&[";)", &smile, &smile]),
            [smile.clone(), format!("{smile}-2"), format!("{smile}-3")]
        );
    }

    #[test]
    fn links_are_relative_and_encoded() {
        let link = |from: &str, to: &str| link_to_folder(Path::new(from), Path::new(to));
        assert_eq!(link("work/report", "work/images"), "../images/");
        assert_eq!(link("report/../report", "./my images#1"), "../my%20images%231/");
        assert_eq!(link("a/b/report", "c"), "../../../c/");
        let name = "süb \"dir\"/50% <&'>?;:.png";
        assert_eq!(
            link_to_picture("../images/", name),
            "../images/s%C3%BCb%20%22dir%22/50%25%20%3C%26%27%3E%3F%3B%3A.png"
        );
    }
}
