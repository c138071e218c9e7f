//! Sampling an image at positions that another tensor says (Jaderberg et al. 2015).

use super::Handler;
use crate::format::Format;
use crate::ir::{Binary, NodeId, Op, Unary};
use crate::model::onnx::node::{Import, Node};

pub const OPS: &[(&str, Handler)] = &[("GridSample", grid_sample)];

/// What lies outside an image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

/// An axis of the image, and how positions on it are meant.
#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    padding: Padding,
    /// −1 and 1 are the centres of the outermost pixels, not their edges.
    align: bool,
}

/// x: [n, c, h, w], positions: [n, h', w', 2] with (x, y) in −1 … 1; [n, c, h', w'].
fn grid_sample(n: &mut Node) -> Import<Vec<NodeId>> {
    let (x, grid) = (n.x(0)?, n.x(1)?);
    n.demand_rank(x, 4, "the image (volumes are not supported)")?;
    n.demand_rank(grid, 4, "the grid")?;
    let (mode, padding) = (n.word("mode", "linear"), n.word("padding_mode", "zeros"));
    let padding = match padding.as_str() {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection,
        other => return Err(format!("padding `{other}` is not supported")),
    };
    let (dims, g) = (n.dims(x), n.dims(grid));
    let [samples, channels, h, w] = dims[..] else { return Err("takes an image of rank 4".into()) };
    if g[0] != samples || g[3] != 2 || h * w == 0 {
        return Err(format!("a grid {g:?} does not fit the image {dims:?}"));
    }
    let align = n.flag("align_corners", false);
    let along = |n: &mut Node, part: usize, extent: usize| -> Import<NodeId> {
        let p = n.slice(grid, 3, part, part + 1)?;
        let p = n.reshape(p, &g[..3])?;
        Axis { extent, padding, align }.pixels(n, p)
    };
    let (column, row) = (along(n, 0, w)?, along(n, 1, h)?);
    // Pixels as rows of channels, those of all samples after each other.
    let rows = n.transpose(x, &[0, 2, 3, 1])?;
    let rows = n.reshape(rows, &[samples * h * w, channels])?;
    let image = Image { rows, dims: [samples, channels, h, w], padding };
    let sampled = match mode.as_str() {
        "nearest" => {
            let (c, r) = (n.un(Unary::Round, column)?, n.un(Unary::Round, row)?);
            image.at(n, r, c)?
        }
        "linear" | "bilinear" => image.blended(n, row, column)?,
        other => return Err(format!("mode `{other}` is not supported")),
    };
    Ok(vec![n.transpose(sampled, &[0, 3, 1, 2])?])
}

impl Axis {
    /// Positions in −1 … 1 as pixels, the first of which is 0.
    fn pixels(self, n: &mut Node, p: NodeId) -> Import<NodeId> {
        let extent = self.extent as f64;
        let p = n.with(Binary::Add, p, 1.0)?;
        let p = match self.align {
            true => n.with(Binary::Mul, p, (extent - 1.0) / 2.0)?,
            false => {
                let p = n.with(Binary::Mul, p, extent / 2.0)?;
                n.with(Binary::Sub, p, 0.5)?
            }
        };
        match self.padding {
            Padding::Zeros => Ok(p),
            Padding::Border => clamped(n, p, self.extent),
            Padding::Reflection => {
                let (low, high) = if self.align { (0.0, extent - 1.0) } else { (-0.5, extent - 0.5) };
                let p = reflected(n, p, low, high)?;
                clamped(n, p, self.extent)
            }
        }
    }
}

fn clamped(n: &mut Node, p: NodeId, extent: usize) -> Import<NodeId> {
    let p = n.with(Binary::Max, p, 0.0)?;
    n.with(Binary::Min, p, extent as f64 - 1.0)
}

/// Positions thrown back at both ends until they are inside: a triangle wave.
fn reflected(n: &mut Node, p: NodeId, low: f64, high: f64) -> Import<NodeId> {
    let span = high - low;
    if span <= 0.0 {
        return n.with(Binary::Mul, p, 0.0);
    }
    let from = n.with(Binary::Sub, p, low)?;
    let away = n.un(Unary::Abs, from)?;
    let turns = n.with(Binary::Div, away, 2.0 * span)?;
    let whole = n.un(Unary::Floor, turns)?;
    let whole = n.with(Binary::Mul, whole, 2.0 * span)?;
    let rest = n.bin(Binary::Sub, away, whole)?;
    let back = n.num_like(rest, 2.0 * span)?;
    let back = n.bin(Binary::Sub, back, rest)?;
    let inside = n.bin(Binary::Min, rest, back)?;
    n.with(Binary::Add, inside, low)
}

/// The image that is sampled.
struct Image {
    /// [n · h · w, c]
    rows: NodeId,
    /// n, c, h, w
    dims: [usize; 4],
    padding: Padding,
}

impl Image {
    /// The pixels at whole positions: [n, h', w', c].
    fn at(&self, n: &mut Node, row: NodeId, column: NodeId) -> Import<NodeId> {
        let [_, channels, h, w] = self.dims;
        let places = n.dims(row);
        let (r, c) = (clamped(n, row, h)?, clamped(n, column, w)?);
        let sample = n.positions(3, 0, places[0])?;
        let (r, c) = (n.convert(r, Format::I64)?, n.convert(c, Format::I64)?);
        let flat = n.with(Binary::Mul, sample, h as f64)?;
        let flat = n.bin(Binary::Add, flat, r)?;
        let flat = n.with(Binary::Mul, flat, w as f64)?;
        let flat = n.bin(Binary::Add, flat, c)?;
        let found = n.add(Op::Gather { axis: 0 }, &[self.rows, flat])?;
        if self.padding != Padding::Zeros {
            return Ok(found);
        }
        let mut inside = None;
        for (p, extent) in [(row, h), (column, w)] {
            let (low, high) = (n.with(Binary::Ge, p, 0.0)?, n.with(Binary::Le, p, extent as f64 - 1.0)?);
            for test in [low, high] {
                inside = Some(match inside {
                    None => test,
                    Some(all) => n.bin(Binary::And, all, test)?,
                });
            }
        }
        let inside = inside.ok_or("has no axes")?;
        let inside = n.reshape(inside, &[&places[..], &[1]].concat())?;
        let inside = n.broadcast(inside, &[&places[..], &[channels]].concat())?;
        let zero = n.num_like(found, 0.0)?;
        n.select(inside, found, zero)
    }

    /// Four neighbours, each by how near it is.
    fn blended(&self, n: &mut Node, row: NodeId, column: NodeId) -> Import<NodeId> {
        let (top, left) = (n.un(Unary::Floor, row)?, n.un(Unary::Floor, column)?);
        let (below, right) = (n.bin(Binary::Sub, row, top)?, n.bin(Binary::Sub, column, left)?);
        let places = [&n.dims(row)[..], &[1]].concat();
        let mut sum = None;
        for (down, across) in [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)] {
            let (r, c) = (n.with(Binary::Add, top, down)?, n.with(Binary::Add, left, across)?);
            let pixel = self.at(n, r, c)?;
            let weight = |n: &mut Node, part: NodeId, far: f64| match far {
                1.0 => Ok(part),
                _ => {
                    let one = n.num_like(part, 1.0)?;
                    n.bin(Binary::Sub, one, part)
                }
            };
            let (a, b) = (weight(n, below, down)?, weight(n, right, across)?);
            let both = n.bin(Binary::Mul, a, b)?;
            let both = n.reshape(both, &places)?;
            let part = n.bin(Binary::Mul, pixel, both)?;
            sum = Some(match sum {
                None => part,
                Some(all) => n.bin(Binary::Add, all, part)?,
            });
        }
        sum.ok_or_else(|| "has no neighbours".into())
    }
}
