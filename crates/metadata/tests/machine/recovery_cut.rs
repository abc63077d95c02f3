use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::*;

const ONE: StoreId = StoreId(1);

fn advance(rig: &mut Rig, through: u64, cut: u64) -> i32 {
    match rig.leader(Command::ArchiveAdvanced(ArchiveAdvanced { through, cut })) {
        CommandResult::Done(outcome) => outcome.error_code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_cut_lies_before_the_oldest_commit_that_is_not_stored() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    assert_eq!(rig.machine.view().recovery_cut(), rig.index);
    rig.commit(broker, (topic, 0), vec![plain(0, 5)]);
    let first = rig.index;
    rig.commit(broker, (topic, 0), vec![plain(0, 5)]);
    let second = rig.index;
    assert_eq!(rig.machine.view().recovery_cut(), first - 1);
    let object = rig.objects(broker.0, 2);
    rig.upload(broker.0, object, ONE, vec![run_of(topic, 0, 0, 4)]);
    assert_eq!(rig.machine.view().recovery_cut(), second - 1);
    rig.restart();
    assert_eq!(rig.machine.view().recovery_cut(), second - 1);
    rig.log_start(broker.0, topic, 0, 10);
    assert_eq!(rig.machine.view().recovery_cut(), rig.index, "what has left the log holds nothing up");
}

#[test]
fn an_archive_that_reaches_too_far_does_not_count() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    rig.commit(broker, (topic, 0), vec![plain(0, 5)]);
    let cut = rig.machine.view().recovery_cut();
    let through = rig.index;
    for (through, cut) in [(through + 1, cut), (cut - 1, cut), (through, cut + 1)] {
        assert_eq!(advance(&mut rig, through, cut), codes::INVALID_REQUEST, "{through} {cut}");
    }
    assert_eq!(rig.machine.view().archived_cut(), 0);
    assert_eq!(advance(&mut rig, through, cut), 0);
    assert_eq!(advance(&mut rig, through - 1, cut - 2), 0, "late: harmless");
    let image = rig.machine.view();
    assert_eq!((image.archived_through(), image.archived_cut()), (through, cut));
    rig.restart();
    assert_eq!(rig.machine.view().archived_cut(), cut);
}
