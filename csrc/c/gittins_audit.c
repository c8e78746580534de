/* What the gittins policy says of itself: figures, and an audit for tests. */
#include "gittins.h"

void kv_gittins_describe(const kv_index *index, kv_policy_figures *figures) {
    const kv_ranks *ranks = ranks_of(index);
    uint64_t num_cohorts = ranks->cohorts.num_cohorts, num_known = ranks->knowledge.num_used;
    figures->num_ghosts = ranks->knowledge.num_blocks - ranks->num_attached;
    figures->nbytes = num_known * (sizeof(kv_known) + sizeof(uint32_t)) + num_cohorts * sizeof(kv_cohort);
    figures->num_classes = ranks->cohorts.survival.num_used;
}

int kv_gittins_check(const kv_index *index, uint64_t near_listed, uint64_t far_listed) {
    const kv_ranks *ranks = ranks_of(index);
    uint64_t listed[2] = {0, 0};
    for (int tier = 0; tier < 2; tier++) {
        uint32_t before = 0;
        for (uint32_t id = kv_gittins_coldest(index, tier, KV_NONE); id != KV_NONE; id = kv_gittins_coldest(index, tier, id)) {
            const kv_record *record = &index->records[id];
            if (!(record->flags & (tier == KV_NEAR ? KV_LISTED_NEAR : KV_LISTED_FAR))) return 31;
            if (kv_state_of(record) != KV_VALID || kv_is_near(record) != (tier == KV_NEAR)) return 32;
            if (kv_gittins_level(index, id) < before) return 33;
            before = kv_gittins_level(index, id);
            if (++listed[tier] > index->ids_used) return 34;
        }
    }
    uint64_t num_blocks = 0, num_known = 0, num_stored = 0, num_attached = 0;
    for (uint32_t i = 1; i <= ranks->cohorts.num_cohorts; i++) num_blocks += ranks->cohorts.cohorts[i].num_blocks;
    for (uint32_t i = 1; i <= ranks->knowledge.num_used; i++) {
        num_known += ranks->knowledge.blocks[i].cohort != 0;
        num_stored += ranks->knowledge.blocks[i].is_stored;
    }
    for (uint32_t id = 0; id < index->ids_used; id++) num_attached += ranks->known_of[id] != 0;
    if (num_blocks != num_known + 1 || num_known != ranks->knowledge.num_blocks) return 35;
    if (num_stored != num_attached || num_attached != ranks->num_attached) return 36;
    return listed[KV_NEAR] != near_listed || listed[KV_FAR] != far_listed ? 37 : 0;
}
