
/* The document cache ----------------------------------------------------------------------------

   What followed the same contexts earlier in the document: int_lm/model/document_cache.py. For
   every length a hash of the last tokens picks a row with up to three tokens, the newest first.
   Each of them adds a weight to the logit of its token. */

#if CACHE
enum { SLOTS = 3, RUN_BITS = 4, RUN_MAX = 15 };

struct cache_row {
    uint32_t place; /* when it was written */
    uint16_t check; /* more bits of the hash, and the run of the newest token */
    uint16_t tokens[SLOTS];
};

/* of one text; `rows` of all lengths, the longest first */
struct cache {
    struct cache_row rows[CACHE][1 << CACHE_BITS];
    uint32_t place, begin; /* tokens read, and how many of them before the document */
    uint32_t last[CACHE_CONTEXT], hashes[CACHE]; /* the last tokens, the newest first */
};

static void cache_start(struct cache *cache) {
    memset(cache, 0, sizeof *cache);
}

static struct cache_row *cache_row_of(struct cache *cache, int32_t k) {
    return &cache->rows[k][cache->hashes[k] * UINT32_C(0x85EBCA6B) >> (32 - CACHE_BITS)];
}

static int32_t cache_check(uint32_t hash) {
    return (int32_t)(hash * UINT32_C(0xC2B2AE35) >> 21);
}

/* whether the document has the tokens of a context of this length */
static int cache_reaches(const struct cache *cache, int32_t k) {
    return cache->place - cache->begin >= cache_lengths[k];
}

/* whether a row was written by the same context in this document */
static int cache_knows(const struct cache *cache, const struct cache_row *row, int32_t k) {
    return cache->place - row->place < cache->place - cache->begin
        && row->check >> RUN_BITS == cache_check(cache->hashes[k]);
}

/* the token comes first, and the others keep their order */
static void cache_write(struct cache *cache, int32_t k, uint16_t token) {
    struct cache_row *row = cache_row_of(cache, k);
    int32_t run = 1;
    if (!cache_knows(cache, row, k)) {
        memset(row, 0, sizeof *row);
    }
    if (row->tokens[0] == token) {
        run = minimum((row->check & RUN_MAX) + 1, RUN_MAX);
    } else {
        int32_t slot = 1;
        while (slot < SLOTS - 1 && row->tokens[slot] != token) {
            slot++;
        }
        for (; slot > 0; slot--) {
            row->tokens[slot] = row->tokens[slot - 1];
        }
        row->tokens[0] = token;
    }
    row->check = (uint16_t)(cache_check(cache->hashes[k]) << RUN_BITS | run);
    row->place = cache->place + 1;
}

static void cache_follow(struct cache *cache, int32_t token) {
    for (int32_t k = 0; k < CACHE && token != SEPARATOR; k++) {
        if (cache_reaches(cache, k)) {
            cache_write(cache, k, (uint16_t)token);
        }
    }
    cache->place++;
    cache->begin = token == SEPARATOR ? cache->place : cache->begin;
    memmove(cache->last + 1, cache->last, sizeof cache->last - sizeof *cache->last);
    cache->last[0] = (uint32_t)token;
    for (int32_t k = 0; k < CACHE; k++) {
        uint32_t word = cache_lengths[k];
        for (uint32_t i = 0; i < cache_lengths[k]; i++) {
            word = (word ^ cache->last[i]) * UINT32_C(0x9E3779B1);
            word ^= word >> 15;
        }
        cache->hashes[k] = word;
    }
}

/* reads a token, and adds to the logits of the next one: logit_v = saturate(logit_v + sum of the
   weights of all slots with v) */
static void cache_read(struct cache *cache, int32_t token, logit *logits) {
    int32_t tokens[CACHE * SLOTS], sums[CACHE * SLOTS], count = 0, longest = -1;
    uint16_t above = SEPARATOR; /* the newest token of the next longer row */
    cache_follow(cache, token);
    for (int32_t k = 0; k < CACHE; k++) {
        const struct cache_row *row = cache_row_of(cache, k);
        if (!cache_reaches(cache, k) || !cache_knows(cache, row, k)) {
            continue;
        }
        longest = longest < 0 ? k : longest;
        for (int32_t slot = 0; slot < SLOTS && row->tokens[slot] != SEPARATOR; slot++) {
            const int32_t known = (longest * CACHE + k) * SLOTS + slot;
            const int32_t place = known * 2 + (row->tokens[slot] == above);
            int32_t i = 0;
            while (i < count && tokens[i] != row->tokens[slot]) {
                i++;
            }
            if (i == count) {
                tokens[i] = row->tokens[slot];
                sums[i] = 0;
                count++;
            }
            sums[i] += (*cache_weights)[place * (RUN_MAX + 1) + (row->check & RUN_MAX)];
        }
        above = row->tokens[0];
    }
    for (int32_t i = 0; i < count; i++) {
        logits[tokens[i]] = (logit)clip(logits[tokens[i]] + sums[i], -32767, 32767);
    }
}
#endif
