//! `cfc registry ca`: a registry with certificates of its own authority, and clients that were told to trust it. All of
//! it in a mount namespace whose `/etc` is a copy: nothing of this machine changes.

use std::process::Command;

use crate::registry_clients::find;
use crate::support::{Home, free_port, has_program, skipped};

/// `$1` is `cfc`, `$2` a directory, `$3` the registry's port, `$4` another's, `$5` the data directory. Each step says itself, and the first that fails ends it.
const STEPS: &str = r#"
set -eu
cfc=$1; dir=$2; port=$3; host=registry.test:$port; evil=evil.test:$4; data=$5
mount -t tmpfs tmpfs "$dir/scratch"
for of in etc usr/local; do
  mkdir -p "$dir/scratch/$of/upper" "$dir/scratch/$of/work"
  mount -t overlay overlay -o "lowerdir=/$of,upperdir=$dir/scratch/$of/upper,workdir=$dir/scratch/$of/work" "/$of"
done
echo 127.0.0.1 registry.test second.test evil.test >>/etc/hosts
say() { echo "step: $*"; }
must_not() { if "$@" >"$dir/said" 2>&1; then echo "succeeded: $*"; exit 1; fi; }
serve() {
  "$cfc" registry serve --port "$port" >"$dir/serve.log" 2>&1 &
  server=$!
  for _ in $(seq 300); do grep -q https "$dir/serve.log" && break; sleep 0.1; done
}
say none
for what in show "install $host" "uninstall $host"; do
  must_not "$cfc" registry ca $what
  grep -q "no registry has made an authority in .$data/ca" "$dir/said"
  grep -q -e "--data DIR" "$dir/said"
done
[ ! -e "$data/ca" ]
serve
trap 'kill $server' EXIT
ca=$("$cfc" registry ca show)
say serves
curl -sS --cacert "$ca" "https://$host/v2/" >/dev/null
curl -sS --cacert "$ca" "https://127.0.0.1:$port/v2/" >/dev/null
must_not curl -sS "https://$host/v2/"
must_not curl -sS --cacert "$ca" --resolve "other.test:$port:127.0.0.1" "https://other.test:$port/v2/"
openssl x509 -in "$ca" -noout -ext basicConstraints,keyUsage >"$dir/extensions"
grep -q 'CA:TRUE, pathlen:0' "$dir/extensions"
grep -q 'Certificate Sign' "$dir/extensions"
[ "$(stat -c %a "$(dirname "$ca")/ca.key")" = 600 ]
must_not skopeo list-tags "docker://$host/app"
say constraints
openssl x509 -in "$ca" -noout -ext nameConstraints >"$dir/extensions"
for part in critical DNS:registry.test DNS:localhost IP:127.0.0.1/255.255.255.255; do grep -q "$part" "$dir/extensions"; done
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout "$dir/evil.key" -subj /CN=evil.test \
  -out "$dir/evil.csr" 2>"$dir/said"
echo subjectAltName=DNS:evil.test >"$dir/evil.ext"
openssl x509 -req -in "$dir/evil.csr" -CA "$ca" -CAkey "$(dirname "$ca")/ca.key" -set_serial 7 -days 2 \
  -extfile "$dir/evil.ext" -out "$dir/evil.pem" 2>"$dir/said"
must_not openssl verify -CAfile "$ca" "$dir/evil.pem"
grep -q 'permitted subtree violation' "$dir/said"
openssl s_server -accept "127.0.0.1:$4" -cert "$dir/evil.pem" -key "$dir/evil.key" -www >"$dir/evil.log" 2>&1 &
impostor=$!
trap 'kill $server $impostor' EXIT
for _ in $(seq 300); do curl -ks "https://$evil/" -o "$dir/said" && break; sleep 0.1; done
"$cfc" registry ca install "$evil"
must_not curl -sS --cacert "$ca" "https://$evil/v2/"
must_not skopeo list-tags "docker://$evil/app"
grep -q 'not authorized to sign for this name' "$dir/said"
"$cfc" registry ca uninstall "$evil"
kill $impostor
trap 'kill $server' EXIT
say install
"$cfc" registry ca install "$host"
skopeo --insecure-policy copy "oci:$dir/layout:latest" "docker://$host/app:1" >/dev/null
skopeo list-tags "docker://$host/app" | grep -q '"1"'
must_not curl -sS "https://$host/v2/"
if command -v dockerd >/dev/null; then
  say docker
  mkdir "$dir/scratch/engine"
  dockerd --data-root "$dir/scratch/engine/data" --exec-root "$dir/scratch/engine/exec" -H "unix://$dir/engine.sock" \
    --pidfile "$dir/scratch/engine/pid" --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs \
    >"$dir/engine.log" 2>&1 &
  engine=$!
  trap 'kill $server $engine; wait $engine' EXIT
  docker=$(ls /usr/bin/docker 2>/dev/null || command -v docker)
  for _ in $(seq 300); do "$docker" -H "unix://$dir/engine.sock" version >/dev/null 2>&1 && break; sleep 0.2; done
  "$docker" -H "unix://$dir/engine.sock" pull "$host/app:1"
fi
say uninstall
echo another >"/etc/containers/certs.d/$host/other.crt.off"
"$cfc" registry ca uninstall "$host"
must_not skopeo list-tags "docker://$host/app"
[ -e "/etc/containers/certs.d/$host/other.crt.off" ]
[ ! -e "/etc/docker/certs.d/$host" ]
say system
"$cfc" registry ca install --system
curl -sS "https://$host/v2/" >/dev/null
skopeo list-tags "docker://$host/app" | grep -q '"1"'
"$cfc" registry ca uninstall --system
must_not curl -sS "https://$host/v2/"
must_not "$cfc" registry ca install ../../outside
say renamed
"$cfc" registry ca install "$host"
cp "$ca" "$dir/earlier.pem"
kill $server; wait $server || true
echo 'registry.tls_names = ["registry.test", "second.test"]' >"$CFC_CONFIG"
serve
grep -q 'have it trusted anew' "$dir/serve.log"
[ "$("$cfc" registry ca show)" = "$ca" ]
curl -sS --cacert "$ca" "https://second.test:$port/v2/" >/dev/null
must_not curl -sS --cacert "$dir/earlier.pem" "https://second.test:$port/v2/"
must_not skopeo list-tags "docker://$host/app"
"$cfc" registry ca uninstall "$host"
[ ! -e "/etc/docker/certs.d/$host" ]
"$cfc" registry ca install "$host"
skopeo list-tags "docker://$host/app" | grep -q '"1"'
say mismatch
cp "$dir/evil.pem" "$ca"
must_not "$cfc" registry ca show
grep -q 'it is not the certificate of the key' "$dir/said"
say done
"#;

#[test]
fn clients_trust_the_registrys_own_authority_when_they_were_told_to() {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skipped("certificates are installed as root");
        return;
    }
    let programs = ["unshare", "skopeo", "curl", "openssl", "update-ca-certificates"];
    if !programs.iter().all(|name| has_program(name)) || find("skopeo").is_none() {
        return;
    }
    let home = Home::new();
    home.write("config.toml", "[registry]\ntls_names = [\"registry.test\"]\n");
    home.write("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    let destination = format!("type=oci,dest={},tar=false", home.path("layout").display());
    home.must(&["build", "app", "-t", "app:latest", "-o", &destination]);
    std::fs::create_dir(home.path("scratch")).expect("writable");
    let script = home.write("steps.sh", STEPS);
    let template = home.cfc();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh"]).arg(script);
    command.arg(env!("CARGO_BIN_EXE_cfc")).arg(home.path("")).arg(free_port().to_string());
    command.arg(free_port().to_string()).arg(home.data());
    template.get_envs().for_each(|(name, value)| match value {
        Some(value) => drop(command.env(name, value)),
        None => drop(command.env_remove(name)),
    });
    let output = command.env("HOME", home.path("")).output().expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if said.contains("mount failed") || said.contains("permission denied on mount") || said.contains("wrong fs type") {
        skipped(&format!("nothing can be mounted over /etc here: {}", said.trim()));
        return;
    }
    assert!(output.status.success() && said.contains("step: done"), "{said}");
}

#[test]
fn a_certificate_comes_from_one_place() {
    let home = Home::new();
    let settings = "[registry]\ntls_names = [\"registry.test\"]\ntls_certificate = \"/a\"\ntls_key = \"/b\"\n";
    home.write("config.toml", settings);
    let said = home.must_fail(&["registry", "serve", "--port", "0"]);
    assert!(said.contains("`tls_names` below `[registry]` has the registry make its certificates"), "{said}");
}
