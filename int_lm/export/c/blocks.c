
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
static ALIGNED uint32_t lane_frequencies[LANES_MAX][VOCABULARY];
#if LEARNING
static uint32_t lane_rows[LANES_MAX][DIRECT], lane_matches[LANES_MAX][MATCHES];
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

/* rows of context tables that a lane will read are asked for while another one computes: of the
   tables of tokens */
static void fetch_rows(const struct state *state, int32_t token, int learning) {
#if DIRECT > 0
    int32_t context[CONTEXT] = {0};
    uint32_t rows[DIRECT];
    for (int32_t i = 0; i < CONTEXT && token != SEPARATOR; i++) {
        context[i] = i == 0 ? token : recent_tokens(state)[i - 1];
    }
    rows_of(OF_TOKENS, context, NULL, rows);
    for (int32_t k = 0; k < OF_TOKENS; k++) {
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

/* The block that the threads read: its tokens, how many of its payload's words were used */
static struct {
    const struct way *way;
    int learning, decoding;
    size_t size, words, used;
    int32_t lanes, threads;
} block;

/* reads the token before token t of a lane: frequencies of token t, which an encoder knows */
static void read_lane(size_t t, int32_t lane, logit *logits) {
    const struct way *way = block.way;
    struct state *before = lane_states[t % 2], *after = lane_states[1 - t % 2];
    const unsigned char *place = &block_text[begins[lane] + t];
    const int32_t last = t > 0 ? place[-1] : SEPARATOR;
    uint32_t *found = lane_frequencies[lane];
    way->read(&before[lane], &after[lane], last, logits);
#if CACHE
    cache_read(&lane_caches[lane], last, logits);
#endif
#if LEARNING
    if (block.learning) {
        const struct state *now = &after[lane];
        rows_of(DIRECT, recent_tokens(now), recent_words(now), lane_rows[lane]);
        way->add(logits, lane_rows[lane]);
        find_matches(place, t, lane_matches[lane]);
        add_matches(logits, lane_matches[lane]);
    }
#endif
    way->predict(logits, found);
    if (!block.decoding) {
        uint32_t *number = &numbers[2 * (t * (size_t)block.lanes + (size_t)lane)];
        number[0] = start_of(found, *place);
        number[1] = found[*place];
    }
}

/* token t of a lane, by its frequencies and the next words */
static void decode_lane(size_t t, int32_t lane) {
    const uint32_t *found = lane_frequencies[lane];
    uint64_t *x = &coders[lane];
    uint32_t slot = (uint32_t)(*x % TOTAL);
    const int32_t token = token_at(found, &slot);
    *x = found[token] * (*x / TOTAL) + slot;
    if (*x >> 32 == 0) {
        require(block.used < block.words, "a block cannot be decoded" GET_AGAIN);
        *x = *x << 32 | numbers[block.used++];
    }
    block_text[begins[lane] + t] = (unsigned char)token;
}

#if LEARNING
/* what is learnt from token t of all lanes */
static void learn_token(size_t t, int32_t active) {
    uint8_t tokens[LANES_MAX];
    for (int32_t lane = 0; lane < active; lane++) {
        tokens[lane] = block_text[begins[lane] + t];
    }
    block.way->learn(active, lane_rows, lane_frequencies, tokens);
    for (int32_t lane = 0; lane < active; lane++) {
        learn_matches(lane_matches[lane], lane_frequencies[lane], tokens[lane]);
    }
}
#endif

/* One thread's lanes of a block. To decode, lanes take words in turn, and so all threads are at the
   same token. With learning there is one thread: two change each other's rows, and are no faster. */
static void read_lanes(int32_t thread) {
    logit logits[VOCABULARY];
    const int32_t lanes = block.lanes, first = lanes * thread / block.threads;
    const int32_t end = lanes * (thread + 1) / block.threads;
    size_t left = block.size;
    for (size_t t = 0; left > 0; t++) {
        const int32_t active = left < (size_t)lanes ? (int32_t)left : lanes;
        const int32_t own = minimum(end, active);
        left -= (size_t)active;
        for (int32_t lane = first; lane < own; lane++) {
            if (lane + 1 < own && t > 0) {
                const int32_t token = block_text[begins[lane + 1] + t - 1];
                fetch_rows(&lane_states[t % 2][lane + 1], token, block.learning);
            }
            read_lane(t, lane, logits);
        }
        if (block.decoding) {
            meet(block.threads);
            for (int32_t lane = 0; lane < active && thread == 0; lane++) {
                decode_lane(t, lane);
            }
            meet(block.threads);
        }
#if LEARNING
        if (block.learning && left > 0) {
            learn_token(t, active);
        }
#endif
    }
}

/* Reads all tokens of a block. To encode, the start and the frequency of each are written to
   `numbers`; to decode, the `words` there give the tokens. */
static void read_block(
    const struct way *way, int learning, int decoding, size_t size, int32_t lanes, size_t words) {
    const size_t length = size / (size_t)lanes, longer = size % (size_t)lanes;
    for (size_t lane = 0; lane < (size_t)lanes; lane++) {
        begins[lane] = length * lane + (lane < longer ? lane : longer);
        initial(&lane_states[0][lane]);
#if CACHE
        cache_start(&lane_caches[lane]);
#endif
    }
    block.way = way;
    block.learning = learning;
    block.decoding = decoding;
    block.size = size;
    block.lanes = lanes;
    block.words = words;
    block.used = 0;
    block.threads = learning ? 1 : THREADS;
    if (block.threads == 1) {
        read_lanes(0);
    } else {
        in_threads(read_lanes);
    }
    require(!decoding || block.used == words, "a block cannot be decoded" GET_AGAIN);
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
