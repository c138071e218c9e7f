//! Applying a rule to a match: its conditions, then its right side, term by term.

use super::EGraph;
use super::conditions::holds;
use super::language::{Allow, Fact, Facts, Head, Term, forms, makes_sense};
use super::rule::Rule;
use egg::{Applier, ENodeOrVar, Id, Pattern, PatternAst, Rewrite, Subst, Symbol};

/// Why a right side is none for a match.
#[derive(Clone, Debug)]
pub(super) struct Misfit {
    /// The term of the right side that has no type; the last one, if the whole has another than the left side.
    pub at: usize,
    pub why: String,
}

impl Rule {
    /// The rewrite that egg runs.
    ///
    /// A rule does not apply where its right side has no type or another than its left: `x * 1 = x` holds for numbers of
    /// one format, and with a whole number x the 1 is of another. That a rule has a type at all is seen when it is read
    /// (`typed`).
    pub(super) fn rewrite(&self) -> Rewrite<Term, Facts> {
        let applier = RuleApplier { rule: self.clone(), name: self.name.as_str().into() };
        Rewrite::new(self.name.as_str(), Pattern::new(self.left.clone()), applier)
            .expect("the reader bound every variable")
    }

    /// Adds the right side for a match of the left one; none where a condition does not hold.
    pub(super) fn build(&self, egraph: &mut EGraph, class: Id, subst: &Subst) -> Result<Option<Id>, Misfit> {
        for c in &self.conditions {
            let args: Vec<Id> = c
                .args
                .iter()
                .map(|a| match a {
                    ENodeOrVar::Var(v) => subst[*v],
                    ENodeOrVar::ENode(t) => egraph.add(t.clone()),
                })
                .collect();
            if !holds(egraph, &c.name, &args, class) {
                return Ok(None);
            }
        }
        // New terms inherit the policy's verdict on what they replace.
        egraph.analysis.allow = egraph[class].data.allow;
        let built = self.right_side(egraph, subst);
        egraph.analysis.allow = Allow::ALL;
        let Some(root) = built? else { return Ok(None) };
        let (left, right) = (&egraph[class].data, &egraph[root].data);
        if left.sort != right.sort || left.ty != right.ty {
            let ty = |f: &Fact| f.ty.as_ref().map_or_else(|| "no tensor".to_owned(), |ty| ty.to_string());
            let why = format!("this is {}, but the left side is {}", ty(right), ty(left));
            return Err(Misfit { at: self.right.len() - 1, why });
        }
        Ok(Some(root))
    }

    fn right_side(&self, egraph: &mut EGraph, subst: &Subst) -> Result<Option<Id>, Misfit> {
        let mut ids: Vec<Id> = Vec::with_capacity(self.right.len());
        for (at, node) in self.right.iter().enumerate() {
            ids.push(match node {
                ENodeOrVar::Var(v) => subst[*v],
                ENodeOrVar::ENode(t) if t.name() == forms::AS => {
                    let (key, value) = (ids[usize::from(t.children[0])], ids[usize::from(t.children[1])]);
                    let Some(constant) = egraph[value].data.constant else { return Ok(None) };
                    let key = egraph[key].data.word.map_or("", |w| w.as_str());
                    egraph.add(Term::word(&format!("{key}={constant}")))
                }
                ENodeOrVar::ENode(t) => {
                    let mut t = t.clone();
                    t.children.iter_mut().for_each(|c| *c = ids[usize::from(*c)]);
                    if egraph.lookup(t.clone()).is_none() && !matches!(t.head, Head::Word(_)) {
                        makes_sense(egraph, &t).map_err(|why| Misfit { at, why })?;
                        egraph.analysis.made_by.insert(t.clone(), self.name.as_str().into());
                    }
                    egraph.add(t)
                }
            });
        }
        Ok(ids.pop())
    }
}

struct RuleApplier {
    rule: Rule,
    name: Symbol,
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
        match self.rule.build(egraph, class, subst) {
            Ok(Some(right)) if egraph.union_trusted(class, right, self.name) => vec![right],
            _ => Vec::new(),
        }
    }
}
