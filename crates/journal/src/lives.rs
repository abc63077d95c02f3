//! The lives of a journal: which opening wrote from which position on.
//!
//! Why: when a torn end is cut at position P, whole frames of that write may lie behind P, and they are right in every
//! CRC. If the next life wrote a frame at P that ends exactly where such a leftover starts, a later recovery would take
//! the leftover for its successor. So each opening claims a new life, durably and before it writes anything, that begins
//! where the last one was cut. A frame is genuine only if the life it bears owned its position: leftovers bear a life
//! that ended at P. Two crashes in a row change nothing, because a life is claimed before it is used and no number is
//! used twice.
//!
//! The file also holds the journal's key, from which the frames' header CRCs start, and a position below which
//! everything was synced when it was written (at opening and at a clean close). It is replaced as one, and holds its
//! content twice, a block apart, so that one bad sector does not cost the journal.
//!
//! Layout (little-endian), each copy padded to blocks: magic [8] · version u32 · key u32 · synced u64 · count u32 ·
//! count * {life u64, start u64} · crc u32.

use crate::frame::BLOCK_BYTES;

/// Its name in the journal's directory.
pub(crate) const NAME: &str = "lives";

const MAGIC: &[u8; 8] = b"ISOBLIVE";
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 28;
const ENTRY_BYTES: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lives {
    pub(crate) key: u32,
    /// Everything below was synced when this was written.
    pub(crate) synced: u64,
    /// (life, its first position), both rising; empty before the first life.
    claims: Vec<(u64, u64)>,
}

impl Lives {
    pub(crate) fn new(key: u32) -> Self {
        Self { key, synced: 0, claims: Vec::new() }
    }

    /// Whether a frame of this life at this position is genuine.
    pub(crate) fn owns(&self, life: u64, position: u64) -> bool {
        let Ok(at) = self.claims.binary_search_by_key(&life, |claim| claim.0) else { return false };
        let end = self.claims.get(at + 1).map_or(u64::MAX, |next| next.1);
        (self.claims[at].1..end).contains(&position)
    }

    /// Where the newest life begins: nothing may be written below.
    pub(crate) fn last_start(&self) -> u64 {
        self.claims.last().map_or(0, |claim| claim.1)
    }

    /// The same with a new life from `start` on, everything below being synced, and without the lives that own nothing
    /// at or above `lowest`. Answers it and the new life.
    pub(crate) fn claimed(&self, start: u64, lowest: u64) -> (Self, u64) {
        let life = self.claims.last().map_or(1, |claim| claim.0 + 1);
        let mut claims: Vec<_> = self.claims.iter().copied().filter(|claim| claim.1 < start).collect();
        claims.push((life, start));
        let first = claims.iter().rposition(|claim| claim.1 <= lowest).unwrap_or(0);
        claims.drain(..first);
        (Self { key: self.key, synced: start, claims }, life)
    }

    /// The same after a clean end.
    pub(crate) fn ended(&self, synced: u64) -> Self {
        Self { synced, ..self.clone() }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut one = Vec::with_capacity(BLOCK_BYTES);
        one.extend_from_slice(MAGIC);
        one.extend_from_slice(&VERSION.to_le_bytes());
        one.extend_from_slice(&self.key.to_le_bytes());
        one.extend_from_slice(&self.synced.to_le_bytes());
        one.extend_from_slice(&(self.claims.len() as u32).to_le_bytes());
        for (life, start) in &self.claims {
            one.extend_from_slice(&life.to_le_bytes());
            one.extend_from_slice(&start.to_le_bytes());
        }
        one.extend_from_slice(&crc32c::crc32c(&one).to_le_bytes());
        one.resize(one.len().next_multiple_of(BLOCK_BYTES), 0);
        one.repeat(2)
    }

    /// `None` if both copies are damaged.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        Self::decode_one(first).or_else(|| Self::decode_one(second))
    }

    fn decode_one(bytes: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        if bytes.get(..8)? != MAGIC || u32_at(8)? != VERSION {
            return None;
        }
        let count = u32_at(24)? as usize;
        let end = FIXED_BYTES + count.checked_mul(ENTRY_BYTES)?;
        if crc32c::crc32c(bytes.get(..end)?) != u32_at(end)? {
            return None;
        }
        let claim = |at: usize| Some((u64_at(at)?, u64_at(at + 8)?));
        let claims: Vec<_> =
            (0..count).map(|i| claim(FIXED_BYTES + i * ENTRY_BYTES)).collect::<Option<_>>()?;
        if !claims.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1) {
            return None;
        }
        Some(Self { key: u32_at(12)?, synced: u64_at(16)?, claims })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_owns_what_lies_between_its_start_and_the_next() {
        let (lives, one) = Lives::new(9).claimed(0, 0);
        let (lives, two) = lives.claimed(100, 0);
        let (lives, three) = lives.claimed(100, 0);
        let (lives, four) = lives.claimed(250, 0);
        assert_eq!((one, two, three, four), (1, 2, 3, 4));
        assert!(lives.owns(one, 0) && lives.owns(one, 99) && !lives.owns(one, 100));
        assert!(!lives.owns(two, 100), "it left nothing behind, or its leftovers were cut");
        assert!(lives.owns(three, 100) && lives.owns(three, 249) && !lives.owns(three, 250));
        assert!(lives.owns(four, u64::MAX - 1) && !lives.owns(four, 249) && !lives.owns(5, 300));
        assert_eq!((lives.synced, lives.last_start()), (250, 250));
    }

    #[test]
    fn forgets_lives_below_the_lowest_segment_but_never_a_number() {
        let mut lives = Lives::new(9);
        for start in 0..10 {
            lives = lives.claimed(start * 10, 0).0;
        }
        let (lives, life) = lives.claimed(100, 55);
        assert_eq!(life, 11);
        assert!(!lives.owns(5, 45) && lives.owns(6, 55) && lives.owns(11, 100));
        assert_eq!(lives.claims.len(), 6);
    }

    #[test]
    fn reads_back_and_survives_the_loss_of_either_copy_but_not_of_both() {
        let (lives, _) = Lives::new(9).claimed(0, 0);
        let (lives, _) = lives.claimed(12_288, 0);
        let bytes = lives.encode();
        assert_eq!(Lives::decode(&bytes).as_ref(), Some(&lives));
        for at in 0..60 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(Lives::decode(&damaged).as_ref(), Some(&lives));
            damaged[at + BLOCK_BYTES] ^= 1;
            assert_eq!(Lives::decode(&damaged), None, "byte {at}");
        }
        for len in 0..128 {
            assert!(Lives::decode(&bytes[..len]).is_none());
        }
        // Found by tests/fuzz: what no life can have written is not believed under any sum.
        let disordered = Lives { claims: vec![(2, 0), (1, 4096)], ..lives };
        assert_eq!(Lives::decode(&disordered.encode()), None);
    }
}
