
/* Coding with probabilities: docs/archive.md has every equation -------------------------------- */

/* With weights in the program, which may be for a small machine, there are archives if BLOCK_BYTES
   is defined, and learning unless LEARNING is 0: it takes two bytes for each byte of a table. */
#if defined(MODEL_ARRAY) && !defined(BLOCK_BYTES)
#define ARCHIVES 0
#else
#define ARCHIVES 1
#endif
#ifndef BLOCK_BYTES
#define BLOCK_BYTES (1 << 20) /* of text in a block, at most; each takes 9 bytes of memory */
#endif
#ifndef LANES_MAX
/* each takes some kB, and CACHE_BYTES */
#define LANES_MAX (BLOCK_BYTES < 1 << 20 ? 16 : CACHE_BYTES < 400000 ? 1024 : 128)
#endif
#ifndef LEARNING
/* more than two gigabytes in all are not addressed */
#define LEARNING (DIRECT > 0 && TABLE_BYTES + LANES_MAX * CACHE_BYTES / 3 < 600000000)
#endif
#if !ARCHIVES || DIRECT == 0
#undef LEARNING
#define LEARNING 0
#endif

#if ARCHIVES
enum { TOTAL = 1 << 24 };

/* Frequencies of the next token, each at least 1, of sum 2^24:

       d_v = min(largest logit - logit_v, 254);  w_v = powers[d_v] <= 2^22
       q   = floor((2^24 - V) 2^30 / sum of all w)                     2^22 <= sum, so that q < 2^32
       f_v = 1 + floor(w_v q / 2^30);  the likeliest token gets what is left of 2^24 */
UNUSED static INLINE void frequencies(const logit *logits, uint32_t *found) {
    int32_t top = logits[0], likeliest = 0;
    for (int32_t v = 0; v < VOCABULARY; v++) {
        top = logits[v] > top ? logits[v] : top;
    }
    uint32_t total = 0, sum = 0;
    for (int32_t v = 0; v < VOCABULARY; v++) {
        found[v] = (uint32_t)powers[minimum(top - logits[v], FLOOR)];
        total += found[v];
    }
    const uint64_t factor = ((uint64_t)(TOTAL - VOCABULARY) << 30) / total;
    for (int32_t v = 0; v < VOCABULARY; v++) {
        found[v] = 1 + (uint32_t)(found[v] * (factor & UINT32_MAX) >> 30);
        sum += found[v];
    }
    while (logits[likeliest] != top) {
        likeliest++;
    }
    found[likeliest] += TOTAL - sum;
}

/* the sum of the frequencies of tokens below one */
UNUSED static INLINE uint32_t start_of(const uint32_t *frequency, int32_t token) {
    uint32_t start = 0;
    for (int32_t v = 0; v < token; v++) {
        start += frequency[v];
    }
    return start;
}

/* the token in whose interval a slot lies; moves the slot to its place in the interval */
UNUSED static INLINE int32_t token_at(const uint32_t *frequency, uint32_t *slot) {
    enum { STRIDE = VOCABULARY % 16 == 0 ? 16 : 1 };
    int32_t v = 0;
    for (; v < VOCABULARY - STRIDE; v += STRIDE) {
        uint32_t sum = 0;
        for (int32_t i = 0; i < STRIDE; i++) {
            sum += frequency[v + i];
        }
        if (*slot < sum) {
            break;
        }
        *slot -= sum;
    }
    while (*slot >= frequency[v]) {
        *slot -= frequency[v++];
    }
    return v;
}
#endif
