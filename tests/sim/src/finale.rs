//! What comes after the load and its verdict, while the cluster lives on: is anything left over, do deleted topics come back,
//! what is there after every directory was lost, and what does one flipped bit do.
//!
//! The clients are new ones, and do one errand at a time ([`crate::load::hand`]). What they saw last, the *survey*, is what
//! the next phase is held against. Their events are not part of the history that the seed's verdict is about; those of a
//! recovered cluster's clients are a history of its own, which begins with what was recovered.

mod damage;
mod disaster;
mod judge;
mod leftover;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::TryStreamExt as _;
use futures_util::future::FutureExt as _;
use isobar_host::disk::Disk as _;
use isobar_metadata::{Image, TopicId};
use isobar_store::fsck::Kind;
use isobar_testkit::bucket::FaultPlan;
use object_store::ObjectStore as _;

use crate::load::hand::{self, Errand, Survey};
use crate::node::{DATA, Looked, Stage, Wish};
use crate::plan::{Draw as _, Phase};
use crate::run::{CLIENTS, Driver};
use leftover::Objects;

/// Where a store inside lies.
const INSIDE: &str = "/data/bucket";
/// Simulated time after which nothing may be left over: the ten minutes without expiry, the longest grant, and what deletes take.
const SETTLED_MS: u64 = 25 * 60_000;
const LOOK_EVERY_MS: u64 = 10_000;
const IDLE_TICKS: u32 = 50;

/// A phase that could not go on: why is a problem of the seed already.
pub(crate) struct Broken;

type Done<T = ()> = Result<T, Broken>;

/// What one phase leaves to the next.
pub(super) struct Finale {
    /// What the clients saw last.
    known: Survey,
    /// Topics whose window passes.
    doomed: Vec<TopicId>,
    /// By partition, offset and leader epoch: the record's checksum, ever.
    contents: disaster::Contents,
    recoveries: u32,
}

impl Driver {
    /// All phases of the plan.
    pub(crate) fn finale(&mut self) {
        if self.plan.finale.is_empty() {
            return;
        }
        // Why is said already.
        let _ = self.phases();
    }

    fn phases(&mut self) -> Done {
        self.new_clients();
        // Made early, so that it is in the archive when a disaster comes.
        self.sure(Errand::Marks)?;
        let known = self.survey()?;
        let contents = disaster::Contents::default();
        let mut finale = Finale { known, doomed: Vec::new(), contents, recoveries: 0 };
        finale.contents.learn(&finale.known, &mut |what| self.recorder.problem(what));
        self.whole()?;
        for phase in self.plan.finale.clone() {
            match phase {
                Phase::Leftover => self.leftover(&finale)?,
                Phase::SoftDelete => self.soft_delete(&mut finale)?,
                Phase::Disaster(disaster) => self.disaster(&mut finale, disaster)?,
                Phase::Flip(flip) => self.flip(&mut finale, flip)?,
            }
        }
        Ok(())
    }

    /// One more of what a seed did at its end.
    pub(crate) fn count(&mut self, what: &str) {
        *self.counters.finale.entry(what.to_owned()).or_default() += 1;
    }

    fn broken<T>(&self, what: impl Into<String>) -> Done<T> {
        self.recorder.problem(what);
        Err(Broken)
    }

    // ---- clients ----

    /// A machine with nothing on it but the hand.
    fn new_clients(&mut self) {
        self.world.crash(CLIENTS);
        self.load = self.load.again();
        let load = Arc::clone(&self.load);
        self.world.boot(CLIENTS, move |host| hand::serve(host, load));
    }

    /// An errand to a node that may not be up to it. `None`: it did not come back, or the node does not start.
    fn try_errand(&mut self, errand: Errand) -> Option<Survey> {
        *self.load.errand.lock() = Some(errand);
        let deadline = self.tick + 300_000;
        while self.load.errand.lock().is_some() {
            if self.tick >= deadline || matches!(self.nodes[0].life.lock().stage, Stage::Failed(_)) {
                return None;
            }
            self.step();
        }
        Some(std::mem::take(&mut *self.load.survey.lock()))
    }

    fn errand(&mut self, errand: Errand) -> Done<Survey> {
        let what = format!("an errand: {errand:?}");
        *self.load.errand.lock() = Some(errand);
        self.hold(&what, |driver| driver.load.errand.lock().is_none())?;
        Ok(std::mem::take(&mut *self.load.survey.lock()))
    }

    /// As [`Self::wait`]; what does not come ends the phases.
    fn hold(&mut self, what: &str, so: impl Fn(&Self) -> bool) -> Done {
        if self.wait(what, so) { Ok(()) } else { Err(Broken) }
    }

    /// An errand that must succeed.
    fn sure(&mut self, errand: Errand) -> Done<Survey> {
        let survey = self.errand(errand)?;
        match survey.errors.first() {
            None => Ok(survey),
            Some(error) => self.broken(format!("after the load: {error}")),
        }
    }

    /// What clients see; nothing may fail.
    fn survey(&mut self) -> Done<Survey> {
        let survey = self.sure(Errand::Survey)?;
        for (at, log) in &survey.logs {
            if let Some(error) = &log.error {
                return self.broken(format!("a survey: {at} from {}: {error}", log.read_to()));
            }
        }
        Ok(survey)
    }

    /// Senders and marks for so long; all they sent is decided if `decided`.
    fn write(&mut self, ms: u64, decided: bool) -> Done {
        self.load.stop_sending.store(false, Ordering::Relaxed);
        self.sure(Errand::Write)?;
        self.pass(ms, 1);
        if decided {
            self.load.stop_sending.store(true, Ordering::Relaxed);
            self.hold("the last senders", |driver| driver.load.sending.lock().is_empty())?;
        }
        Ok(())
    }

    // ---- the node ----

    /// Simulated time goes by.
    fn pass(&mut self, ms: u64, ticks: u32) {
        let until = self.tick + ms;
        while self.tick < until {
            self.step_by(ticks);
        }
    }

    fn up(&mut self) -> Done {
        self.hold("the node to be up", |driver| {
            driver.world.is_up(driver.nodes[0].name) && driver.nodes[0].is_up()
        })
    }

    fn stopped(&mut self) -> Done {
        self.up()?;
        self.nodes[0].boot_at = u64::MAX;
        self.nodes[0].life.lock().stop = true;
        self.hold("a stop", |driver| matches!(driver.nodes[0].life.lock().stage, Stage::Stopped(_)))?;
        self.nodes[0].boot_at = u64::MAX;
        Ok(())
    }

    fn dies(&mut self) {
        let kind = if self.rng.percent(50) { "kill" } else { "power-cut" };
        self.end(0, kind);
        self.nodes[0].boot_at = u64::MAX;
    }

    fn asked(&mut self, wish: &Wish) -> Done<Result<Looked, String>> {
        self.up()?;
        let life = Arc::clone(&self.nodes[0].life);
        life.lock().wish = Some(wish.clone());
        let what = format!("a node's answer to {wish:?}");
        self.hold(&what, |driver| {
            driver.nodes[0].life.lock().looked.is_some() || !Arc::ptr_eq(&driver.nodes[0].life, &life)
        })?;
        let looked = life.lock().looked.take();
        match looked {
            Some(looked) => Ok(looked),
            None => self.broken(format!("the node ended before its answer to {wish:?}")),
        }
    }

    fn look(&mut self, wish: &Wish) -> Done<Looked> {
        match self.asked(wish)? {
            Ok(looked) => Ok(looked),
            Err(why) => self.broken(format!("{wish:?}: {why}")),
        }
    }

    /// What lies in the bucket, by our own look.
    pub(crate) fn objects(&self) -> Objects {
        if self.plan.node.store_inside {
            let key = |(path, size): (PathBuf, u64)| {
                let key = path.strip_prefix(INSIDE).ok()?.to_str()?.to_owned();
                Some((key, size))
            };
            return self.nodes[0].disk.files().into_iter().filter_map(key).collect();
        }
        let listed = self.bucket.objects().list(None).try_collect::<Vec<_>>().now_or_never();
        let listed = listed.and_then(Result::ok).unwrap_or_default();
        listed.into_iter().map(|object| (object.location.to_string(), object.size)).collect()
    }

    /// All that metadata points at is there, whole, by fsck and by our own look.
    fn whole(&mut self) -> Done {
        let looked = self.look(&Wish::Fsck { repair: false })?;
        for finding in looked.findings.iter().filter(|f| f.kind.is_loss() || f.kind == Kind::Unreadable) {
            self.recorder.problem(format!("fsck: {} {}: {}", finding.kind.name(), finding.key, finding.what));
        }
        // Nothing is deleted before its grace is over, so what this image refers to is there.
        let image = self.look(&Wish::Image)?.image;
        for what in leftover::missing(&image, &self.objects()) {
            self.recorder.problem(what);
        }
        self.count("whole");
        Ok(())
    }

    // ---- phases ----

    fn leftover(&mut self, finale: &Finale) -> Done {
        if finale.recoveries > 0 {
            // Objects that came after the end of the archive: nobody but fsck finds them.
            self.look(&Wish::Fsck { repair: true })?;
        }
        let deadline = self.tick + SETTLED_MS;
        loop {
            self.pass(LOOK_EVERY_MS, IDLE_TICKS);
            let Looked { image, archived, .. } = self.look(&Wish::Image)?;
            let objects = self.objects();
            let missing = leftover::missing(&image, &objects);
            missing.into_iter().for_each(|what| self.recorder.problem(what));
            let mut left = leftover::left_over(&image, archived.cut, &objects);
            left.extend(finale.doomed.iter().filter_map(|topic| still_there(&image, *topic)));
            if left.is_empty() {
                break;
            }
            if self.tick >= deadline {
                let more = left.len();
                left.truncate(3);
                return self.broken(format!("{more} things are left over: {}", left.join("; ")));
            }
        }
        let looked = self.look(&Wish::Fsck { repair: false })?;
        for finding in &looked.findings {
            self.recorder.problem(format!(
                "fsck at the very end: {} {}: {}",
                finding.kind.name(),
                finding.key,
                finding.what
            ));
        }
        if looked.summary.awaiting_delete > 0 {
            self.recorder.problem(format!("fsck at the very end: {:?}", looked.summary));
        }
        if !finale.doomed.is_empty() {
            self.count("window passed");
        }
        self.count("nothing left over");
        Ok(())
    }

    fn soft_delete(&mut self, finale: &mut Finale) -> Done {
        let doomed = format!("doomed-{}", self.tick);
        self.sure(Errand::Doom(doomed.clone()))?;
        let topic = self.rng.pick(&finale.known.logs.keys().map(|at| at.topic.clone()).collect::<Vec<_>>());
        self.sure(Errand::Delete(topic.clone()))?;
        match self.rng.below(3) {
            0 => {
                self.dies();
                self.nodes[0].boot_at = self.tick + 5;
            }
            1 => {
                self.stopped()?;
                self.nodes[0].boot_at = self.tick + 5;
            }
            _ => {}
        }
        let most = self.rng.pick(&[1, 500, 8_000]);
        let wait = self.rng.between(0, most);
        self.pass(wait, 1);
        let image = self.look(&Wish::Image)?.image;
        if image.topic_by_name(&topic).is_some() {
            return self.broken(format!("topic {topic} was deleted and is there"));
        }
        let deleted: Vec<(String, TopicId)> = image
            .deleted_topics()
            .map(|deleted| (deleted.record.name.clone(), deleted.record.topic_id))
            .collect();
        finale.doomed.extend(deleted.iter().filter(|(name, _)| *name == doomed).map(|(_, id)| *id));
        let Some((_, id)) = deleted.into_iter().find(|(name, _)| *name == topic) else {
            return self.broken(format!("topic {topic} was deleted and cannot be brought back"));
        };
        self.look(&Wish::Undelete(id))?;
        let survey = self.survey()?;
        let (wrong, refused) = judge::damaged(&finale.known, &survey, 0);
        for what in wrong.into_iter().chain(refused) {
            self.recorder.problem(format!("topic {topic} was deleted and brought back: {what}"));
        }
        finale.known = survey;
        self.count("undeleted");
        Ok(())
    }

    /// The bucket and the disk are well, and the bucket has no more requests under way.
    fn calm(&mut self) {
        self.bucket_faults_until = 0;
        self.bucket.set_outage(false);
        self.bucket.set_plan(FaultPlan::NONE);
    }
}

fn still_there(image: &Image, topic: TopicId) -> Option<String> {
    let stored = image.stored_topic(topic)?;
    Some(format!("topic {} whose window has passed", stored.name))
}

/// A file of the node that is not in its bucket.
fn is_own(path: &Path) -> bool {
    path.starts_with(DATA) && !path.starts_with(INSIDE)
}

impl Driver {
    fn own_file(&self, path: &Path) -> Vec<u8> {
        self.nodes[0].disk.read(path).unwrap_or_default()
    }
}
