//! Snapshots of rewrites, for people to review: the step, the plan chosen from the e-graph, its table, kernels and CUDA.
//!
//! `tests/rewrites` has the models and what becomes of them; `mantissa snapshot tests/rewrites --accept` keeps what is new.

use std::path::Path;
use std::process::{Command, Output};

const MODEL: &str = "# plan: --policy o1 --format f16 --batch 64
model m { input x: f32[batch, 512]  param w: f32[512, 512] = xavier_uniform  loss = mean(relu(x @ w)) }
";

fn snapshot(dir: &Path, args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mantissa"));
    command.arg("snapshot").arg(dir).args(args.split_whitespace()).output().unwrap()
}

fn said(o: &Output) -> String {
    String::from_utf8_lossy(&o.stdout).into_owned() + &String::from_utf8_lossy(&o.stderr)
}

#[test]
fn what_becomes_of_models_is_what_it_was() {
    let o = snapshot(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rewrites"), "");
    assert!(o.status.success(), "{}", said(&o));
    assert!(said(&o).contains("20 snapshots as they were"), "{}", said(&o));
}

/// A folder of a user's: nothing is kept until it is accepted, what differs is shown and left for `cargo insta review`.
#[test]
fn snapshots_of_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    std::fs::write(file("m.mir"), MODEL).unwrap();
    let o = snapshot(dir.path(), "");
    assert_eq!(o.status.code(), Some(1));
    assert!(said(&o).contains("new") && file("snapshots/m.2_plan.snap.new").exists(), "{}", said(&o));
    assert!(snapshot(dir.path(), "--accept").status.success());
    assert!(file("snapshots/m.2_plan.snap").exists() && !file("snapshots/m.2_plan.snap.new").exists());
    assert!(snapshot(dir.path(), "").status.success());
    // insta reads what is kept.
    let kept = std::fs::read_to_string(file("snapshots/m.2_plan.snap")).unwrap();
    assert!(
        kept.starts_with("---\nsource: m.mir\nexpression: mantissa plan m.mir --emit plan\n---\nmodel m {"),
        "{kept}"
    );

    std::fs::write(file("m.mir"), MODEL.replace("--format f16", "--format bf16")).unwrap();
    let o = snapshot(dir.path(), "");
    assert_eq!(o.status.code(), Some(1));
    assert!(said(&o).lines().any(|l| l.starts_with("- ") && l.contains("f16[")), "{}", said(&o));
    assert!(said(&o).lines().any(|l| l.starts_with("+ ") && l.contains("bf16[")), "{}", said(&o));
    assert_eq!(std::fs::read_to_string(file("snapshots/m.2_plan.snap")).unwrap(), kept, "nothing is overwritten");

    // Somebody else's, of a crate's tests.
    let theirs = "---\nsource: tests/a.rs\nexpression: value\n---\n1\n";
    std::fs::write(file("snapshots/theirs.snap"), theirs).unwrap();
    std::fs::rename(file("m.mir"), file("other.mir")).unwrap();
    let o = snapshot(dir.path(), "");
    assert!(said(&o).contains("its model is gone"), "{}", said(&o));
    assert!(snapshot(dir.path(), "--accept").status.success());
    assert_eq!(std::fs::read_to_string(file("snapshots/theirs.snap")).unwrap(), theirs);
    assert!(!file("snapshots/m.2_plan.snap.new").exists(), "what is pending of a model that is gone goes with it");
    assert!(!file("snapshots/m.2_plan.snap").exists() && file("snapshots/other.2_plan.snap").exists());
}

#[test]
fn snapshots_of_rules_and_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    assert!(said(&snapshot(dir.path(), "")).contains("no models"));
    std::fs::write(file("m.mir"), MODEL).unwrap();
    assert!(snapshot(dir.path(), "--accept").status.success());
    // Without rules that round, nothing can be narrow.
    std::fs::create_dir(file("mine")).unwrap();
    for phase in ["recognise", "simplify", "layout", "fuse", "carry"] {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules").join(phase).with_extension("rules");
        std::fs::copy(rules, file("mine").join(phase).with_extension("rules")).unwrap();
    }
    let o = snapshot(dir.path(), &format!("--rules {}", file("mine").display()));
    assert_eq!(o.status.code(), Some(1));
    // The step is as it was, and everything after it is not.
    assert!(said(&o).contains("1 snapshots as they were, 0 accepted, 4 differ, 0 models failed"), "{}", said(&o));

    std::fs::write(file("m.mir"), MODEL.replace("--policy o1", "--polcy o1")).unwrap();
    let o = snapshot(dir.path(), "");
    assert!(said(&o).contains("m.mir:1: unexpected argument '--polcy'"), "{}", said(&o));
    std::fs::write(file("m.mir"), MODEL.replace("--policy o1", "--rules mine")).unwrap();
    assert!(said(&snapshot(dir.path(), "")).contains("m.mir:1: rules are those of all models"));
    std::fs::write(file("m.mir"), MODEL.replace("--policy o1", "--policy o1 --target mine.toml")).unwrap();
    let o = snapshot(dir.path(), "");
    assert!(
        said(&o).contains(&file("mine.toml").display().to_string()),
        "the profile is looked for beside: {}",
        said(&o)
    );
    std::fs::write(file("m.onnx"), "").unwrap();
    std::fs::write(file("m.onnx.mir"), MODEL).unwrap();
    assert!(said(&snapshot(dir.path(), "")).contains("would share their snapshots"));
}
