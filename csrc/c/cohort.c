#include "cohort.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define MOVES_MAX 1024 /* cohorts that get older in one call: some ten microseconds */

static void *pages_of(size_t nbytes) {
    void *pages = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

static size_t cohorts_nbytes(const kv_cohorts *cohorts) { return ((size_t)cohorts->cohorts_max + 1) * sizeof(kv_cohort); }

int kv_cohorts_create(kv_cohorts *cohorts, uint32_t cohorts_max, kv_links *links) {
    memset(cohorts, 0, sizeof *cohorts);
    cohorts->links = links;
    cohorts->cohorts_max = cohorts_max;
    cohorts->cohorts = pages_of(cohorts_nbytes(cohorts));
    int made = cohorts->cohorts != NULL && kv_survival_create(&cohorts->survival) == 0;
    for (int tier = 0; tier < 2; tier++) {
        cohorts->cells[tier] = pages_of(KV_CELLS * sizeof(kv_cell));
        cohorts->levels[tier] = pages_of(KV_LEVELS * sizeof *cohorts->levels[tier]);
        made &= cohorts->cells[tier] != NULL && cohorts->levels[tier] != NULL;
    }
    if (made) return 0;
    kv_cohorts_destroy(cohorts);
    return -ENOMEM;
}

void kv_cohorts_destroy(kv_cohorts *cohorts) {
    if (cohorts->cohorts) munmap(cohorts->cohorts, cohorts_nbytes(cohorts));
    for (int tier = 0; tier < 2; tier++) {
        if (cohorts->cells[tier]) munmap(cohorts->cells[tier], KV_CELLS * sizeof(kv_cell));
        if (cohorts->levels[tier]) munmap(cohorts->levels[tier], KV_LEVELS * sizeof *cohorts->levels[tier]);
    }
    kv_survival_destroy(&cohorts->survival);
    memset(cohorts, 0, sizeof *cohorts);
}

/* ---- cells by level ---- */

static uint32_t cell_of(uint32_t lane, uint32_t class_number, uint32_t bin) {
    return (lane * KV_CLASSES + class_number) * KV_BINS + bin;
}

static uint32_t level_of(const kv_cohorts *cohorts, uint32_t cell) {
    uint32_t bin = cell % KV_BINS, class_number = cell / KV_BINS % KV_CLASSES, lane = cell / KV_BINS / KV_CLASSES;
    int level = cohorts->survival.curves[class_number].level[bin] + ((int)lane - 1) * KV_LANE_LEVELS;
    return level < 0 ? 0 : level >= KV_LEVELS ? KV_LEVELS - 1 : (uint32_t)level;
}

static void raise_cell(kv_cohorts *cohorts, int tier, uint32_t cell) {
    const uint32_t level = level_of(cohorts, cell);
    uint32_t *ends = cohorts->levels[tier][level]; /* whoever came first goes first */
    kv_cell *cells = cohorts->cells[tier];
    cells[cell].above = 0;
    cells[cell].below = ends[1];
    if (ends[1]) cells[ends[1] - 1].above = cell + 1;
    else ends[0] = cell + 1;
    ends[1] = cell + 1;
    cohorts->bits[tier][level / 64] |= 1ULL << level % 64;
    cohorts->words[tier] |= 1ULL << level / 64;
}

static void lower_cell(kv_cohorts *cohorts, int tier, uint32_t cell) {
    const uint32_t level = level_of(cohorts, cell);
    kv_cell *cells = cohorts->cells[tier];
    if (cells[cell].below) cells[cells[cell].below - 1].above = cells[cell].above;
    else cohorts->levels[tier][level][0] = cells[cell].above;
    if (cells[cell].above) cells[cells[cell].above - 1].below = cells[cell].below;
    else cohorts->levels[tier][level][1] = cells[cell].below;
    if (cohorts->levels[tier][level][0]) return;
    cohorts->bits[tier][level / 64] &= ~(1ULL << level % 64);
    if (cohorts->bits[tier][level / 64] == 0) cohorts->words[tier] &= ~(1ULL << level / 64);
}

static uint32_t own_cell(const kv_cohort *cohort) { return cell_of(cohort->lane, cohort->class_number, cohort->bin); }

/* Behind those that came to the cell before: they are the older ones. */
static void enter_cell(kv_cohorts *cohorts, int tier, uint32_t number) {
    kv_cohort *cohort = &cohorts->cohorts[number];
    const uint32_t cell = own_cell(cohort);
    kv_cell *taken = &cohorts->cells[tier][cell];
    cohort->behind[tier] = 0;
    cohort->before[tier] = taken->last;
    if (taken->last) cohorts->cohorts[taken->last].behind[tier] = number;
    else taken->first = number;
    taken->last = number;
    if (taken->first == number) raise_cell(cohorts, tier, cell);
}

static void leave_cell(kv_cohorts *cohorts, int tier, uint32_t number) {
    const kv_cohort *cohort = &cohorts->cohorts[number];
    const uint32_t cell = own_cell(cohort);
    kv_cell *left = &cohorts->cells[tier][cell];
    if (cohort->before[tier]) cohorts->cohorts[cohort->before[tier]].behind[tier] = cohort->behind[tier];
    else left->first = cohort->behind[tier];
    if (cohort->behind[tier]) cohorts->cohorts[cohort->behind[tier]].before[tier] = cohort->before[tier];
    else left->last = cohort->before[tier];
    if (left->first == 0) lower_cell(cohorts, tier, cell);
}

/* ---- ages ---- */

static void enter_bin(kv_cohorts *cohorts, uint32_t number) {
    kv_cohort *cohort = &cohorts->cohorts[number];
    uint32_t *newest = &cohorts->newest[cohort->bin];
    cohort->newer = 0;
    cohort->older = *newest;
    if (*newest) cohorts->cohorts[*newest].newer = number;
    else cohorts->oldest[cohort->bin] = number, cohorts->oldest_time[cohort->bin] = cohort->time;
    *newest = number;
    cohorts->survival.curves[cohort->class_number].waiting[cohort->bin] += cohort->num_blocks;
    cohorts->population[cohort->bin] += cohort->num_blocks;
}

static void leave_bin(kv_cohorts *cohorts, uint32_t number) {
    const kv_cohort *cohort = &cohorts->cohorts[number];
    if (cohort->older) cohorts->cohorts[cohort->older].newer = cohort->newer;
    else cohorts->oldest[cohort->bin] = cohort->newer;
    if (cohort->newer) {
        kv_cohort *newer = &cohorts->cohorts[cohort->newer];
        newer->older = cohort->older;
        if (!cohort->older) cohorts->oldest_time[cohort->bin] = newer->time;
    } else {
        cohorts->newest[cohort->bin] = cohort->older;
    }
    cohorts->survival.curves[cohort->class_number].waiting[cohort->bin] -= cohort->num_blocks;
    cohorts->population[cohort->bin] -= cohort->num_blocks;
}

static void grow_older(kv_cohorts *cohorts, uint32_t number) {
    kv_cohort *cohort = &cohorts->cohorts[number];
    for (int tier = 0; tier < 2; tier++)
        if (cohort->leaf[tier]) leave_cell(cohorts, tier, number);
    leave_bin(cohorts, number);
    cohort->bin++;
    enter_bin(cohorts, number);
    for (int tier = 0; tier < 2; tier++)
        if (cohort->leaf[tier]) enter_cell(cohorts, tier, number);
}

void kv_cohorts_set_now(kv_cohorts *cohorts, uint32_t tick) {
    uint32_t moves = 0;
    kv_survival_set_now(&cohorts->survival, tick);
    for (uint32_t bin = KV_BINS - 1; bin-- > 0;) { /* the oldest first, or a jump of the clock would move one twice */
        while (cohorts->oldest[bin] != 0 && tick - cohorts->oldest_time[bin] >= kv_bin_edge(bin + 1)) {
            const uint32_t oldest = cohorts->oldest[bin];
            if (moves++ == MOVES_MAX) return;
            grow_older(cohorts, oldest);
        }
    }
}

/* ---- cohorts ---- */

uint32_t kv_cohort_begin(kv_cohorts *cohorts, uint32_t tick, uint16_t class_number, uint8_t lane) {
    uint32_t number = cohorts->unused;
    if (number) cohorts->unused = cohorts->cohorts[number].newer;
    else number = ++cohorts->num_cohorts;
    kv_survival_use(&cohorts->survival, class_number);
    cohorts->cohorts[number] = (kv_cohort){.time = tick, .class_number = class_number, .lane = lane & 3};
    cohorts->cohorts[number].bin = (uint8_t)kv_bin_of(cohorts->survival.now - tick);
    enter_bin(cohorts, number);
    return number;
}

void kv_cohort_join(kv_cohorts *cohorts, uint32_t number) {
    kv_cohort *cohort = &cohorts->cohorts[number];
    cohort->num_blocks++;
    cohorts->survival.curves[cohort->class_number].waiting[cohort->bin]++;
    cohorts->population[cohort->bin]++;
}

void kv_cohort_part(kv_cohorts *cohorts, uint32_t number, enum kv_parting how) {
    kv_cohort *cohort = &cohorts->cohorts[number];
    cohort->num_blocks--;
    cohorts->survival.curves[cohort->class_number].waiting[cohort->bin]--;
    cohorts->population[cohort->bin]--;
    if (how != KV_PART_MOVED)
        kv_survival_end(&cohorts->survival, cohort->class_number, cohort->bin, how == KV_PART_ASKED);
    if (cohort->num_blocks > 0) return;
    leave_bin(cohorts, number);
    cohort->newer = cohorts->unused;
    cohorts->unused = number;
}

void kv_cohort_list(kv_cohorts *cohorts, uint32_t number, enum kv_tier tier, uint32_t id) {
    kv_cohort *cohort = &cohorts->cohorts[number];
    const uint32_t first = cohort->leaf[tier];
    cohorts->links[id].prev = KV_NONE;
    cohorts->links[id].next = first ? first - 1 : KV_NONE;
    if (first) cohorts->links[first - 1].prev = id;
    cohort->leaf[tier] = id + 1;
    if (!first) enter_cell(cohorts, tier, number);
}

void kv_cohort_unlist(kv_cohorts *cohorts, uint32_t number, enum kv_tier tier, uint32_t id) {
    kv_cohort *cohort = &cohorts->cohorts[number];
    const kv_links *links = &cohorts->links[id];
    if (links->next != KV_NONE) cohorts->links[links->next].prev = links->prev;
    if (links->prev != KV_NONE) cohorts->links[links->prev].next = links->next;
    else cohort->leaf[tier] = links->next == KV_NONE ? 0 : links->next + 1;
    if (cohort->leaf[tier] == 0) leave_cell(cohorts, tier, number);
}

uint32_t kv_cohort_level(const kv_cohorts *cohorts, uint32_t number) {
    return level_of(cohorts, own_cell(&cohorts->cohorts[number]));
}

/* ---- the order ---- */

static uint32_t first_of_cell(const kv_cohorts *cohorts, int tier, uint32_t cell) {
    return cohorts->cohorts[cohorts->cells[tier][cell].first].leaf[tier] - 1;
}

/* The first candidate of a level, or of the levels above it. */
static uint32_t first_from(const kv_cohorts *cohorts, int tier, uint32_t level) {
    if (level >= KV_LEVELS) return KV_NONE;
    uint64_t word = cohorts->bits[tier][level / 64] >> level % 64;
    if (word != 0) {
        level += (uint32_t)__builtin_ctzll(word);
    } else {
        uint64_t rest = level / 64 == 63 ? 0 : cohorts->words[tier] >> (level / 64 + 1);
        if (rest == 0) return KV_NONE;
        uint32_t number = level / 64 + 1 + (uint32_t)__builtin_ctzll(rest);
        level = number * 64 + (uint32_t)__builtin_ctzll(cohorts->bits[tier][number]);
    }
    return first_of_cell(cohorts, tier, cohorts->levels[tier][level][0] - 1);
}

uint32_t kv_cohorts_first(const kv_cohorts *cohorts, enum kv_tier tier) { return first_from(cohorts, tier, 0); }

uint32_t kv_cohorts_next(const kv_cohorts *cohorts, enum kv_tier tier, uint32_t number, uint32_t id) {
    if (cohorts->links[id].next != KV_NONE) return cohorts->links[id].next;
    const kv_cohort *cohort = &cohorts->cohorts[number];
    if (cohort->behind[tier]) return cohorts->cohorts[cohort->behind[tier]].leaf[tier] - 1;
    const uint32_t cell = own_cell(cohort), above = cohorts->cells[tier][cell].above;
    if (above) return first_of_cell(cohorts, tier, above - 1);
    return first_from(cohorts, tier, level_of(cohorts, cell) + 1);
}

void kv_cohorts_tend(kv_cohorts *cohorts) {
    uint16_t classes[KV_STEP_CLASSES], levels[KV_STEP_CLASSES][KV_BINS];
    const uint32_t num = kv_survival_step(&cohorts->survival, classes, levels);
    for (uint32_t i = 0; i < num; i++) {
        uint16_t *level = cohorts->survival.curves[classes[i]].level;
        for (uint32_t bin = 0; bin < KV_BINS; bin++) {
            if (level[bin] == levels[i][bin]) continue;
            uint8_t is_filled[2 * KV_LANES];
            for (uint32_t at = 0; at < 2 * KV_LANES; at++) {
                const uint32_t cell = cell_of(at / 2, classes[i], bin);
                is_filled[at] = cohorts->cells[at % 2][cell].first != 0;
                if (is_filled[at]) lower_cell(cohorts, at % 2, cell);
            }
            level[bin] = levels[i][bin];
            for (uint32_t at = 0; at < 2 * KV_LANES; at++)
                if (is_filled[at]) raise_cell(cohorts, at % 2, cell_of(at / 2, classes[i], bin));
        }
    }
}
