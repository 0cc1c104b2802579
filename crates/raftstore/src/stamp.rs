//! Limits that replicas must agree on.
//!
//! Apply may look at nothing that differs between stores, and configuration may. The leader
//! that proposes writes the limits in force there into the command; every replica judges by
//! what the command says.

use strata_proto::stratapb::{DataCommand, data_command::Body};

use crate::options::StoreOptions;

/// Most bytes that [`stamp_limits`] adds to a command: two fields of a byte and a varint,
/// and two bytes more for each of the two lengths around them.
const STAMP_BYTES_MAX: usize = 2 * (1 + 10) + 2 * 2;

/// Writes the leader's limits into commands that are about to be proposed.
pub(crate) fn stamp_limits(commands: &mut [DataCommand], options: &StoreOptions) {
    for command in commands {
        match &mut command.body {
            Some(Body::OpenSession(open)) => {
                let ttl_ms = options.session_ttl.as_millis();
                open.ttl_ms = u64::try_from(ttl_ms).unwrap_or(u64::MAX);
                open.max_sessions = options.max_sessions_per_region;
            }
            Some(Body::Append(append)) => {
                append.max_value_bytes = options.max_entry_bytes as u64;
            }
            Some(
                Body::Write(_) | Body::DeleteRange(_) | Body::CompareAndSwap(_) | Body::System(_),
            )
            | None => {}
        }
    }
}

/// Room to be left for what [`stamp_limits`] adds.
pub(crate) fn stamp_bytes(command: &DataCommand) -> usize {
    match command.body {
        Some(Body::OpenSession(_) | Body::Append(_)) => STAMP_BYTES_MAX,
        Some(Body::Write(_) | Body::DeleteRange(_) | Body::CompareAndSwap(_) | Body::System(_))
        | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use strata_proto::stratapb::{AppendCommand, OpenSessionCommand};

    use super::*;

    #[test]
    fn stamps_fit_into_the_room_that_is_left_for_them() {
        let options = StoreOptions {
            session_ttl: std::time::Duration::MAX,
            max_sessions_per_region: u32::MAX,
            max_entry_bytes: usize::MAX,
            ..StoreOptions::default()
        };
        let long = AppendCommand {
            value: vec![0; 127].into(),
            ..AppendCommand::default()
        };
        for body in [
            Body::OpenSession(OpenSessionCommand::default()),
            Body::Append(AppendCommand::default()),
            Body::Append(long),
        ] {
            let mut command = DataCommand {
                session: None,
                body: Some(body),
            };
            let before = command.encoded_len();
            let room = stamp_bytes(&command);
            stamp_limits(std::slice::from_mut(&mut command), &options);
            assert!(command.encoded_len() > before, "{command:?}");
            assert!(command.encoded_len() <= before + room, "{command:?}");
        }
    }
}
