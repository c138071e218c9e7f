//! Watching a program: kernels between its launches count what they have stored.

use super::nvrtc::compile_cached;
use super::owned::Owned;
use super::{Ready, driver};
use crate::error::Result;
use crate::lower::cuda::{WORDS, spread_kernel, spread_of, spread_source};
use crate::lower::{Address, BufferId, Program, Store};
use crate::run::Watcher;
use cudarc::driver::{result, sys};
use std::ffi::CString;

/// Threads of a counting block, and blocks that keep a GPU busy.
const THREADS: u32 = 256;
const BLOCKS: usize = 1024;

/// Tables of counts on the GPU, one for each source and each store, and who is told of them.
pub(super) struct Spreads {
    /// Whose elements each table counts.
    counted: Vec<BufferId>,
    watcher: Watcher,
    tables: Owned<sys::CUdeviceptr>,
    module: Owned<sys::CUmodule>,
}

impl Spreads {
    /// Room for a table for each float buffer that `program` reads from outside or stores.
    pub fn new(program: &Program, arch: &str, watcher: Watcher) -> Result<Spreads> {
        let cubin = compile_cached(&spread_source(), arch)?;
        let stores = program.calls.iter().map(|c| c.kernel.body().stores.len()).sum::<usize>();
        let bytes = (program.buffers.len() + stores).max(1) * WORDS * 8;
        // SAFETY: `cubin` is a whole CUBIN, which the driver copies; the allocation is given back once.
        unsafe {
            let module = driver("loading kernels", result::module::load_data(cubin.as_ptr().cast()))?;
            let module = Owned::new(module, |m| _ = result::module::unload(m));
            let tables = driver("allocating memory", result::malloc_sync(bytes))?;
            let tables = Owned::new(tables, |t| _ = result::free_sync(t));
            Ok(Spreads { counted: Vec::new(), watcher, tables, module })
        }
    }

    /// The launch that counts some elements of a buffer, from an address on the device; none for whole numbers.
    fn count(&mut self, program: &Program, buffer: BufferId, address: u64, elements: usize) -> Result<Option<Ready>> {
        let Some(name) = spread_kernel(program.buffers[buffer].ty.format) else { return Ok(None) };
        let c_name = CString::new(name.as_str()).expect("generated names have no NUL");
        // SAFETY: the module is loaded and stays so until `drop`.
        let function = unsafe { driver(&name, result::module::get_function(*self.module, c_name))? };
        let table = *self.tables + (self.counted.len() * WORDS * 8) as u64;
        self.counted.push(buffer);
        let blocks = elements.div_ceil(THREADS as usize).clamp(1, BLOCKS) as u32;
        Ok(Some(Ready::Kernel { function, blocks, threads: THREADS, words: vec![address, elements as u64, table] }))
    }

    /// What counts the sources, before the program's first launch.
    pub fn of_sources(&mut self, program: &Program, address: impl Fn(Address) -> u64) -> Result<Vec<Ready>> {
        let sources = (0..program.buffers.len()).filter(|&b| program.buffers[b].source.is_some());
        let count = |b| self.count(program, b, address(Address::of(b)), program.buffers[b].ty.elements()).transpose();
        sources.filter_map(count).collect()
    }

    /// What counts the stores of one of the program's launches, after it.
    pub fn of_launch(
        &mut self,
        program: &Program,
        launch: usize,
        address: impl Fn(Address) -> u64,
    ) -> Result<Vec<Ready>> {
        let calls = &program.calls[program.launches[launch].clone()];
        let stores = calls.iter().flat_map(|c| &c.kernel.body().stores);
        let stores = stores.filter(|s| program.buffers[s.buffer].source.is_none());
        let count = |s: &Store| {
            let at = Address { buffer: s.buffer, offset: s.view.offset };
            self.count(program, s.buffer, address(at), s.view.distinct()).transpose()
        };
        stores.filter_map(count).collect()
    }

    /// Empties the tables, for a run that follows on the stream.
    pub fn clear(&self, stream: sys::CUstream) -> Result<()> {
        let bytes = self.counted.len() * WORDS * 8;
        // SAFETY: there is room for as many tables as were given out.
        unsafe { driver("clearing memory", result::memset_d8_async(*self.tables, 0, bytes, stream)) }
    }

    /// Tells the watcher what was counted, when the run is over.
    pub fn tell(&mut self, program: &Program) -> Result<()> {
        let mut words = vec![0u64; self.counted.len() * WORDS];
        // SAFETY: there is room for as many tables as were given out; the stream has finished.
        unsafe { driver("copying from the GPU", result::memcpy_dtoh_sync(&mut words, *self.tables))? };
        for (&buffer, table) in self.counted.iter().zip(words.chunks_exact(WORDS)) {
            (self.watcher)(&program.buffers[buffer].name, &spread_of(table));
        }
        Ok(())
    }
}
