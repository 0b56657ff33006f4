#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, BLOCK = 512, ENTRY = 64, COMPLETION = 16, READ = 2 };

static struct floor_queue queue;
static unsigned char *medium;

static uint64_t word(const unsigned char *at)
{
    uint64_t value;

    memcpy(&value, at, sizeof value);
    return value;
}

static void copy(unsigned char *guest, uint64_t offset, size_t length, int opcode)
{
    if (medium) {
        if (opcode == READ)
            memcpy(guest, medium + offset, length);
        else
            memcpy(medium + offset, guest, length);
    } else if (opcode == READ) {
        for (size_t at = 0; at < length; at += PAGE) {
            uint64_t number = (offset + at) / PAGE;
            memcpy(guest + at, &number, sizeof number);
        }
    }
}

/* The generator's buffers are contiguous, and it aligns everything: so the list of pages need not be read. */
static void carry_out(const unsigned char *entry)
{
    uint64_t offset = word(entry + 40) * BLOCK, length = ((word(entry + 48) & 0xFFFF) + 1) * BLOCK;

    copy(queue.memory + (word(entry + 24) - queue.base), offset, length, entry[0]);
}

static void *run(void *unused)
{
    uint32_t head = 0, done = 0;
    uint16_t phase = 1;

    (void)unused;
    for (;;) {
        uint32_t tail = __atomic_load_n(queue.tail, __ATOMIC_ACQUIRE);

        while (head != tail) {
            const unsigned char *entry = queue.sq + (size_t)head * ENTRY;
            unsigned char *completion = queue.cq + (size_t)done * COMPLETION;
            uint16_t from[3];

            carry_out(entry);
            head = (head + 1) % queue.length;
            from[0] = head, from[1] = 1;
            memcpy(&from[2], entry + 2, sizeof from[2]);
            memset(completion, 0, 8);
            memcpy(completion + 8, from, sizeof from);
            __atomic_store_n((uint16_t *)(completion + 14), phase, __ATOMIC_RELEASE);
            if (++done == queue.length) {
                done = 0;
                phase ^= 1;
            }
        }
    }
    return NULL;
}

int floor_start(const struct floor_queue *from)
{
    pthread_attr_t attributes;
    pthread_t thread;
    cpu_set_t cpus;
    int error;

    queue = *from;
    if (queue.medium) {
        medium = mmap(NULL, queue.medium, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (medium == MAP_FAILED)
            return errno;
        madvise(medium, queue.medium, MADV_HUGEPAGE); /* as the memory backend does; without it is slower, no more */
        for (size_t at = 0; at < queue.medium; at += PAGE) {
            uint64_t number = at / PAGE;
            memset(medium + at, 0x5A, PAGE);
            memcpy(medium + at, &number, sizeof number);
        }
    }
    CPU_ZERO(&cpus);
    CPU_SET(queue.cpu, &cpus);
    pthread_attr_init(&attributes);
    pthread_attr_setaffinity_np(&attributes, sizeof cpus, &cpus);
    error = pthread_create(&thread, &attributes, run, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}
