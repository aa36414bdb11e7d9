//! The control API (Cloudflare's REST shapes) over records in the bucket: deployments, applications, rollouts.
