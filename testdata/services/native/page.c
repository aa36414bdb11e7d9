#include <stdio.h>

/* Writes the page into `buffer` and returns its length. */
int page(char *buffer, unsigned long size, unsigned int user) {
    return snprintf(buffer, size, "{\"service\":\"native\",\"user\":\"%u\"}", user);
}
