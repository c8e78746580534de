/* What a caller knows of a request beyond its keys. */
#ifndef KV_HINT_H
#define KV_HINT_H

#include <stdint.h>

enum kv_ending {
    KV_ENDING_UNKNOWN = 0,
    KV_ENDING_TOOL_USE = 1, /* the model called a tool: the prompt comes back, longer, when that is done */
    KV_ENDING_END_TURN = 2, /* it is the user's turn */
    KV_ENDING_SESSION_CLOSED = 3,
};

typedef struct {
    uint8_t ending; /* kv_ending */
    int8_t priority;
    uint16_t zero;
    uint32_t output_tokens; /* UINT32_MAX: not known */
} kv_hint;

#endif
