//! The `.littlebit` format: files written here are read by the library and by a reader of their
//! own, and damaged ones are refused.
#![expect(clippy::unwrap_used, reason = "a failed unwrap in a test is a failed test")]

mod allocation; // the largest allocation of a thread, for hostile inputs
mod by_the_book; // a reader that knows only docs/littlebit-format.md
mod damage; // truncated, flipped and hostile files
mod export; // ranks and scales apart from the bits
mod info; // what `littlebit info` reports
mod round_trip; // what is written comes back; sizes known in advance; equal bytes
mod samples; // a small random model in factors
mod worked_example; // the file printed in the document
