//! InitProducerId for idempotent producers. Transactions are not built, so a transactional id is refused.

use isobar_metadata::command::GrantProducerId;
use isobar_metadata::result::RefusalKind;
use isobar_metadata::{Command, CommandResult};
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};

use crate::Broker;
use crate::session::retriable;

/// A new producer id with epoch 0, whatever id the producer had before: without transactions Kafka, too, never bumps
/// the epoch of one.
pub(crate) async fn init(broker: &Broker, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let refused = |code: ErrorCode| {
        InitProducerIdResponse::default()
            .with_error_code(code.code())
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1)
    };
    if let Some(transactional_id) = &request.transactional_id {
        let empty = transactional_id.is_empty();
        return refused(if empty {
            ErrorCode::InvalidRequest
        } else {
            ErrorCode::TransactionalIdAuthorizationFailed
        });
    }
    match broker.session.propose(Command::GrantProducerId(GrantProducerId { count: 1 })).await {
        Ok(CommandResult::ProducerIds(granted)) => InitProducerIdResponse::default()
            .with_producer_id(ProducerId(granted.first))
            .with_producer_epoch(0),
        // This broker's life is over: any other grants one.
        Ok(CommandResult::Refused(refusal))
            if matches!(
                RefusalKind::try_from(refusal.kind),
                Ok(RefusalKind::Fenced | RefusalKind::UnknownSession)
            ) =>
        {
            refused(ErrorCode::CoordinatorNotAvailable)
        }
        Ok(other) => {
            tracing::error!(answer = ?other, "the grant of a producer id was refused");
            refused(ErrorCode::UnknownServerError)
        }
        Err(error) => {
            tracing::warn!(%error, "no producer id could be granted");
            refused(match retriable(&error) {
                // The code that every client retries here.
                ErrorCode::RequestTimedOut => ErrorCode::CoordinatorNotAvailable,
                code => code,
            })
        }
    }
}
