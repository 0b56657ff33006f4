/* The few messages of vfio-user that the two programs here speak. Little-endian machines only. */
#ifndef WIRE_H
#define WIRE_H

#include <stdint.h>

enum { COMMAND_VERSION = 1, COMMAND_REGION_READ = 9, COMMAND_REGION_WRITE = 10 };
enum { FLAG_REPLY = 0x1, FLAG_NO_REPLY = 0x10, FLAG_ERROR = 0x20 };

struct header {
    uint16_t message_id;
    uint16_t command;
    uint32_t size;
    uint32_t flags;
    uint32_t error;
} __attribute__((packed));

struct access {
    struct header header;
    uint64_t offset;
    uint32_t region;
    uint32_t count;
    uint32_t value; /* of a write, and of the reply to a read */
} __attribute__((packed));

enum { ACCESS_SIZE = sizeof(struct access) - sizeof(uint32_t), ACCESS_WITH_VALUE_SIZE = sizeof(struct access) };

#endif
