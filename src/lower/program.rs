//! A list of kernels over named buffers.

use super::kernel::{BufferId, Kernel};
use crate::ir::{Op, Role, Type};
use std::ops::Range;

/// A tensor in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferInfo {
    /// The node of the planned graph it holds; what is updated in place goes by its source's name.
    pub name: String,
    /// Shape, and format in memory.
    pub ty: Type,
    /// The source it is; temporaries have none.
    pub source: Option<Op>,
}

/// Kernels in running order. Running them once is one evaluation of the graph; updates happen in place.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// By [`BufferId`]; sources come first.
    pub buffers: Vec<BufferInfo>,
    /// Kernels, with what they belong to.
    pub calls: Vec<Call>,
    /// Runs of calls that are one launch: alike but for buffers and sizes, and independent of each other.
    pub launches: Vec<Range<usize>>,
    /// Outputs and metrics by name, and where they lie after a run.
    pub results: Vec<(String, Role, BufferId)>,
}

/// A kernel in its place in a program.
#[derive(Clone, Debug)]
pub struct Call {
    /// What it runs.
    pub kernel: Kernel,
    /// The buffers it computes, as the plan names them.
    pub computes: Vec<String>,
    /// The loop it is part of.
    pub in_loop: Option<InLoop>,
    /// Buffers that must have been written before, besides those it reads.
    pub waits: Vec<BufferId>,
}

impl Call {
    /// How often the kernel runs.
    pub fn times(&self) -> usize {
        self.in_loop.as_ref().map_or(1, |l| l.times)
    }
}

/// What a kernel of a loop's body belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InLoop {
    /// The body's name.
    pub body: String,
    /// How often the kernel runs: in an [`super::outline`], the steps of the loop.
    pub times: usize,
}

impl Program {
    /// Kernels in running order.
    pub fn kernels(&self) -> impl ExactSizeIterator<Item = &Kernel> + DoubleEndedIterator {
        self.calls.iter().map(|c| &c.kernel)
    }

    /// Adds a kernel; unless there is nothing for it to store.
    pub(super) fn push(&mut self, call: Call) {
        if call.kernel.body().stores.iter().all(|s| s.view.dims.contains(&0)) {
            return;
        }
        self.calls.push(call);
    }

    /// The buffer of this name: a source's, or a stored value's.
    pub fn find(&self, name: &str) -> Option<BufferId> {
        self.buffers.iter().position(|b| b.name == name)
    }

    /// The buffer of an output or metric.
    pub fn result(&self, name: &str) -> Option<BufferId> {
        self.results.iter().find(|(n, role, _)| n == name && *role != Role::Update).map(|r| r.2)
    }
}
