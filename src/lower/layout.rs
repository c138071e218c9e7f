//! How threads are laid over a kernel's domain: the one judge of what kind a kernel is, which the table, the cost model,
//! CUDA's generator and the CPU executor ask, and how many threads and blocks each kind takes.

use super::kernel::{Contraction, Inst, Kernel, Level, Load, Loop, Store};
use super::stages::{most_kept, passes, work};
use super::view::View;
use std::hash::{Hash, Hasher};

/// How threads, or the lanes of a CPU's registers, are laid over a kernel's domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoopKind {
    /// A thread to an element, or some.
    Pointwise,
    /// A team of threads to an outer index, which reduces over the inner ones.
    Row,
    /// The same for rows so short that what passes need of them stays in registers.
    Held,
    /// Threads beside each other to outer indices beside each other, each of which reduces.
    Column,
    /// Some blocks of threads to an outer index: rows that are long and too few to keep a GPU busy.
    Split,
    /// All threads reduce to one value.
    Total,
}

impl LoopKind {
    /// The word for tables.
    pub fn name(self) -> &'static str {
        match self {
            LoopKind::Pointwise => "pointwise",
            LoopKind::Row => "row",
            LoopKind::Held => "held",
            LoopKind::Column => "column",
            LoopKind::Split => "split",
            LoopKind::Total => "total",
        }
    }
}

/// Rows of up to so many elements keep no more than half a warp busy.
pub(super) const SHORT: usize = 16;
/// Bytes of a launch's arguments, at most: older drivers take 4 KiB.
pub(super) const MOST_BYTES: usize = 4096;
pub(super) const THREADS: u32 = 256;
/// Columns a block reduces, and the threads it does so with.
pub(super) const COLUMNS: usize = 32;
pub(super) const COLUMN_THREADS: u32 = 512;
/// Blocks of columns that are enough, and rows that a thread of one should have at least.
pub(super) const ENOUGH_BLOCKS: usize = 264;
pub(super) const ROWS_OF_THREAD: usize = 8;
/// Blocks that share rows, at most, and the rounds that a thread of one should have.
pub(super) const MOST_PARTS: usize = 1024;
pub(super) const ROUNDS: usize = 16;
/// Rows that a warp each would not fill a GPU.
pub(super) const FEW_ROWS: usize = 4096;
/// Threads that are enough for a GPU to have something to do while some of them wait.
pub(super) const ENOUGH: usize = 1 << 17;
/// Registers that a thread holds a row's elements in, and threads that hold one, at most.
pub(super) const MOST_HELD: usize = 64;
pub(super) const MOST_TEAM: usize = 512;
/// Threads that a multiprocessor has at once.
pub(super) const RESIDENT: usize = 2048;
/// Rounds of a row's loop whose loads are made at once, as `reduce.cuh` says.
pub(super) const UNROLLED: usize = 4;
/// What combining the sums of several blocks takes, in such waits: writing them, telling so, reading them.
pub(super) const PARTS_WAIT: usize = 3;
/// Elements that a thread of a row's team should have at least.
pub(super) const OF_THREAD: usize = 4;

impl Loop {
    /// The kind of the kernel. Columns and totals are reduced in one pass over the elements.
    pub fn kind(&self) -> LoopKind {
        if !self.has_reduction() {
            return LoopKind::Pointwise;
        }
        let single = || passes(self).iter().filter(|p| p.is_live()).count() == 1;
        match (self.outer.is_empty(), self.is_column()) {
            (true, _) if single() => LoopKind::Total,
            (false, true) if single() => LoopKind::Column,
            (false, false) if is_shared(self.outer_size(), self.inner_size()) && single() => LoopKind::Split,
            _ if held_team(self).is_some() => LoopKind::Held,
            _ => LoopKind::Row,
        }
    }

    /// The axis that neighbouring lanes run along: of what is reduced over, or of columns and pointwise kernels the last.
    pub fn lane_axis(&self) -> Option<usize> {
        let (outer, all) = (self.outer.len(), self.outer.len() + self.inner.len());
        if self.inner.is_empty() || self.is_column() { outer.checked_sub(1) } else { all.checked_sub(1) }
    }

    /// Threads take columns: successive outer indices are neighbours in memory and successive inner ones are not, or a
    /// row is too short for many threads.
    fn is_column(&self) -> bool {
        let o = self.outer.len();
        if o == 0 || !self.has_reduction() || self.stores.iter().any(|s| s.view.dims.len() > o) {
            return false;
        }
        let single_stage = {
            let (levels, reduced) = (self.levels(), self.depend_on_reductions());
            // A reduction may not feed the inner level again, nor another reduction.
            let again = |inst: &Inst| inst.operands().iter().any(|&r| reduced[r]);
            !self.tape.iter().zip(&levels).any(|(inst, level)| *level == Level::Inner && again(inst))
        };
        if self.inner_size() <= SHORT {
            return single_stage;
        }
        let moves_by_one = |v: &View, axis: usize| {
            let guarded = v.guards.iter().flat_map(|g| g.terms.iter().map(move |t| (t.0, g.stride, g.step)));
            v.strides[axis] == 1 || guarded.into_iter().any(|(a, stride, step)| a == axis && stride == 1 && step == 1)
        };
        let varies = |v: &&View| v.strides[o..].iter().any(|&s| s != 0) || (o..v.dims.len()).any(|a| v.guarded(a));
        let views = || self.loads.iter().map(|l| &l.view).filter(varies);
        let neighbours = |axis: usize| views().filter(|v| moves_by_one(v, axis)).count();
        single_stage && neighbours(o - 1) > neighbours(o + self.inner.len() - 1)
    }
}

impl Kernel {
    /// Equal for kernels that [`Kernel::same_code`] calls alike; none for those that are like no other.
    pub fn code_hash(&self) -> Option<u64> {
        let Kernel::Loop(k) = self else { return None };
        let mut h = std::hash::DefaultHasher::new();
        (&k.tape, k.loads.len(), k.stores.len(), k.outer.is_empty()).hash(&mut h);
        Some(h.finish())
    }

    /// Would generated code differ only in buffers and sizes? Products and kernels with positions are never alike.
    pub fn same_code(&self, other: &Kernel) -> bool {
        let (Kernel::Loop(a), Kernel::Loop(b)) = (self, other) else { return false };
        let flat = |k: &Loop| k.outer.len() + k.inner.len() <= 1;
        // Code reaches a view's first element through a pointer, and is made for the pointer's alignment.
        let alignment = |v: &View| v.offset.trailing_zeros().min(3);
        let load = |l: &Load| (l.format, alignment(&l.view), l.view.strides.clone(), l.view.guards.clone());
        let store = |s: &Store| (s.reg, s.format, alignment(&s.view));
        flat(a)
            && flat(b)
            && a.wide == b.wide
            && a.tape == b.tape
            && a.loads.iter().map(load).eq(b.loads.iter().map(load))
            && a.stores.iter().map(store).eq(b.stores.iter().map(store))
            && a.kind() == b.kind()
    }

    /// What the kernel is, in a word, for tables.
    pub fn kind(&self) -> &'static str {
        match self {
            Kernel::Product(p) => match p.contraction {
                Contraction::Gemm(_) => "product",
                Contraction::Conv(_) => "conv",
                Contraction::Attention(_) => "attention",
                Contraction::Scatter(_) => "scatter",
            },
            Kernel::Loop(l) => l.kind().name(),
        }
    }
}

/// Blocks that share the rows of a column kernel's columns: as many as keep a GPU busy, as long as each of their threads
/// has something to do.
pub(super) fn column_parts(k: &Loop, width: usize) -> usize {
    if k.inner_size() <= SHORT {
        return 1;
    }
    let groups = k.outer_size().div_ceil(COLUMNS).max(1);
    (ENOUGH_BLOCKS / groups).min(k.inner_size() / (rows_together(width) * ROWS_OF_THREAD)).max(1)
}

/// Blocks that share a row, where rows are too few: as many as keep a GPU busy, as long as each of their threads has some
/// rounds of so many elements.
pub(super) fn row_parts(k: &Loop, width: usize) -> usize {
    parts_of(k.outer_size(), k.inner_size(), width)
}

fn parts_of(rows: usize, elements: usize, width: usize) -> usize {
    elements.div_ceil(THREADS as usize * ROUNDS * width).min(MOST_PARTS / rows.max(1)).max(1)
}

/// Are rows so few and so long that several blocks share one?
pub(super) fn is_shared(rows: usize, elements: usize) -> bool {
    parts_of(rows, elements, 4) > 1
}

/// Rows that a block of columns takes at once, if its threads take so many columns each.
pub(super) fn rows_together(width: usize) -> usize {
    COLUMN_THREADS as usize * width / COLUMNS
}

/// Kernels of this code that one launch takes.
pub(super) fn most_parts(k: &Loop) -> usize {
    // Pointers, sizes, the places of partial results and of their counters, and the first block.
    let words = k.loads.len() + k.stores.len() + 6;
    (MOST_BYTES / (8 * words)).max(1)
}

/// Launches that a GPU makes of so many kernels like this one.
pub fn launches_of(k: &Loop, kernels: usize) -> usize {
    kernels.div_ceil(most_parts(k))
}

/// Threads that share a row: as many as keep a GPU busy, as long as each has something to do.
fn team_size(k: &Loop) -> usize {
    let (rows, elements) = (k.outer_size(), k.inner_size());
    if elements <= SHORT {
        return 1;
    }
    let by_length = match elements {
        256..=1024 if rows <= FEW_ROWS => 128,
        0..=1024 => 32,
        1025..=8192 => 256,
        _ => 1024,
    };
    let wanted = (ENOUGH / rows.max(1)).next_power_of_two();
    let most = (elements / OF_THREAD).next_power_of_two();
    by_length.max(wanted.min(most).min(1024))
}

/// Rows that are at work at once on so many multiprocessors.
pub fn rows_at_once(k: &Loop, multiprocessors: usize) -> usize {
    let threads = if multiprocessors > 1 { multiprocessors * RESIDENT } else { 1 };
    threads.div_ceil(team_size(k)).min(k.outer_size())
}

/// Threads that share a row whose elements stay in registers; none where these are too many, or nothing is needed twice.
fn held_team(k: &Loop) -> Option<usize> {
    let guarded = || k.loads.iter().any(|l| !l.view.guards.is_empty());
    if k.wide || k.outer.is_empty() || k.inner_size() <= SHORT || k.inner_size() > MOST_HELD * MOST_TEAM || guarded() {
        return None;
    }
    let kept = most_kept(&work(k, true));
    let fits = |&team: &usize| k.inner_size().div_ceil(team) * kept <= MOST_HELD;
    let teams = std::iter::successors(Some(team_size(k)), |team| Some(2 * team));
    teams.take_while(|&team| kept > 0 && team <= MOST_TEAM).find(fits)
}

/// Threads that share a row, held or not.
pub(super) fn row_team(k: &Loop) -> usize {
    held_team(k).unwrap_or_else(|| team_size(k))
}

/// How often a thread of a row's or a column's kernel waits for memory, one time after the other; 0 for others.
pub fn waits(k: &Loop) -> usize {
    match k.kind() {
        LoopKind::Held => 1,
        LoopKind::Row => {
            let live = passes(k).iter().filter(|p| p.is_live()).count();
            live * k.inner_size().div_ceil(team_size(k) * OF_THREAD * UNROLLED)
        }
        LoopKind::Column if k.inner_size() > SHORT => {
            // Most take four columns a thread.
            let parts = column_parts(k, 4);
            k.inner_size().div_ceil(parts * rows_together(4) * UNROLLED) + if parts > 1 { PARTS_WAIT } else { 0 }
        }
        LoopKind::Split => {
            k.inner_size().div_ceil(row_parts(k, 4) * THREADS as usize * OF_THREAD * UNROLLED) + PARTS_WAIT
        }
        _ => 0,
    }
}
