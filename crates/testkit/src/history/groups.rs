//! Committed offsets: for each group and partition a register that commits overwrite.

use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Open,
    Acked(u64),
    Failed,
    Unknown,
}

struct Commit {
    began_ns: u64,
    outcome: Outcome,
    offset: i64,
}

/// What a read of the register may answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Allowed {
    /// Ascending.
    pub(super) offsets: Vec<i64>,
    /// That nothing was ever committed.
    pub(super) none: bool,
}

#[derive(Default)]
pub(super) struct Groups {
    registers: BTreeMap<(String, u32), Vec<Commit>>,
    /// Commit id to its register and place there.
    open: BTreeMap<u64, ((String, u32), usize)>,
}

impl Groups {
    pub(super) fn begin(
        &mut self,
        commit: u64,
        group: &str,
        partition: u32,
        offset: i64,
        time_ns: u64,
    ) -> Result<(), String> {
        let key = (group.to_owned(), partition);
        let register = self.registers.entry(key.clone()).or_default();
        if self.open.insert(commit, (key, register.len())).is_some() {
            return Err(format!("commit {commit} begins twice"));
        }
        register.push(Commit { began_ns: time_ns, outcome: Outcome::Open, offset });
        Ok(())
    }

    pub(super) fn end(&mut self, commit: u64, outcome: Outcome) -> Result<(), String> {
        let (key, at) = self
            .open
            .remove(&commit)
            .ok_or_else(|| format!("commit {commit} is answered but is not open"))?;
        if let Some(found) = self.registers.get_mut(&key).and_then(|register| register.get_mut(at)) {
            found.outcome = outcome;
        }
        Ok(())
    }

    /// What a read that began and ended at these times may answer: the commits that were acknowledged before it began
    /// and are not certainly overwritten by another such, and every commit that may have counted meanwhile.
    pub(super) fn allowed(&self, group: &str, partition: u32, began_ns: u64, ended_ns: u64) -> Allowed {
        let key = (group.to_owned(), partition);
        let commits = self.registers.get(&key).map_or(&[][..], Vec::as_slice);
        let acked_before = |c: &Commit| match c.outcome {
            Outcome::Acked(at) if at < began_ns => Some(at),
            _ => None,
        };
        let newest_began = commits.iter().filter(|c| acked_before(c).is_some()).map(|c| c.began_ns).max();
        let mut offsets: Vec<i64> = commits
            .iter()
            .filter(|c| match acked_before(c) {
                Some(at) => newest_began.is_none_or(|newest| at >= newest),
                None => c.outcome != Outcome::Failed && c.began_ns <= ended_ns,
            })
            .map(|c| c.offset)
            .collect();
        offsets.sort_unstable();
        offsets.dedup();
        Allowed { offsets, none: newest_began.is_none() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledged_commit_overwrites_those_acknowledged_before_it_began() {
        let mut groups = Groups::default();
        let none = Allowed { offsets: vec![], none: true };
        assert_eq!(groups.allowed("g", 0, 5, 6), none);
        groups.begin(1, "g", 0, 10, 10).unwrap();
        assert_eq!(groups.allowed("g", 0, 11, 12), Allowed { offsets: vec![10], none: true });
        groups.end(1, Outcome::Acked(20)).unwrap();
        assert_eq!(groups.allowed("g", 0, 21, 22), Allowed { offsets: vec![10], none: false });
        groups.begin(2, "g", 0, 30, 30).unwrap();
        groups.end(2, Outcome::Acked(40)).unwrap();
        assert_eq!(groups.allowed("g", 0, 41, 42), Allowed { offsets: vec![30], none: false });
        // A read that began before the second one was acknowledged may see either.
        assert_eq!(groups.allowed("g", 0, 35, 42), Allowed { offsets: vec![10, 30], none: false });
        // An undecided one may count at any time; a refused one never.
        groups.begin(3, "g", 0, 7, 50).unwrap();
        groups.end(3, Outcome::Unknown).unwrap();
        groups.begin(4, "g", 0, 99, 60).unwrap();
        groups.end(4, Outcome::Failed).unwrap();
        assert_eq!(groups.allowed("g", 0, 100, 101), Allowed { offsets: vec![7, 30], none: false });
        assert_eq!(groups.allowed("g", 1, 100, 101), none);
        assert!(groups.end(4, Outcome::Failed).is_err());
    }
}
