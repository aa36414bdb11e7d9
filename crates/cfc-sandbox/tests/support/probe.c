// Prints what a process is and sees, in a form that two runs can be compared in; or serves, or connects.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int compare(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

// The lines of a file, sorted or not, each with a prefix; `drop` cuts the first fields of each line.
static void lines(const char *prefix, const char *path, int sorted, int drop) {
    FILE *file = fopen(path, "r");
    char *all[4096], buffer[8192];
    size_t count = 0;
    if (!file) { printf("%s: error %d\n", prefix, errno); return; }
    while (count < 4096 && fgets(buffer, sizeof buffer, file)) {
        char *start = buffer;
        buffer[strcspn(buffer, "\n")] = 0;
        for (int i = 0; i < drop; i++) { start = strchr(start, ' '); if (!start) break; start++; }
        all[count++] = strdup(start ? start : buffer);
    }
    fclose(file);
    if (sorted) qsort(all, count, sizeof *all, compare);
    for (size_t i = 0; i < count; i++) printf("%s: %s\n", prefix, all[i]);
}

static void status(void) {
    static const char *keys[] = {"Uid", "Gid", "Groups", "NStgid", "NSpid", "NSsid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
        "NoNewPrivs", "Seccomp", "Seccomp_filters", "SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd", "Umask", "TracerPid", "CoreDumping", "THP_enabled"};
    FILE *file = fopen("/proc/self/status", "r");
    char buffer[4096];
    while (file && fgets(buffer, sizeof buffer, file))
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
            if (!strncmp(buffer, keys[i], strlen(keys[i])) && buffer[strlen(keys[i])] == ':') printf("status %s", buffer);
    if (file) fclose(file);
}

static void limits(void) {
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit limit;
        getrlimit(i, &limit);
        printf("rlimit %d: %llu %llu\n", i, (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
    }
}

static void directory(const char *prefix, const char *path) {
    DIR *directory = opendir(path);
    struct dirent *entry;
    char *names[1024];
    size_t count = 0;
    if (!directory) { printf("%s: error %d\n", prefix, errno); return; }
    while (count < 1024 && (entry = readdir(directory))) {
        struct stat s;
        char full[4096], line[8192], target[1024] = "";
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(full, sizeof full, "%s/%s", path, entry->d_name);
        if (lstat(full, &s)) continue;
        ssize_t length = S_ISLNK(s.st_mode) ? readlink(full, target, sizeof target - 1) : 0;
        if (length > 0) target[length] = 0;
        snprintf(line, sizeof line, "%s mode %o owner %d:%d device %lx %s", entry->d_name, s.st_mode, s.st_uid, s.st_gid,
            S_ISCHR(s.st_mode) || S_ISBLK(s.st_mode) ? (unsigned long)s.st_rdev : 0UL, target);
        names[count++] = strdup(line);
    }
    closedir(directory);
    qsort(names, count, sizeof *names, compare);
    for (size_t i = 0; i < count; i++) printf("%s: %s\n", prefix, names[i]);
}

static void descriptors(void) {
    for (int fd = 0; fd < 1024; fd++) {
        struct stat s;
        if (!fstat(fd, &s)) printf("descriptor %d: type %o flags %x\n", fd, s.st_mode & S_IFMT, fcntl(fd, F_GETFL) & O_ACCMODE);
    }
}

// Whether a path can be opened, read and written to.
static void path(const char *path) {
    struct stat s;
    char byte;
    if (stat(path, &s)) { printf("path %s: error %d\n", path, errno); return; }
    printf("path %s: type %o", path, s.st_mode & S_IFMT);
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    printf(" open %d", fd < 0 ? errno : 0);
    if (fd >= 0 && !S_ISDIR(s.st_mode)) printf(" read %s", read(fd, &byte, 1) == 0 ? "empty" : "data or error");
    if (fd >= 0 && S_ISDIR(s.st_mode)) {
        DIR *directory = fdopendir(fd);
        int count = 0;
        while (readdir(directory)) count++;
        printf(" entries %s", count <= 2 ? "none" : "some");
    } else if (fd >= 0) close(fd);
    if (!S_ISDIR(s.st_mode)) {
        fd = open(path, O_WRONLY | O_NONBLOCK);
        printf(" write %d", fd < 0 ? errno : 0);
        if (fd >= 0) close(fd);
    } else {
        char below[4096];
        snprintf(below, sizeof below, "%s/probe", path);
        printf(" mkdir %d", mkdir(below, 0700) ? errno : 0);
        rmdir(below);
    }
    printf("\n");
}

// The errno of a call, made in a child so that it harms nobody. -1: it was killed.
#define CALL(name, expression) do { \
    fflush(stdout); \
    pid_t child = fork(); \
    if (!child) { errno = 0; long result = (long)(expression); _exit(result < 0 ? (errno & 0xff) : 0); } \
    int ended; \
    waitpid(child, &ended, 0); \
    printf("call %s: %d\n", name, WIFEXITED(ended) ? WEXITSTATUS(ended) : -WTERMSIG(ended)); \
} while (0)

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

static void calls(void) {
    struct { uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, a, b, c; } clone_args = {0};
    clone_args.flags = CLONE_NEWUSER;
    CALL("clone newuser", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0) == 0 ? (_exit(0), 0) : -1);
    CALL("clone newnet", syscall(SYS_clone, CLONE_NEWNET | SIGCHLD, 0, 0, 0, 0));
    CALL("clone newns", syscall(SYS_clone, CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0));
    CALL("clone3 newuser", syscall(435, &clone_args, sizeof clone_args));
    CALL("unshare user", unshare(CLONE_NEWUSER));
    CALL("unshare mount", unshare(CLONE_NEWNS));
    CALL("unshare net", unshare(CLONE_NEWNET));
    CALL("unshare files", unshare(CLONE_FILES));
    CALL("setns", syscall(SYS_setns, -1, 0));
    CALL("mount", mount("x", "/tmp", "tmpfs", 0, ""));
    CALL("umount", umount2("/proc/sys", MNT_DETACH));
    CALL("pivot_root", syscall(SYS_pivot_root, "/", "/"));
    CALL("fsopen", syscall(430, "tmpfs", 0));
    CALL("fsconfig", syscall(431, -1, 0, 0, 0, 0));
    CALL("fsmount", syscall(432, -1, 0, 0));
    CALL("fspick", syscall(433, -1, "/", 0));
    CALL("open_tree", syscall(428, -100, "/", 1));
    CALL("move_mount", syscall(429, -100, "/", -100, "/", 0));
    CALL("mount_setattr", syscall(442, -100, "/", 0, 0, 0));
    CALL("keyctl", syscall(SYS_keyctl, 0, -3, 1));
    CALL("add_key", syscall(SYS_add_key, "user", "a", "b", 1, -2));
    CALL("request_key", syscall(SYS_request_key, "user", "a", 0, 0));
    CALL("io_uring_setup", syscall(425, 1, 0));
    CALL("io_uring_enter", syscall(426, -1, 0, 0, 0, 0));
    CALL("io_uring_register", syscall(427, -1, 0, 0, 0));
    CALL("bpf", syscall(SYS_bpf, 0, 0, 0));
    CALL("userfaultfd", syscall(SYS_userfaultfd, 1));
    CALL("perf_event_open", syscall(SYS_perf_event_open, 0, 0, -1, -1, 0));
    CALL("ptrace me", ptrace(PTRACE_TRACEME, 0, 0, 0));
    CALL("process_vm_readv", syscall(SYS_process_vm_readv, 1, 0, 0, 0, 0, 0));
    CALL("pidfd_getfd", syscall(438, -1, 0, 0));
    CALL("personality read", syscall(SYS_personality, 0xffffffffL));
    CALL("personality no randomize", syscall(SYS_personality, 0x0040000L));
    CALL("kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 0));
    CALL("init_module", syscall(SYS_init_module, 0, 0, ""));
    CALL("finit_module", syscall(SYS_finit_module, -1, "", 0));
    CALL("delete_module", syscall(SYS_delete_module, "x", 0));
    CALL("reboot", syscall(SYS_reboot, 0, 0, 0, 0));
    CALL("swapon", syscall(SYS_swapon, "/x", 0));
    CALL("acct", syscall(SYS_acct, 0));
    CALL("settimeofday", syscall(SYS_settimeofday, 0, 0));
    CALL("clock_settime", syscall(SYS_clock_settime, 0, 0));
    CALL("sethostname", sethostname("x", 1));
    CALL("setdomainname", setdomainname("x", 1));
    CALL("syslog", syscall(SYS_syslog, 3, 0, 0));
    CALL("open_by_handle_at", syscall(SYS_open_by_handle_at, -1, 0, 0));
    CALL("quotactl", syscall(SYS_quotactl, 0, 0, 0, 0));
    CALL("vhangup", syscall(SYS_vhangup));
    CALL("fanotify_init", syscall(SYS_fanotify_init, 0, 0));
    CALL("move_pages", syscall(SYS_move_pages, 0, 0, 0, 0, 0, 0));
    CALL("migrate_pages", syscall(SYS_migrate_pages, 0, 0, 0, 0));
    CALL("mbind", syscall(SYS_mbind, 0, 0, 0, 0, 0, 0));
    CALL("kcmp", syscall(SYS_kcmp, 1, 1, 0, 0, 0));
    CALL("vmsplice", syscall(SYS_vmsplice, -1, 0, 0, 0));
    CALL("lookup_dcookie", syscall(212, 0, 0, 0));
#ifdef SYS_uselib
    CALL("uselib", syscall(SYS_uselib, 0));
    CALL("ustat", syscall(SYS_ustat, 0, 0));
    CALL("sysfs", syscall(SYS_sysfs, 3));
    CALL("iopl", syscall(SYS_iopl, 3));
    CALL("ioperm", syscall(SYS_ioperm, 0, 1, 1));
    CALL("modify_ldt", syscall(SYS_modify_ldt, 0, 0, 0));
    CALL("create_module", syscall(SYS_create_module, 0, 0));
    CALL("_sysctl", syscall(SYS__sysctl, 0));
    CALL("nfsservctl", syscall(SYS_nfsservctl, 0, 0, 0));
#endif
    CALL("futex_waitv", syscall(SYS_futex_waitv, 0, 0, 0, 0, 0));
    CALL("number 600", syscall(600));
    CALL("socket inet", socket(AF_INET, SOCK_STREAM, 0));
    CALL("socket inet6", socket(AF_INET6, SOCK_STREAM, 0));
    CALL("socket netlink", socket(AF_NETLINK, SOCK_RAW, 0));
    CALL("socket raw", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    CALL("socket packet", socket(AF_PACKET, SOCK_RAW, 0));
    CALL("socket vsock", socket(40, SOCK_STREAM, 0));
    CALL("socket alg", socket(38, SOCK_SEQPACKET, 0));
    CALL("mknod char", mknod("/tmp/probe-node", S_IFCHR | 0600, 0x103));
    CALL("mknod fifo", mknod("/tmp/probe-fifo", S_IFIFO | 0600, 0) ? -1 : unlink("/tmp/probe-fifo"));
    CALL("chroot", chroot("/"));
    CALL("setuid 1", setuid(1));
    CALL("setgroups", setgroups(0, NULL));
    CALL("chown", chown("/tmp", 1, 1) ? -1 : chown("/tmp", 0, 0));
    CALL("nice -5", setpriority(PRIO_PROCESS, 0, -5));
    CALL("rlimit above", ({ struct rlimit l = {RLIM_INFINITY, RLIM_INFINITY}; setrlimit(RLIMIT_NOFILE, &l); }));
    CALL("sched fifo", ({ struct sched_param p = {1}; sched_setscheduler(0, SCHED_FIFO, &p); }));
    CALL("bind 80", ({ struct sockaddr_in a = {AF_INET, htons(80), {htonl(0x7f000001)}, {0}}; bind(socket(AF_INET, SOCK_STREAM, 0), (void *)&a, sizeof a); }));
}

static void namespaces(void) {
    static const char *names[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"};
    for (size_t i = 0; i < 7; i++) {
        char path[64], target[128] = "";
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        if (readlink(path, target, sizeof target - 1) > 0) printf("namespace %s\n", target);
    }
}

// mountinfo without numbers and without what differs from run to run: point, options, optional fields, type, super options.
static void mounts(void) {
    FILE *file = fopen("/proc/self/mountinfo", "r");
    char buffer[8192], point[1024], options[1024], rest[8192];
    while (file && fgets(buffer, sizeof buffer, file)) {
        buffer[strcspn(buffer, "\n")] = 0;
        if (sscanf(buffer, "%*s %*s %*s %*s %1023s %1023s %8191[^\n]", point, options, rest) != 3) continue;
        char *type = strstr(rest, "- ");
        char kind[256] = "", super[4096] = "";
        if (type) sscanf(type, "- %255s %*s %4095s", kind, super);
        printf("mount %s: type %s options %s propagation %.*s super %s\n", point, kind, options,
            (int)(type ? type - rest : 0), rest, strcmp(kind, "overlay") && strcmp(kind, "devtmpfs") ? super : "-");
    }
    if (file) fclose(file);
}

static int report(int argc, char **argv) {
    struct utsname uts;
    char cwd[4096];
    umask(umask(0));
    for (int i = 0; i < argc; i++) printf("argument %d: %s\n", i, argv[i]);
    for (char **variable = environ; *variable; variable++) printf("environment: %s\n", *variable);
    uname(&uts);
    printf("hostname: %s domain %s\n", uts.nodename, uts.domainname);
    printf("cwd: %s\n", getcwd(cwd, sizeof cwd) ? cwd : "error");
    printf("pid %d parent %d session %d group %d terminal %d\n", getpid(), getppid(), getsid(0) == getpid(), getpgrp() == getpid(), open("/dev/tty", O_RDWR) >= 0);
    printf("dumpable %d keepcaps %d securebits %d subreaper %d\n", prctl(PR_GET_DUMPABLE), prctl(PR_GET_KEEPCAPS), prctl(PR_GET_SECUREBITS), 0);
    printf("scheduler %d nice %d\n", sched_getscheduler(0), getpriority(PRIO_PROCESS, 0));
    for (int signal = 1; signal < 65; signal++) {
        struct sigaction action;
        if (!sigaction(signal, NULL, &action) && action.sa_handler != SIG_DFL) printf("signal %d: not default\n", signal);
    }
    descriptors();
    status();
    limits();
    lines("uid_map", "/proc/self/uid_map", 0, 0);
    lines("gid_map", "/proc/self/gid_map", 0, 0);
    lines("setgroups", "/proc/self/setgroups", 0, 0);
    lines("oom_score_adj", "/proc/self/oom_score_adj", 0, 0);
    lines("cgroup", "/proc/self/cgroup", 1, 0);
    mounts();
    directory("dev", "/dev");
    directory("pts", "/dev/pts");
    directory("net", "/sys/class/net");
    namespaces();
    static const char *paths[] = {"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
        "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
        "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname", "/proc/sys/kernel/panic", "/proc/sys/vm/drop_caches", "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/kmsg", "/proc/kallsyms", "/proc/kpagecount", "/proc/mtrr", "/proc/vmallocinfo", "/proc/1/mem",
        "/proc/self/attr/current", "/sys", "/sys/fs/cgroup", "/sys/kernel", "/sys/kernel/debug", "/sys/kernel/security", "/sys/power/state", "/dev", "/dev/shm", "/dev/mqueue", "/dev/pts",
        "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/console", "/dev/kmsg",
        "/dev/mem", "/tmp", "/etc", "/"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) path(paths[i]);
    lines("port start", "/proc/sys/net/ipv4/ip_unprivileged_port_start", 0, 0);
    lines("ping range", "/proc/sys/net/ipv4/ping_group_range", 0, 0);
    lines("congestion control", "/proc/sys/net/ipv4/tcp_congestion_control", 0, 0);
    calls();
    return 0;
}

// Answers every connection to a port of the loopback with a line.
static int serve(int port) {
    struct sockaddr_in address = {AF_INET, htons(port), {htonl(0x7f000001)}, {0}};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 8)) return perror("listen"), 1;
    for (;;) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0) continue;
        char byte;
        struct pollfd ready = {connection, POLLIN, 0};
        poll(&ready, 1, 10000);
        recv(connection, &byte, 1, MSG_DONTWAIT);
        send(connection, "served\n", 7, MSG_NOSIGNAL);
        shutdown(connection, SHUT_WR);
        close(connection);
    }
}

static int join(const char *host, int port) {
    struct sockaddr_in address = {AF_INET, htons(port), {inet_addr(host)}, {0}};
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(connection, (void *)&address, sizeof address)) return perror("connect"), 1;
    send(connection, "hello\n", 6, MSG_NOSIGNAL);
    return 0;
}

// Whether anything listens at an abstract address.
static int abstract(const char *name) {
    struct sockaddr_un address = {AF_UNIX, ""};
    strncpy(address.sun_path + 1, name, sizeof address.sun_path - 2);
    int length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name);
    int result = connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&address, length);
    printf("abstract: %d\n", result ? errno : 0);
    return 0;
}

// Connections that nobody reads from, filled until no more fits: the buffers of sockets.
static int hoard(int connections) {
    struct sockaddr_in address = {AF_INET, htons(7777), {htonl(0x7f000001)}, {0}};
    char *block = calloc(1, 1 << 20);
    long long total = 0;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (void *)&address, sizeof address);
    listen(listener, 4096);
    for (int i = 0; i < connections; i++) {
        int connection = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        connect(connection, (void *)&address, sizeof address);
        struct pollfd ready = {connection, POLLOUT, 0};
        poll(&ready, 1, 100);
        ssize_t sent;
        while ((sent = send(connection, block, 1 << 20, MSG_NOSIGNAL | MSG_DONTWAIT)) > 0) total += sent;
    }
    printf("hoarded: %lld\n", total);
    fflush(stdout);
    pause();
    return 0;
}

// One datagram to each of so many ports: as many entries in the tracking of connections.
static int track(int count) {
    int sender = socket(AF_INET, SOCK_DGRAM, 0), sent = 0;
    for (int i = 0; i < count; i++) {
        struct sockaddr_in address = {AF_INET, htons(1024 + i % 60000), {htonl(0xc0000200 + i / 60000)}, {0}};
        sent += sendto(sender, "x", 1, 0, (void *)&address, sizeof address) == 1;
    }
    printf("tracked: %d\n", sent);
    fflush(stdout);
    pause();
    return 0;
}

// Empty files until no more can be made.
/* Looks for what lies below the root: climbs out of a chroot, before and after it has tried to unmount what covers it;
   in a user and mount namespace of its own when `nested`. */
static void climb(void) {
    int here = open("/", O_RDONLY | O_DIRECTORY);
    mkdir("/cage", 0755);
    printf("chroot: %d\n", chroot("/cage") ? errno : 0);
    fchdir(here);
    for (int i = 0; i < 64; i++) chdir("..");
    chroot(".");
    DIR *directory = opendir("/");
    for (struct dirent *entry; directory && (entry = readdir(directory));)
        if (entry->d_name[0] != '.') printf("seen: %s\n", entry->d_name);
    if (directory) closedir(directory);
    close(here);
}

static int uncover(int nested) {
    if (nested) printf("unshare: %d\n", unshare(CLONE_NEWUSER | CLONE_NEWNS) ? errno : 0);
    int outside = open("/", O_RDONLY | O_DIRECTORY), namespace = open("/proc/self/ns/mnt", O_RDONLY);
    climb();
    fchdir(outside);
    printf("umount: %d\n", umount2("/", MNT_DETACH) ? errno : 0);
    printf("umount .: %d\n", umount2(".", MNT_DETACH) ? errno : 0);
    climb();
    printf("setns: %d\n", setns(namespace, CLONE_NEWNS) ? errno : 0);
    climb();
    return 0;
}

static int inodes(const char *directory) {
    long count = 0;
    char path[256];
    for (;; count++) {
        snprintf(path, sizeof path, "%s/%ld", directory, count);
        int file = open(path, O_CREAT | O_WRONLY, 0600);
        if (file < 0) break;
        close(file);
    }
    printf("inodes: %ld then %d\n", count, errno);
    return 0;
}

// As the loader of a program of the host that was made to run in here.
static int as_loader(void) {
    printf("loaded: yes\n");
    printf("write to self: %d\n", open("/proc/self/exe", O_WRONLY) < 0 ? errno : 0);
    int handle = open("/proc/self/exe", O_PATH);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", handle);
    // Once the program is not running any more its file is not busy; only rights are left to protect it.
    if (fork() == 0) {
        prctl(PR_SET_DUMPABLE, 1);
        execl("/bin/probe", "probe", "reopen", path, NULL);
    }
    wait(NULL);
    return 0;
}

int main(int argc, char **argv) {
    if (argc >= 1 && strstr(argv[0], "self/exe")) return as_loader();
    if (argc == 3 && !strcmp(argv[1], "reopen"))
        return printf("write to it later: %d\n", open(argv[2], O_WRONLY) < 0 ? errno : 0), 0;
    if (argc == 3 && !strcmp(argv[1], "abstract")) return abstract(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "hoard")) return hoard(atoi(argv[2]));
    if (argc == 3 && !strcmp(argv[1], "track")) return track(atoi(argv[2]));
    if (argc == 3 && !strcmp(argv[1], "inodes")) return inodes(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "uncover")) return uncover(!strcmp(argv[2], "nested"));
    if (argc == 3 && !strcmp(argv[1], "serve")) return serve(atoi(argv[2]));
    if (argc == 4 && !strcmp(argv[1], "connect")) return join(argv[2], atoi(argv[3]));
    // What it tries would do harm outside.
    struct utsname uts;
    if (argc < 2 || strcmp(argv[1], "report") || uname(&uts) || strncmp(uts.nodename, "probe", 5)) return 2;
    return report(argc, argv);
}
