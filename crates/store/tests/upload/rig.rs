//! A node on its disk and its bucket, behind a made-up quorum.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::Host;
use isobar_metadata::StateMachine;
use isobar_metadata::command::{
    CommitBatch, CommitChunk, CommitPartition, CreateTopics, NewTopic, OpenStream, RegisterDirectory,
    RegisterSession,
};
use isobar_metadata::ids::{Durability, lane_of};
use isobar_metadata::record::ClusterFormat;
use isobar_metadata::{
    Command, CommandResult, DirectoryId, Entry, Envelope, Found, Image, LaneId, Location, PartitionKey,
    PlacementId, SessionId, StreamId, TopicId,
};
use isobar_protocol::batch::{BatchHeader, Batches, TimestampType, verify_crc};
use isobar_store::{
    Bucket, BucketOptions, Class, Compactor, CompactorOptions, Deleter, DeleterOptions, IndexReader, Indexer,
    IndexerOptions, MemoryCache, ObjectReader, ProposeFailed, Proposer, ReadObject, Retainer,
    RetainerOptions, RetainerParts, StoreMetrics, Uploader, UploaderOptions, UploaderParts, compact_plan,
    index_plan,
};
use isobar_testkit::bucket::Bucket as SimBucket;
use isobar_wal::conformance::{append, chunk};
use isobar_wal::{LocalReplica, ReplicaOptions, Wal, WalMetrics};
use parking_lot::Mutex;

/// Topic 1 as producers send it, topic 2 with the broker's time.
pub(crate) fn topic(n: u8) -> TopicId {
    TopicId::from([n; 16])
}

/// Metadata that outlives the node, as a quorum does.
pub(crate) struct Quorum {
    pub(crate) state: Mutex<(StateMachine, u64, u64)>,
    pub(crate) wal: Mutex<Option<LocalReplica>>,
    pub(crate) session: Mutex<SessionId>,
    /// How many proposals go through before one is applied without an answer; 0: all are answered.
    pub(crate) lose_every: u64,
}

impl Quorum {
    pub(crate) fn new(lose_every: u64) -> Arc<Self> {
        let format = ClusterFormat::dev("clusterclusterclusterc".to_owned(), "store".to_owned());
        let quorum = Arc::new(Self {
            state: Mutex::new((StateMachine::new(format), 0, 0)),
            wal: Mutex::default(),
            session: Mutex::new(SessionId::NONE),
            lose_every,
        });
        quorum.register(0);
        let new = |n: u8, configs: BTreeMap<String, String>| NewTopic {
            name: format!("t{n}"),
            topic_id: topic(n),
            partitions: 4,
            replication_factor: 1,
            configs,
            placement: PlacementId::DEFAULT,
        };
        // Producers' timestamps are of 1970; and gone at once, once they are deleted.
        let config = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let kept = BTreeMap::from([config("retention.ms", "-1"), config("isobar.undelete.window.ms", "0")]);
        let mut stamped = kept.clone();
        stamped.insert("message.timestamp.type".to_owned(), "LogAppendTime".to_owned());
        let topics = vec![new(1, kept), new(2, stamped)];
        quorum.control(Command::CreateTopics(CreateTopics { topics, validate_only: false }));
        quorum
    }

    pub(crate) fn apply(&self, envelope: Envelope) -> CommandResult {
        let mut state = self.state.lock();
        state.1 += 1;
        let (index, time_ms) = (state.1, 1_767_225_600_000 + state.1 as i64 * 20);
        let applied = state.0.apply(index, &Entry::new(time_ms, vec![envelope]));
        if let Some(wal) = &*self.wal.lock() {
            wal.follow(&applied.effects);
        }
        applied.results.into_iter().next().unwrap()
    }

    /// A new life of the broker: fences the former one.
    pub(crate) fn register(&self, life: u8) {
        let register = RegisterSession {
            node_id: 1,
            life: DirectoryId::from([100 + life; 16]),
            host: "localhost".to_owned(),
            port: 1,
            home_store: isobar_metadata::StoreId(1),
            feature_level: 1,
            ..RegisterSession::default()
        };
        let result = self.apply(Envelope::unnumbered(Command::RegisterSession(register)));
        let CommandResult::Session(granted) = result else { panic!("{result:?}") };
        *self.session.lock() = granted.session;
        self.state.lock().2 = 0;
    }

    pub(crate) fn control(&self, command: Command) -> CommandResult {
        let number = {
            let mut state = self.state.lock();
            state.2 += 1;
            state.2
        };
        self.apply(Envelope::new(*self.session.lock(), LaneId::CONTROL, number, number, command))
    }

    pub(crate) fn open_stream(&self, directory: DirectoryId) -> StreamId {
        let register = RegisterDirectory { directory, node_id: 1, zone: String::new(), cloud: String::new() };
        self.apply(Envelope::unnumbered(Command::RegisterDirectory(register)));
        let lane = lane_of(Durability::Wal, PlacementId::DEFAULT);
        let open = OpenStream { lane, ensemble: vec![directory], write_quorum: 1 };
        let result = self.control(Command::OpenStream(open));
        let CommandResult::Stream(granted) = result else { panic!("{result:?}") };
        assert_eq!(granted.error_code, 0, "{granted:?}");
        granted.stream
    }
}

#[async_trait]
impl Proposer for Quorum {
    fn image(&self) -> Image {
        self.state.lock().0.image()
    }

    async fn barrier(&self) -> Result<(), ProposeFailed> {
        Ok(())
    }

    async fn propose(&self, command: Command) -> Result<CommandResult, ProposeFailed> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let result = self.control(command);
        tokio::time::sleep(Duration::from_millis(1)).await;
        if self.lose_every > 0 && self.state.lock().2.is_multiple_of(self.lose_every) {
            return Err(ProposeFailed("the answer was lost".to_owned()));
        }
        Ok(result)
    }

    fn session(&self) -> SessionId {
        *self.session.lock()
    }
}

/// What was acknowledged: by partition, offset and the batch as it was sent.
pub(crate) type Acked = Arc<Mutex<BTreeMap<PartitionKey, Vec<(i64, Bytes)>>>>;

/// One node on its disk and its bucket.
pub(crate) struct Node {
    pub(crate) host: Host,
    pub(crate) quorum: Arc<Quorum>,
    pub(crate) replica: LocalReplica,
    pub(crate) stream: StreamId,
    pub(crate) next: u64,
    pub(crate) uploader: Uploader,
    pub(crate) _deleter: Deleter,
    pub(crate) _compactor: Compactor,
    pub(crate) _indexer: Indexer,
    pub(crate) _retainer: Retainer,
    pub(crate) reader: ObjectReader,
    pub(crate) index: IndexReader,
    pub(crate) acked: Acked,
}

pub(crate) fn wal_options() -> ReplicaOptions {
    let journal = isobar_journal::Options {
        segment_bytes: 256 << 10,
        first_segment_bytes: 64 << 10,
        ..isobar_journal::Options::default()
    };
    ReplicaOptions { max_memory_bytes: 100 << 10, journal, ..ReplicaOptions::default() }
}

pub(crate) fn bucket_options() -> BucketOptions {
    BucketOptions {
        put_total: Duration::from_secs(3),
        get_total: Duration::from_secs(8),
        ..BucketOptions::default()
    }
}

/// Small enough that a few hundred batches go all the way.
pub(crate) fn compactor_options() -> CompactorOptions {
    let limits = compact_plan::Limits {
        merge_bytes: 150 << 10,
        merge_objects: 6,
        single_min_bytes: 200 << 10,
        single_max_bytes: 400 << 10,
        run_bytes: 32 << 10,
        dead_slack_bytes: 100 << 10,
        ..compact_plan::Limits::default()
    };
    let (interval, grant_lifetime) = (Duration::from_millis(40), Duration::from_secs(60));
    CompactorOptions {
        interval,
        bytes_per_s: 100 << 20,
        limits,
        part_runs: 2,
        grant_lifetime,
        ..CompactorOptions::default()
    }
}

pub(crate) fn indexer_options() -> IndexerOptions {
    let limits = index_plan::Limits {
        list_extents: 6,
        keep_extents: 2,
        block_extents: 4,
        settle_ms: 500,
        settled_bytes: 1,
        blocks: 100,
    };
    IndexerOptions { interval: Duration::from_millis(60), limits, ..IndexerOptions::default() }
}

impl Node {
    /// `None`: it died on the way.
    pub(crate) async fn start(
        host: Host,
        quorum: Arc<Quorum>,
        store: Option<SimBucket>,
        acked: Acked,
        life: u8,
    ) -> Option<Self> {
        let replica =
            LocalReplica::open(&host, Path::new("wal"), wal_options(), WalMetrics::default()).await.ok()?;
        quorum.register(life);
        // Effects wait from the image on, so that none is missed.
        replica.reconcile(&quorum.image());
        *quorum.wal.lock() = Some(replica.clone());
        let stream = quorum.open_stream(replica.directory());
        let metrics = StoreMetrics::default();
        let bucket = match store {
            Some(store) => Bucket::new(&host, "b", "pre", Arc::new(store), bucket_options(), metrics.clone()),
            None => {
                Bucket::open_dir(&host, "b", Path::new("b"), bucket_options(), metrics.clone()).await.ok()?
            }
        };
        let proposer: Arc<dyn Proposer> = quorum.clone();
        let parts = UploaderParts {
            host: host.clone(),
            wal: Arc::new(replica.clone()),
            bucket: bucket.clone(),
            proposer: Arc::clone(&proposer),
        };
        let options = UploaderOptions {
            interval: Duration::from_millis(30),
            trigger_bytes: 60 << 10,
            max_object_bytes: 100 << 10,
            ..UploaderOptions::default()
        };
        let uploader = Uploader::start(parts, options);
        let deleter = DeleterOptions {
            interval: Duration::from_millis(200),
            grace: Duration::from_secs(5),
            repeat: Duration::from_secs(60),
        };
        let deleter = Deleter::start(&host, bucket.clone(), None, Arc::clone(&proposer), deleter);
        let reader =
            ObjectReader::new(bucket.clone(), Arc::new(MemoryCache::new(&host, 4 << 20, metrics.clone())));
        let index = IndexReader::new(reader.clone());
        let compactor = Compactor::start(&host, bucket.clone(), Arc::clone(&proposer), compactor_options());
        let indexer = Indexer::start(&host, bucket, Arc::clone(&proposer), indexer_options());
        let parts = RetainerParts { host: host.clone(), proposer, index: index.clone(), metrics };
        let retainer = Retainer::start(parts, RetainerOptions { interval: Duration::from_millis(500) });
        Some(Self {
            host,
            quorum,
            replica,
            stream,
            next: 0,
            uploader,
            _deleter: deleter,
            _compactor: compactor,
            _indexer: indexer,
            _retainer: retainer,
            reader,
            index,
            acked,
        })
    }

    /// Sends one chunk of these batches; false if it did not become durable.
    pub(crate) async fn produce(&mut self, batches: &[(PartitionKey, Bytes)]) -> bool {
        let sealed = chunk(self.stream, self.next, batches);
        if append(&self.replica, sealed.clone()).await.is_err() {
            return false;
        }
        let partitions: Vec<_> = sealed
            .partitions()
            .map(|partition| CommitPartition {
                topic_id: partition.key.topic_id,
                partition: partition.key.partition,
                class_epoch: 0,
                position: 0,
                batches: (partition.first_ordinal..)
                    .zip(partition.batches)
                    .map(|(ordinal, found)| {
                        let info = found.info;
                        CommitBatch::plain(ordinal, info.record_count, info.max_timestamp_ms, found.bytes)
                    })
                    .collect(),
            })
            .collect();
        let keys: Vec<(PartitionKey, Bytes)> = sealed
            .partitions()
            .flat_map(|p| {
                let sealed = &sealed;
                (p.first_ordinal..).take(p.batches.len()).map(move |n| (p.key, sealed.batch(n).unwrap()))
            })
            .collect();
        let commit =
            CommitChunk { stream: self.stream, chunk: self.next, acknowledged: 1, partitions, object: None };
        let lane = lane_of(Durability::Wal, PlacementId::DEFAULT);
        self.next += 1;
        let session = *self.quorum.session.lock();
        let result = self.quorum.apply(Envelope::new(
            session,
            lane,
            self.next,
            self.next,
            Command::CommitChunk(commit),
        ));
        let CommandResult::Chunk(result) = result else { panic!("{result:?}") };
        assert_eq!((result.error_code, result.batches.len()), (0, keys.len()));
        for (answer, (key, bytes)) in result.batches.iter().zip(keys) {
            assert_eq!(answer.error_code, 0, "{answer:?}");
            self.acked.lock().entry(key).or_default().push((answer.base_offset, bytes));
        }
        self.uploader.nudge(sealed.batch_bytes());
        true
    }

    /// Reads everything that was acknowledged; says how many batches lie in objects. `None`: it died on the way.
    pub(crate) async fn check(&self) -> Option<usize> {
        let mut in_objects = 0;
        let acked = self.acked.lock().clone();
        for (key, batches) in acked {
            for (offset, sent) in batches {
                let mut tries = 0;
                let (found, base, in_object, append_time) = loop {
                    match self.read(key, offset).await {
                        Ok(read) => break read,
                        // A stale location, or a store that fails for a while: again with a newer image.
                        Err(_) if tries < 40 => tries += 1,
                        Err(_) if self.host.disk().list(Path::new("wal")).is_err() => return None,
                        Err(why) => panic!("{key:?} {offset}: {why}"),
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                };
                in_objects += usize::from(in_object);
                let header = BatchHeader::parse(&found).unwrap();
                verify_crc(&found).unwrap();
                assert_eq!(found[61..], sent[61..], "{key:?} {offset}");
                assert_eq!(base, offset);
                if in_object {
                    assert_eq!((header.base_offset, header.leader_epoch), (offset, 0));
                    if key.topic_id == topic(2) {
                        assert_eq!(header.attributes.timestamp_type(), TimestampType::LogAppendTime);
                        assert!(header.max_timestamp_ms >= 1_767_225_600_000);
                    } else {
                        assert_eq!(found[16..], sent[16..]);
                    }
                } else {
                    assert_eq!(append_time >= 0, key.topic_id == topic(2));
                }
            }
        }
        Some(in_objects)
    }

    pub(crate) async fn read(
        &self,
        key: PartitionKey,
        offset: i64,
    ) -> Result<(Bytes, i64, bool, i64), String> {
        let image = self.quorum.image();
        let view = image.view(key).unwrap();
        let extent = match view.locate(offset, &[]) {
            Some(Found::Extent(extent)) => extent.clone(),
            Some(Found::Indexed(pointer)) => {
                self.index.resolve(key, pointer, offset).await.map_err(|error| error.to_string())?
            }
            None => return Err("no extent".to_owned()),
        };
        match extent.location().clone() {
            Location::Wal(wal) => {
                let read = self.replica.read(wal.stream, wal.chunk, wal.ordinals()).await;
                let batches = read.map_err(|error| error.to_string())?;
                let mut base = extent.base_offset;
                for batch in batches {
                    let next = base + i64::from(BatchHeader::parse(&batch).unwrap().last_offset_delta) + 1;
                    if next > offset {
                        return Ok((batch, base, false, extent.append_time_ms));
                    }
                    base = next;
                }
                Err("too few batches".to_owned())
            }
            Location::Object(object) => {
                let run = ReadObject::of(view, Class::CatchUp, &extent, object);
                let read = self.reader.read(run, offset, 1).await.map_err(|error| error.to_string())?;
                let parts = read.parts;
                let (header, bytes) = Batches::new(&parts[0]).next().unwrap().unwrap();
                Ok((parts[0].slice_ref(bytes), header.base_offset, true, -1))
            }
            Location::Inline(_) => Err("inline".to_owned()),
        }
    }
}
