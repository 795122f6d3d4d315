//! What kernels may use while they run: memory and threads.

use std::collections::BTreeMap;

use super::Fault;
use super::value::{Buf, Elements, Value, elements};

/// Vectors that values have left behind, by length, and the count of bytes in use.
///
/// A program asks for the same lengths at every call, so after the first one nothing is allocated. The pool belongs to a
/// state: two conversations never wait for each other's memory.
#[derive(Default)]
pub struct Pool {
    floats: BTreeMap<usize, Vec<Vec<f32>>>,
    ints: BTreeMap<usize, Vec<Vec<i32>>>,
    kept: usize,
}

/// The pool, a limit on what may be taken from it, and the number of threads.
pub struct Context<'a> {
    pool: &'a mut Pool,
    limit: usize,
    live: usize,
    threads: usize,
}

impl<'a> Context<'a> {
    /// A context for one run that may hold `limit` bytes of intermediate values.
    pub fn new(pool: &'a mut Pool, limit: usize, threads: usize) -> Self {
        Self { pool, limit, live: 0, threads }
    }

    /// How many threads a kernel may use.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// A vector of that many elements with unspecified contents.
    pub fn take<T: Element>(&mut self, n: usize) -> Result<Vec<T>, Fault> {
        let bytes = n.checked_mul(size_of::<T>()).filter(|&b| b <= self.limit - self.live.min(self.limit));
        let Some(bytes) = bytes else {
            return Err(Fault::new(format!(
                "{n} more elements would take this call beyond its memory limit of {} bytes",
                self.limit
            )));
        };
        self.live += bytes;
        if let Some(v) = T::shelf(self.pool).get_mut(&n).and_then(Vec::pop) {
            self.pool.kept -= bytes;
            return Ok(v);
        }
        if self.pool.kept + self.live > self.limit {
            *self.pool = Pool::default();
        }
        Ok(vec![T::default(); n])
    }

    /// As [`take`](Self::take), for a shape.
    pub fn take_shape<T: Element>(&mut self, shape: &[usize]) -> Result<Vec<T>, Fault> {
        self.check(shape)?;
        self.take(elements(shape)?)
    }

    /// Refuses a shape whose dimensions, empty ones apart, exceed the limit: kernels loop over the others.
    pub fn check(&self, shape: &[usize]) -> Result<(), Fault> {
        elements(shape)?;
        if shape.iter().map(|&d| d.max(1)).product::<usize>() > self.limit {
            return Err(Fault::new(format!("shape {shape:?} exceeds the memory limit of {} bytes", self.limit)));
        }
        Ok(())
    }

    /// Takes a vector back.
    pub fn give<T: Element>(&mut self, v: Vec<T>) {
        let bytes = v.len() * size_of::<T>();
        self.live = self.live.saturating_sub(bytes);
        self.pool.kept += bytes;
        T::shelf(self.pool).entry(v.len()).or_default().push(v);
    }

    /// Takes back the memory of a value that is not needed any more, if nobody else sees it.
    pub fn recycle(&mut self, value: Value) {
        match value.data {
            Elements::Floats(b) => b.into_vec().map_or((), |v| self.give(v)),
            Elements::Ints(b) => b.into_vec().map_or((), |v| self.give(v)),
            Elements::Stored(_) => {}
        }
    }
}

/// The two working element types, so that kernels that only move data are written once.
pub trait Element: Copy + Default + 'static {
    /// Where the pool keeps vectors of this type.
    #[doc(hidden)]
    fn shelf(pool: &mut Pool) -> &mut BTreeMap<usize, Vec<Vec<Self>>>;
    /// The elements of a value of this type.
    fn of(value: &Value) -> Result<&[Self], Fault>;
    /// The buffer of a value of this type.
    fn buf(value: &mut Value) -> Option<&mut Buf<Self>>;
    /// Elements of this type.
    fn wrap(v: Vec<Self>) -> Elements;
}

impl Element for f32 {
    fn shelf(pool: &mut Pool) -> &mut BTreeMap<usize, Vec<Vec<f32>>> {
        &mut pool.floats
    }
    fn of(value: &Value) -> Result<&[f32], Fault> {
        value.f32s()
    }
    fn buf(value: &mut Value) -> Option<&mut Buf<f32>> {
        match &mut value.data {
            Elements::Floats(b) => Some(b),
            _ => None,
        }
    }
    fn wrap(v: Vec<f32>) -> Elements {
        Elements::Floats(v.into())
    }
}

impl Element for i32 {
    fn shelf(pool: &mut Pool) -> &mut BTreeMap<usize, Vec<Vec<i32>>> {
        &mut pool.ints
    }
    fn of(value: &Value) -> Result<&[i32], Fault> {
        value.i32s()
    }
    fn buf(value: &mut Value) -> Option<&mut Buf<i32>> {
        match &mut value.data {
            Elements::Ints(b) => Some(b),
            _ => None,
        }
    }
    fn wrap(v: Vec<i32>) -> Elements {
        Elements::Ints(v.into())
    }
}
