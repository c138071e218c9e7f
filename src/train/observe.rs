//! Training in f32 with every value in sight.

use super::bench::Bench;
use super::compile::Settings;
use super::session::Session;
use super::watching::watching;
use crate::error::Result;
use crate::model::Model;
use crate::plan::Evidence;
use crate::rewrite::RuleSet;
use std::cell::RefCell;
use std::rc::Rc;

/// Some steps of training in f32, and what its values were like.
pub struct Observed {
    /// Stands behind the last step.
    pub session: Session,
    /// Shared with the session, which goes on looking.
    pub evidence: Rc<RefCell<Evidence>>,
    /// Of each step.
    pub losses: Vec<f64>,
}

impl Observed {
    /// The session, and what was seen so far.
    pub fn taken(self) -> (Session, Evidence) {
        (self.session, self.evidence.replace(Evidence::default()))
    }
}

/// Trains some steps in f32 and looks at every value. `tick` is told after each.
///
/// # Errors
/// Those of [`Settings::observed`] and [`Session::train_steps`]; a device that lacks memory for a step with everything stored.
pub fn observe(
    settings: &Settings,
    model: &Model,
    rules: &RuleSet,
    bench: Bench,
    steps: usize,
    tick: &dyn Fn(),
) -> Result<Observed> {
    let (evidence, watcher) = watching();
    let mut session = Session::watched(settings.observed(model, rules)?, bench.seed, bench.backend, watcher)?;
    let losses = session.train_steps(bench.data, steps, || {
        evidence.borrow_mut().steps += 1;
        tick();
    })?;
    Ok(Observed { session, evidence, losses })
}
