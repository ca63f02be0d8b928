//! What a LoRA adds to one weight.

/// The product of a LoRA's two matrices, which is worked out where it is needed.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraDelta {
    /// (rows, rank), row-major.
    pub up: Vec<f32>,
    /// (rank, columns), row-major; a column is all of an element's axes behind the first.
    pub down: Vec<f32>,
    /// The rank.
    pub rank: usize,
    /// What the product is multiplied by: alpha / rank.
    pub scale: f32,
}

impl LoraDelta {
    /// The elements of the product from `start` on, row-major.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn read(&self, start: usize, out: &mut [f32]) {
        let columns = self.down.len() / self.rank;
        let (mut place, mut rest) = (start, out);
        while !rest.is_empty() {
            let (row, first) = (place / columns, place % columns);
            let n = (columns - first).min(rest.len());
            let (part, tail) = rest.split_at_mut(n);
            self.read_row(row, first, part);
            place += n;
            rest = tail;
        }
    }

    fn read_row(&self, row: usize, first: usize, out: &mut [f32]) {
        let columns = self.down.len() / self.rank;
        out.fill(0.0);
        for (k, up) in self.up[row * self.rank..(row + 1) * self.rank].iter().enumerate() {
            let down = &self.down[k * columns + first..][..out.len()];
            for (out, down) in out.iter_mut().zip(down) {
                *out += up * down;
            }
        }
        if self.scale != 1.0 {
            out.iter_mut().for_each(|out| *out *= self.scale);
        }
    }
}
