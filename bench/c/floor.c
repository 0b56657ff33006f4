/*
 * The least a server can do: receives what there is, answers each message with one send, checks nothing, has no device.
 * What a real server takes longer than this one is its own doing; the rest is the kernel's and the client's.
 *
 * Usage: floor SOCKET
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "wire.h"

static char buffer[1 << 20];

static uint32_t reply_size(const struct header *request)
{
    switch (request->command) {
    case COMMAND_REGION_READ:
        return ACCESS_WITH_VALUE_SIZE;
    case COMMAND_REGION_WRITE:
        return ACCESS_SIZE;
    default:
        return request->size;
    }
}

static void serve(int client)
{
    size_t have = 0;

    for (;;) {
        ssize_t received = recv(client, buffer + have, sizeof buffer - have, 0);
        size_t at = 0;

        if (received <= 0)
            return;
        have += received;
        while (have - at >= sizeof(struct header)) {
            struct header *request = (struct header *)(buffer + at);
            char reply[512] = {0};

            if (request->size < sizeof *request || request->size > sizeof reply)
                return;
            if (have - at < request->size)
                break;
            if (!(request->flags & FLAG_NO_REPLY)) {
                struct header *header = (struct header *)reply;

                memcpy(reply, request, request->size);
                header->flags = FLAG_REPLY;
                header->size = reply_size(request);
                if (send(client, reply, header->size, MSG_NOSIGNAL) < 0)
                    return;
            }
            at += request->size;
        }
        memmove(buffer, buffer + at, have - at);
        have -= at;
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: floor SOCKET\n");
        return 2;
    }
    strcpy(address.sun_path, argv[1]);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1)) {
        perror(argv[1]);
        return 1;
    }
    for (;;) {
        int client = accept(listener, NULL, NULL);

        if (client < 0) {
            perror("accept");
            return 1;
        }
        serve(client);
        close(client);
    }
}
