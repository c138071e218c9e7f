//! Executing programs.

pub mod cpu;
mod init;
mod memory;

pub use init::initialise;
pub use memory::Bytes;
