//! CSV with a header line: the column `label` (or the last one) is the label, the others are features.

use super::Array;
use crate::error::{Error, Result};
use std::path::Path;

pub fn read(path: &Path) -> Result<(Array, Array)> {
    let mut reader = csv::Reader::from_path(path).map_err(|e| Error::data(path, e.to_string()))?;
    let header = reader.headers().map_err(|e| Error::data(path, e.to_string()))?.clone();
    let label = header.iter().position(|h| h.trim() == "label").unwrap_or(header.len().saturating_sub(1));
    let width = header.len().saturating_sub(1);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for record in reader.records() {
        // The reader's own message names the line of a row with too few or too many fields.
        let record = record.map_err(|e| Error::data(path, e.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        for (i, field) in record.iter().enumerate() {
            let v: f64 = field.trim().parse().map_err(|_| {
                Error::data(
                    path,
                    format!("line {line}, column `{}`: `{field}` is not a number", header.get(i).unwrap_or("?")),
                )
            })?;
            if i == label { y.push(v) } else { x.push(v) }
        }
    }
    let integers = y.iter().all(|v| v.fract() == 0.0);
    let samples = y.len();
    Ok((
        Array { dims: vec![samples, width], values: x, integers: false },
        Array { dims: vec![samples], values: y, integers },
    ))
}
