# The way to a container, hop by hop: into its network, tunnel, workerd, gateway. The program alternates them itself.

(cd "$root" && cargo build --release --locked --quiet -p cfc-engine --example proxy)
"$cfc" setup >/dev/null 2>&1 || true
"$CARGO_TARGET_DIR/release/examples/proxy" "$rounds"
