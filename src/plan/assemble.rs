//! Building a graph from names for its nodes: each once, after those it reads.

use crate::error::Result;
use crate::ir::NodeId;
use rustc_hash::{FxHashMap, FxHashSet};
use std::hash::Hash;

/// Makes nodes and all that they read, depth first, and tells which is which; or the first that cannot be made, as it would
/// read itself, or `operands` or `make` has none.
pub(super) fn assemble<K: Copy + Eq + Hash>(
    roots: impl IntoIterator<Item = K>,
    operands: impl Fn(K) -> Option<Vec<K>>,
    mut make: impl FnMut(K, &[NodeId]) -> Result<Option<NodeId>>,
) -> Result<std::result::Result<FxHashMap<K, NodeId>, K>> {
    let mut made: FxHashMap<K, NodeId> = FxHashMap::default();
    // What is to be entered, and what is to be made once its operands are.
    let mut stack: Vec<(K, Option<Vec<K>>)> = Vec::new();
    // Entered and not made: met again, it would read itself.
    let mut open: FxHashSet<K> = FxHashSet::default();
    for root in roots {
        stack.push((root, None));
        while let Some((key, read)) = stack.pop() {
            if made.contains_key(&key) {
                continue;
            }
            let Some(read) = read else {
                let Some(read) = operands(key).filter(|_| open.insert(key)) else { return Ok(Err(key)) };
                let below: Vec<_> = read.iter().rev().map(|&k| (k, None)).collect();
                stack.push((key, Some(read)));
                stack.extend(below);
                continue;
            };
            let inputs: Vec<NodeId> = read.iter().map(|k| made[k]).collect();
            let Some(id) = make(key, &inputs)? else { return Ok(Err(key)) };
            made.insert(key, id);
        }
    }
    Ok(Ok(made))
}
