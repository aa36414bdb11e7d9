//! workerd processes: bundle, configuration, start, reload.
