/* Stresses the thread pool under ThreadSanitizer: threads must do each item of each job once, and
   the caller must see the results after the job. */
#include "pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if !defined(_WIN32)
#include <sys/wait.h>
#endif

#define ITEMS 700
#define CALLERS 4
#define MOST_THREADS 9

typedef struct {
    int done[ITEMS]; /* written without a lock, as the library's arrays are */
} job;

static void task(void *context, int64_t begin, int64_t end) {
    job *work = context;
    for (int64_t i = begin; i < end; i++)
        work->done[i]++;
}

static void run_jobs(int jobs, unsigned variety) {
    job work;
    for (int n = 0; n < jobs; n++) {
        int64_t items = 1 + (n * 37 + variety * 101) % ITEMS;
        int64_t grain = 1 + (n + variety) % 50;
        int threads = 1 + (n * 7 + variety) % MOST_THREADS;
        memset(&work, 0, sizeof work);
        pool_run(task, &work, items, grain, threads);
        for (int64_t i = 0; i < ITEMS; i++)
            if (work.done[i] != (i < items)) {
                fprintf(stderr, "item %d of %d was done %d times\n", (int)i, (int)items,
                        work.done[i]);
                _exit(3);
            }
    }
}

/* Whether two threads work on one job: its two items wait for each other. */
static void meet(void *context, int64_t begin, int64_t end) {
    atomic_int *there = context;
    atomic_fetch_add(there, (int)(end - begin));
    for (int wait = 0; wait < 20000 && atomic_load(there) < 2; wait++)
        usleep(1000);
    if (end - begin == 2 || atomic_load(there) < 2)
        _exit(8);
}

static void run_shared_job(void) {
    atomic_int there = 0;
    pool_run(meet, &there, 2, 1, 2);
}

static void *caller(void *number) {
    run_jobs(400, (unsigned)(intptr_t)number);
    return 0;
}

static void *endless_caller(void *number) {
    for (;;)
        run_jobs(100, (unsigned)(intptr_t)number);
    return 0;
}

static void start(pthread_t *threads, void *(*function)(void *)) {
    for (intptr_t i = 0; i < CALLERS; i++)
        if (pthread_create(&threads[i], 0, function, (void *)i) != 0)
            _exit(4);
}

static void many_callers(void) {
    pthread_t threads[CALLERS];
    start(threads, caller);
    run_jobs(400, CALLERS);
    for (int i = 0; i < CALLERS; i++)
        pthread_join(threads[i], 0);
}

/* Sleeping workers must wake up, and late workers must find the job closed. */
static void pauses(void) {
    for (unsigned i = 0; i < 60; i++) {
        usleep(i % 3 * 700);
        run_jobs(3, i);
    }
}

#if !defined(_WIN32)
/* A child has no workers of its parent. The parent may fork while jobs run. All workers start
   before: a thread that starts locks ThreadSanitizer's allocator, which a child that is forked at
   that moment would find locked for ever. */
static void forks(int while_busy) {
    pthread_t threads[CALLERS];
    job work = {{0}};
    pool_run(task, &work, ITEMS, 1, MOST_THREADS);
    run_shared_job();
    if (while_busy)
        start(threads, endless_caller);
    for (unsigned i = 0; i < 20; i++) {
        int status;
        pid_t child = fork();
        if (child == 0) {
            run_jobs(50, i);
            run_shared_job();
            _exit(0);
        }
        run_jobs(5, i);
        if (waitpid(child, &status, 0) != child || status != 0)
            _exit(5);
    }
}
#endif

int main(int count, char **arguments) {
    const char *name = count == 2 ? arguments[1] : "";
    pthread_t threads[CALLERS];
    if (pool_prepare() != 0)
        return 6;
    if (strcmp(name, "many_callers") == 0)
        many_callers();
    else if (strcmp(name, "pauses") == 0)
        pauses();
#if !defined(_WIN32)
    else if (strcmp(name, "forks") == 0)
        forks(0);
    else if (strcmp(name, "forks_while_busy") == 0)
        forks(1);
#endif
    else if (strcmp(name, "exit_while_busy") == 0) {
        start(threads, endless_caller);
        usleep(20000);
    } else
        return 7;
    puts("done");
    return 0;
}
