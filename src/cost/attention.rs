//! What attention takes: as kernels that store no scores, and spelled out.

use super::{Target, Work};
use crate::format::Format;
use crate::lower::Attention;

/// Share of the matrix units' rate that attention's kernels reach.
const ATTENTION: f64 = 0.35;
/// Share of the scalar units' rate that attention outside the matrix units reaches.
const SCALAR_ATTENTION: f64 = 0.1;

/// An attention's extents, by which it is decided whether it is one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attended {
    /// Batch elements times heads of queries.
    pub matrices: usize,
    /// Queries of a head.
    pub queries: usize,
    /// Keys of a head.
    pub keys: usize,
    /// Elements of a query.
    pub width: usize,
    /// Elements of a value.
    pub value_width: usize,
    /// Does query i see the keys up to i alone?
    pub causal: bool,
}

/// Products that attention's kernels compute in a training step, each as large as queries by keys; and launches.
const KERNEL_PRODUCTS: f64 = 11.0;
const KERNELS: f64 = 6.0;
/// Products of attention that is spelled out, bytes that are moved for each score (scores, probabilities and their
/// gradients, written and read in a narrow format), and launches.
const SPELLED_PRODUCTS: f64 = 6.0;
const SPELLED_BYTES: f64 = 20.0;
const SPELLED: f64 = 9.0;

impl Target {
    /// Is attention of these extents faster as kernels that store no scores than spelled out, in a training step of this
    /// narrow format?
    pub fn attends(&self, a: &Attended, low: Format) -> bool {
        let is_taken = self.attention
            && self.multiplies(low)
            && low.is_low()
            && Attention::fits_units(a.width, a.value_width)
            && a.matrices * a.queries * a.keys > 0;
        if !is_taken {
            return false;
        }
        let rate = self.product_tflops.get(&low).copied().unwrap_or(f64::MIN_POSITIVE) * 1e12;
        let scores = (a.matrices * a.queries) as f64 * a.keys as f64;
        let product = 2.0 * scores * a.width as f64 / rate;
        let seen = if a.causal { 0.5 } else { 1.0 };
        let launch = self.launch_us * 1e-6;
        let kernels = KERNEL_PRODUCTS * seen * product / ATTENTION + KERNELS * launch;
        let spelled =
            SPELLED_PRODUCTS * product + SPELLED_BYTES * scores / (self.bandwidth_gb_s * 1e9) + SPELLED * launch;
        kernels < spelled
    }
}

/// Attention's products: matrices, queries, the keys that a query sees in the mean, and the elements that each of these meets.
pub(super) fn attended(a: &Attention) -> [usize; 4] {
    let keys = if a.spec.causal { a.keys.div_ceil(2) } else { a.keys };
    let each = (a.batch * a.heads * a.queries * a.keys).max(1) as f64;
    [a.batch * a.heads, a.queries, keys, (a.multiply_adds() / each) as usize]
}

/// Operations of attention's kernels per second: the matrix units wait for exponentials and for shared memory, and what these
/// units do not take runs in scalar registers.
pub(super) fn attention_rate(target: &Target, w: &Work) -> f64 {
    let rate = target.product_tflops.get(&w.format).copied().unwrap_or(f64::MIN_POSITIVE) * 1e12;
    match w.format.is_low() || target.multiprocessors == 1 {
        true => ATTENTION * rate,
        false => SCALAR_ATTENTION * target.scalar_gflops * 1e9,
    }
}
