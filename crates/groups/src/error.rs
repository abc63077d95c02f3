//! What a group request can be refused with.

/// Why a request was refused; every kind is one of Kafka's error codes and means to the client what it means there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum GroupError {
    /// The group's state could not be stored; the client starts over.
    #[error("the group's state could not be stored")]
    UnknownServerError,
    /// The coordinator cannot take this now; the client retries the same request.
    #[error("the coordinator is loading or has no room for now")]
    CoordinatorLoadInProgress,
    /// The group is being unloaded; the client looks for the coordinator again.
    #[error("the coordinator is not available")]
    CoordinatorNotAvailable,
    /// Another broker coordinates the group; the client looks for the coordinator again.
    #[error("this broker does not coordinate the group")]
    NotCoordinator,
    /// The member is of another generation; the client joins again.
    #[error("the generation is not the group's")]
    IllegalGeneration,
    /// The member shares no protocol with the group, or names another protocol type.
    #[error("the protocol type or protocols do not fit the group's")]
    InconsistentGroupProtocol,
    /// The group id is empty where it may not be.
    #[error("the group id is not valid")]
    InvalidGroupId,
    /// The coordinator does not know the member; the client joins as a new one.
    #[error("the member id is not known")]
    UnknownMemberId,
    /// The session timeout lies outside `group.min.session.timeout.ms` and `group.max.session.timeout.ms`.
    #[error("the session timeout is outside the configured range")]
    InvalidSessionTimeout,
    /// The group rebalances; the client joins again.
    #[error("the group is rebalancing")]
    RebalanceInProgress,
    /// The request breaks a bound that no valid client reaches.
    #[error("the request is not valid")]
    InvalidRequest,
    /// The group has members, so it cannot be deleted.
    #[error("the group is not empty")]
    NonEmptyGroup,
    /// No such group.
    #[error("the group does not exist")]
    GroupIdNotFound,
    /// The client has to join again with the member id that comes with this error (KIP-394).
    #[error("the member has to join again with the id given to it")]
    MemberIdRequired,
    /// The group has as many members, or bytes of member metadata, as it may have.
    #[error("the group has reached its maximum size")]
    GroupMaxSizeReached,
    /// Another process has joined with the same `group.instance.id` since (KIP-345); the client stops.
    #[error("another member with the same group instance id has taken over")]
    FencedInstanceId,
}

impl GroupError {
    /// Kafka's error code.
    #[must_use]
    pub fn code(self) -> i16 {
        match self {
            Self::UnknownServerError => -1,
            Self::CoordinatorLoadInProgress => 14,
            Self::CoordinatorNotAvailable => 15,
            Self::NotCoordinator => 16,
            Self::IllegalGeneration => 22,
            Self::InconsistentGroupProtocol => 23,
            Self::InvalidGroupId => 24,
            Self::UnknownMemberId => 25,
            Self::InvalidSessionTimeout => 26,
            Self::RebalanceInProgress => 27,
            Self::InvalidRequest => 42,
            Self::NonEmptyGroup => 68,
            Self::GroupIdNotFound => 69,
            Self::MemberIdRequired => 79,
            Self::GroupMaxSizeReached => 81,
            Self::FencedInstanceId => 82,
        }
    }
}
