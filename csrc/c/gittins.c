/* Gittins: the block that promises the fewest hits per second of the space that it takes goes first.
 *
 * Every block that was ever asked for is remembered, stored or not (known.h); what is learned of how long such blocks
 * wait to be asked for again (survival.h) says what each is worth; cohorts (cohort.h) keep them in that order. Only
 * leaves are candidates. A block that is not stored yet is appraised in the same way: it gets no place for which a
 * block of more worth would have to go (docs/decisions).
 *
 * A request is seen twice: its lookup finds what is stored, its reservation names all of it. Only the first of them
 * counts as asking for a block; the second tells more about the request, and its blocks change to a cohort that says so.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "gittins.h"

#define START_TICK (1u << 28)  /* blocks may have been used before there was a policy */
#define SAME_TICKS 7500u       /* two minutes: a reservation so long after a lookup may belong to it */
#define NEXT_TICKS 312u        /* five seconds: prompts are put piece by piece, as they are computed */
#define RETRY_TICKS 62u        /* a second: a lookup so soon after another may be the same one */
#define HELD_TICKS 62u         /* leased candidates are not offered again for so long */
#define HELD_MAX 256           /* of them are listed again in one call */
#define FREQ_MAX 255
#define PREFETCH 8

static size_t known_of_nbytes(const kv_index *index) { return (size_t)index->entries_max * sizeof(uint32_t); }

static void gittins_destroy(kv_index *index) {
    kv_ranks *ranks = index->ranks;
    if (ranks == NULL) return;
    kv_cohorts_destroy(&ranks->cohorts);
    kv_knowledge_destroy(&ranks->knowledge);
    if (ranks->known_of) munmap(ranks->known_of, known_of_nbytes(index));
    free(ranks->scratch);
    free(ranks);
    index->ranks = NULL;
}

static int gittins_create(kv_index *index, uint32_t ghosts_max) {
    kv_ranks *ranks = calloc(1, sizeof *ranks);
    index->ranks = ranks;
    if (ranks == NULL) return -ENOMEM;
    uint64_t most = (uint64_t)index->entries_max + ghosts_max + 1;
    uint32_t blocks_max = most < UINT32_MAX / 2 ? (uint32_t)most : UINT32_MAX / 2;
    void *pages = mmap(NULL, known_of_nbytes(index), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ranks->known_of = pages == MAP_FAILED ? NULL : pages;
    if (ranks->known_of == NULL || kv_knowledge_create(&ranks->knowledge, blocks_max) < 0 ||
        kv_cohorts_create(&ranks->cohorts, blocks_max + 1, index->links) < 0) {
        gittins_destroy(index);
        return -ENOMEM;
    }
    ranks->now = START_TICK;
    ranks->epoch_ms = KV_NO_TIME;
    kv_duel_create(&ranks->duel, ranks->now);
    kv_cohorts_set_now(&ranks->cohorts, ranks->now);
    ranks->cohorts.survival.weighed = ranks->cohorts.survival.next_pass = ranks->now;
    ranks->cohorts.survival.weight = 1;
    ranks->stray = kv_cohort_begin(&ranks->cohorts, ranks->now, 0, 1);
    kv_cohort_join(&ranks->cohorts, ranks->stray); /* keeps it for ever */
    return 0;
}

/* ---- what is offered ---- */

static int is_listed(const kv_record *record) { return (record->flags & (KV_LISTED_NEAR | KV_LISTED_FAR)) != 0; }

static void list(kv_index *index, uint32_t id) {
    kv_ranks *ranks = index->ranks;
    kv_record *record = &index->records[id];
    const enum kv_tier tier = kv_is_near(record) ? KV_NEAR : KV_FAR;
    kv_cohort_list(&ranks->cohorts, cohort_of(ranks, id), tier, id);
    record->flags |= tier == KV_NEAR ? KV_LISTED_NEAR : KV_LISTED_FAR;
}

static void unlist(kv_index *index, uint32_t id) {
    kv_ranks *ranks = index->ranks;
    kv_record *record = &index->records[id];
    if (!is_listed(record)) return;
    const enum kv_tier tier = record->flags & KV_LISTED_NEAR ? KV_NEAR : KV_FAR;
    if (record->flags & KV_HELD) {
        const kv_links *links = &index->links[id];
        if (links->next != KV_NONE) index->links[links->next].prev = links->prev;
        if (links->prev != KV_NONE) index->links[links->prev].next = links->next;
        else ranks->held[tier] = links->next == KV_NONE ? 0 : links->next + 1;
    } else {
        kv_cohort_unlist(&ranks->cohorts, cohort_of(ranks, id), tier, id);
    }
    record->flags &= (uint16_t)~(KV_LISTED_NEAR | KV_LISTED_FAR | KV_HELD);
}

static int is_leaf(const kv_index *index, uint32_t id) {
    const kv_links *links = &index->links[id];
    return kv_is_near(&index->records[id]) ? links->near_kids == 0 : links->kids == 0;
}

static void list_if_leaf(kv_index *index, uint32_t id) {
    if (is_leaf(index, id)) list(index, id);
}

static void release_held(kv_index *index) {
    kv_ranks *ranks = index->ranks;
    for (int tier = 0, left = HELD_MAX; tier < 2; tier++)
        while (ranks->held[tier] && left-- > 0) {
            const uint32_t id = ranks->held[tier] - 1;
            unlist(index, id);
            list(index, id);
        }
}

static void set_now(kv_index *index) {
    kv_ranks *ranks = index->ranks;
    const uint64_t now_ms = atomic_load_explicit(&index->now_ms, memory_order_relaxed);
    if (now_ms == KV_NO_TIME) return;
    if (ranks->epoch_ms == KV_NO_TIME) ranks->epoch_ms = now_ms;
    const uint32_t tick = START_TICK + (uint32_t)((now_ms - ranks->epoch_ms) >> 4);
    if ((int32_t)(tick - ranks->now) > 0) ranks->now = tick; /* a clock that went back stands still */
    kv_cohorts_set_now(&ranks->cohorts, ranks->now);
    if ((ranks->held[0] || ranks->held[1]) && (int32_t)(ranks->now - ranks->held_until) >= 0) release_held(index);
}

/* Time alone teaches once a tick, so that what is learned follows from events and their times, not from how often
 * somebody happens to come by. */
static void gittins_tend(kv_index *index) {
    const uint32_t before = ranks_of(index)->now;
    set_now(index);
    if (ranks_of(index)->now != before) kv_cohorts_tend(&ranks_of(index)->cohorts);
}

/* ---- what is known ---- */

static uint64_t fingerprint_of(const kv_index *index, uint32_t id) {
    uint8_t key[KV_KEY_NBYTES];
    kv_record_key(&index->records[id], key);
    return kv_home(index, key);
}

/* A request under way: the cohort that blocks of the last class went into. */
typedef struct {
    kv_traits traits;
    uint32_t cohort, class_number;
    uint8_t lane;
    int is_lookup;
} kv_run;

static uint8_t lane_of(const kv_hint *hint) { return hint->priority < 0 ? 0 : hint->priority > 0 ? 2 : 1; }

static kv_run run_of(const kv_traits *traits, int is_lookup) {
    return (kv_run){.traits = *traits, .class_number = UINT32_MAX, .lane = lane_of(&traits->hint), .is_lookup = is_lookup};
}

static void join_run(kv_ranks *ranks, kv_run *run, uint32_t number) {
    kv_known *block = known_at(ranks, number);
    const uint32_t class_number = kv_survival_class(&ranks->cohorts.survival, &run->traits, block->freq);
    if (class_number != run->class_number) {
        run->class_number = class_number;
        run->cohort = kv_cohort_begin(&ranks->cohorts, ranks->now, (uint16_t)class_number, run->lane);
        ranks->cohorts.cohorts[run->cohort].is_lookup = run->is_lookup & 1;
    }
    block->cohort = run->cohort;
    kv_cohort_join(&ranks->cohorts, run->cohort);
}

/* A stored block that has no known one yet: it was reserved just now, or came with a far tier. */
static void attach(kv_index *index, uint32_t id) {
    kv_ranks *ranks = index->ranks;
    if (ranks->known_of[id] || is_listed(&index->records[id])) return; /* a listed one stays where it is */
    const uint64_t fingerprint = fingerprint_of(index, id);
    uint32_t number = kv_known_find(&ranks->knowledge, fingerprint);
    if (number == 0) {
        const kv_traits nothing = {KV_PACE_UNKNOWN, 1, {.output_tokens = UINT32_MAX}};
        kv_run run = run_of(&nothing, 0);
        number = kv_gittins_remember(ranks, fingerprint);
        if (number == 0) return;
        known_at(ranks, number)->freq = 1;
        join_run(ranks, &run, number);
    }
    if (known_at(ranks, number)->is_stored) return; /* keys are a caller's: two may have the same fingerprint */
    known_at(ranks, number)->is_stored = 1;
    ranks->known_of[id] = number;
    ranks->num_attached++;
}

/* Time between the requests of a conversation: what was known at its end, and the gap since then. */
static uint16_t pace_after(const kv_ranks *ranks, const kv_known *last) {
    uint32_t gap;
    if (last->ended) gap = ranks->now - last->ended;
    else if (last->kids < 2) gap = age_of(ranks, last->cohort);
    else return last->pace_ds;
    const float gap_ds = (float)gap * (10 / KV_TICKS_PER_S);
    const float pace = last->pace_ds == KV_PACE_UNKNOWN ? gap_ds : 0.6f * last->pace_ds + 0.4f * gap_ds;
    return pace < KV_PACE_UNKNOWN - 1 ? (uint16_t)pace : KV_PACE_UNKNOWN - 1;
}

static int is_lookup(const kv_ranks *ranks, uint32_t cohort, uint32_t ticks) {
    return ranks->cohorts.cohorts[cohort].is_lookup && age_of(ranks, cohort) <= ticks;
}

/* Is this the next piece of a prompt that was being put just now? Its lookup came before the first piece, and would have
 * been seen if it had found anything. */
static int is_next_piece(const kv_ranks *ranks, const uint32_t *known, uint32_t num_known, uint32_t num_keys) {
    if (num_known == 0 || num_known == num_keys) return 0; /* the same again is no piece, but missed as a whole */
    const kv_known *last = known_at(ranks, known[num_known - 1]);
    return last->ended && ranks->now - last->ended <= NEXT_TICKS && ranks->now != last->ended &&
           !ranks->cohorts.cohorts[last->cohort].is_lookup &&
           !ranks->cohorts.cohorts[known_at(ranks, known[0])->cohort].is_lookup;
}

/* Move a known block into the cohort of this request; `id` where it is stored. */
static void move(kv_index *index, kv_run *run, uint32_t number, uint32_t id, enum kv_parting how) {
    kv_ranks *ranks = index->ranks;
    kv_known *block = known_at(ranks, number);
    const int listed = id != KV_NONE && is_listed(&index->records[id]);
    if (listed) unlist(index, id);
    const uint32_t left = block->cohort;
    if (how == KV_PART_ASKED) kv_duel_count(&ranks->duel, ranks->cohorts.cohorts[left].bin, block->is_stored);
    if (how == KV_PART_ASKED && block->freq < FREQ_MAX) block->freq++;
    join_run(ranks, run, number);
    kv_cohort_part(&ranks->cohorts, left, how);
    if (listed) list(index, id);
}

/* ---- events ---- */

static void gittins_touched(kv_index *index, uint32_t deepest) {
    kv_ranks *ranks = index->ranks;
    const uint32_t number = ++index->clock;
    set_now(index);
    kv_cohorts_tend(&ranks->cohorts);
    kv_duel_begin(&ranks->duel, ranks->cohorts.population, ranks->num_attached);
    attach(index, deepest);
    kv_known *last = known_at(ranks, ranks->known_of[deepest]);
    const int again = ranks->known_of[deepest] && is_lookup(ranks, last->cohort, RETRY_TICKS);
    if (ranks->known_of[deepest] && !again) last->pace_ds = pace_after(ranks, last);
    const kv_traits traits = {ranks->known_of[deepest] ? last->pace_ds : KV_PACE_UNKNOWN, 0,
                              {.output_tokens = UINT32_MAX}};
    kv_run run = run_of(&traits, 1);
    for (uint32_t id = deepest; id != KV_NONE; id = index->records[id].parent) {
        index->links[id].access = number;
        const uint32_t known = ranks->known_of[id];
        if (known && !is_lookup(ranks, known_at(ranks, known)->cohort, RETRY_TICKS))
            move(index, &run, known, id, KV_PART_ASKED);
    }
    kv_survival_be_cautious(&ranks->cohorts.survival, kv_duel_end(&ranks->duel, ranks->now, ranks->cohorts.survival.share));
}

static uint32_t *scratch_of(kv_ranks *ranks, uint32_t num) {
    if (num > ranks->scratch_max) {
        uint32_t *grown = realloc(ranks->scratch, (size_t)num * 2 * sizeof(uint32_t));
        if (grown == NULL) return NULL;
        ranks->scratch = grown;
        ranks->scratch_max = num * 2;
    }
    return ranks->scratch;
}

/* Of PREFETCH positions from `first` on, what finding them will need. */
static void prefetch_known(const kv_index *index, const kv_request *request, uint32_t first) {
    const kv_ranks *ranks = index->ranks;
    uint64_t homes[PREFETCH];
    uint32_t num = 0;
    for (uint32_t i = first; i < first + PREFETCH && i < request->num_keys; i++) {
        const uint32_t id = request->ids[i];
        if (id != KV_NONE && ranks->known_of[id] != 0) continue;
        homes[num] = kv_home(index, request->keys + (size_t)i * KV_KEY_NBYTES);
        kv_known_prefetch(&ranks->knowledge, homes[num++]);
    }
    for (uint32_t i = 0; i < num; i++) kv_known_prefetch_first(&ranks->knowledge, homes[i]);
}

/* The known blocks of a request; returns how many lead without a gap. */
static uint32_t find_known(const kv_index *index, const kv_request *request, uint32_t *known) {
    const kv_ranks *ranks = index->ranks;
    uint32_t num_leading = 0;
    for (uint32_t i = 0; i < request->num_keys; i++) {
        if (i % PREFETCH == 0) prefetch_known(index, request, i);
        const uint32_t id = request->ids[i];
        known[i] = id != KV_NONE ? ranks->known_of[id] : 0;
        if (known[i] == 0)
            known[i] = kv_known_find(&ranks->knowledge, kv_home(index, request->keys + (size_t)i * KV_KEY_NBYTES));
        if (known[i] && num_leading == i) num_leading = i + 1;
    }
    return num_leading;
}

static void gittins_asked(kv_index *index, const kv_request *request) {
    kv_ranks *ranks = index->ranks;
    uint32_t *known = scratch_of(ranks, request->num_keys);
    if (known == NULL || request->num_keys == 0) return;
    set_now(index);
    kv_cohorts_tend(&ranks->cohorts);
    kv_duel_begin(&ranks->duel, ranks->cohorts.population, ranks->num_attached);
    const uint32_t num_known = find_known(index, request, known);
    const int is_piece = is_next_piece(ranks, known, num_known, request->num_keys);
    kv_traits traits = {KV_PACE_UNKNOWN, request->num_keys - num_known, request->hint};
    if (num_known > 0) {
        const kv_known *last = known_at(ranks, known[num_known - 1]);
        const int is_told = is_piece || is_lookup(ranks, last->cohort, SAME_TICKS);
        traits.pace_ds = is_told ? last->pace_ds : pace_after(ranks, last);
    }
    for (uint32_t i = num_known; is_piece && i-- > 0 && known_at(ranks, known[i])->freq == 1;) traits.num_new++;
    kv_run run = run_of(&traits, 0);
    uint32_t above = 0;
    for (uint32_t i = 0; i < request->num_keys; i++) {
        uint32_t number = known[i];
        const uint64_t home = kv_home(index, request->keys + (size_t)i * KV_KEY_NBYTES);
        if (number && known_at(ranks, number)->fingerprint == home) {
            const int is_same = is_piece || is_lookup(ranks, known_at(ranks, number)->cohort, SAME_TICKS);
            const int is_stored = request->ids[i] != KV_NONE && ranks->known_of[request->ids[i]] == number;
            if (known_at(ranks, number)->is_stored && !is_stored) continue; /* another key's, of the same fingerprint */
            move(index, &run, number, is_stored ? request->ids[i] : KV_NONE, is_same ? KV_PART_MOVED : KV_PART_ASKED);
        } else {
            /* A chain that names a block twice finds the one that it has just added. */
            number = kv_known_find(&ranks->knowledge, home);
            if (number == 0) {
                number = kv_gittins_remember(ranks, home);
                if (number == 0) continue;
                known_at(ranks, number)->freq = 1;
                join_run(ranks, &run, number);
                if (above && known_at(ranks, above)->kids < 3) known_at(ranks, above)->kids++;
            }
        }
        above = number;
    }
    kv_survival_be_cautious(&ranks->cohorts.survival, kv_duel_end(&ranks->duel, ranks->now, ranks->cohorts.survival.share));
    if (above == 0) return;
    known_at(ranks, above)->ended = ranks->now;
    known_at(ranks, above)->pace_ds = traits.pace_ds;
}

static void gittins_appraise(const kv_index *index, const kv_request *request, uint32_t *levels) {
    const kv_ranks *ranks = index->ranks;
    for (uint32_t i = 0, num = 0; i < request->num_keys; i++) {
        if (request->plan[i] != KV_WANTED) continue;
        const uint32_t number =
            kv_known_find(&ranks->knowledge, kv_home(index, request->keys + (size_t)i * KV_KEY_NBYTES));
        levels[num++] =
            number ? kv_cohort_level(&ranks->cohorts, known_at(ranks, number)->cohort) : KV_LEVEL_ANY;
    }
}

static void gittins_covered(kv_index *index, uint32_t deepest) {
    const uint32_t number = ++index->clock;
    for (uint32_t id = deepest; id != KV_NONE; id = index->records[id].parent) {
        index->links[id].access = number;
        attach(index, id);
        const int leaf = is_leaf(index, id), listed = is_listed(&index->records[id]);
        if (listed && !leaf) unlist(index, id);
        if (!listed && leaf) list(index, id);
    }
}

static void gittins_spared(kv_index *index, uint32_t id) {
    kv_ranks *ranks = index->ranks;
    const int tier = kv_is_near(&index->records[id]) ? KV_NEAR : KV_FAR;
    unlist(index, id);
    index->links[id].access = ++index->clock;
    if (!ranks->held[0] && !ranks->held[1]) ranks->held_until = ranks->now + HELD_TICKS;
    index->links[id].prev = KV_NONE;
    index->links[id].next = ranks->held[tier] ? ranks->held[tier] - 1 : KV_NONE;
    if (ranks->held[tier]) index->links[ranks->held[tier] - 1].prev = id;
    ranks->held[tier] = id + 1;
    index->records[id].flags |= (tier == KV_NEAR ? KV_LISTED_NEAR : KV_LISTED_FAR) | KV_HELD;
}

static void gittins_demoted(kv_index *index, uint32_t id) {
    unlist(index, id);
    attach(index, id);
    list_if_leaf(index, id);
}

static void gittins_leave(kv_index *index, uint32_t id, uint32_t heir) {
    if (heir != KV_NONE) list(index, heir); /* first: its cohort keeps its place in the cell */
    unlist(index, id);
}

static void gittins_gone(kv_index *index, uint32_t id) {
    kv_ranks *ranks = index->ranks;
    const uint32_t number = ranks->known_of[id];
    ranks->known_of[id] = 0;
    if (number == 0) return;
    known_at(ranks, number)->is_stored = 0;
    ranks->num_attached--;
}

uint32_t kv_gittins_coldest(const kv_index *index, enum kv_tier tier, uint32_t after) {
    const kv_ranks *ranks = ranks_of(index);
    const uint32_t held = ranks->held[tier] ? ranks->held[tier] - 1 : KV_NONE;
    uint32_t next;
    if (after == KV_NONE) next = kv_cohorts_first(&ranks->cohorts, tier);
    else if (index->records[after].flags & KV_HELD) return index->links[after].next;
    else next = kv_cohorts_next(&ranks->cohorts, tier, cohort_of(ranks, after), after);
    return next == KV_NONE ? held : next;
}

uint32_t kv_gittins_level(const kv_index *index, uint32_t id) {
    const kv_ranks *ranks = ranks_of(index);
    return index->records[id].flags & KV_HELD ? KV_LEVELS : kv_cohort_level(&ranks->cohorts, cohort_of(ranks, id));
}

static int gittins_has_learned(const kv_index *index) {
    const kv_survival *survival = &ranks_of(index)->cohorts.survival;
    return !survival->is_blind && !survival->is_cautious;
}

static void gittins_hint(kv_index *index, uint32_t deepest, const kv_hint *hint) {
    kv_ranks *ranks = index->ranks;
    set_now(index);
    const uint32_t time = ranks->cohorts.cohorts[cohort_of(ranks, deepest)].time;
    uint32_t from = 0, to = 0; /* blocks of one cohort stay together */
    for (uint32_t id = deepest; id != KV_NONE; id = index->records[id].parent) {
        const uint32_t known = ranks->known_of[id];
        if (!known || ranks->cohorts.cohorts[known_at(ranks, known)->cohort].time != time) return;
        const int listed = is_listed(&index->records[id]);
        if (listed) unlist(index, id);
        if (known_at(ranks, known)->cohort != from) {
            from = known_at(ranks, known)->cohort;
            const uint16_t class_number = ranks->cohorts.cohorts[from].class_number;
            const uint16_t hinted = kv_survival_hinted(&ranks->cohorts.survival, class_number, hint);
            to = kv_cohort_begin(&ranks->cohorts, time, hinted, lane_of(hint));
        }
        known_at(ranks, known)->cohort = to;
        kv_cohort_join(&ranks->cohorts, to);
        kv_cohort_part(&ranks->cohorts, from, KV_PART_MOVED);
        if (listed) list(index, id);
    }
}

/* Blocks of a request are of few cohorts, one behind the other. */
typedef struct {
    uint32_t cohort;
    float chance;
} kv_guess;

static float chance_of(const kv_ranks *ranks, uint32_t number, uint32_t within_s, kv_guess *latest) {
    if (number == latest->cohort) return latest->chance;
    const kv_cohort *cohort = &ranks->cohorts.cohorts[number];
    *latest = (kv_guess){
        number, kv_survival_chance(&ranks->cohorts.survival, cohort->class_number, cohort->bin, within_s)};
    return latest->chance;
}

static void gittins_chances(const kv_index *index, const uint32_t *ids, uint32_t num_ids, uint32_t within_s,
                            float *chances) {
    const kv_ranks *ranks = ranks_of(index);
    kv_guess latest = {0};
    for (uint32_t i = 0; i < num_ids; i++) chances[i] = chance_of(ranks, cohort_of(ranks, ids[i]), within_s, &latest);
}

static void gittins_wanted_chances(const kv_index *index, const kv_request *request, uint32_t within_s,
                                   float *chances) {
    const kv_ranks *ranks = ranks_of(index);
    kv_guess latest = {0};
    for (uint32_t i = 0, num = 0; i < request->num_keys; i++) {
        if (request->plan[i] != KV_WANTED) continue;
        const uint32_t number =
            kv_known_find(&ranks->knowledge, kv_home(index, request->keys + (size_t)i * KV_KEY_NBYTES));
        chances[num++] = number ? chance_of(ranks, known_at(ranks, number)->cohort, within_s, &latest) : 1;
    }
}

static void gittins_sampled(kv_index *index, float share) { index->ranks->cohorts.survival.share = share; }

const kv_policy kv_gittins = {
    .name = "gittins",
    .create = gittins_create,
    .destroy = gittins_destroy,
    .touched = gittins_touched,
    .covered = gittins_covered,
    .spared = gittins_spared,
    .demoted = gittins_demoted,
    .leave = gittins_leave,
    .bared = list,
    .coldest = kv_gittins_coldest,
    .check = kv_gittins_check,
    .asked = gittins_asked,
    .appraise = gittins_appraise,
    .level = kv_gittins_level,
    .has_learned = gittins_has_learned,
    .gone = gittins_gone,
    .hint = gittins_hint,
    .tend = gittins_tend,
    .chances = gittins_chances,
    .wanted_chances = gittins_wanted_chances,
    .describe = kv_gittins_describe,
    .sampled = gittins_sampled,
};
