//! How a pull tells its caller how far it is.

/// Receives the progress of a pull; the command line draws bars with it.
///
/// Calls come from the thread that called [`Hub::pull`](crate::Hub::pull). Each `begin` is
/// followed by one `finish`, also when the step fails, and steps do not overlap. A total is an
/// estimate where a mirror may serve a different build of a package: the sum of `advance` may end
/// below or above it.
pub trait Progress {
    /// A step begins: `what` says which, `total_bytes` how much it moves, if that is known.
    fn begin(&mut self, what: &str, total_bytes: Option<u64>);

    /// The step has moved `bytes` more.
    fn advance(&mut self, bytes: u64);

    /// The step is over.
    fn finish(&mut self);

    /// Something that the user may want to read, on one line: which source failed, who is waited
    /// for.
    fn note(&mut self, text: &str);
}

/// Ignores all progress.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn begin(&mut self, _what: &str, _total_bytes: Option<u64>) {}
    fn advance(&mut self, _bytes: u64) {}
    fn finish(&mut self) {}
    fn note(&mut self, _text: &str) {}
}
