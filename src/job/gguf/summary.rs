//! A plan in figures: by type, by layer, by what layers do.

use indexmap::IndexMap;

use super::mix;
use super::model::GgufModel;
use super::plan::QuantizePlan;
use super::report::{LayerSummary, ProtectedReport, SuperWeightReport};
use super::request::QuantizeRequest;
use crate::arch::names;
use crate::arch::role::{self, Role};
use crate::codec::StoredType;

/// How much of a model has a type.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TypeCount {
    /// ggml's name.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of weights.
    pub weights: u64,
    /// Bytes in the file.
    pub bytes: u64,
}

/// Matrices that do the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// `Attention layers`, `MLP layers`, `Embeddings and output`.
    pub name: &'static str,
    /// Blocks that have some, or matrices outside of the blocks.
    pub layers: usize,
    /// Bits that their weights take on the mean.
    pub bits_per_weight: f64,
    /// Their types, most weights first.
    pub types: String,
}

impl QuantizePlan {
    /// Which types how many tensors, weights and bytes have, the largest part first.
    #[must_use]
    pub fn histogram(&self, model: &GgufModel) -> Vec<TypeCount> {
        let mut counts: IndexMap<StoredType, TypeCount> = IndexMap::new();
        let bytes = self.layout.tensor_bytes();
        for ((tensor, work), bytes) in model.tensors.iter().zip(&self.tensors).zip(bytes) {
            let count = counts.entry(work.kind).or_insert_with(|| TypeCount {
                kind: work.kind.name(),
                tensors: 0,
                weights: 0,
                bytes: 0,
            });
            count.tensors += 1;
            count.weights += tensor.elements() as u64;
            count.bytes += bytes;
        }
        let mut counts: Vec<TypeCount> = counts.into_values().collect();
        counts.sort_by_key(|count| std::cmp::Reverse(count.bytes));
        counts
    }

    /// The name of the profile that the user asked for.
    #[must_use]
    pub fn profile<'a>(&self, request: &'a QuantizeRequest) -> Option<&'a str> {
        let dynamic = request.dynamic.as_ref().filter(|dynamic| dynamic.named)?;
        Some(&dynamic.profile.profile_name)
    }

    /// Each block and each matrix outside of the blocks, in the order of the file; norms and other
    /// vectors count where they belong.
    #[must_use]
    pub fn layers(&self, model: &GgufModel) -> Vec<LayerSummary> {
        let mut layers: IndexMap<String, (u64, u64, bool)> = IndexMap::new();
        let bytes = self.layout.tensor_bytes();
        for ((tensor, work), bytes) in model.tensors.iter().zip(&self.tensors).zip(bytes) {
            let name = if let Some(block) = role::layer(&tensor.name) {
                format!("model.layers.{block}")
            } else {
                let name = names::to_hugging_face(&tensor.name);
                let name = name.unwrap_or_else(|| tensor.name.clone());
                name.strip_suffix(".weight").unwrap_or(&name).to_owned()
            };
            let layer = layers.entry(name).or_default();
            layer.0 += tensor.elements() as u64;
            layer.1 += bytes;
            layer.2 |= work.decision.reason == mix::Reason::Protected
                || self.protection.as_ref().is_some_and(|p| p.of(&tensor.name).is_some());
        }
        layers
            .into_iter()
            .map(|(layer_name, (weights, bytes, is_protected))| LayerSummary {
                layer_name,
                bit_width: bytes as f64 * 8.0 / weights.max(1) as f64,
                parameter_count: weights,
                is_protected,
            })
            .collect()
    }

    /// What attention, MLP and the matrices outside of the blocks get.
    #[must_use]
    pub fn groups(&self, model: &GgufModel) -> Vec<Group> {
        let group = |name: &str, shape: &[usize]| {
            role::may_be_quantized(name, shape).then(|| match role::role(name) {
                Role::AttentionQuery
                | Role::AttentionKey
                | Role::AttentionValue
                | Role::AttentionOutput => "Attention layers",
                Role::FeedForwardUp | Role::FeedForwardGate | Role::FeedForwardDown => "MLP layers",
                Role::Embedding | Role::Output => "Embeddings and output",
                Role::Other => "Other layers",
            })
        };
        let bytes = self.layout.tensor_bytes();
        let mut found = Vec::new();
        for name in ["Attention layers", "MLP layers", "Other layers", "Embeddings and output"] {
            let mut places: Vec<String> = Vec::new();
            let mut types: IndexMap<StoredType, u64> = IndexMap::new();
            let (mut weights, mut taken) = (0u64, 0u64);
            for ((tensor, work), bytes) in model.tensors.iter().zip(&self.tensors).zip(bytes) {
                if group(&tensor.name, &tensor.shape) != Some(name) {
                    continue;
                }
                let place = role::layer(&tensor.name)
                    .map_or_else(|| tensor.name.clone(), |block| block.to_string());
                if !places.contains(&place) {
                    places.push(place);
                }
                *types.entry(work.kind).or_default() += tensor.elements() as u64;
                weights += tensor.elements() as u64;
                taken += bytes;
            }
            if weights == 0 {
                continue;
            }
            types.sort_by(|_, a, _, b| b.cmp(a));
            let types: Vec<&str> = types.keys().map(|kind| kind.name()).collect();
            found.push(Group {
                name,
                layers: places.len(),
                bits_per_weight: taken as f64 * 8.0 / weights as f64,
                types: types.join(", "),
            });
        }
        found
    }

    /// The types of protected tensors, as a list.
    #[must_use]
    pub fn protected_types(&self, model: &GgufModel) -> String {
        let mut types: Vec<&str> = Vec::new();
        for tensor in self.super_weights(model).into_iter().flat_map(|found| found.tensors) {
            if !types.contains(&tensor.kind) {
                types.push(tensor.kind);
            }
        }
        types.join("/")
    }

    /// What was done about super weights, if anything.
    #[must_use]
    pub fn super_weights(&self, model: &GgufModel) -> Option<SuperWeightReport> {
        let protection = self.protection.as_ref()?;
        let tensors = model.tensors.iter().zip(&self.tensors).filter_map(|(tensor, work)| {
            let protected = protection.of(&tensor.name)?;
            Some(ProtectedReport {
                name: tensor.name.clone(),
                kind: work.kind.name(),
                protected: protected.positions.len() as u64,
                output_share: protected.share,
            })
        });
        Some(SuperWeightReport {
            coverage: protection.coverage,
            found: protection.found,
            total_protected: protection.total(),
            mask: protection.mask.clone(),
            tensors: tensors.collect(),
        })
    }
}
