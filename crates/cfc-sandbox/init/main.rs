//! Process 1 of a sandbox: reaps orphans, passes signals on, and ends as the application ends.
//!
//! A program of its own, with neither `std` nor an allocator, so that each instance pays for a few pages only. `build.rs`
//! compiles it and the launcher carries it (`src/child/init.rs`).
//!
//! ```text
//! cfc-init PID                    the application is already there: a child of this process before it became cfc-init
//! cfc-init -- PROGRAM [ARG...]    starts the application itself; for a runtime that starts only one process
//! ```
//!
//! It ends with the application's code, or with 128 plus the signal that ended it; with 127 when there is no such program
//! and with 126 when it cannot be executed, as a shell does.
#![no_std]
#![no_main]
// Or the functions below that the compiler calls would be compiled into calls of themselves.
#![no_builtins]

mod system;

use system::{Errno, Status};

/// `argv` and `envp` as the kernel put them: arrays that end with a null pointer.
#[derive(Clone, Copy)]
struct Start {
    arguments: *const *const u8,
    environment: *const *const u8,
}

/// What the entry point calls.
#[unsafe(no_mangle)]
extern "C" fn start(stack: *const usize) -> ! {
    // Whoever sends a signal before this process listens: it waits. The application gets its own mask.
    system::block_signals();
    // Nobody in the sandbox may trace this process, whose system calls nothing filters.
    system::close_memory();
    system::set_name(c"cfc-init");
    let start = Start::at(stack);
    match start.argument(1) {
        Some(b"--") => reap(spawn(start)),
        // What this process still has open would keep pipes open that others wait for.
        Some(pid) => {
            system::close_all();
            reap(number(pid))
        }
        None => system::exit(EXIT_USAGE),
    }
}

const EXIT_USAGE: i32 = 125;
const EXIT_CANNOT_EXECUTE: i32 = 126;
const EXIT_NOT_FOUND: i32 = 127;
const PATH_MAX: usize = 4096;
const PATH_DEFAULT: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn reap(application: i32) -> ! {
    loop {
        while let Some((pid, status)) = system::wait_for_any() {
            if pid == application {
                system::exit(match status {
                    Status::Exited(code) => code,
                    Status::Killed(signal) => 128 + signal,
                });
            }
        }
        match system::next_signal() {
            system::SIGCHLD => {}
            signal => system::send_signal(application, signal),
        }
    }
}

/// Starts the program that follows `--`, in a session of its own.
fn spawn(start: Start) -> i32 {
    let Some(program) = start.argument(2) else { system::exit(EXIT_USAGE) };
    match system::fork() {
        Ok(0) => {
            system::start_session();
            system::unblock_signals();
            let errno = execute(start, program);
            system::complain(&[b"cfc-init: cannot execute `", program, b"`\n"]);
            system::exit(if errno == system::ENOENT { EXIT_NOT_FOUND } else { EXIT_CANNOT_EXECUTE })
        }
        Ok(application) => {
            system::close_all();
            application
        }
        Err(_) => {
            system::complain(&[b"cfc-init: cannot make a process\n"]);
            system::exit(EXIT_CANNOT_EXECUTE)
        }
    }
}

/// As `execvp`. Returns only when it failed.
fn execute(start: Start, program: &[u8]) -> Errno {
    let mut path = [0; PATH_MAX];
    if program.contains(&b'/') {
        return attempt(start, &mut path, &[program]);
    }
    let mut worst = system::ENOENT;
    for directory in start.variable(b"PATH=").unwrap_or(PATH_DEFAULT).split(|byte| *byte == b':') {
        let directory: &[u8] = if directory.is_empty() { b"." } else { directory };
        let errno = attempt(start, &mut path, &[directory, b"/", program]);
        if errno != system::ENOENT && errno != system::ENOTDIR {
            worst = errno;
        }
    }
    worst
}

fn attempt(start: Start, buffer: &mut [u8; PATH_MAX], parts: &[&[u8]]) -> Errno {
    let mut length = 0;
    for byte in parts.iter().flat_map(|part| part.iter()).chain(&[0]) {
        let Some(place) = buffer.get_mut(length) else { return system::ENAMETOOLONG };
        *place = *byte;
        length += 1;
    }
    system::execute(&*buffer, start.after(2), start.environment)
}

fn number(digits: &[u8]) -> i32 {
    digits.iter().fold(0_i32, |value, digit| {
        value.wrapping_mul(10).wrapping_add(i32::from(digit.wrapping_sub(b'0')))
    })
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    system::exit(EXIT_USAGE)
}
