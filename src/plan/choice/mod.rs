//! Choosing one member of every e-class: what there is, where to begin, and how to get better.

mod alike;
#[cfg(test)]
mod exact;
mod extract;
mod live;
mod members;
mod noise;
mod raise;
mod saturated;
mod search;
mod sketch;
mod start;
mod window;

pub(super) use extract::{Found, extract, plainest, with_plan};
pub(super) use live::{Flip, Live};
pub(super) use members::{Choice, Members};
pub(super) use search::Search;

pub use extract::Extracted;
pub use sketch::copy_name;
