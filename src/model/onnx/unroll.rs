//! Loops whose course is known at import, spelled out: what exporters make of a module that goes over its samples or its
//! bags one by one.

use super::importer::{Importer, Known, Value};
use super::proto::{GraphProto, NodeProto};
use crate::format::Format;
use crate::ir::Tensor;
use std::rc::Rc;

/// Steps that a loop may take: each is a copy of its body.
const STEPS: usize = 1 << 14;

impl Importer<'_> {
    /// `Loop`, with the values that it carries and those that it stacks.
    pub(super) fn unrolled(&mut self, node: &NodeProto) -> Result<Vec<Value>, String> {
        let body = node.attribute.iter().find(|a| a.name() == "body").and_then(|a| a.g.as_ref());
        let body = body.ok_or("lacks its body")?;
        let carried = node.input.len().saturating_sub(2);
        if body.input.len() != carried + 2 || body.output.len() < carried + 1 {
            return Err(format!("its body does not fit the {carried} values that it carries"));
        }
        let most = match node.input.first().filter(|n| !n.is_empty()) {
            Some(name) => self.first_of(name, "the number of steps")?.max(0.0) as usize,
            None => usize::MAX,
        };
        let mut goes_on = match node.input.get(1).filter(|n| !n.is_empty()) {
            Some(name) => self.first_of(name, "the condition")? != 0.0,
            None => true,
        };
        let mut state: Vec<Value> = Vec::new();
        for name in &node.input[2.min(node.input.len())..] {
            state.push(self.values.get(name).cloned().ok_or_else(|| format!("`{name}` is not defined"))?);
        }
        let mut stacked: Vec<Vec<Value>> = vec![Vec::new(); body.output.len() - carried - 1];
        let mut step = 0;
        while goes_on && step < most {
            if step == STEPS {
                return Err(format!("takes more than {STEPS} steps, and each would be a copy of its body"));
            }
            let mut results = self.one_step(body, step, state)?.into_iter();
            goes_on = match results.next() {
                Some((_, Value::Known(k))) => k.tensor.data.first().is_some_and(|&c| c != 0.0),
                _ => {
                    return Err(
                        "whether it goes on depends on the data; only loops of known length are supported".into()
                    );
                }
            };
            state = results.by_ref().take(carried).map(|(_, v)| v).collect();
            for (stack, (_, value)) in stacked.iter_mut().zip(results) {
                stack.push(value);
            }
            step += 1;
        }
        for (i, stack) in stacked.into_iter().enumerate() {
            state.push(self.stacked(stack, &format!("{}.{i}", node.output[0]))?);
        }
        Ok(state)
    }

    /// What a body yields, by name.
    fn one_step(&mut self, body: &GraphProto, step: usize, state: Vec<Value>) -> Result<Vec<(String, Value)>, String> {
        let outer = self.values.clone();
        let truth = Value::Known(Rc::new(Known { tensor: Tensor::scalar(1.0), format: Format::Bool }));
        let given = [Value::whole(step as f64), truth].into_iter().chain(state);
        for (input, value) in body.input.iter().zip(given) {
            self.values.insert(input.name().to_owned(), value);
        }
        let done = self.branch(body);
        self.values = outer;
        done
    }

    /// Results of all steps as one tensor, the steps first.
    fn stacked(&mut self, parts: Vec<Value>, name: &str) -> Result<Value, String> {
        let mut nodes = Vec::new();
        for (i, part) in parts.into_iter().enumerate() {
            let id = self.node_of_value(part, &format!("{name}.{i}"))?;
            nodes.push(self.with_leading_axis(id)?);
        }
        self.along_first(&nodes).map(Value::Node)
    }

    fn first_of(&self, name: &str, what: &str) -> Result<f64, String> {
        let known = self.known(name).ok_or_else(|| {
            format!("{what}, `{name}`, depends on the data; only loops of known length are supported")
        })?;
        known.tensor.data.first().copied().ok_or_else(|| format!("`{name}` is empty"))
    }
}
