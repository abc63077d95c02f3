//! The leader map: for each shard and zone one live broker, by rendezvous hash with bounded load (Thaler and Ravishankar
//! 1998; Mirrokni, Thorup and Zadimoghaddam 2018).

use super::StateMachine;
use crate::effect::EffectKind;
use crate::ids::mix64;
use crate::record::{SessionRecord, ShardLeaders, ZoneLeader};
use std::collections::BTreeMap;
use std::sync::Arc;

impl StateMachine {
    /// Chooses all leaders anew; shards whose leaders changed get a new version.
    pub(super) fn choose_leaders(&mut self) {
        let maps = choose(self.image.sessions.values(), self.image.shards());
        for (shard, leaders) in maps.into_iter().enumerate() {
            let known = &self.image.shards[shard].leaders;
            if known.leaders != leaders {
                let version = known.version.saturating_add(1);
                self.emit(EffectKind::Leaders(ShardLeaders { shard: shard as u32, version, leaders }));
            }
        }
    }
}

fn choose<'a>(sessions: impl Iterator<Item = &'a Arc<SessionRecord>>, shards: u32) -> Vec<Vec<ZoneLeader>> {
    let mut zones: BTreeMap<&str, Vec<&SessionRecord>> = BTreeMap::new();
    for session in sessions.filter(|session| session.is_live()) {
        // The empty zone is all brokers: for clients of zones without one.
        zones.entry("").or_default().push(session);
        if !session.zone.is_empty() {
            zones.entry(&session.zone).or_default().push(session);
        }
    }
    let mut maps = vec![Vec::with_capacity(zones.len()); shards as usize];
    for (zone, brokers) in zones {
        // A quarter more than its share is the most a broker gets.
        let most = (shards as usize * 5).div_ceil(brokers.len() * 4);
        let mut loads = vec![0; brokers.len()];
        for (shard, map) in maps.iter_mut().enumerate() {
            let weight = |index: &usize| {
                let node_id = brokers[*index].node_id;
                (mix64(mix64(node_id as u32 as u64).wrapping_add(shard as u64)), node_id)
            };
            let open = (0..brokers.len()).filter(|index| loads[*index] < most);
            if let Some(best) = open.max_by_key(weight) {
                loads[best] += 1;
                let broker = brokers[best];
                map.push(ZoneLeader {
                    zone: zone.to_owned(),
                    node_id: broker.node_id,
                    session: broker.session,
                });
            }
        }
    }
    maps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;

    fn brokers(count: i32, zones: i32) -> Vec<Arc<SessionRecord>> {
        let broker = |node_id: i32| SessionRecord {
            session: SessionId(node_id as u64 + 1),
            node_id,
            zone: format!("z{}", node_id % zones),
            ..SessionRecord::default()
        };
        (0..count).map(|node_id| Arc::new(broker(node_id))).collect()
    }

    #[test]
    fn loads_are_bounded_and_few_shards_move() {
        let ten = brokers(10, 2);
        let maps = choose(ten.iter(), 64);
        let mut loads = BTreeMap::new();
        for map in &maps {
            assert_eq!(map.iter().map(|leader| leader.zone.as_str()).collect::<Vec<_>>(), ["", "z0", "z1"]);
            for leader in map {
                *loads.entry((leader.zone.clone(), leader.node_id)).or_insert(0) += 1;
            }
        }
        assert!(loads.iter().all(|((zone, _), load)| *load <= if zone.is_empty() { 8 } else { 16 }));
        let nine = choose(ten.iter().filter(|broker| broker.node_id != 4), 64);
        let moved = maps.iter().zip(&nine).filter(|(a, b)| a[2] != b[2]).count();
        assert_eq!(moved, 0, "zone z1 lost nobody");
        let moved = maps.iter().zip(&nine).filter(|(a, b)| a[0] != b[0]).count();
        assert!(moved < 24, "{moved} of 64 moved");
    }
}
