//! Starting threads inside a host's process: under names that tell whose they are, and with signals left to the
//! host. Every thread of the library is started here or, under the model checker, through [`with_signals_blocked`].

use std::io;
use std::thread::{self, JoinHandle};

use libc::{SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP, c_int, sigset_t};

/// What the names of the library's threads start with; the C ABI's panic hook knows them by it.
pub(crate) const NAME_PREFIX: &str = "ifl-";

/// Signals that a thread gets for what it did itself. Blocking them would take them from the host's handlers.
const SYNCHRONOUS: [c_int; 6] = [SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS];

/// The name of the thread that is called `name` in the library.
pub(crate) fn full_name(name: &str) -> String {
    format!("{NAME_PREFIX}{name}")
}

/// Starts `run` on a thread.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    with_signals_blocked(|| thread::Builder::new().name(full_name(name)).spawn(run))
}

/// Runs `work` on a thread with a stack of its own and waits for it. The inner result is the thread's.
pub(crate) fn run_on_stack<T: Send>(
    name: &str,
    stack_bytes: usize,
    work: impl FnOnce() -> T + Send,
) -> io::Result<thread::Result<T>> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name(full_name(name)).stack_size(stack_bytes);
        Ok(with_signals_blocked(|| builder.spawn_scoped(scope, work))?.join())
    })
}

/// A pool of `num_threads` threads for parallel iterators.
pub(crate) fn pool(name: &str, num_threads: usize) -> Result<rayon::ThreadPool, rayon::ThreadPoolBuildError> {
    let name = full_name(name);
    let builder = rayon::ThreadPoolBuilder::new()
        .num_threads(num_threads)
        .thread_name(move |thread_index| format!("{name}-{thread_index}"));
    with_signals_blocked(|| builder.build())
}

/// Runs `start` with every signal blocked that is sent to the process as a whole, and the threads that it starts keep
/// them blocked. So a host that blocks a signal to wait for it gets it, although other threads were there before, and
/// its handlers run on its own threads.
pub(crate) fn with_signals_blocked<T>(start: impl FnOnce() -> T) -> T {
    let _unblock_later = BlockedSignals::block();
    start()
}

/// Signals are blocked on this thread while it lives.
struct BlockedSignals {
    before: sigset_t,
}

impl BlockedSignals {
    fn block() -> Self {
        // SAFETY: a set is an array of integers, and the calls get sets of this stack frame. They fail for numbers
        // that are no signal alone.
        unsafe {
            let mut blocked: sigset_t = std::mem::zeroed();
            let mut before: sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut blocked);
            for signal in SYNCHRONOUS {
                libc::sigdelset(&raw mut blocked, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, &raw mut before);
            Self { before }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set is the one that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name of the calling thread, and the signals that it blocks, as the kernel knows them.
    fn this_thread() -> (String, u64) {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        (field("Name:"), u64::from_str_radix(&field("SigBlk:"), 16).unwrap())
    }

    #[test]
    fn threads_have_our_names_and_leave_signals_to_the_host() {
        let (_, before) = this_thread();
        let (sender, seen) = std::sync::mpsc::channel();
        spawn("one", move || sender.send(this_thread()).unwrap()).unwrap().join().unwrap();
        let threads = [
            ("ifl-one", seen.recv().unwrap()),
            ("ifl-stack", run_on_stack("stack", 1 << 20, this_thread).unwrap().unwrap()),
            ("ifl-pool-0", pool("pool", 1).unwrap().install(this_thread)),
        ];
        let bit = |signal: c_int| 1u64 << (signal - 1);
        for (expected, (name, blocked)) in threads {
            assert_eq!(name, expected);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGCHLD, libc::SIGPROF] {
                assert!(blocked & bit(signal) != 0, "{name} takes signal {signal}: {blocked:#x}");
            }
            for signal in SYNCHRONOUS {
                assert!(blocked & bit(signal) == 0, "{name} blocks signal {signal}: {blocked:#x}");
            }
        }
        assert_eq!(this_thread().1, before, "the caller's signals are as they were");
    }
}
