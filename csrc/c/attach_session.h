/* One client of the attach socket, as the daemon sees it. For the files of the attach server only. */
#ifndef KV_ATTACH_SESSION_H
#define KV_ATTACH_SESSION_H

#include "attach.h"
#include "shared.h"

#define KV_OPENED_MAX 64 /* namespaces of one client */

typedef struct {
    uint32_t number; /* the client's name for it; 0: unused */
    uint16_t ns;
    uint8_t shard, is_expired;
    uint32_t num_ids;
    uint32_t *ids;
    uint64_t *words; /* state words, as they were at first */
    uint64_t nbytes;
    int64_t expires_us;
    kv_hint hint;
} kv_reservation;

/* A reservation that waits for room; one at most, another one is told to come again. */
typedef struct {
    int is_heard, is_ready;
    uint32_t turn;  /* its number; 0: none waits */
    uint32_t flags; /* kv_put_flag */
    uint32_t num_fresh; /* KV_LATE is good while so many blocks have become visible */
    int64_t deadline_us;
    uint8_t *request; /* a copy of it; KV_REQUEST_NBYTES_MAX once there was one */
    kv_held held;     /* what it extends, in the server's own table for that */
} kv_parked;

typedef struct {
    uint32_t ns, rights;
} kv_opened_ns;

typedef struct {
    int is_used, fd, pidfd; /* fd: -1 when silent */
    uint64_t serial;        /* another one for each that was accepted: an event may be about who had this place before */
    uid_t uid;
    pid_t pid;
    int is_admitted, has_arena;
    kv_table table;
    uint32_t *seen_turn; /* of each group at the last look, and since when it was that */
    int64_t *since_us;
    kv_reservation *reservations;
    uint32_t num_reservations, last_reservation;
    uint64_t reserved_nbytes;
    kv_opened_ns opened[KV_OPENED_MAX];
    uint32_t num_opened;
    kv_parked parked;
    uint8_t *request; /* KV_REQUEST_NBYTES_MAX */
} kv_client;

typedef struct {
    uint8_t secret[KV_TICKET_NBYTES];
    uid_t uid;
    uint16_t ns;
    uint16_t rights; /* 0: unused */
    int64_t expires_us;
} kv_ticket;

#define KV_TICKETS_MAX 1024
#define KV_HELP_MAX 256

struct kv_attach {
    kv_put *put;
    kv_index *index;
    kv_attach_limits limits;
    int listening, epoll, wake, arena_fd, arena_read_fd;
    uint64_t arena_nbytes;
    kv_table table;         /* for what reservations extend, while they are made */
    kv_table waiting_table; /* likewise while they wait; of its own, so that those that wait keep nobody else out */
    kv_client *clients;
    uint8_t *reply;                 /* scratch of the serving thread, as are the next ones */
    uint8_t plan[KV_ATTACH_KEYS_MAX];
    uint32_t ids[KV_ATTACH_KEYS_MAX], places[KV_ATTACH_KEYS_MAX];
    int is_recording;
    int64_t looked_us;
    uint32_t turns;
    uint64_t serials;
    int spare_fd; /* given up for a moment to turn a client away when there are no descriptors left */
    pthread_mutex_t lock; /* what is below, and `parked.flags` and `is_ready`; taken last */
    pthread_cond_t asked;
    int is_draining, is_stopping, is_collect_asked;
    kv_ticket tickets[KV_TICKETS_MAX];
    kv_help help[KV_HELP_MAX];
    uint32_t help_head, help_tail;
    kv_attach_counts counts;
};

int64_t kv_now_us(void);

/* Begin with a connected client; 0 or -errno. */
int kv_session_begin(kv_attach *attach, kv_client *client, int fd);
/* Serve one datagram of `nbytes` in client->request. 0, or -1: the connection has to end. */
int kv_session_serve(kv_attach *attach, kv_client *client, ssize_t nbytes);
/* The connection is over; what the client holds stays. */
void kv_session_silence(kv_attach *attach, kv_client *client);
/* The connection is over, and what the client reserved is undone; its leases stay. */
void kv_session_undo(kv_attach *attach, kv_client *client);
/* The process is dead, or said that it is done: everything goes back. */
void kv_session_end(kv_attach *attach, kv_client *client);
/* Is it over with a client that hung up: it holds nothing, and can take nothing any more? */
int kv_session_is_done(kv_client *client);
/* Undo reservations, revoke leases and give up what waits when their time is up. */
void kv_session_look(kv_attach *attach, kv_client *client, int64_t now_us);

/* Ask the store; -1 when the queue is full. Takes `help->keys`, or leaves them when it is full. */
int kv_attach_ask(kv_attach *attach, const kv_help *help);
/* Use up a ticket: its rights (0: there is no such ticket for this user), and the namespace. */
uint32_t kv_attach_redeem(kv_attach *attach, const uint8_t *secret, uid_t uid, uint16_t *ns);

#endif
