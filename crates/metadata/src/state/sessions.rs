//! Sessions, WAL directories, and what is set for the whole cluster.

use super::rules::Rule;
use super::{Counters, StateMachine, done, failed};
use crate::codes;
use crate::command::{ArchiveAdvanced, RegisterDirectory, RegisterSession, UpdateDirectory, UpdateSession};
use crate::effect::{ClusterChanged, EffectKind, SessionForgotten};
use crate::ids::{DirectoryId, MAX_INCARNATION, SessionId, StreamId};
use crate::record::{DirectoryRecord, DirectoryState, SessionRecord, SessionState};
use crate::result::{CommandResult, SessionGranted};

/// Results of a fenced session whose node does not come back stay for repeats so long.
const KEEP_FENCED_MS: i64 = 60 * 60 * 1000;
/// Ids that a fence sets back where a test takes [`Rule::FreshIds`] away.
const GIVEN_AGAIN: u64 = 8;

impl StateMachine {
    pub(super) fn register_session(&mut self, c: &RegisterSession) -> CommandResult {
        if c.life == DirectoryId::NIL || c.node_id < 0 {
            return CommandResult::Done(failed(
                codes::INVALID_REQUEST,
                "a session needs a life and a node id",
            ));
        }
        let repeat = self
            .image
            .sessions
            .values()
            .find(|session| session.node_id == c.node_id && session.life == c.life);
        if let Some(session) = repeat {
            return CommandResult::Session(SessionGranted { session: session.session, epoch: session.epoch });
        }
        // The node resolved what its earlier session left unanswered before it registers anew.
        let earlier: Vec<_> = self.sessions_of(c.node_id);
        for session in earlier {
            self.fence(session);
            self.forget_session(session);
        }
        let session = SessionId::new(self.image.incarnation(), self.counters.session);
        self.counters.session += 1;
        let epoch = self.node_epochs.get(&c.node_id).map_or(1, |epoch| epoch + 1);
        self.node_epochs.insert(c.node_id, epoch);
        self.emit(EffectKind::Session(SessionRecord {
            session,
            node_id: c.node_id,
            epoch,
            life: c.life,
            state: SessionState::Live as i32,
            host: c.host.clone(),
            port: c.port,
            cloud: c.cloud.clone(),
            region: c.region.clone(),
            zone: c.zone.clone(),
            home_store: c.home_store,
            directory: c.directory,
            feature_level: c.feature_level,
            registered_ms: self.image.time_ms,
            fenced_ms: 0,
            rpc: c.rpc.clone(),
        }));
        self.forget_long_fenced();
        self.choose_leaders();
        CommandResult::Session(SessionGranted { session, epoch })
    }

    fn sessions_of(&self, node_id: i32) -> Vec<SessionId> {
        let of_node = self.image.sessions.values().filter(|session| session.node_id == node_id);
        of_node.map(|session| session.session).collect()
    }

    pub(super) fn fence_session(&mut self, session: SessionId) -> CommandResult {
        if self.image.session(session).is_none() {
            return CommandResult::Done(failed(codes::INVALID_REQUEST, "no such session"));
        }
        self.fence(session);
        self.forget_long_fenced();
        self.choose_leaders();
        done()
    }

    /// Fences a session and closes its streams. Idempotent. Leaders are chosen by the caller.
    fn fence(&mut self, session: SessionId) {
        let Some(record) = self.image.session(session) else { return };
        if record.is_fenced() {
            return;
        }
        // Fencing bumps the node's epoch, so that what the next life gets is another.
        let record = SessionRecord::clone(record);
        let epoch = self.node_epochs.get(&record.node_id).map_or(record.epoch, |epoch| *epoch);
        self.node_epochs.insert(record.node_id, epoch + 1);
        if !self.rules.keep(Rule::FreshIds) {
            self.counters.object = self.counters.object.saturating_sub(GIVEN_AGAIN).max(1);
        }
        let (state, fenced_ms) = (SessionState::Fenced as i32, self.image.time_ms);
        self.emit(EffectKind::Session(SessionRecord { state, fenced_ms, ..record }));
        let streams = self.image.streams.values().filter(|stream| stream.session == session);
        let streams: Vec<StreamId> = streams.map(|stream| stream.stream).collect();
        for stream in streams {
            self.close(stream);
        }
    }

    fn forget_session(&mut self, session: SessionId) {
        self.forget_lanes(session);
        self.emit(EffectKind::SessionForgotten(SessionForgotten { session }));
    }

    fn forget_long_fenced(&mut self) {
        if self.expiry_held() {
            return;
        }
        let before = self.image.time_ms.saturating_sub(KEEP_FENCED_MS);
        let old =
            |session: &&std::sync::Arc<SessionRecord>| session.is_fenced() && session.fenced_ms < before;
        let old: Vec<_> = self.image.sessions.values().filter(old).map(|session| session.session).collect();
        for session in old {
            self.forget_session(session);
        }
    }

    pub(super) fn update_session(&mut self, c: &UpdateSession) -> CommandResult {
        let Some(record) = self.image.session(c.session).filter(|session| !session.is_fenced()) else {
            return CommandResult::Done(failed(codes::INVALID_REQUEST, "no such live session"));
        };
        let known = SessionState::try_from(c.state).is_ok_and(|state| state != SessionState::Fenced);
        if !known {
            return CommandResult::Done(failed(codes::INVALID_REQUEST, "not a state of a live session"));
        }
        if record.state != c.state {
            let record = SessionRecord { state: c.state, ..SessionRecord::clone(record) };
            self.emit(EffectKind::Session(record));
            self.choose_leaders();
        }
        done()
    }

    pub(super) fn register_directory(&mut self, c: &RegisterDirectory) -> CommandResult {
        let record = DirectoryRecord {
            directory: c.directory,
            node_id: c.node_id,
            zone: c.zone.clone(),
            cloud: c.cloud.clone(),
            state: self
                .image
                .directory(c.directory)
                .map_or(DirectoryState::InUse as i32, |known| known.state),
        };
        match self.image.directory(c.directory) {
            Some(known) if known.node_id != c.node_id => {
                CommandResult::Done(failed(codes::INVALID_REQUEST, "the directory belongs to another node"))
            }
            Some(known) if known.is_removed() => CommandResult::Done(failed(
                codes::INVALID_REQUEST,
                "the directory was removed from the cluster",
            )),
            Some(known) if **known == record => done(),
            _ if c.directory == DirectoryId::NIL => {
                CommandResult::Done(failed(codes::INVALID_REQUEST, "a directory needs an incarnation"))
            }
            _ => {
                self.emit(EffectKind::Directory(record));
                done()
            }
        }
    }

    /// A directory that open streams name is not removed: its acknowledgements may count in them.
    pub(super) fn update_directory(&mut self, c: &UpdateDirectory) -> CommandResult {
        let refused = |why: String| CommandResult::Done(failed(codes::INVALID_REQUEST, why));
        let Some(record) = self.image.directory(c.directory) else {
            return refused("no such directory".to_owned());
        };
        let Ok(state) = DirectoryState::try_from(c.state) else {
            return refused("not a state of a directory".to_owned());
        };
        if record.state == c.state {
            return done();
        }
        if record.is_removed() {
            return refused("the directory was removed from the cluster".to_owned());
        }
        if state == DirectoryState::Removed {
            let (open, chunks) = self.image.held_by(c.directory);
            if open > 0 {
                return refused(format!("{open} streams that are open name the directory"));
            }
            if chunks > 0 && !c.lost {
                return refused(format!(
                    "{chunks} chunks that are not uploaded yet may lie in the directory"
                ));
            }
        }
        let record = DirectoryRecord { state: c.state, ..DirectoryRecord::clone(record) };
        self.emit(EffectKind::Directory(record));
        done()
    }

    pub(crate) fn forget_directories(&mut self) {
        self.image.directories.clear();
    }

    pub(super) fn raise_incarnation(&mut self, incarnation: u32) -> CommandResult {
        if incarnation == self.image.incarnation() {
            return done();
        }
        if incarnation < self.image.incarnation() || incarnation > MAX_INCARNATION {
            return CommandResult::Done(failed(
                codes::INVALID_REQUEST,
                "an incarnation only rises, to 255 at most",
            ));
        }
        let sessions: Vec<SessionId> = self.image.sessions.keys().copied().collect();
        for session in sessions {
            self.fence(session);
        }
        self.choose_leaders();
        // Coordinator epochs have no incarnation in them, so they go on.
        let coordinator_epoch = self.counters.coordinator_epoch;
        self.counters = Counters { coordinator_epoch, ..Counters::FIRST };
        self.emit(EffectKind::Cluster(ClusterChanged { incarnation, ..self.image.cluster }));
        done()
    }

    /// A wrong cut would let objects be deleted that a recovery needs, so it is held against today's, which is never lower
    /// than the one at `through` was.
    pub(super) fn archive_advanced(&mut self, c: &ArchiveAdvanced) -> CommandResult {
        if c.through > self.image.index || c.cut > c.through || c.cut > self.image.recovery_cut() {
            return CommandResult::Done(failed(
                codes::INVALID_REQUEST,
                "the archive cannot reach beyond what was applied, nor its cut beyond the recovery cut",
            ));
        }
        let known = self.image.cluster;
        let archived_through = c.through.max(known.archived_through);
        let archived_cut = c.cut.max(known.archived_cut);
        let cluster = ClusterChanged { archived_through, archived_cut, ..known };
        if cluster != known {
            self.emit(EffectKind::Cluster(cluster));
        }
        done()
    }

    pub(super) fn set_feature_level(&mut self, level: u32) -> CommandResult {
        if level > self.image.cluster.feature_level {
            self.emit(EffectKind::Cluster(ClusterChanged { feature_level: level, ..self.image.cluster }));
        }
        done()
    }

    pub(super) fn set_write_quorum(&mut self, write_quorum: u32) -> CommandResult {
        if write_quorum > self.image.cluster.write_quorum {
            self.emit(EffectKind::Cluster(ClusterChanged { write_quorum, ..self.image.cluster }));
        }
        done()
    }
}
