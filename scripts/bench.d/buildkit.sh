# Goal: at most 1.1 of the time that the daemon's own Dockerfile frontend takes for the same file.
# A build on a BuildKit daemon through our lowering, beside the daemon's own frontend, in one Docker engine: a copied tree and
# four programs, nothing cached; then everything cached. Both sides end with the image at the client: `docker save` for the
# frontend, since a build alone leaves it in the engine. On the system's engine, and on a current one with containerd's images.

ratio() { awk -v a="$(median "$1" 1)" -v b="$(median "$2" 1)" 'BEGIN { printf "%.2f", a / b }'; }

beside_the_frontend() { # name, the series' prefix, socket of the engine
  local name=$1 series=$2 host=unix://$3
  lowered() { "$cfc" build "$context" -f "$work/buildkit/Dockerfile" -t "bench/$series:1" --network none --builder buildkit --buildkit-addr "docker://${host#unix://}" "$@"; }
  frontend() { DOCKER_BUILDKIT=1 "$docker_cli" -H "$host" build -q --network none -f "$work/buildkit/Dockerfile" -t "bench/$series:1" "$@" "$context" && "$docker_cli" -H "$host" save -o "$work/buildkit/image.tar" "bench/$series:1"; }
  # The context is sent once, and then only looked at.
  if ! { lowered && frontend; } >/dev/null 2>"$work/stderr"; then echo "$name: $(tail -n 1 "$work/stderr")"; return 0; fi
  for _ in $(seq "$rounds"); do
    measure_with_daemon "$series-lowered" lowered --no-cache
    measure_with_daemon "$series-frontend" frontend --no-cache
  done
  # What either side built afresh is new to the other. Once more, and nothing is.
  { lowered && frontend; } >/dev/null 2>&1
  for _ in $(seq "$rounds"); do
    measure_with_daemon "$series-lowered-cached" lowered
    measure_with_daemon "$series-frontend-cached" frontend
  done
  row "$name, nothing cached, the daemon's own frontend" "$series-frontend"
  row "$name, nothing cached, cfc on the daemon" "$series-lowered"
  row "$name, everything cached, its own frontend" "$series-frontend-cached"
  row "$name, everything cached, cfc on the daemon" "$series-lowered-cached"
  echo "$name: cfc takes $(ratio "$series-lowered" "$series-frontend") of the frontend's time with nothing cached, $(ratio "$series-lowered-cached" "$series-frontend-cached") with everything (goal 1.1)"
}

# A current engine of our own, as scripts/test unpacks it: its socket, or nothing and why.
current_engine() {
  local program=${CFC_DOCKERD_CURRENT:-$cache/engine/usr/sbin/dockerd} home=$work/current
  if ! "$program" --version >/dev/null 2>&1; then echo "current engine: not there (CFC_DOCKERD_CURRENT; scripts/test unpacks one)"; return 1; fi
  mkdir -p "$home"
  echo '{"features": {"containerd-snapshotter": true}}' >"$home/daemon.json"
  # The programs beside it are its own.
  PATH=$(dirname "$program"):$(dirname "$program")/../bin:$PATH "$program" --config-file "$home/daemon.json" --data-root "$home/data" --exec-root "$home/exec" -H "unix://$home/socket" --pidfile "$home/pid" --iptables=false --ip6tables=false --bridge=none >"$home/log" 2>&1 &
  pids+=($!)
  for _ in $(seq 100); do "$docker_cli" -H "unix://$home/socket" version >/dev/null 2>&1 && return 0; sleep 0.1; done
  echo "current engine: $(tail -n 1 "$home/log")"
  return 1
}

if [ $have_docker = yes ]; then
  context=$work/buildkit/context
  mkdir -p "$context/tree"
  cp /bin/busybox "$context/busybox"
  for number in $(seq 200); do head -c 100000 /dev/urandom >"$context/tree/$number"; done
  cat >"$context/Dockerfile" <<'DOCKERFILE'
FROM scratch
COPY --chmod=755 busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
COPY tree /tree
RUN cat /tree/* | sha256sum >/sum
RUN mkdir /made && cp /tree/1* /made
RUN rm -r /made/10*
CMD ["sh"]
DOCKERFILE
  # The frontend of an old engine knows --chmod only by its own syntax file; the context has the mode.
  chmod 755 "$context/busybox"
  sed 's/ --chmod=755//' "$context/Dockerfile" >"$work/buildkit/Dockerfile"
  beside_the_frontend "engine $("$docker_cli" -H "$docker_host" version --format '{{.Server.Version}}' | cut -d. -f1,2)" buildkit "${docker_host#unix://}"
  if current_engine; then
    daemon_pid=$work/current/pid beside_the_frontend "engine $("$docker_cli" -H "unix://$work/current/socket" version --format '{{.Server.Version}}' | cut -d. -f1,2)" buildkit-current "$work/current/socket"
  fi
fi
