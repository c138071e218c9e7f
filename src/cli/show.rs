//! Progress of training on a terminal, or line by line where there is none.

use crate::train::{EpochReport, Progress, Session};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Prints results. A reader that has gone away (`| head`) ends the program quietly, as it does other tools.
pub fn out(text: &str) {
    if let Err(e) = std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
        if e.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        say!("error: cannot write the result to standard output: {e}");
        std::process::exit(1);
    }
}

/// Prints on stderr, as far as anybody reads it.
pub fn told(text: &str, end: &str) {
    let _ = std::io::stderr().write_all(format!("{text}{end}").as_bytes());
}

/// A bar on stderr; hidden where that is no terminal. `text` says what stands beside it, in indicatif's placeholders.
pub fn bar(length: usize, text: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(&format!("{{bar:24.cyan/dim}} {text}  {{elapsed}}"));
    ProgressBar::new(length as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Shows epochs as they pass.
pub struct Reporter {
    bar: ProgressBar,
    epochs: usize,
    samples: usize,
}

impl Reporter {
    pub fn new(epochs: usize, samples: usize) -> Reporter {
        let bar = bar(epochs * samples, "{percent:>3}%  {msg}");
        Reporter { bar, epochs, samples }
    }
}

impl Progress for Reporter {
    fn begins(&self, session: &Session, samples: usize) {
        let settings = &session.compiled.settings;
        say!(
            "{}: {} parameters, {samples} samples, batch {}, {} {} for {}, on {}",
            session.compiled.planned.graph.name,
            session.compiled.parameters(),
            settings.batch(),
            settings.policy,
            settings.low,
            settings.target,
            session.device()
        );
        told(&session.compiled.layers.to_string(), "");
        self.bar.reset_elapsed();
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    fn seen(&self, epoch: usize, samples: usize) {
        self.bar.set_position((epoch * self.samples + samples) as u64);
    }

    /// Without a terminal, about twenty lines are printed over the whole run.
    fn epoch(&self, r: &EpochReport) {
        let line = epoch_line(r, self.epochs);
        if !self.bar.is_hidden() {
            self.bar.set_message(line);
        } else if r.epoch.is_multiple_of(self.epochs.div_ceil(20)) || r.epoch == 1 || r.epoch == self.epochs {
            say!("{line}");
        }
    }

    fn ends(&self) {
        self.bar.finish_and_clear();
    }
}

/// An epoch in a line.
pub fn epoch_line(r: &EpochReport, epochs: usize) -> String {
    let test = match r.test {
        Some(t) => match t.accuracy {
            Some(a) => format!("  test {:.4}  accuracy {:5.2} %", t.loss, 100.0 * a),
            None => format!("  test {:.4}", t.loss),
        },
        None => String::new(),
    };
    format!(
        "epoch {:>3}/{epochs}  loss {:.4}{test}  {:>8.0} samples/s  scale {}  skipped {}",
        r.epoch, r.loss, r.samples_per_s, r.scale, r.skipped
    )
}
