//! WikiText-2 (raw), the text of nearly every published perplexity (CC BY-SA, Merity et al.,
//! arXiv 1609.07843): train to calibrate on, test to measure with. It is too large and too
//! differently licensed to travel with the program, so it comes from the hub or its cache.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::zip;
use crate::base::SharedBytes;

/// Hub dataset that has the original archive (the one that llama.cpp's `get-wikitext-2.sh` takes).
/// The official dataset (`Salesforce/wikitext`) has the same lines as Parquet only.
pub const DATASET: &str = "ggml-org/ci";
/// The commit of it that is asked for.
pub const REVISION: &str = "927b3642933080f1b0e811e2f916e14c292992f9";
/// The archive's name in the dataset.
pub const ARCHIVE: &str = "wikitext-2-raw-v1.zip";
/// How reports name this text.
pub const NAME: &str = "wikitext-2";

/// A split: its path in the archive and the SHA-256 of its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Split {
    /// Path in the archive.
    pub path: &'static str,
    /// SHA-256, hexadecimal.
    pub sha256: &'static str,
}

/// Text to calibrate on, 10.9 MB.
pub const TRAIN: Split = Split {
    path: "wikitext-2-raw/wiki.train.raw",
    sha256: "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57",
};
/// Text to measure with, 1.3 MB.
pub const TEST: Split = Split {
    path: "wikitext-2-raw/wiki.test.raw",
    sha256: "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
};

/// Largest split that is unpacked, bytes.
const LIMIT: usize = 64 << 20;

/// Takes the given splits out of the archive and checks that each is the text of the papers, so
/// that a figure called "WikiText-2" can be compared with theirs.
///
/// # Errors
/// What is wrong, as a phrase that names the archive.
pub fn load(archive: &Path, splits: [Split; 2]) -> Result<[String; 2], String> {
    let bytes = SharedBytes::map(archive).map_err(|error| error.to_string())?;
    let load = |split: Split| {
        let contents = zip::extract(&bytes, split.path, LIMIT)
            .map_err(|what| format!("{}: {what}", archive.display()))?;
        if hexadecimal(&Sha256::digest(&contents)) != split.sha256 {
            return Err(format!(
                "{}: `{}` is not the text of the papers (its SHA-256 differs)",
                archive.display(),
                split.path
            ));
        }
        String::from_utf8(contents)
            .map_err(|_| format!("{}: `{}` is not UTF-8", archive.display(), split.path))
    };
    Ok([load(splits[0])?, load(splits[1])?])
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_expected_contents_are_accepted() {
        let archive =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/python-zipfile.zip");
        // sha256sum of the two members' contents.
        let one = Split {
            path: "a/one.txt",
            sha256: "2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806",
        };
        let two = Split { path: "two.txt", sha256: TEST.sha256 };
        assert_eq!(load(&archive, [one, one]).unwrap(), ["one\n", "one\n"]);
        let error = load(&archive, [one, two]).unwrap_err();
        assert!(error.contains("two.txt") && error.contains("SHA-256"), "{error}");
        assert!(load(Path::new("/nonexistent.zip"), [TRAIN, TEST]).is_err());
    }
}
