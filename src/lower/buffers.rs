//! Where temporaries live: one arena, slots reused as soon as the last reader has run.

use super::program::{BufferId, Program};

/// A range of the arena, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub offset: usize,
    pub bytes: usize,
}

/// Slots of all buffers. Sources and results never share theirs.
#[derive(Clone, Debug, Default)]
pub struct Arena {
    pub slots: Vec<Slot>,
    pub bytes: usize,
}

/// Every slot starts at a multiple of this: the widest vector load, and what products like best.
const ALIGN: usize = 256;

impl Arena {
    /// First fit by order of first write, over the times each buffer is alive.
    pub fn assign(program: &Program) -> Arena {
        let n = program.buffers.len();
        let mut life: Vec<(usize, usize)> = vec![(usize::MAX, 0); n];
        for (time, kernel) in program.kernels.iter().enumerate() {
            for b in kernel.reads().into_iter().chain(kernel.writes()) {
                life[b] = (life[b].0.min(time), life[b].1.max(time));
            }
        }
        let forever = (0, usize::MAX);
        for (b, info) in program.buffers.iter().enumerate() {
            if info.source.is_some() {
                life[b] = forever;
            }
        }
        program.results.iter().for_each(|r| life[r.2] = (life[r.2].0.min(program.kernels.len()), usize::MAX));
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
