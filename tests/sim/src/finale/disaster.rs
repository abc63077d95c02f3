//! Every directory of the node is gone, and the bucket is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use isobar_client::TopicPartition;
use isobar_host::disk::Disk as _;
use isobar_host::sim::SimDisk;
use isobar_node::Found;
use isobar_testkit::history::{Checker, Event, Op, Options};

use super::{Done, Finale, INSIDE, judge};
use crate::load::hand::{Errand, Log, MARKS, Survey};
use crate::machine::Armed;
use crate::node::{DATA, Stage};
use crate::plan::NODE;
use crate::plan::{Disaster, Draw as _, RECOVERY_POINTS};
use crate::run::Driver;

/// What an offset held under a leader epoch: consumers that knew it must never see another.
#[derive(Default)]
pub(super) struct Contents {
    known: BTreeMap<TopicPartition, BTreeMap<(i64, i32), u32>>,
    producers: BTreeSet<i64>,
}

impl Contents {
    pub(super) fn learn(&mut self, survey: &Survey, wrong: &mut dyn FnMut(String)) {
        for (at, log) in &survey.logs {
            let known = self.known.entry(at.clone()).or_default();
            for batch in &log.batches {
                for read in &batch.records {
                    if *known.entry((read.0, batch.epoch)).or_insert(read.2) != read.2 {
                        wrong(format!(
                            "{at} offset {} with leader epoch {} has had two contents",
                            read.0, batch.epoch
                        ));
                    }
                }
            }
        }
        self.producers.extend(survey.producers.iter().chain(&survey.new_producer));
    }
}

impl Driver {
    pub(super) fn disaster(&mut self, finale: &mut Finale, disaster: Disaster) -> Done {
        self.new_clients();
        let began_ns = self.recorder.stamp();
        let complete = match disaster {
            Disaster::Stopped => {
                self.write(300, true)?;
                self.stopped()?;
                true
            }
            Disaster::Quiet => {
                self.write(300, true)?;
                // Several times what an upload, a commit and an archive object take.
                self.pass(20_000, 10);
                self.dies();
                true
            }
            Disaster::Load { at_ms, outage_ms } => {
                // So that not all of a recovery goes back to before the marks were there.
                self.pass(6_000, 10);
                self.write(at_ms, false)?;
                if outage_ms > 0 && !self.plan.node.store_inside {
                    self.bucket.set_outage(true);
                    // Not ended by the driver before its time.
                    self.bucket_faults_until = u64::MAX;
                    self.pass(outage_ms, 1);
                }
                self.dies();
                false
            }
        };
        finale.contents.producers.extend(self.load.producers.lock().iter());
        self.new_clients();
        self.calm();
        let events = self.recorder.since(began_ns);
        let ever = judge::ever(&self.recorder.since(0));
        self.recover(complete)?;
        let again_ns = self.recorder.stamp();
        self.up()?;

        let survey = self.survey()?;
        let new = survey.new_producer;
        if new.is_none_or(|id| finale.contents.producers.contains(&id)) {
            self.recorder.problem(format!("a recovered cluster gave the producer id {new:?} a second time"));
        }
        let verdict = judge::recovered(&finale.known, &events, &ever, &survey, complete);
        for what in verdict.wrong {
            self.recorder.problem(format!("after a recovery: {what}"));
        }
        self.count(if complete { "recovered whole" } else { "recovered" });
        if verdict.lacking > 0 {
            self.count("recovered to a cut before the end");
        }
        finale.recoveries += 1;
        finale.contents.learn(&survey, &mut |what| self.recorder.problem(what));
        self.goes_on(finale, survey, again_ns)?;
        self.whole_after_recovery()
    }

    fn whole_after_recovery(&mut self) -> Done {
        if self.rng.percent(50) { self.whole() } else { Ok(()) }
    }

    /// A recovered cluster is a cluster: it takes records, and its history is clean.
    fn goes_on(&mut self, finale: &mut Finale, recovered: Survey, again_ns: u64) -> Done {
        self.write(400, true)?;
        if self.rng.percent(50) {
            self.dies();
            self.nodes[0].boot_at = self.tick + 5;
        }
        let survey = self.survey()?;
        finale.contents.producers.extend(self.load.producers.lock().iter());
        finale.contents.learn(&survey, &mut |what| self.recorder.problem(what));
        let mut events = begins_with(&recovered, again_ns);
        events.extend(self.recorder.since(again_ns).into_iter().filter(|event| event.time_ns > again_ns));
        events.extend(ends_with(&survey, self.recorder.stamp()));
        let mut checker = Checker::new(Options { dense: true, examples: 1 });
        for event in &events {
            if let Err(error) = checker.event(event) {
                self.recorder.problem(format!("the history after a recovery is wrong: {error}"));
                break;
            }
        }
        for found in &checker.finish().found {
            let first = found.examples.first().map(|a| format!("{}-{}: {}", a.topic, a.partition, a.what));
            self.recorder.problem(format!("after a recovery: {}: {first:?}", found.kind.name()));
        }
        finale.known = survey;
        Ok(())
    }

    /// A new machine; `isobar recover`, dying at its points in some seeds; the node starts there.
    fn recover(&mut self, complete: bool) -> Done {
        self.new_machine();
        let mut deaths = if complete { 0 } else { self.rng.pick(&[0, 0, 1, 1, 2]) };
        for _ in 0..6 {
            let dies = deaths > 0;
            deaths -= i32::from(dies);
            // One that died behind its last step has succeeded and said so to nobody.
            if self.recover_once(dies)?.is_ok() || (dies && self.holds_a_node()) {
                return self.starts();
            }
        }
        self.broken("no recovery succeeded")
    }

    fn holds_a_node(&self) -> bool {
        let files = self.nodes[0].disk.files();
        let is_there = |name: &str| files.contains_key(&Path::new(DATA).join(name));
        is_there("node.json") && !is_there("RECOVERING")
    }

    /// The node starts on what a recovery made.
    fn starts(&mut self) -> Done {
        let before = self.nodes[0].boots;
        self.nodes[0].boot_at = self.tick;
        self.hold("the recovered node to start", |driver| driver.nodes[0].boots > before)
    }

    /// One run of it: what it found, or why it did not succeed.
    fn recover_once(&mut self, dies: bool) -> Done<Result<Found, String>> {
        self.recovering = true;
        let before = self.nodes[0].boots;
        self.nodes[0].boot_at = self.tick;
        self.hold("a recovery to begin", |driver| driver.nodes[0].boots > before)?;
        self.nodes[0].boot_at = u64::MAX;
        if dies {
            self.arm_recovery();
        }
        let life = Arc::clone(&self.nodes[0].life);
        let ended = self.hold("a recovery", |driver| !driver.world.is_up(NODE));
        self.recovering = false;
        self.nodes[0].boot_at = u64::MAX;
        ended?;
        let life = life.lock();
        Ok(match (&life.recovered, &life.stage) {
            (Some(recovered), _) => Ok(recovered.found.clone()),
            (None, Stage::Failed(why)) => Err(why.clone()),
            (None, _) => Err("it died".to_owned()),
        })
    }

    /// A recovery from an archive that is damaged refuses, or makes a cut of what can be read.
    pub(super) fn disaster_on_damage(
        &mut self,
        finale: &Finale,
        began_ns: u64,
        what: &str,
        key: &str,
    ) -> Done {
        self.new_clients();
        let events = self.recorder.since(began_ns);
        let ever = judge::ever(&self.recorder.since(0));
        self.new_machine();
        self.lenient = true;
        let name = key.rsplit('/').next().unwrap_or(key);
        let found = match self.recover_once(false)? {
            Ok(found) => found,
            Err(why) => {
                if !why.contains(name) {
                    self.recorder
                        .problem(format!("{what} was flipped, and recover does not name the object: {why}"));
                }
                self.count("flip in the archive refused");
                return Ok(());
            }
        };
        self.lenient = false;
        self.starts()?;
        let mut survey = self.sure(Errand::Survey)?;
        // What can be read may end before a topic was made; a recovery must say then which object it could not read.
        let named = found.notes.iter().any(|note| note.contains(name));
        for (at, log) in &mut survey.logs {
            let is_there = found.partitions.contains_key(&(at.topic.clone(), at.partition));
            match &log.error {
                Some(_) if named && !is_there => *log = Log::default(),
                Some(error) => {
                    return self.broken(format!("{what} was flipped, and after a recovery: {at}: {error}"));
                }
                None => {}
            }
        }
        let verdict = judge::recovered(&finale.known, &events, &ever, &survey, false);
        for wrong in verdict.wrong {
            self.recorder.problem(format!("{what} was flipped, and after a recovery: {wrong}"));
        }
        self.count(if verdict.lacking > 0 {
            "flip in the archive moved the cut"
        } else {
            "flip in the archive without effect"
        });
        Ok(())
    }

    fn arm_recovery(&mut self) {
        if self.rng.percent(70) {
            let point = self.rng.pick(RECOVERY_POINTS);
            self.world.arm_point(NODE, point);
            self.nodes[0].armed = Armed::Point(point);
        } else {
            let most = self.rng.pick(&[10, 100, 400]);
            let steps = self.rng.between(1, most);
            self.world.arm(NODE, steps);
            self.nodes[0].armed = Armed::Steps;
        }
    }

    /// The old one has burnt; a bucket that was a directory on it was not on it.
    fn new_machine(&mut self) {
        self.retire_disk(0);
        let disk = SimDisk::new(self.plan.seed ^ self.tick);
        if self.plan.node.store_inside {
            let objects = self.nodes[0].disk.files().into_keys().filter(|path| path.starts_with(INSIDE));
            for path in objects {
                let dir = path.parent().unwrap_or_else(|| Path::new("/")).to_owned();
                let copied = self.nodes[0].disk.read(&path).and_then(|bytes| {
                    disk.create_dir_all(&dir)?;
                    disk.write_durable(&path, &bytes)
                });
                if let Err(error) = copied {
                    self.recorder.problem(format!("copying {}: {error}", path.display()));
                }
            }
        }
        self.nodes[0].disk = Arc::new(disk);
        self.world.add_node(NODE, Arc::clone(&self.nodes[0].disk));
        self.world.sabotage(NODE, self.plan.sabotage);
    }
}

/// What was recovered, as if one producer had sent it and one member committed.
fn begins_with(recovered: &Survey, time_ns: u64) -> Vec<Event> {
    const PRODUCER: u32 = u32::MAX;
    const FIRST_COMMIT: u64 = 1 << 60;
    let mut events = Vec::new();
    // All before the first event of a client.
    let mut add = |op| events.push(Event { time_ns, client: PRODUCER, op });
    add(Op::Producer { producer: PRODUCER, once: false, ordered: false });
    let mut seen = BTreeSet::new();
    for (at, log) in &recovered.logs {
        let records: Vec<_> = log.records().filter_map(|read| Some((read.1?, read.2, read.0))).collect();
        // A plain producer's repeats are there twice.
        let new: Vec<_> = records.into_iter().filter(|(id, ..)| seen.insert(*id)).collect();
        let (topic, partition) = (at.topic.clone(), at.partition);
        let records = new.iter().map(|(id, sum, _)| (*id, *sum)).collect();
        add(Op::Send { producer: PRODUCER, topic, partition, records });
        add(Op::Acked { records: new.iter().map(|(id, _, offset)| (*id, Some(*offset))).collect() });
    }
    for (((group, at), offset), commit) in recovered.offsets.iter().zip(FIRST_COMMIT..) {
        let (group, topic, partition) = (group.clone(), at.topic.clone(), at.partition);
        add(Op::Commit { commit, group, topic, partition, offset: *offset });
        add(Op::CommitAcked { commit });
    }
    events
}

/// The last read.
fn ends_with(survey: &Survey, time_ns: u64) -> Vec<Event> {
    let mut events = Vec::new();
    let mut add = |op| events.push(Event { time_ns, client: u32::MAX, op });
    for (at, log) in &survey.logs {
        let (topic, partition) = (at.topic.clone(), at.partition);
        add(Op::Assign { topic: topic.clone(), partition, offset: Some(0), group: None });
        let records = log.records().copied().collect();
        add(Op::Poll { topic: topic.clone(), partition, last: true, records });
        add(Op::Drained { topic, partition, end: log.end });
    }
    for partition in 0..3 {
        let at = TopicPartition::new(MARKS, partition);
        let offset = survey.offsets.get(&(MARKS.to_owned(), at)).copied();
        let (group, topic) = (MARKS.to_owned(), MARKS.to_owned());
        add(Op::Committed { group, topic, partition, began: time_ns, offset });
    }
    events
}
