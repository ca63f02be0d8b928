//! Event files for TensorBoard: protocol buffers in records that are framed with masked CRC-32C.
//!
//! Sources: tensorflow/tensorboard, `tensorboard/compat/proto/event.proto` and `summary.proto`;
//! tensorflow/tensorflow, `tensorflow/core/lib/io/record_writer.h`.

use std::path::{Path, PathBuf};

use vodka_stage::ContentHash;

use super::{growing::Growing, own::claim};
use crate::Result;

/// What one tag has at one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    /// A number.
    Scalar(f32),
    /// A picture, encoded as JPEG or PNG.
    Image {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// The file's bytes.
        encoded: &'a [u8],
    },
}

/// An event file that is being written.
#[derive(Debug)]
pub(crate) struct Events {
    file: Growing,
}

impl Events {
    /// The path of the file in a folder. TensorBoard finds it by `tfevents`.
    pub fn path_in(folder: &Path) -> PathBuf {
        folder.join("events.out.tfevents.0.vodka")
    }

    /// Starts the file of the run with this key; of one that is there it keeps the records of the first `done` steps. That
    /// of another run is put aside, into a folder of its own below, which TensorBoard shows as another run. `time_s` is now,
    /// in seconds since 1970, as this format wants it.
    pub fn start(folder: &Path, key: ContentHash, done: Option<u64>, time_s: f64) -> Result<Self> {
        let path = Self::path_in(folder);
        claim(&path, key, key_of, |other| Self::path_in(&folder.join(other)))?;
        let before = done.and_then(|done| Some((std::fs::read(&path).ok()?, done)));
        let kept = before.map(|(bytes, done)| {
            let whole =
                records(&bytes).filter(|record| step_of(record.data).is_some_and(|step| step <= done));
            whole.flat_map(|record| record.framed).copied().collect::<Vec<_>>()
        });
        let content = kept.filter(|kept| !kept.is_empty()).unwrap_or_else(|| framed(&version(time_s, key)));
        Ok(Self { file: Growing::start(path, &content)? })
    }

    /// Adds what some tags have at a step.
    pub fn append(&mut self, step: u64, time_s: f64, values: &[(String, Value)]) -> Result<()> {
        self.file.append(&framed(&event(step, time_s, values)))
    }

    /// Makes the records survive a power cut.
    pub fn sync(&self) -> Result<()> {
        self.file.sync()
    }
}

/// The first record of every file: `Event { wall_time, file_version, source_metadata { writer } }`.
fn version(time_s: f64, key: ContentHash) -> Vec<u8> {
    let mut writer = Vec::new();
    piece(&mut writer, 1, format!("{WRITER}{key}").as_bytes());
    let mut bytes = Vec::new();
    double(&mut bytes, 1, time_s);
    piece(&mut bytes, 3, b"brain.Event:2");
    piece(&mut bytes, 10, &writer);
    bytes
}

/// What the writer's name begins with; the key of its run follows.
const WRITER: &str = "vodka ";

/// The run that a file is of, as its first record says.
fn key_of(file: &[u8]) -> Option<String> {
    let first = records(file).next()?;
    let at = first.data.windows(WRITER.len()).position(|bytes| bytes == WRITER.as_bytes())?;
    Some(std::str::from_utf8(&first.data[at + WRITER.len()..]).ok()?.to_owned())
}

/// `Event { wall_time, step, summary { value { tag, simple_value or image } } }`
fn event(step: u64, time_s: f64, values: &[(String, Value)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut one = Vec::new();
        piece(&mut one, 1, tag.as_bytes());
        match value {
            Value::Scalar(scalar) => float(&mut one, 2, *scalar),
            Value::Image { width, height, encoded } => {
                let mut image = Vec::new();
                integer(&mut image, 1, (*height).into());
                integer(&mut image, 2, (*width).into());
                // RGB.
                integer(&mut image, 3, 3);
                piece(&mut image, 4, encoded);
                piece(&mut one, 4, &image);
            }
        }
        piece(&mut summary, 1, &one);
    }
    let mut bytes = Vec::new();
    double(&mut bytes, 1, time_s);
    integer(&mut bytes, 2, step);
    piece(&mut bytes, 5, &summary);
    bytes
}

/// The length, its checksum, the data, their checksum.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let checksum = |bytes: &[u8]| masked_crc(bytes).to_le_bytes();
    [&length[..], &checksum(&length), data, &checksum(data)].concat()
}

/// A checksum of what itself holds checksums must not be one: hence the rotation.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

const VARINT: u8 = 0;
const BITS_64: u8 = 1;
const LENGTH: u8 = 2;
const BITS_32: u8 = 5;

fn key(bytes: &mut Vec<u8>, field: u8, wire: u8) {
    bytes.push(field << 3 | wire);
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn integer(bytes: &mut Vec<u8>, field: u8, value: u64) {
    key(bytes, field, VARINT);
    varint(bytes, value);
}

fn double(bytes: &mut Vec<u8>, field: u8, value: f64) {
    key(bytes, field, BITS_64);
    bytes.extend(value.to_le_bytes());
}

fn float(bytes: &mut Vec<u8>, field: u8, value: f32) {
    key(bytes, field, BITS_32);
    bytes.extend(value.to_le_bytes());
}

fn piece(bytes: &mut Vec<u8>, field: u8, value: &[u8]) {
    key(bytes, field, LENGTH);
    varint(bytes, value.len() as u64);
    bytes.extend(value);
}

/// A record as it lies in a file.
struct Record<'a> {
    framed: &'a [u8],
    data: &'a [u8],
}

/// The records of a file up to the first that is cut short or damaged.
fn records(bytes: &[u8]) -> impl Iterator<Item = Record<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u64::from_le_bytes(*rest.first_chunk()?);
        let end = usize::try_from(length).ok()?.checked_add(16)?;
        let framed = rest.get(..end)?;
        let checksum = |at: usize| u32::from_le_bytes(framed[at..at + 4].try_into().expect("four bytes"));
        let data = &framed[12..end - 4];
        if checksum(8) != masked_crc(&framed[..8]) || checksum(end - 4) != masked_crc(data) {
            return None;
        }
        rest = &rest[end..];
        Some(Record { framed, data })
    })
}

/// The step of an event; 0 where it says none, `None` for what is no event.
fn step_of(mut data: &[u8]) -> Option<u64> {
    const STEP: u64 = 2 << 3 | VARINT as u64;
    let mut step = 0;
    while !data.is_empty() {
        let key = read_varint(&mut data)?;
        match (key & 7) as u8 {
            VARINT => {
                let value = read_varint(&mut data)?;
                step = if key == STEP { value } else { step };
            }
            BITS_64 => drop(take(&mut data, 8)?),
            BITS_32 => drop(take(&mut data, 4)?),
            LENGTH => {
                let length = usize::try_from(read_varint(&mut data)?).ok()?;
                take(&mut data, length)?;
            }
            _ => return None,
        }
    }
    Some(step)
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use vodka_stage::hash_bytes;
    use vodka_testkit::event_values;

    use super::*;

    fn tagged(tag: &str, value: f32) -> Vec<(String, Value<'static>)> {
        vec![(tag.to_owned(), Value::Scalar(value))]
    }

    #[test]
    fn checksums_are_those_of_tensorflow() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        // The frame of a length of 24, as it begins most event files.
        assert_eq!(masked_crc(&24_u64.to_le_bytes()).to_le_bytes(), [0xa3, 0x7f, 0x4b, 0x22]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::start(dir.path(), hash_bytes(b"run"), None, 1.5).unwrap();
        let jpeg = [7; 300];
        let picture = Value::Image { width: 3, height: 2, encoded: &jpeg };
        events.append(1, 2.0, &tagged("loss/val", 0.25)).unwrap();
        events.append(300, 3.0, &[("a".to_owned(), Value::Scalar(-1.0)), ("b".to_owned(), picture)]).unwrap();
        let expected = [(1, "loss/val", 0.25), (300, "a", -1.0), (300, "b", 300.0)];
        let found = event_values(&Events::path_in(dir.path()));
        assert_eq!(found, expected.map(|(step, tag, value)| (step, tag.to_owned(), value)));
    }

    #[test]
    fn a_run_that_goes_on_has_no_step_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = Events::path_in(dir.path());
        let mut events = Events::start(dir.path(), hash_bytes(b"run"), None, 0.0).unwrap();
        (1..=5).for_each(|step| events.append(step, 0.0, &tagged("x", step as f32)).unwrap());
        let whole = std::fs::read(&path).unwrap();
        // The last record is torn, as a kill may leave it.
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let mut events = Events::start(dir.path(), hash_bytes(b"run"), Some(3), 9.0).unwrap();
        (4..=5).for_each(|step| events.append(step, 0.0, &tagged("x", step as f32)).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        Events::start(dir.path(), hash_bytes(b"run"), None, 0.0).unwrap();
        assert!(event_values(&path).is_empty(), "a new run begins with nothing");
    }

    #[test]
    fn another_runs_file_is_put_aside_and_comes_back_with_its_run() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = [&b"first"[..], b"second"].map(hash_bytes);
        let start = |key, done| Events::start(dir.path(), key, done, 0.0).unwrap();
        start(first, None).append(1, 0.0, &tagged("x", 1.0)).unwrap();
        start(second, None).append(1, 0.0, &tagged("x", 2.0)).unwrap();
        start(first, Some(1));
        let values = |folder: &Path| event_values(&Events::path_in(folder));
        assert_eq!(values(dir.path()), [(1, "x".to_owned(), 1.0)]);
        assert_eq!(values(&dir.path().join(second.short(8))), [(1, "x".to_owned(), 2.0)]);
    }
}
