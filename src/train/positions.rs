//! Positions in tables (token ids, for one) that data holds: all of them are checked before anything is trained.
//!
//! Kernels clamp a position outside a table to its ends, so that nothing else is read; a run on such data would learn from
//! the wrong rows without a word. What the model does to positions on the way (counting from the end, slices, masks) is
//! done here too, in f64, so that a position counts as it is read.

use super::feeds::feeds;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::ir::{Graph, NodeId, Op, Output, Role, Tensor, evaluate};

/// The part of a graph that computes positions from inputs alone.
pub(super) struct Positions {
    graph: Graph,
    /// For each output of the graph: the table, its rows, and the input that the positions come from.
    tables: Vec<Table>,
}

struct Table {
    name: String,
    rows: usize,
    input: String,
}

impl Positions {
    /// The positions that a graph reads from inputs; none if it reads none.
    pub fn new(graph: &Graph) -> Result<Option<Positions>> {
        let source = source_of_each(graph);
        let (mut outputs, mut tables) = (Vec::<Output>::new(), Vec::new());
        for id in graph.ids() {
            let Op::Gather { axis } = graph.op(id) else { continue };
            let x = graph.inputs(id);
            let Lineage::Input(input) = source[x[1].index()] else { continue };
            let rows = graph.ty(x[0]).dims()[*axis];
            if outputs.iter().zip(&tables).any(|(o, t): (&Output, &Table)| o.node == x[1] && t.rows <= rows) {
                continue;
            }
            outputs.push(Output { name: format!("positions.{}", outputs.len()), role: Role::Output, node: x[1] });
            tables.push(Table { name: named(graph, x[0]), rows, input: graph.name_of(input).to_owned() });
        }
        if outputs.is_empty() {
            return Ok(None);
        }
        Ok(Some(Positions { graph: graph.prune(&outputs)?, tables }))
    }

    /// Refuses data with a position outside its table.
    pub fn check(&self, data: &Dataset) -> Result<()> {
        let fed = feeds(&self.graph);
        let batch = fed.first().and_then(|f| f.ty.dims().first().copied()).unwrap_or(1).max(1);
        for first in (0..data.samples).step_by(batch) {
            let samples: Vec<usize> = (first..first + batch).map(|r| r.min(data.samples - 1)).collect();
            let source = |id: NodeId| {
                let name = self.graph.name_of(id);
                let input = fed.iter().find(|f| f.buffer == name).map_or(name, |f| &f.input);
                let values = data.feature(input).map_or(Vec::new(), |feature| {
                    samples.iter().flat_map(|&r| feature.row(r)).map(|&v| f64::from(v)).collect()
                });
                Tensor::new(&self.graph.ty(id).dims(), values)
            };
            let values = evaluate(&self.graph, source);
            for (output, table) in self.graph.outputs().iter().zip(&self.tables) {
                let found = &values[output.node.index()];
                // Positions below 0 count from the end.
                let rows = table.rows as f64;
                let Some(at) = found.data.iter().position(|&p| !(-rows..rows).contains(&p)) else { continue };
                // Positions have the samples first, unless the model has mixed them.
                let per_sample = found.data.len() / batch;
                let is_batched = found.dims.first() == Some(&batch) && per_sample > 0;
                let place = if is_batched { format!(", sample {}", samples[at / per_sample]) } else { String::new() };
                return Err(Error::data(
                    &data.path,
                    format!(
                        "`{}`{place}: position {} is outside `{}`, which has {} rows; correct the data, or make the table larger",
                        table.input, found.data[at], table.name, table.rows
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// What a value is computed from by moving, comparing and adding alone.
#[derive(Clone, Copy)]
enum Lineage {
    Constants,
    /// An input, the first there is, and constants.
    Input(NodeId),
    /// Parameters, or anything by other operations.
    Else,
}

impl Lineage {
    fn and(self, other: Lineage) -> Lineage {
        match (self, other) {
            (Lineage::Else, _) | (_, Lineage::Else) => Lineage::Else,
            (Lineage::Constants, x) => x,
            (x, _) => x,
        }
    }
}

fn source_of_each(graph: &Graph) -> Vec<Lineage> {
    let mut out: Vec<Lineage> = Vec::with_capacity(graph.len());
    for id in graph.ids() {
        let of = graph.inputs(id);
        let found = match graph.op(id) {
            Op::Input { label: false, .. } => Lineage::Input(id),
            Op::Const(_) | Op::Iota { .. } => Lineage::Constants,
            op if op.is_arrangement() || matches!(op, Op::Convert(_) | Op::Unary(_) | Op::Binary(_) | Op::Select) => {
                of.iter().map(|x| out[x.index()]).fold(Lineage::Constants, Lineage::and)
            }
            _ => Lineage::Else,
        };
        out.push(found);
    }
    out
}

/// What a table is called: a view of a parameter goes by the parameter's name.
fn named(graph: &Graph, mut id: NodeId) -> String {
    while graph.is_auto_named(id)
        && let Some(&of) = graph.inputs(id).first()
    {
        id = of;
    }
    graph.name_of(id).to_owned()
}
