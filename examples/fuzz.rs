//! Fuzzing on the stable toolchain: the targets of `fuzz/`, with inputs of its own making.
//!
//! ```text
//! cargo run --example fuzz -- [TARGET ...] [--inputs N] [--seconds S] [--seed N] [--keep FOLDER]
//! cargo run --example fuzz -- TARGET --input FILE
//! ```
//!
//! Each target runs in a child process with 3 GB of address space. Input `i` follows from the seeds
//! in `fuzz/corpus`, the seed number and `i` alone, so that a child that died or hangs (10 s) is
//! told from the number of its last input. What was found is written to `--keep` and listed; the
//! exit status is 1 then.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::exit)]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use llm_quantize::confine::WatchedAllocator;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: WatchedAllocator = WatchedAllocator;

/// A single input may take so much processor time.
const PATIENCE: Duration = Duration::from_secs(10);
/// Kilobytes of address space of a child.
const ADDRESS_SPACE: u64 = 3_000_000;
/// Longest input.
const LONGEST: usize = 256 << 10;
/// A target with so many findings is not looked at further.
const MOST_FINDINGS: usize = 20;

struct Options {
    targets: Vec<String>,
    inputs: u64,
    seconds: u64,
    seed: u64,
    keep: PathBuf,
    /// A file to run once.
    input: Option<PathBuf>,
    /// In a child: the number of the first input.
    child_from: Option<u64>,
}

fn main() -> ExitCode {
    let options = options();
    if let Some(path) = &options.input {
        let target = targets::of_name(&options.targets[0]).expect("a known target");
        target(&std::fs::read(path).expect("the input can be read"));
        targets::clean_up_of(std::process::id());
        return ExitCode::SUCCESS;
    }
    if let Some(from) = options.child_from {
        child(&options, from);
        return ExitCode::SUCCESS;
    }
    let names: Vec<String> = if options.targets.is_empty() {
        targets::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect()
    } else {
        options.targets.clone()
    };
    let share = Duration::from_secs(options.seconds).div_f64(names.len() as f64);
    let mut found = 0;
    for name in &names {
        let began = Instant::now();
        let (inputs, findings) = parent(name, &options, began + share);
        println!(
            "{name:<22}{inputs:>10} inputs {:>7.1} s {:>4} findings",
            began.elapsed().as_secs_f64(),
            findings.len()
        );
        for finding in &findings {
            println!("    {finding}");
        }
        found += findings.len();
    }
    targets::clean_up_of(std::process::id());
    ExitCode::from(u8::from(found > 0))
}

fn options() -> Options {
    let mut options = Options {
        targets: Vec::new(),
        inputs: u64::MAX,
        seconds: 60,
        seed: 1,
        keep: PathBuf::from("target/fuzz"),
        input: None,
        child_from: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().expect("a value");
        match word.as_str() {
            "--inputs" => options.inputs = value().parse().expect("a number"),
            "--seconds" => options.seconds = value().parse().expect("a number"),
            "--seed" => options.seed = value().parse().expect("a number"),
            "--keep" => options.keep = value().into(),
            "--input" => options.input = Some(value().into()),
            "--child" => options.child_from = Some(value().parse().expect("a number")),
            name => {
                assert!(targets::of_name(name).is_some(), "no target is called {name}");
                options.targets.push(name.to_owned());
            }
        }
    }
    options
}

/// Runs one target until the time is over; gives the number of inputs and what was found.
fn parent(name: &str, options: &Options, end: Instant) -> (u64, Vec<String>) {
    let seeds = seeds(name);
    let mut findings = Vec::new();
    let mut from = 0;
    while from < options.inputs && Instant::now() < end && findings.len() < MOST_FINDINGS {
        let mut process = start(name, options, from);
        let at = Arc::new(AtomicU64::new(from));
        let panics = Arc::new(Mutex::new(Vec::new()));
        let reader = {
            let output = BufReader::new(process.stdout.take().expect("a pipe"));
            let (at, panics) = (Arc::clone(&at), Arc::clone(&panics));
            std::thread::spawn(move || {
                for line in output.lines().map_while(Result::ok) {
                    match line.split_once(' ') {
                        Some(("at", number)) => {
                            at.store(number.parse().unwrap_or(0), Ordering::Relaxed);
                        }
                        Some(("panic", rest)) => panics.lock().unwrap().push(rest.to_owned()),
                        _ => {}
                    }
                }
            })
        };
        let outcome = wait(&mut process, &at, end);
        targets::clean_up_of(process.id());
        reader.join().expect("the reader ends");
        for line in panics.lock().unwrap().drain(..) {
            let (number, message) = line.split_once(' ').unwrap_or((&line, ""));
            let number = number.parse().unwrap_or(0);
            findings.push(note(name, options, &seeds, number, &format!("panic: {message}")));
        }
        from = at.load(Ordering::Relaxed);
        match outcome {
            Outcome::Done => from += 1,
            Outcome::Over => break,
            Outcome::Died(how) => {
                findings.push(note(name, options, &seeds, from, &how));
                from += 1;
            }
        }
    }
    (from, findings)
}

enum Outcome {
    Done,
    /// The time was over.
    Over,
    Died(String),
}

fn start(name: &str, options: &Options, from: u64) -> Child {
    let program = std::env::current_exe().expect("this program");
    let script = format!("ulimit -v {ADDRESS_SPACE}; ulimit -c 0; exec \"$0\" \"$@\"");
    Command::new("sh")
        .args(["-c", &script])
        .arg(program)
        .args([name, "--child", &from.to_string()])
        .args(["--inputs", &options.inputs.to_string(), "--seed", &options.seed.to_string()])
        .env("RAYON_NUM_THREADS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .stdin(Stdio::null())
        .spawn()
        .expect("a child starts")
}

fn wait(process: &mut Child, at: &AtomicU64, end: Instant) -> Outcome {
    let (mut last, mut since) = (at.load(Ordering::Relaxed), Instant::now());
    let mut used = Duration::ZERO;
    loop {
        if let Some(status) = process.try_wait().expect("a child can be waited for") {
            if status.success() {
                return Outcome::Done;
            }
            return Outcome::Died(format!("died: {status}"));
        }
        let now = at.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
            used = processor_time(process.id());
        }
        let hangs = since.elapsed() > PATIENCE
            && (processor_time(process.id()).saturating_sub(used) > PATIENCE
                || since.elapsed() > 30 * PATIENCE);
        if hangs || Instant::now() > end {
            let _ = process.kill();
            let _ = process.wait();
            return if hangs { Outcome::Died("hangs".to_owned()) } else { Outcome::Over };
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The processor time of a process: others may keep it from running.
fn processor_time(process: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name, in brackets, may hold blanks. User and system time are the 14th and 15th field.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Writes a finding's input; gives the line that tells of it.
fn note(name: &str, options: &Options, seeds: &[Vec<u8>], number: u64, what: &str) -> String {
    std::fs::create_dir_all(&options.keep).expect("a folder for findings");
    let path = options.keep.join(format!("{name}-{}-{number}", options.seed));
    std::fs::write(&path, input(name, seeds, options.seed, number)).expect("a finding is kept");
    format!("{} {what}", path.display())
}

/// Runs inputs and says on stdout which.
fn child(options: &Options, from: u64) {
    std::panic::set_hook(Box::new(|_| {}));
    let name = options.targets[0].as_str();
    let target = targets::of_name(name).expect("a known target");
    let seeds = seeds(name);
    let mut stdout = std::io::stdout().lock();
    for number in from..options.inputs {
        let bytes = input(name, &seeds, options.seed, number);
        writeln!(stdout, "at {number}").expect("the parent listens");
        let result = catch_unwind(AssertUnwindSafe(|| target(&bytes)));
        if let Err(payload) = result {
            let text = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("?");
            writeln!(stdout, "panic {number} {}", text.replace('\n', " ")).expect("as above");
        }
        // Threads that were stopped keep their memory: what follows would have too little.
        if llm_quantize::confine::abandoned() > 0 {
            break;
        }
    }
    targets::clean_up_of(std::process::id());
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let stored = paths.iter().map(|path| std::fs::read(path).expect("a seed"));
    let seeds: Vec<_> = stored.chain(targets::made_seed(name)).collect();
    assert!(!seeds.is_empty(), "{} has no seeds", folder.display());
    seeds
}

/// The input of a number.
fn input(name: &str, seeds: &[Vec<u8>], seed: u64, number: u64) -> Vec<u8> {
    // The seeds themselves come first.
    if let Some(whole) = usize::try_from(number).ok().and_then(|number| seeds.get(number)) {
        return whole.clone();
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number);
    let mut bytes = seeds[rng.random_range(0..seeds.len())].clone();
    let other = &seeds[rng.random_range(0..seeds.len())];
    let text = std::str::from_utf8(&bytes).is_ok();
    // Mostly few changes: what is wrong everywhere is refused at once.
    let changes = 1 + rng.random_range(0..4usize) * rng.random_range(0..4usize);
    for _ in 0..changes {
        if text && rng.random_range(0..8) != 0 {
            change_text(&mut bytes, other, name, &mut rng);
        } else {
            change_bytes(&mut bytes, other, &mut rng);
        }
    }
    bytes.truncate(LONGEST);
    bytes
}

/// A place, more often near the beginning, where headers are.
fn place(length: usize, rng: &mut ChaCha8Rng) -> usize {
    let within = match rng.random_range(0..3) {
        0 => length.min(64),
        1 => length.min(4096),
        _ => length,
    };
    rng.random_range(0..=within)
}

fn stretch(length: usize, rng: &mut ChaCha8Rng) -> std::ops::Range<usize> {
    let start = place(length, rng);
    let most = [4, 32, 1024][rng.random_range(0..3)];
    start..(start + rng.random_range(0..=most)).min(length)
}

fn change_bytes(bytes: &mut Vec<u8>, other: &[u8], rng: &mut ChaCha8Rng) {
    const NUMBERS: [u64; 16] = [
        0,
        1,
        2,
        0x7f,
        0xff,
        0x100,
        0x7fff,
        0xffff,
        0x1_0000,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x1_0000_0000,
        0x7fff_ffff_ffff_ffff,
        0x8000_0000_0000_0000,
        u64::MAX,
    ];
    let at = place(bytes.len(), rng);
    match rng.random_range(0..8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = rng.random(),
        2 | 3 => {
            let width = [1, 2, 4, 8][rng.random_range(0..4)];
            let value = NUMBERS[rng.random_range(0..NUMBERS.len())].to_le_bytes();
            for (byte, new) in bytes.iter_mut().skip(at).zip(&value[..width]) {
                *byte = *new;
            }
        }
        4 => bytes.truncate(at),
        5 => drop(bytes.drain(stretch(bytes.len(), rng))),
        6 => {
            let piece = bytes[stretch(bytes.len(), rng)].to_vec();
            let times = [1, 1, 2, 100][rng.random_range(0..4)];
            bytes.splice(at..at, piece.repeat(times));
        }
        _ => {
            let piece = other[stretch(other.len(), rng)].to_vec();
            bytes.splice(at..at, piece);
        }
    }
}

/// Words that mean something to readers of JSON, TOML and of templates.
const WORDS: [&str; 64] = [
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1e309",
    "1e-400",
    "NaN",
    "Infinity",
    "-0.0",
    "0.5",
    "4294967296",
    "18446744073709551616",
    "99999999999",
    "\"\"",
    "[]",
    "{}",
    "[[[[",
    "]]]]",
    "\"a\"",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "\u{1b}[31m",
    "\u{202e}",
    "\u{feff}",
    "\u{1F600}",
    "\r\n",
    "\t",
    "{{",
    "}}",
    "{%",
    "%}",
    "{% endfor %}",
    "{% for x in range(99999) %}",
    "{% if x %}",
    "ns.x",
    " ~ ",
    " | join",
    "|string",
    "* 99999",
    "(",
    ")",
    "not ",
    "-",
    "[::-1]",
    "|tojson(indent=99999)",
    "|format(1)",
    "namespace(a=ns)",
    "%99999d",
    "self",
    "loop",
    "\"String\": \"\"",
    "\"Regex\": \".\"",
    "(a+)+$",
    "(?=.)",
    "\\p{L}*",
    "Sequence",
    "Replace",
    "Prepend",
    "\u{2581}",
    "[x]\n",
    " = 1\n",
    "#",
];

fn change_text(bytes: &mut Vec<u8>, other: &[u8], name: &str, rng: &mut ChaCha8Rng) {
    let word = WORDS[rng.random_range(0..WORDS.len())];
    match rng.random_range(0..8) {
        // A value, or another token, becomes a word.
        0..=2 => {
            let tokens = tokens(bytes);
            if let Some(token) = pick(&tokens, rng) {
                bytes.splice(token, word.bytes());
            }
        }
        // A token becomes one from another seed.
        3 => {
            let theirs = tokens(other);
            if let (Some(token), Some(new)) = (pick(&tokens(bytes), rng), pick(&theirs, rng)) {
                bytes.splice(token, other[new].to_vec());
            }
        }
        // A token goes to another place.
        4 => {
            let tokens = tokens(bytes);
            if let (Some(token), Some(new)) = (pick(&tokens, rng), pick(&tokens, rng)) {
                let new = bytes[new].to_vec();
                bytes.splice(token, new);
            }
        }
        // A stretch comes many times: long chains, deep nests.
        5 => {
            let tokens = tokens(bytes);
            if let Some(first) = pick(&tokens, rng) {
                let end = tokens
                    .iter()
                    .filter(|token| token.start >= first.start)
                    .nth(rng.random_range(0..4))
                    .map_or(first.end, |token| token.end);
                let piece = bytes[first.start..end].to_vec();
                let most = if name == "chat_template" { 20_000 } else { 2000 };
                let times = rng.random_range(1..most).min(LONGEST / piece.len().max(1));
                bytes.splice(first.start..first.start, piece.repeat(times));
            }
        }
        6 => {
            let at = place(bytes.len(), rng);
            bytes.splice(at..at, word.bytes());
        }
        _ => {
            let stretch = stretch(bytes.len(), rng);
            bytes.drain(stretch);
        }
    }
}

fn pick(tokens: &[std::ops::Range<usize>], rng: &mut ChaCha8Rng) -> Option<std::ops::Range<usize>> {
    (!tokens.is_empty()).then(|| {
        // Half of the time near the end: vocabularies are long, and settings stand around them.
        let most = match rng.random_range(0..4) {
            0 => tokens.len().min(50),
            _ => tokens.len(),
        };
        let at = rng.random_range(0..most);
        if rng.random() { tokens[at].clone() } else { tokens[tokens.len() - 1 - at].clone() }
    })
}

/// Runs of letters and digits, texts in quotes, and single signs.
fn tokens(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let class = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
        if bytes[at] == b'"' {
            at += 1;
            while at < bytes.len() && bytes[at] != b'"' {
                at += 1 + usize::from(bytes[at] == b'\\');
            }
            at += 1;
        } else if class(bytes[at]) {
            while at < bytes.len() && class(bytes[at]) {
                at += 1;
            }
        } else {
            at += 1;
        }
        if !bytes[start].is_ascii_whitespace() {
            tokens.push(start..at.min(bytes.len()));
        }
    }
    tokens
}
