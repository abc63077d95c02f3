//! Who is alive, as the leader sees it: pure, told of connections, heartbeats and time, says whom to suspect and whom to fence.
//!
//! Owns: nothing durable. A leader makes one when it is elected and drops it when it no longer leads; what it decides goes through
//! the log like everything else, so two leaders cannot disagree about a session for longer than their terms.
//!
//! Rules (DESIGN.md section 5, "Liveness")
//! 1. The heartbeat connection that this leader accepted is the sign of life. When it closes, the session is suspect at once (it
//!    leaves the leader map) and fenced after [`Limits::grace_ms`]: the process is gone, or cannot reach the leader.
//! 2. A new connection of the same session clears the suspicion. One that closes after it was replaced means nothing.
//! 3. Silence on an open connection for [`Limits::session_timeout_ms`] fences: a paused process, or a path that swallows packets.
//! 4. After an election every session has a full timeout from then on, so that no broker is fenced because the leader changed; one
//!    that has not connected within [`Limits::settle_ms`] is suspect until it does.
//! 5. A draining session is never made live again by its heartbeats; it can only be fenced.
//! 6. Each decision is told once, until what follows from it (or from a refusal, [`Liveness::again`]) is told back.

use std::collections::BTreeMap;

use isobar_metadata::SessionId;

/// Milliseconds of a monotonic clock.
pub(crate) type MonoMs = u64;

/// How patient the leader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From a closed connection to the fence.
    pub grace_ms: u64,
    /// From the last heartbeat to the fence.
    pub session_timeout_ms: u64,
    /// From an election until a session that has not connected counts as suspect.
    pub settle_ms: u64,
    /// Between two heartbeats of a broker.
    pub heartbeat_ms: u64,
}

impl Default for Limits {
    /// The session timeout is Kafka's `broker.session.timeout.ms`.
    fn default() -> Self {
        Self { grace_ms: 500, session_timeout_ms: 9_000, settle_ms: 1_000, heartbeat_ms: 1_000 }
    }
}

/// What the leader should propose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Decision {
    /// It leaves the leader map.
    Suspect(SessionId),
    /// It joins the leader map again.
    Clear(SessionId),
    /// It is over.
    Fence(SessionId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// The accepted connection, while it is open.
    connection: Option<u64>,
    /// When the connection closed, or when this leader began and none has come.
    lost_ms: MonoMs,
    /// Since when nothing was heard.
    heard_ms: MonoMs,
    /// None has come since the election: its grace is the session timeout.
    never_came: bool,
    suspect: bool,
    draining: bool,
    fencing: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Liveness {
    limits: Limits,
    sessions: BTreeMap<SessionId, Seen>,
}

impl Liveness {
    /// A leader that was just elected, with the sessions that are not fenced: each one's id, whether it is suspect, whether it
    /// drains.
    pub(crate) fn elected(
        limits: Limits,
        now: MonoMs,
        sessions: impl IntoIterator<Item = (SessionId, bool, bool)>,
    ) -> Self {
        let mut liveness = Self { limits, sessions: BTreeMap::new() };
        for (session, suspect, draining) in sessions {
            liveness.insert(now, session, suspect, draining);
        }
        liveness
    }

    fn insert(&mut self, now: MonoMs, session: SessionId, suspect: bool, draining: bool) {
        let seen = Seen {
            connection: None,
            lost_ms: now,
            heard_ms: now,
            never_came: true,
            suspect,
            draining,
            fencing: false,
        };
        self.sessions.entry(session).or_insert(seen);
    }

    /// The log has a new session.
    pub(crate) fn registered(&mut self, now: MonoMs, session: SessionId) {
        self.insert(now, session, false, false);
    }

    /// The log has ended a session.
    pub(crate) fn fenced(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    /// The log has moved a session.
    pub(crate) fn moved(&mut self, session: SessionId, suspect: bool, draining: bool) {
        if let Some(seen) = self.sessions.get_mut(&session) {
            (seen.suspect, seen.draining) = (suspect, draining);
        }
    }

    /// A heartbeat came. False: there is no such session, so the broker must register anew.
    pub(crate) fn heartbeat(&mut self, now: MonoMs, session: SessionId, connection: u64) -> bool {
        let Some(seen) = self.sessions.get_mut(&session) else { return false };
        if seen.fencing {
            return false;
        }
        (seen.connection, seen.heard_ms, seen.never_came) = (Some(connection), now, false);
        true
    }

    /// A connection has closed.
    pub(crate) fn closed(&mut self, now: MonoMs, connection: u64) {
        for seen in self.sessions.values_mut().filter(|seen| seen.connection == Some(connection)) {
            (seen.connection, seen.lost_ms) = (None, now);
        }
    }

    /// A decision was refused or its outcome is not known: it is told again if it still holds.
    pub(crate) fn again(&mut self, decision: Decision) {
        match decision {
            Decision::Fence(session) => {
                if let Some(seen) = self.sessions.get_mut(&session) {
                    seen.fencing = false;
                }
            }
            Decision::Suspect(session) => self.set_suspect(session, false),
            Decision::Clear(session) => self.set_suspect(session, true),
        }
    }

    fn set_suspect(&mut self, session: SessionId, suspect: bool) {
        if let Some(seen) = self.sessions.get_mut(&session) {
            seen.suspect = suspect;
        }
    }

    /// What has become due, and when to look again at the latest.
    pub(crate) fn due(&mut self, now: MonoMs) -> (Vec<Decision>, MonoMs) {
        let mut decisions = Vec::new();
        let mut next = MonoMs::MAX;
        let limits = self.limits;
        for (session, seen) in self.sessions.iter_mut().filter(|(_, seen)| !seen.fencing) {
            let fence_ms = fence_ms(seen, &limits);
            if fence_ms <= now {
                seen.fencing = true;
                decisions.push(Decision::Fence(*session));
                continue;
            }
            next = next.min(fence_ms);
            if seen.draining {
                continue;
            }
            let suspect_ms = match (seen.connection, seen.never_came) {
                (Some(_), _) => MonoMs::MAX,
                (None, true) => seen.lost_ms + limits.settle_ms,
                (None, false) => seen.lost_ms,
            };
            if suspect_ms <= now && !seen.suspect {
                seen.suspect = true;
                decisions.push(Decision::Suspect(*session));
            } else if suspect_ms == MonoMs::MAX && seen.suspect {
                seen.suspect = false;
                decisions.push(Decision::Clear(*session));
            } else if suspect_ms > now {
                next = next.min(suspect_ms);
            }
        }
        (decisions, next)
    }
}

fn fence_ms(seen: &Seen, limits: &Limits) -> MonoMs {
    let silence_ms = seen.heard_ms + limits.session_timeout_ms;
    match (seen.connection, seen.never_came) {
        (None, false) => silence_ms.min(seen.lost_ms + limits.grace_ms),
        _ => silence_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);

    fn leader() -> Liveness {
        Liveness::elected(Limits::default(), 0, [(A, false, false), (B, false, false)])
    }

    #[test]
    fn a_killed_broker_is_suspect_at_once_and_out_in_half_a_second() {
        let mut l = leader();
        assert!(l.heartbeat(10, A, 7) && l.heartbeat(10, B, 8));
        assert_eq!(l.due(20).0, []);
        l.closed(1_000, 7);
        assert_eq!(l.due(1_000), (vec![Decision::Suspect(A)], 1_500));
        assert_eq!(l.due(1_499).0, []);
        assert_eq!(l.due(1_500).0, [Decision::Fence(A)]);
        assert_eq!(l.due(1_600).0, [], "told once");
        assert!(!l.heartbeat(1_600, A, 9), "too late: it registers anew");
        l.again(Decision::Fence(A));
        assert_eq!(l.due(1_700).0, [Decision::Fence(A)]);
        l.fenced(A);
        assert_eq!(l.due(1_800).0, []);
    }

    #[test]
    fn a_reconnect_clears_and_the_close_of_the_old_connection_means_nothing() {
        let mut l = leader();
        assert!(l.heartbeat(0, A, 7) && l.heartbeat(0, B, 8));
        l.closed(100, 7);
        assert_eq!(l.due(100).0, [Decision::Suspect(A)]);
        assert!(l.heartbeat(300, A, 9));
        assert_eq!(l.due(300).0, [Decision::Clear(A)]);
        l.closed(400, 7);
        assert_eq!(l.due(5_000).0, []);
    }

    #[test]
    fn silence_on_an_open_connection_fences_after_the_session_timeout() {
        let mut l = leader();
        assert!(l.heartbeat(1_000, A, 7) && l.heartbeat(9_000, B, 8));
        assert_eq!(l.due(9_999).0, []);
        assert_eq!(l.due(10_000).0, [Decision::Fence(A)]);
        assert_eq!(l.due(10_001).1, 18_000);
    }

    #[test]
    fn an_election_gives_everyone_a_full_timeout() {
        let mut l = leader();
        assert_eq!(l.due(999), (vec![], 1_000));
        assert!(l.heartbeat(999, B, 1));
        assert_eq!(l.due(1_000).0, [Decision::Suspect(A)], "not heard of by the new leader");
        assert_eq!(l.due(8_999).0, []);
        assert!(l.heartbeat(8_999, A, 2));
        assert_eq!(l.due(8_999).0, [Decision::Clear(A)]);
        let mut l = leader();
        assert!(l.heartbeat(500, B, 1));
        assert_eq!(l.due(9_000).0, [Decision::Fence(A)]);
    }

    #[test]
    fn who_drains_is_left_alone_until_it_goes() {
        let mut l = leader();
        assert!(l.heartbeat(0, A, 7) && l.heartbeat(0, B, 8));
        l.moved(A, false, true);
        l.closed(100, 7);
        assert_eq!(l.due(100).0, []);
        assert_eq!(l.due(600).0, [Decision::Fence(A)]);
    }
}
