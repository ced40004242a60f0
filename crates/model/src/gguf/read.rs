//! Reads little-endian numbers and strings from bytes that nobody vouches for.

use super::GgufError;

/// A position in the bytes of a file. Every read checks what is left first.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    data: &'a [u8],
    pos: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self { data, pos: 0 }
    }

    /// Offset of the next byte from the start of the file.
    pub(super) fn pos(&self) -> usize {
        self.pos
    }

    /// Bytes between the position and the end of the file.
    pub(super) fn left(&self) -> usize {
        self.data.len() - self.pos
    }

    /// The next `len` bytes. `what` names them in the error.
    pub(super) fn bytes(&mut self, len: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let taken = usize::try_from(len).ok().and_then(|len| self.data[self.pos..].get(..len));
        let Some(taken) = taken else {
            return Err(GgufError::TooShort {
                what,
                offset: self.pos as u64,
                needed: len,
                left: self.left() as u64,
            });
        };
        self.pos += taken.len();
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], GgufError> {
        let bytes = self.bytes(N as u64, what)?;
        Ok(bytes.try_into().expect("`bytes` returns as many bytes as were asked for"))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `min_bytes` each, so that no count can promise more
    /// than the file holds.
    pub(super) fn count(
        &mut self,
        min_bytes: u64,
        limit: u64,
        what: &'static str,
    ) -> Result<usize, GgufError> {
        let count = self.u64(what)?;
        if count > limit {
            return Err(GgufError::TooMany { what, count, limit });
        }
        check_fits(count, min_bytes, self, what)
    }

    /// A string: its length as u64, then its bytes, which need not be UTF-8.
    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a [u8], GgufError> {
        let len = self.u64(what)?;
        self.bytes(len, what)
    }
}

fn check_fits(
    count: u64,
    min_bytes: u64,
    reader: &Reader<'_>,
    what: &'static str,
) -> Result<usize, GgufError> {
    let left = reader.left() as u64;
    let needed = count.checked_mul(min_bytes);
    if needed.is_none_or(|needed| needed > left) {
        return Err(GgufError::TooShort {
            what,
            offset: reader.pos() as u64,
            needed: needed.unwrap_or(u64::MAX),
            left,
        });
    }
    Ok(usize::try_from(count).expect("a count of bytes that are in memory fits in usize"))
}
