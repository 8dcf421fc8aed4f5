/* Runs OpenMP's threads that all call back, as a user's library may do. */
#include <omp.h>

/* Calls back with each number below `calls`, from `threads` threads at once; returns how many there
   really were. */
int parallel_callbacks(int threads, int calls, void (*callback)(int)) {
    int there = 0;
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        there = omp_get_num_threads();
/* Dealt out beforehand: on a busy machine the first thread would do all before the next one wakes. */
#pragma omp for schedule(static, 1)
        for (int i = 0; i < calls; i++)
            callback(i);
    }
    return there;
}
