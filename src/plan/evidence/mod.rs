//! What a value's numbers are like, and what rounding it does to the gradients.

mod calibration;
mod kinks;
mod measured;
mod observed;
mod probe;
mod ranges;

pub(super) use calibration::Estimates;
pub use calibration::{Budget, Calibration, HEADROOM, Shares, percent};
pub use kinks::Kink;
pub use measured::Measured;
pub use observed::observed;
pub use probe::{Probe, gradient_output, gradient_outputs, probe};
pub use ranges::Evidence;
