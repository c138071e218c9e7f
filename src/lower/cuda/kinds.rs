//! What each kind of kernel is launched with: the members of its functor, the template of `kernels/*.cuh` that it calls, its
//! threads, its numbers and its blocks. What decides that a kernel is of a kind stands in `lower/layout`.

use crate::lower::kernel::{Inst, Loop};
use crate::lower::layout::{COLUMN_THREADS, COLUMNS, LoopKind, SHORT, THREADS, column_parts, row_parts, row_team};

/// The blocks of one kernel of a launch, and what they are told.
pub(super) struct Blocks {
    /// Arguments, in the order of the members.
    pub numbers: Vec<u64>,
    /// Results that blocks leave for each other, and counters of those that did, for kernels that have such members.
    pub partials: Option<[usize; 2]>,
    pub count: u64,
}

/// A kind of kernel, of one width: the elements that a thread takes at once.
pub(super) trait Kind {
    /// Members of the functor behind its pointers. `REAL` is the type of registers.
    fn members(&self) -> &'static [&'static str];
    /// The call of the template, and the threads of a block.
    fn call(&self, k: &Loop, width: usize) -> (String, u32);
    fn blocks(&self, k: &Loop, width: usize) -> Blocks;
}

/// The row of a kind.
pub(super) fn of(kind: LoopKind) -> &'static dyn Kind {
    match kind {
        LoopKind::Pointwise => &Pointwise,
        LoopKind::Row | LoopKind::Held => &Row,
        LoopKind::Column => &Column,
        LoopKind::Split | LoopKind::Total => &Split,
    }
}

/// `pointwise.cuh`
struct Pointwise;

impl Kind for Pointwise {
    fn members(&self) -> &'static [&'static str] {
        &["u64 n"]
    }
    fn call(&self, _: &Loop, _: usize) -> (String, u32) {
        ("pointwise(g)".to_owned(), THREADS)
    }
    fn blocks(&self, k: &Loop, width: usize) -> Blocks {
        let n = k.outer_size() as u64;
        Blocks { numbers: vec![n], partials: None, count: n.div_ceil(u64::from(THREADS) * width as u64) }
    }
}

/// `reduce.cuh`, `row` and `held`
struct Row;

impl Kind for Row {
    fn members(&self) -> &'static [&'static str] {
        &["u64 n", "u64 rows"]
    }
    fn call(&self, k: &Loop, width: usize) -> (String, u32) {
        let team = row_team(k);
        let call = match k.kind() {
            LoopKind::Held => format!("held<{team}, {}>(g)", k.inner_size().div_ceil(team * width)),
            _ => format!("row<{team}>(g)"),
        };
        (call, if team <= 32 { 128 } else { team as u32 })
    }
    fn blocks(&self, k: &Loop, width: usize) -> Blocks {
        let (o, i) = (k.outer_size() as u64, k.inner_size() as u64);
        let teams = u64::from(self.call(k, width).1) / row_team(k) as u64;
        Blocks { numbers: vec![i, o], partials: None, count: o.div_ceil(teams) }
    }
}

/// `reduce.cuh`, `column`
struct Column;

impl Column {
    /// Columns of a block, and its threads. A short column is one thread's work; a block's sums must fit its memory.
    fn tile(k: &Loop, width: usize) -> (usize, u32) {
        match k.inner_size() <= SHORT {
            true => (THREADS as usize * width, THREADS),
            false => (COLUMNS, if k.wide { COLUMN_THREADS / 2 } else { COLUMN_THREADS }),
        }
    }
}

impl Kind for Column {
    fn members(&self) -> &'static [&'static str] {
        &["u64 n", "u64 rows", "u64 parts", "REAL* partials", "u32* arrived"]
    }
    fn call(&self, k: &Loop, width: usize) -> (String, u32) {
        let (columns, threads) = Column::tile(k, width);
        let across = columns / width;
        (format!("column<{across}, {}>(g)", threads as usize / across), threads)
    }
    fn blocks(&self, k: &Loop, width: usize) -> Blocks {
        let (columns, _) = Column::tile(k, width);
        let (groups, parts) = (k.outer_size().div_ceil(columns), column_parts(k, width));
        Blocks {
            numbers: vec![k.inner_size() as u64, k.outer_size() as u64, parts as u64],
            partials: Some(if parts > 1 { [groups * parts * columns * sums(k), groups] } else { [0, 0] }),
            count: (groups * parts) as u64,
        }
    }
}

/// `reduce.cuh`, `split`: few rows, or one.
struct Split;

impl Kind for Split {
    fn members(&self) -> &'static [&'static str] {
        &["u64 n", "u64 parts", "REAL* partials", "u32* arrived"]
    }
    fn call(&self, _: &Loop, _: usize) -> (String, u32) {
        (format!("split<{THREADS}>(g)"), THREADS)
    }
    fn blocks(&self, k: &Loop, width: usize) -> Blocks {
        let (rows, parts) = (k.outer_size(), row_parts(k, width));
        let count = rows * parts;
        let numbers = vec![k.inner_size() as u64, parts as u64];
        Blocks { numbers, partials: Some([count * sums(k), rows]), count: count as u64 }
    }
}

fn sums(k: &Loop) -> usize {
    k.tape.iter().filter(|i| matches!(i, Inst::Reduce(..))).count()
}
