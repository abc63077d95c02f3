//! Memory that a direct write can start from.
//!
//! What it owns: buffers whose start and capacity are multiples of [`ALIGN`], and a pool that keeps a bounded number of
//! bytes of returned ones.
//!
//! Invariants
//! 1. A buffer is in one hand only: an [`AlignedBuf`], the [`Bytes`] it was frozen into, or the pool.
//! 2. The pool keeps at most `kept_bytes_max` bytes. Taking never waits: beyond what is kept it allocates, and what
//!    comes back beyond the bound is freed. Who takes is bounded by its own permits.
//! 3. A fresh buffer is zeroed. One that was used before holds whatever was in it: clearing a megabyte that is about to
//!    be overwritten would cost another pass over memory, so who needs zeroes (a frame's padding) writes them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Alignment in bytes of every buffer's start and capacity; direct reads and writes want no more on any disk we know.
pub const ALIGN: usize = 4096;

/// Plain memory with one aligned window in it. Allocating `ALIGN` bytes too many and starting at the first aligned one
/// needs no unsafe code, and the surplus page is never touched.
struct Memory {
    bytes: Box<[u8]>,
    start: usize,
    capacity: usize,
}

impl Memory {
    fn new(capacity: usize) -> Self {
        let bytes = vec![0_u8; capacity + ALIGN].into_boxed_slice();
        let start = bytes.as_ptr().align_offset(ALIGN);
        // `align_offset` may give up (usize::MAX) by contract; for bytes it does so in constant evaluation only.
        assert!(start < ALIGN, "align_offset gave up on a byte pointer");
        Self { bytes, start, capacity }
    }

    fn window(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.capacity]
    }

    fn window_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.capacity]
    }
}

/// An aligned buffer of fixed capacity; derefs to all of it. Goes back to its pool when dropped.
pub struct AlignedBuf {
    /// `None` only while dropping.
    memory: Option<Memory>,
    pool: Option<Arc<Shared>>,
}

impl AlignedBuf {
    /// A zeroed buffer of at least `min_capacity` bytes that belongs to no pool.
    pub fn unpooled(min_capacity: usize) -> Self {
        Self { memory: Some(Memory::new(rounded(min_capacity))), pool: None }
    }

    /// Bytes it holds; a multiple of [`ALIGN`].
    pub fn capacity(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.capacity)
    }

    /// Shares the whole buffer read-only; the memory returns to its pool when the last slice is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// A buffer of at least `min_capacity` bytes from the same pool, holding the first `used` bytes of this one.
    #[must_use]
    pub fn grown(self, used: usize, min_capacity: usize) -> Self {
        let mut larger = match &self.pool {
            Some(shared) => shared.take(min_capacity),
            None => Self::unpooled(min_capacity),
        };
        larger[..used].copy_from_slice(&self[..used]);
        larger
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], Memory::window)
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut().map_or(&mut [], Memory::window_mut)
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let (Some(memory), Some(pool)) = (self.memory.take(), self.pool.take()) {
            pool.give_back(memory);
        }
    }
}

/// Buffers to reuse. A clone is the same pool.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    kept_bytes_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_capacity: BTreeMap<usize, Vec<Memory>>,
    bytes: usize,
    /// Bytes of buffers in other hands.
    out_bytes: usize,
}

impl BufferPool {
    /// A pool that keeps at most `kept_bytes_max` bytes of returned buffers.
    pub fn new(kept_bytes_max: usize) -> Self {
        Self { shared: Arc::new(Shared { kept_bytes_max, kept: Mutex::default() }) }
    }

    /// A buffer of at least `min_capacity` bytes (at most an eighth more when fresh, a quarter more when reused).
    pub fn take(&self, min_capacity: usize) -> AlignedBuf {
        self.shared.take(min_capacity)
    }

    /// Bytes kept for reuse.
    pub fn kept_bytes(&self) -> usize {
        self.shared.kept.lock().bytes
    }

    /// Bytes of this pool's buffers that are in use.
    pub fn out_bytes(&self) -> usize {
        self.shared.kept.lock().out_bytes
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.shared.kept.lock();
        f.debug_struct("BufferPool")
            .field("kept_bytes", &kept.bytes)
            .field("kept_bytes_max", &self.shared.kept_bytes_max)
            .field("out_bytes", &kept.out_bytes)
            .finish()
    }
}

impl Shared {
    fn take(self: &Arc<Self>, min_capacity: usize) -> AlignedBuf {
        let wanted = rounded(min_capacity);
        let reused = {
            let mut kept = self.kept.lock();
            let found = kept.take(wanted..=wanted + wanted / 4);
            kept.out_bytes += found.as_ref().map_or(wanted, |memory| memory.capacity);
            found
        };
        let memory = reused.unwrap_or_else(|| Memory::new(wanted));
        AlignedBuf { memory: Some(memory), pool: Some(Arc::clone(self)) }
    }

    fn give_back(&self, memory: Memory) {
        let surplus = {
            let mut kept = self.kept.lock();
            kept.out_bytes -= memory.capacity;
            if kept.bytes + memory.capacity <= self.kept_bytes_max {
                kept.bytes += memory.capacity;
                kept.by_capacity.entry(memory.capacity).or_default().push(memory);
                None
            } else {
                Some(memory)
            }
        };
        drop(surplus); // outside the lock: freeing a large buffer is a system call
    }
}

impl Kept {
    fn take(&mut self, capacities: std::ops::RangeInclusive<usize>) -> Option<Memory> {
        let (&capacity, same) = self.by_capacity.range_mut(capacities).next()?;
        let memory = same.pop()?;
        if same.is_empty() {
            self.by_capacity.remove(&capacity);
        }
        self.bytes -= capacity;
        Some(memory)
    }
}

/// Rounds up in steps of a sixteenth of the next power of two, so that near sizes share buffers.
fn rounded(min_capacity: usize) -> usize {
    let wanted = min_capacity.max(ALIGN);
    wanted.next_multiple_of((wanted.next_power_of_two() / 16).max(ALIGN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_and_capacity_are_aligned_and_fresh_memory_is_zeroed() {
        for want in [0, 1, 4095, 4096, 4097, 70_000, 1 << 20, (1 << 20) + 1] {
            let buf = AlignedBuf::unpooled(want);
            assert_eq!(buf.as_ptr() as usize % ALIGN, 0);
            assert_eq!(buf.capacity() % ALIGN, 0);
            assert!(buf.capacity() >= want && buf.capacity() <= want + want / 8 + ALIGN);
            assert!(buf.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn frozen_memory_returns_when_the_last_slice_is_dropped() {
        let pool = BufferPool::new(1 << 20);
        let mut buf = pool.take(10_000);
        buf[..3].copy_from_slice(b"abc");
        let address = buf.as_ptr();
        let capacity = buf.capacity();
        let all = buf.freeze();
        let slice = all.slice(1..3);
        drop(all);
        assert_eq!((&slice[..], pool.kept_bytes(), pool.out_bytes()), (&b"bc"[..], 0, capacity));
        drop(slice);
        assert_eq!((pool.kept_bytes(), pool.out_bytes()), (capacity, 0));
        assert_eq!(pool.take(10_000).as_ptr(), address);
    }

    #[test]
    fn keeps_no_more_than_its_bound_and_never_hands_a_giant_for_a_dwarf() {
        let pool = BufferPool::new(1 << 20);
        let large: Vec<_> = (0..3).map(|_| pool.take(512 << 10)).collect();
        assert_eq!(pool.out_bytes(), 3 * (512 << 10));
        drop(large);
        assert_eq!(pool.kept_bytes(), 1 << 20);
        assert_eq!(pool.take(4096).capacity(), 4096);
        assert_eq!(pool.take(450 << 10).capacity(), 512 << 10);
    }

    #[test]
    fn grown_keeps_what_was_written() {
        let pool = BufferPool::new(1 << 20);
        let mut buf = pool.take(4096);
        buf[..5].copy_from_slice(b"first");
        let buf = buf.grown(5, 9000);
        assert!(buf.capacity() >= 9000);
        assert_eq!(&buf[..5], b"first");
        assert_eq!(pool.kept_bytes(), 4096);
    }
}
