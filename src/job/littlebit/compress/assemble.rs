//! From finished units to a verified file under its final name.

use std::path::Path;

use super::facts::Facts;
use super::request::CompressRequest;
use super::work::{Run, unit_id};
use super::{TOOL, pack};
use crate::base::SharedBytes;
use crate::codec::{StoredType, ggml};
use crate::files::atomic::AtomicFile;
use crate::files::littlebit::{
    self, About, CONFIG_FILE, Description, EFFORT, Layout, PathPlan, RECIPE, Source,
    TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, TensorKind, TensorPlan, TextFile, Writer,
};
use crate::job::littlebit::plan::{CompressionPlan, PlannedTensor};
use crate::job::littlebit::report::LayerReport;
use crate::model::LocalModel;
use crate::model::littlebit::verify;
use crate::weight::{FactorizedLinear, StoredTensor, Weight};
use crate::{Error, Result};

/// Where every byte of the file will lie. Everything but the values of the tensors and two
/// checksums (of fixed length) is known before the work begins.
pub(super) fn layout(
    model: &LocalModel,
    plan: &CompressionPlan,
    request: &CompressRequest,
    facts: &Facts,
) -> Result<Layout> {
    Layout::new(&description(model, plan, request, facts)?)
}

pub(super) fn description(
    model: &LocalModel,
    plan: &CompressionPlan,
    request: &CompressRequest,
    facts: &Facts,
) -> Result<Description> {
    let mut files = vec![TextFile { name: CONFIG_FILE.into(), text: model.config_json.clone() }];
    let texts = [
        (TOKENIZER_FILE, &model.tokenizer_json),
        (TOKENIZER_CONFIG_FILE, &model.tokenizer_config_json),
    ];
    for (name, text) in texts {
        files.extend(text.as_ref().map(|text| TextFile { name: name.into(), text: text.clone() }));
    }
    let tensors = plan
        .tensors
        .iter()
        .map(|tensor| TensorPlan {
            name: tensor.name(),
            kind: match tensor {
                PlannedTensor::Factorized(layer) => {
                    let shape = &layer.shape;
                    let path = PathPlan {
                        rank: shape.rank,
                        latent_scale: shape.middle_scale,
                        scale_type: shape.scales,
                    };
                    TensorKind::Factorized {
                        out_features: shape.rows,
                        in_features: shape.cols,
                        paths: vec![path; shape.paths],
                    }
                }
                PlannedTensor::Stored(stored) => {
                    TensorKind::Stored { dtype: stored.dtype, shape: stored.shape.clone() }
                }
            },
        })
        .collect();
    let solver = &request.solver;
    let mut settings = littlebit::Settings::new();
    settings.insert("init".into(), solver.init.name().into());
    settings.insert("paths".into(), (1 + usize::from(request.plan.residual)).into());
    settings.insert("latent_scale".into(), request.plan.middle_scale.into());
    settings.insert("scales".into(), plan.scales().into());
    settings.insert("iterations".into(), request.solver_iterations().into());
    settings.insert("seed".into(), solver.seed.into());
    settings.insert("precision".into(), solver.precision.name().into());
    settings.insert("weighting".into(), request.weighting.name().into());
    settings.insert("embedding_type".into(), request.plan.embedding_type.name().into());
    if facts.calibration.is_some() {
        settings.insert("calibration_samples".into(), request.calibration_samples.into());
    }
    if let Some(rank) = request.plan.rank {
        settings.insert("rank".into(), rank.into());
    }
    settings.insert(EFFORT.into(), request.effort.name().into());
    if let Some(recipe) = &request.recipe {
        settings.insert(RECIPE.into(), recipe.to_toml()?.into());
    }
    Ok(Description {
        about: About {
            tool: TOOL.into(),
            source: Source {
                name: Some(model.name.clone()),
                format: model.format.name().into(),
                identity: Some(facts.identity.clone()),
            },
            command: None,
            target_bpw: plan.target_bpw,
            original_size_bytes: model.weight_bytes(),
            settings,
            calibration: facts.calibration.clone(),
        },
        files,
        tensors,
    })
}

/// Writes the file from the units, reads it back, checks every checksum, and gives its size.
pub(super) fn write(
    run: &Run<'_>,
    plan: &CompressionPlan,
    layers: &[LayerReport],
    path: &Path,
) -> Result<u64> {
    let description = description(run.model, plan, run.request, run.facts)?;
    run.progress.start("Writing", plan.tensors.len() as u64, "tensors");
    let mut writer = Writer::new(AtomicFile::create(path)?, path, &description)?;
    let mut reports = layers.iter();
    for tensor in &plan.tensors {
        match tensor {
            PlannedTensor::Factorized(layer) => {
                let unit = run.store.load(&unit_id(layer))?.ok_or_else(|| {
                    Error::Checkpoint(format!("the checkpoint of {} disappeared", layer.name))
                })?;
                let factors = pack::factors_of(&unit, layer)?;
                let (plain, weighted) =
                    reports.next().map_or((None, None), |r| (r.relative_error, r.weighted_error));
                if let Some(warning) = vanished(run.model, &tensor.name(), &factors) {
                    run.progress.warn(&warning);
                }
                writer.factorized(&tensor.name(), &factors, plain, weighted)?;
            }
            PlannedTensor::Stored(stored) => {
                let Some(Weight::Stored(source)) = run.model.weights.get(&stored.name) else {
                    return Err(Error::model_not_found(format!("no tensor {}", stored.name)));
                };
                write_stored(&mut writer, &stored.name, source, stored.dtype)?;
                source.bytes.release();
            }
        }
        run.progress.advance(1);
    }
    let size = writer.layout().file_size();
    writer.finish()?.commit()?;
    run.progress.finish();
    let found = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
    if found != size {
        return Err(Error::damaged(path, format!("{size} bytes were planned, {found} are there")));
    }
    verify(path, run.progress)?;
    Ok(size)
}

/// Rows of a weight that are not zero and whose scales are: too small for f16.
fn vanished(model: &LocalModel, name: &str, factors: &FactorizedLinear) -> Option<String> {
    let weight = model.weights.get(name)?;
    let mut values = vec![0.0; weight.cols()];
    let mut rows = (0..factors.out_features)
        .filter(|&row| factors.paths.iter().all(|path| path.row_scale[row].to_f32() == 0.0));
    let mut is_lost = |row: usize| {
        weight.read_rows(row..row + 1, &mut values);
        values.iter().any(|value| *value != 0.0)
    };
    let first = rows.by_ref().find(|&row| is_lost(row))?;
    let count = 1 + rows.filter(|&row| is_lost(row)).count();
    Some(format!(
        "{name}: {count} of {} rows become zero, the first of them row {first}: their scales are \
         smaller than f16 can hold",
        factors.out_features
    ))
}

/// Writes a tensor in its planned type.
fn write_stored<W: std::io::Write + std::io::Seek>(
    writer: &mut Writer<W>,
    name: &str,
    source: &StoredTensor,
    dtype: StoredType,
) -> Result<()> {
    if source.dtype == dtype {
        return writer.stored_tensor(name, source);
    }
    writer.stored(name, |section| encode(name, source, dtype, |bytes| section.write(bytes)))
}

/// Encodes a tensor in another type, a row at a time.
fn encode(
    name: &str,
    source: &StoredTensor,
    dtype: StoredType,
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let row_bytes = dtype
        .row_bytes(source.cols())
        .ok_or_else(|| Error::General(format!("{name} does not fit {}", dtype.name())))?;
    let (mut values, mut bytes) = (vec![0.0; source.cols()], vec![0; row_bytes]);
    for row in 0..source.rows() {
        source.read_rows(row..row + 1, &mut values);
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::Factorization {
                message: format!("{name} holds {} at [{row}, {at}]", values[at]),
            });
        }
        ggml::encode(dtype, &values, &mut bytes);
        write(&bytes)?;
    }
    Ok(())
}

/// A tensor that is not factorized as the file will hold it.
pub(super) fn as_stored(
    model: &LocalModel,
    plan: &CompressionPlan,
    name: &str,
) -> Result<StoredTensor> {
    let planned = plan.tensors.iter().find_map(|tensor| match tensor {
        PlannedTensor::Stored(stored) if stored.name == name => Some(stored),
        _ => None,
    });
    let (Some(Weight::Stored(source)), Some(planned)) = (model.weights.get(name), planned) else {
        return Err(Error::model_not_found(format!("no tensor {name}")));
    };
    if source.dtype == planned.dtype {
        return Ok(source.clone());
    }
    let mut encoded = Vec::new();
    encode(name, source, planned.dtype, |bytes| {
        encoded.extend_from_slice(bytes);
        Ok(())
    })?;
    source.bytes.release();
    StoredTensor::new(source.shape.clone(), planned.dtype, SharedBytes::from_vec(encoded))
}
