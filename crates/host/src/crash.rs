//! Named points where tests end the process, and promises that tests break on purpose.

#[cfg(feature = "crash-points")]
mod on {
    use std::collections::BTreeMap;

    use parking_lot::Mutex;

    /// Counts passings; ends the process at the one named by `ISOBAR_CRASH_POINT=name:N` (N from 1).
    #[derive(Default)]
    pub(crate) struct CrashPoints {
        target: Option<(String, u64)>,
        passed: Mutex<BTreeMap<&'static str, u64>>,
    }

    impl CrashPoints {
        pub(crate) fn from_env() -> Self {
            let target = std::env::var("ISOBAR_CRASH_POINT").ok().and_then(|text| {
                let (name, count) = text.rsplit_once(':')?;
                Some((name.to_owned(), count.parse().ok()?))
            });
            Self { target, passed: Mutex::default() }
        }

        pub(crate) fn pass(&self, name: &'static str) {
            let Some((target, at)) = &self.target else { return };
            if target != name {
                return;
            }
            let mut passed = self.passed.lock();
            let count = passed.entry(name).or_default();
            *count += 1;
            if *count == *at {
                // SIGKILL, as the kernel would: no destructor, no flush, no handler runs.
                let _ =
                    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            }
        }
    }
}

#[cfg(not(feature = "crash-points"))]
mod on {
    #[derive(Default)]
    pub(crate) struct CrashPoints;

    impl CrashPoints {
        pub(crate) fn from_env() -> Self {
            Self
        }

        #[inline(always)]
        pub(crate) fn pass(&self, _name: &'static str) {}
    }
}

pub(crate) use on::CrashPoints;

#[cfg(feature = "sabotage")]
pub(crate) fn sabotaged(name: &str) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("ISOBAR_SABOTAGE").ok()).as_deref() == Some(name)
}

/// Long beside a sync, short beside a test.
#[cfg(feature = "sabotage")]
const LAG: std::time::Duration = std::time::Duration::from_millis(30);

#[cfg(feature = "sabotage")]
pub(crate) fn lag() {
    #[expect(clippy::disallowed_methods, reason = "a broken promise has no event to wait for")]
    std::thread::sleep(LAG);
}

#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub(crate) fn lag() {}

#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub(crate) fn sabotaged(_name: &str) -> bool {
    false
}
