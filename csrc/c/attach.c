#include "attach.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "attach_session.h"

#define EVENTS_MAX 64
#define LOOK_MS 50        /* how often times are looked at */
#define SERVER_LEASES (1u << 16)

/* What an event is about, in its upper byte; below the client's serial and, in the lowest byte, its number. */
enum source { LISTENING = 0, WAKE = 1, CONNECTION = 2, PROCESS = 3 };

int64_t kv_now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static int watch(kv_attach *attach, int fd, enum source source, const kv_client *client) {
    uint64_t who = client == NULL ? 0 : client->serial << 8 | (uint64_t)(client - attach->clients);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)source << 56 | who};
    return epoll_ctl(attach->epoll, EPOLL_CTL_ADD, fd, &event) != 0 ? -errno : 0;
}

static int prepare(kv_attach *attach, int listening) {
    int code = kv_shared_seal(attach->index->fd, 1);
    if (code == 0 || code == -EPERM) code = kv_shared_seal(attach->arena_fd, 0); /* EPERM: sealed before */
    if (code < 0 && code != -EPERM) return code;
    attach->arena_read_fd = kv_shared_read_only(attach->arena_fd);
    if (attach->arena_read_fd < 0) return attach->arena_read_fd;
    if ((code = kv_table_create(&attach->table, SERVER_LEASES)) < 0) return code;
    if ((code = kv_evict_attach(attach->index, &attach->table)) < 0) return code;
    if ((code = kv_table_create(&attach->waiting_table, SERVER_LEASES)) < 0) return code;
    if ((code = kv_evict_attach(attach->index, &attach->waiting_table)) < 0) return code;
    attach->epoll = epoll_create1(EPOLL_CLOEXEC);
    attach->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    attach->spare_fd = eventfd(0, EFD_CLOEXEC);
    if (attach->epoll < 0 || attach->wake < 0 || attach->spare_fd < 0) return -errno;
    if ((code = watch(attach, listening, LISTENING, NULL)) < 0) return code;
    return watch(attach, attach->wake, WAKE, NULL);
}

kv_attach *kv_attach_create(int listening, kv_put *put, int arena_fd, uint64_t arena_nbytes,
                            const kv_attach_limits *limits) {
    kv_attach *attach = calloc(1, sizeof *attach);
    if (attach == NULL) return NULL;
    attach->put = put;
    attach->index = put->index;
    attach->limits = *limits;
    attach->listening = attach->epoll = attach->wake = attach->arena_read_fd = attach->spare_fd = -1;
    attach->arena_fd = arena_fd;
    attach->arena_nbytes = arena_nbytes;
    pthread_mutex_init(&attach->lock, NULL);
    pthread_cond_init(&attach->asked, NULL);
    attach->clients = calloc(limits->clients_max, sizeof(kv_client));
    attach->reply = malloc(KV_REPLY_NBYTES_MAX);
    int code = attach->clients && attach->reply ? prepare(attach, listening) : -ENOMEM;
    if (code == 0) {
        attach->listening = listening;
        return attach;
    }
    kv_attach_destroy(attach);
    errno = -code;
    return NULL;
}

void kv_attach_destroy(kv_attach *attach) {
    kv_help help;
    for (uint32_t i = 0; attach->clients && i < attach->limits.clients_max; i++)
        if (attach->clients[i].is_used) kv_session_end(attach, &attach->clients[i]);
    while (kv_attach_take(attach, &help)) free(help.keys);
    kv_evict_detach(attach->index, &attach->table);
    kv_table_destroy(&attach->table);
    kv_evict_detach(attach->index, &attach->waiting_table);
    kv_table_destroy(&attach->waiting_table);
    if (attach->spare_fd >= 0) close(attach->spare_fd);
    if (attach->listening >= 0) close(attach->listening);
    if (attach->epoll >= 0) close(attach->epoll);
    if (attach->wake >= 0) close(attach->wake);
    if (attach->arena_read_fd >= 0) close(attach->arena_read_fd);
    pthread_mutex_destroy(&attach->lock);
    pthread_cond_destroy(&attach->asked);
    free(attach->clients);
    free(attach->reply);
    free(attach);
}

/* ---- the store's side ---- */

static void wake(kv_attach *attach) {
    uint64_t one = 1;
    ssize_t written = write(attach->wake, &one, sizeof one); /* full: it is awake already */
    (void)written;
}

void kv_attach_drain(kv_attach *attach) {
    pthread_mutex_lock(&attach->lock);
    attach->is_draining = 1;
    pthread_mutex_unlock(&attach->lock);
}

void kv_attach_stop(kv_attach *attach) {
    pthread_mutex_lock(&attach->lock);
    attach->is_stopping = 1;
    pthread_cond_broadcast(&attach->asked);
    pthread_mutex_unlock(&attach->lock);
    wake(attach);
}

int kv_attach_issue(kv_attach *attach, const uint8_t *ticket, uid_t uid, uint16_t ns, uint32_t rights, uint32_t ttl_ms) {
    int64_t now_us = kv_now_us();
    int code = -ENOSPC;
    pthread_mutex_lock(&attach->lock);
    for (uint32_t i = 0; i < KV_TICKETS_MAX && code != 0; i++) {
        kv_ticket *free_one = &attach->tickets[i];
        if (free_one->rights != 0 && free_one->expires_us > now_us) continue;
        *free_one = (kv_ticket){.uid = uid, .ns = ns, .rights = (uint16_t)rights};
        free_one->expires_us = now_us + (int64_t)ttl_ms * 1000;
        memcpy(free_one->secret, ticket, KV_TICKET_NBYTES);
        code = 0;
    }
    pthread_mutex_unlock(&attach->lock);
    return code;
}

uint32_t kv_attach_redeem(kv_attach *attach, const uint8_t *secret, uid_t uid, uint16_t *ns) {
    int64_t now_us = kv_now_us();
    uint32_t rights = 0;
    pthread_mutex_lock(&attach->lock);
    for (uint32_t i = 0; i < KV_TICKETS_MAX && rights == 0; i++) {
        kv_ticket *ticket = &attach->tickets[i];
        uint8_t differs = 0; /* every byte is looked at: the time tells nothing */
        for (int byte = 0; byte < KV_TICKET_NBYTES; byte++) differs |= ticket->secret[byte] ^ secret[byte];
        if (ticket->rights == 0 || differs || (ticket->uid != uid && uid != 0) || ticket->expires_us <= now_us) continue;
        rights = ticket->rights;
        *ns = ticket->ns;
        ticket->rights = 0;
    }
    pthread_mutex_unlock(&attach->lock);
    return rights;
}

int kv_attach_ask(kv_attach *attach, const kv_help *help) {
    pthread_mutex_lock(&attach->lock);
    int is_collect = help->kind == KV_HELP_COLLECT, is_asked = is_collect && attach->is_collect_asked;
    /* Promotions and records are wishes, and one client can have many: they leave room for who waits. */
    uint32_t most = help->keys != NULL ? KV_HELP_MAX / 2 : KV_HELP_MAX;
    int is_full = attach->help_head - attach->help_tail >= most;
    if (!is_full && !is_asked) attach->help[attach->help_head++ % KV_HELP_MAX] = *help;
    if (!is_full && is_collect) attach->is_collect_asked = 1;
    if (!is_full && !is_asked) pthread_cond_signal(&attach->asked);
    pthread_mutex_unlock(&attach->lock);
    return is_full ? -1 : 0;
}

int kv_attach_wait(kv_attach *attach) {
    pthread_mutex_lock(&attach->lock);
    while (!attach->is_stopping && attach->help_head == attach->help_tail)
        pthread_cond_wait(&attach->asked, &attach->lock);
    int going_on = !attach->is_stopping;
    pthread_mutex_unlock(&attach->lock);
    return going_on;
}

int kv_attach_take(kv_attach *attach, kv_help *help) {
    pthread_mutex_lock(&attach->lock);
    int is_there = attach->help_head != attach->help_tail;
    if (is_there) *help = attach->help[attach->help_tail++ % KV_HELP_MAX];
    if (is_there && help->kind == KV_HELP_COLLECT) attach->is_collect_asked = 0;
    pthread_mutex_unlock(&attach->lock);
    return is_there;
}

void kv_attach_heard(kv_attach *attach, uint32_t client, uint32_t turn) {
    if (client >= attach->limits.clients_max || turn == 0) return;
    pthread_mutex_lock(&attach->lock);
    kv_parked *parked = &attach->clients[client].parked;
    if (parked->turn == turn) parked->is_heard = 1;
    pthread_mutex_unlock(&attach->lock);
}

void kv_attach_helped(kv_attach *attach, uint32_t client, uint32_t turn, uint32_t flags, uint32_t num_fresh) {
    if (client >= attach->limits.clients_max || turn == 0) return;
    pthread_mutex_lock(&attach->lock);
    kv_parked *parked = &attach->clients[client].parked;
    if (parked->turn == turn) {
        parked->flags |= flags;
        parked->num_fresh = num_fresh;
        parked->is_heard = parked->is_ready = 1;
    }
    pthread_mutex_unlock(&attach->lock);
}

void kv_attach_record(kv_attach *attach) {
    attach->is_recording = 1;
}

void kv_attach_set_wait(kv_attach *attach, uint32_t put_wait_ms) {
    /* The serving thread reads it as it is, before or after. */
    __atomic_store_n(&attach->limits.put_wait_ms, put_wait_ms, __ATOMIC_RELAXED);
}

void kv_attach_read_counts(kv_attach *attach, kv_attach_counts *counts) {
    pthread_mutex_lock(&attach->lock);
    *counts = attach->counts;
    pthread_mutex_unlock(&attach->lock);
}

/* ---- the serving thread ---- */

static kv_client *free_client(kv_attach *attach) {
    for (uint32_t i = 0; i < attach->limits.clients_max; i++)
        if (!attach->clients[i].is_used) return &attach->clients[i];
    return NULL;
}

static void count_refused(kv_attach *attach) {
    pthread_mutex_lock(&attach->lock);
    attach->counts.num_refused++;
    pthread_mutex_unlock(&attach->lock);
}

/* Without a descriptor for it a connection would be ready to be accepted for ever, and this thread never idle. */
static void turn_away(kv_attach *attach) {
    close(attach->spare_fd);
    int fd = accept4(attach->listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) close(fd);
    attach->spare_fd = eventfd(0, EFD_CLOEXEC);
    count_refused(attach);
}

static void accept_one(kv_attach *attach) {
    int fd = accept4(attach->listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE)) turn_away(attach);
    if (fd < 0) return;
    kv_client *client = free_client(attach);
    int code = client ? kv_session_begin(attach, client, fd) : -EMFILE;
    if (code == 0) client->serial = ++attach->serials;
    if (code == 0) code = watch(attach, fd, CONNECTION, client);
    if (code == 0) code = watch(attach, client->pidfd, PROCESS, client);
    if (code == 0) return;
    count_refused(attach);
    if (client != NULL && client->is_used) kv_session_end(attach, client);
    else close(fd);
}

static void hear(kv_attach *attach, kv_client *client) {
    if (client->fd < 0) return;
    ssize_t nbytes = recv(client->fd, client->request, KV_REQUEST_NBYTES_MAX, MSG_DONTWAIT | MSG_TRUNC);
    if (nbytes < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (nbytes > 0 && kv_session_serve(attach, client, nbytes) == 0) return;
    kv_session_silence(attach, client);
    /* What was never admitted has no memory of ours that it could still be reading. */
    if (!client->is_admitted || kv_session_is_done(client)) kv_session_end(attach, client);
}

static void take_wakes(kv_attach *attach) {
    uint64_t num;
    ssize_t got = read(attach->wake, &num, sizeof num);
    (void)got;
}

static void handle(kv_attach *attach, const struct epoll_event *event) {
    kv_client *client = &attach->clients[event->data.u64 & 0xff];
    int is_there = client->is_used && client->serial == (event->data.u64 << 8) >> 16;
    switch ((enum source)(event->data.u64 >> 56)) {
    case LISTENING: accept_one(attach); break;
    case WAKE: take_wakes(attach); break;
    case CONNECTION:
        if (is_there) hear(attach, client);
        break;
    case PROCESS:
        if (is_there) kv_session_end(attach, client);
        break;
    }
}

static void look_all(kv_attach *attach, int64_t now_us) {
    if (now_us - attach->looked_us < LOOK_MS * 1000) return;
    attach->looked_us = now_us;
    for (uint32_t i = 0; i < attach->limits.clients_max; i++) {
        if (attach->clients[i].is_used) kv_session_look(attach, &attach->clients[i], now_us);
        if (attach->clients[i].is_used && kv_session_is_done(&attach->clients[i]))
            kv_session_end(attach, &attach->clients[i]);
    }
}

static int is_stopping(kv_attach *attach) {
    pthread_mutex_lock(&attach->lock);
    int stopping = attach->is_stopping;
    pthread_mutex_unlock(&attach->lock);
    return stopping;
}

void kv_attach_serve(kv_attach *attach) {
    struct epoll_event events[EVENTS_MAX];
    pthread_setname_np(pthread_self(), "kvstore-attach"); /* at most 15 characters */
    while (!is_stopping(attach)) {
        int num = epoll_wait(attach->epoll, events, EVENTS_MAX, LOOK_MS);
        for (int i = 0; i < num; i++) handle(attach, &events[i]);
        look_all(attach, kv_now_us());
    }
    for (uint32_t i = 0; i < attach->limits.clients_max; i++)
        if (attach->clients[i].is_used) kv_session_undo(attach, &attach->clients[i]);
}
