//! Every reader on its corpus, whole and damaged: what is damaged is refused with an error or taken, never a panic. The fuzz
//! targets in `tests/fuzz` go on from the same corpora for as long as one likes.

#[path = "fuzz/readers.rs"]
mod readers;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use readers::Reader;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Damaged copies of each file of a corpus.
const COPIES: u64 = 40;

/// A corpus, by name. Files called `bad-…` are refused, the others taken.
fn corpus(reader: Reader) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new("tests/fuzz/corpus").join(format!("{reader:?}").to_lowercase());
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<PathBuf> = files.map(|f| f.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|f| (f.clone(), std::fs::read(&f).unwrap())).collect()
}

#[test]
fn corpora_are_read_or_refused_as_they_should_be() {
    let folder = tempfile::tempdir().unwrap();
    for reader in Reader::ALL {
        let files = corpus(reader);
        assert!(files.iter().any(|(path, _)| !is_bad(path)), "{reader:?} has nothing that it takes");
        for (path, bytes) in files {
            let read = reader.read(&bytes, folder.path());
            assert_eq!(read.is_err(), is_bad(&path), "{}: {read:?}", path.display());
        }
    }
}

fn is_bad(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("bad-"))
}

#[test]
fn damaged_files_are_no_reason_to_panic() {
    let folder = tempfile::tempdir().unwrap();
    for reader in Reader::ALL {
        for (path, bytes) in corpus(reader) {
            for seed in 0..COPIES {
                let damaged = damaged(&bytes, seed);
                let read = catch_unwind(AssertUnwindSafe(|| reader.read(&damaged, folder.path())));
                assert!(read.is_ok(), "{}, damaged by seed {seed}: panic", path.display());
            }
        }
    }
}

/// The bytes with something wrong: bits turned, numbers made extreme, parts cut out, doubled or moved, and the end lost.
fn damaged(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut out = bytes.to_vec();
    for _ in 0..rng.random_range(1..4) {
        if out.is_empty() {
            break;
        }
        let at = rng.random_range(0..out.len());
        let end = (at + rng.random_range(1..16)).min(out.len());
        match rng.random_range(0..6) {
            0 => out[at] ^= 1 << rng.random_range(0..8),
            1 => out[at..end].fill(*[0, 0xff, 0x7f, 0x80, b'9'].get(rng.random_range(0..5)).unwrap_or(&0)),
            2 => drop(out.drain(at..end)),
            3 => out.splice(at..at, bytes[at.min(bytes.len())..end.min(bytes.len())].to_vec()).for_each(drop),
            4 => out.truncate(at),
            _ => out[at] = rng.random(),
        }
    }
    out
}
