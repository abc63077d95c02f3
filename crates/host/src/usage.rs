//! What this process uses, from procfs (proc(5)).

/// Resident bytes and CPU seconds (user and system); zeros where procfs is missing.
#[expect(clippy::disallowed_methods, reason = "procfs is no disk")]
pub(crate) fn of_this_process() -> (u64, f64) {
    let resident = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| {
        let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    });
    let cpu = std::fs::read_to_string("/proc/self/stat").ok().and_then(|text| {
        // The second field is the command's name in brackets and may hold spaces.
        let rest = text.rsplit_once(')')?.1;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    });
    (resident.unwrap_or(0), cpu.unwrap_or(0.0))
}
