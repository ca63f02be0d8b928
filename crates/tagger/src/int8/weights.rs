//! A float32 matrix as int8 with one scale for each column.

/// A quantised matrix: `values[r, c] * scales[c]` is near the original.
#[derive(Debug, PartialEq)]
pub struct Quantized {
    /// -127 to 127. // (rows, columns)
    pub values: Vec<i8>,
    /// Above zero. // (columns)
    pub scales: Vec<f32>,
}

/// Quantises a row-major matrix symmetrically: the largest magnitude of a column becomes 127.
///
/// The arithmetic is that of `onnxruntime.quantization` 1.30 (quant_utils.py, `compute_scale_zp` and
/// `quantize_nparray`): the scale in f64, rounded to f32; the quotient in f32, rounded half to even; a column without a
/// normal scale, such as one of zeros, has the scale 1. `None` where the matrix is empty, not finite, or its range is
/// beyond f32.
pub fn quantize_columns(matrix: &[f32], columns: usize) -> Option<Quantized> {
    if matrix.is_empty() || !matrix.iter().all(|value| (2.0 * value).is_finite()) {
        return None;
    }
    let mut largest = vec![0.0_f32; columns];
    for row in matrix.chunks_exact(columns) {
        for (largest, value) in largest.iter_mut().zip(row) {
            *largest = largest.max(value.abs());
        }
    }
    let scales: Vec<f32> = largest.into_iter().map(scale).collect();
    let quantize =
        |(value, scale): (&f32, &f32)| (value / scale).round_ties_even().clamp(-128.0, 127.0) as i8;
    let mut values = Vec::with_capacity(matrix.len());
    for row in matrix.chunks_exact(columns) {
        values.extend(row.iter().zip(&scales).map(quantize));
    }
    Some(Quantized { values, scales })
}

fn scale(largest: f32) -> f32 {
    let scale = f64::from(2.0 * largest) / 254.0;
    if scale < f64::from(f32::MIN_POSITIVE) { 1.0 } else { scale as f32 }
}

/// The transpose of a row-major matrix with as many rows as `columns` of the result.
pub fn transpose(matrix: &[f32], columns: usize) -> Vec<f32> {
    let rows = matrix.len().checked_div(columns).unwrap_or(0);
    (0..rows).flat_map(|r| (0..columns).map(move |c| matrix[c * rows + r])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_column_has_its_scale() {
        // 2.5 and 3.5 steps are ties: they go to the even neighbour.
        let found = quantize_columns(&[127.0, -254.0, 0.0, 2.5, 7.0, 0.0, 3.5, -1.0, 0.0], 3).unwrap();
        assert_eq!(found.scales, [1.0, 2.0, 1.0]);
        assert_eq!(found.values, [127, -127, 0, 2, 4, 0, 4, 0, 0]);
    }

    #[test]
    fn a_column_of_next_to_nothing_has_the_scale_one() {
        let found = quantize_columns(&[f32::MIN_POSITIVE, 1e-30], 2).unwrap();
        assert_eq!(found.values, [0, 127]);
        assert_eq!(found.scales[0], 1.0);
    }

    #[test]
    fn what_has_no_scale_is_not_quantised() {
        for matrix in [&[f32::NAN, 1.0][..], &[f32::INFINITY, 1.0], &[f32::MAX, 1.0], &[]] {
            assert_eq!(quantize_columns(matrix, 2), None);
        }
    }

    #[test]
    fn the_transpose_turns_rows_into_columns() {
        assert_eq!(transpose(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(transpose(&[], 0), [0.0; 0]);
    }
}
