/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A service of the same shape as ours, as C programs are: a reply is built for each call. */
#include <errno.h>
#include <stddef.h>

#include "peer.h"

typedef struct Connection {
        char *id, *uri, *path;
        const char *scheme, *state, *nothing, *lifetime;
        char **none;
        int managed, connected;
        int32_t last_error;
        uint32_t attempts, reconnects, owner;
        uint64_t since, next;
} Connection;

typedef struct Info {
        char *key, type, *text;
        int64_t number;
} Info;

static Connection *connections;
static size_t n_connections;
static Info infos[64];
static size_t n_infos;

static int append_info(sd_bus_message *m) {
        check(sd_bus_message_open_container(m, 'a', "{sv}"));
        for (Info *i = infos; i < infos + n_infos; i++)
                if (i->type == 's')
                        check(sd_bus_message_append(m, "{sv}", i->key, "s", i->text));
                else if (i->type == 'x')
                        check(sd_bus_message_append(m, "{sv}", i->key, "x", i->number));
                else
                        check(sd_bus_message_append(m, "{sv}", i->key, "b", (int) i->number));
        return sd_bus_message_close_container(m);
}

static int get_info(sd_bus *bus, const char *path, const char *interface, const char *property,
                    sd_bus_message *reply, void *userdata, sd_bus_error *error) {
        return append_info(reply);
}

static int append_entry(sd_bus_message *m, const Connection *c) {
        check(sd_bus_message_open_container(m, 'e', "sa{sv}"));
        check(sd_bus_message_append(m, "s", c->id));
        check(sd_bus_message_open_container(m, 'a', "{sv}"));
        check(sd_bus_message_append(m, "{sv}", "connected", "b", c->connected));
        check(sd_bus_message_append(m, "{sv}", "managed", "b", c->managed));
        check(sd_bus_message_append(m, "{sv}", "lastError", "i", c->last_error));
        check(sd_bus_message_open_container(m, 'e', "sv"));
        check(sd_bus_message_append(m, "s", "connectionInfo"));
        check(sd_bus_message_open_container(m, 'v', "a{sv}"));
        check(append_info(m));
        check(sd_bus_message_close_container(m));
        check(sd_bus_message_close_container(m));
        check(sd_bus_message_close_container(m));
        return sd_bus_message_close_container(m);
}

static int list(sd_bus_message *call, void *userdata, sd_bus_error *error) {
        sd_bus_message *reply;
        check(sd_bus_message_new_method_return(call, &reply));
        check(sd_bus_message_open_container(reply, 'a', "{sa{sv}}"));
        for (size_t i = 0; i < n_connections; i++)
                check(append_entry(reply, connections + i));
        check(sd_bus_message_close_container(reply));
        check(sd_bus_send(NULL, reply, NULL));
        sd_bus_message_unref(reply);
        return 1;
}

static int by_id(const void *a, const void *b) {
        return strcmp(((const Connection *) a)->id, ((const Connection *) b)->id);
}

static int get_connection(sd_bus_message *call, void *userdata, sd_bus_error *error) {
        Connection wanted = {}, *found;
        check(sd_bus_message_read(call, "s", &wanted.id));
        found = bsearch(&wanted, connections, n_connections, sizeof(Connection), by_id);
        if (!found)
                return sd_bus_error_setf(error, "org.storage.Connection.Error.NotFound",
                                         "no connection has the id %s", wanted.id);
        return sd_bus_reply_method_return(call, "o", found->path);
}

static const sd_bus_vtable manager_vtable[] = {
        SD_BUS_VTABLE_START(0),
        SD_BUS_METHOD("List", "", "a{sa{sv}}", list, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_METHOD("GetConnection", "s", "o", get_connection, SD_BUS_VTABLE_UNPRIVILEGED),
        SD_BUS_VTABLE_END
};

#define PROPERTY(name, type, member) \
        SD_BUS_PROPERTY(name, type, NULL, offsetof(Connection, member), 0)

static const sd_bus_vtable connection_vtable[] = {
        SD_BUS_VTABLE_START(0),
        PROPERTY("ConnectionId", "s", id),
        PROPERTY("Uri", "s", uri),
        PROPERTY("Scheme", "s", scheme),
        PROPERTY("Managed", "b", managed),
        PROPERTY("Connected", "b", connected),
        PROPERTY("State", "s", state),
        PROPERTY("StateReason", "s", nothing),
        PROPERTY("StateSince", "t", since),
        PROPERTY("LastError", "i", last_error),
        PROPERTY("LastErrorName", "s", nothing),
        PROPERTY("LastErrorMessage", "s", nothing),
        SD_BUS_PROPERTY("ConnectionInfo", "a{sv}", get_info, 0, 0),
        PROPERTY("MountPoint", "s", nothing),
        PROPERTY("Devices", "as", none),
        PROPERTY("SharedWith", "as", none),
        PROPERTY("NextAttempt", "t", next),
        PROPERTY("Attempts", "u", attempts),
        PROPERTY("Reconnects", "u", reconnects),
        PROPERTY("Owner", "u", owner),
        PROPERTY("Lifetime", "s", lifetime),
        SD_BUS_VTABLE_END
};

static void add(sd_bus *bus, Connection *c, size_t number) {
        static char *none[] = {NULL};
        *c = (Connection) {
                .scheme = "simulated",
                .state = "connected",
                .nothing = "",
                .lifetime = "persistent",
                .none = none,
                .managed = 1,
                .connected = 1,
                .attempts = 1,
                .since = time(NULL) * 1000000ULL,
        };
        check(asprintf(&c->id, "c%05zu", number));
        check(asprintf(&c->uri, "simulated:%s", c->id));
        check(sd_bus_path_encode(ROOT, c->id, &c->path));
        check(sd_bus_add_object_vtable(bus, NULL, c->path, CONNECTION, connection_vtable, c));
}

/* KEY=TYPE:VALUE */
static void parse_info(char **arguments) {
        for (; *arguments; arguments++) {
                Info *info = &infos[n_infos++];
                char *equals = strchr(*arguments, '=');
                if (!equals || !equals[1] || equals[2] != ':' || n_infos == 64)
                        checked(-EINVAL, *arguments);
                *equals = 0;
                *info = (Info) {*arguments, equals[1], equals + 3, atoll(equals + 3)};
        }
}

void serve(sd_bus *bus, const char *name, long count, char **info) {
        parse_info(info);
        n_connections = count;
        connections = calloc(n_connections, sizeof(Connection));
        for (size_t i = 0; i < n_connections; i++)
                add(bus, connections + i, i);
        check(sd_bus_add_object_vtable(bus, NULL, ROOT, MANAGER, manager_vtable, NULL));
        check(sd_bus_add_object_manager(bus, NULL, ROOT));
        check(sd_bus_request_name(bus, name, 0));
        puts("ready");
        for (;;)
                if (check(sd_bus_process(bus, NULL)) == 0)
                        check(sd_bus_wait(bus, UINT64_MAX));
}
