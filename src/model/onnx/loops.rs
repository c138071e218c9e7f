//! Writing a loop as ONNX `Scan`: states and slices are the body's inputs, what all steps share is read from around it.

use super::proto::{AttributeProto, GraphProto, NodeProto, attribute_proto::AttributeType};
use super::write::{Writer, int, ints, value_info};
use crate::ir::{Graph, NodeId, Op, Scan, Take};
use crate::model::Weights;

impl Writer<'_> {
    /// Writes the loop that a scan node belongs to, once, with a result for each of its nodes.
    pub(super) fn scan(&mut self, id: NodeId, scan: &Scan, x: &[String]) -> Result<String, String> {
        let (g, own) = (self.g, self.g.name_of(id).to_owned());
        let nodes = g.same_loop(id);
        if nodes[0] != id {
            return Ok(own);
        }
        let body = scan.body.graph();
        let sources: Vec<NodeId> = body.sources().collect();
        // Names of an inner graph must differ from those around it.
        let inner = |name: &str| format!("{own}/{name}");
        let renamed = rename(body, inner).map_err(|e| e.to_string())?;
        let mut w = Writer { g: &renamed, out: GraphProto::default(), names: Vec::new(), prefix: inner(""), fresh: 0 };
        w.out.name = Some(body.name.clone());
        let (mut states, mut slices) = (Vec::new(), Vec::new());
        for source in renamed.ids() {
            let at = sources.iter().position(|&s| s == source);
            let (name, ty) = (renamed.name_of(source).to_owned(), renamed.ty(source));
            let written = match (renamed.op(source), at) {
                (Op::Param { .. }, Some(i)) => x[i].clone(),
                (op, Some(i)) => {
                    let kind = if matches!(op, Op::State { .. }) { &mut states } else { &mut slices };
                    kind.push((i, value_info(&name, ty)));
                    name
                }
                _ => w.node(source, &Weights::new())?,
            };
            w.names.push(written);
        }
        let result = |w: &mut Writer, of: NodeId, name: String| {
            let from = w.names[of.index()].clone();
            w.push("Identity", &[&from], &name, vec![]);
            w.out.output.push(value_info(&name, renamed.ty(of)));
        };
        let mut outputs = Vec::new();
        for &(i, _) in &states {
            let state = body.name_of(sources[i]);
            result(&mut w, scan.body.update(state).ok_or("a state is never updated")?, inner(&format!("{state}.next")));
            outputs.push(
                taken(g, &nodes, &Take::Last(state.to_owned())).unwrap_or_else(|| inner(&format!("{state}.last"))),
            );
        }
        for &node in &nodes {
            let Op::Scan(Scan { take: Take::Stack(v), .. }) = g.op(node) else { continue };
            result(&mut w, scan.body.value(v).ok_or("the body lacks a value")?, inner(&format!("{v}.all")));
            outputs.push(g.name_of(node).to_owned());
        }
        let order = |kind: &[(usize, _)]| kind.iter().map(|k: &(usize, _)| x[k.0].clone()).collect::<Vec<_>>();
        let (stacks, reads) = (outputs.len() - states.len(), slices.len());
        let input = [order(&states), order(&slices)].concat();
        w.out.input = states.into_iter().chain(slices).map(|(_, info)| info).collect();
        let direction = |n: usize| vec![usize::from(scan.reverse); n];
        let graph = AttributeProto {
            name: Some("body".into()),
            g: Some(w.out),
            r#type: Some(AttributeType::Graph as i32),
            ..AttributeProto::default()
        };
        self.out.node.push(NodeProto {
            op_type: Some("Scan".into()),
            name: Some(own.clone()),
            input,
            output: outputs,
            attribute: vec![
                int("num_scan_inputs", reads as i64),
                ints("scan_input_directions", &direction(reads)),
                ints("scan_output_directions", &direction(stacks)),
                graph,
            ],
            ..NodeProto::default()
        });
        Ok(own)
    }
}

/// The name of the node that takes something out of a loop.
fn taken(g: &Graph, nodes: &[NodeId], take: &Take) -> Option<String> {
    let found = nodes.iter().find(|&&n| matches!(g.op(n), Op::Scan(s) if s.take == *take));
    found.map(|&n| g.name_of(n).to_owned())
}

/// A graph without outputs under other names.
fn rename(graph: &Graph, name: impl Fn(&str) -> String) -> crate::error::Result<Graph> {
    let mut out = Graph::new(&graph.name);
    for id in graph.ids() {
        match graph.op(id) {
            op @ Op::Const(_) => out.add(op.clone(), &[])?,
            op => out.add_named(name(graph.name_of(id)), op.clone(), graph.inputs(id))?,
        };
    }
    Ok(out)
}
