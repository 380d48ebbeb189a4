//! Folding leaves the model as it was; neither threads nor an interruption change a byte.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Work;
use crate::base::progress::{NullProgress, Progress};
use crate::codec::affine::PlainType;
use crate::device::Backend;
use crate::files::checkpoint::Fingerprint;
use crate::graph::Decoder;
use crate::job::checkpoints::Checkpoints;
use crate::job::packed::awq::scales::Found;
use crate::job::packed::block::{BlockWeights, host};
use crate::job::packed::layout::ATTENTION;
use crate::job::packed::request::{Alpha, Extras, Gptq, GroupSize, Method, PackedRequest};
use crate::job::packed::store::Store;
use crate::job::packed::{execute, plan};
use crate::model::LocalModel;
use crate::text::TextOptions;
use crate::{Error, Result};

const GPTQ: Method = Method::Gptq(Gptq {
    bits: 4,
    symmetric: true,
    desc_act: false,
    damping: 0.01,
    extras: Extras { search: true, static_groups: true, refinements: 1 },
});

fn tiny() -> LocalModel {
    crate::model::open_local(Path::new("models/tiny")).unwrap()
}

fn request(method: Method, output: &Path, checkpoints: Checkpoints) -> PackedRequest {
    PackedRequest {
        method,
        group: GroupSize::Columns(32),
        samples: 8,
        text: TextOptions::default(),
        seed: 0,
        output: output.to_path_buf(),
        checkpoints,
        resume_command: Some("again".into()),
    }
}

/// A factor per channel, from 1/8 to 8.
fn factors(seed: usize, count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| 8f32.powf(2.0 * ((i * 37 + seed * 11 + 3) as f32 * 0.618_034).fract() - 1.0))
        .collect()
}

#[test]
fn folding_leaves_the_model_as_it_was() {
    let model = tiny();
    let folder = tempfile::tempdir().unwrap();
    let request = request(Method::Awq, &folder.path().join("out"), Checkpoints::Off);
    let plan = plan(&model, &request).unwrap();
    let backend = Backend::cpu();
    let store = Store::open(&request, &Fingerprint::new("tiny"), &NullProgress).unwrap();
    let mut decoder = Decoder::new(&model, &backend).unwrap();
    let tokens: Vec<u32> = (0..96).map(|i| (i * 61 + 17) % 2000).collect();
    let before = host(&decoder.hidden(&tokens, 2, None, None).unwrap()).unwrap();
    let work = Work {
        model: &model,
        plan: &plan,
        request: &request,
        backend: &backend,
        decoder: Decoder::new(&model, &backend).unwrap(),
        text: None,
        store: &store,
        progress: &NullProgress,
    };
    for index in 0..model.config.num_layers {
        let mut weights = BlockWeights::read(&model, index, &plan.layout).unwrap();
        // Biases, which the tiny model has none of.
        for &linear in &plan.layout.stages[ATTENTION] {
            let bias = factors(linear, plan.layout.shape(linear).0);
            weights.biases[linear] = Some(bias.iter().map(|f| 0.01 * f).collect());
        }
        let plain = work.running(index, &weights).unwrap();
        let positions = decoder.positions(2, 48, 0);
        let x = decoder.embed(&tokens).unwrap();
        let exact = host(&plain.forward(&x, &positions, None, None).unwrap()).unwrap();

        let widths = [plan.layout.width(ATTENTION), plan.layout.values.count, 128, 384];
        let found = [0, 1, 2, 3].map(|stage| Found {
            factors: factors(stage + index, widths[stage]),
            ratio: Some(0.5),
            before: 1.0,
            after: 0.5,
        });
        let mut folded = weights.clone();
        let applied = work.fold(&mut folded, &found);
        assert!(applied.iter().all(|stage| stage.iter().any(|f| (f - 1.0).abs() > 0.5)));
        assert_ne!(folded.linears[0], weights.linears[0]);
        let rounded = |values: &[f32]| {
            values.iter().all(|&v| PlainType::F16.rounded(v).to_bits() == v.to_bits())
        };
        assert!(folded.norms.iter().all(|norm| rounded(norm)), "norms are as stored");
        let block = work.running(index, &folded).unwrap();
        let ours = host(&block.forward(&x, &positions, None, None).unwrap()).unwrap();
        close(&exact, &ours);

        // And without the biases, in the place of the original.
        weights.biases.iter_mut().for_each(|bias| *bias = None);
        work.fold(&mut weights, &found);
        *decoder.block_mut(index) = work.running(index, &weights).unwrap();
    }
    close(&before, &host(&decoder.hidden(&tokens, 2, None, None).unwrap()).unwrap());
}

/// Equal to 1e-4 of the largest value.
fn close(exact: &[f32], ours: &[f32]) {
    let largest = exact.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let off = exact.iter().zip(ours).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(off <= 1e-4 * largest && largest > 0.0, "{off} of {largest}");
}

/// Asks to stop after some blocks.
struct StopAfter(usize, AtomicUsize);

impl Progress for StopAfter {
    fn start(&self, stage: &str, _: u64, _: &str) {
        if stage == "Quantizing" {
            self.1.store(0, Ordering::Relaxed);
        }
    }
    fn advance(&self, _: u64) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
    fn finish(&self) {
        self.1.store(0, Ordering::Relaxed);
    }
    fn note(&self, _: &str) {}
    fn detail(&self, _: &str) {}
    fn warn(&self, _: &str) {}
    fn stop_requested(&self) -> bool {
        self.1.load(Ordering::Relaxed) >= self.0
    }
}

fn run(model: &LocalModel, request: &PackedRequest, progress: &dyn Progress) -> Result<Vec<u8>> {
    let plan = plan(model, request)?;
    execute(model, &plan, request, &Backend::cpu(), progress)?;
    let mut bytes = Vec::new();
    for name in ["model.safetensors", "config.json", "README.md"] {
        bytes.extend(std::fs::read(request.output.join(name)).unwrap());
    }
    Ok(bytes)
}

#[test]
fn neither_threads_nor_an_interruption_change_a_byte() {
    let model = tiny();
    for method in [GPTQ, Method::Awq, Method::SmoothQuant(Alpha::Search)] {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        let at = |name: &str| folder.path().join(name);
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let whole = pool(1)
            .install(|| run(&model, &request(method, &at("one"), Checkpoints::Off), &NullProgress))
            .unwrap();
        let stopped = request(method, &at("two"), Checkpoints::Under(store.clone()));
        // Checking tensors counts too, so the stop is beyond their number.
        let progress = StopAfter(2, AtomicUsize::new(0));
        let error = pool(3).install(|| run(&model, &stopped, &progress)).unwrap_err();
        let Error::Interrupted { resume } = error else { panic!("{error}") };
        assert_eq!(resume.as_deref(), Some("again"));
        assert!(!at("two").exists(), "nothing under the final name");
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 2, "the finished directory and the checkpoint");
        let again = request(method, &at("two"), Checkpoints::Resume(store.clone()));
        let resumed = pool(3).install(|| run(&model, &again, &NullProgress)).unwrap();
        assert!(whole == resumed, "{method:?}");
        assert!(!store.exists(), "the work is in the output");
    }
}

#[test]
fn a_checkpoint_of_other_settings_is_refused() {
    let model = tiny();
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let output = folder.path().join("out");
    let stopped = request(GPTQ, &output, Checkpoints::Under(store.clone()));
    run(&model, &stopped, &StopAfter(1, AtomicUsize::new(0))).unwrap_err();
    let other = PackedRequest {
        group: GroupSize::Columns(64),
        ..request(GPTQ, &output, Checkpoints::Resume(store))
    };
    let error = run(&model, &other, &NullProgress).unwrap_err();
    assert_eq!(error.exit_code(), 7);
    assert!(error.to_string().contains("group size is `32` there, `64` here"), "{error}");
}
