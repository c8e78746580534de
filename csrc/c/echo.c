#include "echo.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static void *pages_of(size_t nbytes) {
    void *pages = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

static size_t echoes_nbytes(const kv_echoes *echoes) { return ((size_t)echoes->echoes_max + 1) * sizeof(kv_echo); }
static size_t buckets_nbytes(const kv_echoes *echoes) { return ((size_t)echoes->mask + 1) * sizeof(uint32_t); }

int kv_echoes_create(kv_echoes *echoes, uint32_t echoes_max) {
    memset(echoes, 0, sizeof *echoes);
    echoes->echoes_max = echoes_max;
    echoes->mask = 255;
    while (echoes->mask < echoes_max / 2) echoes->mask = echoes->mask << 1 | 1;
    echoes->echoes = pages_of(echoes_nbytes(echoes));
    echoes->buckets = pages_of(buckets_nbytes(echoes));
    if (echoes->echoes && echoes->buckets) return 0;
    kv_echoes_destroy(echoes);
    return -ENOMEM;
}

void kv_echoes_destroy(kv_echoes *echoes) {
    if (echoes->echoes) munmap(echoes->echoes, echoes_nbytes(echoes));
    if (echoes->buckets) munmap(echoes->buckets, buckets_nbytes(echoes));
    memset(echoes, 0, sizeof *echoes);
}

static uint32_t *bucket_of(const kv_echoes *echoes, uint64_t fingerprint) {
    return &echoes->buckets[(fingerprint ^ fingerprint >> 32) & echoes->mask];
}

void kv_echo_prefetch(const kv_echoes *echoes, uint64_t fingerprint) {
    __builtin_prefetch(bucket_of(echoes, fingerprint));
}

uint32_t kv_echo_find(const kv_echoes *echoes, enum kv_tier tier, uint64_t fingerprint) {
    uint32_t number = *bucket_of(echoes, fingerprint);
    while (number) {
        const kv_echo *echo = &echoes->echoes[number];
        if (echo->fingerprint == fingerprint && echo->list / KV_LISTS == tier) break;
        number = echo->next;
    }
    return number;
}

static void enter_list(kv_echoes *echoes, uint32_t number) {
    kv_echo *echo = &echoes->echoes[number];
    uint32_t *newest = &echoes->newest[echo->list];
    echo->newer = 0;
    echo->older = *newest;
    if (*newest) echoes->echoes[*newest].newer = number;
    else echoes->oldest[echo->list] = number;
    *newest = number;
    echoes->length[echo->list]++;
}

static void leave_list(kv_echoes *echoes, uint32_t number) {
    const kv_echo *echo = &echoes->echoes[number];
    if (echo->older) echoes->echoes[echo->older].newer = echo->newer;
    else echoes->oldest[echo->list] = echo->newer;
    if (echo->newer) echoes->echoes[echo->newer].older = echo->older;
    else echoes->newest[echo->list] = echo->older;
    echoes->length[echo->list]--;
}

void kv_echo_forget(kv_echoes *echoes, uint32_t number) {
    kv_echo *echo = &echoes->echoes[number];
    uint32_t *link = bucket_of(echoes, echo->fingerprint);
    leave_list(echoes, number);
    while (*link != number) link = &echoes->echoes[*link].next;
    *link = echo->next;
    echo->next = echoes->unused;
    echoes->unused = number;
}

void kv_echo_add(kv_echoes *echoes, enum kv_tier tier, uint32_t list, uint64_t fingerprint) {
    const uint32_t own = tier * KV_LISTS + list;
    uint32_t number = kv_echo_find(echoes, tier, fingerprint);
    if (number) kv_echo_forget(echoes, number);
    if (echoes->unused == 0 && echoes->num_used == echoes->echoes_max) {
        if (echoes->oldest[own] == 0) return;
        kv_echo_forget(echoes, echoes->oldest[own]);
    }
    number = echoes->unused;
    if (number) echoes->unused = echoes->echoes[number].next;
    else number = ++echoes->num_used;
    uint32_t *bucket = bucket_of(echoes, fingerprint);
    echoes->echoes[number] = (kv_echo){.fingerprint = fingerprint, .next = *bucket, .list = own};
    *bucket = number;
    enter_list(echoes, number);
}

void kv_echo_renew(kv_echoes *echoes, uint32_t number) {
    leave_list(echoes, number);
    enter_list(echoes, number);
}

uint64_t kv_echoes_nbytes(const kv_echoes *echoes) {
    return echoes->num_used * sizeof(kv_echo) + buckets_nbytes(echoes);
}

int kv_echoes_check(const kv_echoes *echoes) {
    for (uint32_t list = 0; list < 2 * KV_LISTS; list++) {
        uint64_t length = 0;
        uint32_t older = 0;
        for (uint32_t number = echoes->oldest[list]; number; number = echoes->echoes[number].newer) {
            const kv_echo *echo = &echoes->echoes[number];
            if (echo->list != list || echo->older != older || ++length > echoes->num_used) return 61;
            if (kv_echo_find(echoes, (enum kv_tier)(list / KV_LISTS), echo->fingerprint) != number) return 62;
            older = number;
        }
        if (echoes->newest[list] != older || echoes->length[list] != length) return 63;
    }
    return 0;
}
