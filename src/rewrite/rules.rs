//! The rule language: reading `rules/*.rules` into rewrites.
//!
//! ```text
//! (rule NAME "what it says" LEFT => RIGHT when (CONDITION …) …)
//! ```
//!
//! `=>` holds exactly in real arithmetic, `~>` changes rounding, `<=>` is exact both ways. Authors of algebra write
//! plain nested terms; the loader puts the edges in, directed by sort. A variable alone on the right of an algebraic
//! rule stands for a value, so `(mul ?x 1) => ?x` is read as `(mul (pass ?x) (pass 1)) => ?x`, which carries into
//! products by congruence too.

use super::conditions::{CONDITIONS, holds};
use super::language::{Allow, Fact, Facts, Head, Sort, Term, makes_sense};
use super::sexpr::{Sexpr, read};
use super::{EGraph, PHASES};
use crate::error::{Error, Result, Spanned};
use crate::hint::{is_meant, nearest};
use crate::ir::{Attrs, Num, Op};
use egg::{Applier, ENodeOrVar, Id, Pattern, PatternAst, Rewrite, Subst, Symbol, Var};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrow {
    /// Equal in real arithmetic.
    Exact,
    /// Equal up to rounding to a format.
    Rounds,
}

/// One rewrite, from left to right.
#[derive(Clone, Debug)]
pub struct Rule {
    pub name: String,
    pub doc: String,
    /// The file it stands in without `.rules`, which decides when it runs.
    pub phase: String,
    pub arrow: Arrow,
    pub left: PatternAst<Term>,
    pub right: PatternAst<Term>,
    pub conditions: Vec<Condition>,
    /// Sorts of the variables on the left.
    pub sorts: BTreeMap<String, Sort>,
    /// The rule as written, on one line.
    pub text: String,
}

/// A condition and its arguments: variables, or words such as formats.
#[derive(Clone, Debug)]
pub struct Condition {
    pub name: String,
    pub args: Vec<ENodeOrVar<Term>>,
}

/// All rules, in file order.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    pub rules: Vec<Rule>,
}

macro_rules! embedded {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("../../rules/", $name, ".rules")))),*] };
}

impl RuleSet {
    /// The rules in the binary.
    pub fn builtin() -> Result<RuleSet> {
        let mut set = RuleSet::default();
        for (phase, text) in embedded!("recognise", "simplify", "layout", "fuse", "precision", "carry") {
            set.load(phase, text, &format!("rules/{phase}.rules"))?;
        }
        Ok(set)
    }

    /// The rules of a directory where one is given, else those in the binary.
    ///
    /// # Errors
    /// Those of [`RuleSet::from_dir`].
    pub fn load_from(dir: Option<&Path>) -> Result<RuleSet> {
        dir.map_or_else(RuleSet::builtin, RuleSet::from_dir)
    }

    /// The rules of a directory: the files `PHASE.rules` that are there.
    ///
    /// # Errors
    /// Where there are none, one is called after no phase, or one does not read: with the place.
    pub fn from_dir(dir: &Path) -> Result<RuleSet> {
        let mut set = RuleSet::default();
        let names = format!("they are named {}.rules", PHASES.join(".rules, "));
        let mut files = BTreeSet::new();
        for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
            let path = entry.map_err(Error::io("read", dir))?.path();
            if path.extension().is_some_and(|e| e == "rules") {
                let phase = path.file_stem().and_then(|p| p.to_str()).unwrap_or("");
                if !PHASES.contains(&phase) {
                    let hint = is_meant(phase, PHASES.into_iter());
                    return Err(Error::Request(format!(
                        "{}: a file of rules is a phase; {names}{hint}",
                        path.display()
                    )));
                }
                files.insert(phase.to_owned());
            }
        }
        if files.is_empty() {
            return Err(Error::Request(format!("{}: no rule files; {names}", dir.display())));
        }
        for phase in PHASES.into_iter().filter(|&p| files.contains(p)) {
            let path = dir.join(format!("{phase}.rules"));
            let text = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
            set.load(phase, &text, &path.display().to_string())?;
        }
        Ok(set)
    }

    /// Adds the rules of one file.
    pub fn load(&mut self, phase: &str, text: &str, file: &str) -> Result<()> {
        let at = |e: Spanned| e.in_file(file, text);
        for item in read(text).map_err(at)? {
            for rule in parse_rule(phase, &item, text).map_err(at)? {
                if self.rules.iter().any(|r| r.name == rule.name) {
                    return Err(at(Spanned::new(item.span(), format!("there are two rules named `{}`", rule.name))));
                }
                self.rules.push(rule);
            }
        }
        Ok(())
    }

    pub fn phase<'a>(&'a self, phase: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().filter(move |r| r.phase == phase)
    }
}

type Parse<T> = std::result::Result<T, Spanned>;

fn parse_rule(phase: &str, item: &Sexpr, source: &str) -> Parse<Vec<Rule>> {
    let shape = "a rule is (rule NAME \"doc\" LEFT => RIGHT when (CONDITION ...) ...)";
    let bad = |span, what: &str| Spanned::new(span, what.to_owned()).help(shape);
    let Sexpr::List(parts, span) = item else { return Err(bad(item.span(), "expected a rule")) };
    let [head, name, doc, left, arrow, right, rest @ ..] = &parts[..] else {
        return Err(bad(span.clone(), "this rule lacks a part"));
    };
    if head.atom() != Some("rule") {
        return Err(bad(head.span(), "expected `rule`"));
    }
    let name = name.atom().ok_or_else(|| bad(name.span(), "expected the rule's name"))?;
    let Sexpr::Text(doc, _) = doc else { return Err(bad(doc.span(), "expected the rule's doc string")) };
    let (kind, both) = match arrow.atom() {
        Some("=>") => (Arrow::Exact, false),
        Some("<=>") => (Arrow::Exact, true),
        Some("~>") => (Arrow::Rounds, false),
        _ => return Err(bad(arrow.span(), "expected =>, ~> or <=>")),
    };
    let conditions = match rest {
        [] => Vec::new(),
        [when, conditions @ ..] if when.atom() == Some("when") => {
            conditions.iter().map(parse_condition).collect::<Parse<_>>()?
        }
        [other, ..] => return Err(bad(other.span(), "expected `when` or the end of the rule")),
    };
    let text = source[left.span().start..span.end - 1].split_whitespace().collect::<Vec<_>>().join(" ");
    let make = |name: String, left: &Sexpr, right: &Sexpr| {
        let (l, r, sorts) = parse_sides(left, right, kind)?;
        let rule = Rule {
            name,
            doc: doc.clone(),
            phase: phase.to_owned(),
            arrow: kind,
            left: l,
            right: r,
            conditions: conditions.clone(),
            sorts,
            text: text.clone(),
        };
        for c in &rule.conditions {
            for arg in &c.args {
                if let ENodeOrVar::Var(v) = arg
                    && !rule.sorts.contains_key(&v.to_string())
                {
                    return Err(Spanned::new(
                        span.clone(),
                        format!("the condition `{}` uses {v}, which the left side does not bind", c.name),
                    ));
                }
            }
        }
        Ok(rule)
    };
    if both {
        return Ok(vec![make(name.to_owned(), left, right)?, make(format!("{name}-back"), right, left)?]);
    }
    Ok(vec![make(name.to_owned(), left, right)?])
}

fn parse_condition(item: &Sexpr) -> Parse<Condition> {
    let Sexpr::List(parts, span) = item else {
        return Err(Spanned::new(item.span(), "expected a condition in parentheses"));
    };
    let name = parts.first().and_then(Sexpr::atom).unwrap_or("");
    let Some((_, arity, _)) = CONDITIONS.iter().find(|c| c.0 == name) else {
        let known = CONDITIONS.map(|c| c.0);
        let error =
            Spanned::new(parts.first().map_or(span.clone(), Sexpr::span), format!("there is no condition `{name}`"));
        return Err(error.help(match nearest(name, known.into_iter()) {
            Some(near) => format!("is `{near}` meant?"),
            None => format!("conditions are {}", known.join(", ")),
        }));
    };
    if parts.len() - 1 != *arity {
        return Err(Spanned::new(span.clone(), format!("`{name}` takes {arity} arguments, not {}", parts.len() - 1)));
    }
    let args = parts[1..].iter().map(|p| match p.atom() {
        Some(v) if v.starts_with('?') => {
            v.parse().map(ENodeOrVar::Var).map_err(|_| Spanned::new(p.span(), "not a variable"))
        }
        Some(word) => Ok(ENodeOrVar::ENode(Term::word(word))),
        None => Err(Spanned::new(p.span(), "expected a variable or a word")),
    });
    Ok(Condition { name: name.to_owned(), args: args.collect::<Parse<_>>()? })
}

/// Both patterns with edges put in, and the sorts of the left side's variables.
type Sides = (PatternAst<Term>, PatternAst<Term>, BTreeMap<String, Sort>);

fn parse_sides(left: &Sexpr, right: &Sexpr, arrow: Arrow) -> Parse<Sides> {
    let root = sort_of(left).ok_or_else(|| Spanned::new(left.span(), "the left side must be an operation"))?;
    if let Some(other) = sort_of(right)
        && other != root
    {
        return Err(Spanned::new(
            right.span(),
            format!("this is {}, but the left side is {}", describe(other), describe(root)),
        ));
    }
    let algebra = root == Sort::Value;
    if arrow == Arrow::Rounds && mentions(right, "pass") {
        return Err(Spanned::new(right.span(), "a rounding rule must not `pass` on its right side")
            .help("rounding needs a `put`: it would be lost in registers"));
    }
    if root == Sort::Edge && arrow == Arrow::Exact && !mentions(right, "put") && !mentions(right, "get") {
        return Err(Spanned::new(left.span(), "algebra must be rooted in values, not edges")
            .help("drop the outer `pass`: congruence carries the rule into every edge"));
    }
    // A bare variable on the right of algebra is a value, so on the left it is passed.
    let value_variable = right.atom().filter(|a| algebra && a.starts_with('?'));
    let mut b = Build { sorts: BTreeMap::new(), value_variable, on_left: true };
    let mut l = PatternAst::default();
    b.term(left, root, &mut l)?;
    b.on_left = false;
    let mut r = PatternAst::default();
    b.term(right, root, &mut r)?;
    Ok((l, r, b.sorts))
}

fn describe(sort: Sort) -> &'static str {
    match sort {
        Sort::Word => "a word",
        Sort::Value => "a value",
        Sort::Buffer => "a buffer",
        Sort::Edge => "an edge",
        Sort::Step => "a step",
    }
}

/// The sort an expression has by itself; none for a variable.
fn sort_of(e: &Sexpr) -> Option<Sort> {
    match e {
        Sexpr::List(parts, _) => parts.first().and_then(Sexpr::atom).map(Sort::of),
        Sexpr::Atom(a, _) if a.starts_with('?') => None,
        Sexpr::Atom(a, _) => Some(if a.parse::<f64>().is_ok() { Sort::Value } else { Sort::Word }),
        Sexpr::Text(..) => None,
    }
}

fn mentions(e: &Sexpr, head: &str) -> bool {
    match e {
        Sexpr::List(parts, _) => {
            parts.first().and_then(Sexpr::atom) == Some(head) || parts.iter().any(|p| mentions(p, head))
        }
        _ => false,
    }
}

struct Build<'a> {
    sorts: BTreeMap<String, Sort>,
    value_variable: Option<&'a str>,
    on_left: bool,
}

impl Build<'_> {
    /// Appends `e` where a term of sort `wanted` must stand; a value in an edge's place is passed.
    fn term(&mut self, e: &Sexpr, wanted: Sort, out: &mut PatternAst<Term>) -> Parse<Id> {
        if wanted == Sort::Edge
            && (sort_of(e) == Some(Sort::Value) || (self.value_variable.is_some() && e.atom() == self.value_variable))
        {
            let value = self.term(e, Sort::Value, out)?;
            return Ok(out.add(ENodeOrVar::ENode(Term::op("pass", vec![value]))));
        }
        match e {
            Sexpr::Text(_, span) => Err(Spanned::new(span.clone(), "expected a term")),
            Sexpr::Atom(a, span) if a.starts_with('?') => {
                let var: Var = a.parse().map_err(|_| Spanned::new(span.clone(), "variables are written ?name"))?;
                match self.sorts.get(a) {
                    Some(&sort) if sort != wanted => {
                        return Err(Spanned::new(
                            span.clone(),
                            format!("{a} is {} elsewhere but must be {} here", describe(sort), describe(wanted)),
                        ));
                    }
                    None if !self.on_left => {
                        return Err(Spanned::new(span.clone(), format!("{a} is not bound by the left side")));
                    }
                    Some(_) => {}
                    None => {
                        self.sorts.insert(a.clone(), wanted);
                    }
                }
                Ok(out.add(ENodeOrVar::Var(var)))
            }
            Sexpr::Atom(a, span) => match (a.parse::<f64>(), wanted) {
                (Ok(x), Sort::Value) => {
                    Ok(out.add(ENodeOrVar::ENode(Term { head: Head::Num(Num::new(x)), children: Vec::new() })))
                }
                (_, Sort::Word) => Ok(out.add(ENodeOrVar::ENode(Term::word(a)))),
                _ => Err(Spanned::new(span.clone(), format!("expected {}, found the word `{a}`", describe(wanted)))),
            },
            // An attribute made of a constant: `(as eps ?e)`.
            Sexpr::List(parts, span) if wanted == Sort::Word && parts.first().and_then(Sexpr::atom) == Some("as") => {
                let [_, key, value] = &parts[..] else {
                    return Err(Spanned::new(span.clone(), "an attribute is (as NAME ?constant)"));
                };
                if self.on_left {
                    return Err(Spanned::new(span.clone(), "`as` makes an attribute, so it stands on the right side"));
                }
                let children = vec![self.term(key, Sort::Word, out)?, self.term(value, Sort::Edge, out)?];
                Ok(out.add(ENodeOrVar::ENode(Term::op("as", children))))
            }
            Sexpr::List(parts, span) => {
                let Some(name) = parts.first().and_then(Sexpr::atom) else {
                    return Err(Spanned::new(span.clone(), "expected an operation"));
                };
                check_head(name, &parts[0])?;
                let sort = Sort::of(name);
                if sort != wanted {
                    return Err(Spanned::new(
                        span.clone(),
                        format!("expected {}, but `{name}` yields {}", describe(wanted), describe(sort)),
                    ));
                }
                let words = word_count(name, parts.len() - 1);
                let mut children = Vec::new();
                for (i, part) in parts[1..].iter().enumerate() {
                    let sort = if i < words { Sort::Word } else { Sort::of_operands(name) };
                    children.push(self.term(part, sort, out)?);
                }
                Ok(out.add(ENodeOrVar::ENode(Term::op(name, children))))
            }
        }
    }
}

/// How many leading children of `name` are words, given its child count.
fn word_count(name: &str, children: usize) -> usize {
    match name {
        "put" | "cast" | "alias" | "carried" | "staged" => 1,
        "matmul" => 2,
        "pass" | "get" | "param" | "state" | "input" | "step" => 0,
        _ => known_op(name).and_then(|op| op.arity()).map_or(1, |arity| children.saturating_sub(arity)),
    }
}

/// Some operation of this name, for its operand count.
fn known_op(name: &str) -> Option<Op> {
    let attrs = ["axis=0", "axes=[0]", "dims=[1]", "perm=[0]", "value=0", "stop=0", "format=f32", "reduction=none"];
    let sizes: &[&str] = match name {
        "window" | "unwindow" => &["size=1", "extent=1"],
        "conv" | "conv_input" | "conv_weight" => &["strides=[1]", "extents=[1]", "kernel=[1]"],
        _ => &["size=[1]"],
    };
    let attrs = attrs
        .iter()
        .chain(sizes)
        .filter_map(|a| a.split_once('='))
        .filter_map(|(k, v)| Some((k.to_owned(), crate::ir::text::parse_attr(v).ok()?)));
    Op::build(name, &Attrs(attrs.collect())).ok()
}

fn check_head(name: &str, at: &Sexpr) -> Parse<()> {
    let special = ["pass", "get", "put", "cast", "alias", "param", "state", "input", "carried", "staged"];
    if special.contains(&name) || known_op(name).is_some() {
        return Ok(());
    }
    Err(Spanned::new(at.span(), format!("there is no operation `{name}`")))
}

impl Rule {
    /// The rewrite egg runs. Its applier checks conditions and notes which rule made each new term.
    pub fn rewrite(&self) -> Rewrite<Term, Facts> {
        let applier = RuleApplier { rule: self.clone(), name: self.name.as_str().into() };
        Rewrite::new(self.name.as_str(), Pattern::new(self.left.clone()), applier)
            .expect("the loader bound every variable")
    }
}

struct RuleApplier {
    rule: Rule,
    name: Symbol,
}

impl RuleApplier {
    /// Ends the rewriting: the rule is not what its author meant.
    fn fault(&self, egraph: &mut EGraph, what: &str) -> Vec<Id> {
        let Rule { name, phase, text, .. } = &self.rule;
        egraph.analysis.fault.get_or_insert_with(|| {
            format!("rule `{name}` ({phase}.rules) {what}\n  {text}\nthe right side must have the type of the left for every match: add a condition, or convert")
        });
        egraph.analysis.allow = Allow::ALL;
        Vec::new()
    }
}

impl Applier<Term, Facts> for RuleApplier {
    fn apply_one(
        &self,
        egraph: &mut EGraph,
        class: Id,
        subst: &Subst,
        _: Option<&PatternAst<Term>>,
        _: Symbol,
    ) -> Vec<Id> {
        for c in &self.rule.conditions {
            let args: Vec<Id> = c
                .args
                .iter()
                .map(|a| match a {
                    ENodeOrVar::Var(v) => subst[*v],
                    ENodeOrVar::ENode(t) => egraph.add(t.clone()),
                })
                .collect();
            if !holds(egraph, &c.name, &args, class) {
                return Vec::new();
            }
        }
        // New terms inherit the policy's verdict on what they replace.
        egraph.analysis.allow = egraph[class].data.allow;
        let mut ids: Vec<Id> = Vec::with_capacity(self.rule.right.len());
        for node in self.rule.right.iter() {
            ids.push(match node {
                ENodeOrVar::Var(v) => subst[*v],
                ENodeOrVar::ENode(t) if t.name() == "as" => {
                    let (key, value) = (ids[usize::from(t.children[0])], ids[usize::from(t.children[1])]);
                    let Some(constant) = egraph[value].data.constant else { return Vec::new() };
                    let key = egraph[key].data.word.map_or("", |w| w.as_str());
                    egraph.add(Term::word(&format!("{key}={constant}")))
                }
                ENodeOrVar::ENode(t) => {
                    let mut t = t.clone();
                    t.children.iter_mut().for_each(|c| *c = ids[usize::from(*c)]);
                    if egraph.lookup(t.clone()).is_none() && t.head != Head::Word(self.name) {
                        if let Err(why) = makes_sense(egraph, &t) {
                            return self.fault(egraph, &format!("builds a `{}` that is none: {why}", t.name()));
                        }
                        egraph.analysis.made_by.insert(t.clone(), self.name);
                    }
                    egraph.add(t)
                }
            });
        }
        egraph.analysis.allow = Allow::ALL;
        let last = *ids.last().expect("a right side has a root");
        let (left, right) = (&egraph[class].data, &egraph[last].data);
        if left.sort != right.sort || left.ty != right.ty {
            let ty = |f: &Fact| f.ty.as_ref().map_or_else(|| "no tensor".to_owned(), |ty| ty.to_string());
            let why = format!("makes {} ({:?}) of {} ({:?})", ty(right), right.sort, ty(left), left.sort);
            return self.fault(egraph, &why);
        }
        if egraph.union_trusted(class, last, self.name) { vec![last] } else { Vec::new() }
    }
}
