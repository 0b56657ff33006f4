/*
 * The least an LSI 53C895A with one disk can be, for Linux' sym53c8xx behind QEMU's vfio-user-pci: a program with one
 * thread, whose device costs next to nothing. What a real server takes longer than this one is its own doing; the rest
 * is the messages', QEMU's and the kernel's.
 *
 * Its disk answers every command at once, from the image in memory, so nobody ever disconnects or reselects. It checks
 * what would crash it, and nothing else. It does not negotiate transfers, migrate, or keep commands apart that
 * arrive in ways drivers do not send them.
 *
 * Usage: floor SOCKET IMAGE
 * Each SIGUSR1 has it say on standard error what it did since the last one: lines of "COUNT", number and what, and "END".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "../c/wire.h"

/* ---- What is counted ---- */

static struct {
    unsigned long reads[256], writes[256], posted[256], unmasked, fired; /* registers by their offset */
} counts;

static void report(int signal)
{
    (void)signal;
    for (int at = 0; at < 256; at++) {
        if (counts.reads[at])
            dprintf(2, "COUNT %lu REGION_READ +%#x\n", counts.reads[at], at);
        if (counts.writes[at])
            dprintf(2, "COUNT %lu REGION_WRITE +%#x\n", counts.writes[at], at);
        if (counts.posted[at])
            dprintf(2, "COUNT %lu REGION_WRITE +%#x (posted)\n", counts.posted[at], at);
    }
    dprintf(2, "COUNT %lu DEVICE_SET_IRQS UNMASK\nCOUNT %lu (INTx fired)\nEND\n", counts.unmasked, counts.fired);
    memset(&counts, 0, sizeof counts);
}

static int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* ---- The interrupt pin: masks itself when it fires, until the client unmasks it ---- */

/* Without KVM, QEMU unmasks at the first access of the guest's handler, which may lower the line only later. */
enum { PAUSE = 1000000 /* ns */ };

static struct {
    int fd, unmask_fd; /* -1: none */
    bool level, masked;
    int64_t again; /* when it fires once more if it is still up; 0: not */
} pin = {.fd = -1, .unmask_fd = -1};

static void fire(void)
{
    uint64_t one = 1;

    pin.again = 0;
    if (pin.level && !pin.masked && pin.fd >= 0) {
        pin.masked = true;
        counts.fired++;
        if (write(pin.fd, &one, sizeof one) < 0)
            perror("the client's eventfd");
    }
}

static void set_pin(bool level)
{
    if (level == pin.level)
        return;
    pin.level = level;
    fire();
}

static void unmask(int64_t pause)
{
    pin.masked = false;
    if (!pause)
        fire();
    else if (pin.level)
        pin.again = now() + pause;
}

static void replace(int *fd, int by)
{
    if (*fd >= 0)
        close(*fd);
    *fd = by;
}

/* ---- The client's memory ---- */

enum { MOST_MAPPINGS = 256 };

static struct mapping {
    uint64_t address, size;
    uint8_t *memory;
} mappings[MOST_MAPPINGS], *last = mappings;

static void map(uint64_t address, uint64_t size, uint64_t offset, uint32_t flags, int fd)
{
    int protection = PROT_READ | (flags & 2 ? PROT_WRITE : 0);

    for (struct mapping *each = mappings; fd >= 0 && each < mappings + MOST_MAPPINGS; each++) {
        if (each->size)
            continue;
        each->memory = mmap(NULL, size, protection, MAP_SHARED, fd, offset);
        if (each->memory == MAP_FAILED)
            perror("the client's memory");
        else
            each->address = address, each->size = size;
        return;
    }
}

static void unmap(uint64_t address, uint64_t size, bool all)
{
    for (struct mapping *each = mappings; each < mappings + MOST_MAPPINGS; each++) {
        if (each->size && (all || (each->address == address && each->size == size))) {
            munmap(each->memory, each->size);
            each->size = 0;
        }
    }
}

/* ---- Registers ---- */

enum {
    SCNTL0 = 0x00, SCNTL1 = 0x01, SCNTL2 = 0x02, SCNTL3 = 0x03, SXFER = 0x05, SDID = 0x06, SFBR = 0x08, SOCL = 0x09,
    SBCL = 0x0B, DSTAT = 0x0C, SSTAT0 = 0x0D, SSTAT1 = 0x0E, SSTAT2 = 0x0F, DSA = 0x10, ISTAT0 = 0x14, ISTAT1 = 0x15,
    CTEST1 = 0x19, CTEST2 = 0x1A, CTEST3 = 0x1B, TEMP = 0x1C, DFIFO = 0x20, CTEST5 = 0x22, DBC = 0x24, DNAD = 0x28,
    DSP = 0x2C, DSPS = 0x30, DMODE = 0x38, DIEN = 0x39, DCNTL = 0x3B, SIEN = 0x40, SIST = 0x42, GPCNTL = 0x47,
    STIME1 = 0x49, STEST3 = 0x4F, SIDL = 0x50, STEST4 = 0x52, CCNTL0 = 0x56, CCNTL1 = 0x57, DNAD64 = 0xB8,
    PMJAD1 = 0xC0, PMJAD2 = 0xC4, RBC = 0xC8, UA = 0xCC, ESA = 0xD0, IA = 0xD4, SBC = 0xD8, CSBC = 0xDC,
};
enum { ISTAT_DIP = 0x01, ISTAT_SIP = 0x02, ISTAT_INTF = 0x04, ISTAT_CON = 0x08, ISTAT_SIGP = 0x20 };
enum { ISTAT_SRST = 0x40, ISTAT_ABRT = 0x80 };
enum { DMA_ILLEGAL = 0x01, DMA_INTERRUPT = 0x04, DMA_STEP = 0x08, DMA_ABORTED = 0x10, DMA_BUS_FAULT = 0x20 };
enum { SCSI_RESET = 0x02, SCSI_DISCONNECT = 0x04, SCSI_MISMATCH = 0x80, SCSI_GENERAL = 0x200, SCSI_TIMEOUT = 0x400 };
enum { SCSI_FATAL = SCSI_TIMEOUT | SCSI_MISMATCH | SCSI_DISCONNECT | SCSI_RESET | 0x09 };

static union {
    uint8_t byte[256];
    uint16_t half[128];
    uint32_t word[64];
} registers;

#define BYTE(at) registers.byte[at]
#define HALF(at) registers.half[(at) / 2]
#define WORD(at) registers.word[(at) / 4]

static uint8_t ram[8192];
static union {
    uint8_t byte[256];
    uint32_t word[64];
} config;

enum { BAR = 0x10 / 4 };

/* Memory as the chip sees it: its own RAM, or the client's. NULL: nothing answers there. */
static void *reach(uint64_t address, uint64_t length)
{
    uint64_t offset = address - (config.word[BAR + 2] & ~15u);

    if (offset < sizeof ram && length <= sizeof ram - offset)
        return ram + offset;
    offset = address - last->address;
    if (offset < last->size && length <= last->size - offset)
        return last->memory + offset;
    for (struct mapping *each = mappings; each < mappings + MOST_MAPPINGS; each++) {
        offset = address - each->address;
        if (offset < each->size && length <= each->size - offset) {
            last = each;
            return each->memory + offset;
        }
    }
    return NULL;
}

/* ---- Interrupts of the chip: posted in SIST and DSTAT, or stacked behind what is posted there ---- */

static uint32_t stacked_scsi, stacked_dma;
static int64_t timer; /* when the general purpose timer expires; 0: it does not run */

static enum { STOPPED, RUNNING, WAITING } processor; /* WAITING: for SIGP, and carries out the same instruction then */
static bool carry, selecting;                        /* selecting: an id nobody has */

static void update_pin(void)
{
    uint8_t pending = BYTE(ISTAT0);
    bool level = pending & ISTAT_INTF || (pending & ISTAT_SIP && HALF(SIST) & HALF(SIEN)) ||
                 (pending & ISTAT_DIP && BYTE(DSTAT) & BYTE(DIEN));

    set_pin(level && !(BYTE(DCNTL) & 0x02) && !(BYTE(ISTAT1) & 0x01));
}

static void post_scsi(uint32_t causes)
{
    bool interrupts = causes & (SCSI_FATAL | HALF(SIEN));

    if (interrupts)
        processor = STOPPED;
    if (BYTE(ISTAT0) & (ISTAT_SIP | ISTAT_DIP)) {
        stacked_scsi |= causes;
    } else {
        HALF(SIST) |= causes;
        if (interrupts)
            BYTE(ISTAT0) |= ISTAT_SIP;
        update_pin();
    }
}

static void post_dma(uint32_t causes)
{
    processor = STOPPED;
    if (BYTE(ISTAT0) & (ISTAT_SIP | ISTAT_DIP)) {
        stacked_dma |= causes;
    } else {
        BYTE(DSTAT) |= causes;
        BYTE(ISTAT0) |= ISTAT_DIP;
        update_pin();
    }
}

/* The driver has read what was posted, which cleared it. */
static void move_up(void)
{
    uint32_t scsi = stacked_scsi, dma = stacked_dma;

    if (!HALF(SIST))
        BYTE(ISTAT0) &= ~ISTAT_SIP;
    if (!BYTE(DSTAT))
        BYTE(ISTAT0) &= ~ISTAT_DIP;
    update_pin();
    if (BYTE(ISTAT0) & (ISTAT_SIP | ISTAT_DIP))
        return;
    stacked_scsi = stacked_dma = 0;
    if (scsi)
        post_scsi(scsi);
    if (dma) {
        BYTE(DSTAT) |= dma;
        BYTE(ISTAT0) |= ISTAT_DIP;
        update_pin();
    }
}

/* ---- The disk ---- */

enum { BLOCK = 512, CHECK_CONDITION = 2 };
enum { NO_SENSE = 0, INVALID_COMMAND = 0x052000, OUT_OF_RANGE = 0x052100, INVALID_FIELD = 0x052400, NO_LUN = 0x052500 };

static struct {
    uint8_t *medium;
    uint64_t blocks;
    int fd;
    uint32_t sense; /* key, code and qualifier of the command before */
} disk;

/* The command that is carried out. */
static struct {
    uint8_t lun, cdb[16], status, answer[256];
    uint32_t cdb_length;
    bool is_output, has_begun;
    uint8_t *data;
    uint64_t left; /* bytes of data */
} task;

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

static void carry_out(void)
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

/* ---- The bus, with the disk as target 0 ---- */

enum { DATA_OUT, DATA_IN, COMMAND, STATUS, MESSAGE_OUT = 6, MESSAGE_IN };
enum { MOST_MESSAGE = 256 };

static struct {
    bool connected, attention, acknowledge, ends;
    uint8_t phase; /* of the target that is connected, or was last */
    uint8_t in[16], out[MOST_MESSAGE];
    uint32_t in_length, out_length;
} bus;

static void bus_free(bool expected)
{
    memset(&bus, 0, sizeof bus);
    BYTE(SCNTL1) &= ~0x10;
    BYTE(ISTAT0) &= ~ISTAT_CON;
    BYTE(SSTAT2) |= 0x02;
    if (!expected && BYTE(SCNTL2) & 0x80)
        post_scsi(SCSI_DISCONNECT);
}

/* The initiator's messages; false if one of them frees the bus. Negotiations, and all that is unknown, are rejected. */
static bool hear(void)
{
    const uint8_t *said = bus.out;
    uint32_t length = bus.out_length;

    bus.out_length = 0;
    for (uint32_t at = 0; at < length; at++) {
        if (said[at] & 0x80) { /* IDENTIFY */
            task.lun = said[at] & 0x3F;
        } else if (said[at] >= 0x20 && said[at] <= 0x22) { /* a queue tag */
            at++;
        } else if (said[at] == 0x01) { /* an extended message */
            at += at + 1 < length ? 1 + said[at + 1] : 0;
            bus.in[0] = 0x07, bus.in_length = 1; /* MESSAGE REJECT */
        } else if (said[at] == 0x06 || (said[at] >= 0x0C && said[at] <= 0x0E)) { /* ABORT and the like */
            bus_free(false);
            return false;
        } else if (said[at] < 0x05 || said[at] > 0x09) {
            bus.in[0] = 0x07, bus.in_length = 1;
        }
    }
    return true;
}

/* The target decides what it does next. */
static void advance(void)
{
    if (bus.attention)
        bus.phase = MESSAGE_OUT;
    else if (bus.out_length && !hear())
        return;
    else if (bus.in_length)
        bus.phase = MESSAGE_IN;
    else if (bus.ends)
        bus_free(true);
    else if (!task.has_begun)
        bus.phase = COMMAND;
    else if (task.left)
        bus.phase = task.is_output ? DATA_OUT : DATA_IN;
    else
        bus.phase = STATUS;
}

static void clear_acknowledge(void)
{
    if (bus.acknowledge) {
        bus.acknowledge = false;
        advance();
    }
}

static void select_target(uint8_t target, bool attention)
{
    if (target) {
        selecting = true;
        return;
    }
    memset(&bus, 0, sizeof bus);
    bus.connected = true;
    bus.attention = attention;
    task.has_begun = false;
    task.lun = task.cdb_length = 0;
    BYTE(SCNTL1) |= 0x10;
    BYTE(ISTAT0) |= ISTAT_CON;
    BYTE(SCNTL2) |= 0x80;
    BYTE(SSTAT2) &= ~0x02;
    advance();
}

static uint32_t cdb_length(uint8_t code)
{
    static const uint8_t lengths[] = {6, 10, 10, 6, 16, 12, 6, 6};

    return lengths[code >> 5];
}

/* Moves bytes in the phase the bus is in; returns how many. */
static uint32_t move_bytes(uint8_t *memory, uint32_t count)
{
    switch (bus.phase) {
    case DATA_OUT:
    case DATA_IN:
        if (count > task.left)
            count = task.left;
        if (task.is_output)
            memcpy(task.data, memory, count);
        else
            memcpy(memory, task.data, count);
        task.data += count;
        task.left -= count;
        if (!task.left)
            advance();
        return count;
    case STATUS:
        *memory = task.status;
        bus.in[0] = 0x00, bus.in_length = 1; /* COMMAND COMPLETE */
        bus.ends = true;
        advance();
        return 1;
    case MESSAGE_IN:
        if (count > bus.in_length)
            count = bus.in_length;
        memcpy(memory, bus.in, count);
        bus.in_length -= count;
        memmove(bus.in, bus.in + count, bus.in_length);
        bus.acknowledge = !bus.in_length; /* what comes next is decided when the driver has seen it */
        return count;
    case MESSAGE_OUT:
        for (uint32_t at = 0; at < count && bus.out_length < MOST_MESSAGE; at++)
            bus.out[bus.out_length++] = memory[at];
        bus.attention = false;
        advance();
        return count;
    default: /* COMMAND; bytes behind its end are dropped */
        for (uint32_t at = 0; at < count && task.cdb_length < sizeof task.cdb; at++)
            task.cdb[task.cdb_length++] = memory[at];
        if (task.cdb_length >= cdb_length(task.cdb[0])) {
            carry_out();
            advance();
        }
        return count;
    }
}

/* ---- Reading and writing registers ---- */

static void reset_chip(bool software)
{
    memset(&registers, 0, sizeof registers);
    BYTE(SCNTL0) = 0xC0;
    BYTE(SSTAT2) = 0x02;
    BYTE(CTEST1) = 0xF0;
    BYTE(GPCNTL) = 0x0F;
    BYTE(STEST4) = 0xE0;
    BYTE(ISTAT0) = software ? ISTAT_SRST : 0;
    memset(&bus, 0, sizeof bus);
    processor = STOPPED;
    stacked_scsi = stacked_dma = 0;
    carry = selecting = false;
    timer = 0;
    update_pin();
}

static uint8_t read_register(uint8_t at)
{
    uint8_t value = BYTE(at);

    switch (at) {
    case SBCL:
        return bus.connected ? bus.phase | 0x20 | (bus.attention ? 0x08 : 0) | (bus.acknowledge ? 0x40 : 0x80) : 0;
    case SSTAT1:
        return bus.phase;
    case DSTAT:
        BYTE(DSTAT) = 0;
        move_up();
        return value | 0x80; /* the FIFO is empty */
    case ISTAT1:
        return value | (processor == STOPPED ? 0 : 0x02);
    case CTEST2:
        value = 0x31 | (value & 0x08) | (BYTE(ISTAT0) & ISTAT_SIGP ? 0x40 : 0);
        BYTE(ISTAT0) &= ~ISTAT_SIGP;
        return value;
    case CTEST3:
        return 0x10 | (value & 0x03);
    case DFIFO:
        return BYTE(DBC);
    case CTEST5:
        return (value & ~3) | (BYTE(DBC + 1) & 3);
    case SIST:
        if (timer && now() >= timer) { /* which drivers wait for by reading this */
            timer = 0;
            post_scsi(SCSI_GENERAL);
        }
        value = BYTE(SIST);
        /* fall through */
    case SIST + 1:
        BYTE(at) = 0;
        move_up();
        return value;
    default:
        return value;
    }
}

static bool is_read_only(uint8_t at)
{
    return (at >= 0x0A && at <= SSTAT2) || at == CTEST1 || at == DFIFO || (at >= 0x3C && at <= 0x3F) || at == SIST ||
           at == SIST + 1 || at == 0x45 || at == 0x4C || (at >= SIDL && at <= STEST4) || (at >= 0x58 && at <= 0x5B) ||
           (at >= SBC && at < CSBC);
}

static void write_register(uint8_t at, uint8_t value)
{
    uint8_t old = BYTE(at);

    if (is_read_only(at))
        return;
    BYTE(at) = value;
    switch (at) {
    case SCNTL1:
        BYTE(at) = (value & ~0x10) | (old & 0x10);
        BYTE(SSTAT0) = value & 0x08 ? 0x02 : 0;
        if (value & ~old & 0x08) {
            bus_free(true);
            selecting = false;
            post_scsi(SCSI_RESET);
        }
        return;
    case SCNTL2:
        BYTE(at) = (value & ~0x09) | (old & ~value & 0x09);
        return;
    case ISTAT0:
        BYTE(at) = (value & 0xF0) | (old & 0x0B) | (old & ~value & ISTAT_INTF);
        if (value & ~old & ISTAT_SRST)
            reset_chip(true);
        else if (value & ~old & ISTAT_ABRT)
            post_dma(DMA_ABORTED);
        else if (value & ISTAT_SIGP && processor == WAITING)
            processor = RUNNING;
        update_pin();
        return;
    case DSP + 3:
        if (!(BYTE(DMODE) & 0x01)) {
            processor = RUNNING;
            selecting = false;
        }
        return;
    case DCNTL:
        BYTE(at) = value & ~0x44;
        if (value & 0x04)
            processor = RUNNING;
        update_pin();
        return;
    case ISTAT1:
    case DIEN:
    case SIEN:
    case SIEN + 1:
        update_pin();
        return;
    case CTEST3:
        BYTE(at) = value & 0x03;
        return;
    case STEST3:
        BYTE(at) = value & ~0x02;
        return;
    case STIME1: /* the times of a chip with a clock of 40 MHz, and longer rather than shorter */
        timer = value & 15 ? now() + (INT64_C(375000) << ((value & 15) - 1)) * (value & 0x10 ? 16 : 1) : 0;
    }
}

/* ---- SCRIPTS ---- */

enum { COUNT = 0xFFFFFF, SLICE = 2000, MOST_MOVED = 1 << 20 };

static uint32_t moved; /* bytes, in this slice */

static uint32_t sign_extend(uint32_t word)
{
    return ((word & COUNT) ^ 0x800000) - 0x800000;
}

static void wait(void)
{
    WORD(DSP) -= 8;
    processor = WAITING;
}

/* An instruction needs a target that is connected; false if there is none. */
static bool has_phase(void)
{
    if (bus.connected)
        return true;
    if (selecting) {
        selecting = false;
        post_scsi(SCSI_TIMEOUT);
    } else {
        wait();
    }
    return false;
}

static void mismatch(uint32_t first, uint32_t entry, uint32_t left)
{
    uint8_t control = BYTE(CCNTL0), wanted = first >> 24 & 7;
    bool second = control & 0x40 ? wanted & 1 : BYTE(SCNTL2) & 1;

    if (!(control & 0x80) || (wanted > DATA_IN && !(control & 0x20))) {
        post_scsi(SCSI_MISMATCH);
        return;
    }
    WORD(RBC) = ((first >> 28 & 1 ? entry : first) & ~COUNT) | left;
    WORD(UA) = WORD(DNAD);
    WORD(IA) = WORD(DSP) - 8;
    WORD(DSP) = WORD(second ? PMJAD2 : PMJAD1);
}

static void block_move(uint32_t first, uint32_t second)
{
    uint32_t count = first & COUNT, entry = 0, done, *words;
    uint64_t address = second;
    uint8_t wanted = first >> 24 & 7, *memory;

    if (!first) { /* not an instruction at all, but SeaBIOS has it in place of a data phase where there is none */
        WORD(DSP) -= 4;
        return;
    }
    if (first >> 28 & 1) { /* by table */
        WORD(ESA) = (WORD(DSA) + sign_extend(second)) & ~3;
        words = reach(WORD(ESA), 8);
        if (!words) {
            post_dma(DMA_BUS_FAULT);
            return;
        }
        entry = words[0];
        count = entry & COUNT;
        address = words[1];
        if ((BYTE(CCNTL1) & 0x06) == 0x06)
            address |= (uint64_t)(entry >> 24) << 32;
    } else if (first >> 29 & 1) { /* indirect */
        words = reach(second & ~3, 4);
        if (!words) {
            post_dma(DMA_BUS_FAULT);
            return;
        }
        address = *words;
    }
    if (!count) {
        post_dma(DMA_ILLEGAL);
        return;
    }
    clear_acknowledge();
    if (!has_phase())
        return;
    if (wanted == MESSAGE_OUT && bus.phase == COMMAND && !task.cdb_length)
        bus.phase = MESSAGE_OUT; /* of an initiator that selected without ATN, such as SeaBIOS */
    memory = reach(address, count);
    if (!memory) {
        post_dma(DMA_BUS_FAULT);
        return;
    }
    done = bus.phase == wanted ? move_bytes(memory, count) : 0;
    if (done && wanted != DATA_OUT)
        BYTE(SFBR) = memory[0];
    if (done && wanted & 1)
        BYTE(SIDL) = memory[done - 1];
    count -= done;
    address += done;
    moved += done;
    WORD(DBC) = (first & ~COUNT) | count;
    WORD(DNAD) = address;
    WORD(DNAD64) = address >> 32;
    WORD(SBC) = done;
    if (wanted <= DATA_IN)
        WORD(CSBC) += done;
    if (count && !bus.acknowledge)
        mismatch(first, entry, count);
}

static void bus_operation(uint32_t first, uint32_t second)
{
    uint8_t target = first >> 16 & 15, signals = first & 0x48;
    uint32_t other = first >> 26 & 1 ? WORD(DSP) + sign_extend(second) : second, *entry;
    bool sets = (first >> 27 & 7) == 3;

    switch (first >> 27 & 7) {
    case 0: /* SELECT */
        if (first >> 25 & 1) { /* by table */
            entry = reach((WORD(DSA) + sign_extend(first)) & ~3, 4);
            if (!entry) {
                post_dma(DMA_BUS_FAULT);
                return;
            }
            BYTE(SCNTL3) = *entry >> 24;
            BYTE(SXFER) = *entry >> 8;
            target = *entry >> 16 & 15;
        }
        BYTE(SDID) = target;
        clear_acknowledge();
        if (bus.connected)
            WORD(DSP) = other;
        else
            select_target(target, first >> 24 & 1);
        return;
    case 1: /* WAIT DISCONNECT */
        clear_acknowledge();
        if (bus.connected)
            wait();
        return;
    case 2: /* WAIT RESELECT */
        clear_acknowledge();
        if (bus.connected)
            return;
        if (BYTE(ISTAT0) & ISTAT_SIGP)
            WORD(DSP) = other;
        else
            wait();
        return;
    default: /* SET, CLEAR */
        BYTE(SOCL) = sets ? BYTE(SOCL) | signals : BYTE(SOCL) & ~signals;
        if (first >> 10 & 1)
            carry = sets;
        if (first >> 3 & 1) { /* ATN, which the target looks at before its next phase */
            bus.attention = sets && bus.connected;
            if (!sets && bus.phase == MESSAGE_OUT)
                advance();
        }
        if (first >> 6 & 1 && !sets)
            clear_acknowledge();
    }
}

static void write_by_script(uint8_t at, uint8_t value)
{
    if (at == SFBR)
        BYTE(SFBR) = value;
    else
        write_register(at, value);
}

static void register_move(uint32_t first)
{
    uint8_t kind = first >> 27 & 7, operation = first >> 24 & 7, at = (first >> 16 & 0x7F) | (first & 0x80);
    uint8_t data = first >> 23 & 1 ? BYTE(SFBR) : first >> 8;
    bool to_sfbr = kind == 6, is_read = kind != 5 && (operation || to_sfbr);
    uint32_t operand = kind == 5 ? BYTE(SFBR) : is_read ? read_register(at) : 0, result;

    switch (operation) {
    case 0:
        result = to_sfbr ? operand : data;
        break;
    case 1:
        result = operand << 1 | carry;
        carry = result >> 8;
        break;
    case 2:
        result = operand | data;
        break;
    case 3:
        result = operand ^ data;
        break;
    case 4:
        result = operand & data;
        break;
    case 5:
        result = operand >> 1 | carry << 7;
        carry = operand & 1;
        break;
    default:
        result = operand + data + (operation == 7 ? carry : 0);
        carry = result >> 8;
    }
    write_by_script(to_sfbr ? SFBR : at, result);
}

static void transfer_control(uint32_t first, uint32_t second)
{
    bool if_true = first >> 19 & 1, compares = first & 0x260000, holds = if_true || compares;

    if (first >> 16 & 1 && !has_phase())
        return;
    if (first >> 17 & 1)
        holds &= (bus.phase == (first >> 24 & 7)) == if_true;
    if (first >> 18 & 1)
        holds &= !((BYTE(SFBR) ^ first) & ~(first >> 8) & 0xFF) == if_true;
    if (first >> 21 & 1)
        holds &= carry == if_true;
    if (!holds)
        return;
    if (first >> 23 & 1)
        second = WORD(DSP) + sign_extend(second);
    switch (first >> 27 & 3) {
    case 1: /* CALL */
        WORD(TEMP) = WORD(DSP);
        /* fall through */
    case 0: /* JUMP */
        WORD(DSP) = second;
        return;
    case 2: /* RETURN */
        WORD(DSP) = WORD(TEMP);
        return;
    default: /* INT, INTFLY */
        if (first >> 20 & 1) {
            BYTE(ISTAT0) |= ISTAT_INTF;
            update_pin();
        } else {
            post_dma(DMA_INTERRUPT);
        }
    }
}

/* The driver looks at queues in memory while the chip does: words are read and written whole. */
static void copy(uint8_t *to, const uint8_t *from, uint8_t count)
{
    if (count == 4)
        *(volatile uint32_t *)to = *(const volatile uint32_t *)from;
    else
        memcpy(to, from, count);
}

static void load_store(uint32_t first, uint32_t second)
{
    uint8_t at = first >> 16, count = first & 7;
    uint32_t address = first >> 28 & 1 ? WORD(DSA) + sign_extend(second) : second;
    uint8_t *memory = reach(address, count), bytes[4] __attribute__((aligned(4)));

    if (count > 4 || !memory) {
        post_dma(count > 4 ? DMA_ILLEGAL : DMA_BUS_FAULT);
        return;
    }
    if (first >> 24 & 1) {
        copy(bytes, memory, count);
        for (uint8_t index = 0; index < count; index++)
            write_by_script(at + index, bytes[index]);
    } else {
        for (uint8_t index = 0; index < count; index++)
            bytes[index] = read_register(at + index);
        copy(memory, bytes, count);
    }
}

static void memory_move(uint32_t count, uint32_t second)
{
    uint32_t *third = reach(WORD(DSP), 4);
    uint8_t *from = reach(second, count), *to = third ? reach(*third, count) : NULL;

    WORD(DSP) += 4;
    if (!from || !to)
        post_dma(DMA_BUS_FAULT);
    else
        memmove(to, from, count);
}

static void run(void)
{
    moved = 0;
    for (int left = SLICE; left && processor == RUNNING && moved < MOST_MOVED; left--) {
        uint32_t *words = reach(WORD(DSP) & ~3, 8), first, second;

        if (!words) {
            post_dma(DMA_BUS_FAULT);
            return;
        }
        first = WORD(DBC) = words[0];
        second = WORD(DSPS) = words[1];
        WORD(DSP) += 8;
        switch (first >> 29) {
        case 0:
        case 1:
            block_move(first, second);
            break;
        case 2:
        case 3:
            if ((first >> 27 & 7) < 5)
                bus_operation(first, second);
            else
                register_move(first);
            break;
        case 4:
            transfer_control(first, second);
            break;
        case 6:
            memory_move(first & COUNT, second);
            break;
        case 7:
            load_store(first, second);
            break;
        default:
            post_dma(DMA_ILLEGAL);
        }
        if (BYTE(DCNTL) & 0x10 && processor == RUNNING)
            post_dma(DMA_STEP);
    }
}

/* ---- Configuration space ---- */

static void make_config(void)
{
    static const uint8_t head[] = {0x00, 0x10, 0x12, 0x00, 0, 0, 0x00, 0x02, 0x00, 0x00, 0x00, 0x01};

    memcpy(config.byte, head, sizeof head);
    config.word[BAR] = 1;
    memcpy(config.byte + 0x2C, "\x00\x10\x00\x10", 4); /* the subsystem */
    config.byte[0x3D] = 1;                             /* INTA */
}

static void write_config(uint32_t at, uint8_t value)
{
    static const uint8_t writable[0x40] = {
        [0x04] = 0x47, [0x05] = 0x05, [0x0C] = 0xFF, [0x0D] = 0xFF,                 /* command, cache line, latency */
        [0x11] = 0xFF, [0x12] = 0xFF, [0x13] = 0xFF,                                /* 256 bytes of I/O */
        [0x15] = 0xFC, [0x16] = 0xFF, [0x17] = 0xFF,                                /* 1 KiB of memory */
        [0x19] = 0xE0, [0x1A] = 0xFF, [0x1B] = 0xFF, [0x3C] = 0xFF,                 /* 8 KiB; the interrupt line */
    };

    if (at < sizeof writable)
        config.byte[at] = (config.byte[at] & ~writable[at]) | (value & writable[at]);
}

/* ---- vfio-user ---- */

enum { DMA_MAP = 2, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_IRQ_INFO = 7, SET_IRQS, RESET = 13 };
enum { BAR0, BAR1, BAR2, CONFIG = 7 };
enum { DATA_EVENTFD = 0x04, ACTION_MASK = 0x08, ACTION_UNMASK = 0x10, ACTION_TRIGGER = 0x20 };
enum { MOST_ACCESSED = 256 };

static const uint64_t region_sizes[] = {256, 1024, sizeof ram, 0, 0, 0, 0, sizeof config, 0};

struct message {
    struct header header;
    union {
        struct {
            uint64_t offset;
            uint32_t region, count;
            uint8_t data[MOST_ACCESSED];
        } access;
        struct {
            uint32_t argsz, flags;
            uint64_t offset, address, size;
        } map;
        struct {
            uint32_t argsz, flags;
            uint64_t address, size;
        } unmap;
        struct {
            uint32_t argsz, flags, regions, irqs;
        } device;
        struct {
            uint32_t argsz, flags, index, cap_offset;
            uint64_t size, offset;
        } region;
        struct {
            uint32_t argsz, flags, index, count;
        } irq;
        struct {
            uint32_t argsz, flags, index, start, count;
        } set;
        struct {
            uint16_t major, minor;
            char capabilities[64];
        } version;
    };
} __attribute__((packed));

static void count_access(uint32_t region, uint64_t offset, bool is_write, bool is_posted)
{
    if (region <= BAR1)
        (is_posted ? counts.posted : is_write ? counts.writes : counts.reads)[offset & 0xFF]++;
}

static bool access_region(struct message *message, bool is_write)
{
    uint32_t region = message->access.region, count = message->access.count;
    uint64_t offset = message->access.offset;
    uint8_t *data = message->access.data;

    if (region > CONFIG || count > MOST_ACCESSED || offset > region_sizes[region] ||
        count > region_sizes[region] - offset)
        return false;
    count_access(region, offset, is_write, message->header.flags & FLAG_NO_REPLY);
    for (uint32_t index = 0; index < count; index++) {
        uint32_t at = offset + index;

        if (region == BAR2 && is_write)
            ram[at] = data[index];
        else if (region == BAR2)
            data[index] = ram[at];
        else if (region == CONFIG && is_write)
            write_config(at, data[index]);
        else if (region == CONFIG)
            data[index] = config.byte[at];
        else if (is_write)
            write_register(at, data[index]);
        else
            data[index] = read_register(at);
    }
    message->header.size = sizeof message->header + 16 + (is_write ? 0 : count);
    return true;
}

static void set_irqs(uint32_t flags, uint32_t index, int *fd)
{
    if (index != 0)
        return;
    if (flags & ACTION_TRIGGER) {
        replace(&pin.fd, *fd); /* none: it is turned off */
        if (*fd < 0) {
            pin.masked = false;
            replace(&pin.unmask_fd, -1);
        }
        *fd = -1;
        fire();
    } else if (flags & ACTION_MASK) {
        pin.masked = true;
    } else if (flags & DATA_EVENTFD) {
        replace(&pin.unmask_fd, *fd);
        *fd = -1;
    } else {
        counts.unmasked++;
        unmask(PAUSE);
    }
}

/* Makes the reply of the message; false if it is an error. */
static bool handle(struct message *message, int *fd)
{
    static const char capabilities[] = "{\"capabilities\":{\"max_msg_fds\":1,\"max_data_xfer_size\":65536}}";
    uint32_t index;

    switch (message->header.command) {
    case COMMAND_VERSION:
        message->version.major = message->version.minor = 0;
        memcpy(message->version.capabilities, capabilities, sizeof capabilities);
        message->header.size = sizeof message->header + 4 + sizeof capabilities;
        return true;
    case DMA_MAP:
        map(message->map.address, message->map.size, message->map.offset, message->map.flags, *fd);
        message->header.size = sizeof message->header;
        return true;
    case DMA_UNMAP:
        unmap(message->unmap.address, message->unmap.size, message->unmap.flags & 2);
        return true;
    case GET_INFO:
        message->device.flags = 3; /* PCI, with reset */
        message->device.regions = 9;
        message->device.irqs = 5;
        return true;
    case GET_REGION_INFO:
        index = message->region.index;
        if (index > CONFIG + 1)
            return false;
        message->region.argsz = 32;
        message->region.flags = region_sizes[index] ? 3 : 0; /* read, write */
        message->region.cap_offset = message->region.offset = 0;
        message->region.size = region_sizes[index];
        return true;
    case GET_IRQ_INFO:
        index = message->irq.index;
        message->irq.flags = index ? 1 : 7; /* eventfd, maskable, automasked */
        message->irq.count = index == 0 || index == 3 || index == 4;
        return true;
    case SET_IRQS:
        set_irqs(message->set.flags, message->set.index, fd);
        message->header.size = sizeof message->header;
        return true;
    case COMMAND_REGION_READ:
        return access_region(message, false);
    case COMMAND_REGION_WRITE:
        return access_region(message, true);
    case RESET:
        reset_chip(false);
        return true;
    default:
        return false;
    }
}

static bool answer_message(int client, const struct header *request, int fd)
{
    static struct message message;
    uint32_t size = request->size < sizeof message ? request->size : sizeof message;
    bool is_good;

    memcpy(&message, request, size);
    is_good = handle(&message, &fd);
    if (fd >= 0)
        close(fd);
    if (request->flags & FLAG_NO_REPLY)
        return true;
    message.header.flags = is_good ? FLAG_REPLY : FLAG_REPLY | FLAG_ERROR;
    message.header.error = is_good ? 0 : EINVAL;
    if (!is_good)
        message.header.size = sizeof message.header;
    return send(client, &message, message.header.size, MSG_NOSIGNAL) == (ssize_t)message.header.size;
}

/* What there is besides messages: the client unmasks by an eventfd, or a pause is over. True if there are messages. */
static bool wait_for_events(int client, bool at_once)
{
    struct pollfd each[] = {{.fd = client, .events = POLLIN}, {.fd = pin.unmask_fd, .events = POLLIN}};
    int64_t left = at_once ? 0 : pin.again - now();
    struct timespec timeout = {.tv_nsec = left > 0 ? left : 0};
    uint64_t value;

    if (ppoll(each, 2, at_once || pin.again ? &timeout : NULL, NULL) < 0)
        return false;
    if (each[1].revents && read(pin.unmask_fd, &value, sizeof value) > 0)
        unmask(0);
    if (pin.again && now() >= pin.again)
        fire();
    return each[0].revents;
}

static void serve(int client)
{
    static char buffer[1 << 17];
    size_t have = 0;

    for (;;) {
        char control[CMSG_SPACE(sizeof(int))];
        struct iovec into = {buffer + have, sizeof buffer - have};
        struct msghdr about = {
            .msg_iov = &into, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        struct cmsghdr *header;
        ssize_t received;
        size_t at = 0;
        int fd = -1;

        if (processor == RUNNING)
            run();
        if ((pin.again || pin.unmask_fd >= 0) && !wait_for_events(client, processor == RUNNING))
            continue;
        received = recvmsg(client, &about, MSG_CMSG_CLOEXEC | (processor == RUNNING ? MSG_DONTWAIT : 0));
        if (received < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (received <= 0)
            return;
        have += received;
        header = CMSG_FIRSTHDR(&about);
        if (header && header->cmsg_type == SCM_RIGHTS)
            memcpy(&fd, CMSG_DATA(header), sizeof fd);
        while (have - at >= sizeof(struct header)) {
            const struct header *request = (const struct header *)(buffer + at);

            if (request->size < sizeof *request || request->size > sizeof buffer)
                return;
            if (have - at < request->size)
                break;
            at += request->size;
            /* What comes with a descriptor ends what was received. */
            if (!answer_message(client, request, at == have ? fd : -1))
                return;
        }
        memmove(buffer, buffer + at, have - at);
        have -= at;
    }
}

static void open_image(const char *path)
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

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (argc != 3 || strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: floor SOCKET IMAGE\n");
        return 2;
    }
    open_image(argv[2]);
    make_config();
    reset_chip(false);
    signal(SIGUSR1, report);
    strcpy(address.sun_path, argv[1]);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1)) {
        perror(argv[1]);
        return 1;
    }
    for (;;) {
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

        if (client < 0) {
            perror("accept");
            return 1;
        }
        serve(client);
        close(client);
        unmap(0, 0, true);
        replace(&pin.fd, -1);
        replace(&pin.unmask_fd, -1);
    }
}
