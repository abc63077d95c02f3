//! A journal on a simulated disk, driven by hand, and what must be true of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isobar_host::AlignedBuf;
use isobar_host::disk::SimDisk;
use parking_lot::Mutex;

use crate::core::Step;
use crate::engine::{Engine, Machine};
use crate::keeper::Round;
use crate::*;

pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;

/// SplitMix64.
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub(super) type Outcome = Result<Written, JournalError>;

/// What is known of one append.
#[derive(Default)]
struct Fate {
    bytes: usize,
    written: Option<Written>,
    /// Its segment was given back.
    recycled: bool,
    /// An opening did not find it: it must never be found again.
    gone: bool,
}

pub(super) struct Rig {
    pub(super) disk: SimDisk,
    pub(super) dir: PathBuf,
    pub(super) options: Options,
    pub(super) engine: Option<Engine>,
    pub(super) points: Arc<Mutex<BTreeSet<&'static str>>>,
    /// Outcomes in the order of the callbacks.
    pub(super) outcomes: Arc<Mutex<Vec<(u64, Outcome)>>>,
    fates: BTreeMap<u64, Fate>,
    told: usize,
    next: u64,
    /// Whether damage is part of the test: then frames may be missing.
    pub(super) damage_expected: bool,
}

pub(super) fn content(number: u64, bytes: usize) -> Vec<u8> {
    let mut rng = Rng(number);
    let mut meta = number.to_le_bytes().to_vec();
    while meta.len() < bytes {
        meta.extend_from_slice(&rng.next().to_le_bytes());
    }
    meta.truncate(bytes.max(8));
    meta
}

/// The number, half of the content as a section, the rest as meta.
pub(super) fn frame(number: u64, bytes: usize) -> Frame {
    let content = content(number, bytes);
    let (section, meta) = content.split_at(content.len() / 2);
    let mut writer = FrameWriter::new(AlignedBuf::unpooled(bytes));
    writer.push(&crate::frame::tests::batch(section, 7));
    writer.seal(9, meta)
}

fn content_of(frame: &Frame) -> Vec<u8> {
    let mut all = frame.section(0)[crate::frame::SECTION_HEAD_BYTES..].to_vec();
    all.extend_from_slice(&frame.meta());
    all
}

pub(super) fn small_options() -> Options {
    Options {
        segment_bytes: 16 * BLOCK,
        first_segment_bytes: 16 * BLOCK,
        spare_segments: 2,
        group_bytes: 4 * BLOCK,
        ..Options::default()
    }
}

impl Rig {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            disk: SimDisk::new(seed),
            dir: PathBuf::from("node/journal"),
            options: small_options(),
            engine: None,
            points: Arc::default(),
            outcomes: Arc::default(),
            fates: BTreeMap::new(),
            told: 0,
            next: 1,
            damage_expected: false,
        }
    }

    /// Opens, and checks what was found against what is known.
    pub(super) fn open(&mut self) -> Result<Report, JournalError> {
        let mut found = Vec::new();
        let points = Arc::clone(&self.points);
        let machine = Machine {
            disk: Arc::new(self.disk.clone()),
            point: Box::new(move |name| {
                points.lock().insert(name);
            }),
            key: 0x5eed,
            lock: None,
        };
        let engine =
            Engine::open(machine, &self.dir, self.options.clone(), &mut |recovered| found.push(recovered))?;
        let report = engine.report.clone();
        self.engine = Some(engine);
        assert_eq!(report.frames, found.len() as u64);
        self.check(&found);
        Ok(report)
    }

    fn check(&mut self, found: &[Recovered]) {
        let mut seen = BTreeSet::new();
        let mut before = (0, 0);
        for recovered in found {
            let all = content_of(&recovered.frame);
            let number = u64::from_le_bytes(all[..8].try_into().unwrap());
            let fate = self.fates.get_mut(&number).expect("nothing appears that was not appended");
            assert!(all == content(number, fate.bytes), "frame {number} byte for byte");
            assert!(!fate.gone, "frame {number} was gone and is back");
            assert!(
                (number, recovered.position) > before && recovered.position > before.1,
                "order at {number}"
            );
            before = (number, recovered.position);
            let place =
                Written { position: recovered.position, segment: recovered.segment, len: recovered.len };
            assert_eq!(*fate.written.get_or_insert(place), place, "frame {number} has moved");
            seen.insert(number);
        }
        for (number, fate) in &mut self.fates {
            if !seen.contains(number) {
                let lost = fate.written.is_some() && !fate.recycled && !fate.gone;
                assert!(!lost || self.damage_expected, "frame {number} was acknowledged and is lost");
                fate.gone = true;
            }
        }
    }

    /// Appends frames of so many blocks each; refusals are outcomes too.
    pub(super) fn append(&mut self, blocks: u64) -> u64 {
        let number = self.next;
        self.next += 1;
        let bytes = (blocks * BLOCK) as usize - 200;
        self.fates.insert(number, Fate { bytes, ..Fate::default() });
        let outcomes = Arc::clone(&self.outcomes);
        let done = Box::new(move |outcome| outcomes.lock().push((number, outcome)));
        let frame = frame(number, bytes);
        assert_eq!(u64::from(frame.len()), blocks * BLOCK);
        if let Err(error) = self.shared().append(frame, done) {
            self.outcomes.lock().push((number, Err(error)));
        }
        number
    }

    pub(super) fn shared(&self) -> &crate::shared::Shared {
        self.engine.as_ref().unwrap().writer.shared()
    }

    /// Gives a sealed segment back.
    pub(super) fn recycle(&mut self, which: usize) -> bool {
        self.note_outcomes();
        let sealed = self.shared().sealed_segments();
        let Some(&segment) = sealed.get(which % sealed.len().max(1)) else { return false };
        for fate in self.fates.values_mut() {
            fate.recycled |= fate.written.is_some_and(|written| written.segment == segment);
        }
        self.shared().recycle(segment);
        true
    }

    /// Lets the writer do one thing. False if there is nothing to do.
    pub(super) fn write(&mut self) -> bool {
        let engine = self.engine.as_mut().unwrap();
        let did = match engine.writer.step() {
            Step::Write(group) => {
                engine.writer.run(group);
                true
            }
            _ => false,
        };
        self.note_outcomes();
        did
    }

    /// Lets the keeper do one thing.
    pub(super) fn keep(&mut self) -> Round {
        self.engine.as_mut().unwrap().keeper.round()
    }

    /// Until nothing is left to do.
    pub(super) fn run(&mut self) {
        while self.write() || self.keep() == Round::Worked {}
    }

    pub(super) fn append_and_run(&mut self, blocks: u64) -> Outcome {
        let number = self.append(blocks);
        self.run();
        self.outcome(number).expect("an outcome")
    }

    pub(super) fn outcome(&self, number: u64) -> Option<Outcome> {
        self.outcomes.lock().iter().find(|(n, _)| *n == number).map(|(_, outcome)| outcome.clone())
    }

    fn note_outcomes(&mut self) {
        let outcomes = self.outcomes.lock();
        for (number, outcome) in &outcomes[self.told..] {
            if let Ok(written) = outcome {
                self.fates.get_mut(number).unwrap().written = Some(*written);
            }
        }
        self.told = outcomes.len();
    }

    /// A clean end.
    pub(super) fn close(&mut self) {
        self.shared().close();
        self.run();
        let engine = self.engine.as_mut().unwrap();
        assert!(matches!(engine.writer.step(), Step::Exit));
        engine.writer.shared().writer_ended.send_replace(true);
        while engine.keeper.round() == Round::Worked {}
        self.engine = None;
    }

    /// The power goes.
    pub(super) fn crash(&mut self, seed: u64) {
        self.end();
        self.disk.crash(seed);
    }

    /// Only the process goes.
    pub(super) fn kill(&mut self) {
        self.end();
        self.disk.kill();
    }

    fn end(&mut self) {
        if self.engine.is_some() {
            self.note_outcomes();
        }
        self.engine = None;
    }

    /// Acknowledged and not recycled, by number.
    pub(super) fn acknowledged(&self) -> Vec<(u64, Written)> {
        let live = self.fates.iter().filter(|(_, fate)| !fate.recycled && !fate.gone);
        live.filter_map(|(number, fate)| fate.written.map(|written| (*number, written))).collect()
    }

    pub(super) fn acknowledged_ever(&self) -> usize {
        self.fates.values().filter(|fate| fate.written.is_some()).count()
    }

    /// Reads every acknowledged frame back.
    pub(super) fn check_reads(&self) {
        for (number, written) in self.acknowledged() {
            let frame = self.read(written).unwrap();
            assert!(content_of(&frame) == content(number, self.fates[&number].bytes));
        }
    }

    pub(super) fn read(&self, written: Written) -> Result<Frame, JournalError> {
        let segment = self.shared().locate(written.position)?;
        let mut frames = self.shared().read(&segment, &[(written.position, written.len)])?;
        assert_eq!(frames.len(), 1);
        Ok(frames.remove(0))
    }

    /// Callbacks came in the order of the appends.
    pub(super) fn check_order(&self) {
        let outcomes = self.outcomes.lock();
        let called: Vec<_> =
            outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).map(|(n, _)| *n).collect();
        assert!(called.is_sorted(), "{called:?}");
    }

    pub(super) fn segment_path(&self, written: Written) -> PathBuf {
        let prefix = format!("{:016x}-", written.segment);
        let names = isobar_host::Disk::list(&self.disk, &self.dir).unwrap();
        self.dir.join(names.iter().find(|name| name.starts_with(&prefix)).unwrap())
    }

    /// Where in its file a frame starts.
    pub(super) fn offset_of(&self, written: Written) -> u64 {
        let path = self.segment_path(written);
        let name = path.file_stem().unwrap().to_str().unwrap();
        written.position - u64::from_str_radix(name.split_once('-').unwrap().1, 16).unwrap()
    }

    pub(super) fn flip(&self, path: &Path, offset: u64) {
        assert!(self.disk.flip_bit(path, offset, 3));
    }
    /// Its first bytes are left.
    pub(super) fn shorten(&self, path: &Path, to_bytes: u64) {
        let bytes = isobar_host::Disk::read(&self.disk, path).unwrap();
        isobar_host::Disk::write_durable(&self.disk, path, &bytes[..usize::try_from(to_bytes).unwrap()])
            .unwrap();
    }
}
