//! Operations that stand for several, spelled out.

use super::graph::{Graph, NodeId};
use crate::error::Result;

impl Graph {
    /// The same graph with operations that stand for several (attention) spelled out by simpler ones, where `which` asks for
    /// it. Names and outputs stay.
    ///
    /// # Errors
    /// Operations that do not type; a graph that was built has none.
    pub fn spelled(&self, which: impl Fn(NodeId) -> bool) -> Result<Graph> {
        let mut out = Graph::successor(self);
        let mut map: Vec<NodeId> = Vec::with_capacity(self.len());
        for id in self.ids() {
            let x: Vec<NodeId> = self.inputs(id).iter().map(|i| map[i.index()]).collect();
            out.follow(self.node(id));
            let spelled = if which(id) { self.op(id).spelled(&mut out, &x)? } else { None };
            map.push(match spelled {
                Some(made) => {
                    out.named_as(made, self, id);
                    made
                }
                None => out.transfer(self, id, self.op(id).clone(), &x, |f| map.get(f.index()).copied())?,
            });
        }
        for o in self.outputs() {
            out.add_output(&o.name, o.role, map[o.node.index()]);
        }
        Ok(out)
    }

    /// Gives what was made the name of what it stands for in another graph, where that was given.
    pub(crate) fn named_as(&mut self, made: NodeId, from: &Graph, id: NodeId) {
        if !from.is_auto_named(id) && self.is_auto_named(made) {
            self.rename(made, from.name_of(id));
        }
    }
}
