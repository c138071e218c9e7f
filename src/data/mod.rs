//! Training data: IDX (optionally gzipped), NumPy `.npy` and `.npz`, CSV.
//!
//! A dataset is features, one row of f32 a sample for every input of the model, and labels: class indices or f32 targets.

mod csv;
mod idx;
mod numpy;

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The array of an `.npz` file that holds the labels.
const LABELS: &str = "y";
/// The array of an `.npz` file that feeds a model's only input, whatever that is called.
const FEATURES: &str = "x";

/// Labels of a dataset, row-major, the same number for every sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Labels {
    /// A class to a sample, counted from 0.
    Classes(Vec<i64>),
    /// Numbers to predict, samples one behind the other.
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

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Label i, of all numbers of all samples.
    pub fn at(&self, i: usize) -> f64 {
        match self {
            Labels::Classes(c) => c[i] as f64,
            Labels::Targets(t) => f64::from(t[i]),
        }
    }
}

/// What one input of a model is fed with.
#[derive(Clone, Debug)]
pub struct Feature {
    /// The array's name: the input's, unless it is the only one.
    pub name: String,
    /// Row-major, `samples × width`.
    pub values: Vec<f32>,
    /// Extents of one sample as the file has them.
    pub dims: Vec<usize>,
}

impl Feature {
    /// Elements of one sample.
    pub fn width(&self) -> usize {
        self.dims.iter().product()
    }

    /// One sample.
    pub fn row(&self, sample: usize) -> &[f32] {
        &self.values[sample * self.width()..][..self.width()]
    }
}

/// Samples in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// At least one.
    pub features: Vec<Feature>,
    /// What is to be predicted.
    pub labels: Labels,
    /// How many there are.
    pub samples: usize,
    /// Where they were read from, for messages.
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
    /// Inputs: a file, or a folder of IDX files.
    pub features: PathBuf,
    /// Not needed where one file holds both (`.npz` with labels `y`, `.csv` with a label column).
    #[serde(default)]
    pub labels: Option<PathBuf>,
}

impl Source {
    /// The data a path names: a file that holds both parts, or a directory with IDX files of a split
    /// (`train` or `test`) named as MNIST's are.
    ///
    /// # Errors
    /// A path where nothing is, and a directory without both files of the split.
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

/// Loads a split. Features are multiplied by `scale` (of several arrays, those that are not of whole numbers). The
/// arrays of an `.npz` file are named as the model's inputs are (the only input's may be called `x`, and a single one have
/// any name), and its labels `y`.
///
/// # Errors
/// A file that cannot be read or is of no known kind, no samples, no labels, arrays that differ in how many samples they
/// have, a label that is not finite.
pub fn load(source: &Source, scale: f64) -> Result<Dataset> {
    let path = &source.features;
    let label_path = source.labels.as_ref().unwrap_or(path);
    let (features, labels) = match &source.labels {
        Some(_) => (read_features(path)?, read_array(label_path, LABELS)?),
        None if is(path, "npz") => (read_features(path)?, read_array(path, LABELS)?),
        None if is(path, "csv") => {
            let (x, y) = csv::read(path)?;
            (vec![(FEATURES.to_owned(), x)], y)
        }
        None => {
            return Err(Error::data(
                path,
                "one file with both features and labels is .npz (with labels `y`) or .csv; for IDX give a directory, or both files in a run file",
            ));
        }
    };
    let mut data = features_alone(path, features, scale)?;
    let of_labels = labels.dims.first().copied().unwrap_or(0);
    if of_labels != data.samples {
        return Err(Error::data(label_path, format!("{of_labels} labels for {} samples", data.samples)));
    }
    if let Some(fault) = non_finite("label", &labels.values, data.samples) {
        return Err(Error::data(label_path, fault));
    }
    data.labels = if labels.integers {
        Labels::Classes(labels.values.iter().map(|&v| v as i64).collect())
    } else {
        Labels::Targets(labels.values.iter().map(|&v| v as f32).collect())
    };
    Ok(data)
}

/// Loads features alone, as inference needs them: `.npy`, `.npz`, `.csv`, IDX, or a directory with IDX files of a
/// training split. Labels are left out.
///
/// # Errors
/// A file that cannot be read or is of no known kind, no samples, arrays that differ in how many samples they have.
pub fn load_features(path: &Path, scale: f64) -> Result<Dataset> {
    let path = &Source::find(path, "train")?.features;
    let features = if is(path, "csv") { vec![(FEATURES.to_owned(), csv::read(path)?.0)] } else { read_features(path)? };
    features_alone(path, features, scale)
}

fn features_alone(path: &Path, features: Vec<(String, Array)>, scale: f64) -> Result<Dataset> {
    let samples = features.first().and_then(|(_, a)| a.dims.first().copied()).unwrap_or(0);
    if samples == 0 {
        return Err(Error::data(path, "there are no samples"));
    }
    let alone = features.len() == 1;
    let mut out = Vec::new();
    for (name, a) in features {
        let count = a.dims.first().copied().unwrap_or(0);
        if count != samples {
            return Err(Error::data(path, format!("array `{name}` has {count} samples, but others have {samples}")));
        }
        // Whole numbers in arrays of other names are indices and masks.
        let is_scaled = alone || name == FEATURES || !a.integers;
        let scale = if is_scaled { scale } else { 1.0 };
        let values = a.values.iter().map(|&v| (v * scale) as f32).collect();
        out.push(Feature { name, values, dims: a.dims[1..].to_vec() });
    }
    Ok(Dataset { features: out, labels: Labels::Classes(Vec::new()), samples, path: path.to_owned() })
}

/// What to say of the first value that is not a finite f32.
fn non_finite<T: Copy + Into<f64>>(what: &str, values: &[T], samples: usize) -> Option<String> {
    let i = values.iter().position(|&v| !(v.into() as f32).is_finite())?;
    let (per, value) = ((values.len() / samples.max(1)).max(1), values[i].into());
    Some(format!("{what} {} of sample {} is {value}; training data must be finite", i % per, i / per))
}

impl Dataset {
    /// What an input is fed with: the array of its name, or the only one, or `x`.
    pub fn feature(&self, input: &str) -> Option<&Feature> {
        let named = |name: &str| self.features.iter().find(|f| f.name == name);
        named(input).or(if self.features.len() == 1 { self.features.first() } else { named(FEATURES) })
    }

    /// Refuses features that do not fit: `inputs` are the model's, with the extents of one sample; `batch` samples must be
    /// there, and every value finite.
    ///
    /// # Errors
    /// Too few samples; an input without an array; the first of another width, or with a value that is not finite.
    pub fn check_features(&self, inputs: &[(String, Vec<usize>)], batch: usize) -> Result<()> {
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
        let named: Vec<&str> = inputs.iter().map(|i| i.0.as_str()).collect();
        for (name, dims) in inputs {
            // One array cannot feed two inputs.
            let feature = self.feature(name).filter(|f| inputs.len() == 1 || f.name == *name).ok_or_else(|| {
                let has: Vec<&str> = self.features.iter().map(|f| f.name.as_str()).collect();
                Error::data(
                    &self.path,
                    format!(
                        "no array is named `{name}`: the model has the inputs {}, and an .npz file feeds each from the array of its name; this one has {}",
                        named.join(", "),
                        has.join(", ")
                    ),
                )
            })?;
            let want: usize = dims.iter().product();
            if want != feature.width() {
                return Err(Error::data(
                    &self.path,
                    format!(
                        "a sample has {} features ({:?}), but the model's input {}takes {want} ({dims:?})",
                        feature.width(),
                        feature.dims,
                        if inputs.len() == 1 { String::new() } else { format!("`{name}` ") }
                    ),
                ));
            }
            let what = if inputs.len() == 1 { "feature".to_owned() } else { format!("feature of `{name}`") };
            if let Some(fault) = non_finite(&what, &feature.values, self.samples) {
                return Err(Error::data(&self.path, fault));
            }
        }
        Ok(())
    }

    /// Refuses labels that do not fit: `classes` are how many the model tells apart, and the label that does not count;
    /// `targets` is how many numbers a sample's label holds.
    ///
    /// # Errors
    /// The first sample of a class that the model does not know, another number of labels, numbers in place of classes.
    pub fn check_labels(&self, classes: Option<(usize, Option<i64>)>, targets: usize) -> Result<()> {
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
                    n.saturating_sub(1)
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

/// The arrays of a file that are not labels.
fn read_features(path: &Path) -> Result<Vec<(String, Array)>> {
    if !is(path, "npz") {
        return Ok(vec![(FEATURES.to_owned(), read_array(path, FEATURES)?)]);
    }
    let mut names = numpy::names(path)?;
    names.retain(|n| n != LABELS);
    if !names.iter().any(|n| n == FEATURES) {
        if names.is_empty() {
            return Err(Error::data(path, "there are no arrays of features: name one `x`, or as the model's inputs"));
        }
        return names.into_iter().map(|n| Ok((n.clone(), numpy::read_npz(path, &n)?))).collect();
    }
    // Beside `x` a file may hold more than features, such as the names of classes.
    let x = numpy::read_npz(path, FEATURES)?;
    names.retain(|n| n != FEATURES);
    let others = names.into_iter().filter_map(|n| Some((n.clone(), numpy::read_npz(path, &n).ok()?)));
    let others: Vec<_> = others.filter(|(_, a)| a.dims.first() == x.dims.first()).collect();
    Ok([(FEATURES.to_owned(), x)].into_iter().chain(others).collect())
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
