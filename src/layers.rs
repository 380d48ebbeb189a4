//! The order of the modules, read out of the source: a module may name those above it in the table
//! and nothing else. Tests are held to it as well.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of the crate, lowest first.
const LAYERS: [&str; 17] = [
    "base",
    "confine",
    "linalg",
    "settings",
    "device",
    "codec",
    "weight",
    "files",
    "tokenizer",
    "hub",
    "arch",
    "model",
    "text",
    "graph",
    "measure",
    "job",
    "cli",
];

/// The modules of `job`, lowest first.
const JOBS: [&str; 9] = [
    "checkpoints",
    "activations",
    "quality",
    "profile",
    "gguf",
    "analyze",
    "packed",
    "littlebit",
    "convert",
];

/// What every module may take from the root of the crate.
const ROOT: [&str; 2] = ["Error", "Result"];

/// The paths in a source file that begin with `crate` or `super`, as far as they matter: from the
/// root of the crate. `own` is the path of the file's module.
fn paths(text: &str, own: &[&str]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    // The inline modules around a line, by their indentation.
    let mut inside: Vec<usize> = Vec::new();
    let mut code = String::new();
    let mut depths = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        let indent = line.len() - line.trim_start().len();
        if line.trim() == "}" && inside.last() == Some(&indent) {
            inside.pop();
        }
        depths.push((code.len(), inside.len()));
        if line.ends_with('{') && line.split_whitespace().rev().nth(2) == Some("mod") {
            inside.push(indent);
        }
        code.push_str(line);
        code.push('\n');
    }
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    for root in ["crate::", "super::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(is_word) || code[..at].ends_with("super::") {
                continue;
            }
            let mut rest = &code[at..];
            let line = depths.partition_point(|&(start, _)| start <= at) - 1;
            let mut module: Vec<&str> = own.to_vec();
            module.extend(std::iter::repeat_n("", depths[line].1));
            if let Some(more) = rest.strip_prefix("crate::") {
                (module, rest) = (Vec::new(), more);
            }
            while let Some(more) = rest.strip_prefix("super::") {
                module.pop();
                rest = more;
            }
            for tail in tails(rest) {
                let start = module.iter().map(|&name| name.to_owned());
                found.push(start.chain(tail).collect());
            }
        }
    }
    found
}

/// The names that a path goes on with; one list for each branch of a group.
fn tails(text: &str) -> Vec<Vec<String>> {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        let mut depth = 0;
        let mut branches = vec![String::new()];
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    branches.push(String::new());
                    continue;
                }
                _ => {}
            }
            branches.last_mut().unwrap().push(c);
        }
        return branches
            .iter()
            .filter(|branch| !branch.trim().is_empty())
            .flat_map(|branch| tails(branch))
            .collect();
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let tails = match rest.strip_prefix("::") {
        Some(rest) => tails(rest),
        None => vec![Vec::new()],
    };
    let with_name = |tail: Vec<String>| std::iter::once(name.to_owned()).chain(tail).collect();
    tails.into_iter().map(with_name).collect()
}

/// What a file names that its module may not.
fn violations(own: &[&str], text: &str) -> Vec<String> {
    let place = |order: &[&str], name: &str| order.iter().position(|known| *known == name);
    let above = |order: &[&str], user: &str, used: &str| match place(order, used) {
        Some(used) => place(order, user).is_none_or(|user| used > user),
        None => true,
    };
    let mut wrong = Vec::new();
    for path in paths(text, own) {
        let names: Vec<&str> = path.iter().map(String::as_str).collect();
        let bad = match (own, names.as_slice()) {
            (_, [name, ..]) if ROOT.contains(name) => false,
            // A facade names its parts.
            (["job"], ["job", ..]) => false,
            (["job", user, ..], ["job", used, ..]) if place(&JOBS, used).is_some() => {
                above(&JOBS, user, used)
            }
            ([user, ..], [used, ..]) => above(&LAYERS, user, used),
            _ => true,
        };
        if bad {
            wrong.push(format!("{} uses {}", own.join("::"), path.join("::")));
        }
    }
    wrong
}

/// All source files below a folder.
fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn modules_use_only_what_is_above_them_in_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 400, "{} files", files.len());
    let mut wrong = Vec::new();
    let mut seen = Vec::new();
    for file in files {
        let inner = file.strip_prefix(&root).unwrap().with_extension("");
        let mut own: Vec<&str> = inner.iter().map(|name| name.to_str().unwrap()).collect();
        if own.last() == Some(&"mod") {
            own.pop();
        }
        if ["lib", "main", "layers"].contains(&own[0]) || own.ends_with(&["cuda", "build"]) {
            continue;
        }
        wrong.extend(violations(&own, &fs::read_to_string(&file).unwrap()));
        seen.push(own[0].to_owned());
    }
    wrong.sort();
    assert!(wrong.is_empty(), "against the order of src/layers.rs:\n{}", wrong.join("\n"));
    for layer in LAYERS {
        assert!(seen.iter().any(|name| name == layer), "there is no module {layer}");
    }
    assert!(seen.iter().all(|name| LAYERS.contains(&name.as_str())), "a module without a place");
}

#[test]
fn violations_are_found() {
    let text = "\
use super::writer;
use crate::{Error, Result, graph::Decoder};
use crate::base::{error, progress::{self, Progress}};
// crate::cli::main() in a comment
fn f() { crate::job::gguf::open() }

mod tests {
    use super::super::super::model::{self, LocalModel};
    use super::*;
}
";
    let wrong = violations(&["files", "gguf"], text);
    let expected = [
        "files::gguf uses graph::Decoder",
        "files::gguf uses job::gguf::open",
        "files::gguf uses model::self",
        "files::gguf uses model::LocalModel",
    ];
    assert_eq!(wrong, expected);
    let text = "use super::super::convert;\nuse super::plan;\nuse crate::job::profile::Rules;\n";
    assert_eq!(violations(&["job", "gguf", "level"], text), ["job::gguf::level uses job::convert"]);
    // The root has more names than those that everything may use.
    assert_eq!(violations(&["base"], "use super::Error;\nuse crate::VERSION;\n").len(), 1);
}
