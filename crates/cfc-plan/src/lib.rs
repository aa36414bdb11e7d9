//! A Dockerfile lowered to a content-addressed graph of operations with cache keys; defines the `Builder` seam.
