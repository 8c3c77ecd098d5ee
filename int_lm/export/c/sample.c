
/* Samples --------------------------------------------------------------------------------------- */

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

#if BYTES
/* Stop strings: bytes are held back as long as they may begin one. What is held is the beginning of
   a stop string: `held` bytes of `stops[which]`. */
struct stops {
    int count, which;
    size_t held;
    char **stops;
};

/* byte `place` of what is held and one more */
static int held_byte(const struct stops *s, size_t place, int byte) {
    return place < s->held ? (unsigned char)s->stops[s->which][place] : byte;
}

/* how many of the last bytes, of those held and one more, begin `stop`: the longest such end */
static size_t overlap(const struct stops *s, int byte, const char *stop) {
    const size_t all = s->held + 1, length = strlen(stop);
    for (size_t count = all < length ? all : length; count > 0; count--) {
        size_t i = 0;
        while (i < count && held_byte(s, all - count + i, byte) == (unsigned char)stop[i]) {
            i++;
        }
        if (i == count) {
            return count;
        }
    }
    return 0;
}

/* writes what no stop string can begin with; 1 if a stop string is complete */
static int write_until(struct decoder *decoder, struct stops *s, int byte) {
    size_t kept = 0, stopped = 0;
    int which = 0;
    for (int i = 0; i < s->count; i++) {
        const size_t count = overlap(s, byte, s->stops[i]);
        if (count == strlen(s->stops[i]) && count > stopped) {
            stopped = count;
        } else if (count > kept) {
            kept = count;
            which = i;
        }
    }
    const size_t ready = s->held + 1 - (stopped ? stopped : kept);
    for (size_t i = 0; i < ready; i++) {
        write_byte(decoder, held_byte(s, i, byte));
    }
    s->held = stopped ? 0 : kept;
    s->which = which;
    return stopped > 0;
}
#endif

/* the next token of a prompt, which is a file or else a text; -1 at its end */
static int32_t next_of_prompt(FILE *file, const char *path, const char **text) {
    if (file != NULL) {
#if BYTES
        const int byte = getc(file);
        if (byte == EOF && ferror(file)) {
            fail("cannot read ", path);
        }
        return byte == EOF ? -1 : byte;
#else
        return next_token(file, path);
#endif
    }
#if BYTES
    return **text ? (unsigned char)*(*text)++ : -1;
#else
    return next_id(text);
#endif
}

/* Options of `sample` */
struct sampling {
    struct sampler sampler;
    const char *prompt, *prompt_file;
    uint64_t tokens;
    int stop_at_end, stop_count;
    char **stops;
};

static void write_token(struct decoder *decoder, int32_t token) {
    if (BYTES) {
        write_byte(decoder, (int)token);
    } else {
        printf("%ld ", (long)token);
    }
}

static const struct way *sampling_way;
static const struct sampling *sampling_options;

static void write_sample(void) {
    const struct sampling *options = sampling_options;
    static int64_t last_read[VOCABULARY];
    static int32_t logits[VOCABULARY];
    struct decoder decoder = {{0}, 0, 0};
    const char *prompt = options->prompt, *path = options->prompt_file;
    FILE *file = NULL;
    int64_t place = 0;
#if BYTES
    struct stops stops = {options->stop_count, 0, 0, options->stops};
#else
    for (const char *rest = prompt; next_id(&rest) >= 0;) { /* before the first is written */
    }
#endif
    if (path != NULL) {
        file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
        if (file == NULL) {
            fail("cannot open ", path);
        }
    }
    start(&texts[0], sampling_way);
    read_token(&texts[0], SEPARATOR);
    for (int32_t token; (token = next_of_prompt(file, path, &prompt)) >= 0;) {
        write_token(&decoder, token);
        read_token(&texts[0], token);
        last_read[token] = ++place;
    }
    fflush(stdout);
    for (uint64_t number = 0; number < options->tokens; number++) {
        penalise(&options->sampler, last_read, place, texts[0].logits, logits);
        const int32_t token = choose(&options->sampler, logits, number);
        if (options->stop_at_end && token == SEPARATOR) {
            break;
        }
        last_read[token] = ++place;
#if BYTES
        if (write_until(&decoder, &stops, (int)token)) {
            break;
        }
#else
        write_token(&decoder, token);
#endif
        if (number + 1 < options->tokens) {
            read_token(&texts[0], token);
        }
    }
#if BYTES
    for (size_t i = 0; i < stops.held; i++) {
        write_byte(&decoder, held_byte(&stops, i, 0));
    }
#endif
    write_byte(&decoder, -1);
    putchar('\n');
}

static void sample(const struct way *way, const struct sampling *options) {
    sampling_way = way;
    sampling_options = options;
    with_helpers(write_sample);
}
