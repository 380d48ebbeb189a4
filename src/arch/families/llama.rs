//! Llama 1 to 3 and everything that copies it.

use serde_json::json;

use crate::arch::Family;

/// See the module.
pub static LLAMA: Family = Family {
    write: |config, root| {
        root["attention_bias"] = json!(config.biases.qkv);
        root["mlp_bias"] = json!(config.biases.mlp);
    },
    ..Family::LLAMA
};
