//! The metadata export: readable by the safetensors library and a JSON parser alone.

use std::path::Path;

use half::f16;
use llm_quantize::base::SharedBytes;
use llm_quantize::files::littlebit::LittleBitFile;
use llm_quantize::files::littlebit::metadata_export::{export, export_paths};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::samples::{Plain, sample};

#[test]
fn scales_and_ranks_can_be_read_by_others() {
    let sample = sample(4);
    let folder = tempfile::tempdir().unwrap();
    let file =
        LittleBitFile::from_bytes("m.littlebit", SharedBytes::from_vec(sample.write())).unwrap();
    let written = export(&file, &folder.path().join("meta")).unwrap();
    assert_eq!(written.scales, folder.path().join("meta.safetensors"));
    assert_eq!(written.statistics, folder.path().join("meta.json"));

    let bytes = std::fs::read(&written.scales).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let json: Value = serde_json::from_slice(&std::fs::read(&written.statistics).unwrap()).unwrap();
    assert_eq!(json["format"], "littlebit-metadata");
    assert_eq!(json["scales"], "meta.safetensors");
    assert_eq!(json["about"]["source"]["name"], "org/sample");
    let mut layers = json["layers"].as_array().unwrap().iter();
    let mut count = 0;
    for (name, tensor) in &sample.tensors {
        let Plain::Factorized(linear) = tensor else { continue };
        let layer = layers.next().unwrap();
        assert_eq!(layer["name"], name.strip_suffix(".weight").unwrap());
        assert_eq!(layer["shape"][0], linear.out);
        for (number, path) in linear.paths.iter().enumerate() {
            let entry = &layer["paths"][number];
            assert_eq!(entry["rank"], path.rank);
            assert_eq!(entry["scale_type"], path.scale_type.name());
            for (key, scale) in [
                ("row_scale", Some(&path.row_scale)),
                ("latent_scale", path.latent_scale.as_ref()),
                ("column_scale", Some(&path.column_scale)),
            ] {
                let Some(scale) = scale else {
                    assert!(entry.get(key).is_none());
                    continue;
                };
                let view = tensors.tensor(entry[key].as_str().unwrap()).unwrap();
                assert_eq!((view.dtype(), view.shape()), (Dtype::F16, &[scale.len()][..]));
                let values: Vec<f16> = view
                    .data()
                    .chunks_exact(2)
                    .map(|pair| f16::from_le_bytes([pair[0], pair[1]]))
                    .collect();
                assert_eq!(&values, scale);
                count += 1;
            }
        }
    }
    assert!(layers.next().is_none());
    assert!(count > 0);
    assert_eq!(tensors.len(), count);
}

#[test]
fn the_two_files_are_named_after_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let model = Path::new("out/m.littlebit");
    for given in ["a", "a.json", "a.safetensors"] {
        let paths = export_paths(&folder.path().join(given), model);
        assert_eq!(paths.scales, folder.path().join("a.safetensors"));
        assert_eq!(paths.statistics, folder.path().join("a.json"));
    }
    let paths = export_paths(folder.path(), model);
    assert_eq!(paths.scales, folder.path().join("m.metadata.safetensors"));
    assert_eq!(export_paths(Path::new("v1.5"), model).statistics, Path::new("v1.5.json"));
}
