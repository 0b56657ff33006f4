/* The disk: what SCSI commands of Linux it takes, carried out on the image in memory. Spec: SPC-4, SBC-3. */
#include "floor.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 512, CHECK_CONDITION = 2 };
enum { NO_SENSE = 0, INVALID_COMMAND = 0x052000, OUT_OF_RANGE = 0x052100, INVALID_FIELD = 0x052400, NO_LUN = 0x052500 };

static struct {
    uint8_t *medium;
    uint64_t blocks;
    int fd;
    uint32_t sense; /* key, code and qualifier of the command before */
} disk;

struct task task;

static uint64_t big_endian(const uint8_t *from, int bytes)
{
    uint64_t value = 0;

    while (bytes--)
        value = value << 8 | *from++;
    return value;
}

static void put(uint8_t *at, int bytes, uint64_t value)
{
    while (bytes--) {
        at[bytes] = value;
        value >>= 8;
    }
}

static void answer(uint64_t length, uint64_t allocated)
{
    task.data = task.answer;
    task.left = length < allocated ? length : allocated;
}

static void fail(uint32_t sense)
{
    task.status = CHECK_CONDITION;
    disk.sense = sense;
}

static void move_blocks(uint64_t block, uint64_t count, bool is_output)
{
    if (block > disk.blocks || count > disk.blocks - block) {
        fail(OUT_OF_RANGE);
        return;
    }
    task.is_output = is_output;
    task.data = disk.medium + block * BLOCK;
    task.left = count * BLOCK;
}

static void inquire(void)
{
    static const uint8_t standard[] = "\0\0\5\2\37\0\0\2floor   vfio-user floor 1   ";
    static const uint8_t pages[] = {0x00, 0x80, 0x83}, serial[] = "floor-0", name[] = "\2\1\0\17floor   floor-0";
    const uint8_t *cdb = task.cdb;
    uint8_t *to = task.answer, page = cdb[2];
    uint32_t allocated = big_endian(cdb + 3, 2), length;

    if (!(cdb[1] & 1)) {
        memcpy(to, standard, 36);
        to[0] = task.lun ? 0x7F : 0;
        answer(36, allocated);
        return;
    }
    if (page == 0x00)
        memcpy(to + 4, pages, length = sizeof pages);
    else if (page == 0x80)
        memcpy(to + 4, serial, length = sizeof serial - 1);
    else if (page == 0x83)
        memcpy(to + 4, name, length = sizeof name - 1);
    else {
        fail(INVALID_FIELD);
        return;
    }
    to[1] = page;
    to[3] = length;
    answer(4 + length, allocated);
}

/* MODE SENSE: no block descriptor, and the caching page, with its cache on. */
static void mode_sense(uint32_t header, uint32_t allocated)
{
    uint8_t page = task.cdb[2] & 0x3F, *to = task.answer;
    uint32_t length = header;

    if (page != 0x08 && page != 0x3F) {
        fail(INVALID_FIELD);
        return;
    }
    to[length] = 0x08, to[length + 1] = 18, to[length + 2] = 0x04;
    length += 20;
    if (header == 4)
        to[0] = length - 1;
    else
        to[1] = length - 2;
    answer(length, allocated);
}

void carry_out(void)
{
    const uint8_t *cdb = task.cdb;
    uint8_t *to = task.answer;
    uint32_t sense = disk.sense;

    task.has_begun = true;
    task.status = task.left = task.is_output = 0;
    memset(to, 0, sizeof task.answer);
    disk.sense = NO_SENSE;
    if (task.lun && cdb[0] != 0x12 && cdb[0] != 0x03) {
        fail(NO_LUN);
        return;
    }
    switch (cdb[0]) {
    case 0x00: /* TEST UNIT READY */
        return;
    case 0x03: /* REQUEST SENSE */
        to[0] = 0x70, to[2] = sense >> 16, to[7] = 10, to[12] = sense >> 8, to[13] = sense;
        answer(18, cdb[4]);
        return;
    case 0x08: /* READ, WRITE (6) */
    case 0x0A:
        move_blocks(big_endian(cdb + 1, 3) & 0x1FFFFF, cdb[4] ? cdb[4] : 256, cdb[0] == 0x0A);
        return;
    case 0x28: /* (10) */
    case 0x2A:
        move_blocks(big_endian(cdb + 2, 4), big_endian(cdb + 7, 2), cdb[0] == 0x2A);
        return;
    case 0x88: /* (16) */
    case 0x8A:
        move_blocks(big_endian(cdb + 2, 8), big_endian(cdb + 10, 4), cdb[0] == 0x8A);
        return;
    case 0x12:
        inquire();
        return;
    case 0x1A:
        mode_sense(4, cdb[4]);
        return;
    case 0x5A:
        mode_sense(8, big_endian(cdb + 7, 2));
        return;
    case 0x25: /* READ CAPACITY (10) */
        put(to, 4, disk.blocks > UINT32_MAX ? UINT32_MAX : disk.blocks - 1);
        put(to + 4, 4, BLOCK);
        answer(8, 8);
        return;
    case 0x9E: /* (16), the one service action there is */
        put(to, 8, disk.blocks - 1);
        put(to + 8, 4, BLOCK);
        answer(32, big_endian(cdb + 10, 4));
        return;
    case 0x35: /* SYNCHRONIZE CACHE (10), (16) */
    case 0x91:
        if (fdatasync(disk.fd))
            perror("the image");
        return;
    case 0xA0: /* REPORT LUNS: 0 */
        put(to, 4, 8);
        answer(16, big_endian(cdb + 6, 4));
        return;
    default:
        fail(INVALID_COMMAND);
    }
}

void open_image(const char *path)
{
    struct stat about;

    disk.fd = open(path, O_RDWR | O_CLOEXEC);
    if (disk.fd < 0 || fstat(disk.fd, &about)) {
        perror(path);
        exit(1);
    }
    disk.blocks = about.st_size / BLOCK;
    disk.medium = mmap(NULL, about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, disk.fd, 0);
    if (disk.medium == MAP_FAILED) {
        perror(path);
        exit(1);
    }
}
