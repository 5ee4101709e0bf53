//! What the gateway tells about itself: certificates, configuration, metrics, readiness.

#![forbid(unsafe_code)]
