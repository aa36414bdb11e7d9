# Ten RUN steps, uncached and cached. Goals: 0.4 of BuildKit's time, and 50 ms.

mkdir -p "$work/steps"
cp /bin/busybox "$work/steps/busybox"
{ printf 'FROM scratch\nCOPY busybox /bin/sh\n'; for step in 1 2 3 4 5 6 7 8 9 10; do echo "RUN echo $step >/file-$step"; done; } >"$work/steps/Dockerfile"
for _ in $(seq "$rounds"); do
  measure build-cfc "$cfc" build "$work/steps" -t bench/steps:1 --no-cache
  [ $have_docker = no ] || DOCKER_BUILDKIT=1 measure_with_daemon build-docker "$docker_cli" -H "$docker_host" build -q --no-cache -t bench/steps:1 "$work/steps"
  measure cached-cfc "$cfc" build "$work/steps" -t bench/steps:1
  [ $have_docker = no ] || DOCKER_BUILDKIT=1 measure_with_daemon cached-docker "$docker_cli" -H "$docker_host" build -q -t bench/steps:1 "$work/steps"
done
if command -v buildah >/dev/null; then
  steps_buildah() { STORAGE_DRIVER=overlay buildah --root "$work/steps-buildah" --runroot "$work/steps-buildah-run" build --isolation chroot --layers "$@" -t bench/steps:1 "$work/steps"; }
  for _ in $(seq $((rounds < 5 ? rounds : 5))); do
    measure build-buildah steps_buildah --no-cache
    measure cached-buildah steps_buildah
  done
  umount "$work/steps-buildah/overlay" 2>/dev/null || true
fi
row "ten RUN steps, uncached: cfc build" build-cfc
row "  BuildKit in docker.io" build-docker build-cfc
row "  buildah" build-buildah build-cfc
row "ten RUN steps, cached: cfc build" cached-cfc
row "  BuildKit in docker.io" cached-docker cached-cfc
row "  buildah" cached-buildah cached-cfc
