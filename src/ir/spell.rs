//! Nodes made anew: operations that stand for several spelled out, and the other way round.

use super::graph::{Graph, NodeId};
use crate::error::Result;

impl Graph {
    /// The same graph with operations that stand for several (attention) spelled out by simpler ones, where `which` asks for
    /// it. Names and outputs stay.
    ///
    /// # Errors
    /// Operations that do not type; a graph that was built has none.
    pub fn spelled(&self, which: impl Fn(NodeId) -> bool) -> Result<Graph> {
        self.made_anew(|out, id, map| {
            let x: Vec<NodeId> = self.inputs(id).iter().map(|i| map[i.index()]).collect();
            if which(id) { self.op(id).spelled(out, &x) } else { Ok(None) }
        })
    }

    /// The same graph with what `make` makes in place of some nodes, under their names where these were given. `make` is told
    /// the new graph, the node, and where those before it are; it makes none where the node stays as it is.
    ///
    /// # Errors
    /// Those of `make`, and of [`Graph::add`] where what it returns does not fit.
    pub(crate) fn made_anew(
        &self,
        mut make: impl FnMut(&mut Graph, NodeId, &[NodeId]) -> Result<Option<NodeId>>,
    ) -> Result<Graph> {
        let mut out = Graph::successor(self);
        let mut map: Vec<NodeId> = Vec::with_capacity(self.len());
        for id in self.ids() {
            out.follow(self.node(id));
            let copy = match make(&mut out, id, &map)? {
                Some(made) => {
                    if !self.is_auto_named(id) && out.is_auto_named(made) {
                        out.rename(made, self.name_of(id));
                    }
                    made
                }
                None => {
                    let x: Vec<NodeId> = self.inputs(id).iter().map(|i| map[i.index()]).collect();
                    out.transfer(self, id, self.op(id).clone(), &x, |f| map.get(f.index()).copied())?
                }
            };
            map.push(copy);
        }
        for o in self.outputs() {
            out.add_output(&o.name, o.role, map[o.node.index()]);
        }
        Ok(out)
    }
}
