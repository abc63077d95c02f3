//! One simulated file: what programs see, and what is on stable storage.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::faults::{Rng, SimDiskStats};

const PAGE: usize = 4096;
/// What a real disk writes as one.
const SECTOR: usize = 512;

type Page = [u8; PAGE];

/// Pages that are missing read as zeroes.
pub(super) struct Inode {
    /// Its last name, for faults by path.
    pub(super) path: PathBuf,
    pub(super) handles: u64,
    len: u64,
    durable_len: u64,
    now: BTreeMap<u64, Arc<Page>>,
    durable: BTreeMap<u64, Arc<Page>>,
    /// Written since the last sync, good or bad.
    dirty: BTreeSet<u64>,
}

impl Inode {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            handles: 0,
            len: 0,
            durable_len: 0,
            now: BTreeMap::new(),
            durable: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn grow(&mut self, len: u64) {
        self.len = self.len.max(len);
    }

    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        self.grow(offset + bytes.len() as u64);
        let mut at = offset;
        let mut left = bytes;
        while !left.is_empty() {
            let (index, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let (part, rest) = left.split_at(left.len().min(PAGE - within));
            let missing = !self.now.contains_key(&index) && !self.durable.contains_key(&index);
            if !(missing && part.iter().all(|&byte| byte == 0)) {
                let page = self.now.entry(index).or_insert_with(|| Arc::new([0; PAGE]));
                Arc::make_mut(page)[within..within + part.len()].copy_from_slice(part);
                self.dirty.insert(index);
            }
            at += part.len() as u64;
            left = rest;
        }
    }

    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if offset + buf.len() as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut filled = 0;
        while filled < buf.len() {
            let at = offset + filled as u64;
            let (index, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let count = (buf.len() - filled).min(PAGE - within);
            let part = &mut buf[filled..filled + count];
            match self.now.get(&index) {
                Some(page) => part.copy_from_slice(&page[within..within + count]),
                None => part.fill(0),
            }
            filled += count;
        }
        Ok(())
    }

    pub(super) fn sync(&mut self) {
        self.durable_len = self.len;
        for index in std::mem::take(&mut self.dirty) {
            self.persist(index);
        }
    }

    /// Any part of the dirty pages got through; none is dirty any more.
    pub(super) fn sync_failed(&mut self, rng: &mut Rng) {
        if rng.chance(1, 2) {
            self.durable_len = self.len;
        }
        for index in std::mem::take(&mut self.dirty) {
            if rng.chance(1, 2) {
                self.persist(index);
            }
        }
    }

    fn persist(&mut self, index: u64) {
        if let Some(page) = self.now.get(&index) {
            self.durable.insert(index, Arc::clone(page));
        }
    }

    pub(super) fn crash(&mut self, rng: &mut Rng, stats: &mut SimDiskStats) {
        self.handles = 0;
        if self.len != self.durable_len && rng.chance(1, 2) {
            self.durable_len = self.len;
        }
        for index in std::mem::take(&mut self.dirty) {
            match rng.below(4) {
                0 => self.persist(index),
                1 => stats.dropped_pages += 1,
                _ => {
                    self.tear(index, rng);
                    stats.torn_pages += 1;
                }
            }
        }
        self.len = self.durable_len;
        self.durable.retain(|&index, _| index * (PAGE as u64) < self.len);
        self.now = self.durable.clone();
    }

    /// Each sector of the page is the new or the old one.
    fn tear(&mut self, index: u64, rng: &mut Rng) {
        let Some(new) = self.now.get(&index) else { return };
        let mut torn: Page = self.durable.get(&index).map_or([0; PAGE], |old| **old);
        for (sector, new) in torn.chunks_exact_mut(SECTOR).zip(new.chunks_exact(SECTOR)) {
            if rng.chance(1, 2) {
                sector.copy_from_slice(new);
            }
        }
        self.durable.insert(index, Arc::new(torn));
    }

    pub(super) fn flip_bit(&mut self, offset: u64, bit: u8) -> bool {
        if offset >= self.len {
            return false;
        }
        let (index, within) = (offset / PAGE as u64, (offset % PAGE as u64) as usize);
        for pages in [&mut self.now, &mut self.durable] {
            let page = pages.entry(index).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within] ^= 1 << (bit % 8);
        }
        true
    }
}
