//! Captions in the text of pictures: of PNG `parameters` as A1111 writes it, or `Description`; of others what EXIF has.

use std::{
    fs::File,
    io::{self, BufReader, Cursor, Read, Seek, SeekFrom},
    path::Path,
};

use png::text_metadata::{EncodableTextChunk, ITXtChunk, TEXtChunk};
use vodka_prompt::Parameters;

use super::exif;
use crate::{Caption, Error, Result, encoding};

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// The keywords of captions, the first of which goes before the others.
const KEYWORDS: [&str; 2] = ["parameters", "Description"];

/// A caption in a picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PngText {
    pub keyword: &'static str,
    /// The whole text; in `parameters`, and in what EXIF has for them, the prompt is the caption.
    pub text: String,
}

impl PngText {
    /// The caption: of parameters the prompt, without the negative prompt and the settings.
    pub(crate) fn caption(&self) -> Caption {
        match self.keyword {
            "parameters" | exif::COMMENT => Caption::new(&parameters(&self.text).prompt),
            _ => Caption::new(&self.text),
        }
    }
}

fn parameters(text: &str) -> Parameters {
    let Ok(parameters) = text.parse();
    parameters
}

/// The caption of a picture: PNG, JPEG or WebP; pixels are not read.
///
/// # Errors
/// The file cannot be read. One that is not there, another format, or broken, has no text.
pub(crate) fn read(path: &Path) -> Result<Option<PngText>> {
    let failed = |source| Error::Read { path: path.to_path_buf(), source };
    let mut file = match File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let chunks = text_chunks(&mut file).map_err(failed)?;
    if let Some(text) = found(&chunks) {
        return Ok(Some(text));
    }
    let text = file.rewind().and_then(|()| exif::read(&mut file)).map_err(failed)?;
    Ok(text.map(|(keyword, text)| PngText { keyword, text }))
}

/// The text chunks of a PNG, whole; of what is cut off those before.
fn text_chunks(file: &mut (impl Read + Seek)) -> io::Result<Vec<Vec<u8>>> {
    let mut chunks = Vec::new();
    let mut signature = [0; 8];
    if !filled(file, &mut signature)? || signature != SIGNATURE {
        return Ok(chunks);
    }
    let mut head = [0; 8];
    while filled(file, &mut head)? && &head[4..] != b"IEND" {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        if !is_text(&head[4..]) {
            file.seek(SeekFrom::Current(i64::from(length) + 4))?;
            continue;
        }
        let mut chunk = head.to_vec();
        let rest = u64::from(length) + 4;
        if file.take(rest).read_to_end(&mut chunk)? as u64 != rest {
            break;
        }
        chunks.push(chunk);
    }
    Ok(chunks)
}

fn is_text(kind: &[u8]) -> bool {
    matches!(kind, b"tEXt" | b"zTXt" | b"iTXt")
}

/// Fills the buffer; `false` where the file ends before.
pub(super) fn filled(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        result => result.map(|()| true),
    }
}

/// The text that counts: of the first keyword that is there, the last, as in Pillow.
fn found(chunks: &[Vec<u8>]) -> Option<PngText> {
    KEYWORDS.into_iter().find_map(|keyword| {
        let text = chunks.iter().rev().find_map(|chunk| text_of(chunk, keyword))?;
        Some(PngText { keyword, text })
    })
}

/// The text of a chunk with this keyword.
fn text_of(chunk: &[u8], keyword: &str) -> Option<String> {
    let data = &chunk[8..chunk.len() - 4];
    let rest = data.strip_prefix(keyword.as_bytes())?.strip_prefix(b"\0")?;
    if &chunk[4..8] == b"tEXt" {
        // Latin-1 by the standard, but many programs write UTF-8.
        return encoding::decode(Path::new(""), rest, Some(encoding_rs::WINDOWS_1252))
            .ok()
            .map(|read| read.text);
    }
    let mut decoder = png::Decoder::new(Cursor::new(around(chunk)));
    decoder.set_ignore_text_chunk(false);
    let reader = decoder.read_info().ok()?;
    let info = reader.info();
    let compressed = info.compressed_latin1_text.iter().find_map(|chunk| chunk.get_text().ok());
    compressed.or_else(|| info.utf8_text.iter().find_map(|chunk| chunk.get_text().ok()))
}

/// A picture of one pixel with this chunk: what decodes chunks wants a picture around them.
fn around(chunk: &[u8]) -> Vec<u8> {
    let mut picture = Vec::new();
    let mut encoder = png::Encoder::new(&mut picture, 1, 1);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().expect("a vector takes everything");
    writer.write_image_data(&[0]).expect("one pixel is one byte");
    writer.finish().expect("a vector takes everything");
    picture.splice(HEAD..HEAD, chunk.iter().copied());
    picture
}

/// The signature and the header chunk.
const HEAD: usize = 8 + 25;

/// The picture with another caption, and every other byte as it was: in the text that it has one in, of `parameters` in
/// the prompt; or else in a new `Description`.
///
/// # Errors
/// What is no PNG, or is cut off; a caption that would be read as A1111's settings.
pub(crate) fn written(path: &Path, bytes: &[u8], caption: &str) -> Result<Vec<u8>> {
    let broken = |reason: &str| Error::Png { path: path.to_path_buf(), reason: reason.to_owned() };
    let chunks = chunks(bytes).ok_or_else(|| broken("it is another format, or cut off"))?;
    let texts: Vec<_> =
        chunks.iter().filter(|range| is_text(&bytes[range.start + 4..range.start + 8])).collect();
    let old = found(&texts.iter().map(|range| bytes[(**range).clone()].to_vec()).collect::<Vec<_>>());
    let keyword = old.as_ref().map_or("Description", |old| old.keyword);
    let text = match &old {
        Some(old) if old.keyword == "parameters" => {
            Parameters { prompt: caption.to_owned(), ..parameters(&old.text) }.to_string()
        }
        _ => caption.to_owned(),
    };
    let place = texts.iter().rev().find(|range| text_of(&bytes[(***range).clone()], keyword).is_some());
    let place = place.map_or(HEAD..HEAD, |range| (**range).clone());
    let chunk = chunk(keyword, &text).map_err(|error| broken(&error.to_string()))?;
    let new = [&bytes[..place.start], &chunk, &bytes[place.end..]].concat();
    let read = text_chunks(&mut Cursor::new(&new)).ok().and_then(|chunks| found(&chunks));
    match read.is_some_and(|read| read.caption().text == caption) {
        true => Ok(new),
        false => Err(broken("its caption would be read as settings of A1111")),
    }
}

/// Where each chunk is, from its length to its checksum; `None` for what is no whole PNG.
fn chunks(bytes: &[u8]) -> Option<Vec<std::ops::Range<usize>>> {
    let mut chunks = Vec::new();
    let mut at = bytes.starts_with(SIGNATURE).then_some(SIGNATURE.len())?;
    loop {
        let length = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize;
        let end = at.checked_add(length)?.checked_add(12)?;
        let kind = bytes.get(at + 4..at + 8)?;
        bytes.get(at..end)?;
        chunks.push(at..end);
        if kind == b"IEND" {
            return Some(chunks);
        }
        at = end;
    }
}

fn chunk(keyword: &str, text: &str) -> Result<Vec<u8>, png::EncodingError> {
    let mut chunk = Vec::new();
    // Only ASCII is the same for those that read UTF-8 here and those that read Latin-1.
    match text.is_ascii() && !text.contains('\0') {
        true => TEXtChunk::new(keyword, text).encode(&mut chunk)?,
        false => ITXtChunk::new(keyword, text).encode(&mut chunk)?,
    }
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use png::text_metadata::ZTXtChunk;

    use super::*;

    fn encoded(chunk: &impl EncodableTextChunk) -> Vec<u8> {
        let mut bytes = Vec::new();
        chunk.encode(&mut bytes).unwrap();
        bytes
    }

    /// A picture of one pixel with these chunks before and behind its pixels.
    fn picture(before: &[Vec<u8>], behind: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = around(&[]);
        let end = bytes.len() - 12;
        bytes.splice(end..end, behind.concat());
        bytes.splice(HEAD..HEAD, before.concat());
        bytes
    }

    fn caption(bytes: &[u8]) -> Option<String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.png"), bytes).unwrap();
        Some(read(&dir.path().join("a.png")).unwrap()?.caption().text)
    }

    const INFOTEXT: &str =
        "a heart,\nred\nNegative prompt: blurry\nSteps: 20, Sampler: Euler, Size: 512x512, Seed: 1";

    #[test]
    fn every_kind_of_text_is_read_before_and_behind_the_pixels() {
        let plain = encoded(&TEXtChunk::new("Description", "a heart"));
        let packed = encoded(&ZTXtChunk::new("Description", "a sch\u{f6}nes heart"));
        let mut wide = ITXtChunk::new("Description", "ein Herz ♥");
        let wide_plain = encoded(&wide);
        wide.compress_text().unwrap();
        for (chunk, expected) in [
            (plain.clone(), "a heart"),
            (packed, "a schönes heart"),
            (wide_plain, "ein Herz ♥"),
            (encoded(&wide), "ein Herz ♥"),
        ] {
            assert_eq!(caption(&picture(std::slice::from_ref(&chunk), &[])).unwrap(), expected);
            assert_eq!(caption(&picture(&[], &[chunk])).unwrap(), expected);
        }
        let parameters = encoded(&TEXtChunk::new("parameters", INFOTEXT));
        assert_eq!(caption(&picture(std::slice::from_ref(&plain), &[parameters])).unwrap(), "a heart, red");
        let other = encoded(&TEXtChunk::new("Software", "x"));
        assert_eq!(caption(&picture(&[other], &[])), None);
        assert_eq!(caption(b"GIF89a"), None);
        let whole = picture(&[plain], &[]);
        assert_eq!(caption(&whole[..HEAD + 12]), None, "what is cut off has no text");
    }

    #[test]
    fn utf8_where_latin_1_should_be_is_read_as_it_was_meant() {
        let mut bytes = encoded(&TEXtChunk::new("Description", "sch__n"));
        let at = bytes.windows(2).position(|two| two == b"__").unwrap();
        bytes[at..at + 2].copy_from_slice("ö".as_bytes());
        assert_eq!(caption(&picture(&[bytes], &[])).unwrap(), "schön");
        let latin = encoded(&TEXtChunk::new("Description", "schön"));
        assert_eq!(caption(&picture(&[latin], &[])).unwrap(), "schön");
    }

    #[test]
    fn a_new_caption_changes_nothing_else() {
        let path = Path::new("a.png");
        let software = encoded(&TEXtChunk::new("Software", "x"));
        let none = picture(std::slice::from_ref(&software), &[]);
        let new = written(path, &none, "blurry, ♥").unwrap();
        assert_eq!(caption(&new).unwrap(), "blurry, ♥");
        let chunk = encoded(&ITXtChunk::new("Description", "blurry, ♥"));
        assert_eq!(new, picture(&[chunk, software.clone()], &[]));
        let again = written(path, &new, "solo").unwrap();
        assert_eq!(again, picture(&[encoded(&TEXtChunk::new("Description", "solo")), software.clone()], &[]));

        let image =
            picture(std::slice::from_ref(&software), &[encoded(&TEXtChunk::new("parameters", INFOTEXT))]);
        let new = written(path, &image, "blurry, a heart, red").unwrap();
        let expected = INFOTEXT.replace("a heart,\nred", "blurry, a heart, red");
        assert_eq!(new, picture(&[software], &[encoded(&TEXtChunk::new("parameters", expected))]));

        let error = written(path, &none[..40], "x").unwrap_err().to_string();
        assert_eq!(error, "`a.png` is not a PNG whose text can be read: it is another format, or cut off");
        let error = written(path, &image, "Negative prompt: x").unwrap_err().to_string();
        assert!(error.ends_with("its caption would be read as settings of A1111"), "{error}");
    }
}
