/*
 * The least a device can do for the load generator, in C, on a thread of its own: what this machine gives to whoever
 * is quicker than we are. It trusts every entry it takes.
 */
#ifndef FLOOR_H
#define FLOOR_H

#include <stddef.h>
#include <stdint.h>

struct floor_queue {
    unsigned char *memory, *sq, *cq; /* the guest's memory, and where in it the queues are */
    uint64_t base;                   /* the address of that memory */
    volatile uint32_t *tail;         /* the doorbell */
    uint32_t length;                 /* of either queue */
    size_t medium;                   /* bytes; 0: nothing is copied, each page is only stamped with its number */
    int cpu;
};

/* Starts the device. It ends with the process. Returns 0, or an errno. */
int floor_start(const struct floor_queue *queue);

#endif
