/* Runs loops on a pool of threads. The pool starts threads when a loop first needs them, and runs
   one job at a time.

   The caller publishes a job and begins to work on it. Workers that wake in time join in; a
   worker that wakes late finds the job closed. So the caller never waits for a wake-up, which
   takes tens of microseconds, and more on a busy host. A second caller, while a job runs, does
   its work alone. */
#ifndef FASTDROP_POOL_H
#define FASTDROP_POOL_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>

#define POOL_MAX_WORKERS 255

/* The stack of a worker. A task uses less than a tenth of it (test_fused.py). The system's
   default may be too small, or waste address space. */
#define POOL_STACK_BYTES (1 << 20)

/* A worker polls for the next job before it sleeps: for about 10 microseconds in a busy loop,
   then for about 200 while it yields the CPU. So a series of calls finds it awake; to wake it
   from sleep takes 30 to 60 microseconds on a virtual machine. */
#define POOL_SPINS 1000
#define POOL_YIELDS 500

typedef void (*pool_task)(void *context, int64_t begin, int64_t end);

static struct {
    pthread_mutex_t busy;  /* locked by the caller whose job runs */
    pthread_mutex_t guard; /* protects the fields down to `sleepers` */
    pthread_cond_t wake, done;
    int workers, places, active, sleepers;
    atomic_uint generation;
    pool_task task;
    void *context;
    int64_t items, chunk;
    atomic_llong next;
} pool = {
    .busy = PTHREAD_MUTEX_INITIALIZER,
    .guard = PTHREAD_MUTEX_INITIALIZER,
    .wake = PTHREAD_COND_INITIALIZER,
    .done = PTHREAD_COND_INITIALIZER,
};

static inline void pool_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void pool_work(pool_task task, void *context, int64_t items, int64_t chunk) {
    for (;;) {
        int64_t begin = atomic_fetch_add(&pool.next, chunk);
        if (begin >= items)
            return;
        task(context, begin, begin + chunk < items ? begin + chunk : items);
    }
}

static void *pool_worker(void *unused) {
    unsigned seen = 0;
    (void)unused;
    for (;;) {
        for (int spin = 0; spin < POOL_SPINS && atomic_load(&pool.generation) == seen; spin++)
            pool_pause();
        for (int spin = 0; spin < POOL_YIELDS && atomic_load(&pool.generation) == seen; spin++)
            sched_yield();
        pthread_mutex_lock(&pool.guard);
        while (atomic_load(&pool.generation) == seen) {
            pool.sleepers++;
            pthread_cond_wait(&pool.wake, &pool.guard);
            pool.sleepers--;
        }
        seen = atomic_load(&pool.generation);
        if (pool.places > 0) {
            pool_task task = pool.task;
            void *context = pool.context;
            int64_t items = pool.items, chunk = pool.chunk;
            pool.places--;
            pool.active++;
            pthread_mutex_unlock(&pool.guard);
            pool_work(task, context, items, chunk);
            pthread_mutex_lock(&pool.guard);
            if (--pool.active == 0)
                pthread_cond_signal(&pool.done);
        }
        pthread_mutex_unlock(&pool.guard);
    }
    return 0;
}

static int pool_create_thread(void) {
    pthread_t thread;
    pthread_attr_t attributes;
    int failed;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, POOL_STACK_BYTES);
    failed = pthread_create(&thread, &attributes, pool_worker, 0);
    pthread_attr_destroy(&attributes);
    return failed;
}

#if defined(_WIN32)
/* Windows has POSIX threads in its C compiler's library, but neither signals to threads nor fork. */
static int pool_start_worker(void) { return pool_create_thread(); }

static int pool_prepare(void) { return 0; }
#else
/* Starts a worker that blocks all signals: they go to the program's own threads. */
static int pool_start_worker(void) {
    sigset_t all, before;
    int failed;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failed = pool_create_thread();
    pthread_sigmask(SIG_SETMASK, &before, 0);
    return failed;
}

/* Resets the pool in a forked child, where no worker exists and no locked mutex has an owner. */
static void pool_after_fork(void) {
    pthread_mutex_init(&pool.busy, 0);
    pthread_mutex_init(&pool.guard, 0);
    pthread_cond_init(&pool.wake, 0);
    pthread_cond_init(&pool.done, 0);
    pool.workers = pool.places = pool.active = pool.sleepers = 0;
}

static int pool_prepare(void) { return pthread_atfork(0, 0, pool_after_fork); }
#endif

/* Calls task on disjoint ranges of `chunk` items that cover 0 .. items - 1, in up to `threads`
   threads. Returns when all calls have returned. */
static void pool_run(pool_task task, void *context, int64_t items, int64_t chunk, int threads) {
    int64_t chunks = (items + chunk - 1) / chunk;
    int helpers = threads - 1;
    if (helpers > POOL_MAX_WORKERS)
        helpers = POOL_MAX_WORKERS;
    if (helpers > chunks - 1)
        helpers = (int)(chunks - 1);
    if (helpers < 1 || pthread_mutex_trylock(&pool.busy) != 0) {
        task(context, 0, items);
        return;
    }
    pthread_mutex_lock(&pool.guard);
    while (pool.workers < helpers && pool_start_worker() == 0)
        pool.workers++;
    pool.task = task;
    pool.context = context;
    pool.items = items;
    pool.chunk = chunk;
    atomic_store(&pool.next, 0);
    pool.places = helpers;
    atomic_fetch_add(&pool.generation, 1);
    if (pool.sleepers > 0)
        pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.guard);

    pool_work(task, context, items, chunk);

    pthread_mutex_lock(&pool.guard);
    pool.places = 0;
    for (int spin = 0; spin < POOL_SPINS && pool.active > 0; spin++) {
        pthread_mutex_unlock(&pool.guard);
        pool_pause();
        pthread_mutex_lock(&pool.guard);
    }
    while (pool.active > 0)
        pthread_cond_wait(&pool.done, &pool.guard);
    pthread_mutex_unlock(&pool.guard);
    pthread_mutex_unlock(&pool.busy);
}

#endif
