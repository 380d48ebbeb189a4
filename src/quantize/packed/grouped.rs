//! Temporary home of `Grouped`.

use half::f16;

/// Integers of a linear layer's weight.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs)]
pub struct Grouped {
    pub out: usize,
    pub inputs: usize,
    pub group: usize,
    pub bits: u8,
    pub q: Vec<u8>,
    pub scales: Vec<f16>,
    pub zeros: Vec<u8>,
    pub group_of: Option<Vec<u32>>,
}

impl Grouped {
    /// Rows as f32.
    pub fn read_rows(&self, rows: std::ops::Range<usize>, out: &mut [f32]) {
        let groups = self.inputs / self.group;
        for (row, out) in rows.zip(out.chunks_exact_mut(self.inputs)) {
            for (column, out) in out.iter_mut().enumerate() {
                let group =
                    self.group_of.as_ref().map_or(column / self.group, |g| g[column] as usize);
                let at = row * groups + group;
                *out = (f32::from(self.q[row * self.inputs + column]) - f32::from(self.zeros[at]))
                    * self.scales[at].to_f32();
            }
        }
    }
}
