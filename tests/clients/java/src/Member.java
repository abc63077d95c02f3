import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;

/** A consumer of a group on a thread of its own, which polls and commits until it is told to leave. */
final class Member implements Runnable, ConsumerRebalanceListener {
    final List<ConsumerRecord<byte[], byte[]>> got = new CopyOnWriteArrayList<>();
    final Set<Integer> assigned = ConcurrentHashMap.newKeySet();
    volatile int assignments;
    private final KafkaConsumer<byte[], byte[]> reader;
    private final String topic;
    private final Thread thread = new Thread(this);
    private volatile boolean leaving;
    private volatile Throwable failure;

    Member(String topic, String group, String... config) {
        List<String> all = new ArrayList<>(List.of(config));
        all.addAll(List.of("session.timeout.ms", "10000", "heartbeat.interval.ms", "500"));
        reader = Harness.consumer(group, all.toArray(String[]::new));
        this.topic = topic;
        thread.setDaemon(true);
        thread.start();
    }

    @Override
    public void run() {
        try (reader) {
            reader.subscribe(List.of(topic), this);
            while (!leaving) {
                var records = reader.poll(Duration.ofMillis(100));
                records.forEach(got::add);
                if (!records.isEmpty()) {
                    commit();
                }
            }
        } catch (Throwable e) {
            failure = e;
        }
    }

    private void commit() {
        try {
            reader.commitSync();
        } catch (org.apache.kafka.common.errors.RebalanceInProgressException e) {
            // The records count as read; the commit before the partitions are given up says so.
        }
    }

    @Override
    public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
        assignments++;
        partitions.forEach(p -> assigned.add(p.partition()));
    }

    @Override
    public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
        reader.commitSync();
        partitions.forEach(p -> assigned.remove(p.partition()));
    }

    /** True once it holds exactly these; an error of its thread is raised here. */
    boolean holds(int... partitions) {
        raise();
        Set<Integer> wanted = ConcurrentHashMap.newKeySet();
        for (int partition : partitions) {
            wanted.add(partition);
        }
        return assigned.equals(wanted);
    }

    void raise() {
        if (failure != null) {
            throw new AssertionError("a member of the group failed: " + failure, failure);
        }
    }

    void end() throws InterruptedException {
        leaving = true;
        thread.join(30_000);
        raise();
        Map<Integer, Long> last = new HashMap<>();
        for (var record : got) {
            Long before = last.put(record.partition(), record.offset());
            if (before != null && record.offset() != before + 1) {
                throw new AssertionError(
                        "partition " + record.partition() + ": " + record.offset() + " after " + before);
            }
        }
    }
}
