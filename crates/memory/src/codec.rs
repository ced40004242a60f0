//! Little-endian numbers, texts and lists in records; reading never trusts a length.

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

    /// Succeeds if nothing is left.
    pub fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
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
}
