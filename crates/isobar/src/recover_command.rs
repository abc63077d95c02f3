//! `isobar recover`: says what a bucket holds, and with --yes makes a node of it.

use std::io::Write as _;

use isobar_host::Host;
use isobar_node::node::Store;
use isobar_node::{Found, RecoverOptions, find, recover};

use crate::Failure;
use crate::cli::RecoverArgs;

/// Partitions that the report shows before it only counts.
const SHOWN: usize = 40;

pub(crate) async fn run(args: RecoverArgs) -> Result<(), Failure> {
    let host = Host::real();
    let store = args.store.clone().map_or(Store::Inside, Store::Url);
    let mut options = RecoverOptions::new(&args.data, store);
    options.check_every_object = !args.quick;
    options.segment_bytes = args.segment_bytes;
    let store_flag = args.store.as_ref().map(|url| format!(" --store {url}")).unwrap_or_default();
    if !args.yes {
        let found = find(&host, &options).await?;
        report(&found)?;
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "\nNothing was changed. To make this node, and to stop every older one of this cluster for good:\n  isobar \
             recover --data {}{store_flag} --yes",
            args.data.display()
        )?;
        return Ok(());
    }
    let recovered = recover(&host, &options).await?;
    report(&recovered.found)?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\nRecovered as incarnation {} into {}. Start it:\n  isobar dev --data {}{store_flag}",
        recovered.incarnation,
        args.data.display(),
        args.data.display()
    )?;
    Ok(())
}

fn report(found: &Found) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let seconds = |ms: i64| format!("{}.{:03} s", ms / 1000, ms % 1000);
    writeln!(out, "Cluster              {}", found.cluster_id)?;
    writeln!(
        out,
        "Archive              of incarnation {} (newest claim: {})",
        found.incarnation, found.claimed
    )?;
    writeln!(out, "Newest entry         {} of {}", found.end, time(found.end_ms))?;
    writeln!(out, "Recovered to         {} of {}, the cut", found.cut, time(found.cut_ms))?;
    writeln!(
        out,
        "What it lacks        the last {} of what is archived, and whatever was acknowledged after the newest entry",
        seconds(found.lacks_ms())
    )?;
    writeln!(out, "Objects              {}, looked for: {}, all there", found.objects, found.checked)?;
    writeln!(out, "Consumer groups      {}", found.groups)?;
    for note in &found.notes {
        writeln!(out, "Note                 {note}")?;
    }
    for topic in &found.topics_lost {
        writeln!(out, "Topic lost           {topic} (made after the cut)")?;
    }
    let width = found.partitions.keys().map(|(topic, _)| topic.chars().count()).max().unwrap_or(0).max(5);
    writeln!(out, "\n{:width$}  PARTITION      LOG START        LOG END  CUT OFF", "TOPIC")?;
    for ((topic, partition), at) in found.partitions.iter().take(SHOWN) {
        writeln!(
            out,
            "{topic:width$}  {partition:>9}  {:>13}  {:>13}  {:>7}",
            at.log_start, at.log_end, at.cut_off
        )?;
    }
    let cut_off: i64 = found.partitions.values().map(|at| at.cut_off).sum();
    let more = found.partitions.len().saturating_sub(SHOWN);
    if more > 0 {
        writeln!(out, "… and {more} more")?;
    }
    writeln!(out, "{} partitions, {cut_off} offsets cut off", found.partitions.len())?;
    Ok(())
}

/// Days since 1970 as a date: Howard Hinnant's `civil_from_days`.
fn time(ms: i64) -> String {
    let (days, rest) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000) / 1000);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(time(1_795_291_199_999), "2026-11-21T19:59:59Z");
        assert_eq!(time(-1), "1969-12-31T23:59:59Z");
    }
}
