//! Decides what a compressed model will consist of, from shapes alone: the rank of every linear
//! layer, the type of everything else, and with that the size of the result.

use std::collections::BTreeSet;

use super::budget::FactorShape;
use super::scale_choice::ScaleChoice;
use crate::arch::ModelConfig;
use crate::arch::tensors::{self, linear_of_block};
use crate::codec::StoredType;
use crate::model::LocalModel;
use crate::weight::ScaleType;
use crate::{Error, Result};

mod allocate;
mod losses;

pub use losses::{Loss, Losses};

/// A tensor of the model to compress, as its file's header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// Hugging Face name (`model.layers.0.mlp.up_proj.weight`).
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Bytes in the source.
    pub stored_bytes: u64,
}

impl TensorHeader {
    /// Number of values.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }
}

/// The headers of an opened model.
#[must_use]
pub fn headers_of(model: &LocalModel) -> Vec<TensorHeader> {
    let header = |(name, weight): (&String, &crate::weight::Weight)| TensorHeader {
        name: name.clone(),
        shape: weight.shape(),
        stored_bytes: weight.stored_bytes() as u64,
    };
    model.weights.iter().map(header).collect()
}

/// The headers of a model of a given shape with 16 bits per parameter, for planning without
/// weights.
#[must_use]
pub fn headers_from_config(config: &ModelConfig) -> Vec<TensorHeader> {
    tensors::of_model(config)
        .into_iter()
        .map(|tensor| {
            let mut header =
                TensorHeader { name: tensor.name, shape: tensor.shape, stored_bytes: 0 };
            header.stored_bytes = 2 * header.elements();
            header
        })
        .collect()
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanRequest {
    /// Bits per factorized weight, scales counted.
    pub target_bpw: f64,
    /// Smallest and largest target that is accepted.
    pub bounds: (f64, f64),
    /// Rank of every layer, instead of ranks that meet the target.
    pub rank: Option<usize>,
    /// Two paths in every layer.
    pub residual: bool,
    /// A scale for each latent dimension.
    pub middle_scale: bool,
    /// How scales are stored.
    pub scales: ScaleChoice,
    /// Type of the embedding and of the head.
    pub embedding_type: StoredType,
}

impl Default for PlanRequest {
    fn default() -> Self {
        Self {
            target_bpw: 0.5,
            bounds: (0.1, 2.0),
            rank: None,
            residual: false,
            middle_scale: false,
            scales: ScaleChoice::Auto,
            embedding_type: StoredType::Q8_0,
        }
    }
}

impl PlanRequest {
    /// Refuses what no model can have.
    ///
    /// # Errors
    /// [`Error::BpwRange`] for a target outside the bounds, [`Error::InvalidArgument`] for one that is
    /// no number and for a rank of 0.
    pub fn check(&self) -> Result<()> {
        if self.rank == Some(0) {
            return Err(Error::InvalidArgument("--rank must be at least 1".into()));
        }
        check_target(self)
    }
}

/// A linear layer that will be factorized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlan {
    /// Name without `.weight` (`model.layers.0.mlp.up_proj`).
    pub name: String,
    /// Transformer block.
    pub block: usize,
    /// Shape of weight and factors.
    pub shape: FactorShape,
}

/// A tensor that will be stored outside the factorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPlan {
    /// Hugging Face name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Type that it will have.
    pub dtype: StoredType,
    /// The type that was asked for, where rows of this width do not fill its blocks.
    pub instead_of: Option<StoredType>,
    /// Bytes that it will take.
    pub bytes: u64,
}

/// A tensor of the compressed model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedTensor {
    /// In factors; the tensor's name is the layer's with `.weight`.
    Factorized(LayerPlan),
    /// As values.
    Stored(StoredPlan),
}

impl PlannedTensor {
    /// The tensor's Hugging Face name.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Factorized(layer) => format!("{}.weight", layer.name),
            Self::Stored(stored) => stored.name.clone(),
        }
    }
}

/// The whole plan, tensors in the order of the source.
#[derive(Debug, Clone, PartialEq)]
pub struct CompressionPlan {
    /// What was asked for.
    pub target_bpw: f64,
    /// All tensors.
    pub tensors: Vec<PlannedTensor>,
    /// Parameters of the model; a tied head counts once.
    pub parameters: u64,
    /// Bytes of the source's tensors.
    pub original_bytes: u64,
}

/// Ranks and rates over all factorized layers.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSummary {
    /// Transformer blocks.
    pub blocks: usize,
    /// Factorized layers.
    pub layers: usize,
    /// Mean rank of the layers.
    pub average_rank: f64,
    /// Smallest rank and the first layer that has it.
    pub min_rank: (usize, String),
    /// Largest rank and the first layer that has it.
    pub max_rank: (usize, String),
    /// Lowest bits per weight of a layer.
    pub min_bpw: f64,
    /// Highest bits per weight of a layer.
    pub max_bpw: f64,
}

impl CompressionPlan {
    /// The factorized layers, in order.
    pub fn layers(&self) -> impl Iterator<Item = &LayerPlan> {
        self.tensors.iter().filter_map(|tensor| match tensor {
            PlannedTensor::Factorized(layer) => Some(layer),
            PlannedTensor::Stored(_) => None,
        })
    }

    /// The tensors outside the factorization, in order.
    pub fn stored(&self) -> impl Iterator<Item = &StoredPlan> {
        self.tensors.iter().filter_map(|tensor| match tensor {
            PlannedTensor::Stored(stored) => Some(stored),
            PlannedTensor::Factorized(_) => None,
        })
    }

    /// Weights of the factorized layers.
    #[must_use]
    pub fn factorized_weights(&self) -> u64 {
        self.layers().map(|layer| layer.shape.weights()).sum()
    }

    /// Bytes of all factors and their scales.
    #[must_use]
    pub fn factor_bytes(&self) -> u64 {
        self.layers().map(|layer| layer.shape.bytes()).sum()
    }

    /// Bytes of embedding and head.
    #[must_use]
    pub fn embedding_bytes(&self) -> u64 {
        self.stored().filter(|t| is_embedding(&t.name)).map(|t| t.bytes).sum()
    }

    /// Bytes of norms and biases.
    #[must_use]
    pub fn other_bytes(&self) -> u64 {
        self.stored().filter(|t| !is_embedding(&t.name)).map(|t| t.bytes).sum()
    }

    /// Bytes of all tensors, without alignment and without what the file holds besides.
    #[must_use]
    pub fn tensor_bytes(&self) -> u64 {
        self.factor_bytes() + self.embedding_bytes() + self.other_bytes()
    }

    /// Bits per factorized weight, scales counted.
    #[must_use]
    pub fn achieved_bpw(&self) -> f64 {
        8.0 * self.factor_bytes() as f64 / self.factorized_weights() as f64
    }

    /// Bits per parameter of a file of `file_bytes`.
    #[must_use]
    pub fn file_bits_per_parameter(&self, file_bytes: u64) -> f64 {
        8.0 * file_bytes as f64 / self.parameters as f64
    }

    /// How often a file of `file_bytes` fits into the source's tensors.
    #[must_use]
    pub fn compression_ratio(&self, file_bytes: u64) -> f64 {
        self.original_bytes as f64 / file_bytes as f64
    }

    /// How the scales of the factorized layers are stored: `f16`, `log8` or `f16+log8`.
    #[must_use]
    pub fn scales(&self) -> &'static str {
        let any = |scales| self.layers().any(|layer| layer.shape.scales == scales);
        match (any(ScaleType::F16), any(ScaleType::Log8)) {
            (true, true) => "f16+log8",
            (false, true) => ScaleType::Log8.name(),
            (_, false) => ScaleType::F16.name(),
        }
    }

    /// Stored tensors that did not get the type that was asked for, with the first one's name:
    /// `(name, asked for, got)`.
    #[must_use]
    pub fn fallback(&self) -> Option<(&str, StoredType, StoredType)> {
        self.stored().find_map(|t| Some((t.name.as_str(), t.instead_of?, t.dtype)))
    }

    /// Ranks and rates, over layers of the same name with two paths by the rank of one path.
    #[must_use]
    pub fn summary(&self) -> LayerSummary {
        let ranks: Vec<_> = self.layers().map(|l| (l.shape.rank, &l.name)).collect();
        let named = |found: Option<&(usize, &String)>| {
            found.map_or((0, String::new()), |(rank, name)| (*rank, (*name).clone()))
        };
        let smallest = ranks.iter().min_by_key(|(rank, _)| *rank);
        let largest = ranks.iter().rev().max_by_key(|(rank, _)| *rank);
        let rates = || self.layers().map(|l| l.shape.bits_per_weight());
        LayerSummary {
            blocks: self.layers().map(|l| l.block).collect::<BTreeSet<_>>().len(),
            layers: ranks.len(),
            average_rank: ranks.iter().map(|(rank, _)| *rank as f64).sum::<f64>()
                / ranks.len().max(1) as f64,
            min_rank: named(smallest),
            max_rank: named(largest),
            min_bpw: rates().fold(f64::INFINITY, f64::min),
            max_bpw: rates().fold(0.0, f64::max),
        }
    }
}

/// Plans the compression of a model of a given shape whose parameters take 16 bits.
///
/// # Errors
/// As [`plan`].
pub fn plan_config(config: &ModelConfig, request: &PlanRequest) -> Result<CompressionPlan> {
    plan(&headers_from_config(config), request)
}

/// Plans the compression of a model with these tensors.
///
/// Without an explicit rank all layers get the same bits per weight as nearly as ranks in steps
/// of 8 allow, and the total never exceeds the target: what remains is spent layer by layer,
/// poorest first. A layer whose scales and smallest rank exceed the target gets that rank, at the
/// expense of the others. A layer that cannot use its share with one path of rank
/// `min(rows, cols)` gets two paths.
///
/// # Errors
/// [`Error::InvalidArgument`] for a target that is not a number or a rank of 0,
/// [`Error::BpwRange`] for a target outside the bounds, [`Error::RankSelection`] for a target that
/// no ranks meet or an explicit rank that a layer cannot have, [`Error::Unsupported`] for a model
/// without linear layers.
pub fn plan(headers: &[TensorHeader], request: &PlanRequest) -> Result<CompressionPlan> {
    plan_with(headers, request, None)
}

/// The same with more bits per weight where the model loses more: ranks are those at which the sum
/// of the expected losses of all layers is smallest at the same total, with every layer between
/// half the target and 1.6 times the target. An explicit rank is that of every layer here too.
///
/// # Errors
/// As [`plan`], and [`Error::General`] for a layer without a loss.
pub fn plan_by_loss(
    headers: &[TensorHeader],
    request: &PlanRequest,
    losses: &Losses,
) -> Result<CompressionPlan> {
    plan_with(headers, request, Some(losses))
}

fn plan_with(
    headers: &[TensorHeader],
    request: &PlanRequest,
    losses: Option<&Losses>,
) -> Result<CompressionPlan> {
    check_target(request)?;
    let mut layers = Vec::new();
    for header in headers {
        if let Some((name, block)) = factorizable(header) {
            let mut shape = FactorShape {
                rows: header.shape[0],
                cols: header.shape[1],
                rank: 0,
                paths: if request.residual { 2 } else { 1 },
                middle_scale: request.middle_scale,
                scales: ScaleType::F16,
            };
            shape.scales = request.scales.of(&shape);
            layers.push(LayerPlan { name: name.to_owned(), block, shape });
        }
    }
    if layers.is_empty() {
        return Err(Error::Unsupported {
            message: "the model has no linear layers to factorize".into(),
            suggestion: "Give a transformer model with its linear layers as matrices".into(),
        });
    }
    match (request.rank, losses) {
        (Some(rank), _) => fixed_rank(&mut layers, rank)?,
        (None, None) => allocate::evenly(&mut layers, request)?,
        (None, Some(losses)) => allocate::by_loss(&mut layers, request, losses)?,
    }
    let mut layers = layers.into_iter();
    let tensors = headers
        .iter()
        .map(|header| {
            Ok(match factorizable(header).and_then(|_| layers.next()) {
                Some(layer) => PlannedTensor::Factorized(layer),
                None => PlannedTensor::Stored(stored(header, request.embedding_type)?),
            })
        })
        .collect::<Result<_>>()?;
    Ok(CompressionPlan {
        target_bpw: request.target_bpw,
        tensors,
        parameters: headers.iter().map(TensorHeader::elements).sum(),
        original_bytes: headers.iter().map(|header| header.stored_bytes).sum(),
    })
}

fn check_target(request: &PlanRequest) -> Result<()> {
    let (target, range) = (request.target_bpw, request.bounds);
    if target.is_nan() {
        return Err(Error::InvalidArgument("--target-bpw is not a number".into()));
    }
    if target < range.0 {
        return Err(Error::BpwRange { target, below: true, bound: range.0, range });
    }
    if target > range.1 {
        return Err(Error::BpwRange { target, below: false, bound: range.1, range });
    }
    Ok(())
}

/// Name without `.weight` and block of a linear layer of a block.
fn factorizable(header: &TensorHeader) -> Option<(&str, usize)> {
    let (block, _) = linear_of_block(&header.name)?;
    let name = header.name.strip_suffix(".weight")?;
    let fits = header.shape.len() == 2 && header.shape.iter().all(|&d| d > 0);
    fits.then_some((name, block))
}

fn is_embedding(name: &str) -> bool {
    matches!(name, "model.embed_tokens.weight" | "lm_head.weight")
}

/// Embedding and head in the type asked for, or what llama.cpp takes instead where rows of this
/// width do not fill its blocks ([`StoredType::fallback`]); everything else, which is
/// norms and biases, in f32.
fn stored(header: &TensorHeader, embedding_type: StoredType) -> Result<StoredPlan> {
    let wanted = if is_embedding(&header.name) { embedding_type } else { StoredType::F32 };
    let width = header.shape.last().copied().unwrap_or(0);
    let dtype = wanted.fallback(width);
    let bytes = dtype.byte_length(&header.shape).ok_or_else(|| {
        Error::General(format!("{} of shape {:?} is too large", header.name, header.shape))
    })?;
    Ok(StoredPlan {
        name: header.name.clone(),
        shape: header.shape.clone(),
        dtype,
        instead_of: (dtype != wanted).then_some(wanted),
        bytes: bytes as u64,
    })
}

/// The same rank everywhere, if every layer can have it.
fn fixed_rank(layers: &mut [LayerPlan], rank: usize) -> Result<()> {
    if rank == 0 {
        return Err(Error::InvalidArgument("--rank must be at least 1".into()));
    }
    let smaller = |layer: &LayerPlan| layer.shape.rows.min(layer.shape.cols);
    if let Some(layer) = layers.iter().find(|layer| rank > smaller(layer)) {
        let most = layers.iter().map(smaller).min().unwrap_or(0);
        return Err(Error::RankSelection {
            message: format!(
                "rank {rank} exceeds the smaller side of {} ({} × {})",
                layer.name, layer.shape.rows, layer.shape.cols
            ),
            suggestion: format!("Use --rank {most} or less, or leave it out for automatic ranks"),
        });
    }
    for layer in layers {
        layer.shape.rank = rank;
    }
    Ok(())
}
