//! What of the layout of AWQ checkpoints is needed to read their integers.

/// Which of eight neighbouring outputs lies in each nibble, the lowest first.
pub(crate) const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The nibble in which each of eight neighbouring outputs lies.
pub(crate) const NIBBLE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Whether the layout can hold such a layer.
#[must_use]
pub(crate) fn fits(out: usize, inputs: usize, group: usize) -> bool {
    out.is_multiple_of(8) && group > 0 && inputs.is_multiple_of(group)
}
