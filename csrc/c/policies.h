/* The eviction policies there are, by name. */
#ifndef KV_POLICIES_H
#define KV_POLICIES_H

#include "policy.h"

/* NULL for a name that no policy has. */
const kv_policy *kv_policy_find(const char *name);
/* Names by number from 0 on, NULL behind the last. */
const char *kv_policy_name(uint32_t number);
const char *kv_policy_name_of(const kv_index *index);
/* Nothing for a policy that remembers nothing. */
kv_memories kv_policy_memories(const kv_index *index);
/* The policy's time is `now_ms`: let it do a piece of what can wait. */
void kv_policy_tend(kv_index *index, uint64_t now_ms);

#endif
