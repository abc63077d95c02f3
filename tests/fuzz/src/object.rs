//! Objects: written by our builder, with lies told about them, with and without checksums that fit the lies; and noise.
//!
//! Promises: memory by the object's bytes; ranges lie in the body, back to back; an object whose body verifies is, built
//! again from what its footer says, the same bytes; without forged checksums a changed object does not verify.

use crate::format::{Footer, ObjectBuilder, TRAILER_BYTES, object_key, parse_object_key};
use bytes::Bytes;
use isobar_metadata::ids::{ObjectId, PartitionKey, TopicId};
use isobar_protocol::batch::{BatchHeader, crc32c};

use crate::edit::edit;
use crate::input::Input;
use crate::{peak_of, samples};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.u8();
    if mode & 3 == 3 {
        return check(input.rest(), None);
    }
    let (object, built) = build(&mut input);
    assert_eq!(parse_object_key(&object_key(built.object)), Some(built.object));
    check(&object, Some(&object));
    let footer_at = built.body_bytes as usize;
    let mut changed = object.clone();
    match mode & 3 {
        0 => {
            edit(&mut changed, 0, &mut input);
            check(&changed, Some(&object));
        }
        // The footer says something else, in good form.
        1 => {
            let mut footer = object[footer_at..object.len() - TRAILER_BYTES].to_vec();
            edit(&mut footer, 0, &mut input);
            changed.truncate(footer_at);
            let trailer = trailer(&footer, &object);
            changed.extend_from_slice(&footer);
            changed.extend_from_slice(&trailer);
            check(&changed, None);
        }
        // The trailer does.
        _ => {
            let at = changed.len() - TRAILER_BYTES;
            let mut trailer = changed.split_off(at);
            edit(&mut trailer, 0, &mut input);
            trailer.resize(TRAILER_BYTES, 0);
            trailer[16..].copy_from_slice(&object[object.len() - 8..]);
            let crc = crc32c(&trailer[..12]);
            trailer[12..16].copy_from_slice(&crc.to_le_bytes());
            changed.extend_from_slice(&trailer);
            check(&changed, None);
        }
    }
}

fn trailer(footer: &[u8], like: &[u8]) -> Vec<u8> {
    let mut trailer = like[like.len() - TRAILER_BYTES..].to_vec();
    trailer[..4].copy_from_slice(&(footer.len() as u32).to_le_bytes());
    trailer[4..8].copy_from_slice(&crc32c(footer).to_le_bytes());
    let crc = crc32c(&trailer[..12]);
    trailer[12..16].copy_from_slice(&crc.to_le_bytes());
    trailer
}

fn build(input: &mut Input<'_>) -> (Vec<u8>, Footer) {
    let object = ObjectId(input.u64());
    let mut builder = ObjectBuilder::new("cluster".to_owned(), object, i64::from(input.u32()));
    let mut next = [i64::from(input.u8()); 4];
    for _ in 0..input.below(8) {
        let at = input.below(4);
        let key = PartitionKey::new(TopicId::from([at as u8 / 2; 16]), at as i32 % 2);
        let batch = samples::built_batch(input);
        let header = BatchHeader::parse(&batch).expect("a batch");
        next[at] += i64::from(input.u8() % 2);
        builder.push(key, &batch, &header, next[at], i32::from(input.u8()) - 1);
        next[at] += i64::from(header.last_offset_delta) + 1;
    }
    let (parts, runs) = builder.finish();
    let object = parts.concat();
    let footer = Footer::of_object(&object).expect("what was built is read");
    footer.verify_body(&object).expect("and is right");
    assert_eq!(footer.runs, runs);
    (object, footer)
}

/// `genuine`: what it must be, if it verifies.
fn check(object: &[u8], genuine: Option<&[u8]>) {
    let allowed_bytes = 64 * 1024 + 64 * object.len();
    let (read, peak) = peak_of(|| Footer::of_object(object));
    assert!(peak <= allowed_bytes, "{peak} bytes for an object of {}", object.len());
    let Ok(footer) = read else { return };
    let mut at = 0;
    for run in &footer.runs {
        assert_eq!(run.range.start, at, "runs are back to back");
        assert!(!run.batches.is_empty() && run.first_offset <= run.last_offset);
        for batch in &run.batches {
            assert_eq!(batch.start, at);
            at += u64::from(batch.bytes);
        }
        assert_eq!(run.range.end, at);
    }
    assert_eq!(at, footer.body_bytes);
    assert!(at <= object.len() as u64, "a body beyond the object");
    let (verified, peak) = peak_of(|| footer.verify_body(object));
    assert!(peak < 4096, "verifying costs {peak} bytes");
    if verified.is_err() {
        return;
    }
    match genuine {
        Some(genuine) => assert_eq!(object, genuine, "damage went unseen"),
        None => rebuilt(&footer, object),
    }
}

fn rebuilt(footer: &Footer, object: &[u8]) {
    let bytes = Bytes::copy_from_slice(object);
    let mut builder = ObjectBuilder::new(footer.cluster_id.clone(), footer.object, footer.created_ms);
    for run in &footer.runs {
        for batch in &run.batches {
            let slice = bytes.slice(batch.start as usize..batch.start as usize + batch.bytes as usize);
            let header = BatchHeader::parse(&slice).expect("verified");
            builder.push(run.key, &slice, &header, batch.base_offset, header.leader_epoch);
        }
    }
    let again = builder.finish().0.concat();
    // The footer may have been laid out in another way, or cut into other runs; the body may not.
    assert_eq!(again[..footer.body_bytes as usize], object[..footer.body_bytes as usize]);
    let again = Footer::of_object(&again).expect("what was built is read");
    assert_eq!(
        again.runs.iter().map(|run| run.batches.len()).sum::<usize>(),
        footer.runs.iter().map(|run| run.batches.len()).sum()
    );
}

pub fn seeds() -> Vec<Vec<u8>> {
    let plan: Vec<u8> = [
        &[1, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 3, 5][..],
        &[1, 0, 3, 9, 0, 0, 0, 4, 1, 2, 3, 4, 0, 0, 1].repeat(5),
    ]
    .concat();
    let mut seeds: Vec<Vec<u8>> = (0..3).map(|mode| [&[mode][..], &plan, &[1, 9, 0, 4]].concat()).collect();
    let (object, _) = build(&mut Input::new(&plan));
    seeds.push([&[3][..], &object].concat());
    seeds
}
