//! Text to graph, by recursive descent. Type errors carry a caret like syntax errors do.

use super::lex::{Token, lex};
use crate::error::{Error, Result, Spanned};
use crate::format::Format;
use crate::ir::graph::{Graph, Named, NodeId, Role};
use crate::ir::ops::{Attr, Attrs, Binary, Body, Init, Num, Op, ReduceKind, Scan, Signature, Take, Unary, names};
use crate::ir::types::{Dim, Shape, Type};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// How deep parentheses, calls and bodies may nest: the stack is finite, and people give values names before this.
const NESTED: usize = 200;

/// Reads a graph. `file` is the name errors are reported under.
///
/// # Errors
/// The first place where the text is no graph or an operation has no type, as [`Error::Source`].
pub fn parse(text: &str, file: &str) -> Result<Graph> {
    let tokens = lex(text).map_err(|e| e.in_file(file, text))?;
    let mut p = Parser { tokens, at: 0, depth: 0, scope: Scope::default() };
    p.file().map_err(|e| e.in_file(file, text))?;
    Ok(p.scope.graph)
}

/// Reads one attribute value, as it stands behind `name=`.
///
/// # Errors
/// Text that is no value, or one with something behind it: with the place.
pub fn parse_attr(text: &str) -> std::result::Result<Attr, Spanned> {
    let mut p = Parser { tokens: lex(text)?, at: 0, depth: 0, scope: Scope::default() };
    let attr = p.attr()?;
    if *p.peek() == Token::End { Ok(attr) } else { Err(p.unexpected("the end of the attribute")) }
}

/// A value `t3 = …` was named by a graph that was printed; parameters and inputs are named by somebody always.
fn named(value: &str) -> Named {
    match value.strip_prefix('t') {
        Some(number) if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => Named::MadeUp,
        _ => Named::Given,
    }
}

struct Parser {
    tokens: Vec<(Token, Range<usize>)>,
    at: usize,
    /// Parentheses, calls and bodies that are open.
    depth: usize,
    scope: Scope,
}

/// What a model, or the body of a scan, has said so far.
#[derive(Default)]
struct Scope {
    graph: Graph,
    bodies: HashMap<String, Body>,
    /// Names given to values that already have another: `y = x`.
    aliases: HashMap<String, NodeId>,
    /// Values whose name the text gives.
    chosen: HashSet<NodeId>,
}

type Parse<T> = std::result::Result<T, Spanned>;

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn span(&self) -> Range<usize> {
        self.tokens[self.at].1.clone()
    }

    /// From the start of `from` to the end of the last token read.
    fn since(&self, from: usize) -> Range<usize> {
        from..self.tokens[self.at.saturating_sub(1)].1.end.max(from)
    }

    fn eat(&mut self, symbol: char) -> bool {
        let hit = *self.peek() == Token::Symbol(symbol);
        self.at += usize::from(hit);
        hit
    }

    fn expect(&mut self, symbol: char) -> Parse<()> {
        if self.eat(symbol) { Ok(()) } else { Err(self.unexpected(&format!("`{symbol}`"))) }
    }

    fn unexpected(&self, wanted: &str) -> Spanned {
        Spanned::new(self.span(), format!("expected {wanted}, found {}", self.peek().describe()))
    }

    fn name(&mut self) -> Parse<String> {
        match self.peek().clone() {
            Token::Word(w) | Token::Quoted(w) => {
                self.at += 1;
                Ok(w)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    fn file(&mut self) -> Parse<()> {
        if *self.peek() != Token::Word("model".into()) {
            return Err(self.unexpected("`model`").help("a file holds one model: model NAME { ... }"));
        }
        self.at += 1;
        self.scope.graph.name = self.name()?;
        self.expect('{')?;
        while !self.eat('}') {
            self.statement()?;
        }
        if *self.peek() != Token::End {
            return Err(self.unexpected("the end of the file"));
        }
        // A model that names no output yields what nothing reads.
        if self.scope.graph.outputs().iter().all(|o| o.role == Role::Update) {
            let declared = |id: NodeId| self.scope.graph.outputs().iter().any(|o| o.node == id);
            let unused: Vec<NodeId> = self
                .scope
                .graph
                .ids()
                .filter(|&id| {
                    !self.scope.graph.op(id).is_source() && self.scope.graph.users(id).is_empty() && !declared(id)
                })
                .collect();
            for id in unused {
                let name = self.scope.graph.name_of(id).to_owned();
                self.scope.graph.add_output(name, Role::Output, id);
            }
        }
        Ok(())
    }

    fn statement(&mut self) -> Parse<()> {
        let start = self.span().start;
        let keyword = if let Token::Word(w) = self.peek() { w.clone() } else { String::new() };
        match keyword.as_str() {
            "input" | "label" | "param" | "state" => {
                self.at += 1;
                let name = self.name()?;
                self.expect(':')?;
                let ty = self.ty()?;
                let value = self.span().start;
                let op = match keyword.as_str() {
                    "input" | "label" => {
                        let copy_of = match self.init()? {
                            Init::Copy(of) => Some(of),
                            Init::Data => None,
                            _ => {
                                let says = format!("the {keyword} `{name}` comes from data, and has no first value");
                                return Err(Spanned::new(self.since(value), says));
                            }
                        };
                        Op::Input { label: keyword == "label", ty, copy_of }
                    }
                    "param" => Op::Param { init: self.init()?, ty },
                    _ => Op::State { init: self.init()?, ty },
                };
                self.add(start, Some(name), op, &[])?;
            }
            "output" | "update" | "metric" => {
                self.at += 1;
                let name_span = self.span();
                let name = self.name()?;
                let node = if self.eat('=') { self.expression()? } else { self.lookup(&name, name_span)? };
                let role = match keyword.as_str() {
                    "output" => Role::Output,
                    "update" => Role::Update,
                    _ => Role::Metric,
                };
                if self.scope.graph.output(&name, role).is_some() {
                    return Err(Spanned::new(self.since(start), format!("the {keyword} `{name}` is defined twice")));
                }
                self.scope.graph.add_output(name, role, node);
            }
            "body" => self.body()?,
            _ => self.assignment(start)?,
        }
        Ok(())
    }

    /// `body NAME { … }`: what a scan runs.
    fn body(&mut self) -> Parse<()> {
        self.at += 1;
        let start = self.span().start;
        let name = self.name()?;
        if self.scope.bodies.contains_key(&name) {
            return Err(Spanned::new(self.since(start), format!("the body `{name}` is defined twice")));
        }
        self.expect('{')?;
        let outer = std::mem::take(&mut self.scope);
        self.scope.graph.name.clone_from(&name);
        while !self.eat('}') {
            self.nested(Parser::statement)?;
        }
        let inner = std::mem::replace(&mut self.scope, outer);
        self.scope.bodies.insert(name, Body::new(inner.graph));
        Ok(())
    }

    /// The operation of `scan(…)`: the only one whose attributes name something defined elsewhere.
    fn scan(&self, a: &Attrs) -> std::result::Result<Op, String> {
        a.known(&["body", "steps", "reverse", "stack", "last"])?;
        let name = a.word("body")?;
        let body = self.scope.bodies.get(&name).cloned();
        let body = body.ok_or_else(|| format!("there is no `body {name} {{ … }}` above"))?;
        let steps = a.extent("steps")?;
        let take = match (a.word("stack"), a.word("last")) {
            (Ok(v), Err(_)) => Take::Stack(v),
            (Err(_), Ok(s)) => Take::Last(s),
            _ => return Err("takes either stack=VALUE of the body or last=STATE".into()),
        };
        Ok(Op::Scan(Scan { body, steps, reverse: a.get("reverse").is_some() && a.flag("reverse")?, take }))
    }

    fn assignment(&mut self, start: usize) -> Parse<()> {
        let name = self.name()?;
        let name_span = self.since(start);
        let declared = if self.eat(':') { Some((self.span().start, self.ty()?)) } else { None };
        self.expect('=')?;
        let before = self.scope.graph.len();
        let value = self.expression()?;
        let holder = self.scope.graph.find(&name).filter(|&id| id != value);
        if self.is_taken(&name, holder) {
            return Err(Spanned::new(name_span, format!("`{name}` is defined twice")));
        }
        if let Some(id) = holder {
            self.scope.graph.rename_freshly(id);
        }
        // A fresh node takes the name; a value that already had one is also known by this one.
        let fresh = value.index() >= before && !matches!(self.scope.graph.op(value), Op::Const(_));
        if fresh && self.scope.chosen.insert(value) {
            self.scope.graph.rename_as(value, &name, named(&name));
        } else {
            self.scope.aliases.insert(name, value);
        }
        if let Some((at, ty)) = declared
            && self.scope.graph.ty(value) != &ty
        {
            return Err(Spanned::new(self.since(at), format!("this is {}, not {ty}", self.scope.graph.ty(value))));
        }
        Ok(())
    }

    fn ty(&mut self) -> Parse<Type> {
        let span = self.span();
        let format = self.name()?.parse::<Format>().map_err(|e| Spanned::new(span, e.to_string()))?;
        let shape = if *self.peek() == Token::Symbol('[') { self.shape()? } else { Shape::scalar() };
        Ok(Type::new(shape, format))
    }

    fn shape(&mut self) -> Parse<Shape> {
        self.expect('[')?;
        let mut dims = Vec::new();
        while !self.eat(']') {
            dims.push(match self.peek().clone() {
                Token::Number(n) => Dim::Fixed(n.parse().map_err(|_| self.unexpected("a whole number"))?),
                Token::Word(w) | Token::Quoted(w) => Dim::Named(w),
                _ => return Err(self.unexpected("a size")),
            });
            self.at += 1;
            if *self.peek() != Token::Symbol(']') && !self.eat(',') {
                return Err(self.unexpected("`,` or `]`"));
            }
        }
        Ok(Shape(dims))
    }

    fn init(&mut self) -> Parse<Init> {
        if !self.eat('=') {
            return Ok(Init::Data);
        }
        let start = self.span().start;
        let word = self.name()?;
        let mut argument = None;
        if self.eat('(') {
            if word == "copy" {
                let of = self.name()?;
                self.expect(')')?;
                return Ok(Init::Copy(of));
            }
            argument = Some(self.number()?);
            self.expect(')')?;
        }
        Init::parse(&word, argument).map_err(|e| Spanned::new(self.since(start), e))
    }

    fn number(&mut self) -> Parse<Num> {
        let negative = self.eat('-');
        let x = match self.peek() {
            Token::Number(n) => n.parse::<f64>().ok(),
            Token::Word(w) if w == "inf" => Some(f64::INFINITY),
            Token::Word(w) if w == "nan" => Some(f64::NAN),
            _ => None,
        };
        let x = x.ok_or_else(|| self.unexpected("a number"))?;
        self.at += 1;
        Ok(Num::new(if negative { -x } else { x }))
    }

    fn lookup(&self, name: &str, span: Range<usize>) -> Parse<NodeId> {
        if let Some(id) = self.scope.graph.find(name).or_else(|| self.scope.aliases.get(name).copied()) {
            return Ok(id);
        }
        let mut known: Vec<&str> = self.scope.graph.ids().map(|id| self.scope.graph.name_of(id)).collect();
        known.extend(self.scope.aliases.keys().map(String::as_str));
        let near = crate::hint::nearest(name, known.into_iter());
        let error = Spanned::new(span, format!("`{name}` is not defined"));
        Err(match near {
            Some(near) => error.help(format!("is `{near}` meant?")),
            None => error.help("values must be defined above their first use"),
        })
    }

    fn add(&mut self, start: usize, name: Option<String>, op: Op, inputs: &[NodeId]) -> Parse<NodeId> {
        let result = match name {
            Some(name) if self.is_taken(&name, self.scope.graph.find(&name)) => {
                Err(Error::Graph(format!("the name `{name}` is defined twice")))
            }
            Some(name) => self.scope.graph.add_named(name, op, inputs),
            None => self.scope.graph.add(op, inputs),
        };
        result.map_err(|e| {
            Spanned::new(
                self.since(start),
                match e {
                    Error::Graph(m) => m,
                    e => e.to_string(),
                },
            )
        })
    }

    /// Did the text give this name to a value, or to the node that holds it? One that it called so keeps the name, though the
    /// graph could have made that up.
    fn is_taken(&self, name: &str, holder: Option<NodeId>) -> bool {
        let is_given = |id| self.scope.chosen.contains(&id) || !self.scope.graph.is_auto_named(id);
        self.scope.aliases.contains_key(name) || holder.is_some_and(is_given)
    }

    /// `a + b - c`
    fn expression(&mut self) -> Parse<NodeId> {
        let start = self.span().start;
        let mut left = self.term()?;
        loop {
            let op = if self.eat('+') {
                Binary::Add
            } else if self.eat('-') {
                Binary::Sub
            } else {
                return Ok(left);
            };
            let right = self.term()?;
            left = self.add(start, None, Op::Binary(op), &[left, right])?;
        }
    }

    /// `a * b / c @ d`
    fn term(&mut self) -> Parse<NodeId> {
        let start = self.span().start;
        let mut left = self.factor()?;
        loop {
            let op = if self.eat('*') {
                Op::Binary(Binary::Mul)
            } else if self.eat('/') {
                Op::Binary(Binary::Div)
            } else if self.eat('@') {
                Op::MatMul { ta: false, tb: false, format: Format::F32 }
            } else {
                return Ok(left);
            };
            let right = self.factor()?;
            left = self.add(start, None, op, &[left, right])?;
        }
    }

    /// Goes one level deeper for as long as `read` takes.
    fn nested<T>(&mut self, read: impl FnOnce(&mut Parser) -> Parse<T>) -> Parse<T> {
        if self.depth == NESTED {
            let why = format!("nested more than {NESTED} deep; give what is inside a name: `t = …`");
            return Err(Spanned::new(self.span(), why));
        }
        self.depth += 1;
        let done = read(self);
        self.depth -= 1;
        done
    }

    fn factor(&mut self) -> Parse<NodeId> {
        self.nested(Parser::factor_inside)
    }

    fn factor_inside(&mut self) -> Parse<NodeId> {
        let span = self.span();
        let negated = self.eat('-');
        let number = matches!(self.peek(), Token::Number(_))
            || matches!(self.peek(), Token::Word(w) if w == "inf" || w == "nan");
        if number {
            let x = self.number()?.get();
            return self.add(span.start, None, Op::Const(Num::new(if negated { -x } else { x })), &[]);
        }
        if negated {
            let x = self.factor()?;
            return self.add(span.start, None, Op::Unary(Unary::Neg), &[x]);
        }
        if self.eat('(') {
            let x = self.expression()?;
            self.expect(')')?;
            return Ok(x);
        }
        let quoted = matches!(self.peek(), Token::Quoted(_));
        let name = self.name().map_err(|e| Spanned { message: e.message.replace("a name", "a value"), ..e })?;
        if !quoted && self.eat('(') { self.call(span, &name) } else { self.lookup(&name, span) }
    }

    /// `name(operand, …, attribute=value, …)`
    fn call(&mut self, name_span: Range<usize>, name: &str) -> Parse<NodeId> {
        let (mut operands, mut attrs) = (Vec::new(), Attrs::default());
        while !self.eat(')') {
            let is_attr = matches!(self.peek(), Token::Word(_))
                && self.tokens.get(self.at + 1).is_some_and(|t| t.0 == Token::Symbol('='));
            if is_attr {
                let key = self.name()?;
                self.expect('=')?;
                attrs.0.push((key, self.attr()?));
            } else {
                operands.push(self.expression()?);
            }
            if *self.peek() != Token::Symbol(')') && !self.eat(',') {
                return Err(self.unexpected("`,` or `)`"));
            }
        }
        let start = name_span.start;
        let filled = match (Signature::find(name), operands.first()) {
            (Some(row), Some(&x)) => row.fill_in(&mut attrs, self.scope.graph.shape(x).rank()),
            _ => Ok(()),
        };
        let build = |()| if name == names::SCAN { self.scan(&attrs) } else { Op::build(name, &attrs) };
        let op = filled.and_then(build).map_err(|e| Spanned::new(self.since(start), format!("{name}: {e}")))?;
        let average = matches!(op, Op::Loss(_)) && attrs.get("reduction") != Some(&Attr::Word("none".into()));
        let node = self.add(start, None, op, &operands)?;
        if average {
            let axes = (0..self.scope.graph.shape(node).rank()).collect();
            return self.add(start, None, Op::Reduce { kind: ReduceKind::Mean, axes, keep: false }, &[node]);
        }
        Ok(node)
    }

    fn attr(&mut self) -> Parse<Attr> {
        match self.peek().clone() {
            Token::Symbol('[') => {
                let negative = self.tokens[self.at..]
                    .iter()
                    .take_while(|t| t.0 != Token::Symbol(']'))
                    .any(|t| t.0 == Token::Symbol('-'));
                if !negative {
                    return Ok(Attr::Dims(self.shape()?));
                }
                self.expect('[')?;
                let mut out = Vec::new();
                while !self.eat(']') {
                    let start = self.at;
                    let Attr::Int(i) = self.number_attr()? else {
                        self.at = start;
                        return Err(self.unexpected("a whole number"));
                    };
                    out.push(i);
                    self.eat(',');
                }
                Ok(Attr::Ints(out))
            }
            Token::Quoted(w) => {
                self.at += 1;
                Ok(Attr::Word(w))
            }
            Token::Word(w) if w == "true" || w == "false" => {
                self.at += 1;
                Ok(Attr::Bool(w == "true"))
            }
            Token::Word(w) if w != "inf" && w != "nan" => {
                self.at += 1;
                Ok(w.parse::<Format>().map_or(Attr::Word(w), Attr::Format))
            }
            _ => self.number_attr(),
        }
    }

    /// A number as it is spelled: whole ones have digits alone.
    fn number_attr(&mut self) -> Parse<Attr> {
        let x = self.number()?;
        let whole = matches!(&self.tokens[self.at - 1].0, Token::Number(n) if n.bytes().all(|b| b.is_ascii_digit()));
        Ok(if whole { Attr::Int(x.get() as i64) } else { Attr::Float(x) })
    }
}
