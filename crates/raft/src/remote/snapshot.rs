//! Snapshots from member to member: the file as it is, in parts on the bulk connection.
//!
//! Invariants
//! 1. In memory there are at most [`WINDOW`] parts of [`PART_BYTES`] at the sender, and what the inbox holds at the receiver.
//! 2. Parts are written in the order of the file, without gaps; another one is refused, and the sender begins anew.
//! 3. A file is checked whole (its CRC covers all of it) before openraft hears of it. So a transfer that went wrong costs a
//!    repeat, and not the member.
//!
//! Failure: whatever fails ends the transfer; openraft tries again with the newest snapshot. Crash cases: a file that was not
//! finished is a `.tmp`, which the next start removes; a later transfer removes it as well.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::DiskFile;
use isobar_rpc::{CallError, Channel, Refusal, Reply};
use openraft::type_config::alias::SnapshotOf;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Remote;
use super::service::{Inbox, refuse};
use super::wire::{self, SnapshotPart, refusal};
use crate::propose::Raft;
use crate::records::VoteRecord;
use crate::snapshots::SnapshotHandle;
use crate::types::{Peer, Types, Vote};

/// Bytes of one part.
pub(crate) const PART_BYTES: usize = 1 << 20;
/// Parts on the way.
pub(crate) const WINDOW: usize = 4;
const PART_TIMEOUT: Duration = Duration::from_secs(15);
/// The last part is answered when the snapshot is installed and durable.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(120);

type Answer = oneshot::Receiver<Result<Bytes, CallError>>;

fn broken(error: &io::Error) -> CallError {
    CallError::Lost(format!("the snapshot cannot be read: {error}"))
}

async fn answered(answer: Answer) -> Result<wire::SnapshotAnswer, CallError> {
    let dropped = |_| Err(CallError::Lost("the transport dropped a part".to_owned()));
    let body = answer.await.unwrap_or_else(dropped)?;
    let (answer, _) = wire::decode(&body).map_err(CallError::Lost)?;
    Ok(answer)
}

/// Sends a snapshot; returns the receiver's vote once it is installed there.
pub(crate) async fn send(
    remote: &Arc<Remote>,
    target: u64,
    peer: &Peer,
    vote: &Vote,
    snapshot: SnapshotOf<Types, SnapshotHandle>,
) -> Result<Vote, CallError> {
    let file = snapshot.snapshot.open().map_err(|error| broken(&error))?;
    let len_bytes = file.len().map_err(|error| broken(&error))?;
    let file = Arc::new(file);
    let to = remote.line.peer(target, peer)?;
    let transfer = remote.host.random_u64();
    tracing::info!(target, bytes = len_bytes, "sending a metadata snapshot to a member that is behind");
    let mut answers: VecDeque<Answer> = VecDeque::new();
    let mut offset = 0;
    loop {
        let part = read_part(remote, &file, offset, len_bytes).await?;
        let end = offset + part.len() as u64;
        let last = end >= len_bytes;
        let head = SnapshotPart {
            route: remote.line.route(Some(&peer.incarnation)),
            vote: VoteRecord::of(vote),
            transfer,
            offset,
            last,
        };
        let (tell, answer) = oneshot::channel();
        let timeout = if last { INSTALL_TIMEOUT } else { PART_TIMEOUT };
        let body = wire::encode_with(&head, &part);
        remote.metrics.snapshot_sent_bytes.inc_by(part.len() as u64);
        to.call_with(Channel::Bulk, wire::SNAPSHOT, body, Instant::now() + timeout, move |result| {
            // The transfer was given up.
            let _ = tell.send(result);
        });
        answers.push_back(answer);
        if last {
            break;
        }
        offset = end;
        if answers.len() >= WINDOW
            && let Some(answer) = answers.pop_front()
            && let Some(higher) = answered(answer).await?.vote
        {
            return Ok(higher.vote());
        }
    }
    let mut installed = None;
    for answer in answers {
        installed = answered(answer).await?.vote;
    }
    installed.map(|vote| vote.vote()).ok_or_else(|| CallError::Lost("an answer without a vote".to_owned()))
}

async fn read_part(
    remote: &Remote,
    file: &Arc<Box<dyn DiskFile>>,
    offset: u64,
    len_bytes: u64,
) -> Result<Bytes, CallError> {
    let file = Arc::clone(file);
    let length = usize::try_from(len_bytes - offset).unwrap_or(usize::MAX).min(PART_BYTES);
    let work = move || {
        let mut buffer = vec![0; length];
        file.read_at(&mut buffer, offset)?;
        Ok(Bytes::from(buffer))
    };
    let read = remote.host.run_blocking(work).await;
    read.unwrap_or_else(|| Err(io::Error::other("the blocking pool is going away")))
        .map_err(|error| broken(&error))
}

/// A part that came.
pub(crate) struct Part {
    pub(crate) head: SnapshotPart,
    pub(crate) bytes: Bytes,
    pub(crate) reply: Reply,
}

/// A snapshot that is coming.
struct Incoming {
    transfer: u64,
    handle: SnapshotHandle,
    file: Arc<Box<dyn DiskFile>>,
    next_offset: u64,
}

/// Takes in parts until the inbox is closed.
pub(crate) async fn take_in(inbox: Arc<Inbox<Part>>, raft: Raft, remote: Arc<Remote>) {
    let mut incoming: Option<Incoming> = None;
    while let Some(part) = inbox.next().await {
        let answer = match write_part(&remote, &mut incoming, &part).await {
            Ok(()) if part.head.last => install(&remote, &raft, incoming.take(), &part.head).await,
            Ok(()) => Ok(wire::SnapshotAnswer::default()),
            Err(refusal) => {
                forget(&remote, incoming.take()).await;
                Err(refusal)
            }
        };
        part.reply.send(answer.map(|answer| wire::encode(&answer)));
    }
    forget(&remote, incoming.take()).await;
}

fn failed(what: &str, error: &io::Error) -> Refusal {
    tracing::error!(%error, "a metadata snapshot from another member: {what}");
    refuse(refusal::FAILED, format!("{what}: {error}"))
}

async fn blocking<T: Send + 'static>(
    remote: &Remote,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = remote.host.run_blocking(work).await;
    done.unwrap_or_else(|| Err(io::Error::other("the blocking pool is going away")))
}

async fn write_part(remote: &Remote, incoming: &mut Option<Incoming>, part: &Part) -> Result<(), Refusal> {
    let (transfer, offset) = (part.head.transfer, part.head.offset);
    if offset == 0 {
        forget(remote, incoming.take()).await;
        let handle = remote.machine.snapshots.incoming(transfer);
        let created = {
            let handle = handle.clone();
            blocking(remote, move || handle.create()).await
        };
        let file = created.map_err(|error| failed("it cannot be begun", &error))?;
        *incoming = Some(Incoming { transfer, handle, file: Arc::new(file), next_offset: 0 });
    }
    let expected =
        incoming.as_mut().filter(|known| known.transfer == transfer && known.next_offset == offset);
    let Some(known) = expected else {
        return Err(refuse(refusal::OUT_OF_PLACE, format!("no part at {offset} was expected")));
    };
    let (file, bytes) = (Arc::clone(&known.file), part.bytes.clone());
    let written = blocking(remote, move || file.write_at(&[io::IoSlice::new(&bytes)], offset)).await;
    written.map_err(|error| failed("it cannot be written", &error))?;
    known.next_offset = offset + part.bytes.len() as u64;
    remote.metrics.snapshot_received_bytes.inc_by(part.bytes.len() as u64);
    Ok(())
}

async fn forget(remote: &Remote, incoming: Option<Incoming>) {
    let Some(known) = incoming else { return };
    drop(known.file);
    // Left behind, the next start removes it.
    let _ = blocking(remote, move || known.handle.remove()).await;
}

/// Checks the file and hands it to openraft; the answer comes when it is installed.
async fn install(
    remote: &Remote,
    raft: &Raft,
    incoming: Option<Incoming>,
    head: &SnapshotPart,
) -> Result<wire::SnapshotAnswer, Refusal> {
    let Some(known) = incoming else {
        return Err(refuse(refusal::OUT_OF_PLACE, "there is no snapshot to finish".to_owned()));
    };
    let handle = known.handle.clone();
    let checked = blocking(remote, move || handle.meta()).await;
    let result = match checked {
        Ok(meta) => {
            let index = meta.last_log_id.map_or(0, |id| id.index);
            let snapshot = openraft::Snapshot { meta, snapshot: known.handle.clone() };
            let installed = raft.install_full_snapshot(head.vote.vote(), snapshot).await;
            tracing::info!(index, ok = installed.is_ok(), "a metadata snapshot came from the leader");
            installed
                .map(|response| wire::SnapshotAnswer { vote: Some(VoteRecord::of(&response.vote)) })
                .map_err(|fatal| refuse(refusal::FAILED, fatal.to_string()))
        }
        Err(error) => Err(failed("it is damaged", &error)),
    };
    forget(remote, Some(known)).await;
    result
}
