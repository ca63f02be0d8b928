//! A tensor as it lies in a file.

use std::borrow::Cow;

use half::bf16;

use crate::half_floats::{all_below, f16_to_f32};

// Files are little-endian, and so is every machine that this project is built for: bytes are numbers as they lie.
const _: () = assert!(cfg!(target_endian = "little"));

/// The element types that checkpoints are made of. The 4, 6 and 8 bit floats of quantised files are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit float, 5 bits of exponent.
    F16,
    /// 16-bit float, 8 bits of exponent.
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 8-bit integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 | Self::Bool => 1,
        }
    }

    /// Its name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }

    /// Whether it is a float.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        Some(match dtype {
            safetensors::Dtype::F64 => Self::F64,
            safetensors::Dtype::F32 => Self::F32,
            safetensors::Dtype::F16 => Self::F16,
            safetensors::Dtype::BF16 => Self::BF16,
            safetensors::Dtype::I64 => Self::I64,
            safetensors::Dtype::I32 => Self::I32,
            safetensors::Dtype::U8 => Self::U8,
            safetensors::Dtype::BOOL => Self::Bool,
            _ => return None,
        })
    }
}

/// Where a tensor's bytes lie, in one piece, little-endian and row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file, by its index in [`Checkpoint::files`](crate::Checkpoint::files).
    pub file: usize,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// What a tensor is and where it lies; nothing of it has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The type of an element.
    pub dtype: Dtype,
    /// The extent of each axis.
    pub shape: Vec<usize>,
    /// Where it lies; none for the few that do not lie in one piece (compressed, or strided in a pickle), which
    /// [`Checkpoint::tensor`](crate::Checkpoint::tensor) puts together.
    pub place: Option<Place>,
}

impl TensorInfo {
    /// How many elements there are.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// How many bytes the elements take.
    pub fn bytes(&self) -> u64 {
        (self.numel() * self.dtype.size()) as u64
    }
}

/// A tensor's bytes, little-endian and row-major, with their meaning.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorView<'a> {
    /// The type of an element.
    pub dtype: Dtype,
    /// The extent of each axis.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Cow<'a, [u8]>,
}

impl TensorView<'_> {
    /// How many elements there are.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// All elements as f32; f64 and integers are rounded.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.numel()];
        self.read_f32(0, &mut values);
        values
    }

    /// The elements from `start` on as f32, as many as `out` holds; f64 and integers are rounded.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn read_f32(&self, start: usize, out: &mut [f32]) {
        let size = self.dtype.size();
        let bytes = &self.data[start * size..(start + out.len()) * size];
        match self.dtype {
            Dtype::F32 => copy(bytes, out, f32::from_le_bytes),
            Dtype::F16 => f16_to_f32(bytes, out),
            Dtype::BF16 => copy(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => copy(bytes, out, |b| f64::from_le_bytes(b) as f32),
            Dtype::I64 => copy(bytes, out, |b| i64::from_le_bytes(b) as f32),
            Dtype::I32 => copy(bytes, out, |b| i32::from_le_bytes(b) as f32),
            Dtype::U8 | Dtype::Bool => copy(bytes, out, |[b]: [u8; 1]| f32::from(b)),
        }
    }

    /// The first element that is NaN or infinite: its place (row-major) and value.
    pub fn first_not_finite(&self) -> Option<(usize, f32)> {
        let mut buffer = [0.0; 4096];
        let mut start = 0;
        while start < self.numel() {
            let n = buffer.len().min(self.numel() - start);
            let values = &mut buffer[..n];
            self.read_f32(start, values);
            if !all_below(values, f32::INFINITY)
                && let Some(i) = values.iter().position(|x| !x.is_finite())
            {
                return Some((start + i, values[i]));
            }
            start += n;
        }
        None
    }
}

fn copy<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    let (elements, rest) = bytes.as_chunks::<N>();
    assert!(rest.is_empty() && elements.len() == out.len(), "{} bytes for {} values", bytes.len(), out.len());
    for (value, element) in out.iter_mut().zip(elements) {
        *value = convert(*element);
    }
}

/// Row-major elements of `size` bytes, from where their strides (in elements) say.
pub(crate) fn gather(elements: &[u8], size: usize, shape: &[usize], strides: &[usize]) -> Vec<u8> {
    let numel: usize = shape.iter().product();
    let mut all = Vec::with_capacity(numel * size);
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    for _ in 0..numel {
        all.extend_from_slice(&elements[at * size..(at + 1) * size]);
        // As an odometer: the last axis first.
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= index[axis] * strides[axis];
            index[axis] = 0;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    fn view(dtype: Dtype, bytes: &[u8]) -> TensorView<'_> {
        TensorView { dtype, shape: vec![bytes.len() / dtype.size()], data: bytes.into() }
    }

    #[test]
    fn every_type_reads_as_f32() {
        let bytes = |parts: [&[u8]; 2]| parts.concat();
        let one_two = [
            (Dtype::F64, bytes([&1f64.to_le_bytes(), &2f64.to_le_bytes()])),
            (Dtype::F32, bytes([&1f32.to_le_bytes(), &2f32.to_le_bytes()])),
            (Dtype::F16, bytes([&f16::from_f32(1.0).to_le_bytes(), &f16::from_f32(2.0).to_le_bytes()])),
            (Dtype::BF16, bytes([&bf16::from_f32(1.0).to_le_bytes(), &bf16::from_f32(2.0).to_le_bytes()])),
            (Dtype::I64, bytes([&1i64.to_le_bytes(), &2i64.to_le_bytes()])),
            (Dtype::I32, bytes([&1i32.to_le_bytes(), &2i32.to_le_bytes()])),
            (Dtype::U8, vec![1, 2]),
        ];
        for (dtype, data) in one_two {
            assert_eq!(view(dtype, &data).to_f32(), [1.0, 2.0], "{dtype:?}");
            // At an odd address too.
            let shifted = [&[0], data.as_slice()].concat();
            assert_eq!(view(dtype, &shifted[1..]).to_f32(), [1.0, 2.0], "{dtype:?} unaligned");
        }
    }

    #[test]
    fn a_transposed_view_is_put_in_order() {
        // Rows of 3 in the storage, seen as columns.
        let elements: Vec<u8> = (0..6).flat_map(|i: u16| i.to_le_bytes()).collect();
        let gathered = gather(&elements, 2, &[3, 2], &[1, 3]);
        let expected: Vec<u8> = [0, 3, 1, 4, 2, 5].into_iter().flat_map(|i: u16| i.to_le_bytes()).collect();
        assert_eq!(gathered, expected);
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found() {
        let mut values = vec![0.5_f32; 10_000];
        assert_eq!(view(Dtype::F32, bytemuck::cast_slice(&values)).first_not_finite(), None);
        values[9_000] = f32::INFINITY;
        values[9_001] = f32::NAN;
        let found = view(Dtype::F32, bytemuck::cast_slice(&values)).first_not_finite();
        assert_eq!(found, Some((9_000, f32::INFINITY)));
    }
}
