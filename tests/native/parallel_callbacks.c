/* Calls back from OpenMP's threads, as a user's library may do. */
#include <omp.h>

/* Calls back with each number below `calls`, from `threads` threads at once; returns the actual
   number of threads. */
int parallel_callbacks(int threads, int calls, void (*callback)(int)) {
    int there = 0;
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        there = omp_get_num_threads();
/* Static, since on a busy machine the first thread would do all work before the others start. */
#pragma omp for schedule(static, 1)
        for (int i = 0; i < calls; i++)
            callback(i);
    }
    return there;
}
