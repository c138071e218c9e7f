//! What all targets share: a folder of their own to write the input to.

#[path = "readers.rs"]
mod readers;

pub use readers::Reader;
use std::path::Path;
use std::sync::OnceLock;
use tempfile::TempDir;

/// Reads an input; in memory where the system has a file system there.
pub fn run(reader: Reader, bytes: &[u8]) {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let memory = Path::new("/dev/shm");
    let folder = FOLDER.get_or_init(|| {
        let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        made.expect("a folder for the input")
    });
    let _ = reader.read(bytes, folder.path());
}
