//! The profiles that come with the program.

use super::format::{Assignment, Profile, Strategy};

/// A preset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What it does, as `profile list` says.
    pub summary: &'static str,
    strategy: Strategy,
    target_bpw: Option<f64>,
    target_loss: Option<f64>,
    rules: &'static [(&'static str, f64)],
}

/// All presets.
pub(crate) const PRESETS: [Preset; 3] = [
    Preset {
        name: "attention-high",
        summary: "Attention layers at 4-bit, MLP at 2-bit",
        strategy: Strategy::AttentionHigh,
        target_bpw: None,
        target_loss: None,
        rules: &[
            (r"blk\.\d+\.attn_(q|k|v|qkv|kv|kv_b|q_a|q_b|kv_a_mqa|output)", 4.0),
            (r"blk\.\d+\.ffn_(gate|up|down)(_exps|_shexp)?", 2.0),
            // One matrix for all blocks: what it loses, every token loses.
            (r"output|token_embd", 6.0),
        ],
    },
    Preset {
        name: "balanced",
        summary: "Even distribution based on importance",
        strategy: Strategy::Balanced,
        target_bpw: Some(3.5),
        target_loss: None,
        rules: &[],
    },
    Preset {
        name: "compression-max",
        summary: "Minimize size while maintaining coherence",
        strategy: Strategy::CompressionMax,
        target_bpw: None,
        target_loss: Some(0.25),
        rules: &[],
    },
];

impl Preset {
    /// The preset of that name, in any case and with `_` for `-`.
    #[must_use]
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        let name = name.to_lowercase().replace('_', "-");
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// As a profile.
    #[must_use]
    pub(crate) fn profile(&self) -> Profile {
        Profile {
            profile_id: self.name.to_owned(),
            profile_name: self.name.to_owned(),
            strategy: self.strategy,
            description: Some(self.summary.to_owned()),
            layer_assignments: self
                .rules
                .iter()
                .map(|(layer_name, bits)| Assignment::width(layer_name, *bits))
                .collect(),
            target_bpw: self.target_bpw,
            target_compression: None,
            target_loss: self.target_loss,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_sound() {
        for preset in PRESETS {
            preset.profile().check().unwrap();
            assert!(Preset::named(&preset.name.to_uppercase().replace('-', "_")).is_some());
        }
        assert!(Preset::named("none").is_none());
    }
}
