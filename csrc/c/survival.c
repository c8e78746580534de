#include "survival.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>

#define HALF_LIFE_S 3600.0
/* Counts of blocks; of a sample they are as many fewer. */
#define LEAN 1000.0f     /* a class counts for itself as it sees more blocks than this */
#define EVIDENCE 100.0f  /* blocks that were asked for again, all together, before anything is believed */
#define PRIOR 10.0f      /* blocks that the first guess of all hazards counts for */
#define PASS_TICKS 625   /* ten seconds from one pass over the classes to the next */
#define SUM_CLASSES 32   /* per step */
#define WEIGHT_MAX 1e12
#define HAZARD_MIN 1e-7f
#define HAZARD_MAX 0.999f
#define LEVEL_LOWEST 0x30800000u /* 2^-30 hits a second as a float's bits */
#define LEVEL_SHIFT 17           /* 64 levels from one power of two to the next */

static const uint8_t num_values[KV_FEATURES] = {KV_FREQS, KV_ENDINGS, KV_PACES, KV_NEWS, KV_OUTPUTS};

/* Edges of the bins in seconds and ticks, and what a weight loses from one to the next; filled once. */
static float edge_s[KV_BINS + 1], fading[KV_BINS];
static uint32_t edge_ticks[KV_BINS];
/* Hazards before anything was seen: who was used last is asked for first. */
static float guess[KV_BINS];

__attribute__((constructor)) static void fill_bins(void) {
    edge_s[0] = 0;
    for (int bin = 1; bin <= KV_BINS; bin++) edge_s[bin] = (float)pow(1.2, bin - 1);
    for (int bin = 0; bin < KV_BINS; bin++) {
        fading[bin] = (float)exp2(-(edge_s[bin + 1] - edge_s[bin]) / HALF_LIFE_S);
        edge_ticks[bin] = (uint32_t)ceilf(edge_s[bin] * KV_TICKS_PER_S);
        guess[bin] = 1 - powf((1 + edge_s[bin]) / (1 + edge_s[bin + 1]), 0.3f);
    }
}

uint32_t kv_bin_edge(uint32_t bin) { return edge_ticks[bin]; }

uint32_t kv_bin_of(uint32_t age_ticks) {
    uint32_t bin = 0;
    while (bin + 1 < KV_BINS && age_ticks >= edge_ticks[bin + 1]) bin++;
    return bin;
}

int kv_survival_create(kv_survival *survival) {
    memset(survival, 0, sizeof *survival);
    void *pages = mmap(NULL, KV_CLASSES * sizeof(kv_curve), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) return -ENOMEM;
    survival->curves = pages;
    survival->weight = 1;
    survival->share = 1;
    survival->is_blind = 1;
    return 0;
}

void kv_survival_destroy(kv_survival *survival) {
    if (survival->curves) munmap(survival->curves, KV_CLASSES * sizeof(kv_curve));
    survival->curves = NULL;
}

/* ---- classes ---- */

static uint32_t bucket(const uint32_t *limits, uint32_t num_limits, uint32_t value) {
    uint32_t number = 0;
    while (number < num_limits && value >= limits[number]) number++;
    return number;
}

static const uint32_t output_limits[] = {6, 40, 250, 600, 1500};

static uint32_t output_of(const kv_hint *hint) {
    return hint->output_tokens == UINT32_MAX ? KV_OUTPUTS - 1 : bucket(output_limits, 5, hint->output_tokens);
}

uint16_t kv_survival_class(const kv_survival *survival, const kv_traits *traits, uint32_t freq) {
    static const uint32_t freqs[] = {2, 3, 4, 6, 10, 20}, paces_ds[] = {150, 400, 1200}, news[] = {2, 5, 15, 50};
    const kv_hint *hint = &traits->hint;
    if (survival->is_blind) return 0; /* one for all, so that age alone orders them */
    uint32_t pace = traits->pace_ds == KV_PACE_UNKNOWN ? 0 : 1 + bucket(paces_ds, 3, traits->pace_ds);
    uint32_t number = bucket(freqs, 6, freq);
    number = number * KV_ENDINGS + hint->ending % KV_ENDINGS;
    number = number * KV_PACES + pace;
    number = number * KV_NEWS + bucket(news, 4, (uint32_t)lrintf((float)traits->num_new / survival->share));
    return (uint16_t)(number * KV_OUTPUTS + output_of(hint));
}

uint16_t kv_survival_hinted(const kv_survival *survival, uint16_t class_number, const kv_hint *hint) {
    if (survival->is_blind) return class_number; /* as above */
    uint32_t number = class_number / KV_OUTPUTS, output = class_number % KV_OUTPUTS;
    uint32_t news = number % KV_NEWS, pace = number / KV_NEWS % KV_PACES, freq = number / KV_NEWS / KV_PACES / KV_ENDINGS;
    uint32_t ending = number / KV_NEWS / KV_PACES % KV_ENDINGS;
    if (hint->ending != KV_ENDING_UNKNOWN) ending = hint->ending % KV_ENDINGS;
    if (hint->output_tokens != UINT32_MAX) output = output_of(hint);
    return (uint16_t)((((freq * KV_ENDINGS + ending) * KV_PACES + pace) * KV_NEWS + news) * KV_OUTPUTS + output);
}

static void features_of(uint32_t class_number, uint32_t *values) {
    for (int feature = KV_FEATURES - 1; feature >= 0; feature--) {
        values[feature] = class_number % num_values[feature];
        class_number /= num_values[feature];
    }
}

/* ---- what is seen ---- */

void kv_survival_set_now(kv_survival *survival, uint32_t tick) {
    survival->now = tick;
    survival->weight = exp2((tick - survival->weighed) / (HALF_LIFE_S * KV_TICKS_PER_S));
    if (survival->weight < WEIGHT_MAX) return;
    const float shrunk = (float)(1 / survival->weight); /* long ago may become nothing at all */
    for (uint32_t i = 0; i < survival->num_used; i++) {
        kv_curve *curve = &survival->curves[survival->used[i]];
        for (int bin = 0; bin < KV_BINS; bin++) {
            curve->ended[bin] *= shrunk;
            curve->asked[bin] *= shrunk;
        }
    }
    survival->weight = 1;
    survival->weighed = tick;
}

void kv_survival_end(kv_survival *survival, uint16_t class_number, uint32_t bin, int asked) {
    kv_curve *curve = &survival->curves[class_number];
    curve->ended[bin] += (float)survival->weight;
    if (asked) curve->asked[bin] += (float)survival->weight;
}

/* ---- what follows from it ---- */

/* How many blocks began each bin, the long past fading: those that wait or ended there, and those that got further. */
static void count_risk(const kv_survival *survival, const kv_curve *curve, float *risk) {
    const float one = (float)(1 / survival->weight);
    float beyond = 0;
    for (int bin = KV_BINS - 1; bin >= 0; bin--) {
        beyond = beyond * fading[bin] + curve->ended[bin] * one + (float)curve->waiting[bin];
        risk[bin] = beyond;
    }
}

static void sum_class(kv_survival *survival, uint32_t class_number) {
    const kv_curve *curve = &survival->curves[class_number];
    const float one = (float)(1 / survival->weight);
    uint32_t values[KV_FEATURES + 1];
    float risk[KV_BINS];
    count_risk(survival, curve, risk);
    features_of(class_number, values);
    values[KV_FEATURES] = 0; /* all classes together */
    for (int feature = 0; feature <= KV_FEATURES; feature++) {
        float *sum_asked = survival->sum_asked[feature][values[feature]];
        float *sum_risk = survival->sum_risk[feature][values[feature]];
        for (int bin = 0; bin < KV_BINS; bin++) {
            sum_asked[bin] += curve->asked[bin] * one;
            sum_risk[bin] += risk[bin];
        }
    }
}

static float logit(float hazard) {
    hazard = hazard < HAZARD_MIN ? HAZARD_MIN : hazard > HAZARD_MAX ? HAZARD_MAX : hazard;
    return logf(hazard / (1 - hazard));
}

static void lean_on_sums(kv_survival *survival) {
    const float prior = PRIOR * survival->share, lean = LEAN * survival->share;
    float num_asked = 0;
    for (int bin = 0; bin < KV_BINS; bin++) num_asked += survival->sum_asked[KV_FEATURES][0][bin];
    survival->is_blind = num_asked < EVIDENCE * survival->share;
    for (int bin = 0; bin < KV_BINS; bin++) {
        float hazard = (survival->sum_asked[KV_FEATURES][0][bin] + prior * guess[bin]) /
                       (survival->sum_risk[KV_FEATURES][0][bin] + prior);
        survival->pooled[bin] = logit(hazard);
        for (int feature = 0; feature < KV_FEATURES; feature++)
            for (int value = 0; value < num_values[feature]; value++) {
                float of_value = (survival->sum_asked[feature][value][bin] + lean * hazard) /
                                 (survival->sum_risk[feature][value][bin] + lean);
                survival->lean[feature][value][bin] = logit(of_value) - survival->pooled[bin];
            }
    }
}

/* The hazard of each bin: of the blocks that begin it, the share that is asked for in it. */
static void hazards_of(const kv_survival *survival, uint32_t class_number, float *hazards) {
    const kv_curve *curve = &survival->curves[class_number];
    const float one = (float)(1 / survival->weight), lean = LEAN * survival->share;
    uint32_t values[KV_FEATURES];
    float risk[KV_BINS];
    if (survival->is_blind || survival->is_cautious) {
        memcpy(hazards, guess, sizeof guess);
        return;
    }
    features_of(class_number, values);
    count_risk(survival, curve, risk);
    for (int bin = 0; bin < KV_BINS; bin++) {
        float sum = survival->pooled[bin];
        for (int feature = 0; feature < KV_FEATURES; feature++) sum += survival->lean[feature][values[feature]][bin];
        float leant = 1 / (1 + expf(-sum));
        float hazard = (curve->asked[bin] * one + lean * leant) / (risk[bin] + lean);
        hazards[bin] = hazard > HAZARD_MAX ? HAZARD_MAX : hazard;
    }
}

static uint16_t level_of(float value) {
    uint32_t bits;
    if (!(value > 0)) return 0;
    memcpy(&bits, &value, sizeof bits);
    if (bits < LEVEL_LOWEST) return 0;
    uint32_t level = (bits - LEVEL_LOWEST) >> LEVEL_SHIFT;
    return (uint16_t)(level < KV_LEVELS ? level : KV_LEVELS - 1);
}

float kv_level_value(uint32_t level) {
    uint32_t bits = LEVEL_LOWEST + (level << LEVEL_SHIFT);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* From each bin on, the best ratio of hits to block-seconds that giving up at the end of some later bin leaves. Right
 * to left: a run of bins takes the run behind it in as long as that raises its ratio. */
static void index_of(const float *hazards, uint16_t *levels) {
    float hits[KV_BINS], seconds[KV_BINS], left[KV_BINS];
    int num_runs = 0;
    for (int bin = KV_BINS - 1; bin >= 0; bin--) {
        float hit = hazards[bin], stay = 1 - hit;
        float width = bin < KV_BINS - 1 ? edge_s[bin + 1] - edge_s[bin] : edge_s[bin];
        float second = width * (1 - hit / 2);
        while (num_runs > 0 && hits[num_runs - 1] * second > hit * seconds[num_runs - 1]) {
            num_runs--;
            hit += stay * hits[num_runs];
            second += stay * seconds[num_runs];
            stay *= left[num_runs];
        }
        hits[num_runs] = hit;
        seconds[num_runs] = second;
        left[num_runs++] = stay;
        levels[bin] = level_of(hit / second);
    }
}

void kv_survival_use(kv_survival *survival, uint16_t class_number) {
    if (survival->is_used[class_number]) return;
    float hazards[KV_BINS];
    survival->is_used[class_number] = 1;
    survival->used[survival->num_used++] = class_number;
    hazards_of(survival, class_number, hazards);
    index_of(hazards, survival->curves[class_number].level);
}

static void begin_pass(kv_survival *survival) {
    memset(survival->sum_asked, 0, sizeof survival->sum_asked);
    memset(survival->sum_risk, 0, sizeof survival->sum_risk);
    survival->next_pass = survival->now + PASS_TICKS;
    survival->num_pass = survival->num_used;
    survival->at = 0;
    survival->pass = KV_PASS_SUM;
}

uint32_t kv_survival_step(kv_survival *survival, uint16_t *classes, uint16_t (*levels)[KV_BINS]) {
    if (survival->pass == KV_PASS_REST) {
        if ((int32_t)(survival->now - survival->next_pass) < 0) return 0;
        begin_pass(survival);
    }
    if (survival->pass == KV_PASS_SUM) {
        for (int i = 0; i < SUM_CLASSES && survival->at < survival->num_pass; i++)
            sum_class(survival, survival->used[survival->at++]);
        if (survival->at < survival->num_pass) return 0;
        lean_on_sums(survival);
        survival->at = 0;
        survival->pass = KV_PASS_CURVES;
        return 0;
    }
    uint32_t num = 0;
    for (; num < KV_STEP_CLASSES && survival->at < survival->num_pass; num++) {
        float hazards[KV_BINS];
        classes[num] = survival->used[survival->at++];
        hazards_of(survival, classes[num], hazards);
        index_of(hazards, levels[num]);
    }
    if (survival->at == survival->num_pass) survival->pass = KV_PASS_REST;
    return num;
}

void kv_survival_be_cautious(kv_survival *survival, int is_cautious) {
    if (survival->is_cautious == is_cautious) return;
    survival->is_cautious = is_cautious;
    survival->pass = KV_PASS_CURVES;
    survival->num_pass = survival->num_used;
    survival->at = 0;
}

float kv_survival_chance(const kv_survival *survival, uint16_t class_number, uint32_t bin, uint32_t within_s) {
    float hazards[KV_BINS], unasked = 1, until_s = edge_s[bin] + (float)within_s;
    hazards_of(survival, class_number, hazards);
    for (; bin < KV_BINS && edge_s[bin] < until_s; bin++) unasked *= 1 - hazards[bin];
    return 1 - unasked;
}
