# Shared by the scripts: where things are, and how they speak. Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${CFC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cfc}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $1"; [ -z "${2:-}" ] || say "hint: $2"; exit 1; }

# Seconds since the epoch with nanoseconds, and the milliseconds between two of them.
now() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.0f ms", (to - from) * 1000 }'; }

need_rust() {
  command -v cargo >/dev/null || die "cargo is missing" "install Rust 1.88 or newer, see https://rustup.rs"
}

need_node() {
  command -v npm >/dev/null || die "npm is missing" "install Node.js 20 or newer with npm: the pinned workerd and esbuild are npm packages"
}

need_cc() {
  command -v cc >/dev/null || die "a C compiler is missing" "install gcc or clang, on Debian: apt-get install gcc libc6-dev"
}

# Installs the Debian packages that are missing, where this user may; says in one line what stays missing.
debian_packages() {
  local missing=()
  local package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    say "not installed: ${missing[*]} (tests that need them are skipped; as root on Debian: apt-get install ${missing[*]})"
    return 0
  fi
  say "installing ${missing[*]}"
  if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$cache/apt.log" 2>&1; then
    say "not installed: ${missing[*]} (apt-get failed, see $cache/apt.log; tests that need them are skipped)"
  fi
}

# Unpacks packages of a newer Debian suite beside the system, into a directory of the cache, by the sources that apt has
# configured; says in one line what is missing then.
unpacked_packages() {
  local suite=$1 target=$2
  shift 2
  local missing=() package
  for package in "$@"; do
    [ -e "$target/.unpacked-$package" ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if ! unpack_packages "$suite" "$target" "${missing[@]}" >"$cache/unpack.log" 2>&1; then
    say "not unpacked: ${missing[*]} of $suite (see $cache/unpack.log; tests that need them are skipped)"
  fi
}

unpack_packages() {
  local suite=$1 target=$2
  shift 2
  local work uri package failed=0
  work=$(mktemp -d)
  uri=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT) $(ORIGIN)' 'Created-By: Packages' |
    awk '$2 == "main" && $3 == "Debian" && $1 ~ /debian\/$/ { print $1; exit }')
  [ -n "$uri" ] || { echo "apt has no sources of Debian here"; return 1; }
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$target"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $uri $suite main" >"$work/sources.list"
  local options=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists"
    -o "Dir::Cache=$work/cache" -o APT::Sandbox::User= -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
  apt-get "${options[@]}" update -q || { rm -rf "$work"; return 1; }
  for package in "$@"; do
    (cd "$work" && apt-get "${options[@]}" download "$package" && dpkg-deb -x "$package"_*.deb "$target") &&
      touch "$target/.unpacked-$package" || failed=1
  done
  rm -rf "$work"
  return "$failed"
}
