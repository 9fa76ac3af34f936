//! The product's own log as part of the trace.

use std::io::Write;

use tracing_subscriber::fmt::MakeWriter;

use crate::trace::Trace;

thread_local! {
    static TRACE: std::cell::RefCell<Option<Trace>> = const { std::cell::RefCell::new(None) };
}

/// Writes lines into the trace of this thread.
struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        TRACE.with_borrow(|trace| {
            if let Some(trace) = trace {
                trace.note_here(text.trim_end());
            }
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Make;

impl MakeWriter<'_> for Make {
    type Writer = Lines;

    fn make_writer(&self) -> Lines {
        Lines
    }
}

/// Ends the capture when it is dropped.
pub struct Capture(#[allow(dead_code, reason = "held for its drop")] tracing::subscriber::DefaultGuard);

impl Drop for Capture {
    fn drop(&mut self) {
        TRACE.with_borrow_mut(Option::take);
    }
}

/// What the product logs on this thread goes to the trace, until the answer is dropped.
pub fn capture(trace: &Trace) -> Capture {
    TRACE.with_borrow_mut(|place| *place = Some(trace.clone()));
    let subscriber = tracing_subscriber::fmt()
        .with_writer(Make)
        .with_max_level(tracing::Level::DEBUG)
        .without_time()
        .with_ansi(false)
        .with_target(false)
        .finish();
    Capture(tracing::subscriber::set_default(subscriber))
}
