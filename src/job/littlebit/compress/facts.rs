//! What identifies a run: the weights it starts from, the text it reads, the settings it uses.

use sha2::{Digest, Sha256};

use super::TOOL;
use super::request::{CompressRequest, Weighting};
use crate::Result;
use crate::base::progress::Progress;
use crate::device::Backend;
use crate::files::checkpoint::Fingerprint;
use crate::files::littlebit::Calibration;
use crate::model::LocalModel;
use crate::model::identity::{KIND, identity};
use crate::text::TextSource;

/// What is recorded in the file about source and text.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// `files-sha256:…`, see [`identity`].
    pub(super) identity: String,
    /// Name and SHA-256 of the calibration text, if there is a calibration.
    pub(super) calibration: Option<Calibration>,
}

impl Facts {
    /// Stand-ins of the same length, for a plan that reads neither weights nor text.
    pub(super) fn planned(request: &CompressRequest) -> Self {
        let zeros = "0".repeat(64);
        Self {
            identity: format!("{KIND}:{zeros}"),
            calibration: reads_text(request).then_some(Calibration { name: None, sha256: zeros }),
        }
    }

    pub(super) fn measured(
        model: &LocalModel,
        request: &CompressRequest,
        text: &TextSource,
        progress: &dyn Progress,
    ) -> Result<Self> {
        Ok(Self {
            identity: identity(&model.path, progress)?,
            calibration: reads_text(request)
                .then(|| Calibration { name: None, sha256: text_hash(&text.calibration) }),
        })
    }

    /// Everything that decides the bits of the result, and what the store is asked for besides. Each
    /// knob of the recipe is a field of its own, so that a difference is named.
    pub(super) fn fingerprint(
        &self,
        model: &LocalModel,
        request: &CompressRequest,
        backend: &Backend,
        text: &TextSource,
    ) -> Result<Fingerprint> {
        let (plan, solver) = (&request.plan, &request.solver);
        let threshold = request.quality_threshold;
        let fingerprint = Fingerprint::new(&model.name)
            .with("tool", TOOL)
            .with("command", "littlebit compress")
            .with("source", &self.identity)
            .with("target bpw", plan.target_bpw)
            .with("rank", plan.rank.map_or("auto".into(), |r| r.to_string()))
            .with("paths", if plan.residual { 2 } else { 1 })
            .with("latent scale", plan.middle_scale)
            .with("scales", plan.scales.name())
            .with("embedding type", plan.embedding_type.name())
            .with("solver", solver.init.name())
            .with("iterations", request.solver_iterations())
            .with("precision", solver.precision.name())
            .with("seed", solver.seed)
            .with("weighting", request.weighting.name())
            .with("calibration text", &text.name)
            .with("calibration text sha256", text_hash(&text.calibration))
            .with("calibration samples", request.calibration_samples)
            .with("quality threshold", threshold.map_or("none".into(), |t| t.to_string()))
            .with("device", backend.describe());
        let Some(recipe) = &request.recipe else {
            return Ok(fingerprint.with("recovery", "off"));
        };
        let mut fingerprint = fingerprint.with("recovery", "on");
        for (table, entries) in recipe.table()? {
            for (key, value) in entries.as_table().into_iter().flatten() {
                fingerprint = fingerprint.with(format!("recipe {table}.{key}"), value);
            }
        }
        Ok(fingerprint)
    }
}

/// Whether the calibration text has a part in the result.
fn reads_text(request: &CompressRequest) -> bool {
    request.weighting == Weighting::Activation || request.recipe.is_some()
}

/// SHA-256 of the documents, each preceded by its length.
fn text_hash(documents: &[String]) -> String {
    let mut hash = Sha256::new();
    for document in documents {
        hash.update((document.len() as u64).to_le_bytes());
        hash.update(document);
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
