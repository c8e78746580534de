/* The eviction policies there are, by name. */
#ifndef KV_POLICIES_H
#define KV_POLICIES_H

#include "policy.h"

/* NULL for a name that no policy has. */
const kv_policy *kv_policy_find(const char *name);
/* Names by number from 0 on, NULL behind the last. */
const char *kv_policy_name(uint32_t number);

#endif
