//! What consensus runs on: tokio, with a source of random numbers that can be told, and blocking work that stays in
//! order where there is only one thread.
//!
//! In production random numbers come from the operating system's, and blocking work goes to tokio's blocking threads.
//! The simulation runs on one thread, with a seed: there the same code makes the same history twice.

use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use futures::FutureExt;
use openraft::impls::TokioRuntime;
use openraft::rt::deterministic_rng::DeterministicRng;
use openraft::{AsyncRuntime, OptionalSend};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;

thread_local! {
    /// State of the told source of random numbers; none: they come from the operating system's.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on the random numbers that consensus draws on this thread follow from `seed`.
#[cfg(feature = "simulation")]
pub fn seed_random_numbers(seed: u64) {
    SEED.set(Some(seed));
}

/// Another number for every caller; Weyl's sequence with the golden ratio, which a generator that it is given to mixes.
pub(crate) fn random_number() -> u64 {
    match SEED.get() {
        None => rand::random(),
        Some(seed) => {
            SEED.set(Some(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)));
            seed
        }
    }
}

/// Runs blocking work without holding up this thread's other tasks. On a runtime of one thread it is done at once and
/// in place: there the order of everything must not depend on another thread.
///
/// # Errors
/// When the work panicked or the runtime is being shut down.
pub async fn offload<T, F>(work: F) -> Result<T, tokio::task::JoinError>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => Ok(work()),
        _ => tokio::task::spawn_blocking(work).await,
    }
}

/// Lets work that is short as a rule run where it is called, which saves waking a blocking thread and being woken by it.
///
/// At most half of the runtime's threads run such work at a time, and none where there is one thread: should all of it
/// wait for the disk at once, heartbeats, pulses and clients are still served.
pub(crate) struct ShortWork(Semaphore);

impl ShortWork {
    /// For the runtime that this is called on.
    pub(crate) fn new() -> ShortWork {
        ShortWork(Semaphore::new(Handle::current().metrics().num_workers() / 2))
    }

    /// Runs `work` here when there is room and it `is_short`, else as [`offload`] does.
    ///
    /// # Errors
    /// In words, when it panicked or the runtime is being shut down.
    pub(crate) async fn run<T, F>(&self, is_short: bool, work: F) -> Result<T, String>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        match self.0.try_acquire() {
            Ok(_room) if is_short => {
                catch_unwind(AssertUnwindSafe(work)).map_err(|_| "it panicked".to_owned())
            }
            _ => offload(work).await.map_err(|error| error.to_string()),
        }
    }
}

type Seeded = DeterministicRng<TokioRuntime>;

/// The engine's runtime: tokio in all but the random numbers.
#[derive(Debug)]
pub(crate) struct Runtime(TokioRuntime);

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <Seeded as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        let seeded = Seeded::scope(random_number(), async { Seeded::thread_rng() });
        seeded.now_or_never().expect("nothing is waited for")
    }

    fn new(threads: usize) -> Self {
        Runtime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    async fn spawn_blocking<F, T>(work: F) -> Result<T, std::io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        offload(work).await.map_err(std::io::Error::other)
    }
}
