import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.IntegerDeserializer;
import org.apache.kafka.common.serialization.IntegerSerializer;

/**
 * What a producer and a group of two feel while somebody else ends nodes; all settings are the client's own. Arguments: bootstrap
 * servers and a topic that is empty. Says `ready` once the group is stable, goes on until its input ends, and then says what
 * was wrong, a line each, and how long was waited.
 */
final class Alive {
    private static final int MEMBERS = 2;
    private static final long EVERY_NS = 2_000_000;

    private final Properties settings = new Properties();
    private final String topic;
    private final ConcurrentLinkedQueue<String> wrong = new ConcurrentLinkedQueue<>();
    private final Map<TopicPartition, TreeMap<Long, Integer>> acknowledged = new ConcurrentHashMap<>();
    private final Map<TopicPartition, TreeMap<Long, Integer>> read = new ConcurrentHashMap<>();
    private final AtomicInteger assigned = new AtomicInteger();
    private final AtomicInteger taken = new AtomicInteger();
    private volatile boolean writing = true;
    private volatile boolean reading = true;
    private volatile long longestWaitNs;
    private volatile long longestGapNs;

    public static void main(String[] arguments) throws Exception {
        new Alive(arguments[0], arguments[1]).run();
    }

    private Alive(String bootstrap, String topic) {
        this.topic = topic;
        settings.put("bootstrap.servers", bootstrap);
    }

    private void run() throws Exception {
        List<Thread> members = new ArrayList<>();
        for (int n = 0; n < MEMBERS; n++) {
            members.add(started(this::consume));
        }
        // The first to come may have had everything for a moment.
        int before = -1;
        while (assigned.get() < MEMBERS || assigned.get() != before) {
            before = assigned.get();
            Thread.sleep(5000);
        }
        Thread producer = started(this::produce);
        System.out.println("ready");
        while (System.in.read() >= 0) {}
        writing = false;
        producer.join();
        int sent = acknowledged.values().stream().mapToInt(TreeMap::size).sum();
        long deadline = System.nanoTime() + 60_000_000_000L;
        while (taken.get() < sent && System.nanoTime() < deadline) {
            Thread.sleep(50);
        }
        reading = false;
        for (Thread member : members) {
            member.join();
        }
        if (assigned.get() != before) {
            wrong.add("the group was rebalanced " + (assigned.get() - before) + " times");
        }
        acknowledged.forEach((partition, records) -> {
            if (!records.equals(read.get(partition))) {
                wrong.add(partition + ": what was read is not what was acknowledged");
            }
        });
        wrong.forEach(what -> System.out.println("wrong: " + what));
        System.out.printf("%d records; the longest that one waited %d ms, the longest gap of a member %d ms%n",
                sent, longestWaitNs / 1_000_000, longestGapNs / 1_000_000);
    }

    private Thread started(Runnable work) {
        Thread thread = new Thread(() -> {
            try {
                work.run();
            } catch (Throwable e) {
                wrong.add(Thread.currentThread().getName() + " ended: " + e);
            }
        });
        thread.setDaemon(true);
        thread.start();
        return thread;
    }

    private void produce() {
        try (var producer = new KafkaProducer<Integer, Integer>(settings, new IntegerSerializer(), new IntegerSerializer())) {
            int partitions = producer.partitionsFor(topic).size();
            long due = System.nanoTime();
            for (int n = 0; writing; n++) {
                long sent = System.nanoTime();
                int number = n;
                producer.send(new ProducerRecord<>(topic, n % partitions, n, n), (where, error) -> {
                    longestWaitNs = Math.max(longestWaitNs, System.nanoTime() - sent);
                    if (error != null) {
                        wrong.add("record " + number + ": " + error);
                    } else {
                        put(acknowledged, new TopicPartition(topic, where.partition()), where.offset(), number);
                    }
                });
                due += EVERY_NS;
                while (System.nanoTime() < due) {
                    Thread.onSpinWait();
                    java.util.concurrent.locks.LockSupport.parkNanos(due - System.nanoTime());
                }
            }
        }
    }

    private void consume() {
        Properties own = new Properties();
        own.putAll(settings);
        own.put("group.id", topic + "-group");
        try (var consumer = new KafkaConsumer<Integer, Integer>(own, new IntegerDeserializer(), new IntegerDeserializer())) {
            consumer.subscribe(List.of(topic), new ConsumerRebalanceListener() {
                @Override
                public void onPartitionsRevoked(Collection<TopicPartition> partitions) {}

                @Override
                public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
                    assigned.incrementAndGet();
                }
            });
            long last = 0;
            while (reading) {
                var records = consumer.poll(Duration.ofMillis(100));
                long now = System.nanoTime();
                if (!records.isEmpty()) {
                    longestGapNs = last == 0 || !writing ? longestGapNs : Math.max(longestGapNs, now - last);
                    last = now;
                }
                for (var record : records) {
                    put(read, new TopicPartition(record.topic(), record.partition()), record.offset(), record.value());
                    taken.incrementAndGet();
                }
            }
        }
    }

    private void put(Map<TopicPartition, TreeMap<Long, Integer>> map, TopicPartition partition, long offset, int number) {
        var before = map.computeIfAbsent(partition, p -> new TreeMap<>()).put(offset, number);
        if (before != null) {
            wrong.add(partition + " has offset " + offset + " twice");
        }
    }
}
