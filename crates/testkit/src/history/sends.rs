//! Every record that was handed to a producer, and what its client was told of it.

use std::collections::HashMap;

use super::log::MAX_SENDS;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Pending,
    Acked,
    Failed,
    Unknown,
}

pub(super) struct Send {
    pub(super) id: u64,
    pub(super) sum: u32,
    pub(super) producer: u32,
    pub(super) partition: u32,
    pub(super) fate: Fate,
    /// This record was the so-manieth to be answered.
    pub(super) answered: Option<u32>,
    /// Met already by the walk in offset order.
    pub(super) met: bool,
    /// The offset that the acknowledgement named.
    pub(super) acked_at: Option<i64>,
    /// The offset at which it was read first.
    pub(super) read_at: Option<i64>,
}

/// In the order of sending, so that of one producer the lower index was sent first.
#[derive(Default)]
pub(super) struct Sends {
    list: Vec<Send>,
    answers: u32,
    // Looked up by id only; its order reaches nothing.
    index: HashMap<u64, u32>,
}

impl Sends {
    pub(super) fn add(&mut self, id: u64, sum: u32, producer: u32, partition: u32) -> Result<(), String> {
        if self.list.len() >= MAX_SENDS {
            return Err(format!("more than {MAX_SENDS} records"));
        }
        let index = self.list.len() as u32;
        if self.index.insert(id, index).is_some() {
            return Err(format!("record {id} is sent twice"));
        }
        self.list.push(Send {
            id,
            sum,
            producer,
            partition,
            fate: Fate::Pending,
            answered: None,
            met: false,
            acked_at: None,
            read_at: None,
        });
        Ok(())
    }

    pub(super) fn find(&self, id: u64) -> Option<u32> {
        self.index.get(&id).copied()
    }

    /// The send that is answered, once.
    pub(super) fn answer(&mut self, id: u64, fate: Fate) -> Result<u32, String> {
        let index = self.find(id).ok_or_else(|| format!("record {id} is answered but was not sent"))?;
        let send = &mut self.list[index as usize];
        if send.fate != Fate::Pending {
            return Err(format!("record {id} is answered twice: {:?}, then {fate:?}", send.fate));
        }
        send.fate = fate;
        send.answered = Some(self.answers);
        self.answers += 1;
        Ok(index)
    }

    /// Whether this record, which comes after some that its producer sent later, had been given up as unknown before any of
    /// them was answered. `newest` is the last sent of those. Call it of producers that are not idempotent.
    pub(super) fn was_given_up_first(&self, index: u32, newest: u32) -> bool {
        let of = self.get(index);
        let later = &self.list[index as usize + 1..=newest as usize];
        let mut met =
            later.iter().filter(|s| s.met && s.producer == of.producer && s.partition == of.partition);
        of.fate == Fate::Unknown && met.all(|s| s.answered.is_none_or(|at| Some(at) > of.answered))
    }

    pub(super) fn get(&self, index: u32) -> &Send {
        &self.list[index as usize]
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Send {
        &mut self.list[index as usize]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Send)> {
        self.list.iter().enumerate().map(|(index, send)| (index as u32, send))
    }
}
