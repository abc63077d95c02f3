//! The journal beside the bare disk, in turn in one run: `bench DIR [ROUNDS]` prints a table in Markdown.
//!
//! Bare: one thread writes aligned memory with `O_DIRECT` to a file whose blocks were all written before, and syncs after
//! each write. Journal: sealed frames of the same size (their sections' CRCs known, as in a broker), the next appended
//! when one (or one of four) is acknowledged; segments recycled all the time. Its first block per frame is copied, its
//! header summed, and its thread woken: that is the difference.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench")]

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use isobar_host::{AlignedBuf, BufferPool, DiskFile, Host, Open};
use isobar_journal::{Frame, FrameWriter, Journal, Options};
use tokio::time::Instant;

const SIZES: [usize; 5] = [4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];
const FILE_BYTES: u64 = 256 << 20;
const TURN: Duration = Duration::from_millis(700);

#[derive(Default)]
struct Tally {
    latencies: Vec<Duration>,
    bytes: u64,
    time: Duration,
}

impl Tally {
    fn mib_per_s(&self) -> f64 {
        self.bytes as f64 / self.time.as_secs_f64() / f64::from(1 << 20)
    }

    fn at_ms(&mut self, quantile: f64) -> f64 {
        self.latencies.sort_unstable();
        let index = (self.latencies.len() as f64 * quantile) as usize;
        self.latencies.get(index.min(self.latencies.len() - 1)).map_or(0.0, |l| l.as_secs_f64() * 1e3)
    }
}

struct Bare {
    file: Box<dyn DiskFile>,
    at: u64,
}

impl Bare {
    fn new(host: &Host, path: &Path) -> Self {
        let file = host.disk().open(path, Open::CREATE.direct()).unwrap();
        file.allocate(FILE_BYTES).unwrap();
        let zeroes = AlignedBuf::unpooled(1 << 20);
        for at in (0..FILE_BYTES).step_by(1 << 20) {
            file.write_at(&[IoSlice::new(&zeroes)], at).unwrap();
        }
        file.sync_data().unwrap();
        Self { file, at: 0 }
    }

    fn turn(&mut self, buf: &[u8], tally: &mut Tally) {
        let begun = Instant::now();
        while begun.elapsed() < TURN {
            if self.at + buf.len() as u64 > FILE_BYTES {
                self.at = 0;
            }
            let one = Instant::now();
            self.file.write_at(&[IoSlice::new(buf)], self.at).unwrap();
            self.file.sync_data().unwrap();
            tally.latencies.push(one.elapsed());
            tally.bytes += buf.len() as u64;
            self.at += buf.len() as u64;
        }
        tally.time += begun.elapsed();
    }
}

/// As much of a record batch as the journal knows: its CRC is right.
fn batch_of(bytes: usize) -> Vec<u8> {
    let mut batch = vec![7; bytes];
    if let Some(crc) = batch.get(21..).map(crc32c::crc32c) {
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    batch
}

/// Batches of 16 KiB and a meta that fills the frame up to exactly `bytes`.
fn frame_of(bytes: usize) -> Frame {
    let mut writer = FrameWriter::new(AlignedBuf::unpooled(bytes));
    let batch = batch_of(16 << 10);
    while writer.room(256) >= batch.len() {
        writer.push(&batch);
    }
    let rest = writer.room(0) + 8;
    let meta = vec![1; rest.min(4000)];
    if rest > meta.len() + 8 {
        writer.push(&batch_of(rest - meta.len() - 8));
    }
    let frame = writer.seal(1, &meta);
    assert_eq!(frame.len() as usize, bytes);
    frame
}

fn journal_turn(journal: &Journal, frame: &Frame, depth: usize, turn: Duration, tally: &mut Tally) {
    let (tell, told) = mpsc::sync_channel(depth);
    let append = || {
        let (tell, begun) = (tell.clone(), Instant::now());
        let done = move |result: Result<_, _>| {
            let _: isobar_journal::Written = result.unwrap();
            tell.send(begun.elapsed()).unwrap();
        };
        journal.append(frame.clone(), done).unwrap();
    };
    let begun = Instant::now();
    (0..depth).for_each(|_| append());
    let mut waiting = depth;
    while waiting > 0 {
        tally.latencies.push(told.recv().unwrap());
        tally.bytes += u64::from(frame.len());
        if begun.elapsed() < turn {
            append();
        } else {
            waiting -= 1;
        }
        for segment in journal.sealed_segments() {
            journal.recycle(segment);
        }
    }
    tally.time += begun.elapsed();
}

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().unwrap());
    let rounds: usize = args.next().map_or(5, |rounds| rounds.parse().unwrap());
    let host = Host::real();
    host.disk().create_dir_all(&dir).unwrap();
    let mut bare = Bare::new(&host, &dir.join("bare"));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let path = dir.join("journal");
    let opened = runtime.block_on(Journal::open(&host, &path, Options::default(), &mut |_| {}));
    let (journal, _) = opened.unwrap();
    // Until its segments are full-grown and used for the second time.
    journal_turn(&journal, &frame_of(1 << 20), 4, Duration::from_secs(3), &mut Tally::default());

    println!("direct: {}\n", bare.file.is_direct());
    println!(
        "| write | bare MiB/s | p50 / p99.9 ms | journal MiB/s | of bare | p50 / p99.9 ms | 4 in flight MiB/s | of bare | p50 / p99.9 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for size in SIZES {
        let frame = frame_of(size);
        let mut tallies = [Tally::default(), Tally::default(), Tally::default()];
        for _ in 0..rounds {
            bare.turn(&frame.bytes(), &mut tallies[0]);
            journal_turn(&journal, &frame, 1, TURN, &mut tallies[1]);
            journal_turn(&journal, &frame, 4, TURN, &mut tallies[2]);
        }
        let rates = tallies.each_ref().map(Tally::mib_per_s);
        let times = tallies.each_mut().map(|t| format!("{:.3} / {:.3}", t.at_ms(0.5), t.at_ms(0.999)));
        println!(
            "| {} KiB | {:.0} | {} | {:.0} | {:.0} % | {} | {:.0} | {:.0} % | {} |",
            size >> 10,
            rates[0],
            times[0],
            rates[1],
            rates[1] / rates[0] * 100.0,
            times[1],
            rates[2],
            rates[2] / rates[0] * 100.0,
            times[2],
        );
    }
    runtime.block_on(journal.close());

    println!();
    for bytes in [100, 1024, 16 << 10] {
        let (rate, seal_us) = frame_writer(bytes);
        println!(
            "- FrameWriter, batches of {bytes} B into 1 MiB: {rate:.0} MiB/s with seal; seal {seal_us:.1} us"
        );
    }
    println!("- {}", reopening(&host, &runtime, &path));
}

/// MiB/s of pushing and sealing, and the time of one seal.
fn frame_writer(batch_bytes: usize) -> (f64, f64) {
    const ROUNDS: u32 = 500;
    let pool = BufferPool::new(8 << 20);
    let batch = batch_of(batch_bytes);
    let (begun, mut sealing, mut pushed) = (Instant::now(), Duration::ZERO, 0);
    for _ in 0..ROUNDS {
        let mut writer = FrameWriter::new(pool.take(1 << 20));
        while writer.room(4000) >= batch.len() {
            writer.push(&batch);
        }
        pushed += writer.body_bytes();
        let before = Instant::now();
        std::hint::black_box(writer.seal(1, &[1; 4000]));
        sealing += before.elapsed();
    }
    let rate = pushed as f64 / begun.elapsed().as_secs_f64() / f64::from(1 << 20);
    (rate, sealing.as_secs_f64() * 1e6 / f64::from(ROUNDS))
}

/// How long an opening takes that finds 256 MiB to read and check.
fn reopening(host: &Host, runtime: &tokio::runtime::Runtime, path: &Path) -> String {
    let open = || runtime.block_on(Journal::open(host, path, Options::default(), &mut |_| {})).unwrap();
    let (journal, _) = open();
    for segment in journal.sealed_segments() {
        journal.recycle(segment);
    }
    let frame = frame_of(1 << 20);
    let before = journal.bytes_live();
    while journal.bytes_live() < before + (256 << 20) {
        runtime.block_on(journal.append_wait(frame.clone())).unwrap();
    }
    runtime.block_on(journal.close());
    drop(journal);
    let begun = Instant::now();
    let (journal, report) = open();
    let text = format!(
        "Opening with {} MiB in {} frames in {} segments: {:.0} ms",
        report.bytes >> 20,
        report.frames,
        report.segments,
        begun.elapsed().as_secs_f64() * 1e3
    );
    runtime.block_on(journal.close());
    text
}
