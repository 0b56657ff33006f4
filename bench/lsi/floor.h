/* What the parts of the floor - messages, chip, disk - need of each other. Little-endian machines only. */
#ifndef FLOOR_H
#define FLOOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* floor.c */

int64_t now(void); /* ns */
void set_pin(bool level);
void *client_memory(uint64_t address, uint64_t length); /* NULL: not there, or not in one piece */

/* floor_chip.c */

enum { CHIP_RAM_SIZE = 8192 };

extern uint8_t chip_ram[CHIP_RAM_SIZE];
extern uint32_t chip_ram_address; /* its BAR */

uint8_t read_register(uint8_t at);
void write_register(uint8_t at, uint8_t value);
void reset_chip(bool software);
bool chip_runs(void); /* its program has something to do */
void run_chip(void);  /* for a while */

/* floor_disk.c */

/* The command that is carried out. */
extern struct task {
    uint8_t lun, cdb[16], status, answer[256];
    uint32_t cdb_length;
    bool is_output, has_begun;
    uint8_t *data;
    uint64_t left; /* bytes of data */
} task;

void open_image(const char *path);
void carry_out(void); /* the command in task.cdb: data and status are there afterwards */

#endif
