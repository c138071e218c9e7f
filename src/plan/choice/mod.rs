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

pub(super) use alike::Alike;
pub(super) use extract::{Extracted, extract, members, plainest};
pub(super) use live::{Flip, Live};
pub(super) use members::{Choice, Members};
pub(super) use search::Search;

pub use sketch::copy_name;
