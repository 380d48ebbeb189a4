//! The documentation says what the binary says.

use std::path::Path;

use llm_quantize::job::littlebit::tuning::knobs::KNOBS;
use llm_quantize::job::littlebit::tuning::{Effort, Recipe};

use crate::workspace::{Workspace, stdout};

const COMMANDS: [&[&str]; 20] = [
    &[],
    &["quantize"],
    &["convert"],
    &["analyze"],
    &["profile"],
    &["profile", "list"],
    &["profile", "show"],
    &["profile", "create"],
    &["profile", "validate"],
    &["quality"],
    &["quality", "report"],
    &["quality", "compare"],
    &["littlebit"],
    &["littlebit", "compress"],
    &["littlebit", "convert"],
    &["littlebit", "info"],
    &["littlebit", "validate"],
    &["generate"],
    &["info"],
    &["man"],
];

/// `docs/cli.md` is the help of every command. Set `LLM_QUANTIZE_UPDATE_DOCS=1` to write it anew.
#[test]
fn the_command_line_reference_is_current() {
    let workspace = Workspace::new();
    let mut page = String::from(
        "# Command line\n\nThe help of every command, as the binary prints it. Exit codes, JSON documents and \
         environment variables: [reference.md](reference.md).\n",
    );
    for command in COMMANDS {
        let arguments = [command, &["--help"]].concat();
        let name = [&["llm-quantize"], command].concat().join(" ");
        page += &format!(
            "\n## {name}\n\n```text\n{}\n```\n",
            stdout(&workspace.succeed(&arguments)).trim_end()
        );
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    if std::env::var_os("LLM_QUANTIZE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written == page, "docs/cli.md is out of date: run with LLM_QUANTIZE_UPDATE_DOCS=1");
}

/// Every exit code and every environment variable is in the reference.
#[test]
fn the_reference_lists_codes_and_variables() {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md"))
            .unwrap();
    let codes = [(0..=16).collect(), (20..=24).collect(), vec![130]].concat();
    for code in codes {
        assert!(page.lines().any(|l| l.starts_with(&format!("| {code} |"))), "exit code {code}");
    }
    for variable in llm_quantize::settings::Settings::TABLE {
        assert!(page.contains(&format!("| `{}` |", variable.name)), "{}", variable.name);
    }
}

/// `docs/recovery.md` has every effort and every knob with the values that the program has.
#[test]
fn the_page_on_recovery_is_current() {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recovery.md"))
            .unwrap();
    let has = |row: &str| assert!(page.lines().any(|l| l.starts_with(row)), "{row}");
    let grouped = |number: usize| match number {
        n if n >= 1_000_000 => format!("{},{:03},{:03}", n / 1_000_000, n / 1000 % 1000, n % 1000),
        n if n >= 1000 => format!("{},{:03}", n / 1000, n % 1000),
        n => n.to_string(),
    };
    for effort in Effort::ALL {
        let recipe = Recipe::of(effort);
        let (text, blocks, whole) = (&recipe.text, &recipe.blocks, &recipe.distillation);
        has(&format!(
            "| `{}` | {} | {} | {} | {} | {} | {} | {} |",
            effort.name(),
            text.sequences,
            text.held_out,
            blocks.steps,
            grouped(blocks.steps * blocks.batch * text.length),
            grouped(whole.sequences),
            grouped(whole.steps),
            grouped(whole.steps * whole.batch * text.length)
        ));
    }
    let defaults = Recipe::default().table().unwrap();
    for knob in &KNOBS {
        let default = defaults[knob.table][knob.key].to_string();
        let row = format!("| `{}.{}` | ", knob.table, knob.key);
        let line = page.lines().find(|l| l.starts_with(&row)).unwrap_or_else(|| panic!("{row}"));
        let stated = line[row.len()..].split(" |").next().unwrap().trim_matches('`');
        assert_eq!(stated, default, "{row}");
    }
}
