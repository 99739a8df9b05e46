/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Says when a service has its name, and when its connections are there and connected. */
#include "peer.h"

typedef struct Watch {
        long count, named, published, connected;
        char *is_published, *is_connected;
} Watch;

static void mark(char *marks, long *total, long number) {
        *total += !marks[number];
        marks[number] = 1;
}

/* Gives -1 for those that are not ours, such as what the host has mounted. */
static long number_of(const Watch *w, const char *path) {
        long number;
        if (sscanf(path, ROOT "/c%5ld", &number) != 1 || number < 0 || number >= w->count)
                return -1;
        return number;
}

/* Reads a{sv}; returns whether Connected is in it, and true. */
static int read_connected(sd_bus_message *m) {
        int result = 0;
        check(sd_bus_message_enter_container(m, 'a', "{sv}"));
        while (check(sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
                const char *name;
                check(sd_bus_message_read(m, "s", &name));
                if (strcmp(name, "Connected") == 0)
                        check(sd_bus_message_read(m, "v", "b", &result));
                else
                        check(sd_bus_message_skip(m, "v"));
                check(sd_bus_message_exit_container(m));
        }
        check(sd_bus_message_exit_container(m));
        return result;
}

/* Reads oa{sa{sv}}. */
static void read_object(Watch *w, sd_bus_message *m) {
        const char *path, *interface;
        check(sd_bus_message_read(m, "o", &path));
        long number = number_of(w, path);
        check(sd_bus_message_enter_container(m, 'a', "{sa{sv}}"));
        while (check(sd_bus_message_enter_container(m, 'e', "sa{sv}")) > 0) {
                check(sd_bus_message_read(m, "s", &interface));
                int connected = read_connected(m);
                if (number >= 0 && strcmp(interface, CONNECTION) == 0) {
                        mark(w->is_published, &w->published, number);
                        if (connected)
                                mark(w->is_connected, &w->connected, number);
                }
                check(sd_bus_message_exit_container(m));
        }
        check(sd_bus_message_exit_container(m));
}

static int on_added(sd_bus_message *m, void *watch, sd_bus_error *error) {
        read_object(watch, m);
        return 0;
}

static int on_changed(sd_bus_message *m, void *watch, sd_bus_error *error) {
        Watch *w = watch;
        const char *interface;
        long number = number_of(w, sd_bus_message_get_path(m));
        check(sd_bus_message_read(m, "s", &interface));
        if (number >= 0 && strcmp(interface, CONNECTION) == 0 && read_connected(m))
                mark(w->is_connected, &w->connected, number);
        return 0;
}

static int on_owned(sd_bus_message *m, void *watch, sd_bus_error *error) {
        const char *name, *old, *new;
        check(sd_bus_message_read(m, "sss", &name, &old, &new));
        if (*new)
                ((Watch *) watch)->named = 1;
        return 0;
}

static void read_objects(Watch *w, sd_bus *bus, const char *destination) {
        sd_bus_message *m;
        check(sd_bus_call_method(bus, destination, ROOT, "org.freedesktop.DBus.ObjectManager",
                                 "GetManagedObjects", NULL, &m, ""));
        check(sd_bus_message_enter_container(m, 'a', "{oa{sa{sv}}}"));
        while (check(sd_bus_message_enter_container(m, 'e', "oa{sa{sv}}")) > 0) {
                read_object(w, m);
                check(sd_bus_message_exit_container(m));
        }
        sd_bus_message_unref(m);
}

static void process_until(sd_bus *bus, const long *value, long wanted, const char *what) {
        while (*value < wanted)
                if (check(sd_bus_process(bus, NULL)) == 0 && *value < wanted)
                        check(sd_bus_wait(bus, UINT64_MAX));
        printf("%s %.0f\n", what, now_usec());
}

void watch(sd_bus *bus, const char *name, long count) {
        Watch w = {.count = count};
        char owned[256];
        snprintf(owned, sizeof owned, "type='signal',member='NameOwnerChanged',arg0='%s'", name);
        w.is_published = calloc(count, 1);
        w.is_connected = calloc(count, 1);
        check(sd_bus_add_match(bus, NULL, owned, on_owned, &w));
        check(sd_bus_match_signal(bus, NULL, name, NULL, NULL, "InterfacesAdded", on_added, &w));
        check(sd_bus_match_signal(bus, NULL, name, NULL, NULL, "PropertiesChanged", on_changed,
                                  &w));
        puts("watching");
        process_until(bus, &w.named, 1, "named");
        read_objects(&w, bus, name);
        process_until(bus, &w.published, count, "published");
        process_until(bus, &w.connected, count, "connected");
}
