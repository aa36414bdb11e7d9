//! HTTP in, to the right Worker; WebSocket and streaming untouched.
