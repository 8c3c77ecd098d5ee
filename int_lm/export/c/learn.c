
/* Learning: docs/archive.md has every equation ------------------------------------------------- */

#if ARCHIVES
#if DIRECT > 0
/* rows of the first context tables: hashes of the last tokens, or of the last words */
static void rows_of(
    int32_t tables, const int32_t *context, const int32_t *words, uint32_t *rows) {
    for (int32_t k = 0; k < tables; k++) {
        uint32_t word = (uint32_t)direct_lengths[k];
        for (int32_t i = 0; i < direct_lengths[k]; i++) {
            const int32_t next = k < OF_TOKENS ? context[i] : words[i];
            word = (word ^ (uint32_t)next) * UINT32_C(0x9E3779B1);
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

/* Matches: for the last 7, 12, 20 and 32 tokens, the token that followed them before, how often it
   did, at most 63 times, and what that is worth, in units of 2^-8 of a logit's */
enum { MATCHES = 4, MATCH_BITS = DIRECT_BITS + 5, COUNT_MAX = 63 };
static const int32_t match_lengths[MATCHES] = {7, 12, 20, 32};
static uint16_t matches[MATCHES][1 << MATCH_BITS]; /* token + 256 times */
static int32_t worths[MATCHES][COUNT_MAX + 1];

static void prepare_to_learn(void) {
    for (int32_t n = 0; n < 256; n++) { /* floor(sqrt(floor(4096^2 / (n + 1)))) */
        for (rates[n] = 4096; rates[n] * rates[n] > 4096 * 4096 / (n + 1); rates[n]--) {
        }
    }
}

static void forget(void) {
    memset(matches, 0, sizeof matches);
    memset(worths, 0, sizeof worths);
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

/* the places of matches of a lane at its token t, which `place` points to; 0 is before the first */
static void find_matches(const unsigned char *place, size_t t, uint32_t *found) {
    uint32_t word = 0;
    for (int32_t m = 0, i = 0; m < MATCHES; m++) {
        for (; i < match_lengths[m]; i++) {
            word = (word ^ ((size_t)i < t ? place[-1 - i] : 0)) * UINT32_C(0x9E3779B1);
            word ^= word >> 15;
        }
        found[m] = (word ^ (uint32_t)m) * UINT32_C(0x85EBCA77) >> (32 - MATCH_BITS);
    }
}

/* logit_a = saturate(logit_a + (worth[m][times] >> 8)) for the tokens a of all matches m */
static void add_matches(logit *logits, const uint32_t *found) {
    for (int32_t m = MATCHES - 1; m >= 0; m--) {
        const int32_t token = matches[m][found[m]] & 255, times = matches[m][found[m]] >> 8;
        const int32_t sum = logits[token] + shift_floor(worths[m][times], 8);
        logits[token] = (logit)clip(sum, -32767, 32767);
    }
}

/* worth[m][times] = saturate(worth + (e_a >> 3)); the token that followed takes the place of
   another one that followed once */
static void learn_matches(const uint32_t *found, const uint32_t *frequency, int32_t token) {
    for (int32_t m = MATCHES - 1; m >= 0; m--) {
        uint16_t *match = &matches[m][found[m]];
        int32_t expected = *match & 255, times = *match >> 8;
        if (times > 0) {
            const int32_t e = (expected == token ? 4096 : 0) - (int32_t)(frequency[expected] >> 12);
            worths[m][times] = clip(worths[m][times] + shift_floor(e, 3), -32767, 32767);
        }
        if (times > 0 && expected == token) {
            times = minimum(times + 1, COUNT_MAX);
        } else if (times > 1) {
            times = maximum(times / 4, 1);
        } else {
            expected = token;
            times = 1;
        }
        *match = (uint16_t)(expected | times << 8);
    }
}
#endif
#endif
