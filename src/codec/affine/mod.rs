//! Integers on affine grids, `w = (q − z) · s`: the layers of GPTQ, AWQ and W8A8 checkpoints as
//! numbers, and rounding to them.

pub mod awq;
pub mod gptq;
pub mod grid;
pub mod grouped;
pub mod int8;
pub mod nearest;
pub mod plain_type;

pub use grouped::Grouped;
pub use int8::Int8Rows;
pub use plain_type::PlainType;
