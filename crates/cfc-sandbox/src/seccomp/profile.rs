//! cfc's own seccomp profile: tighter than Docker's.
//!
//! What Docker allows and this does not: mounting and the new mount calls, joining and making namespaces, io_uring,
//! keyrings, bpf, perf, userfaultfd, taking descriptors out of other processes, and sockets of unusual families.
//! `clone3` answers ENOSYS, since its flags lie in memory that a filter cannot read; libraries then use `clone`.
//! A call that is not named here, and so every call a newer kernel adds, answers ENOSYS.

use oci_spec::runtime::LinuxSeccomp;
use serde_json::json;

/// All `CLONE_NEW*` flags that make a namespace.
const NAMESPACE_FLAGS: u64 = 0x7e02_0080;

/// The families of sockets: Unix, IPv4, IPv6, netlink and packet. Others are seldom used and often broken.
const SOCKET_FAMILIES: [u64; 5] = [1, 2, 10, 16, 17];

/// The profile, in the OCI form.
pub(crate) fn default_profile() -> LinuxSeccomp {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let no_namespace = json!([{"index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]);
    let flags = (0..64).map(|bit| 1_u64 << bit).filter(|flag| flag & NAMESPACE_FLAGS != 0);
    let any_namespace: Vec<_> =
        flags.map(|flag| json!({"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"})).collect();
    // The kernel looks at the low 32 bits of these arguments, and so must the filter.
    let is = |value: u64| json!({"index": 0, "value": 0xffff_ffff_u64, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"});
    let families: Vec<_> = SOCKET_FAMILIES.into_iter().map(is).collect();
    // As Docker: Linux, its 32-bit form and its 2.6 numbering, and asking which one it is.
    let personalities = json!([is(0), is(8), is(0x2_0000), is(0x2_0008), is(0xffff_ffff)]);
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::ENOSYS,
        "syscalls": [
            {"names": words(ALLOWED), "action": "SCMP_ACT_ALLOW"},
            {"names": ["clone", "unshare"], "action": "SCMP_ACT_ALLOW", "args": no_namespace},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": families},
            {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": personalities},
            {"names": words(REFUSED), "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM},
            {"names": ["clone", "unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM, "args": any_namespace},
            {"names": ["personality", "socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM},
        ],
    });
    serde_json::from_value(profile).expect("the profile is well-formed")
}

/// The calls that mount, for [`allow`].
pub(crate) const MOUNTS: &str = "
    fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree pivot_root umount2";

/// The calls that make, join and name namespaces, for [`allow`].
pub(crate) const NAMESPACES: &str = "clone clone3 setdomainname sethostname setns unshare";

/// The kernel's keyrings, for [`forget`].
pub(crate) const KEYRINGS: &str = "add_key keyctl request_key";

/// Allows `calls`, whatever `profile` says of them.
pub(crate) fn allow(profile: &mut LinuxSeccomp, calls: &str) {
    forget(profile, calls);
    let names: Vec<_> = calls.split_whitespace().collect();
    let entry = serde_json::from_value(json!({"names": names, "action": "SCMP_ACT_ALLOW"}));
    let mut entries = profile.syscalls().clone().unwrap_or_default();
    entries.push(entry.expect("the entry is well-formed"));
    profile.set_syscalls(Some(entries));
}

/// Makes `calls` unknown: they get the default answer.
pub(crate) fn forget(profile: &mut LinuxSeccomp, calls: &str) {
    let is_kept = |name: &&String| !calls.split_whitespace().any(|call| call == *name);
    let mut entries = profile.syscalls().clone().unwrap_or_default();
    for entry in &mut entries {
        let names = entry.names().iter().filter(is_kept).cloned().collect::<Vec<_>>();
        entry.set_names(names);
    }
    entries.retain(|entry| !entry.names().is_empty());
    profile.set_syscalls(Some(entries));
}

const ALLOWED: &str = "
    accept accept4 access adjtimex alarm arch_prctl bind brk capget capset chdir chmod chown chroot
    clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2
    dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve
    execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat
    fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr
    fstat fstatfs fsync ftruncate futex futex_waitv futimesat get_robust_list get_thread_area getcpu
    getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp
    getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname
    getsockopt gettid gettimeofday getuid getxattr inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch io_cancel io_destroy io_getevents io_setup io_submit ioctl ioprio_get
    ioprio_set kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link
    linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat madvise membarrier memfd_create
    memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap modify_ldt mprotect
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget
    msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause
    pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64
    preadv preadv2 prlimit64 process_madvise process_mrelease process_vm_readv process_vm_writev pselect6
    ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg
    remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
    sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto
    set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid
    setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr shmat
    shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs statx
    symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
    timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill
    truncate umask uname unlink unlinkat utime utimensat utimes vfork wait4 waitid write writev";

/// Known, and answered with EPERM, as Docker does.
const REFUSED: &str = "
    acct add_key bpf clock_adjtime clock_settime delete_module fanotify_init finit_module fsconfig fsmount
    fsopen fspick get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl
    kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind migrate_pages mount mount_setattr
    move_mount move_pages nfsservctl open_by_handle_at open_tree perf_event_open
    pidfd_getfd pivot_root quotactl quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node
    setdomainname sethostname setns settimeofday swapoff swapon sysfs syslog umount2 uselib userfaultfd
    ustat vhangup vmsplice";
