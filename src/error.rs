//! One error type for the library: what kind of thing went wrong, where, and what to do about it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What may fail as the library does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure a user can act on. [`Error::exit_code`] is 2 where the request was wrong, 1 where the work failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Text that does not parse or check; the span is a byte range of `text`.
    #[error("{file}:{}: {message}", line_of(text, span))]
    Source {
        /// The file's name, or what stands for it.
        file: String,
        /// All of its text.
        text: String,
        /// Byte range of the text.
        span: Range<usize>,
        /// What is wrong.
        message: String,
        /// What to do.
        help: Option<String>,
    },
    /// A graph that breaks the IR's rules: shapes, formats, structure.
    #[error("{0}")]
    Graph(String),
    /// A model file that cannot be read as a model.
    #[error("{}: {message}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// Training data that is missing, malformed or does not match the model.
    #[error("{}: {message}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A request that makes no sense: unknown policy, bf16 on a target without it, a plan for another model.
    #[error("{0}")]
    Request(String),
    /// The device that was asked for is not there or failed.
    #[error("{0}")]
    Device(String),
    /// Training could not go on.
    #[error("{0}")]
    Diverged(String),
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read", "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

fn line_of(text: &str, span: &Range<usize>) -> String {
    let before = &text[..span.start.min(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.len() - before.rfind('\n').map_or(0, |i| i + 1) + 1;
    format!("{line}:{column}")
}

impl Error {
    /// An error of the file system, at a path, while an action ("read", "write") was tried.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_owned();
        move |source| Error::Io { action, path, source }
    }

    /// An error of training data.
    pub fn data(path: impl AsRef<Path>, message: impl Into<String>) -> Error {
        Error::Data { path: path.as_ref().to_owned(), message: message.into() }
    }

    /// An error of a model file.
    pub fn model(path: impl AsRef<Path>, message: impl Into<String>) -> Error {
        Error::Model { path: path.as_ref().to_owned(), message: message.into() }
    }

    /// 2: the request was wrong; 1: the work failed.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Io { action: "read", .. } => 2,
            Error::Diverged(_) | Error::Device(_) | Error::Io { .. } => 1,
            _ => 2,
        }
    }

    /// The message as a terminal shows it: source errors with the line and a caret.
    pub fn render(&self, color: bool) -> String {
        let Error::Source { file, text, span, message, help } = self else { return format!("error: {self}\n") };
        use ariadne::{Config, IndexType, Label, Report, ReportKind, Source};
        let place = (file.as_str(), span.clone());
        let red = if color { ariadne::Color::Red } else { ariadne::Color::Primary };
        let mut report = Report::build(ReportKind::Custom("error", red), place.clone())
            .with_config(Config::default().with_color(color).with_index_type(IndexType::Byte))
            .with_message(message)
            .with_label(Label::new(place).with_message("here"));
        if let Some(help) = help {
            report = report.with_help(help);
        }
        let mut out = Vec::new();
        // Writing to a Vec cannot fail, and a lost rendering must not hide the message.
        match report.finish().write((file.as_str(), Source::from(text)), &mut out) {
            Ok(()) if color => String::from_utf8_lossy(&out).into_owned(),
            Ok(()) => console::strip_ansi_codes(&String::from_utf8_lossy(&out)).into_owned(),
            Err(_) => format!("error: {self}\n"),
        }
    }
}

/// An error in a text, before the file it stands in is known.
#[derive(Debug, Clone)]
pub struct Spanned {
    /// Byte range of the text.
    pub span: Range<usize>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Spanned {
    /// An error at a place of a text.
    pub fn new(span: Range<usize>, message: impl Into<String>) -> Spanned {
        Spanned { span, message: message.into(), help: None }
    }
    /// With what to do.
    pub fn help(mut self, help: impl Into<String>) -> Spanned {
        self.help = Some(help.into());
        self
    }
    /// The error with the text that it is in.
    pub fn in_file(self, file: &str, text: &str) -> Error {
        Error::Source {
            file: file.to_owned(),
            text: text.to_owned(),
            span: self.span,
            message: self.message,
            help: self.help,
        }
    }
}

impl fmt::Display for Spanned {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}
