#![no_main]

#[allow(dead_code)]
#[path = "../targets.rs"]
mod targets;

use libfuzzer_sys::fuzz_target;
use llm_quantize::confine::WatchedAllocator;

#[global_allocator]
static ALLOCATOR: WatchedAllocator = WatchedAllocator;

fuzz_target!(|bytes: &[u8]| (targets::of_name("littlebit").expect("a target"))(bytes));
