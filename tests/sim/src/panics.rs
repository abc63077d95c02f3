//! Panics of simulated tasks: tokio catches them, so that without this they would go unseen.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    static SEEN: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// From now on panics of this thread are kept instead of printed, until [`end`].
pub(crate) fn begin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let kept = SEEN.with(|seen| {
                let Some(seen) = &mut *seen.borrow_mut() else { return false };
                let text = info.payload_as_str().unwrap_or("(no text)").to_owned();
                let at = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
                seen.push(format!("panic at {at}: {text}"));
                true
            });
            if !kept {
                usual(info);
            }
        }));
    });
    SEEN.with(|seen| *seen.borrow_mut() = Some(Vec::new()));
}

/// The panics since [`begin`].
pub(crate) fn end() -> Vec<String> {
    SEEN.with(|seen| seen.borrow_mut().take()).unwrap_or_default()
}
