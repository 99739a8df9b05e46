/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What storaged-connd is measured with, and against, in C on libsd-bus and on the bus of
 * $DBUS_SYSTEM_BUS_ADDRESS. Times are microseconds. It ends with the process that started it.
 *
 *   peer serve NAME COUNT [KEY=TYPE:VALUE...]
 *     a service of the same shape as ours, written as C programs are: each reply is built for
 *     each call. Connections c00000 to COUNT-1, each with these entries of type s, x or b in
 *     its ConnectionInfo. Prints "ready".
 *   peer time DESTINATION PATH INTERFACE MEMBER [s ARG] COUNT
 *     prints for each call the time until the whole reply is here, and the number of entries in
 *     it, read when the clock has stopped. A call before the first is not counted.
 *   peer watch DESTINATION COUNT
 *     prints "watching", then, with the monotonic clock: "named" when the name has an owner,
 *     "published" when the objects of c00000 to COUNT-1 are there, "connected" when all of
 *     them are.
 */
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "peer.h"

#define DEADLINE_SECONDS 120

static unsigned read_all(sd_bus_message *m) {
        unsigned n = 0;
        char type;
        const char *contents;
        for (; check(sd_bus_message_peek_type(m, &type, &contents)) > 0; n++) {
                uint64_t any;
                if (!contents) {
                        check(sd_bus_message_read_basic(m, type, &any));
                        continue;
                }
                check(sd_bus_message_enter_container(m, type, contents));
                read_all(m);
                check(sd_bus_message_exit_container(m));
        }
        return n;
}

static unsigned count_entries(sd_bus_message *m) {
        const char *contents;
        char type;
        if (check(sd_bus_message_peek_type(m, &type, &contents)) > 0 && type == 'a')
                check(sd_bus_message_enter_container(m, type, contents));
        return read_all(m);
}

static void time_calls(sd_bus *bus, char **argv, const char *argument, long count) {
        for (long i = -1; i < count; i++) {
                sd_bus_error error = SD_BUS_ERROR_NULL;
                sd_bus_message *call, *reply = NULL;
                double start = now_usec(), end;
                check(sd_bus_message_new_method_call(bus, &call, argv[0], argv[1], argv[2],
                                                     argv[3]));
                if (argument)
                        check(sd_bus_message_append(call, "s", argument));
                if (sd_bus_call(bus, call, DEADLINE_SECONDS * 1000000ULL, &error, &reply) < 0) {
                        fprintf(stderr, "peer: %s: %s\n", error.name, error.message);
                        exit(1);
                }
                end = now_usec();
                if (i >= 0)
                        printf("%.1f %u\n", end - start, count_entries(reply));
                sd_bus_message_unref(call);
                sd_bus_message_unref(reply);
        }
}

int main(int argc, char **argv) {
        const char *role = argc > 1 ? argv[1] : "";
        sd_bus *bus;
        setvbuf(stdout, NULL, _IOLBF, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        check(sd_bus_open_system(&bus));
        if (strcmp(role, "serve") == 0 && argc >= 4) {
                serve(bus, argv[2], atol(argv[3]), argv + 4);
                return 0;
        }
        alarm(DEADLINE_SECONDS);
        if (strcmp(role, "time") == 0 && argc == 7)
                time_calls(bus, argv + 2, NULL, atol(argv[6]));
        else if (strcmp(role, "time") == 0 && argc == 9)
                time_calls(bus, argv + 2, argv[7], atol(argv[8]));
        else if (strcmp(role, "watch") == 0 && argc == 4)
                watch(bus, argv[2], atol(argv[3]));
        else
                checked(-EINVAL, "usage");
        return 0;
}
