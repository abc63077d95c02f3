//! Connections by address. Whoever must not wait behind another's requests has a pool of its own, because a broker
//! answers one connection in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_host::Host;
use tokio::sync::Mutex;

use crate::config::ClientConfig;
use crate::connection::Connection;
use crate::error::ClientError;

pub(crate) struct Pool {
    host: Host,
    config: Arc<ClientConfig>,
    /// Held while connecting, so that two who want the same broker share one connection.
    connections: Mutex<BTreeMap<String, Connection>>,
}

impl Pool {
    pub(crate) fn new(host: &Host, config: &Arc<ClientConfig>) -> Self {
        Pool { host: host.clone(), config: Arc::clone(config), connections: Mutex::new(BTreeMap::new()) }
    }

    /// The connection to a broker, made now if there is none that lives.
    pub(crate) async fn get(&self, addr: &str) -> Result<Connection, ClientError> {
        let mut connections = self.connections.lock().await;
        if let Some(connection) = connections.get(addr)
            && !connection.is_closed()
        {
            return Ok(connection.clone());
        }
        connections.remove(addr);
        let connection = Connection::open(&self.host, addr, &self.config).await?;
        connections.insert(addr.to_owned(), connection.clone());
        Ok(connection)
    }
}
