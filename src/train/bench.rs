//! What a step is tried on.

use crate::data::Dataset;
use crate::run::Backend;

/// Samples, their order, and the device that they run on.
#[derive(Clone, Copy)]
pub struct Bench<'a> {
    /// Batches are drawn from it.
    pub data: &'a Dataset,
    /// Decides initial values, the order of samples and dropout.
    pub seed: u64,
    /// Whatever is run, runs there.
    pub backend: &'a dyn Backend,
}
