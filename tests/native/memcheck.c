/* Lets a program ask and tell valgrind's memcheck about memory. */
#include <valgrind/memcheck.h>

/* The first byte that was never given a value or may not be touched, as an offset; -1 for none. */
long first_bad(const char *bytes, unsigned long size) {
    unsigned long bad = VALGRIND_CHECK_MEM_IS_DEFINED(bytes, size);
    return bad ? (long)(bad - (unsigned long)bytes) : -1;
}
void forbid(void *bytes, unsigned long size) { (void)VALGRIND_MAKE_MEM_NOACCESS(bytes, size); }
void forget(void *bytes, unsigned long size) { (void)VALGRIND_MAKE_MEM_UNDEFINED(bytes, size); }
void allow(void *bytes, unsigned long size) { (void)VALGRIND_MAKE_MEM_DEFINED(bytes, size); }
