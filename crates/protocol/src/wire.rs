//! Bounds-checked reading of Kafka's primitive types, and the few writers that hand-written encoders need.

/// The layout of a message is not what its API and version say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A length or a fixed field reaches past the end.
    #[error("message ends before its layout does")]
    Short,
    /// A negative length where null is not allowed, or below -1.
    #[error("invalid length {0}")]
    Length(i64),
    /// An array announces more elements than the bytes left can hold.
    #[error("array of {count} elements in {left_bytes} bytes")]
    Count {
        /// Elements announced.
        count: u64,
        /// Bytes left in the frame.
        left_bytes: usize,
    },
    /// A varint of more than 32 (or 64) bits.
    #[error("varint too long")]
    VarInt,
    /// A string that is not UTF-8.
    #[error("string is not UTF-8")]
    Utf8,
    /// A tag that this version does not allow, or whose content does not fill its length.
    #[error("invalid tagged field {0}")]
    Tag(u32),
    /// Decoding would allocate more than [`crate::request::MAX_DECODED_BYTES`].
    #[error("decoding needs more than {0} bytes of memory")]
    TooCostly(usize),
}

/// A cursor over a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    pub(crate) fn at(bytes: &'a [u8], at: usize) -> Self {
        Reader { bytes, at: at.min(bytes.len()) }
    }

    /// Bytes consumed so far.
    #[inline]
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    #[inline]
    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    #[inline]
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        if n > self.left() {
            return Err(Malformed::Short);
        }
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn i16(&mut self) -> Result<i16, Malformed> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    pub(crate) fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub(crate) fn uuid(&mut self) -> Result<uuid::Uuid, Malformed> {
        Ok(uuid::Uuid::from_bytes(self.array()?))
    }

    #[inline]
    pub(crate) fn uvarint(&mut self) -> Result<u32, Malformed> {
        // Nearly all of them are one byte.
        match self.bytes.get(self.at) {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(u32::from(byte))
            }
            _ => self.long_uvarint(),
        }
    }

    fn long_uvarint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0u32;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.u8()?;
            if shift == 28 && byte > 0x0f {
                return Err(Malformed::VarInt);
            }
            value |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        Ok(value)
    }

    /// Zigzag varint, as inside record batches.
    #[inline]
    pub(crate) fn varint(&mut self) -> Result<i32, Malformed> {
        let raw = self.uvarint()?;
        Ok(((raw >> 1) as i32) ^ -((raw & 1) as i32))
    }

    /// Zigzag varlong, as inside record batches.
    #[inline]
    pub(crate) fn varlong(&mut self) -> Result<i64, Malformed> {
        match self.bytes.get(self.at) {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(i64::from(byte >> 1) ^ -i64::from(byte & 1))
            }
            _ => self.long_varlong(),
        }
    }

    fn long_varlong(&mut self) -> Result<i64, Malformed> {
        let mut value = 0u64;
        for index in 0..10 {
            let byte = self.u8()?;
            if index == 9 && byte > 0x01 {
                return Err(Malformed::VarInt);
            }
            value |= u64::from(byte & 0x7f) << (index * 7);
            if byte < 0x80 {
                break;
            }
        }
        Ok(((value >> 1) as i64) ^ -((value & 1) as i64))
    }

    /// Length of a string, bytes or array field; `None` is null. `wide` picks 4 over 2 bytes when not compact.
    pub(crate) fn length(&mut self, compact: bool, wide: bool) -> Result<Option<usize>, Malformed> {
        let n = if compact {
            i64::from(self.uvarint()?) - 1
        } else if wide {
            i64::from(self.i32()?)
        } else {
            i64::from(self.i16()?)
        };
        match n {
            -1 => Ok(None),
            n => usize::try_from(n).map(Some).map_err(|_| Malformed::Length(n)),
        }
    }

    pub(crate) fn string(&mut self, compact: bool) -> Result<Option<&'a str>, Malformed> {
        let Some(n) = self.length(compact, false)? else { return Ok(None) };
        std::str::from_utf8(self.take(n)?).map(Some).map_err(|_| Malformed::Utf8)
    }

    /// The content of a tagged field: its length and then that many bytes.
    pub(crate) fn take_len(&mut self) -> Result<&'a [u8], Malformed> {
        let n = self.uvarint()? as usize;
        self.take(n)
    }

    /// A tag section of which no tag is known.
    pub(crate) fn skip_tags(&mut self) -> Result<(), Malformed> {
        for _ in 0..self.uvarint()? {
            self.uvarint()?;
            self.take_len()?;
        }
        Ok(())
    }
}

pub(crate) fn put_uvarint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_varint(out: &mut Vec<u8>, value: i32) {
    put_uvarint(out, ((value << 1) ^ (value >> 31)) as u32);
}

pub(crate) fn put_varlong(out: &mut Vec<u8>, value: i64) {
    let mut raw = ((value << 1) ^ (value >> 63)) as u64;
    while raw >= 0x80 {
        out.push(raw as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

/// Bytes of `value` as an unsigned varint.
pub(crate) const fn uvarint_len(value: u32) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        0x20_0000..=0xfff_ffff => 4,
        _ => 5,
    }
}

/// Bytes of `value` as a zigzag varlong.
pub(crate) const fn varlong_len(value: i64) -> usize {
    let raw = ((value << 1) ^ (value >> 63)) as u64;
    let bits = 64 - (raw | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn overlong_varints_are_refused() {
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x0f]).uvarint(), Ok(u32::MAX));
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x10]).uvarint(), Err(Malformed::VarInt));
        assert_eq!(Reader::new(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x01]).uvarint(), Err(Malformed::VarInt));
        assert_eq!(Reader::new(&[0x80]).uvarint(), Err(Malformed::Short));
        assert_eq!(Reader::new(&[0xff; 10]).varlong(), Err(Malformed::VarInt));
    }

    proptest! {
        #[test]
        fn varints_round_trip(a: u32, b: i32, c: i64) {
            let mut out = Vec::new();
            put_uvarint(&mut out, a);
            prop_assert_eq!(out.len(), uvarint_len(a));
            put_varint(&mut out, b);
            let before = out.len();
            put_varlong(&mut out, c);
            prop_assert_eq!(out.len() - before, varlong_len(c));
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.uvarint(), Ok(a));
            prop_assert_eq!(reader.varint(), Ok(b));
            prop_assert_eq!(reader.varlong(), Ok(c));
            prop_assert_eq!(reader.left(), 0);
        }
    }
}
