//! What goes wrong on a simulated disk, and when.

use std::io;
use std::path::Path;

/// Kinds of disk calls, for faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reads of bytes, listings and opens of existing files.
    Read,
    Write,
    Sync,
    SyncDir,
    Allocate,
    /// Creates, renames and removes.
    Directory,
}

/// Faults that hold until they are set anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Of a million reads, how many fail with EIO.
    pub read_errors_per_million: u32,
    pub write_errors_per_million: u32,
    /// Of a million syncs, how many fail and lose what they were to write.
    pub sync_errors_per_million: u32,
    /// Growing files beyond this many bytes in total is refused as disk full.
    pub capacity_bytes: Option<u64>,
}

/// Counters of a simulated disk; a run whose faults are all zero has shown nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SimDiskStats {
    pub operations: u64,
    /// Errors that faults caused, disk full included.
    pub errors: u64,
    /// Pages written since their last sync that a crash dropped, or left half written.
    pub dropped_pages: u64,
    pub torn_pages: u64,
}

pub(super) enum Verdict {
    Go,
    /// The power goes during this operation: it may have its effect, and fails.
    Last(io::Error),
    Fail(io::Error),
}

struct OneShot {
    operation: Operation,
    path_part: String,
    skip: u64,
}

/// Judges every operation.
pub(super) struct Fuse {
    pub(super) faults: Faults,
    one_shots: Vec<OneShot>,
    /// Operations left until the power goes; 0: it is off.
    power: Option<u64>,
    rng: Rng,
    stats: SimDiskStats,
}

impl Fuse {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            faults: Faults::default(),
            one_shots: Vec::new(),
            power: None,
            rng: Rng::new(seed),
            stats: SimDiskStats::default(),
        }
    }

    pub(super) fn reset(&mut self) {
        self.one_shots.clear();
        self.power = None;
    }

    pub(super) fn power_on(&mut self) {
        self.power = None;
    }

    pub(super) fn fail_next(&mut self, operation: Operation, path_part: &str, skip: u64) {
        self.one_shots.push(OneShot { operation, path_part: path_part.to_owned(), skip });
    }

    pub(super) fn power_off_after(&mut self, count: u64) {
        self.power = Some(count);
    }

    pub(super) fn stats(&self) -> SimDiskStats {
        self.stats
    }

    pub(super) fn stats_mut(&mut self) -> &mut SimDiskStats {
        &mut self.stats
    }

    pub(super) fn fork_rng(&mut self) -> Rng {
        Rng::new(self.rng.next())
    }

    /// For operations that have no effect when they fail.
    pub(super) fn check(&mut self, operation: Operation, path: &Path) -> io::Result<()> {
        match self.judge(operation, path) {
            Verdict::Go => Ok(()),
            Verdict::Last(error) | Verdict::Fail(error) => Err(error),
        }
    }

    pub(super) fn judge(&mut self, operation: Operation, path: &Path) -> Verdict {
        self.stats.operations += 1;
        match &mut self.power {
            Some(0) => return Verdict::Fail(power_is_off()),
            Some(left) => {
                *left -= 1;
                if *left == 0 {
                    return Verdict::Last(power_is_off());
                }
            }
            None => {}
        }
        if self.one_shot_hits(operation, path) || self.chance_hits(operation) {
            self.stats.errors += 1;
            return Verdict::Fail(match operation {
                Operation::Allocate => io::ErrorKind::StorageFull.into(),
                _ => io::Error::from_raw_os_error(5), // EIO
            });
        }
        Verdict::Go
    }

    fn one_shot_hits(&mut self, operation: Operation, path: &Path) -> bool {
        let path = path.to_string_lossy();
        let mut hit = None;
        for (index, shot) in self.one_shots.iter_mut().enumerate() {
            if shot.operation == operation && path.contains(&shot.path_part) {
                if shot.skip == 0 {
                    hit = Some(index);
                    break;
                }
                shot.skip -= 1;
            }
        }
        hit.map(|index| self.one_shots.remove(index)).is_some()
    }

    fn chance_hits(&mut self, operation: Operation) -> bool {
        let per_million = match operation {
            Operation::Read => self.faults.read_errors_per_million,
            Operation::Write => self.faults.write_errors_per_million,
            Operation::Sync => self.faults.sync_errors_per_million,
            Operation::SyncDir | Operation::Allocate | Operation::Directory => 0,
        };
        per_million > 0 && self.rng.chance(u64::from(per_million), 1_000_000)
    }
}

fn power_is_off() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the simulated power is off")
}

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and the same on every platform.
pub(super) struct Rng {
    state: u64,
}

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`; the bias of the remainder does not matter here.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(super) fn chance(&mut self, of: u64, total: u64) -> bool {
        self.below(total) < of
    }
}
