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
