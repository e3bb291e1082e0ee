//! Work that takes processor time only when nothing else wants it: mail comes first.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
};

use tokio::sync::oneshot;

/// The least urgent that there is. nice(2).
#[cfg(target_os = "linux")]
const LEAST: i32 = 19;

/// Begins at once, in a thread of its own; what is answered is what it comes to. It goes on when that is dropped.
///
/// # Panics
/// When no thread can be made, as the runtime does for its own, and with what the work panicked with.
pub(crate) fn background<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = T> + Send {
    let (tell, done) = oneshot::channel::<Result<T, Box<dyn Any + Send>>>();
    let run = move || {
        yield_to_others();
        // Nobody may wait for it any more.
        let _ = tell.send(catch_unwind(AssertUnwindSafe(work)));
    };
    thread::Builder::new().name("backup".to_owned()).spawn(run).expect("a thread can be made");
    async {
        match done.await.expect("the thread answers however it ends") {
            Ok(done) => done,
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// On Linux, alone, each thread has a nice value of its own (setpriority(2)); it never gets back what it gave up.
#[cfg(target_os = "linux")]
fn yield_to_others() {
    if let Err(error) = rustix::process::setpriority_process(None, LEAST) {
        tracing::debug!(%error, "a backup goes on with the priority of mail");
    }
}

#[cfg(not(target_os = "linux"))]
fn yield_to_others() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_begins_at_once_and_answers() {
        let (begun, seen) = oneshot::channel();
        let answer = background(move || {
            begun.send(()).unwrap();
            7
        });
        seen.await.unwrap();
        assert_eq!(answer.await, 7);
    }

    #[tokio::test]
    #[should_panic(expected = "this went wrong")]
    async fn its_panic_is_told() {
        background(|| panic!("this went wrong")).await;
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn only_its_own_thread_gives_way() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        assert_eq!(background(nice).await, LEAST);
        assert_eq!(nice(), before);
    }
}
