//! Finding the coordinator of a group, and talking to it.

use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::{FindCoordinatorRequest, GroupId};
use isobar_protocol::{KafkaRequest, StrBytes};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::client::{Client, Retry};
use crate::connection::{Connection, api_name};
use crate::error::ClientError;
use crate::metadata::BrokerInfo;
use crate::pool::Pool;

/// First FindCoordinator version that takes a list of keys (KIP-699).
const FIND_COORDINATOR_MIN: i16 = 4;
const GROUP: i8 = 0;

/// The way to one group's coordinator, with connections of its own: a JoinGroup may take minutes.
pub(crate) struct Coordinator {
    client: Client,
    pool: Pool,
    group: String,
    addr: Mutex<Option<String>>,
}

impl Coordinator {
    pub(crate) fn new(client: &Client, group: &str) -> Self {
        Coordinator {
            client: client.clone(),
            pool: client.own_pool(),
            group: group.to_owned(),
            addr: Mutex::new(None),
        }
    }

    pub(crate) fn group_id(&self) -> GroupId {
        GroupId(StrBytes::from_string(self.group.clone()))
    }

    /// A connection to the coordinator, looked up if it is not known.
    pub(crate) async fn connection(&self) -> Result<Connection, ClientError> {
        let known = self.addr.lock().clone();
        let addr = match known {
            Some(addr) => addr,
            None => {
                let addr = self.find().await?;
                *self.addr.lock() = Some(addr.clone());
                addr
            }
        };
        self.pool.get(&addr).await.inspect_err(|_| self.forget())
    }

    /// Looks it up anew next time.
    pub(crate) fn forget(&self) {
        *self.addr.lock() = None;
    }

    async fn find(&self) -> Result<String, ClientError> {
        let key = StrBytes::from_string(self.group.clone());
        let request = FindCoordinatorRequest::default().with_key_type(GROUP).with_coordinator_keys(vec![key]);
        let response = self.client.call(None, &request, FIND_COORDINATOR_MIN).await?;
        let what = || format!("coordinator of group {}", self.group);
        let Some(found) = response.coordinators.first() else {
            return Err(ClientError::malformed(what(), "no answer for it"));
        };
        match ErrorCode::from_i16(found.error_code) {
            ErrorCode::None => {
                let info = BrokerInfo {
                    id: found.node_id.0,
                    host: found.host.to_string(),
                    port: found.port,
                    rack: None,
                };
                Ok(info.addr())
            }
            code => Err(ClientError::broker(what(), code, found.error_message.as_deref())),
        }
    }

    /// Sends a request, trying again while the connection or the coordinator is the trouble. `error_of` reads the
    /// code of the whole response; others than coordinator errors are returned as errors.
    pub(crate) async fn call<R: KafkaRequest>(
        &self,
        request: &R,
        min: i16,
        deadline: Instant,
        error_of: impl Fn(&R::Response) -> i16,
    ) -> Result<R::Response, ClientError> {
        let mut retry = Retry::until(deadline);
        loop {
            let answer = async { self.connection().await?.call(request, min).await }.await;
            let error = match answer {
                Ok(response) => match ErrorCode::from_i16(error_of(&response)) {
                    ErrorCode::None => return Ok(response),
                    code => self.refused(api_name::<R>(), code),
                },
                Err(error) => error,
            };
            self.heed(&error);
            retry.after(error).await?;
        }
    }

    /// An error of this group.
    pub(crate) fn refused(&self, what: &str, code: ErrorCode) -> ClientError {
        ClientError::broker(format!("{what} of group {}", self.group), code, None)
    }

    /// Forgets the coordinator if the error says that it has moved or cannot be reached.
    pub(crate) fn heed(&self, error: &ClientError) {
        let moved = matches!(
            error,
            ClientError::Connect { .. }
                | ClientError::Disconnected { .. }
                | ClientError::Timeout { .. }
                | ClientError::Broker {
                    code: ErrorCode::NotCoordinator | ErrorCode::CoordinatorNotAvailable,
                    ..
                }
        );
        if moved {
            self.forget();
        }
    }
}
