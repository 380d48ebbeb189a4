//! The index, checked: every reference in bounds, every section used once and as long as the
//! tensor it belongs to needs. What passes here can be read without further thought.

use indexmap::IndexMap;
use indexmap::map::Entry as MapEntry;

use super::index::{Index, Kind, PathRecord, TensorRecord};
use super::preamble::{FLAG_LOG_SCALES, PREAMBLE_BYTES};
use super::{CONFIG_FILE, FORMAT_VERSION, MAX_PATHS, MAX_TEXT_BYTES, aligned};
use crate::codec::StoredType;
use crate::weight::ScaleType;

/// Element types of stored tensors that the format defines.
const ELEMENT_TYPES: [StoredType; 13] = [
    StoredType::F32,
    StoredType::F16,
    StoredType::BF16,
    StoredType::Q4_0,
    StoredType::Q4_1,
    StoredType::Q5_0,
    StoredType::Q5_1,
    StoredType::Q8_0,
    StoredType::Q2_K,
    StoredType::Q3_K,
    StoredType::Q4_K,
    StoredType::Q5_K,
    StoredType::Q6_K,
];

/// Most dimensions of a stored tensor.
const MAX_DIMENSIONS: usize = 8;

/// A tensor whose sections are known to fit it.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// Plain or block-quantized values.
    Stored(StoredEntry),
    /// Binary factors.
    Factorized(FactorizedEntry),
}

/// A tensor of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// Element type.
    pub dtype: StoredType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Number of the section.
    pub section: usize,
}

/// A tensor of binary factors.
#[derive(Debug, Clone, PartialEq)]
pub struct FactorizedEntry {
    /// Outputs.
    pub out_features: usize,
    /// Inputs.
    pub in_features: usize,
    /// One or two paths.
    pub paths: Vec<PathEntry>,
    /// Squared error relative to the squared norm of the weight, if it was measured.
    pub relative_error: Option<f64>,
    /// The same, weighted by activations.
    pub weighted_error: Option<f64>,
}

/// A path: its rank and the numbers of its sections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathEntry {
    /// Inner dimension.
    pub rank: usize,
    /// Signs `[out, rank]`.
    pub left: usize,
    /// Signs `[rank, in]`.
    pub right: usize,
    /// How the scales are stored.
    pub scale_type: ScaleType,
    /// Scales `[out]`.
    pub row_scale: usize,
    /// Scales `[rank]`.
    pub latent_scale: Option<usize>,
    /// Scales `[in]`.
    pub column_scale: usize,
}

impl PathEntry {
    /// The numbers of all its sections, in file order.
    pub fn sections(&self) -> impl Iterator<Item = usize> + use<> {
        [Some(self.left), Some(self.right), Some(self.row_scale), self.latent_scale]
            .into_iter()
            .flatten()
            .chain([self.column_scale])
    }
}

impl FactorizedEntry {
    /// Number of weights that the factors stand for.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.out_features as u64 * self.in_features as u64
    }

    /// Bits of signs and scales as they are stored, as bits per weight are counted: the last byte
    /// of a row of signs counts whole.
    #[must_use]
    pub fn bits(&self) -> u64 {
        let (out, input) = (self.out_features as u64, self.in_features as u64);
        self.paths
            .iter()
            .map(|path| {
                let rank = path.rank as u64;
                let signs = rank.div_ceil(8) * out + input.div_ceil(8) * rank;
                let scales = path.scale_type;
                let latent = path.latent_scale.map_or(0, |_| scales.bytes(path.rank));
                let outer = scales.bytes(self.out_features) + scales.bytes(self.in_features);
                8 * (signs + outer + latent)
            })
            .sum()
    }

    /// [`Self::bits`] over [`Self::weights`].
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        self.bits() as f64 / self.weights() as f64
    }
}

/// Bytes of a sign matrix: columns in groups of eight, a byte for each row of a group.
pub(super) fn sign_bytes(rows: usize, columns: usize) -> Option<u64> {
    (columns.div_ceil(8) as u64).checked_mul(rows as u64)
}

/// Bits per weight over `entries`: total bits by total weights, 0 without factorized tensors.
pub(super) fn achieved_bits_per_weight<'a>(
    entries: impl Iterator<Item = &'a FactorizedEntry>,
) -> f64 {
    let (bits, weights) = entries.fold((0u128, 0u128), |(bits, weights), entry| {
        (bits + u128::from(entry.bits()), weights + u128::from(entry.weights()))
    });
    if weights == 0 { 0.0 } else { bits as f64 / weights as f64 }
}

/// What a file contains, all of it checked against its sections.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    /// Number of the section of each text file, by name.
    pub files: IndexMap<String, usize>,
    /// Tensors by name, in file order.
    pub tensors: IndexMap<String, Entry>,
    /// Checksums of the sections.
    pub checksums: Vec<[u8; 32]>,
}

impl Contents {
    /// Checks an index whose first byte is at `index_offset`. The error says what is wrong with it.
    pub fn check(index: &Index, index_offset: u64) -> Result<Self, String> {
        if index.format != "littlebit" || index.format_version != FORMAT_VERSION {
            return Err(format!(
                "the index describes format {:?} version {}",
                index.format, index.format_version
            ));
        }
        let checksums = check_sections(index, index_offset)?;
        let mut claims = Claims { index, used: vec![false; index.sections.len()] };

        let mut files = IndexMap::new();
        for file in &index.files {
            let length = claims.take(file.section, None, &file.name)?;
            if length > MAX_TEXT_BYTES {
                return Err(format!("{} has {length} bytes, too many for a text", file.name));
            }
            if files.insert(file.name.clone(), file.section).is_some() {
                return Err(format!("two files are called {:?}", file.name));
            }
        }
        if !files.contains_key(CONFIG_FILE) {
            return Err(format!("the file carries no {CONFIG_FILE}"));
        }

        let mut tensors = IndexMap::new();
        for record in &index.tensors {
            let entry = claims.tensor(record).map_err(|m| format!("{}: {m}", record.name))?;
            match tensors.entry(record.name.clone()) {
                MapEntry::Vacant(place) => place.insert(entry),
                MapEntry::Occupied(_) => {
                    return Err(format!("two tensors are called {:?}", record.name));
                }
            };
        }
        if let Some(unused) = claims.used.iter().position(|used| !used) {
            return Err(format!("section {unused} belongs to nothing"));
        }

        let contents = Self { files, tensors, checksums };
        let (stated, achieved) = (index.achieved_bpw, contents.achieved_bits_per_weight());
        if (stated - achieved).abs() > 1e-6 * achieved.max(1.0) {
            return Err(format!("the index states {stated} bits per weight, there are {achieved}"));
        }
        Ok(contents)
    }

    /// The factorized tensors, in file order.
    pub fn factorized(&self) -> impl Iterator<Item = (&str, &FactorizedEntry)> {
        self.tensors.iter().filter_map(|(name, entry)| match entry {
            Entry::Factorized(entry) => Some((name.as_str(), entry)),
            Entry::Stored(_) => None,
        })
    }

    /// The flags that the preamble of a file with these contents has.
    #[must_use]
    pub fn flags(&self) -> u32 {
        let logarithmic = self
            .factorized()
            .flat_map(|(_, entry)| &entry.paths)
            .any(|path| path.scale_type == ScaleType::Log8);
        if logarithmic { FLAG_LOG_SCALES } else { 0 }
    }

    /// Bits per weight over all factorized tensors, scales counted; 0 without any.
    #[must_use]
    pub fn achieved_bits_per_weight(&self) -> f64 {
        achieved_bits_per_weight(self.factorized().map(|(_, entry)| entry))
    }
}

/// Checks that the sections lie one after the other, each at the next multiple of the alignment,
/// up to the index, and reads their checksums.
fn check_sections(index: &Index, index_offset: u64) -> Result<Vec<[u8; 32]>, String> {
    let mut expected = PREAMBLE_BYTES;
    let mut checksums = Vec::with_capacity(index.sections.len());
    for (number, section) in index.sections.iter().enumerate() {
        let end = section.offset.checked_add(section.length).filter(|&end| end <= index_offset);
        let next = end.and_then(aligned);
        match next {
            Some(next) if section.offset == expected && section.length > 0 => expected = next,
            _ => {
                return Err(format!(
                    "section {number} (offset {}, length {}) is not where it should be \
                     (offset {expected}, before {index_offset})",
                    section.offset, section.length
                ));
            }
        }
        checksums.push(
            parse_checksum(&section.sha256)
                .ok_or_else(|| format!("section {number} has no valid SHA-256"))?,
        );
    }
    if expected == index_offset {
        Ok(checksums)
    } else {
        Err(format!("the sections end at byte {expected}, the index begins at {index_offset}"))
    }
}

/// The 32 bytes of 64 lower-case hexadecimal digits.
fn parse_checksum(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Hands out sections, each once.
struct Claims<'a> {
    index: &'a Index,
    used: Vec<bool>,
}

impl Claims<'_> {
    /// Takes section `number`, which must have `expected` bytes if that is given, for `what`.
    /// Returns its length.
    fn take(&mut self, number: usize, expected: Option<u64>, what: &str) -> Result<u64, String> {
        let (Some(section), Some(used)) =
            (self.index.sections.get(number), self.used.get_mut(number))
        else {
            return Err(format!("{what} refers to section {number}, which does not exist"));
        };
        if std::mem::replace(used, true) {
            return Err(format!("{what} refers to section {number}, which is taken"));
        }
        match expected {
            Some(expected) if expected != section.length => Err(format!(
                "{what} needs {expected} bytes, section {number} has {}",
                section.length
            )),
            _ => Ok(section.length),
        }
    }

    fn tensor(&mut self, record: &TensorRecord) -> Result<Entry, String> {
        let shape = dimensions(&record.shape)?;
        match (record.kind, &record.dtype, record.section, &record.paths) {
            (Kind::Stored, Some(dtype), Some(section), None) => {
                let dtype = StoredType::from_name(dtype)
                    .filter(|dtype| ELEMENT_TYPES.contains(dtype))
                    .ok_or_else(|| format!("unknown element type {dtype:?}"))?;
                let length = dtype
                    .byte_length(&shape)
                    .ok_or_else(|| format!("shape {shape:?} is impossible for {}", dtype.name()))?;
                self.take(section, Some(length as u64), "the tensor")?;
                Ok(Entry::Stored(StoredEntry { dtype, shape, section }))
            }
            (Kind::Factorized, None, None, Some(paths)) => {
                let &[out_features, in_features] = shape.as_slice() else {
                    return Err(format!("a factorized tensor of shape {shape:?}"));
                };
                if paths.is_empty() || paths.len() > MAX_PATHS {
                    return Err(format!("{} paths, 1 to {MAX_PATHS} are possible", paths.len()));
                }
                let paths = paths
                    .iter()
                    .map(|path| self.path(path, out_features, in_features))
                    .collect::<Result<_, _>>()?;
                for error in [record.relative_error, record.weighted_error].into_iter().flatten() {
                    if !error.is_finite() || error < 0.0 {
                        return Err(format!("an error of {error}"));
                    }
                }
                Ok(Entry::Factorized(FactorizedEntry {
                    out_features,
                    in_features,
                    paths,
                    relative_error: record.relative_error,
                    weighted_error: record.weighted_error,
                }))
            }
            (kind, ..) => Err(format!("not the fields of a {kind:?} tensor")),
        }
    }

    fn path(&mut self, path: &PathRecord, out: usize, input: usize) -> Result<PathEntry, String> {
        let rank = usize::try_from(path.rank)
            .ok()
            .filter(|rank| (1..=out.min(input)).contains(rank))
            .ok_or_else(|| format!("rank {} for a weight of [{out}, {input}]", path.rank))?;
        let signs = |rows, columns| sign_bytes(rows, columns).ok_or("factors too large");
        self.take(path.left, Some(signs(out, rank)?), "left")?;
        self.take(path.right, Some(signs(rank, input)?), "right")?;
        let scale_type = path.scale_type.as_deref().map_or(Ok(ScaleType::F16), |name| {
            ScaleType::from_name(name).ok_or_else(|| format!("unknown scale type {name:?}"))
        })?;
        self.take(path.row_scale, Some(scale_type.bytes(out)), "row_scale")?;
        if let Some(section) = path.latent_scale {
            self.take(section, Some(scale_type.bytes(rank)), "latent_scale")?;
        }
        self.take(path.column_scale, Some(scale_type.bytes(input)), "column_scale")?;
        Ok(PathEntry {
            rank,
            scale_type,
            left: path.left,
            right: path.right,
            row_scale: path.row_scale,
            latent_scale: path.latent_scale,
            column_scale: path.column_scale,
        })
    }
}

/// A shape without zeros whose product, in bits and then some, cannot overflow.
fn dimensions(shape: &[u64]) -> Result<Vec<usize>, String> {
    let fits = |product: u64, &d: &u64| product.checked_mul(d).filter(|&p| p < 1 << 56);
    if shape.is_empty()
        || shape.len() > MAX_DIMENSIONS
        || shape.contains(&0)
        || shape.iter().try_fold(1, fits).is_none()
    {
        return Err(format!("impossible shape {shape:?}"));
    }
    shape
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| format!("impossible shape {shape:?}")))
        .collect()
}
