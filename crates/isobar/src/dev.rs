//! `isobar dev`: a whole node in the foreground.

use isobar_host::Host;
use isobar_node::config::Config;
use isobar_node::node::Node;
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;

pub(crate) async fn run(config: &Config) -> Result<(), Failure> {
    // Taken before the start, so that a signal during it is not lost.
    let mut stop = Stop::new()?;
    let host = Host::real();
    let options = config.node_options();
    let data = options.data.clone();
    let node = Node::start(&host, options).await?;
    let admin = node.admin_addr().map_or_else(|| "off".to_owned(), |addr| format!("http://{addr}"));
    tracing::info!(
        kafka = %node.local_addr(), admin, data = %data.display(),
        "isobar is ready; stop it with Ctrl-C"
    );
    let signal = tokio::select! {
        biased;
        signal = stop.wait() => signal,
        // It takes no commands any more, so there is nothing to drain.
        why = node.lost() => return Err(why.into()),
    };
    tracing::info!(signal, "stopping: answering what is in flight");
    node.stop().await?;
    tracing::info!("stopped");
    Ok(())
}

/// SIGTERM and Ctrl-C.
pub(crate) struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(crate) async fn wait(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
