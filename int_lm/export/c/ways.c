
/* Ways to compute the same numbers --------------------------------------------------------------

   Every way has its own instructions: the functions are compiled anew for each. */

struct way {
    const char *name;
    void (*read)(const struct state *before, struct state *after, int32_t token, logit *logits);
    int32_t (*likelihood)(const logit *logits, int32_t target); /* log2_likelihood */
#if ARCHIVES
    void (*predict)(const logit *logits, uint32_t *found); /* frequencies */
    hash_function *hash;
#endif
#if LEARNING
    void (*add)(logit *logits, const uint32_t *rows);
    void (*learn)(
        int32_t lanes, uint32_t (*rows)[DIRECT], uint32_t (*frequency)[VOCABULARY],
        const uint8_t *tokens);
#endif
};

#if ARCHIVES
#define CODING(name, target) \
    target static void predict_##name(const logit *logits, uint32_t *found) { \
        frequencies(logits, found); \
    } \
    target static void hash_##name( \
        const int8_t *values, size_t rows, size_t length, const uint32_t *keys) { \
        hash_tensor(values, rows, length, keys); \
    }
#define CODES(name) , predict_##name, hash_##name
#else
#define CODING(name, target)
#define CODES(name)
#endif

#if LEARNING
#define LEARNS(name, target) \
    target static void add_##name(logit *logits, const uint32_t *rows) { \
        add_learnt(logits, rows); \
    } \
    target static void learn_##name( \
        int32_t lanes, uint32_t (*rows)[DIRECT], uint32_t (*frequency)[VOCABULARY], \
        const uint8_t *tokens) { \
        learn(lanes, rows, frequency, tokens); \
    }
#define LEARNT(name) , add_##name, learn_##name
#else
#define LEARNS(name, target)
#define LEARNT(name)
#endif

#define WAY(name, target, linear) \
    SHARED(linear, target) \
    target static void read_##name( \
        const struct state *before, struct state *after, int32_t token, logit *logits) { \
        step(OF_WAY(linear), before, after, token, logits); \
    } \
    target static int32_t likelihood_##name(const logit *logits, int32_t target_token) { \
        return log2_likelihood(logits, target_token); \
    } \
    CODING(name, target) \
    LEARNS(name, target) \
    static const struct way name##_way = { \
        #name, read_##name, likelihood_##name CODES(name) LEARNT(name)};

#if TILED
WAY(rows, , linear_tiles)
#else
WAY(rows, , linear_rows)
#endif
#if TILED && defined(__x86_64__)
WAY(avx2, AVX2, linear_avx2)
WAY(vnni, VNNI, linear_vnni)
#elif TILED
WAY(neon, , linear_neon)
#endif

/* the fastest of the ways that this processor has, or one by name */
static const struct way *way_of(const char *name) {
    const struct way *has[3] = {&rows_way};
    int count = 1;
#if TILED && defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) {
        has[count++] = &avx2_way;
    }
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512vnni")) {
        has[count++] = &vnni_way;
    }
#elif TILED
    has[count++] = &neon_way;
#endif
    for (int i = count - 1; i >= 0; i--) {
        if (name == NULL || strcmp(name, has[i]->name) == 0) {
            return has[i];
        }
    }
    static const char *const names[] = {"vnni", "avx2", "neon", "rows"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            fail("this program or this processor lacks the instructions of --path ", name);
        }
    }
    fail("--path is vnni, avx2, neon or rows, and not ", name);
    return NULL;
}
