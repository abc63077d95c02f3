use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { lag_bytes: 1000, lag_chunks: 8, lag_ms: 100, answer_ms: 500 };

/// A replica as it should be: takes chunks in order and without a gap, answers in order.
#[derive(Debug, Default)]
struct Model {
    /// Sent and not yet looked at: number and content.
    queue: VecDeque<(u64, u64)>,
    has: BTreeMap<u64, u64>,
    next: u64,
    full: bool,
    failed: bool,
}

impl Model {
    fn serve(&mut self) -> Option<(u64, Answer)> {
        let (number, content) = self.queue.pop_front()?;
        let answer = if self.failed {
            // It may have kept it.
            if content % 2 == 0 && number == self.next {
                self.has.insert(number, content);
            }
            self.next = u64::MAX;
            Answer::Failed("its disk is gone".to_owned())
        } else if number != self.next {
            Answer::Gap
        } else if self.full {
            Answer::Full
        } else {
            self.has.insert(number, content);
            self.next += 1;
            Answer::Acknowledged
        };
        Some((number, answer))
    }
}

struct Rig {
    stream: Stream,
    replicas: Vec<Model>,
    quorum: u32,
    now_ms: u64,
    next_content: u64,
    /// Appended and not told: number and content, in order.
    waiting: VecDeque<(u64, u64)>,
    next: u64,
    /// Acknowledged to the caller.
    durable: BTreeMap<u64, u64>,
    refused_from: Option<u64>,
}

impl Rig {
    fn new(replicas: usize, quorum: u32) -> Self {
        Self {
            stream: Stream::new(replicas, quorum, LIMITS),
            replicas: (0..replicas).map(|_| Model::default()).collect(),
            quorum,
            now_ms: 0,
            next_content: 0,
            waiting: VecDeque::new(),
            next: 0,
            durable: BTreeMap::new(),
            refused_from: None,
        }
    }

    /// As an accumulator does: nothing new while refusals are under way, then on from the first refused number.
    fn append(&mut self, bytes: u64) -> Result<(), TestCaseError> {
        if self.refused_from.is_some() {
            return Ok(());
        }
        let content = self.next_content;
        match self.stream.append(self.next, bytes, self.now_ms) {
            Ok(sent) => {
                self.next_content += 1;
                prop_assert_eq!(sent, self.stream.live());
                for (index, replica) in self.replicas.iter_mut().enumerate() {
                    if sent & (1 << index) != 0 {
                        replica.queue.push_back((self.next, content));
                    }
                }
                self.waiting.push_back((self.next, content));
                self.next += 1;
            }
            Err(WalError::Full) => {} // the stream has not done with its refusals, which only lag behind ours
            Err(error) => {
                prop_assert_eq!(error, WalError::Closed);
                prop_assert!(self.stream.is_broken());
            }
        }
        Ok(())
    }

    fn serve(&mut self, index: usize) -> Result<(), TestCaseError> {
        if let Some((number, answer)) = self.replicas[index].serve() {
            self.stream.answer(index, number, answer, self.now_ms);
        }
        self.check()
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        while let Some((number, result)) = self.stream.take_told() {
            let (expected, content) = self.waiting.pop_front().unwrap();
            prop_assert_eq!(number, expected, "told in order");
            match result {
                Ok(acked) => {
                    prop_assert!(acked.acknowledged.count_ones() >= self.quorum);
                    for (index, replica) in self.replicas.iter().enumerate() {
                        if acked.acknowledged & (1 << index) != 0 {
                            prop_assert_eq!(replica.has.get(&number), Some(&content));
                        }
                    }
                    prop_assert!(self.refused_from.is_none(), "done behind a refusal");
                    self.durable.insert(number, content);
                }
                Err(WalError::Full) => {
                    self.refused_from = Some(self.refused_from.map_or(number, |from| from.min(number)));
                }
                Err(error) => {
                    prop_assert_eq!(error, WalError::Closed);
                    prop_assert!(self.stream.is_broken());
                }
            }
        }
        if self.waiting.is_empty()
            && let Some(from) = self.refused_from.take()
        {
            self.next = from;
        }
        // One name, one content, on all disks; and of what was acknowledged, that content.
        let mut contents = self.durable.clone();
        for replica in &self.replicas {
            for (&number, &content) in &replica.has {
                prop_assert_eq!(
                    *contents.entry(number).or_insert(content),
                    content,
                    "two contents of {}",
                    number
                );
            }
        }
        let live = self.stream.live().count_ones();
        prop_assert_eq!(self.stream.is_broken(), live < self.quorum);
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(u16),
    Serve(u8),
    Full(u8, bool),
    Fail(u8),
    Wait(u16),
}

fn arb_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (1..300_u16).prop_map(Step::Append),
        25 => (0..4_u8).prop_map(Step::Serve),
        2 => (0..4_u8, prop::bool::weighted(0.6)).prop_map(|(index, full)| Step::Full(index, full)),
        1 => prop_oneof![9 => Just(None), 1 => (0..4_u8).prop_map(Some)].prop_map(|index| index.map_or(Step::Wait(1), Step::Fail)),
        3 => (0..60_u16).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever replicas do, what is told is true, in order, and no number names two contents.
    #[test]
    fn tells_the_truth_in_order(
        replicas in 1..5_usize,
        quorum in 1..4_u32,
        steps in proptest::collection::vec(arb_step(), 1..250),
    ) {
        let quorum = quorum.min(replicas as u32);
        let mut rig = Rig::new(replicas, quorum);
        for step in steps {
            match step {
                Step::Append(bytes) => rig.append(u64::from(bytes))?,
                Step::Serve(index) => rig.serve(usize::from(index) % replicas)?,
                Step::Full(index, full) => rig.replicas[usize::from(index) % replicas].full = full,
                Step::Fail(index) => rig.replicas[usize::from(index) % replicas].failed = true,
                Step::Wait(ms) => {
                    rig.now_ms += u64::from(ms);
                    rig.stream.expire(rig.now_ms);
                    rig.check()?;
                }
            }
            rig.check()?;
        }
        // Everybody is heard out, and then time ends what is left.
        for index in 0..replicas {
            while !rig.replicas[index].queue.is_empty() {
                rig.serve(index)?;
            }
        }
        prop_assert!(rig.waiting.is_empty(), "all have answered, yet {:?} wait", rig.waiting);
        prop_assert!(rig.stream.is_broken() || !rig.stream.waits());
        // What was acknowledged is on a write quorum of disks.
        for (number, content) in &rig.durable {
            let holders = rig.replicas.iter().filter(|replica| replica.has.get(number) == Some(content)).count();
            prop_assert!(holders >= quorum as usize);
        }
    }

    /// Two of three that answer are enough, whatever the third does; what waits for it is bounded, and it is left behind.
    #[test]
    fn a_paused_replica_stalls_nobody(paused in 0..3_usize, sizes in proptest::collection::vec(1..300_u64, 20..100)) {
        let mut rig = Rig::new(3, 2);
        for (n, bytes) in sizes.iter().enumerate() {
            rig.append(*bytes)?;
            for index in (0..3).filter(|index| *index != paused) {
                rig.serve(index)?;
            }
            prop_assert_eq!(rig.durable.len(), n + 1, "at once, without any time passing");
        }
        prop_assert!(!rig.stream.is_broken());
        prop_assert!(rig.stream.left(paused).is_some());
        let unsent: u64 = rig.replicas[paused].queue.iter().map(|(number, _)| sizes[*number as usize]).sum();
        prop_assert!(unsent <= LIMITS.lag_bytes + 300 && rig.replicas[paused].queue.len() <= 9);
    }

    /// Without any answer from a majority, time breaks the stream, and everybody hears of it.
    #[test]
    fn silence_of_a_majority_breaks_the_stream(appends in 1..20_usize) {
        let mut rig = Rig::new(3, 2);
        for _ in 0..appends {
            rig.append(1)?;
            rig.serve(0)?;
        }
        rig.now_ms += LIMITS.answer_ms;
        rig.stream.expire(rig.now_ms);
        rig.check()?;
        prop_assert_eq!(rig.waiting.len(), appends, "not yet");
        rig.now_ms += 1;
        rig.stream.expire(rig.now_ms);
        rig.check()?;
        prop_assert!(rig.stream.is_broken() && rig.waiting.is_empty() && rig.durable.is_empty());
    }
}

#[test]
fn a_slow_one_is_left_behind_only_if_the_others_suffice() {
    for (replicas, left) in [(2, false), (3, true)] {
        let mut stream = Stream::new(replicas, 2, LIMITS);
        stream.append(0, 10, 0).unwrap();
        for member in 0..replicas {
            stream.answer(member, 0, Answer::Acknowledged, 0);
        }
        stream.append(1, 10, 0).unwrap();
        for member in 1..replicas {
            stream.answer(member, 1, Answer::Acknowledged, 1);
        }
        stream.expire(1 + LIMITS.lag_ms + 1);
        assert_eq!(stream.left(0).is_some(), left);
        assert!(!stream.is_broken());
    }
}

#[test]
fn an_answer_out_of_order_is_a_gap() {
    let mut stream = Stream::new(3, 2, LIMITS);
    for number in 0..3 {
        stream.append(number, 10, 0).unwrap();
    }
    stream.answer(0, 1, Answer::Acknowledged, 0);
    assert!(stream.left(0).is_some());
    stream.answer(0, 0, Answer::Acknowledged, 0);
    stream.answer(1, 0, Answer::Acknowledged, 0);
    assert_eq!(stream.take_told(), None, "the answer of one that was left behind counts no more");
    stream.answer(2, 0, Answer::Acknowledged, 0);
    assert_eq!(stream.take_told(), Some((0, Ok(Acked { acknowledged: 0b110 }))));
}

#[test]
fn what_one_acknowledged_before_it_was_left_behind_counts() {
    let mut stream = Stream::new(3, 2, LIMITS);
    stream.append(0, 10, 0).unwrap();
    stream.answer(0, 0, Answer::Acknowledged, 0);
    stream.answer(0, 1, Answer::Failed("gone".to_owned()), 0);
    stream.answer(1, 0, Answer::Acknowledged, 0);
    assert_eq!(stream.take_told(), Some((0, Ok(Acked { acknowledged: 0b011 }))));
    assert_eq!(stream.live(), 0b110);
}

#[test]
fn a_full_one_is_left_behind_and_all_full_is_full() {
    let mut stream = Stream::new(3, 2, LIMITS);
    for number in 0..2 {
        stream.append(number, 10, 0).unwrap();
        for member in 0..3 {
            let answer = if (member, number) == (2, 1) { Answer::Full } else { Answer::Acknowledged };
            stream.answer(member, number, answer, 0);
        }
    }
    assert_eq!(stream.live(), 0b011);
    stream.append(2, 10, 0).unwrap();
    stream.append(3, 10, 0).unwrap();
    for member in 0..2 {
        stream.answer(member, 2, Answer::Full, 0);
    }
    assert_eq!(stream.append(4, 10, 0), Err(WalError::Full), "not before all have been heard");
    for member in 0..2 {
        stream.answer(member, 3, Answer::Gap, 0);
    }
    let told: Vec<_> = std::iter::from_fn(|| stream.take_told()).collect();
    assert_eq!(told[2..], [(2, Err(WalError::Full)), (3, Err(WalError::Full))]);
    assert_eq!(stream.append(2, 10, 0), Ok(0b011));
}

#[test]
fn a_number_that_somebody_may_have_is_never_used_again() {
    let mut stream = Stream::new(3, 2, LIMITS);
    stream.append(0, 10, 0).unwrap();
    stream.answer(2, 0, Answer::Failed("lost on the way".to_owned()), 0);
    stream.answer(0, 0, Answer::Full, 0);
    stream.answer(1, 0, Answer::Full, 0);
    assert_eq!(stream.take_told(), Some((0, Err(WalError::Closed))));
    assert_eq!(stream.append(0, 10, 0), Err(WalError::Closed));
}

#[test]
fn too_few_from_the_start() {
    assert!(Stream::new(1, 2, LIMITS).is_broken());
    let mut stream = Stream::new(2, 2, LIMITS);
    stream.lacks(1, "unknown", 0);
    assert_eq!(stream.append(0, 1, 0), Err(WalError::Closed));
}
