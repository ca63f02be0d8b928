//! What lies beside the pixels in a file: how it is to be turned, and colour profiles.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, io::Write};

use flate2::{Compression, Crc, write::ZlibEncoder};
use vodka_images::{DecodeOptions, Picture, decode_bytes, size_of_bytes};
use vodka_testkit::fixture;

/// A PNG with another chunk behind its header.
fn with_chunk(png: &[u8], name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let header_end = 8 + 4 + 4 + 13 + 4;
    let mut crc = Crc::new();
    crc.update(name);
    crc.update(content);
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&png[..header_end], &length, name, content, &crc.sum().to_be_bytes(), &png[header_end..]].concat()
}

/// EXIF that says nothing but an orientation.
fn exif(orientation: u8) -> Vec<u8> {
    // Little-endian; one entry: tag 0x0112, one short; no further directory.
    [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(), &[orientation, 0, 0, 0, 0, 0, 0, 0]]
        .concat()
}

/// A simple WebP as an extended one with EXIF.
fn with_exif(webp: &[u8], picture: &Picture, exif: &[u8]) -> Vec<u8> {
    assert_eq!((&webp[..4], &webp[8..12]), (&b"RIFF"[..], &b"WEBP"[..]));
    let chunk = |name: &[u8; 4], content: &[u8]| {
        let padding = vec![0; content.len() % 2];
        [name, &(content.len() as u32).to_le_bytes()[..], content, &padding].concat()
    };
    let side = |side: u32| (side - 1).to_le_bytes()[..3].to_vec();
    let flags = 0x08 | if matches!(picture, Picture::Rgba(_)) { 0x10 } else { 0 };
    let header = [&[flags, 0, 0, 0][..], &side(picture.width()), &side(picture.height())].concat();
    let body = [b"WEBP", &chunk(b"VP8X", &header)[..], &webp[12..], &chunk(b"EXIF", exif)].concat();
    chunk(b"RIFF", &body)
}

#[test]
fn png_and_webp_are_turned_as_their_exif_says() {
    let read = |name: &str| fs::read(fixture("images/awkward").join(name)).unwrap();
    let as_stored = DecodeOptions { orientation: false, ..DecodeOptions::default() };
    for name in ["odd.png", "lossless.webp"] {
        let plain = read(name);
        let upright = decode_bytes(&plain, &DecodeOptions::default()).unwrap();
        let (width, height) = (upright.width, upright.height);
        assert_ne!(width, height, "a turn shows");
        for orientation in 1..=8 {
            let file = match name {
                "odd.png" => with_chunk(&plain, b"eXIf", &exif(orientation)),
                _ => with_exif(&plain, &upright.picture, &exif(orientation)),
            };
            assert_eq!(decode_bytes(&file, &as_stored).unwrap(), upright, "{name}, left as it is");
            let turned = decode_bytes(&file, &DecodeOptions::default()).unwrap();
            // Orientations 5 to 8 lie on their side; what was the first pixel goes into one corner or another.
            let size = if orientation > 4 { (height, width) } else { (width, height) };
            assert_eq!((turned.width, turned.height), size, "{name}, orientation {orientation}");
            assert_eq!(size_of_bytes(&file).unwrap(), size, "{name}, orientation {orientation}");
            let (right, bottom) = (size.0 - 1, size.1 - 1);
            let corner = [
                (0, 0),
                (right, 0),
                (right, bottom),
                (0, bottom),
                (0, 0),
                (right, 0),
                (right, bottom),
                (0, bottom),
            ][usize::from(orientation) - 1];
            let (turned, upright) = (turned.picture.into_rgb(), upright.picture.clone().into_rgb());
            assert_eq!(
                turned.get_pixel(corner.0, corner.1),
                upright.get_pixel(0, 0),
                "{name}, {orientation}"
            );
            // Of the pixel to its right, whose place tells a turn from a mirror.
            let (dx, dy) = [(1, 0), (-1, 0), (-1, 0), (1, 0), (0, 1), (0, 1), (0, -1), (0, -1)]
                [usize::from(orientation) - 1];
            let beside = (corner.0.wrapping_add_signed(dx), corner.1.wrapping_add_signed(dy));
            assert_eq!(
                turned.get_pixel(beside.0, beside.1),
                upright.get_pixel(1, 0),
                "{name}, {orientation}"
            );
        }
    }
}

/// The most memory that this process has had.
#[cfg(target_os = "linux")]
fn peak_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_packed_colour_profile_is_no_bomb() {
    const MEBIBYTES: usize = 600;
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::fast());
    let zeros = vec![0; 1 << 20];
    (0..MEBIBYTES).for_each(|_| packed.write_all(&zeros).unwrap());
    let packed = packed.finish().unwrap();
    assert!(packed.len() < 8 << 20, "{} bytes on disk", packed.len());
    let plain = fs::read(fixture("images/awkward/odd.png")).unwrap();
    let bomb = with_chunk(&plain, b"iCCP", &[b"name\0\0", &packed[..]].concat());
    let expected = decode_bytes(&plain, &DecodeOptions::default()).unwrap();
    let before = peak_kb();
    // The profile is of no use to us, and its picture is as good as any.
    assert_eq!(size_of_bytes(&bomb).unwrap(), (expected.width, expected.height));
    assert_eq!(decode_bytes(&bomb, &DecodeOptions::default()).unwrap(), expected);
    let grown = peak_kb() - before;
    assert!(grown < 200 << 10, "{grown} KB for a profile of {MEBIBYTES} MB");
}
