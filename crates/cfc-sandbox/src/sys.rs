//! The system calls that rustix lacks or cannot offer safely. All of this workspace's `unsafe` is here.
//!
//! Each block says why it is needed (JUSTIFICATION) and why it is sound (SAFETY).
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::seccomp::Instruction;

/// The libc crate's constant of this name does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What [`clone_process`] returns: twice, once in each process.
pub(crate) enum Cloned {
    /// In the new process.
    Child,
    /// In the calling process.
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Forks with `flags` (`CLONE_NEW*`, `CLONE_PARENT` for a sibling, `CLONE_FILES` for one that begins with
/// [`leave_shared_descriptors`]) and a pidfd, into the v2 cgroup `cgroup` if one is
/// given.
///
/// To be called only while this process has a single thread: the child then is an exact copy in which everything,
/// allocation included, goes on working. The launcher never starts a thread.
pub(crate) fn clone_process(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // JUSTIFICATION: no crate forks into new namespaces with a pidfd.
    // SAFETY: `clone_args` is plain data for which zeroes are valid. It and `pidfd` outlive the call. Without CLONE_VM
    // and with a null stack this is a fork; the caller promises a single thread.
    let pid = unsafe {
        let mut args: libc::clone_args = std::mem::zeroed();
        args.flags = flags | libc::CLONE_PIDFD as u64;
        args.pidfd = &raw mut pidfd as u64;
        // A sibling of ours ends as we do; the kernel takes no other wish.
        let is_sibling = flags & libc::CLONE_PARENT as u64 != 0;
        args.exit_signal = if is_sibling { 0 } else { libc::SIGCHLD as u64 };
        if let Some(cgroup) = cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>())
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        // SAFETY: the kernel has just made this descriptor, and nothing else knows it.
        pid => Ok(Cloned::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Leaves the process at once: no destructors, no buffers flushed.
pub(crate) fn exit_now(code: i32) -> ! {
    // JUSTIFICATION: a forked child must not run the parent's exit handlers.
    // SAFETY: always sound.
    unsafe { libc::_exit(code) }
}

/// Has the allocator keep up to `bytes` of freed memory for its next user, in each of four arenas, instead of giving it
/// back to the kernel, which clears every page that it gives out anew. For programs that go on receiving: a body of 1 GiB
/// in fresh buffers costs 262,144 page faults. Does nothing where the C library is another than glibc.
pub fn keep_freed_memory(bytes: u32) {
    #[cfg(target_env = "gnu")]
    {
        const ARENAS: c_int = 4;
        let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
        // JUSTIFICATION: no crate sets the options of glibc's malloc.
        // SAFETY: mallopt(3) may be called at any time; a value that it does not take changes nothing.
        unsafe {
            libc::mallopt(libc::M_TRIM_THRESHOLD, bytes);
            // Setting one ends the adjustment of both: a buffer as large as a network read is no mapping of its own.
            libc::mallopt(libc::M_MMAP_THRESHOLD, bytes);
            // As many as there are processors times eight would keep as many times as much.
            libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}

/// Changes the attributes of the mount (with `recursive`, of the mount tree) behind `mount`.
///
/// `idmap` names the user namespace whose mapping the mount shall have.
pub(crate) fn set_mount_attributes(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    idmap: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    #[repr(C)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attributes = MountAttr {
        attr_set: set | if idmap.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        // The access-time flags are one field of several values: setting one means clearing the others.
        attr_clr: if set & libc::MOUNT_ATTR__ATIME != 0 { libc::MOUNT_ATTR__ATIME } else { 0 },
        propagation: 0,
        userns_fd: idmap.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // JUSTIFICATION: rustix has no mount_setattr.
    // SAFETY: the path is a valid empty C string, the structure has the kernel's layout and outlives the call.
    let result = unsafe {
        let size = size_of::<MountAttr>();
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, &raw const attributes, size)
    };
    check(result)
}

/// Moves this process into new namespaces. Not for `CLONE_FILES`.
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(rustix::thread::UnshareFlags::FILES));
    // JUSTIFICATION: rustix marks it unsafe.
    // SAFETY: unsafe only because of UnshareFlags::FILES, which our callers never pass.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Gives every signal its default action, and unblocks all.
///
/// Rust ignores SIGPIPE, and an ignored signal stays ignored across `execve`.
pub(crate) fn reset_signals() {
    // JUSTIFICATION: no crate resets dispositions in a forked child.
    // SAFETY: SIG_DFL is always a valid action; unknown signals only fail. Four zero words are the kernel's structure for
    // SIG_DFL, without flags, with an empty mask of eight bytes. The set is initialised before its use.
    unsafe {
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
        // The C library keeps these two to itself and refuses to touch them; inherited, they may be ignored all the same.
        let default = [0_u64; 4];
        for signal in [32, 33] {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Blocks every signal in this thread, so that they wait for [`next_signal`].
pub(crate) fn block_signals() {
    // JUSTIFICATION: see reset_signals.
    // SAFETY: the set is initialised before its use.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

/// The next signal sent to this process; all must be blocked.
pub(crate) fn next_signal() -> i32 {
    let mut signal: c_int = 0;
    // JUSTIFICATION: no crate waits for a blocked signal.
    // SAFETY: the set is initialised before its use; `signal` outlives the call.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigwait(&raw const all, &raw mut signal);
    }
    signal
}

/// Replaces this process by the program at `path`. Returns only on failure.
pub(crate) fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // JUSTIFICATION: std's Command forks by itself and closes nothing for us.
    // SAFETY: both arrays end with a null pointer and point to C strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces this process by the program in `file`. Returns only on failure.
pub(crate) fn execute_file(file: BorrowedFd<'_>, arguments: &[CString], environment: &[CString]) -> io::Error {
    let (argv, envp) = (pointers(arguments), pointers(environment));
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    // JUSTIFICATION: as in execute; fexecve would go through /proc, which a sandbox need not have.
    // SAFETY: as in execute; with the flag the empty path means the file.
    unsafe { libc::syscall(libc::SYS_execveat, file.as_raw_fd(), path, argv.as_ptr(), envp.as_ptr(), flags) };
    io::Error::last_os_error()
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Makes `descriptor` available as `number` too, whatever had that before. It closes at `execve`.
///
/// To be called only with numbers that no owner has ([`Slots`](crate::launcher::slots::Slots) reserves them).
pub(crate) fn put_at(descriptor: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // JUSTIFICATION: rustix replaces only descriptors that it has an owner of.
    // SAFETY: `descriptor` is open; the caller promises that nobody owns `number`.
    check(unsafe { libc::dup3(descriptor.as_raw_fd(), number, libc::O_CLOEXEC) }.into())
}

/// In a process that was made with CLONE_FILES: gives it a table of its own, with the standard descriptors and the `count`
/// from `first` on, which are returned. For a process that drops nothing else any more.
pub(crate) fn leave_shared_descriptors(first: RawFd, count: usize) -> io::Result<Vec<OwnedFd>> {
    let end = first + count as RawFd;
    // JUSTIFICATION: rustix has no close_range.
    // SAFETY: with CLOSE_RANGE_UNSHARE the table of the other process stays as it is; here no owner sees its own closed,
    // since the caller drops nothing.
    check(unsafe { libc::syscall(libc::SYS_close_range, end, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) })?;
    let kept: Vec<RawFd> = (first..end).collect();
    close_all_but(&kept);
    // SAFETY: they are open, and in this process nobody owns them.
    Ok(kept.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

/// Makes every descriptor from `first` on close at `execve`.
pub(crate) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // JUSTIFICATION: rustix has no close_range.
    // SAFETY: with CLOSE_RANGE_CLOEXEC nothing is closed now, so no owner loses its descriptor.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

/// Closes every descriptor from `first` on, whoever owns it. For a process that drops nothing any more.
pub(crate) fn close_from(first: RawFd) {
    // JUSTIFICATION: the reaper must not hold what it inherited, and cannot reach the owners.
    // SAFETY: the only caller never returns and uses no descriptor afterwards, so no owner sees its own closed.
    unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
}

/// Closes every descriptor but `kept` and the standard ones, whoever owns them. For a process that drops nothing any more.
pub(crate) fn close_all_but(kept: &[RawFd]) {
    let mut kept = kept.to_vec();
    kept.sort_unstable();
    let mut first: RawFd = 3;
    for descriptor in kept {
        if first < descriptor {
            // JUSTIFICATION: a copy of the launcher must not hold what that has open, and cannot reach the owners.
            // SAFETY: the only caller never returns to the owners and drops nothing, so no owner sees its own closed.
            unsafe { libc::syscall(libc::SYS_close_range, first, descriptor - 1, 0) };
        }
        first = descriptor + 1;
    }
    close_from(first);
}

/// Adds a seccomp filter to this process, without touching no_new_privs.
pub(crate) fn install_seccomp(program: &[Instruction]) -> io::Result<()> {
    install_filter(program, 0).map(drop)
}

/// Adds a seccomp filter to this process whose `SECCOMP_RET_USER_NOTIF` calls wait for the reader of the returned listener.
/// Once received, a call is interrupted by nothing but the caller's end, where the kernel (5.19) can have it so.
pub(crate) fn install_seccomp_listener(program: &[Instruction]) -> io::Result<OwnedFd> {
    let flags = [libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, 0];
    let install = |more| install_filter(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | more);
    let listener = install(flags[0]).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => install(flags[1]),
        _ => Err(error),
    })?;
    // SAFETY: with this flag the kernel returns a descriptor that it has just made, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as RawFd) })
}

fn install_filter(program: &[Instruction], flags: libc::c_ulong) -> io::Result<i64> {
    #[repr(C)]
    struct Program {
        length: libc::c_ushort,
        filter: *const Instruction,
    }
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = Program { length, filter: program.as_ptr() };
    // JUSTIFICATION: no crate offers it without setting no_new_privs, which builds run without.
    // SAFETY: the structure has the layout of `struct sock_fprog`; the kernel copies the filter during the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    check(result).map(|()| result)
}

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldCall {
    pub(crate) id: u64,
    /// The thread that called, by its number in our pid namespace.
    pub(crate) pid: u32,
    pub(crate) number: i32,
    pub(crate) arguments: [u64; 6],
}

/// The next call that waits at a seccomp listener.
pub(crate) fn receive_call(listener: BorrowedFd<'_>) -> io::Result<HeldCall> {
    const RECEIVE: libc::Ioctl = 0xC050_2100_u32 as libc::Ioctl;
    /// `struct seccomp_notif`.
    #[repr(C)]
    #[derive(Default)]
    struct Notification {
        id: u64,
        pid: u32,
        flags: u32,
        number: i32,
        architecture: u32,
        instruction: u64,
        arguments: [u64; 6],
    }
    const { assert!(size_of::<Notification>() == 80) };
    let mut received = Notification::default();
    // JUSTIFICATION: no crate of ours speaks with seccomp listeners.
    // SAFETY: the structure has the kernel's layout, whose size is part of the request, is all zeroes as the kernel wants it,
    // and outlives the call; every value is valid for its fields.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut received) } as i64)?;
    let Notification { id, pid, number, arguments, .. } = received;
    Ok(HeldCall { id, pid, number, arguments })
}

/// Whether the call's thread still waits for the answer.
pub(crate) fn is_call_pending(listener: BorrowedFd<'_>, id: u64) -> bool {
    const IS_VALID: libc::Ioctl = 0x4008_2102;
    // JUSTIFICATION: as in receive_call.
    // SAFETY: the request reads one number, which outlives the call.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), IS_VALID, &raw const id) } as i64).is_ok()
}

/// Ends a held call: with the error `errno`, or successfully with 0.
pub(crate) fn answer_call(listener: BorrowedFd<'_>, id: u64, errno: i32) -> io::Result<()> {
    const SEND: libc::Ioctl = 0xC018_2101_u32 as libc::Ioctl;
    /// `struct seccomp_notif_resp`.
    #[repr(C)]
    struct Answer {
        id: u64,
        value: i64,
        error: i32,
        flags: u32,
    }
    const { assert!(size_of::<Answer>() == 24) };
    let answer = Answer { id, value: 0, error: -errno, flags: 0 };
    // JUSTIFICATION: as in receive_call.
    // SAFETY: the structure has the kernel's layout and outlives the call, which only reads it.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw const answer) } as i64)
}

/// Makes files see this thread as that user and group, whoever it is otherwise.
pub(crate) fn set_filesystem_ids(uid: u32, gid: u32) -> io::Result<()> {
    // JUSTIFICATION: rustix has neither call.
    // SAFETY: always sound. They return the id before and no error, so they are asked again, with an id that nobody has.
    let found = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX))
    };
    if found == (uid as c_int, gid as c_int) { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

/// Brings the loopback device of this network namespace up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // JUSTIFICATION: rustix has no interface ioctls.
    // SAFETY: `ifreq` is plain data for which zeroes are valid; the name is shorter than its field and stays
    // zero-terminated; the kernel reads as much as the structure holds.
    check(unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as c_char;
        request.ifr_name[1] = b'o' as c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request)
    } as i64)
}

/// The number of a loop device that has no file; the kernel makes one when none is left.
pub(crate) fn free_loop_device(control: BorrowedFd<'_>) -> io::Result<u32> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
    // JUSTIFICATION: no crate of ours has the loop control device.
    // SAFETY: this request takes no argument.
    loop_device_number(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })
}

/// Makes a loop device that was not there before.
pub(crate) fn add_loop_device(control: BorrowedFd<'_>) -> io::Result<u32> {
    const LOOP_CTL_ADD: libc::Ioctl = 0x4C80;
    // JUSTIFICATION: as in free_loop_device.
    // SAFETY: the argument is a number; -1 lets the kernel choose.
    loop_device_number(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_ADD, -1 as libc::c_long) })
}

fn loop_device_number(result: c_int) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Puts `file` behind the loop device, with direct I/O where the file can, until nothing uses the device any more.
pub(crate) fn configure_loop_device(device: BorrowedFd<'_>, file: BorrowedFd<'_>, block: u32) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
    const AUTOCLEAR: u32 = 4;
    const DIRECT_IO: u32 = 16;
    /// `struct loop_config`, with the fields of `struct loop_info64` that are not zero.
    #[repr(C)]
    struct LoopConfig {
        file: u32,
        block: u32,
        before_flags: [u64; 5],
        encryption: [u32; 3],
        flags: u32,
        after_flags: [u8; 64 + 64 + 32 + 16],
        reserved: [u64; 8],
    }
    const { assert!(size_of::<LoopConfig>() == 304) };
    let config = LoopConfig {
        file: file.as_raw_fd() as u32,
        block,
        before_flags: [0; 5],
        encryption: [0; 3],
        flags: AUTOCLEAR | DIRECT_IO,
        after_flags: [0; 176],
        reserved: [0; 8],
    };
    // JUSTIFICATION: as in free_loop_device.
    // SAFETY: the structure has the kernel's layout and outlives the call, which only reads it.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) } as i64)
}

/// Stops the ext4 filesystem of `root` from writing anything to its device from now on.
pub(crate) fn shut_down_ext4(root: BorrowedFd<'_>) -> io::Result<()> {
    const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587D;
    static NO_LOG_FLUSH: u32 = 2;
    // JUSTIFICATION: no crate has it.
    // SAFETY: the request reads one number, which outlives the call. Other filesystems refuse the request.
    check(unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const NO_LOG_FLUSH) } as i64)
}

/// Sets a socket option whose value is a number.
pub(crate) fn set_socket_option(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // JUSTIFICATION: rustix lacks IP_TRANSPARENT, IP_RECVORIGDSTADDR and SO_MARK.
    // SAFETY: the value outlives the call, which reads as much of it as it is told.
    check(unsafe {
        let size = size_of::<c_int>() as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size)
    } as i64)
}

/// Receives a datagram with its sender's address and its control messages, both as the bytes that the kernel writes.
/// Gives the three lengths.
pub(crate) fn receive_message(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    name: &mut [u8],
    control: &mut [u64],
) -> io::Result<(usize, usize, usize)> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // JUSTIFICATION: rustix gives no control message but descriptors and credentials.
    // SAFETY: `msghdr` is plain data for which zeroes are valid; every pointer in it is to memory of the length beside it,
    // which outlives the call; control messages need the alignment of a machine word, which `control` has.
    let (received, header) = unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_name = name.as_mut_ptr().cast();
        header.msg_namelen = name.len() as libc::socklen_t;
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(control) as _;
        (libc::recvmsg(socket.as_raw_fd(), &raw mut header, 0), header)
    };
    check(received as i64)?;
    Ok((received as usize, header.msg_namelen as usize, header.msg_controllen))
}

/// Sends any signal, real-time ones included.
pub(crate) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // JUSTIFICATION: rustix's Signal cannot safely hold every number.
    // SAFETY: a null siginfo is allowed; a bad signal number only fails.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    })
}

/// Sends any signal to a process of our own pid namespace. For a process that forwards signals.
pub(crate) fn forward_signal(pid: i32, signal: i32) {
    // JUSTIFICATION: as in send_signal.
    // SAFETY: always sound; failure (the process is gone) is what the caller expects.
    unsafe { libc::kill(pid, signal) };
}

/// Sends any signal to the process group that `leader`, a child that was not waited for, may have made.
pub(crate) fn signal_group(leader: i32, signal: i32) {
    // JUSTIFICATION: as in send_signal.
    // SAFETY: always sound; failure (there is no such group, no such signal) is what the caller expects.
    unsafe { libc::kill(-leader, signal) };
}

/// A duplicate of this process's standard input, which a parent may use to hand over a socket.
pub(crate) fn standard_input() -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?)
}

/// Makes the descriptor of this number, which an earlier program of this process has left open, this program's own.
pub(crate) fn adopt_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    close_on_exec(number, true)?;
    // JUSTIFICATION: a number is all that an earlier program can pass on.
    // SAFETY: it is open, as the call before has shown, and the launcher's state names each descriptor once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether the descriptor of this number is closed at `execve`.
pub(crate) fn close_on_exec(number: RawFd, is_closed: bool) -> io::Result<()> {
    let flags = if is_closed { libc::FD_CLOEXEC } else { 0 };
    // JUSTIFICATION: descriptors that are passed on are known by their numbers.
    // SAFETY: nothing is closed or read; a number that is not open only fails.
    check(i64::from(unsafe { libc::fcntl(number, libc::F_SETFD, flags) }))
}

fn check(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_process_can_be_made_in_a_v2_cgroup() {
        let cgroup = std::path::PathBuf::from(format!("/sys/fs/cgroup/unified/cfc-test-{}", std::process::id()));
        if std::fs::create_dir(&cgroup).is_err() {
            eprintln!("skipped: needs root and a v2 tree at /sys/fs/cgroup/unified");
            return;
        }
        let directory = std::fs::File::open(&cgroup).expect("opens");
        // The child only ends: a test process has threads, and a fork of it may do nothing else.
        match clone_process(0, Some(directory.as_fd())).expect("clones") {
            Cloned::Child => exit_now(7),
            Cloned::Parent { pid, pidfd } => {
                let members = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("reads");
                let waited = rustix::process::waitid(
                    rustix::process::WaitId::PidFd(pidfd.as_fd()),
                    rustix::process::WaitIdOptions::EXITED,
                );
                std::fs::remove_dir(&cgroup).expect("is empty again");
                assert!(members.lines().any(|line| line.starts_with("0::/cfc-test-")), "{members}");
                assert_eq!(waited.expect("waits").and_then(|status| status.exit_status()), Some(7));
            }
        }
    }
}
