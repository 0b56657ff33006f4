/* Has a device copy memory of the guest while another thread never stops accessing its registers. The device is
 * tests/guest/test_message_dma.py's Mover.
 *
 *     message_dma /sys/bus/pci/devices/0000:00:03.0
 *
 * Prints a line "ok NAME" for each thing that works; the first that does not is told on standard error, status 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define HUGE (2 << 20)
#define LARGEST (4 << 20)
#define ROUNDS 4

enum { ADDRESS = 0, COUNT = 8, TAKE = 0xc, GIVE = 0x10, TAKE_SOON = 0x14, GIVE_SOON = 0x18, STATUS = 0x1c };
enum { SCRATCH = 0x20, WRITTEN = 0x24 };

static volatile uint8_t *bar;
static int config;
static atomic_int stop;
static uint32_t writes;

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    exit(1);
}

static uint32_t get(unsigned offset) { return *(volatile uint32_t *)(bar + offset); }
static void put(unsigned offset, uint32_t value) { *(volatile uint32_t *)(bar + offset) = value; }

static void set_bus_master(int on)
{
    uint16_t command;
    if (pread(config, &command, 2, 4) != 2)
        fail("reading the command register: %s", strerror(errno));
    command = on ? command | 6 : command & ~4;
    if (pwrite(config, &command, 2, 4) != 2)
        fail("writing the command register: %s", strerror(errno));
}

/* What another processor does all the time: a write, posted, and now and then the read that shows it arrived. */
static void *traffic(void *unused)
{
    while (!stop) {
        put(SCRATCH, ++writes);
        if (writes % 8 == 0 && get(SCRATCH) != writes)
            fail("scratch is %#x after %#x was written", get(SCRATCH), writes);
    }
    return unused;
}

/* What the device is to be told instead of an address here. */
static uint64_t physical(const void *address)
{
    int fd = open("/proc/self/pagemap", O_RDONLY);
    uint64_t entry = 0;
    if (fd < 0 || pread(fd, &entry, 8, (uintptr_t)address / 4096 * 8) != 8 || !(entry >> 63))
        fail("no physical address for %p", (void *)address);
    close(fd);
    return (entry & ((1ULL << 55) - 1)) * 4096;
}

static uint32_t *piece[2];

/* Two huge pages that follow one another where the device sees them, wherever they are here. */
static uint64_t find_memory(void)
{
    enum { PAGES = 32 };
    uint64_t where[PAGES];
    uint8_t *memory = mmap(NULL, (size_t)PAGES * HUGE, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        fail("no huge pages: %s", strerror(errno));
    for (int i = 0; i < PAGES; i++)
        where[i] = physical(memory + (size_t)i * HUGE);
    for (int i = 0; i < PAGES; i++)
        for (int j = 0; j < PAGES; j++)
            if (where[j] == where[i] + HUGE) {
                piece[0] = (uint32_t *)(memory + (size_t)i * HUGE);
                piece[1] = (uint32_t *)(memory + (size_t)j * HUGE);
                return where[i];
            }
    fail("no two huge pages follow one another");
    return 0;
}

static uint32_t *word(uint32_t i) { return &piece[i / (HUGE / 4)][i % (HUGE / 4)]; }

static void transfer(uint64_t address, uint32_t count, unsigned command)
{
    time_t deadline = time(NULL) + 30;
    *(volatile uint64_t *)(bar + ADDRESS) = address;
    put(COUNT, count);
    put(STATUS, 0);
    put(command, 1);
    while (get(STATUS) == 0)
        if (time(NULL) > deadline)
            fail("a transfer of %u bytes does not end", count);
}

static void check(uint64_t address, uint32_t count, unsigned take, unsigned give, const char *how)
{
    for (unsigned round = 0; round < ROUNDS; round++) {
        uint32_t seed = count + round * 77 + take;
        for (uint32_t i = 0; i < count / 4; i++)
            *word(i) = i * 2654435761u ^ seed;
        transfer(address, count, take);
        if (get(STATUS) != 1)
            fail("taking %u bytes failed: %#x", count, get(STATUS));
        for (uint32_t i = 0; i < count / 4; i++)
            *word(i) = 0x5a5a5a5a;
        transfer(address, count, give);
        if (get(STATUS) != 1)
            fail("giving %u bytes failed: %#x", count, get(STATUS));
        for (uint32_t i = 0; i < count / 4; i++)
            if (*word(i) != ~(i * 2654435761u ^ seed))
                fail("byte %u of %u is wrong, %s", i * 4, count, how);
    }
    printf("ok %u bytes %s\n", count, how);
}

int main(int argc, char **argv)
{
    char path[256];
    pthread_t thread;
    if (argc != 2)
        fail("usage: message_dma SYSFS_FOLDER");
    snprintf(path, sizeof path, "%s/config", argv[1]);
    config = open(path, O_RDWR);
    snprintf(path, sizeof path, "%s/resource0", argv[1]);
    int resource = open(path, O_RDWR);
    if (config < 0 || resource < 0)
        fail("cannot open the device: %s", strerror(errno));
    bar = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, resource, 0);
    if (bar == MAP_FAILED)
        fail("mmap of BAR 0: %s", strerror(errno));
    FILE *pages = fopen("/proc/sys/vm/nr_hugepages", "w");
    if (!pages || fprintf(pages, "32") < 0 || fclose(pages))
        fail("no huge pages: %s", strerror(errno));
    uint64_t address = find_memory();
    set_bus_master(1);

    uint32_t before = get(WRITTEN);
    if (pthread_create(&thread, NULL, traffic, NULL))
        fail("no thread");
    check(address, 65536, TAKE, GIVE, "from handlers");
    check(address, 65536, TAKE_SOON, GIVE_SOON, "put off");
    check(address, LARGEST, TAKE, GIVE, "from handlers");
    check(address, LARGEST, TAKE_SOON, GIVE_SOON, "put off");
    stop = 1;
    pthread_join(thread, NULL);
    if (get(WRITTEN) - before != writes || writes < 1000)
        fail("%u of %u writes arrived", get(WRITTEN) - before, writes);
    printf("ok no write was lost\n");

    set_bus_master(0);
    *word(0) = *word(1023) = 0x77;
    transfer(address, 4096, GIVE);
    if (get(STATUS) != 0x100 + EACCES || *word(0) != 0x77 || *word(1023) != 0x77)
        fail("without bus mastering: %#x", get(STATUS));
    printf("ok no dma without bus mastering\n");
    return 0;
}
