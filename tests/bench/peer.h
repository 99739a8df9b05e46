/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the roles of peer.c share. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>
#include <time.h>

#define ROOT "/org/storage/Connection"
#define MANAGER "org.storage.Connection.Manager1"
#define CONNECTION "org.storage.Connection1"

/* Ends the program where a call failed: nobody has to go on after an error here. */
#define check(call) checked((call), #call)
static inline int checked(int result, const char *call) {
        if (result < 0) {
                fprintf(stderr, "peer: %s: %s\n", call, strerror(-result));
                exit(1);
        }
        return result;
}

static inline double now_usec(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

void serve(sd_bus *bus, const char *name, long count, char **info);
void watch(sd_bus *bus, const char *name, long count);
