
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
#define LANES_MAX (BLOCK_BYTES < 1 << 20 ? 16 : 1024) /* each takes some kB */
#endif
#ifndef LEARNING
#define LEARNING (DIRECT > 0 && TABLE_BYTES < 600000000) /* more is not addressed as one array */
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

#if DIRECT > 0
/* rows of the context tables: hashes of the last tokens, the newest first */
static void rows_of(const int32_t *context, uint32_t *rows) {
    for (int32_t k = 0; k < DIRECT; k++) {
        uint32_t word = (uint32_t)direct_lengths[k];
        for (int32_t i = 0; i < direct_lengths[k]; i++) {
            word = (word ^ (uint32_t)context[i]) * UINT32_C(0x9E3779B1);
            word ^= word >> 15;
        }
        rows[k] = word * UINT32_C(0x85EBCA77) >> (32 - DIRECT_BITS);
    }
}
#endif

/* Context tables that go on learning: what was added to a row, in units of 2^-8 of a logit's, and
   how often the row was read, at most 255 */
#if LEARNING
static ALIGNED int16_t deltas[DIRECT][DIRECT_ROWS][VOCABULARY];
static uint8_t reads[DIRECT][DIRECT_ROWS];
static int32_t rates[256];

static void prepare_to_learn(void) {
    for (int32_t n = 0; n < 256; n++) { /* floor(sqrt(floor(3072^2 / (n + 1)))) */
        for (rates[n] = 3072; rates[n] * rates[n] > 3072 * 3072 / (n + 1); rates[n]--) {
        }
    }
}

static void forget(void) {
    for (int32_t k = 0; k < DIRECT; k++) {
        for (int32_t row = 0; row < DIRECT_ROWS; row++) {
            if (reads[k][row]) {
                memset(deltas[k][row], 0, sizeof deltas[k][row]);
                reads[k][row] = 0;
            }
        }
    }
}

/* logit_v = saturate(logit_v + ((sum over tables of delta_v + 128) >> 8)) */
UNUSED static INLINE void add_learnt(logit *logits, const uint32_t *rows) {
#define DELTA(k) deltas[k][rows[k]][v]
    for (int32_t v = 0; v < VOCABULARY; v++) {
        const int32_t sum = logits[v] + shift_floor(OVER_TABLES(DELTA) + 128, 8);
        logits[v] = (logit)clip(sum, -32767, 32767);
    }
}

/* e_v = 4096 [v is the token] - (f_v >> 12)
   delta_v = saturate(delta_v + sum over lanes that read the row of ((e_v rate[n]) >> 12)) */
UNUSED static INLINE void learn_row(
    int32_t k, int32_t first, int32_t lanes, uint32_t (*rows)[DIRECT],
    uint32_t (*frequency)[VOCABULARY], const uint8_t *tokens) {
    const uint32_t row = rows[first][k];
    const int32_t rate = rates[reads[k][row]];
    int32_t moves[VOCABULARY] = {0}, count = 0;
    for (int32_t lane = first; lane < lanes; lane++) {
        if (rows[lane][k] != row) {
            continue;
        }
        const uint32_t *f = frequency[lane];
        for (int32_t v = 0; v < VOCABULARY; v++) {
            moves[v] += shift_floor(-(int32_t)(f[v] >> 12) * rate, 12);
        }
        const int32_t token = tokens[lane], low = -(int32_t)(f[token] >> 12);
        moves[token] += shift_floor((low + 4096) * rate, 12) - shift_floor(low * rate, 12);
        count++;
    }
    int16_t *delta = deltas[k][row];
    for (int32_t v = 0; v < VOCABULARY; v++) {
        delta[v] = (int16_t)clip(delta[v] + moves[v], -32767, 32767);
    }
    reads[k][row] = (uint8_t)minimum(reads[k][row] + count, 255);
}

/* every row that the lanes of a step have read learns from the tokens that followed */
UNUSED static INLINE void learn(
    int32_t lanes, uint32_t (*rows)[DIRECT], uint32_t (*frequency)[VOCABULARY],
    const uint8_t *tokens) {
    for (int32_t k = 0; k < DIRECT; k++) {
        for (int32_t lane = 0; lane < lanes; lane++) {
            int32_t earlier = 0;
            while (earlier < lane && rows[earlier][k] != rows[lane][k]) {
                earlier++;
            }
            if (earlier == lane) {
                learn_row(k, lane, lanes, rows, frequency, tokens);
            }
        }
    }
}
#endif
#endif
