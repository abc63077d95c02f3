//! What this crate's tasks need of metadata. Implemented above, over the quorum and the broker's image.

use async_trait::async_trait;
use isobar_metadata::{Command, CommandResult, Image, SessionId};

/// The feature level that the commands of background jobs need; below it the jobs rest.
pub(crate) const JOBS_FEATURE_LEVEL: u32 = 2;

/// The quorum did not answer: the command may have been applied or not, or may still be. Everything proposed here may come twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not proposed or not answered: {0}")]
pub struct ProposeFailed(pub String);

/// The way to metadata.
#[async_trait]
pub trait Proposer: Send + Sync {
    /// The image as it is now. Cheap.
    fn image(&self) -> Image;
    /// Waits until [`Proposer::image`] shows all that was applied before the call.
    async fn barrier(&self) -> Result<(), ProposeFailed>;
    /// Proposes a command on the control lane of this broker's session and waits for its result.
    async fn propose(&self, command: Command) -> Result<CommandResult, ProposeFailed>;
    /// This broker's session.
    fn session(&self) -> SessionId;
}

/// Whether what one broker does for all is this one's to do: it has the lowest node id of those that live. A hint: for a moment
/// two may think so, or none, and what they propose is right all the same.
pub(crate) fn keeps_cluster(image: &Image, session: SessionId) -> bool {
    image.brokers().first().is_none_or(|keeper| keeper.session == session)
}
