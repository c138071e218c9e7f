//! Which value made a step bad: the first that is not finite, with what it was computed from.
//!
//! A bad step changes nothing, so it can be run again: in f32 with every value in sight, and, where that is finite, as
//! planned with everything in sight that the plan stores. On the CPU, whatever the run is on.

use super::compile::Compiled;
use super::feeds::{feed, feeds};
use super::gradients::{write_copies, write_sources};
use super::watching::watching;
use crate::data::Dataset;
use crate::error::Result;
use crate::format::{Format, Spread};
use crate::ir::{Graph, Op, verify};
use crate::lower::{Program, lower_visibly};
use crate::model::Weights;
use crate::plan::{Evidence, observed};
use crate::run::Backend;
use crate::run::cpu::Cpu;
use std::fmt;

/// Memory that running a step again may take.
const MOST: usize = 8 << 30;

/// The first value of a step that is not finite.
pub struct Culprit {
    /// As text has it: `t4 = div(t2, n)`.
    computed: String,
    /// The node of the model's file, or the value whose gradient it is a part of.
    origin: Option<String>,
    bad: u64,
    count: u64,
    /// Operands, or what the value is in f32 where a format could not hold it.
    ranges: Vec<(String, Spread)>,
    /// The format that overflowed; none: it is not finite in f32.
    overflowed: Option<Format>,
}

/// Finds out what made the step on some samples bad. `sources` are the parameters and states it began with.
///
/// None if nothing is found: the step is fine on the CPU, or too large to be looked at here.
pub fn diagnose(compiled: &Compiled, sources: &Weights, data: &Dataset, rows: &[usize]) -> Result<Option<Culprit>> {
    let plain = observed(&compiled.step)?;
    let Some(seen) = look(&plain, sources, data, rows)? else { return Ok(None) };
    if let Some((_, name)) = &seen.first_non_finite {
        return Ok(Some(Culprit::in_f32(&compiled.step, name, &seen)));
    }
    let Some(stored) = look(&compiled.planned.graph, sources, data, rows)? else { return Ok(None) };
    let Some((_, buffer)) = &stored.first_non_finite else { return Ok(None) };
    Ok(Culprit::of_format(compiled, buffer, &stored, &seen))
}

/// What a graph's stored values are like in one step; none if it is too large.
fn look(graph: &Graph, sources: &Weights, data: &Dataset, rows: &[usize]) -> Result<Option<Evidence>> {
    let program: Program = lower_visibly(verify(graph)?)?;
    if program.memory().total() > MOST {
        return Ok(None);
    }
    let (evidence, watcher) = watching();
    let mut device = Cpu.watch(program, watcher)?;
    write_sources(device.as_mut(), sources)?;
    write_copies(device.as_mut(), graph, sources)?;
    feed(device.as_mut(), &feeds(graph), data, rows)?;
    device.run()?;
    Ok(Some(evidence.replace(Evidence::default())))
}

impl Culprit {
    fn in_f32(step: &Graph, name: &str, seen: &Evidence) -> Culprit {
        let spread = seen.values.get(name).cloned().unwrap_or_default();
        let (mut computed, mut origin, mut ranges) = (format!("`{name}`"), None, Vec::new());
        if let Some(id) = step.find(name) {
            let operands = step.inputs(id);
            if !operands.is_empty() {
                let names: Vec<&str> = operands.iter().map(|&x| step.name_of(x)).collect();
                computed = format!("`{name}` = {}({})", step.op(id).name(), names.join(", "));
            }
            origin.clone_from(&step.node(id).origin);
            ranges = operands
                .iter()
                .filter_map(|&x| Some((step.name_of(x).to_owned(), seen.spread(step, x)?.clone())))
                .collect();
        }
        Culprit { computed, origin, bad: spread.non_finite, count: spread.count, ranges, overflowed: None }
    }

    /// A value that f32 holds and its buffer's format does not.
    fn of_format(compiled: &Compiled, buffer: &str, stored: &Evidence, seen: &Evidence) -> Option<Culprit> {
        let plan = &compiled.planned.graph;
        let id = plan.find(buffer)?;
        let value = match plan.op(id) {
            Op::Put(_) | Op::Cast(_) => *plan.inputs(id).first()?,
            _ => id,
        };
        let name = plan.name_of(value).to_owned();
        let spread = stored.values.get(buffer)?;
        let exact = seen.values.get(&name).map(|s| (name.clone(), s.clone()));
        Some(Culprit {
            computed: format!("`{name}`"),
            origin: compiled.step.find(&name).and_then(|id| compiled.step.node(id).origin.clone()),
            bad: spread.non_finite,
            count: spread.count,
            ranges: exact.into_iter().collect(),
            overflowed: Some(plan.ty(id).format),
        })
    }
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let of = if self.count == 1 {
            "it is one number".to_owned()
        } else {
            format!("{} of {} elements", self.bad, self.count)
        };
        match self.overflowed {
            None => write!(f, "the first value that is not finite is {} ({of})", self.computed)?,
            Some(format) => write!(f, "{} overflows {format} ({of})", self.computed)?,
        }
        if let Some(origin) = &self.origin {
            write!(f, ", in {origin}")?;
        }
        for (i, (name, s)) in self.ranges.iter().enumerate() {
            let joint = if i == 0 { "; " } else { ", " };
            let exact = if self.overflowed.is_some() { " in f32" } else { "" };
            match s {
                s if s.non_finite > 0 => {
                    write!(f, "{joint}`{name}`{exact} is not finite in {} elements", s.non_finite)?
                }
                s if s.zeros == s.count => write!(f, "{joint}`{name}`{exact} is 0")?,
                s => {
                    let zeros = if s.zeros > 0 { format!(" and {} zeros", s.zeros) } else { String::new() };
                    write!(f, "{joint}|`{name}`|{exact} is {:.3e} to {:.3e}{zeros}", s.smallest, s.largest)?;
                }
            }
        }
        Ok(())
    }
}
