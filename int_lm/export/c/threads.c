
/* Threads ----------------------------------------------------------------------------------------

   With -DTHREADS=N -pthread, N threads share what does not depend on each other: files to score,
   lanes of archives, rows of large matrices. Every sum is the same whoever computes it. */

#ifndef THREADS
#define THREADS 1
#endif
#if THREADS < 1
#error "-DTHREADS=N takes a number of threads, 1 or more"
#endif

#if THREADS > 1
#include <pthread.h>
#include <sched.h>

enum { STACK_BYTES = 1 << 23, IMPATIENCE = 1000 };

static void (*shared_work)(int32_t thread);
static int32_t arrived;
static int meetings;

/* waits until `count` threads are here */
static void meet(int32_t count) {
    const int now = __atomic_load_n(&meetings, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == count) {
        __atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&meetings, !now, __ATOMIC_RELEASE);
        return;
    }
    for (int turns = 0; __atomic_load_n(&meetings, __ATOMIC_ACQUIRE) == now; turns++) {
        if (turns > IMPATIENCE) {
            turns = IMPATIENCE;
            sched_yield();
        }
    }
}

static void *run_thread(void *number) {
    shared_work(*(const int32_t *)number);
    return NULL;
}

/* work(0), ..., work(THREADS - 1), at the same time */
static void in_threads(void (*work)(int32_t thread)) {
    pthread_t threads[THREADS];
    pthread_attr_t attributes;
    int32_t numbers[THREADS];
    shared_work = work;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    for (int32_t i = 1; i < THREADS; i++) {
        numbers[i] = i;
        if (pthread_create(&threads[i], &attributes, run_thread, &numbers[i]) != 0) {
            fail("no more threads can be started; compile with a smaller ", "-DTHREADS=N");
        }
    }
    work(0);
    for (int32_t i = 1; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    pthread_attr_destroy(&attributes);
}

/* A product y = W x that all threads compute, where W has at least so many entries */
#ifndef LARGE
#define LARGE (1 << 18)
#endif
enum { PART = 64 }; /* rows of a part begin at multiples of 64 */

static struct {
    linear_function *linear; /* NULL: there is nothing more to do */
    int32_t *y;
    const int8_t *weights, *x;
    int32_t rows, columns;
} product;
static int has_helpers;
static void (*led_work)(void);

static void compute_part(int32_t thread) {
    const int32_t parts = (product.rows + PART - 1) / PART;
    const int32_t first = parts * thread / THREADS * PART;
    const int32_t end = minimum(parts * (thread + 1) / THREADS * PART, product.rows);
    if (first < end) {
        product.linear(
            product.y + first, product.weights + MATRIX(first, product.columns), product.x,
            end - first, product.columns);
    }
}

static void compute_together(
    linear_function *linear, int32_t *y, const int8_t *weights, const int8_t *x, int32_t rows,
    int32_t columns) {
    product.linear = linear;
    product.y = y;
    product.weights = weights;
    product.x = x;
    product.rows = rows;
    product.columns = columns;
    meet(THREADS);
    compute_part(0);
    meet(THREADS);
}

static void lead_or_help(int32_t thread) {
    if (thread == 0) {
        has_helpers = 1;
        led_work();
        has_helpers = 0;
        product.linear = NULL;
        meet(THREADS);
        return;
    }
    for (meet(THREADS); product.linear != NULL; meet(THREADS)) {
        compute_part(thread);
        meet(THREADS);
    }
}

/* one thread does the work, and the others help it with large matrices, if there are any */
static void with_helpers(void (*work)(void)) {
    led_work = work;
    for (int i = 0; i < TENSORS; i++) {
        const uint32_t *size = tensors[i].shape + tensors[i].axes - 2;
        if (tensors[i].tiled && (uint64_t)size[0] * size[1] >= LARGE) {
            in_threads(lead_or_help);
            return;
        }
    }
    work();
}

/* the linear function of a way, shared where it is large */
#define SHARED(linear, target) \
    target static void shared_##linear( \
        int32_t *y, const int8_t *weights, const int8_t *x, int32_t rows, int32_t columns) { \
        if (has_helpers && (int64_t)rows * columns >= LARGE) { \
            compute_together(linear, y, weights, x, rows, columns); \
        } else { \
            linear(y, weights, x, rows, columns); \
        } \
    }
#define OF_WAY(linear) shared_##linear
#else
UNUSED static void meet(int32_t count) { (void)count; }
static void in_threads(void (*work)(int32_t thread)) { work(0); }
static void with_helpers(void (*work)(void)) { work(); }
#define SHARED(linear, target)
#define OF_WAY(linear) linear
#endif
