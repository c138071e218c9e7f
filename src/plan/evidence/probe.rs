//! How much rounding a value changes the gradients: for every value at once, by differentiating the gradients.
//!
//! A weighted sum φ of all gradients, the weights drawn at random, is differentiated with respect to every value of the
//! two passes. With a = ∂φ/∂v and δ = round(v) − v, the sum Σ a·δ is, to first order, what rounding v adds to φ. Over
//! random weights of mean 0, independent and of variance 1, E (Σ a·δ)² is the squared norm of what it adds to the
//! gradients (Hutchinson 1990), and E Σ (a·δ)² is the same if the elements' errors are independent. The second varies far
//! less; the first also sees errors that agree, as where many small numbers are lost to zero.
//!
//! What first order misses is in [`super::kinks`].

use super::kinks::{Kink, smoothed, spreads};
use super::observed::{is_subject, observed};
use crate::autodiff::gradients_holding;
use crate::error::Result;
use crate::format::{Format, Formats};
use crate::ir::{Binary, Graph, Init, NodeId, Op, Output, ReduceKind, Role, Unary};
use std::collections::{BTreeMap, HashMap};

/// A graph that yields the gradients, and what rounding each value would add to them.
pub struct Probe {
    /// Its outputs are the two sums of every rounding.
    pub graph: Graph,
    /// Parameters whose gradients are weighed and summed.
    pub gradients: Vec<Probed>,
    /// Every format of every value, and of every product's reading of one.
    pub roundings: Vec<Rounding>,
    /// Choices whose derivatives jump, given a slope in the graph.
    pub kinks: Vec<Kink>,
    /// A graph that yields how far rounding everything moves what the kinks compare.
    pub spreads: Graph,
}

/// A parameter, and the state that weighs its gradient.
pub struct Probed {
    pub parameter: String,
    pub weights: String,
}

/// One way to round one value.
pub struct Rounding {
    pub value: String,
    /// The only reader of the rounded value; none: everybody reads it.
    pub product: Option<String>,
    pub format: Format,
    /// Outputs: Σ (a·δ)² and Σ a·δ.
    pub squares: String,
    pub sum: String,
}

/// A value whose rounding is looked into, in the graph under construction.
struct Subject {
    node: NodeId,
    value: String,
    product: Option<String>,
}

const GRADIENT: &str = "g.";

/// The output that hands out the gradient of a parameter.
pub fn gradient_output(parameter: &str) -> String {
    format!("{GRADIENT}{parameter}")
}

/// A step's gradients as outputs. `gradient_of` names the gradient of each parameter.
pub fn gradient_outputs(step: &Graph, gradient_of: &BTreeMap<String, String>) -> Vec<Output> {
    let named = gradient_of.iter().filter_map(|(p, g)| Some((p, step.find(g)?)));
    named.map(|(p, node)| Output { name: gradient_output(p), role: Role::Output, node }).collect()
}

/// `gradient_of` names the gradient of each parameter of the step.
///
/// # Errors
/// Values whose types do not fit, which those of a verified step do.
pub fn probe(step: &Graph, gradient_of: &BTreeMap<String, String>, formats: Formats) -> Result<Probe> {
    let passes = step.prune(&gradient_outputs(step, gradient_of))?;
    let Copied { mut graph, subjects, kinks, held } = with_readers(&passes)?;
    let one = graph.constant(1.0)?;
    let mut phi = None;
    let mut probed = Vec::new();
    for o in graph.outputs().to_vec() {
        let Some(parameter) = o.name.strip_prefix(GRADIENT) else { continue };
        let (parameter, ty) = (parameter.to_owned(), graph.ty(o.node).clone());
        let weights = format!("probe.{parameter}");
        let w = graph.add_named(weights.clone(), Op::State { init: Init::zeros(), ty }, &[])?;
        let weighed = graph.binary(Binary::Mul, o.node, w)?;
        let sum = graph.reduce_all(ReduceKind::Sum, weighed)?;
        phi = Some(match phi {
            None => sum,
            Some(rest) => graph.binary(Binary::Add, rest, sum)?,
        });
        probed.push(Probed { parameter, weights });
    }
    graph.clear_outputs();
    let phi = phi.unwrap_or(one);
    let wrt: Vec<NodeId> = subjects.iter().map(|s| s.node).collect();
    let adjoints = gradients_holding(&mut graph, phi, one, &wrt, &held)?;
    for (i, s) in subjects.iter().enumerate() {
        if let Some(&a) = adjoints.get(&s.node) {
            graph.add_output(format!("v.{i}"), Role::Output, s.node);
            graph.add_output(format!("a.{i}"), Role::Output, a);
        }
    }
    // Everything in memory; only the sums that follow stay in registers.
    let mut graph = observed(&graph.prune(graph.outputs())?)?;
    let stored: HashMap<String, NodeId> = graph.outputs().iter().map(|o| (o.name.clone(), o.node)).collect();
    graph.clear_outputs();
    let mut roundings = Vec::new();
    for (i, s) in subjects.into_iter().enumerate() {
        let (Some(&v), Some(&a)) = (stored.get(&format!("v.{i}")), stored.get(&format!("a.{i}"))) else { continue };
        for format in formats.iter() {
            let rounded = graph.add(Op::Convert(format), &[v])?;
            let error = graph.binary(Binary::Sub, rounded, v)?;
            let added = graph.binary(Binary::Mul, a, error)?;
            let square = graph.unary(Unary::Square, added)?;
            let [squares, sum] = ["squares", "sum"].map(|what| format!("{what}.{i}.{format}"));
            for (name, of) in [(&squares, square), (&sum, added)] {
                let total = graph.reduce_all(ReduceKind::Sum, of)?;
                let put = graph.add(Op::Put(Format::F32), &[total])?;
                graph.add_output(name, Role::Output, put);
            }
            roundings.push(Rounding { value: s.value.clone(), product: s.product.clone(), format, squares, sum });
        }
    }
    let spreads = spreads(&passes, &kinks, formats)?;
    Ok(Probe { graph, gradients: probed, roundings, kinks, spreads })
}

/// The two passes, prepared to be differentiated.
struct Copied {
    graph: Graph,
    subjects: Vec<Subject>,
    kinks: Vec<Kink>,
    held: Vec<NodeId>,
}

/// The graph with a node of its own for each product's reading of a value that others read too, and smoothed kinks.
fn with_readers(graph: &Graph) -> Result<Copied> {
    let mut readers = vec![0; graph.len()];
    for id in graph.ids() {
        graph.inputs(id).iter().for_each(|x| readers[x.index()] += 1);
    }
    let mut out = Graph::new(&graph.name);
    let (mut map, mut subjects) = (Vec::with_capacity(graph.len()), Vec::new());
    let (mut kinks, mut held) = (Vec::new(), Vec::new());
    for id in graph.ids() {
        let node = graph.node(id);
        let mut inputs = Vec::new();
        for (position, x) in graph.inputs(id).iter().copied().enumerate() {
            let mut at = map[x.index()];
            if readers[x.index()] > 1 && node.op.multiplies_in().is_some() && graph.ty(x).format == Format::F32 {
                // Equal to what it reads: the identity, with a derivative of its own.
                at = out.add_named(format!("{}.reads.{position}", node.name), Op::Convert(Format::F32), &[at])?;
                let (value, product) = (graph.name_of(x).to_owned(), Some(node.name.clone()));
                subjects.push(Subject { node: at, value, product });
            }
            inputs.push(at);
        }
        let copy = out.transfer(graph, id, node.op.clone(), &inputs, |f| map.get(f.index()).copied())?;
        if is_subject(graph, id) {
            subjects.push(Subject { node: copy, value: node.name.clone(), product: None });
        }
        map.push(match Kink::at(graph, id, kinks.len()) {
            Some(kink) => {
                let (sum, constant) = smoothed(&mut out, &kink, copy, &map)?;
                kinks.push(kink);
                held.push(constant);
                sum
            }
            None => copy,
        });
    }
    for o in graph.outputs() {
        out.add_output(&o.name, o.role, map[o.node.index()]);
    }
    Ok(Copied { graph: out, subjects, kinks, held })
}
