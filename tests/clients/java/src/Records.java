import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.internals.RecordHeader;

/** Produce and consume. */
final class Records {
    static void add() {
        Harness.add("create_topic", Records::createTopic);
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            Harness.add("produce_codec_" + codec, () -> produceCodec(codec));
        }
        Harness.add("produce_with_acks_0_and_1", Records::produceWithAcks0And1);
        Harness.add("keys_headers_and_empties", Records::keysHeadersAndEmpties);
        Harness.add("records_of_1_mb", Records::recordsOf1Mb);
        Harness.add("log_append_time", Records::logAppendTime);
        Harness.add("consume_from_earliest", Records::consumeFromEarliest);
        Harness.add("consume_from_latest", Records::consumeFromLatest);
        Harness.add("consume_from_offset", Records::consumeFromOffset);
        Harness.add("consume_from_timestamp", Records::consumeFromTimestamp);
        Harness.add("consume_with_small_fetches", Records::consumeWithSmallFetches);
        Harness.add("many_partitions", Records::manyPartitions);
        Harness.add("read_committed", Records::readCommitted);
        Harness.add("auto_create_on_first_produce", Records::autoCreate);
    }

    private static void createTopic() throws Exception {
        try (Admin admin = Harness.admin()) {
            String topic = Harness.create(admin, "create", 3);
            var found = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            Harness.equal(found.partitions().size(), 3, "partitions");
            Harness.equal(found.partitions().get(0).leader() != null, true, "a leader");
        }
    }

    private static void produceCodec(String codec) throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender("compression.type", codec)) {
            String topic = Harness.create(admin, codec, 3);
            for (int i = 0; i < 2_000; i++) {
                byte[] key = Harness.utf8("key-" + i % 97);
                sender.send(new ProducerRecord<>(topic, null, Harness.BASE_TIME + i, key, Harness.valueOf(i)));
            }
            Harness.equal(sender.flush(), 2_000, "acknowledged");
            Harness.readAll(topic, sender);
        }
    }

    private static void produceWithAcks0And1() throws Exception {
        for (String acks : List.of("0", "1")) {
            try (Admin admin = Harness.admin();
                    var sender = new Harness.Sender("acks", acks, "enable.idempotence", "false");
                    var reader = Harness.consumer(null)) {
                String topic = Harness.create(admin, "acks", 1);
                for (int i = 0; i < 200; i++) {
                    sender.producer.send(new ProducerRecord<>(topic, Harness.valueOf(i)));
                }
                sender.producer.flush();
                reader.assign(List.of(new TopicPartition(topic, 0)));
                var found = Harness.drain(reader, 200);
                for (int i = 0; i < 200; i++) {
                    Harness.equal(found.get(i).offset(), (long) i, "offset with acks=" + acks);
                    Harness.equal(found.get(i).value(), Harness.valueOf(i), "value with acks=" + acks);
                }
            }
        }
    }

    private static void keysHeadersAndEmpties() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender("compression.type", "lz4")) {
            String topic = Harness.create(admin, "shapes", 1);
            byte[][] keys = {null, {}, Harness.utf8("k"), Harness.utf8("schlüssel")};
            byte[][] values = {null, {}, Harness.utf8("v"), Harness.utf8("wert €")};
            for (byte[] key : keys) {
                for (byte[] value : values) {
                    sender.send(new ProducerRecord<>(topic, key, value));
                }
            }
            var record = new ProducerRecord<>(topic, Harness.utf8("h"), Harness.utf8("repeated headers"));
            record.headers()
                    .add(new RecordHeader("a", Harness.utf8("1")))
                    .add(new RecordHeader("a", Harness.utf8("2")))
                    .add(new RecordHeader("b", new byte[0]))
                    .add(new RecordHeader("c", (byte[]) null))
                    .add(new RecordHeader("größe", Harness.utf8("größer")))
                    .add(new RecordHeader("a", Harness.utf8("1")));
            sender.send(record);
            Harness.readAll(topic, sender);
        }
    }

    private static void recordsOf1Mb() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender("max.request.size", "4000000")) {
            String topic = Harness.create(admin, "large", 1);
            for (int i = 0; i < 8; i++) {
                sender.send(new ProducerRecord<>(topic, Harness.utf8("" + i), Harness.valueOf(i, 1_000_000)));
            }
            // The largest that fits into max.message.bytes as one batch: 61 bytes of batch, 11 of record, no key.
            sender.send(new ProducerRecord<>(topic, Harness.valueOf(9, 1_048_588 - 61 - 11)));
            Harness.readAll(topic, sender);
        }
    }

    private static void logAppendTime() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender();
                var reader = Harness.consumer(null)) {
            String topic = Harness.create(admin, "appendtime", 1, Map.of("message.timestamp.type", "LogAppendTime"));
            long before = System.currentTimeMillis();
            var where = sender.producer.send(new ProducerRecord<>(topic, 0, 12_345L, null, Harness.utf8("x"))).get();
            long after = System.currentTimeMillis();
            Harness.equal(where.timestamp() >= before && where.timestamp() <= after, true, "time acknowledged");
            reader.assign(List.of(new TopicPartition(topic, 0)));
            var found = Harness.drain(reader, 1).get(0);
            Harness.equal(found.timestamp(), where.timestamp(), "time read");
            Harness.equal(found.timestampType().toString(), "LogAppendTime", "its type");
            Harness.equal(found.value(), Harness.utf8("x"), "value");
        }
    }

    /** One partition of `count` records a second apart in time, in batches of 50. */
    static String filled(Admin admin, Harness.Sender sender, int count) throws Exception {
        String topic = Harness.create(admin, "filled", 1);
        for (int i = 0; i < count; i++) {
            long time = Harness.BASE_TIME + 1_000L * i;
            sender.send(new ProducerRecord<>(topic, 0, time, Harness.utf8("k" + i), Harness.valueOf(i)));
            if (i % 50 == 49) {
                sender.flush();
            }
        }
        sender.flush();
        return topic;
    }

    /** What was sent at this offset and after it. */
    private static Map<TopicPartition, TreeMap<Long, ProducerRecord<byte[], byte[]>>> from(
            Harness.Sender sender, long offset) {
        Map<TopicPartition, TreeMap<Long, ProducerRecord<byte[], byte[]>>> rest = new HashMap<>();
        sender.sent.forEach((partition, records) -> rest.put(partition, new TreeMap<>(records.tailMap(offset))));
        return rest;
    }

    private static void consumeFromEarliest() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender();
                var reader = Harness.consumer(Harness.fresh("group"), "auto.offset.reset", "earliest")) {
            String topic = filled(admin, sender, 300);
            reader.subscribe(List.of(topic));
            Harness.check(Harness.drain(reader, 300), sender.sent);
            Harness.quiet(reader, 300);
        }
    }

    private static void consumeFromLatest() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender();
                var reader = Harness.consumer(Harness.fresh("group"), "auto.offset.reset", "latest")) {
            String topic = filled(admin, sender, 100);
            reader.subscribe(List.of(topic));
            Harness.until(() -> {
                Harness.quiet(reader, 200);
                return reader.assignment().size() == 1;
            }, "an assignment");
            Harness.equal(reader.position(new TopicPartition(topic, 0)), 100L, "position");
            sender.send(new ProducerRecord<>(topic, Harness.utf8("after the end")));
            sender.flush();
            Harness.check(Harness.drain(reader, 1), from(sender, 100));
        }
    }

    private static void consumeFromOffset() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender();
                var reader = Harness.consumer(null)) {
            var partition = new TopicPartition(filled(admin, sender, 300), 0);
            reader.assign(List.of(partition));
            reader.seek(partition, 123);
            Harness.check(Harness.drain(reader, 177), from(sender, 123));
            reader.seek(partition, 299);
            Harness.check(Harness.drain(reader, 1), from(sender, 299));
        }
    }

    private static void consumeFromTimestamp() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender();
                var reader = Harness.consumer(null)) {
            var partition = new TopicPartition(filled(admin, sender, 300), 0);
            long[][] expected = {
                {0, 0}, {Harness.BASE_TIME, 0}, {Harness.BASE_TIME + 1, 1}, {Harness.BASE_TIME + 77_000, 77},
                {Harness.BASE_TIME + 76_001, 77}, {Harness.BASE_TIME + 299_000, 299}
            };
            for (long[] pair : expected) {
                var found = reader.offsetsForTimes(Map.of(partition, pair[0])).get(partition);
                Harness.equal(found.offset(), pair[1], "offset for time " + pair[0]);
                Harness.equal(found.timestamp(), Harness.BASE_TIME + 1_000 * pair[1], "its time");
            }
            var beyond = reader.offsetsForTimes(Map.of(partition, Harness.BASE_TIME + 299_001));
            Harness.equal(beyond.get(partition), null, "a time after the last");
            reader.assign(List.of(partition));
            reader.seek(partition, reader.offsetsForTimes(Map.of(partition, Harness.BASE_TIME + 200_000))
                    .get(partition).offset());
            Harness.check(Harness.drain(reader, 100), from(sender, 200));
            Harness.equal(reader.beginningOffsets(List.of(partition)).get(partition), 0L, "beginning");
            Harness.equal(reader.endOffsets(List.of(partition)).get(partition), 300L, "end");
        }
    }

    private static void consumeWithSmallFetches() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender("batch.size", "1000");
                var reader = Harness.consumer(null, "max.partition.fetch.bytes", "1500", "fetch.max.bytes", "1500",
                        "max.poll.records", "7")) {
            String topic = Harness.create(admin, "small", 2);
            for (int i = 0; i < 400; i++) {
                // Some batches are larger than the whole fetch: at least one must come all the same.
                int size = i % 50 == 0 ? 5_000 : 100;
                sender.send(new ProducerRecord<>(topic, i % 2, null, null, Harness.valueOf(i, size)));
            }
            sender.flush();
            reader.assign(List.of(new TopicPartition(topic, 0), new TopicPartition(topic, 1)));
            Harness.check(Harness.drain(reader, 400), sender.sent);
        }
    }

    private static void manyPartitions() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender();
                var reader = Harness.consumer(Harness.fresh("group"))) {
            String topic = Harness.create(admin, "many", 100);
            for (int i = 0; i < 5_000; i++) {
                sender.send(new ProducerRecord<>(topic, i % 100, Harness.BASE_TIME + i, null, Harness.valueOf(i)));
            }
            sender.flush();
            reader.subscribe(List.of(topic));
            Harness.check(Harness.drain(reader, 5_000), sender.sent);
        }
    }

    private static void readCommitted() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender();
                var reader = Harness.consumer(null, "isolation.level", "read_committed")) {
            var partition = new TopicPartition(filled(admin, sender, 100), 0);
            reader.assign(List.of(partition));
            Harness.check(Harness.drain(reader, 100), sender.sent);
            Harness.equal(reader.endOffsets(List.of(partition), Duration.ofSeconds(10)).get(partition), 100L,
                    "last stable offset");
        }
    }

    private static void autoCreate() throws Exception {
        try (var sender = new Harness.Sender()) {
            String topic = Harness.fresh("auto");
            for (int i = 0; i < 50; i++) {
                sender.send(new ProducerRecord<>(topic, Harness.valueOf(i)));
            }
            Harness.readAll(topic, sender);
        }
    }

    private Records() {}
}
