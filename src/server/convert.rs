//! Runs the conversion of tensors between wire and memory where it does not delay others: a long prompt is a hundred
//! megabytes to unpack, and an asynchronous thread that is busy with it answers nobody.

use super::error::RequestError;

/// Messages up to this many bytes are converted at once: that takes less time than handing them to another thread.
const INLINE_BYTES: usize = 64 * 1024;

/// The result of `work`, which converts `n_bytes` bytes.
///
/// # Errors
/// Those of `work`; [`RequestError::Crashed`] if it panics on the other thread.
pub(crate) async fn convert<T, F>(n_bytes: usize, work: F) -> Result<T, RequestError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, RequestError> + Send + 'static,
{
    if n_bytes <= INLINE_BYTES {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(RequestError::Crashed))
}
