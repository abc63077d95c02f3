//! What members of a consumer group tell each other: subscriptions, assignments, and the range assignor.
//! Source: Kafka's `ConsumerProtocol` and `RangeAssignor`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use isobar_protocol::messages::consumer_protocol_assignment::TopicPartition as AssignedTopic;
use isobar_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription, TopicName};
use isobar_protocol::{Encodable, StrBytes};

use crate::error::ClientError;
use crate::metadata::TopicPartition;

/// The assignor's name among a group's protocols.
pub(crate) const RANGE: &str = "range";
pub(crate) const PROTOCOL_TYPE: &str = "consumer";
const VERSION: i16 = 0;

fn versioned(version: i16, message: &impl Encodable) -> Result<Bytes, ClientError> {
    let mut out = BytesMut::new();
    out.put_i16(version);
    message.encode(&mut out, version).map_err(|error| ClientError::Usage(error.to_string()))?;
    Ok(out.freeze())
}

/// Reads what another member wrote. By hand, since kafka-protocol allocates arrays by the counts it is told.
struct Reader {
    bytes: Bytes,
    what: &'static str,
}

impl Reader {
    /// Every version begins with the fields of version 0.
    fn new(mut bytes: Bytes, what: &'static str) -> Result<Self, ClientError> {
        bytes.try_get_i16().map_err(|error| ClientError::malformed(what, error))?;
        Ok(Reader { bytes, what })
    }

    fn int(&mut self) -> Result<i32, ClientError> {
        self.bytes.try_get_i32().map_err(|error| ClientError::malformed(self.what, error))
    }

    fn string(&mut self) -> Result<String, ClientError> {
        let length = self.bytes.try_get_u16().map_err(|error| ClientError::malformed(self.what, error))?;
        if usize::from(length) > self.bytes.len() {
            return Err(ClientError::malformed(self.what, "string is cut off"));
        }
        let text = self.bytes.split_to(length.into());
        String::from_utf8(text.into()).map_err(|error| ClientError::malformed(self.what, error))
    }
}

pub(crate) fn subscription(topics: &[String]) -> Result<Bytes, ClientError> {
    let topics = topics.iter().map(|topic| StrBytes::from_string(topic.clone())).collect();
    versioned(VERSION, &ConsumerProtocolSubscription::default().with_topics(topics))
}

pub(crate) fn subscribed_topics(metadata: Bytes) -> Result<Vec<String>, ClientError> {
    let mut reader = Reader::new(metadata, "subscription of a group member")?;
    (0..reader.int()?).map(|_| reader.string()).collect()
}

pub(crate) fn assignment(partitions: &[TopicPartition]) -> Result<Bytes, ClientError> {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for at in partitions {
        topics.entry(&at.topic).or_default().push(at.partition);
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        let name = TopicName(StrBytes::from_string(topic.to_owned()));
        AssignedTopic::default().with_topic(name).with_partitions(partitions)
    });
    versioned(VERSION, &ConsumerProtocolAssignment::default().with_assigned_partitions(topics.collect()))
}

/// An empty assignment may have no bytes at all.
pub(crate) fn assigned_partitions(assignment: Bytes) -> Result<BTreeSet<TopicPartition>, ClientError> {
    if assignment.is_empty() {
        return Ok(BTreeSet::new());
    }
    let mut reader = Reader::new(assignment, "assignment of a group member")?;
    let mut partitions = BTreeSet::new();
    for _ in 0..reader.int()? {
        let topic = reader.string()?;
        for _ in 0..reader.int()? {
            partitions.insert(TopicPartition::new(topic.clone(), reader.int()?));
        }
    }
    Ok(partitions)
}

/// A member as the assignor sees it.
#[derive(Clone, Debug)]
pub(crate) struct Subscriber {
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
    pub(crate) topics: Vec<String>,
}

/// Gives each topic's partitions to its subscribers in contiguous runs, the first ones one longer. Members are in the order
/// of their instance ids, and then of their member ids, as in Kafka, so a static member keeps its place.
pub(crate) fn range(
    members: &[Subscriber],
    partition_counts: &BTreeMap<String, usize>,
) -> BTreeMap<String, Vec<TopicPartition>> {
    let mut given: BTreeMap<String, Vec<TopicPartition>> =
        members.iter().map(|member| (member.member_id.clone(), Vec::new())).collect();
    for (topic, &count) in partition_counts {
        let mut subscribers: Vec<&Subscriber> =
            members.iter().filter(|member| member.topics.contains(topic)).collect();
        subscribers
            .sort_by_key(|member| (member.instance_id.is_none(), &member.instance_id, &member.member_id));
        let (Some(each), extra) = (count.checked_div(subscribers.len()), count % subscribers.len().max(1))
        else {
            continue;
        };
        let mut next = 0;
        for (i, member) in subscribers.into_iter().enumerate() {
            let take = each + usize::from(i < extra);
            let run = (next..next + take).map(|index| TopicPartition::new(topic.clone(), index as i32));
            given.entry(member.member_id.clone()).or_default().extend(run);
            next += take;
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(id: usize, topics: &[&str], instance: Option<&str>) -> Subscriber {
        Subscriber {
            member_id: format!("m{id}"),
            instance_id: instance.map(str::to_owned),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
        }
    }

    #[test]
    fn the_example_of_kafkas_range_assignor() {
        let counts = BTreeMap::from([("t0".to_owned(), 3), ("t1".to_owned(), 3)]);
        let given = range(&[member(1, &["t0", "t1"], None), member(0, &["t0", "t1"], None)], &counts);
        let at = |topic: &str, index| TopicPartition::new(topic, index);
        assert_eq!(given["m0"], [at("t0", 0), at("t0", 1), at("t1", 0), at("t1", 1)]);
        assert_eq!(given["m1"], [at("t0", 2), at("t1", 2)]);
        let given = range(&[member(0, &["t0"], None), member(1, &["t0"], Some("a"))], &counts);
        assert_eq!(given["m1"].len(), 2, "static members come first");
    }

    proptest! {
        #[test]
        fn every_partition_goes_to_one_subscriber(
            subscribed in prop::collection::vec(prop::collection::btree_set(0usize..4, 0..4), 1..6),
            counts in prop::collection::vec(0usize..9, 4),
        ) {
            let names: Vec<String> = (0..4).map(|i| format!("t{i}")).collect();
            let members: Vec<Subscriber> = subscribed.iter().enumerate().map(|(id, topics)| {
                member(id, &topics.iter().map(|i| names[*i].as_str()).collect::<Vec<_>>(), None)
            }).collect();
            let counts: BTreeMap<String, usize> = names.iter().cloned().zip(counts).collect();
            let given = range(&members, &counts);
            let mut seen = BTreeSet::new();
            for member in &members {
                for at in &given[&member.member_id] {
                    prop_assert!(member.topics.contains(&at.topic) && seen.insert(at.clone()));
                }
                let bytes = assignment(&given[&member.member_id]).unwrap();
                prop_assert_eq!(assigned_partitions(bytes).unwrap(), given[&member.member_id].iter().cloned().collect());
                let mut topics = subscribed_topics(subscription(&member.topics).unwrap()).unwrap();
                topics.sort();
                prop_assert_eq!(&topics, &member.topics);
            }
            let expected: usize = counts.iter().filter(|(topic, _)| members.iter().any(|m| m.topics.contains(topic))).map(|(_, n)| n).sum();
            prop_assert_eq!(seen.len(), expected);
        }

        #[test]
        fn junk_from_other_members_is_an_error(junk in prop::collection::vec(any::<u8>(), 0..30)) {
            let _ = subscribed_topics(junk.clone().into());
            let _ = assigned_partitions(junk.into());
        }
    }
}
