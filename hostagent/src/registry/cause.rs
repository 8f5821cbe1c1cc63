//! What lies behind an error of the HTTP client.

use std::error::Error;
use std::io;

use hickory_resolver::net::NetError;

/// Whether a request failed because the server's certificate was not accepted.
pub(super) fn is_certificate(error: &(dyn Error + 'static)) -> bool {
    let found = find::<rustls::Error>(error);
    matches!(found, Some(rustls::Error::InvalidCertificate(_)))
}

/// Whether a request failed because there is no host of that name.
pub(super) fn is_unknown_host(error: &(dyn Error + 'static)) -> bool {
    find::<NetError>(error).is_some_and(NetError::is_nx_domain)
}

/// The first error of a kind among those that caused another.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // An I/O error hides what it wraps from `source`.
        let wrapped = error.downcast_ref().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_found_inside_an_io_error() {
        let inner = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let wrapped = io::Error::other(io::Error::other(inner));
        assert!(is_certificate(&wrapped));
        assert!(!is_unknown_host(&wrapped));
        let other = io::Error::other(rustls::Error::DecryptError);
        assert!(!is_certificate(&other));
    }
}
