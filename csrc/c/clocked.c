#include "clocked.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void kv_time_nothing(uint32_t num, uint32_t *ns) {
    for (uint32_t i = 0; i < num; i++) {
        uint64_t start = now_ns();
        ns[i] = (uint32_t)(now_ns() - start);
    }
}

void kv_time_leases(const kv_index *index, kv_table *table, uint32_t space, const uint8_t *keys, uint32_t num_keys,
                    uint32_t num_prefixes, uint32_t *ns) {
    uint8_t prefix[KV_GROUP * KV_KEY_NBYTES];
    size_t nbytes = (size_t)num_keys * KV_KEY_NBYTES;
    for (uint32_t i = 0; i < num_prefixes; i++) {
        kv_held held;
        memcpy(prefix, keys + i * nbytes, nbytes);
        uint64_t start = now_ns();
        kv_lease_acquire(index, table, space, prefix, num_keys, 1, &held);
        uint32_t found = held.num_blocks;
        kv_lease_release(table, &held);
        ns[i] = (uint32_t)(now_ns() - start);
        if (found != num_keys) ns[i] = 0;
    }
}

void kv_time_lines(const kv_index *index, const uint8_t *keys, const uint32_t *ids, uint32_t num_keys,
                   uint32_t num_prefixes, uint32_t *ns) {
    const _Atomic uint64_t *bucket[KV_GROUP], *record[KV_GROUP];
    for (uint32_t i = 0; i < num_prefixes; i++) {
        for (uint32_t j = 0; j < num_keys; j++) {
            const uint8_t *key = keys + ((size_t)i * num_keys + j) * KV_KEY_NBYTES;
            bucket[j] = index->buckets[kv_home_bucket(index, kv_home(index, key))].slot;
            record[j] = &index->records[ids[(size_t)i * num_keys + j]].state;
        }
        uint64_t start = now_ns();
        for (uint32_t j = 0; j < num_keys; j++) __builtin_prefetch((const void *)bucket[j]);
        for (uint32_t j = 0; j < num_keys; j++) {
            atomic_load_explicit(bucket[j], memory_order_acquire);
            __builtin_prefetch((const void *)record[j]);
        }
        for (uint32_t j = 0; j < num_keys; j++) atomic_load_explicit(record[j], memory_order_acquire);
        ns[i] = (uint32_t)(now_ns() - start);
    }
}

int kv_time_pings(int fd, const kv_exchange *exchanges, uint32_t num_exchanges, uint32_t num, uint32_t *ns) {
    static _Thread_local uint8_t buffer[KV_EXCHANGE_NBYTES_MAX];
    for (uint32_t i = 0; i < num; i++) {
        uint64_t start = now_ns();
        for (uint32_t j = 0; j < num_exchanges; j++) {
            memcpy(buffer, &exchanges[j].reply_nbytes, sizeof exchanges[j].reply_nbytes);
            if (send(fd, buffer, exchanges[j].request_nbytes, MSG_NOSIGNAL) < 0) return -errno;
            ssize_t got = recv(fd, buffer, sizeof buffer, 0);
            if (got < 0) return -errno;
            if (got != (ssize_t)exchanges[j].reply_nbytes) return -EPROTO;
        }
        ns[i] = (uint32_t)(now_ns() - start);
    }
    return 0;
}

void kv_answer_pings(int fd) {
    static _Thread_local uint8_t buffer[KV_EXCHANGE_NBYTES_MAX];
    uint32_t reply_nbytes;
    while (recv(fd, buffer, sizeof buffer, 0) >= (ssize_t)sizeof reply_nbytes) {
        memcpy(&reply_nbytes, buffer, sizeof reply_nbytes);
        if (reply_nbytes > sizeof buffer || send(fd, buffer, reply_nbytes, MSG_NOSIGNAL) < 0) return;
    }
}
