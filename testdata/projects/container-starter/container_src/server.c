/* The starter project's container: an HTTP server that answers with the state of its session.
 *
 *   GET anything   the state, unchanged
 *   POST anything  counts a visit, then the state
 *
 * The state is JSON: `instance`, 16 hexadecimal digits drawn when the server started, and `visits`. So two sessions show
 * two instances, and one session shows the same instance again with one visit more. Each visit is a line on stdout.
 * One thread, no allocation, ends with code 0 on SIGTERM (as process 1 it must ask for that). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_CLIENTS 64
#define MAX_HEAD 16384

struct client {
    int fd;
    size_t length;     /* bytes of the head so far */
    long long to_skip; /* bytes of the body still to come; -1: the head is not complete */
    int counts;
    char head[MAX_HEAD + 1];
};

static struct client clients[MAX_CLIENTS];
static char instance[17];
static char page[256] = "no page";
static unsigned visits;

static void on_terminate(int signal_number) {
    (void)signal_number;
    _exit(0);
}

static void fail(const char *what) {
    fprintf(stderr, "server: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void draw_instance(void) {
    unsigned char bytes[8];
    int fd = open("/dev/urandom", O_RDONLY);
    if (fd < 0 || read(fd, bytes, sizeof bytes) != (ssize_t)sizeof bytes) fail("/dev/urandom");
    close(fd);
    for (size_t i = 0; i < sizeof bytes; i++) sprintf(instance + 2 * i, "%02x", bytes[i]);
}

static void write_page(const char *path) {
    FILE *file = fopen(path, "w");
    if (!file || fputs("page written by a RUN step\n", file) < 0 || fclose(file)) fail(path);
}

static void read_page(void) {
    FILE *file = fopen("page.txt", "r");
    if (!file) return;
    if (fgets(page, sizeof page, file)) page[strcspn(page, "\n\"\\")] = 0;
    fclose(file);
}

static void answer(struct client *client) {
    char body[1024], reply[1536];
    const char *greeting = getenv("GREETING");
    if (client->counts) {
        printf("visit %u of instance %s\n", ++visits, instance);
        fflush(stdout);
    }
    int size = snprintf(body, sizeof body,
                        "{\"greeting\":\"%s\",\"instance\":\"%s\",\"visits\":%u,\"page\":\"%s\",\"uid\":%d}\n",
                        greeting ? greeting : "", instance, visits, page, (int)getuid());
    int length = snprintf(reply, sizeof reply,
                          "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                          "Connection: close\r\n\r\n%s", size, body);
    if (write(client->fd, reply, (size_t)length) != length) fprintf(stderr, "server: a client went away\n");
    shutdown(client->fd, SHUT_WR);
}

static void drop(struct client *client) {
    close(client->fd);
    client->fd = -1;
}

/* The value of a header, or null. */
static const char *header(const char *head, const char *name) {
    for (const char *line = strstr(head, "\r\n"); line && line[2]; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, name, strlen(name)) && line[2 + strlen(name)] == ':') return line + 3 + strlen(name);
    return NULL;
}

/* The head is complete when this returns 1; what followed it counts as body. */
static int take_head(struct client *client) {
    client->head[client->length] = 0;
    char *end = strstr(client->head, "\r\n\r\n");
    if (!end) return 0;
    size_t body = client->length - (size_t)(end + 4 - client->head);
    end[2] = 0;
    const char *length = header(client->head, "content-length");
    client->to_skip = length ? atoll(length) - (long long)body : 0;
    /* A chunked body need not be read to the end: the answer does not depend on it. */
    client->counts = !strncmp(client->head, "POST ", 5);
    return 1;
}

static void on_readable(struct client *client) {
    char rest[4096];
    int in_head = client->to_skip < 0;
    ssize_t n = in_head ? read(client->fd, client->head + client->length, MAX_HEAD - client->length)
                        : read(client->fd, rest, sizeof rest);
    if (n <= 0) {
        drop(client);
        return;
    }
    if (in_head) {
        client->length += (size_t)n;
        if (!take_head(client)) {
            if (client->length == MAX_HEAD) drop(client);
            return;
        }
    } else {
        if (client->to_skip == 0) return; /* answered: wait for the client to close */
        client->to_skip -= n;
    }
    if (client->to_skip <= 0) {
        client->to_skip = 0;
        answer(client);
    }
}

static void admit(int listener) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) return;
    for (int i = 0; i < MAX_CLIENTS; i++)
        if (clients[i].fd < 0) {
            clients[i].fd = fd;
            clients[i].length = 0;
            clients[i].to_skip = -1;
            return;
        }
    close(fd);
}

static int listen_on(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (listener < 0) fail("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address)) fail("bind");
    if (listen(listener, 128)) fail("listen");
    return listener;
}

int main(int argc, char **argv) {
    int port = 4000;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--write-page")) {
            write_page(argv[i + 1]);
            return 0;
        }
        if (!strcmp(argv[i], "--port")) port = atoi(argv[i + 1]);
    }
    signal(SIGTERM, on_terminate);
    signal(SIGINT, on_terminate);
    signal(SIGPIPE, SIG_IGN);
    draw_instance();
    read_page();
    for (int i = 0; i < MAX_CLIENTS; i++) clients[i].fd = -1;
    int listener = listen_on(port);
    printf("instance %s listens on port %d\n", instance, port);
    fflush(stdout);
    for (;;) {
        struct pollfd polled[MAX_CLIENTS + 1];
        for (int i = 0; i < MAX_CLIENTS; i++) polled[i] = (struct pollfd){.fd = clients[i].fd, .events = POLLIN};
        polled[MAX_CLIENTS] = (struct pollfd){.fd = listener, .events = POLLIN};
        if (poll(polled, MAX_CLIENTS + 1, -1) < 0) continue;
        for (int i = 0; i < MAX_CLIENTS; i++)
            if (polled[i].fd >= 0 && polled[i].revents) on_readable(&clients[i]);
        if (polled[MAX_CLIENTS].revents) admit(listener);
    }
}
