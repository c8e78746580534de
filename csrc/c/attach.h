/* The daemon's end of the attach socket: one thread that never needs an interpreter.
 *
 * It hands out descriptors of the shared memory and serves reservations and commits by the calls of put.h. Tickets say who
 * may do what; the control plane issues them. What it cannot do by itself (promotions, room that waits for a write-back,
 * quotas) it asks of the store by a bounded queue, which `kv_attach_wait` and `kv_attach_take` are the other end of.
 *
 * A client is untrusted: of its memory only the lease table is ever read here, each value once and bounded; ids and places
 * never come from it. What it holds is given back when its process is dead (pidfd), not before: a process without a
 * connection may still be reading and writing. One that has hung up and holds nothing any more is forgotten; its table is
 * closed before, so that nothing it leases then counts.
 */
#ifndef KV_ATTACH_H
#define KV_ATTACH_H

#include <sys/types.h>

#include "attach_wire.h"
#include "put.h"

typedef struct {
    uint32_t clients_max, clients_per_process_max;
    uint32_t leases_max;           /* of one client */
    uint32_t reservations_max;     /* of one client */
    uint64_t reserved_nbytes_max;  /* of one client */
    uint32_t lease_ttl_ms;         /* then a lease may be revoked */
    uint32_t reservation_ttl_ms;   /* then its blocks are undone; the slots stay its own */
    uint32_t put_wait_ms;          /* how long a reservation waits for room before unwritten blocks are dropped */
    uint32_t wait_ms_max;          /* likewise when the client says how long: at most so long */
} kv_attach_limits;

typedef struct {
    uint64_t num_clients, num_silent;      /* silent: without a connection, and not dead yet */
    uint64_t num_accepted, num_refused, num_malformed, num_reclaimed;
    uint64_t num_reservations, reserved_nbytes, num_revoked, num_expired;
    uint64_t num_reserved, num_committed, num_waits, num_unrecorded;
} kv_attach_counts;

enum kv_help_kind {
    KV_HELP_PROMOTE = 1, KV_HELP_ROOM = 2, KV_HELP_QUOTA = 3, KV_HELP_ENTRIES = 4,
    KV_HELP_COLLECT = 5, /* blocks became visible that have no far copy */
    KV_HELP_RECORD = 6,  /* a chain was to be reserved: a request to be recorded */
};

/* What the store is asked for. Room, quota and entries are answered by kv_attach_helped, the others are not. */
typedef struct {
    enum kv_help_kind kind;
    uint16_t ns;
    uint32_t client, turn; /* whose reservation waits, and which */
    uint32_t num_blocks; /* room, quota and entries for so many; keys of a promotion or a record */
    uint32_t deadline_ms;
    kv_hint hint;        /* of a record */
    uint8_t *keys;       /* of a promotion or a record; the taker frees them */
} kv_help;

typedef struct kv_attach kv_attach;

/* `listening` is a bound SOCK_SEQPACKET socket, which it owns from now on; put, its index and the arena outlive it. Seals
 * the index and the arena. NULL with errno. */
kv_attach *kv_attach_create(int listening, kv_put *put, int arena_fd, uint64_t arena_nbytes,
                            const kv_attach_limits *limits);
/* Serve until kv_attach_stop; the thread's body. */
void kv_attach_serve(kv_attach *attach);
/* From now on nothing is reserved or opened; what is reserved may be committed. From any thread. */
void kv_attach_drain(kv_attach *attach);
/* End serving and waiting; from any thread. Connections close and reservations are undone. Leases count until kv_attach_destroy: they may still be reading. */
void kv_attach_stop(kv_attach *attach);
/* After kv_attach_serve and every kv_attach_wait have returned. */
void kv_attach_destroy(kv_attach *attach);

/* A ticket for one use within `ttl_ms` by a process of user `uid`. 0, or -ENOSPC when too many are out. */
int kv_attach_issue(kv_attach *attach, const uint8_t *ticket, uid_t uid, uint16_t ns, uint32_t rights, uint32_t ttl_ms);

/* Wait until the store is asked for something: 1, or 0 at the end. */
int kv_attach_wait(kv_attach *attach);
/* Take one request: 1, or 0 when there is none. */
int kv_attach_take(kv_attach *attach, kv_help *help);
/* The store has heard of the reservation that waits, and does what it can. */
void kv_attach_heard(kv_attach *attach, uint32_t client, uint32_t turn);
/* The reservation that waits can go on, with these kv_put_flags in addition; KV_LATE only if no blocks have become visible
 * since `num_fresh` of them had (kv_put_num_fresh): they may be written, and then go. */
void kv_attach_helped(kv_attach *attach, uint32_t client, uint32_t turn, uint32_t flags, uint32_t num_fresh);
/* The store is told of every chain that is to be reserved; before serving begins. */
void kv_attach_record(kv_attach *attach);
/* From the next reservation on. */
void kv_attach_set_wait(kv_attach *attach, uint32_t put_wait_ms);

void kv_attach_read_counts(kv_attach *attach, kv_attach_counts *counts);

#endif
