//! The cluster: metadata, and calls to one of its brokers, tried again until they succeed or the deadline has come.

use std::sync::Arc;
use std::time::Duration;

use isobar_host::Host;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::metadata_request::MetadataRequestTopic;
use isobar_protocol::messages::{MetadataRequest, TopicName};
use isobar_protocol::{KafkaRequest, StrBytes};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::config::ClientConfig;
use crate::connection::{Connection, api_name};
use crate::error::ClientError;
use crate::metadata::{ClusterMetadata, TopicInfo, TopicPartition};
use crate::pool::Pool;

/// First Metadata version with a nullable topic list, ids and names.
const METADATA_MIN: i16 = 12;
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// A cluster; clones share metadata and connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    host: Host,
    config: Arc<ClientConfig>,
    pool: Pool,
    metadata: Mutex<Arc<ClusterMetadata>>,
}

impl Client {
    /// Reaches one of the bootstrap brokers, trying until `api_timeout`.
    pub async fn connect(host: &Host, config: ClientConfig) -> Result<Client, ClientError> {
        if config.bootstrap.is_empty() {
            return Err(ClientError::Usage("no bootstrap broker given".to_owned()));
        }
        let config = Arc::new(config);
        let pool = Pool::new(host, &config);
        let inner = Inner { host: host.clone(), config, pool, metadata: Mutex::default() };
        let client = Client { inner: Arc::new(inner) };
        client.refresh(Some(&[])).await?;
        Ok(client)
    }

    /// The configuration.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    pub(crate) fn host(&self) -> &Host {
        &self.inner.host
    }

    /// A pool of connections apart from the one for metadata and admin calls.
    pub(crate) fn own_pool(&self) -> Pool {
        Pool::new(&self.inner.host, &self.inner.config)
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.inner.config.api_timeout
    }

    /// Asks for the topics named, or all (`None`), without creating any. A topic that does not exist has its error set.
    pub async fn metadata(&self, topics: Option<&[&str]>) -> Result<Arc<ClusterMetadata>, ClientError> {
        self.refresh(topics).await
    }

    /// One topic, waiting until all its partitions have leaders; UNKNOWN_TOPIC_OR_PARTITION if there is none.
    pub async fn topic(&self, name: &str) -> Result<TopicInfo, ClientError> {
        let mut retry = Retry::until(self.deadline());
        loop {
            let metadata = self.refresh(Some(&[name])).await?;
            let error = match metadata.topics.get(name) {
                None => ErrorCode::UnknownTopicOrPartition,
                Some(topic) => match topic.partitions.values().find(|partition| partition.leader < 0) {
                    Some(partition) if topic.error.is_none() => {
                        partition.error.max(ErrorCode::LeaderNotAvailable)
                    }
                    _ if topic.error.is_none() => return Ok(topic.clone()),
                    _ => topic.error,
                },
            };
            let error = ClientError::broker(format!("topic {name}"), error, None);
            if error.code() == Some(ErrorCode::UnknownTopicOrPartition) {
                return Err(error);
            }
            retry.after(error).await?;
        }
    }

    /// The metadata of the last answer.
    pub(crate) fn known(&self) -> Arc<ClusterMetadata> {
        Arc::clone(&self.inner.metadata.lock())
    }

    pub(crate) async fn refresh(&self, topics: Option<&[&str]>) -> Result<Arc<ClusterMetadata>, ClientError> {
        let mut retry = Retry::until(self.deadline());
        loop {
            match self.refresh_once(topics).await {
                Ok(metadata) => return Ok(metadata),
                Err(error) => retry.after(error).await?,
            }
        }
    }

    /// Asks the brokers that are known, one after the other, and then those of the configuration.
    pub(crate) async fn refresh_once(
        &self,
        topics: Option<&[&str]>,
    ) -> Result<Arc<ClusterMetadata>, ClientError> {
        let named = topics.map(|topics| {
            let topic = |name: &&str| {
                let name = TopicName(StrBytes::from_string((*name).to_owned()));
                MetadataRequestTopic::default().with_name(Some(name))
            };
            topics.iter().map(topic).collect()
        });
        let request = MetadataRequest::default().with_topics(named).with_allow_auto_topic_creation(false);
        let known = self.known();
        let mut last = ClientError::Usage("no broker".to_owned());
        for addr in known
            .brokers
            .values()
            .map(|broker| broker.addr())
            .chain(self.inner.config.bootstrap.iter().cloned())
        {
            let answer = async { self.inner.pool.get(&addr).await?.call(&request, METADATA_MIN).await }.await;
            match answer {
                Ok(response) => {
                    let newer = ClusterMetadata::from_response(response);
                    let mut metadata = self.inner.metadata.lock();
                    *metadata = Arc::new(if topics.is_none() { newer } else { metadata.merged(newer) });
                    return Ok(Arc::clone(&metadata));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The address of a partition's leader, asking at most once for one that is not known.
    pub(crate) async fn leader_once(&self, at: &TopicPartition) -> Result<String, ClientError> {
        if let Some(broker) = self.known().leader(at) {
            return Ok(broker.addr());
        }
        let metadata = self.refresh_once(Some(&[&at.topic])).await?;
        if let Some(broker) = metadata.leader(at) {
            return Ok(broker.addr());
        }
        let topic = metadata.topics.get(&at.topic).filter(|topic| topic.error.is_none());
        let code = match topic.and_then(|topic| topic.partitions.get(&at.partition)) {
            None => ErrorCode::UnknownTopicOrPartition,
            Some(_) => ErrorCode::LeaderNotAvailable,
        };
        Err(ClientError::broker(at.to_string(), code, None))
    }

    /// Forgets where a partition's leader is, so that the next look asks.
    pub(crate) fn forget_leader(&self, at: &TopicPartition) {
        let mut metadata = self.inner.metadata.lock();
        if metadata.topics.contains_key(&at.topic) {
            Arc::make_mut(&mut metadata).topics.remove(&at.topic);
        }
    }

    /// A connection to a broker by id, or to any.
    pub(crate) async fn connection(&self, broker: Option<i32>) -> Result<Connection, ClientError> {
        let known = self.known();
        let Some(id) = broker else {
            let mut last = None;
            for addr in
                known.brokers.values().map(|b| b.addr()).chain(self.inner.config.bootstrap.iter().cloned())
            {
                match self.inner.pool.get(&addr).await {
                    Ok(connection) => return Ok(connection),
                    Err(error) => last = Some(error),
                }
            }
            return Err(last.unwrap_or_else(|| ClientError::Usage("no broker".to_owned())));
        };
        match known.brokers.get(&id) {
            Some(info) => self.inner.pool.get(&info.addr()).await,
            None => Err(ClientError::broker(format!("broker {id}"), ErrorCode::BrokerNotAvailable, None)),
        }
    }

    /// The shared connection to a broker by address.
    pub(crate) async fn connection_to(&self, addr: &str) -> Result<Connection, ClientError> {
        self.inner.pool.get(addr).await
    }

    /// Sends a request to a broker by id, or to any, once. `min_version` is the lowest that can say what `request` says.
    /// Error codes inside the response are the caller's to read.
    pub async fn call<R: KafkaRequest>(
        &self,
        broker: Option<i32>,
        request: &R,
        min_version: i16,
    ) -> Result<R::Response, ClientError> {
        self.connection(broker).await?.call(request, min_version).await
    }

    /// [`Client::call`] to any broker, tried again for as long as the connection is the trouble or the whole answer
    /// carries a retriable error. For calls that may be done twice.
    pub(crate) async fn call_retrying<R: KafkaRequest>(
        &self,
        request: &R,
        min_version: i16,
        error_of: impl Fn(&R::Response) -> i16,
    ) -> Result<R::Response, ClientError> {
        let mut retry = Retry::until(self.deadline());
        loop {
            let error = match self.call(None, request, min_version).await {
                Ok(response) => match ErrorCode::from_i16(error_of(&response)) {
                    ErrorCode::None => return Ok(response),
                    code => ClientError::broker(api_name::<R>(), code, None),
                },
                Err(error) => error,
            };
            retry.after(error).await?;
        }
    }
}

/// Waits longer after each failure, up to a deadline.
pub(crate) struct Retry {
    deadline: Instant,
    backoff: Duration,
}

impl Retry {
    pub(crate) fn until(deadline: Instant) -> Self {
        Retry { deadline, backoff: FIRST_BACKOFF }
    }

    /// Returns after a pause if it is worth trying again; else the error.
    pub(crate) async fn after(&mut self, error: ClientError) -> Result<(), ClientError> {
        if !error.is_retriable() || Instant::now() + self.backoff >= self.deadline {
            return Err(error);
        }
        tracing::debug!(%error, backoff = ?self.backoff, "trying again");
        sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(LAST_BACKOFF);
        Ok(())
    }
}
