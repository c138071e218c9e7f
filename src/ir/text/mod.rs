//! The text form, `.mir`: one node a line, names for values, numbers for constants.
//!
//! ```
//! let text = "model m {\n  input x: f32[batch, 2]\n  param w: f32[2, 3] = ones\n  y = relu(x @ w + 1)\n}";
//! let graph = mantissa::ir::text::parse(text, "m.mir").unwrap();
//! let printed = mantissa::ir::text::print(&graph);
//! assert_eq!(mantissa::ir::text::parse(&printed, "again").unwrap(), graph);
//! ```

mod lex;
mod parse;
mod print;

pub use parse::{parse, parse_attr};
pub use print::{declaration, print, quoted};

/// Words that start a statement; a value of such a name is written in backticks.
const KEYWORDS: [&str; 13] =
    ["model", "body", "input", "label", "param", "state", "output", "update", "metric", "inf", "nan", "true", "false"];

fn is_plain_name(s: &str) -> bool {
    let mut chars = s.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
        && !KEYWORDS.contains(&s)
}
