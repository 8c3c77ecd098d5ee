
/* Blocks of archives ---------------------------------------------------------------------------

   A block's tokens are cut in lanes, one after another. All lanes read their token t before any
   reads its token t + 1, and the coder (rANS, arXiv 1311.2540) takes tokens in this order. */

#if ARCHIVES
enum { LANES = 128, LEARNING_LANES = 16, LANE_TOKENS = 512 }; /* by default */

#if defined(__GNUC__)
#define FETCH(place) __builtin_prefetch(place)
#else
#define FETCH(place) (void)(place)
#endif

static unsigned char block_text[BLOCK_BYTES];
static uint32_t numbers[2 * BLOCK_BYTES]; /* starts and frequencies in turn; words of a payload */
static uint64_t coders[LANES_MAX]; /* states of the coder, each in [2^32, 2^64) */
static struct state lane_states[2][LANES_MAX];
#if CACHE
static struct cache lane_caches[LANES_MAX];
#endif
static size_t begins[LANES_MAX]; /* of lanes */
static ALIGNED uint32_t lane_frequencies[LEARNING ? LANES_MAX : 1][VOCABULARY];
#if LEARNING
static uint32_t lane_rows[LANES_MAX][DIRECT], lane_matches[LANES_MAX][MATCHES];
static uint8_t lane_tokens[LANES_MAX];
#endif

static uint64_t bytes_as_number(const unsigned char *bytes, int count) {
    uint64_t found = 0;
    for (int i = count - 1; i >= 0; i--) {
        found = found << 8 | bytes[i];
    }
    return found;
}

static void number_as_bytes(uint64_t number, unsigned char *bytes, int count) {
    for (int i = 0; i < count; i++) {
        bytes[i] = (unsigned char)(number >> (8 * i) & 255);
    }
}

#define DAMAGED_ARCHIVE "the archive is damaged: "
#define GET_AGAIN "; get it again from where it came from"

static void require(int sound, const char *problem) {
    if (!sound) {
        fail(DAMAGED_ARCHIVE, problem);
    }
}

/* the rows of context tables that a lane will read are asked for while another one computes */
static void fetch_rows(const struct state *state, int32_t token, int learning) {
#if DIRECT > 0
    int32_t context[CONTEXT] = {0};
    uint32_t rows[DIRECT];
    for (int32_t i = 0; i < CONTEXT && token != SEPARATOR; i++) {
        context[i] = i == 0 ? token : recent_tokens(state)[i - 1];
    }
    rows_of(context, rows);
    for (int32_t k = 0; k < DIRECT; k++) {
        for (int32_t v = 0; v < VOCABULARY; v += 64) {
            FETCH(*direct_tables[k] + (size_t)rows[k] * VOCABULARY + v);
        }
#if LEARNING
        for (int32_t v = 0; v < VOCABULARY && learning; v += 32) {
            FETCH(&deltas[k][rows[k]][v]);
        }
        FETCH(&reads[k][rows[k]]);
#endif
    }
#endif
    (void)state, (void)token, (void)learning;
}

/* Reads all tokens of a block. To encode, the start and the frequency of each are written to
   `numbers`; to decode, the `words` there give the tokens. */
static void read_block(
    const struct way *way, int learning, int decoding, size_t size, int32_t lanes, size_t words) {
    static logit logits[VOCABULARY];
    const size_t length = size / (size_t)lanes, longer = size % (size_t)lanes;
    size_t at = 0, word = 0;
    for (size_t lane = 0; lane < (size_t)lanes; lane++) {
        begins[lane] = length * lane + (lane < longer ? lane : longer);
        initial(&lane_states[0][lane]);
#if CACHE
        cache_start(&lane_caches[lane]);
#endif
    }
    for (size_t t = 0; at < size; t++) {
        struct state *before = lane_states[t % 2], *after = lane_states[1 - t % 2];
        const int32_t active = (int32_t)(size - at < (size_t)lanes ? size - at : (size_t)lanes);
        for (int32_t lane = 0; lane < active; lane++, at++) {
            unsigned char *place = &block_text[begins[lane] + t];
            uint32_t *found = lane_frequencies[learning ? lane : 0];
            if (lane + 1 < active && t > 0) {
                const int32_t token = block_text[begins[lane + 1] + t - 1];
                fetch_rows(&before[lane + 1], token, learning);
            }
            const int32_t last = t > 0 ? place[-1] : SEPARATOR;
            way->read(&before[lane], &after[lane], last, logits);
#if CACHE
            cache_read(&lane_caches[lane], last, logits);
#endif
#if LEARNING
            if (learning) {
                rows_of(recent_tokens(&after[lane]), lane_rows[lane]);
                way->add(logits, lane_rows[lane]);
                find_matches(place, t, lane_matches[lane]);
                add_matches(logits, lane_matches[lane]);
            }
#endif
            way->predict(logits, found);
            if (!decoding) {
                numbers[2 * at] = start_of(found, *place);
                numbers[2 * at + 1] = found[*place];
            } else {
                uint64_t *x = &coders[lane];
                uint32_t slot = (uint32_t)(*x % TOTAL);
                const int32_t token = token_at(found, &slot);
                *x = found[token] * (*x / TOTAL) + slot;
                if (*x >> 32 == 0) {
                    require(word < words, "a block cannot be decoded" GET_AGAIN);
                    *x = *x << 32 | numbers[word++];
                }
                *place = (unsigned char)token;
            }
#if LEARNING
            lane_tokens[lane] = *place;
#endif
        }
#if LEARNING
        if (learning && at < size) {
            way->learn(active, lane_rows, lane_frequencies, lane_tokens);
            for (int32_t lane = 0; lane < active; lane++) {
                learn_matches(lane_matches[lane], lane_frequencies[lane], lane_tokens[lane]);
            }
        }
#endif
    }
    require(!decoding || word == words, "a block cannot be decoded" GET_AGAIN);
}

/* The payload of the text in `block_text`: states in `coders`, and words at the end of `numbers`.
   Returns how many words; or as many as there are tokens, where coding does not pay. */
static size_t encode_block(const struct way *way, int learning, size_t size, int32_t lanes) {
    const size_t end = 2 * size;
    size_t first = end;
    read_block(way, learning, 0, size, lanes, 0);
    for (int32_t lane = 0; lane < lanes; lane++) {
        coders[lane] = UINT64_C(1) << 32;
    }
    for (size_t at = size; at-- > 0;) { /* words take the place of what was read: two for a token */
        const size_t lane = at % (size_t)lanes;
        const uint32_t start = numbers[2 * at], frequency = numbers[2 * at + 1];
        uint64_t x = coders[lane];
        if (x >> 40 >= frequency) {
            numbers[--first] = (uint32_t)(x & UINT32_MAX);
            x >>= 32;
        }
        coders[lane] = x / frequency * TOTAL + x % frequency + start;
    }
    return end - first;
}
#endif
