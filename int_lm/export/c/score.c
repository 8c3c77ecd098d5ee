
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

static struct text model;

/* every file is a document: it and the separator that ends it, from a fresh state */
static void score(const struct way *way, int count, char **paths) {
    uint64_t tokens = 0, sum = 0;
    for (int i = 0; i < count; i++) {
        FILE *file = strcmp(paths[i], "-") == 0 ? stdin : fopen(paths[i], "rb");
        int32_t token = SEPARATOR;
        if (file == NULL) {
            fail("cannot open ", paths[i]);
        }
        start(&model, way);
        do {
            const int32_t target = next_token(file, paths[i]);
            read_token(&model, token);
            token = target;
            sum += (uint64_t)-way->likelihood(model.logits, target < 0 ? SEPARATOR : target);
            tokens += target >= 0;
        } while (token >= 0);
        if (file != stdin) {
            fclose(file);
        }
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

