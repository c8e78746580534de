/* Messages of the attach socket (docs/formats.md, "Attach socket"): fixed structs in the machine's order of bytes, one in
 * each datagram of a SOCK_SEQPACKET. A client has one request under way at a time, and every request has one reply with
 * its type and number, at once. Whatever is malformed ends the connection.
 */
#ifndef KV_ATTACH_WIRE_H
#define KV_ATTACH_WIRE_H

#include <stdint.h>

#include "hint.h"

#define KV_ATTACH_MAGIC 0x3141766bU /* "kvA1" */
#define KV_ATTACH_VERSION 2
#define KV_ATTACH_KEYS_MAX 8192 /* 256 KiB: what a datagram may have where wmem_max is the default */
#define KV_TICKET_NBYTES 16
#define KV_ATTACH_FDS_MAX 3

enum kv_message_type {
    KV_MESSAGE_OPEN = 1,    /* a namespace, by a ticket; the first one brings the shared memory */
    KV_MESSAGE_RESERVE = 2,
    KV_MESSAGE_COMMIT = 3,
    KV_MESSAGE_ABANDON = 4,
    KV_MESSAGE_PROMOTE = 5, /* bring far blocks near; the answer does not wait for them */
    KV_MESSAGE_BYE = 6,     /* nothing is read under a lease or written into a reservation any more */
    KV_MESSAGE_RETRY = 7,   /* look again at the reservation that waits */
};

enum kv_status {
    KV_STATUS_OK = 0,
    KV_STATUS_MALFORMED = 1, /* the connection ends */
    KV_STATUS_VERSION = 2,   /* another protocol version; the connection ends */
    KV_STATUS_DENIED = 3,    /* no such ticket for this user, or no right to do this */
    KV_STATUS_LIMIT = 4,     /* kv_limit in `detail` says which */
    KV_STATUS_UNKNOWN = 5,   /* no such reservation of this client */
    KV_STATUS_FOREIGN = 6,   /* position `detail` is a key of another namespace */
    KV_STATUS_CLOSING = 7,   /* the daemon is about to end */
    KV_STATUS_MEMORY = 8,    /* the daemon has no memory for this */
    KV_STATUS_WAIT = 9,      /* room is being made: RETRY number `detail` soon, or reserve again if that is 0 */
};

enum kv_limit { KV_LIMIT_CLIENTS = 1, KV_LIMIT_LEASES = 2, KV_LIMIT_RESERVATIONS = 3, KV_LIMIT_RESERVED = 4 };
enum kv_right { KV_RIGHT_READ = 1, KV_RIGHT_WRITE = 2 };

typedef struct {
    uint32_t magic;
    uint16_t type, status; /* status: 0 in requests */
    uint32_t number;       /* the client's; comes back */
    uint32_t detail;       /* 0 in requests */
} kv_message;
_Static_assert(sizeof(kv_message) == 16, "docs/formats.md says so");

typedef struct {
    kv_message head;
    uint32_t version, zero;
    uint8_t ticket[KV_TICKET_NBYTES];
} kv_open;
_Static_assert(sizeof(kv_open) == 40, "docs/formats.md says so");

/* With it come descriptors: to the first one the index (read-only), the lease table and the arena, which can be written
 * to with KV_RIGHT_WRITE; later the arena, if this is the first right to write. */
typedef struct {
    kv_message head;
    uint64_t arena_nbytes, reserved_nbytes_max;
    uint32_t leases_max, reservations_max, keys_max, lease_ttl_ms;
    uint32_t ns, rights, num_fds, zero;
} kv_opened;
_Static_assert(sizeof(kv_opened) == 64, "docs/formats.md says so");

#define KV_WAIT_DEFAULT UINT32_MAX /* as a deadline: as long as the daemon is configured to wait */

/* RESERVE and PROMOTE; `num_keys` keys of 32 bytes follow. */
typedef struct {
    kv_message head;
    uint32_t ns, shard; /* shard: 0 to PROMOTE */
    uint32_t deadline_ms, num_keys;
    kv_hint hint; /* of RESERVE: the policy is told at the commit; KV_NO_HINT to PROMOTE */
} kv_chain;
_Static_assert(sizeof(kv_chain) == 40, "docs/formats.md says so");

/* Instead of a place: */
#define KV_AT_PRESENT UINT32_MAX        /* stored already */
#define KV_AT_BUSY (UINT32_MAX - 1)     /* another reservation writes it */
#define KV_AT_REFUSED (UINT32_MAX - 2)  /* no place; kv_put_short in `why` */

/* `num_keys` words follow: places, or one of the above; and `num_granted` words: the ids of the places' blocks, in their
 * order, which the client may lease. */
typedef struct {
    kv_message head;
    uint32_t reservation; /* 0 when nothing was granted */
    uint32_t num_keys, num_granted, why;
} kv_reserved;
_Static_assert(sizeof(kv_reserved) == 32, "docs/formats.md says so");

/* COMMIT and ABANDON of a reservation, and RETRY of what waits under this number. */
typedef struct {
    kv_message head;
    uint32_t reservation, zero;
} kv_end;
_Static_assert(sizeof(kv_end) == 24, "docs/formats.md says so");

/* The answer: how many of its blocks had been undone before. */
typedef struct {
    kv_message head;
    uint32_t num_lost, zero;
} kv_ended;
_Static_assert(sizeof(kv_ended) == 24, "docs/formats.md says so");

#define KV_REQUEST_NBYTES_MAX (sizeof(kv_chain) + KV_ATTACH_KEYS_MAX * 32)
#define KV_REPLY_NBYTES_MAX (sizeof(kv_reserved) + KV_ATTACH_KEYS_MAX * 8)

#endif
