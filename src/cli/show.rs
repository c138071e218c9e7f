//! Progress of training on a terminal, or line by line where there is none.

use crate::train::EpochReport;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Prints results. A reader that has gone away (`| head`) ends the program quietly, as it does other tools.
pub fn out(text: &str) {
    if std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()).is_err() {
        std::process::exit(0);
    }
}

/// Shows epochs as they pass.
pub struct Reporter {
    bar: Option<ProgressBar>,
    epochs: usize,
    samples: usize,
}

impl Reporter {
    pub fn new(epochs: usize, samples: usize) -> Reporter {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new((epochs * samples) as u64);
            let style = ProgressStyle::with_template("{bar:24.cyan/dim} {percent:>3}%  {msg}  {elapsed}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Reporter { bar, epochs, samples }
    }

    /// `seen` samples of epoch `epoch` (from 0) have been trained on.
    pub fn tick(&self, epoch: usize, seen: usize) {
        if let Some(bar) = &self.bar {
            bar.set_position((epoch * self.samples + seen) as u64);
        }
    }

    /// An epoch has ended. Without a terminal, about twenty lines are printed over the whole run.
    pub fn epoch(&self, r: &EpochReport) {
        let line = epoch_line(r, self.epochs);
        match &self.bar {
            Some(bar) => bar.set_message(line),
            None if r.epoch.is_multiple_of(self.epochs.div_ceil(20)) || r.epoch == 1 || r.epoch == self.epochs => {
                eprintln!("{line}")
            }
            None => {}
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
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
