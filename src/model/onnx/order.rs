//! What can be said of a graph before any of it is imported: operations that are missing, and the order of nodes.

use super::proto::{FunctionProto, GraphProto, NodeProto};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// "Relu `/act/Relu`": how messages name a node.
pub fn describe(node: &NodeProto) -> String {
    let name = if node.name().is_empty() { node.output.first().map_or("", String::as_str) } else { node.name() };
    format!("{} `{name}`", node.op_type())
}

/// The function of the model that a node calls.
pub fn function_of<'a>(functions: &'a [FunctionProto], node: &NodeProto) -> Option<&'a FunctionProto> {
    functions.iter().find(|f| f.name() == node.op_type() && f.domain() == node.domain())
}

/// All operations without an importer, with counts and nodes, in one message. `is_known` is asked for a domain and a name.
pub fn unsupported(graph: &GraphProto, functions: &[FunctionProto], is_known: Known) -> Result<(), String> {
    let mut missing: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let called = functions.iter().flat_map(|f| &f.node);
    for node in graph.node.iter().chain(called) {
        collect(node, functions, is_known, &mut missing);
    }
    if missing.is_empty() {
        return Ok(());
    }
    let lines = missing.iter().map(|(op, nodes)| {
        let more = if nodes.len() > 3 { format!(", and {} more", nodes.len() - 3) } else { String::new() };
        format!("\n  {op} × {}: {}{more}", nodes.len(), nodes[..nodes.len().min(3)].join(", "))
    });
    Err(format!(
        "operations that are not supported:{}\nexport the model without them, or with a newer opset that spells them out",
        lines.collect::<String>()
    ))
}

/// Is there an importer for an operation of a domain?
type Known<'a> = &'a dyn Fn(&str, &str) -> bool;

fn collect<'a>(
    node: &'a NodeProto,
    functions: &[FunctionProto],
    is_known: Known,
    missing: &mut BTreeMap<String, Vec<&'a str>>,
) {
    if function_of(functions, node).is_none() && !is_known(node.domain(), node.op_type()) {
        let domain = if node.domain().is_empty() { String::new() } else { format!("{}.", node.domain()) };
        let name = if node.name().is_empty() { node.output.first().map_or("", String::as_str) } else { node.name() };
        missing.entry(format!("{domain}{}", node.op_type())).or_default().push(name);
    }
    for inner in node.attribute.iter().filter_map(|a| a.g.as_ref()).flat_map(|g| &g.node) {
        collect(inner, functions, is_known, missing);
    }
}

/// Nodes in an order in which every input is computed before it is read. `known` are names from outside.
pub fn ordered<'a>(nodes: &'a [NodeProto], known: &dyn Fn(&str) -> bool) -> Result<Vec<&'a NodeProto>, String> {
    let outputs = |n: &'a NodeProto| n.output.iter().filter(|o| !o.is_empty());
    let producers: HashMap<&str, usize> =
        nodes.iter().enumerate().flat_map(|(i, n)| outputs(n).map(move |o| (o.as_str(), i))).collect();
    let mut state = vec![0u8; nodes.len()];
    let mut out = Vec::with_capacity(nodes.len());
    let reads: Vec<Vec<&str>> = nodes.iter().map(|n| all_reads(n).into_iter().collect()).collect();
    for root in 0..nodes.len() {
        // Depth first, without recursion: a chain of nodes can be long.
        let mut stack = vec![(root, 0)];
        while let Some((i, next)) = stack.pop() {
            let node = &nodes[i];
            if state[i] == 2 {
                continue;
            }
            state[i] = 1;
            let Some(&input) = reads[i].get(next) else {
                state[i] = 2;
                out.push(node);
                continue;
            };
            stack.push((i, next + 1));
            if input.is_empty() {
                continue;
            }
            match producers.get(input) {
                None if known(input) => {}
                None => return Err(format!("{} reads `{input}`, which nothing produces", describe(node))),
                Some(&p) if p == i => {
                    return Err(format!("{} reads its own output `{input}`: the graph has a cycle", describe(node)));
                }
                Some(&p) if state[p] == 1 => {
                    return Err(format!(
                        "the graph has a cycle through {} and {}",
                        describe(node),
                        describe(&nodes[p])
                    ));
                }
                Some(&p) => stack.push((p, 0)),
            }
        }
    }
    Ok(out)
}

/// The inputs of a node, and what its subgraphs read from outside themselves.
/// Everything a node reads, the graphs inside it included.
pub fn all_reads(node: &NodeProto) -> Vec<&str> {
    let mut out: Vec<&str> = node.input.iter().map(String::as_str).collect();
    for g in node.attribute.iter().filter_map(|a| a.g.as_ref()) {
        let own: BTreeSet<&str> = g
            .node
            .iter()
            .flat_map(|n| &n.output)
            .chain(g.input.iter().filter_map(|i| i.name.as_ref()))
            .chain(g.initializer.iter().filter_map(|t| t.name.as_ref()))
            .map(String::as_str)
            .collect();
        out.extend(g.node.iter().flat_map(all_reads).filter(|r| !own.contains(r)));
        out.extend(g.output.iter().filter_map(|o| o.name.as_deref()).filter(|r| !own.contains(r)));
    }
    out
}
