//! Why a value has the format it has: what else there was, what it would have cost, and who offered or refused it.
//!
//! The step is planned, and every other way the value could travel is put in its place and costed with the whole step: in
//! registers, in memory in each format, and, where products read it or make it, multiplied in each format.

use crate::error::{Error, Result};
use crate::format::{Format, Spread};
use crate::hint::is_meant;
use crate::ir::ops::{Kind, Signature};
use crate::ir::{Graph, NodeId, Op, text};
use crate::plan::bodies::plan_bodies;
use crate::plan::choice::{Alike, Choice, Extracted, Flip, Live, Members, Search, extract, members};
use crate::plan::evidence::{Shares, percent};
use crate::plan::units::seconds;
use crate::plan::{Request, paint};
use crate::rewrite::{RuleSet, forms};
use egg::Id;
use serde::Serialize;
use std::fmt::Write;

/// One way a value could travel.
#[derive(Clone, Debug, Serialize)]
pub struct Alternative {
    /// In words: `in memory as f16`, `multiplied in bf16`.
    pub what: String,
    /// Is it the plan's?
    pub chosen: bool,
    /// The rules that offered it, with what they say.
    pub rules: Vec<(String, String)>,
    /// The whole step's predicted time with it; none where it cannot be lowered.
    pub seconds: Option<f64>,
    /// Noise of the whole plan with it, as a share of the squared budget; none without evidence.
    pub noise: Option<f64>,
    /// Why it was taken or lost.
    pub why: String,
}

/// Why a value has its format.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The value, without its module.
    pub name: String,
    /// The value's line of text, and where it comes from.
    pub line: String,
    /// The same value of the layer that was planned for all that are like it, if that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub planned_as: Option<String>,
    /// The node of an ONNX file, or the line of text, that it comes from, where that is known.
    pub origin: Option<String>,
    /// The module of the model that it belongs to, where the model says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// The pass it belongs to: `forward`, `backward` or `update`.
    pub stage: &'static str,
    /// Operations that read it, by name and kind.
    pub readers: Vec<String>,
    /// Not kept for the backward pass, to keep to a limit of memory.
    pub computed_again: bool,
    /// What its numbers were like; none without evidence.
    pub spread: Option<Spread>,
    /// What rounding it adds to the gradients' noise, for all its readers.
    pub shares: Shares,
    /// The same for products that read it, by the product's name.
    pub products: Vec<(String, Shares)>,
    /// The policy's verdict.
    pub verdict: String,
    /// The step as planned.
    pub seconds: f64,
    /// Noise of the whole plan, as a share of the squared budget; none without evidence.
    pub noise: Option<f64>,
    /// All ways it could travel, the chosen ones first; none where the plan does without the value.
    pub alternatives: Vec<Alternative>,
}

/// Plans a step and explains one of its values. A limit of memory changes nothing here, for what is computed again has the
/// formats that it had; [`crate::plan::Planned::computes_again`] tells what is.
///
/// # Errors
/// [`Error::Request`] for a name that is not in the step, or only in a loop's body; those of planning.
pub fn explain(step: &Graph, request: &Request, rules: &RuleSet, name: &str) -> Result<Explanation> {
    // As plans show it, behind the module it belongs to.
    let in_module = |id: NodeId| {
        let of_name = name.strip_suffix(step.name_of(id)).and_then(|module| module.strip_suffix('/'));
        of_name.is_some() && of_name == step.module_of(id)
    };
    let Some(id) = step.find(name).or_else(|| step.ids().find(|&id| in_module(id))) else {
        return Err(unknown(step, name));
    };
    let name = step.name_of(id).to_owned();
    let name = name.as_str();
    let step = &plan_bodies(step, request, rules)?.graph;
    let verdicts = paint(step, request);
    let judged = judge(&extract(step, &verdicts, request, rules)?, request, id, rules);
    let calibration = request.calibration.as_ref();
    let products = calibration.map_or(Vec::new(), |c| {
        let reading = c.operands.iter().filter_map(|(p, of)| Some((p.clone(), of.get(name)?.clone())));
        reading.collect()
    });
    Ok(Explanation {
        name: name.to_owned(),
        line: text::declaration(step, id),
        planned_as: Some(judged.planned_as).filter(|other| other != name),
        origin: step.node(id).origin.clone(),
        module: step.module_of(id).map(str::to_owned),
        stage: step.node(id).stage.name(),
        readers: step.users(id).into_iter().map(|u| format!("{} ({})", step.name_of(u), step.op(u).name())).collect(),
        computed_again: false,
        spread: calibration.and_then(|c| c.spread(step, id)).cloned(),
        shares: calibration.map(|c| c.stored(name)).unwrap_or_default(),
        products,
        verdict: verdicts[id.index()].why.clone(),
        seconds: judged.seconds,
        noise: judged.noise,
        alternatives: judged.alternatives,
    })
}

/// What a value could be, in a step that was planned.
struct Judged {
    planned_as: String,
    seconds: f64,
    noise: Option<f64>,
    alternatives: Vec<Alternative>,
}

/// All ways for a value of the step, in the plan of what stands for it.
fn judge(found: &Extracted, request: &Request, id: NodeId, rules: &RuleSet) -> Judged {
    let (saturated, seconds, id) = (&found.saturated, found.seconds, found.planned_as[id.index()]);
    let m = &members(saturated, request);
    let mut search = Search::new(m, request, Alike::default());
    let mut live = Live::new(m, found.choice.clone());
    let value = m.find(saturated.encoded.classes[id.index()]);
    let mut alternatives = alternatives(m, &mut search, &mut live, value, seconds, rules);
    // What all other layers take.
    let rest = found.estimate.seconds - seconds;
    alternatives.iter_mut().flat_map(|a| &mut a.seconds).for_each(|s| *s += rest);
    Judged {
        planned_as: saturated.step.name_of(id).to_owned(),
        seconds: found.estimate.seconds,
        noise: m.noise.is_some().then(|| live.noise()),
        alternatives,
    }
}

fn unknown(step: &Graph, name: &str) -> Error {
    let inside = step.ids().find_map(|id| match step.op(id) {
        Op::Scan(s) if s.body.graph().find(name).is_some() => Some(s.body.graph().name.clone()),
        _ => None,
    });
    if let Some(body) = inside {
        return Error::Request(format!(
            "`{name}` is computed inside the loop `{body}`, whose body is planned by itself; values of the step can be explained"
        ));
    }
    let bare = step.ids().map(|id| step.name_of(id).to_owned());
    let with_module = step.ids().filter_map(|id| Some(format!("{}/{}", step.module_of(id)?, step.name_of(id))));
    let known: Vec<String> = bare.chain(with_module).collect();
    let hint = is_meant(name, known.iter().map(String::as_str));
    Error::Request(format!("the step has no value `{name}`{hint}; mantissa plan --emit step lists them"))
}

/// All ways for the value, costed, the chosen ones first.
fn alternatives(
    m: &Members,
    search: &mut Search,
    live: &mut Live,
    value: Id,
    now: f64,
    rules: &RuleSet,
) -> Vec<Alternative> {
    let mut out = Vec::new();
    for Way { what, class, member } in ways(m, live, value) {
        let flip: Flip = vec![(class, member)];
        let chosen = live.choice.of(class) == member;
        let noise = m.noise.is_some().then(|| live.noise_with(&flip));
        let mut choice: Choice = live.choice.clone();
        choice.set(class, member);
        let seconds = if chosen { Some(now) } else { search.whole(choice).ok().map(|c| c.estimate.seconds) };
        let rule = m.rule(&m.of(class)[member]);
        let doc = |n: &str| rules.rules.iter().find(|r| r.name == n).map_or(String::new(), |r| r.doc.clone());
        let rules = rule.map(|n| (n.to_owned(), doc(n))).into_iter().collect();
        out.push(Alternative { what, chosen, rules, seconds, noise, why: judged(chosen, seconds, now, noise) });
    }
    out.sort_by_key(|a| !a.chosen);
    out
}

/// A member that could be taken.
struct Way {
    what: String,
    class: Id,
    member: usize,
}

fn ways(m: &Members, live: &Live, value: Id) -> Vec<Way> {
    let mut out = Vec::new();
    if let Some(edge) = m.edges().get(&value).copied().filter(|&e| live.is_live(e)) {
        for (member, term) in m.of(edge).iter().enumerate() {
            let what = match term.name() {
                forms::PASS => "in registers, where it is read".to_owned(),
                _ => format!("in memory as {}", m.ty(term.children[0]).map_or("?", |t| t.format.name())),
            };
            out.push(Way { what, class: edge, member });
        }
    }
    if m.is_product(value) && live.is_live(value) {
        for (member, term) in m.of(value).iter().enumerate() {
            let format = m.format_of(term.children[0]).map_or("?", Format::name);
            // A product that is transposed in place says which sides are.
            let row = Signature::find(term.name()).map_or(&[][..], |row| &row.attributes);
            let sides = row.iter().position(|a| matches!(a.kind, Kind::Choice(_)));
            let sides = sides.map_or(String::new(), |i| format!(" ({})", m.word(term.children[i])));
            out.push(Way { what: format!("multiplied in {format}{sides}"), class: value, member });
        }
    }
    // Products read buffers of their own choosing.
    for product in readers(m, live, value) {
        let name = m.name(product).unwrap_or("a product");
        for format in [Format::F32].into_iter().chain(Format::MULTIPLIED) {
            if let Some(member) = m.multiplying(&live.choice, product, format) {
                out.push(Way { what: format!("read in {format} by `{name}`"), class: product, member });
            }
        }
    }
    out
}

/// Products that read the value from memory, in order.
fn readers(m: &Members, live: &Live, value: Id) -> Vec<Id> {
    let mut out: Vec<Id> = (0..m.ids())
        .map(Id::from)
        .filter(|&p| m.is_product(p) && live.is_live(p))
        .filter(|&p| m.operands(&live.choice, p).any(|b| m.held(&live.choice, b) == value))
        .collect();
    out.sort_unstable();
    out
}

fn judged(chosen: bool, cost: Option<f64>, now: f64, noise: Option<f64>) -> String {
    let Some(cost) = cost else { return "cannot be lowered to kernels".into() };
    if chosen {
        return "chosen".into();
    }
    let lost = cost - now;
    let by = if lost.abs() < 1e-7 { format!("{:.1} ns", 1e9 * lost.abs()) } else { seconds(lost.abs()) };
    let time = if lost < 0.0 { format!("{by} faster") } else { format!("{by} slower") };
    match lost {
        _ if noise.is_some_and(|n| n > 1.0) => format!("{time}, but the plan would be over its budget"),
        l if l.abs() < 1e-10 => "as fast".into(),
        l if l < 0.0 => format!("{time}, but not found by the search"),
        _ => time,
    }
}

impl Explanation {
    /// As a terminal shows it.
    pub fn print(&self) -> String {
        let mut out = format!("{}\n", self.line);
        // Writing to a String cannot fail.
        if let Some(origin) = &self.origin {
            let _ = writeln!(out, "{:<12}{origin}", "from");
        }
        if let Some(module) = &self.module {
            let _ = writeln!(out, "{:<12}{module}", "module");
        }
        let _ = writeln!(out, "{:<12}{} pass, read by {}", "where", self.stage, join(&self.readers));
        if self.computed_again {
            let _ =
                writeln!(out, "{:<12}computed again in the backward pass, to keep to the limit of memory", "memory");
        }
        if let Some(other) = &self.planned_as {
            let _ = writeln!(out, "{:<12}as `{other}` is, whose layer was planned for all that are like it", "planned");
        }
        if let Some(s) = &self.spread {
            let zeros = 100.0 * s.zeros as f64 / s.count.max(1) as f64;
            let _ = writeln!(out, "{:<12}|x| from {:.2e} to {:.2e}, {zeros:.1} % zeros", "seen", s.smallest, s.largest);
            for format in Format::STORED {
                let f = s.fate(format);
                let p = |x: f64| format!("{:.2} %", 100.0 * x);
                let _ = writeln!(
                    out,
                    "{:<12}{format}: {} above its largest number, {} below its smallest normal one, {} lost to zero",
                    "",
                    p(f.overflow),
                    p(f.subnormal),
                    p(f.flushed)
                );
            }
        }
        let shares =
            |s: &Shares| s.iter().map(|(f, x)| format!("to {f} takes {}", percent(*x))).collect::<Vec<_>>().join(", ");
        if !self.shares.is_empty() {
            let _ = writeln!(out, "{:<12}rounding it for all readers {} of the budget", "noise", shares(&self.shares));
            for (product, s) in &self.products {
                let _ = writeln!(out, "{:<12}for `{product}` alone {}", "", shares(s));
            }
        }
        let _ = writeln!(out, "{:<12}{}", "policy", self.verdict);
        let noise = |n: Option<f64>| n.map_or(String::new(), percent);
        let _ = writeln!(out, "\n{:<44} {:>10} {:>14}  ", "ways it could travel", "step", "noise²");
        for a in &self.alternatives {
            let time = a.seconds.map_or("-".to_owned(), seconds);
            let mark = if a.chosen { '*' } else { ' ' };
            let _ = writeln!(out, "{mark} {:<42} {time:>10} {:>14}  {}", a.what, noise(a.noise), a.why);
            for (rule, doc) in &a.rules {
                let _ = writeln!(out, "    {rule}: {doc}");
            }
        }
        if self.alternatives.is_empty() {
            out += "  none: the plan does without it, or it has one way to travel\n";
        }
        out
    }
}

fn join(names: &[String]) -> String {
    const SHOWN: usize = 6;
    if names.is_empty() {
        return "nobody".into();
    }
    let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
    names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ") + &more
}
