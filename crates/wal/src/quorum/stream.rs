//! One stream on several replicas: who has what, when a chunk is done, who is left behind. Pure: no clock, no I/O.
//!
//! Owns: the numbers of a stream, the appends that some replica has not answered, each replica's standing.
//!
//! Invariants
//! 1. A chunk is done when a write quorum has acknowledged it, never before, and chunks are told in order of their numbers.
//! 2. Of a number, replicas are sent one content only, unless every one that was sent the first has said that it did not keep
//!    it. Otherwise two replicas could hold different chunks by one name.
//! 3. A replica answers in order, so what it acknowledges has no gap. One that has a gap, that fails, that answers out of order, or
//!    that falls too far behind what is done is left behind for good: it is sent nothing more, and its answers no longer count
//!    (what it acknowledged before does).
//! 4. A replica is left behind for being slow only while the others are still a write quorum; a paused one holds up nobody, and what
//!    waits for it is bounded. One that does not answer at all for long is left behind even if that breaks the stream.
//! 5. With fewer than a write quorum the stream is broken, for good: all that is under way hears [`WalError::Closed`], and the
//!    chunks may be on some disks as garbage, which no commit names.
//!
//! Full: a replica without room has a gap if another took the chunk. If all that were sent it refuse, the chunk is
//! refused, so is what is under way behind it, and the stream then goes on from that number (as with one replica).

use std::collections::VecDeque;

use crate::{Acked, WalError};

/// The most replicas a stream may have: acknowledgements are bits of a u32.
pub const ENSEMBLE_MAX: usize = 32;

/// How far a replica may fall behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of chunks that are done and that it has not acknowledged.
    pub lag_bytes: u64,
    /// Chunks, likewise.
    pub lag_chunks: u64,
    /// How long ago the oldest of them was done.
    pub lag_ms: u64,
    /// How long it may leave a chunk unanswered, whether done or not.
    pub answer_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { lag_bytes: 64 << 20, lag_chunks: 1024, lag_ms: 2_000, answer_ms: 5_000 }
    }
}

/// What a replica said to an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It has the chunk, synced, and all before it.
    Acknowledged,
    /// It has no room, and did not keep the chunk.
    Full,
    /// The chunk is larger than it takes; it did not keep it.
    TooLarge(String),
    /// It lacks an earlier chunk, and did not keep this one.
    Gap,
    /// Anything else. It may have kept the chunk.
    Failed(String),
}

/// What waits for answers.
#[derive(Debug)]
struct Pending {
    bytes: u64,
    sent_ms: u64,
    /// Who was sent it, who has it, who said that it did not keep it.
    sent: u32,
    acknowledged: u32,
    refused: u32,
    /// Why the first of them refused it.
    refusal: Option<WalError>,
    done_ms: Option<u64>,
}

/// Why a replica was left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) why: String,
    /// For nothing but being late.
    pub(crate) is_slow: bool,
}

#[derive(Debug, Default)]
struct Member {
    left: Option<Left>,
    /// The lowest number that it has not acknowledged.
    next: u64,
    /// The lowest number that it refused for want of room: what is behind it has a gap.
    refused_from: Option<u64>,
    /// Chunks that are done and that it has not acknowledged.
    lag_chunks: u64,
    lag_bytes: u64,
}

/// The state machine. Times are milliseconds of a clock that does not go back.
#[derive(Debug)]
pub(crate) struct Stream {
    limits: Limits,
    write_quorum: u32,
    members: Vec<Member>,
    /// Number of the front of `window`.
    first: u64,
    window: VecDeque<Pending>,
    /// All below are done and told.
    done: u64,
    /// All from here on are refused, and the stream goes on from here once they have been told.
    refusing: Option<u64>,
    broken: bool,
    told: VecDeque<(u64, Result<Acked, WalError>)>,
}

impl Stream {
    pub(crate) fn new(members: usize, write_quorum: u32, limits: Limits) -> Self {
        let members = (0..members.min(ENSEMBLE_MAX)).map(|_| Member::default()).collect();
        let mut stream = Self {
            limits,
            write_quorum: write_quorum.max(1),
            members,
            first: 0,
            window: VecDeque::new(),
            done: 0,
            refusing: None,
            broken: false,
            told: VecDeque::new(),
        };
        stream.settle(0);
        stream
    }

    /// Takes a chunk and says whom to send it to, as bits. `Err`: it is not taken and its number not used up.
    pub(crate) fn append(&mut self, number: u64, bytes: u64, now_ms: u64) -> Result<u32, WalError> {
        if self.broken {
            return Err(WalError::Closed);
        }
        if self.refusing.is_some() {
            return Err(WalError::Full);
        }
        let next = self.next();
        if number != next {
            return Err(WalError::Gap { expected: next });
        }
        let sent = self.live();
        self.window.push_back(Pending {
            bytes,
            sent_ms: now_ms,
            sent,
            acknowledged: 0,
            refused: 0,
            refusal: None,
            done_ms: None,
        });
        Ok(sent)
    }

    /// A replica has answered.
    pub(crate) fn answer(&mut self, member: usize, number: u64, answer: Answer, now_ms: u64) {
        let Some(state) = self.members.get_mut(member) else { return };
        if state.left.is_some() || self.broken {
            return;
        }
        match answer {
            Answer::Acknowledged => self.acknowledged(member, number),
            Answer::Full => self.refused(member, number, WalError::Full),
            Answer::TooLarge(why) => self.refused(member, number, WalError::TooLarge(why)),
            Answer::Gap if state.refused_from.is_some_and(|from| from < number) => {
                self.refused(member, number, WalError::Full);
            }
            Answer::Gap => self.leave(member, format!("it has a gap before chunk {number}")),
            Answer::Failed(why) => self.leave(member, why),
        }
        self.settle(now_ms);
    }

    /// Time has passed: leaves behind who is too late.
    pub(crate) fn expire(&mut self, now_ms: u64) {
        if self.broken {
            return;
        }
        for member in 0..self.members.len() {
            if let Some(why) = self.overdue(member, now_ms) {
                self.leave_slow(member, why);
            }
        }
        self.settle(now_ms);
    }

    /// A replica is out of reach before anything was sent to it.
    pub(crate) fn lacks(&mut self, member: usize, why: &str, now_ms: u64) {
        self.leave(member, why.to_owned());
        self.settle(now_ms);
    }

    /// Fewer than a write quorum are left: it takes nothing more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// The next chunk that has ended, and how; in order of the numbers.
    pub(crate) fn take_told(&mut self) -> Option<(u64, Result<Acked, WalError>)> {
        self.told.pop_front()
    }

    /// Whether time matters: something is unanswered by somebody who is not left behind.
    pub(crate) fn waits(&self) -> bool {
        !self.broken && !self.window.is_empty()
    }

    /// Who is not left behind, as bits.
    pub(crate) fn live(&self) -> u32 {
        let live = self.members.iter().enumerate().filter(|(_, member)| member.left.is_none());
        live.fold(0, |bits, (index, _)| bits | 1 << index)
    }

    /// Why a member was left behind.
    pub(crate) fn left(&self, member: usize) -> Option<&Left> {
        self.members.get(member)?.left.as_ref()
    }

    fn next(&self) -> u64 {
        self.first + self.window.len() as u64
    }

    fn pending(&mut self, number: u64) -> Option<&mut Pending> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.window.get_mut(index)
    }

    fn acknowledged(&mut self, member: usize, number: u64) {
        let state = &mut self.members[member];
        if state.next != number {
            let why = format!("it acknowledged chunk {number} before chunk {}", state.next);
            return self.leave(member, why);
        }
        state.next = number + 1;
        let bit = 1 << member;
        let Some(pending) = self.pending(number) else { return };
        pending.acknowledged |= bit;
        let (is_done, bytes) = (pending.done_ms.is_some(), pending.bytes);
        // A refusal and an acknowledgement of one chunk: whatever it has, it is not what it says.
        if pending.refused & bit != 0 {
            return self.leave(member, format!("it refused chunk {number} and acknowledged it"));
        }
        if is_done {
            let state = &mut self.members[member];
            state.lag_chunks -= 1;
            state.lag_bytes -= bytes;
        }
    }

    fn refused(&mut self, member: usize, number: u64, refusal: WalError) {
        let state = &mut self.members[member];
        let from = state.refused_from.get_or_insert(number);
        *from = number.min(*from);
        let Some(pending) = self.pending(number) else { return };
        pending.refused |= 1 << member;
        if pending.done_ms.is_some() {
            return self.leave(member, format!("it had no room for chunk {number}"));
        }
        pending.refusal.get_or_insert(refusal);
    }

    fn leave(&mut self, member: usize, why: String) {
        if let Some(state) = self.members.get_mut(member) {
            state.left.get_or_insert(Left { why, is_slow: false });
        }
    }

    fn leave_slow(&mut self, member: usize, why: String) {
        if let Some(state) = self.members.get_mut(member) {
            state.left.get_or_insert(Left { why, is_slow: true });
        }
    }

    fn overdue(&self, member: usize, now_ms: u64) -> Option<String> {
        let state = &self.members[member];
        if state.left.is_some() {
            return None;
        }
        let bit = 1 << member;
        let oldest = (self.window.iter())
            .find(|pending| (pending.acknowledged | pending.refused) & bit == 0 && pending.sent & bit != 0)?;
        let silent_ms = now_ms.saturating_sub(oldest.sent_ms);
        if silent_ms > self.limits.answer_ms {
            return Some(format!("it has not answered for {silent_ms} ms"));
        }
        if !self.can_spare() {
            return None;
        }
        let late_ms = oldest.done_ms.map_or(0, |done_ms| now_ms.saturating_sub(done_ms));
        (late_ms > self.limits.lag_ms).then(|| format!("it is {late_ms} ms behind the others"))
    }

    /// Whether one fewer is still a write quorum.
    fn can_spare(&self) -> bool {
        self.live().count_ones() > self.write_quorum
    }

    /// Draws the consequences of what has changed.
    fn settle(&mut self, now_ms: u64) {
        while !self.broken && self.settle_head(now_ms) {}
        for member in 0..self.members.len() {
            let Member { left, lag_chunks, lag_bytes, .. } = &self.members[member];
            let (chunks, bytes) = (*lag_chunks, *lag_bytes);
            let far = chunks > self.limits.lag_chunks || bytes > self.limits.lag_bytes;
            if left.is_none() && far && self.can_spare() {
                self.leave_slow(member, format!("it is {chunks} chunks and {bytes} bytes behind the others"));
            }
        }
        if self.live().count_ones() < self.write_quorum {
            self.break_up();
        }
        self.forget_answered();
    }

    /// Decides the lowest chunk that is not done, if it can be. Says whether the next one is to be looked at.
    fn settle_head(&mut self, now_ms: u64) -> bool {
        let (number, live) = (self.done, self.live());
        let (write_quorum, refusing) = (self.write_quorum, self.refusing);
        let Some(pending) = self.pending(number) else { return false };
        if pending.acknowledged.count_ones() >= write_quorum {
            self.head_done(now_ms);
            return true;
        }
        let unanswered = pending.sent & !(pending.acknowledged | pending.refused);
        if pending.acknowledged == 0 && unanswered == 0 {
            let refusal = pending.refusal.take().unwrap_or(WalError::Full);
            self.refusing = refusing.or(Some(number));
            self.done = number + 1;
            self.told.push_back((number, Err(refusal)));
            return true;
        }
        if pending.acknowledged != 0 && pending.refused & live != 0 {
            // Somebody has it, so who has not has a gap.
            let refused = pending.refused & live;
            self.leave_all(refused, &format!("it had no room for chunk {number}"));
            return true;
        }
        if unanswered & live == 0 {
            // Somebody who was left behind may have it, so its number can never be another chunk's.
            let rest = live & !pending.acknowledged;
            self.leave_all(rest, &format!("chunk {number} cannot reach a write quorum"));
        }
        false
    }

    fn head_done(&mut self, now_ms: u64) {
        let number = self.done;
        let Some(pending) = self.pending(number) else { return };
        pending.done_ms = Some(now_ms);
        let (bytes, acknowledged) = (pending.bytes, pending.acknowledged);
        let refused = pending.refused;
        for (index, member) in self.members.iter_mut().enumerate() {
            if acknowledged & (1 << index) == 0 {
                member.lag_chunks += 1;
                member.lag_bytes += bytes;
            }
        }
        self.leave_all(refused, &format!("it had no room for chunk {number}"));
        self.done = number + 1;
        self.told.push_back((number, Ok(Acked { acknowledged })));
    }

    fn leave_all(&mut self, members: u32, why: &str) {
        for member in (0..self.members.len()).filter(|member| members & (1 << member) != 0) {
            self.leave(member, why.to_owned());
        }
    }

    fn break_up(&mut self) {
        if self.broken {
            return;
        }
        self.broken = true;
        for number in self.done..self.next() {
            self.told.push_back((number, Err(WalError::Closed)));
        }
        self.done = self.next();
    }

    /// Drops what is done and answered by all that count.
    fn forget_answered(&mut self) {
        let live = if self.broken { 0 } else { self.live() };
        while self.first < self.done
            && let Some(pending) = self.window.front()
            && live & pending.sent & !(pending.acknowledged | pending.refused) == 0
        {
            self.window.pop_front();
            self.first += 1;
        }
        if self.window.is_empty()
            && let Some(from) = self.refusing.take()
        {
            self.first = from;
            self.done = from;
            for member in &mut self.members {
                member.refused_from = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
