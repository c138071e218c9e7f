//! The rule language: reading `rules/*.rules`.
//!
//! ```text
//! (rule NAME "what it says" LEFT => RIGHT when (CONDITION …) …)
//! (for ?f in (f16 bf16) (rule NAME-?f …) …)
//! ```
//!
//! `=>` holds exactly in real arithmetic, `~>` changes rounding, `<=>` is exact both ways. Authors of algebra write
//! plain nested terms; the reader puts the edges in, directed by sort. A variable alone on the right of an algebraic
//! rule stands for a value, so `(mul ?x 1) => ?x` is read as `(mul (pass ?x) (pass 1)) => ?x`, which carries into
//! products by congruence too.
//!
//! `for` writes its rules out once for each word, in its name too. The words are listed, or are one of the sets that the
//! tables of formats and operations know ([`SETS`]). `..` in a term stands for the attributes that are not written, by name:
//! `(softmax .. ?x)` is `(softmax ?axis ?x)`.

use super::conditions::CONDITIONS;
use super::language::{Head, Parts, Sort, Term, forms};
use super::rule::{Arrow, Condition, Read, Rule};
use super::sexpr::Sexpr;
use crate::error::Spanned;
use crate::format::Format;
use crate::hint::{is_meant, nearest};
use crate::ir::Num;
use crate::ir::ops::{Arity, Attribute, Kind, Signature, names};
use egg::{ENodeOrVar, Id, PatternAst, Var};
use std::collections::BTreeMap;
use std::ops::Range;

/// Words that rules can be written out for: the set's name, and what is in it.
pub const SETS: [(&str, &str); 4] = [
    ("computed", "formats that values are computed in, which storing keeps as they are"),
    ("narrow", "formats that plans round to where they store values and multiply them"),
    ("scaled", "formats that plans round to with a scale, where they store values"),
    ("products", "operations that multiply two whole tensors, in a format that is their first attribute"),
];

/// Rules that a `for` may write out, and characters of them, at most: every character may become a word.
const MOST: usize = 1000;
const MOST_WRITTEN: usize = 1 << 24;

/// The words of a set.
fn set(name: &str) -> Option<Vec<&'static str>> {
    match name {
        "computed" => Some(Format::COMPUTED.map(Format::name).to_vec()),
        "narrow" => Some(Format::STORED.map(Format::name).to_vec()),
        "scaled" => Some(Format::SCALED.map(Format::name).to_vec()),
        "products" => {
            let by_format = |row: &&Signature| row.attributes.first().is_some_and(|a| a.kind == Kind::Format);
            let of_two = |row: &&Signature| row.is_product() && row.arity == Arity::exactly(2);
            Some(Signature::all().iter().filter(of_two).filter(by_format).map(|row| row.name).collect())
        }
        _ => None,
    }
}

type Parse<T> = std::result::Result<T, Spanned>;

/// The rules of one item of a file: a rule, or several under a `for`.
pub(super) fn parse_item(phase: &str, item: &Sexpr) -> Parse<Vec<Read>> {
    match item {
        Sexpr::List(parts, _) if parts.first().and_then(Sexpr::atom) == Some("for") => {
            let mut out = Vec::new();
            for written in written_out(parts, item)? {
                out.extend(parse_item(phase, &written)?);
                if out.len() > MOST {
                    let why = format!("this `for` writes out more than {MOST} rules");
                    return Err(Spanned::new(item.span(), why));
                }
            }
            Ok(out)
        }
        _ => parse_rule(phase, item),
    }
}

/// What a `for` holds, once for each word.
fn written_out(parts: &[Sexpr], item: &Sexpr) -> Parse<Vec<Sexpr>> {
    let shape = "it is (for ?word in (WORD ...) (rule ...) ...)";
    let [_, variable, word, words, rules @ ..] = parts else {
        return Err(Spanned::new(item.span(), "this `for` lacks a part").help(shape));
    };
    let Some(variable) = variable.atom().filter(|v| v.starts_with('?')) else {
        return Err(Spanned::new(variable.span(), "expected a variable").help(shape));
    };
    if word.atom() != Some("in") {
        return Err(Spanned::new(word.span(), "expected `in`").help(shape));
    }
    let words: Vec<&str> = match words {
        Sexpr::List(words, _) => {
            let all = words.iter().map(|w| w.atom().ok_or_else(|| Spanned::new(w.span(), "expected a word")));
            all.collect::<Parse<_>>()?
        }
        Sexpr::Atom(name, span) => set(name).ok_or_else(|| {
            let sets = SETS.map(|s| s.0);
            let what = format!("there is no set `{name}`; sets are {}", sets.join(", "));
            Spanned::new(span.clone(), what + &is_meant(name, sets.into_iter()))
        })?,
        Sexpr::Text(_, span) => return Err(Spanned::new(span.clone(), "expected words").help(shape)),
    };
    if words.is_empty() || rules.is_empty() {
        let what = if words.is_empty() { "words" } else { "rules" };
        return Err(Spanned::new(item.span(), format!("this `for` has no {what}")).help(shape));
    }
    let longest = words.iter().map(|w| w.len()).max().unwrap_or(1).max(1);
    let written = rules.iter().map(size).sum::<usize>().saturating_mul(words.len()).saturating_mul(longest);
    if written > MOST_WRITTEN {
        return Err(Spanned::new(item.span(), "this `for` writes out too much").help("fewer words, or shorter rules"));
    }
    Ok(words.iter().flat_map(|word| rules.iter().map(|rule| with(rule, variable, word))).collect())
}

/// An expression with a word in a variable's place; inside a name, `_` of the word is written `-`.
fn with(e: &Sexpr, variable: &str, word: &str) -> Sexpr {
    match e {
        Sexpr::Atom(a, span) if a == variable => Sexpr::Atom(word.to_owned(), span.clone()),
        Sexpr::Atom(a, span) => Sexpr::Atom(replaced(a, variable, &word.replace('_', "-")), span.clone()),
        Sexpr::Text(t, span) => Sexpr::Text(replaced(t, variable, word), span.clone()),
        Sexpr::List(parts, span) => Sexpr::List(parts.iter().map(|p| with(p, variable, word)).collect(), span.clone()),
    }
}

/// A text with a word in a variable's place. `?f` is no part of `?factor`.
fn replaced(text: &str, variable: &str, word: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(variable) {
        let behind = &rest[at + variable.len()..];
        let is_whole = !behind.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        out += &rest[..at];
        out += if is_whole { word } else { variable };
        rest = behind;
    }
    out + rest
}

/// Characters of an expression.
fn size(e: &Sexpr) -> usize {
    match e {
        Sexpr::Atom(text, _) | Sexpr::Text(text, _) => text.len() + 1,
        Sexpr::List(parts, _) => parts.iter().map(size).sum::<usize>() + 2,
    }
}

fn parse_rule(phase: &str, item: &Sexpr) -> Parse<Vec<Read>> {
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
    let text = parts[3..].iter().map(Sexpr::to_string).collect::<Vec<_>>().join(" ");
    let make = |name: String, left: &Sexpr, right: &Sexpr| {
        let Sides { left: l, right: r, spans, sorts } = parse_sides(left, right, kind)?;
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
        Ok(Read { rule, spans })
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

/// Both patterns with edges put in, where the right one's terms stand, and the sorts of the left side's variables.
struct Sides {
    left: PatternAst<Term>,
    right: PatternAst<Term>,
    spans: Vec<Range<usize>>,
    sorts: BTreeMap<String, Sort>,
}

fn parse_sides(left: &Sexpr, right: &Sexpr, arrow: Arrow) -> Parse<Sides> {
    let root = sort_of(left).filter(|&sort| sort != Sort::Word);
    let root = root.ok_or_else(|| Spanned::new(left.span(), "the left side must be an operation"))?;
    if let Some(other) = sort_of(right)
        && other != root
    {
        return Err(Spanned::new(
            right.span(),
            format!("this is {}, but the left side is {}", describe(other), describe(root)),
        ));
    }
    let algebra = root == Sort::Value;
    let from_memory = || mentions(right, forms::GET) && (mentions(right, names::PUT) || mentions(right, names::CAST));
    if arrow == Arrow::Rounds && mentions(right, forms::PASS) && !from_memory() {
        return Err(Spanned::new(right.span(), "a rounding rule must not `pass` on its right side")
            .help("rounding needs a `put`: it would be lost in registers"));
    }
    if root == Sort::Edge && arrow == Arrow::Exact && !mentions(right, names::PUT) && !mentions(right, forms::GET) {
        return Err(Spanned::new(left.span(), "algebra must be rooted in values, not edges")
            .help("drop the outer `pass`: congruence carries the rule into every edge"));
    }
    // A bare variable on the right of algebra is a value, so on the left it is passed.
    let value_variable = right.atom().filter(|a| algebra && a.starts_with('?'));
    let mut b =
        Build { sorts: BTreeMap::new(), value_variable, on_left: true, out: PatternAst::default(), spans: Vec::new() };
    b.term(left, root)?;
    b.on_left = false;
    b.spans.clear();
    let left = std::mem::take(&mut b.out);
    b.term(right, root)?;
    Ok(Sides { left, right: b.out, spans: b.spans, sorts: b.sorts })
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
    out: PatternAst<Term>,
    /// Where each term of `out` stands.
    spans: Vec<Range<usize>>,
}

impl Build<'_> {
    fn add(&mut self, node: ENodeOrVar<Term>, at: &Range<usize>) -> Id {
        self.spans.push(at.clone());
        self.out.add(node)
    }

    /// Appends `e` where a term of sort `wanted` must stand; a value in an edge's place is passed.
    fn term(&mut self, e: &Sexpr, wanted: Sort) -> Parse<Id> {
        if wanted == Sort::Edge
            && (sort_of(e) == Some(Sort::Value) || (self.value_variable.is_some() && e.atom() == self.value_variable))
        {
            let value = self.term(e, Sort::Value)?;
            return Ok(self.add(ENodeOrVar::ENode(Term::op(forms::PASS, vec![value])), &e.span()));
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
                Ok(self.add(ENodeOrVar::Var(var), span))
            }
            Sexpr::Atom(a, span) => match (a.parse::<f64>(), wanted) {
                (Ok(x), Sort::Value) => {
                    Ok(self.add(ENodeOrVar::ENode(Term { head: Head::Num(Num::new(x)), children: Vec::new() }), span))
                }
                (_, Sort::Word) => Ok(self.add(ENodeOrVar::ENode(Term::word(a)), span)),
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
                let children = vec![self.term(key, Sort::Word)?, self.term(value, Sort::Edge)?];
                Ok(self.add(ENodeOrVar::ENode(Term::op(forms::AS, children)), span))
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
                let attributes = Signature::find(name).map_or(&[][..], |row| &row.attributes);
                let given = with_rest(attributes, &parts[1..]);
                count(name, &made, given.len(), span)?;
                let mut children = Vec::new();
                for (i, part) in given.iter().enumerate() {
                    let sort = if i < made.words { Sort::Word } else { made.operands };
                    let literal = part.atom().filter(|a| !a.starts_with('?'));
                    children.push(match (attributes.get(i), literal) {
                        (Some(attribute), Some(leaf)) => {
                            let leaf = attribute.spelled(leaf).map_err(|why| Spanned::new(part.span(), why))?;
                            self.add(ENodeOrVar::ENode(Term::word(&leaf)), &part.span())
                        }
                        _ => self.term(part, sort)?,
                    });
                }
                Ok(self.add(ENodeOrVar::ENode(Term::op(name, children)), span))
            }
        }
    }
}

/// What stands behind a head, with `..` as variables for the attributes that are not written.
fn with_rest(attributes: &[Attribute], given: &[Sexpr]) -> Vec<Sexpr> {
    let Some(at) = given.iter().position(|e| e.atom() == Some("..")) else { return given.to_vec() };
    let rest = attributes.iter().skip(at).map(|a| Sexpr::Atom(format!("?{}", a.key), given[at].span()));
    given[..at].iter().cloned().chain(rest).chain(given[at + 1..].iter().cloned()).collect()
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
    let fits = given.checked_sub(made.words).is_some_and(|n| made.arity.contains(n));
    if fits {
        return Ok(());
    }
    let keys = Signature::find(name).map_or(Vec::new(), |row| row.attributes.iter().map(|a| a.key).collect());
    let words = match &keys[..] {
        [] if made.words == 0 => String::new(),
        [] => format!("{} word(s) and ", made.words),
        keys => format!("the attributes {} and then ", keys.join(", ")),
    };
    Err(Spanned::new(span.clone(), format!("`{name}` takes {words}{}; {given} stand here", made.arity)))
}
