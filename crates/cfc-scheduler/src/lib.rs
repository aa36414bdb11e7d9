//! Decides, as a pure function of events and the time, which instances may start, wait, stop or be replaced.
