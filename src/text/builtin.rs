//! The text that travels inside the program, so that everything works without network and files:
//! public-domain American State of the Union addresses, split by speech into a part to calibrate
//! on and a part to measure with. The built-in tiny model has learnt from the first one and has
//! never seen the second.

/// Text to calibrate on (about 0.4 MB).
pub const CALIBRATION: &str = include_str!("../../models/corpus/calibration.txt");

/// Text to measure with (about 0.2 MB): other speeches than [`CALIBRATION`].
pub const HELD_OUT: &str = include_str!("../../models/corpus/heldout.txt");

/// How reports name this text.
pub const NAME: &str = "built-in";

/// The speeches of one of the two texts, which blank lines separate.
pub fn documents(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n").filter(|document| !document.trim().is_empty())
}
