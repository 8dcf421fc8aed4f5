/* Owns the Python thread states that are kept for threads of other libraries.

   A thread that Python does not know gets a new state at each callback, and loses it at the end: a
   third of what a small callback costs. One entry more than there are exits keeps the state, until
   the thread ends. */
#ifndef FASTDROP_THREAD_STATE_H
#define FASTDROP_THREAD_STATE_H

#include <Python.h>
#include <pthread.h>

static pthread_key_t thread_state_key;

static int python_is_ending(void) {
#if PY_VERSION_HEX >= 0x030D0000
    return !Py_IsInitialized() || Py_IsFinalizing();
#else
    return !Py_IsInitialized() || _Py_IsFinalizing();
#endif
}

static void forget_thread_state(void *state) {
    if (python_is_ending())
        return;
    PyEval_RestoreThread(state);
    PyThreadState_Clear(state);
    PyThreadState_DeleteCurrent();
}

static int prepare_thread_states(void) {
    return pthread_key_create(&thread_state_key, forget_thread_state);
}

/* Called in a callback that was entered by PyGILState_Ensure. A thread whose only entry that is has
   no state but for the callback; Python's own threads have one more, and end their states
   themselves. */
static inline void keep_thread_state(void) {
    PyThreadState *state = PyThreadState_Get();
    if (state->gilstate_counter == 1 && pthread_setspecific(thread_state_key, state) == 0)
        PyGILState_Ensure();
}

#endif
