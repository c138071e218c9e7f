//! A plan as one page to look at: `plan --report`. Everything is in the file; it asks nothing of a network.
//!
//! What is shown is data that other programs could read too: a JSON object inside `report.html`, which draws it.

use super::table::{kind_of, label};
use crate::error::Result;
use crate::ir::{Graph, NodeId, Op, Stage, verify};
use crate::lower::{Program, outline};
use crate::plan::evidence::Spread;
use crate::plan::{Planned, Request};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: &str = include_str!("report.html");

#[derive(Serialize)]
struct Report {
    name: String,
    target: String,
    device: String,
    policy: String,
    seconds: f64,
    bytes: usize,
    /// Other plans of the same step, for comparison.
    others: Vec<(String, f64)>,
    launches: Vec<Launch>,
    /// Pairs of launches, the later of which reads what the earlier wrote.
    edges: Vec<(usize, usize)>,
    /// What parameters, states and inputs take, in bytes; temporaries are by launch.
    resident: usize,
    memory: usize,
    values: Vec<Value>,
    formats: Vec<FormatRange>,
    evidence: Option<Evidence>,
}

/// Kernels that start together.
#[derive(Serialize)]
struct Launch {
    kind: String,
    stage: &'static str,
    /// The row it stands in: a gradient's kernel beside that of the value it belongs to.
    row: usize,
    seconds: f64,
    /// The time that its bytes and its products take at the full rates.
    floor: f64,
    bytes: usize,
    times: usize,
    computes: Vec<String>,
    /// Formats of what it stores.
    formats: Vec<String>,
    /// Bytes of temporaries alive while it runs.
    live: usize,
}

/// A value of the step that the plan stores, or that was looked at.
#[derive(Serialize)]
struct Value {
    name: String,
    stage: &'static str,
    shape: Vec<usize>,
    /// What it is, if it comes from outside the step: parameter, state or input.
    source: Option<&'static str>,
    /// Formats it has in memory, those of its copies among them.
    formats: Vec<String>,
    rule: Option<String>,
    reason: Option<String>,
    shares: BTreeMap<String, f64>,
    spread: Option<Spread>,
}

/// A format's numbers as powers of two: smallest, smallest normal, largest.
#[derive(Serialize)]
struct FormatRange {
    name: &'static str,
    smallest: i32,
    normal: i32,
    largest: i32,
}

#[derive(Serialize)]
struct Evidence {
    budget: String,
    loss_scale: f64,
    estimated: f64,
    measured: Option<f64>,
    measured_on: String,
    frontier: Vec<(f64, f64)>,
}

/// The page of a plan. `others` are the predicted times of other plans of the step, by what they are.
///
/// # Errors
/// A planned graph that breaks the IR's rules or has no kernels.
pub fn report(step: &Graph, planned: &Planned, request: &Request, others: Vec<(String, f64)>) -> Result<String> {
    let program = outline(verify(&planned.graph)?)?;
    let (launches, edges) = launches(step, planned, request, &program);
    let temporary = |b: &crate::lower::BufferInfo| b.source.is_none();
    let resident = program.buffers.iter().filter(|b| !temporary(b)).map(size).sum();
    let calibration = request.calibration.as_ref();
    let evidence = calibration.map(|c| Evidence {
        budget: c.budget_text(),
        loss_scale: c.loss_scale,
        estimated: planned.estimated_noise(),
        measured: planned.measured.as_ref().map(crate::plan::Measured::overall),
        measured_on: planned.measured.as_ref().map_or(String::new(), crate::plan::Measured::on),
        frontier: planned.frontier.clone(),
    });
    let range = |f: crate::format::Format| {
        let spec = f.float()?;
        let normal = 1 - spec.bias;
        let largest = spec.max.log2().floor() as i32;
        Some(FormatRange { name: f.name(), smallest: normal - spec.mantissa_bits as i32, normal, largest })
    };
    let report = Report {
        name: step.name.clone(),
        target: request.target.name.clone(),
        device: request.target.device.clone(),
        policy: request.policy.to_string(),
        seconds: planned.estimate.seconds,
        bytes: planned.estimate.bytes,
        others,
        launches,
        edges,
        resident,
        memory: program.memory().total(),
        values: values(step, planned, request),
        formats: request.allowed().iter().filter_map(range).collect(),
        evidence,
    };
    let json = serde_json::to_string(&report).expect("a report is plain data");
    // Inside a script element only this could end it.
    Ok(PAGE.replace("{{TITLE}}", &escaped(&step.name)).replace("{{DATA}}", &json.replace("</", "<\\/")))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn size(b: &crate::lower::BufferInfo) -> usize {
    b.ty.elements() * b.ty.format.bytes()
}

fn launches(
    step: &Graph,
    planned: &Planned,
    request: &Request,
    program: &Program,
) -> (Vec<Launch>, Vec<(usize, usize)>) {
    let g = &planned.graph;
    // The step's value behind a stored buffer.
    let value = |buffer: &str| -> Option<NodeId> {
        let id = g.find(buffer)?;
        let of = g.inputs(id).first().copied().filter(|_| matches!(g.op(id), Op::Put(_))).unwrap_or(id);
        step.find(g.name_of(of))
    };
    let mut writer: BTreeMap<usize, usize> = BTreeMap::new();
    let (mut first, mut last): (BTreeMap<usize, usize>, BTreeMap<usize, usize>) = Default::default();
    let mut edges = BTreeSet::new();
    for (at, range) in program.launches.iter().enumerate() {
        for i in range.clone() {
            for b in program.calls[i].kernel.reads() {
                last.insert(b, at);
                edges.extend(writer.get(&b).filter(|&&w| w != at).map(|&w| (w, at)));
            }
        }
        for b in range.clone().flat_map(|i| program.calls[i].kernel.writes().collect::<Vec<_>>()) {
            writer.insert(b, at);
            first.entry(b).or_insert(at);
            last.entry(b).or_insert(at);
        }
    }
    let mut row_of: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut rows = 0;
    let mut out: Vec<Launch> = Vec::new();
    for (at, range) in program.launches.iter().enumerate() {
        let values: Vec<NodeId> =
            range.clone().flat_map(|i| &program.calls[i].computes).filter_map(|n| value(n)).collect();
        // What is computed again stands beside where it was computed first.
        let again =
            || range.clone().flat_map(|i| &program.calls[i].computes).filter_map(|n| planned.first_of(g.find(n)?));
        let known = values.iter().map(|&v| step.node(v).stage).min();
        let stage = match again().next() {
            Some(_) => Stage::Backward,
            None => known.unwrap_or(out.last().map_or(Stage::Forward, |l| match l.stage {
                "update" => Stage::Update,
                "backward" => Stage::Backward,
                _ => Stage::Forward,
            })),
        };
        let mut of = values
            .iter()
            .filter_map(|&v| step.node(v).grad_of)
            .chain(again().filter_map(|first| value(g.name_of(first))));
        let beside = of.find_map(|f| row_of.get(&f).copied());
        let row = match (stage, beside) {
            (Stage::Backward, Some(row)) => row,
            (Stage::Backward, None) => out.last().map_or(0, |l| l.row),
            _ => {
                rows += 1;
                rows - 1
            }
        };
        values.iter().for_each(|&v| {
            row_of.entry(v).or_insert(row);
        });
        let mut estimate = crate::cost::Estimate {
            seconds: request.target.launch_seconds(&program.calls[range.start].kernel, range.len()),
            bytes: 0,
        };
        let mut floor = 0.0;
        for i in range.clone() {
            let format_of = |b: crate::lower::BufferId| program.buffers[b].ty.format;
            estimate += request.target.estimate(&program.calls[i].kernel, format_of);
            floor += request.target.floor(&program.calls[i].kernel, format_of);
        }
        let times = program.calls[range.start].times();
        let computes = range.clone().flat_map(|i| {
            program.calls[i].computes.iter().map(move |n| label(planned, program.calls[i].in_loop.as_ref(), n))
        });
        let written = range.clone().flat_map(|i| program.calls[i].kernel.writes().collect::<Vec<_>>());
        let formats: BTreeSet<String> = written.map(|b| program.buffers[b].ty.format.to_string()).collect();
        let live = |(b, &end): (&usize, &usize)| {
            let alive = program.buffers[*b].source.is_none() && end >= at && first.get(b).is_some_and(|&f| f <= at);
            if alive { size(&program.buffers[*b]) } else { 0 }
        };
        out.push(Launch {
            kind: kind_of(&program.calls[range.start].kernel),
            stage: stage.name(),
            row,
            seconds: estimate.seconds * times as f64,
            floor: floor * times as f64,
            bytes: estimate.bytes * times,
            times,
            computes: computes.collect(),
            formats: formats.into_iter().collect(),
            live: last.iter().map(live).sum(),
        });
    }
    (out, edges.into_iter().collect())
}

fn values(step: &Graph, planned: &Planned, request: &Request) -> Vec<Value> {
    let g = &planned.graph;
    let mut stored: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for id in g.ids().filter(|&id| matches!(g.op(id), Op::Put(_))) {
        stored.entry(g.name_of(g.inputs(id)[0])).or_default().insert(g.ty(id).format.to_string());
    }
    let calibration = request.calibration.as_ref();
    let mut out = Vec::new();
    for id in step.ids() {
        let name = step.name_of(id);
        let spread = calibration.and_then(|c| c.evidence.values.get(name)).cloned();
        let mut formats = stored.get(name).cloned().unwrap_or_default();
        let op = step.op(id);
        if op.is_source() {
            formats.insert(step.ty(id).format.to_string());
            let copies = g.sources().filter(|&s| g.op(s).copy_of() == Some(name));
            formats.extend(copies.map(|s| g.ty(s).format.to_string()));
        }
        if (formats.is_empty() && spread.is_none()) || !step.ty(id).format.is_float() {
            continue;
        }
        let shares = calibration.map(|c| c.stored(name)).unwrap_or_default();
        out.push(Value {
            name: name.to_owned(),
            stage: step.node(id).stage.name(),
            shape: step.ty(id).dims(),
            source: op.is_source().then(|| op.name()),
            formats: formats.into_iter().collect(),
            rule: planned.rules.get(name).cloned(),
            reason: planned.reasons.get(name).cloned(),
            shares: shares.into_iter().map(|(f, s)| (f.to_string(), s)).collect(),
            spread,
        });
    }
    out
}
