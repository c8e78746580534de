/* What survival.c says of made-up observations, in numbers that the test works out for itself.
 *
 * hazards SEED: random observations of three classes; prints a row for each bin of each.
 */
#include <stdio.h>
#include <stdlib.h>

#include "survival.c" /* for hazards_of, which is nobody else's business */

static uint32_t next_random(uint32_t *state) { return *state = *state * 1664525u + 1013904223u; }

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    uint32_t state = (uint32_t)strtoul(argv[1], NULL, 10);
    kv_survival survival;
    if (kv_survival_create(&survival) < 0) return 3;
    survival.is_blind = 0;
    uint16_t classes[3] = {0, 700, 4899};
    for (int i = 0; i < 3; i++) {
        kv_survival_use(&survival, classes[i]);
        kv_curve *curve = &survival.curves[classes[i]];
        for (int bin = 0; bin < KV_BINS; bin++) {
            curve->waiting[bin] = next_random(&state) >> 20;
            for (uint32_t n = next_random(&state) >> 22; n-- > 0;)
                kv_survival_end(&survival, classes[i], (uint32_t)bin, next_random(&state) >> 31);
        }
    }
    uint16_t stepped[KV_STEP_CLASSES], levels[KV_STEP_CLASSES][KV_BINS];
    kv_survival_set_now(&survival, 1000);
    for (uint32_t num; (num = kv_survival_step(&survival, stepped, levels)) != 3;)
        if (num != 0) return 4;
    for (int i = 0; i < 3; i++) {
        const kv_curve *curve = &survival.curves[stepped[i]];
        float hazards[KV_BINS];
        hazards_of(&survival, stepped[i], hazards);
        for (int bin = 0; bin < KV_BINS; bin++)
            printf("%u %d %.9g %u %.9g %.9g %.9g %.9g %.9g %.9g\n", stepped[i], bin, (double)edge_s[bin],
                   curve->waiting[bin], curve->ended[bin] / survival.weight, curve->asked[bin] / survival.weight,
                   (double)hazards[bin], (double)kv_level_value(levels[i][bin]),
                   (double)kv_level_value(levels[i][bin] + 1u),
                   (double)kv_survival_chance(&survival, stepped[i], (uint32_t)bin, 1800));
    }
    kv_survival_destroy(&survival);
    return 0;
}
