//! Documents: what they point at is there.

use mantissa::ir::ops::{Arity, Attribute, Default, Signature};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// README, what stands beside it, and the book.
fn documents() -> Vec<PathBuf> {
    let mut out: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "rules/README.md", "kernels/README.md"]
            .map(|name| root().join(name))
            .to_vec();
    let book = std::fs::read_dir(root().join("docs/src")).unwrap();
    out.extend(book.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "md")));
    assert!(out.len() > 12, "the book is there");
    out
}

/// Where links lead.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|parts| parts.0)).collect()
}

/// What is set as code within lines.
fn code(text: &str) -> Vec<&str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

#[test]
fn links_lead_somewhere() {
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for link in links(&text) {
            let file = link.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") || file.contains(' ') {
                continue;
            }
            let to = document.parent().unwrap().join(file);
            assert!(to.exists(), "{}: `{link}` leads nowhere", document.display());
        }
    }
}

/// Every chapter is in the summary.
#[test]
fn the_summary_has_all_chapters() {
    let summary = std::fs::read_to_string(root().join("docs/src/SUMMARY.md")).unwrap();
    for chapter in documents().iter().filter(|p| p.starts_with(root().join("docs"))) {
        let name = chapter.file_name().unwrap().to_str().unwrap();
        assert!(name == "SUMMARY.md" || summary.contains(&format!("({name})")), "{name}");
    }
}

/// Source files that are named as `plan/choice/search.rs` or `src/cli/mod.rs`.
#[test]
fn files_that_are_named_exist() {
    let is_there = |name: &str| {
        let place = |dir: &str| root().join(dir).join(name).exists();
        place("") || place("src") || place("src/cli") || place("tests")
    };
    for document in documents().iter().filter(|d| !d.ends_with("notebook.md")) {
        let text = std::fs::read_to_string(document).unwrap();
        let named = code(&text);
        assert!(!named.is_empty() || document.ends_with("SUMMARY.md"), "{}", document.display());
        for name in named {
            let is_path = name.contains('/') && !name.contains([' ', '*', '<', '…', '{']) && !name.starts_with("my-");
            let is_source = [".rs", ".cuh", ".rules"].iter().any(|e| name.ends_with(e)) || name.starts_with("src/");
            if is_path && is_source {
                assert!(is_there(name), "{}: there is no `{name}`", Path::new(document).display());
            }
        }
    }
}

/// An attribute as a reader may write it: with what it is if it is left out.
fn attribute(a: &Attribute) -> String {
    let default = match &a.default {
        Default::Needed => "…".to_owned(),
        Default::Is(value) => value.to_string(),
        Default::Each(_, value) => format!("[{value}, …]"),
        Default::LastAxis => "the last".to_owned(),
        Default::AllAxes => "all".to_owned(),
        Default::LastTwoExchanged => "the last two exchanged".to_owned(),
    };
    format!("{}={default}", a.key)
}

fn operands(arity: Arity) -> String {
    match arity {
        Arity::ANY => "any".to_owned(),
        Arity { least, most } if least == most => most.to_string(),
        Arity { least, most } => format!("{least} to {most}"),
    }
}

/// The chapter of operations, by the table of operations.
fn operations() -> String {
    let plain = |row: &&Signature| row.attributes.is_empty() && !row.in_memory && !row.is_product();
    let list = |arity: usize| {
        let names = Signature::all().iter().filter(plain).filter(|row| row.arity == Arity::exactly(arity));
        names.map(|row| format!("`{}`", row.name)).collect::<Vec<_>>().join(", ")
    };
    let mut out = format!(
        "# Operations\n\nA test writes this chapter from the compiler's table of operations (`src/ir/ops/signature.rs`). Operands come \
         first in text, attributes first in rules; what stands behind `=` is what holds where nothing is said, `…` must be \
         said. `-x`, `a + b`, `a - b`, `a * b`, `a / b` and `a @ b` are operations, too.\n\nElement by element, of one operand: \
         {}.\n\nOf two operands, which are broadcast: {}.\n\nOf three: {}.\n\n| operation | operands | attributes |\n|---|---|---|\n",
        list(1),
        list(2),
        list(3)
    );
    for row in Signature::all().iter().filter(|row| !plain(row)) {
        let arity = operands(row.arity);
        let attributes: Vec<String> = row.attributes.iter().map(|a| format!("`{}`", attribute(a))).collect();
        out += &format!("| `{}` | {arity} | {} |\n", row.name, attributes.join(", "));
    }
    out + "\n`scan` runs a `body`: see [the model language](model-language.md).\n"
}

/// `INSTA_UPDATE=always` writes the chapter anew.
#[test]
fn the_chapter_of_operations_is_the_table() {
    let path = root().join("docs/src/operations.md");
    let made = operations();
    if std::env::var("INSTA_UPDATE").is_ok_and(|v| v == "always") {
        std::fs::write(&path, &made).unwrap();
    }
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        made,
        "INSTA_UPDATE=always cargo test --test docs writes it anew"
    );
}
