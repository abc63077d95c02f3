//! What a recovered cluster may hold, and what a damaged one may show. Pure.

use std::collections::{BTreeMap, BTreeSet};

use isobar_client::TopicPartition;
use isobar_testkit::history::{Event, Op};

use crate::load::hand::{Log, Survey};

/// What went on after the last survey, as its clients know it.
#[derive(Default)]
struct Heard {
    /// id: partition, checksum, when it was sent.
    sent: BTreeMap<u64, (TopicPartition, u32, u64)>,
    /// id: offset, when that was known.
    acked: BTreeMap<u64, (Option<i64>, u64)>,
    /// commit: group, partition, offset, when it was asked.
    commits: BTreeMap<u64, ((String, TopicPartition), i64, u64)>,
    /// commit: when it was known.
    committed: BTreeMap<u64, u64>,
}

impl Heard {
    fn of(events: &[Event]) -> Self {
        let mut heard = Self::default();
        for Event { time_ns, op, .. } in events {
            match op {
                Op::Send { topic, partition, records, .. } => {
                    let at = TopicPartition::new(topic.clone(), *partition);
                    heard.sent.extend(records.iter().map(|(id, sum)| (*id, (at.clone(), *sum, *time_ns))));
                }
                Op::Acked { records } => {
                    heard.acked.extend(records.iter().map(|(id, offset)| (*id, (*offset, *time_ns))));
                }
                Op::Commit { commit, group, topic, partition, offset } => {
                    let at = (group.clone(), TopicPartition::new(topic.clone(), *partition));
                    heard.commits.insert(*commit, (at, *offset, *time_ns));
                }
                Op::CommitAcked { commit } => {
                    heard.committed.insert(*commit, *time_ns);
                }
                _ => {}
            }
        }
        heard
    }
}

/// A cut: what is in it began, and what is not was known to be done, at these times.
#[derive(Default)]
struct Cut {
    last_in: Option<(u64, String)>,
    first_out: Option<(u64, String)>,
}

impl Cut {
    fn has(&mut self, began_ns: u64, what: impl FnOnce() -> String) {
        if self.last_in.as_ref().is_none_or(|(at, _)| *at < began_ns) {
            self.last_in = Some((began_ns, what()));
        }
    }

    fn lacks(&mut self, known_ns: u64, what: impl FnOnce() -> String) {
        if self.first_out.as_ref().is_none_or(|(at, _)| *at > known_ns) {
            self.first_out = Some((known_ns, what()));
        }
    }
}

/// What the judge found.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub wrong: Vec<String>,
    /// Things that were known to be done and are lacking.
    pub lacking: u64,
}

/// What clients have asked for at any time.
pub(super) struct Ever {
    /// Group and partition, offset.
    commits: BTreeSet<((String, TopicPartition), i64)>,
    /// As in [`Heard`].
    sent: BTreeMap<u64, (TopicPartition, u32, u64)>,
}

pub(super) fn ever(events: &[Event]) -> Ever {
    let Heard { commits, sent, .. } = Heard::of(events);
    Ever { commits: commits.into_values().map(|(key, offset, _)| (key, offset)).collect(), sent }
}

/// Whether `after` is one cut through what was: `before`, and what the clients heard since. `ever`: of all the time, for a cut
/// may lie before `before`, and what nobody waits for (acks=0) may come after it.
pub(super) fn recovered(
    before: &Survey,
    events: &[Event],
    ever: &Ever,
    after: &Survey,
    complete: bool,
) -> Verdict {
    let heard = Heard::of(events);
    let mut verdict = Verdict { wrong: after.errors.clone(), lacking: 0 };
    let wrong = &mut verdict.wrong;
    let mut cut = Cut::default();
    let empty = Log::default();
    let mut ids: BTreeSet<u64> = BTreeSet::new();
    for (at, log) in &after.logs {
        let old = before.logs.get(at).unwrap_or(&empty);
        same_prefix(at, old, log, wrong);
        let missing = old.end - log.end;
        if missing > 0 {
            // All of it was known to be done when the events began.
            verdict.lacking += missing.unsigned_abs();
            cut.lacks(0, || format!("{at} offsets {} to {}", log.end, old.end));
        }
        for read in log.records() {
            ids.extend(read.1);
            if read.0 < old.end {
                continue;
            }
            let sent = |id| heard.sent.get(&id).or_else(|| ever.sent.get(&id));
            let Some((to, sum, began_ns)) = read.1.and_then(sent) else {
                wrong.push(format!("{at} offset {}: a record that nobody sent: {read:?}", read.0));
                continue;
            };
            if (to, *sum) != (at, read.2) {
                wrong.push(format!("{at} offset {}: not what was sent to {to}: {read:?}", read.0));
            }
            cut.has(*began_ns, || format!("{at} offset {}", read.0));
        }
    }
    for (at, old) in &before.logs {
        if !after.logs.contains_key(at) && old.end > 0 {
            wrong.push(format!("{at} was not asked for"));
        }
    }
    let offset_of: BTreeMap<(u64, &TopicPartition), i64> = after
        .logs
        .iter()
        .flat_map(|(at, log)| log.records().filter_map(move |read| Some(((read.1?, at), read.0))))
        .collect();
    for (id, (offset, known_ns)) in &heard.acked {
        let Some((at, ..)) = heard.sent.get(id) else { continue };
        if !ids.contains(id) {
            verdict.lacking += 1;
            cut.lacks(*known_ns, || format!("record {id} of {at}, acknowledged at {offset:?}"));
        } else if let Some(offset) = offset {
            // A plain producer's record may be there twice; then the map has one of them.
            let there = after.logs.get(at).is_some_and(|log| {
                offset_of.get(&(*id, at)) == Some(offset)
                    || log.records().any(|read| read.0 == *offset && read.1 == Some(*id))
            });
            if !there {
                wrong.push(format!("record {id} of {at} was acknowledged at {offset} and lies elsewhere"));
            }
        }
    }
    groups(before, &heard, ever, after, &mut cut, &mut verdict);
    let wrong = &mut verdict.wrong;
    if let (Some((began, inside)), Some((known, outside))) = (&cut.last_in, &cut.first_out)
        && began > known
    {
        wrong.push(format!(
            "not one cut: {inside} is there, sent at {began} ns, and {outside} is not, known at {known} ns"
        ));
    }
    if complete && verdict.lacking > 0 {
        let what = cut.first_out.map(|(_, what)| what).unwrap_or_default();
        verdict.wrong.push(format!(
            "{} things are lacking although everything had been archived, first {what}",
            verdict.lacking
        ));
    }
    verdict
}

/// Batch for batch, up to the shorter end.
fn same_prefix(at: &TopicPartition, old: &Log, new: &Log, wrong: &mut Vec<String>) {
    if let Some(error) = &new.error {
        wrong.push(format!("{at} cannot be read: {error}"));
    }
    if new.start != old.start {
        wrong.push(format!("{at} began at {} and begins at {}", old.start, new.start));
    }
    for (a, b) in old.batches.iter().zip(&new.batches) {
        if a != b {
            wrong.push(format!("{at} has another batch at {}: {b:?}, it was {a:?}", a.base));
            return;
        }
    }
    if new.read_to() != new.end {
        wrong.push(format!("{at} ends at {} and was read to {}", new.end, new.read_to()));
    }
    dense(at, new, wrong);
}

fn dense(at: &TopicPartition, log: &Log, wrong: &mut Vec<String>) {
    for (next, read) in (log.start..).zip(log.records()) {
        if read.0 != next {
            wrong.push(format!("{at} has offset {} in place of {next}", read.0));
            return;
        }
    }
}

fn groups(before: &Survey, heard: &Heard, ever: &Ever, after: &Survey, cut: &mut Cut, verdict: &mut Verdict) {
    for ((group, at), offset) in &after.offsets {
        let end = after.logs.get(at).map_or(0, |log| log.end);
        if *offset > end {
            verdict.wrong.push(format!("group {group} has committed {offset} of {at}, which ends at {end}"));
        }
        let key = (group.clone(), at.clone());
        if before.offsets.get(&key) != Some(offset) && !ever.commits.contains(&(key, *offset)) {
            verdict.wrong.push(format!("group {group} has committed {offset} of {at}, which nobody did"));
        }
    }
    for (key, old) in &before.offsets {
        if after.offsets.get(key).is_none_or(|new| new < old) {
            verdict.lacking += 1;
            cut.lacks(0, || format!("{key:?} at {old}"));
        }
    }
    // Those of the marks only grow, one after the other.
    for (commit, (key, offset, began_ns)) in &heard.commits {
        let is_in = after.offsets.get(key).is_some_and(|new| new >= offset);
        if is_in {
            cut.has(*began_ns, || format!("{key:?} at {offset}"));
        } else if let Some(known_ns) = heard.committed.get(commit) {
            verdict.lacking += 1;
            cut.lacks(*known_ns, || format!("{key:?} at {offset}"));
        }
    }
}

/// Whether what is shown is what was, or an error. `may_lack`: records at the end of the marks that a torn write may have taken.
/// Gives what is wrong, and the partitions with an error.
pub(super) fn damaged(before: &Survey, after: &Survey, may_lack: i64) -> (Vec<String>, Vec<String>) {
    let (mut wrong, mut refused) = (Vec::new(), Vec::new());
    for (at, old) in &before.logs {
        let Some(new) = after.logs.get(at) else {
            refused.push(format!("{at}: not asked"));
            continue;
        };
        for (a, b) in old.batches.iter().zip(&new.batches) {
            if a != b {
                wrong.push(format!("{at} has another batch at {}: {b:?}, it was {a:?}", a.base));
            }
        }
        dense(at, new, &mut wrong);
        if new.wrong {
            wrong.push(format!("{at} was served with bytes that are wrong: {:?}", new.error));
        } else if let Some(error) = &new.error {
            refused.push(format!("{at} from {}: {error}", new.read_to()));
        } else if new.end > old.end || new.end < old.end - may_lack || new.start != old.start {
            wrong.push(format!("{at} was {} to {}, and is {} to {}", old.start, old.end, new.start, new.end));
        }
    }
    let lost = |(key, old): &(&(String, TopicPartition), &i64)| after.offsets.get(*key) != Some(*old);
    if after.errors.is_empty() {
        wrong.extend(before.offsets.iter().filter(lost).map(|(key, old)| format!("{key:?} was at {old}")));
    } else {
        refused.extend(after.errors.iter().cloned());
    }
    (wrong, refused)
}

#[cfg(test)]
mod tests {
    use isobar_testkit::history::Read;

    use super::*;
    use crate::load::hand::Batch;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition::new("t", partition)
    }

    fn log(partition: i32, count: u64) -> Log {
        let batch = |offset: i64| {
            let id = offset as u64 * 10 + partition as u64;
            Batch {
                base: offset,
                end: offset + 1,
                epoch: 0,
                producer: 1,
                sum: id as u32,
                records: vec![Read(offset, Some(id), id as u32)],
            }
        };
        let batches = (0..count as i64).map(batch).collect();
        Log { batches, start: 0, end: count as i64, error: None, wrong: false }
    }

    fn survey(counts: &[u64], offset: i64) -> Survey {
        let logs = counts.iter().zip(0..).map(|(count, partition)| (at(partition), log(partition, *count)));
        let offsets = BTreeMap::from([(("g".to_owned(), at(0)), offset)]);
        Survey { logs: logs.collect(), offsets, ..Survey::default() }
    }

    /// Rounds over two partitions, one record after the other, and a commit of each of partition 0.
    fn events(from: u64, to: u64) -> Vec<Event> {
        let mut events = Vec::new();
        let mut time_ns = 1;
        let mut add = |op| {
            time_ns += 1;
            events.push(Event { time_ns, client: 1, op });
        };
        for offset in from..to {
            for partition in 0..2 {
                let id = offset * 10 + partition as u64;
                let (topic, records) = ("t".to_owned(), vec![(id, id as u32)]);
                add(Op::Send { producer: 1, topic, partition, records });
                add(Op::Acked { records: vec![(id, Some(offset as i64))] });
            }
            let (group, topic, offset) = ("g".to_owned(), "t".to_owned(), offset as i64 + 1);
            let commit = offset as u64;
            add(Op::Commit { commit, group, topic, partition: 0, offset });
            add(Op::CommitAcked { commit });
        }
        events
    }

    fn judged(counts: &[u64], offset: i64, complete: bool) -> Vec<String> {
        let events = events(3, 9);
        recovered(&survey(&[3, 3], 3), &events, &ever(&events), &survey(counts, offset), complete).wrong
    }

    #[test]
    fn one_cut_is_accepted_wherever_it_is() {
        for (counts, offset) in [([3, 3], 3), ([4, 3], 3), ([4, 4], 3), ([4, 4], 4), ([9, 9], 9), ([2, 2], 2)]
        {
            // The last one: what was known before the events is out, and nothing of them is in.
            let mut known = judged(&counts, offset, false);
            known.retain(|what| !what.contains("nobody did"));
            assert_eq!(known, Vec::<String>::new(), "{counts:?} {offset}");
        }
        assert_eq!(judged(&[9, 9], 9, true), Vec::<String>::new());
        assert_eq!(judged(&[9, 8], 8, true).len(), 1);
    }

    #[test]
    fn what_was_sent_before_the_last_survey_may_come_after_it() {
        let all = events(3, 9);
        // Without the first record's sending and acknowledgement.
        let since = &all[2..];
        let verdict = |known: &[Event]| {
            recovered(&survey(&[3, 3], 3), since, &ever(known), &survey(&[9, 9], 9), true).wrong
        };
        assert_eq!(verdict(&all), Vec::<String>::new());
        assert_eq!(verdict(since).len(), 1);
    }

    #[test]
    fn two_cuts_are_seen() {
        for (counts, offset) in [([5, 3], 3), ([3, 4], 3), ([9, 5], 5), ([5, 5], 3), ([4, 4], 5), ([2, 5], 3)]
        {
            assert_ne!(judged(&counts, offset, false), Vec::<String>::new(), "{counts:?} {offset}");
        }
    }

    #[test]
    fn another_content_or_order_or_a_hole_is_seen() {
        let change: [fn(&mut Log); 4] = [
            |log| log.batches[1].sum ^= 1,
            |log| drop(log.batches.remove(6)),
            |log| log.batches[7].records[0].2 ^= 1,
            |log| log.error = Some("gone".into()),
        ];
        for change in change {
            let mut after = survey(&[9, 9], 9);
            change(after.logs.get_mut(&at(1)).unwrap());
            let events = events(3, 9);
            let verdict = recovered(&survey(&[3, 3], 3), &events, &ever(&events), &after, false);
            assert_ne!(verdict.wrong, Vec::<String>::new());
        }
    }

    #[test]
    fn damage_may_refuse_and_not_change() {
        let before = survey(&[5, 5], 2);
        assert_eq!(damaged(&before, &before, 0), (vec![], vec![]));
        let mut after = before.clone();
        let log = after.logs.get_mut(&at(1)).unwrap();
        log.batches.truncate(2);
        log.error = Some("KAFKA_STORAGE_ERROR".into());
        let (wrong, refused) = damaged(&before, &after, 0);
        assert_eq!((wrong.len(), refused.len()), (0, 1));
        after.logs.get_mut(&at(1)).unwrap().error = None;
        after.logs.get_mut(&at(1)).unwrap().end = 2;
        assert_eq!(damaged(&before, &after, 0).0.len(), 1, "a log that is shorter without a word");
        let mut after = before.clone();
        after.logs.get_mut(&at(0)).unwrap().batches[4].sum ^= 1;
        assert_eq!(damaged(&before, &after, 0).0.len(), 1, "other bytes");
    }
}
