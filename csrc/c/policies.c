#include "policies.h"

#include <string.h>

static const kv_policy *const policies[] = {&kv_lru, &kv_gittins, &kv_s3fifo, &kv_arc};

#define NUM_POLICIES (sizeof policies / sizeof policies[0])

const char *kv_policy_name(uint32_t number) { return number < NUM_POLICIES ? policies[number]->name : NULL; }

const kv_policy *kv_policy_find(const char *name) {
    for (uint32_t i = 0; i < NUM_POLICIES; i++)
        if (strcmp(policies[i]->name, name) == 0) return policies[i];
    return NULL;
}

const char *kv_policy_name_of(const kv_index *index) { return index->policy->name; }

kv_memories kv_policy_memories(const kv_index *index) {
    KV_AS_WRITER(index);
    return index->policy->memories != NULL ? index->policy->memories(index) : (kv_memories){0};
}

void kv_policy_tend(kv_index *index, uint64_t now_ms) {
    KV_AS_WRITER(index);
    index->now_ms = now_ms;
    if (index->policy->tend != NULL) index->policy->tend(index);
}
