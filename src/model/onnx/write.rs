//! Writing a graph as ONNX, opset 20, in the formats its values have. Names of inputs, outputs and parameters stay.

use super::proto::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
use super::proto::type_proto::{Tensor as TensorType, Value as TypeValue};
use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType,
};
use super::tensor::code_of;
use crate::error::{Error, Result};
use crate::format::Format;
use crate::ir::{Binary, ConvKind, Dim, Graph, NodeId, Op, ReduceKind, Role, Shape, Type, Unary};
use crate::model::{Weight, Weights};
use prost::Message;

const OPSET: i64 = 20;
/// The oldest IR version with opset 20.
const IR_VERSION: i64 = 9;

/// A graph with the values of its parameters and states as an ONNX file. Sizes may be open.
pub fn to_onnx(graph: &Graph, weights: &Weights) -> Result<Vec<u8>> {
    let mut w = Writer { g: graph, out: GraphProto::default(), names: Vec::new(), prefix: String::new(), fresh: 0 };
    w.out.name = Some(graph.name.clone());
    for id in graph.ids() {
        let name = w.node(id, weights).map_err(|why| {
            Error::Request(format!(
                "`{}` ({}) cannot be written as ONNX: {why}",
                graph.name_of(id),
                graph.op(id).name()
            ))
        })?;
        w.names.push(name);
    }
    for o in graph.outputs().iter().filter(|o| o.role == Role::Output) {
        let from = w.names[o.node.index()].clone();
        if from != o.name {
            w.push("Identity", &[&from], &o.name, vec![]);
        }
        w.out.output.push(value_info(&o.name, graph.ty(o.node)));
    }
    let opset = OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) };
    let model = ModelProto {
        ir_version: Some(IR_VERSION),
        opset_import: vec![opset],
        producer_name: Some("mantissa".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(w.out),
        ..ModelProto::default()
    };
    Ok(model.encode_to_vec())
}

pub(super) fn value_info(name: &str, ty: &Type) -> ValueInfoProto {
    let dim = |d: &Dim| Dimension {
        denotation: None,
        value: Some(match d {
            Dim::Fixed(n) => DimValue::DimValue(*n as i64),
            Dim::Named(s) => DimValue::DimParam(s.clone()),
        }),
    };
    let shape = TensorShapeProto { dim: ty.shape.0.iter().map(dim).collect() };
    let tensor = TensorType { elem_type: Some(code_of(ty.format)), shape: Some(shape) };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { denotation: None, value: Some(TypeValue::TensorType(tensor)) }),
        ..ValueInfoProto::default()
    }
}

/// An initialiser.
pub(super) fn tensor(name: &str, w: &Weight) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: w.dims.iter().map(|&d| d as i64).collect(),
        data_type: Some(code_of(w.format)),
        raw_data: Some(w.bytes().to_vec()),
        ..TensorProto::default()
    }
}

pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    let kind = Some(AttributeType::Int as i32);
    AttributeProto { name: Some(name.into()), i: Some(i), r#type: kind, ..AttributeProto::default() }
}

pub(super) fn ints(name: &str, v: &[usize]) -> AttributeProto {
    let ints = v.iter().map(|&i| i as i64).collect();
    let kind = Some(AttributeType::Ints as i32);
    AttributeProto { name: Some(name.into()), ints, r#type: kind, ..AttributeProto::default() }
}

fn float(name: &str, f: f64) -> AttributeProto {
    let kind = Some(AttributeType::Float as i32);
    AttributeProto { name: Some(name.into()), f: Some(f as f32), r#type: kind, ..AttributeProto::default() }
}

fn text(name: &str, s: &str) -> AttributeProto {
    let kind = Some(AttributeType::String as i32);
    AttributeProto {
        name: Some(name.into()),
        s: Some(s.as_bytes().to_vec()),
        r#type: kind,
        ..AttributeProto::default()
    }
}

pub(super) struct Writer<'a> {
    pub g: &'a Graph,
    pub out: GraphProto,
    /// What each node written so far is called.
    pub names: Vec<String>,
    /// What made-up names begin with.
    pub prefix: String,
    pub fresh: usize,
}

type Written = Result<String, String>;

impl Writer<'_> {
    pub(super) fn push(&mut self, op: &str, x: &[&str], y: &str, attribute: Vec<AttributeProto>) {
        self.out.node.push(NodeProto {
            op_type: Some(op.into()),
            name: Some(y.into()),
            input: x.iter().map(|&s| s.to_owned()).collect(),
            output: vec![y.to_owned()],
            attribute,
            ..NodeProto::default()
        });
    }

    /// An intermediate result.
    fn step(&mut self, op: &str, x: &[&str], attribute: Vec<AttributeProto>) -> String {
        self.fresh += 1;
        let name = format!("{}mantissa.{}", self.prefix, self.fresh);
        self.push(op, x, &name, attribute);
        name
    }

    fn constant<T: crate::format::Register>(&mut self, format: Format, dims: &[usize], values: &[T]) -> String {
        self.fresh += 1;
        let name = format!("{}mantissa.{}", self.prefix, self.fresh);
        self.out.initializer.push(tensor(&name, &Weight::from_values(format, dims, values)));
        name
    }

    fn whole(&mut self, values: &[i64]) -> String {
        let values: Vec<f64> = values.iter().map(|&v| v as f64).collect();
        self.constant(Format::I64, &[values.len()], &values)
    }

    fn number(&mut self, format: Format, v: f64) -> String {
        self.constant(format, &[], &[v])
    }

    fn cast(&mut self, x: &str, from: Format, to: Format) -> String {
        if from == to { x.to_owned() } else { self.step("Cast", &[x], vec![int("to", code_of(to).into())]) }
    }

    /// A shape as a tensor. Open sizes are read off an input that has them.
    fn shape(&mut self, dims: &Shape) -> Written {
        if let Some(sizes) = dims.fixed() {
            return Ok(self.whole(&sizes.iter().map(|&n| n as i64).collect::<Vec<_>>()));
        }
        let parts = dims.0.iter().map(|d| self.size(d)).collect::<Result<Vec<_>, _>>()?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        Ok(self.step("Concat", &parts, vec![int("axis", 0)]))
    }

    /// One extent as a tensor of one element.
    fn size(&mut self, dim: &Dim) -> Written {
        let Dim::Named(size) = dim else { return self.shape(&Shape(vec![dim.clone()])) };
        let written = self.g.sources().filter(|id| id.index() < self.names.len());
        let found = written.into_iter().find_map(|id| Some((id, self.g.shape(id).0.iter().position(|d| d == dim)?)));
        let (input, axis) = found.ok_or_else(|| {
            format!("nothing written before it has the size `{size}`; give it a value with --dim {size}=64")
        })?;
        let input = self.names[input.index()].clone();
        Ok(self.step("Shape", &[&input], vec![int("start", axis as i64), int("end", axis as i64 + 1)]))
    }

    pub(super) fn node(&mut self, id: NodeId, weights: &Weights) -> Written {
        let g = self.g;
        let (op, ty, own) = (g.op(id).clone(), g.ty(id).clone(), g.name_of(id).to_owned());
        let inputs = g.inputs(id);
        let x: Vec<String> = inputs.iter().map(|i| self.names[i.index()].clone()).collect();
        let format = |i: usize| g.ty(inputs[i]).format;
        let one = |w: &mut Self, name: &str, x: &[String], a: Vec<AttributeProto>| -> Written {
            let x: Vec<&str> = x.iter().map(String::as_str).collect();
            w.push(name, &x, &own, a);
            Ok(own.clone())
        };
        match op {
            Op::Input { .. } => {
                self.out.input.push(value_info(&own, &ty));
                Ok(own)
            }
            Op::Param { .. } | Op::State { .. } => {
                let w = weights.get(&own).ok_or("it has no values")?;
                self.out.initializer.push(tensor(&own, w));
                Ok(own)
            }
            Op::Const(c) => Ok(self.number(Format::F32, c.get())),
            Op::Iota { dims, axis } => {
                let dims = dims.fixed().ok_or("its size is open; give it a value with --batch or --dim")?;
                let inner: usize = dims[axis + 1..].iter().product();
                let values: Vec<f64> = (0..dims.iter().product()).map(|i| (i / inner % dims[axis]) as f64).collect();
                Ok(self.constant(Format::I64, &dims, &values))
            }
            Op::Unary(u) => {
                self.unary(u, &x[0], &own, format(0))?;
                Ok(own)
            }
            Op::Binary(b) => {
                let (p, q) = (format(0), format(1));
                // Numbers take the format of what they meet.
                let common = match (g.op(inputs[0]), g.op(inputs[1])) {
                    (Op::Const(_), _) => q,
                    (_, Op::Const(_)) => p,
                    _ if p.is_float() => p,
                    _ => q,
                };
                let (a, c) = (self.cast(&x[0], p, common), self.cast(&x[1], q, common));
                self.binary(b, &a, &c, &own, common)?;
                Ok(own)
            }
            Op::Select => {
                let condition = self.cast(&x[0], format(0), Format::Bool);
                let (a, b) = (self.cast(&x[1], format(1), ty.format), self.cast(&x[2], format(2), ty.format));
                one(self, "Where", &[condition, a, b], vec![])
            }
            Op::Reduce { kind, axes, keep } => {
                let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
                let axes = self.whole(&axes);
                let name = match kind {
                    ReduceKind::Sum => "ReduceSum",
                    ReduceKind::Mean => "ReduceMean",
                    ReduceKind::Max | ReduceKind::Any => "ReduceMax",
                    ReduceKind::Min => "ReduceMin",
                    ReduceKind::Prod => "ReduceProd",
                };
                one(self, name, &[x[0].clone(), axes], vec![int("keepdims", keep.into())])
            }
            Op::Reshape { dims } | Op::Alias { dims } => {
                // An extent of 0 is one, not "as it was".
                let zero = dims.0.contains(&Dim::Fixed(0)).into();
                let shape = self.shape(&dims)?;
                one(self, "Reshape", &[x[0].clone(), shape], vec![int("allowzero", zero)])
            }
            Op::Broadcast { dims } => {
                let shape = self.shape(&dims)?;
                one(self, "Expand", &[x[0].clone(), shape], vec![])
            }
            Op::Transpose { perm } => one(self, "Transpose", &x, vec![ints("perm", &perm)]),
            Op::Slice { axis, start, stop, step } => {
                let of = |w: &mut Self, v: usize| w.whole(&[v as i64]);
                let (s, e) = (of(self, start), of(self, stop));
                let (a, n) = (of(self, axis), of(self, step));
                one(self, "Slice", &[x[0].clone(), s, e, a, n], vec![])
            }
            Op::Pad { axis, lo, hi, inner: 0 } => {
                let rank = ty.shape.rank();
                let mut pads = vec![0; 2 * rank];
                (pads[axis], pads[rank + axis]) = (lo as i64, hi as i64);
                let pads = self.whole(&pads);
                one(self, "Pad", &[x[0].clone(), pads], vec![])
            }
            Op::Concat { axis } => one(self, "Concat", &x, vec![int("axis", axis as i64)]),
            Op::Gather { axis } => one(self, "Gather", &x, vec![int("axis", axis as i64)]),
            Op::MatMul { ta, tb, .. } => {
                let side = |w: &mut Self, i: usize, turned: bool| {
                    let rank = g.shape(inputs[i]).rank();
                    let mut perm: Vec<usize> = (0..rank).collect();
                    perm.swap(rank - 2, rank - 1);
                    if turned { w.step("Transpose", &[&x[i]], vec![ints("perm", &perm)]) } else { x[i].clone() }
                };
                let (a, b) = (side(self, 0, ta), side(self, 1, tb));
                one(self, "MatMul", &[a, b], vec![])
            }
            Op::Conv { kind, spec, .. } => {
                let mut a = vec![
                    ints("strides", &spec.stride),
                    ints("dilations", &spec.dilation),
                    ints("pads", &[&spec.lo[..], &spec.hi].concat()),
                    int("group", spec.groups as i64),
                ];
                match kind {
                    ConvKind::Forward => one(self, "Conv", &x, a),
                    ConvKind::Input(extents) => {
                        let (y, w) = (g.ty(inputs[0]).shape.fixed(), g.ty(inputs[1]).shape.fixed());
                        let (y, w) = (y.ok_or("its size is open")?, w.ok_or("its size is open")?);
                        let rest = (0..extents.len()).map(|i| {
                            let reach = spec.stride[i] * (y[2 + i] - 1) + spec.dilation[i] * (w[2 + i] - 1) + 1;
                            (extents[i] + spec.lo[i] + spec.hi[i]).saturating_sub(reach)
                        });
                        a.push(ints("output_padding", &rest.collect::<Vec<_>>()));
                        one(self, "ConvTranspose", &x, a)
                    }
                    ConvKind::Weight(_) => Err("ONNX has no gradient of a convolution".into()),
                }
            }
            Op::Softmax { axis } => one(self, "Softmax", &x, vec![int("axis", axis as i64)]),
            Op::LogSoftmax { axis } => one(self, "LogSoftmax", &x, vec![int("axis", axis as i64)]),
            Op::LayerNorm { eps } => {
                one(self, "LayerNormalization", &x, vec![int("axis", -1), float("epsilon", eps.get())])
            }
            Op::Normalise { axes, eps, centred } => {
                self.normalise(&x[0], &axes, eps.get(), centred, (&own, ty.format));
                Ok(own)
            }
            Op::Convert(f) | Op::Put(f) | Op::Cast(f) if x.len() == 1 => {
                // A narrow value is f32 once it is read.
                let rounded = self.cast(&x[0], format(0), f);
                let y = self.cast(&rounded, f, ty.format);
                one(self, "Identity", &[y], vec![])
            }
            Op::Random { .. } => {
                Err("ONNX has no random numbers by position; export the model as it acts in inference".into())
            }
            Op::Scan(s) => self.scan(id, &s, &x),
            _ => Err("ONNX has no such operation".into()),
        }
    }

    /// (x − mean) / √(mean (x − mean)² + eps), or without the mean.
    fn normalise(&mut self, x: &str, axes: &[usize], eps: f64, centred: bool, (own, format): (&str, Format)) {
        let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        let axes = self.whole(&axes);
        let mean = |w: &mut Self, x: &str| w.step("ReduceMean", &[x, &axes], vec![int("keepdims", 1)]);
        let mut from = x.to_owned();
        if centred {
            let m = mean(self, x);
            from = self.step("Sub", &[x, &m], vec![]);
        }
        let squares = self.step("Mul", &[&from, &from], vec![]);
        let var = mean(self, &squares);
        let eps = self.number(format, eps);
        let shifted = self.step("Add", &[&var, &eps], vec![]);
        let root = self.step("Sqrt", &[&shifted], vec![]);
        self.push("Div", &[&from, &root], own, vec![]);
    }

    fn unary(&mut self, u: Unary, x: &str, own: &str, format: Format) -> Result<(), String> {
        let named = match u {
            Unary::Neg => "Neg",
            Unary::Abs => "Abs",
            Unary::Sign => "Sign",
            Unary::Recip => "Reciprocal",
            Unary::Exp => "Exp",
            Unary::Log => "Log",
            Unary::Sqrt => "Sqrt",
            Unary::Sin => "Sin",
            Unary::Cos => "Cos",
            Unary::Tan => "Tan",
            Unary::Asin => "Asin",
            Unary::Acos => "Acos",
            Unary::Atan => "Atan",
            Unary::Sinh => "Sinh",
            Unary::Cosh => "Cosh",
            Unary::Tanh => "Tanh",
            Unary::Asinh => "Asinh",
            Unary::Acosh => "Acosh",
            Unary::Atanh => "Atanh",
            Unary::Erf => "Erf",
            Unary::Floor => "Floor",
            Unary::Ceil => "Ceil",
            Unary::Round => "Round",
            Unary::Sigmoid => "Sigmoid",
            Unary::Softplus => "Softplus",
            Unary::Relu => "Relu",
            Unary::IsNan => "IsNaN",
            Unary::IsInf => "IsInf",
            Unary::BitNot => "BitwiseNot",
            Unary::Gelu => "Gelu",
            other => return self.spelled(other, x, own, format),
        };
        self.push(named, &[x], own, vec![]);
        Ok(())
    }

    /// What ONNX has no name for, in its own operations.
    fn spelled(&mut self, u: Unary, x: &str, own: &str, format: Format) -> Result<(), String> {
        match u {
            Unary::Square => self.push("Mul", &[x, x], own, vec![]),
            Unary::Rsqrt => {
                let root = self.step("Sqrt", &[x], vec![]);
                self.push("Reciprocal", &[&root], own, vec![]);
            }
            Unary::Expm1 => {
                let (e, one) = (self.step("Exp", &[x], vec![]), self.number(format, 1.0));
                self.push("Sub", &[&e, &one], own, vec![]);
            }
            Unary::Log1p => {
                let one = self.number(format, 1.0);
                let shifted = self.step("Add", &[x, &one], vec![]);
                self.push("Log", &[&shifted], own, vec![]);
            }
            Unary::Trunc => {
                let (sign, size) = (self.step("Sign", &[x], vec![]), self.step("Abs", &[x], vec![]));
                let whole = self.step("Floor", &[&size], vec![]);
                self.push("Mul", &[&sign, &whole], own, vec![]);
            }
            Unary::GeluTanh => self.push("Gelu", &[x], own, vec![text("approximate", "tanh")]),
            Unary::Not => {
                let truth = self.cast(x, format, Format::Bool);
                self.push("Not", &[&truth], own, vec![]);
            }
            Unary::IsFinite => {
                let (inf, nan) = (self.step("IsInf", &[x], vec![]), self.step("IsNaN", &[x], vec![]));
                let either = self.step("Or", &[&inf, &nan], vec![]);
                self.push("Not", &[&either], own, vec![]);
            }
            other => return Err(format!("ONNX has no `{}`", other.name())),
        }
        Ok(())
    }

    fn binary(&mut self, b: Binary, x: &str, y: &str, own: &str, format: Format) -> Result<(), String> {
        let named = match b {
            Binary::Add => "Add",
            Binary::Sub => "Sub",
            Binary::Mul => "Mul",
            Binary::Div => "Div",
            Binary::Pow => "Pow",
            Binary::Max => "Max",
            Binary::Min => "Min",
            Binary::Eq => "Equal",
            Binary::Lt => "Less",
            Binary::Le => "LessOrEqual",
            Binary::Gt => "Greater",
            Binary::Ge => "GreaterOrEqual",
            Binary::And => "And",
            Binary::Or => "Or",
            Binary::Xor => "Xor",
            Binary::BitAnd => "BitwiseAnd",
            Binary::BitOr => "BitwiseOr",
            Binary::BitXor => "BitwiseXor",
            Binary::Ne => {
                let same = self.step("Equal", &[x, y], vec![]);
                self.push("Not", &[&same], own, vec![]);
                return Ok(());
            }
            Binary::Fmod | Binary::Mod if b == Binary::Fmod || format.is_integer() => {
                self.push("Mod", &[x, y], own, vec![int("fmod", i64::from(b == Binary::Fmod))]);
                return Ok(());
            }
            other => return Err(format!("ONNX has no `{}` of {format}", other.name())),
        };
        self.push(named, &[x, y], own, vec![]);
        Ok(())
    }
}
