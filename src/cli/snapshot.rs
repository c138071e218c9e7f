//! `mantissa snapshot`: what becomes of models, kept as text for people to review.
//!
//! Beside the models, `snapshots/` has a file for each stage of each, in the format of [insta](https://insta.rs): what differs
//! is written as `.snap.new`, which `cargo insta review` and `--accept` take over.

use super::what::emit_planned;
use super::{StepArgs, out, read_model};
use crate::error::{Error, Result};
use crate::files::write_atomically;
use crate::plan::print_table;
use crate::rewrite::RuleSet;
use crate::train::Settings;
use clap::{Args, Parser};
use console::style;
use similar::{ChangeTag, TextDiff};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct SnapshotArgs {
    /// A folder of models (.mir, .onnx). The first line of a .mir file that begins with `# plan:` has flags of `mantissa plan`;
    /// those of net.onnx stand in net.onnx.flags
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Read rules from this directory instead of the built-in ones
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
    /// Keep what there is now as what is right
    #[arg(long)]
    accept: bool,
}

/// Flags in a model's header.
#[derive(Parser)]
#[command(name = "# plan:", no_binary_name = true, disable_help_flag = true)]
struct Header {
    #[command(flatten)]
    step: StepArgs,
}

/// The line of a `.mir` file that has its flags begins so.
const MARK: &str = "# plan:";

/// What is kept of each model, in order.
const STAGES: [&str; 5] = ["step", "plan", "table", "kernels", "cuda"];

/// Unchanged lines that are shown around a change.
const AROUND: usize = 2;

#[derive(Default)]
struct Tally {
    same: usize,
    differ: usize,
    accepted: usize,
    failed: usize,
    /// What is said in the end: a reader that goes away must not keep files from being written.
    text: String,
}

/// Compares what becomes of each model with what was kept.
///
/// # Errors
/// Where there is no model, something differs, or a model cannot be planned.
pub fn run(args: &SnapshotArgs) -> Result<()> {
    let rules = RuleSet::load_from(args.rules.as_deref())?;
    let models = models(&args.dir)?;
    let kept = args.dir.join("snapshots");
    let (mut tally, mut known) = (Tally::default(), BTreeSet::new());
    for model in &models {
        let file = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
        known.extend(STAGES.iter().enumerate().map(|(i, stage)| snapshot_name(model, i, stage)));
        match stages(model, &rules) {
            Ok(texts) => {
                for (i, (stage, text)) in STAGES.iter().zip(&texts).enumerate() {
                    let path = kept.join(snapshot_name(model, i, stage));
                    let expression = format!("mantissa plan {file} --emit {stage}");
                    compare(&path, &header(&file, &expression), text, args.accept, &mut tally)?;
                }
            }
            Err(e) => {
                tally.failed += 1;
                let text = e.render(console::colors_enabled_stderr());
                let known = text.contains(file.as_str());
                say!("{}{}", if known { String::new() } else { format!("{}: ", model.display()) }, text.trim_end());
            }
        }
    }
    orphans(&kept, &known, args.accept, &mut tally)?;
    out(&format!(
        "{}{} models: {} snapshots as they were, {} accepted, {} differ, {} models failed\n",
        tally.text,
        models.len(),
        tally.same,
        tally.accepted,
        tally.differ,
        tally.failed
    ));
    let dir = args.dir.display();
    match (tally.differ, tally.failed) {
        (0, 0) => Ok(()),
        (0, _) => Err(Error::Diverged(format!("not every model in {dir} could be planned"))),
        _ => Err(Error::Diverged(format!(
            "what becomes of the models in {dir} is not what it was; where it is right, --accept keeps it"
        ))),
    }
}

/// The models of a folder, by name.
fn models(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let paths: std::io::Result<Vec<PathBuf>> = entries.map(|e| e.map(|e| e.path())).collect();
    let mut found = paths.map_err(Error::io("read", dir))?;
    found.retain(|p| p.extension().is_some_and(|e| e == "mir" || e == "onnx"));
    found.sort();
    let texts = |p: &PathBuf| found.contains(&p.with_extension(""));
    if let Some(both) = found.iter().find(|p| p.extension().is_some_and(|e| e == "mir") && texts(p)) {
        let other = both.with_extension("");
        return Err(Error::Request(format!(
            "{} and {} would share their snapshots; rename one",
            other.display(),
            both.display()
        )));
    }
    if found.is_empty() {
        return Err(Error::Request(format!("{}: no models; they are files called .mir or .onnx", dir.display())));
    }
    Ok(found)
}

/// The flags that a model is planned with: its file's, and a line's number for messages.
fn flags(model: &Path) -> Result<(String, PathBuf, usize)> {
    if model.extension().is_some_and(|e| e == "onnx") {
        let beside = PathBuf::from(format!("{}.flags", model.display()));
        let text = if beside.exists() {
            std::fs::read_to_string(&beside).map_err(Error::io("read", &beside))?
        } else {
            String::new()
        };
        return Ok((text.replace('\n', " "), beside, 1));
    }
    let text = std::fs::read_to_string(model).map_err(Error::io("read", model))?;
    let line = text.lines().enumerate().find_map(|(i, l)| Some((i, l.strip_prefix(MARK)?)));
    Ok(line.map_or((String::new(), model.to_owned(), 1), |(i, l)| (l.to_owned(), model.to_owned(), i + 1)))
}

/// The text of each stage.
fn stages(model: &Path, rules: &RuleSet) -> Result<Vec<String>> {
    let (flags, file, line) = flags(model)?;
    let Header { step } = Header::try_parse_from(flags.split_whitespace()).map_err(|e| {
        let said = e.to_string();
        let first = said.lines().next().unwrap_or("").trim_start_matches("error: ").to_owned();
        Error::Request(format!("{}:{line}: {first}; flags are those of `mantissa plan`", file.display()))
    })?;
    if step.has_rules() {
        return Err(Error::Request(format!(
            "{}:{line}: rules are those of all models of the folder: give --rules to `mantissa snapshot`",
            file.display()
        )));
    }
    let step = step.within(model.parent().unwrap_or(Path::new(".")));
    let mut settings = Settings::default();
    step.apply(&mut settings)?;
    let compiled = settings.compile(&read_model(model, &step.sizes)?, rules, None)?;
    let text = |stage: &&str| match *stage {
        "table" => print_table(&compiled.planned, &settings.request()?),
        stage => compiled.emit(stage).map_or_else(|| emit_planned(&compiled.planned.graph, stage), Ok),
    };
    STAGES.iter().map(text).collect()
}

fn snapshot_name(model: &Path, at: usize, stage: &str) -> String {
    let is_text = model.extension().is_some_and(|e| e == "mir");
    let name = if is_text { model.file_stem() } else { model.file_name() };
    format!("{}.{}_{stage}.snap", name.unwrap_or_default().to_string_lossy(), at + 1)
}

fn header(source: &str, expression: &str) -> String {
    format!("---\nsource: {source}\nexpression: {expression}\n---\n")
}

/// A snapshot's header and what stands below it; no header where there is none.
fn parted(text: &str) -> (&str, &str) {
    let parts = text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n"));
    let (head, contents) = parts.unwrap_or(("", text));
    (head, contents.trim_end())
}

/// What a snapshot holds, below its header.
fn contents(text: &str) -> &str {
    parted(text).1
}

/// Where what a snapshot would be now waits for review.
fn pending(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.new", path.display()))
}

/// Removes what waits for review, if anything does.
fn settle(path: &Path) -> Result<()> {
    let pending = pending(path);
    if pending.exists() { std::fs::remove_file(&pending).map_err(Error::io("remove", &pending)) } else { Ok(()) }
}

fn compare(path: &Path, header: &str, text: &str, accept: bool, tally: &mut Tally) -> Result<()> {
    let kept = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        read => Some(read.map_err(Error::io("read", path))?),
    };
    let is_same = kept.as_deref().is_some_and(|k| contents(k) == text.trim_end());
    if !is_same {
        let dir = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let to = if accept { path.to_owned() } else { pending(path) };
        write_atomically(&to, format!("{header}{}\n", text.trim_end()).as_bytes())?;
    }
    match (is_same, accept) {
        (true, _) => tally.same += 1,
        (false, true) => tally.accepted += 1,
        (false, false) => {
            tally.differ += 1;
            tally.text += &format!("{}\n", style(path.display()).bold());
            tally.text += &kept.as_deref().map_or("  new\n".into(), |k| difference(contents(k), text.trim_end()));
        }
    }
    if is_same || accept { settle(path) } else { Ok(()) }
}

/// Lines that went and came, with some around them.
fn difference(before: &str, after: &str) -> String {
    let diff = TextDiff::from_lines(before, after);
    let mut text = String::new();
    for (i, group) in diff.grouped_ops(AROUND).iter().enumerate() {
        if i > 0 {
            text += "  ⋮\n";
        }
        for change in group.iter().flat_map(|op| diff.iter_changes(op)) {
            let line = change.value().trim_end_matches('\n');
            text += &match change.tag() {
                ChangeTag::Delete => format!("{}\n", style(format!("- {line}")).red()),
                ChangeTag::Insert => format!("{}\n", style(format!("+ {line}")).green()),
                ChangeTag::Equal => format!("  {line}\n"),
            };
        }
    }
    text
}

/// Was a snapshot written here? The folder may be shared with the tests of a crate.
fn is_ours(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    parted(&text).0.lines().any(|l| l.starts_with("expression: mantissa plan "))
}

/// Snapshots of models that are there no more.
fn orphans(kept: &Path, known: &BTreeSet<String>, accept: bool, tally: &mut Tally) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(kept) else { return Ok(()) };
    for path in entries.filter_map(|e| Some(e.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.ends_with(".snap") || known.contains(&name) || !is_ours(&path) {
            continue;
        }
        if accept {
            settle(&path)?;
            std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            tally.accepted += 1;
        } else {
            tally.text += &format!("{}\n  its model is gone\n", style(path.display()).bold());
            tally.differ += 1;
        }
    }
    Ok(())
}
