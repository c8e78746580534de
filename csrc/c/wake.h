/* A thread that others wait for, awake for microseconds at a time. */
#ifndef KV_WAKE_H
#define KV_WAKE_H

/* Ask the scheduler for short turns, so that this thread runs soon after it is woken even where another one computes: on
 * Linux 6.12 and later, whoever asks for short turns goes before one in the midst of a long turn. No right is needed and
 * no more than this thread's share of the processor is taken. 0, or -errno; elsewhere it changes nothing. */
int kv_wake_soon(void);

#endif
