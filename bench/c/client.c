/*
 * Measures 4-byte accesses of one register of any vfio-user server, as QEMU's client does them: a message in one
 * system call, then its reply's header, then the reply's payload.
 *
 * Usage: client SOCKET REGION OFFSET ROUND_TRIPS POSTED_WRITES
 * Prints, in nanoseconds: read p50, read p99, write p50, write p99, one posted write (their time as a whole, the
 * server's included, by their number).
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "wire.h"

static int server;
static uint32_t region;
static uint64_t offset;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void send_whole(const void *message, size_t size)
{
    if (send(server, message, size, MSG_NOSIGNAL) != (ssize_t)size)
        fail("send");
}

static void receive_whole(void *into, size_t size)
{
    char *at = into;

    while (size) {
        ssize_t received = recv(server, at, size, 0);

        if (received <= 0)
            fail("the server went away");
        at += received;
        size -= received;
    }
}

static void receive_reply(void)
{
    struct header header;
    char payload[4096];

    receive_whole(&header, sizeof header);
    if (header.flags & FLAG_ERROR) {
        fprintf(stderr, "the server refused command %u: %s\n", header.command, strerror(header.error));
        exit(1);
    }
    if (header.size < sizeof header || header.size - sizeof header > sizeof payload) {
        fprintf(stderr, "the server sent a reply of %u bytes\n", header.size);
        exit(1);
    }
    receive_whole(payload, header.size - sizeof header);
}

static void negotiate(void)
{
    static const char capabilities[] = "{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}";
    struct {
        struct header header;
        uint16_t major, minor;
        char json[sizeof capabilities];
    } __attribute__((packed)) message = {.header = {.command = COMMAND_VERSION, .size = sizeof message}, .minor = 1};

    memcpy(message.json, capabilities, sizeof capabilities);
    send_whole(&message, sizeof message);
    receive_reply();
}

static void send_access(uint16_t command, uint32_t flags, uint16_t id)
{
    struct access message = {
        .header = {.message_id = id, .command = command, .flags = flags},
        .offset = offset,
        .region = region,
        .count = sizeof message.value,
        .value = 0x12345678,
    };

    message.header.size = command == COMMAND_REGION_READ ? ACCESS_SIZE : ACCESS_WITH_VALUE_SIZE;
    send_whole(&message, message.header.size);
}

static int ascending(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;

    return (a > b) - (a < b);
}

static void measure_round_trips(uint16_t command, int64_t *times, int number)
{
    for (int i = 0; i < number; i++) {
        int64_t started = now();

        send_access(command, 0, i);
        receive_reply();
        times[i] = now() - started;
    }
    qsort(times, number, sizeof *times, ascending);
    printf("%" PRId64 " %" PRId64 " ", times[number / 2], times[number - 1 - number / 100]);
}

static void measure_posted_writes(int number)
{
    int64_t started = now();

    for (int i = 0; i < number; i++)
        send_access(COMMAND_REGION_WRITE, FLAG_NO_REPLY, i);
    /* Messages are carried out in order: when this read is answered, every write has been done. */
    send_access(COMMAND_REGION_READ, 0, 0);
    receive_reply();
    printf("%.1f\n", (double)(now() - started) / number);
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int round_trips, posted;
    int64_t *times;

    if (argc != 6 || strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: client SOCKET REGION OFFSET ROUND_TRIPS POSTED_WRITES\n");
        return 2;
    }
    strcpy(address.sun_path, argv[1]);
    region = strtoul(argv[2], NULL, 0);
    offset = strtoull(argv[3], NULL, 0);
    round_trips = atoi(argv[4]);
    posted = atoi(argv[5]);
    times = calloc(round_trips > 0 ? round_trips : 1, sizeof *times);
    if (!times || round_trips < 1 || posted < 1) {
        fprintf(stderr, "client: at least one round trip and one posted write\n");
        return 2;
    }
    server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(server, (struct sockaddr *)&address, sizeof address))
        fail(argv[1]);
    negotiate();
    measure_round_trips(COMMAND_REGION_READ, times, round_trips);
    measure_round_trips(COMMAND_REGION_WRITE, times, round_trips);
    measure_posted_writes(posted);
    free(times);
    return 0;
}
