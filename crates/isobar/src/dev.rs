//! `isobar dev`: a whole node in the foreground.

use std::time::Duration;

use isobar_host::Host;
use isobar_node::node::{Node, NodeOptions, Store};
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;
use crate::cli::DevArgs;

/// The node's options as the command line says.
pub(crate) fn options_of(args: &DevArgs) -> NodeOptions {
    let mut options = NodeOptions::new(&args.data);
    if let Some(url) = &args.store {
        options.store = Store::Url(url.clone());
    }
    options.admin = (args.admin != "off").then(|| args.admin.clone());
    options.upload_interval = Duration::from_millis(args.upload_interval_ms);
    options.archive.interval = Duration::from_millis(args.archive_interval_ms);
    options.segment_bytes = args.segment_bytes;
    options.snapshot_after_bytes = args.snapshot_after_bytes.unwrap_or(options.snapshot_after_bytes);
    options.tail_bytes = args.tail_bytes.unwrap_or(options.tail_bytes);
    options.broker.listen.clone_from(&args.listen);
    options.broker.advertise.clone_from(&args.advertise);
    options.broker.rack.clone_from(&args.rack);
    options.broker.num_partitions = args.num_partitions;
    options.broker.auto_create_topics_enable = args.auto_create_topics;
    options
}

pub(crate) async fn run(args: DevArgs) -> Result<(), Failure> {
    // Taken before the start, so that a signal during it is not lost.
    let mut stop = Stop::new()?;
    let host = Host::real();
    let node = Node::start(&host, options_of(&args)).await?;
    let admin = node.admin_addr().map_or_else(|| "off".to_owned(), |addr| format!("http://{addr}"));
    tracing::info!(
        kafka = %node.local_addr(), admin, data = %args.data.display(),
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
