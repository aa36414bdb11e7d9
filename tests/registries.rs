//! Registries of others: who we are to them, mirrors, and how to speak to a host.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::starter::{APPLICATION, WORKER};
use crate::support::{Ended, Home, Platform, can_sandbox, free_port, has_program, wait_for};

/// User `user` with the password `secret` (bcrypt).
const HTPASSWD: &str = "user:$2b$04$D.AHKtnNgXMuTL8b7Xaaq.XYTAOnk.1mSc.RA2q.iVc04.YU6pfuq\n";
/// `user:secret` in base64.
pub const LOGIN: &str = "dXNlcjpzZWNyZXQ=";

/// A registry of Debian's `docker-registry` on the loopback.
pub struct Peer {
    pub host: String,
    _process: Ended,
}

impl Peer {
    /// With `more` lines of configuration: `auth`, `tls`.
    fn start(home: &Home, name: &str, auth: &str, tls: &str) -> Peer {
        let port = free_port();
        let root = home.path(&format!("{name}-data"));
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n{auth}http:\n  addr: 127.0.0.1:{port}\n{tls}",
            root.display()
        );
        let config = home.write(&format!("{name}.yml"), &config);
        let log = std::fs::File::create(home.path(&format!("{name}.log"))).expect("writable");
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(config).stdout(log.try_clone().expect("a file")).stderr(log);
        let process = Ended(command.spawn().expect("it runs"));
        wait_for("docker-registry to listen", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        Peer { host: format!("127.0.0.1:{port}"), _process: process }
    }

    /// That asks for a password: `LOGIN`.
    pub fn with_password(home: &Home) -> Peer {
        let file = home.write("htpasswd", HTPASSWD);
        let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display());
        Peer::start(home, "private", &auth, "")
    }
}

fn ready() -> bool {
    can_sandbox() && has_program("docker-registry")
}

/// `cfc` with a directory of Docker's configuration, and programs of ours first in the path.
fn run(home: &Home, login: &Path, arguments: &[&str]) -> (bool, String) {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = home
        .cfc()
        .args(arguments)
        .env("DOCKER_CONFIG", login)
        .env("PATH", format!("{}:{path}", home.path("bin").display()))
        .output()
        .expect("cfc runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

fn must(home: &Home, login: &Path, arguments: &[&str]) -> String {
    let (is_good, said) = run(home, login, arguments);
    assert!(is_good, "cfc {arguments:?}:\n{said}");
    said
}

fn must_fail(home: &Home, login: &Path, arguments: &[&str]) -> String {
    let (is_good, said) = run(home, login, arguments);
    assert!(!is_good, "cfc {arguments:?}:\n{said}");
    said
}

/// A busybox that says `word`, in the store as `app`.
fn make_app(home: &Home, word: &str) {
    std::fs::create_dir_all(home.path("app-context")).expect("writable");
    std::fs::copy(crate::support::busybox().expect("checked before"), home.path("app-context/busybox"))
        .expect("copied");
    home.write(
        "app-context/Dockerfile",
        &format!("FROM scratch\nCOPY busybox /bin/busybox\nENTRYPOINT [\"/bin/busybox\", \"echo\", \"{word}\"]\n"),
    );
    home.must(&["build", "app-context", "-t", "app"]);
}

/// A helper that speaks Docker's protocol: asked for a host on stdin, it answers with `answer`, or with `answer` as an error.
fn helper(home: &Home, name: &str, host: &str, answer: &str, code: u32) {
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] || exit 9\nread host\n[ \"$host\" = '{host}' ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\necho '{answer}'\nexit {code}\n"
    );
    let path = home.write(&format!("bin/docker-credential-{name}"), &script);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("ours");
}

#[test]
fn one_login_serves_push_pull_build_and_run() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let peer = Peer::with_password(&home);
    let host = &peer.host;
    make_app(&home, "mine");
    let name = format!("{host}/team/app:1");
    let login = |config: String| {
        home.write("login/config.json", &config);
        home.path("login")
    };
    let nobody = login("{}".to_string());
    let error = must_fail(&home, &nobody, &["push", "app", &name]);
    assert!(error.contains("refused the credentials") && error.contains("docker login"), "{error}");
    let known = login(format!(r#"{{"auths": {{"{host}": {{"auth": "{LOGIN}"}}}}}}"#));
    must(&home, &known, &["push", "app", &name]);

    // In a store that has nothing: by a helper for this host, and by one for all hosts.
    helper(&home, "one", host, r#"{"ServerURL":"x","Username":"user","Secret":"secret"}"#, 0);
    helper(&home, "locked", host, "the key ring is locked", 1);
    for config in [
        format!(r#"{{"credHelpers": {{"{host}": "one"}}, "credsStore": "locked"}}"#),
        r#"{"credsStore": "one"}"#.to_string(),
    ] {
        let login = login(config);
        let _ = std::fs::remove_dir_all(home.data());
        home.write("child-context/Dockerfile", &format!("FROM {name}\nLABEL a=b\n"));
        must(&home, &login, &["build", "child-context", "-t", "child"]);
        let _ = std::fs::remove_dir_all(home.data());
        assert!(must(&home, &login, &["run", &name]).contains("mine"));
    }
    let _ = std::fs::remove_dir_all(home.data());
    let error = must_fail(&home, &login(r#"{"credsStore": "locked"}"#.to_string()), &["run", &name]);
    assert!(
        error.contains("cannot get credentials from `docker-credential-locked`: the key ring is locked"),
        "{error}"
    );
    let error = must_fail(&home, &login(r#"{"credsStore": "nowhere"}"#.to_string()), &["run", &name]);
    assert!(error.contains("docker-credential-nowhere"), "{error}");
    // A token is no password: a registry that asks for one refuses it, and the message says where it is from.
    helper(&home, "token", host, r#"{"ServerURL":"x","Username":"<token>","Secret":"abc"}"#, 0);
    let error = must_fail(&home, &login(r#"{"credsStore": "token"}"#.to_string()), &["run", &name]);
    assert!(error.contains("from `docker-credential-token`"), "{error}");
}

#[test]
fn a_mirror_is_asked_first_and_pull_asks_again() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let nobody = home.path("nobody");
    let (upstream, mirror) = (Peer::start(&home, "upstream", "", ""), Peer::start(&home, "mirror", "", ""));
    let name = format!("{}/team/app:1", upstream.host);
    make_app(&home, "upstream");
    must(&home, &nobody, &["push", "app", &name]);
    make_app(&home, "mirror");
    must(&home, &nobody, &["push", "app", &format!("{}/cache/team/app:1", mirror.host)]);
    let configure = |mirrors: &str| {
        home.write("config.toml", &format!("[registries.\"{}\"]\nmirrors = [{mirrors}]\n", upstream.host));
        let _ = std::fs::remove_dir_all(home.data());
    };
    configure(&format!("\"127.0.0.1:1\", \"{}/cache\"", mirror.host));
    let said = must(&home, &nobody, &["run", &name]);
    assert!(said.contains("mirror") && said.contains("warning: the mirror has no `127.0.0.1:1/team/app:1`"), "{said}");
    assert!(!said.contains("upstream\n"), "{said}");
    configure(&format!("\"{}/elsewhere\"", mirror.host));
    assert!(must(&home, &nobody, &["run", &name]).contains("upstream\n"));
    configure("\"https://mirror\"");
    let error = must_fail(&home, &nobody, &["run", &name]);
    assert!(error.contains("the mirror `https://mirror` is not `host[:port][/path]`"), "{error}");

    // What the store has is not asked for again, unless that is wanted.
    configure("");
    home.write("child-context/Dockerfile", &format!("FROM {name}\nLABEL a=b\n"));
    must(&home, &nobody, &["build", "child-context", "-t", "child"]);
    make_app(&home, "newer");
    must(&home, &nobody, &["push", "app", &name]);
    must(&home, &nobody, &["build", "child-context", "-t", "child"]);
    assert!(must(&home, &nobody, &["run", "child"]).contains("upstream\n"));
    must(&home, &nobody, &["build", "child-context", "-t", "child", "--pull"]);
    assert!(must(&home, &nobody, &["run", "child"]).contains("newer\n"));
    // What is only here cannot be asked for anywhere.
    home.write("child-context/Dockerfile", "FROM child\nLABEL c=d\n");
    must(&home, &nobody, &["build", "child-context", "-t", "grandchild", "--pull"]);
}

/// Makes an authority and, signed by it, `certificate.pem` for the loopback with `key.pem`; the authority's certificate.
fn certificate(home: &Home) -> PathBuf {
    home.write("extensions", "subjectAltName=IP:127.0.0.1\n");
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(home.path("")).output();
        let output = output.expect("openssl runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    openssl(
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout authority-key.pem -out authority.pem",
    );
    openssl("req -new -newkey rsa:2048 -nodes -subj /CN=test -keyout key.pem -out request.pem");
    let sign = "x509 -req -in request.pem -CA authority.pem -CAkey authority-key.pem -CAcreateserial -days 2";
    openssl(&format!("{sign} -extfile extensions -out certificate.pem"));
    home.path("authority.pem")
}

#[test]
fn each_platform_is_pulled_when_it_is_wanted() {
    if !ready() {
        return;
    }
    let home = Home::new();
    let (peer, nobody) = (Peer::start(&home, "platforms", "", ""), home.path("nobody"));
    make_app(&home, "x");
    home.write(
        "app-context/Dockerfile",
        "FROM scratch\nARG TARGETARCH\nCOPY busybox /bin/busybox\nENV FOR=$TARGETARCH\n\
         CMD [\"/bin/busybox\", \"sh\", \"-c\", \"echo for $FOR\"]\n",
    );
    let host = cfc_oci::Platform::host();
    let (name, platforms) = (format!("{}/app:1", peer.host), format!("local,linux/{}", "s390x"));
    must(&home, &nobody, &["build", "app-context", "-t", &name, "--platform", &platforms, "--push"]);
    let _ = std::fs::remove_dir_all(home.data());
    home.write(
        "child-context/Dockerfile",
        &format!("FROM {name}\nARG TARGETARCH\nCOPY <<made /for-$FOR-$TARGETARCH\nmade\n"),
    );
    for architecture in ["s390x", &host.architecture, "s390x"] {
        let arguments = ["build", "child-context", "-t", "child", "-o", "files", "--platform", architecture];
        let _ = std::fs::remove_dir_all(home.path("files"));
        must(&home, &nobody, &arguments);
        assert!(home.path(&format!("files/for-{architecture}-{architecture}")).exists(), "{architecture}");
    }
    // The last one that was pulled is not for this machine.
    assert!(must(&home, &nobody, &["run", &name]).contains(&format!("for {}", host.architecture)));
    let error = must_fail(&home, &nobody, &["build", "child-context", "-t", "child", "--platform", "riscv64"]);
    assert!(error.contains("image for linux/riscv64 (it has images for"), "{error}");
}

#[test]
fn a_registrys_certificate_is_checked_unless_the_configuration_says_otherwise() {
    if !ready() || !has_program("openssl") {
        return;
    }
    let home = Home::new();
    let authority = certificate(&home);
    let (certificate, key) = (home.path("certificate.pem"), home.path("key.pem"));
    let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
    let peer = Peer::start(&home, "secure", "", &tls);
    make_app(&home, "mine");
    let (name, nobody) = (format!("{}/app:1", peer.host), home.path("nobody"));
    let configure = |lines: &str| {
        home.write("config.toml", &format!("[registries.\"{}\"]\nhttp = false\n{lines}", peer.host));
    };
    configure("");
    let error = must_fail(&home, &nobody, &["push", "app", &name]);
    assert!(error.contains("cannot reach the registry"), "{error}");
    configure(&format!("ca = \"{}\"\n", authority.display()));
    must(&home, &nobody, &["push", "app", &name]);
    configure("insecure = true\n");
    must(&home, &nobody, &["push", "app", &name]);
    configure("ca = \"/nowhere.pem\"\n");
    let error = must_fail(&home, &nobody, &["push", "app", &name]);
    assert!(error.contains("/nowhere.pem"), "{error}");
}

/// A token service as those of registries are: it gives access for a refresh token that it knows, and nothing for anything
/// else. The registry trusts its certificate.
struct TokenService {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl TokenService {
    fn start(home: &Home, known: &'static str) -> TokenService {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("is bound").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (noted, directory) = (asked.clone(), home.path(""));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let request = read_request(&mut stream);
                let granted =
                    request.contains("grant_type=refresh_token") && request.contains(&format!("refresh_token={known}"));
                noted.lock().expect("no panic").push(request);
                let (status, body) = match granted {
                    true => {
                        ("200 OK", format!("{{\"access_token\":\"{}\",\"expires_in\":60}}", access_token(&directory)))
                    }
                    false => ("401 Unauthorized", "{}".to_string()),
                };
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all((head + &body).as_bytes());
            }
        });
        TokenService { address, asked }
    }
}

fn read_request(stream: &mut std::net::TcpStream) -> String {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    let length = |text: &str| {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let named = head.to_ascii_lowercase();
        let wanted = named.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        Some(body.len() >= wanted.unwrap_or(0))
    };
    while length(&text) != Some(true) {
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => text.push_str(&String::from_utf8_lossy(&buffer[..count])),
            _ => break,
        }
    }
    text
}

/// A token for everything in `team/app`, signed as the registry wants it (RFC 7515, with the certificate in it).
fn access_token(directory: &Path) -> String {
    let openssl = |arguments: &[&str], input: &[u8]| {
        let mut command = Command::new("openssl");
        command.args(arguments).current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("openssl runs");
        child.stdin.take().expect("a pipe").write_all(input).expect("it reads");
        child.wait_with_output().expect("it ends").stdout
    };
    let base64 = |bytes: &[u8]| String::from_utf8(openssl(&["base64", "-A"], bytes)).expect("text").trim().to_string();
    let url = |bytes: &[u8]| base64(bytes).trim_end_matches('=').replace('+', "-").replace('/', "_");
    let certificate = openssl(&["x509", "-in", "certificate.pem", "-outform", "DER"], b"");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let head = serde_json::json!({"typ": "JWT", "alg": "RS256", "x5c": [base64(&certificate)]});
    let claims = serde_json::json!({
        "iss": "issuer", "sub": "user", "aud": "service", "jti": "1", "iat": now, "nbf": now - 10, "exp": now + 60,
        "access": [{"type": "repository", "name": "team/app", "actions": ["pull", "push"]}],
    });
    let signed = format!("{}.{}", url(head.to_string().as_bytes()), url(claims.to_string().as_bytes()));
    let signature = openssl(&["dgst", "-sha256", "-sign", "key.pem"], signed.as_bytes());
    format!("{signed}.{}", url(&signature))
}

#[test]
fn an_identity_token_of_a_helper_is_exchanged_for_access() {
    if !ready() || !has_program("openssl") {
        return;
    }
    let home = Home::new();
    let authority = certificate(&home);
    let service = TokenService::start(&home, "right");
    let auth = format!(
        "auth: {{token: {{realm: 'http://{}/token', service: service, issuer: issuer, rootcertbundle: {}}}}}\n",
        service.address,
        authority.display()
    );
    let peer = Peer::start(&home, "tokens", &auth, "");
    make_app(&home, "mine");
    let name = format!("{}/team/app:1", peer.host);
    home.write("login/config.json", r#"{"credsStore": "vault"}"#);
    let (login, nobody) = (home.path("login"), home.path("nobody"));
    let answer = |token: &str| format!(r#"{{"ServerURL":"x","Username":"<token>","Secret":"{token}"}}"#);
    helper(&home, "vault", &peer.host, &answer("wrong"), 0);
    let error = must_fail(&home, &login, &["push", "app", &name]);
    assert!(error.contains("from `docker-credential-vault`") && error.contains("401"), "{error}");
    helper(&home, "vault", &peer.host, &answer("right"), 0);
    must(&home, &login, &["push", "app", &name]);
    let _ = std::fs::remove_dir_all(home.data());
    assert!(must(&home, &login, &["run", &name]).contains("mine"));
    assert!(must_fail(&home, &nobody, &["push", "app", &name]).contains("error: "));
    let asked = service.asked.lock().expect("no panic").clone();
    assert!(
        asked.iter().any(|request| request.contains("service=service") && request.contains("team%2Fapp")),
        "{asked:?}"
    );
}

#[test]
fn a_deploy_takes_an_image_from_a_registry_that_wants_a_password() {
    if !ready() || !crate::starter::ready() {
        return;
    }
    let outside = Home::new();
    let peer = Peer::with_password(&outside);
    let login = outside.path("login");
    let home = Home::through(&["env", &format!("DOCKER_CONFIG={}", login.display())]);
    let project = home.project(WORKER);
    home.must(&["build", &project.display().to_string()]);
    let name = format!("{}/team/app:1", peer.host);
    let log_in = |secret: &str| {
        outside.write("login/config.json", &format!(r#"{{"auths": {{"{}": {{"auth": "{secret}"}}}}}}"#, peer.host))
    };
    log_in(LOGIN);
    home.must(&["push", APPLICATION, &name]);
    let config = project.join("wrangler.jsonc");
    let text = std::fs::read_to_string(&config).expect("readable");
    std::fs::write(&config, text.replace("./Dockerfile", &name)).expect("writable");
    // The platform has nothing of it in a store of its own.
    std::fs::remove_dir_all(home.data()).expect("removed");
    let platform = Platform::start(&home);
    log_in("dXNlcjp3cm9uZw==");
    let error = home.must_fail(&["deploy", &project.display().to_string()]);
    assert!(error.contains(&name) && error.contains("docker login"), "{error}");
    log_in(LOGIN);
    home.must(&["deploy", &project.display().to_string()]);
    assert_eq!(platform.ask(WORKER, "alice").0, 200, "{}", platform.log());
    platform.stop();
}
