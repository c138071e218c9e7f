//! What a rule may ask before it applies: a small closed vocabulary.
//!
//! Conditions must be monotone: once true, more equalities never make them false. Policy verdicts are fixed when the
//! step is encoded, so `fits` qualifies as long as exact rules have saturated before rounding rules run.

use super::EGraph;
use crate::format::Format;
use egg::Id;

/// Name, argument count, and meaning.
pub const CONDITIONS: [(&str, usize, &str); 10] = [
    ("fits", 2, "the policy lets this value be stored in this format, and the format holds it if it is constant"),
    ("near", 2, "the value is a constant within a millionth of this number"),
    ("not-constant", 1, "the value is not known at compile time"),
    ("computed-in", 2, "the value's registers have this format"),
    ("target-multiplies", 1, "the target's matrix units take this format, and the plan may use it"),
    ("lowers", 1, "the policy lets this product, which is one of f32, multiply in this format"),
    ("casts", 2, "the policy lets products read this buffer in this format"),
    ("has-format", 2, "the buffer is in this format"),
    ("carries", 2, "the step writes this parameter, so its kernel can write a copy in this other format"),
    ("stages", 2, "the loader writes this input, so it can round it to this other format on the way"),
];

/// A condition with its arguments resolved to e-classes.
pub(super) fn holds(egraph: &EGraph, name: &str, args: &[Id], root: Id) -> bool {
    let fact = |i: usize| &egraph[args[i]].data;
    let word = |i: usize| fact(i).word.map_or("", |w| w.as_str());
    let format = |i: usize| word(i).parse::<Format>().ok();
    let facts = &egraph.analysis;
    match name {
        "fits" => {
            let in_range = |f: Format| match (fact(1).constant, f.float()) {
                (Some(c), Some(spec)) => c.get().abs() <= spec.max,
                (None, Some(_)) => true,
                (_, None) => false,
            };
            // What a model computes in f64 stays there.
            let is_float = fact(1).ty.as_ref().is_some_and(|t| t.format.is_float() && t.format != Format::F64);
            let is_allowed = |f: Format| facts.formats.contains(f) && fact(1).allow.stores.contains(f);
            is_float && format(0).is_some_and(|f| is_allowed(f) && in_range(f))
        }
        "near" => constants(egraph, args).is_some_and(|(c, n)| (c - n).abs() <= 1e-6 * n.abs()),
        "not-constant" => fact(0).constant.is_none(),
        "computed-in" => fact(1).ty.as_ref().map(|t| t.format) == format(0),
        "target-multiplies" => format(0).is_some_and(|f| facts.formats.contains(f)),
        // What a model computes in f64 stays there.
        "lowers" => {
            let of_f32 = egraph[root].data.ty.as_ref().is_some_and(|t| t.format == Format::F32);
            of_f32 && format(0).is_some_and(|f| egraph[root].data.allow.multiplies.contains(f))
        }
        "casts" => format(0).is_some_and(|f| fact(1).allow.casts.contains(f)),
        "has-format" => fact(1).ty.as_ref().map(|t| t.format) == format(0),
        "carries" => facts.updated.contains(word(1)) && is_other_format(egraph, word(1), format(0)),
        "stages" => facts.staged.contains(word(1)) && is_other_format(egraph, word(1), format(0)),
        _ => unreachable!("the loader knows every condition"),
    }
}

/// A value and the number it is compared with, if the value is known.
fn constants(egraph: &EGraph, args: &[Id]) -> Option<(f64, f64)> {
    let number = egraph[args[1]].data.word?.as_str().parse().ok()?;
    Some((egraph[args[0]].data.constant?.get(), number))
}

/// Does the source of this name lie in memory in another format?
fn is_other_format(egraph: &EGraph, source: &str, format: Option<Format>) -> bool {
    egraph.analysis.sources.get(source).is_some_and(|t| Some(t.format) != format)
}
