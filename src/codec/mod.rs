//! Numbers as files hold them: the blocks of ggml, integers on affine grids, packed signs; and vector
//! arithmetic on rows of them.

pub mod affine;
pub mod ggml;
pub mod signs;
mod stored_type;
pub(crate) mod vector;

pub use ggml::StoredType;
