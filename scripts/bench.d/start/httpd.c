// The smallest HTTP server: one answer to every connection. Listens on the port that is its argument, else on 8080; with
// `never` it waits for ever, with `flood` it writes lines without end, with `burn` it takes all the processor there is. With
// `late` it listens 30 to 40 ms after its start. Every answer says when it listened, in nanoseconds of the monotonic clock.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
  while (argc > 1 && !strcmp(argv[1], "never")) pause();
  while (argc > 1 && !strcmp(argv[1], "burn"));
  while (argc > 1 && !strcmp(argv[1], "flood")) {
    static char lines[1 << 16];
    if (!lines[0]) {
      memset(lines, 'x', sizeof lines);
      for (size_t i = 79; i < sizeof lines; i += 80) lines[i] = '\n';
    }
    if (write(1, lines, sizeof lines) < 0) return 1;
  }
  struct timespec now;
  int is_late = argc > 1 && !strcmp(argv[1], "late");
  if (is_late) {
    clock_gettime(CLOCK_MONOTONIC, &now);
    usleep(30000 + now.tv_nsec % 10000);
  }
  int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), port = argc > 1 && !is_late ? atoi(argv[1]) : 8080;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 128)) return 1;
  clock_gettime(CLOCK_MONOTONIC, &now);
  char answer[256];
  int length = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nListening-Since: %lld\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n",
                        now.tv_sec * 1000000000LL + now.tv_nsec);
  for (;;) {
    char request[4096];
    int connection = accept(listener, 0, 0);
    if (connection < 0) continue;
    if (read(connection, request, sizeof request) > 0) (void)!write(connection, answer, length);
    close(connection);
  }
}
