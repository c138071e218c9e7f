//! Graphs inside nodes: functions of the model, branches whose condition is known, and loops whose course is, spelled out.
//! Exporters make such loops of modules that go over their samples or bags one by one.

use super::importer::{Importer, Known, Value};
use super::node::Node;
use super::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto};
use crate::format::Format;
use crate::ir::Tensor;
use std::collections::HashMap;
use std::rc::Rc;

/// How deep functions may call each other: exporters stay below 10.
const DEPTH: usize = 64;
/// Steps that a loop may take: each is a copy of its body.
const STEPS: usize = 1 << 14;

impl Importer<'_> {
    /// A call of a function of the model: its body, with its names kept apart from the caller's.
    pub(super) fn call(&mut self, f: &FunctionProto, node: &NodeProto) -> Result<Vec<Value>, String> {
        if self.depth == DEPTH {
            return Err(format!("functions call each other {DEPTH} deep; does `{}` call itself?", f.name()));
        }
        let mut inner: HashMap<String, Value> = HashMap::new();
        for (own, given) in f.input.iter().zip(&node.input).filter(|(_, g)| !g.is_empty()) {
            inner.insert(own.clone(), self.value(given)?);
        }
        let attribute = |name: &str| {
            let given = node.attribute.iter().find(|a| a.name() == name);
            given.or_else(|| f.attribute_proto.iter().find(|a| a.name() == name))
        };
        let body: Vec<NodeProto> = f.node.iter().map(|n| with_attributes(n, &attribute)).collect();
        let outer = std::mem::replace(&mut self.values, inner);
        self.depth += 1;
        let done = self.nodes(&body);
        self.depth -= 1;
        let inner = std::mem::replace(&mut self.values, outer);
        done?;
        let output = |o: &String| inner.get(o).cloned().ok_or_else(|| format!("function output `{o}` is not defined"));
        f.output.iter().map(output).collect()
    }

    /// `If` with a known condition is the branch it takes.
    pub(super) fn choose(&mut self, node: &NodeProto) -> Result<Vec<Value>, String> {
        let name = node.input.first().map_or("", String::as_str);
        let condition = self.known(name).ok_or_else(|| {
            format!(
                "the condition `{name}` depends on the data; only constant ones are supported: export one branch, or give \
                 the input of one number that decides with --value NAME=X"
            )
        })?;
        let taken =
            if condition.tensor.data.first().is_some_and(|&c| c != 0.0) { "then_branch" } else { "else_branch" };
        self.inside(graph_of(node, taken)?, Vec::new())
    }

    /// `Loop`, with the values that it carries and those that it stacks.
    pub(super) fn unrolled(&mut self, node: &NodeProto) -> Result<Vec<Value>, String> {
        let body = graph_of(node, "body")?;
        let carried = node.input.len().saturating_sub(2);
        if body.input.len() != carried + 2 || body.output.len() < carried + 1 {
            return Err(format!("its body does not fit the {carried} values that it carries"));
        }
        let given = |i: usize| node.input.get(i).filter(|n| !n.is_empty());
        let most = match given(0) {
            Some(name) => self.first_of(name, "the number of steps")?.max(0.0) as usize,
            None => usize::MAX,
        };
        let mut goes_on = match given(1) {
            Some(name) => self.first_of(name, "the condition")? != 0.0,
            None => true,
        };
        let mut state = node.input.iter().skip(2).map(|name| self.value(name)).collect::<Result<Vec<_>, _>>()?;
        let truth = Value::Known(Rc::new(Known { tensor: Tensor::scalar(1.0), format: Format::Bool }));
        let mut stacks: Vec<Vec<Value>> = vec![Vec::new(); body.output.len() - carried - 1];
        let mut step = 0;
        while goes_on && step < most {
            if step == STEPS {
                return Err(format!("takes more than {STEPS} steps, and each would be a copy of its body"));
            }
            let inputs = [Value::whole(step as f64), truth.clone()].into_iter().chain(state).collect();
            let mut results = self.inside(body, inputs)?.into_iter();
            let Some(Value::Known(k)) = results.next() else {
                return Err("whether it goes on depends on the data; only loops of known length are supported".into());
            };
            goes_on = k.tensor.data.first().is_some_and(|&c| c != 0.0);
            state = results.by_ref().take(carried).collect();
            stacks.iter_mut().zip(results).for_each(|(stack, value)| stack.push(value));
            step += 1;
        }
        for (i, stack) in stacks.into_iter().enumerate() {
            let name = format!("{}.{i}", node.output[0]);
            state.push(Node::new(self, node).stacked(&stack, &name, 0).map(Value::Node)?);
        }
        Ok(state)
    }

    /// Imports a graph inside a node, which sees what is around it, and returns its outputs. Its own names end with it.
    fn inside(&mut self, graph: &GraphProto, given: Vec<Value>) -> Result<Vec<Value>, String> {
        let inputs = || graph.input.iter().map(|i| i.name());
        // Nodes of inner graphs have names of their own; inputs and initialisers may hide what is around them.
        let hiding = inputs().chain(graph.initializer.iter().map(|t| t.name()));
        let hidden: Vec<(String, Option<Value>)> =
            hiding.map(|name| (name.to_owned(), self.values.remove(name))).collect();
        self.values.extend(inputs().map(str::to_owned).zip(given));
        self.initialisers(graph)?;
        self.nodes(&graph.node)?;
        let output = |name: &str| self.value(name).map_err(|_| format!("branch output `{name}` is not defined"));
        let outputs = graph.output.iter().map(|o| output(o.name())).collect();
        for name in graph.node.iter().flat_map(|n| &n.output) {
            self.values.remove(name);
        }
        // In reverse: older files list initialisers among the inputs too.
        for (name, before) in hidden.into_iter().rev() {
            match before {
                Some(value) => self.values.insert(name, value),
                None => self.values.remove(&name),
            };
        }
        outputs
    }

    fn first_of(&self, name: &str, what: &str) -> Result<f64, String> {
        let known = self.known(name).ok_or_else(|| {
            format!("{what}, `{name}`, depends on the data; only loops of known length are supported: give the input of one \
                 number that decides with --value NAME=X, or, of embedding bags, ids of two axes instead of offsets")
        })?;
        known.tensor.data.first().copied().ok_or_else(|| format!("`{name}` is empty"))
    }
}

fn graph_of<'p>(node: &'p NodeProto, attribute: &str) -> Result<&'p GraphProto, String> {
    let found = node.attribute.iter().find(|a| a.name() == attribute).and_then(|a| a.g.as_ref());
    found.ok_or_else(|| format!("lacks its {attribute}"))
}

/// A function's node with the attributes it takes from the call.
fn with_attributes<'p>(node: &NodeProto, find: &dyn Fn(&str) -> Option<&'p AttributeProto>) -> NodeProto {
    let mut node = node.clone();
    node.attribute = node
        .attribute
        .into_iter()
        .filter_map(|a| match a.ref_attr_name() {
            "" => Some(a),
            from => find(from).map(|given| AttributeProto { name: a.name.clone(), ..given.clone() }),
        })
        .collect();
    node
}
