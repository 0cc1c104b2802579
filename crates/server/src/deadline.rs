//! How long a request may take.
//!
//! A client says so in the `grpc-timeout` header. The margin is taken off, so that the
//! answer still reaches the client; at least half of the time always stays.

use std::time::Duration;

use tonic::metadata::MetadataMap;

use crate::config::ServerConfig;

/// Time for a request with these headers.
pub(crate) fn request_time(metadata: &MetadataMap, config: &ServerConfig) -> Duration {
    match grpc_timeout(metadata) {
        Some(timeout) => timeout
            .saturating_sub(config.deadline_margin)
            .max(timeout / 2),
        None => config.default_deadline,
    }
}

/// The `grpc-timeout` header: up to eight digits and a unit. A malformed one counts as
/// absent, as the gRPC specification leaves it to the server.
pub(crate) fn grpc_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let digits = text.get(..text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match text.as_bytes()[digits.len()] {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn time(header: Option<&str>) -> Duration {
        let mut metadata = MetadataMap::new();
        if let Some(header) = header {
            metadata.insert("grpc-timeout", header.parse().unwrap());
        }
        request_time(&metadata, &Config::default().server)
    }

    #[test]
    fn the_margin_comes_off_and_half_always_stays() {
        assert_eq!(time(Some("2000000u")), Duration::from_millis(1900));
        assert_eq!(time(Some("2S")), Duration::from_millis(1900));
        assert_eq!(time(Some("120m")), Duration::from_millis(60));
        assert_eq!(time(Some("1M")), Duration::from_millis(59_900));
        assert_eq!(time(Some("0m")), Duration::ZERO);
    }

    #[test]
    fn no_or_a_malformed_timeout_is_two_seconds() {
        for header in [
            None,
            Some("m"),
            Some("5"),
            Some("123456789m"),
            Some("-1m"),
            Some("5x"),
        ] {
            assert_eq!(time(header), Duration::from_secs(2), "{header:?}");
        }
    }
}
