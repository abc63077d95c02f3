//! One bit of what is durable flips while the node is down, or in the bucket.

use std::path::PathBuf;

use bytes::Bytes;
use futures_util::future::FutureExt as _;
use isobar_store::format::parse_object_key;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore as _, ObjectStoreExt as _};

use super::{Done, Finale, INSIDE, Objects, is_own, judge, leftover};
use crate::load::hand::Errand;
use crate::node::{Stage, Wish};
use crate::plan::{Draw as _, Flip};
use crate::run::Driver;

impl Driver {
    pub(super) fn flip(&mut self, finale: &mut Finale, flip: Flip) -> Done {
        match flip {
            Flip::Object => self.flip_object(finale),
            Flip::Archive => self.flip_archive(finale),
            Flip::Wal | Flip::Log | Flip::Snapshot | Flip::Other => self.flip_file(finale, flip),
        }
    }

    /// The node refuses to start and says which file, or serves an error for what is damaged, or nothing is.
    fn flip_file(&mut self, finale: &mut Finale, flip: Flip) -> Done {
        self.new_clients();
        self.write(500, true)?;
        self.pass(300, 1);
        finale.known = self.survey()?;
        // What a torn write may take is the last group only; one that was closed in order has none.
        let may_lack = if self.rng.percent(50) {
            finale.known = self.marked(finale)?;
            self.dies();
            1
        } else {
            self.stopped()?;
            0
        };
        let Some((path, offset, bit)) = self.place(flip) else { return Ok(()) };
        if !self.nodes[0].disk.flip_bit(&path, offset, bit) {
            return self.broken(format!("{} has no byte {offset}", path.display()));
        }
        let what = format!("bit {bit} of byte {offset} of {}", path.display());
        self.new_clients();
        self.lenient = true;
        self.nodes[0].boot_at = self.tick;
        let before = self.nodes[0].boots;
        self.hold("a start on a damaged disk", |driver| {
            driver.nodes[0].boots > before && driver.nodes[0].life.lock().stage != Stage::Starting
        })?;
        let survey = self.try_errand(Errand::Survey);
        let stage = self.nodes[0].life.lock().stage.clone();
        if let Stage::Failed(why) = stage {
            // A damaged snapshot is set aside under a name that ends otherwise.
            let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !why.contains(&name) {
                self.recorder
                    .problem(format!("{what} was flipped, and the node does not name the file: {why}"));
            }
            self.count("flip refused at the start");
            return Ok(());
        }
        let Some(survey) = survey else {
            self.count("flip made the node unable");
            return Ok(());
        };
        let (wrong, refused) = judge::damaged(&finale.known, &survey, may_lack);
        for wrong in wrong {
            self.recorder.problem(format!("{what} was flipped: {wrong}"));
        }
        self.count(if refused.is_empty() { "flip without effect" } else { "flip answered with errors" });
        Ok(())
    }

    /// One mark after the survey, so that the last group is that mark's.
    fn marked(&mut self, finale: &Finale) -> Done<crate::load::hand::Survey> {
        if !finale.known.logs.keys().any(|at| at.topic == crate::load::hand::MARKS) {
            return Ok(finale.known.clone());
        }
        self.sure(Errand::Mark)?;
        self.survey()
    }

    /// A place within what was written of some file.
    fn place(&mut self, flip: Flip) -> Option<(PathBuf, u64, u8)> {
        let dir = |path: &PathBuf| {
            let of = |dir: &str| path.starts_with(dir);
            match flip {
                Flip::Wal => of("/data/wal/journal") || of("/data/wal"),
                Flip::Log => of("/data/metadata/log"),
                Flip::Snapshot => of("/data/metadata/snapshots"),
                _ => !of("/data/metadata/log") && !of("/data/metadata/snapshots") && !of("/data/wal"),
            }
        };
        let files: Vec<PathBuf> =
            self.nodes[0].disk.files().into_keys().filter(|path| is_own(path) && dir(path)).collect();
        let mut filled: Vec<(PathBuf, u64)> = Vec::new();
        for path in files {
            let bytes = self.own_file(&path);
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                filled.push((path, last as u64 + 1));
            }
        }
        if filled.is_empty() {
            return None;
        }
        let (path, end) = self.rng.pick(&filled);
        let (offset, bit) = (self.rng.below(end), self.rng.below(8) as u8);
        Some((path, offset, bit))
    }

    fn chosen(&mut self, prefix: &str) -> Option<(String, u64, u8)> {
        let objects: Objects = self.objects();
        let names: Vec<(String, u64)> =
            objects.into_iter().filter(|(key, size)| key.starts_with(prefix) && *size > 0).collect();
        if names.is_empty() {
            return None;
        }
        let (key, size) = self.rng.pick(&names);
        let (offset, bit) = (self.rng.below(size), self.rng.below(8) as u8);
        Some((key, offset, bit))
    }

    fn flip_in_bucket(&mut self, key: &str, offset: u64, bit: u8) -> Done {
        if self.plan.node.store_inside {
            if self.nodes[0].disk.flip_bit(&PathBuf::from(INSIDE).join(key), offset, bit) {
                return Ok(());
            }
            return self.broken(format!("{key} has no byte {offset}"));
        }
        let store = self.bucket.objects();
        let path = ObjectPath::from(key);
        let changed = async {
            let mut bytes = store.get(&path).await?.bytes().await?.to_vec();
            if let Some(byte) = usize::try_from(offset).ok().and_then(|at| bytes.get_mut(at)) {
                *byte ^= 1 << bit;
            }
            store.put_opts(&path, Bytes::from(bytes).into(), object_store::PutOptions::default()).await
        };
        match changed.now_or_never() {
            Some(Ok(_)) => Ok(()),
            other => self.broken(format!("{key} was not flipped: {other:?}")),
        }
    }

    /// What lies there is refused, fsck says so, and everything else is served.
    fn flip_object(&mut self, finale: &Finale) -> Done {
        self.up()?;
        let Some((key, offset, bit)) = self.chosen("data/") else { return Ok(()) };
        self.flip_in_bucket(&key, offset, bit)?;
        let what = format!("bit {bit} of byte {offset} of {key}");
        // Caches are cold after it.
        self.dies();
        self.nodes[0].boot_at = self.tick + 5;
        self.lenient = true;
        self.up()?;
        let image = self.look(&Wish::Image)?.image;
        let Some(survey) = self.try_errand(Errand::Survey) else {
            return self.broken(format!("{what} was flipped, and nothing can be read"));
        };
        let (wrong, refused) = judge::damaged(&finale.known, &survey, 0);
        for wrong in wrong {
            self.recorder.problem(format!("{what} was flipped: {wrong}"));
        }
        let findings = self.look(&Wish::Fsck { repair: false })?.findings;
        let said = findings.iter().any(|finding| finding.key == key && finding.kind.is_loss());
        for finding in findings.iter().filter(|finding| finding.kind.is_loss() && finding.key != key) {
            self.recorder
                .problem(format!("{what} was flipped, and fsck blames {}: {}", finding.key, finding.what));
        }
        let live = parse_object_key(&key).and_then(|object| leftover::is_live(&image, object, offset));
        // Compaction may have moved it meanwhile.
        let still = self.look(&Wish::Image)?.image;
        let live_now = parse_object_key(&key).and_then(|object| leftover::is_live(&still, object, offset));
        if !said && live == Some(true) && live_now == Some(true) {
            self.recorder
                .problem(format!("{what} was flipped, within what is referred to, and fsck does not say so"));
        }
        if !said && !refused.is_empty() && live_now != Some(false) {
            self.recorder.problem(format!("{what} was flipped, fsck does not say so, and {refused:?}"));
        }
        self.count(match (said, refused.is_empty()) {
            (true, false) => "flip in an object refused and found",
            (true, true) => "flip in an object found",
            _ => "flip in an object without effect",
        });
        Ok(())
    }

    /// A recovery refuses, or makes a cut of what can be read.
    fn flip_archive(&mut self, finale: &mut Finale) -> Done {
        self.new_clients();
        let began_ns = self.recorder.stamp();
        self.write(300, true)?;
        self.pass(5_000, 10);
        self.dies();
        let Some((key, offset, bit)) = self.chosen("archive/") else { return Ok(()) };
        self.flip_in_bucket(&key, offset, bit)?;
        let what = format!("bit {bit} of byte {offset} of {key}");
        self.disaster_on_damage(finale, began_ns, &what, &key)
    }
}
