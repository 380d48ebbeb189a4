//! What recovery reads: sequences of the calibration text, and where that is too short, sequences
//! that the original writes.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::divide;
use crate::files::checkpoint::UnitData;
use crate::graph::{Decoder, writing};
use crate::job::littlebit::compress::work::Run;
use crate::job::littlebit::tuning::Recipe;
use crate::text::CalibrationWindows;
use crate::{Error, Result};

/// Sequences that are written at a time, at most, and bytes that their keys and values may take.
const TOGETHER: usize = 64;
const CACHE_BYTES: u64 = 1 << 30;

/// Tokens up to which a text is made longer. Twice through as much is not learned by heart.
const ENOUGH_TOKENS: usize = 1 << 20;

/// The original continues passages of the text of this share of a sequence.
const PROMPT_SHARE: usize = 16;

/// Sequences in the order of their use: those that the blocks learn from, those that are held out,
/// and those that only the distillation learns from.
pub(super) struct Reading {
    /// All sequences.
    pub(super) windows: CalibrationWindows,
    /// How many the blocks learn from.
    pub(super) blocks: usize,
    /// How many are held out: all of them from the text.
    pub(super) held_out: usize,
    /// How many the original wrote.
    pub(super) written: usize,
    /// Those from the text that are not held out.
    from_text: Vec<usize>,
    /// How often the whole model reads them.
    passes: usize,
}

/// What a text has of the sequences that are wanted.
pub(in crate::job::littlebit::compress) struct Text {
    /// Sequences that are wanted.
    pub(in crate::job::littlebit::compress) wanted: usize,
    /// Tokens of each.
    pub(in crate::job::littlebit::compress) length: usize,
    /// Sequences that it gives.
    pub(in crate::job::littlebit::compress) count: usize,
}

/// How a text is read.
pub(in crate::job::littlebit::compress) struct Share {
    /// How often.
    passes: usize,
    /// Sequences that are read from it, those that are read again among them.
    read: usize,
    /// Sequences that the original writes.
    pub(in crate::job::littlebit::compress) missing: usize,
}

/// How a text is read for a recipe, and what the original writes besides: a text that is too short
/// is read several times, and the rest is written.
pub(in crate::job::littlebit::compress) fn share_of(recipe: &Recipe, text: &Text) -> Share {
    let &Text { wanted, length, count } = text;
    let decide = recipe.text.held_out.clamp(1, (count / 2).max(1));
    let learn = count.saturating_sub(decide);
    let passes = if count < wanted { recipe.distillation.text_passes } else { 1 };
    let read = passes * learn + decide;
    if !recipe.text.written {
        return Share { passes, read, missing: 0 };
    }
    let enough = ENOUGH_TOKENS / length.max(1);
    let for_blocks = recipe.text.sequences.saturating_sub(learn);
    let missing = wanted.min(enough).saturating_sub(read).max(for_blocks.min(enough));
    Share { passes, read, missing }
}

impl Reading {
    /// Takes what the recipe asks for from the text; `original` writes what it lacks.
    ///
    /// # Errors
    /// [`Error::Calibration`] if the text has less than two sequences.
    pub(super) fn new(run: &Run<'_>, recipe: &Recipe, original: &Decoder) -> Result<Self> {
        let (wanted, length) = recipe.text_of(run.model.config.max_positions);
        let seed = run.request.solver.seed;
        let text =
            CalibrationWindows::sample(&run.text.calibration, run.tokenizer, wanted, length, seed)?;
        let count = text.count();
        if count < 2 {
            return Err(Error::Calibration(format!(
                "{} gives {count} sequences of {length} tokens; recovery needs one to learn from \
                 and one to decide with",
                run.text.name
            )));
        }
        let (learn, decide) = divide(count, recipe.text.held_out);
        let sequence = |index: usize| &text.tokens[index * length..(index + 1) * length];
        let Share { passes, read, missing } = share_of(recipe, &Text { wanted, length, count });
        let written = if missing > 0 {
            run.progress.note(&format!(
                "{} gives {count} sequences of {length} tokens: the original writes {missing} more",
                run.text.name
            ));
            let passages: Vec<&[u32]> = learn.iter().map(|&index| sequence(index)).collect();
            write(run, original, &passages, missing)?
        } else {
            Vec::new()
        };
        let have = read + written.len() / length;
        if have < wanted {
            run.warn(format!(
                "{have} sequences of {length} tokens are read instead of {wanted}, those from {} \
                 {passes} times",
                run.text.name
            ));
        }
        // Evenly from the whole text, for the blocks; what was written makes up the number.
        let blocks = recipe.text.sequences.min(learn.len() + written.len() / length);
        let (first, rest): (Vec<usize>, Vec<usize>) = (0..learn.len()).partition(|at| {
            let many = blocks.min(learn.len());
            (at + 1) * many / learn.len() > at * many / learn.len()
        });
        let (more, others) = written.split_at((blocks - first.len()) * length);
        let mut tokens = Vec::with_capacity((count + missing) * length);
        first.iter().for_each(|&at| tokens.extend_from_slice(sequence(learn[at])));
        tokens.extend_from_slice(more);
        decide.iter().for_each(|&index| tokens.extend_from_slice(sequence(index)));
        rest.iter().for_each(|&at| tokens.extend_from_slice(sequence(learn[at])));
        tokens.extend_from_slice(others);
        let others = blocks + decide.len();
        Ok(Self {
            windows: CalibrationWindows { tokens, length },
            blocks,
            held_out: decide.len(),
            written: written.len() / length,
            from_text: (0..first.len()).chain(others..others + rest.len()).collect(),
            passes,
        })
    }

    /// Sequences on the chains: the first ones.
    pub(super) fn on_chains(&self) -> usize {
        self.blocks + self.held_out
    }

    /// Sequences that the blocks learn from.
    pub(super) fn learn(&self) -> Vec<usize> {
        (0..self.blocks).collect()
    }

    /// Sequences to decide with.
    pub(super) fn decide(&self) -> Vec<usize> {
        (self.blocks..self.on_chains()).collect()
    }

    /// Sequences that the whole model learns from, as often as it reads them.
    pub(super) fn learn_whole(&self) -> Vec<usize> {
        let once = (0..self.blocks).chain(self.on_chains()..self.windows.count());
        let again = (1..self.passes).flat_map(|_| self.from_text.iter().copied());
        once.chain(again).collect()
    }
}

/// `count` sequences of `original`, each of which continues the beginning of a piece of `passages`,
/// which are of one length. They are kept in the checkpoint.
fn write(run: &Run<'_>, original: &Decoder, passages: &[&[u32]], count: usize) -> Result<Vec<u32>> {
    let length = passages[0].len();
    let seed = run.request.solver.seed;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let given = (length / PROMPT_SHARE).max(1);
    let prompts: Vec<Vec<u32>> = (0..count)
        .map(|index| {
            let passage = passages[index % passages.len()];
            // The first sequences begin as the passage does, with the leading token if there is one.
            let round = index / passages.len();
            let start = if round == 0 { 0 } else { random.random_range(0..=length - given) };
            passage[start..start + given].to_vec()
        })
        .collect();
    let room = CACHE_BYTES / writing::cache_bytes(&run.model.config, length).max(1);
    let together = (room as usize).clamp(1, TOGETHER);
    let progress = run.progress;
    let steps = count.div_ceil(together) * (length - 1);
    progress.start("Writing", steps as u64, "tokens of each");
    let mut tokens = Vec::with_capacity(count * length);
    for (index, prompts) in prompts.chunks(together).enumerate() {
        let first = index * together;
        let id = format!("written-{count}-{first}-{}", prompts.len());
        let unit = run.store.load(&id)?;
        if let Some(bytes) = unit.as_ref().and_then(|unit| unit.bytes("tokens"))
            && bytes.len() == 4 * prompts.len() * length
        {
            tokens.extend(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)));
            progress.resumed(length as u64 - 1);
            continue;
        }
        let written =
            writing::continue_all(original, prompts, length, (seed, first as u64), || {
                progress.advance(1);
                run.check_stop()
            })?;
        let bytes = written.iter().flat_map(|token| token.to_le_bytes()).collect();
        run.store.save(&id, UnitData::default().with_bytes("tokens", bytes))?;
        tokens.extend(written);
    }
    progress.finish();
    Ok(tokens)
}
