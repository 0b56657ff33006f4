/* Writes, prints and checks a stream of which every 8 bytes are different and follow from their place and a seed.
 *
 *     pattern write PATH SIZE SEED     past the page cache, then makes it last
 *     pattern check PATH SIZE SEED     past the page cache
 *     pattern print SIZE SEED          to standard output
 *
 * Sizes are bytes, multiples of 1 MiB. Status 1 if anything is wrong, and standard error says what.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK (1 << 20)

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void fill(uint64_t *words, uint64_t place, uint64_t seed)
{
    for (unsigned i = 0; i < CHUNK / 8; i++)
        words[i] = (place / 8 + i + seed) * 0x9e3779b97f4a7c15u;
}

int main(int count, char **words)
{
    if (count < 4)
        return 2;
    int writes = !strcmp(words[1], "write"), checks = !strcmp(words[1], "check");
    uint64_t size = strtoull(words[count - 2], NULL, 0), seed = strtoull(words[count - 1], NULL, 0);
    void *expected = aligned_alloc(4096, CHUNK), *found = aligned_alloc(4096, CHUNK);
    int fd = writes || checks ? open(words[2], (writes ? O_WRONLY : O_RDONLY) | O_DIRECT) : STDOUT_FILENO;
    if (fd < 0)
        fail(words[2]);
    for (uint64_t place = 0; place < size; place += CHUNK) {
        fill(expected, place, seed);
        for (size_t done = 0; done < CHUNK;) {
            ssize_t moved = checks ? read(fd, (char *)found + done, CHUNK - done)
                                   : write(fd, (char *)expected + done, CHUNK - done);
            if (moved <= 0)
                fail(words[1]);
            done += moved;
        }
        if (checks && memcmp(expected, found, CHUNK)) {
            fprintf(stderr, "wrong data between %#llx and %#llx\n", (long long)place, (long long)place + CHUNK);
            return 1;
        }
    }
    if (writes && (fsync(fd) || close(fd)))
        fail("fsync");
    return 0;
}
