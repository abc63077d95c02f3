import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Properties;
import java.util.SplittableRandom;
import java.util.TreeMap;
import java.util.UUID;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Runs named cases one by one, and what the cases share: topics, producers and consumers that check by content. */
final class Harness {
    interface Case {
        void run() throws Exception;
    }

    static final String BOOTSTRAP = System.getenv("BOOTSTRAP");
    static final boolean KAFKA = "kafka".equals(System.getenv("PEER"));
    static final long BASE_TIME = 1_700_000_000_000L;
    private static final Map<String, Case> CASES = new LinkedHashMap<>();

    static void add(String name, Case body) {
        CASES.put(name, body);
    }

    /** Prints one line a case and `N passed, N failed`; false if one failed or none ran. */
    static boolean run(String... only) {
        int passed = 0;
        int failed = 0;
        for (Map.Entry<String, Case> entry : CASES.entrySet()) {
            String name = entry.getKey();
            if (only.length > 0 && Arrays.stream(only).noneMatch(name::contains)) {
                continue;
            }
            long start = System.nanoTime();
            Throwable failure = null;
            try {
                entry.getValue().run();
            } catch (Throwable e) {
                failure = e;
            }
            double seconds = (System.nanoTime() - start) / 1e9;
            if (failure == null) {
                passed++;
                System.out.printf("ok   %s (%.1f s)%n", name, seconds);
            } else {
                failed++;
                System.out.printf("FAIL %s (%.1f s): %s%n", name, seconds, failure);
                failure.printStackTrace(System.out);
            }
        }
        System.out.printf("%d passed, %d failed%n", passed, failed);
        return failed == 0 && passed > 0;
    }

    static void equal(Object got, Object expected, String what) {
        if (!Objects.deepEquals(got, expected)) {
            throw new AssertionError(what + ": got " + brief(got) + ", expected " + brief(expected));
        }
    }

    private static String brief(Object value) {
        String text = value instanceof byte[] bytes ? bytes.length + " bytes" : String.valueOf(value);
        return text.length() < 400 ? text : text.substring(0, 400) + "…";
    }

    interface Condition {
        boolean holds() throws Exception;
    }

    static void until(Condition condition, String what) throws Exception {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(30);
        while (!condition.holds()) {
            if (System.nanoTime() > deadline) {
                throw new AssertionError("not within 30 s: " + what);
            }
            Thread.sleep(50);
        }
    }

    /** The class of the error that a future of the client ends with. */
    static Class<?> errorOf(Future<?> future) throws Exception {
        try {
            future.get(30, TimeUnit.SECONDS);
        } catch (ExecutionException e) {
            return e.getCause().getClass();
        }
        throw new AssertionError("no error was raised");
    }

    static String fresh(String name) {
        return "java-" + name + "-" + UUID.randomUUID().toString().substring(0, 8);
    }

    static Admin admin() {
        return Admin.create(Map.<String, Object>of("bootstrap.servers", BOOTSTRAP));
    }

    static String create(Admin admin, String name, int partitions, Map<String, String> configs) throws Exception {
        String topic = fresh(name);
        admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1).configs(configs))).all().get();
        if (KAFKA) {
            // It answers before its partitions stand; a producer that is refused then may lose its sequence for good.
            Map<TopicPartition, OffsetSpec> all = new HashMap<>();
            for (int p = 0; p < partitions; p++) {
                all.put(new TopicPartition(topic, p), OffsetSpec.latest());
            }
            until(() -> {
                try {
                    admin.listOffsets(all).all().get();
                    return true;
                } catch (ExecutionException e) {
                    return false;
                }
            }, "Kafka's new partitions stand");
        }
        return topic;
    }

    static String create(Admin admin, String name, int partitions) throws Exception {
        return create(admin, name, partitions, Map.of());
    }

    static byte[] utf8(String text) {
        return text.getBytes(java.nio.charset.StandardCharsets.UTF_8);
    }

    /** Half of it compresses, half does not; no two are alike. */
    static byte[] valueOf(int i, int size) {
        byte[] value = new byte[size];
        byte[] head = utf8("record-" + i + "|");
        System.arraycopy(head, 0, value, 0, Math.min(head.length, size));
        SplittableRandom random = new SplittableRandom(i);
        for (int at = head.length; at < size / 2; at++) {
            value[at] = (byte) random.nextInt();
        }
        return value;
    }

    static byte[] valueOf(int i) {
        return valueOf(i, 200);
    }

    /** A producer that remembers what it sent and where it was acknowledged. */
    static final class Sender implements AutoCloseable {
        final KafkaProducer<byte[], byte[]> producer;
        final Map<TopicPartition, TreeMap<Long, ProducerRecord<byte[], byte[]>>> sent = new HashMap<>();
        private final List<Map.Entry<ProducerRecord<byte[], byte[]>, Future<RecordMetadata>>> waiting =
                new ArrayList<>();

        Sender(String... config) {
            Properties properties = new Properties();
            properties.put("bootstrap.servers", BOOTSTRAP);
            properties.put("linger.ms", "5");
            properties.put("request.timeout.ms", "10000");
            properties.put("delivery.timeout.ms", "30000");
            for (int i = 0; i < config.length; i += 2) {
                properties.put(config[i], config[i + 1]);
            }
            producer = new KafkaProducer<>(properties, new ByteArraySerializer(), new ByteArraySerializer());
        }

        Future<RecordMetadata> send(ProducerRecord<byte[], byte[]> record) {
            Future<RecordMetadata> future = producer.send(record);
            waiting.add(Map.entry(record, future));
            return future;
        }

        /** Waits for every acknowledgement; an error or an offset given twice is a failure. */
        int flush() throws Exception {
            producer.flush();
            for (var entry : waiting) {
                RecordMetadata where = entry.getValue().get(30, TimeUnit.SECONDS);
                var partition = new TopicPartition(where.topic(), where.partition());
                var before = sent.computeIfAbsent(partition, p -> new TreeMap<>()).put(where.offset(), entry.getKey());
                if (before != null) {
                    throw new AssertionError(where + " was acknowledged twice");
                }
            }
            waiting.clear();
            return sent.values().stream().mapToInt(TreeMap::size).sum();
        }

        @Override
        public void close() {
            producer.close(Duration.ofSeconds(10));
        }
    }

    static KafkaConsumer<byte[], byte[]> consumer(String group, String... config) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", BOOTSTRAP);
        if (group != null) {
            properties.put("group.id", group);
        }
        properties.put("enable.auto.commit", "false");
        properties.put("auto.offset.reset", "earliest");
        for (int i = 0; i < config.length; i += 2) {
            properties.put(config[i], config[i + 1]);
        }
        return new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    static List<ConsumerRecord<byte[], byte[]>> drain(KafkaConsumer<byte[], byte[]> reader, int count) {
        List<ConsumerRecord<byte[], byte[]>> found = new ArrayList<>();
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(30);
        while (found.size() < count) {
            if (System.nanoTime() > deadline) {
                throw new AssertionError(found.size() + " of " + count + " records after 30 s");
            }
            reader.poll(Duration.ofMillis(200)).forEach(found::add);
        }
        return found;
    }

    static void quiet(KafkaConsumer<byte[], byte[]> reader, int ms) {
        equal(reader.poll(Duration.ofMillis(ms)).count(), 0, "records beyond the end");
    }

    /** The records are those sent, each once, in the order of the offsets of its partition. */
    static void check(
            List<ConsumerRecord<byte[], byte[]>> records,
            Map<TopicPartition, TreeMap<Long, ProducerRecord<byte[], byte[]>>> sent) {
        Map<TopicPartition, List<Long>> places = new HashMap<>();
        for (ConsumerRecord<byte[], byte[]> record : records) {
            var partition = new TopicPartition(record.topic(), record.partition());
            places.computeIfAbsent(partition, p -> new ArrayList<>()).add(record.offset());
            var expected = sent.getOrDefault(partition, new TreeMap<>()).get(record.offset());
            if (expected == null) {
                throw new AssertionError("nothing was acknowledged at " + partition + " " + record.offset());
            }
            String where = " at " + partition + " " + record.offset();
            equal(record.key(), expected.key(), "key" + where);
            equal(record.value(), expected.value(), "value" + where);
            equal(shown(record.headers().toArray()), shown(expected.headers().toArray()), "headers" + where);
            if (expected.timestamp() != null) {
                equal(record.timestamp(), expected.timestamp(), "timestamp" + where);
            }
        }
        Map<TopicPartition, List<Long>> wanted = new HashMap<>();
        sent.forEach((partition, offsets) -> {
            if (!offsets.isEmpty()) {
                wanted.put(partition, new ArrayList<>(offsets.keySet()));
            }
        });
        equal(places, wanted, "offsets in the order read");
    }

    private static List<String> shown(Header[] headers) {
        return Arrays.stream(headers).map(h -> h.key() + "=" + Arrays.toString(h.value())).toList();
    }

    /** Reads the topic from its start with a consumer without a group. */
    static void readAll(String topic, Sender sender) throws Exception {
        int count = sender.flush();
        try (var reader = consumer(null)) {
            var partitions = reader.partitionsFor(topic).stream()
                    .map(p -> new TopicPartition(topic, p.partition()))
                    .toList();
            reader.assign(partitions);
            reader.seekToBeginning(partitions);
            check(drain(reader, count), sender.sent);
            quiet(reader, 300);
        }
    }

    private Harness() {}
}
