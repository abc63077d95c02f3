import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.Config;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.GroupListing;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.GroupState;
import org.apache.kafka.common.GroupType;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.InvalidConfigurationException;
import org.apache.kafka.common.errors.RecordTooLargeException;

/** The Admin client. */
final class Administration {
    static void add() {
        Harness.add("admin_cluster", Administration::cluster);
        Harness.add("admin_topics", Administration::topics);
        Harness.add("admin_create_partitions", Administration::createPartitions);
        Harness.add("admin_delete_topic", Administration::deleteTopic);
        Harness.add("admin_delete_and_create_again", Administration::deleteAndCreateAgain);
        Harness.add("admin_configs", Administration::configs);
        Harness.add("admin_offsets", Administration::offsets);
        Harness.add("admin_groups", Administration::groups);
    }

    private static void cluster() throws Exception {
        try (Admin admin = Harness.admin()) {
            var found = admin.describeCluster();
            var nodes = found.nodes().get().stream().map(n -> n.host() + ":" + n.port()).toList();
            Harness.equal(nodes, List.of(Harness.BOOTSTRAP), "nodes");
            Harness.equal(found.controller().get() != null, true, "a controller");
            Harness.equal(found.clusterId().get().isEmpty(), false, "an empty cluster id");
        }
    }

    private static void topics() throws Exception {
        try (Admin admin = Harness.admin()) {
            String topic = Harness.create(admin, "listed", 7);
            Harness.equal(admin.listTopics().names().get().contains(topic), true, "in the list");
            var listing = admin.listTopics().namesToListings().get().get(topic);
            var described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            Harness.equal(described.topicId(), listing.topicId(), "topic id");
            Harness.equal(described.partitions().stream().map(p -> p.partition()).toList(),
                    List.of(0, 1, 2, 3, 4, 5, 6), "partitions");
            described.partitions().forEach(p -> {
                Harness.equal(p.leader().port() > 0, true, "a leader of partition " + p.partition());
                Harness.equal(p.isr().size(), 1, "in-sync replicas of partition " + p.partition());
            });
            var byId = admin.describeTopics(org.apache.kafka.common.TopicCollection
                    .ofTopicIds(List.of(listing.topicId()))).allTopicIds().get();
            Harness.equal(byId.get(listing.topicId()).name(), topic, "described by id");
        }
    }

    private static void createPartitions() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender("metadata.max.age.ms", "500")) {
            String topic = Harness.create(admin, "grows", 2);
            sender.send(new ProducerRecord<>(topic, 1, null, null, Harness.valueOf(1)));
            sender.flush();
            admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(5))).all().get();
            Harness.until(() -> admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic)
                    .partitions().size() == 5, "five partitions");
            Harness.until(() -> sender.producer.partitionsFor(topic).size() == 5, "the producer sees five");
            sender.send(new ProducerRecord<>(topic, 4, null, null, Harness.valueOf(4)));
            Harness.readAll(topic, sender);
        }
    }

    private static void deleteTopic() throws Exception {
        try (Admin admin = Harness.admin()) {
            String topic = Harness.create(admin, "goes", 1);
            admin.deleteTopics(List.of(topic)).all().get();
            Harness.until(() -> !admin.listTopics().names().get().contains(topic), "gone from the list");
        }
    }

    private static void deleteAndCreateAgain() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender()) {
            String topic = Harness.create(admin, "again", 1);
            sender.send(new ProducerRecord<>(topic, Harness.utf8("old")));
            sender.flush();
            var before = admin.listTopics().namesToListings().get().get(topic).topicId();
            admin.deleteTopics(List.of(topic)).all().get();
            Harness.until(() -> !admin.listTopics().names().get().contains(topic), "gone from the list");
            admin.createTopics(List.of(new org.apache.kafka.clients.admin.NewTopic(topic, 1, (short) 1))).all().get();
            Harness.until(() -> admin.listTopics().names().get().contains(topic), "listed again");
            var after = admin.listTopics().namesToListings().get().get(topic).topicId();
            Harness.equal(before.equals(after), false, "the same topic id");
            try (var fresh = new Harness.Sender()) {
                fresh.send(new ProducerRecord<>(topic, Harness.utf8("new")));
                Harness.equal(fresh.flush(), 1, "acknowledged");
                Harness.equal(fresh.sent.get(new TopicPartition(topic, 0)).firstKey(), 0L, "its offset");
                Harness.readAll(topic, fresh);
            }
        }
    }

    private static Config describe(Admin admin, ConfigResource resource) throws Exception {
        return admin.describeConfigs(List.of(resource)).all().get().get(resource);
    }

    static java.util.concurrent.Future<Void> alter(
            Admin admin, ConfigResource resource, String name, String value, AlterConfigOp.OpType how) {
        var op = new AlterConfigOp(new ConfigEntry(name, value), how);
        return admin.incrementalAlterConfigs(Map.of(resource, List.of(op))).all();
    }

    private static void configs() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender("max.request.size", "4000000")) {
            String topic = Harness.create(admin, "configs", 1, Map.of("retention.ms", "3600000"));
            var resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
            var found = describe(admin, resource);
            Harness.equal(found.get("retention.ms").value(), "3600000", "retention.ms as created");
            Harness.equal(found.get("retention.ms").source(), ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG, "source");
            Harness.equal(found.get("max.message.bytes").value(), "1048588", "max.message.bytes by default");
            Harness.equal(found.get("max.message.bytes").isDefault(), true, "its source is the default");
            Harness.equal(found.get("cleanup.policy").type(), ConfigEntry.ConfigType.LIST, "cleanup.policy is a list");
            alter(admin, resource, "max.message.bytes", "2000", AlterConfigOp.OpType.SET).get();
            Harness.equal(describe(admin, resource).get("max.message.bytes").value(), "2000", "after the change");
            var refused = sender.producer.send(new ProducerRecord<>(topic, Harness.valueOf(1, 3_000)));
            Harness.equal(Harness.errorOf(refused), RecordTooLargeException.class, "a record over the topic's bound");
            alter(admin, resource, "max.message.bytes", null, AlterConfigOp.OpType.DELETE).get();
            Harness.equal(describe(admin, resource).get("max.message.bytes").value(), "1048588", "after the removal");
            sender.send(new ProducerRecord<>(topic, Harness.valueOf(2, 3_000)));
            Harness.readAll(topic, sender);
            alter(admin, resource, "cleanup.policy", "compact", AlterConfigOp.OpType.APPEND).get();
            var policies = new TreeSet<>(List.of(describe(admin, resource).get("cleanup.policy").value().split(",")));
            Harness.equal(policies, Set.of("compact", "delete"), "cleanup.policy after an append");
            alter(admin, resource, "cleanup.policy", "delete", AlterConfigOp.OpType.SUBTRACT).get();
            Harness.equal(describe(admin, resource).get("cleanup.policy").value(), "compact", "after a subtraction");
            for (String[] bad : new String[][] {{"retention.ms", "soon"}, {"no.such.config", "1"},
                {"cleanup.policy", "burn"}, {"max.message.bytes", "-5"}}) {
                var error = Harness.errorOf(alter(admin, resource, bad[0], bad[1], AlterConfigOp.OpType.SET));
                Harness.equal(error, InvalidConfigurationException.class, bad[0] + "=" + bad[1]);
            }
            String id = admin.describeCluster().nodes().get().iterator().next().idString();
            var broker = describe(admin, new ConfigResource(ConfigResource.Type.BROKER, id));
            Harness.equal(broker.get("message.max.bytes") != null, true, "message.max.bytes of the broker");
        }
    }

    private static void offsets() throws Exception {
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender()) {
            String topic = Harness.create(admin, "offsets", 1);
            for (int i = 0; i < 10; i++) {
                long time = Harness.BASE_TIME + (i == 3 ? 5 : 0);
                sender.send(new ProducerRecord<>(topic, 0, time, null, Harness.valueOf(i)));
            }
            sender.flush();
            var partition = new TopicPartition(topic, 0);
            Harness.equal(offset(admin, partition, OffsetSpec.earliest()), 0L, "earliest");
            Harness.equal(offset(admin, partition, OffsetSpec.latest()), 10L, "latest");
            Harness.equal(offset(admin, partition, OffsetSpec.maxTimestamp()), 3L, "max timestamp");
            Harness.equal(offset(admin, partition, OffsetSpec.forTimestamp(Harness.BASE_TIME + 1)), 3L, "by time");
            Harness.equal(offset(admin, partition, OffsetSpec.forTimestamp(Harness.BASE_TIME + 9)), -1L, "too late");
        }
    }

    private static long offset(Admin admin, TopicPartition partition, OffsetSpec spec) throws Exception {
        return admin.listOffsets(Map.of(partition, spec)).partitionResult(partition).get().offset();
    }

    private static void groups() throws Exception {
        String group = Harness.fresh("listed");
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender()) {
            var partition = new TopicPartition(Records.filled(admin, sender, 50), 0);
            try (var reader = Harness.consumer(group, "client.id", "the-reader")) {
                reader.subscribe(List.of(partition.topic()));
                Harness.drain(reader, 50);
                reader.commitSync();
                GroupListing listed = admin.listGroups().all().get().stream()
                        .filter(g -> g.groupId().equals(group)).findFirst().orElseThrow();
                Harness.equal(listed.type().orElse(null), GroupType.CLASSIC, "type");
                Harness.equal(listed.groupState().orElse(null), GroupState.STABLE, "state");
                Harness.equal(listed.protocol(), "consumer", "protocol type");
                var described = admin.describeConsumerGroups(List.of(group)).all().get().get(group);
                Harness.equal(described.partitionAssignor(), "range", "assignor");
                Harness.equal(described.members().size(), 1, "members");
                var member = described.members().iterator().next();
                Harness.equal(member.clientId(), "the-reader", "client id");
                Harness.equal(member.host().contains("127.0.0.1"), true, "host of the member");
                Harness.equal(member.assignment().topicPartitions(), Set.of(partition), "assignment");
            }
            Harness.until(() -> admin.describeConsumerGroups(List.of(group)).all().get().get(group).groupState()
                    == GroupState.EMPTY, "the group is empty");
            Harness.equal(committed(admin, group, partition), 50L, "its offset");
            admin.alterConsumerGroupOffsets(group, Map.of(partition, new OffsetAndMetadata(7))).all().get();
            Harness.equal(committed(admin, group, partition), 7L, "its offset after the change");
        }
    }

    private static long committed(Admin admin, String group, TopicPartition partition) throws Exception {
        return admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(partition).offset();
    }

    private Administration() {}
}
