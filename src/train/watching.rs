//! Gathering evidence while a graph runs.

use crate::format::Spread;
use crate::plan::Evidence;
use crate::run::Watcher;
use std::cell::RefCell;
use std::rc::Rc;

/// Evidence, and who gathers it of an observed graph's values.
pub(super) fn watching() -> (Rc<RefCell<Evidence>>, Watcher) {
    let evidence = Rc::new(RefCell::new(Evidence::default()));
    let gathered = evidence.clone();
    let watcher = Box::new(move |name: &str, seen: &Spread| {
        gathered.borrow_mut().add(name.strip_suffix(".f32").unwrap_or(name), seen);
    });
    (evidence, watcher)
}
