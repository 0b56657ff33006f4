/*
 * Drives an NVMe controller behind a vfio-user socket as a driver would that polls: it shares its memory, enables the
 * controller, makes one pair of I/O queues, keeps a number of commands outstanding for some seconds, and checks the
 * first bytes of every page it reads.
 *
 * Usage: load SOCKET PID DOORBELLS fill
 *        load SOCKET PID DOORBELLS read|write BYTES DEPTH SECONDS
 *        load SOCKET PID DOORBELLS idle SECONDS
 *        load floor CPU MEDIUM read|write BYTES DEPTH SECONDS
 * DOORBELLS: written (posted messages), shadow (Doorbell Buffer Config), mapped (the page of BAR0).
 * PID is the server's, whose processor time is measured.
 * "floor" measures a device in C instead, on a thread that runs on CPU, with a medium of so many bytes (see floor.h).
 *
 * Prints: commands a second, p50 and p99 of their latency in nanoseconds, the server's processor time for one in
 * nanoseconds (idle: its share of a processor, in parts per million), messages sent while measuring.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "../c/wire.h"
#include "floor.h"

enum { COMMAND_DMA_MAP = 2, COMMAND_GET_REGION_INFO = 5, BAR0 = 0, CONFIG = 7, PAGE = 4096 };
enum { CC = 0x14, CSTS = 0x1C, AQA = 0x24, ASQ = 0x28, ACQ = 0x30, DOORBELLS = 0x1000 };
enum { WRITE = 1, READ = 2, CREATE_SQ = 1, CREATE_CQ = 5, DOORBELL_BUFFER_CONFIG = 0x7C, IDENTIFY = 6 };
/* Completions taken before the slots they free are used again: so the two sides work at the same time. */
enum { REAP = 128 };
enum { ADMIN_LENGTH = 32, LENGTH = 1024, MAX_DEPTH = 256, MAX_SAMPLES = 1 << 22 };

/* Where everything is in the memory that is shared; the device sees it at the same addresses, from BASE on. */
#define BASE UINT64_C(0x100000)
enum { ADMIN_SQ = 0, ADMIN_CQ = 0x1000, SHADOW = 0x2000, EVENTS = 0x3000, DATA = 0x4000, SQ = 0x10000, CQ = 0x20000 };
enum { LISTS = 0x40000, BUFFERS = 0x200000, BUFFER_SIZE = 128 * 1024 }; /* the largest of a command */
#define MEMORY ((size_t)BUFFERS + (size_t)MAX_DEPTH * BUFFER_SIZE)

struct command {
    uint8_t opcode, flags;
    uint16_t cid;
    uint32_t nsid;
    uint64_t reserved, mptr, prp1, prp2;
    uint32_t cdw[6];
} __attribute__((packed));

struct completion {
    uint32_t dw0, dw1;
    uint16_t sq_head, sq_id, cid, status;
} __attribute__((packed));

static int server;
static unsigned char *memory;
/* Bytes from one command's buffer to the next: they lie one after the other, as an application's do. */
static size_t buffer_size = BUFFER_SIZE;
static volatile uint32_t *mapped;
static int shadowed;
static uint64_t messages;

struct pair {
    struct command *sq;
    volatile struct completion *cq;
    int length, tail, head, phase, rung_tail, rung_head, qid;
};

static struct pair admin, io;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void refuse(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static int64_t processor_time(pid_t pid)
{
    struct timespec time;
    clockid_t clock;

    if (!pid)
        return 0;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &time))
        refuse("there is no server of that PID");
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* Messages. */

static void send_whole(const void *message, size_t size, int fd)
{
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {(void *)message, size};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};

    messages++;
    if (fd >= 0) {
        header.msg_control = control;
        header.msg_controllen = sizeof control;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    }
    if (sendmsg(server, &header, MSG_NOSIGNAL) != (ssize_t)size)
        fail("send");
}

static size_t receive_reply(void *payload, size_t room, int *fd)
{
    struct header header;
    char control[CMSG_SPACE(8 * sizeof(int))];
    size_t have = 0;

    if (fd)
        *fd = -1;
    while (have < sizeof header || have < header.size) {
        char *into = have < sizeof header ? (char *)&header + have : (char *)payload + have - sizeof header;
        size_t want = have < sizeof header ? sizeof header - have : header.size - have;
        struct iovec part = {into, want};
        struct msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t received = recvmsg(server, &message, MSG_CMSG_CLOEXEC);

        if (received <= 0)
            fail("the server went away");
        for (struct cmsghdr *rights = CMSG_FIRSTHDR(&message); rights; rights = CMSG_NXTHDR(&message, rights))
            if (fd && rights->cmsg_type == SCM_RIGHTS)
                memcpy(fd, CMSG_DATA(rights), sizeof *fd);
        have += received;
        if (have >= sizeof header && header.size > sizeof header + room)
            refuse("a reply that is too long");
    }
    if (header.flags & FLAG_ERROR) {
        fprintf(stderr, "the server refused command %u: %s\n", header.command, strerror(header.error));
        exit(1);
    }
    return header.size - sizeof header;
}

static void negotiate(void)
{
    static const char capabilities[] = "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}";
    struct {
        struct header header;
        uint16_t major, minor;
        char json[sizeof capabilities];
    } __attribute__((packed)) message = {.header = {.command = COMMAND_VERSION, .size = sizeof message}, .minor = 1};
    char reply[4096];

    memcpy(message.json, capabilities, sizeof capabilities);
    send_whole(&message, sizeof message, -1);
    receive_reply(reply, sizeof reply, NULL);
}

static int allocate_memory(void)
{
    int fd = memfd_create("load", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, MEMORY))
        fail("memory");
    memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (memory == MAP_FAILED)
        fail("memory");
    return fd;
}

static void share_memory(void)
{
    struct {
        struct header header;
        uint32_t argsz, flags;
        uint64_t offset, iova, size;
    } __attribute__((packed)) message = {
        .header = {.command = COMMAND_DMA_MAP, .size = sizeof message},
        .argsz = sizeof message - sizeof message.header, .flags = 3, .iova = BASE, .size = MEMORY};
    char reply[64];
    int fd = allocate_memory();

    send_whole(&message, sizeof message, fd);
    receive_reply(reply, sizeof reply, NULL);
    close(fd);
}

static void access_register(uint16_t command, uint32_t flags, uint32_t region, uint64_t offset, void *value, uint32_t count)
{
    struct {
        struct header header;
        uint64_t offset;
        uint32_t region, count;
        char value[8];
    } __attribute__((packed)) message = {
        .header = {.command = command, .flags = flags}, .offset = offset, .region = region, .count = count};

    message.header.size = sizeof message - 8 + (command == COMMAND_REGION_WRITE ? count : 0);
    if (command == COMMAND_REGION_WRITE)
        memcpy(message.value, value, count);
    send_whole(&message, message.header.size, -1);
    if (flags & FLAG_NO_REPLY)
        return;
    receive_reply(&message.offset, sizeof message - sizeof message.header, NULL);
    if (command == COMMAND_REGION_READ)
        memcpy(value, message.value, count);
}

static void write_register(uint32_t region, uint64_t offset, uint64_t value, uint32_t count)
{
    access_register(COMMAND_REGION_WRITE, 0, region, offset, &value, count);
}

static void map_doorbells(void)
{
    struct {
        struct header header;
        uint32_t argsz, flags, index, cap_offset;
        uint64_t size, offset;
        char capabilities[4096 - 48];
    } __attribute__((packed)) message = {
        .header = {.command = COMMAND_GET_REGION_INFO}, .argsz = 4096 - 16, .index = BAR0};
    struct {
        uint16_t id, version;
        uint32_t next, areas, reserved;
        uint64_t area[8][2];
    } __attribute__((packed)) sparse;
    int fd;

    message.header.size = sizeof message.header + 32;
    send_whole(&message, message.header.size, -1);
    receive_reply(&message.argsz, sizeof message - sizeof message.header, &fd);
    if (fd < 0 || !message.cap_offset)
        refuse("no part of BAR0 can be mapped");
    memcpy(&sparse, (char *)&message.argsz + message.cap_offset, sizeof sparse);
    for (uint32_t number = 0; number < sparse.areas && number < 8; number++)
        if (sparse.area[number][0] == DOORBELLS) {
            mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, message.offset + DOORBELLS);
            if (mapped == MAP_FAILED)
                fail("doorbells");
            close(fd);
            return;
        }
    refuse("the doorbells cannot be mapped");
}

/* Doorbells. */

static void ring(struct pair *pair, int is_head, int *rung, int value)
{
    int number = 2 * pair->qid + is_head;
    uint32_t written = value;
    int old = *rung;

    if (value == old)
        return;
    *rung = value;
    if (mapped) {
        __atomic_store_n(&mapped[number], written, __ATOMIC_RELEASE);
        return;
    }
    if (shadowed && pair->qid) {
        volatile uint32_t *shadows = (void *)(memory + SHADOW), *events = (void *)(memory + EVENTS);

        __atomic_store_n(&shadows[number], written, __ATOMIC_RELEASE);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        /* As Linux decides it: the event index lies in what the doorbell went over. */
        if ((uint16_t)(value - (int)events[number] - 1) >= (uint16_t)(value - old))
            return;
    }
    access_register(COMMAND_REGION_WRITE, FLAG_NO_REPLY, BAR0, DOORBELLS + 4 * number, &written, 4);
}

static void submit(struct pair *pair, const struct command *command)
{
    pair->sq[pair->tail] = *command;
    pair->tail = (pair->tail + 1) % pair->length;
}

static int completed(struct pair *pair, struct completion *into)
{
    volatile struct completion *next = &pair->cq[pair->head];

    if ((__atomic_load_n(&next->status, __ATOMIC_ACQUIRE) & 1) != pair->phase)
        return 0;
    memcpy(into, (void *)next, sizeof *into);
    if (++pair->head == pair->length) {
        pair->head = 0;
        pair->phase ^= 1;
    }
    return 1;
}

static void carry_out(struct command command)
{
    struct completion done;
    int64_t until = now() + INT64_C(5000000000);

    submit(&admin, &command);
    ring(&admin, 0, &admin.rung_tail, admin.tail);
    while (!completed(&admin, &done))
        if (now() > until)
            refuse("an admin command does not end");
    ring(&admin, 1, &admin.rung_head, admin.head);
    if (done.status >> 1) {
        fprintf(stderr, "admin command %#x ended with status %#x\n", command.opcode, done.status >> 1);
        exit(1);
    }
}

/* So that the controller does not have the pin to think of; the queues here have no interrupts. */
static void enable_msix(void)
{
    uint32_t at = 0, head = 0;

    access_register(COMMAND_REGION_READ, 0, CONFIG, 0x34, &at, 1);
    while (at) {
        access_register(COMMAND_REGION_READ, 0, CONFIG, at, &head, 4);
        if ((head & 0xFF) == 0x11) {
            write_register(CONFIG, at + 2, 0x8000, 2);
            return;
        }
        at = head >> 8 & 0xFF;
    }
}

static void make_pair(void)
{
    io = (struct pair){(void *)(memory + SQ), (void *)(memory + CQ), LENGTH, .phase = 1, .qid = 1};
}

static uint64_t start_controller(const char *doorbells)
{
    uint32_t status = 0;

    write_register(CONFIG, 4, 6, 2);
    enable_msix();
    write_register(BAR0, CC, 0, 4);
    write_register(BAR0, AQA, (ADMIN_LENGTH - 1) << 16 | (ADMIN_LENGTH - 1), 4);
    write_register(BAR0, ASQ, BASE + ADMIN_SQ, 8);
    write_register(BAR0, ACQ, BASE + ADMIN_CQ, 8);
    if (!strcmp(doorbells, "mapped"))
        map_doorbells();
    write_register(BAR0, CC, 4 << 20 | 6 << 16 | 1, 4);
    while (!(status & 1))
        access_register(COMMAND_REGION_READ, 0, BAR0, CSTS, &status, 4);
    admin = (struct pair){(void *)(memory + ADMIN_SQ), (void *)(memory + ADMIN_CQ), ADMIN_LENGTH, .phase = 1};
    make_pair();
    carry_out((struct command){.opcode = IDENTIFY, .nsid = 1, .prp1 = BASE + DATA});
    uint64_t blocks = *(uint64_t *)(memory + DATA);
    if (!strcmp(doorbells, "shadow")) {
        carry_out((struct command){
            .opcode = DOORBELL_BUFFER_CONFIG, .prp1 = BASE + SHADOW, .prp2 = BASE + EVENTS});
        shadowed = 1;
    }
    carry_out((struct command){
        .opcode = CREATE_CQ, .prp1 = BASE + CQ, .cdw = {(LENGTH - 1) << 16 | 1, 1}});
    carry_out((struct command){
        .opcode = CREATE_SQ, .prp1 = BASE + SQ, .cdw = {(LENGTH - 1) << 16 | 1, 1 << 16 | 1}});
    return blocks;
}

/* Load. */

static uint64_t random_state = UINT64_C(0x9E3779B97F4A7C15);

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

static struct command make_command(int opcode, int slot, uint64_t first_block, int bytes)
{
    uint64_t buffer = BASE + BUFFERS + slot * buffer_size;
    int pages = bytes / PAGE;
    struct command command = {
        .opcode = opcode, .cid = slot, .nsid = 1, .prp1 = buffer,
        .cdw = {first_block, first_block >> 32, bytes / 512 - 1}};

    if (pages == 2)
        command.prp2 = buffer + PAGE;
    else if (pages > 2)
        command.prp2 = BASE + LISTS + (uint64_t)slot * PAGE;
    return command;
}

static void make_lists(void)
{
    for (int slot = 0; slot < MAX_DEPTH; slot++)
        for (int page = 1; page < (int)buffer_size / PAGE; page++)
            ((uint64_t *)(memory + LISTS + (size_t)slot * PAGE))[page - 1] =
                BASE + BUFFERS + slot * buffer_size + (uint64_t)page * PAGE;
}

/* Every page of the medium begins with its number. */

static void stamp(int slot, uint64_t first_block, int bytes)
{
    for (int at = 0; at < bytes; at += PAGE)
        *(uint64_t *)(memory + BUFFERS + slot * buffer_size + at) = first_block / 8 + at / PAGE;
}

static void check(int slot, uint64_t first_block, int bytes)
{
    for (int at = 0; at < bytes; at += PAGE) {
        uint64_t found = *(volatile uint64_t *)(memory + BUFFERS + slot * buffer_size + at);

        if (found != first_block / 8 + at / PAGE) {
            fprintf(stderr, "page %" PRIu64 " reads as page %" PRIu64 "\n", first_block / 8 + at / PAGE, found);
            exit(1);
        }
        *(uint64_t *)(memory + BUFFERS + slot * buffer_size + at) = ~UINT64_C(0);
    }
}

static int ascending(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

    return (a > b) - (a < b);
}

static void load(pid_t pid, int opcode, int bytes, int depth, double seconds, uint64_t blocks, int fill)
{
    static int64_t started[MAX_DEPTH];
    static uint64_t place[MAX_DEPTH];
    static uint32_t samples[MAX_SAMPLES];
    uint64_t places = blocks / (bytes / 512), next = 0, ended = 0, taken = 0, begun = 0;
    int64_t warm = now() + (fill ? 0 : INT64_C(30000000)), until = 0, first = 0, processor = 0, last = now();
    int free_slots[MAX_DEPTH], free_count = depth, outstanding = 0;

    for (int slot = 0; slot < depth; slot++)
        free_slots[slot] = slot;
    for (;;) {
        struct completion done;
        int64_t time = now();

        if (!first && time >= warm) {
            first = time;
            until = time + (int64_t)(seconds * 1e9);
            processor = processor_time(pid);
            ended = taken = messages = 0;
        }
        int over = fill ? begun == places : first && time >= until;
        while (free_count && !over) {
            int slot = free_slots[--free_count];

            place[slot] = (fill ? next++ : next_random() % places) * (bytes / 512);
            begun++;
            if (opcode == WRITE)
                stamp(slot, place[slot], bytes);
            struct command command = make_command(opcode, slot, place[slot], bytes);
            submit(&io, &command);
            started[slot] = time;
            outstanding++;
            over = fill && begun == places;
        }
        ring(&io, 0, &io.rung_tail, io.tail);
        if (over && !fill)
            break;
        if (!outstanding)
            break;
        while (!completed(&io, &done))
            if (now() - last > INT64_C(5000000000))
                refuse("a command does not end");
        last = time = now();
        int left = REAP;
        do {
            int slot = done.cid;

            if (done.status >> 1) {
                fprintf(stderr, "a command ended with status %#x\n", done.status >> 1);
                exit(1);
            }
            if (opcode == READ)
                check(slot, place[slot], bytes);
            if (first && started[slot] >= first) {
                if (taken < MAX_SAMPLES)
                    samples[taken++] = time - started[slot];
            }
            ended++;
            free_slots[free_count++] = slot;
            outstanding--;
        } while (--left && completed(&io, &done));
        ring(&io, 1, &io.rung_head, io.head);
    }
    int64_t spent = now() - first, worked = processor_time(pid) - processor;

    while (outstanding) {
        struct completion done;

        if (completed(&io, &done))
            outstanding--;
        else if (now() - last > INT64_C(5000000000))
            refuse("a command does not end");
    }
    qsort(samples, taken, sizeof *samples, ascending);
    printf("%.0f %u %u %.0f %" PRIu64 "\n", ended / (spent / 1e9), taken ? samples[taken / 2] : 0,
           taken ? samples[taken - 1 - taken / 100] : 0, (double)worked / (ended ? ended : 1), messages);
}

static uint64_t start_floor(int cpu, size_t medium)
{
    static uint32_t doorbells[4] __attribute__((aligned(64)));
    struct floor_queue queue = {memory, memory + SQ, memory + CQ, BASE, &doorbells[2], LENGTH, medium, cpu};

    mapped = doorbells;
    make_pair();
    if (floor_start(&queue))
        refuse("no thread for the device");
    /* With no medium any page number will do. */
    return (medium ? medium : (size_t)1 << 28) / 512;
}

static void measure(char **words, pid_t pid, uint64_t blocks)
{
    int bytes = atoi(words[1]), depth = atoi(words[2]);

    if (bytes % PAGE || bytes < PAGE || bytes > BUFFER_SIZE || depth < 1 || depth > MAX_DEPTH)
        refuse("whole pages up to 128 KiB, and a depth of 1 to 256");
    buffer_size = bytes;
    make_lists();
    load(pid, !strcmp(words[0], "write") ? WRITE : READ, bytes, depth, atof(words[3]), blocks, 0);
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (argc == 8 && !strcmp(argv[1], "floor")) {
        allocate_memory();
        measure(argv + 4, 0, start_floor(atoi(argv[2]), strtoull(argv[3], NULL, 10)));
        return 0;
    }
    if (argc < 5 || strlen(argv[1]) >= sizeof address.sun_path)
        refuse("usage: load SOCKET PID written|shadow|mapped fill | read|write BYTES DEPTH SECONDS | idle SECONDS");
    strcpy(address.sun_path, argv[1]);
    pid_t pid = atoi(argv[2]);
    server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (server < 0 || connect(server, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    negotiate();
    share_memory();
    uint64_t blocks = start_controller(argv[3]);
    if (!strcmp(argv[4], "fill")) {
        make_lists();
        load(pid, WRITE, BUFFER_SIZE, 8, 0, blocks, 1);
    } else if (!strcmp(argv[4], "idle") && argc == 6) {
        usleep(300000);
        int64_t begun = now(), processor = processor_time(pid);
        usleep(atof(argv[5]) * 1e6);
        printf("%.0f\n", (processor_time(pid) - processor) * 1e6 / (now() - begun));
    } else if (argc == 8) {
        measure(argv + 4, pid, blocks);
    } else {
        refuse("fill, read, write or idle");
    }
    return 0;
}
