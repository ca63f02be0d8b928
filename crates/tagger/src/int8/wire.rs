//! Protocol-buffer messages, field by field, without their schema: what is not looked at stays as it stands, byte for
//! byte and in its place, which code generated from a schema does not promise.
//!
//! The encoding: <https://protobuf.dev/programming-guides/encoding/>.

use super::Flaw;

/// A message, and where in its file it begins.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

/// One field of a message.
#[derive(Debug, Clone, Copy)]
pub struct Field<'a> {
    pub number: u32,
    pub value: Value<'a>,
    /// Where its value begins in the file.
    pub at: usize,
    /// Key and value as they stand.
    pub raw: &'a [u8],
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Varint(u64),
    Fixed32(&'a [u8]),
    Fixed64(&'a [u8]),
    /// Text, bytes, a message, or packed numbers.
    Bytes(&'a [u8]),
}

impl<'a> Message<'a> {
    /// The fields in their order; nothing after the first one that is damaged.
    pub fn fields(self) -> impl Iterator<Item = Result<Field<'a>, Flaw>> {
        let mut reader = Reader { bytes: self.bytes, at: self.at, next: 0 };
        std::iter::from_fn(move || {
            if reader.next == reader.bytes.len() {
                return None;
            }
            let field = reader.field();
            if field.is_err() {
                reader.next = reader.bytes.len();
            }
            Some(field)
        })
    }
}

impl<'a> Field<'a> {
    pub fn bytes(&self) -> Result<&'a [u8], Flaw> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            other => Err(self.unexpected("bytes", other)),
        }
    }

    pub fn message(&self) -> Result<Message<'a>, Flaw> {
        Ok(Message { bytes: self.bytes()?, at: self.at })
    }

    pub fn text(&self) -> Result<&'a str, Flaw> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map_err(|error| {
            Flaw::damaged(
                self.at + error.valid_up_to(),
                "UTF-8",
                format!("the byte {:#04x}", bytes[error.valid_up_to()]),
            )
        })
    }

    /// An integer as two's complement, which is how `int32` and `int64` are stored.
    pub fn int(&self) -> Result<i64, Flaw> {
        match self.value {
            Value::Varint(value) => Ok(value as i64),
            other => Err(self.unexpected("an integer", other)),
        }
    }

    /// The integers of a repeated field, which come one by one or packed.
    pub fn ints(&self, into: &mut Vec<i64>) -> Result<(), Flaw> {
        let Value::Bytes(bytes) = self.value else {
            into.push(self.int()?);
            return Ok(());
        };
        let mut reader = Reader { bytes, at: self.at, next: 0 };
        while reader.next < bytes.len() {
            into.push(reader.varint()? as i64);
        }
        Ok(())
    }

    /// The little-endian bytes of the floats of a repeated field, which come one by one or packed.
    pub fn floats(&self) -> Result<&'a [u8], Flaw> {
        match self.value {
            Value::Fixed32(bytes) => Ok(bytes),
            Value::Bytes(bytes) if bytes.len() % 4 == 0 => Ok(bytes),
            other => Err(self.unexpected("32-bit floats", other)),
        }
    }

    fn unexpected(&self, expected: &'static str, found: Value) -> Flaw {
        let found = match found {
            Value::Varint(value) => format!("the integer {value}"),
            Value::Fixed32(_) => "4 bytes".into(),
            Value::Fixed64(_) => "8 bytes".into(),
            Value::Bytes(bytes) => format!("{} bytes with their length before them", bytes.len()),
        };
        Flaw::damaged(self.at, expected, format!("{found} in field {}", self.number))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    next: usize,
}

impl<'a> Reader<'a> {
    fn field(&mut self) -> Result<Field<'a>, Flaw> {
        let start = self.next;
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|number| *number > 0);
        let number = number
            .ok_or_else(|| Flaw::damaged(self.at + start, "the number of a field", (key >> 3).to_string()))?;
        let mut at = self.at + self.next;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(self.take(8)?),
            2 => {
                let length = self.varint()?;
                at = self.at + self.next;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(self.take(4)?),
            // 3 and 4 are groups, which ONNX has never had.
            other => {
                return Err(Flaw::damaged(
                    self.at + start,
                    "a field of the wire type 0, 1, 2 or 5",
                    other.to_string(),
                ));
            }
        };
        Ok(Field { number, value, at, raw: &self.bytes[start..self.next] })
    }

    fn varint(&mut self) -> Result<u64, Flaw> {
        let start = self.next;
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Flaw::damaged(self.at + start, "an integer of at most 10 bytes", "a longer one".into()))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Flaw> {
        let rest = &self.bytes[self.next..];
        let taken = usize::try_from(count).ok().and_then(|count| rest.get(..count));
        let taken = taken.ok_or_else(|| {
            Flaw::damaged(self.at + self.next, "more bytes", format!("{} of {count}", rest.len()))
        })?;
        self.next += taken.len();
        Ok(taken)
    }
}

/// Appends an integer field.
pub fn put_int(out: &mut Vec<u8>, number: u32, value: u64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value);
}

/// Appends a field of bytes: text, or a message.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(bytes: &[u8]) -> Result<Vec<Field<'_>>, Flaw> {
        Message { bytes, at: 0 }.fields().collect()
    }

    #[test]
    fn what_is_put_is_read_and_is_there_as_it_stands() {
        let mut bytes = Vec::new();
        put_int(&mut bytes, 1, 300);
        put_int(&mut bytes, 7, u64::MAX);
        put_bytes(&mut bytes, 536_870_911, b"name");
        bytes.extend([(9 << 3) | 5, 0, 0, 128, 63, (10 << 3) | 1, 1, 2, 3, 4, 5, 6, 7, 8]);
        let found = fields(&bytes).unwrap();
        assert_eq!(found[0].value, Value::Varint(300));
        assert_eq!(found[1].int().unwrap(), -1);
        assert_eq!((found[2].number, found[2].text().unwrap()), (536_870_911, "name"));
        assert_eq!(found[3].floats().unwrap(), 1.0_f32.to_le_bytes());
        assert_eq!(found[4].value, Value::Fixed64(&[1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(found.iter().flat_map(|field| field.raw).copied().collect::<Vec<_>>(), bytes);
    }

    #[test]
    fn integers_come_one_by_one_or_packed() {
        let mut bytes = Vec::new();
        put_int(&mut bytes, 1, 3);
        put_bytes(&mut bytes, 1, &[0xac, 0x02, 5]);
        let mut ints = Vec::new();
        for field in fields(&bytes).unwrap() {
            field.ints(&mut ints).unwrap();
        }
        assert_eq!(ints, [3, 300, 5]);
    }

    #[test]
    fn damage_is_named_with_its_place() {
        let message = |bytes: &[u8]| fields(bytes).unwrap_err().to_string();
        assert_eq!(message(&[8, 1, 18, 5, 1]), "byte 4: expected more bytes, found 1 of 5");
        assert_eq!(message(&[8]), "byte 1: expected more bytes, found 0 of 1");
        assert_eq!(message(&[11]), "byte 0: expected a field of the wire type 0, 1, 2 or 5, found 3");
        assert_eq!(message(&[0]), "byte 0: expected the number of a field, found 0");
        let endless = [vec![8], vec![0xff; 10]].concat();
        assert_eq!(message(&endless), "byte 1: expected an integer of at most 10 bytes, found a longer one");
        let text = fields(&[10, 2, b'a', 0xff]).unwrap()[0].text().unwrap_err().to_string();
        assert_eq!(text, "byte 3: expected UTF-8, found the byte 0xff");
        let int = fields(&[10, 0]).unwrap()[0].int().unwrap_err().to_string();
        assert_eq!(
            int,
            "byte 2: expected an integer, found 0 bytes with their length before them in field 1"
        );
    }
}
