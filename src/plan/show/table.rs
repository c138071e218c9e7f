//! A plan as a terminal shows it: a row per kernel, what it computes, in which formats and why.

use crate::error::Result;
use crate::ir::{Graph, Op, verify};
use crate::lower::{InLoop, Kernel, Program, lower, outline};
use crate::plan::recompute::Again;
use crate::plan::units::{bytes, seconds};
use crate::plan::{Planned, Request};
use std::fmt::Write;

/// Plans in a line each: time, bytes moved, memory taken, launches. `run` is what the numbers are of.
///
/// # Errors
/// A planned graph that breaks the IR's rules or has no kernels.
pub fn print_summary(run: &str, plans: &[(&str, &Planned)]) -> Result<String> {
    let title = format!("predicted for one {run}");
    let mut out = format!("{title:<28} {:>10} {:>11} {:>11} {:>9}\n", "time", "moved", "memory", "launches");
    for (label, planned) in plans {
        let program = lower(verify(&planned.graph)?)?;
        let (time, moved) = (seconds(planned.estimate.seconds), bytes(planned.estimate.bytes));
        let (memory, launches) = (bytes(program.memory().total()), program.launches.len());
        let _ = writeln!(out, "{label:<28} {time:>10} {moved:>11} {memory:>11} {launches:>9}");
    }
    Ok(out)
}

/// The kernels of a planned step, the formats of what they store and why.
///
/// # Errors
/// A planned graph that breaks the IR's rules or has no kernels.
pub fn print_table(planned: &Planned, request: &Request) -> Result<String> {
    let program = outline(verify(&planned.graph)?)?;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:>3}  {:<9} {:>9} {:>9}  {:<34} {:<8} why",
        "#", "kernel", "time", "bytes", "computes", "format"
    );
    for (at, launch) in program.launches.iter().enumerate() {
        let e = request.target.estimate_launch(&program, launch);
        let kind = kind_of(&program.calls[launch.start].kernel);
        let mut head = format!("{at:>3}  {kind:<12} {:>7} {:>9}", seconds(e.seconds), bytes(e.bytes));
        for call in &program.calls[launch.clone()] {
            let body = call.in_loop.as_ref();
            let owner = body.and_then(|l| planned.body(&l.body)).unwrap_or(planned);
            for name in &call.computes {
                let (format, why) = describe(owner, name).map_or_else(
                    || {
                        let stored = program.find(name).map(|b| program.buffers[b].ty.format.to_string());
                        (stored.unwrap_or_default(), SUM_OF_ROWS.to_owned())
                    },
                    |(_, format, why)| (format, why),
                );
                let value = label(planned, body, name);
                let _ = writeln!(out, "{head}  {:<34} {format:<8} {why}", clip_path(&value, 34));
                head = " ".repeat(head.chars().count());
            }
        }
    }
    let (alone, fused) = casts(&planned.graph, &program);
    let _ = writeln!(
        out,
        "\ncasts: {alone} standing alone, {fused} fused into the kernel that produces the value, {} weights carried in a low copy, {} inputs staged low",
        carried(&planned.graph),
        staged(&planned.graph)
    );
    if let Some(Again { segments, again, seconds: more, bytes: less, .. }) = &planned.again {
        let time = if *more > 0.0 { format!("takes {}", seconds(*more)) } else { "takes no longer".to_owned() };
        let less = bytes(*less);
        let _ = writeln!(
            out,
            "memory: {again} of {segments} segments of the forward pass are computed again in the backward pass, which {time} and saves {less}"
        );
    }
    for (all, few) in &planned.layers {
        let _ = writeln!(out, "layers: {all} that are alike, planned as {few}");
    }
    if let Some(why) = &planned.apart {
        let _ = writeln!(out, "layers: planned one by one, for {why}");
    }
    Ok(out)
}

/// Why lowering stores a value of its own.
const SUM_OF_ROWS: &str = "a sum over long rows, for the kernels that go over them";

/// What a kernel is, and the format it multiplies in.
pub(in crate::plan) fn kind_of(kernel: &Kernel) -> String {
    match kernel {
        Kernel::Product(p) if let Some(f) = p.contraction.format() => format!("{} {f}", kernel.kind()),
        _ => kernel.kind().to_owned(),
    }
}

/// The value behind a stored buffer's name, with the loop it is computed in.
pub(in crate::plan) fn label(planned: &Planned, in_loop: Option<&InLoop>, buffer: &str) -> String {
    let value = |owner: &Planned| describe(owner, buffer).map_or_else(|| buffer.to_owned(), |(value, ..)| value);
    let Some(l) = in_loop else { return planned.full_name(&value(planned)) };
    let value = value(planned.body(&l.body).unwrap_or(planned));
    let times = if l.times > 1 { format!("{} × ", l.times) } else { String::new() };
    format!("{times}{}: {value}", clip(&l.body, 16))
}

/// At most `width` characters.
pub fn clip(s: &str, width: usize) -> String {
    if s.chars().count() <= width {
        s.to_owned()
    } else {
        format!("{}…", s.chars().take(width - 1).collect::<String>())
    }
}

/// At most `width` characters; of a module's path, the last.
fn clip_path(s: &str, width: usize) -> String {
    let skipped = (s.chars().count() + 1).saturating_sub(width);
    if skipped > 1 && s.contains('/') {
        format!("…{}", s.chars().skip(skipped).collect::<String>())
    } else {
        clip(s, width)
    }
}

/// A stored buffer of a plan: the value it holds, its format, and the reason. None of what lowering stores of its own.
fn describe(planned: &Planned, buffer: &str) -> Option<(String, String, String)> {
    let g = &planned.graph;
    let id = g.find(buffer)?;
    if let Some(first) = planned.repeated(id) {
        let why = format!("computed again as `{}` was", first.buffer);
        return Some((buffer.to_owned(), g.ty(id).format.to_string(), why));
    }
    let value = g.inputs(id).first().map_or(buffer, |&v| g.name_of(v));
    let update = g.outputs().iter().find(|o| o.node == id && o.role == crate::ir::Role::Update);
    let shown = update.map_or_else(|| value.to_owned(), |o| format!("{} ←", o.name));
    let reason = planned.reasons.get(value).cloned().unwrap_or_default();
    let why = match planned.rules.get(value) {
        Some(rule) if !rule.starts_with("store-f32") => format!("{rule}: {reason}"),
        _ => reason,
    };
    Some((shown, g.ty(id).format.to_string(), why))
}

/// Casts that are kernels of their own, and narrow stores that cost no kernel.
fn casts(graph: &Graph, program: &Program) -> (usize, usize) {
    let alone = |k: &Kernel| matches!(k, Kernel::Loop(l) if l.tape.len() == 2 && matches!(l.tape[1], crate::lower::Inst::Round(..)));
    let standing = program.kernels().filter(|k| alone(k)).count();
    let narrow = graph.ids().filter(|&id| matches!(graph.op(id), Op::Put(f) if f.is_low())).count();
    (standing, narrow)
}

fn carried(graph: &Graph) -> usize {
    graph.ids().filter(|&id| matches!(graph.op(id), Op::State { init: crate::ir::Init::Copy(_), .. })).count()
}

fn staged(graph: &Graph) -> usize {
    graph.ids().filter(|&id| matches!(graph.op(id), Op::Input { copy_of: Some(_), .. })).count()
}
