import java.util.ArrayList;
import java.util.Comparator;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.GroupState;
import org.apache.kafka.common.TopicPartition;

/** Consumer groups of the classic protocol. */
final class Groups {
    static void add() {
        for (String assignor : List.of("RangeAssignor", "CooperativeStickyAssignor")) {
            Harness.add("group_of_two_with_a_rebalance_" + assignor, () -> groupOfTwo(assignor));
        }
        Harness.add("static_member_comes_back_without_a_rebalance", Groups::staticMember);
        Harness.add("commit_and_resume_after_a_restart", Groups::commitAndResume);
        Harness.add("commit_automatically", Groups::commitAutomatically);
        Harness.add("commit_without_a_group_membership", Groups::commitWithoutMembership);
    }

    private static void send(Harness.Sender sender, String topic, int from, int count) throws Exception {
        for (int i = from; i < from + count; i++) {
            sender.send(new ProducerRecord<>(topic, i % 4, null, null, Harness.valueOf(i)));
        }
        sender.flush();
    }

    private static void groupOfTwo(String assignor) throws Exception {
        String strategy = "org.apache.kafka.clients.consumer." + assignor;
        String group = Harness.fresh("group");
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender()) {
            String topic = Harness.create(admin, "group", 4);
            send(sender, topic, 0, 200);
            Member one = new Member(topic, group, "partition.assignment.strategy", strategy);
            Harness.until(() -> one.holds(0, 1, 2, 3), "the first member has every partition");
            Harness.until(() -> one.got.size() == 200, "the first member read everything");
            Member two = new Member(topic, group, "partition.assignment.strategy", strategy);
            Harness.until(() -> {
                one.raise();
                two.raise();
                return one.assigned.size() == 2 && two.assigned.size() == 2;
            }, "two and two");
            Set<Integer> both = new TreeSet<>(one.assigned);
            both.addAll(two.assigned);
            Harness.equal(both, Set.of(0, 1, 2, 3), "partitions of both");
            Harness.until(() -> describe(admin, group).groupState() == GroupState.STABLE, "the group is stable");
            var described = describe(admin, group);
            Harness.equal(described.members().size(), 2, "members");
            Set<Integer> held = new TreeSet<>();
            described.members().forEach(m -> m.assignment().topicPartitions().forEach(p -> held.add(p.partition())));
            Harness.equal(held, Set.of(0, 1, 2, 3), "partitions in the description");
            send(sender, topic, 200, 200);
            Harness.until(() -> one.got.size() + two.got.size() == 400, "both read the rest");
            one.end();
            Harness.until(() -> two.holds(0, 1, 2, 3), "the second member has every partition");
            send(sender, topic, 400, 200);
            Harness.until(() -> one.got.size() + two.got.size() == 600, "the second member read the rest");
            two.end();
            List<ConsumerRecord<byte[], byte[]>> all = new ArrayList<>(one.got);
            all.addAll(two.got);
            all.sort(Comparator.comparing((ConsumerRecord<byte[], byte[]> r) -> r.partition())
                    .thenComparing(ConsumerRecord::offset));
            Harness.check(all, sender.sent);
            Map<TopicPartition, Long> committed = new HashMap<>();
            admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get()
                    .forEach((partition, offset) -> committed.put(partition, offset.offset()));
            Map<TopicPartition, Long> expected = new HashMap<>();
            for (int p = 0; p < 4; p++) {
                expected.put(new TopicPartition(topic, p), 150L);
            }
            Harness.equal(committed, expected, "committed offsets at the end");
        }
    }

    private static org.apache.kafka.clients.admin.ConsumerGroupDescription describe(Admin admin, String group)
            throws Exception {
        return admin.describeConsumerGroups(List.of(group)).all().get().get(group);
    }

    private static void staticMember() throws Exception {
        String group = Harness.fresh("static");
        try (Admin admin = Harness.admin()) {
            String topic = Harness.create(admin, "static", 2);
            Member stays = new Member(topic, group, "group.instance.id", "stays");
            Member goes = new Member(topic, group, "group.instance.id", "goes");
            Harness.until(() -> stays.assigned.size() == 1 && goes.assigned.size() == 1, "one and one");
            int assignments = stays.assignments;
            Set<Integer> had = new TreeSet<>(goes.assigned);
            goes.end();
            Member back = new Member(topic, group, "group.instance.id", "goes");
            Harness.until(() -> {
                back.raise();
                return back.assigned.size() == 1;
            }, "the member is back");
            Harness.equal(back.assigned, had, "its partition");
            Harness.equal(stays.assignments, assignments, "assignments of the other");
            Set<String> instances = new TreeSet<>();
            describe(admin, group).members().forEach(m -> instances.add(m.groupInstanceId().orElse("none")));
            Harness.equal(instances, Set.of("goes", "stays"), "instance ids");
            back.end();
            stays.end();
        }
    }

    private static void commitAndResume() throws Exception {
        String group = Harness.fresh("resume");
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender()) {
            String topic = Records.filled(admin, sender, 300);
            var partition = new TopicPartition(topic, 0);
            try (var reader = Harness.consumer(group, "max.poll.records", "40")) {
                reader.subscribe(List.of(topic));
                Harness.drain(reader, 120);
                reader.commitSync(Map.of(partition, new OffsetAndMetadata(100)));
            }
            try (var reader = Harness.consumer(group)) {
                reader.subscribe(List.of(topic));
                Map<TopicPartition, TreeMap<Long, ProducerRecord<byte[], byte[]>>> rest = new HashMap<>();
                rest.put(partition, new TreeMap<>(sender.sent.get(partition).tailMap(100L)));
                Harness.check(Harness.drain(reader, 200), rest);
                reader.commitSync(Map.of(partition, new OffsetAndMetadata(300, "half way, größer")));
            }
            try (var reader = Harness.consumer(group)) {
                var found = reader.committed(Set.of(partition)).get(partition);
                Harness.equal(found.offset(), 300L, "committed");
                Harness.equal(found.metadata(), "half way, größer", "its metadata");
                reader.subscribe(List.of(topic));
                Harness.quiet(reader, 2_000);
                Harness.equal(reader.position(partition), 300L, "position");
            }
        }
    }

    private static void commitAutomatically() throws Exception {
        String group = Harness.fresh("auto");
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender()) {
            String topic = Records.filled(admin, sender, 100);
            try (var reader = Harness.consumer(group, "enable.auto.commit", "true")) {
                reader.subscribe(List.of(topic));
                Harness.check(Harness.drain(reader, 100), sender.sent);
            }
            var found = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
            Harness.equal(found.get(new TopicPartition(topic, 0)).offset(), 100L, "committed at close");
        }
    }

    private static void commitWithoutMembership() throws Exception {
        String group = Harness.fresh("standalone");
        try (Admin admin = Harness.admin(); var sender = new Harness.Sender()) {
            var partition = new TopicPartition(Records.filled(admin, sender, 50), 0);
            try (var reader = Harness.consumer(group)) {
                reader.assign(List.of(partition));
                Harness.drain(reader, 50);
                reader.commitSync();
            }
            try (var reader = Harness.consumer(group)) {
                reader.assign(List.of(partition));
                Harness.equal(reader.position(partition), 50L, "position from the commit");
            }
        }
    }

    private Groups() {}
}
