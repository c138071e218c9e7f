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
use super::language::{Allow, Fact, Facts, Head, Parts, Sort, Term, forms, makes_sense};
use super::sexpr::{Sexpr, read};
use super::{EGraph, PHASES};
use crate::error::{Error, Result, Spanned};
use crate::hint::{is_meant, nearest};
use crate::ir::Num;
use crate::ir::ops::{Signature, names};
use egg::{Applier, ENodeOrVar, Id, Pattern, PatternAst, Rewrite, Subst, Symbol, Var};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
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
    if arrow == Arrow::Rounds && mentions(right, forms::PASS) {
        return Err(Spanned::new(right.span(), "a rounding rule must not `pass` on its right side")
            .help("rounding needs a `put`: it would be lost in registers"));
    }
    if root == Sort::Edge && arrow == Arrow::Exact && !mentions(right, names::PUT) && !mentions(right, forms::GET) {
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
        Sexpr::List(parts, _) => {
            let name = parts.first().and_then(Sexpr::atom)?;
            // What is no operation is told when the term is read.
            Some(Parts::of(name).map_or(Sort::Value, |p| p.sort))
        }
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
            return Ok(out.add(ENodeOrVar::ENode(Term::op(forms::PASS, vec![value]))));
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
            Sexpr::List(parts, span)
                if wanted == Sort::Word && parts.first().and_then(Sexpr::atom) == Some(forms::AS) =>
            {
                let [_, key, value] = &parts[..] else {
                    return Err(Spanned::new(span.clone(), "an attribute is (as NAME ?constant)"));
                };
                if self.on_left {
                    return Err(Spanned::new(span.clone(), "`as` makes an attribute, so it stands on the right side"));
                }
                let children = vec![self.term(key, Sort::Word, out)?, self.term(value, Sort::Edge, out)?];
                Ok(out.add(ENodeOrVar::ENode(Term::op(forms::AS, children))))
            }
            Sexpr::List(parts, span) => {
                let Some(name) = parts.first().and_then(Sexpr::atom) else {
                    return Err(Spanned::new(span.clone(), "expected an operation"));
                };
                let made = parts_of(name, &parts[0])?;
                if made.sort != wanted {
                    return Err(Spanned::new(
                        span.clone(),
                        format!("expected {}, but `{name}` yields {}", describe(wanted), describe(made.sort)),
                    ));
                }
                count(name, &made, parts.len() - 1, span)?;
                let mut children = Vec::new();
                for (i, part) in parts[1..].iter().enumerate() {
                    let sort = if i < made.words { Sort::Word } else { made.operands };
                    if let (Sort::Word, Some(leaf)) = (sort, part.atom().filter(|a| !a.starts_with('?'))) {
                        attribute(name, i, leaf).map_err(|why| Spanned::new(part.span(), why))?;
                    }
                    children.push(self.term(part, sort, out)?);
                }
                Ok(out.add(ENodeOrVar::ENode(Term::op(name, children))))
            }
        }
    }
}

/// What a term of this head is made of.
fn parts_of(name: &str, at: &Sexpr) -> Parse<Parts> {
    Parts::of(name).filter(|p| p.sort != Sort::Step).ok_or_else(|| {
        let hint = is_meant(name, Signature::all().iter().map(|row| row.name));
        Spanned::new(at.span(), format!("there is no operation `{name}`{hint}"))
    })
}

/// Attributes and operands must be as many as the table says.
fn count(name: &str, made: &Parts, given: usize, span: &Range<usize>) -> Parse<()> {
    let fits = made.arity.map_or(given > made.words, |arity| given == made.words + arity);
    if fits {
        return Ok(());
    }
    let keys = Signature::find(name).map_or(Vec::new(), |row| row.attributes.iter().map(|a| a.key).collect());
    let words = match &keys[..] {
        [] if made.words == 0 => String::new(),
        [] => format!("{} word(s) and ", made.words),
        keys => format!("the attributes {} and then ", keys.join(", ")),
    };
    let tensors = made.arity.map_or_else(|| "any number of operands".to_owned(), |n| format!("{n} operand(s)"));
    Err(Spanned::new(span.clone(), format!("`{name}` takes {words}{tensors}; {given} stand here")))
}

/// A word where attribute `i` of an operation stands must be a value of it.
fn attribute(name: &str, i: usize, leaf: &str) -> std::result::Result<(), String> {
    match Signature::find(name).and_then(|row| row.attributes.get(i)) {
        Some(attribute) => attribute.of_leaf(leaf).map(|_| ()),
        None => Ok(()),
    }
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
                ENodeOrVar::ENode(t) if t.name() == forms::AS => {
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
