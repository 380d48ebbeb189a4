//! Writing a file front to back: text files, then each tensor when it is ready, then the index;
//! last the preamble, so that a file whose writing stopped does not pass for one.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::ALIGNMENT;
use super::contents::{Entry, FactorizedEntry, PathEntry};
use super::index::error_value;
use super::layout::{Description, Layout, to_json};
use super::preamble::{PREAMBLE_BYTES, Preamble};
use crate::codec::signs::BitMatrix;
use crate::weight::{Factor, FactorizedLinear, StoredTensor};
use crate::{Error, Result};

/// Writes a `.littlebit` file into `out`, tensor by tensor in the order of the description.
///
/// Nothing of a tensor is kept once it is written. The same description and tensors give the same
/// bytes.
pub struct Writer<W: Write + Seek> {
    out: W,
    /// For messages.
    path: PathBuf,
    layout: Layout,
    /// Number of the next section.
    section: usize,
    /// Number of the next tensor.
    tensor: usize,
    /// Bytes written.
    position: u64,
}

impl<W: Write + Seek> Writer<W> {
    /// Lays out the file and writes its text files. `out` stands at the first byte of an empty
    /// file and gathers small writes, as an [`AtomicFile`](crate::files::atomic::AtomicFile)
    /// does; `path` is named in errors.
    pub fn new(out: W, path: impl AsRef<Path>, description: &Description) -> Result<Self> {
        let layout = Layout::new(description)?;
        let mut writer = Self {
            out,
            path: path.as_ref().to_path_buf(),
            layout,
            section: 0,
            tensor: 0,
            position: 0,
        };
        writer.put(&[0; PREAMBLE_BYTES as usize])?;
        for file in &description.files {
            writer.section(&file.name, |section| section.write(file.text.as_bytes()))?;
        }
        Ok(writer)
    }

    /// Where everything goes, and how large the file will be.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The tensor that has to be written next; `None` when all are.
    #[must_use]
    pub fn next_tensor(&self) -> Option<&str> {
        self.layout.contents.tensors.get_index(self.tensor).map(|(name, _)| name.as_str())
    }

    /// Writes the stored tensor `name`: `fill` passes its bytes, in as many pieces as it likes.
    pub fn stored(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut SectionWriter<'_, W>) -> Result<()>,
    ) -> Result<()> {
        match self.expect(name)? {
            Entry::Stored(_) => self.section(name, fill)?,
            Entry::Factorized(_) => {
                return Err(Error::General(format!("{name} was planned in factors")));
            }
        }
        self.tensor += 1;
        Ok(())
    }

    /// Writes the stored tensor `name` as it is, rows in Hugging Face order.
    pub fn stored_tensor(&mut self, name: &str, tensor: &StoredTensor) -> Result<()> {
        if let Entry::Stored(planned) = self.expect(name)?
            && (planned.dtype != tensor.dtype || planned.shape != tensor.shape)
        {
            return Err(Error::General(format!(
                "{name} was planned as {} {:?}, it is {} {:?}",
                planned.dtype.name(),
                planned.shape,
                tensor.dtype.name(),
                tensor.shape
            )));
        }
        self.stored(name, |section| {
            (0..tensor.rows()).try_for_each(|row| section.write(tensor.row_bytes(row)))
        })
    }

    /// Writes the factorized tensor `name`. `relative_error` and `weighted_error` are squared
    /// errors relative to the squared norm, the second one weighted by activations; they are
    /// stored with six digits, and left out when they are not finite.
    pub fn factorized(
        &mut self,
        name: &str,
        weight: &FactorizedLinear,
        relative_error: Option<f64>,
        weighted_error: Option<f64>,
    ) -> Result<()> {
        let Entry::Factorized(planned) = self.expect(name)? else {
            return Err(Error::General(format!("{name} was planned as a stored tensor")));
        };
        check_factors(weight, &planned)
            .map_err(|e| Error::General(format!("{name} cannot be written: {e}")))?;
        for factor in &weight.paths {
            for signs in [&factor.left, &factor.right] {
                self.section(name, |section| section.write(&signs.bytes))?;
            }
            for scale in [Some(&factor.row_scale), factor.latent_scale.as_ref()]
                .into_iter()
                .flatten()
                .chain([&factor.column_scale])
            {
                let bytes = factor
                    .scale_type
                    .encode(scale)
                    .map_err(|e| Error::General(format!("{name} cannot be written: {e}")))?;
                self.section(name, |section| section.write(&bytes))?;
            }
        }
        if let Some(record) = self.layout.index.tensors.get_mut(self.tensor) {
            record.relative_error = relative_error.and_then(error_value);
            record.weighted_error = weighted_error.and_then(error_value);
        }
        self.tensor += 1;
        Ok(())
    }

    /// Writes the index and the preamble and gives `out` back, flushed but not synced.
    pub fn finish(mut self) -> Result<W> {
        if let Some(missing) = self.next_tensor() {
            return Err(Error::General(format!("{missing} has not been written")));
        }
        let (offset, length) = (self.layout.index_offset(), self.layout.index_length());
        let mut index = to_json(&self.layout.index)?;
        if self.position != offset || index.len() as u64 >= length {
            return Err(Error::General(format!(
                "the file was laid out for {offset} + {length} bytes, {} + {} are there",
                self.position,
                index.len() + 1
            )));
        }
        index.resize(length as usize - 1, b' ');
        index.push(b'\n');
        self.put(&index)?;
        let preamble = Preamble {
            flags: self.layout.contents.flags(),
            index_offset: offset,
            index_length: length,
            index_sha256: Sha256::digest(&index).into(),
        };
        let Self { mut out, path, .. } = self;
        let io = |e| Error::io(&path, e);
        out.seek(SeekFrom::Start(0)).map_err(io)?;
        out.write_all(&preamble.to_bytes()).map_err(io)?;
        out.flush().map_err(io)?;
        Ok(out)
    }

    /// The plan of the next tensor, which has to be `name`.
    fn expect(&self, name: &str) -> Result<Entry> {
        match self.layout.contents.tensors.get_index(self.tensor) {
            Some((next, entry)) if next == name => Ok(entry.clone()),
            Some((next, _)) => {
                Err(Error::General(format!("{next} has to be written next, not {name}")))
            }
            None => Err(Error::General(format!("{name} was not planned"))),
        }
    }

    /// Writes a section of exactly the planned length and the zeros after it.
    fn section(
        &mut self,
        what: &str,
        fill: impl FnOnce(&mut SectionWriter<'_, W>) -> Result<()>,
    ) -> Result<()> {
        let number = self.section;
        let length = self.layout.index.sections.get(number).map_or(0, |s| s.length);
        let mut section =
            SectionWriter { writer: self, what, remaining: length, digest: Sha256::new() };
        fill(&mut section)?;
        let SectionWriter { remaining, digest, .. } = section;
        if remaining > 0 {
            return Err(Error::General(format!("{remaining} of {length} bytes of {what} missing")));
        }
        if let Some(record) = self.layout.index.sections.get_mut(number) {
            record.sha256 = format!("{:x}", digest.finalize());
        }
        self.section += 1;
        let padding = self.position.next_multiple_of(ALIGNMENT) - self.position;
        self.put(&[0; ALIGNMENT as usize][..padding as usize])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io(&self.path, e))?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

/// Takes the bytes of one section.
pub struct SectionWriter<'a, W: Write + Seek> {
    writer: &'a mut Writer<W>,
    what: &'a str,
    remaining: u64,
    digest: Sha256,
}

impl<W: Write + Seek> SectionWriter<'_, W> {
    /// Appends `bytes`, which must not exceed what was planned.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.remaining = self.remaining.checked_sub(bytes.len() as u64).ok_or_else(|| {
            Error::General(format!("{} has more bytes than were planned", self.what))
        })?;
        self.digest.update(bytes);
        self.writer.put(bytes)
    }
}

/// Whether factors are what was planned, and valid: lengths, padding bits, finite scales.
fn check_factors(weight: &FactorizedLinear, planned: &FactorizedEntry) -> Result<()> {
    let FactorizedLinear { out_features, in_features, paths } = weight;
    let ranks = |path: &Factor| (path.rank(), path.latent_scale.is_some(), path.scale_type);
    let planned_rank = |path: &PathEntry| (path.rank, path.latent_scale.is_some(), path.scale_type);
    if (*out_features, *in_features) != (planned.out_features, planned.in_features)
        || !paths.iter().map(ranks).eq(planned.paths.iter().map(planned_rank))
    {
        return Err(Error::General(format!(
            "[{out_features}, {in_features}] with ranks (and latent scales, and their type) {:?}, planned were \
             {planned:?}",
            paths.iter().map(ranks).collect::<Vec<_>>()
        )));
    }
    for signs in paths.iter().flat_map(|path| [&path.left, &path.right]) {
        BitMatrix::new(signs.rows, signs.cols, signs.bytes.clone())?;
    }
    FactorizedLinear::new(*out_features, *in_features, paths.clone()).map(|_| ())
}
