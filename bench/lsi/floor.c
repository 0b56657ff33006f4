/*
 * The least an LSI 53C895A with one disk can be, for Linux' sym53c8xx behind QEMU's vfio-user-pci: a program with one
 * thread, whose device costs next to nothing. What a real server takes longer than this one is its own doing; the rest
 * is the messages', QEMU's and the kernel's.
 *
 * Here are the messages, the interrupt pin, the client's memory and configuration space; the chip is in floor_chip.c,
 * the disk in floor_disk.c. None checks more than what would crash it, and there is no migration.
 *
 * Usage: floor SOCKET IMAGE
 * Each SIGUSR1 has it say on standard error what it did since the last: lines of "COUNT", number and what, and "END".
 */
#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
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

int64_t now(void)
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

void set_pin(bool level)
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

void *client_memory(uint64_t address, uint64_t length)
{
    uint64_t offset = address - last->address;

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

/* ---- Configuration space ---- */

static union {
    uint8_t byte[256];
    uint32_t word[64];
} config;

enum { BAR = 0x10 / 4 };

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
    chip_ram_address = config.word[BAR + 2];
}

/* ---- Messages ---- */

enum { DMA_MAP = 2, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_IRQ_INFO = 7, SET_IRQS, RESET = 13 };
enum { BAR0, BAR1, BAR2, CONFIG = 7 };
enum { DATA_EVENTFD = 0x04, ACTION_MASK = 0x08, ACTION_UNMASK = 0x10, ACTION_TRIGGER = 0x20 };
enum { MOST_ACCESSED = 256 };

static const uint64_t region_sizes[] = {256, 1024, sizeof chip_ram, 0, 0, 0, 0, sizeof config, 0};

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
            chip_ram[at] = data[index];
        else if (region == BAR2)
            data[index] = chip_ram[at];
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

        if (chip_runs())
            run_chip();
        if ((pin.again || pin.unmask_fd >= 0) && !wait_for_events(client, chip_runs()))
            continue;
        received = recvmsg(client, &about, MSG_CMSG_CLOEXEC | (chip_runs() ? MSG_DONTWAIT : 0));
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
