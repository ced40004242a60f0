//! Little-endian numbers, texts and lists in records; reading never trusts a length.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::block::{Role, Source};
use crate::kv::KvType;

/// Nanoseconds in a second.
const NANOS: i64 = 1_000_000_000;

/// Appends values to bytes.
#[derive(Debug, Default)]
pub struct Encoder(pub Vec<u8>);

impl Encoder {
    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Four bytes.
    pub fn f32(&mut self, value: f32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A length in four bytes, and the bytes.
    ///
    /// # Panics
    ///
    /// If there are 4 GiB of them or more.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).expect("fields are below 4 GiB"));
        self.0.extend_from_slice(bytes);
    }

    /// A length in four bytes, and four bytes for each number.
    ///
    /// # Panics
    ///
    /// If there are 2^32 of them or more.
    pub fn u32s(&mut self, numbers: &[u32]) {
        self.u32(u32::try_from(numbers.len()).expect("lists are below 2^32 entries"));
        numbers.iter().for_each(|&number| self.u32(number));
    }

    /// A length in four bytes, and four bytes for each number.
    ///
    /// # Panics
    ///
    /// If there are 2^32 of them or more.
    pub fn f32s(&mut self, numbers: &[f32]) {
        self.u32(u32::try_from(numbers.len()).expect("lists are below 2^32 entries"));
        numbers.iter().for_each(|&number| self.f32(number));
    }

    /// One byte: its place among all roles.
    pub fn role(&mut self, role: Role) {
        self.place(&Role::ALL, &role);
    }

    /// One byte: its place among all types.
    pub fn kv_type(&mut self, kv_type: KvType) {
        self.place(&KvType::ALL, &kv_type);
    }

    /// Eight bytes: signed nanoseconds since 1970. A time beyond the years 1678 to 2262 becomes the
    /// nearest of them.
    pub fn time(&mut self, time: SystemTime) {
        self.i64(nanos(time));
    }

    /// 0 for none; 1, the line and the file's name.
    pub fn source(&mut self, source: Option<&Source>) {
        self.u8(u8::from(source.is_some()));
        if let Some(source) = source {
            self.u64(source.line);
            self.bytes(source.file.as_bytes());
        }
    }

    fn place<T: PartialEq>(&mut self, all: &[T], value: &T) {
        let place = all.iter().position(|other| other == value);
        self.u8(place.and_then(|place| u8::try_from(place).ok()).expect("it is one of all"));
    }
}

/// Takes values from the front of bytes; `None` where they end too early or are not what they
/// should be.
#[derive(Debug)]
pub struct Decoder<'a>(pub &'a [u8]);

impl<'a> Decoder<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Eight bytes.
    pub fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// Four bytes.
    pub fn f32(&mut self) -> Option<f32> {
        self.array().map(f32::from_le_bytes)
    }

    /// So many bytes.
    pub fn take(&mut self, n_bytes: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(n_bytes)?;
        self.0 = rest;
        Some(first)
    }

    /// As many bytes as a length in front of them says.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let n_bytes = self.u32()? as usize;
        self.take(n_bytes)
    }

    /// A text with its length in front.
    pub fn text(&mut self) -> Option<&'a str> {
        str::from_utf8(self.bytes()?).ok()
    }

    /// Numbers with their count in front.
    pub fn u32s(&mut self) -> Option<Vec<u32>> {
        let n = self.u32()? as usize;
        let bytes = self.take(n.checked_mul(4)?)?;
        Some(bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
    }

    /// Numbers with their count in front.
    pub fn f32s(&mut self) -> Option<Vec<f32>> {
        let n = self.u32()? as usize;
        let bytes = self.take(n.checked_mul(4)?)?;
        Some(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// A role.
    pub fn role(&mut self) -> Option<Role> {
        Role::ALL.get(usize::from(self.u8()?)).copied()
    }

    /// A type of keys and values.
    pub fn kv_type(&mut self) -> Option<KvType> {
        KvType::ALL.get(usize::from(self.u8()?)).copied()
    }

    /// A time.
    pub fn time(&mut self) -> Option<SystemTime> {
        time(self.i64()?)
    }

    /// A source, or that there is none.
    pub fn source(&mut self) -> Option<Option<Source>> {
        match self.u8()? {
            0 => Some(None),
            1 => Some(Some(Source { line: self.u64()?, file: Arc::from(self.text()?) })),
            _ => None,
        }
    }

    /// Succeeds if nothing is left.
    pub fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, std::ops::Neg::neg)
        }
    }
}

fn time(nanos: i64) -> Option<SystemTime> {
    let (seconds, rest) = (nanos.div_euclid(NANOS), nanos.rem_euclid(NANOS) as u32);
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    time?.checked_add(Duration::from_nanos(u64::from(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Values = ((u8, u32, u64, i64, f32), String, (Vec<u32>, Vec<f32>));

    fn read(bytes: &[u8]) -> Option<Values> {
        let mut from = Decoder(bytes);
        let numbers = (from.u8()?, from.u32()?, from.u64()?, from.i64()?, from.f32()?);
        let read = (numbers, from.text()?.to_owned(), (from.u32s()?, from.f32s()?));
        from.end()?;
        Some(read)
    }

    #[test]
    fn what_is_written_is_read_and_nothing_shorter_or_longer() {
        let mut to = Encoder::default();
        to.u8(1);
        to.u32(2);
        to.u64(u64::MAX);
        to.i64(-3);
        to.f32(-0.5);
        to.bytes("später".as_bytes());
        to.u32s(&[4, 5]);
        to.f32s(&[f32::INFINITY]);
        let lists = (vec![4, 5], vec![f32::INFINITY]);
        let expected = ((1, 2, u64::MAX, -3, -0.5), "später".to_owned(), lists);
        assert_eq!(read(&to.0), Some(expected));
        for len in 0..to.0.len() {
            assert_eq!(read(&to.0[..len]), None);
        }
        to.u8(0);
        assert_eq!(read(&to.0), None);
    }

    #[test]
    fn a_length_beyond_the_end_allocates_nothing() {
        let mut from = Decoder(&[0xff; 8]);
        assert_eq!(from.u32s(), None);
        assert_eq!(Decoder(&[0xff; 8]).bytes(), None);
    }

    #[test]
    fn times_of_any_age_keep_their_nanoseconds() {
        for n in [0, 1, -1, NANOS, -NANOS, 1_764_000_000 * NANOS + 5, i64::MAX, i64::MIN + 1] {
            assert_eq!(nanos(time(n).unwrap()), n);
        }
    }
}
