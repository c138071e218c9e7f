//! A plan as one page to look at: `plan --report`. Everything is in the file; it asks nothing of a network.
//!
//! What is shown is data that other programs could read too: a JSON object inside `report.html`, which `report.js` draws.

use super::table::{kind_of, label};
use crate::error::Result;
use crate::format::Format;
use crate::format::Spread;
use crate::ir::{Graph, NodeId, Op, Stage, verify};
use crate::lower::{BufferId, Program, outline};
use crate::plan::recompute::Repeated;
use crate::plan::{Planned, Request};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

const PAGE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");
const SCRIPT: &str = include_str!("report.js");

/// What a report says at its head that the plan does not know.
#[derive(Clone, Debug, Serialize)]
pub struct Heading {
    /// What was planned: a training step, or a run in inference.
    pub run: &'static str,
    /// Samples of one run.
    pub batch: usize,
    /// Numbers that the model holds, as the terminal counts them.
    pub parameters: usize,
    /// Predicted seconds of other plans of the same graph, by what they are.
    pub others: Vec<(String, f64)>,
}

#[derive(Serialize)]
struct Report {
    name: String,
    version: &'static str,
    #[serde(flatten)]
    heading: Heading,
    target: String,
    device: String,
    policy: String,
    seconds: f64,
    bytes: usize,
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
    /// The module of the model that the first of its values belongs to, where the model says.
    module: Option<String>,
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

/// The page of a plan of `step`.
///
/// # Errors
/// Where the plan cannot be cut into kernels.
pub fn report(step: &Graph, planned: &Planned, request: &Request, heading: Heading) -> Result<String> {
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
    let range = |f: Format| {
        let spec = f.float()?;
        let normal = 1 - spec.bias;
        let largest = spec.max.log2().floor() as i32;
        Some(FormatRange { name: f.name(), smallest: normal - spec.mantissa_bits as i32, normal, largest })
    };
    let report = Report {
        name: step.name.clone(),
        version: env!("CARGO_PKG_VERSION"),
        heading,
        target: request.target.name.clone(),
        device: request.target.device.clone(),
        policy: format!("{} with {}", request.policy, request.narrow()),
        seconds: planned.estimate.seconds,
        bytes: planned.estimate.bytes,
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
    let (title, data) = (escaped(&step.name), json.replace("</", "<\\/"));
    let parts = PAGE.split("{{").map(|part| match part.split_once("}}") {
        Some(("TITLE", rest)) => [&title, rest],
        Some(("DATA", rest)) => [&data, rest],
        Some(("STYLE", rest)) => [STYLE, rest],
        Some(("SCRIPT", rest)) => [SCRIPT, rest],
        _ => [part, ""],
    });
    Ok(parts.flatten().collect())
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
    let buffers = Buffers::new(program);
    let mut places = Places { step, planned, row_of: BTreeMap::new(), rows: 0, last: (Stage::Forward, 0) };
    let mut out: Vec<Launch> = Vec::new();
    for (at, range) in program.launches.iter().enumerate() {
        let computed = range.clone().flat_map(|i| &program.calls[i].computes);
        let values: Vec<NodeId> = computed.clone().filter_map(|n| places.value(n)).collect();
        let (stage, row) = places.place(&values, computed);
        let estimate = request.target.estimate_launch(program, range);
        let format_of = |b: BufferId| program.buffers[b].ty.format;
        let floor: f64 = range.clone().map(|i| request.target.floor(&program.calls[i].kernel, format_of)).sum();
        let times = program.calls[range.start].times();
        let computes = range.clone().flat_map(|i| {
            program.calls[i].computes.iter().map(move |n| label(planned, program.calls[i].in_loop.as_ref(), n))
        });
        let written = range.clone().flat_map(|i| program.calls[i].kernel.writes().collect::<Vec<_>>());
        let formats: BTreeSet<String> = written.map(|b| program.buffers[b].ty.format.to_string()).collect();
        out.push(Launch {
            kind: kind_of(&program.calls[range.start].kernel),
            stage: stage.name(),
            module: values.iter().find_map(|&v| step.module_of(v)).map(str::to_owned),
            row,
            seconds: estimate.seconds,
            floor: floor * times as f64,
            bytes: estimate.bytes,
            times,
            computes: computes.collect(),
            formats: formats.into_iter().collect(),
            live: buffers.live(program, at),
        });
    }
    (out, buffers.edges.into_iter().collect())
}

/// When buffers are written and read, by launch.
#[derive(Default)]
struct Buffers {
    first: BTreeMap<BufferId, usize>,
    last: BTreeMap<BufferId, usize>,
    /// Pairs of launches, the later of which reads what the earlier wrote.
    edges: BTreeSet<(usize, usize)>,
}

impl Buffers {
    fn new(program: &Program) -> Buffers {
        let (mut out, mut writer) = (Buffers::default(), BTreeMap::new());
        for (at, range) in program.launches.iter().enumerate() {
            for b in program.calls[range.clone()].iter().flat_map(|call| call.kernel.reads()) {
                out.last.insert(b, at);
                out.edges.extend(writer.get(&b).filter(|&&w| w != at).map(|&w| (w, at)));
            }
            for b in program.calls[range.clone()].iter().flat_map(|call| call.kernel.writes()) {
                writer.insert(b, at);
                out.first.entry(b).or_insert(at);
                out.last.entry(b).or_insert(at);
            }
        }
        out
    }

    /// Bytes of temporaries alive at a launch.
    fn live(&self, program: &Program, at: usize) -> usize {
        let bytes = |(&b, &end): (&BufferId, &usize)| {
            let begun = self.first.get(&b).is_some_and(|&first| first <= at);
            if begun && end >= at && program.buffers[b].source.is_none() { size(&program.buffers[b]) } else { 0 }
        };
        self.last.iter().map(bytes).sum()
    }
}

/// Where launches stand in the drawing of the step.
struct Places<'a> {
    step: &'a Graph,
    planned: &'a Planned,
    row_of: BTreeMap<NodeId, usize>,
    rows: usize,
    /// Stage and row of the launch before.
    last: (Stage, usize),
}

impl Places<'_> {
    /// The step's value behind a stored buffer.
    fn value(&self, buffer: &str) -> Option<NodeId> {
        let g = &self.planned.graph;
        let id = g.find(buffer)?;
        let of = g.inputs(id).first().copied().filter(|_| matches!(g.op(id), Op::Put(_))).unwrap_or(id);
        self.step.find(g.name_of(of))
    }

    /// Stage and row of a launch that computes these values, and stores these buffers. What is computed again stands beside
    /// where it was computed first.
    fn place<'b>(&mut self, values: &[NodeId], stored: impl Iterator<Item = &'b String>) -> (Stage, usize) {
        let g = &self.planned.graph;
        let again: Vec<&Repeated> = stored.filter_map(|n| self.planned.repeated(g.find(n)?)).collect();
        let known = values.iter().map(|&v| self.step.node(v).stage).min();
        let stage = if again.is_empty() { known.unwrap_or(self.last.0) } else { Stage::Backward };
        let gradients_of = values.iter().filter_map(|&v| self.step.node(v).grad_of);
        let mut of = gradients_of.chain(again.iter().filter_map(|first| self.step.find(&first.value)));
        let beside = of.find_map(|f| self.row_of.get(&f).copied());
        let row = match (stage, beside) {
            (Stage::Backward, Some(row)) => row,
            (Stage::Backward, None) => self.last.1,
            _ => {
                self.rows += 1;
                self.rows - 1
            }
        };
        for &v in values {
            self.row_of.entry(v).or_insert(row);
        }
        self.last = (stage, row);
        (stage, row)
    }
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
