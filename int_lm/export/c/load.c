/* Weights ----------------------------------------------------------------------------------------

   model.safetensors: 8 bytes, the length of the header; the header, JSON; the tensors. Whatever is
   not as an export writes it ends the program: one sentence, exit code 2. With MODEL_ARRAY, the
   name of a file that holds the bytes as `const unsigned char model_array[] = {...};`, the weights
   stay where the linker puts them. */

static const char *model_name = MODEL_FILE; /* or what --model names */

static void put_text(const char *text) {
    for (; *text; text++) { /* a file's content commands no terminal */
        putc(*text >= ' ' && *text <= '~' ? *text : '?', stderr);
    }
}

/* ends the program; `text` and `which` may be names from outside */
static void fail_of(const char *text, const char *what, const char *which) {
#if defined(THREADS) && THREADS > 1
    static int failing;
    while (__atomic_exchange_n(&failing, 1, __ATOMIC_ACQ_REL)) { /* one thread ends the program */
    }
#endif
    fflush(stdout);
    fputs("error: ", stderr);
    put_text(text);
    fputs(what, stderr);
    put_text(which);
    putc('\n', stderr);
    exit(2);
}

static void fail(const char *what, const char *which) { fail_of("", what, which); }

/* JSON, as far as the header has it: objects, arrays, strings and natural numbers */

enum { NAME_BYTES = 256 };
#define DAMAGED(what, which) fail_of(model_name, " is damaged, or of another model: " what, which)

static void need(int sound) {
    if (!sound) {
        DAMAGED("", "its header is not one that an export writes; export the model again");
    }
}

static char next(const char **at) {
    while (**at == ' ' || **at == '\n' || **at == '\t' || **at == '\r') {
        ++*at;
    }
    return **at;
}

static void expect(const char **at, char character) {
    need(next(at) == character);
    ++*at;
}

/* 1 if another entry follows in an object or array, 0 at its end */
static int follows(const char **at, char end, int *entries) {
    if (next(at) == end) {
        ++*at;
        return 0;
    }
    if (*entries > 0) {
        expect(at, ',');
        need(next(at) != end);
    }
    ++*entries;
    return 1;
}

static void text(const char **at, char *out, size_t room) {
    size_t count = 0;
    expect(at, '"');
    while (**at != '"') {
        if (**at == '\\') {
            ++*at;
            need(**at == '"' || **at == '\\' || **at == '/');
        }
        need((unsigned char)**at >= ' ' && count + 1 < room);
        out[count++] = *(*at)++;
    }
    ++*at;
    out[count] = 0;
}

static uint64_t number(const char **at) {
    uint64_t found = 0;
    need(next(at) >= '0' && **at <= '9');
    need(**at != '0' || (*at)[1] < '0' || (*at)[1] > '9');
    while (**at >= '0' && **at <= '9') {
        need(found < UINT64_MAX / 16);
        found = found * 10 + (uint64_t)(*(*at)++ - '0');
    }
    return found;
}

/* Tensors: what the header says of each */

struct found {
    int known, digested, parts; /* parts: it is a table that is there in parts */
    uint64_t begin, end;
    unsigned char digest[32];
};

static struct found found_tensors[TENSORS];

static int tensor_of(const char *name) {
    for (int i = 0; i < TENSORS; i++) {
        if (strcmp(name, tensors[i].name) == 0) {
            return i;
        }
    }
    DAMAGED("this program has no tensor of the name ", name);
    return 0;
}

static void read_tensor(const char **at, int which) {
    const struct tensor *tensor = &tensors[which];
    struct found *found = &found_tensors[which];
    char name[NAME_BYTES], dtype[NAME_BYTES] = "";
    int entries = 0, axes = -1, spans = 0;
    need(!found->known);
    found->known = 1;
    found_tensors[which - tensor->part].parts |= tensor->part > 0;
    expect(at, '{');
    while (follows(at, '}', &entries)) {
        text(at, name, sizeof name);
        expect(at, ':');
        if (strcmp(name, "dtype") == 0) {
            text(at, dtype, sizeof dtype);
        } else if (strcmp(name, "shape") == 0) {
            need(axes == -1);
            axes = 0;
            expect(at, '[');
            while (follows(at, ']', &axes)) {
                const uint64_t size = number(at);
                if (axes > tensor->axes || (size != tensor->shape[axes - 1] && !tensor->part)) {
                    DAMAGED("this program was made for another shape of ", tensor->name);
                }
            }
        } else {
            need(strcmp(name, "data_offsets") == 0 && spans == 0);
            spans = 1;
            expect(at, '[');
            found->begin = number(at);
            expect(at, ',');
            found->end = number(at);
            expect(at, ']');
        }
    }
    need(entries == 3 && spans == 1);
    if (axes != tensor->axes || strcmp(dtype, tensor->dtype) != 0) {
        DAMAGED("this program was made for another shape of ", tensor->name);
    }
    need(found->end >= found->begin && (tensor->part || found->end - found->begin == tensor->bytes));
}

static void digest(const char *digits, unsigned char out[32]) {
    need(strlen(digits) == 64);
    for (int i = 0; i < 64; i++) {
        const char *values = "0123456789abcdef", *value = strchr(values, digits[i]);
        need(value != NULL);
        out[i / 2] = (unsigned char)(out[i / 2] << 4 | (value - values));
    }
}

static void read_metadata(const char *at) {
    unsigned char config_digest[32] = {0};
    char name[NAME_BYTES], digits[NAME_BYTES];
    int entries = 0, inner = 0;
    expect(&at, '{');
    while (follows(&at, '}', &entries)) {
        text(&at, name, sizeof name);
        expect(&at, ':');
        if (strcmp(name, "format_version") == 0) {
            const uint64_t version = number(&at);
            if (version == 0 || version > FORMAT_VERSION) {
                fail_of(
                    model_name, " is of another format version; ", "export the model again");
            }
        } else if (strcmp(name, "config_sha256") == 0) {
            text(&at, digits, sizeof digits); /* of config.json, which is not read here */
            digest(digits, config_digest);
        } else {
            need(strcmp(name, "sha256") == 0);
            expect(&at, '{');
            while (follows(&at, '}', &inner)) {
                text(&at, name, sizeof name);
                expect(&at, ':');
                text(&at, digits, sizeof digits);
                struct found *found = &found_tensors[tensor_of(name)];
                need(!found->digested);
                found->digested = 1;
                digest(digits, found->digest);
            }
        }
    }
    need(entries == 3 && next(&at) == 0);
}

static void read_header(const char *at) {
    static char metadata[HEADER_BYTES];
    char name[NAME_BYTES];
    int entries = 0;
    expect(&at, '{');
    while (follows(&at, '}', &entries)) {
        text(&at, name, sizeof name);
        expect(&at, ':');
        if (strcmp(name, "__metadata__") == 0) {
            need(metadata[0] == 0);
            expect(&at, '{');
            text(&at, name, sizeof name);
            need(strcmp(name, "int_lm") == 0);
            expect(&at, ':');
            text(&at, metadata, sizeof metadata);
            expect(&at, '}');
        } else {
            read_tensor(&at, tensor_of(name));
        }
    }
    need(next(&at) == 0);
    read_metadata(metadata);
    for (int i = 0; i < TENSORS; i++) { /* a table is there as a whole, or in all of its parts */
        const int apart = found_tensors[i - tensors[i].part].parts;
        const int wanted = apart == (tensors[i].part > 0);
        if (found_tensors[i].known != wanted || found_tensors[i].digested != wanted) {
            DAMAGED("it lacks, or has too much of, ", tensors[i].name);
        }
    }
}

static void check_digest(int which, struct sha256 *sha256) {
    unsigned char own[32];
    sha256_end(sha256, own);
    if (memcmp(own, found_tensors[which].digest, 32) != 0) {
        DAMAGED("the digest differs of ", tensors[which].name);
    }
}

static void check_tensor(int which, const unsigned char *bytes) {
    struct sha256 sha256;
    sha256_start(&sha256);
    sha256_add(&sha256, bytes, (size_t)tensors[which].bytes);
    check_digest(which, &sha256);
    for (size_t i = 0; tensors[which].place != NULL && i < tensors[which].bytes; i++) {
        if (bytes[i] == 0x80) {
            DAMAGED("a weight is -128 in ", tensors[which].name);
        }
    }
}

