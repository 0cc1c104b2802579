//! Steps production code so that its panics end a store and not the run.
//!
//! A broken invariant panics, and the process of that store would end. Here the store ends
//! ([`Cluster::store_failed`](crate::Cluster)), and the run goes on to its report with seed
//! and events. While guarded code runs, the panic's message and place are kept for that
//! report and not printed.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

thread_local! {
    /// How deep this thread is in guarded code, and the last panic there.
    static GUARDED: RefCell<(usize, Option<String>)> = const { RefCell::new((0, None)) };
}

static HOOK: Once = Once::new();

/// Runs `act`.
///
/// # Errors
/// Message and place of its panic.
pub(crate) fn guarded<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(install_hook);
    GUARDED.with_borrow_mut(|state| state.0 += 1);
    // What a panic has left half done is given up with the store.
    let result = catch_unwind(AssertUnwindSafe(act));
    let message = GUARDED.with_borrow_mut(|state| {
        state.0 -= 1;
        state.1.take()
    });
    result.map_err(|_| message.unwrap_or_else(|| "a panic without a message".to_owned()))
}

/// Lets panics of guarded code be noted; all others go where they went before.
fn install_hook() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let noted = GUARDED.with_borrow_mut(|state| {
            if state.0 > 0 {
                state.1 = Some(describe(info));
            }
            state.0 > 0
        });
        if !noted {
            before(info);
        }
    }));
}

fn describe(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned());
    match info.location() {
        Some(at) => format!("{text} ({}:{})", at.file(), at.line()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_with_message_and_place() {
        assert_eq!(guarded(|| 3), Ok(3));
        let error = guarded(|| panic!("term {} -> {}", 4, 3)).map(|()| 0);
        let error = error.unwrap_err();
        assert!(error.starts_with("term 4 -> 3 ("), "{error}");
        assert!(error.contains("guard.rs:"), "{error}");
    }
}
