//! Each anomaly is found and named; a clean history passes; a wrong history is refused.

mod common;

use common::{History, LAST_READER, TOPIC, read, sum};
use isobar_testkit::history::{
    Event, HistoryError, Kind, Merge, Op, Options, Read, Requirement, check_files,
};

/// Exactly these kinds, once each.
#[track_caller]
fn finds(history: &History, kinds: &[Kind]) {
    let report = history.check();
    let found: Vec<(Kind, u64)> = report.found.iter().map(|f| (f.kind, f.count)).collect();
    let mut expected: Vec<(Kind, u64)> = kinds.iter().map(|kind| (*kind, 1)).collect();
    expected.sort_unstable();
    assert_eq!(found, expected, "{report}");
}

fn acked_two() -> History {
    let mut h = History::new();
    h.send(1, &[10, 11]).ack(&[(10, 0), (11, 1)]);
    h
}

#[test]
fn a_clean_history_passes() {
    let mut h = acked_two();
    h.ends(2).assign(4, Some(0), None).poll(4, &[read(0, 10)]).poll(4, &[read(1, 11)]);
    h.send(1, &[12, 13]);
    h.push(1, Op::Unknown { ids: vec![12] });
    h.push(1, Op::Fault { kind: "kill".into(), point: Some("journal.synced".into()) });
    h.push(1, Op::Restart);
    h.send(3, &[20]).ack(&[(20, 3)]);
    // Undecided ones may have landed (12) or not (13); the third producer's may be there twice.
    h.drain(&[10, 11, 12, 20, 20]);
    let report = h.check();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.summary.acks_checked, 3);
    assert_eq!(report.summary.reads, 7);
    assert_eq!((report.summary.unknown, report.summary.unknown_in_log), (2, 1));
    assert_eq!(report.summary.repeats_allowed, 1);
    assert_eq!(report.summary.crash_points["journal.synced"], 1);
}

#[test]
fn lost_write() {
    finds(
        History::new().send(1, &[10, 11]).ack(&[(10, 0), (11, 1)]).drain(&[10]),
        &[Kind::StaleEnd, Kind::LostWrite],
    );
    // Read once and gone at the end is lost too.
    let mut h = acked_two();
    h.assign(4, Some(0), None).poll(4, &[read(0, 10), read(1, 11)]);
    h.assign(LAST_READER, Some(0), None).poll(LAST_READER, &[read(0, 10)]);
    h.push(0, Op::Drained { topic: TOPIC.into(), partition: 0, end: 1 });
    finds(&h, &[Kind::LostWrite]);
    // Acknowledged as a repeat, at an offset not said.
    let mut h = acked_two();
    h.send(1, &[12]).push(1, Op::Acked { records: vec![(12, None)] });
    finds(h.drain(&[10, 11]), &[Kind::LostWrite]);
}

#[test]
fn an_acknowledged_offset_given_to_another_record() {
    let mut h = acked_two();
    h.send(2, &[30]).ack(&[(30, 1)]);
    // Two acknowledgements of one offset, and the first of them is lost.
    let report = h.drain(&[10, 30]).check();
    assert_eq!(report.count(Kind::LostWrite), 1, "{report}");
    assert_eq!(report.count(Kind::InconsistentOffsets), 2, "{report}");
}

#[test]
fn vanished_record() {
    let mut h = History::new();
    h.send(1, &[10, 11]).ack(&[(10, 0)]).assign(4, Some(0), None).poll(4, &[read(0, 10), read(1, 11)]);
    h.assign(LAST_READER, Some(0), None).poll(LAST_READER, &[read(0, 10)]);
    h.push(0, Op::Drained { topic: TOPIC.into(), partition: 0, end: 1 });
    finds(&h, &[Kind::VanishedRecord]);
}

#[test]
fn duplicate() {
    finds(acked_two().drain(&[10, 11, 10]), &[Kind::Duplicate]);
    // Seen by two readers it is still one duplicate.
    let mut h = acked_two();
    h.assign(4, Some(0), None).poll(4, &[read(0, 10), read(1, 11), read(2, 10)]);
    finds(h.drain(&[10, 11, 10]), &[Kind::Duplicate]);
}

#[test]
fn torn_content() {
    finds(acked_two().drain_reads(&[read(0, 10), Read(1, Some(11), sum(11) ^ 1)]), &[Kind::TornContent]);
    let mut h = History::new();
    h.send(1, &[10]).ack(&[(10, 0)]);
    finds(h.drain_reads(&[read(0, 10), Read(1, None, 7)]), &[Kind::TornContent]);
}

#[test]
fn foreign_content() {
    finds(acked_two().drain(&[10, 11, 77]), &[Kind::ForeignContent]);
    let mut h = acked_two();
    let records = vec![(40, sum(40))];
    h.push(1, Op::Send { producer: 1, topic: TOPIC.into(), partition: 3, records });
    finds(h.drain(&[10, 11, 40]), &[Kind::ForeignContent]);
}

#[test]
fn failed_write_visible() {
    let mut h = acked_two();
    h.send(1, &[12]).push(1, Op::Failed { ids: vec![12] });
    finds(h.drain(&[10, 11, 12]), &[Kind::FailedWriteVisible]);
}

#[test]
fn reordered() {
    let mut h = History::new();
    h.send(1, &[10, 11, 12]);
    finds(h.drain(&[10, 12, 11]), &[Kind::Reordered]);
    // A repeat is no reordering, and who promised no order cannot break it.
    let mut h = History::new();
    h.send(2, &[10, 11]).send(3, &[20, 21]);
    finds(h.drain(&[10, 11, 10, 21, 20]), &[]);
}

/// Seed 1053 of the simulated cluster: what a client without idempotence gave up landed after what it sent next.
#[test]
fn what_was_given_up_may_come_late() {
    let given_up = |producer: u32| {
        let mut h = History::new();
        h.send(producer, &[9]).send(producer, &[10, 11, 12]).ack(&[(9, 0)]);
        h.push(producer, Op::Unknown { ids: vec![10] });
        h.ack(&[(11, 1)]).push(producer, Op::Unknown { ids: vec![12] });
        h
    };
    finds(given_up(2).drain(&[9, 11, 10, 12]), &[]);
    finds(given_up(2).drain(&[9, 11, 12, 10]), &[]);
    finds(given_up(1).drain(&[9, 11, 10, 12]), &[Kind::Reordered]);
    // An acknowledged record keeps its place; and who had an answer already does not send anew.
    let mut h = History::new();
    h.send(2, &[9, 10]).ack(&[(9, 1)]).push(2, Op::Unknown { ids: vec![10] });
    finds(h.drain(&[10, 9]), &[Kind::Reordered]);
    let mut h = History::new();
    h.send(2, &[9, 10]).ack(&[(10, 0)]).push(2, Op::Unknown { ids: vec![9] });
    finds(h.drain(&[10, 9]), &[Kind::Reordered]);
}

#[test]
fn inconsistent_offsets() {
    // Two readers see two records at one offset.
    let mut h = History::new();
    h.send(1, &[10, 11]).assign(4, Some(0), None).poll(4, &[read(0, 10)]);
    finds(h.drain(&[11]), &[Kind::InconsistentOffsets]);
    // Acknowledged at one offset, found at another.
    let mut h = History::new();
    h.send(2, &[10, 11]).ack(&[(10, 0), (11, 2)]);
    h.assign(LAST_READER, Some(0), None).poll(LAST_READER, &[read(0, 10), read(1, 11)]);
    h.push(0, Op::Drained { topic: TOPIC.into(), partition: 0, end: 2 });
    finds(&h, &[Kind::InconsistentOffsets]);
}

#[test]
fn nonmonotonic_poll() {
    let mut h = acked_two();
    h.assign(4, Some(0), None).poll(4, &[read(0, 10), read(1, 11), read(0, 10)]);
    finds(h.drain(&[10, 11]), &[Kind::NonmonotonicPoll]);
    // Taking the partition up again is no going back.
    let mut h = acked_two();
    h.assign(4, Some(0), None)
        .poll(4, &[read(0, 10)])
        .assign(4, Some(0), None)
        .poll(4, &[read(0, 10), read(1, 11)]);
    finds(h.drain(&[10, 11]), &[]);
}

#[test]
fn poll_skip() {
    let mut h = History::new();
    h.send(1, &[10, 11, 12]).ack(&[(10, 0), (11, 1), (12, 2)]);
    h.assign(4, Some(0), None).poll(4, &[read(0, 10), read(2, 12)]);
    finds(h.drain(&[10, 11, 12]), &[Kind::PollSkip]);
    // From where it began, too.
    let mut h = acked_two();
    h.assign(4, Some(0), None).poll(4, &[read(1, 11)]);
    finds(h.drain(&[10, 11]), &[Kind::PollSkip]);
}

#[test]
fn ends() {
    let mut h = acked_two();
    finds(h.ends(1).drain(&[10, 11]), &[Kind::StaleEnd]);
    let mut h = History::new();
    h.send(1, &[10, 11]).ends(2);
    finds(h.ends(1).drain(&[10, 11]), &[Kind::WatermarkWentBack]);
    // Asked before the acknowledgement came, answered after it: either is right.
    let mut h = History::new();
    h.send(1, &[10]);
    let began = h.now();
    h.ack(&[(10, 0)]);
    h.push(0, Op::Ends { topic: TOPIC.into(), partition: 0, began, end: 0 });
    finds(h.drain(&[10]), &[]);
}

#[test]
fn commits() {
    let with = |read: &dyn Fn(&mut History)| {
        let mut h = acked_two();
        h.commit(1, 1).push(5, Op::CommitAcked { commit: 1 });
        h.commit(2, 2).push(5, Op::CommitAcked { commit: 2 });
        read(&mut h);
        h.drain(&[10, 11]);
        h
    };
    finds(&with(&|h| _ = h.committed(Some(2))), &[]);
    finds(&with(&|h| _ = h.committed(None)), &[Kind::LostCommit]);
    finds(&with(&|h| _ = h.committed(Some(1))), &[Kind::CommitWentBack]);
    finds(&with(&|h| _ = h.committed(Some(9))), &[Kind::ForeignCommit]);
    // A member that takes the partition up begins where the commit is.
    let takes_up =
        |from: i64| with(&|h| _ = h.assign(6, None, Some("g")).poll(6, &[read(from, 10 + from as u64)]));
    finds(&takes_up(0), &[Kind::LostCommit]);
    finds(&takes_up(1), &[Kind::CommitWentBack]);
    let mut h = acked_two();
    h.commit(1, 1).push(5, Op::CommitUnknown { commit: 1 });
    h.commit(2, 2).push(5, Op::CommitFailed { commit: 2 });
    h.assign(6, None, Some("g")).poll(6, &[read(1, 11)]).assign(6, None, Some("g")).poll(6, &[read(0, 10)]);
    finds(h.drain(&[10, 11]), &[]);
    // Past the commit is past a record.
    let mut h = History::new();
    h.send(1, &[10, 11]).assign(6, None, Some("g")).poll(6, &[read(1, 11)]);
    finds(h.drain(&[10, 11]), &[Kind::PollSkip]);
}

#[test]
fn holes_and_missing_last_reads() {
    let mut h = History::new();
    h.send(1, &[10, 12]).ack(&[(10, 0), (12, 2)]);
    h.drain_reads(&[read(0, 10), read(2, 12)]);
    finds(&h, &[Kind::OffsetHole]);
    assert!(h.try_check(Options::default()).unwrap().is_clean());
    finds(&acked_two(), &[Kind::NotDrained]);
}

#[test]
fn a_wrong_history_is_refused() {
    let refused =
        |h: &History| matches!(h.try_check(Options::default()), Err(HistoryError::Contradiction { .. }));
    assert!(refused(acked_two().send(1, &[10])));
    assert!(refused(acked_two().ack(&[(10, 0)])));
    assert!(refused(acked_two().ack(&[(99, 0)])));
    assert!(refused(History::new().send(8, &[10])));
    let mut h = acked_two();
    h.push(5, Op::CommitAcked { commit: 1 });
    assert!(refused(&h));
    let mut h = acked_two();
    h.events.swap(0, 3);
    assert!(refused(&h));
}

#[test]
fn a_run_that_did_nothing_does_not_count() {
    let report = acked_two().drain(&[10, 11]).check();
    assert_eq!(report.missing(&[(Requirement::Acks, 2), (Requirement::Reads, 1)]), [""; 0]);
    assert_eq!(report.missing(&[(Requirement::Acks, 3)]).len(), 1);
    let nothing =
        [Requirement::Faults, Requirement::CrashPoints, Requirement::Restarts, Requirement::Commits];
    assert_eq!(report.missing(&nothing.map(|r| (r, 1))).len(), 4);
}

#[test]
fn lines_are_what_the_writers_in_other_languages_write() {
    let lines = [
        r#"{"t":1,"c":7,"op":"producer","producer":1,"once":true,"ordered":true}"#,
        r#"{"t":2,"c":7,"op":"send","producer":1,"topic":"t","partition":0,"records":[[18446744073709551615,4294967295]]}"#,
        r#"{"t":3,"c":7,"op":"acked","records":[[18446744073709551615,0]]}"#,
        r#"{"t":4,"c":8,"op":"assign","topic":"t","partition":0,"group":"g"}"#,
        r#"{"t":5,"c":8,"op":"poll","topic":"t","partition":0,"last":true,"records":[[0,18446744073709551615,4294967295]]}"#,
        r#"{"t":6,"c":8,"op":"drained","topic":"t","partition":0,"end":1}"#,
        r#"{"t":7,"c":0,"op":"fault","kind":"kill","point":"a.b"}"#,
        r#"{"t":8,"c":0,"op":"restart"}"#,
    ];
    for line in lines {
        let event: Event = serde_json::from_str(line).unwrap();
        assert_eq!(event.to_line(), line);
    }
    // Two files are one history in order of time.
    let even: String = lines.iter().step_by(2).map(|l| format!("{l}\n")).collect();
    let odd: String = lines.iter().skip(1).step_by(2).map(|l| format!("{l}\n")).collect();
    let mut merge = Merge::new(vec![("a".into(), even.as_bytes()), ("b".into(), odd.as_bytes())]).unwrap();
    let times: Vec<u64> = std::iter::from_fn(|| merge.next_event().unwrap()).map(|e| e.time_ns).collect();
    assert_eq!(times, [1, 2, 3, 4, 5, 6, 7, 8]);
    let mut merge = Merge::new(vec![("a".into(), "\n{}".as_bytes())]).err();
    assert!(matches!(merge.take(), Some(HistoryError::Json { line: 2, .. })));
    assert!(matches!(check_files(&["/nonexistent"], Options::default()), Err(HistoryError::Io { .. })));
}
