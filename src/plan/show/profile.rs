//! What every kernel took beside what it was predicted to take.

use super::table::{clip, kind_of, label};
use crate::cost::{Estimate, Target};
use crate::lower::Program;
use crate::plan::Planned;
use crate::plan::units::{bytes, seconds};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Launches that compute the same values: those of a loop's steps.
#[derive(Default)]
struct Row {
    launches: usize,
    measured: f64,
    predicted: Estimate,
}

/// Rows shown by name; the rest are summed up.
const SHOWN: usize = 40;

/// A table of launches, the longest first. `measured` holds the seconds of each launch of the plan's program, on `device`.
pub fn print_profile(planned: &Planned, program: &Program, target: &Target, measured: &[f64], device: &str) -> String {
    let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
    let mut kinds: BTreeMap<String, Row> = BTreeMap::new();
    for (launch, &took) in program.launches.iter().zip(measured) {
        let predicted = target.estimate_launch(program, launch);
        let kind = kind_of(&program.calls[launch.start].kernel);
        let key = (kind.clone(), names(planned, program, launch.clone()));
        for row in [rows.entry(key).or_default(), kinds.entry(kind).or_default()] {
            row.launches += 1;
            row.measured += took;
            row.predicted += predicted;
        }
    }
    let mut out = format!("kernels on {device}, beside what was predicted for {} ({})\n\n", target.name, target.device);
    let line = |out: &mut String, r: &Row, kind: &str, what: &str| {
        let ratio = r.measured / r.predicted.seconds;
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{:>9} {:>9} {ratio:>6.2} {:>9} {:>5}  {kind:<13} {}",
            seconds(r.measured),
            seconds(r.predicted.seconds),
            bytes(r.predicted.bytes),
            r.launches,
            clip(what, 60)
        );
    };
    let head = format!(
        "{:>9} {:>9} {:>6} {:>9} {:>5}  {:<13} computes\n",
        "measured", "predicted", "ratio", "bytes", "times", "kernel"
    );
    out += &head;
    let mut sorted: Vec<(&(String, String), &Row)> = rows.iter().collect();
    sorted.sort_by(|a, b| b.1.measured.total_cmp(&a.1.measured));
    for (at, ((kind, what), row)) in sorted.iter().enumerate() {
        if at < SHOWN {
            line(&mut out, row, kind, what);
        }
    }
    let sum = |rows: &mut dyn Iterator<Item = &Row>| {
        rows.fold(Row::default(), |mut sum, r| {
            (sum.launches, sum.measured) = (sum.launches + r.launches, sum.measured + r.measured);
            sum.predicted += r.predicted;
            sum
        })
    };
    if sorted.len() > SHOWN {
        line(&mut out, &sum(&mut sorted[SHOWN..].iter().map(|r| r.1)), "", "all others");
    }
    out += "\n";
    for (kind, row) in &kinds {
        line(&mut out, row, kind, "all of this kind");
    }
    line(&mut out, &sum(&mut kinds.values()), "", "all, one after the other");
    out
}

/// What a launch computes, by the names of the plan.
fn names(planned: &Planned, program: &Program, launch: std::ops::Range<usize>) -> String {
    let mut out = Vec::new();
    for i in launch {
        out.extend(program.calls[i].computes.iter().map(|n| label(planned, program.calls[i].in_loop.as_ref(), n)));
    }
    out.join(", ")
}
