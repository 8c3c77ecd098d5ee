/* The document cache ------------------------------------------------------------------------------

   What followed the same contexts earlier in the document, as int_lm/model/document_cache.py has
   it: for every length a table of rows that a hash of the last tokens picks, each with up to three
   tokens, the newest first. Every one of them adds a weight to the logit of its token. */

#if CACHE_LENGTHS > 0

enum { SLOTS = 3, CACHE_RUN = 15 };

struct cache_row {
    uint32_t place, check, run, slots[SLOTS]; /* place: when it was written; 0: never */
};

struct cache {
    struct cache_row rows[CACHE_LENGTHS][1 << CACHE_BITS];
    uint32_t place, begin, last[CACHE_LONGEST], hashes[CACHE_LENGTHS];
};

static struct cache_row *cache_row_of(struct cache *cache, int k) {
    return &cache->rows[k][cache->hashes[k] * 0x85EBCA6BU >> (32 - CACHE_BITS)];
}

static uint32_t cache_check(uint32_t hash) {
    return hash * 0xC2B2AE35U >> 21;
}

/* whether a row was written by the same context in this document */
static int cache_knows(const struct cache *cache, const struct cache_row *row, int k) {
    return row->place > cache->begin && row->check == cache_check(cache->hashes[k]);
}

static void cache_write(struct cache *cache, int k, uint32_t token) {
    struct cache_row *row = cache_row_of(cache, k);
    if (!cache_knows(cache, row, k)) {
        memset(row, 0, sizeof *row);
    }
    if (row->slots[0] == token) {
        row->run += row->run < CACHE_RUN;
    } else {
        int from = 1;
        while (from < SLOTS - 1 && row->slots[from] != token) {
            from++;
        }
        for (; from > 0; from--) {
            row->slots[from] = row->slots[from - 1];
        }
        row->slots[0] = token;
        row->run = 1;
    }
    row->check = cache_check(cache->hashes[k]);
    row->place = cache->place + 1;
}

static void cache_start(struct cache *cache) {
    memset(cache, 0, sizeof *cache);
}

/* reads a token, and adds to the logits of the next one */
static void cache_read(struct cache *cache, uint32_t token, logit *logits) {
    for (int k = 0; k < CACHE_LENGTHS && token != SEPARATOR; k++) {
        if (cache->place - cache->begin >= cache_lengths[k]) {
            cache_write(cache, k, token);
        }
    }
    cache->place++;
    if (token == SEPARATOR) {
        cache->begin = cache->place;
    }
    memmove(cache->last + 1, cache->last, sizeof cache->last - sizeof *cache->last);
    cache->last[0] = token;

    uint32_t found[CACHE_LENGTHS * SLOTS], above = SEPARATOR;
    int32_t boosts[CACHE_LENGTHS * SLOTS];
    int count = 0, longest = -1;
    for (int k = 0; k < CACHE_LENGTHS; k++) {
        cache->hashes[k] = cache_lengths[k];
        for (uint32_t i = 0; i < cache_lengths[k]; i++) {
            cache->hashes[k] = (cache->hashes[k] ^ cache->last[i]) * 0x9E3779B1U;
            cache->hashes[k] ^= cache->hashes[k] >> 15;
        }
        const struct cache_row *row = cache_row_of(cache, k);
        if (cache->place - cache->begin < cache_lengths[k] || !cache_knows(cache, row, k)) {
            continue;
        }
        longest = longest < 0 ? k : longest;
        for (int slot = 0; slot < SLOTS && row->slots[slot] != SEPARATOR; slot++) {
            const int agrees = row->slots[slot] == above;
            const int state = ((longest * CACHE_LENGTHS + k) * SLOTS + slot) * 2 + agrees;
            found[count] = row->slots[slot];
            boosts[count++] = direct_cache[state * (CACHE_RUN + 1) + (int)row->run];
        }
        above = row->slots[0];
    }
    for (int i = 0; i < count; i++) { /* all slots of a token at its first one */
        int32_t total = logits[found[i]];
        int first = 1;
        for (int j = 0; j < count; j++) {
            first &= j >= i || found[j] != found[i];
            total += found[j] == found[i] ? boosts[j] : 0;
        }
        if (first) {
            total = total < -32767 ? -32767 : total > 32767 ? 32767 : total;
            logits[found[i]] = (logit)total;
        }
    }
}

#endif

