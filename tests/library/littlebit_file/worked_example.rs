//! The file that docs/littlebit-format.md prints in full is the file that is written.

use std::fmt::Write;
use std::io::Cursor;

use half::f16;
use llm_quantize::base::SharedBytes;
use llm_quantize::codec::StoredType;
use llm_quantize::codec::signs::BitMatrix;
use llm_quantize::files::littlebit::{
    About, Description, PathPlan, Source, TensorKind, TensorPlan, TextFile, Writer,
};
use llm_quantize::weight::{Factor, FactorizedLinear, ScaleType};

const DOCUMENT: &str = include_str!("../../../docs/littlebit-format.md");

/// The example: a vector of two values and a `[3, 10]` weight of rank 2.
fn example() -> Vec<u8> {
    let scales = |values: &[f32]| values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>();
    let signs = |rows, cols, bytes: &[u8]| BitMatrix {
        rows,
        cols,
        bytes: SharedBytes::from_vec(bytes.to_vec()),
    };
    let weight = FactorizedLinear {
        out_features: 3,
        in_features: 10,
        paths: vec![Factor {
            // Rows + +, + -, - +.
            left: signs(3, 2, &[0b11, 0b01, 0b10]),
            // Rows + - + - + - + - + - and + + + + + - - - - -.
            right: signs(2, 10, &[0b0101_0101, 0b0001_1111, 0b01, 0b00]),
            row_scale: scales(&[1.0, 2.0, 0.5]),
            latent_scale: None,
            column_scale: scales(&[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.25]),
            scale_type: ScaleType::F16,
        }],
    };
    let plan = |name: &str, kind| TensorPlan { name: name.into(), kind };
    let description = Description {
        about: About {
            tool: "llm-quantize 0.1.0".into(),
            source: Source {
                name: Some("org/example".into()),
                format: "huggingface".into(),
                identity: None,
            },
            target_bpw: 8.0,
            original_size_bytes: 64,
            ..About::default()
        },
        files: vec![TextFile { name: "config.json".into(), text: "{}\n".into() }],
        tensors: vec![
            plan("norm.weight", TensorKind::Stored { dtype: StoredType::F32, shape: vec![2] }),
            plan(
                "up.weight",
                TensorKind::Factorized {
                    out_features: 3,
                    in_features: 10,
                    paths: vec![PathPlan {
                        rank: 2,
                        latent_scale: false,
                        scale_type: ScaleType::F16,
                    }],
                },
            ),
        ],
    };
    let mut writer = Writer::new(Cursor::new(Vec::new()), "example", &description).unwrap();
    let norm: Vec<u8> = [1.0f32, -0.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    writer.stored("norm.weight", |section| section.write(&norm)).unwrap();
    writer.factorized("up.weight", &weight, Some(0.0625), None).unwrap();
    writer.finish().unwrap().into_inner()
}

/// As `hexdump -C` prints, without the column of characters; lines of zeros are left out.
fn hex_dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, bytes) in bytes.chunks(16).enumerate() {
        if bytes.iter().any(|&b| b != 0) {
            write!(text, "{:04x} ", line * 16).unwrap();
            for byte in bytes {
                write!(text, " {byte:02x}").unwrap();
            }
            text.push('\n');
        }
    }
    text
}

#[test]
fn the_document_prints_the_logarithmic_vector() {
    let values = [1.0, 0.25, 0.0, 0.5].map(f16::from_f32);
    let bytes = ScaleType::Log8.encode(&values).unwrap();
    let dump: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let sentence = format!("(1, 0.25, 0, 0.5) is `{}`", dump.join(" "));
    assert!(DOCUMENT.contains(&sentence), "the document should say\n{sentence}");
}

#[test]
fn the_document_prints_the_file() {
    let file = example();
    let index = u64::from_le_bytes(file[16..24].try_into().unwrap()) as usize;
    let dump = hex_dump(&file[..index]);
    assert!(DOCUMENT.contains(&dump), "the document should contain\n{dump}");
    let text = std::str::from_utf8(&file[index..]).unwrap();
    // The document breaks the index into lines.
    let squeezed: String = DOCUMENT.lines().map(str::trim).collect();
    let spaces = text.trim_end().len();
    assert!(squeezed.contains(&text[..spaces]), "the document should contain\n{text}");
    let sizes = format!(
        "{} bytes, the index begins at {index} and has {} bytes, the last {} of them blank",
        file.len(),
        text.len(),
        text.len() - spaces
    );
    assert!(squeezed.contains(&sizes), "the document should say\n{sizes}");
}
