# The registry beside Debian's docker-registry: pushes, pulls and small requests. CPU is the server's. Sources are in the
# page cache, access logs off. CFC_BENCH_BLOB_MIB: how large the large blob is (1024);
# CFC_BENCH_BLOBS: among how many the registry starts (1000000).

debian_packages wrk apache2-utils
registry_rounds=$((rounds < 5 ? rounds : 5))
blob_mib=${CFC_BENCH_BLOB_MIB:-1024}
source=$work/registry/source
mkdir -p "$source"
head -c "${blob_mib}M" /dev/urandom >"$source/large"
head -c 100M /dev/urandom >"$source/medium"
head -c 1024 /dev/urandom >"$source/small"
printf '{"bench":true}' >"$source/config"
split -b 64M -d "$source/large" "$source/chunk-"
for name in large medium small config; do printf 'sha256:%s' "$(sha256sum "$source/$name" | cut -d' ' -f1)" >"$source/$name.digest"; done
of() { cat "$source/$1.digest"; }

declare -A server_pid server_url
serve_cfc() {
  CFC_DATA=$work/registry/cfc "$cfc" registry serve --port 28091 >/dev/null 2>"$work/registry/cfc.log" &
  server_pid[cfc]=$! server_url[cfc]=http://127.0.0.1:28091
}
serve_peer() {
  printf 'version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}, delete: {enabled: true}}\nhttp: {addr: 127.0.0.1:28092}\n' "$work/registry/peer" >"$work/registry/peer.yml"
  docker-registry serve "$work/registry/peer.yml" >/dev/null 2>"$work/registry/peer.log" &
  server_pid[peer]=$! server_url[peer]=http://127.0.0.1:28092
}
listening() { for _ in $(seq 1000); do curl -sf -o /dev/null "$1/v2/" && return 0; sleep 0.01; done; die "no registry at $1"; }
server_cpu_ms() { awk '{ print ($14 + $15) * 10 }' "/proc/${server_pid[$1]}/stat"; }

sides=(cfc)
serve_cfc; pids+=("${server_pid[cfc]}"); listening "${server_url[cfc]}"
if command -v docker-registry >/dev/null; then
  serve_peer; pids+=("${server_pid[peer]}"); listening "${server_url[peer]}"; sides+=(peer)
else echo "docker-registry: not installed"; fi

# Where an upload goes on: its Location, absolute and ready for another parameter.
location() { # side headers
  local location
  location=$(tr -d '\r' <"$2" | awk 'tolower($1) == "location:" { print $2 }')
  case $location in /*) location=${server_url[$1]}$location ;; esac
  case $location in *\?*) echo "$location&" ;; *) echo "$location?" ;; esac
}
# One request of a push. How long it took goes to a file: starting a client anew for each is not the registry's time.
upload() { curl -sf -o /dev/null -w '%{stderr}%{time_total}\n' "$@" 2>>"$work/registry/times"; }
begin() { upload -D "$work/registry/head" -X POST "${server_url[$1]}/v2/bench/$2/blobs/uploads/" && location "$1" "$work/registry/head"; }
push() { # side repository file
  upload -T "$source/$3" "$(begin "$1" "$2")digest=$(of "$3")"
}
push_chunks() { # side repository
  local upload offset=0 size chunk
  upload=$(begin "$1" "$2")
  for chunk in "$source"/chunk-*; do
    size=$(stat -c %s "$chunk")
    upload -D "$work/registry/head" -X PATCH -H "Content-Range: $offset-$((offset + size - 1))" -H 'Content-Type: application/octet-stream' -T "$chunk" "$upload"
    upload=$(location "$1" "$work/registry/head") offset=$((offset + size))
  done
  upload -X PUT -H 'Content-Length: 0' "${upload}digest=$(of large)"
}
pull() { curl -sf -o /dev/null "${server_url[$1]}/v2/bench/large/blobs/$(of large)"; }
pull_many() {
  local waiting=() n
  for n in $(seq 32); do curl -sf -o /dev/null "${server_url[$1]}/v2/bench/medium/blobs/$(of medium)" & waiting+=($!); done
  wait "${waiting[@]}"
}
forget_large() { curl -s -o /dev/null -X DELETE "${server_url[$1]}/v2/bench/$2/blobs/$(of large)"; find "$work/registry/$1" -name "$(of large | cut -d: -f2)" -prune -exec rm -rf {} +; }

# Adds wall time in microseconds and the server's CPU time in milliseconds to the series $1-SIDE.
measure_server() { # series side command...
  local series=$1 side=$2 start before
  shift 2
  before=$(server_cpu_ms "$side") start=$(date +%s%N)
  "$@" || die "$series: \`$*\` failed"
  echo "$((($(date +%s%N) - start) / 1000)) $(($(server_cpu_ms "$side") - before))" >>"$work/$series-$side"
}
# The same with the wall time of its requests alone. What another push has left to be written is written before.
measure_push() { # series side command...
  local series=$1 side=$2 before
  shift 2
  sync
  : >"$work/registry/times"
  before=$(server_cpu_ms "$side")
  "$@" || die "$series: \`$*\` failed"
  awk -v cpu="$(($(server_cpu_ms "$side") - before))" '{ seconds += $1 } END { printf "%d %d\n", seconds * 1000000, cpu }' "$work/registry/times" >>"$work/$series-$side"
}
# Adds requests a second and the server's CPU time in microseconds a request to the series $1-SIDE. $3 is wrk's or ab's.
measure_requests() { # series side tool arguments...
  local series=$1 side=$2 tool=$3 before count rate
  shift 3
  before=$(server_cpu_ms "$side")
  case $tool in
    wrk) wrk -t2 -c16 -d3s "$@" >"$work/registry/out" && rate=$(awk '/Requests\/sec/ { print $2 }' "$work/registry/out") count=$(awk '/requests in/ { print $1 }' "$work/registry/out")
      ! grep -q 'Non-2xx' "$work/registry/out" || die "$series: $side answered errors" ;;
    ab) ab -q -k -c16 -n 20000 "$@" >"$work/registry/out" 2>&1 && rate=$(awk '/Requests per second/ { print $4 }' "$work/registry/out") count=20000
      ! grep -q 'Non-2xx' "$work/registry/out" || die "$series: $side answered errors" ;;
  esac
  awk -v rate="$rate" -v cpu="$(($(server_cpu_ms "$side") - before))" -v count="$count" 'BEGIN { printf "%d %d\n", rate, cpu * 1000 / count }' >>"$work/$series-$side"
}
compare() { # name series: wall time, the peer's over ours; CPU, ours over the peer's
  local peer="" ours_wall ours_cpu
  ours_wall=$(median "$2-cfc" 1) ours_cpu=$(median "$2-cfc" 2)
  [ ! -e "$work/$2-peer" ] || peer=$(awk -v w="$(median "$2-peer" 1)" -v c="$(median "$2-peer" 2)" -v ow="$ours_wall" -v oc="$ours_cpu" 'BEGIN { printf "docker-registry %8.1f ms %6d ms CPU   %5.2fx as fast, %4.2fx CPU", w / 1000, c, w / ow, c ? oc / c : 0 }')
  awk -v name="$1" -v w="$ours_wall" -v c="$ours_cpu" -v peer="$peer" 'BEGIN { printf "%-34s %8.1f ms %6d ms CPU   %s\n", name, w / 1000, c, peer }'
}
compare_requests() { # name series
  local peer="" ours_rate ours_cpu
  ours_rate=$(median "$2-cfc" 1) ours_cpu=$(median "$2-cfc" 2)
  [ ! -e "$work/$2-peer" ] || peer=$(awk -v w="$(median "$2-peer" 1)" -v c="$(median "$2-peer" 2)" -v ow="$ours_rate" -v oc="$ours_cpu" 'BEGIN { printf "docker-registry %6d/s %6d us CPU   %5.1fx as many, 1/%.1f CPU", w, c, w ? ow / w : 0, oc ? c / oc : 0 }')
  awk -v name="$1" -v w="$ours_rate" -v c="$ours_cpu" -v peer="$peer" 'BEGIN { printf "%-34s %6d/s %6d us CPU   %s\n", name, w, c, peer }'
}

for side in "${sides[@]}"; do
  push "$side" large large; push "$side" medium medium; push "$side" small small; push "$side" put config; push "$side" put small
  manifest=$(printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":14},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"%s","size":1024}],"annotations":{"name":"NAME"}}' "$(of config)" "$(of small)")
  curl -sf -o /dev/null -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary "$manifest" "${server_url[$side]}/v2/bench/put/manifests/latest"
done
export MANIFEST=$manifest
manifest_digest=sha256:$(printf %s "$manifest" | sha256sum | cut -d' ' -f1)
echo "idle memory: cfc $(awk '/VmRSS/ { print $2 }' "/proc/${server_pid[cfc]}/status") KiB after the first pushes"

# Runs a case in turns for all sides. Each row is printed when its case has ended.
turns() { # command...: gets the side as its last argument, and sees $round
  local round side
  for round in $(seq "$registry_rounds"); do for side in "${sides[@]}"; do "$@" "$side"; done; done
}
push_once() { forget_large "$1" large; measure_push registry-push "$1" push "$1" large large; }
push_in_chunks() { forget_large "$1" large; measure_push registry-chunks "$1" push_chunks "$1" large; }
pull_once() { measure_server registry-pull "$1" pull "$1"; }
pull_at_once() {
  echo 5 >"/proc/${server_pid[$1]}/clear_refs"
  measure_server registry-many "$1" pull_many "$1"
  awk '/VmHWM/ { print $2, 0 }' "/proc/${server_pid[$1]}/status" >>"$work/registry-hwm-$1"
}
requests() { # series tool path side
  local series=$1 tool=$2 path=$3 side=$4
  case $tool in
    wrk) measure_requests "$series" "$side" wrk -H "$accept" "${server_url[$side]}$path" ;;
    head) measure_requests "$series" "$side" ab -i "${server_url[$side]}$path" ;;
    put) SERIES=r$round measure_requests "$series" "$side" wrk -s "$root/scripts/bench.d/registry/put.lua" "${server_url[$side]}" ;;
  esac
}
# docker-registry gives this manifest only to those who say that they know its type.
accept='Accept: application/vnd.oci.image.manifest.v1+json'

turns push_once; compare "push $blob_mib MiB in one request" registry-push
turns push_in_chunks; compare "push $blob_mib MiB in chunks of 64 MiB" registry-chunks
turns pull_once; compare "pull $blob_mib MiB" registry-pull
turns pull_at_once; compare "32 pulls of 100 MiB at once" registry-many
for side in "${sides[@]}"; do echo "  highest memory of $side: $(median "registry-hwm-$side" 1) KiB"; done
turns requests registry-ping wrk /v2/; compare_requests "GET /v2/, 16 clients" registry-ping
turns requests registry-tag wrk /v2/bench/put/manifests/latest; compare_requests "GET manifest by tag" registry-tag
turns requests registry-digest wrk "/v2/bench/put/manifests/$manifest_digest"; compare_requests "GET manifest by digest" registry-digest
turns requests registry-head head "/v2/bench/small/blobs/$(of small)"; compare_requests "HEAD blob" registry-head
turns requests registry-small wrk "/v2/bench/small/blobs/$(of small)"; compare_requests "GET blob of 1 KiB" registry-small
turns requests registry-put put ""; compare_requests "PUT manifest, synced" registry-put

# Pages of tags, and a start, in a registry that holds a lot. The files are made by hand: pushing them takes an hour.
repositories=$work/registry/cfc/bucket/registry/repositories/bench
tag_counts=(1000 10000 100000)
for count in "${tag_counts[@]}"; do
  mkdir -p "$repositories/tags-$count/_tags"
  cp -r "$repositories/put/_manifests" "$repositories/tags-$count"
  (cd "$repositories/tags-$count/_tags" && seq "$count" | sed "s|.*|$(cat "$repositories/put/_tags/latest")|" | split -l1 -a6 -d - t)
done
many=$work/registry/cfc/bucket/registry/blobs/sha256
many_blobs=${CFC_BENCH_BLOBS:-1000000}
seq "$many_blobs" | awk '{ printf "%02x/%064x\n", $1 % 256, $1 }' >"$source/names"
(cd "$many" && mkdir -p $(printf '%02x ' $(seq 0 255)) && xargs touch <"$source/names")
kill "${server_pid[cfc]}"; wait "${server_pid[cfc]}" 2>/dev/null || true
start=$(date +%s%N)
serve_cfc; pids+=("${server_pid[cfc]}")
until (exec 3<>/dev/tcp/127.0.0.1/28091) 2>/dev/null; do sleep 0.002; done
echo "start with $many_blobs blobs: $((($(date +%s%N) - start) / 1000000)) ms, memory $(awk '/VmRSS/ { print $2 }' "/proc/${server_pid[cfc]}/status") KiB"

# A page from the middle, by 4 clients; the first list is what reads the names. Their number must make no difference, so all
# are measured in turns. Adds the 99th percentile in microseconds and pages a second to a series.
tags_page() { # how many there are
  local last
  printf -v last 't%06d' "$(($1 / 2))"
  wrk -t1 -c4 -d1s --latency "${server_url[cfc]}/v2/bench/tags-$1/tags/list?n=100&last=$last" >"$work/registry/out"
  ! grep -q 'Non-2xx' "$work/registry/out" || die "a page among $1 tags: answered errors"
  awk '$1 == "99%" { us = $2 * ($2 ~ /us$/ ? 1 : $2 ~ /ms$/ ? 1000 : 1000000) } /Requests\/sec/ { rate = $2 } END { printf "%d %d\n", us, rate }' "$work/registry/out" >>"$work/registry-tags-$1"
}
for count in "${tag_counts[@]}"; do curl -sf -o /dev/null "${server_url[cfc]}/v2/bench/tags-$count/tags/list?n=1"; done
for round in $(seq "$registry_rounds"); do for count in "${tag_counts[@]}"; do tags_page "$count"; done; done
for count in "${tag_counts[@]}"; do
  printf 'a page of 100 tags among %-6d: p99 %6.0f us, %6.0f/s with 4 clients\n' "$count" "$(median "registry-tags-$count" 1)" "$(median "registry-tags-$count" 2)"
done
