/* Commands ------------------------------------------------------------------------------------- */

typedef void reader(const struct state *before, struct state *after, int32_t token, logit *logits);

static void read_rows(const struct state *b, struct state *a, int32_t token, logit *logits) {
#if TILED
    step(linear_tiles, b, a, token, logits);
#else
    step(linear_rows, b, a, token, logits);
#endif
}

#if TILED && defined(__x86_64__)
AVX2 static void read_avx2(const struct state *b, struct state *a, int32_t token, logit *logits) {
    step(linear_avx2, b, a, token, logits);
}

VNNI static void read_vnni(const struct state *b, struct state *a, int32_t token, logit *logits) {
    step(linear_vnni, b, a, token, logits);
}
#elif TILED
static void read_neon(const struct state *b, struct state *a, int32_t token, logit *logits) {
    step(linear_neon, b, a, token, logits);
}
#endif

/* the fastest of the ways that this processor has, or one by name */
static reader *reader_of(const char *name) {
    const char *wanted = name == NULL ? "" : name;
    reader *found = strcmp(wanted, "rows") == 0 ? read_rows : NULL;
#if TILED && defined(__x86_64__)
    __builtin_cpu_init();
    if (found == NULL && (!*wanted || strcmp(wanted, "vnni") == 0)
        && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512vnni")) {
        found = read_vnni;
    }
    if (found == NULL && (!*wanted || strcmp(wanted, "avx2") == 0)
        && __builtin_cpu_supports("avx2")) {
        found = read_avx2;
    }
#elif TILED
    if (found == NULL && (!*wanted || strcmp(wanted, "neon") == 0)) {
        found = read_neon;
    }
#endif
    if (found == NULL && *wanted) {
        fail("this program or this processor lacks the instructions of --path ", wanted);
    }
    return found == NULL ? read_rows : found;
}

/* A model that reads one text */
struct text {
    reader *read;
    struct state states[2];
    int now;
    logit logits[VOCABULARY];
#if CACHE_LENGTHS > 0
    struct cache cache;
#endif
};

static void start(struct text *text, reader *read) {
    text->read = read;
    text->now = 0;
    initial(&text->states[0]);
#if CACHE_LENGTHS > 0
    cache_start(&text->cache);
#endif
}

static void read_token(struct text *text, int32_t token) {
    text->read(&text->states[text->now], &text->states[!text->now], token, text->logits);
    text->now = !text->now;
#if CACHE_LENGTHS > 0
    cache_read(&text->cache, (uint32_t)token, text->logits);
#endif
}

/* -x / 2^16 / count with six digits behind the point, rounded down */
static void print_bits(uint64_t x, uint64_t count) {
    uint64_t unit = count << 16, rest = x % unit;
    printf("%lu.", (unsigned long)(x / unit));
    for (int i = 0; i < 6; i++) {
        rest *= 10;
        printf("%d", (int)(rest / unit));
        rest %= unit;
    }
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
static void score(reader *read, int count, char **paths) {
    uint64_t tokens = 0, sum = 0;
    for (int i = 0; i < count; i++) {
        FILE *file = strcmp(paths[i], "-") == 0 ? stdin : fopen(paths[i], "rb");
        int32_t token = SEPARATOR;
        if (file == NULL) {
            fail("cannot open ", paths[i]);
        }
        start(&model, read);
        do {
            const int32_t target = next_token(file, paths[i]);
            read_token(&model, token);
            token = target;
            sum += (uint64_t)-log2_likelihood(model.logits, target < 0 ? SEPARATOR : target);
            tokens += target >= 0;
        } while (token >= 0);
        if (file != stdin) {
            fclose(file);
        }
    }
    if (tokens == 0) {
        fail("nothing to score: no text in ", count == 1 ? paths[0] : "these files");
    }
    printf("{\"%s\": %lu, \"log2_likelihood\": -", BYTES ? "bytes" : "ids", (unsigned long)tokens);
    char digits[24], *digit = digits + sizeof digits - 1;
    *digit = 0;
    uint64_t rest = sum;
    do {
        *--digit = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    printf("%s, \"bits_per_%s\": ", digit, BYTES ? "byte" : "id");
    print_bits(sum, tokens);
    printf("}\n");
}

/* UTF-8, as it comes: bytes that are none become U+FFFD, as Python's decoder has it */
struct decoder {
    unsigned char held[4];
    int count, length;
};

static void write_byte(struct decoder *decoder, int byte) {
    if (decoder->count > 0) {
        const int first = decoder->held[0], second = decoder->count == 1;
        const int low = second && first == 0xE0 ? 0xA0 : second && first == 0xF0 ? 0x90 : 0x80;
        const int high = second && first == 0xED ? 0x9F : second && first == 0xF4 ? 0x8F : 0xBF;
        if (byte >= low && byte <= high) {
            decoder->held[decoder->count++] = (unsigned char)byte;
            if (decoder->count == decoder->length) {
                fwrite(decoder->held, 1, (size_t)decoder->count, stdout);
                decoder->count = 0;
            }
            return;
        }
        fputs("\xEF\xBF\xBD", stdout);
        decoder->count = 0;
    }
    if (byte < 0) {
        return;
    }
    decoder->length = byte < 0x80 ? 1 : byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : 2;
    if (byte < 0x80) {
        putchar(byte);
    } else if (byte < 0xC2 || byte > 0xF4) {
        fputs("\xEF\xBF\xBD", stdout);
    } else {
        decoder->held[decoder->count++] = (unsigned char)byte;
    }
}

#if !BYTES
/* the next id of a prompt; -1 at its end */
static int32_t next_id(const char **prompt) {
    char *end;
    const long token = strtol(*prompt, &end, 10);
    if (end == *prompt && (*prompt)[strspn(*prompt, " \t\n\v\f\r")] == 0) {
        return -1;
    }
    if (end == *prompt || token < 0 || token >= VOCABULARY) {
        fail("--prompt must be ids of the vocabulary, separated by white space, not ", *prompt);
    }
    *prompt = end;
    return (int32_t)token;
}
#endif

static void sample(
    reader *read, const struct sampler *sampler, const char *prompt, long tokens, int stop) {
    struct decoder decoder = {{0}, 0, 0};
    start(&model, read);
    read_token(&model, SEPARATOR);
#if BYTES
    for (; *prompt; prompt++) {
        write_byte(&decoder, (unsigned char)*prompt);
        read_token(&model, (unsigned char)*prompt);
    }
#else
    for (const char *rest = prompt; next_id(&rest) >= 0;) { /* before the first is written */
    }
    for (int32_t token; (token = next_id(&prompt)) >= 0;) {
        printf("%ld ", (long)token);
        read_token(&model, token);
    }
#endif
    fflush(stdout);
    for (long number = 0; number < tokens; number++) {
        const int32_t token = choose(sampler, model.logits, (uint64_t)number);
        if (stop && token == SEPARATOR) {
            break;
        }
        if (BYTES) {
            write_byte(&decoder, (int)token);
        } else {
            printf("%ld ", (long)token);
        }
        if (number + 1 < tokens) {
            read_token(&model, token);
        }
    }
    write_byte(&decoder, -1);
    putchar('\n');
}

static const char usage[] =
    "usage: PROGRAM [--model FILE] score FILE ...            bits of texts; - is standard input\n"
    "       PROGRAM [--model FILE] sample [--prompt TEXT] [--tokens N] [--seed S]\n"
    "               [--temperature T] [--top_k K] [--top_p P] [--no_stop]\n"
#if !BYTES
    "Texts are ids of the tokenizer, decimal, separated by white space.\n"
#endif
    "--path NAME computes by vnni, avx2, neon or rows: the same numbers, at another speed.\n";

static uint32_t whole(const char *name, const char *value, uint64_t least, uint64_t most) {
    uint64_t found = 0;
    const char *digit = value;
    for (; *digit >= '0' && *digit <= '9' && found <= most; digit++) {
        found = found * 10 + (uint64_t)(*digit - '0');
    }
    if (digit == value || *digit || found < least || found > most) {
        fail("must be a whole number in its range: ", name);
    }
    return (uint32_t)found;
}

int main(int count, char **words) {
    static struct sampler sampler;
    const char *path = NULL, *by = NULL, *command = NULL, *prompt = "", *tokens = "256";
    const char *seed = "0", *top_k = "0", *top_p = "1", *temperature = "0.8";
    char **files = words + 1; /* over words that were read, behind the program's path */
    int stop = 1, found = 0;
    const struct {
        const char *name, **value;
    } options[] = {{"--model", &path},    {"--path", &by},     {"--prompt", &prompt},
                   {"--tokens", &tokens}, {"--seed", &seed},   {"--temperature", &temperature},
                   {"--top_k", &top_k},   {"--top_p", &top_p}};
    for (int i = 1; i < count; i++) {
        const char *word = words[i], *value = strchr(word, '=');
        size_t length = value != NULL ? (size_t)(value - word) : strlen(word), k = 0;
        if (strncmp(word, "--", 2) != 0) {
            if (command == NULL) {
                command = word;
            } else {
                files[found++] = words[i];
            }
            continue;
        }
        if (strcmp(word, "--help") == 0) {
            fputs(usage, stdout);
            return 0;
        }
        if (strcmp(word, "--no_stop") == 0) {
            stop = 0;
            continue;
        }
        while (k < sizeof options / sizeof *options
               && (strlen(options[k].name) != length || memcmp(options[k].name, word, length))) {
            k++;
        }
        if (k == sizeof options / sizeof *options) {
            fail("unknown option; see --help: ", word);
        }
        if (value == NULL && ++i == count) {
            fail("a value must follow ", word);
        }
        *options[k].value = value != NULL ? value + 1 : words[i];
    }
    if (command == NULL) {
        fputs(usage, stderr);
        return 2;
    }
    const uint32_t draws = whole("--tokens", tokens, 1, INT32_MAX);
    sampler.seed = whole("--seed", seed, 0, UINT32_MAX);
    sampler.top_k = (int32_t)whole("--top_k", top_k, 0, INT32_MAX);
    if (!read_binary(temperature, &sampler.temperature)) {
        fail("--temperature must be decimal, of at most 18 digits, such as 0.8, not ", temperature);
    }
    const struct binary one = {UINT64_C(1) << 52, -52};
    if (!read_binary(top_p, &sampler.top_p) || !sampler.top_p.mantissa
        || sampler.top_p.exponent > one.exponent
        || (sampler.top_p.exponent == one.exponent && sampler.top_p.mantissa > one.mantissa)) {
        fail("--top_p must be decimal, above 0 and at most 1, not ", top_p);
    }
    const int scores = strcmp(command, "score") == 0;
    if (!scores && strcmp(command, "sample") != 0) {
        fail("unknown command; see --help: ", command);
    }
    if (scores != (found > 0)) {
        fail(scores ? "name the files to score" : "sample takes options only; see --help", "");
    }
    load(path, words[0]);
    if (scores) {
        score(reader_of(by), found, files);
    } else {
        prepare(&sampler);
        sample(reader_of(by), &sampler, prompt, (long)draws, stop);
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fail("the result could not be written", "");
    }
    return 0;
}
