//! Two plans side by side: what is stored otherwise, and what that does to time and noise.

use super::table::clip;
use crate::plan::file::{PlanFile, PlannedValue};
use crate::plan::units::{bytes, seconds};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The differences between two plans, `a` and `b` by their names.
pub fn diff(a: (&str, &PlanFile), b: (&str, &PlanFile)) -> String {
    let (width, mut out) = (a.0.chars().count().max(b.0.chars().count()), String::new());
    // Writing to a String cannot fail.
    for (label, (name, f)) in [("a", a), ("b", b)] {
        let _ = write!(
            out,
            "{label}  {name:<width$}  policy {} {} for {}: {}, {}",
            f.policy,
            f.low,
            f.target,
            seconds(f.predicted_seconds),
            bytes(f.bytes_moved)
        );
        if let Some(e) = &f.evidence {
            let measured = e.measured.as_ref().map_or(String::new(), |m| format!(", measured {:.3}", m.overall()));
            let _ = write!(out, "; noise in budgets: estimated {:.3}{measured}", e.estimated);
        }
        out.push('\n');
    }
    if a.1.step_fingerprint != b.1.step_fingerprint {
        out += "the plans are for different training steps: model, sizes, optimizer, policy or loss scale differ\n";
    }
    let (in_a, in_b) = (formats(&a.1.values), formats(&b.1.values));
    let names: BTreeSet<&String> = in_a.keys().chain(in_b.keys()).collect();
    let shown =
        |of: &BTreeMap<String, Stored>, name: &str| of.get(name).map_or("-".to_owned(), |s| s.formats.join("+"));
    let differing: Vec<&&String> = names.iter().filter(|n| shown(&in_a, n) != shown(&in_b, n)).collect();
    if differing.is_empty() {
        let _ = writeln!(out, "\nboth store the same {} values in the same formats", names.len());
        return out;
    }
    let _ = writeln!(out, "\n{:<36} {:<12} {:<12} why, in the plan that stores it narrower", "value", "a", "b");
    for name in &differing {
        let narrower = |of: &BTreeMap<String, Stored>| of.get(**name).map(|s| (s.bytes, s.why.clone()));
        let why =
            [narrower(&in_a), narrower(&in_b)].into_iter().flatten().min_by_key(|w| w.0).map_or(String::new(), |w| w.1);
        let _ = writeln!(out, "{:<36} {:<12} {:<12} {why}", clip(name, 36), shown(&in_a, name), shown(&in_b, name));
    }
    let _ = writeln!(out, "\n{} of {} stored values differ; - is not in memory", differing.len(), names.len());
    out
}

/// How a plan stores a value.
struct Stored {
    formats: Vec<&'static str>,
    bytes: usize,
    why: String,
}

fn formats(values: &[PlannedValue]) -> BTreeMap<String, Stored> {
    let mut out: BTreeMap<String, Stored> = BTreeMap::new();
    for v in values {
        let name = v.body.as_ref().map_or(v.name.clone(), |b| format!("{b}: {}", v.name));
        let why = v.reason.clone().unwrap_or_default();
        let s = out.entry(name).or_insert(Stored { formats: Vec::new(), bytes: v.format.bytes(), why });
        s.formats.push(v.format.name());
        s.formats.sort_unstable();
        s.formats.dedup();
        s.bytes = s.bytes.min(v.format.bytes());
    }
    out
}
