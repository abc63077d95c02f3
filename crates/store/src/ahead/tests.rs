use proptest::prelude::*;

use super::*;

fn limits(end: u32, room: u32) -> Limits {
    Limits { end, request_max: 8, room }
}

/// Requests of a reader that touches these blocks.
fn requests(blocks: impl IntoIterator<Item = u32>, limits: Limits) -> Vec<(u32, u32)> {
    let mut ahead = Ahead::default();
    blocks
        .into_iter()
        .map(|block| ahead.touch(block, limits))
        .filter(|request| !request.is_empty())
        .map(|request| (request.start, request.end))
        .collect()
}

#[test]
fn grows_while_the_reader_moves_on_and_ends_with_the_run() {
    let seen = requests(0..40, limits(40, 64));
    assert_eq!(seen, [(0, 1), (1, 3), (3, 7), (7, 15), (15, 23), (23, 31), (31, 40)]);
}

#[test]
fn a_single_read_costs_one_block() {
    assert_eq!(requests([17], limits(1000, 64)), [(17, 18)]);
    assert_eq!(requests([17, 17, 17], limits(1000, 64)), [(17, 18)]);
}

#[test]
fn without_room_a_reader_gets_long_requests_but_none_ahead() {
    let mut ahead = Ahead::default();
    for block in 0..100 {
        let request = ahead.touch(block, limits(100, 0));
        assert!(request.is_empty() || request.start == block, "{request:?} while at {block}");
    }
    let requests = requests(0..100, limits(100, 0));
    assert!(requests.len() <= 16, "{requests:?}");
}

#[test]
fn goes_on_at_its_pace_in_the_next_object() {
    let mut ahead = Ahead::default();
    for block in 0..20 {
        ahead.touch(block, limits(20, 64));
    }
    assert_eq!(ahead.elsewhere().touch(3, limits(100, 64)), 3..11);
}

#[test]
fn a_short_rest_comes_along() {
    let mut ahead = Ahead { window: 8, next: 0, trigger: 0 };
    assert_eq!(ahead.touch(0, limits(12, 64)), 0..12);
    let mut ahead = Ahead { window: 8, next: 0, trigger: 0 };
    assert_eq!(ahead.touch(0, limits(13, 64)), 0..8);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever the reader does and however the room changes: what it needs was requested before or is requested now,
    /// requests stay within the run and the bound, and one who reads on asks for every block once.
    #[test]
    fn never_too_much_and_never_too_little(
        steps in proptest::collection::vec((0..3_u32, 0..40_u32), 1..80), end in 1..200_u32, request_max in 1..12_u32,
    ) {
        let mut ahead = Ahead::default();
        let mut requested = std::collections::BTreeSet::new();
        let mut block = 0;
        for (step, room) in steps {
            block += step;
            if block >= end {
                break;
            }
            let request = ahead.touch(block, Limits { end, request_max, room });
            prop_assert!(request.end <= end);
            prop_assert!(request.len() as u32 <= request_max + request_max / 2);
            for asked in request.clone() {
                prop_assert!(requested.insert(asked), "{} twice", asked);
            }
            prop_assert!(requested.contains(&block), "{} was never requested", block);
            if request.start > block {
                prop_assert!(request.len() as u32 <= room / 2);
            }
        }
    }
}
