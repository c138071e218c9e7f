//! What people read of a plan: a table, a page, differences, reasons, times.

mod diff;
mod explain;
mod profile;
mod report;
mod table;
mod trace;

pub use diff::diff;
pub use explain::{Alternative, Explanation, explain};
pub use profile::print_profile;
pub use report::{Heading, report};
pub use table::{clip, print_summary, print_table};
pub use trace::{Trace, Traced, trace};
