//! This broker's session in metadata: its registration, its stream, and its unordered lane `control`.
//!
//! Every command but a chunk's commit goes by the control lane: numbered, so that one whose answer was lost can be
//! sent again and is applied once (DESIGN.md section 2, invariant 9).

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use isobar_metadata::command::{FIRST_NUMBER, OpenStream, RegisterDirectory, RegisterSession};
use isobar_metadata::result::RefusalKind;
use isobar_metadata::{Command, CommandResult, DirectoryId, Envelope, LaneId, SessionId, StreamId};
use isobar_protocol::error::ErrorCode;
use isobar_raft::{ProposeError, Quorum};
use parking_lot::Mutex;

use crate::BrokerError;

/// Pause before a command is sent again.
const RETRY: Duration = Duration::from_millis(20);
/// How often, before the client is told to try again itself.
const ATTEMPTS: u32 = 50;
/// And of one that a node needs to start: an election may be under way, or the leader that this node knows be gone.
const ATTEMPTS_AT_START: u32 = 500;

struct Control {
    next: u64,
    unanswered: BTreeSet<u64>,
}

/// Where this broker's chunks may be made durable.
#[async_trait]
pub trait Ensembles: Send + Sync {
    /// WAL directories for a new stream, and how many of them must acknowledge. An error says what is missing.
    async fn choose(&self) -> Result<(Vec<DirectoryId>, u32), String>;

    /// A stream was opened on what was chosen, before its first append.
    fn opened(&self, stream: StreamId, ensemble: &[DirectoryId], write_quorum: u32);

    /// Waits until another stream would have more replicas than this one has left.
    async fn until_better(&self, stream: StreamId);
}

/// The one directory of a node that is alone.
pub struct Alone(pub DirectoryId);

#[async_trait]
impl Ensembles for Alone {
    async fn choose(&self) -> Result<(Vec<DirectoryId>, u32), String> {
        Ok((vec![self.0], 1))
    }

    fn opened(&self, _: StreamId, _: &[DirectoryId], _: u32) {}

    async fn until_better(&self, _: StreamId) {
        std::future::pending().await
    }
}

/// One life of this broker.
pub struct Session {
    id: SessionId,
    epoch: u64,
    quorum: Quorum,
    control: Mutex<Control>,
}

impl Session {
    /// Registers a new life of this broker, which fences the one before it.
    pub(crate) async fn register(
        quorum: &Quorum,
        registration: RegisterSession,
    ) -> Result<Self, BrokerError> {
        let granted =
            propose(quorum, Envelope::unnumbered(Command::RegisterSession(registration)), ATTEMPTS_AT_START)
                .await?;
        let CommandResult::Session(granted) = granted else {
            return Err(BrokerError::Refused {
                what: "the broker's registration",
                answer: format!("{granted:?}"),
            });
        };
        Ok(Self {
            id: granted.session,
            epoch: granted.epoch,
            quorum: quorum.clone(),
            control: Mutex::new(Control { next: FIRST_NUMBER, unanswered: BTreeSet::new() }),
        })
    }

    /// Its id.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Kafka's broker epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Opens a stream for a lane's chunks.
    pub(crate) async fn open_stream(
        &self,
        lane: LaneId,
        ensembles: &dyn Ensembles,
    ) -> Result<StreamId, BrokerError> {
        let refused = |answer| BrokerError::Refused { what: "the opening of a stream", answer };
        let (ensemble, write_quorum) = ensembles.choose().await.map_err(BrokerError::NoEnsemble)?;
        let open = OpenStream { lane, ensemble: ensemble.clone(), write_quorum };
        match self.propose(Command::OpenStream(open)).await? {
            CommandResult::Stream(granted) if granted.error_code == 0 => {
                ensembles.opened(granted.stream, &ensemble, write_quorum);
                Ok(granted.stream)
            }
            CommandResult::Refused(refusal) if refusal.kind() == RefusalKind::Fenced => {
                Err(BrokerError::Fenced)
            }
            other => Err(refused(format!("{other:?}"))),
        }
    }

    /// The index that a read barrier gives: whoever has applied it knows all that anyone was told before.
    pub(crate) async fn barrier(&self) -> Result<u64, ProposeError> {
        self.quorum.barrier().await
    }

    /// Sends a command by the control lane until it is answered. Refusals of the lane itself come as
    /// [`CommandResult::Refused`].
    pub async fn propose(&self, command: Command) -> Result<CommandResult, ProposeError> {
        let number = {
            let mut control = self.control.lock();
            let number = control.next;
            control.next += 1;
            control.unanswered.insert(number);
            number
        };
        let _answered = Answered { session: self, number };
        let floor = self.control.lock().unanswered.first().copied().unwrap_or(number);
        let envelope = Envelope::new(self.id, LaneId::CONTROL, number, floor, command);
        propose(&self.quorum, envelope, ATTEMPTS).await
    }
}

/// Marks a number as answered, also when the asker went away.
struct Answered<'a> {
    session: &'a Session,
    number: u64,
}

impl Drop for Answered<'_> {
    fn drop(&mut self) {
        self.session.control.lock().unanswered.remove(&self.number);
    }
}

/// Registers a WAL directory, so that ensembles may name it. Before the first broker that is to write there.
pub async fn register_directory(quorum: &Quorum, directory: RegisterDirectory) -> Result<(), BrokerError> {
    let envelope = Envelope::unnumbered(Command::RegisterDirectory(directory));
    match propose(quorum, envelope, ATTEMPTS_AT_START).await? {
        CommandResult::Done(outcome) if outcome.error_code == 0 => Ok(()),
        CommandResult::Done(outcome) => Err(BrokerError::Refused {
            what: "the node's WAL directory",
            answer: outcome.message.unwrap_or_default(),
        }),
        other => Err(BrokerError::Refused { what: "the node's WAL directory", answer: format!("{other:?}") }),
    }
}

async fn propose(quorum: &Quorum, envelope: Envelope, attempts: u32) -> Result<CommandResult, ProposeError> {
    let mut attempt = 0;
    loop {
        match quorum.propose(envelope.clone()).await {
            Err(
                error @ (ProposeError::Busy { .. }
                | ProposeError::NotLeader { .. }
                | ProposeError::Unknown { .. }),
            ) if attempt < attempts => {
                attempt += 1;
                tracing::debug!(%error, attempt, "a command is sent again");
                tokio::time::sleep(RETRY).await;
            }
            answer => return answer,
        }
    }
}

/// What a client is told when the quorum gave no answer: try again.
pub(crate) fn retriable(error: &ProposeError) -> ErrorCode {
    match error {
        ProposeError::TooLarge { .. } => ErrorCode::InvalidRequest,
        _ => ErrorCode::RequestTimedOut,
    }
}
