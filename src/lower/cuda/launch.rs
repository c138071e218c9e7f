//! What a generated program is made of.

use crate::format::Format;
use crate::lower::kernel::Address;

/// One 8-byte argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The device address of an element of a buffer.
    Buffer(Address),
    /// The product scratch.
    Scratch,
    /// Bytes into the area of partial sums; it starts out zero.
    Partials(usize),
    /// The number itself: an extent, a count, or the first block of a part.
    Number(u64),
}

/// Where a product's result goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// From an address on, in the buffer's format.
    Buffer(Address, Format),
    /// To be read by the epilogue's kernel, the next launch.
    Scratch(Format),
}

/// One step of a generated program: a kernel, or a library's call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launch {
    /// A generated kernel, or a template's instance.
    Kernel {
        /// What the source calls it, `extern "C"`.
        name: String,
        /// Extent of the grid, which has one dimension.
        blocks: u32,
        /// Threads of a block.
        threads: u32,
        /// Members of the struct that is the kernel's only argument, in order.
        words: Vec<Word>,
    },
    /// The kernel of the program with this index, its epilogue left to the next launch if it goes to scratch.
    Product {
        /// Position in [`Program::calls`](crate::lower::Program::calls).
        kernel: usize,
        /// Where the library writes.
        to: Destination,
    },
    /// A convolution, by a library if it takes it, else by this kernel of ours.
    Convolution {
        /// Position in [`Program::calls`](crate::lower::Program::calls).
        kernel: usize,
        /// Where the result goes, whoever computes it.
        to: Destination,
        /// The [`Launch::Kernel`] that stands in for the library.
        own: Box<Launch>,
    },
}

/// Source text and launches of a program.
#[derive(Clone, Debug, Default)]
pub struct CudaProgram {
    /// CUDA C++, to be compiled with [`super::HEADERS`] and [`super::OPTIONS`].
    pub source: String,
    /// In running order.
    pub launches: Vec<Launch>,
    /// The program's launch that each is a part of.
    pub of: Vec<usize>,
    /// The product scratch's size: what the largest product that goes through it takes.
    pub scratch_bytes: usize,
    /// Size of the area of partial sums and of the counters behind them.
    pub partials_bytes: usize,
}
