//! Tokens of the text form, each with its byte range.

use crate::error::Spanned;
use std::ops::Range;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A bare word.
    Word(String),
    /// A word in backticks: never a keyword.
    Quoted(String),
    Number(String),
    Symbol(char),
    End,
}

impl Token {
    pub fn describe(&self) -> String {
        match self {
            Token::Word(w) | Token::Quoted(w) => format!("`{w}`"),
            Token::Number(n) => format!("`{n}`"),
            Token::Symbol(c) => format!("`{c}`"),
            Token::End => "the end of the file".into(),
        }
    }
}

pub(super) fn lex(text: &str) -> Result<Vec<(Token, Range<usize>)>, Spanned> {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        let start = i;
        let c = text[i..].chars().next().unwrap_or(' ');
        let run = |from: usize, f: &dyn Fn(u8) -> bool| from + bytes[from..].iter().take_while(|&&b| f(b)).count();
        let token = match c {
            c if c.is_whitespace() => {
                i += c.len_utf8();
                continue;
            }
            '#' => {
                i = run(i, &|b| b != b'\n');
                continue;
            }
            'a'..='z' | 'A'..='Z' | '_' => {
                i = run(i, &|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
                Token::Word(text[start..i].to_owned())
            }
            '0'..='9' => {
                i = run(i, &|b| b.is_ascii_digit() || b == b'.');
                if matches!(bytes.get(i), Some(b'e' | b'E')) {
                    i += 1 + usize::from(matches!(bytes.get(i + 1), Some(b'-' | b'+')));
                    i = run(i, &|b| b.is_ascii_digit());
                }
                Token::Number(text[start..i].to_owned())
            }
            '`' => {
                i = run(i + 1, &|b| b != b'`' && b != b'\n');
                if bytes.get(i) != Some(&b'`') {
                    return Err(
                        Spanned::new(start..i, "this quoted name does not end").help("close it with a backtick")
                    );
                }
                i += 1;
                Token::Quoted(text[start + 1..i - 1].to_owned())
            }
            '{' | '}' | '[' | ']' | '(' | ')' | ',' | ':' | '=' | '+' | '-' | '*' | '/' | '@' => {
                i += 1;
                Token::Symbol(c)
            }
            c => return Err(Spanned::new(start..start + c.len_utf8(), format!("unexpected character `{c}`"))),
        };
        out.push((token, start..i));
    }
    out.push((Token::End, text.len()..text.len()));
    Ok(out)
}
