// Makes device nodes in every way, and prints what came of each. Run by `device_nodes.rs`, in a sandbox.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define NULL_DEVICE makedev(1, 3)

static int make(int directory, const char *path) {
    return syscall(SYS_mknodat, directory, path, S_IFCHR | 0666, NULL_DEVICE) ? errno : 0;
}

static void say(const char *what, int result) { printf("%s: %d\n", what, result); fflush(stdout); }

static void *in_thread(void *path) { return (void *)(long)make(AT_FDCWD, path); }

static void arguments(void) {
    mkdir("/d", 0755), mkdir("/d/e", 0755);
    int directory = open("/d", O_RDONLY), place = open("/d/e", O_PATH), file = open("/d/file", O_CREAT | O_RDWR, 0644);
    int device = open("/dev", O_RDONLY), proc = open("/proc/self", O_PATH), pipes[2];
    pipe(pipes);
    say("descriptor", make(directory, "a"));
    say("path descriptor", make(place, "../b"));
    say("absolute with no descriptor", make(999, "/d/c"));
    say("no descriptor", make(999, "x"));
    say("a file's", make(file, "x"));
    say("a pipe's", make(pipes[0], "x"));
    say("tmpfs", make(device, "x"));
    say("out of tmpfs", make(device, "../d/x"));
    say("proc", make(proc, "cwd/x"));
    say("host by proc", make(proc, "root/d/x"));
    rmdir("/d/e");
    say("removed", make(place, "x"));
    say("empty", make(AT_FDCWD, ""));
    say("root", make(AT_FDCWD, "/"));
    say("dot", make(AT_FDCWD, "/d/."));
    say("trailing slash", make(AT_FDCWD, "/d/new/"));
    say("there", make(AT_FDCWD, "/d/a"));
    say("no directory", make(AT_FDCWD, "/d/none/x"));
    say("not a directory", make(AT_FDCWD, "/d/file/x"));
    say("null pointer", make(AT_FDCWD, NULL));
    say("wild pointer", make(AT_FDCWD, (char *)0xffff800000000000));
    static char longest[5000];
    memset(longest, '/', sizeof longest - 1);
    say("too long", make(AT_FDCWD, longest));
    strcpy(longest + 4000, "d/long");
    say("long", make(AT_FDCWD, longest));
    char *pages = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(pages + 8192, 4096);
    say("across pages", make(AT_FDCWD, strcpy(pages + 4092, "/d/across")));
    say("up to the end", make(AT_FDCWD, strcpy(pages + 8192 - 7, "/d/end")));
    memcpy(pages + 8192 - 4, "/d/x", 4);
    say("over the end", make(AT_FDCWD, pages + 8192 - 4));
    pthread_t thread;
    void *result;
    pthread_create(&thread, NULL, in_thread, "/d/thread");
    pthread_join(thread, &result);
    say("another thread", (long)result);
    say("whiteout", mknod("/d/white", S_IFCHR, 0) ? errno : 0);
    say("fifo", mknod("/d/fifo", S_IFIFO | 0644, 0) ? errno : 0);
    say("regular", mknod("/d/regular", S_IFREG | 0644, 0) ? errno : 0);
    say("directory", mknod("/d/directory", S_IFDIR | 0755, 0) ? errno : 0);
    say("high bits", syscall(SYS_mknodat, AT_FDCWD, "/d/high", 0xabcd0000L | S_IFBLK | 0600, 0x7fL << 32 | 0x801) ? errno : 0);
}

// As other users, each in a process of its own.
static void as(const char *what, const char *path, uid_t user, int keeps) {
    fflush(stdout);
    if (fork() == 0) {
        if (keeps) setfsgid(user), setfsuid(user);
        else setgid(user), setuid(user);
        say(what, make(AT_FDCWD, path));
        exit(0);
    }
    wait(NULL);
}

static void users(void) {
    mkdir("/open", 0), chmod("/open", 01777);
    mkdir("/closed", 0700), mkdir("/closed/open", 0), chmod("/closed/open", 0777);
    as("no capability", "/open/a", 1000, 0);
    as("no capability, closed", "/closed/a", 1000, 0);
    // Changing the file system's user drops CAP_MKNOD with the rest.
    as("other files' user", "/open/b", 1000, 1);
    fflush(stdout);
    if (fork() == 0) {
        // CAP_MKNOD alone, as another user.
        struct { unsigned version; int pid; } header = {0x20080522, 0};
        struct { unsigned effective, permitted, inheritable; } sets[2] = {{1 << 27, 1 << 27, 0}, {0}};
        setfsgid(1000), setfsuid(1000);
        syscall(SYS_capset, &header, sets);
        say("only mknod", make(AT_FDCWD, "/open/c"));
        say("only mknod, closed", make(AT_FDCWD, "/closed/c"));
        say("only mknod, behind closed", make(AT_FDCWD, "/closed/open/c"));
        struct stat stat;
        lstat("/open/c", &stat);
        say("owner", stat.st_uid), say("group", stat.st_gid);
        exit(0);
    }
    wait(NULL);
    if (fork() == 0) {
        mkdir("/jail", 0755), mkdir("/jail/in", 0755), chroot("/jail"), chdir("/in");
        symlink("/", "up");
        say("in a jail", make(AT_FDCWD, "/made"));
        say("out of a jail", make(AT_FDCWD, "../../../../relative"));
        say("by a link", make(AT_FDCWD, "up/linked"));
        exit(0);
    }
    wait(NULL);
    struct stat stat;
    say("seen outside", lstat("/jail/made", &stat) || lstat("/jail/relative", &stat) || lstat("/jail/linked", &stat));
}

static char racing[64];
static volatile int is_over;

static void *flip(void *unused) {
    (void)unused;
    while (!is_over) {
        strcpy(racing, "/dev/race"), strcpy(racing, "/race/r");
        rename("/race/one", "/race/link"), symlink("/dev", "/race/one");
        rename("/race/two", "/race/link"), symlink("/race", "/race/two");
        rename("/race/deep/er", "/race/er"), rename("/race/er", "/race/deep/er");
    }
    return NULL;
}

static void race(void) {
    mkdir("/race", 0755), mkdir("/race/deep", 0755), mkdir("/race/deep/er", 0755);
    strcpy(racing, "/race/r");
    symlink("/race", "/race/link"), symlink("/dev", "/race/one"), symlink("/race", "/race/two");
    pthread_t thread;
    pthread_create(&thread, NULL, flip, NULL);
    int made = 0, refused = 0, strange = 0;
    int deep = open("/race/deep/er", O_PATH);
    for (int i = 0; i < 4000; i++) {
        const char *paths[] = {racing, "/race/link/r", "../../dev/r"};
        int result = make(i % 3 == 2 ? deep : AT_FDCWD, paths[i % 3]);
        made += !result, refused += result == EPERM;
        strange += result && result != EPERM && result != ENOENT && result != EEXIST;
        unlink("/race/r");
    }
    is_over = 1;
    pthread_join(thread, NULL);
    int devices = 0;
    const char *places[] = {"/dev/race", "/dev/r", "/dev/rac", "/dev/ra"};
    for (int i = 0; i < 4; i++) devices += access(places[i], F_OK) == 0;
    say("some made", made > 0), say("some refused", refused > 0), say("strange", strange), say("beside", devices);
}

static void nothing(int signal) { (void)signal; }

// Handled signals all the time: a call that was carried out must not be made again.
static void signals(void) {
    struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    ualarm(500, 500);
    int failed = 0;
    char path[32];
    for (int i = 0; i < 500; i++) {
        snprintf(path, sizeof path, "/tmp/s%d", i);
        failed += make(AT_FDCWD, path) != 0;
    }
    ualarm(0, 0);
    say("failed under signals", failed);
}

// Gives files capabilities: one that is copied up for it, one that is new, one that gets them by being copied up.
static void capabilities(void) {
    static const unsigned char value[20] = {1, 0, 0, 2, 0, 4};
    char found[64];
    close(open("/tmp/new", O_CREAT | O_WRONLY, 0755));
    say("copied", setxattr("/bin/nodes", "security.capability", value, 20, 0) ? errno : 0);
    say("new", setxattr("/tmp/new", "security.capability", value, 20, 0) ? errno : 0);
    say("length", getxattr("/bin/nodes", "security.capability", found, sizeof found));
    say("same", memcmp(found, value, 20));
    say("touched", chmod("/bin/capable", 0751) ? errno : 0);
    say("length", getxattr("/bin/capable", "security.capability", found, sizeof found));
    say("overlay's", setxattr("/tmp", "user.overlay.opaque", "y", 1, 0) ? errno : 0);
    say("trusted", setxattr("/tmp", "trusted.overlay.opaque", "y", 1, 0) ? errno : 0);
    say("user's", setxattr("/tmp/new", "user.note", "kept", 4, 0) ? errno : 0);
    fflush(stdout);
    if (fork() == 0) {
        setgid(1000), setuid(1000);
        execl("/bin/nodes", "nodes", "effective", NULL);
    }
    wait(NULL);
}

static void effective(void) {
    struct { unsigned version; int pid; } header = {0x20080522, 0};
    struct { unsigned effective, permitted, inheritable; } sets[2];
    syscall(SYS_capget, &header, sets);
    say("effective", sets[0].effective);
}

static void *for_ever(void *unused) {
    for (char path[32];;) snprintf(path, sizeof path, "/tmp/%ld", (long)&unused), make(AT_FDCWD, path), unlink(path);
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    if (!strcmp(argv[1], "arguments")) return arguments(), 0;
    if (!strcmp(argv[1], "users")) return users(), 0;
    if (!strcmp(argv[1], "race")) return race(), 0;
    if (!strcmp(argv[1], "signals")) return signals(), 0;
    if (!strcmp(argv[1], "capabilities")) return capabilities(), 0;
    if (!strcmp(argv[1], "effective")) return effective(), 0;
    if (!strcmp(argv[1], "once")) return say("once", make(AT_FDCWD, "/tmp/once")), 0;
    if (!strcmp(argv[1], "for-ever")) {
        pthread_t thread;
        for (int i = 0; i < 8; i++) pthread_create(&thread, NULL, for_ever, NULL);
        puts("begun"), fflush(stdout);
        for_ever(NULL);
    }
    return 2;
}
