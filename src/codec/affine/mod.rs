//! Integers on affine grids, `w = (q − z) · s`: the layers of GPTQ, AWQ and W8A8 checkpoints as
//! numbers, and rounding to them.

pub(crate) mod awq;
pub(crate) mod gptq;
pub(crate) mod grid;
pub(crate) mod grouped;
pub(crate) mod int8;
pub mod nearest;
pub(crate) mod plain_type;

pub use grouped::Grouped;
pub use int8::Int8Rows;
pub use plain_type::PlainType;
