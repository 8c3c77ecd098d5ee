
/* Scores --------------------------------------------------------------------------------------- */

static void print_whole(FILE *file, uint64_t x) {
    char digits[24], *digit = digits + sizeof digits - 1;
    *digit = 0;
    do {
        *--digit = (char)('0' + x % 10);
        x /= 10;
    } while (x);
    fputs(digit, file);
}

/* x / y, below 2^60, with six digits behind the point, rounded down */
static void print_ratio(FILE *file, uint64_t x, uint64_t y) {
    print_whole(file, x / y);
    putc('.', file);
    for (int i = 0; i < 6; i++) {
        x = x % y * 10;
        putc((int)('0' + x / y), file);
    }
}

/* A model that reads one text */
struct text {
    const struct way *way;
    struct state states[2];
    int now;
    logit logits[VOCABULARY];
#if CACHE
    struct cache cache;
#endif
};

static void start(struct text *text, const struct way *way) {
    text->way = way;
    text->now = 0;
    initial(&text->states[0]);
#if CACHE
    cache_start(&text->cache);
#endif
}

static void read_token(struct text *text, int32_t token) {
    text->way->read(&text->states[text->now], &text->states[!text->now], token, text->logits);
    text->now = !text->now;
#if CACHE
    cache_read(&text->cache, token, text->logits);
#endif
}

/* the next token of a file: a byte, or of a vocabulary of pieces a number; -1 at its end */
static int32_t next_token(FILE *file, const char *path) {
#if BYTES
    const int byte = getc(file);
    if (byte == SEPARATOR) {
        fail("a zero byte, which stands between documents, in ", path);
    }
    if (byte == EOF && ferror(file)) {
        fail("cannot read ", path);
    }
    return byte == EOF ? -1 : byte;
#else
    long token = 0;
    const int count = fscanf(file, "%7ld", &token);
    if (count == EOF && !ferror(file)) {
        return -1;
    }
    if (count != 1 || token < 0 || token >= VOCABULARY) {
        fail("no ids of this model's vocabulary, separated by white space, in ", path);
    }
    return (int32_t)token;
#endif
}

static struct text texts[THREADS];

/* Files to score, and what each thread has found */
static struct {
    const struct way *way;
    int count;
    char **paths;
    uint64_t tokens[THREADS], sums[THREADS];
} files_to_score;

/* every file is a document: it and the separator that ends it, from a fresh state */
static void score_some(int32_t thread) {
    const struct way *way = files_to_score.way;
    struct text *text = &texts[thread];
    uint64_t tokens = 0, sum = 0;
    for (int i = thread; i < files_to_score.count; i += THREADS) {
        const char *path = files_to_score.paths[i];
        FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
        int32_t token = SEPARATOR;
        if (file == NULL) {
            fail("cannot open ", path);
        }
        start(text, way);
        int32_t target = next_token(file, path);
        if (target < 0 && files_to_score.count > 1) {
            fputs("left out, because it is empty: ", stderr);
            put_text(path);
            putc('\n', stderr);
            token = -1;
        }
        while (token >= 0) {
            read_token(text, token);
            token = target;
            sum += (uint64_t)-way->likelihood(text->logits, target < 0 ? SEPARATOR : target);
            tokens += target >= 0;
            target = target < 0 ? -1 : next_token(file, path);
        }
        if (file != stdin) {
            fclose(file);
        }
    }
    files_to_score.tokens[thread] = tokens;
    files_to_score.sums[thread] = sum;
}

static void score_alone(void) { score_some(0); }

static void score(const struct way *way, int count, char **paths) {
    uint64_t tokens = 0, sum = 0;
    int from_input = 0;
    for (int i = 0; i < count; i++) {
        from_input += strcmp(paths[i], "-") == 0;
    }
    if (from_input > 1) {
        fail("standard input can be scored once, and is named more often: ", "-");
    }
    files_to_score.way = way;
    files_to_score.count = count;
    files_to_score.paths = paths;
    if (count == 1) {
        with_helpers(score_alone);
    } else {
        in_threads(score_some);
    }
    for (int32_t thread = 0; thread < THREADS; thread++) {
        tokens += files_to_score.tokens[thread];
        sum += files_to_score.sums[thread];
    }
    if (tokens == 0) {
        fail("nothing to score: no text in ", count == 1 ? paths[0] : "these files");
    }
    printf("{\"%s\": ", BYTES ? "bytes" : "ids");
    print_whole(stdout, tokens);
    printf(", \"log2_likelihood\": -");
    print_whole(stdout, sum);
    printf(", \"bits_per_%s\": ", BYTES ? "byte" : "id");
    print_ratio(stdout, sum, tokens << 16);
    printf("}\n");
}

