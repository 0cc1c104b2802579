//! gRPC and HTTP services, transport between stores, configuration.
