//! A complete set-up to try the gateway with: throwaway CA, httpbin-like backend, resources.

#![forbid(unsafe_code)]
