//! Did you mean.

/// The candidate that is fewest typos away, if it is near enough to be meant.
pub(super) fn nearest(name: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    let most = (name.len() / 3).clamp(1, 4);
    let mut best: Option<(usize, String)> = None;
    for candidate in candidates {
        let distance = typos(name, &candidate);
        if distance <= most && best.as_ref().is_none_or(|(least, _)| distance < *least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Letters added, left out, changed, or swapped with their neighbour (optimal string alignment).
fn typos(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let (mut before, mut last) = (vec![0; b.len() + 1], (0..=b.len()).collect::<Vec<_>>());
    for i in 0..a.len() {
        let mut row = vec![i + 1; b.len() + 1];
        for j in 0..b.len() {
            let change = last[j] + usize::from(!a[i].eq_ignore_ascii_case(&b[j]));
            row[j + 1] = change.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                row[j + 1] = row[j + 1].min(before[j - 1] + 1);
            }
        }
        (before, last) = (last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_are_counted() {
        for (a, b, n) in [
            ("data", "data", 0),
            ("dtaa", "data", 1),
            ("date", "data", 1),
            ("dat", "data", 1),
            ("", "abc", 3),
        ] {
            assert_eq!(typos(a, b), n, "{a} {b}");
        }
        let names = || ["wal.max_disk", "wal.memory", "cache.memory"].into_iter().map(str::to_owned);
        assert_eq!(nearest("wal.maxdisk", names()).as_deref(), Some("wal.max_disk"));
        assert_eq!(nearest("cach.memory", names()).as_deref(), Some("cache.memory"));
        assert_eq!(nearest("brightness", names()), None);
    }
}
