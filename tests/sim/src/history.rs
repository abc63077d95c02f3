//! What the clients saw, in one order: that in which it happened. The world runs on one thread, so the order of the calls
//! is the true one, and each event's time is the world's plus its place among those of the same tick.

use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_protocol::records::Record;
use isobar_testkit::Rng;
use isobar_testkit::history::{Event, Op, Read};
use parking_lot::Mutex;

const MAGIC: &[u8; 4] = b"IBS1";
const HEAD_BYTES: usize = 4 + 8 + 4 + 4;

#[derive(Default)]
struct State {
    events: Vec<Event>,
    now_ns: u64,
    last_ns: u64,
    next_id: u64,
    next_producer: u32,
    next_commit: u64,
    problems: BTreeMap<String, u64>,
}

/// Takes events. A clone writes to the same history.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Mutex<State>>);

impl State {
    fn stamp(&mut self) -> u64 {
        self.last_ns = self.now_ns.max(self.last_ns + 1);
        self.last_ns
    }
}

impl Recorder {
    /// The world's clock has moved.
    pub fn set_now(&self, now_us: u64) {
        self.0.lock().now_ns = now_us * 1000;
    }

    /// A moment later than all that was recorded, and earlier than all that will be.
    pub fn stamp(&self) -> u64 {
        self.0.lock().stamp()
    }

    /// Something happened now.
    pub fn add(&self, client: u32, op: Op) {
        let state = &mut *self.0.lock();
        let time_ns = state.stamp();
        state.events.push(Event { time_ns, client, op });
    }

    /// Something that began at an earlier [`Self::stamp`].
    pub fn add_at(&self, time_ns: u64, client: u32, op: Op) {
        self.0.lock().events.push(Event { time_ns, client, op });
    }

    /// Numbers that no other record of this history has.
    pub fn ids(&self, count: u64) -> std::ops::Range<u64> {
        let state = &mut *self.0.lock();
        state.next_id += count;
        state.next_id - count + 1..state.next_id + 1
    }

    /// A producer begins its life; its number.
    pub fn producer(&self, client: u32, once: bool, ordered: bool) -> u32 {
        let producer = {
            let state = &mut *self.0.lock();
            state.next_producer += 1;
            state.next_producer
        };
        self.add(client, Op::Producer { producer, once, ordered });
        producer
    }

    /// A number for a commit.
    pub fn commit(&self) -> u64 {
        let state = &mut *self.0.lock();
        state.next_commit += 1;
        state.next_commit
    }

    /// What no history can show and still must not happen. The seed fails.
    pub fn problem(&self, what: impl Into<String>) {
        *self.0.lock().problems.entry(what.into()).or_default() += 1;
    }

    /// The problems, and how often each.
    pub fn problems(&self) -> BTreeMap<String, u64> {
        self.0.lock().problems.clone()
    }

    /// What came after `time_ns`, in order of time.
    pub fn since(&self, time_ns: u64) -> Vec<Event> {
        let mut events = self.0.lock().events.clone();
        events.retain(|event| event.time_ns > time_ns);
        events.sort_by_key(|event| event.time_ns);
        events
    }

    /// Everything, in order of time.
    pub fn finish(&self) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.0.lock().events);
        events.sort_by_key(|event| event.time_ns);
        events
    }
}

/// A value that names its record and partition and sums itself, with `size` bytes of noise.
pub fn value_of(id: u64, partition: i32, size: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEAD_BYTES + size + 4);
    value.extend_from_slice(MAGIC);
    value.extend_from_slice(&id.to_be_bytes());
    value.extend_from_slice(&partition.to_be_bytes());
    value.extend_from_slice(&u32::try_from(size).unwrap_or(u32::MAX).to_be_bytes());
    let mut noise = Rng::new(id);
    while value.len() < HEAD_BYTES + size {
        let left = HEAD_BYTES + size - value.len();
        value.extend_from_slice(&noise.next_u64().to_le_bytes()[..left.min(8)]);
    }
    let sum = crc32c::crc32c(&value);
    value.extend_from_slice(&sum.to_be_bytes());
    value
}

/// The record that a value names; `None` if it is not whole or belongs to another partition.
pub fn id_of(value: &[u8], partition: i32) -> Option<u64> {
    let (body, sum) = value.split_last_chunk::<4>()?;
    if body.get(..4)? != MAGIC || body.get(12..16)? != partition.to_be_bytes() {
        return None;
    }
    let size = u32::from_be_bytes(body.get(16..20)?.try_into().ok()?);
    if body.len() - HEAD_BYTES != size as usize || crc32c::crc32c(body) != u32::from_be_bytes(*sum) {
        return None;
    }
    Some(u64::from_be_bytes(body.get(4..12)?.try_into().ok()?))
}

/// Over all that was sent, so that a record whose parts are mixed up is not taken for whole.
pub fn sum_of<'a>(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
) -> u32 {
    let part = |sum, bytes: Option<&[u8]>| match bytes {
        None => crc32c::crc32c_append(sum, b"-"),
        Some(bytes) => {
            let sum = crc32c::crc32c_append(sum, &(bytes.len() as u64).to_be_bytes());
            crc32c::crc32c_append(sum, bytes)
        }
    };
    let sum = part(part(0, key), value);
    headers.fold(sum, |sum, (name, content)| part(part(sum, Some(name)), content))
}

/// What a consumer was given.
pub fn read_of(record: &Record<'_>, partition: i32) -> Read {
    let id = record.value.and_then(|value| id_of(value, partition));
    Read(record.offset, id, sum_of(record.key, record.value, record.headers.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_names_itself_and_any_change_is_seen() {
        for size in [0, 1, 7, 8, 100] {
            let value = value_of(77, 3, size);
            assert_eq!(id_of(&value, 3), Some(77));
            assert_eq!(id_of(&value, 2), None, "another partition");
            for at in 0..value.len() {
                let mut torn = value.clone();
                torn[at] ^= 1;
                assert_eq!(id_of(&torn, 3), None, "byte {at} of {size}");
            }
            assert_eq!(id_of(&value[..value.len() - 1], 3), None);
        }
        assert_eq!(id_of(b"", 0), None);
    }

    #[test]
    fn the_sum_tells_null_from_empty_and_where_parts_end() {
        let none = std::iter::empty::<(&[u8], Option<&[u8]>)>;
        let sums = [
            sum_of(None, Some(b"ab"), none()),
            sum_of(Some(b""), Some(b"ab"), none()),
            sum_of(Some(b"a"), Some(b"b"), none()),
            sum_of(None, Some(b"ab"), [(&b"h"[..], None)].into_iter()),
            sum_of(None, Some(b"ab"), [(&b"h"[..], Some(&b""[..]))].into_iter()),
        ];
        let mut distinct = sums.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), sums.len());
    }
}
