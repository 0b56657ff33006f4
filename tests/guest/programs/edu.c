/* A driver of QEMU's educational device in user space: registers through sysfs, interrupts through uio_pci_generic,
 * DMA to pages whose physical address /proc/self/pagemap tells.
 *
 *     edu /sys/bus/pci/devices/0000:00:02.0 /dev/uio0
 *
 * Prints a line "ok NAME" for each thing that works; the first that does not is told on standard error, status 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define BUFFER 0x40000

static volatile uint8_t *bar;
static int config, uio;

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
static void put64(unsigned offset, uint64_t value) { *(volatile uint64_t *)(bar + offset) = value; }

static void set_command(uint16_t set, uint16_t clear)
{
    uint16_t command;
    if (pread(config, &command, 2, 4) != 2)
        fail("reading the command register: %s", strerror(errno));
    command = (command | set) & ~clear;
    if (pwrite(config, &command, 2, 4) != 2)
        fail("writing the command register: %s", strerror(errno));
}

static void wait_clear(unsigned offset, uint32_t bits)
{
    time_t deadline = time(NULL) + 20;
    while (get(offset) & bits)
        if (time(NULL) > deadline)
            fail("bits %#x of register %#x did not clear", bits, offset);
}

/* uio_pci_generic masks INTx by the command register when one comes, and leaves it to us to allow the next. */
static void wait_interrupt(uint32_t cause)
{
    uint32_t count;
    if (read(uio, &count, 4) != 4)
        fail("waiting for the interrupt: %s", strerror(errno));
    if (get(0x24) != cause)
        fail("the interrupt's cause is %#x, not %#x", get(0x24), cause);
    put(0x64, cause);
    if (get(0x24) != 0)
        fail("the cause %#x remains after it was acknowledged", get(0x24));
    set_command(0, 1 << 10);
}

static uint64_t physical(const void *address)
{
    int fd = open("/proc/self/pagemap", O_RDONLY);
    uint64_t entry = 0;
    if (fd < 0 || pread(fd, &entry, 8, (uintptr_t)address / PAGE * 8) != 8 || !(entry >> 63))
        fail("no physical address for %p", address);
    close(fd);
    return (entry & ((1ULL << 55) - 1)) * PAGE;
}

static void dma(uint64_t from, uint64_t to, uint64_t count, uint32_t command)
{
    put64(0x80, from);
    put64(0x88, to);
    put64(0x90, count);
    put(0x98, command);
}

int main(int argc, char **argv)
{
    char path[256];
    if (argc != 3)
        fail("usage: edu SYSFS_FOLDER UIO_DEVICE");
    snprintf(path, sizeof path, "%s/config", argv[1]);
    config = open(path, O_RDWR);
    snprintf(path, sizeof path, "%s/resource0", argv[1]);
    int resource = open(path, O_RDWR);
    uio = open(argv[2], O_RDWR);
    if (config < 0 || resource < 0 || uio < 0)
        fail("cannot open the device: %s", strerror(errno));
    bar = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, resource, 0);
    if (bar == MAP_FAILED)
        fail("mmap of BAR 0: %s", strerror(errno));

    if (get(0) != 0x010000ed)
        fail("identification is %#x", get(0));
    printf("ok identification\n");
    for (uint32_t value = 1; value; value <<= 1) {
        put(4, value);
        if (get(4) != ~value)
            fail("liveness of %#x is %#x", value, get(4));
    }
    printf("ok liveness\n");

    put(0x20, 0);
    put(8, 12);
    wait_clear(0x20, 1);
    if (get(8) != 479001600)
        fail("12! is not %u", get(8));
    printf("ok factorial by polling\n");

    set_command(1 << 2, 1 << 10);
    put(0x20, 0x80);
    put(8, 10);
    wait_interrupt(1);
    if (get(8) != 3628800)
        fail("10! is not %u", get(8));
    put(0x20, 0);
    printf("ok factorial by interrupt\n");

    for (uint32_t cause = 2; cause < 0x100; cause <<= 1) {
        put(0x60, cause);
        wait_interrupt(cause);
    }
    printf("ok interrupt raise and acknowledge\n");

    uint8_t *out = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    uint8_t *back = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (out == MAP_FAILED || back == MAP_FAILED || mlock(out, PAGE) || mlock(back, PAGE))
        fail("no memory for DMA: %s", strerror(errno));
    for (unsigned round = 0; round < 8; round++) {
        for (unsigned i = 0; i < PAGE; i++) {
            out[i] = i * 7 + i / 256 + round * 31;
            back[i] = 0xee;
        }
        dma(physical(out), BUFFER, PAGE, 1);
        wait_clear(0x98, 1);
        dma(BUFFER, physical(back), PAGE, 3 | 4);
        wait_interrupt(0x100);
        wait_clear(0x98, 1);
        if (memcmp(out, back, PAGE))
            fail("the bytes that came back are not those that went out, in round %u", round);
    }
    dma(BUFFER + 256, physical(back) + 100, 1000, 3);
    wait_clear(0x98, 1);
    if (memcmp(back, out, 100) || memcmp(back + 100, out + 256, 1000) || memcmp(back + 1100, out + 1100, PAGE - 1100))
        fail("a transfer of 1000 bytes moved something else");
    printf("ok dma both ways\n");

    /* Without bus mastering nothing may reach memory. */
    set_command(0, 1 << 2);
    memset(back, 0x55, PAGE);
    dma(BUFFER, physical(back), PAGE, 3);
    wait_clear(0x98, 1);
    for (unsigned i = 0; i < PAGE; i++)
        if (back[i] != 0x55)
            fail("DMA went through without bus mastering");
    printf("ok no dma without bus mastering\n");
    return 0;
}
