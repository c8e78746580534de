#include "known.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define LOOKS_MAX 256 /* blocks that one search for candidates passes */

static void *pages_of(size_t nbytes) {
    void *pages = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

static size_t blocks_nbytes(const kv_knowledge *knowledge) {
    return ((size_t)knowledge->blocks_max + 1) * sizeof(kv_known);
}
static size_t buckets_nbytes(const kv_knowledge *knowledge) { return ((size_t)knowledge->mask + 1) * sizeof(uint32_t); }

int kv_knowledge_create(kv_knowledge *knowledge, uint32_t blocks_max) {
    memset(knowledge, 0, sizeof *knowledge);
    knowledge->blocks_max = blocks_max;
    knowledge->mask = 1023;
    while (knowledge->mask < blocks_max) knowledge->mask = knowledge->mask << 1 | 1;
    knowledge->mask >>= 1; /* one to two blocks a bucket when full */
    knowledge->blocks = pages_of(blocks_nbytes(knowledge));
    knowledge->buckets = pages_of(buckets_nbytes(knowledge));
    if (knowledge->blocks && knowledge->buckets) return 0;
    kv_knowledge_destroy(knowledge);
    return -ENOMEM;
}

void kv_knowledge_destroy(kv_knowledge *knowledge) {
    if (knowledge->blocks) munmap(knowledge->blocks, blocks_nbytes(knowledge));
    if (knowledge->buckets) munmap(knowledge->buckets, buckets_nbytes(knowledge));
    memset(knowledge, 0, sizeof *knowledge);
}

static uint32_t *bucket_of(const kv_knowledge *knowledge, uint64_t fingerprint) {
    return &knowledge->buckets[(fingerprint ^ fingerprint >> 32) & knowledge->mask];
}

void kv_known_prefetch(const kv_knowledge *knowledge, uint64_t fingerprint) {
    __builtin_prefetch(bucket_of(knowledge, fingerprint));
}

void kv_known_prefetch_first(const kv_knowledge *knowledge, uint64_t fingerprint) {
    __builtin_prefetch(&knowledge->blocks[*bucket_of(knowledge, fingerprint)]);
}

uint32_t kv_known_find(const kv_knowledge *knowledge, uint64_t fingerprint) {
    uint32_t number = *bucket_of(knowledge, fingerprint);
    while (number && knowledge->blocks[number].fingerprint != fingerprint) number = knowledge->blocks[number].next;
    return number;
}

uint32_t kv_known_add(kv_knowledge *knowledge, uint64_t fingerprint) {
    uint32_t number = knowledge->unused;
    if (number) knowledge->unused = knowledge->blocks[number].next;
    else if (knowledge->num_used < knowledge->blocks_max) number = ++knowledge->num_used;
    else return 0;
    uint32_t *bucket = bucket_of(knowledge, fingerprint);
    knowledge->blocks[number] = (kv_known){.fingerprint = fingerprint, .next = *bucket};
    *bucket = number;
    knowledge->num_blocks++;
    return number;
}

uint32_t kv_known_candidates(kv_knowledge *knowledge, uint32_t *numbers, uint32_t num) {
    uint32_t found = 0;
    for (uint32_t looks = 0; found < num && (looks < LOOKS_MAX || found == 0); looks++) {
        if (looks > knowledge->num_used) break; /* everything is stored */
        knowledge->hand = knowledge->hand < knowledge->num_used ? knowledge->hand + 1 : 1;
        const kv_known *block = &knowledge->blocks[knowledge->hand];
        if (block->cohort != 0 && !block->is_stored) numbers[found++] = knowledge->hand;
    }
    return found;
}

void kv_known_forget(kv_knowledge *knowledge, uint32_t number) {
    kv_known *block = &knowledge->blocks[number];
    uint32_t *link = bucket_of(knowledge, block->fingerprint);
    while (*link != number) link = &knowledge->blocks[*link].next;
    *link = block->next;
    *block = (kv_known){.next = knowledge->unused};
    knowledge->unused = number;
    knowledge->num_blocks--;
}
