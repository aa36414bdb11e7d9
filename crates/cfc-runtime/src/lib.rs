//! Instances: carries out the scheduler's decisions with store and sandbox; lifecycle, logs, ingress.
