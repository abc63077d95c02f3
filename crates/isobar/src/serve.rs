//! `isobar dev` and `isobar serve`: a whole node in the foreground.

use std::time::Duration;

use isobar_host::Host;
use isobar_node::config::Config;
use isobar_node::node::{Ending, Node, NodeOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;

/// What ended one life may end the next as soon: so it does not become a loop.
const BETWEEN_LIVES: Duration = Duration::from_millis(500);

/// A node that is alone.
pub(crate) async fn dev(config: &Config) -> Result<(), Failure> {
    let options = config.node_options();
    if options.cluster.is_member() {
        return Err("this configuration is of a cluster's node: run it with isobar serve".into());
    }
    run(options).await
}

/// A node as configured.
pub(crate) async fn serve(config: &Config) -> Result<(), Failure> {
    run(config.node_options()).await
}

async fn run(options: NodeOptions) -> Result<(), Failure> {
    // Taken before the start, so that a signal during it is not lost.
    let mut stop = Stop::new()?;
    let host = Host::real();
    loop {
        let starting = Node::start(&host, options.clone());
        let node = tokio::select! {
            biased;
            signal = stop.wait() => {
                tracing::info!(signal, "stopped before it was ready");
                return Ok(());
            }
            node = starting => node?,
        };
        let kafka = node.local_addr().map_or_else(|| "off".to_owned(), |addr| addr.to_string());
        let admin = node.admin_addr().map_or_else(|| "off".to_owned(), |addr| format!("http://{addr}"));
        tracing::info!(
            kafka, admin, data = %options.data.display(),
            "isobar is ready; stop it with Ctrl-C"
        );
        let ending = tokio::select! {
            biased;
            signal = stop.wait() => {
                tracing::info!(signal, "stopping: answering what is in flight");
                node.stop().await?;
                tracing::info!("stopped");
                return Ok(());
            }
            ending = node.lost() => ending,
        };
        match ending {
            // It takes no commands any more, so there is nothing to drain.
            Ending::ForGood(why) => return Err(why.into()),
            Ending::StartAgain(why) => {
                tracing::warn!(why, "this life of the node is over: it starts again");
                node.abandon().await?;
                tokio::time::sleep(BETWEEN_LIVES).await;
            }
        }
    }
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
