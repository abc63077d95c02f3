//! What this crate's tasks need of metadata. Implemented above, over the quorum and the broker's image.

use async_trait::async_trait;
use isobar_metadata::{Command, CommandResult, Image};

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
}
