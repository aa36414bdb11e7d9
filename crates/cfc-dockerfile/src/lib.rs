//! Dockerfile and `.dockerignore` text into a spanned tree plus all its problems.
