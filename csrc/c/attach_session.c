#include "attach_session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434 /* Linux 5.3 */
#endif
#define HEARING_US 500000 /* that the store may take to look at a reservation that waits */
#define FORGOTTEN_US 1000000 /* a reservation that waits, and whose client did not come again so long after its deadline */
#define TOUCHES_MAX 512 /* of one client in one drain: each may stand for a long chain */

#define AT_THE_DEADLINE (KV_LATE | KV_PAST_QUOTA | KV_PAST_ENTRIES) /* nothing waits with these kv_put_flags */

#define COUNTED(attach, statement) \
    do { \
        pthread_mutex_lock(&(attach)->lock); \
        statement; \
        pthread_mutex_unlock(&(attach)->lock); \
    } while (0)

/* ---- begin and end ---- */

/* A descriptor that tells when the process at the other end dies. SO_PEERPIDFD names the very process that connected; an
 * older kernel's number could be another's by now if that has died meanwhile, and then its end is all that is missed. */
static int process_of(int fd, pid_t pid) {
    int pidfd;
    socklen_t size = sizeof pidfd;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0) return pidfd;
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

static int prepare_table(kv_attach *attach, kv_client *client) {
    int code = kv_table_create(&client->table, attach->limits.leases_max);
    if (code < 0) return code;
    client->table.touches_max = TOUCHES_MAX;
    uint32_t num_groups = client->table.num_groups;
    client->table.revoked = calloc(num_groups, sizeof(uint32_t));
    client->seen_turn = calloc(num_groups, sizeof(uint32_t));
    client->since_us = calloc(num_groups, sizeof(int64_t));
    client->reservations = calloc(attach->limits.reservations_max, sizeof(kv_reservation));
    client->request = malloc(KV_REQUEST_NBYTES_MAX);
    if (!client->table.revoked || !client->seen_turn || !client->since_us || !client->reservations || !client->request)
        return -ENOMEM;
    if ((code = kv_shared_seal(client->table.fd, 0)) < 0) return code;
    return kv_evict_attach(attach->index, &client->table);
}

int kv_session_begin(kv_attach *attach, kv_client *client, int fd) {
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return -errno;
    uint32_t num_same = 0;
    for (uint32_t i = 0; i < attach->limits.clients_max; i++)
        num_same += attach->clients[i].is_used && attach->clients[i].pid == peer.pid;
    if (num_same >= attach->limits.clients_per_process_max) return -EMFILE;
    int pidfd = process_of(fd, peer.pid);
    if (pidfd < 0) return -errno;
    COUNTED(attach, memset(client, 0, sizeof *client));
    client->parked.held.group = KV_NONE;
    client->is_used = 1;
    client->fd = fd;
    client->pidfd = pidfd;
    client->uid = peer.uid;
    client->pid = peer.pid;
    COUNTED(attach, attach->counts.num_clients++; attach->counts.num_accepted++);
    return prepare_table(attach, client);
}

static void drop_reservation(kv_attach *attach, kv_client *client, kv_reservation *reservation) {
    client->reserved_nbytes -= reservation->nbytes;
    client->num_reservations--;
    COUNTED(attach, attach->counts.num_reservations--; attach->counts.reserved_nbytes -= reservation->nbytes);
    free(reservation->ids);
    free(reservation->words);
    *reservation = (kv_reservation){0};
}

static void stop_waiting(kv_attach *attach, kv_client *client) {
    kv_parked *parked = &client->parked;
    if (parked->turn == 0) return;
    if (parked->held.group != KV_NONE) kv_lease_release(&attach->waiting_table, &parked->held);
    COUNTED(attach, parked->is_ready = 0; parked->turn = 0);
}

void kv_session_silence(kv_attach *attach, kv_client *client) {
    if (client->fd < 0) return;
    stop_waiting(attach, client);
    close(client->fd);
    client->fd = -1;
    COUNTED(attach, attach->counts.num_silent++);
}

static void give_up(kv_attach *attach, kv_client *client, kv_reservation *reservation) {
    kv_put_abandon(attach->put, reservation->ids, reservation->num_ids, reservation->shard);
    drop_reservation(attach, client, reservation);
}

void kv_session_undo(kv_attach *attach, kv_client *client) {
    kv_session_silence(attach, client);
    for (uint32_t i = 0; client->reservations && i < attach->limits.reservations_max; i++) {
        kv_reservation *reservation = &client->reservations[i];
        if (reservation->number != 0) give_up(attach, client, reservation);
    }
}

void kv_session_end(kv_attach *attach, kv_client *client) {
    kv_session_undo(attach, client);
    kv_evict_detach(attach->index, &client->table);
    kv_table_destroy(&client->table);
    close(client->pidfd);
    free(client->seen_turn);
    free(client->since_us);
    free(client->reservations);
    free(client->request);
    free(client->parked.request);
    COUNTED(attach, memset(client, 0, sizeof *client));
    COUNTED(attach, attach->counts.num_clients--; attach->counts.num_silent--; attach->counts.num_reclaimed++);
}

/* What it leases and reserved before it hung up is looked at until it is gone. A thread of it that has not noticed the
 * end could lease more at any moment: from here on it sees, after its lease, that the table is closed, or we the lease. */
int kv_session_is_done(kv_client *client) {
    if (client->fd >= 0 || client->num_reservations > 0 || kv_lease_num_held(&client->table) > 0) return 0;
    atomic_store_explicit(&client->table.shared->is_closed, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    return kv_lease_num_held(&client->table) == 0;
}

/* ---- times ---- */

/* A turn that has lasted too long does not count any more. */
static void look_at_group(kv_attach *attach, kv_client *client, uint32_t group, int64_t now_us) {
    uint32_t turn = atomic_load_explicit(&client->table.turns[group].turn, memory_order_relaxed);
    if (turn != client->seen_turn[group] || client->since_us[group] == 0) {
        client->seen_turn[group] = turn;
        client->since_us[group] = now_us;
        return;
    }
    int64_t age_us = now_us - client->since_us[group];
    if (age_us < (int64_t)attach->limits.lease_ttl_ms * 1000 || client->table.revoked[group] == turn) return;
    if (!kv_lease_holds(&client->table, group)) return;
    kv_evict_revoke(attach->index, &client->table, group, turn);
    COUNTED(attach, attach->counts.num_revoked++);
}

void kv_session_look(kv_attach *attach, kv_client *client, int64_t now_us) {
    uint32_t top = atomic_load_explicit(&client->table.shared->groups_top, memory_order_relaxed);
    if (top > client->table.num_groups) top = client->table.num_groups;
    for (uint32_t group = 0; group < top; group++) look_at_group(attach, client, group, now_us);
    if (client->parked.turn != 0 && now_us - client->parked.deadline_us > FORGOTTEN_US) stop_waiting(attach, client);
    for (uint32_t i = 0; i < attach->limits.reservations_max && client->num_reservations > 0; i++) {
        kv_reservation *reservation = &client->reservations[i];
        if (reservation->number == 0 || reservation->is_expired || now_us < reservation->expires_us) continue;
        reservation->is_expired = 1;
        attach->index->now_s = (uint32_t)time(NULL);
        kv_put_expire(attach->put, reservation->ids, reservation->words, reservation->num_ids, 1);
        COUNTED(attach, attach->counts.num_expired++);
    }
}

/* ---- messages ---- */

static int send_reply(kv_client *client, void *reply, size_t nbytes, const int *fds, uint32_t num_fds) {
    struct iovec part = {reply, nbytes};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(KV_ATTACH_FDS_MAX * sizeof(int))] = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (num_fds > 0) {
        message.msg_control = control;
        message.msg_controllen = CMSG_SPACE(num_fds * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        *header = (struct cmsghdr){
            .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(num_fds * sizeof(int))};
        memcpy(CMSG_DATA(header), fds, num_fds * sizeof(int));
    }
    /* A client that does not take its answers has none under way: there is room for one. */
    return sendmsg(client->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)nbytes ? 0 : -1;
}

static kv_message answer_to(const kv_client *client, enum kv_status status, uint32_t detail) {
    kv_message head;
    memcpy(&head, client->request, sizeof head);
    head.magic = KV_ATTACH_MAGIC;
    head.status = (uint16_t)status;
    head.detail = detail;
    return head;
}

static int refuse(kv_client *client, enum kv_status status, uint32_t detail) {
    kv_message head = answer_to(client, status, detail);
    return send_reply(client, &head, sizeof head, NULL, 0);
}

/* Ends the connection: what follows could be misread. */
static int malformed(kv_attach *attach, kv_client *client, enum kv_status status) {
    COUNTED(attach, attach->counts.num_malformed++);
    refuse(client, status, 0);
    return -1;
}

static uint32_t rights_in(const kv_client *client, uint32_t ns) {
    for (uint32_t i = 0; i < client->num_opened; i++)
        if (client->opened[i].ns == ns) return client->opened[i].rights;
    return 0;
}

static int remember(kv_client *client, uint32_t ns, uint32_t rights) {
    for (uint32_t i = 0; i < client->num_opened; i++)
        if (client->opened[i].ns == ns) {
            client->opened[i].rights |= rights;
            return 1;
        }
    if (client->num_opened == KV_OPENED_MAX) return 0;
    client->opened[client->num_opened++] = (kv_opened_ns){ns, rights};
    return 1;
}

static int serve_open(kv_attach *attach, kv_client *client, ssize_t nbytes) {
    const kv_open *open = (const kv_open *)client->request;
    int fds[KV_ATTACH_FDS_MAX];
    uint32_t num_fds = 0;
    uint16_t ns = 0;
    if (nbytes != sizeof *open) return malformed(attach, client, KV_STATUS_MALFORMED);
    if (open->version != KV_ATTACH_VERSION) return malformed(attach, client, KV_STATUS_VERSION);
    uint32_t rights = kv_attach_redeem(attach, open->ticket, client->uid, &ns);
    if (rights == 0) return refuse(client, KV_STATUS_DENIED, 0);
    if (!remember(client, ns, rights)) return refuse(client, KV_STATUS_LIMIT, KV_LIMIT_CLIENTS);
    int may_write = (rights & KV_RIGHT_WRITE) != 0;
    if (!client->is_admitted) {
        fds[num_fds++] = attach->index->fd;
        fds[num_fds++] = client->table.fd;
    }
    if (!client->is_admitted || (may_write && !client->has_arena))
        fds[num_fds++] = may_write ? attach->arena_fd : attach->arena_read_fd;
    client->is_admitted = 1;
    client->has_arena |= may_write;
    kv_opened opened = {.head = answer_to(client, KV_STATUS_OK, 0),
                        .arena_nbytes = attach->arena_nbytes,
                        .reserved_nbytes_max = attach->limits.reserved_nbytes_max,
                        .leases_max = client->table.num_groups * KV_GROUP,
                        .reservations_max = attach->limits.reservations_max,
                        .keys_max = KV_ATTACH_KEYS_MAX,
                        .lease_ttl_ms = attach->limits.lease_ttl_ms,
                        .ns = ns, .rights = rights, .num_fds = num_fds};
    return send_reply(client, &opened, sizeof opened, fds, num_fds);
}

/* ---- reservations ---- */

/* The number says the slot, so that nobody looks through all of them. */
static kv_reservation *slot_of(const kv_attach *attach, const kv_client *client, uint32_t number) {
    return &client->reservations[number % attach->limits.reservations_max];
}

static kv_reservation *find_reservation(const kv_attach *attach, const kv_client *client, uint32_t number) {
    kv_reservation *reservation = slot_of(attach, client, number);
    return number != 0 && reservation->number == number ? reservation : NULL;
}

/* The next number whose slot is free; NULL when none is. */
static kv_reservation *free_reservation(const kv_attach *attach, kv_client *client, uint32_t *number) {
    for (uint32_t i = 0; i <= attach->limits.reservations_max; i++) {
        if (++client->last_reservation == 0) client->last_reservation = 1;
        *number = client->last_reservation;
        if (slot_of(attach, client, *number)->number == 0) return slot_of(attach, client, *number);
    }
    return NULL;
}

/* Note what the client may write to from now on. NULL without memory: nothing is noted. */
static kv_reservation *note(kv_attach *attach, kv_client *client, const kv_chain *chain, uint32_t num_mine) {
    uint32_t number;
    kv_reservation *reservation = free_reservation(attach, client, &number);
    uint32_t *ids = malloc(num_mine * sizeof(uint32_t));
    uint64_t *words = malloc(num_mine * sizeof(uint64_t));
    if (reservation == NULL || ids == NULL || words == NULL) {
        free(ids);
        free(words);
        return NULL;
    }
    *reservation = (kv_reservation){.number = number, .ns = (uint16_t)chain->ns,
                                    .shard = (uint8_t)chain->shard, .num_ids = num_mine, .ids = ids, .words = words,
                                    .hint = chain->hint};
    reservation->nbytes = num_mine * attach->index->namespaces[chain->ns].slot_nbytes;
    reservation->expires_us = kv_now_us() + (int64_t)attach->limits.reservation_ttl_ms * 1000;
    client->reserved_nbytes += reservation->nbytes;
    client->num_reservations++;
    COUNTED(attach, attach->counts.num_reservations++; attach->counts.reserved_nbytes += reservation->nbytes;
            attach->counts.num_reserved++);
    return reservation;
}

/* The answer to a reservation that was made: where each block goes. */
static int send_grant(kv_attach *attach, kv_client *client, const kv_chain *chain, const kv_grant *grant) {
    kv_reserved *reserved = (kv_reserved *)attach->reply;
    uint32_t *at = (uint32_t *)(reserved + 1), num_mine = 0;
    *reserved = (kv_reserved){.head = answer_to(client, KV_STATUS_OK, 0), .num_keys = chain->num_keys, .why = grant->why};
    for (uint32_t i = 0; i < chain->num_keys; i++) {
        int is_mine = grant->plan[i] >= KV_JOIN && grant->ids[i] != KV_NONE;
        at[i] = grant->plan[i] == KV_PRESENT ? KV_AT_PRESENT
                : grant->plan[i] == KV_BUSY  ? KV_AT_BUSY
                : is_mine                    ? kv_record_place(&attach->index->records[grant->ids[i]])
                                             : KV_AT_REFUSED;
        if (is_mine) attach->places[num_mine++] = grant->ids[i];
    }
    if (num_mine > 0) {
        kv_reservation *reservation = note(attach, client, chain, num_mine);
        if (reservation == NULL) {
            kv_put_abandon(attach->put, attach->places, num_mine, chain->shard);
            return refuse(client, KV_STATUS_MEMORY, 0);
        }
        for (uint32_t i = 0; i < num_mine; i++) {
            reservation->ids[i] = attach->places[i];
            reservation->words[i] = kv_record_word(&attach->index->records[attach->places[i]]);
        }
        reserved->reservation = reservation->number;
        reserved->num_granted = num_mine;
    }
    memcpy(at + chain->num_keys, attach->places, num_mine * sizeof(uint32_t));
    size_t nbytes = sizeof *reserved + ((size_t)chain->num_keys + num_mine) * sizeof(uint32_t);
    if (send_reply(client, reserved, nbytes, NULL, 0) == 0) return 0;
    if (num_mine > 0) give_up(attach, client, find_reservation(attach, client, reserved->reservation)); /* not told */
    return -1;
}

static int try_reserve(kv_attach *attach, kv_client *client, const kv_chain *chain, uint32_t flags);

/* Let a reservation wait for the store, which is asked for what is short. The client is told to come again. */
static int park(kv_attach *attach, kv_client *client, const kv_chain *chain, enum kv_help_kind kind,
                uint32_t num_wanted) {
    kv_parked *parked = &client->parked;
    size_t nbytes = sizeof *chain + (size_t)chain->num_keys * KV_KEY_NBYTES;
    if ((const uint8_t *)chain != parked->request) {
        if (parked->turn != 0 && chain->deadline_ms > 0) return refuse(client, KV_STATUS_WAIT, 0);
        if (parked->turn != 0) return try_reserve(attach, client, chain, AT_THE_DEADLINE);
        if (parked->request == NULL) parked->request = malloc(KV_REQUEST_NBYTES_MAX);
        if (parked->request == NULL) return refuse(client, KV_STATUS_MEMORY, 0);
        memcpy(parked->request, chain, nbytes);
        /* Making room must not take away what this extends. */
        kv_lease_acquire(attach->index, &attach->waiting_table, chain->ns, (const uint8_t *)(chain + 1), chain->num_keys,
                         0, &parked->held);
        uint32_t wait_ms = chain->deadline_ms;
        if (wait_ms == KV_WAIT_DEFAULT) wait_ms = __atomic_load_n(&attach->limits.put_wait_ms, __ATOMIC_RELAXED);
        if (wait_ms > attach->limits.wait_ms_max) wait_ms = attach->limits.wait_ms_max;
        parked->deadline_us = kv_now_us() + (int64_t)wait_ms * 1000;
        parked->flags = 0;
        COUNTED(attach, attach->counts.num_waits++);
    }
    if (++attach->turns == 0) attach->turns = 1;
    COUNTED(attach, parked->is_heard = parked->is_ready = 0; parked->turn = attach->turns);
    kv_help help = {.kind = kind, .ns = (uint16_t)chain->ns, .client = (uint32_t)(client - attach->clients),
                    .turn = attach->turns, .num_blocks = num_wanted};
    /* Asked of nobody when the queue is full: the deadline ends the wait. */
    kv_attach_ask(attach, &help);
    return refuse(client, KV_STATUS_WAIT, attach->turns);
}

static int try_reserve(kv_attach *attach, kv_client *client, const kv_chain *chain, uint32_t flags) {
    kv_wish wish = {.keys = (const uint8_t *)(chain + 1), .num_keys = chain->num_keys, .shard = chain->shard,
                    .flags = flags & ~(uint32_t)KV_LATE, .ns = (uint16_t)chain->ns, .hint = chain->hint};
    kv_grant grant = {.plan = attach->plan, .ids = attach->ids, .places = attach->places};
    attach->index->now_s = (uint32_t)time(NULL);
    enum kv_put_code code = kv_put_reserve(attach->put, &attach->table, &wish, &grant);
    if (code == KV_PUT_ROOM && (flags & KV_LATE)) { /* nothing was written since, either, that could make room */
        wish.flags = flags | KV_AGAIN;
        code = kv_put_reserve(attach->put, &attach->table, &wish, &grant);
    }
    switch (code) {
    case KV_PUT_QUOTA: return park(attach, client, chain, KV_HELP_QUOTA, grant.num_wanted);
    case KV_PUT_ENTRIES: return park(attach, client, chain, KV_HELP_ENTRIES, grant.num_wanted);
    case KV_PUT_ROOM: return park(attach, client, chain, KV_HELP_ROOM, grant.num_wanted);
    default: break;
    }
    int is_sent = code == KV_PUT_OK        ? send_grant(attach, client, chain, &grant)
                  : code == KV_PUT_FOREIGN ? refuse(client, KV_STATUS_FOREIGN, grant.num_wanted)
                  : code == KV_PUT_LEASES  ? refuse(client, KV_STATUS_LIMIT, KV_LIMIT_LEASES)
                                           : refuse(client, KV_STATUS_MEMORY, 0);
    if ((const uint8_t *)chain == client->parked.request) stop_waiting(attach, client);
    return is_sent;
}

/* Is this a chain of keys as it should be? */
static int is_chain(const kv_client *client, ssize_t nbytes) {
    const kv_chain *chain = (const kv_chain *)client->request;
    return nbytes >= (ssize_t)sizeof *chain && chain->num_keys >= 1 && chain->num_keys <= KV_ATTACH_KEYS_MAX &&
           nbytes == (ssize_t)(sizeof *chain + (size_t)chain->num_keys * KV_KEY_NBYTES) && chain->shard < KV_SHARDS_MAX &&
           kv_hint_is_valid(&chain->hint);
}

/* The limit of one client that a reservation of this chain would be over now, or 0. */
static uint32_t exceeded(const kv_attach *attach, const kv_client *client, const kv_chain *chain) {
    if (client->num_reservations == attach->limits.reservations_max) return KV_LIMIT_RESERVATIONS;
    uint32_t near, total;
    uint32_t stored = kv_index_match(attach->index, chain->ns, (const uint8_t *)(chain + 1), chain->num_keys, &near, &total);
    uint64_t wanted_nbytes = (chain->num_keys - stored) * attach->index->namespaces[chain->ns].slot_nbytes;
    return client->reserved_nbytes + wanted_nbytes > attach->limits.reserved_nbytes_max ? KV_LIMIT_RESERVED : 0;
}

/* Hand a chain to the store. 0, -ENOMEM, or -ENOSPC when it has enough to do. */
static int pass_on(kv_attach *attach, const kv_chain *chain, enum kv_help_kind kind) {
    size_t nbytes = (size_t)chain->num_keys * KV_KEY_NBYTES;
    kv_help help = {.kind = kind, .ns = (uint16_t)chain->ns, .num_blocks = chain->num_keys,
                    .deadline_ms = chain->deadline_ms, .hint = chain->hint, .keys = malloc(nbytes)};
    if (help.keys == NULL) return -ENOMEM;
    memcpy(help.keys, chain + 1, nbytes);
    if (kv_attach_ask(attach, &help) == 0) return 0;
    free(help.keys);
    return -ENOSPC;
}

static int serve_reserve(kv_attach *attach, kv_client *client, ssize_t nbytes) {
    const kv_chain *chain = (const kv_chain *)client->request;
    if (!is_chain(client, nbytes)) return malformed(attach, client, KV_STATUS_MALFORMED);
    if (!(rights_in(client, chain->ns) & KV_RIGHT_WRITE)) return refuse(client, KV_STATUS_DENIED, 0);
    const kv_ns *space = &attach->index->namespaces[chain->ns];
    if (!(space->all_parts >> chain->shard & 1)) return malformed(attach, client, KV_STATUS_MALFORMED);
    uint32_t limit = exceeded(attach, client, chain);
    if (limit != 0) return refuse(client, KV_STATUS_LIMIT, limit);
    if (attach->is_recording && pass_on(attach, chain, KV_HELP_RECORD) < 0)
        COUNTED(attach, attach->counts.num_unrecorded++);
    /* Without a far tier nothing is under way that could make room later. */
    return try_reserve(attach, client, chain, attach->put->has_far ? 0 : KV_LATE);
}

static int serve_retry(kv_attach *attach, kv_client *client, ssize_t nbytes) {
    const kv_end *end = (const kv_end *)client->request;
    kv_parked *parked = &client->parked;
    if (nbytes != sizeof *end) return malformed(attach, client, KV_STATUS_MALFORMED);
    if (parked->turn == 0 || parked->turn != end->reservation) return refuse(client, KV_STATUS_UNKNOWN, 0);
    uint32_t limit = exceeded(attach, client, (const kv_chain *)parked->request); /* others may have been granted */
    if (limit != 0) {
        stop_waiting(attach, client); /* the client gives up: the next one that has to wait can */
        return refuse(client, KV_STATUS_LIMIT, limit);
    }
    uint32_t flags, num_fresh;
    int is_heard, is_ready;
    COUNTED(attach, flags = parked->flags; is_heard = parked->is_heard; is_ready = parked->is_ready;
            num_fresh = parked->num_fresh; parked->flags &= ~(uint32_t)KV_LATE);
    if (num_fresh != kv_put_num_fresh(attach->put)) flags &= ~(uint32_t)KV_LATE;
    /* What needs no waiting, only the store's decision, is not to fail because that comes late. */
    int64_t deadline_us = parked->deadline_us + (is_heard ? 0 : HEARING_US);
    if (kv_now_us() >= deadline_us) flags = AT_THE_DEADLINE;
    else if (!is_ready) return refuse(client, KV_STATUS_WAIT, parked->turn);
    return try_reserve(attach, client, (const kv_chain *)parked->request, flags | KV_AGAIN);
}

static uint32_t commit(kv_attach *attach, const kv_reservation *reservation) {
    KV_AS_WRITER(attach->index); /* until the policy has been told no id becomes another block's */
    uint32_t num_lost = kv_put_commit(attach->put, reservation->ids, reservation->num_ids, reservation->shard);
    if (kv_hint_is_given(&reservation->hint))
        kv_index_hint_last(attach->index, reservation->ids, reservation->num_ids, &reservation->hint);
    return num_lost;
}

static int serve_end(kv_attach *attach, kv_client *client, ssize_t nbytes, int is_commit) {
    const kv_end *end = (const kv_end *)client->request;
    if (nbytes != sizeof *end) return malformed(attach, client, KV_STATUS_MALFORMED);
    kv_reservation *reservation = find_reservation(attach, client, end->reservation);
    if (reservation == NULL) return refuse(client, KV_STATUS_UNKNOWN, 0);
    kv_ended ended = {.head = answer_to(client, KV_STATUS_OK, 0)};
    attach->index->now_s = (uint32_t)time(NULL);
    if (is_commit)
        ended.num_lost = commit(attach, reservation);
    else
        kv_put_abandon(attach->put, reservation->ids, reservation->num_ids, reservation->shard);
    if (is_commit) COUNTED(attach, attach->counts.num_committed++);
    drop_reservation(attach, client, reservation);
    int is_sent = send_reply(client, &ended, sizeof ended, NULL, 0);
    if (is_commit && attach->put->has_far) kv_attach_ask(attach, &(kv_help){.kind = KV_HELP_COLLECT});
    return is_sent;
}

static int serve_promote(kv_attach *attach, kv_client *client, ssize_t nbytes) {
    const kv_chain *chain = (const kv_chain *)client->request;
    if (!is_chain(client, nbytes)) return malformed(attach, client, KV_STATUS_MALFORMED);
    if (!(rights_in(client, chain->ns) & KV_RIGHT_READ)) return refuse(client, KV_STATUS_DENIED, 0);
    int code = pass_on(attach, chain, KV_HELP_PROMOTE);
    if (code == -ENOMEM) return refuse(client, KV_STATUS_MEMORY, 0);
    return code == 0 ? refuse(client, KV_STATUS_OK, 0) : refuse(client, KV_STATUS_LIMIT, KV_LIMIT_RESERVATIONS);
}

int kv_session_serve(kv_attach *attach, kv_client *client, ssize_t nbytes) {
    kv_message head;
    if (nbytes < (ssize_t)sizeof head) memset(client->request, 0, sizeof head); /* what is not there answers nothing */
    if (nbytes < (ssize_t)sizeof head || nbytes > (ssize_t)KV_REQUEST_NBYTES_MAX)
        return malformed(attach, client, KV_STATUS_MALFORMED);
    memcpy(&head, client->request, sizeof head);
    if (head.magic != KV_ATTACH_MAGIC || head.status != 0 || head.detail != 0)
        return malformed(attach, client, KV_STATUS_MALFORMED);
    int is_draining;
    COUNTED(attach, is_draining = attach->is_draining);
    if (is_draining && (head.type == KV_MESSAGE_OPEN || head.type == KV_MESSAGE_RESERVE || head.type == KV_MESSAGE_RETRY))
        return refuse(client, KV_STATUS_CLOSING, 0);
    switch (head.type) {
    case KV_MESSAGE_OPEN: return serve_open(attach, client, nbytes);
    case KV_MESSAGE_RESERVE: return serve_reserve(attach, client, nbytes);
    case KV_MESSAGE_RETRY: return serve_retry(attach, client, nbytes);
    case KV_MESSAGE_COMMIT: return serve_end(attach, client, nbytes, 1);
    case KV_MESSAGE_ABANDON: return serve_end(attach, client, nbytes, 0);
    case KV_MESSAGE_PROMOTE: return serve_promote(attach, client, nbytes);
    case KV_MESSAGE_BYE:
        if (nbytes != sizeof head) return malformed(attach, client, KV_STATUS_MALFORMED);
        refuse(client, KV_STATUS_OK, 0);
        kv_session_end(attach, client);
        return 0;
    default: return malformed(attach, client, KV_STATUS_MALFORMED);
    }
}
