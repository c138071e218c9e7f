//! Testing rules by machine: instantiate the left side on random small tensors, apply the rule, and evaluate every
//! member of the class it touched. Members must agree: in f64 for `=>`, within the formats' rounding for `~>`.
//!
//! Most instances hold numbers of moderate size. An exact rule is also tried on what breaks rules that are nearly exact:
//! zeros, ties, infinities, rows of the least f32 (a mask that masks everything). There it must agree wherever the left side
//! is a number: not where it overflows or where a part of it is NaN, which is what rules like `log(1 + e^x)` are there to
//! avoid.

use super::EGraph;
use super::apply::Misfit;
use super::language::{Facts, Head, Sort, Term, decode_op, forms, makes_sense};
use super::rule::{Arrow, Rule};
use crate::format::Format;
use crate::ir::ops::{Signature, names};
use crate::ir::{Num, Op, Shape, Tensor, Type};
use egg::{ENodeOrVar, Id, Language, Pattern, Searcher};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Attempts to find shapes the left side accepts, for each instance wanted.
const ATTEMPTS: usize = 400;
/// Instances with hard numbers for each with moderate ones.
const HARD: usize = 4;

/// Checks a rule on random instances. Returns how many were checked.
///
/// # Errors
/// Says what differed, or that no instance of the left side could be built or the rule never applied.
pub fn check_rule(rule: &Rule, trials: usize, seed: u64) -> Result<usize, String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut checked = 0;
    let mut last = "no random instance type-checks".to_owned();
    // Rounding rules are for what the policy finds to be in range.
    let hard = if rule.arrow == Arrow::Exact { HARD * trials } else { 0 };
    let kinds = std::iter::repeat_n(Numbers::Moderate, trials).chain(std::iter::repeat_n(Numbers::Hard, hard));
    for kind in kinds {
        for _ in 0..ATTEMPTS {
            match instance(rule, kind, &mut rng) {
                Ok(mut i) => {
                    if !i.apply(rule).map_err(|misfit| misfit.why)? {
                        last = "its conditions never hold".into();
                        continue;
                    }
                    i.check(rule, kind)?;
                    checked += 1;
                    break;
                }
                Err(why) => last = why,
            }
        }
    }
    if checked == 0 { Err(format!("never applied: {last}")) } else { Ok(checked) }
}

/// An e-graph that holds the left side on some tensors and, once the rule was applied, the right side.
pub(super) struct Instance {
    egraph: EGraph,
    root: Id,
    /// The term that the left side was.
    left: Term,
    tensors: BTreeMap<String, Tensor>,
    /// Words that variables stand for.
    words: BTreeMap<String, String>,
}

impl Instance {
    /// Applies the rule to the left side. Returns whether its conditions held.
    pub fn apply(&mut self, rule: &Rule) -> Result<bool, Misfit> {
        let pattern = Pattern::new(rule.left.clone());
        let matches = pattern.search_eclass(&self.egraph, self.root).map_or_else(Vec::new, |m| m.substs);
        let mut applied = false;
        for subst in matches {
            if let Some(right) = rule.build(&mut self.egraph, self.root, &subst)? {
                self.egraph.union(self.root, right);
                applied = true;
            }
        }
        self.egraph.rebuild();
        self.root = self.egraph.find(self.root);
        self.left = self.left.clone().map_children(|c| self.egraph.find(c));
        Ok(applied)
    }

    /// What variables stand for.
    pub fn variables(&self) -> String {
        let all = self.tensors.iter().map(|(name, t)| match self.words.get(&format!("?{name}")) {
            Some(word) => format!("?{name} = {word}"),
            None => format!("?{name}: {}", Type::new(Shape::of(&t.dims), Format::F32)),
        });
        all.collect::<Vec<_>>().join(", ")
    }
}

/// What tensors hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Numbers {
    Moderate,
    Hard,
}

/// Rows (of the last axis) of one hard number, of zeros and ties, or of hard numbers among moderate ones.
fn hard(dims: &[usize], rng: &mut ChaCha8Rng, moderate: impl Fn(&mut ChaCha8Rng) -> f64) -> Tensor {
    let special = [0.0, 1.0, -1.0, f64::from(f32::MIN), f64::from(f32::MAX), f64::NEG_INFINITY, f64::INFINITY];
    let mut t = Tensor::from_fn(dims, |_| moderate(rng));
    let width = dims.last().copied().unwrap_or(1);
    for row in t.data.chunks_mut(width.max(1)) {
        let whole = special.choose(rng).copied().filter(|_| rng.random_bool(0.4));
        for v in row {
            *v = whole.or(special.choose(rng).copied().filter(|_| rng.random_bool(0.3))).unwrap_or(*v);
        }
    }
    t
}

/// Does a rule's left side have an operation with this attribute?
fn has_attribute(rule: &Rule, key: &str) -> bool {
    let has = |name| Signature::find(name).is_some_and(|row| row.attributes.iter().any(|a| a.key == key));
    rule.left.iter().any(|n| matches!(n, ENodeOrVar::ENode(t) if has(t.name())))
}

/// The left side on random tensors of moderate numbers, if they fit it.
pub(super) fn left_side(rule: &Rule, rng: &mut ChaCha8Rng) -> Result<Instance, String> {
    instance(rule, Numbers::Moderate, rng)
}

fn instance(rule: &Rule, kind: Numbers, rng: &mut ChaCha8Rng) -> Result<Instance, String> {
    let formats = Format::MULTIPLIED.into_iter().chain(Format::SCALED).collect();
    let mut facts = Facts { formats, ..Facts::default() };
    let mut tensors = BTreeMap::new();
    // Convolutions take a spatial axis; attention takes operands of four axes and row statistics of three.
    let shapes: &[&[usize]] = if has_attribute(rule, "strides") {
        &[&[2, 2, 3], &[2, 1, 2], &[1, 2, 2], &[2, 2, 1], &[2, 2, 2]]
    } else if has_attribute(rule, "causal") {
        &[&[1, 2, 2, 2], &[1, 2, 2]]
    } else {
        &[&[], &[3], &[2, 3], &[3, 2], &[1, 3], &[3, 3]]
    };
    let mut chosen: BTreeMap<String, String> = BTreeMap::new();
    for (var, sort) in &rule.sorts {
        let name = var.trim_start_matches('?').to_owned();
        let dims = shapes.choose(rng).copied().unwrap_or(&[]);
        // Values away from zero keep quotients and logarithms well conditioned; half of the instances also go below.
        let signed = rng.random_bool(0.5);
        let moderate = |rng: &mut ChaCha8Rng| {
            let x = rng.random_range(0.25..2.0);
            if signed && rng.random_bool(0.5) { -x } else { x }
        };
        let t = match kind {
            Numbers::Moderate => Tensor::from_fn(dims, |_| moderate(rng)),
            Numbers::Hard => hard(dims, rng, moderate),
        };
        facts.sources.insert(name.clone(), Type::new(Shape::of(dims), Format::F32));
        facts.updated.insert(name.clone());
        facts.staged.insert(name.clone());
        tensors.insert(name.clone(), t);
        if *sort == Sort::Word {
            chosen.insert(var.clone(), word_for(rule, var, &name, rng));
        }
    }
    let mut egraph = EGraph::new(facts);
    let mut ids: Vec<Id> = Vec::new();
    let mut left = None;
    for node in rule.left.iter() {
        let id = match node {
            ENodeOrVar::Var(v) => variable(&mut egraph, &v.to_string(), rule, &chosen),
            ENodeOrVar::ENode(t) => {
                let t = t.clone().map_children(|c| ids[usize::from(c)]);
                makes_sense(&egraph, &t)?;
                left = Some(t.clone());
                egraph.add(t)
            }
        };
        ids.push(id);
    }
    let root = *ids.last().ok_or("an empty left side")?;
    egraph.rebuild();
    let left = left.ok_or("a left side without an operation")?;
    Ok(Instance { egraph, root, left, tensors, words: chosen })
}

/// A word for a variable: a value of the attribute where it stands, a format of a copy, or a source's name.
fn word_for(rule: &Rule, var: &str, name: &str, rng: &mut ChaCha8Rng) -> String {
    for node in rule.left.iter() {
        let ENodeOrVar::ENode(t) = node else { continue };
        let is_it = |&c: &Id| matches!(&rule.left[c], ENodeOrVar::Var(v) if v.to_string() == var);
        let Some(i) = t.children.iter().position(is_it) else { continue };
        if matches!(t.name(), forms::CARRIED | forms::STAGED) && i == 0 {
            return Format::MULTIPLIED.choose(rng).unwrap_or(&Format::F32).to_string();
        }
        let Some(attribute) = Signature::find(t.name()).and_then(|row| row.attributes.get(i)) else { continue };
        return attribute.samples.choose(rng).map_or_else(String::new, |value| attribute.leaf(value));
    }
    name.to_owned()
}

fn variable(egraph: &mut EGraph, var: &str, rule: &Rule, words: &BTreeMap<String, String>) -> Id {
    if let Some(word) = words.get(var) {
        return egraph.add(Term::word(word));
    }
    if let Some(constant) = wanted_constant(rule, var) {
        let value = egraph.add(Term { head: Head::Num(Num::new(constant)), children: Vec::new() });
        return if rule.sorts[var] == Sort::Edge { egraph.add(Term::op(forms::PASS, vec![value])) } else { value };
    }
    let name = egraph.add(Term::word(var.trim_start_matches('?')));
    // What selects is a truth value, here true and here false.
    if is_condition(rule, var) {
        let buffer = egraph.add(Term::op(forms::INPUT, vec![name]));
        let one = egraph.add(Term { head: Head::Num(Num::new(1.0)), children: Vec::new() });
        let (read, one) =
            (egraph.add(Term::op(forms::GET, vec![buffer])), egraph.add(Term::op(forms::PASS, vec![one])));
        let truth = egraph.add(Term::op("gt", vec![read, one]));
        return egraph.add(Term::op(forms::PASS, vec![truth]));
    }
    let buffer = egraph.add(Term::op(forms::INPUT, vec![name]));
    match rule.sorts[var] {
        Sort::Edge => egraph.add(Term::op(forms::GET, vec![buffer])),
        // Some value that is no source, of the kind the rule is about.
        Sort::Value if let Some(format) = other_format(rule) => {
            let attrs = vec![egraph.add(Term::word("dims=[2, 3]")), egraph.add(Term::word("axis=1"))];
            let iota = egraph.add(Term::op("iota", attrs));
            let edge = egraph.add(Term::op(forms::PASS, vec![iota]));
            let word = egraph.add(Term::word(format.name()));
            egraph.add(Term::op(names::CONVERT, vec![word, edge]))
        }
        Sort::Value => {
            let edge = egraph.add(Term::op(forms::GET, vec![buffer]));
            egraph.add(Term::op(if computed_in(rule, "bool") { "is_finite" } else { "neg" }, vec![edge]))
        }
        _ => buffer,
    }
}

/// Does the variable stand where a selection has its condition?
fn is_condition(rule: &Rule, var: &str) -> bool {
    rule.left.iter().any(|n| {
        matches!(n, ENodeOrVar::ENode(t) if t.name() == "select"
            && matches!(&rule.left[t.children[0]], ENodeOrVar::Var(v) if v.to_string() == var))
    })
}

/// The constant that a condition wants a variable to be, or that an attribute is made of.
fn wanted_constant(rule: &Rule, var: &str) -> Option<f64> {
    let is_var = |a: &ENodeOrVar<Term>| matches!(a, ENodeOrVar::Var(v) if v.to_string() == var);
    for c in rule.conditions.iter().filter(|c| c.name == "near" && is_var(&c.args[0])) {
        let ENodeOrVar::ENode(t) = &c.args[1] else { continue };
        return t.to_string().parse().ok();
    }
    let attribute = rule
        .right
        .iter()
        .any(|n| matches!(n, ENodeOrVar::ENode(t) if t.name() == forms::AS && is_var(&rule.right[t.children[1]])));
    attribute.then_some(0.01)
}

/// The format that a condition wants its value computed in, if that is neither f32 nor a truth value.
fn other_format(rule: &Rule) -> Option<Format> {
    Format::ALL.into_iter().find(|f| !matches!(f, Format::F32 | Format::Bool) && computed_in(rule, f.name()))
}

fn computed_in(rule: &Rule, format: &str) -> bool {
    let is_it = |a: &ENodeOrVar<Term>| matches!(a, ENodeOrVar::ENode(t) if *t == Term::word(format));
    rule.conditions.iter().any(|c| c.name == "computed-in" && c.args.iter().any(is_it))
}

/// The largest unit roundoff of a rule's formats; variables may be bf16.
fn coarsest(rule: &Rule) -> f64 {
    let word =
        |n: &ENodeOrVar<Term>| if let ENodeOrVar::ENode(t) = n { t.to_string().parse::<Format>().ok() } else { None };
    let formats = rule.right.iter().filter_map(word).chain([Format::Bf16]);
    formats.filter_map(Format::float).map(|s| s.unit_roundoff()).fold(0.0, f64::max)
}

impl Instance {
    fn check(&self, rule: &Rule, kind: Numbers) -> Result<(), String> {
        let mut has_nan = false;
        let Some(left) = self.eval(&self.left, 0, &mut has_nan) else {
            return Err("the left side has no value".into());
        };
        if has_nan && kind == Numbers::Hard {
            return Ok(());
        }
        let unit = if rule.arrow == Arrow::Exact { 1e-12 } else { coarsest(rule) };
        for t in &self.egraph[self.root].nodes {
            let Some(other) = self.eval(t, 0, &mut false) else { continue };
            for (a, b) in left.data.iter().zip(&other.data) {
                // A few roundings of operands of size up to 2, summed over products of length 3.
                let tolerance = unit * (24.0 + 8.0 * a.abs());
                let overflows = kind == Numbers::Hard && !a.is_finite();
                let same = (a.is_nan() && b.is_nan()) || a == b || (a - b).abs() <= tolerance;
                if !same && !overflows {
                    return Err(format!("the sides differ: {a} and {b}"));
                }
            }
        }
        Ok(())
    }

    /// A term's value in f64; none below a cycle. Says whether a part of it is NaN.
    fn eval(&self, t: &Term, depth: usize, has_nan: &mut bool) -> Option<Tensor> {
        let value = if depth > 24 { None } else { self.value(t, depth, has_nan) }?;
        *has_nan |= value.data.iter().any(|v| v.is_nan());
        Some(value)
    }

    fn value(&self, t: &Term, depth: usize, has_nan: &mut bool) -> Option<Tensor> {
        let mut of = |id: Id| self.egraph[id].nodes.iter().find_map(|t| self.eval(t, depth + 1, has_nan));
        let word = |id: Id| self.egraph[id].data.word.map_or("", |w| w.as_str());
        match (t.head, t.name()) {
            (Head::Word(_), _) => None,
            (Head::Num(n), _) => Some(Tensor::scalar(n.get())),
            (_, forms::PASS | forms::GET) => of(t.children[0]),
            (_, forms::PARAM | forms::STATE | forms::INPUT) => self.tensors.get(word(t.children[0])).cloned(),
            (_, forms::CARRIED | forms::STAGED) => {
                let format: Format = word(t.children[0]).parse().ok()?;
                if format == Format::F32 {
                    return self.tensors.get(word(t.children[1])).cloned();
                }
                Some(self.tensors.get(word(t.children[1]))?.map(|v| format.stored(v)))
            }
            _ => {
                let (op, operands) = decode_op(&self.egraph, t).ok()?;
                let values = operands.iter().map(|&c| of(c)).collect::<Option<Vec<_>>>()?;
                let types: Vec<&Type> = operands.iter().filter_map(|&c| self.egraph[c].data.ty.as_ref()).collect();
                let ty = op.infer(&types).ok()?;
                // f32 is what values are computed in: storing it changes nothing. Narrow formats round.
                if matches!(op, Op::Put(Format::F32) | Op::Cast(Format::F32)) {
                    return values.into_iter().next();
                }
                // A product's operands are rounded by their casts.
                Some(op.eval(&values.iter().collect::<Vec<_>>(), &ty))
            }
        }
    }
}
