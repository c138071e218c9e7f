//! The commands a user types, end to end.

#[path = "common/command.rs"]
mod command;

use command::{digits, mantissa, refuse, succeed, text_of};
use std::process::Command;

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let Ok(full) = std::fs::File::create("/dev/full") else { return };
    let out = Command::new(env!("CARGO_BIN_EXE_mantissa")).args(["rules", "list"]).stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(text_of(&out.stderr).contains("cannot write the result"), "{}", text_of(&out.stderr));
}

#[test]
fn plan_then_train_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let table = succeed(dir.path(), &["plan", &digits("run.toml"), "-o", "plan.json"]);
    for part in ["store-f16", "this plan", "everything f32", "everything low", "casts: 0 standing alone"] {
        assert!(table.contains(part), "no `{part}` in\n{table}");
    }
    let out =
        succeed(dir.path(), &["train", &digits("run.toml"), "--plan", "plan.json", "--device", "cpu", "--out", "with"]);
    assert!(out.contains("test accuracy"), "{out}");
    succeed(
        dir.path(),
        &["train", &digits("run.toml"), "--device", "cpu", "--epochs", "2", "--out", "short", "--json"],
    );
    let metrics = std::fs::read_to_string(dir.path().join("short/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 2);
    let line: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert!(line["test_accuracy"].as_f64().unwrap() > 0.5);
    let resumed = succeed(
        dir.path(),
        &["train", &digits("run.toml"), "--device", "cpu", "--epochs", "3", "--resume", "short/checkpoint.safetensors"],
    );
    assert!(resumed.contains("trained 3 epochs"), "{resumed}");
}

#[test]
fn a_trainer_stands_alone() {
    let build = tempfile::tempdir().unwrap();
    succeed(build.path(), &["compile", &digits("mlp.mir"), "-o", "trainer", "--archs", "none"]);
    let alone = tempfile::tempdir().unwrap();
    std::fs::copy(build.path().join("trainer"), alone.path().join("trainer")).unwrap();
    let out = Command::new(alone.path().join("trainer"))
        .args(["--data", &digits(""), "--scale", "0.0625", "--epochs", "8", "--device", "cpu"])
        .current_dir(alone.path())
        .env_clear()
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", text_of(&out.stderr));
    assert!(text_of(&out.stdout).contains("test accuracy"), "{}", text_of(&out.stdout));
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
        let out = succeed(dir.path(), &["plan", &digits("mlp.mir"), "--emit", stage]);
        assert!(out.contains(part), "{stage}: {out}");
    }
    let doctor = succeed(dir.path(), &["doctor"]);
    assert!(doctor.contains("libcuda") && doctor.contains("looked for") || doctor.contains("found"), "{doctor}");
    assert!(succeed(dir.path(), &["rules", "list"]).contains("carry-weights"));
    assert!(succeed(dir.path(), &["rules", "check", "--trials", "2"]).contains("0 failed"));
}

#[test]
fn a_profile_counts_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let json = |args: &[&str]| -> serde_json::Value {
        let out = succeed(dir.path(), &[&["profile", "--json", "--batches", "3"], args].concat());
        serde_json::from_str(&out).unwrap()
    };
    let found = json(&[&digits("run.toml")]);
    // Pixels are 0 to 16, scaled by 1/16.
    let x = &found["values"]["x"]["spread"];
    assert_eq!((x["count"].as_u64(), x["largest"].as_f64()), (Some(3 * 32 * 64), Some(1.0)), "{x}");
    assert_eq!(x["smallest"].as_f64(), Some(0.0625));
    assert_eq!(found["first_non_finite"], serde_json::Value::Null);
    // Squares of gradients times the loss scale are what f16 cannot hold.
    let v = &found["values"]["optimizer.v.w1"]["formats"];
    assert!(v["f16"]["flushed"].as_f64() > Some(0.1) && v["bf16"]["flushed"].as_f64() == Some(0.0), "{v}");
    let table = succeed(dir.path(), &["profile", &digits("run.toml"), "--all"]);
    for part in ["d.logits", "backward", "optimizer.v.w1", "|-------------|", "█"] {
        assert!(table.contains(part), "no `{part}` in\n{table}");
    }

    // A loop's values are those of all its steps.
    let run = std::fs::read_to_string(digits("run.toml")).unwrap();
    let files = run.replace("mlp.mir", &digits("gru.mir")).replace("\"t", &format!("\"{}t", digits("")));
    std::fs::write(dir.path().join("gru.toml"), files).unwrap();
    succeed(dir.path(), &["plan", "gru.toml", "-o", "gru.json"]);
    let plan: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("gru.json")).unwrap()).unwrap();
    let in_loop = |v: &&serde_json::Value| v["body"] == "row" && v["name"] == "q" && v["format"] == "f16";
    assert_eq!(plan["values"].as_array().unwrap().iter().filter(in_loop).count(), 1, "{}", plan["values"]);
    let found = json(&["gru.toml"]);
    let z = &found["values"]["row: z"]["spread"];
    assert_eq!(z["count"].as_u64(), Some(3 * 8 * 32 * 32), "{z}");
    assert!(z["largest"].as_f64() < Some(1.0), "a sigmoid: {z}");
}

#[test]
fn a_profile_names_the_first_value_that_is_not_finite() {
    let dir = tempfile::tempdir().unwrap();
    let model = "model m { input x: f32[batch, 2] label y: i64[batch] param w: f32[2, 2] = ones param b: f32[2] = ones\n\
                 ok = exp(x) bad = log(x - 2) logits = (ok + bad) @ w + b loss = cross_entropy(logits, y) }";
    std::fs::write(dir.path().join("m.mir"), model).unwrap();
    std::fs::write(dir.path().join("d.csv"), "a,b,label\n4,3,0\n5,6,1\n7,8,0\n1,3,1\n").unwrap();
    let out = succeed(dir.path(), &["profile", "m.mir", "--data", "d.csv", "--batch", "4", "--batches", "1"]);
    assert!(out.contains("the first value that was not finite: `bad`, in step 1"), "{out}");
    assert!(out.contains("1 not finite"), "{out}");
    let out = mantissa(dir.path(), &["profile", "m.mir", "--data", "d.csv", "--batch", "8"]);
    assert!(text_of(&out.stderr).contains("fewer than a batch of 8") && out.status.code() == Some(2));
}

#[test]
fn the_version_says_what_it_was_built_from() {
    let o = Command::new(env!("CARGO_BIN_EXE_mantissa")).arg("--version").output().unwrap();
    let said = String::from_utf8(o.stdout).unwrap();
    assert!(said.starts_with(&format!("mantissa {} (", env!("CARGO_PKG_VERSION"))), "{said}");
    assert!(said.contains(std::env::consts::ARCH), "{said}");
}

#[test]
fn shells_and_manuals_know_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_mantissa")).args(args).output().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let said = String::from_utf8(run(&["completions", shell]).stdout).unwrap();
        assert!(said.contains("snapshot") && said.contains("policy-file"), "{shell}");
    }
    assert!(run(&["man", dir.path().to_str().unwrap()]).status.success());
    let page = std::fs::read_to_string(dir.path().join("mantissa-rules-trace.1")).unwrap();
    assert!(page.contains("Plan a model and say which rule fired"), "{page}");
}

/// Progress and hints go to stderr; that nobody reads it is no reason to lose the result.
#[cfg(unix)]
#[test]
fn a_closed_stderr_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.mir");
    std::fs::write(&model, "model m { input x: f32[4, 8]  param w: f32[8, 2] = zeros  loss = mean(x @ w) }").unwrap();
    let data = dir.path().join("d.csv");
    std::fs::write(&data, "1,2,3,4,5,6,7,8,0\n".repeat(8)).unwrap();
    let (binary, dir) = (env!("CARGO_BIN_EXE_mantissa"), dir.path().display());
    // The reader ends before the first line is written.
    let script = format!(
        "(sleep 0.2; {binary} train {dir}/m.mir --data {dir}/d.csv --policy fp32 --epochs 2 --device cpu --out {dir}/run; echo $? > {dir}/rc) 2>&1 >/dev/null | true; while [ ! -s {dir}/rc ]; do sleep 0.1; done; cat {dir}/rc"
    );
    let o = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&o.stdout).trim(), "0");
}

/// Values go by the module they belong to, and a wrong module is told.
#[test]
fn modules_name_values() {
    let dir = tempfile::tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documents/digits.onnx");
    let explained = |value: &str| succeed(dir.path(), &["explain", model, value, "--loss", "cross_entropy"]);
    assert!(explained("head/logits").contains("logits: f32[32, 10]"));
    assert_eq!(explained("head/logits"), explained("logits"));
    let said = refuse(dir.path(), &["explain", model, "heads/logits", "--loss", "cross_entropy"]);
    assert!(said.contains("no value `heads/logits`; is `head/logits` meant?"), "{said}");
}

/// What a report says of a model is data behind its drawings.
#[test]
fn a_report_knows_modules_and_sizes() {
    let dir = tempfile::tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/documents/digits.onnx");
    succeed(dir.path(), &["plan", model, "--loss", "cross_entropy", "--batch", "16", "--report", "plan.html"]);
    let page = std::fs::read_to_string(dir.path().join("plan.html")).unwrap();
    assert!(!page.contains("{{"), "all parts are put in");
    let (_, data) = page.split_once("type=\"application/json\">").unwrap();
    let data: serde_json::Value = serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
    assert_eq!((data["batch"].as_u64(), data["parameters"].as_u64()), (Some(16), Some(2746)));
    let launches = data["launches"].as_array().unwrap();
    let modules: std::collections::BTreeSet<_> = launches.iter().filter_map(|l| l["module"].as_str()).collect();
    assert!(modules.contains("conv") && modules.contains("head"), "{modules:?}");
    // One time for one kernel: what launches take adds up to the step.
    let total: f64 = launches.iter().map(|l| l["seconds"].as_f64().unwrap()).sum();
    assert!((total / data["seconds"].as_f64().unwrap() - 1.0).abs() < 1e-9, "{total}");
}
