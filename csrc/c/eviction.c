#include "eviction.h"

const char *kv_eviction_name(const kv_index *index) { return index->policy->name; }

void kv_eviction_tend(kv_index *index, uint64_t now_ms) {
    KV_AS_WRITER(index);
    index->now_ms = now_ms;
    if (index->policy->tend != NULL) index->policy->tend(index);
}

kv_policy_figures kv_eviction_figures(const kv_index *index) {
    KV_AS_WRITER(index);
    kv_policy_figures figures = {0};
    if (index->policy->describe != NULL) index->policy->describe(index, &figures);
    return figures;
}
