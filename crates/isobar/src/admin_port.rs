//! What a node tells on its admin port: health, metrics of the process, operations.

use std::sync::Arc;

use isobar_admin::{Admin, Health};
use isobar_broker::RunningBroker;
use isobar_host::Host;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::node::{NodeError, NodeOptions};
use crate::operations::NodeOperations;

pub(crate) async fn start_admin(
    host: &Host,
    options: &NodeOptions,
    mut registry: Registry,
    broker: Option<Arc<RunningBroker>>,
    lost: Option<Lost>,
    operations: Arc<NodeOperations>,
) -> Result<Option<Admin>, NodeError> {
    let Some(addr) = &options.admin else { return Ok(None) };
    registry.register_collector(Box::new(ProcessUsage { host: host.clone() }));
    let health = Arc::new(NodeHealth { broker, lost });
    Ok(Some(Admin::start(host, addr, Arc::new(registry), health, operations).await?))
}

/// Why the archive is not this node's any more.
type Lost = isobar_host::watch::Receiver<Option<String>>;

struct NodeHealth {
    broker: Option<Arc<RunningBroker>>,
    lost: Option<Lost>,
}

impl Health for NodeHealth {
    fn alive(&self) -> Result<(), String> {
        health(self.broker.as_deref(), self.lost.as_ref())
    }

    fn ready(&self) -> Result<(), String> {
        health(self.broker.as_deref(), self.lost.as_ref())
    }

    fn refresh(&self) {
        if let Some(broker) = &self.broker {
            broker.refresh_metrics();
        }
    }
}

/// Memory and CPU time of the process, under the names that Prometheus' own clients use.
struct ProcessUsage {
    host: Host,
}

impl std::fmt::Debug for ProcessUsage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ProcessUsage")
    }
}

impl prometheus_client::collector::Collector for ProcessUsage {
    fn encode(
        &self,
        mut encoder: prometheus_client::encoding::DescriptorEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        use prometheus_client::encoding::EncodeMetric;
        let (resident_bytes, cpu_seconds) = self.host.process_usage();
        let resident = ConstGauge::new(i64::try_from(resident_bytes).unwrap_or(i64::MAX));
        resident.encode(encoder.encode_descriptor(
            "process_resident_memory",
            "Resident memory size",
            Some(&Unit::Bytes),
            resident.metric_type(),
        )?)?;
        let cpu = ConstCounter::new(cpu_seconds);
        cpu.encode(encoder.encode_descriptor(
            "process_cpu",
            "Total user and system CPU time spent",
            Some(&Unit::Seconds),
            cpu.metric_type(),
        )?)
    }
}

/// Of the roles that the node has.
pub(crate) fn health(broker: Option<&RunningBroker>, lost: Option<&Lost>) -> Result<(), String> {
    match lost.and_then(|lost| lost.borrow().clone()) {
        Some(why) => Err(why),
        None => broker.map_or(Ok(()), RunningBroker::health),
    }
}
