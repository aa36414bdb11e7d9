# Goals, as parts of BuildKit's unless said: nothing cached 0.4 of its time and 0.35 of its CPU, in zstd 0.3 of its CPU;
# everything cached 0.05 of buildah's time and below a second; one file changed 0.3 of its time.
# COPY of a large context: nothing cached, everything cached, one file changed; beside the BuildKit in docker.io with a push
# (which is when Docker compresses) and buildah. CFC_BENCH_TREE_MIB and CFC_BENCH_TREE_FILES: how large (1024, 40000).

tree_mib=${CFC_BENCH_TREE_MIB:-1024} tree_files=${CFC_BENCH_TREE_FILES:-40000}
mkdir -p "$work/copy/context/tree"
cc -O2 -o "$work/copy/make-tree" "$root/scripts/bench.d/copy/tree.c"
"$work/copy/make-tree" "$work/copy/context/tree" "$tree_files" "$tree_mib"
printf 'FROM scratch\nCOPY . /\n' >"$work/copy/context/Dockerfile"
context=$work/copy/context
copy_rounds=$((rounds < 5 ? rounds : 5))
layout() { rm -rf "$work/copy/layout"; "$cfc" build "$context" -t bench/copy:1 --oci-layout "$work/copy/layout" "$@"; }
layer_size() { # layout
  local manifest config
  manifest=$(jq -r '.manifests[0].digest' "$1/index.json" | cut -d: -f2)
  jq '[.layers[].size] | add' "$1/blobs/sha256/$manifest"
}
registry_port=
if [ $have_docker = yes ] && command -v docker-registry >/dev/null; then
  registry_port=28090
  printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: 127.0.0.1:%s}\n' "$work/copy/registry" $registry_port >"$work/copy/registry.yml"
  docker-registry serve "$work/copy/registry.yml" >"$work/copy/registry.log" 2>&1 &
  pids+=($!)
fi
docker_build() { DOCKER_BUILDKIT=1 "$docker_cli" -H "$docker_host" build -q "$@" -t "127.0.0.1:$registry_port/bench/copy:1" "$context"; }
# Without what an earlier push left, so that each one compresses and uploads.
docker_push() { "$docker_cli" -H "$docker_host" push -q "127.0.0.1:$registry_port/bench/copy:1"; }
docker_build_push() { docker_build "$@" && docker_push; }

for _ in $(seq "$copy_rounds"); do
  measure copy-gzip layout --no-cache
  measure copy-zstd layout --no-cache --compression zstd
done
zstd_size=$(layer_size "$work/copy/layout")
layout >/dev/null 2>&1
gzip_size=$(layer_size "$work/copy/layout")
for round in $(seq "$copy_rounds"); do
  measure copy-cached layout
  echo "$round" >>"$context/tree/000/file-1"
  measure copy-changed layout
done
cc -O2 -o "$work/copy/peak" "$root/scripts/bench.d/copy/peak.c"
row "$tree_mib MiB, $tree_files files, to gzip: cfc build" copy-gzip
row "to zstd: cfc build" copy-zstd
row "everything cached: cfc build" copy-cached
row "one file changed: cfc build" copy-changed
peak_kib=$("$work/copy/peak" "$cfc" build "$context" -t bench/copy:1 --no-cache)
reference=$(tar -C "$context" --exclude=Dockerfile -cf - . | gzip -6 | wc -c)
if [ -n "$registry_port" ]; then
  docker_build >/dev/null 2>&1 || true # the context is sent once and then synced
  for round in $(seq "$copy_rounds"); do
    rm -rf "$work/copy/registry"; mkdir -p "$work/copy/registry"
    measure_with_daemon copy-docker docker_build_push --no-cache
    docker_size=$(curl -s -H 'Accept: application/vnd.docker.distribution.manifest.v2+json' "http://127.0.0.1:$registry_port/v2/bench/copy/manifests/1" | jq '[.layers[].size] | add')
    measure_with_daemon copy-docker-cached docker_build
    echo "$round" >>"$context/tree/000/file-1"
    measure_with_daemon copy-docker-changed docker_build
  done
  echo "BuildKit in docker.io, with push where nothing is cached:"
  row "  nothing cached, beside gzip" copy-docker copy-gzip
  row "  nothing cached, beside zstd" copy-docker copy-zstd
  row "  everything cached" copy-docker-cached copy-cached
  row "  one file changed" copy-docker-changed copy-changed
fi
if command -v buildah >/dev/null; then
  export STORAGE_DRIVER=overlay
  buildah_cmd() { buildah --root "$work/copy/buildah" --runroot "$work/copy/buildah-run" "$@"; }
  buildah_copy() { buildah_cmd build --isolation chroot --layers "$@" -t bench/copy:1 "$context" && buildah_cmd push -q bench/copy:1 "oci:$work/copy/buildah-layout:1"; }
  for round in $(seq $((copy_rounds < 3 ? copy_rounds : 3))); do
    rm -rf "$work/copy/buildah-layout"
    measure copy-buildah buildah_copy --no-cache
    buildah_size=$(layer_size "$work/copy/buildah-layout")
    measure copy-buildah-cached buildah_copy
    echo "$round" >>"$context/tree/000/file-1"
    measure copy-buildah-changed buildah_copy
  done
  umount "$work/copy/buildah/overlay" 2>/dev/null || true
  echo "buildah, with push to an OCI layout:"
  row "  nothing cached, beside gzip" copy-buildah copy-gzip
  row "  everything cached" copy-buildah-cached copy-cached
  row "  one file changed" copy-buildah-changed copy-changed
fi
awk -v docker="${docker_size:-0}" -v buildah="${buildah_size:-0}" -v gzip="$gzip_size" -v zstd="$zstd_size" -v reference="$reference" 'BEGIN { printf "the layer: %.1f MiB in gzip (%.3f of gzip -6, goal 1.08), %.1f MiB in zstd; of BuildKit %.1f MiB, of buildah %.1f MiB\n", gzip / 1048576, gzip / reference, zstd / 1048576, docker / 1048576, buildah / 1048576 }'
awk -v peak="$peak_kib" 'BEGIN { printf "peak memory: %.0f MiB (goal 256)\n", peak / 1024 }'
