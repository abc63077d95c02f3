//! Numbers of sessions: repeats, floors and gaps (invariant 9 of DESIGN.md).

use super::{StateMachine, feature_of, refuse};
use crate::command::{Command, Envelope, FIRST_NUMBER};
use crate::ids::{LaneId, SessionId};
use crate::result::{CommandResult, RefusalKind};
use imbl::OrdMap;
use std::sync::Arc;

/// How many numbers may lie between the floor and a new one.
const MAX_UNANSWERED: u64 = 4096;
/// How many bytes of results a lane may keep before it refuses new numbers.
const MAX_RESULT_BYTES: usize = 16 << 20;

/// One lane of one session.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Lane {
    /// The lowest number whose result is still wanted.
    pub(crate) floor: u64,
    /// Commit lanes: the only number that is accepted. Unused in the control lane.
    pub(crate) next: u64,
    /// At or above the floor.
    pub(crate) results: OrdMap<u64, Arc<CommandResult>>,
    /// Encoded size of `results`.
    pub(crate) result_bytes: usize,
}

impl Lane {
    fn raise_floor(&mut self, floor: u64) {
        if floor <= self.floor {
            return;
        }
        self.floor = floor;
        while let Some((number, result)) = self.results.get_min() {
            let number = *number;
            if number >= floor {
                break;
            }
            self.result_bytes -= result_len(result);
            self.results.remove(&number);
        }
    }
}

pub(crate) fn result_len(result: &CommandResult) -> usize {
    use prost::Message;
    match result {
        CommandResult::Chunk(chunk) => 16 + 40 * chunk.batches.len(),
        CommandResult::Topics(topics) => 16 + topics.encoded_len(),
        CommandResult::Configs(configs) => 16 + configs.encoded_len(),
        CommandResult::Groups(groups) => 16 + 32 * groups.groups.len(),
        CommandResult::Offsets(offsets) => 16 + 4 * offsets.error_codes.len(),
        CommandResult::ObjectCommitted(object) => 16 + 4 * object.applied.len(),
        CommandResult::LogStarts(starts) => 16 + 16 * starts.partitions.len(),
        _ => 128,
    }
}

impl StateMachine {
    /// A command under a number: repeat, fence, floor, gap, and only then the command itself.
    pub(super) fn numbered(&mut self, envelope: &Envelope, command: &Command) -> CommandResult {
        let (session, number) = (envelope.session, envelope.number);
        let Some(record) = self.image.sessions.get(&session) else {
            return refuse(RefusalKind::UnknownSession, 0);
        };
        let fenced = record.is_fenced();
        let key = (session, envelope.lane);
        if number < FIRST_NUMBER || envelope.floor > number {
            return refuse(RefusalKind::Malformed, 0);
        }
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.raise_floor(envelope.floor);
            if let Some(result) = lane.results.get(&number) {
                return CommandResult::clone(result);
            }
        }
        if fenced {
            return refuse(RefusalKind::Fenced, 0);
        }
        let (floor, next, bytes) = self
            .lanes
            .get(&key)
            .map_or((envelope.floor, FIRST_NUMBER, 0), |lane| (lane.floor, lane.next, lane.result_bytes));
        let commit_lane = envelope.lane != LaneId::CONTROL;
        if number < floor || (commit_lane && number < next) {
            return refuse(RefusalKind::BelowFloor, floor);
        }
        if commit_lane && number > next {
            return refuse(RefusalKind::Gap, next);
        }
        if number - floor.max(FIRST_NUMBER) >= MAX_UNANSWERED || bytes >= MAX_RESULT_BYTES {
            return refuse(RefusalKind::TooManyUnanswered, floor);
        }
        if self.feature_level() < feature_of(command) {
            return refuse(RefusalKind::Feature, u64::from(feature_of(command)));
        }
        let result = match (command, commit_lane) {
            (Command::CommitChunk(commit), true) => match self.commit_chunk(session, envelope.lane, commit) {
                Ok(result) => CommandResult::Chunk(result),
                Err(refusal) => return refuse(refusal, 0),
            },
            (Command::CommitChunk(_), false) | (_, true) => return refuse(RefusalKind::Malformed, 0),
            (command, false) => match self.control(session, command) {
                Some(result) => result,
                None => return refuse(RefusalKind::Malformed, 0),
            },
        };
        self.settle();
        self.keep_result(key, envelope, &result);
        result
    }

    fn keep_result(&mut self, key: (SessionId, LaneId), envelope: &Envelope, result: &CommandResult) {
        let new = || Lane { next: FIRST_NUMBER, ..Lane::default() };
        let lane = self.lanes.entry(key).or_insert_with(new);
        lane.raise_floor(envelope.floor);
        lane.next = envelope.number + 1;
        lane.result_bytes += result_len(result);
        lane.results.insert(envelope.number, Arc::new(result.clone()));
    }

    /// Forgets all numbers and results of a session.
    pub(super) fn forget_lanes(&mut self, session: SessionId) {
        let from = (session, LaneId::CONTROL);
        let to = (session, LaneId(u32::MAX));
        let keys: Vec<_> = self.lanes.range(from..=to).map(|(key, _)| *key).collect();
        for key in keys {
            self.lanes.remove(&key);
        }
    }
}
