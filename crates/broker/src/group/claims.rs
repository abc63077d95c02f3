//! Since when this broker coordinates its groups: what clients sent earlier may be of the time of other coordinators.
//!
//! A machine comes and goes (that of a group without members with each request), a claim stays: its time is that of the first
//! load under it, which is after metadata took it.
//!
//! **Owns** (soft): one entry for each group that was loaded and is still this broker's.

use std::collections::BTreeMap;

use isobar_groups::Name;
use isobar_metadata::{Group, Image, SessionId};
use parking_lot::Mutex;
use tokio::time::Instant;

/// When the group came to this broker, and the generation it had then; `None`: it is new, so no others had it.
pub(super) type OthersUntil = Option<(Instant, i32)>;

#[derive(Default)]
pub(super) struct Claims {
    /// By group; with the coordinator epoch.
    loaded: Mutex<BTreeMap<Name, (u64, OthersUntil)>>,
}

impl Claims {
    /// The group is loaded under this broker's claim, perhaps not for the first time.
    pub(super) fn loaded(&self, group: &Group, is_new: bool) -> OthersUntil {
        let mut loaded = self.loaded.lock();
        match loaded.get(&group.group) {
            Some((epoch, until)) if *epoch == group.coordinator_epoch => *until,
            _ => {
                let until = (!is_new).then(|| (Instant::now(), group.record.generation));
                loaded.insert(Name::from(&*group.group), (group.coordinator_epoch, until));
                until
            }
        }
    }

    /// Forgets the groups that this broker has no more.
    pub(super) fn keep_those_of(&self, image: &Image, me: SessionId) {
        let holds = |group: &Name, epoch: u64| {
            image
                .group(group)
                .is_some_and(|group| (group.coordinator, group.coordinator_epoch) == (me, epoch))
        };
        self.loaded.lock().retain(|group, (epoch, _)| holds(group, *epoch));
    }
}
