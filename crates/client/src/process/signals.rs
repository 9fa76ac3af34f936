//! SIGTERM and SIGINT as messages.

use std::io;
use std::thread;

use futures_channel::mpsc::UnboundedSender;

/// Blocks SIGTERM, SIGINT and SIGHUP for this thread and all that it starts; a thread waits for them and tells `stop` of the
/// first two. SIGHUP is swallowed: the client outlives the terminal from which it was mounted.
///
/// # Errors
/// What the operating system says.
#[allow(unsafe_code, reason = "there is no safe form of signal masks")]
pub fn watch(stop: UnboundedSender<()>) -> io::Result<()> {
    // SAFETY: `sigset_t` is plain data that `sigemptyset` initialises before it is used; the pointers are to locals that live
    // across the calls; the old mask is not asked for.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => set,
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    };
    thread::Builder::new().name("sublet-signals".into()).spawn(move || {
        loop {
            let mut signal = 0;
            // SAFETY: `set` was initialised above and was moved into this thread; `signal` is a local.
            let result = unsafe { libc::sigwait(&raw const set, &raw mut signal) };
            if result == 0 && signal != libc::SIGHUP && stop.unbounded_send(()).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
