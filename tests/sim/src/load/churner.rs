//! Makes topics, fills them and deletes them: their bytes lie beside those that must stay. Not in the history.

use std::time::Duration;

use isobar_client::{ClientError, NewTopic, OutgoingRecord, Producer, ProducerConfig, TopicPartition};
use isobar_protocol::error::ErrorCode;

use super::{Load, Me};

pub(super) async fn run(mut me: Me) {
    if let Some(client) = me.connect(Load::sends).await {
        let mut turn = 0;
        while me.load.sends() {
            me.pause(400).await;
            turn += 1;
            // A name comes back, with another id; one topic stays, and retention takes its records.
            let aging = turn % 3 == 2;
            let name = if aging { "aging".to_owned() } else { format!("churn-{}", turn % 3) };
            let mut topic = NewTopic::new(&name, 2);
            if aging {
                topic.configs.push(("retention.ms".to_owned(), "1".to_owned()));
            }
            if turn % 4 != 0 {
                // Gone at once; the others stay for a day, with all that they hold.
                topic.configs.push(("isobar.undelete.window.ms".to_owned(), "0".to_owned()));
            }
            let made = client.create_topics(&[topic]).await;
            expect(&me, "create a topic", made, ErrorCode::TopicAlreadyExists);
            let config =
                ProducerConfig { delivery_timeout: Duration::from_secs(2), ..ProducerConfig::default() };
            if let Ok(producer) = Producer::new(&client, config).await {
                for n in 0..20 {
                    let value = Some(vec![b'x'; 1000].into());
                    let record = OutgoingRecord { value, ..OutgoingRecord::default() };
                    // Whatever becomes of them.
                    let _ = producer.send(&TopicPartition::new(&name, n % 2), record).await;
                }
                producer.flush().await;
            }
            if aging {
                continue;
            }
            let gone = client.delete_topics(&[&name]).await;
            expect(&me, "delete a topic", gone, ErrorCode::UnknownTopicOrPartition);
        }
    }
    me.load.sending.lock().remove(&me.number);
}

/// The answer to the first try may have been lost, so that a second finds it done.
fn expect(me: &Me, what: &str, answer: Result<Vec<Result<(), ClientError>>, ClientError>, or: ErrorCode) {
    match answer.and_then(|mut each| each.pop().unwrap_or(Ok(()))) {
        Err(error) if !error.is_retriable() && !error.is_ambiguous() && error.code() != Some(or) => {
            me.problem(what, &error);
        }
        _ => {}
    }
}
