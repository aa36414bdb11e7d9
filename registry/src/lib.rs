//! The OCI distribution API over a bucket.
