//! Packed directories as GGUF files.

use indexmap::IndexMap;

use super::Written;
use super::plan::{Plan, Request, Target, is_linear};
use crate::arch::names::to_hugging_face;
use crate::base::progress::Progress;
use crate::codec::StoredType;
use crate::codec::affine::gptq::Version;
use crate::job::checkpoints::Checkpoints;
use crate::job::gguf::mix::Overrides;
use crate::job::gguf::{
    GgufModel, Goal, Level, QuantizePlan, QuantizeRequest, SourceOptions, execute, integers,
    plan as gguf_plan,
};
use crate::model::LocalModel;
use crate::{Error, Result};

/// The source as a GGUF file would hold it, and the types of its tensors.
#[derive(Debug)]
pub(crate) struct GgufPlan {
    model: GgufModel,
    level: Level,
    overrides: Overrides,
    /// Whether types were chosen so that values are kept, instead of by a level.
    keeping: bool,
}

impl GgufPlan {
    /// The level; of types that keep values the one that most layers have.
    pub(super) fn level_name(&self) -> String {
        self.level.name().to_owned()
    }

    /// Bytes of the file and what each tensor becomes.
    fn planned(
        &self,
        request: &Request,
        progress: &dyn Progress,
    ) -> Result<(QuantizePlan, QuantizeRequest)> {
        let request = QuantizeRequest {
            goal: Goal::Level(self.level),
            dynamic: None,
            protection_coverage: None,
            overrides: self.overrides.clone(),
            importance: None,
            allow_requantize: true,
            provenance: request.provenance,
            output: request.output.clone(),
            split_max: None,
            checkpoints: Checkpoints::Off,
            resume_command: None,
        };
        let plan = gguf_plan::plan(&self.model, &request, progress)?;
        Ok((plan, request))
    }
}

/// Chooses types: those of a level, or for each layer the smallest one that keeps its values.
pub(super) fn plan(
    model: &LocalModel,
    request: &Request,
    from: &'static str,
    progress: &dyn Progress,
) -> Result<Plan> {
    if request.group.is_some() {
        return Err(Error::InvalidArgument(
            "--group-size does nothing for gguf: its types have blocks of their own".into(),
        ));
    }
    let level = request.level.as_deref().map(Level::parse).transpose()?;
    let options = SourceOptions { provenance: request.provenance, ..SourceOptions::default() };
    let mut gguf = crate::job::gguf::open(&model.path, &options)?;
    gguf.name.clone_from(&model.name);
    let mut target = match level {
        Some(level) => {
            GgufPlan { model: gguf, level, overrides: Overrides::default(), keeping: false }
        }
        None => keeping(gguf, progress)?,
    };
    let (types, _) = target.planned(request, progress)?;
    let mut layers = IndexMap::new();
    for (tensor, work) in target.model.tensors.iter().zip(&types.tensors) {
        let name = to_hugging_face(&tensor.name).unwrap_or_else(|| tensor.name.clone());
        if let Some(packed) = tensor.packed().filter(|_| is_linear(&name)) {
            layers.insert(name, integers::holds(packed, work.kind));
        }
    }
    if gguf_plan::lacking(&types).is_some() {
        return Err(Error::ImatrixRequired(format!(
            "{} needs an importance matrix, which `convert` does not take: `quantize --imatrix` does",
            target.level_name()
        )));
    }
    // What was said when the source was opened is not said again.
    target.model.warnings.retain(|warning| !model.warnings.contains(warning));
    let warnings = target.model.warnings.clone();
    target.model.warnings.clear();
    Ok(Plan {
        target: Target::Gguf(Box::new(target)),
        from,
        layers,
        symmetric: true,
        version: Version::V1,
        warnings,
    })
}

/// For each packed layer the smallest type that keeps its values; Q8_0 where none does. Everything
/// else stays as it is.
fn keeping(model: GgufModel, progress: &dyn Progress) -> Result<GgufPlan> {
    let packed = model.tensors.iter().filter(|tensor| tensor.packed().is_some()).count();
    progress.start("Looking for grids", packed as u64, "layers");
    let mut kinds: IndexMap<&str, StoredType> = IndexMap::new();
    for tensor in &model.tensors {
        if let Some(packed) = tensor.packed() {
            let kind = integers::exact_type(packed).unwrap_or(StoredType::Q8_0);
            kinds.insert(&tensor.name, kind);
            tensor.release();
            progress.advance(1);
        }
        if progress.stop_requested() {
            progress.finish();
            return Err(Error::Interrupted { resume: None });
        }
    }
    progress.finish();
    let count = |kind: StoredType| kinds.values().filter(|&&other| other == kind).count();
    let candidates = [Level::Q4_0, Level::Q5_0, Level::Q8_0];
    let of_level = |level: Level| candidates_type(level);
    let level =
        candidates.into_iter().max_by_key(|&level| count(of_level(level))).unwrap_or(Level::Q8_0);
    let mut overrides = Overrides::default();
    overrides.pure = true;
    for (name, kind) in &kinds {
        if *kind != of_level(level) {
            let name = name.replace('.', r"\.");
            overrides.add(&format!("^{name}$={}", kind.name()))?;
        }
    }
    let own = |name: &str| {
        let tensor = model.tensor(name).filter(|tensor| tensor.packed().is_none());
        tensor.and_then(|tensor| tensor.source_type.for_weights())
    };
    overrides.embedding = own("token_embd.weight");
    overrides.output = own("output.weight").or(overrides.embedding);
    Ok(GgufPlan { model, level, overrides, keeping: true })
}

/// The type of the levels that keep values.
fn candidates_type(level: Level) -> StoredType {
    match level {
        Level::Q4_0 => StoredType::Q4_0,
        Level::Q5_0 => StoredType::Q5_0,
        _ => StoredType::Q8_0,
    }
}

/// Writes the file.
pub(super) fn write(
    model: &LocalModel,
    plan: &Plan,
    request: &Request,
    progress: &dyn Progress,
) -> Result<Written> {
    let Target::Gguf(target) = &plan.target else {
        return Err(Error::General("not a plan of a GGUF file".into()));
    };
    let (types, request) = target.planned(request, progress)?;
    let source = std::slice::from_ref(&model.path);
    execute::refuse(&target.model, &types, source, &request, progress)?;
    let outcome = execute::execute(&target.model, &types, &request, progress)?;
    let path = outcome.files.first().map_or(request.output, |file| file.path.clone());
    progress.debug(if target.keeping { "types keep values" } else { "types of a level" });
    Ok(Written { path, files: outcome.files })
}
