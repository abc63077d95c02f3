//! Recovery of a journal from a directory that was changed behind its back.
//!
//! The directories to begin with were written by the journal itself, in a simulated world: one life that was killed, two
//! of which the second ended well, three with recycled segments. Then bits flip, blocks move, files shrink and go. With
//! *forged* inputs headers lie under checksums that fit, which no accident does (a frame of a life that is yet to come, for
//! one): then only "no panic" and memory are promised. Without:
//!
//! 1. a frame that is handed over is one that was appended, at its position, in order;
//! 2. a frame below the synced position is handed over, or its segment is reported as damaged (or its file is gone);
//! 3. inspecting and opening judge alike; opening again finds the same and what was appended in between.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use isobar_host::sim::{SimDisk, World};
use isobar_host::{AlignedBuf, Disk, Host};
use isobar_journal::{Frame, FrameWriter, Inspected, Journal, Options, Recovered, Report, inspect};
use isobar_protocol::compression::Codec;

use crate::input::Input;
use crate::{peak_of, samples};

const DIR: &str = "n/journal";
const BLOCK_BYTES: usize = 4096;
const KIND: u8 = 9;
const EDITS_MAX: usize = 10;

type Files = Vec<(String, Vec<u8>)>;

/// What tells one frame from another: its kind, sections and meta.
type Content = (u8, Vec<Bytes>, Bytes);

fn content(frame: &Frame) -> Content {
    (frame.kind(), (0..frame.section_count()).map(|at| frame.section(at)).collect(), frame.meta())
}

#[derive(Clone)]
struct Image {
    files: Files,
    /// By position, with the segment.
    frames: BTreeMap<u64, (u64, Content)>,
}

#[derive(Debug, Default)]
struct Found {
    /// (position, segment, content), in order.
    frames: Vec<(u64, u64, Content)>,
    report: Report,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.u8();
    let forged = mode & 0x40 != 0;
    let image = images()[usize::from(mode) % 3].clone();
    let mut files = image.files.clone();
    let mut gone = Vec::new();
    for _ in 0..EDITS_MAX {
        if input.is_empty() || files.is_empty() {
            break;
        }
        if forged && input.bool() {
            forge(&mut files, &mut input);
        } else {
            lie(&mut files, &mut gone, &mut input);
        }
    }
    let total_bytes: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    let disk = disk_of(&files);
    let (inspected, peak) = peak_of(|| inspected(&disk));
    assert!(peak <= (2 << 20) + 8 * total_bytes, "{peak} bytes for a directory of {total_bytes}");
    if !forged && let Some((report, synced)) = &inspected {
        check_synced(&image, &gone, report, *synced, &disk);
    }
    // Without them a directory is a new one, which inspecting has nothing to say of.
    let any_left = files.iter().any(|(name, _)| name == "lives" || name.ends_with(".seg"));
    if mode & 0x80 == 0 && any_left {
        open_twice(&disk, &image, forged, mode & 0x20 != 0, inspected);
    }
}

/// Flips, moves, shrinks and removes.
fn lie(files: &mut Files, gone: &mut Vec<String>, input: &mut Input<'_>) {
    let (op, at) = (input.u8(), input.below(files.len()));
    let len = files[at].1.len();
    if len == 0 {
        return;
    }
    let blocks = len.div_ceil(BLOCK_BYTES);
    match op % 8 {
        // Within the first bytes of a block, where the headers are.
        0 => {
            let offset = (input.below(blocks) * BLOCK_BYTES + usize::from(input.u8())).min(len - 1);
            files[at].1[offset] ^= 1 << (op >> 5);
        }
        1 => {
            let offset = input.u32() as usize % len;
            files[at].1[offset] = input.u8();
        }
        2 => {
            let from = input.below(blocks) * BLOCK_BYTES;
            let to = (from + (1 + usize::from(op >> 5)) * BLOCK_BYTES).min(len);
            files[at].1[from..to].fill(0);
        }
        // A block that was written elsewhere.
        3 => {
            let other = input.below(files.len());
            let (from, to) = (input.u8() as usize * BLOCK_BYTES, input.below(blocks) * BLOCK_BYTES);
            let end = (from + BLOCK_BYTES).min(files[other].1.len());
            let block = files[other].1.get(from..end).unwrap_or_default().to_vec();
            let n = block.len().min(len - to);
            files[at].1[to..to + n].copy_from_slice(&block[..n]);
        }
        4 => {
            let keep =
                if op & 0x80 == 0 { input.below(blocks) * BLOCK_BYTES } else { input.u32() as usize % len };
            files[at].1.truncate(keep);
        }
        5 if op & 0x80 != 0 => gone.push(files.remove(at).0),
        5 => files[at].1.resize(len + BLOCK_BYTES, 0),
        // Two files under each other's name.
        6 if op & 0x80 != 0 => {
            let other = input.below(files.len());
            let name = files[at].0.clone();
            let name = std::mem::replace(&mut files[other].0, name);
            files[at].0 = name;
        }
        _ => {
            let offset = input.below(blocks) * BLOCK_BYTES + input.u16() as usize % BLOCK_BYTES;
            for (to, byte) in files[at].1.iter_mut().skip(offset).zip(input.take(1 + usize::from(op >> 5))) {
                *to = *byte;
            }
        }
    }
}

/// Lies under checksums that fit.
fn forge(files: &mut Files, input: &mut Input<'_>) {
    let Some(lives) = files.iter().position(|(name, _)| name == "lives") else { return };
    let Some(key) =
        files[lives].1.get(12..16).map(|key| u32::from_le_bytes([key[0], key[1], key[2], key[3]]))
    else {
        return;
    };
    let op = input.u8();
    if op % 4 == 0 {
        return forge_lives(&mut files[lives].1, input);
    }
    let at = input.below(files.len());
    if op % 4 == 1 {
        return forge_segment(&mut files[at], key, input);
    }
    let bytes = &mut files[at].1;
    let offset = input.u8() as usize * BLOCK_BYTES;
    let Some(frame) = bytes.get_mut(offset..) else { return };
    if frame.len() < 64 || frame[..4] != *b"IFR1" {
        return;
    }
    let word = 4 + input.below(14) * 4;
    let value = if op & 0x80 == 0 { u32::from(input.u8()) } else { input.u32() };
    frame[word..word + 4].copy_from_slice(&value.to_le_bytes());
    if op & 0x40 != 0 {
        // Somewhere in its sections, table or meta.
        let within = 64 + input.u16() as usize % (frame.len() - 64).max(1);
        for (to, byte) in frame.iter_mut().skip(within).zip(input.take(1 + usize::from(op >> 4 & 3))) {
            *to = *byte;
        }
    }
    if let Some(crc) = content_crc(frame) {
        frame[48..52].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32c::crc32c_append(key, &frame[..60]);
    frame[60..64].copy_from_slice(&crc.to_le_bytes());
}

/// As the module docs of `frame.rs` have it.
fn content_crc(frame: &[u8]) -> Option<u32> {
    let word = |at: usize| Some(u32::from_le_bytes(*frame.get(at..)?.first_chunk()?) as usize);
    let (sections, table, meta_bytes) = (word(36)?, word(40)?, word(44)?);
    let mut crc = 0;
    let mut start = 64;
    for section in 0..sections {
        let end = word(table + section * 8)?;
        let bytes = frame.get(start..end)?;
        crc = crc32c::crc32c_append(crc, &bytes[..bytes.len().min(21)]);
        start = end;
    }
    Some(crc32c::crc32c_append(crc, frame.get(table..table + sections * 8 + meta_bytes)?))
}

fn forge_lives(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    if bytes.len() < 64 {
        return;
    }
    let word = 8 + input.below(10) * 4;
    let value = if input.bool() { input.u32() } else { u32::from(input.u8()) };
    bytes[word..word + 4].copy_from_slice(&value.to_le_bytes());
    let count = u32::from_le_bytes([bytes[24], bytes[25], bytes[26], bytes[27]]) as usize;
    let end = 28 + (count % 200) * 16;
    if bytes.len() < end + 4 {
        return;
    }
    let crc = crc32c::crc32c(&bytes[..end]);
    bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A segment under another name, with a header that says the same.
fn forge_segment((name, bytes): &mut (String, Vec<u8>), key: u32, input: &mut Input<'_>) {
    let Some((id, base)) = name.strip_suffix(".seg").and_then(|name| name.split_once('-')) else { return };
    let (Ok(mut id), Ok(mut base)) = (u64::from_str_radix(id, 16), u64::from_str_radix(base, 16)) else {
        return;
    };
    match input.below(4) {
        0 => id = input.u64(),
        1 => base = input.u64(),
        2 => base = u64::MAX - input.u64() % (1 << 20),
        _ => base = base.wrapping_add(input.u64() % (1 << 20)),
    }
    *name = format!("{id:016x}-{base:016x}.seg");
    if bytes.len() < BLOCK_BYTES {
        return;
    }
    let capacity = bytes.len() as u64;
    bytes[8..16].copy_from_slice(&id.to_le_bytes());
    bytes[16..24].copy_from_slice(&base.to_le_bytes());
    bytes[24..32].copy_from_slice(&capacity.to_le_bytes());
    bytes[32..36].copy_from_slice(&key.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..36]);
    bytes[36..40].copy_from_slice(&crc.to_le_bytes());
}

fn disk_of(files: &Files) -> SimDisk {
    let disk = SimDisk::new(1);
    disk.create_dir_all(Path::new(DIR)).expect("a directory");
    for (name, bytes) in files {
        disk.write_durable(&Path::new(DIR).join(name), bytes).expect("a file");
    }
    disk
}

/// What inspecting makes of it: its verdict, and the position below which all was synced.
fn inspected(disk: &SimDisk) -> Option<(Report, u64)> {
    let mut done = None;
    let shown = inspect(disk, Path::new(DIR), &mut |item| {
        if let Inspected::Done { report, synced } = item {
            done = Some((report, synced));
        }
    });
    if let Err(error) = &shown {
        let _ = error.to_string();
    }
    shown.ok().and(done)
}

/// Promise 2.
fn check_synced(image: &Image, gone: &[String], report: &Report, synced: u64, disk: &SimDisk) {
    let mut delivered = std::collections::BTreeSet::new();
    let mut all = Vec::new();
    // Inspecting shows also what opening cuts; those lie at or above the end.
    let _ = inspect(disk, Path::new(DIR), &mut |item| {
        if let Inspected::Frame { frame, .. } = item {
            let position = frame.stamp().position;
            delivered.insert(position);
            all.push((position, content(&frame)));
        }
    });
    for (position, found) in all {
        match image.frames.get(&position) {
            Some((_, genuine)) => assert!(found == *genuine, "another frame at {position}"),
            None => panic!("a frame at {position} that was never appended"),
        }
    }
    for (position, (segment, _)) in image.frames.range(..synced) {
        let file = format!("{segment:016x}-");
        let removed = gone.iter().any(|name| name.starts_with(&file));
        let told = report.damage.iter().any(|damage| damage.segment == Some(*segment));
        assert!(
            delivered.contains(position) || removed || told,
            "the synced frame at {position} is lost without a word"
        );
    }
}

fn open_twice(
    disk: &SimDisk,
    image: &Image,
    forged: bool,
    quarantine: bool,
    inspected: Option<(Report, u64)>,
) {
    let Some(first) = open_and_append(disk, quarantine, Some(77)) else {
        let clean = inspected.is_some_and(|(report, _)| report.damage.is_empty());
        assert!(forged || !clean, "inspecting finds nothing wrong, and opening fails");
        return;
    };
    if !forged {
        let (report, _) = inspected.expect("opening succeeds and inspecting fails");
        assert_eq!(
            (report.frames, report.end, &report.damage),
            (first.report.frames, first.report.end, &first.report.damage)
        );
        assert!(first.frames.is_sorted_by(|a, b| a.0 < b.0), "frames out of order");
        for (position, segment, found) in &first.frames {
            let genuine = image.frames.get(position).expect("a frame that was never appended");
            assert!((segment, found) == (&genuine.0, &genuine.1), "another frame at {position}");
        }
        assert!(quarantine || first.report.damage.is_empty());
    }
    disk.kill();
    let again = open_and_append(disk, quarantine, None);
    if forged {
        return disk.kill();
    }
    let again = again.expect("what was opened once opens again");
    assert_eq!(again.frames.len(), first.frames.len() + 1, "{:?} then {:?}", first.report, again.report);
    assert!(again.frames.iter().zip(&first.frames).all(|(again, first)| again == first));
    let new = &again.frames.last().expect("the one appended").2;
    assert!(*new == content(&frame(77)));
    disk.kill();
}

/// Opens, appends one frame, and ends well; `None` if it does not open.
fn open_and_append(disk: &SimDisk, quarantine: bool, append: Option<usize>) -> Option<Found> {
    let told = Arc::new(std::sync::Mutex::new(None));
    let tell = Arc::clone(&told);
    live(disk, move |host| async move {
        let mut frames = Vec::new();
        let options = Options { allow_quarantine: quarantine, ..options() };
        let mut keep = |recovered: Recovered| {
            frames.push((recovered.position, recovered.segment, content(&recovered.frame)));
        };
        let opened = Journal::open(&host, Path::new(DIR), options, &mut keep).await;
        let (journal, report) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let _ = error.to_string();
                return;
            }
        };
        if let Some(number) = append {
            journal.append_wait(frame(number)).await.expect("an append to an open journal");
        }
        journal.close().await;
        *tell.lock().expect("unpoisoned") = Some(Found { frames, report });
    });
    told.lock().expect("unpoisoned").take()
}

fn options() -> Options {
    Options {
        segment_bytes: 16 * BLOCK_BYTES as u64,
        first_segment_bytes: 16 * BLOCK_BYTES as u64,
        group_bytes: 4 * BLOCK_BYTES as u64,
        ..Options::default()
    }
}

/// One life of a node on this disk.
fn live<F: Future<Output = ()> + Send + 'static>(
    disk: &SimDisk,
    work: impl FnOnce(Host) -> F + Send + 'static,
) {
    const STEPS_MAX: usize = 10_000;
    let mut world = World::new(1);
    world.add_node("n", Arc::new(disk.clone()));
    let done = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&done);
    world.boot("n", move |host| async move {
        work(host).await;
        told.store(true, Ordering::Relaxed);
    });
    for _ in 0..STEPS_MAX {
        if done.load(Ordering::Relaxed) {
            world.kill("n");
            return;
        }
        world.step();
    }
    panic!("a journal that neither opens nor fails");
}

fn frame(number: usize) -> Frame {
    let mut writer = FrameWriter::new(AlignedBuf::unpooled(BLOCK_BYTES));
    for section in 0..number % 4 {
        writer.push(&samples::batch(Codec::None, 1 + (number + section) % 60));
    }
    writer.seal(KIND, format!("frame {number}").repeat(1 + number % 7 * 60).as_bytes())
}

/// The three directories.
fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let disk = SimDisk::new(1);
        let killed = |host: Host, frames: std::ops::Range<usize>, recycle: bool, close: bool| async move {
            let opened = Journal::open(&host, Path::new(DIR), options(), &mut |_| {}).await;
            let (journal, _) = opened.expect("opens");
            for number in frames {
                journal.append_wait(frame(number)).await.expect("appends");
                if recycle
                    && number % 9 == 0
                    && let Some(oldest) = journal.sealed_segments().first()
                {
                    journal.recycle(*oldest);
                    // The keeper renames in its own time.
                    host_pause().await;
                }
            }
            if close {
                journal.close().await;
            }
        };
        let mut images = Vec::new();
        for (from, to, recycle, close) in
            [(0, 25, false, false), (25, 32, false, true), (32, 60, true, false)]
        {
            live(&disk, move |host| killed(host, from..to, recycle, close));
            images.push(image_of(&disk));
        }
        images
    })
}

async fn host_pause() {
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
}

fn image_of(disk: &SimDisk) -> Image {
    let dir = Path::new(DIR);
    let names = disk.list(dir).expect("a directory");
    let files: Files = names
        .into_iter()
        .filter(|name| name != "LOCK")
        .map(|name| (name.clone(), disk.read(&dir.join(&name)).expect("a file")))
        .collect();
    // Of a copy, so that the disk goes on as it is.
    let copy = disk_of(&files);
    let mut frames = BTreeMap::new();
    let mut segment = 0;
    inspect(&copy, dir, &mut |item| match item {
        Inspected::Segment { id, .. } => segment = id,
        Inspected::Frame { frame, .. } => {
            drop(frames.insert(frame.stamp().position, (segment, content(&frame))))
        }
        _ => {}
    })
    .expect("a sound journal");
    Image { files, frames }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for image in 0..3 {
        // Plain, quarantine, forged, inspected only.
        for mode in [0, 0x20, 0x40, 0x80] {
            let mut mode = image + mode;
            mode += (3 + image - mode % 3) % 3;
            seeds.push(vec![mode]);
            for op in 0..8 {
                seeds.push(vec![mode, op, 1 + image, 3, 17, 2, 1, op | 0xe0, 2, 1, 40, 9, 9, 9]);
            }
        }
    }
    seeds
}
