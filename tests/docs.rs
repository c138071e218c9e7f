//! Documents: what they point at is there.

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
