# One static `true`, from the command line to its end.

for round in $(seq "$rounds"); do
  measure run-cfc "$cfc" run bench/true:1
  [ $have_crun = no ] || measure run-crun unshare -m bash "$work/crun/loop" crun run -b "$work/crun" "crun-$round"
  [ $have_runc = no ] || measure run-runc runc run -b "$work/runc" "runc-$round"
  [ $have_docker = no ] || measure run-docker "$docker_cli" -H "$docker_host" run --rm bench/true:1
  [ $have_podman = no ] || measure run-podman "${podman[@]}" run --rm --network host bench/true:1
done
row "run a static true: cfc run" run-cfc
row "  crun run (with unshare -m)" run-crun run-cfc
row "  runc run" run-runc run-cfc
row "  docker run --rm" run-docker run-cfc
row "  podman run --rm" run-podman run-cfc
