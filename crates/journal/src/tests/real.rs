//! On the real disk, with real threads.

use std::io::IoSlice;
use std::sync::Arc;

use isobar_host::disk::Open;
use isobar_host::{AlignedBuf, Host};
use parking_lot::Mutex;

use crate::segment::FIRST_OFFSET;
use crate::*;

fn frame(number: u64, bytes: usize) -> Frame {
    let meta: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(bytes.max(8)).collect();
    Frame::of_meta(AlignedBuf::unpooled(bytes), 1, &meta)
}

fn small() -> Options {
    Options { segment_bytes: 256 << 10, first_segment_bytes: 64 << 10, ..Options::default() }
}

async fn open(dir: &std::path::Path, options: Options) -> (Journal, Report, Vec<(u64, bytes::Bytes)>) {
    let mut found = Vec::new();
    let opened = Journal::open(&Host::real(), dir, options, &mut |f| found.push((f.position, f.meta())))
        .await
        .unwrap();
    (opened.0, opened.1, found)
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_reopening_in_order_and_readable() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, report, _) = open(dir.path(), small()).await;
    assert_eq!(report.frames, 0);
    let acked = Arc::new(Mutex::new(Vec::new()));
    for number in 0..300_u64 {
        let acked = Arc::clone(&acked);
        let bytes = 100 + (number as usize * 7919) % 30_000;
        journal.append(frame(number, bytes), move |r| acked.lock().push((number, r.unwrap()))).unwrap();
    }
    let last = journal.append_wait(frame(300, 10)).await.unwrap();
    let acked = acked.lock().clone();
    assert_eq!(acked.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (0..300).collect::<Vec<_>>());
    assert!(acked.windows(2).all(|pair| pair[0].1.position < pair[1].1.position));
    assert!(journal.sealed_segments().len() > 5);
    for (number, written) in &acked {
        let read = journal.read(vec![(written.position, written.len)]).await.unwrap().remove(0);
        assert_eq!(read.meta()[..8], number.to_le_bytes());
        assert_eq!(read.len(), written.len);
    }
    // One behind the other in a segment, and every other one, by one read.
    for run in acked.chunk_by(|a, b| a.1.segment == b.1.segment) {
        let places: Vec<_> = run.iter().map(|(_, written)| (written.position, written.len)).collect();
        let others = places.iter().copied().step_by(2).collect();
        for (step, places) in [(1, places.clone()), (2, others)] {
            let frames = journal.read(places.clone()).await.unwrap();
            assert_eq!(frames.len(), places.len());
            for (frame, (number, _)) in frames.iter().zip(run.iter().step_by(step)) {
                assert_eq!(frame.meta()[..8], number.to_le_bytes());
            }
        }
        let wrong = places.iter().map(|(position, len)| (*position, len + 4096)).collect();
        assert!(journal.read(wrong).await.is_err());
    }
    assert!(matches!(
        journal.read(vec![(last.position + 4096, 4096)]).await,
        Err(JournalError::NotFound { .. })
    ));
    journal.close().await;
    assert!(matches!(journal.append(frame(1, 1), |_| {}), Err(JournalError::Closed)));

    let (journal, report, found) = open(dir.path(), small()).await;
    assert_eq!((report.frames, report.torn, report.damage.len()), (301, None, 0));
    for ((position, meta), (number, written)) in found.iter().zip(&acked) {
        assert_eq!((*position, &meta[..8]), (written.position, &number.to_le_bytes()[..]));
    }
    journal.close().await;
}

#[tokio::test]
async fn a_read_of_many_returns_those_before_the_damaged_one_and_counts_it_when_it_is_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { first_segment_bytes: 256 << 10, ..small() };
    let metrics = options.metrics.clone();
    let (journal, _, _) = open(dir.path(), options).await;
    let mut places = Vec::new();
    for number in 0..6 {
        let written = journal.append_wait(frame(number, 5000)).await.unwrap();
        places.push((written.position, written.len));
    }
    let damaged = 3;
    let host = Host::real();
    let segments = host.disk().list(dir.path()).unwrap();
    let segment = segments.iter().filter(|name| name.ends_with(".seg")).min().unwrap();
    let file = host.disk().open(&dir.path().join(segment), Open::READ_WRITE).unwrap();
    let in_its_content = FIRST_OFFSET + places[damaged].0 - places[0].0 + 4200;
    file.write_at(&[IoSlice::new(&[0xa5; 20])], in_its_content).unwrap();

    let read = journal.read(places.clone()).await.unwrap();
    assert_eq!(read.len(), damaged);
    assert_eq!(journal.read(places[1..=damaged].to_vec()).await.unwrap().len(), damaged - 1);
    assert_eq!(metrics.corrupt_reads.get(), 0);
    assert!(matches!(journal.read(places[damaged..].to_vec()).await, Err(JournalError::Corrupt { .. })));
    assert_eq!(metrics.corrupt_reads.get(), 1);
    assert_eq!(journal.read(places[damaged + 1..].to_vec()).await.unwrap().len(), 2);
    journal.close().await;
}

#[tokio::test]
async fn recycled_segments_are_used_again_and_the_directory_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _, _) = open(dir.path(), small()).await;
    for number in 0..400 {
        journal.append_wait(frame(number, 20_000)).await.unwrap();
        for segment in journal.sealed_segments() {
            journal.recycle(segment);
        }
    }
    journal.close().await;
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap()).collect();
    let bytes: u64 = files.iter().map(|file| file.metadata().unwrap().len()).sum();
    assert!(bytes <= 5 * (256 << 10), "{bytes} bytes in {} files", files.len());
    let (journal, report, found) = open(dir.path(), small()).await;
    assert!(report.frames < 40 && report.damage.is_empty(), "{report:?}");
    assert_eq!(found.last().unwrap().1[..8], 399_u64.to_le_bytes());
    journal.close().await;
}

#[tokio::test]
async fn many_appenders_share_syncs_and_a_full_queue_makes_them_wait() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { queue_bytes: 64 << 10, ..small() };
    let metrics = options.metrics.clone();
    let (journal, _, _) = open(dir.path(), options).await;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..64_u64 {
        let journal = journal.clone();
        tasks.spawn(async move {
            for number in 0..20 {
                journal.append_wait(frame(task * 100 + number, 3000)).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let (frames, groups) = metrics.frames_and_groups();
    assert_eq!(frames, 64 * 20);
    assert!(groups < frames / 2, "{groups} syncs for {frames} frames");
    journal.close().await;
}

#[tokio::test]
async fn a_directory_has_one_journal_and_a_closed_one_lets_go_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _, _) = open(dir.path(), small()).await;
    match Journal::open(&Host::real(), dir.path(), small(), &mut |_| {}).await {
        Err(JournalError::Io { source, .. }) => assert_eq!(source.kind(), std::io::ErrorKind::ResourceBusy),
        other => panic!("{:?}", other.map(|opened| opened.1)),
    }
    journal.close().await;
    open(dir.path(), small()).await.0.close().await;
}

#[tokio::test]
async fn closing_answers_what_cannot_be_written_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { bytes_max: Some(128 << 10), ..small() };
    let (journal, _, _) = open(dir.path(), options).await;
    let answered = Arc::new(Mutex::new((0, 0)));
    for number in 0..40 {
        let answered = Arc::clone(&answered);
        let _ = journal.append(frame(number, 9000), move |result| match result {
            Ok(_) => answered.lock().0 += 1,
            Err(_) => answered.lock().1 += 1,
        });
    }
    journal.close().await;
    let (good, refused) = *answered.lock();
    assert!(good > 0 && good < 14 && refused > 0, "{good} {refused}");
}

#[tokio::test]
async fn buffered_files_do_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { direct: false, ..small() };
    let (journal, _, _) = open(dir.path(), options.clone()).await;
    for number in 0..50 {
        journal.append_wait(frame(number, 9000)).await.unwrap();
    }
    drop(journal.clone());
    journal.close().await;
    let (journal, report, _) = open(dir.path(), options).await;
    assert_eq!(report.frames, 50);
    journal.close().await;
}
