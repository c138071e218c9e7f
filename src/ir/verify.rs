//! The check every pass ends with. Lowering demands its token, so an unverified graph cannot reach code generation.

use super::graph::{Graph, Role};
use crate::error::{Error, Result};

/// A graph that keeps the IR's rules. Only [`verify`] makes one.
#[derive(Clone, Copy)]
pub struct Verified<'a>(&'a Graph);

impl<'a> Verified<'a> {
    /// The graph that was checked.
    pub fn graph(self) -> &'a Graph {
        self.0
    }
}

/// Checks order, types and outputs, and that no extent is left unbound.
///
/// # Errors
/// The first node that reads a later one, breaks its type rule or has an unbound size; an update of no source, or of one
/// of another shape; a metric that is no scalar.
pub fn verify(graph: &Graph) -> Result<Verified<'_>> {
    for id in graph.ids() {
        let node = graph.node(id);
        let fail = |why: String| {
            let place = node.origin.as_ref().map_or(String::new(), |o| format!(" ({o})"));
            Err(Error::Graph(format!("node `{}`{place}: {}: {why}", node.name, node.op.name())))
        };
        let inputs = graph.inputs(id);
        if let Some(late) = inputs.iter().find(|&&i| i >= id) {
            return fail(format!("reads `{}`, which comes later", graph.name_of(*late)));
        }
        let types: Vec<_> = inputs.iter().map(|&i| graph.ty(i)).collect();
        match node.op.infer(&types) {
            Err(why) => return fail(why),
            Ok(ty) if ty != node.ty => return fail(format!("is typed {} but yields {ty}", node.ty)),
            Ok(_) => {}
        }
        if node.ty.shape.fixed().is_none() {
            return fail(format!("the shape {} has unbound sizes", node.ty.shape));
        }
    }
    for output in graph.outputs() {
        let ty = graph.ty(output.node);
        let fail = |why: String| Err(Error::Graph(format!("output `{}`: {why}", output.name)));
        match output.role {
            Role::Update => match graph.find(&output.name).filter(|&s| graph.op(s).is_source()) {
                None => return fail("updates nothing of that name".into()),
                Some(s) if graph.shape(s) != &ty.shape => return fail(format!("is {ty} but updates {}", graph.ty(s))),
                Some(_) => {}
            },
            Role::Metric if ty.shape.rank() != 0 => return fail(format!("is {ty}, not a scalar")),
            Role::Metric | Role::Output => {}
        }
    }
    Ok(Verified(graph))
}
