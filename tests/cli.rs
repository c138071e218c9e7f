//! The commands a user types, end to end.

use std::path::Path;
use std::process::{Command, Output};

fn mantissa(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mantissa")).args(args).current_dir(dir).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeed(dir: &Path, args: &[&str]) -> String {
    let out = mantissa(dir, args);
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

fn example(file: &str) -> String {
    format!("{}/examples/digits/{file}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn plan_then_train_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let table = succeed(dir.path(), &["plan", &example("run.toml"), "-o", "plan.json"]);
    for part in ["store-f16", "this plan", "everything f32", "everything low", "casts: 0 standing alone"] {
        assert!(table.contains(part), "no `{part}` in\n{table}");
    }
    let out = succeed(
        dir.path(),
        &["train", &example("run.toml"), "--plan", "plan.json", "--device", "cpu", "--out", "with"],
    );
    assert!(out.contains("test accuracy"), "{out}");
    succeed(
        dir.path(),
        &["train", &example("run.toml"), "--device", "cpu", "--epochs", "2", "--out", "short", "--json"],
    );
    let metrics = std::fs::read_to_string(dir.path().join("short/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 2);
    let line: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert!(line["test_accuracy"].as_f64().unwrap() > 0.5);
    let resumed = succeed(
        dir.path(),
        &[
            "train",
            &example("run.toml"),
            "--device",
            "cpu",
            "--epochs",
            "3",
            "--resume",
            "short/checkpoint.safetensors",
        ],
    );
    assert!(resumed.contains("trained 3 epochs"), "{resumed}");
}

#[test]
fn a_trainer_stands_alone() {
    let build = tempfile::tempdir().unwrap();
    succeed(build.path(), &["compile", &example("mlp.mir"), "-o", "trainer", "--archs", "none"]);
    let alone = tempfile::tempdir().unwrap();
    std::fs::copy(build.path().join("trainer"), alone.path().join("trainer")).unwrap();
    let out = Command::new(alone.path().join("trainer"))
        .args(["--data", &example(""), "--scale", "0.0625", "--epochs", "8", "--device", "cpu"])
        .current_dir(alone.path())
        .env_clear()
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("test accuracy"), "{}", text(&out.stdout));
    assert!(alone.path().join("runs/mlp-001/checkpoint.safetensors").exists());
}

#[test]
fn stages_print() {
    let dir = tempfile::tempdir().unwrap();
    for (stage, part) in [
        ("ir", "cross_entropy"),
        ("step", "scaler.scale"),
        ("plan", "put("),
        ("kernels", "launch 0"),
        ("cuda", "__global__"),
    ] {
        let out = succeed(dir.path(), &["plan", &example("mlp.mir"), "--emit", stage]);
        assert!(out.contains(part), "{stage}: {out}");
    }
    let doctor = succeed(dir.path(), &["doctor"]);
    assert!(doctor.contains("libcuda") && doctor.contains("looked for") || doctor.contains("found"), "{doctor}");
    assert!(succeed(dir.path(), &["rules", "list"]).contains("carry-weights"));
    assert!(succeed(dir.path(), &["rules", "check", "--trials", "2"]).contains("0 failed"));
}
