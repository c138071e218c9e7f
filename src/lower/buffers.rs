//! Where temporaries live: one arena, slots reused as soon as the last reader has run.

use super::kernel::BufferId;
use super::kernel::Kernel;
use super::program::Program;

/// A range of the arena, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// From the start of the arena: a multiple of 256.
    pub offset: usize,
    /// Reserved for the buffer: its own size, rounded up to a multiple of 256.
    pub bytes: usize,
}

/// Slots of all buffers. Sources and results never share theirs.
#[derive(Clone, Debug, Default)]
pub struct Arena {
    /// By [`BufferId`]; of no bytes where no launch touches the buffer.
    pub slots: Vec<Slot>,
    /// Size of the whole arena.
    pub bytes: usize,
}

/// Every slot starts at a multiple of this: the widest vector load, and what products like best.
const ALIGN: usize = 256;

impl Arena {
    /// First fit by order of first write, over the times each buffer is alive.
    pub fn assign(program: &Program) -> Arena {
        let n = program.buffers.len();
        let mut life: Vec<(usize, usize)> = vec![(usize::MAX, 0); n];
        // Kernels of one launch run at the same time: a slot is free again only for a later launch.
        for (time, launch) in program.launches.iter().enumerate() {
            for kernel in program.calls[launch.clone()].iter().map(|c| &c.kernel) {
                for b in kernel.reads().into_iter().chain(kernel.writes()) {
                    life[b] = (life[b].0.min(time), life[b].1.max(time));
                }
            }
        }
        let forever = (0, usize::MAX);
        for (b, info) in program.buffers.iter().enumerate() {
            if info.source.is_some() {
                life[b] = forever;
            }
        }
        program.results.iter().for_each(|r| life[r.2] = (life[r.2].0.min(program.launches.len()), usize::MAX));
        let mut order: Vec<BufferId> = (0..n).filter(|&b| life[b].0 != usize::MAX).collect();
        order.sort_by_key(|&b| (life[b].0, b));
        let mut arena = Arena { slots: vec![Slot { offset: 0, bytes: 0 }; n], bytes: 0 };
        let mut placed: Vec<BufferId> = Vec::new();
        for b in order {
            let bytes = program.buffers[b].ty.bytes().next_multiple_of(ALIGN).max(ALIGN);
            let mut taken: Vec<Slot> = placed
                .iter()
                .filter(|&&p| life[p].0 <= life[b].1 && life[b].0 <= life[p].1)
                .map(|&p| arena.slots[p])
                .collect();
            taken.sort_by_key(|s| s.offset);
            let offset =
                taken.iter().fold(0, |at, s| if at + bytes <= s.offset { at } else { at.max(s.offset + s.bytes) });
            arena.slots[b] = Slot { offset, bytes };
            arena.bytes = arena.bytes.max(offset + bytes);
            placed.push(b);
        }
        arena
    }
}

/// Bytes of memory that running a program takes, besides what libraries take for themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Of parameters, optimizer state and inputs.
    pub resident: usize,
    /// Of temporaries, in slots that are used again and again.
    pub temporaries: usize,
}

impl Memory {
    /// Both together.
    pub fn total(&self) -> usize {
        self.resident + self.temporaries
    }
}

impl Program {
    /// What [`Arena`] and the products that go through scratch take.
    pub fn memory(&self) -> Memory {
        let arena = Arena::assign(self);
        let sources = arena.slots.iter().zip(&self.buffers).filter(|(_, b)| b.source.is_some());
        let resident = sources.map(|(slot, _)| slot.bytes).sum();
        let scratch = |k: &Kernel| if let Kernel::Product(p) = k { p.scratch_bytes() } else { 0 };
        let scratch = self.kernels().map(scratch).max().unwrap_or(0);
        Memory { resident, temporaries: arena.bytes - resident + scratch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use crate::ir::{Shape, Type};
    use crate::lower::{BufferInfo, Call, Inst, Kernel, Load, Loop, Store, View};

    /// Two copies in one launch, `a` to `c` and `b` to `d`, after which `a` and `b` are not needed any more.
    #[test]
    fn kernels_of_one_launch_share_no_slot() {
        let ty = Type::new(Shape::of(&[100]), Format::F32);
        let buffers = ["x", "a", "b", "c", "d"].map(|n| BufferInfo { name: n.into(), ty: ty.clone(), source: None });
        let copy = |from, to| {
            let view = View::contiguous(&[100]);
            let load = Load { buffer: from, view: view.clone(), format: Format::F32 };
            let store = Store { reg: 0, buffer: to, view, format: Format::F32 };
            let (outer, inner) = (vec![100], Vec::new());
            Kernel::Loop(Loop {
                outer,
                inner,
                loads: vec![load],
                tape: vec![Inst::Load(0)],
                stores: vec![store],
                wide: false,
            })
        };
        let call = |(from, to)| Call { kernel: copy(from, to), computes: Vec::new(), in_loop: None, waits: Vec::new() };
        let calls = [(0, 1), (0, 2), (1, 3), (2, 4)].map(call).to_vec();
        let program = Program { buffers: buffers.to_vec(), calls, launches: vec![0..2, 2..4], ..Program::default() };
        let arena = Arena::assign(&program);
        for (p, q) in [(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)] {
            let (s, t) = (arena.slots[p], arena.slots[q]);
            assert!(s.offset + s.bytes <= t.offset || t.offset + t.bytes <= s.offset, "{p} and {q} overlap");
        }
    }
}
