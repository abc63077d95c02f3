//! A message as a list of byte slices with a known total length, to be written without joining them.

use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes};

/// Pieces shorter than this are copied next to the head before them: an iovec and a reference count cost more.
const COPY_BELOW_BYTES: usize = 512;

/// An encoded message in pieces. It is a [`Buf`] with vectored chunks, so `write_all_buf` of a vectored writer sends it
/// as it is.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    parts: Vec<Bytes>,
    first: usize,
    len_bytes: usize,
}

impl Segments {
    /// Bytes that are left to be written; at first those of the whole message with its length.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// The pieces that are left, in order; none is empty.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts[self.first..]
    }

    /// The pieces as one buffer; copies unless there is only one.
    pub fn into_bytes(mut self) -> Bytes {
        let len_bytes = self.len_bytes;
        self.copy_to_bytes(len_bytes)
    }
}

impl From<Bytes> for Segments {
    fn from(bytes: Bytes) -> Self {
        let len_bytes = bytes.len();
        let parts = if bytes.is_empty() { Vec::new() } else { vec![bytes] };
        Segments { parts, first: 0, len_bytes }
    }
}

impl Buf for Segments {
    fn remaining(&self) -> usize {
        self.len_bytes
    }

    fn chunk(&self) -> &[u8] {
        self.parts.get(self.first).map_or(&[], |part| part)
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len_bytes, "advanced by {count} of {} bytes", self.len_bytes);
        self.len_bytes -= count;
        while count > 0 {
            let part = &mut self.parts[self.first];
            if count < part.len() {
                part.advance(count);
                return;
            }
            count -= part.len();
            // Let go of the memory behind a piece as soon as it is written.
            *part = Bytes::new();
            self.first += 1;
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, part) in slices.iter_mut().zip(self.parts()) {
            *slice = IoSlice::new(part);
            filled += 1;
        }
        filled
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        if let Some(part) = self.parts.get_mut(self.first)
            && len <= part.len()
        {
            let out = part.slice(..len);
            self.advance(len);
            return out;
        }
        let mut out = bytes::BytesMut::with_capacity(len);
        out.put(self.take(len));
        out.freeze()
    }
}

/// Builds a message: small things go into one arena, large slices stay where they are.
pub(crate) struct Builder {
    arena: Vec<u8>,
    /// A slice, and the length of the arena when it was put.
    slices: Vec<(usize, Bytes)>,
    slices_bytes: usize,
}

impl Builder {
    /// Begins with room for the frame's length.
    pub(crate) fn new(capacity: usize, slices: usize) -> Self {
        let mut arena = Vec::with_capacity(4 + capacity);
        arena.put_i32(0);
        Builder { arena, slices: Vec::with_capacity(slices), slices_bytes: 0 }
    }

    /// Where heads are written.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.arena
    }

    pub(crate) fn put_slice(&mut self, slice: Bytes) {
        if slice.len() < COPY_BELOW_BYTES {
            self.arena.extend_from_slice(&slice);
        } else {
            self.slices_bytes += slice.len();
            self.slices.push((self.arena.len(), slice));
        }
    }

    /// Writes the frame's length and cuts the arena up; `Err` holds a length that no frame can have.
    pub(crate) fn finish(mut self) -> Result<Segments, usize> {
        let len_bytes = self.arena.len() + self.slices_bytes;
        let frame_bytes = i32::try_from(len_bytes - 4).map_err(|_| len_bytes)?;
        self.arena[..4].copy_from_slice(&frame_bytes.to_be_bytes());
        let arena = Bytes::from(self.arena);
        let mut parts = Vec::with_capacity(self.slices.len() * 2 + 1);
        let mut from = 0;
        for (at, slice) in self.slices {
            if at > from {
                parts.push(arena.slice(from..at));
            }
            parts.push(slice);
            from = at;
        }
        if from < arena.len() {
            parts.push(arena.slice(from..));
        }
        Ok(Segments { parts, first: 0, len_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn is_a_buf(lens in prop::collection::vec(0usize..1500, 0..12), steps in prop::collection::vec(1usize..900, 1..40)) {
            let mut builder = Builder::new(0, 0);
            let mut expected = vec![0; 4];
            for (i, len) in lens.iter().enumerate() {
                let piece = vec![i as u8 + 1; *len];
                expected.extend_from_slice(&piece);
                if i % 3 == 0 { builder.out().extend_from_slice(&piece) } else { builder.put_slice(piece.into()) }
            }
            let length = expected.len() as i32 - 4;
            expected[..4].copy_from_slice(&length.to_be_bytes());
            let segments = builder.finish().unwrap();
            prop_assert_eq!(segments.len_bytes(), expected.len());
            prop_assert!(segments.parts().iter().all(|part| !part.is_empty()));
            prop_assert_eq!(segments.clone().into_bytes(), &expected[..]);

            // As a vectored writer takes it: some of the slices, then some bytes.
            let mut left = segments;
            let mut written = Vec::new();
            for step in steps.iter().cycle() {
                if !left.has_remaining() { break; }
                let mut slices = [IoSlice::new(&[]); 3];
                let filled = left.chunks_vectored(&mut slices);
                let joined: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
                let n = (*step).min(joined.len());
                prop_assert!(n > 0);
                written.extend_from_slice(&joined[..n]);
                left.advance(n);
            }
            prop_assert_eq!(written, expected);
        }
    }
}
