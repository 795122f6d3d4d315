//! Tensors from and to `.npz` files.
//!
//! A file's arrays are read by name and only where a port asks for them, with the port's element count as the bound: what a
//! header claims is checked before anything is allocated.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::path::Path;

use anemone_exec::{Data, Dtype, Tensor};
use anyhow::{Context, Result, bail};
use half::f16;
use npyz::npz::{NpzArchive, NpzWriter};
use npyz::{DType, NpyFile, Order, TypeChar, WriterBuilder};

/// An open `.npz`.
pub struct Npz {
    name: String,
    archive: NpzArchive<BufReader<File>>,
}

impl Npz {
    /// Opens a file.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let archive = NpzArchive::open(path).with_context(|| format!("{name}: not an .npz file"))?;
        Ok(Self { name, archive })
    }

    /// The names of its arrays.
    pub fn names(&self) -> Vec<String> {
        self.archive.array_names().map(str::to_owned).collect()
    }

    /// Reads an array as elements of `dtype`, refusing one of more than `limit` elements.
    pub fn read(&mut self, array: &str, dtype: Dtype, limit: usize) -> Result<Tensor> {
        let file = &self.name;
        let npy = self.archive.by_name(array).with_context(|| format!("{file}: array `{array}`"))?;
        let Some(npy) = npy else { bail!("{file}: has no array `{array}`") };
        read_array(npy, dtype, limit).with_context(|| format!("{file}: array `{array}`"))
    }
}

fn read_array<R: Read>(npy: NpyFile<R>, dtype: Dtype, limit: usize) -> Result<Tensor> {
    let shape: Vec<usize> = npy.shape().iter().map(|&n| usize::try_from(n)).collect::<Result<_, _>>()?;
    let elements = shape.iter().try_fold(1usize, |a, &b| a.checked_mul(b));
    match elements {
        Some(n) if n <= limit => {}
        _ => bail!("shape {shape:?} has more than the {limit} elements that fit here"),
    }
    if npy.order() != Order::C && shape.len() > 1 {
        bail!("is stored in Fortran order; save it with numpy.ascontiguousarray");
    }
    let DType::Plain(ty) = npy.dtype() else { bail!("is a structured array") };
    // Wide enough for every element type a port can have.
    let values: Vec<f64> = match (ty.type_char(), ty.size_field()) {
        (TypeChar::Float, 2) => npy.into_vec::<f16>()?.iter().map(|v| v.to_f64()).collect(),
        (TypeChar::Float, 4) => npy.into_vec::<f32>()?.into_iter().map(f64::from).collect(),
        (TypeChar::Float, 8) => npy.into_vec()?,
        (TypeChar::Int, 1) => npy.into_vec::<i8>()?.into_iter().map(f64::from).collect(),
        (TypeChar::Int, 2) => npy.into_vec::<i16>()?.into_iter().map(f64::from).collect(),
        (TypeChar::Int, 4) => npy.into_vec::<i32>()?.into_iter().map(f64::from).collect(),
        (TypeChar::Int, 8) => npy.into_vec::<i64>()?.into_iter().map(|v| v as f64).collect(),
        (TypeChar::Uint, 1) => npy.into_vec::<u8>()?.into_iter().map(f64::from).collect(),
        (TypeChar::Uint, 2) => npy.into_vec::<u16>()?.into_iter().map(f64::from).collect(),
        (TypeChar::Uint, 4) => npy.into_vec::<u32>()?.into_iter().map(f64::from).collect(),
        (TypeChar::Bool, 1) => npy.into_vec::<bool>()?.into_iter().map(|v| f64::from(u8::from(v))).collect(),
        _ => bail!("has element type {ty}, which no port takes"),
    };
    Ok(Tensor::new(&shape, convert(&values, dtype)?))
}

/// Elements as `dtype`; an integer that does not fit, or a fraction where an integer is asked for, is an error.
fn convert(values: &[f64], dtype: Dtype) -> Result<Data> {
    fn integers<T: TryFrom<i64>>(values: &[f64], dtype: Dtype) -> Result<Vec<T>> {
        let one = |&v: &f64| {
            let exact = Some(v as i64).filter(|&i| i as f64 == v).and_then(|i| T::try_from(i).ok());
            exact.with_context(|| format!("{v} is not an {dtype}"))
        };
        values.iter().map(one).collect()
    }
    Ok(match dtype {
        Dtype::F32 => Data::F32(values.iter().map(|&v| v as f32).collect()),
        Dtype::F16 => Data::F16(values.iter().map(|&v| f16::from_f64(v)).collect()),
        Dtype::I32 => Data::I32(integers(values, dtype)?),
        Dtype::I16 => Data::I16(integers(values, dtype)?),
        Dtype::U16 => Data::U16(integers(values, dtype)?),
        Dtype::I8 => Data::I8(integers(values, dtype)?),
        Dtype::U8 => Data::U8(integers(values, dtype)?),
        Dtype::Bool => Data::Bool(values.iter().map(|&v| v != 0.0).collect()),
        other => bail!("ports of type {other} are not supported"),
    })
}

/// Writes tensors under their names.
pub fn write(path: &Path, arrays: &[(&str, &Tensor)]) -> Result<()> {
    let run = || -> Result<()> {
        let mut npz = NpzWriter::new(BufWriter::new(File::create_new(path)?));
        for (name, tensor) in arrays {
            let shape: Vec<u64> = tensor.shape().iter().map(|&n| n as u64).collect();
            macro_rules! array {
                ($values:expr) => {{
                    let mut w = npz.array(name, Default::default())?.default_dtype().shape(&shape).begin_nd()?;
                    w.extend($values)?;
                    w.finish()?;
                }};
            }
            match tensor.data() {
                Data::F16(v) => array!(v),
                Data::F32(v) => array!(v),
                Data::I32(v) => array!(v),
                Data::I16(v) => array!(v),
                Data::U16(v) => array!(v),
                Data::I8(v) => array!(v),
                Data::U8(v) => array!(v),
                Data::Bool(v) => array!(v),
            }
        }
        Ok(())
    };
    run().with_context(|| path.display().to_string())
}
