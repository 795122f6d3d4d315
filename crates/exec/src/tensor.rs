//! Dense host tensors: what goes into a function and comes out of it.

use anemone_mil::ir::Dtype;
use half::f16;

/// Elements in memory, one variant a storage type. Integer widths that MIL computes with are kept as they are.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// fp16.
    F16(Vec<f16>),
    /// fp32.
    F32(Vec<f32>),
    /// int32.
    I32(Vec<i32>),
    /// int16.
    I16(Vec<i16>),
    /// uint16.
    U16(Vec<u16>),
    /// int8.
    I8(Vec<i8>),
    /// uint8.
    U8(Vec<u8>),
    /// bool.
    Bool(Vec<bool>),
}

/// A dense, row-major tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

impl Data {
    /// The element type.
    pub fn dtype(&self) -> Dtype {
        match self {
            Data::F16(_) => Dtype::F16,
            Data::F32(_) => Dtype::F32,
            Data::I32(_) => Dtype::I32,
            Data::I16(_) => Dtype::I16,
            Data::U16(_) => Dtype::U16,
            Data::I8(_) => Dtype::I8,
            Data::U8(_) => Dtype::U8,
            Data::Bool(_) => Dtype::Bool,
        }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::F16(v) => v.len(),
            Data::F32(v) => v.len(),
            Data::I32(v) => v.len(),
            Data::I16(v) => v.len(),
            Data::U16(v) => v.len(),
            Data::I8(v) => v.len(),
            Data::U8(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Tensor {
    /// A tensor of that shape.
    ///
    /// # Panics
    /// If the data has not as many elements as the shape says.
    pub fn new(shape: &[usize], data: Data) -> Self {
        assert_eq!(
            shape.iter().product::<usize>(),
            data.len(),
            "tensor of shape {shape:?} from {} elements",
            data.len()
        );
        Self { shape: shape.to_vec(), data }
    }

    /// A float tensor in the working type `float` (fp16 or fp32), from f32 values.
    ///
    /// # Panics
    /// As [`new`](Self::new), or if `float` is neither.
    pub fn from_f32(shape: &[usize], values: Vec<f32>, float: Dtype) -> Self {
        let data = match float {
            Dtype::F32 => Data::F32(values),
            Dtype::F16 => Data::F16(values.iter().map(|&v| f16::from_f32(v)).collect()),
            other => panic!("{other} is not a working float type"),
        };
        Self::new(shape, data)
    }

    /// The shape, outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The elements, to be changed in place.
    pub fn data_mut(&mut self) -> &mut Data {
        &mut self.data
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.data.dtype()
    }

    /// Column `t` of `[1, width, T, 1]`, the elements of one token, widened to f32.
    ///
    /// # Panics
    /// If the elements are not of a working float type, or `row` is not as long as there are.
    pub fn column(&self, t: usize, row: &mut [f32]) {
        let tokens = self.shape[2];
        assert_eq!(row.len() * tokens, self.data.len(), "a row of {} from shape {:?}", row.len(), self.shape);
        match &self.data {
            Data::F32(v) if tokens == 1 => row.copy_from_slice(v),
            Data::F32(v) => row.iter_mut().zip(v[t..].iter().step_by(tokens)).for_each(|(out, v)| *out = *v),
            Data::F16(v) => row.iter_mut().zip(v[t..].iter().step_by(tokens)).for_each(|(out, v)| *out = v.to_f32()),
            other => panic!("{} is not a working float type", other.dtype()),
        }
    }

    /// The elements widened to f32; integers and bools by value.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            Data::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Data::F32(v) => v.clone(),
            Data::I32(v) => v.iter().map(|&x| x as f32).collect(),
            Data::I16(v) => v.iter().map(|&x| f32::from(x)).collect(),
            Data::U16(v) => v.iter().map(|&x| f32::from(x)).collect(),
            Data::I8(v) => v.iter().map(|&x| f32::from(x)).collect(),
            Data::U8(v) => v.iter().map(|&x| f32::from(x)).collect(),
            Data::Bool(v) => v.iter().map(|&x| f32::from(u8::from(x))).collect(),
        }
    }
}
