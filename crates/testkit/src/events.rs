//! Reads TensorBoard's event files.

use std::path::Path;

/// The values of an event file: step, tag, and the number, or of a picture how many bytes its file has.
///
/// # Panics
/// On a file that cannot be read, is cut short, or is not made of events. Checksums are not looked at.
pub fn event_values(path: &Path) -> Vec<(u64, String, f32)> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut rest = bytes.as_slice();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let length = u64::from_le_bytes(take(&mut rest, 8).try_into().expect("eight bytes"));
        take(&mut rest, 4);
        let event = fields(take(&mut rest, length as usize));
        take(&mut rest, 4);
        let step = event
            .iter()
            .find_map(|field| if let (2, Field::Integer(step)) = field { Some(*step) } else { None });
        for value in pieces(&event, 5).into_iter().flat_map(|summary| pieces(&fields(summary), 1)) {
            let value = fields(value);
            let tag = String::from_utf8(pieces(&value, 1)[0].to_vec()).expect("tags are text");
            let number =
                pieces(&value, 2).first().map(|b| f32::from_le_bytes((*b).try_into().expect("four bytes")));
            let picture = || pieces(&fields(pieces(&value, 4)[0]), 4)[0].len() as f32;
            all.push((step.unwrap_or(0), tag, number.unwrap_or_else(picture)));
        }
    }
    all
}

enum Field<'a> {
    Integer(u64),
    Piece(&'a [u8]),
}

fn pieces<'a>(fields: &[(u64, Field<'a>)], number: u64) -> Vec<&'a [u8]> {
    let piece = |(n, field): &(u64, Field<'a>)| match field {
        Field::Piece(piece) if *n == number => Some(*piece),
        _ => None,
    };
    fields.iter().filter_map(piece).collect()
}

fn fields(mut data: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut all = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let field = match key & 7 {
            0 => Field::Integer(varint(&mut data)),
            1 => Field::Piece(take(&mut data, 8)),
            2 => {
                let length = varint(&mut data);
                Field::Piece(take(&mut data, length as usize))
            }
            5 => Field::Piece(take(&mut data, 4)),
            wire => panic!("wire type {wire}"),
        };
        all.push((key >> 3, field));
    }
    all
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, left) =
        rest.split_at_checked(count).unwrap_or_else(|| panic!("{count} bytes of {}", rest.len()));
    *rest = left;
    taken
}

fn varint(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a number of more than 64 bits")
}
