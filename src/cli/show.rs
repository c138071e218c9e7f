//! Progress of training on a terminal, or line by line where there is none.

use crate::train::{EpochReport, Progress, Seen, Session};
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
    let style = ProgressStyle::with_template(&format!("{{bar:16.cyan/dim}} {text}  {{elapsed}}"));
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
        let bar = bar(epochs * samples, "{percent:>3}%  {msg}  eta {eta}");
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

    fn seen(&self, epoch: usize, seen: Seen) {
        self.bar.set_position((epoch * self.samples + seen.samples) as u64);
        if let Some(loss) = seen.loss {
            self.bar.set_message(format!("{}  loss {loss:.4}", count(epoch + 1, self.epochs)));
        }
    }

    /// About twenty lines are kept over the whole run.
    fn epoch(&self, r: &EpochReport) {
        let is_kept = r.epoch.is_multiple_of(self.epochs.div_ceil(20)) || r.epoch == 1 || r.epoch == self.epochs;
        let line = epoch_line(r, self.epochs);
        match (self.bar.is_hidden(), is_kept) {
            (true, true) => say!("{line}"),
            (false, true) => self.bar.println(line),
            _ => {}
        }
        self.bar.set_message(format!("{}  loss {:.4}", count(r.epoch, self.epochs), r.loss));
    }

    fn ends(&self) {
        self.bar.finish_and_clear();
    }
}

/// "epoch  3/60", as wide for every epoch.
fn count(epoch: usize, epochs: usize) -> String {
    let width = epochs.to_string().len();
    format!("epoch {epoch:>width$}/{epochs}")
}

/// A loss scale: dynamic ones are powers of two.
fn power(scale: f64) -> String {
    let exponent = scale.log2();
    if exponent.fract() == 0.0 && exponent.abs() >= 10.0 { format!("2^{exponent}") } else { scale.to_string() }
}

/// An epoch in a line of at most 80 columns, but where steps were skipped.
pub fn epoch_line(r: &EpochReport, epochs: usize) -> String {
    let mut line = format!("{}  loss {:.4}", count(r.epoch, epochs), r.loss);
    if let Some(t) = r.test {
        line += &format!("  test {:.4}", t.loss);
        line += &t.accuracy.map_or(String::new(), |a| format!("  accuracy {:5.2} %", 100.0 * a));
    }
    line += &format!("  {:.0}/s", r.samples_per_s);
    if r.scale != 1.0 {
        line += &format!("  scale {}", power(r.scale));
    }
    if r.skipped > 0 {
        line += &format!("  skipped {}", r.skipped);
    }
    line
}
