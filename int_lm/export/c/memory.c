/* where the weights come to lie */
#ifdef MODEL_ARRAY
#include MODEL_ARRAY
#else
static FILE *model_file;
static ALIGNED int8_t memory[MEMORY_BYTES];
#endif

#if defined(MODEL_ARRAY) && defined(ROOM_FOR_TABLES)
static ALIGNED int8_t memory[TABLE_BYTES]; /* the other weights stay where the linker puts them */
#endif

/* bytes of the model, from its `begin` on */
static void read_at(uint64_t begin, void *out, uint64_t count) {
#ifdef MODEL_ARRAY
    need(begin <= sizeof model_array && count <= sizeof model_array - begin);
    memcpy(out, model_array + begin, (size_t)count);
#else
    need(begin <= INT32_MAX || sizeof(long) > 4);
    if (fseek(model_file, (long)begin, SEEK_SET) != 0
        || fread(out, 1, (size_t)count, model_file) != count) {
        DAMAGED("it ends too early; ", "export the model again");
    }
#endif
}

/* The parts of a table, each read from its beginning to its end: a bit for every row that is not
   all 0, the lowest of a byte first; of each such row the number of entries that are not 0, less
   one; and of these, row by row, columns and values. */

enum { STREAM_BYTES = 1 << 12 };

struct stream {
    uint64_t at, left;
    size_t used, filled;
    struct sha256 sha256;
    unsigned char buffer[STREAM_BYTES];
};

static int next_byte(struct stream *stream) {
    if (stream->used == stream->filled) {
        need(stream->left > 0);
        stream->filled = stream->left < STREAM_BYTES ? (size_t)stream->left : STREAM_BYTES;
        read_at(stream->at, stream->buffer, stream->filled);
        sha256_add(&stream->sha256, stream->buffer, stream->filled);
        stream->at += stream->filled;
        stream->left -= stream->filled;
        stream->used = 0;
    }
    return stream->buffer[stream->used++];
}

/* a number of a row's entries, or of a column */
static uint32_t next_index(struct stream *stream) {
    uint32_t found = (uint32_t)next_byte(stream);
    return VOCABULARY > 256 ? found | (uint32_t)next_byte(stream) << 8 : found;
}

UNUSED static void spread(int which, uint64_t data, int8_t *table) {
    static struct stream streams[4];
    const uint32_t rows = tensors[which].shape[0];
    for (int part = 0; part < 4; part++) {
        const struct found *found = &found_tensors[which + 1 + part];
        streams[part].at = data + found->begin;
        streams[part].left = found->end - found->begin;
        streams[part].used = streams[part].filled = 0;
        sha256_start(&streams[part].sha256);
    }
    int bits = 0;
    for (uint32_t row = 0; row < rows; row++, bits >>= 1, table += VOCABULARY) {
        bits = row % 8 == 0 ? next_byte(&streams[0]) : bits;
        if (!(bits & 1)) {
            continue;
        }
        for (uint32_t left = next_index(&streams[1]) + 1; left > 0; left--) {
            const uint32_t column = next_index(&streams[2]);
            const int value = next_byte(&streams[3]);
            need(column < VOCABULARY && value != 0x80);
            table[column] = (int8_t)(value < 0x80 ? value : value - 0x100);
        }
    }
    for (int part = 0; part < 4; part++) {
        need(streams[part].left == 0 && streams[part].used == streams[part].filled);
        check_digest(which + 1 + part, &streams[part].sha256);
    }
}

#ifndef MODEL_ARRAY
static FILE *open_model(const char *path, const char *program) {
    static char beside[1 << 12];
    const char *places[2];
    if (path != NULL) {
        FILE *file = fopen(path, "rb");
        if (file == NULL) {
            fail("cannot open the model ", path);
        }
        model_name = path;
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
                model_name = beside;
                return file;
            }
        }
    }
    fail("no " MODEL_FILE " beside this program; ", "name it with --model FILE");
    return NULL;
}

#if TILED
static void tile_all(const struct tensor *tensor, int8_t *place) {
    static int8_t scratch[TILE * BLOCK * COLUMNS];
    const uint32_t rows = tensor->shape[tensor->axes - 2];
    const uint32_t columns = tensor->shape[tensor->axes - 1];
    for (uint64_t k = tensor->bytes / rows / columns; k-- > 0;) {
        tile(place + k * MATRIX(rows, columns), place + k * rows * columns, (int32_t)rows,
             (int32_t)columns, scratch);
    }
}
#endif
#endif

static void load(const char *path, const char *program, hash_function *hash) {
    static char header[HEADER_BYTES];
    unsigned char first[8];
    uint64_t length = 0;
#ifdef MODEL_ARRAY
    (void)path, (void)program;
#else
    model_file = open_model(path, program);
#endif
    read_at(0, first, 8);
    for (int i = 7; i >= 0; i--) {
        length = length << 8 | first[i];
    }
    need(length < HEADER_BYTES);
    read_at(8, header, length);
    read_header(header);
    const uint64_t data = 8 + length;
#if !defined(MODEL_ARRAY) || defined(ROOM_FOR_TABLES)
    size_t used = 0;
#endif
    for (int i = 0; i < TENSORS; i++) {
        const struct tensor *tensor = &tensors[i];
        if (tensor->part) {
            continue;
        }
#if !defined(MODEL_ARRAY) || defined(ROOM_FOR_TABLES)
        if (found_tensors[i].parts) {
            *tensor->place = memory + used;
            spread(i, data, memory + used);
            hash_weights(tensor, memory + used, hash);
            used += tensor->room;
            continue;
        }
#else
        if (found_tensors[i].parts) {
            fail("compile with -DROOM_FOR_TABLES, which unpacks it to memory: ", tensor->name);
        }
#endif
#ifdef MODEL_ARRAY
        need(found_tensors[i].end <= sizeof model_array - data);
        const unsigned char *bytes = model_array + data + found_tensors[i].begin;
        check_tensor(i, bytes);
        if (tensor->place != NULL) {
            *tensor->place = (const int8_t *)bytes;
            hash_weights(tensor, *tensor->place, hash);
        }
#else
        int8_t *place = memory + used; /* what this program has in itself is only looked at */
        used += tensor->room;
        read_at(data + found_tensors[i].begin, place, tensor->bytes);
        check_tensor(i, (const unsigned char *)place);
        if (tensor->place != NULL) {
            *tensor->place = place;
            hash_weights(tensor, place, hash);
        }
#if TILED
        if (tensor->tiled) {
            tile_all(tensor, place);
        }
#endif
#endif
    }
#ifndef MODEL_ARRAY
    fclose(model_file);
#endif
}

