//! The page of metrics.

use super::descriptor::readable;
use super::error::{ConfigError, kind};
use crate::descriptors::{Descriptors, access};
use crate::metrics::is_page;
use crate::metrics::page::Options;
use crate::spec::MetricsSpec;

/// Validates the page: one that cannot shrink under its mapping.
pub fn metrics(spec: MetricsSpec, fds: &mut Descriptors) -> Result<Options, ConfigError> {
    const FIELD: &str = "metrics.page";
    let page = readable(spec.page, FIELD, fds)?;
    if !access(&page).1 {
        return Err(kind(FIELD, "open for writing"));
    }
    if !is_page(&page) {
        return Err(kind(
            FIELD,
            "a memfd of 32768 bytes, sealed against shrinking and growing \
             (F_SEAL_SHRINK, F_SEAL_GROW, fcntl(2))",
        ));
    }
    Ok(Options {
        page,
        latencies: spec.latencies,
    })
}
