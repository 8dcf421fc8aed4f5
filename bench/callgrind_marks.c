/* Owns the way to tell callgrind, from Python, when to start counting and when to write a count. */
#include <valgrind/callgrind.h>

void start(void) { CALLGRIND_START_INSTRUMENTATION; }

void zero(void) { CALLGRIND_ZERO_STATS; }

void dump(const char *label) { CALLGRIND_DUMP_STATS_AT(label); }
