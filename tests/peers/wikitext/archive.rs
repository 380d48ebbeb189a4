//! WikiText-2 as it comes out of the hub's archive.

use std::path::PathBuf;
use std::sync::Mutex;

use llm_quantize::base::progress::Progress;
use llm_quantize::text::{TextRequest, TextSource, wikitext};
use tempfile::TempDir;

use crate::needs;

/// Notes that are given along the way.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Progress for Notes {
    fn start(&self, _: &str, _: u64, _: &str) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
    fn detail(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}

fn write(folder: &TempDir, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    path
}

/// A ZIP archive with uncompressed members, as APPNOTE 6.3 lays it out.
fn stored_zip(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, contents) in members {
        let mut crc = flate2::Crc::new();
        crc.update(contents);
        let sizes = [crc.sum(), contents.len() as u32, contents.len() as u32];
        let offset = bytes.len() as u32;
        let common: Vec<u8> = [20u16, 0, 0, 0, 0]
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .chain(sizes.iter().flat_map(|field| field.to_le_bytes()))
            .chain([name.len() as u16, 0].iter().flat_map(|field| field.to_le_bytes()))
            .collect();
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&common);
        bytes.extend(name.as_bytes());
        bytes.extend(contents);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0u8; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, count) = (bytes.len() as u32, members.len() as u16);
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend(count.to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0u8; 2]);
    bytes
}

#[test]
#[ignore = "needs LLM_QUANTIZE_TEST_DATA (WikiText-2)"]
fn wikitext_comes_out_of_the_archive_of_the_hub() {
    let data = needs::data();
    let member =
        |split: wikitext::Split| (split.path, std::fs::read(data.join(split.path)).unwrap());
    let members = [member(wikitext::TEST), member(wikitext::TRAIN)];
    let folder = TempDir::new().unwrap();
    let archive = write(&folder, "wikitext.zip", stored_zip(&members));
    let fetch = |_: &str, _: &str, _: &str| Ok(archive.clone());
    let request = TextRequest { fetch: Some(&fetch), ..TextRequest::default() };
    let progress = Notes::default();
    let source = TextSource::open(&request, &progress).unwrap();
    assert_eq!((source.name.as_str(), source.notice), ("wikitext-2 train", None));
    assert_eq!(source.evaluation_name, "wikitext-2 test");
    assert_eq!(source.evaluation[0].as_bytes(), members[0].1);
    assert_eq!(source.calibration[0].as_bytes(), members[1].1);
    assert!(progress.0.lock().unwrap().is_empty());

    // One letter changed, and it is not the text of the papers any more.
    let mut changed = members.clone();
    changed[0].1[1000] ^= 1;
    std::fs::write(&archive, stored_zip(&changed)).unwrap();
    let source = TextSource::open(&request, &progress).unwrap();
    assert_eq!(source.name, "built-in");
    assert!(source.notice.unwrap().contains("wiki.test.raw"));
}
