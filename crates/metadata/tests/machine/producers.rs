use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const DAY_MS: i64 = 86_400_000;

fn grant(rig: &mut Rig, session: SessionId) -> i64 {
    match rig.control(session, Command::GrantProducerId(GrantProducerId { count: 1 })) {
        CommandResult::ProducerIds(granted) => granted.first,
        other => panic!("{other:?}"),
    }
}

/// Time passes in steps that are no jump.
fn pass(rig: &mut Rig, ms: i64) {
    let until = rig.time_ms + ms;
    let checked = std::mem::replace(&mut rig.checked, false);
    while rig.time_ms < until {
        rig.time_ms = until.min(rig.time_ms + TIME_JUMP_MS);
        rig.run(vec![]);
    }
    rig.checked = checked;
}

#[test]
fn repeats_gaps_and_epochs() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    let id = grant(&mut rig, broker.0);
    let mut send = |epoch, sequence, count| {
        let result = rig.commit(broker, (topic, 0), vec![idempotent(id, epoch, sequence, count)])[0];
        (result.error_code, result.base_offset, result.duplicate)
    };
    assert_eq!(send(0, 5, 1), (codes::OUT_OF_ORDER_SEQUENCE_NUMBER, -1, false));
    for n in 0..7 {
        assert_eq!(send(0, n * 10, 10), (0, i64::from(n) * 10, false));
    }
    assert_eq!(send(0, 60, 10), (0, 60, true));
    assert_eq!(send(0, 20, 10), (0, 20, true));
    assert_eq!(send(0, 10, 10), (codes::OUT_OF_ORDER_SEQUENCE_NUMBER, -1, false), "older than five");
    assert_eq!(send(0, 60, 5), (codes::OUT_OF_ORDER_SEQUENCE_NUMBER, -1, false));
    assert_eq!(send(0, 71, 1), (codes::OUT_OF_ORDER_SEQUENCE_NUMBER, -1, false));
    assert_eq!(send(1, 3, 1), (codes::OUT_OF_ORDER_SEQUENCE_NUMBER, -1, false), "a new epoch starts at 0");
    assert_eq!(send(1, 0, 1), (0, 70, false));
    assert_eq!(send(0, 70, 1), (codes::INVALID_PRODUCER_EPOCH, -1, false));
    assert_eq!(send(1, -1, 1), (codes::INVALID_RECORD, -1, false));
}

#[test]
fn ids_are_granted_once_and_others_are_unknown() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    let first = grant(&mut rig, broker.0);
    let second = grant(&mut rig, broker.0);
    assert!(second > first);
    let result = rig.commit(broker, (topic, 0), vec![idempotent(second + 1, 0, 0, 1)]);
    assert_eq!(result[0].error_code, codes::UNKNOWN_PRODUCER_ID);
    rig.leader(Command::RaiseIncarnation(RaiseIncarnation { incarnation: 1 }));
    let session = rig.register(1, "");
    assert_eq!(grant(&mut rig, session), (1 << 48) + 1);
}

#[test]
fn duplicates_in_one_chunk_are_seen() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    let id = grant(&mut rig, broker.0);
    let mut batches =
        vec![idempotent(id, 0, 0, 2), idempotent(id, 0, 0, 2), idempotent(id, 0, 2, 1), plain(3, 1)];
    for (ordinal, batch) in batches.iter_mut().enumerate() {
        batch.ordinal = ordinal as u32;
    }
    let results = rig.commit(broker, (topic, 0), batches);
    let answers: Vec<_> = results.iter().map(|r| (r.base_offset, r.duplicate)).collect();
    assert_eq!(answers, [(0, false), (0, true), (2, false), (3, false)]);
    let ordinals: Vec<_> = rig.view(topic, 0).wal.values().map(|e| e.wal().unwrap().ordinals()).collect();
    assert_eq!(ordinals, [0..1, 2..4]);
}

#[test]
fn sequences_wrap_past_the_greatest() {
    let mut rig = Rig::new();
    rig.checked = false;
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    let id = grant(&mut rig, broker.0);
    let mut send =
        |sequence, count| rig.commit(broker, (topic, 0), vec![idempotent(id, 0, sequence, count)])[0];
    assert_eq!(send(0, i32::MAX as u32).error_code, 0);
    assert_eq!(send(i32::MAX, 3).error_code, 0);
    assert_eq!(send(i32::MAX, 3).base_offset, i64::from(i32::MAX));
    assert_eq!(send(2, 1).error_code, 0);
    assert_eq!(send(4, 1).error_code, codes::OUT_OF_ORDER_SEQUENCE_NUMBER);
}

#[test]
fn an_old_id_may_start_anywhere_once_it_may_be_forgotten() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 2);
    let shard = |rig: &Rig, partition| rig.machine.view().shard_of(PartitionKey::new(topic, partition));
    let id = grant(&mut rig, broker.0);
    rig.commit(broker, (topic, 0), vec![idempotent(id, 0, 0, 5)]);
    pass(&mut rig, DAY_MS / 2);
    let young = grant(&mut rig, broker.0);
    let expire = |rig: &mut Rig| {
        let shard = shard(rig, 0);
        match rig.leader(Command::ExpireProducers(ExpireProducers { shard })) {
            CommandResult::Expired(expired) => (expired.count, expired.held),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(expire(&mut rig), (0, false));
    let send = |rig: &mut Rig, id, partition, sequence| {
        rig.commit(broker, (topic, partition), vec![idempotent(id, 0, sequence, 1)])[0].error_code
    };
    assert_eq!(send(&mut rig, id, 1, 77), codes::OUT_OF_ORDER_SEQUENCE_NUMBER);
    pass(&mut rig, DAY_MS / 2 + 120_000);
    assert_eq!(expire(&mut rig), (1, false));
    assert_eq!(send(&mut rig, id, 0, 77), 0);
    assert_eq!(send(&mut rig, id, 0, 79), codes::OUT_OF_ORDER_SEQUENCE_NUMBER, "now it has state");
    assert_eq!(send(&mut rig, young, 1, 77), codes::OUT_OF_ORDER_SEQUENCE_NUMBER);
    // A clock that jumps opens no way round the sequence check.
    rig.time_ms += 3 * DAY_MS;
    assert_eq!(send(&mut rig, young, 1, 77), codes::OUT_OF_ORDER_SEQUENCE_NUMBER);
    assert_eq!(expire(&mut rig), (0, true));
    pass(&mut rig, TIME_JUMP_MS);
    assert_eq!(expire(&mut rig), (1, false));
    assert_eq!(send(&mut rig, young, 1, 77), 0);
}

#[test]
fn a_deleted_topics_producers_are_gone() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    let shard = rig.machine.view().shard_of(PartitionKey::new(topic, 0));
    let id = grant(&mut rig, broker.0);
    rig.commit(broker, (topic, 0), vec![idempotent(id, 0, 0, 5)]);
    rig.delete_for_good(broker.0, topic);
    pass(&mut rig, 2 * DAY_MS);
    let expired = rig.leader(Command::ExpireProducers(ExpireProducers { shard }));
    assert!(matches!(&expired, CommandResult::Expired(e) if e.count == 0 && !e.held), "{expired:?}");
}

/// First and last sequence, and offset.
type Accepted = (i32, i32, i64);

/// What a producer's batches come to, said as simply as it can be: the list of all accepted ones.
#[derive(Default)]
struct Model {
    accepted: BTreeMap<i64, (i32, Vec<Accepted>)>,
    next_offset: i64,
}

impl Model {
    fn send(&mut self, id: i64, epoch: i32, sequence: i32, count: u32) -> (i32, i64) {
        let last = ((i64::from(sequence) + i64::from(count) - 1) % (1 << 31)) as i32;
        let verdict = match self.accepted.get(&id) {
            None if sequence == 0 => Ok(()),
            None => Err(codes::OUT_OF_ORDER_SEQUENCE_NUMBER),
            Some((known, _)) if epoch < *known => Err(codes::INVALID_PRODUCER_EPOCH),
            Some((known, _)) if epoch > *known && sequence == 0 => Ok(()),
            Some((known, _)) if epoch > *known => Err(codes::OUT_OF_ORDER_SEQUENCE_NUMBER),
            Some((_, batches)) => {
                let five = &batches[batches.len().saturating_sub(5)..];
                if let Some(old) = five.iter().find(|(first, l, _)| (*first, *l) == (sequence, last)) {
                    return (0, old.2);
                }
                let newest = batches.last().unwrap().1;
                let expected = if newest == i32::MAX { 0 } else { newest + 1 };
                if sequence == expected { Ok(()) } else { Err(codes::OUT_OF_ORDER_SEQUENCE_NUMBER) }
            }
        };
        if let Err(code) = verdict {
            return (code, -1);
        }
        let state = self.accepted.entry(id).or_insert((epoch, vec![]));
        if state.0 != epoch {
            *state = (epoch, vec![]);
        }
        let offset = self.next_offset;
        state.1.push((sequence, last, offset));
        self.next_offset += i64::from(count);
        (0, offset)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn producers_follow_the_model(
        steps in prop::collection::vec((0..3usize, 0..6i32, 0..3u32, any::<u8>()), 1..80),
    ) {
        let mut rig = Rig::new();
        rig.checked = false;
        let broker = rig.broker(1);
        let topic = rig.topic(broker.0, "t", 1);
        let ids: Vec<i64> = (0..3).map(|_| grant(&mut rig, broker.0)).collect();
        let mut model = Model::default();
        let mut next = [(0i32, 0i32); 3];
        for (who, back, extra, roll) in steps {
            // Mostly the next sequence; else a step back, a step ahead, a new epoch, an old one, or near the wrap.
            let (epoch, sequence) = next[who];
            let (epoch, sequence) = match roll % 16 {
                0..=7 => (epoch, sequence),
                8..=10 => (epoch, (sequence - back).max(0)),
                11 => (epoch, sequence.saturating_add(back)),
                12 => (epoch + 1, 0),
                13 => (epoch + 1, back),
                14 => ((epoch - 1).max(0), sequence),
                _ => (epoch, i32::MAX - back),
            };
            let count = if roll > 240 { i32::MAX as u32 - 3 } else { extra + 1 };
            let batch = idempotent(ids[who], epoch, sequence, count);
            let result = rig.commit(broker, (topic, 0), vec![batch])[0];
            let expected = model.send(ids[who], epoch, sequence, count);
            prop_assert_eq!((result.error_code, result.base_offset), expected);
            if result.error_code == 0 && !result.duplicate {
                next[who] = (epoch, ((i64::from(sequence) + i64::from(count)) % (1 << 31)) as i32);
            }
        }
        prop_assert_eq!(rig.view(topic, 0).high_watermark, model.next_offset);
        rig.restart();
    }
}
