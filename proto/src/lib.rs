//! Messages of StrataKV on the wire and on disk.
//!
//! The `.proto` files beside this crate are the definition; the build script compiles
//! them without protoc. Field numbers of the TiKV and PD packages are those that
//! published clients use. `stratapb` is StrataKV's own: entries of the raft log, state
//! records, the service between stores.
//!
//! All `bytes` fields are [`bytes::Bytes`], so that a value is not copied on its way from
//! the socket into the log.

macro_rules! package {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[allow(missing_docs, rustdoc::all, clippy::all)]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
        }
    };
}

package!(
    /// Regions, peers, stores and epochs.
    metapb
);
package!(
    /// Region errors: why a store refused a request, and what the client needs to go on.
    errorpb
);
package!(
    /// Requests and responses of the storage service.
    kvrpcpb
);
package!(
    /// The storage service itself.
    tikvpb
);
package!(
    /// The scheduler's service and messages.
    pdpb
);
package!(
    /// Raft messages, entries and hard state.
    eraftpb
);
package!(
    /// Raft messages addressed to regions, and state records of replicas.
    raft_serverpb
);
package!(
    /// Admin commands.
    raft_cmdpb
);
package!(
    /// StrataKV's own entries, state records and services.
    stratapb
);
