/* A driver in user space, on the guest's own vfio-pci behind the machine's IOMMU: 20 MSI-X vectors, and DMA to
 * addresses of its own choice. The device is tests/guest/devices.py's Exerciser.
 *
 *     vfio_user_driver 0000:00:03.0 GROUP
 *
 * Prints a line "ok NAME" for each thing that works; the first that does not is told on standard error, status 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define VECTORS 20
#define SIZE (64 * 1024)
#define IOVA_FROM 0x7654300000ULL
#define IOVA_TO 0x1234000ULL

enum { FIRE = 0, SOURCE = 8, DESTINATION = 16, COUNT = 24, STATUS = 32 };

static int device, events[VECTORS];
static uint64_t bar0;

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, " (%s)\n", strerror(errno));
    exit(1);
}

static void put(unsigned offset, uint64_t value, unsigned size)
{
    if (pwrite(device, &value, size, bar0 + offset) != (int)size)
        fail("write of register %#x", offset);
}

static uint32_t get(unsigned offset)
{
    uint32_t value;
    if (pread(device, &value, 4, bar0 + offset) != 4)
        fail("read of register %#x", offset);
    return value;
}

static void set_vectors(unsigned start, unsigned count, int connect)
{
    char buffer[sizeof(struct vfio_irq_set) + VECTORS * sizeof(int)];
    struct vfio_irq_set *set = (void *)buffer;
    set->argsz = sizeof *set + count * sizeof(int);
    set->flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    set->index = VFIO_PCI_MSIX_IRQ_INDEX;
    set->start = start;
    set->count = count;
    for (unsigned i = 0; i < count; i++)
        ((int *)set->data)[i] = connect ? events[start + i] : -1;
    if (ioctl(device, VFIO_DEVICE_SET_IRQS, set))
        fail("VFIO_DEVICE_SET_IRQS of [%u, %u)", start, start + count);
}

/* How often a vector came, waiting up to that long for the first time. */
static uint64_t came(unsigned vector, int milliseconds)
{
    struct pollfd wait = {.fd = events[vector], .events = POLLIN};
    uint64_t count = 0;
    if (poll(&wait, 1, milliseconds) == 1 && read(events[vector], &count, 8) != 8)
        fail("read of eventfd %u", vector);
    return count;
}

static void expect(unsigned vector, const char *when)
{
    for (unsigned other = 0; other < VECTORS; other++) {
        uint64_t count = came(other, other == vector ? 20000 : 0);
        if (count != (other == vector))
            fail("%s, vector %u came %llu times", when, other, (unsigned long long)count);
    }
}

static void map(int container, void *memory, uint64_t iova)
{
    struct vfio_iommu_type1_dma_map request = {
        .argsz = sizeof request, .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        .vaddr = (uintptr_t)memory, .iova = iova, .size = SIZE};
    if (ioctl(container, VFIO_IOMMU_MAP_DMA, &request))
        fail("VFIO_IOMMU_MAP_DMA at %#llx", (unsigned long long)iova);
}

static uint32_t transfer(uint64_t from, uint64_t to, uint32_t count)
{
    put(SOURCE, from, 8);
    put(DESTINATION, to, 8);
    put(COUNT, count, 4);
    return get(STATUS);
}

int main(int argc, char **argv)
{
    char path[64];
    if (argc != 3)
        fail("usage: vfio_user_driver ADDRESS GROUP");
    int container = open("/dev/vfio/vfio", O_RDWR);
    snprintf(path, sizeof path, "/dev/vfio/%s", argv[2]);
    int group = open(path, O_RDWR);
    if (container < 0 || group < 0)
        fail("open of %s", path);
    if (ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) || ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU))
        fail("setting up the IOMMU");
    device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, argv[1]);
    if (device < 0)
        fail("VFIO_GROUP_GET_DEVICE_FD of %s", argv[1]);
    struct vfio_region_info region = {.argsz = sizeof region, .index = VFIO_PCI_BAR0_REGION_INDEX};
    if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region))
        fail("VFIO_DEVICE_GET_REGION_INFO");
    bar0 = region.offset;
    struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
    if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config))
        fail("VFIO_DEVICE_GET_REGION_INFO of the configuration space");
    uint16_t command = 0x0007;
    if (pwrite(device, &command, 2, config.offset + 4) != 2)
        fail("enabling the device");
    struct vfio_irq_info interrupts = {.argsz = sizeof interrupts, .index = VFIO_PCI_MSIX_IRQ_INDEX};
    if (ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &interrupts) || interrupts.count != VECTORS)
        fail("the device has %u vectors", interrupts.count);

    for (unsigned vector = 0; vector < VECTORS; vector++)
        if ((events[vector] = eventfd(0, EFD_NONBLOCK)) < 0)
            fail("eventfd");
    set_vectors(0, VECTORS, 1);
    for (unsigned vector = 0; vector < VECTORS; vector++) {
        put(FIRE, vector, 4);
        expect(vector, "with all connected");
    }
    printf("ok %u vectors\n", VECTORS);

    /* Disconnecting masks the vector in the table; the others go on. */
    set_vectors(7, 1, 0);
    put(FIRE, 7, 4);
    put(FIRE, 8, 4);
    expect(8, "with vector 7 masked");
    printf("ok masked\n");
    set_vectors(7, 1, 1);
    came(7, 0); /* what came while it was masked may be delivered now, or not */
    put(FIRE, 7, 4);
    if (came(7, 20000) < 1)
        fail("vector 7 did not come after it was unmasked");
    expect(VECTORS, "with everything quiet");
    printf("ok unmasked\n");

    uint8_t *from = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    uint8_t *to = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    for (unsigned i = 0; i < SIZE; i++)
        from[i] = i * 13 + i / 251;
    map(container, from, IOVA_FROM);
    map(container, to, IOVA_TO);
    if (transfer(IOVA_FROM, IOVA_TO, SIZE))
        fail("the device could not copy: status %u", get(STATUS));
    if (memcmp(from, to, SIZE))
        fail("the bytes that arrived are not those that left");
    printf("ok dma through the IOMMU\n");

    struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = IOVA_TO, .size = SIZE};
    if (ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap))
        fail("VFIO_IOMMU_UNMAP_DMA");
    memset(to, 0, SIZE);
    if (transfer(IOVA_FROM, IOVA_TO, SIZE) != ENOENT)
        fail("the device got status %u for memory that is not mapped any more", get(STATUS));
    for (unsigned i = 0; i < SIZE; i++)
        if (to[i])
            fail("a device wrote to memory that was taken from it");
    printf("ok no dma where nothing is mapped\n");
    if (transfer(IOVA_FROM, IOVA_FROM + SIZE - 16, 32) != ENOENT)
        fail("a transfer over the end of a mapping got status %u", get(STATUS));
    printf("ok no dma over the end of a mapping\n");
    return 0;
}
