//! What documents show is what happens.
//!
//! A block of `console` is a session: a shell runs its commands, those of one document one after another in one folder, and
//! what they print is compared. A line `...` stands for any lines. Files that a document shows, behind a line that ends with
//! their name, are written first; `tests/documents` holds the others. Of what is measured (losses, ranges, rates) the words
//! are compared, and the numbers are those of the machine that wrote them last.
//!
//! `INSTA_UPDATE=always cargo test --test examples` writes the sessions anew where words are as they were, and says where
//! they are not.
#![cfg(unix)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A command, and the lines of the document that show what it prints.
struct Step {
    command: String,
    shown: std::ops::Range<usize>,
}

/// A document's commands, and the files it shows.
#[derive(Default)]
struct Sessions {
    steps: Vec<Step>,
    files: Vec<(String, String)>,
}

impl Sessions {
    fn of(lines: &[&str]) -> Sessions {
        let (mut out, mut at) = (Sessions::default(), 0);
        while at < lines.len() {
            let Some(language) = lines[at].strip_prefix("```") else {
                at += 1;
                continue;
            };
            let end = at + 1 + lines[at + 1..].iter().position(|l| *l == "```").expect("a block ends");
            if language == "console" {
                out.steps.extend(steps(lines, at + 1..end));
            } else if let Some(name) = lines[..at].iter().rev().find(|l| !l.is_empty()).and_then(|l| named(l)) {
                out.files.push((name.to_owned(), lines[at + 1..end].join("\n") + "\n"));
            }
            at = end + 1;
        }
        out
    }
}

/// The file that a line ends with: "... `name`:".
fn named(line: &str) -> Option<&str> {
    let name = line.strip_suffix("`:")?.rsplit('`').next()?;
    let is_file = name.contains('.') && !name.contains(['/', ' ', '*']);
    is_file.then_some(name)
}

fn steps(lines: &[&str], block: std::ops::Range<usize>) -> Vec<Step> {
    let (mut out, mut at): (Vec<Step>, usize) = (Vec::new(), block.start);
    while at < block.end {
        let first = lines[at].strip_prefix("$ ").expect("a session begins with a command");
        let mut command = first.to_owned();
        at += 1;
        if let Some((_, end)) = first.split_once("<<'") {
            let end = end.trim_end_matches('\'');
            while lines[at - 1] != end {
                command += &format!("\n{}", lines[at]);
                at += 1;
            }
        }
        let start = at;
        while at < block.end && !lines[at].starts_with("$ ") {
            at += 1;
        }
        out.push(Step { command, shown: start..at });
    }
    out
}

/// Does a command measure something, or time it?
fn is_measured(command: &str) -> bool {
    ["train", "compile", "profile", "--calibrate", "--policy auto"].iter().any(|w| command.contains(w))
}

/// A line without its numbers, bars and widths of columns.
fn words(line: &str) -> String {
    let mut out = String::new();
    for word in line.split_whitespace() {
        let mut shape = String::new();
        for c in word.chars().filter(|c| !"▁▂▃▄▅▆▇█".contains(*c)) {
            let c = if c.is_ascii_digit() || c == '.' { '#' } else { c };
            if c != '#' || !shape.ends_with('#') {
                shape.push(c);
            }
        }
        let shape = shape.replace("#e-#", "#").replace("#e#", "#");
        if !shape.is_empty() {
            let _ = write!(out, "{shape} ");
        }
    }
    out
}

/// For each line shown, what was printed in its place; none where the lines are not alike by `key`.
fn aligned<'a>(shown: &[&'a str], said: &[&'a str], key: &dyn Fn(&str) -> String) -> Option<Vec<&'a str>> {
    let (mut out, mut at): (Vec<&str>, usize) = (Vec::new(), 0);
    let parts: Vec<&[&str]> = shown.split(|l| *l == "...").collect();
    for (i, part) in parts.iter().enumerate() {
        let is_here =
            |from: &usize| part.iter().enumerate().all(|(k, l)| said.get(from + k).is_some_and(|s| key(s) == key(l)));
        let (first, last) = (i == 0, i + 1 == parts.len());
        let end = said.len().checked_sub(part.len())?;
        let from = match (first, last) {
            (true, true) if part.len() != said.len() => return None,
            (true, _) => Some(0).filter(is_here),
            (false, true) => Some(end).filter(|&e| e >= at).filter(is_here),
            _ => (at..=end).find(is_here),
        }?;
        out.extend(if first { None } else { Some("...") });
        out.extend(&said[from..from + part.len()]);
        at = from + part.len();
    }
    Some(out)
}

/// Copies the files of a folder: sessions may write to them.
fn copy_files(from: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(root().join(from)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// A folder as a chapter's reader has it.
fn folder(sessions: &Sessions) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["examples/digits", "rules", "tests/models"] {
        copy_files(name, &dir.path().join(name));
    }
    copy_files("examples/digits", &dir.path().join("digits"));
    std::fs::copy(root().join("examples/digits/mlp.mir"), dir.path().join("mlp.mir")).unwrap();
    copy_files("tests/documents", dir.path());
    for (name, text) in &sessions.files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// What a command prints, diagnostics among results.
fn run(command: &str, dir: &Path) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_mantissa")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec 2>&1\n{command}")]).current_dir(dir).env("PATH", path).env("NO_COLOR", "1");
    String::from_utf8(shell.output().unwrap().stdout).unwrap()
}

/// Runs a document's sessions.
fn check(document: &str) {
    let path = root().join(document);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let sessions = Sessions::of(&lines);
    assert!(!sessions.steps.is_empty(), "{document} has no session");
    let dir = folder(&sessions);
    let update = std::env::var("INSTA_UPDATE").is_ok_and(|v| v == "always");
    let (mut wrong, mut anew) = (String::new(), Vec::new());
    for step in &sessions.steps {
        let said = run(&step.command, dir.path());
        let said: Vec<&str> = said.lines().map(str::trim_end).collect();
        let shown: Vec<&str> = lines[step.shown.clone()].iter().map(|l| l.trim_end()).collect();
        let key = if update || is_measured(&step.command) { words } else { str::to_owned };
        if let Some(new) = aligned(&shown, &said, &key) {
            anew.push((step.shown.clone(), new.into_iter().map(str::to_owned).collect::<Vec<_>>()));
        } else {
            let _ = writeln!(
                wrong,
                "{document}:{}: $ {}\n-- shown:\n{}\n-- said:\n{}\n",
                step.shown.start,
                step.command,
                shown.join("\n"),
                said.join("\n")
            );
        }
    }
    if update {
        let mut lines: Vec<String> = lines.iter().map(|l| (*l).to_owned()).collect();
        for (shown, new) in anew.into_iter().rev() {
            lines.splice(shown, new);
        }
        std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    }
    assert!(wrong.is_empty(), "INSTA_UPDATE=always writes numbers anew; words are to be looked at\n{wrong}");
}

macro_rules! documents {
    ($($name:ident: $path:literal,)*) => {
        const DOCUMENTS: &[&str] = &[$($path),*];
        $(#[test] fn $name() { check($path); })*
    };
}

documents! {
    readme: "README.md",
    introduction: "docs/src/introduction.md",
    from_pytorch: "docs/src/from-pytorch.md",
    reading_a_plan: "docs/src/reading-a-plan.md",
    policies: "docs/src/policies.md",
    evidence: "docs/src/evidence.md",
    rules: "docs/src/rules.md",
    profiles: "docs/src/profiles.md",
    run_file: "docs/src/run-file.md",
    compiled_trainer: "docs/src/compiled-trainer.md",
}

#[test]
fn all_documents_with_sessions_are_checked() {
    let book = std::fs::read_dir(root().join("docs/src")).unwrap().map(|e| e.unwrap().path());
    for path in book.filter(|p| p.extension().is_some_and(|e| e == "md")) {
        let has_sessions = std::fs::read_to_string(&path).unwrap().contains("```console");
        let is_listed = DOCUMENTS.iter().any(|d| root().join(d) == path);
        assert_eq!(has_sessions, is_listed, "{}", path.display());
    }
}

/// What is compared of a session, and what not.
#[test]
fn lines_are_aligned() {
    let exact = |l: &str| l.to_owned();
    assert_eq!(aligned(&["a", "...", "c"], &["a", "b", "b", "c"], &exact), Some(vec!["a", "...", "c"]));
    assert_eq!(aligned(&["a", "c"], &["a", "b", "c"], &exact), None);
    assert_eq!(aligned(&["...", "c"], &["c", "d"], &exact), None);
    assert_eq!(aligned(&["a", "..."], &["b", "a"], &exact), None);
    assert_eq!(aligned(&["in 1.5 s, 3e-4"], &["in 20 s,  7"], &words), Some(vec!["in 20 s,  7"]));
    assert_eq!(aligned(&["loss 1"], &["lost 1"], &words), None);
}
