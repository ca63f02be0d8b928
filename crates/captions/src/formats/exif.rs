//! Captions in the EXIF data of JPEG and WebP pictures: the user comment, where A1111 puts its `parameters`, or the
//! description.
//!
//! EXIF is a TIFF file (TIFF 6.0, section 2; Exif 2.32, 4.6.5): folders of entries of 12 bytes, each with its tag, the type and
//! the number of its values, and the values or where they are.

use std::{
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use encoding_rs::{UTF_16BE, UTF_16LE, WINDOWS_1252};

use super::png::filled;
use crate::encoding;

/// The user comment.
pub(super) const COMMENT: &str = "UserComment";
/// The description.
pub(super) const DESCRIPTION: &str = "ImageDescription";

const DESCRIPTION_TAG: u16 = 0x010e;
const EXIF_FOLDER_TAG: u16 = 0x8769;
const COMMENT_TAG: u16 = 0x9286;

/// More than this is no text of a picture.
const LENGTH_MAX: u32 = 1 << 24;

/// The text of a picture, with what it is called; none of what is neither JPEG nor WebP, or broken.
pub(super) fn read(file: &mut (impl Read + Seek)) -> io::Result<Option<(&'static str, String)>> {
    let mut start = [0; 12];
    if !filled(file, &mut start)? {
        return Ok(None);
    }
    let found = match &start {
        [0xff, 0xd8, ..] => of_jpeg(file)?,
        [b'R', b'I', b'F', b'F', .., b'W', b'E', b'B', b'P'] => of_webp(file)?,
        _ => None,
    };
    Ok(found.and_then(|exif| Tiff::new(&exif)?.text()))
}

/// The EXIF segment before the pixels.
fn of_jpeg(file: &mut (impl Read + Seek)) -> io::Result<Option<Vec<u8>>> {
    file.seek(SeekFrom::Start(2))?;
    let mut head = [0; 4];
    while filled(file, &mut head)? {
        let length = u32::from(u16::from_be_bytes([head[2], head[3]]));
        match head {
            // A fill byte.
            [0xff, 0xff, ..] => drop(file.seek(SeekFrom::Current(-3))?),
            [0xff, 0xe1, ..] => {
                let segment = content(file, length.saturating_sub(2))?;
                if let Some(exif) = segment.as_deref().and_then(|segment| segment.strip_prefix(b"Exif\0\0")) {
                    return Ok(Some(exif.to_vec()));
                }
            }
            // The pixels, or the end.
            [0xff, 0xda | 0xd9, ..] => return Ok(None),
            [0xff, ..] if length >= 2 => drop(file.seek(SeekFrom::Current(i64::from(length) - 2))?),
            _ => return Ok(None),
        }
    }
    Ok(None)
}

fn of_webp(file: &mut (impl Read + Seek)) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 8];
    while filled(file, &mut head)? {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if &head[..4] == b"EXIF" {
            let exif = content(file, length)?;
            // Some programs put the mark of JPEG's segment here too.
            return Ok(exif.map(|exif| exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif).to_vec()));
        }
        file.seek(SeekFrom::Current(i64::from(length) + i64::from(length % 2)))?;
    }
    Ok(None)
}

/// So many bytes; none where the file ends before.
fn content(file: &mut impl Read, length: u32) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let read = file.take(length.min(LENGTH_MAX).into()).read_to_end(&mut bytes)?;
    Ok((read == length as usize).then_some(bytes))
}

struct Tiff<'a> {
    bytes: &'a [u8],
    is_little: bool,
}

impl<'a> Tiff<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let is_little = match bytes.get(..4)? {
            b"II\x2a\0" => true,
            b"MM\0\x2a" => false,
            _ => return None,
        };
        Some(Self { bytes, is_little })
    }

    fn text(&self) -> Option<(&'static str, String)> {
        let first = self.long(4)?;
        let comment = self.entry(first, EXIF_FOLDER_TAG).and_then(|folder| {
            let folder = self.long(folder + 8)?;
            self.comment(self.values(self.entry(folder, COMMENT_TAG)?)?)
        });
        let described = || {
            let text = self.values(self.entry(first, DESCRIPTION_TAG)?)?;
            plain(text.split(|byte| *byte == 0).next().unwrap_or_default())
        };
        let comment = comment.map(|text| (COMMENT, text));
        comment.or_else(|| described().map(|text| (DESCRIPTION, text)))
    }

    /// A text after eight bytes that say in which code it is.
    fn comment(&self, bytes: &[u8]) -> Option<String> {
        let (code, text) = bytes.split_at_checked(8)?;
        if code != b"UNICODE\0" {
            return plain(text);
        }
        // The byte order should be that of all the rest, but programs have their own: where letters of ASCII are, half of
        // each is 0.
        let zeros = |odd: usize| text.iter().skip(odd).step_by(2).filter(|byte| **byte == 0).count();
        let is_little = match zeros(0).cmp(&zeros(1)) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Equal => self.is_little,
        };
        let encoding = if is_little { UTF_16LE } else { UTF_16BE };
        let (text, ..) = encoding.decode(text);
        said(&text)
    }

    /// Where an entry of a folder is.
    fn entry(&self, folder: usize, tag: u16) -> Option<usize> {
        let count = usize::from(self.short(folder)?);
        (0..count).map(|number| folder + 2 + 12 * number).find(|entry| self.short(*entry) == Some(tag))
    }

    /// The values of an entry whose type is of single bytes.
    fn values(&self, entry: usize) -> Option<&'a [u8]> {
        // Byte, ASCII, undefined.
        if !matches!(self.short(entry + 2)?, 1 | 2 | 7) {
            return None;
        }
        let count = self.long(entry + 4)?;
        let start = if count <= 4 { entry + 8 } else { self.long(entry + 8)? };
        self.bytes.get(start..start.checked_add(count)?)
    }

    fn short(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn long(&self, at: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.is_little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) } as usize)
    }
}

/// ASCII by the standard, but many programs write UTF-8, and some Latin-1.
fn plain(bytes: &[u8]) -> Option<String> {
    said(&encoding::decode(Path::new(""), bytes, Some(WINDOWS_1252)).ok()?.text)
}

/// A text, unless it says nothing: cameras write spaces.
fn said(text: &str) -> Option<String> {
    let text = text.trim_matches('\0');
    (!text.trim().is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// piexif 1.1.3, which A1111 uses: `dump({"Exif": {UserComment: helper.UserComment.dump(TEXT, "unicode")}})`.
    const PIEXIF: &str = "4578696600004d4d002a00000008000187690004000000010000001a00000000000192860007000000a000000028554e49434f4445000061002000720065006400200063006900720063006c0065002c002000e40020732b000a004e0065006700610074006900760065002000700072006f006d00700074003a00200062006c0075007200720079000a00530074006500700073003a002000320030002c002000530061006d0070006c00650072003a002000450075006c00650072002c00200053006500650064003a00200031";
    /// A WebP that Pillow 12.0 has written with it.
    const WEBP: &str = "524946461601000057454250565038580a0000000800000007000007000056503820280000009001009d012a0800080005407c25a00274ba00039800fee8d71d794f89b6ffe668fd26fa4de6000045584946c80000004d4d002a00000008000187690004000000010000001a00000000000192860007000000a000000028554e49434f4445000061002000720065006400200063006900720063006c0065002c002000e40020732b000a004e0065006700610074006900760065002000700072006f006d00700074003a00200062006c0075007200720079000a00530074006500700073003a002000320030002c002000530061006d0070006c00650072003a002000450075006c00650072002c00200053006500650064003a00200031";
    /// Pillow 12.0's `Exif` with an `ImageDescription`.
    const DESCRIBED: &str =
        "4578696600004d4d002a000000080001010e00020000000e0000001a000000006120626c75652073717561726500";
    const TEXT: &str = "a red circle, ä 猫\nNegative prompt: blurry\nSteps: 20, Sampler: Euler, Seed: 1";

    fn bytes(hex: &str) -> Vec<u8> {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(byte).collect()
    }

    /// A JPEG of nothing but these segments, behind one of another program.
    fn jpeg(segments: &[Vec<u8>]) -> Vec<u8> {
        let mut jpeg = b"\xff\xd8\xff\xe0\0\x04ab\xff".to_vec();
        for segment in segments {
            jpeg.extend([0xff, 0xe1]);
            jpeg.extend((segment.len() as u16 + 2).to_be_bytes());
            jpeg.extend(segment);
        }
        jpeg.extend(b"\xff\xda\0\x02");
        jpeg
    }

    fn found(bytes: &[u8]) -> Option<(&'static str, String)> {
        read(&mut Cursor::new(bytes)).unwrap()
    }

    #[test]
    fn what_others_write_is_read() {
        let xmp = b"http://ns.adobe.com/xap/1.0/\0<x/>".to_vec();
        assert_eq!(found(&jpeg(&[xmp, bytes(PIEXIF)])), Some((COMMENT, TEXT.to_owned())));
        assert_eq!(found(&bytes(WEBP)), Some((COMMENT, TEXT.to_owned())));
        assert_eq!(found(&jpeg(&[bytes(DESCRIBED)])), Some((DESCRIPTION, "a blue square".to_owned())));
        assert_eq!(found(&jpeg(&[])), None);
        assert_eq!(found(b"GIF89a and no more"), None);
    }

    /// A user comment of these bytes in a TIFF of little ends.
    fn comment(content: &[u8]) -> Vec<u8> {
        let mut exif = b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x1a\0\0\0\0\0\0\0".to_vec();
        exif.extend(b"\x01\0\x86\x92\x07\0");
        exif.extend((content.len() as u32).to_le_bytes());
        exif.extend(b"\x2c\0\0\0\0\0\0\0");
        exif.extend(content);
        exif
    }

    #[test]
    fn comments_are_read_in_every_code_and_order() {
        let wide = |text: &str, unit: fn(u16) -> [u8; 2]| {
            [b"UNICODE\0".to_vec(), text.encode_utf16().flat_map(unit).collect()].concat()
        };
        for (content, expected) in [
            (wide("a cat, 猫", u16::to_be_bytes), Some("a cat, 猫")),
            (wide("a cat, 猫", u16::to_le_bytes), Some("a cat, 猫")),
            (wide("猫", u16::to_le_bytes), Some("猫")),
            (b"ASCII\0\0\0a cat".to_vec(), Some("a cat")),
            ("\0\0\0\0\0\0\0\0ein Käfer".as_bytes().to_vec(), Some("ein Käfer")),
            (b"ASCII\0\0\0    \0".to_vec(), None),
            (b"ASC".to_vec(), None),
        ] {
            let found = found(&jpeg(&[comment(&content)])).map(|(_, text)| text);
            assert_eq!(found.as_deref(), expected, "{content:?}");
        }
    }

    #[test]
    fn no_damage_is_a_panic() {
        for whole in [jpeg(&[bytes(PIEXIF)]), bytes(WEBP), jpeg(&[comment(b"ASCII\0\0\0a cat")])] {
            for at in 0..whole.len() {
                drop(found(&whole[..at]));
                for value in [0, 1, 0x7f, 0xff] {
                    let mut damaged = whole.clone();
                    damaged[at] = value;
                    drop(found(&damaged));
                }
            }
        }
    }
}
