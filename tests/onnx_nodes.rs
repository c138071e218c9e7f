//! ONNX's own backend node tests on the CPU executor.
//!
//! They lie in the `onnx` Python package (`onnx/backend/test/data`); `MANTISSA_ONNX_TESTS` names that folder. Without it
//! the test says that it was skipped. `tests/extra/run.sh` installs the package and runs it.

mod common;

use mantissa::cost::Target;
use mantissa::format::Format;
use mantissa::ir::{Op, Role, verify};
use mantissa::lower::lower;
use mantissa::model::{Model, Purpose, Weight, read_tensor};
use mantissa::plan::{Policy, Request, plan};
use mantissa::rewrite::RuleSet;
use mantissa::run::Device;
use mantissa::run::cpu::CpuRunner;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Cases that the standard calls tests but that this project does not run, with the reason. Everything else that fails
/// fails the test.
const LEFT_OUT: [(&str, &str); 3] = [
    ("training_dropout", "draws from NumPy's generator"),
    ("bernoulli", "draws from NumPy's generator"),
    ("adam_multiple", "was computed with epsilon = 0.01, but its model leaves the operator's default of 1e-6"),
];

#[derive(Debug)]
enum Outcome {
    Passed,
    /// The importer refuses it, saying why.
    Unsupported(String),
    Failed(String),
}

#[test]
fn every_node_test_passes_or_is_not_supported() {
    let Some(root) = std::env::var_os("MANTISSA_ONNX_TESTS").map(PathBuf::from) else {
        println!("skipped: MANTISSA_ONNX_TESTS does not name ONNX's test data");
        return;
    };
    let only = std::env::var("MANTISSA_ONNX_ONLY").unwrap_or_default();
    let mut cases: Vec<PathBuf> = std::fs::read_dir(root.join("node")).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    let rules = RuleSet::builtin().unwrap();
    let (mut passed, mut failed) = (0, Vec::new());
    let mut unsupported: BTreeMap<String, usize> = BTreeMap::new();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        if !name.contains(&only) || !case.join("model.onnx").exists() {
            continue;
        }
        let outcome = match LEFT_OUT.iter().find(|l| name.contains(l.0)) {
            Some((_, why)) => Outcome::Unsupported((*why).to_owned()),
            None => catch_unwind(AssertUnwindSafe(|| run(case, &rules))).unwrap_or_else(|e| {
                let text =
                    e.downcast_ref::<String>().cloned().or_else(|| e.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                Outcome::Failed(format!("panicked: {}", text.unwrap_or_default()))
            }),
        };
        match outcome {
            Outcome::Passed => passed += 1,
            Outcome::Unsupported(why) => {
                if !only.is_empty() {
                    println!("not supported {name}: {why}");
                }
                *unsupported.entry(group(&why)).or_default() += 1;
            }
            Outcome::Failed(why) => failed.push((name, why)),
        }
    }
    std::panic::set_hook(hook);
    for (why, n) in &unsupported {
        println!("not supported × {n}: {why}");
    }
    for (name, why) in &failed {
        println!("FAILED {name}: {why}");
    }
    println!("{passed} passed, {} failed, {} not supported", failed.len(), unsupported.values().sum::<usize>());
    assert!(failed.is_empty(), "{} node tests failed", failed.len());
    assert!(!only.is_empty() || passed >= 1100, "only {passed} passed");
}

/// The reason without names and numbers, so that equal ones add up.
fn group(why: &str) -> String {
    let line = why.lines().find(|l| l.contains(" × ")).unwrap_or(why.lines().next().unwrap_or(""));
    let line = line.rsplit("model.onnx: ").next().unwrap_or(line);
    line.split(" × ").next().unwrap_or(line).split('`').step_by(2).collect::<Vec<_>>().join("…").trim().to_owned()
}

fn run(case: &Path, rules: &RuleSet) -> Outcome {
    let model = match Model::read(&case.join("model.onnx")) {
        Ok(m) => m,
        Err(e) => return Outcome::Unsupported(e.to_string()),
    };
    let mut sets = 0;
    while case.join(format!("test_data_set_{sets}")).exists() {
        if let other @ (Outcome::Failed(_) | Outcome::Unsupported(_)) =
            run_set(&model, &case.join(format!("test_data_set_{sets}")), rules)
        {
            return other;
        }
        sets += 1;
    }
    if sets == 0 { Outcome::Unsupported("has no data".into()) } else { Outcome::Passed }
}

fn tensors(dir: &Path, kind: &str) -> Result<Vec<Weight>, String> {
    let mut out = Vec::new();
    while dir.join(format!("{kind}_{}.pb", out.len())).exists() {
        out.push(read_tensor(&dir.join(format!("{kind}_{}.pb", out.len()))).map_err(|e| e.to_string())?);
    }
    Ok(out)
}

fn run_set(model: &Model, dir: &Path, rules: &RuleSet) -> Outcome {
    let (inputs, outputs) = match (tensors(dir, "input"), tensors(dir, "output")) {
        (Ok(i), Ok(o)) => (i, o),
        (Err(e), _) | (_, Err(e)) => return Outcome::Unsupported(e),
    };
    let names = model.input_names();
    let values: BTreeMap<String, Weight> = names.iter().cloned().zip(inputs).collect();
    // Inputs are given their shapes; those that an importer needs to know are fixed one after the other.
    let mut fixed: BTreeMap<String, Weight> = BTreeMap::new();
    let shapes = values.iter().map(|(n, w)| (n.clone(), w.dims.clone())).collect();
    let bound = loop {
        match model.bind_shaped(&shapes, Purpose::AsWritten, &fixed) {
            Ok(b) => break b,
            Err(e) => {
                let text = e.to_string();
                let open = |n: &&String| !fixed.contains_key(*n) && values.contains_key(*n);
                let named = names.iter().find(|n| open(n) && text.contains(&format!("(`{n}`) must be a constant")));
                // What must be known may be computed from an input: from a whole number, likely.
                let whole = |n: &&String| !values[*n].format.is_float();
                let derived = || names.iter().find(|n| open(n) && whole(n) && text.contains("must be a constant"));
                let wanted = named.or_else(derived);
                match wanted {
                    Some(n) => fixed.insert(n.clone(), values[n].clone()),
                    None => return Outcome::Unsupported(text),
                };
            }
        }
    };
    let request = Request::by_lists(Policy::Fp32, Format::F16, Target::named("cpu").unwrap());
    let planned = match plan(&bound.graph, &request, rules) {
        Ok(p) => p.graph,
        Err(e) => return Outcome::Failed(format!("cannot be planned: {e}")),
    };
    let mut cpu = CpuRunner::new(lower(verify(&planned).unwrap()).unwrap());
    for id in planned.sources() {
        let name = planned.name_of(id);
        let w = match planned.op(id) {
            Op::Input { .. } => &values[name],
            _ => &bound.weights[name],
        };
        if let Err(e) = cpu.write_as(name, w.format, w.bytes()) {
            return Outcome::Failed(e.to_string());
        }
    }
    cpu.run().unwrap();
    let results: Vec<_> = planned.outputs().iter().filter(|o| o.role == Role::Output).collect();
    for (o, expected) in results.iter().zip(&outputs) {
        let got = cpu.read_wide(&o.name).unwrap();
        let dims = planned.ty(o.node).dims();
        if dims != expected.dims {
            return Outcome::Failed(format!("`{}` has shape {dims:?}, not {:?}", o.name, expected.dims));
        }
        if let Err(e) = close(&got, &expected.values::<f64>(), expected.format) {
            return Outcome::Failed(format!("`{}`: {e}", o.name));
        }
    }
    Outcome::Passed
}

/// ONNX's own tolerances (rtol 1e-3, atol 1e-7), widened by the rounding of narrow results.
fn close(got: &[f64], expected: &[f64], format: Format) -> Result<(), String> {
    let unit = format.float().map_or(0.0, |s| s.unit_roundoff());
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        let tolerance = 1e-6 + (1e-3 + 4.0 * unit) * e.abs();
        let same = (g.is_nan() && e.is_nan()) || g == e || (g - e).abs() <= tolerance;
        if !same {
            return Err(format!("element {i} is {g}, not {e}"));
        }
    }
    Ok(())
}
