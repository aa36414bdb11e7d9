//! A server of ours inside a container's network, for what busybox has none for.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use crate::platform::Platform;

/// The role of a process that serves the listener on its standard input: it sends back what it gets.
pub const ECHO: &str = "--echo";

/// A listener inside the network of the running container `name`.
pub fn listen(platform: &Platform, name: &str, address: &str) -> TcpListener {
    let address: SocketAddr = address.parse().expect("an address");
    let network = platform.launcher.network(name).expect("it runs");
    let socket: OwnedFd = network.tcp_socket(address.is_ipv6()).expect("a socket");
    rustix::io::ioctl_fionbio(&socket, false).expect("blocks");
    rustix::net::bind(&socket, &address).expect("binds");
    rustix::net::listen(&socket, 4_096).expect("listens");
    TcpListener::from(socket)
}

/// A process of this program in the role of `arguments`, with `stdin` as its standard input.
pub fn role(arguments: &[&str], stdin: impl Into<Stdio>) -> Child {
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    command.args(arguments).stdin(stdin).stdout(Stdio::piped());
    command.spawn().expect("starts")
}

/// Takes all the descriptors there are.
pub fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("may be raised");
}

/// Sends back what comes on thousands of connections, in one thread.
pub fn be_echo() -> ! {
    use rustix::event::epoll::{self, EventData, EventFlags};
    raise_descriptor_limit();
    let listener: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).expect("a listener");
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let mut connections: Vec<Option<OwnedFd>> = Vec::new();
    epoll::add(&epoll, &listener, EventData::new_u64(u64::MAX), EventFlags::IN).expect("watches");
    let (mut events, mut buffer) = (Vec::with_capacity(256), vec![0; 64 << 10]);
    loop {
        events.clear();
        let _ = epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None);
        for event in &events {
            match event.data.u64() {
                u64::MAX => {
                    let connection = rustix::net::accept(&listener).expect("accepts");
                    let data = EventData::new_u64(connections.len() as u64);
                    epoll::add(&epoll, &connection, data, EventFlags::IN).expect("watches");
                    connections.push(Some(connection));
                }
                index => {
                    let Some(connection) = &connections[index as usize] else { continue };
                    let count = rustix::io::read(connection, &mut buffer).unwrap_or(0);
                    match count {
                        0 => connections[index as usize] = None,
                        count => {
                            let _ = rustix::io::write(connection, &buffer[..count]);
                        }
                    }
                }
            }
        }
    }
}
