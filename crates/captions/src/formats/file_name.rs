//! Captions in the names of pictures, as EveryDream2 reads them: up to the first underscore.

use std::path::Path;

/// The caption in a picture's name: the stem up to the first `_`. None where that is empty.
pub(crate) fn read(picture: &Path) -> Option<String> {
    let stem = picture.file_stem()?.to_str()?;
    let caption = stem.split('_').next().unwrap_or_default().trim();
    (!caption.is_empty()).then(|| caption.to_owned())
}

/// The name of a copy that has the caption in it, and behind the first `_` its own stem, so that no two are the same.
///
/// # Errors
/// Why the caption cannot be in a name.
pub(crate) fn written(picture: &Path, caption: &str) -> Result<String, String> {
    /// What file systems take.
    const LONGEST: usize = 255;
    if let Some(c) = caption.chars().find(|c| matches!(c, '_' | '/' | '\\') || c.is_control()) {
        return Err(format!("no file name can hold a caption with {c:?}"));
    }
    if caption.starts_with('.') {
        return Err("a file whose name begins with a dot is hidden".to_owned());
    }
    let stem = picture.file_stem().unwrap_or_default().to_string_lossy();
    let extension = picture.extension().unwrap_or_default().to_string_lossy();
    let name = format!("{caption}_{stem}.{extension}");
    match name.len() {
        0..=LONGEST => Ok(name),
        length => Err(format!("the file name would have {length} bytes, more than {LONGEST}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caption_in_a_name_ends_at_the_first_underscore() {
        let caption = |name: &str| read(Path::new(name));
        assert_eq!(caption("sub/a red heart, blurry_0012_b.png").unwrap(), "a red heart, blurry");
        assert_eq!(caption("a heart (2).png").unwrap(), "a heart (2)");
        assert_eq!(caption("_a.png"), None);
    }

    #[test]
    fn what_no_name_can_hold_is_told() {
        let write = |caption: &str| written(Path::new("sub/a_1.png"), caption);
        assert_eq!(write("a heart").unwrap(), "a heart_a_1.png");
        assert_eq!(write("^_^, a heart").unwrap_err(), "no file name can hold a caption with '_'");
        assert_eq!(write("1/2").unwrap_err(), "no file name can hold a caption with '/'");
        assert!(write(&"a".repeat(300)).unwrap_err().contains("308 bytes"));
        assert!(write(".hidden").is_err());
    }
}
