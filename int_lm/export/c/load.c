/* Weights ----------------------------------------------------------------------------------------

   model.safetensors: 8 bytes, the length of the header; the header, JSON; the tensors. Whatever is
   not as an export writes it ends the program: one sentence, exit code 2. With MODEL_ARRAY, the
   name of a file that holds the bytes as `const unsigned char model_array[] = {...};`, the weights
   stay where the linker puts them. */

static void fail(const char *what, const char *which) {
    fflush(stdout);
    fprintf(stderr, "error: %s", what);
    for (; *which; which++) { /* a file's content commands no terminal */
        putc(*which >= ' ' && *which <= '~' ? *which : '?', stderr);
    }
    putc('\n', stderr);
    exit(2);
}

/* JSON, as far as the header has it: objects, arrays, strings and natural numbers */

enum { NAME_BYTES = 256 };
#define DAMAGED "model.safetensors is damaged, or of another model: "

static void need(int sound) {
    if (!sound) {
        fail(DAMAGED, "its header is not one that an export writes; export the model again");
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
    int known, digested;
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
    fail(DAMAGED "this program has no tensor of the name ", name);
    return 0;
}

static void read_tensor(const char **at, int which) {
    const struct tensor *tensor = &tensors[which];
    struct found *found = &found_tensors[which];
    char name[NAME_BYTES], dtype[NAME_BYTES] = "";
    int entries = 0, axes = -1, spans = 0;
    need(!found->known);
    found->known = 1;
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
                if (axes > tensor->axes || number(at) != tensor->shape[axes - 1]) {
                    fail(DAMAGED "this program was made for another shape of ", tensor->name);
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
    if (axes != tensor->axes || strcmp(dtype, tensor->size == 1 ? "I8" : "I32") != 0) {
        fail(DAMAGED "this program was made for another shape of ", tensor->name);
    }
    need(found->end >= found->begin && found->end - found->begin == tensor->bytes);
}

static void read_metadata(const char *at) {
    char name[NAME_BYTES], digits[NAME_BYTES];
    int entries = 0, inner = 0;
    expect(&at, '{');
    while (follows(&at, '}', &entries)) {
        text(&at, name, sizeof name);
        expect(&at, ':');
        if (strcmp(name, "format_version") == 0) {
            if (number(&at) != FORMAT_VERSION) {
                fail("model.safetensors is of another format version; ", "export the model again");
            }
        } else if (strcmp(name, "config_sha256") == 0) {
            text(&at, digits, sizeof digits);
        } else {
            need(strcmp(name, "sha256") == 0);
            expect(&at, '{');
            while (follows(&at, '}', &inner)) {
                text(&at, name, sizeof name);
                expect(&at, ':');
                text(&at, digits, sizeof digits);
                struct found *found = &found_tensors[tensor_of(name)];
                need(!found->digested && strlen(digits) == 64);
                found->digested = 1;
                for (int i = 0; i < 64; i++) {
                    const char *values = "0123456789abcdef", *value = strchr(values, digits[i]);
                    need(value != NULL);
                    found->digest[i / 2] =
                        (unsigned char)(found->digest[i / 2] << 4 | (value - values));
                }
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
    for (int i = 0; i < TENSORS; i++) {
        if (!found_tensors[i].known || !found_tensors[i].digested) {
            fail(DAMAGED "it lacks ", tensors[i].name);
        }
    }
}

static void check_tensor(int which, const unsigned char *bytes) {
    struct sha256 sha256;
    unsigned char digest[32];
    sha256_start(&sha256);
    sha256_add(&sha256, bytes, (size_t)tensors[which].bytes);
    sha256_end(&sha256, digest);
    if (memcmp(digest, found_tensors[which].digest, 32) != 0) {
        fail(DAMAGED "the digest differs of ", tensors[which].name);
    }
    for (size_t i = 0; tensors[which].size == 1 && i < tensors[which].bytes; i++) {
        if (bytes[i] == 0x80) {
            fail(DAMAGED "a weight is -128 in ", tensors[which].name);
        }
    }
}

#ifdef MODEL_ARRAY
#include MODEL_ARRAY

static void load(const char *path, const char *program) {
    static char header[HEADER_BYTES];
    uint64_t length = 0;
    (void)path, (void)program;
    for (int i = 7; i >= 0; i--) {
        length = length << 8 | model_array[i];
    }
    need(sizeof model_array >= 8 && length < HEADER_BYTES && length <= sizeof model_array - 8);
    memcpy(header, model_array + 8, (size_t)length);
    read_header(header);
    for (int i = 0; i < TENSORS; i++) {
        need(found_tensors[i].end <= sizeof model_array - 8 - length);
        const unsigned char *bytes = model_array + 8 + length + found_tensors[i].begin;
        check_tensor(i, bytes);
        if (tensors[i].place != NULL) {
            *tensors[i].place = (const int8_t *)bytes;
        }
    }
}
#else

/* where all weights lie */
static ALIGNED int8_t memory[MEMORY_BYTES];

static FILE *open_model(const char *path, const char *program) {
    static char beside[1 << 12];
    const char *places[2];
    if (path != NULL) {
        FILE *file = fopen(path, "rb");
        if (file == NULL) {
            fail("cannot open the model ", path);
        }
        return file;
    }
    places[0] = program;
    places[1] = __FILE__;
    for (int i = 0; i < 2; i++) { /* beside the program, and beside what it was compiled from */
        const char *slash = places[i] == NULL ? NULL : strrchr(places[i], '/');
        const size_t length = slash == NULL ? 0 : (size_t)(slash - places[i]) + 1;
        if (length + sizeof MODEL_FILE <= sizeof beside) {
            memcpy(beside, places[i], length);
            memcpy(beside + length, MODEL_FILE, sizeof MODEL_FILE);
            FILE *file = fopen(beside, "rb");
            if (file != NULL) {
                return file;
            }
        }
    }
    fail("no " MODEL_FILE " beside this program; ", "name it with --model FILE");
    return NULL;
}

static void load(const char *path, const char *program) {
    static char header[HEADER_BYTES];
    unsigned char first[8];
    uint64_t length = 0;
    size_t used = 0;
    FILE *file = open_model(path, program);
    need(fread(first, 1, 8, file) == 8);
    for (int i = 7; i >= 0; i--) {
        length = length << 8 | first[i];
    }
    need(length < HEADER_BYTES && fread(header, 1, (size_t)length, file) == length);
    read_header(header);
    for (int i = 0; i < TENSORS; i++) {
        const struct tensor *tensor = &tensors[i];
        const uint64_t begin = 8 + length + found_tensors[i].begin;
        int8_t *place = memory + used; /* tables, which this program has, are only looked at here */
        need(begin <= INT32_MAX || sizeof(long) > 4);
        if (fseek(file, (long)begin, SEEK_SET) != 0
            || fread(place, 1, (size_t)tensor->bytes, file) != tensor->bytes) {
            fail(DAMAGED "it ends within ", tensor->name);
        }
        check_tensor(i, (const unsigned char *)place);
        if (tensor->place == NULL) {
            continue;
        }
        *tensor->place = place;
        used += tensor->room;
#if TILED
        static int8_t scratch[TILE * BLOCK * COLUMNS];
        if (tensor->tiled) {
            const uint32_t rows = tensor->shape[tensor->axes - 2];
            const uint32_t columns = tensor->shape[tensor->axes - 1];
            for (uint64_t k = tensor->bytes / rows / columns; k-- > 0;) {
                tile(place + k * MATRIX(rows, columns), place + k * rows * columns,
                     (int32_t)rows, (int32_t)columns, scratch);
            }
        }
#endif
    }
    fclose(file);
}
#endif

