# Goal: at most 1.1 of the time that the daemon's own Dockerfile frontend takes for the same file.
# A build on a BuildKit daemon through our lowering, beside the daemon's own frontend, in one Docker engine: a copied tree and
# four programs, nothing cached; then everything cached. Both sides end with the image at the client: `docker save` for the
# frontend, since a build alone leaves it in the engine.

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
  lowered() { "$cfc" build "$context" -f "$work/buildkit/Dockerfile" -t bench/buildkit:1 --network none --builder buildkit --buildkit-addr "docker://${docker_host#unix://}" "$@"; }
  frontend() { DOCKER_BUILDKIT=1 "$docker_cli" -H "$docker_host" build -q --network none -f "$work/buildkit/Dockerfile" -t bench/buildkit:1 "$@" "$context" && "$docker_cli" -H "$docker_host" save -o "$work/buildkit/image.tar" bench/buildkit:1; }
  # The context is sent once, and then only looked at.
  lowered >/dev/null 2>&1; frontend >/dev/null 2>&1
  for _ in $(seq "$rounds"); do
    measure_with_daemon buildkit-lowered lowered --no-cache
    measure_with_daemon buildkit-frontend frontend --no-cache
    measure_with_daemon buildkit-lowered-cached lowered
    measure_with_daemon buildkit-frontend-cached frontend
  done
  row "nothing cached, the daemon's own frontend" buildkit-frontend
  row "nothing cached, cfc on the daemon" buildkit-lowered
  row "everything cached, the daemon's own frontend" buildkit-frontend-cached
  row "everything cached, cfc on the daemon" buildkit-lowered-cached
  ratio() { awk -v a="$(median "$1" 1)" -v b="$(median "$2" 1)" 'BEGIN { printf "%.2f", a / b }'; }
  echo "cfc beside the frontend: $(ratio buildkit-lowered buildkit-frontend) of its time with nothing cached, $(ratio buildkit-lowered-cached buildkit-frontend-cached) with everything (goal 1.1)"
fi
