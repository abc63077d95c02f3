//! Incremental fetch sessions (KIP-227): what a client asked for stays here, and it sends and gets only changes.
//!
//! Owns: the sessions of one broker, at most [`Options::fetch_session_slots`](crate::options::Options); beyond that
//! (and while none has been idle for [`EVICT_AFTER`]) clients are served without one. A session is soft state: losing
//! it costs one full request.
//!
//! Invariants:
//! 1. A session's epoch is that of the next request it takes; any other is INVALID_FETCH_SESSION_EPOCH.
//! 2. An incremental response leaves out a partition only if nothing of it changed since the last response.
//! 3. Partitions that sent records go to the end of the line, so a busy one cannot starve the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isobar_protocol::TopicRef;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::fetch::FetchPartition;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Epoch of a request that wants no session, or ends one.
const FINAL_EPOCH: i32 = -1;
/// Epoch of a request that starts a session.
const INITIAL_EPOCH: i32 = 0;
/// A full cache gives up sessions idle for this long (Kafka's `min.incremental.fetch.session.eviction.ms`).
const EVICT_AFTER: Duration = Duration::from_secs(120);

/// One partition that a client wants to read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) topic: TopicRef,
    pub(crate) partition: i32,
    /// -1 if the client does not say.
    pub(crate) current_leader_epoch: i32,
    pub(crate) fetch_offset: i64,
    /// Epoch of the client's last record, for truncation detection (KIP-595); -1 if it does not say.
    pub(crate) last_fetched_epoch: i32,
    pub(crate) max_bytes: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    topic: TopicKey,
    partition: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum TopicKey {
    Name(String),
    Id([u8; 16]),
}

fn key_of(topic: &TopicRef, partition: i32) -> Key {
    let topic = match topic {
        TopicRef::Name(name) => TopicKey::Name(name.to_string()),
        TopicRef::Id(id) => TopicKey::Id(id.into_bytes()),
    };
    Key { topic, partition }
}

struct Held {
    asked: Asked,
    /// Place in line: smaller is served first.
    turn: u64,
    last_high_watermark: i64,
    last_log_start: i64,
}

struct Session {
    id: i32,
    next_epoch: i32,
    by_id: bool,
    used: Instant,
    partitions: BTreeMap<Key, Held>,
    next_turn: u64,
}

impl Session {
    fn put(&mut self, asked: Asked) {
        let key = key_of(&asked.topic, asked.partition);
        if let Some(held) = self.partitions.get_mut(&key) {
            held.asked = asked;
            return;
        }
        let turn = self.next_turn;
        self.next_turn += 1;
        self.partitions.insert(key, Held { asked, turn, last_high_watermark: -1, last_log_start: -1 });
    }

    fn in_turn(&self) -> Vec<Asked> {
        let mut held: Vec<&Held> = self.partitions.values().collect();
        held.sort_by_key(|held| held.turn);
        held.into_iter().map(|held| held.asked.clone()).collect()
    }

    /// Notes what is about to be sent; false if an incremental response can leave it out.
    fn note(&mut self, topic: &TopicRef, sent: &FetchPartition, has_records: bool) -> bool {
        let next_turn = self.next_turn;
        let Some(held) = self.partitions.get_mut(&key_of(topic, sent.index)) else { return true };
        let changed = has_records
            || sent.error != ErrorCode::None
            || sent.high_watermark != held.last_high_watermark
            || sent.log_start_offset != held.last_log_start
            || sent.preferred_read_replica >= 0
            || sent.diverging_epoch.is_some();
        // After an error the next good answer must go out, whatever it says.
        held.last_high_watermark = if sent.error == ErrorCode::None { sent.high_watermark } else { -1 };
        held.last_log_start = sent.log_start_offset;
        if has_records {
            held.turn = next_turn;
            self.next_turn += 1;
        }
        changed
    }
}

/// The sessions of one broker.
pub(crate) struct Sessions {
    slots: usize,
    sessions: Mutex<BTreeMap<i32, Arc<Mutex<Session>>>>,
}

/// What one request reads, and the session it belongs to.
pub(crate) struct Context {
    /// In the order in which they are to be served.
    pub(crate) asked: Vec<Asked>,
    session: Option<Arc<Mutex<Session>>>,
    incremental: bool,
}

impl Context {
    /// The id to answer with; 0: no session.
    pub(crate) fn session_id(&self) -> i32 {
        self.session.as_ref().map_or(0, |session| session.lock().id)
    }

    /// Whether this partition has to be in the response.
    pub(crate) fn must_send(&self, topic: &TopicRef, partition: &FetchPartition) -> bool {
        let has_records = partition.records.len_bytes() > 0;
        match &self.session {
            Some(session) => session.lock().note(topic, partition, has_records) || !self.incremental,
            None => true,
        }
    }
}

/// What a Fetch request says of sessions.
pub(crate) struct Terms {
    pub(crate) session_id: i32,
    pub(crate) session_epoch: i32,
    pub(crate) forgotten: Vec<(TopicRef, i32)>,
    /// The request names topics by id (v13 and later).
    pub(crate) by_id: bool,
}

impl Sessions {
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots, sessions: Mutex::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.sessions.lock().len()
    }

    /// Finds or makes the session that a request belongs to. `random` is the id of a new one, if it is free.
    pub(crate) fn begin(
        &self,
        terms: &Terms,
        asked: Vec<Asked>,
        now: Instant,
        random: u32,
    ) -> Result<Context, ErrorCode> {
        if terms.session_epoch == INITIAL_EPOCH || terms.session_epoch == FINAL_EPOCH {
            if terms.session_id != 0 {
                self.sessions.lock().remove(&terms.session_id);
            }
            let wanted = terms.session_epoch == INITIAL_EPOCH && !asked.is_empty();
            let session = if wanted { self.create(terms.by_id, &asked, now, random) } else { None };
            return Ok(Context { asked, session, incremental: false });
        }
        let session = self.sessions.lock().get(&terms.session_id).cloned();
        let Some(session) = session else { return Err(ErrorCode::FetchSessionIdNotFound) };
        let mut held = session.lock();
        if held.next_epoch != terms.session_epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        if held.by_id != terms.by_id {
            return Err(ErrorCode::FetchSessionTopicIdError);
        }
        held.next_epoch = if held.next_epoch == i32::MAX { 1 } else { held.next_epoch + 1 };
        held.used = now;
        for asked in asked {
            held.put(asked);
        }
        for (topic, partition) in &terms.forgotten {
            held.partitions.remove(&key_of(topic, *partition));
        }
        let asked = held.in_turn();
        drop(held);
        Ok(Context { asked, session: Some(session), incremental: true })
    }

    fn create(&self, by_id: bool, asked: &[Asked], now: Instant, random: u32) -> Option<Arc<Mutex<Session>>> {
        let mut sessions = self.sessions.lock();
        if sessions.len() >= self.slots {
            let idlest = sessions.iter().map(|(&id, session)| (session.lock().used, id)).min()?;
            if now.duration_since(idlest.0) < EVICT_AFTER {
                return None;
            }
            sessions.remove(&idlest.1);
        }
        let mut id = (random & 0x7fff_ffff).max(1).cast_signed();
        while sessions.contains_key(&id) {
            id = if id == i32::MAX { 1 } else { id + 1 };
        }
        let mut session =
            Session { id, next_epoch: 1, by_id, used: now, partitions: BTreeMap::new(), next_turn: 0 };
        for asked in asked {
            session.put(asked.clone());
        }
        let session = Arc::new(Mutex::new(session));
        sessions.insert(id, Arc::clone(&session));
        Some(session)
    }
}

#[cfg(test)]
mod tests {
    use isobar_protocol::fetch::RecordSet;

    use super::*;

    fn asked(partition: i32, fetch_offset: i64) -> Asked {
        Asked {
            topic: TopicRef::Name("t".to_owned().into()),
            partition,
            current_leader_epoch: -1,
            fetch_offset,
            last_fetched_epoch: -1,
            max_bytes: 1 << 20,
        }
    }

    fn terms(session_id: i32, session_epoch: i32) -> Terms {
        Terms { session_id, session_epoch, forgotten: Vec::new(), by_id: false }
    }

    fn answer(index: i32, high_watermark: i64, records: usize) -> FetchPartition {
        let mut set = RecordSet::default();
        if records > 0 {
            set.push(bytes::Bytes::from(vec![0; records]));
        }
        FetchPartition {
            index,
            error: ErrorCode::None,
            high_watermark,
            last_stable_offset: high_watermark,
            log_start_offset: 0,
            aborted: None,
            preferred_read_replica: -1,
            current_leader: None,
            diverging_epoch: None,
            records: set,
        }
    }

    #[tokio::test]
    async fn incremental_requests_carry_and_get_changes_only() {
        let sessions = Sessions::new(2);
        let now = Instant::now();
        let first = sessions.begin(&terms(0, 0), vec![asked(0, 5), asked(1, 7)], now, 42).unwrap();
        assert_eq!(first.session_id(), 42);
        let topic = TopicRef::Name("t".to_owned().into());
        assert!(first.must_send(&topic, &answer(0, 9, 10)));
        assert!(first.must_send(&topic, &answer(1, 7, 0)));

        let second = sessions.begin(&terms(42, 1), vec![asked(0, 9)], now, 0).unwrap();
        // Partition 0 has had its turn; partition 1 was not named, and stays as it was asked for.
        assert_eq!(second.asked, vec![asked(1, 7), asked(0, 9)]);
        assert!(!second.must_send(&topic, &answer(0, 9, 0)));
        assert!(second.must_send(&topic, &answer(1, 8, 0)));

        let mut forget = terms(42, 2);
        forget.forgotten = vec![(topic, 1)];
        let third = sessions.begin(&forget, Vec::new(), now, 0).unwrap();
        assert_eq!(third.asked, vec![asked(0, 9)]);
    }

    #[tokio::test]
    async fn wrong_ids_and_epochs_are_refused() {
        let sessions = Sessions::new(2);
        let now = Instant::now();
        sessions.begin(&terms(0, 0), vec![asked(0, 5)], now, 42).unwrap();
        let refused = |terms| sessions.begin(&terms, Vec::new(), now, 0).err();
        assert_eq!(refused(terms(7, 1)), Some(ErrorCode::FetchSessionIdNotFound));
        assert_eq!(refused(terms(42, 2)), Some(ErrorCode::InvalidFetchSessionEpoch));
        let mut by_id = terms(42, 1);
        by_id.by_id = true;
        assert_eq!(refused(by_id), Some(ErrorCode::FetchSessionTopicIdError));
        // Epoch -1 closes it.
        assert_eq!(sessions.begin(&terms(42, -1), Vec::new(), now, 0).unwrap().session_id(), 0);
        assert_eq!(refused(terms(42, 1)), Some(ErrorCode::FetchSessionIdNotFound));
    }

    #[tokio::test]
    async fn a_full_cache_gives_up_only_idle_sessions() {
        let sessions = Sessions::new(1);
        let now = Instant::now();
        sessions.begin(&terms(0, 0), vec![asked(0, 5)], now, 1).unwrap();
        assert_eq!(sessions.begin(&terms(0, 0), vec![asked(0, 5)], now, 2).unwrap().session_id(), 0);
        let later = now + EVICT_AFTER;
        assert_eq!(sessions.begin(&terms(0, 0), vec![asked(0, 5)], later, 3).unwrap().session_id(), 3);
    }
}
