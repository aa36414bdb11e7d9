// Makes a build context: COUNT files in directories of a hundred, MIB mebibytes in all, the same every time. A third is
// text of made-up words, a third looks like machine code, a third mixes both; gzip -6 leaves about a third of it.
//   tree DIRECTORY COUNT MIB
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static uint64_t state = 88172645463325252ull;

static uint32_t draw(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static char words[4096][12];

static size_t text(char *place, size_t room) {
    // Few words are frequent, as in any text.
    uint32_t common = draw() & 4095, rare = draw() & 4095;
    const char *word = words[draw() & 3 ? common & rare : rare];
    size_t length = strlen(word);
    if (length + 1 > room) length = room - 1;
    memcpy(place, word, length);
    place[length] = (draw() & 15) ? ' ' : '\n';
    return length + 1;
}

static size_t code(char *place, size_t room) {
    static const unsigned char heads[] = {0x48, 0x8b, 0x89, 0xe8, 0x0f, 0xc3, 0x00, 0xff};
    size_t length = 1 + (draw() & 3);
    if (length > room) length = room;
    for (size_t i = 0; i < length; i++) place[i] = draw() & 1 ? (char)heads[draw() & 7] : (char)draw();
    return length;
}

// What was there before comes again, as in any file.
static size_t again(char *content, size_t at, size_t size) {
    size_t distance = 1 + draw() % (at < 16384 ? at : 16384), length = 8 + (draw() & 63);
    if (length > size - at) length = size - at;
    for (size_t i = 0; i < length; i++) content[at + i] = content[at - distance + i];
    return length;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    long count = atol(argv[2]);
    size_t each = ((size_t)atol(argv[3]) << 20) / (size_t)count;
    for (int i = 0; i < 4096; i++) {
        int length = 2 + (int)(draw() % 9);
        for (int j = 0; j < length; j++) words[i][j] = (char)('a' + draw() % 26);
    }
    char *content = malloc(4 * each + 16), path[4096];
    for (long i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%03ld", argv[1], i / 100);
        if (i % 100 == 0 && mkdir(path, 0755)) return perror(path), 1;
        snprintf(path, sizeof path, "%s/%03ld/file-%ld", argv[1], i / 100, i);
        // Sizes differ by a factor of seven, and average out.
        size_t size = each * (1 + (size_t)(i % 7)) / 4;
        for (size_t at = 0; at < size;) {
            int kind = i % 3 == 2 ? (int)(draw() & 1) : (int)(i % 3);
            if (at && !(draw() & 7)) at += again(content, at, size);
            else at += kind ? code(content + at, size - at) : text(content + at, size - at);
        }
        FILE *file = fopen(path, "w");
        if (!file || fwrite(content, 1, size, file) != size || fclose(file)) return perror(path), 1;
    }
    return 0;
}
