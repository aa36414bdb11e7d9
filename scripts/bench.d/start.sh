# From start to the first byte of a static HTTP server's answer; memory by instance; and the peers, started with the same
# server: crun and runc on the host's network (they make none), docker on the host's network (no bridge, no proxy), podman the same with
# runc below it. Then what limits and neighbours cost, and how long a crowd takes to be taken over.
# CFC_BENCH_STARTS, CFC_BENCH_DENSITY and CFC_BENCH_ADOPTED: how many starts, how many instances at once, how many taken over.

starts=${CFC_BENCH_STARTS:-10000} density=${CFC_BENCH_DENSITY:-1000} adopted=${CFC_BENCH_ADOPTED:-300}
mkdir -p "$work/start/run" "$work/start/image"
cc -static -O2 -o "$work/start/image/httpd" "$root/scripts/bench.d/start/httpd.c"
cc -O2 -o "$work/start/probe" "$root/scripts/bench.d/start/probe.c"
printf 'FROM scratch\nCOPY httpd /httpd\nENTRYPOINT ["/httpd"]\n' >"$work/start/image/Dockerfile"
"$cfc" build "$work/start/image" -t bench/httpd:1 >/dev/null 2>&1
(cd "$root" && cargo build --release --locked --quiet -p cfc-runtime --example start_bench)
start_bench() { # mode count: on a fresh directory, but for `adopt`
  [ "$1" = adopt ] || { rm -rf "$work/start/run"; mkdir -p "$work/start/run"; }
  timeout 600 "$CARGO_TARGET_DIR/release/examples/start_bench" "$CFC_DATA/store" bench/httpd:1 "$work/start/run" "$1" "$2" >"$work/start/$1" 2>"$work/stderr" || die "start_bench $1: $(tail -n 3 "$work/stderr")"
}
value() { awk -v key="$2" '$1 == key { print $2 }' "$work/start/$1"; }
show() { awk -v name="$1" -v value="$2" -v scale="$3" -v unit="$4" -v goal="$5" 'BEGIN { printf "%-44s %10.2f %-4s %s\n", name, value / scale, unit, goal }'; }

# First of all: on ext4, files that were deleted in the last minute are in the way of each new one.
start_bench density "$density"
start_bench spaced "$density"
start_bench starts "$starts"
peer_rounds=$rounds
peer() { # name port command...: one start, into a series
  local name=$1 port=$2
  shift 2
  "$work/start/probe" "$port" "$@" 2>"$work/stderr" >>"$work/start-$name" || die "$name: $(tail -n 3 "$work/stderr")"
}
oci() { # runtime port
  mkdir -p "$work/start/$1/rootfs"
  cp "$work/start/image/httpd" "$work/start/$1/rootfs/httpd"
  jq --arg port "$2" '.process.args = ["/httpd", $port] | .linux.namespaces |= map(select(.type != "network"))' "$work/$1/config.json" >"$work/start/$1/config.json"
}
[ $have_crun = no ] || oci crun 28081
[ $have_runc = no ] || oci runc 28082
[ $have_docker = no ] || $docker_cli -H "$docker_host" build -q -t bench/httpd:1 "$work/start/image" >/dev/null 2>&1
[ $have_podman = no ] || "${podman[@]}" build -q -t bench/httpd:1 "$work/start/image" >/dev/null 2>&1
for round in $(seq "$peer_rounds"); do
  if [ $have_crun = yes ]; then
    peer crun 28081 unshare -m bash "$work/crun/loop" crun run -d -b "$work/start/crun" "start-$round"
    unshare -m bash "$work/crun/loop" crun delete -f "start-$round"
  fi
  if [ $have_runc = yes ]; then
    peer runc 28082 runc run -d -b "$work/start/runc" "start-$round"
    runc delete -f "start-$round"
  fi
  if [ $have_docker = yes ]; then
    peer docker 28083 "$docker_cli" -H "$docker_host" run -d --network host --name "start-$round" bench/httpd:1 28083
    "$docker_cli" -H "$docker_host" rm -f "start-$round" >/dev/null
  fi
  if [ $have_podman = yes ]; then
    peer podman 28084 "${podman[@]}" run -d --network host --name "start-$round" bench/httpd:1 28084
    "${podman[@]}" rm -f -t 0 "start-$round" >/dev/null
  fi
done
ours=$(value starts p50)
show "start to first byte, p50 of $starts" "$ours" 1000 ms "goal 10"
for part in created started connected; do show "  after it was $part" "$(value starts ${part}_p50)" 1000 ms ""; done
for part in p90 p99 max; do show "start to first byte, $part" "$(value starts $part)" 1000 ms ""; done
show "  p99 by p50" "$(awk -v a="$(value starts p99)" -v b="$ours" 'BEGIN { print a / b }')" 1 x "goal 5"
show "  starts above 1 s" "$(value starts slow)" 1 "" "goal 0"
for name in crun runc docker podman; do
  [ -e "$work/start-$name" ] || continue
  theirs=$(median start-$name 1)
  goal=""; [ $name != crun ] || goal="goal 0.30"; [ $name != docker ] || goal="goal 0.05"
  show "  $name, median of $peer_rounds" "$theirs" 1000 ms "cfc is $(awk -v a="$ours" -v b="$theirs" 'BEGIN { printf "%.2f", a / b }') of it, $goal"
done

first=$(value density first_p50) last=$(value density last_p50)
show "$density at once: first 100 starts, p50" "$first" 1000 ms ""
show "$density at once: last 100 starts, p50" "$last" 1000 ms "$(awk -v a="$last" -v b="$first" 'BEGIN { printf "%.2f of the first", a / b }'), goal 1.5"
show "  30 ms apart: first 100" "$(value spaced first_p50)" 1000 ms ""
show "  30 ms apart: last 100" "$(value spaced last_p50)" 1000 ms "$(awk -v a="$(value spaced last_p50)" -v b="$(value spaced first_p50)" 'BEGIN { printf "%.2f of the first", a / b }'), goal 1.5"
show "$density at once: our memory, each" "$(value density ours_each)" 1048576 MiB "goal 1"
for part in runtime launcher init kernel; do show "  $part" "$(value density ${part}_each)" 1024 KiB ""; done
show "  (the application itself)" "$(value density app_each)" 1024 KiB ""
start_bench sleeping "$((density * 10))"
show "$((density * 10)) asleep: our memory, each" "$(value sleeping sleeping_each)" 1024 KiB "goal 4"
start_bench listening 200
for part in p50 p99; do show "from listen to the connection that waited, $part" "$(value listening listening_$part)" 1000 ms "goal 2"; done
start_bench waiting 100
show "100 that do not listen yet: processor" "$(value waiting waiting_cpu_permille)" 10 "%" "of one"
start_bench crowd "$adopted"
start_bench adopt "$adopted"
show "$adopted taken over: known" "$(value adopt adopted)" 1000 ms "goal 1000"
show "  and each has answered" "$(value adopt answered)" 1000 ms ""
start_bench flood 2000
alone=$(value flood alone_p50) beside=$(value flood beside_p50)
show "an answer, p50 of 2000" "$alone" 1000 ms ""
show "  beside one that floods its log" "$beside" 1000 ms "$(awk -v a="$beside" -v b="$alone" 'BEGIN { printf "%.2f", a / b }') of that; p99 $(value flood beside_p99) us, alone $(value flood alone_p99) us"
show "  launcher's processor meanwhile" "$(value flood launcher_permille)" 10 "%" "of one"
start_bench limits 5
for kind in lite basic standard-1; do show "$kind that takes all it can" "$(value limits $kind)" 10 "%" "of its share of the processor"; done

"$cfc" serve --port 0 --data "$work/start/idle" >"$work/serve.log" 2>&1 &
idle=$!
for _ in $(seq 100); do [ -e "$work/start/idle/serve.json" ] && break; sleep 0.1; done
sleep 2
show "cfc serve, idle, resident" "$(awk '/^VmRSS/ { print $2 }' /proc/$idle/status)" 1024 MiB "goal 30"
# Pages that several of them have count once.
descendants() { for child in $(cat /proc/"$1"/task/*/children 2>/dev/null); do echo "$child"; descendants "$child"; done; }
show "  with its launcher, shells and relay" "$(for pid in $idle $(descendants $idle); do cat /proc/$pid/smaps_rollup; done 2>/dev/null | awk '/^Pss:/ { kib += $2 } END { print kib }')" 1024 MiB ""
kill $idle; wait $idle || true
