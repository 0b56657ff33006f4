/* Sends SCSI commands to a unit, and prints what came of each: its status, its sense data, its data.
 *
 *     scsi_commands /dev/sg0 <LIST
 *
 * A line of the list: name, tab, length of the data in decimal, tab, CDB in hex, and, where data goes to the unit,
 * tab, that data in hex. What is printed for a command begins with "# NAME"; the lines after it are one fact each.
 */
#include <errno.h>
#include <fcntl.h>
#include <scsi/sg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define LARGEST (256 * 1024)

static uint8_t data[LARGEST];

static unsigned unhex(const char *text, uint8_t *bytes, unsigned room)
{
    unsigned count = 0, byte;
    int used;
    while (count < room && sscanf(text, " %2x%n", &byte, &used) == 1) {
        bytes[count++] = byte;
        text += used;
    }
    return count;
}

static void print_sense(const uint8_t *sense, unsigned length)
{
    unsigned code = sense[0] & 0x7f;
    if (length < 14 || (code != 0x70 && code != 0x71)) {
        printf("sense");
        for (unsigned i = 0; i < length; i++)
            printf(" %02x", sense[i]);
        printf("\n");
        return;
    }
    printf("sense %x %02x %02x\n", sense[2] & 0xf, sense[12], sense[13]);
    if (sense[2] & 0xf0)
        printf("flags %x0\n", sense[2] >> 4);
    if (sense[0] & 0x80)
        printf("information %x\n", (unsigned)sense[3] << 24 | sense[4] << 16 | sense[5] << 8 | sense[6]);
    if (length >= 18 && sense[15] & 0x80) {
        printf("field in %s: byte %u", sense[15] & 0x40 ? "CDB" : "data", sense[16] << 8 | sense[17]);
        if (sense[15] & 0x08)
            printf(", bit %u", sense[15] & 7);
        printf("\n");
    }
}

int main(int count, char **arguments)
{
    char *line = NULL;
    size_t size = 0;
    int unit = count == 2 ? open(arguments[1], O_RDWR | O_NONBLOCK) : -1;
    if (unit < 0) {
        perror("scsi_commands: its unit");
        return 1;
    }
    while (getline(&line, &size, stdin) > 0) {
        uint8_t cdb[16], sense[64] = {0};
        char *name = strtok(line, "\t\n"), *length = strtok(NULL, "\t\n");
        char *bytes = strtok(NULL, "\t\n"), *given = strtok(NULL, "\t\n");
        if (!bytes)
            continue;
        struct sg_io_hdr io = {
            .interface_id = 'S',
            .dxfer_direction = given ? SG_DXFER_TO_DEV : SG_DXFER_FROM_DEV,
            .cmd_len = unhex(bytes, cdb, sizeof cdb),
            .mx_sb_len = sizeof sense,
            .dxfer_len = strtoul(length, NULL, 10),
            .dxferp = data,
            .cmdp = cdb,
            .sbp = sense,
            .timeout = 20000,
        };
        if (io.dxfer_len > LARGEST)
            return 1;
        if (!io.dxfer_len)
            io.dxfer_direction = SG_DXFER_NONE;
        memset(data, 0, LARGEST);
        if (given) {
            /* What is given is repeated up to the length. */
            unsigned had = unhex(given, data, io.dxfer_len);
            for (unsigned i = had; had && i < io.dxfer_len; i++)
                data[i] = data[i - had];
        }
        printf("# %s\n", name);
        if (ioctl(unit, SG_IO, &io)) {
            printf("SG_IO: %s\n", strerror(errno));
            continue;
        }
        if (io.host_status || io.driver_status & 7)
            printf("host %x, driver %x\n", io.host_status, io.driver_status);
        printf("status %02x\n", io.status);
        if (io.sb_len_wr)
            print_sense(sense, io.sb_len_wr);
        unsigned moved = io.dxfer_len - io.resid;
        if (io.dxfer_direction == SG_DXFER_TO_DEV && moved != io.dxfer_len)
            printf("taken %u\n", moved);
        if (io.dxfer_direction == SG_DXFER_FROM_DEV) {
            for (unsigned at = 0; at < moved; at += 16) {
                printf("%04x ", at);
                for (unsigned i = at; i < moved && i < at + 16; i++)
                    printf(" %02x", data[i]);
                printf("\n");
            }
        }
        fflush(stdout);
    }
    return 0;
}
