//! The system calls of process 1, and what the kernel puts on its stack. All `unsafe` of the program is here.

use core::arch::{asm, global_asm};
use core::ffi::CStr;

use crate::Start;

#[cfg(target_arch = "x86_64")]
mod numbers {
    pub const WRITE: usize = 1;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const SETSID: usize = 112;
    pub const RT_SIGTIMEDWAIT: usize = 128;
    pub const PRCTL: usize = 157;
    pub const EXIT_GROUP: usize = 231;
    pub const CLOSE_RANGE: usize = 436;
}

#[cfg(target_arch = "aarch64")]
mod numbers {
    pub const WRITE: usize = 64;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const WAIT4: usize = 260;
    pub const KILL: usize = 129;
    pub const SETSID: usize = 157;
    pub const RT_SIGTIMEDWAIT: usize = 137;
    pub const PRCTL: usize = 167;
    pub const EXIT_GROUP: usize = 94;
    pub const CLOSE_RANGE: usize = 436;
}

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    start = sym crate::start,
);

#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x0, sp", "bl {start}", start = sym crate::start);

pub type Errno = i32;
pub const ENOENT: Errno = 2;
pub const ENOTDIR: Errno = 20;
pub const ENAMETOOLONG: Errno = 36;

pub const SIGCHLD: i32 = 17;
const SIG_SETMASK: usize = 2;
const WNOHANG: usize = 1;
const PR_SET_DUMPABLE: usize = 4;
const PR_SET_NAME: usize = 15;
/// The kernel's set of signals, one bit each.
const SIGNALS_LENGTH: usize = 8;
const ALL: u64 = u64::MAX;
const NONE: u64 = 0;
const STDERR: usize = 2;

/// How a process has ended.
pub enum Status {
    Exited(i32),
    Killed(i32),
}

/// The kernel's answer: what the call returns, or the number of an error below zero.
///
/// # Safety
/// Pointers among the arguments must be what the call takes.
unsafe fn call(number: usize, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise; the kernel changes no other registers.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller's promise; the kernel changes no other registers.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d, in("x4") e,
             options(nostack));
    }
    result
}

pub fn block_signals() {
    set_mask(&ALL);
}

pub fn unblock_signals() {
    set_mask(&NONE);
}

fn set_mask(mask: &u64) {
    // SAFETY: the mask outlives the call, and the old one is not asked for.
    unsafe { call(numbers::RT_SIGPROCMASK, [SIG_SETMASK, core::ptr::from_ref(mask).addr(), 0, SIGNALS_LENGTH, 0]) };
}

/// The next signal sent to this process; all must be blocked.
pub fn next_signal() -> i32 {
    loop {
        // SAFETY: the set outlives the call; neither details nor a timeout are given.
        let signal = unsafe {
            call(numbers::RT_SIGTIMEDWAIT, [core::ptr::from_ref(&ALL).addr(), 0, 0, SIGNALS_LENGTH, 0])
        };
        if signal > 0 {
            return signal as i32;
        }
    }
}

pub fn send_signal(pid: i32, signal: i32) {
    // SAFETY: no pointers. When the process is gone nothing happens.
    unsafe { call(numbers::KILL, [pid as usize, signal as usize, 0, 0, 0]) };
}

/// A child that has ended, if there is one.
pub fn wait_for_any() -> Option<(i32, Status)> {
    let mut status: i32 = 0;
    // SAFETY: the status outlives the call.
    let pid = unsafe { call(numbers::WAIT4, [usize::MAX, (&raw mut status).addr(), WNOHANG, 0, 0]) };
    let status = match status & 0x7f {
        0 => Status::Exited(status >> 8 & 0xff),
        signal => Status::Killed(signal),
    };
    (pid > 0).then_some((pid as i32, status))
}

pub fn fork() -> Result<i32, Errno> {
    // SAFETY: without flags and stack it is a fork, and this program has one thread.
    match unsafe { call(numbers::CLONE, [SIGCHLD as usize, 0, 0, 0, 0]) } {
        result if result < 0 => Err(-result as i32),
        pid => Ok(pid as i32),
    }
}

/// Executes the program whose path, with a zero behind it, `path` begins with. Returns only when that failed.
pub fn execute(path: &[u8], arguments: *const *const u8, environment: *const *const u8) -> Errno {
    // SAFETY: the path ends with a zero; the arrays are the kernel's own, or the end of them.
    -unsafe { call(numbers::EXECVE, [path.as_ptr().addr(), arguments.addr(), environment.addr(), 0, 0]) } as i32
}

pub fn start_session() {
    // SAFETY: no pointers.
    unsafe { call(numbers::SETSID, [0; 5]) };
}

pub fn close_memory() {
    // SAFETY: no pointers.
    unsafe { call(numbers::PRCTL, [PR_SET_DUMPABLE, 0, 0, 0, 0]) };
}

pub fn set_name(name: &CStr) {
    // SAFETY: the name ends with a zero.
    unsafe { call(numbers::PRCTL, [PR_SET_NAME, name.as_ptr().addr(), 0, 0, 0]) };
}

pub fn close_all() {
    // SAFETY: no pointers, and nothing here owns a descriptor.
    unsafe { call(numbers::CLOSE_RANGE, [0, u32::MAX as usize, 0, 0, 0]) };
}

pub fn complain(parts: &[&[u8]]) {
    for part in parts {
        // SAFETY: the bytes outlive the call.
        unsafe { call(numbers::WRITE, [STDERR, part.as_ptr().addr(), part.len(), 0, 0]) };
    }
}

pub fn exit(code: i32) -> ! {
    loop {
        // SAFETY: no pointers. It does not return.
        unsafe { call(numbers::EXIT_GROUP, [code as usize, 0, 0, 0, 0]) };
    }
}

impl Start {
    /// `stack` is the stack pointer at the entry: the number of arguments, those, null, the environment, null.
    pub fn at(stack: *const usize) -> Start {
        // SAFETY: that is what the kernel has put there (System V ABI, "Initial Process Stack").
        unsafe {
            let arguments = stack.add(1).cast();
            Start { arguments, environment: stack.add(1 + *stack + 1).cast() }
        }
    }

    pub fn argument(&self, index: usize) -> Option<&'static [u8]> {
        (0..=index).try_fold(None, |_, i| entry(self.arguments, i).map(Some)).flatten()
    }

    /// The array of arguments without the first `count`, of which there must be so many.
    pub fn after(&self, count: usize) -> *const *const u8 {
        // SAFETY: at most the null at its end.
        unsafe { self.arguments.add(count) }
    }

    /// The value of a variable; `name` ends with `=`.
    pub fn variable(&self, name: &[u8]) -> Option<&'static [u8]> {
        (0..).map_while(|i| entry(self.environment, i)).find_map(|variable| variable.strip_prefix(name))
    }
}

/// The string at `index` of an array of the kernel's; the caller has seen those before it.
fn entry(array: *const *const u8, index: usize) -> Option<&'static [u8]> {
    // SAFETY: `array` ends with a null pointer, which the caller has not gone past; the strings stay for the process's life.
    unsafe {
        let string = *array.add(index);
        if string.is_null() {
            return None;
        }
        let mut length = 0;
        while *string.add(length) != 0 {
            length += 1;
        }
        Some(core::slice::from_raw_parts(string, length))
    }
}

/// What the compiler compares bytes with, and what `core` names for unwinding, which never happens here.
mod of_the_compiler {
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
        for i in 0..length {
            // SAFETY: both are `length` bytes long.
            let (a, b) = unsafe { (*a.add(i), *b.add(i)) };
            if a != b {
                return i32::from(a) - i32::from(b);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, length: usize) -> i32 {
        // SAFETY: the same promise.
        unsafe { memcmp(a, b, length) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(bytes: *mut u8, value: i32, length: usize) -> *mut u8 {
        for i in 0..length {
            // SAFETY: it is `length` bytes long.
            unsafe { *bytes.add(i) = value as u8 };
        }
        bytes
    }

    #[unsafe(no_mangle)]
    extern "C" fn rust_eh_personality() {}
}
