//! Tasks and the runtimes they run on.

use std::future::Future;
use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A running task. Dropping it detaches the task; it does not stop it.
pub struct Task {
    name: &'static str,
    handle: JoinHandle<()>,
}

impl Task {
    /// Stops the task at its next await.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// True once the task has ended, in whatever way.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Waits for the end. A panic inside the task is logged here and reported as `false`.
    pub async fn join(self) -> bool {
        match self.handle.await {
            Ok(()) => true,
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(task = self.name, "task panicked");
                }
                false
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one door to the runtime")]
pub(crate) fn spawn(name: &'static str, future: impl Future<Output = ()> + Send + 'static) -> Task {
    Task { name, handle: tokio::spawn(future) }
}

/// Spawns onto one given runtime.
#[derive(Clone)]
pub struct Spawner {
    handle: Handle,
    // Ends the thread when the last clone goes.
    _thread: Option<Arc<OwnThread>>,
}

impl Spawner {
    /// The runtime that the caller runs on.
    pub fn current() -> Self {
        Self { handle: Handle::current(), _thread: None }
    }

    pub(crate) fn on_own_thread(name: &'static str) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            runtime.block_on(stopped.notified());
            // Tasks that block must not hold up the end of the process.
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, _thread: Some(Arc::new(OwnThread { stop })) })
    }

    /// As [`crate::Host::spawn`], on this runtime.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) -> Task {
        Task { name, handle: self.handle.spawn(future) }
    }
}

struct OwnThread {
    stop: Arc<Notify>,
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}
