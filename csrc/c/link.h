/* A client's end of the attach socket: one request at a time, each with its answer. */
#ifndef KV_LINK_H
#define KV_LINK_H

#include <pthread.h>
#include <stddef.h>
#include <sys/types.h>

#include "attach_wire.h"

typedef struct {
    int fd;
    uint32_t number;
    _Atomic int is_over; /* nothing is sent any more */
    pthread_mutex_t lock; /* held from a request to its answer */
} kv_link;

/* `timeout_ms` bounds the wait for each answer. 0, or -errno. */
int kv_link_open(kv_link *link, const char *path, int timeout_ms);
/* Nothing is sent any more; whoever waits gets an error. From any thread. */
void kv_link_end(kv_link *link);
/* In a child after a fork: the connection stays the parent's. */
void kv_link_disown(kv_link *link);
void kv_link_close(kv_link *link); /* after every other call has returned */
/* Wait until the other end hangs up or kv_link_end was called. */
void kv_link_watch(kv_link *link);

typedef struct {
    kv_message *request; /* its number is filled in */
    size_t request_nbytes;
    const void *keys; /* follow the request */
    size_t keys_nbytes;
    kv_message *reply;
    size_t reply_max, reply_nbytes;
    int fds[KV_ATTACH_FDS_MAX]; /* that came with the reply; the caller's now */
    uint32_t num_fds;
} kv_call;

/* Send and wait. 0, or -errno: the link is over then. A reply is at least a kv_message of the right type and number. */
int kv_link_call(kv_link *link, kv_call *call);

#endif
