//! The numbers of a cache: keys and values of one KV head.

use everstream_kernels::{
    Attention, Biases, Element, Isa, Rotation, Span, attend, attend_measured, key_tiles_len,
    read_key, widen, write_key,
};
use half::f16;

use crate::Slot;

/// How keys and values are stored; sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// 4 bytes a number.
    F32,
    /// 2 bytes a number.
    #[default]
    F16,
}

impl KvType {
    /// Bytes of a number.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// Query heads that share a KV head, or some of them.
#[derive(Clone, Copy, Debug)]
pub struct QueryHeads<'a> {
    /// Which of all that share it is the first.
    pub first: usize,
    /// The two forms of each, as [`Attention::queries`].
    pub forms: [&'a [f32]; 2],
    /// Whether this is the only token of its sequence in a pass, so that no other has just brought keys
    /// and values near: see [`Attention::are_cold`].
    pub is_alone: bool,
}

/// Keys and values of one KV head of one layer, for all slots.
#[derive(Clone, Debug)]
pub struct HeadBuffers {
    head_dim: usize,
    /// Slots before this one have no un-rotated key.
    first_raw: usize,
    store: Store,
    /// Slot of the first cluster, and how many there may be.
    clusters: (usize, usize),
    /// What is added to the scores of clusters: `[n_query_heads, n_clusters]`.
    biases: Vec<f32>,
}

#[derive(Clone, Debug)]
enum Store {
    F32(Rows<f32>),
    F16(Rows<f16>),
}

#[derive(Clone, Debug)]
struct Rows<E> {
    /// Rotated keys in tiles: `[n_tiles, head_dim, 16]`.
    keys: Vec<E>,
    /// `[n_slots, head_dim]`
    values: Vec<E>,
    /// Keys before rotation: `[n_slots - first_raw, head_dim]`, or empty.
    raw: Vec<E>,
}

impl<E: Element> Rows<E> {
    fn new(n_slots: usize, n_raw: usize, head_dim: usize) -> Self {
        Self {
            keys: vec![E::default(); key_tiles_len(n_slots, head_dim)],
            values: vec![E::default(); n_slots * head_dim],
            raw: vec![E::default(); n_raw * head_dim],
        }
    }
}

/// Runs the same code on either element type.
macro_rules! on_rows {
    ($store:expr, $rows:ident => $body:expr) => {
        match $store {
            Store::F32($rows) => $body,
            Store::F16($rows) => $body,
        }
    };
}

impl HeadBuffers {
    /// Zeroed buffers; un-rotated keys for the slots from `first_raw` (`n_slots` for none).
    pub(crate) fn new(ty: KvType, n_slots: usize, first_raw: usize, head_dim: usize) -> Self {
        let n_raw = n_slots - first_raw;
        let store = match ty {
            KvType::F32 => Store::F32(Rows::new(n_slots, n_raw, head_dim)),
            KvType::F16 => Store::F16(Rows::new(n_slots, n_raw, head_dim)),
        };
        Self { head_dim, first_raw, store, clusters: (0, 0), biases: Vec::new() }
    }

    /// With clusters: the slot of the first, and how many there may be; `group` query heads share
    /// this KV head.
    pub(crate) fn with_clusters(self, clusters: (usize, usize), group: usize) -> Self {
        Self { clusters, biases: vec![0.0; clusters.1 * group], ..self }
    }

    pub(crate) fn cluster_biases_mut(&mut self) -> &mut [f32] {
        &mut self.biases
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Stores a token: its key before rotation (kept if this cache keeps them), its rotated key and
    /// its value, each `[head_dim]`.
    pub fn write(&mut self, slot: Slot, raw: &[f32], key: &[f32], value: &[f32]) {
        let (slot, dim) = (slot.0 as usize, self.head_dim);
        on_rows!(&mut self.store, rows => {
            write_key(&mut rows.keys, slot, key);
            Element::narrow(value, &mut rows.values[slot * dim..][..dim]);
            if let Some(row) = slot.checked_sub(self.first_raw)
                && let Some(to) = rows.raw.get_mut(row * dim..(row + 1) * dim)
            {
                Element::narrow(raw, to);
            }
        });
    }

    /// Rotates the key of a slot again, from its un-rotated form. `scratch` is `[2, head_dim]`.
    pub(crate) fn rotate_again(&mut self, slot: Slot, rotation: &Rotation, scratch: &mut [f32]) {
        let (slot, dim) = (slot.0 as usize, self.head_dim);
        let (raw, key) = scratch.split_at_mut(dim);
        on_rows!(&mut self.store, rows => {
            Element::widen(&rows.raw[(slot - self.first_raw) * dim..][..dim], raw);
            rotation.apply(raw, 1.0, key);
            write_key(&mut rows.keys, slot, key);
        });
    }

    /// Reads the un-rotated keys and the values of as many slots as there is room for, from `first` on:
    /// `[n_slots, head_dim]` each.
    pub(crate) fn read_raw_rows(
        &self,
        isa: Isa,
        first: Slot,
        keys: &mut [f32],
        values: &mut [f32],
    ) {
        let (slot, dim) = (first.0 as usize, self.head_dim);
        on_rows!(&self.store, rows => {
            widen(isa, &rows.raw[(slot - self.first_raw) * dim..][..keys.len()], keys);
            widen(isa, &rows.values[slot * dim..][..values.len()], values);
        });
    }

    /// Reads the un-rotated key and the value of a slot.
    pub(crate) fn read_raw(&self, slot: Slot, key: &mut [f32], value: &mut [f32]) {
        let (slot, dim) = (slot.0 as usize, self.head_dim);
        on_rows!(&self.store, rows => {
            Element::widen(&rows.raw[(slot - self.first_raw) * dim..][..dim], key);
            Element::widen(&rows.values[slot * dim..][..dim], value);
        });
    }

    /// Reads the rotated key of a slot; for tests and inspection.
    pub fn read_key(&self, slot: Slot, key: &mut [f32]) {
        on_rows!(&self.store, rows => read_key(&rows.keys, slot.0 as usize, key));
    }

    /// Appends the numbers of a slot as they are stored, little-endian: rotated key, value, and the
    /// un-rotated key if there is one.
    pub(crate) fn save(&self, slot: Slot, out: &mut Vec<u8>) {
        let (slot, dim) = (slot.0 as usize, self.head_dim);
        let mut key = vec![0.0; dim];
        on_rows!(&self.store, rows => {
            read_key(&rows.keys, slot, &mut key);
            key.iter().for_each(|&number| Number::write(narrowed(&rows.keys, number), out));
            Number::write_all(&rows.values[slot * dim..][..dim], out);
            let raw = slot.checked_sub(self.first_raw).map(|row| row * dim..(row + 1) * dim);
            Number::write_all(raw.and_then(|range| rows.raw.get(range)).unwrap_or(&[]), out);
        });
    }

    /// Reads what [`save`](Self::save) wrote; `None` if `bytes` end too early.
    pub(crate) fn load(&mut self, slot: Slot, bytes: &mut &[u8]) -> Option<()> {
        let (slot, dim) = (slot.0 as usize, self.head_dim);
        let mut key = vec![0.0; dim];
        on_rows!(&mut self.store, rows => {
            for number in &mut key {
                *number = widened(&rows.keys, Number::read(bytes)?);
            }
            write_key(&mut rows.keys, slot, &key);
            Number::read_all(bytes, &mut rows.values[slot * dim..][..dim])?;
            let raw = slot.checked_sub(self.first_raw).map(|row| row * dim..(row + 1) * dim);
            let raw = raw.and_then(|range| rows.raw.get_mut(range)).unwrap_or(&mut []);
            Number::read_all(bytes, raw)?;
        });
        Some(())
    }

    /// Attention of query heads that share this KV head; see [`everstream_kernels::attend`].
    pub fn attend(
        &self,
        isa: Isa,
        spans: &[Span],
        score_cap: Option<f32>,
        heads: QueryHeads<'_>,
        scores: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let (first, len) = self.clusters;
        let n_heads = out.len() / self.head_dim;
        let values = &self.biases[heads.first * len..][..n_heads * len];
        let biases = (len > 0).then_some(Biases { first, len, values });
        on_rows!(&self.store, rows => {
            let (keys, values, head_dim) = (&rows.keys[..], &rows.values[..], self.head_dim);
            let (queries, are_cold) = (heads.forms, heads.is_alone);
            let attention =
                Attention { keys, values, head_dim, spans, score_cap, biases, are_cold, queries };
            attend(isa, &attention, scores, out);
        });
    }

    /// Attention of all query heads that share this KV head to a part of what they see, with other biases;
    /// see [`everstream_kernels::attend_measured`].
    #[expect(clippy::too_many_arguments, reason = "as `attend`, with what it writes")]
    pub(crate) fn attend_part(
        &self,
        isa: Isa,
        spans: &[Span],
        score_cap: Option<f32>,
        biases: Option<Biases<'_>>,
        queries: [&[f32]; 2],
        scores: &mut Vec<f32>,
        out: &mut [f32],
        log_masses: &mut [f32],
    ) {
        on_rows!(&self.store, rows => {
            let (keys, values, head_dim) = (&rows.keys[..], &rows.values[..], self.head_dim);
            let are_cold = false;
            let attention =
                Attention { keys, values, head_dim, spans, score_cap, biases, are_cold, queries };
            attend_measured(isa, &attention, scores, out, log_masses);
        });
    }

    /// Bytes of rotated keys and values, and of un-rotated keys.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        match &self.store {
            Store::F32(rows) => ((rows.keys.len() + rows.values.len()) * 4, rows.raw.len() * 4),
            Store::F16(rows) => ((rows.keys.len() + rows.values.len()) * 2, rows.raw.len() * 2),
        }
    }
}

/// A stored number as bytes, little-endian.
pub(crate) trait Number: Copy {
    fn write(self, out: &mut Vec<u8>);
    fn read(bytes: &mut &[u8]) -> Option<Self>;

    fn write_all(numbers: &[Self], out: &mut Vec<u8>) {
        numbers.iter().for_each(|number| number.write(out));
    }

    /// Reads as many as there is room for.
    fn read_all(bytes: &mut &[u8], numbers: &mut [Self]) -> Option<()> {
        for number in numbers {
            *number = Self::read(bytes)?;
        }
        Some(())
    }
}

/// All of them are written by the same two lines.
macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Number for $number {
            fn write(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn read(bytes: &mut &[u8]) -> Option<Self> {
                let (number, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(Self::from_le_bytes(*number))
            }
        }
    )*};
}

numbers!(u64, f32, f16);

/// A number of the buffer's type; exact, since it was one before it was widened.
fn narrowed<E: Element>(_buffer: &[E], number: f32) -> E {
    E::from_f32(number)
}

fn widened<E: Element>(_buffer: &[E], number: E) -> f32 {
    number.to_f32()
}
