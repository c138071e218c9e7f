//! Training data: IDX (optionally gzipped), NumPy `.npy` and `.npz`, CSV.
//!
//! A dataset is features, one row of f32 a sample, and labels: class indices or f32 targets.

mod csv;
mod idx;
mod numpy;

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Labels of a dataset, row-major, the same number for every sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    Classes(Vec<i64>),
    Targets(Vec<f32>),
}

impl Labels {
    /// How many there are in all.
    pub fn len(&self) -> usize {
        match self {
            Labels::Classes(c) => c.len(),
            Labels::Targets(t) => t.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn at(&self, i: usize) -> f64 {
        match self {
            Labels::Classes(c) => c[i] as f64,
            Labels::Targets(t) => f64::from(t[i]),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Dataset {
    /// Row-major, `samples × width`.
    pub features: Vec<f32>,
    pub labels: Labels,
    pub samples: usize,
    /// Extents of one sample as the file has them.
    pub sample_dims: Vec<usize>,
    pub path: PathBuf,
}

/// An array as a file holds it.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    pub dims: Vec<usize>,
    pub values: Vec<f64>,
    pub integers: bool,
}

/// Where a split's features and labels are.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub features: PathBuf,
    /// Not needed where one file holds both (`.npz` with `x` and `y`, `.csv` with a label column).
    #[serde(default)]
    pub labels: Option<PathBuf>,
}

impl Source {
    /// The data a path names: a file that holds both parts, or a directory with IDX files of a split
    /// (`train` or `test`) named as MNIST's are.
    pub fn find(path: &Path, split: &str) -> Result<Source> {
        if !path.is_dir() {
            if !path.exists() {
                return Err(Error::data(path, "there is no such file or directory"));
            }
            return Ok(Source { features: path.to_owned(), labels: None });
        }
        let prefixes: &[&str] = if split == "train" { &["train"] } else { &["test", "t10k"] };
        let file = |what: &str| {
            let names = prefixes.iter().flat_map(|p| [format!("{p}-{what}"), format!("{p}-{what}.gz")]);
            names.map(|n| path.join(n)).find(|p| p.exists())
        };
        match (file("images-idx3-ubyte"), file("labels-idx1-ubyte")) {
            (Some(features), labels @ Some(_)) => Ok(Source { features, labels }),
            _ => Err(Error::data(
                path,
                format!(
                    "no {split} split here: expected {split}-images-idx3-ubyte[.gz] and {split}-labels-idx1-ubyte[.gz]"
                ),
            )),
        }
    }

    /// Paths relative to a run file's directory.
    pub fn relative_to(&self, dir: &Path) -> Source {
        Source { features: dir.join(&self.features), labels: self.labels.as_ref().map(|l| dir.join(l)) }
    }
}

/// Loads a split. Features are multiplied by `scale`; every value must be finite.
pub fn load(source: &Source, scale: f64) -> Result<Dataset> {
    let path = &source.features;
    let (x, y) = match &source.labels {
        Some(labels) => (read_array(path, "x")?, read_array(labels, "y")?),
        None if is(path, "npz") => (numpy::read_npz(path, "x")?, numpy::read_npz(path, "y")?),
        None if is(path, "csv") => csv::read(path)?,
        None => {
            return Err(Error::data(
                path,
                "one file with both features and labels is .npz (with x and y) or .csv; for IDX give a directory, or both files in a run file",
            ));
        }
    };
    let label_path = source.labels.as_ref().unwrap_or(path);
    let samples = x.dims.first().copied().unwrap_or(0);
    if samples == 0 {
        return Err(Error::data(path, "there are no samples"));
    }
    if y.dims.first() != Some(&samples) {
        return Err(Error::data(label_path, format!("{} labels for {samples} samples", y.dims.first().unwrap_or(&0))));
    }
    let width = x.values.len() / samples;
    for (what, p, a) in [("feature", path, &x), ("label", label_path, &y)] {
        let factor = if what == "feature" { scale } else { 1.0 };
        if let Some(i) = a.values.iter().position(|v| !((v * factor) as f32).is_finite()) {
            let per = (a.values.len() / samples).max(1);
            return Err(Error::data(
                p,
                format!("{what} {} of sample {} is {}; training data must be finite", i % per, i / per, a.values[i]),
            ));
        }
    }
    let labels = if y.integers {
        Labels::Classes(y.values.iter().map(|&v| v as i64).collect())
    } else {
        Labels::Targets(y.values.iter().map(|&v| v as f32).collect())
    };
    let features = x.values.iter().map(|&v| (v * scale) as f32).collect();
    debug_assert_eq!(width * samples, x.values.len());
    Ok(Dataset { features, labels, samples, sample_dims: x.dims[1..].to_vec(), path: path.clone() })
}

impl Dataset {
    /// Elements of one sample.
    pub fn width(&self) -> usize {
        self.sample_dims.iter().product()
    }

    /// Refuses data that does not fit: `input` are the extents of one sample as the model reads it, `classes` how many
    /// it tells apart, and the label that does not count; `targets` is how many numbers a sample's label holds; `batch`
    /// samples must be there.
    pub fn check(
        &self,
        input: &[usize],
        classes: Option<(usize, Option<i64>)>,
        targets: usize,
        batch: usize,
    ) -> Result<()> {
        if self.samples < batch {
            return Err(Error::data(
                &self.path,
                format!(
                    "the data has {} sample{}, which does not fill one batch of {batch}; use a smaller --batch",
                    self.samples,
                    if self.samples == 1 { "" } else { "s" }
                ),
            ));
        }
        let want: usize = input.iter().product();
        if want != self.width() {
            return Err(Error::data(
                &self.path,
                format!(
                    "a sample has {} features ({:?}), but the model's input takes {want} ({input:?})",
                    self.width(),
                    self.sample_dims
                ),
            ));
        }
        let per_sample = self.labels.len() / self.samples;
        if let (Some((n, ignored)), Labels::Classes(labels)) = (classes, &self.labels)
            && let Some(i) = labels.iter().position(|&l| (l < 0 || l >= n as i64) && Some(l) != ignored)
        {
            return Err(Error::data(
                &self.path,
                format!(
                    "the label of sample {} is {}, but the model tells apart {n} classes (0 to {})",
                    i / per_sample,
                    labels[i],
                    n - 1
                ),
            ));
        }
        if per_sample != targets {
            return Err(Error::data(
                &self.path,
                format!(
                    "a sample has {per_sample} label{}, but the model's loss takes {targets}",
                    if per_sample == 1 { "" } else { "s" }
                ),
            ));
        }
        if classes.is_some() && matches!(self.labels, Labels::Targets(_)) {
            return Err(Error::data(
                &self.path,
                "the labels are not whole numbers, but the model's loss takes class indices",
            ));
        }
        Ok(())
    }
}

fn is(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension))
}

fn read_array(path: &Path, name: &str) -> Result<Array> {
    if is(path, "npy") {
        return numpy::read_npy(path);
    }
    if is(path, "npz") {
        return numpy::read_npz(path, name);
    }
    if is(path, "csv") {
        return Err(Error::data(path, "a .csv file holds features and labels together; give it alone"));
    }
    idx::read(path)
}
