//! What `compress` is asked for.

use std::path::PathBuf;

use crate::job::littlebit::plan::PlanRequest;
use crate::job::littlebit::solve::{Init, SolverConfig};
use crate::job::littlebit::tuning::recipe::RankAllocation;
use crate::job::littlebit::tuning::{Effort, Recipe};
use crate::text::TextOptions;

/// How errors are weighted while solving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weighting {
    /// By the mean square of each input on the calibration text.
    Activation,
    /// Not at all.
    None,
}

impl Weighting {
    /// Name in reports, fingerprints and the file.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Activation => "activation",
            Self::None => "none",
        }
    }
}

/// What happens to finished matrices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Checkpoints {
    /// They stay in memory.
    Off,
    /// They are saved under this directory; a run with the same settings is continued.
    Under(PathBuf),
    /// They must be in this directory already.
    Resume(PathBuf),
}

/// Everything that `compress` needs to know.
#[derive(Debug, Clone)]
pub(crate) struct CompressRequest {
    /// Bits, ranks, types.
    pub plan: PlanRequest,
    /// Solver and its settings.
    pub solver: SolverConfig,
    /// How errors are weighted.
    pub weighting: Weighting,
    /// Calibration and evaluation text.
    pub text: TextOptions,
    /// The effort that the recipe started from, for the record.
    pub effort: Effort,
    /// How quality is recovered after factorization, if at all.
    pub recipe: Option<Recipe>,
    /// Calibration windows, without a recipe.
    pub calibration_samples: usize,
    /// Tokens to score, 0 for all.
    pub eval_tokens: usize,
    /// Highest rise of perplexity, percent; the target is raised until it is met.
    pub quality_threshold: Option<f64>,
    /// Rise that passes where none is demanded, percent.
    pub warn_threshold: f64,
    /// Most targets tried for `quality_threshold`.
    pub search_iterations: usize,
    /// Do not measure the result.
    pub skip_validation: bool,
    /// The file to write.
    pub output: PathBuf,
    /// Where finished work is kept.
    pub checkpoints: Checkpoints,
    /// Most memory to use, bytes.
    pub max_memory: Option<u64>,
    /// The command that continues this run, if it can be continued.
    pub resume_command: Option<String>,
}

impl CompressRequest {
    /// Whether ranks go by what the model loses by each matrix: a recipe says so, and no rank was
    /// given.
    #[must_use]
    pub(crate) fn goes_by_loss(&self) -> bool {
        let wanted = |r: &Recipe| r.blocks.rank_allocation == RankAllocation::Sensitivity;
        self.plan.rank.is_none() && self.recipe.as_ref().is_some_and(wanted)
    }

    /// Iterations of the chosen solver.
    #[must_use]
    pub(crate) fn solver_iterations(&self) -> usize {
        match self.solver.init {
            Init::Admm => self.solver.iterations,
            Init::Itq => self.solver.itq_iterations,
            Init::DualSvid => 0,
        }
    }
}
