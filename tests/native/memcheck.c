/* Gives a program access to valgrind's memcheck. */
#include <valgrind/memcheck.h>

/* The offset of the first byte that is undefined or inaccessible; -1 for none. */
long first_bad(const char *bytes, unsigned long size) {
    unsigned long bad = VALGRIND_CHECK_MEM_IS_DEFINED(bytes, size);
    return bad ? (long)(bad - (unsigned long)bytes) : -1;
}
void forbid(void *bytes, unsigned long size) { (void)VALGRIND_MAKE_MEM_NOACCESS(bytes, size); }
void forget(void *bytes, unsigned long size) { (void)VALGRIND_MAKE_MEM_UNDEFINED(bytes, size); }
void allow(void *bytes, unsigned long size) { (void)VALGRIND_MAKE_MEM_DEFINED(bytes, size); }
