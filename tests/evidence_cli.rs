//! Planning by evidence from the command line: plan, explain, diff, policy files.

#[path = "common/command.rs"]
mod command;

use command::{digits, refuse, succeed};

#[test]
fn a_plan_by_evidence_is_kept_and_trained_with() {
    let dir = tempfile::tempdir().unwrap();
    let (run, model) = (digits("run.toml"), digits("mlp.mir"));
    let out = succeed(dir.path(), &["plan", &run, "--policy", "auto", "-o", "auto.json"]);
    for part in ["calibrated on 8 batches", "held-out batches", "loss scale", "of the budget"] {
        assert!(out.contains(part), "no `{part}` in\n{out}");
    }
    let file = std::fs::read_to_string(dir.path().join("auto.json")).unwrap();
    let plan: serde_json::Value = serde_json::from_str(&file).unwrap();
    assert!(plan["evidence"]["measured"]["results"]["w1"].as_f64().unwrap() < 3.0);
    let train = |args: &[&str]| succeed(dir.path(), &[&["train", &run, "--device", "cpu"], args].concat());
    let with = train(&["--plan", "auto.json", "--out", "with", "--json"]);
    let without = train(&["--policy", "auto", "--out", "without", "--json"]);
    let loss = |s: &str| serde_json::from_str::<serde_json::Value>(s).unwrap()["last"]["loss"].as_f64().unwrap();
    assert_eq!(loss(&with), loss(&without), "the same plan, kept or made again");
    // Without data the lists decide, and the plan says so.
    let out = succeed(dir.path(), &["plan", &model, "--policy", "auto"]);
    assert!(out.contains("without data"), "{out}");
    let gated = "model gated { input x: f32[batch, 8] label y: f32[batch, 4] param w: f32[8, 4] = xavier_uniform \
                 param s: f32[4] = ones h = tanh(x @ w) p = h * s loss = mse(p, y) }";
    std::fs::write(dir.path().join("gated.mir"), gated).unwrap();
    let out = succeed(dir.path(), &["explain", "gated.mir", "h", "--policy", "auto"]);
    assert!(out.contains("lies between -1.000e0 and 1.000e0, which f16 holds"), "tanh is bounded: {out}");
    // Other data than the run's.
    let out = succeed(
        dir.path(),
        &["plan", &model, "--policy", "auto", "--calibrate", &digits(""), "--scale", "0.0625", "--budget", "rel=0.02"],
    );
    assert!(out.contains("2e-2 of the gradients"), "{out}");
}

#[test]
fn plans_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let run = digits("run.toml");
    for policy in ["o1", "fp32"] {
        succeed(dir.path(), &["plan", &run, "--policy", policy, "-o", &format!("{policy}.json")]);
    }
    let out = succeed(dir.path(), &["plan", "--diff", "o1.json", "fp32.json"]);
    let row = out.lines().find(|l| l.starts_with("h ")).unwrap_or_else(|| panic!("no row for h in\n{out}"));
    assert_eq!(row.split_whitespace().take(3).collect::<Vec<_>>(), ["h", "f16", "f32"]);
    let same = succeed(dir.path(), &["plan", "--diff", "o1.json", "o1.json"]);
    assert!(same.contains("the same"), "{same}");
    assert!(refuse(dir.path(), &["plan", "--diff", "o1.json", &run]).contains("not a plan file"));
}

#[test]
fn a_value_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let run = digits("run.toml");
    let out = succeed(dir.path(), &["explain", &run, "h", "--policy", "auto"]);
    for part in [
        "h: f32[32, 128] = relu(t1)",
        "forward pass, read by",
        "% zeros",
        "rounding it for all readers to f16 takes",
        "in memory as f16",
        "store-f16: Keep this value in memory as f16.",
        "in registers",
        "read in f32 by `t2`",
        "slower",
    ] {
        assert!(out.contains(part), "no `{part}` in\n{out}");
    }
    let json = succeed(dir.path(), &["explain", &run, "d.w1", "--json"]);
    let e: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(e["stage"], "backward");
    let chosen = e["alternatives"].as_array().unwrap().iter().filter(|a| a["chosen"] == true);
    for a in chosen {
        assert_eq!(a["seconds"], e["seconds"]);
    }
    // As it acts in inference, where there are no gradients; evidence takes weights, which an untrained model has none of.
    let model = digits("mlp.mir");
    let out = succeed(dir.path(), &["explain", &model, "h", "--inference"]);
    assert!(out.contains("read by t2 (matmul)\n") && out.contains("read in f32 by `t2`"), "{out}");
    let error = refuse(dir.path(), &["explain", &model, "d.w1", "--inference"]);
    assert!(error.contains("no value `d.w1`"), "{error}");
    let error = refuse(dir.path(), &["explain", &run, "h", "--policy", "auto", "--inference"]);
    assert!(error.contains("has no value in the model's file"), "{error}");
    let error = refuse(dir.path(), &["explain", &run, "w11"]);
    assert!(error.contains("no value `w11`; is `w1` meant?"), "{error}");
    let error = refuse(dir.path(), &["explain", &digits("gru.mir"), "q"]);
    assert!(error.contains("inside the loop `row`"), "{error}");
}

/// Every kind of product must be f32 where a parameter that all of them touch is; nothing else changes.
#[test]
fn a_policy_file_goes_before_the_policy() {
    let dir = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(dir.path().join("p.toml"), text).unwrap();
    let model = digits("mlp.mir");
    let plan = || succeed(dir.path(), &["plan", &model, "--policy-file", "p.toml", "--emit", "plan"]);
    let products = |text: &str, format: &str| text.matches(&format!("format={format}, t=")).count();
    write("\"w2\" = \"f32\"");
    let kept = plan();
    assert_eq!((products(&kept, "f32"), products(&kept, "f16")), (3, 2), "{kept}");
    assert!(!kept.contains("w2.f16"), "{kept}");
    write("op.matmul = \"f32\"");
    assert_eq!(products(&plan(), "f16"), 0);
    for (text, says) in [
        ("\"w9*\" = \"f32\"", "no value's name matches `w9*`"),
        ("op.rely = \"f32\"", "no operation `rely`; is `relu` meant?"),
        ("\"w1\" = \"bf16\"", "`w1` asks for bf16, but this plan has f32 and f16"),
        ("\"w*\" = \"f32\"\n\"?2\" = \"f16\"", "`w*` wants f32 and `?2` wants f16 for `w2`"),
        ("w1 = 3", "p.toml:1"),
    ] {
        write(text);
        let error = refuse(dir.path(), &["plan", &model, "--policy-file", "p.toml"]);
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn budgets_and_formats_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let run = digits("run.toml");
    for (args, says) in [
        (["--budget", "-3"], "--budget takes a share"),
        (["--budget", "abs=1"], "--budget takes a share"),
        (["--formats", "f8e4m3"], "cannot be planned yet"),
        (["--formats", "half"], "unknown format `half`"),
        (["--calibration-batches", "0"], "at least 1"),
    ] {
        let flag = format!("{}={}", args[0], args[1]);
        let error = refuse(dir.path(), &["plan", &run, "--policy", "auto", &flag]);
        assert!(error.contains(says), "{args:?}: {error}");
    }
}

/// The page holds everything it shows, and asks nothing of anybody.
#[test]
fn a_report_is_one_page() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["plan", &digits("run.toml"), "--policy", "auto", "--batch", "256", "--report", "plan.html"];
    succeed(dir.path(), &args);
    let page = std::fs::read_to_string(dir.path().join("plan.html")).unwrap();
    for outside in ["src=", "href=", "@import", "url(", "fetch(", "https://"] {
        assert!(!page.contains(outside), "the page reaches outside by `{outside}`");
    }
    let from = page.find("type=\"application/json\">").unwrap() + "type=\"application/json\">".len();
    let json = &page[from..from + page[from..].find("</script>").unwrap()];
    let data: serde_json::Value = serde_json::from_str(json).unwrap();
    let launches = data["launches"].as_array().unwrap();
    assert!(launches.iter().all(|l| l["seconds"].as_f64() >= l["floor"].as_f64()), "no kernel beats its floor");
    assert!(data["edges"].as_array().unwrap().len() >= launches.len() / 2);
    let values = data["values"].as_array().unwrap();
    let w1 = values.iter().find(|v| v["name"] == "w1").unwrap();
    assert_eq!(w1["formats"], serde_json::json!(["f16", "f32"]), "the master and its copy");
    assert!(w1["spread"]["octaves"].as_object().unwrap().len() > 3 && w1["shares"]["f16"].as_f64().is_some());
    assert!(refuse(dir.path(), &args).contains("--force"));
}
