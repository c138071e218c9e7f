//! One rewrite.

use super::language::{Sort, Term};
use egg::{ENodeOrVar, PatternAst};
use std::collections::BTreeMap;
use std::ops::Range;

/// What a rule promises.
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
    /// Unique in a set of rules.
    pub name: String,
    /// What it says, for people: the text behind its name.
    pub doc: String,
    /// The file it stands in without `.rules`, which decides when it runs.
    pub phase: String,
    /// What it promises.
    pub arrow: Arrow,
    /// The pattern that is looked for.
    pub left: PatternAst<Term>,
    /// What is made equal to what the left side matches.
    pub right: PatternAst<Term>,
    /// What must hold of a match, all of it.
    pub conditions: Vec<Condition>,
    /// Sorts of the variables on the left.
    pub sorts: BTreeMap<String, Sort>,
    /// The rule as written, on one line.
    pub text: String,
}

/// A rule as it was read, and where the terms of its right side stand in the text.
pub(super) struct Read {
    pub rule: Rule,
    pub spans: Vec<Range<usize>>,
}

/// A condition and its arguments: variables, or words such as formats.
#[derive(Clone, Debug)]
pub struct Condition {
    pub name: String,
    pub args: Vec<ENodeOrVar<Term>>,
}
