//! S-expressions with byte ranges, the syntax of rule files. `;` starts a comment; `[0, 1]` is one atom.

use crate::error::Spanned;
use std::fmt;
use std::ops::Range;

#[derive(Clone, Debug)]
pub enum Sexpr {
    Atom(String, Range<usize>),
    Text(String, Range<usize>),
    List(Vec<Sexpr>, Range<usize>),
}

impl Sexpr {
    pub fn span(&self) -> Range<usize> {
        let (Sexpr::Atom(_, s) | Sexpr::Text(_, s) | Sexpr::List(_, s)) = self;
        s.clone()
    }

    pub fn atom(&self) -> Option<&str> {
        if let Sexpr::Atom(a, _) = self { Some(a) } else { None }
    }
}

impl fmt::Display for Sexpr {
    /// On one line.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Sexpr::Atom(a, _) => f.write_str(a),
            Sexpr::Text(t, _) => write!(f, "\"{t}\""),
            Sexpr::List(parts, _) => {
                f.write_str("(")?;
                for (i, part) in parts.iter().enumerate() {
                    write!(f, "{}{part}", if i > 0 { " " } else { "" })?;
                }
                f.write_str(")")
            }
        }
    }
}

/// How deep lists may nest: the stack is finite.
const NESTED: usize = 200;

pub fn read(text: &str) -> Result<Vec<Sexpr>, Spanned> {
    let mut at = 0;
    let mut out = Vec::new();
    while let Some(e) = one(text, &mut at, 0)? {
        out.push(e);
    }
    if at < text.len() {
        return Err(Spanned::new(at..at + 1, "this `)` closes nothing"));
    }
    Ok(out)
}

fn skip(text: &str, at: &mut usize) {
    while let Some(c) = text[*at..].chars().next() {
        if c == ';' {
            *at += text[*at..].find('\n').unwrap_or(text.len() - *at);
        } else if c.is_whitespace() {
            *at += c.len_utf8();
        } else {
            return;
        }
    }
}

fn one(text: &str, at: &mut usize, depth: usize) -> Result<Option<Sexpr>, Spanned> {
    skip(text, at);
    let start = *at;
    match text[start..].chars().next() {
        None | Some(')') => Ok(None),
        Some('(') if depth == NESTED => Err(Spanned::new(start..start + 1, format!("nested more than {NESTED} deep"))),
        Some('(') => {
            *at += 1;
            let mut items = Vec::new();
            while let Some(e) = one(text, at, depth + 1)? {
                items.push(e);
            }
            if !text[*at..].starts_with(')') {
                return Err(Spanned::new(start..start + 1, "this `(` is never closed"));
            }
            *at += 1;
            Ok(Some(Sexpr::List(items, start..*at)))
        }
        Some('"') => match text[start + 1..].find('"') {
            Some(n) => {
                *at = start + n + 2;
                Ok(Some(Sexpr::Text(
                    text[start + 1..start + 1 + n].split_whitespace().collect::<Vec<_>>().join(" "),
                    start..*at,
                )))
            }
            None => Err(Spanned::new(start..start + 1, "this text is never closed")),
        },
        Some(_) => {
            let mut depth = 0;
            let end = text[start..].find(|c: char| {
                depth += i32::from(c == '[') - i32::from(c == ']');
                depth <= 0 && (c.is_whitespace() || matches!(c, '(' | ')' | '"' | ';'))
            });
            *at = start + end.unwrap_or(text.len() - start);
            Ok(Some(Sexpr::Atom(text[start..*at].to_owned(), start..*at)))
        }
    }
}
