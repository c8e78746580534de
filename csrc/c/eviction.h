/* The eviction policy of an index, from outside. */
#ifndef KV_EVICTION_H
#define KV_EVICTION_H

#include "policy.h"

const char *kv_eviction_name(const kv_index *index);
/* The policy's time is `now_ms`: let it do a piece of what can wait. */
void kv_eviction_tend(kv_index *index, uint64_t now_ms);
kv_policy_figures kv_eviction_figures(const kv_index *index);

#endif
