import java.time.Duration;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.CreateTopicsOptions;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.CommitFailedException;
import org.apache.kafka.clients.consumer.NoOffsetForPartitionException;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.OffsetOutOfRangeException;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.GroupIdNotFoundException;
import org.apache.kafka.common.errors.InvalidConfigurationException;
import org.apache.kafka.common.errors.InvalidPartitionsException;
import org.apache.kafka.common.errors.InvalidReplicationFactorException;
import org.apache.kafka.common.errors.InvalidTopicException;
import org.apache.kafka.common.errors.RecordTooLargeException;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;

/** What a client is told when it asks for what cannot be. */
final class Errors {
    static void add() {
        Harness.add("error_unknown_topic", Errors::unknownTopic);
        Harness.add("error_record_too_large", Errors::recordTooLarge);
        Harness.add("error_bad_create_requests", Errors::badCreateRequests);
        Harness.add("error_bad_partition_counts", Errors::badPartitionCounts);
        Harness.add("error_offset_out_of_range", Errors::offsetOutOfRange);
        Harness.add("error_commit_by_a_stranger", Errors::commitByAStranger);
        Harness.add("error_unknown_group", Errors::unknownGroup);
    }

    private static void unknownTopic() throws Exception {
        String topic = Harness.fresh("unknown");
        var unknown = UnknownTopicOrPartitionException.class;
        try (Admin admin = Harness.admin();
                var reader = Harness.consumer(null, "allow.auto.create.topics", "false")) {
            Harness.equal(Harness.errorOf(admin.describeTopics(List.of(topic)).allTopicNames()), unknown, "describe");
            Harness.equal(Harness.errorOf(admin.deleteTopics(List.of(topic)).all()), unknown, "delete");
            var resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
            Harness.equal(Harness.errorOf(admin.describeConfigs(List.of(resource)).all()), unknown, "configs");
            var grow = admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(3))).all();
            Harness.equal(Harness.errorOf(grow), unknown, "more partitions");
            Harness.equal(reader.partitionsFor(topic, Duration.ofSeconds(5)), List.of(), "partitions");
            Harness.equal(admin.listTopics().names().get().contains(topic), false, "created by a look");
        }
    }

    private static void recordTooLarge() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender("max.request.size", "4000000")) {
            String topic = Harness.create(admin, "toolarge", 1);
            var refused = sender.producer.send(new ProducerRecord<>(topic, Harness.valueOf(1, 2_000_000)));
            Harness.equal(Harness.errorOf(refused), RecordTooLargeException.class, "a record of 2 MB");
            var over = sender.producer.send(new ProducerRecord<>(topic, Harness.valueOf(2, 1_048_588 - 61 - 10)));
            Harness.equal(Harness.errorOf(over), RecordTooLargeException.class, "a record over the bound by one byte");
            sender.send(new ProducerRecord<>(topic, Harness.utf8("fits")));
            Harness.readAll(topic, sender);
        }
    }

    private static void badCreateRequests() throws Exception {
        try (Admin admin = Harness.admin()) {
            String taken = Harness.create(admin, "taken", 1);
            refused(admin, new NewTopic(taken, 1, (short) 1), TopicExistsException.class);
            refused(admin, new NewTopic("a b", 1, (short) 1), InvalidTopicException.class);
            refused(admin, new NewTopic("..", 1, (short) 1), InvalidTopicException.class);
            refused(admin, new NewTopic("x".repeat(250), 1, (short) 1), InvalidTopicException.class);
            refused(admin, new NewTopic(Harness.fresh("p"), 0, (short) 1), InvalidPartitionsException.class);
            refused(admin, new NewTopic(Harness.fresh("p"), -5, (short) 1), InvalidPartitionsException.class);
            refused(admin, new NewTopic(Harness.fresh("r"), 1, (short) 0), InvalidReplicationFactorException.class);
            refused(admin, new NewTopic(Harness.fresh("c"), 1, (short) 1).configs(Map.of("no.such", "1")),
                    InvalidConfigurationException.class);
            refused(admin, new NewTopic(Harness.fresh("c"), 1, (short) 1).configs(Map.of("retention.ms", "x")),
                    InvalidConfigurationException.class);
            var three = new NewTopic(Harness.fresh("rf"), 1, (short) 3);
            if (Harness.KAFKA) {
                refused(admin, three, InvalidReplicationFactorException.class);
            } else {
                admin.createTopics(List.of(three)).all().get();
            }
            var dry = new NewTopic(Harness.fresh("dry"), 1, (short) 1);
            admin.createTopics(List.of(dry), new CreateTopicsOptions().validateOnly(true)).all().get();
            Harness.equal(admin.listTopics().names().get().contains(dry.name()), false, "created by validateOnly");
        }
    }

    private static void refused(Admin admin, NewTopic topic, Class<?> expected) throws Exception {
        var error = Harness.errorOf(admin.createTopics(List.of(topic)).all());
        Harness.equal(error, expected, "create " + topic);
    }

    private static void badPartitionCounts() throws Exception {
        try (Admin admin = Harness.admin()) {
            String topic = Harness.create(admin, "counts", 3);
            for (int count : new int[] {1, 3}) {
                var error = Harness.errorOf(
                        admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(count))).all());
                Harness.equal(error, InvalidPartitionsException.class, "partitions from 3 to " + count);
            }
            var missing = new TopicPartition(topic, 9);
            var asked = admin.listOffsets(Map.of(missing, OffsetSpec.latest()),
                    new org.apache.kafka.clients.admin.ListOffsetsOptions().timeoutMs(3_000));
            Class<?> error = Harness.errorOf(asked.partitionResult(missing));
            Harness.equal(error, org.apache.kafka.common.errors.TimeoutException.class, "offsets of a partition");
        }
    }

    private static void offsetOutOfRange() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender();
                var reader = Harness.consumer(null, "auto.offset.reset", "none")) {
            var partition = new TopicPartition(Records.filled(admin, sender, 10), 0);
            reader.assign(List.of(partition));
            try {
                reader.poll(Duration.ofSeconds(5));
                throw new AssertionError("no error without a position");
            } catch (NoOffsetForPartitionException e) {
                Harness.equal(e.partitions(), java.util.Set.of(partition), "partition in the error");
            }
            reader.seek(partition, 1_000);
            try {
                for (int i = 0; i < 20; i++) {
                    reader.poll(Duration.ofMillis(500));
                }
                throw new AssertionError("no error at offset 1000");
            } catch (OffsetOutOfRangeException e) {
                Harness.equal(e.offsetOutOfRangePartitions(), Map.of(partition, 1_000L), "offset in the error");
            }
            reader.seek(partition, 9);
            Harness.equal(Harness.drain(reader, 1).get(0).offset(), 9L, "offset after a good seek");
        }
    }

    private static void commitByAStranger() throws Exception {
        String group = Harness.fresh("fenced");
        try (Admin admin = Harness.admin(); var stranger = Harness.consumer(group)) {
            String topic = Harness.create(admin, "fenced", 1);
            Member member = new Member(topic, group);
            Harness.until(() -> member.holds(0), "a member");
            try {
                stranger.commitSync(Map.of(new TopicPartition(topic, 0), new OffsetAndMetadata(1)));
                throw new AssertionError("a commit without membership into a live group");
            } catch (CommitFailedException e) {
                member.end();
            }
        }
    }

    private static void unknownGroup() throws Exception {
        try (Admin admin = Harness.admin()) {
            String group = Harness.fresh("unknown");
            var found = Harness.errorOf(admin.describeConsumerGroups(List.of(group)).all());
            Harness.equal(found, GroupIdNotFoundException.class, "describe");
            var offsets = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
            Harness.equal(offsets, Map.of(), "offsets");
        }
    }

    private Errors() {}
}
