//! The queue of calls against a model: each call is answered once, and as what it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::time::Instant;

use crate::Channel;
use crate::calls::{Calls, Done, Limits, To};
use crate::error::CallError;
use crate::frame::{Frame, Kind};
use crate::link::Batch;
use crate::metrics::RpcMetrics;

type Answers = BTreeMap<usize, Vec<Result<Bytes, CallError>>>;

#[derive(Debug, Clone)]
enum Step {
    Call { bytes: usize, deadline_ms: u64 },
    Fill,
    Answer(prop::sample::Index),
    Pass { ms: u64 },
    Fail,
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5_000_usize, 0..100_u64).prop_map(|(bytes, deadline_ms)| Step::Call { bytes, deadline_ms }),
        2 => Just(Step::Fill),
        3 => any::<prop::sample::Index>().prop_map(Step::Answer),
        2 => (0..30_u64).prop_map(|ms| Step::Pass { ms }),
        1 => Just(Step::Fail),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn each_call_is_answered_once_and_as_what_it_was(steps in prop::collection::vec(a_step(), 1..120)) {
        let metrics = Arc::new(RpcMetrics::default().of(Channel::Wal));
        let mut calls = Calls::new(Limits { queue_bytes: 10_000, calls: 20 });
        let answers: Arc<Mutex<Answers>> = Arc::default();
        let mut now = Instant::now();
        let (mut made, mut sent, mut number_of) = (0, Vec::new(), BTreeMap::new());
        let fail = |failed: Vec<(To, CallError)>| failed.into_iter().for_each(|(to, error)| to.fail(error));
        for step in steps.into_iter().chain([Step::Fail]) {
            match step {
                Step::Call { bytes, deadline_ms } => {
                    let (number, told) = (made, Arc::clone(&answers));
                    made += 1;
                    let done = Done::new(
                        Box::new(move |result| told.lock().entry(number).or_default().push(result)),
                        Arc::clone(&metrics),
                    );
                    let frame = Frame::with_body(Kind::Request, 0, vec![Bytes::from(vec![0; bytes])]);
                    let deadline = now + Duration::from_millis(deadline_ms);
                    match calls.add(frame, To::Call(done), deadline, now) {
                        Ok(id) => drop(number_of.insert(id, number)),
                        Err((to, error)) => to.fail(error),
                    }
                }
                Step::Fill => {
                    let mut batch = Batch::default();
                    for to in calls.fill(&mut batch, 4_000) {
                        to.fail(CallError::NotSent("too large".to_owned()));
                    }
                    sent.extend(batch.frames.iter().map(|frame| frame.id));
                    prop_assert!(sent.is_sorted(), "in the order of the calls");
                }
                Step::Answer(which) => {
                    let known = number_of.keys().copied().collect::<Vec<_>>();
                    if let Some(id) = known.get(which.index(known.len().max(1))).copied() {
                        let over = answers.lock().contains_key(&number_of[&id]);
                        match calls.answered(id) {
                            Ok(Some(To::Call(done))) => done.answer(Ok(Bytes::new())),
                            Ok(_) => prop_assert!(over),
                            Err(_) => prop_assert!(!over && !sent.contains(&id), "not sent, so not answered"),
                        }
                    }
                    prop_assert!(calls.answered(u64::MAX).is_err());
                }
                Step::Pass { ms } => {
                    now += Duration::from_millis(ms);
                    fail(calls.expire(now));
                    prop_assert!(calls.next_deadline().is_none_or(|next| next > now));
                }
                Step::Fail => fail(calls.fail("the end")),
            }
            prop_assert!(calls.queued_bytes() <= 10_000 + 256);
        }
        prop_assert_eq!((calls.queued_bytes(), calls.has_queued(), calls.next_deadline()), (0, false, None));
        let answers = answers.lock();
        prop_assert_eq!(answers.len(), made, "every call is answered");
        let sent: Vec<usize> = sent.iter().map(|id| number_of[id]).collect();
        for (number, answers) in &*answers {
            prop_assert_eq!(answers.len(), 1, "once");
            let not_sent = matches!(answers[0], Err(CallError::NotSent(_)));
            prop_assert_eq!(not_sent, !sent.contains(number), "{:?}", answers[0]);
        }
    }
}
