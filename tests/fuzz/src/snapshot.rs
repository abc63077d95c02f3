//! Metadata snapshots: genuine ones with lies told about them, under checksums that fit or not; and noise.
//!
//! Promises: memory by the snapshot's bytes; damage is refused; what is accepted is a state that can be written and takes the next
//! entry. What it was written as, is restored and written as it is. (Under a checksum that fits, a list may hold a thing twice; no
//! state machine writes that, and the first writing makes one of it.)

use isobar_metadata::{Entry, StateMachine};

use crate::edit::edit;
use crate::entries;
use crate::input::Input;
use crate::peak_of;

/// Magic and version.
const HEAD_BYTES: usize = 12;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.u8();
    let machine = entries::machine(1 + usize::from(input.u8()));
    let genuine = machine.freeze().to_vec();
    match mode % 3 {
        0 => {
            let mut changed = genuine.clone();
            edit(&mut changed, 0, &mut input);
            if let Some(restored) = check(&changed) {
                assert!(changed == genuine && restored == machine, "damage went unseen");
            }
        }
        1 => {
            let mut payload = payload(&genuine);
            edit(&mut payload, 0, &mut input);
            check(&framed(&genuine[..HEAD_BYTES], &payload));
        }
        _ => drop(check(&framed(&genuine[..HEAD_BYTES], input.rest()))),
    }
}

/// The payloads of all frames; together they are one list of parts, as protobuf joins lists.
fn payload(snapshot: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = &snapshot[HEAD_BYTES..];
    while let Some((head, tail)) = rest.split_first_chunk::<8>() {
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        out.extend_from_slice(&tail[..len]);
        rest = &tail[len..];
    }
    out
}

fn framed(head: &[u8], payload: &[u8]) -> Vec<u8> {
    let crc = crc32c::crc32c(payload);
    [head, &(payload.len() as u32).to_le_bytes(), &crc.to_le_bytes(), payload].concat()
}

fn check(snapshot: &[u8]) -> Option<StateMachine> {
    // A snapshot's head says how many shards there are, up to 16,384, and each has its maps.
    let allowed_bytes = (96 << 20) + 256 * snapshot.len();
    let (restored, peak) = peak_of(|| StateMachine::restore(snapshot));
    assert!(peak <= allowed_bytes, "{peak} bytes for a snapshot of {}", snapshot.len());
    let mut restored = restored.ok()?;
    let written = restored.freeze().to_vec();
    let again = StateMachine::restore(&written).expect("what was written is restored");
    let third = StateMachine::restore(&again.freeze().to_vec()).expect("what was written is restored");
    assert!(third == again, "a snapshot lost something");
    assert_eq!(again.rolling_hash(), restored.rolling_hash());
    let answer = restored.clone();
    if let Some(next) = restored.applied_index().checked_add(1) {
        restored.apply(next, &Entry::new(0, Vec::new()));
    }
    Some(answer)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = (0..24).map(|n| vec![n % 2, n * 2, 4, 30, n, 0]).collect();
    for entries in [3, 12, 60] {
        let payload = payload(&entries::machine(entries).freeze().to_vec());
        seeds.push([&[2, 0][..], &payload].concat());
    }
    seeds
}
