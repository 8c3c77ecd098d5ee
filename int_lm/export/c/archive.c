
/* Archives: docs/archive.md has their bytes ---------------------------------------------------- */

#if ARCHIVES
#if defined(__unix__) || defined(__APPLE__)
#include <signal.h>
#endif

enum { HEADER = 36, BLOCK_HEAD = 20, END_BYTES = 40, END_KIND = 0, CODED_KIND = 1, STORED_KIND = 2 };
enum { ARCHIVE_VERSION = 1, LEARNS_FLAG = 1 };

static const unsigned char magic[8] = {0x89, 'I', 'N', 'T', 'L', 'M', '\r', '\n'};

/* CRC-32 of zlib and PNG, of bytes after those of which it is `crc` */
static uint32_t crc32_of(uint32_t crc, const unsigned char *bytes, size_t count) {
    static uint32_t table[256];
    for (uint32_t i = 0; i < 256 && table[255] == 0; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++) {
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xEDB88320 : 0);
        }
    }
    crc = ~crc;
    for (size_t i = 0; i < count; i++) {
        crc = crc >> 8 ^ table[(crc ^ bytes[i]) & 255];
    }
    return ~crc;
}

/* The files: what is written has another name until it is whole */

static struct {
    FILE *source, *target;
    const char *source_name, *target_name;
    char partial_name[1 << 12]; /* "" unless there is a file of this name to be removed */
    uint64_t bytes_read, bytes_written;
    uint32_t crc; /* of the block so far */
} files;

static void remove_partial(void) {
    if (files.partial_name[0]) {
        if (files.target != NULL) {
            fclose(files.target);
        }
        remove(files.partial_name);
    }
}

#if defined(__unix__) || defined(__APPLE__)
static void end_by_signal(int number) {
    if (files.partial_name[0]) {
        remove(files.partial_name);
    }
    signal(number, SIG_DFL);
    raise(number);
}

static void catch_signals(void) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (signal(numbers[i], end_by_signal) == SIG_IGN) {
            signal(numbers[i], SIG_IGN);
        }
    }
}
#else
static void catch_signals(void) {}
#endif

static void open_files(const char *source, const char *target, int overwrite) {
    static const char suffix[] = ".partial";
    const size_t length = strlen(target);
    files.source_name = source;
    files.target_name = target;
    files.source = strcmp(source, "-") == 0 ? stdin : fopen(source, "rb");
    if (files.source == NULL) {
        fail("cannot open ", source);
    }
    if (strcmp(target, "-") == 0) {
        files.target = stdout;
        return;
    }
    FILE *there = fopen(target, "rb");
    if (there != NULL) {
        if (!overwrite) {
            fail("it exists; replace it with --overwrite, or choose another name: ", target);
        }
        (void)getc(there);
        if (ferror(there)) {
            fail("it is no file; choose another name: ", target);
        }
        fclose(there);
    }
    if (length + sizeof suffix > sizeof files.partial_name) {
        fail("this name is too long: ", target);
    }
    memcpy(files.partial_name, target, length);
    memcpy(files.partial_name + length, suffix, sizeof suffix);
    there = fopen(files.partial_name, "rb");
    if (there != NULL && !overwrite) {
        static char in_use[sizeof files.partial_name];
        memcpy(in_use, files.partial_name, sizeof in_use);
        files.partial_name[0] = 0;
        fail("it exists, of an interruption or of something else; remove it, or take --overwrite: ",
            in_use);
    }
    if (there != NULL) {
        fclose(there);
    }
    catch_signals();
    files.target = fopen(files.partial_name, "wb");
    if (files.target == NULL) {
        files.partial_name[0] = 0;
        fail("cannot write beside ", target);
    }
    atexit(remove_partial);
}

static void close_files(void) {
    FILE *target = files.target;
    files.target = NULL;
    if (target == stdout) {
        return;
    }
    const int failed = fflush(target) != 0 || ferror(target);
    if ((fclose(target) != 0) | failed) {
        fail("the result could not be written: ", files.target_name);
    }
    if (rename(files.partial_name, files.target_name) != 0) { /* where a name in use is refused */
        remove(files.target_name);
        if (rename(files.partial_name, files.target_name) != 0) {
            static char kept[sizeof files.partial_name];
            memcpy(kept, files.partial_name, sizeof kept);
            files.partial_name[0] = 0;
            fail("the result could not be given its name; it is whole, at ", kept);
        }
    }
    files.partial_name[0] = 0;
}

/* at most `count` bytes of the source; fewer at its end */
static size_t get(unsigned char *bytes, size_t count) {
    const size_t found = fread(bytes, 1, count, files.source);
    if (found < count && ferror(files.source)) {
        fail("cannot read ", files.source_name);
    }
    files.bytes_read += found;
    return found;
}

static void get_all(unsigned char *bytes, size_t count) {
    require(get(bytes, count) == count, "it was cut short" GET_AGAIN);
    files.crc = crc32_of(files.crc, bytes, count);
}

static void put(const unsigned char *bytes, size_t count) {
    if (fwrite(bytes, 1, count, files.target) != count) {
        fail("the result could not be written: ", files.target_name);
    }
    files.bytes_written += count;
    files.crc = crc32_of(files.crc, bytes, count);
}

static void put_number(uint64_t number, int count) {
    unsigned char bytes[8];
    number_as_bytes(number, bytes, count);
    put(bytes, (size_t)count);
}

static void report(uint64_t text, uint64_t archive) {
    print_whole(stderr, files.bytes_read);
    fprintf(stderr, " bytes became ");
    print_whole(stderr, files.bytes_written);
    if (text > 0) {
        fprintf(stderr, ": ");
        print_ratio(stderr, archive * 8, text);
        fprintf(stderr, " bits per byte");
    }
    fprintf(stderr, "\n");
}

/* the header of this model's archives */
static void make_header(unsigned char *header, int learning) {
    static const char digits[] = "0123456789abcdef";
    memset(header, 0, HEADER);
    memcpy(header, magic, sizeof magic);
    header[8] = ARCHIVE_VERSION;
    header[9] = (unsigned char)(learning ? LEARNS_FLAG : 0);
    number_as_bytes(VOCABULARY, header + 12, 4);
    for (int i = 0; i < 16; i++) {
        header[16 + i] = (unsigned char)digits[weights_hash[i / 8] >> (28 - 4 * (i % 8)) & 15];
    }
    number_as_bytes(crc32_of(0, header, 32), header + 32, 4);
}

static void put_head(int kind, size_t size, size_t tokens, int32_t lanes, size_t payload) {
    files.crc = 0;
    put_number((uint64_t)kind, 4);
    put_number(size, 4);
    put_number(tokens, 4);
    put_number((uint64_t)lanes, 4);
    put_number(payload, 4);
}

static void put_block(const struct way *way, int learning, size_t size, int32_t lanes) {
    const size_t most = learning ? LEARNING_LANES : LANES < LANES_MAX ? LANES : LANES_MAX;
    size_t count = size / LANE_TOKENS < most ? size / LANE_TOKENS : most;
    count = lanes == 0 ? count : (size_t)lanes < size ? (size_t)lanes : size;
    count += count == 0;
    const size_t words = encode_block(way, learning, size, (int32_t)count);
    if (8 * count + 4 * words >= size) {
        put_head(STORED_KIND, size, 0, 0, size);
        put(block_text, size);
#if LEARNING
        forget();
#endif
    } else {
        put_head(CODED_KIND, size, size, (int32_t)count, 8 * count + 4 * words);
        for (size_t lane = 0; lane < count; lane++) {
            put_number(coders[lane], 8);
        }
        for (size_t i = 2 * size - words; i < 2 * size; i++) {
            put_number(numbers[i], 4);
        }
    }
    put_number(files.crc, 4);
}

static void compress(const struct way *way, int learning, int32_t lanes) {
    unsigned char header[HEADER], digest[32];
    struct sha256 sha256;
    size_t size;
#if LEARNING
    prepare_to_learn();
#endif
    sha256_start(&sha256);
    make_header(header, learning);
    put(header, HEADER);
    while ((size = get(block_text, BLOCK_BYTES)) > 0) {
        sha256_add(&sha256, block_text, size);
        put_block(way, learning, size, lanes);
    }
    put_head(END_KIND, 0, 0, 0, END_BYTES);
    put_number(sha256.length, 8);
    const uint64_t length = sha256.length;
    sha256_end(&sha256, digest);
    put(digest, sizeof digest);
    put_number(files.crc, 4);
    close_files();
    report(length, files.bytes_written);
}

/* whether an archive goes on learning; anything but a header of this model's archives is refused */
static int get_header(void) {
    unsigned char header[HEADER], own[HEADER];
    const size_t found = get(header, HEADER);
    if (found < HEADER || memcmp(header, magic, sizeof magic) != 0) {
        fail("it is no archive of int_lm; ", "name a file that was compressed with it");
    }
    if (header[8] != ARCHIVE_VERSION || header[9] > LEARNS_FLAG) {
        fail("the archive is of another version than this program reads; ", "use a newer int_lm");
    }
    make_header(own, header[9]);
    require(bytes_as_number(header + 32, 4) == crc32_of(0, header, 32) && !header[10] && !header[11],
        "its header is damaged" GET_AGAIN);
    if (memcmp(header, own, HEADER) != 0) {
        char names[120] = "";
        sprintf(names, "%.16s, this model has %.16s; use the export that compressed it",
            (const char *)header + 16, (const char *)own + 16);
        fail("the archive was written with the weights ", names);
    }
    return header[9];
}

/* fills `block_text` with the next block's, and returns its size; 0 after the end of the text */
static size_t get_block(const struct way *way, int learning, struct sha256 *sha256) {
    unsigned char head[BLOCK_HEAD], end[END_BYTES], digest[32], bytes[8];
    uint64_t number[5];
    files.crc = 0;
    get_all(head, BLOCK_HEAD);
    for (int i = 0; i < 5; i++) {
        number[i] = bytes_as_number(head + 4 * i, 4);
    }
    const uint64_t kind = number[0], size = number[1], tokens = number[2], lanes = number[3];
    const uint64_t payload = number[4];
    const int coded = kind == CODED_KIND && 0 < tokens && tokens <= 2 << 20 && 0 < lanes
        && lanes <= tokens && lanes <= 1024 && payload % 4 == 0 && 8 * lanes <= payload
        && payload < size;
    const int other = tokens == 0 && lanes == 0
        && (kind == STORED_KIND ? payload == size
                                : kind == END_KIND && size == 0 && payload == END_BYTES);
    require((coded || other) && size <= 1 << 20 && (size > 0 || kind == END_KIND),
        "a block of it is impossible" GET_AGAIN);
    if (size > BLOCK_BYTES || lanes > LANES_MAX) {
        fail("this program was compiled for smaller archives; compile it again without ",
            size > BLOCK_BYTES ? "-DBLOCK_BYTES" : "-DLANES_MAX");
    }
    if (coded) {
        for (size_t i = 0; i < lanes; i++) {
            get_all(bytes, 8);
            coders[i] = bytes_as_number(bytes, 8);
        }
        for (size_t i = 0; i < payload / 4 - 2 * lanes; i++) {
            get_all(bytes, 4);
            numbers[i] = (uint32_t)bytes_as_number(bytes, 4);
        }
    } else {
        get_all(kind == END_KIND ? end : block_text, (size_t)payload);
    }
    const uint32_t crc = files.crc;
    get_all(bytes, 4);
    require(bytes_as_number(bytes, 4) == crc, "a block differs from its CRC-32" GET_AGAIN);
    if (kind == END_KIND) {
        const uint64_t length = sha256->length;
        sha256_end(sha256, digest);
        require(length == bytes_as_number(end, 8) && memcmp(digest, end + 8, 32) == 0,
            "the text differs from its SHA-256" GET_AGAIN);
        require(get(bytes, 1) == 0, "bytes follow its end" GET_AGAIN);
        return 0;
    }
    if (coded) {
        require(tokens == size, "a block has not the length that it says" GET_AGAIN);
        for (size_t i = 0; i < lanes; i++) {
            require(coders[i] >> 32 != 0, "a block cannot be decoded" GET_AGAIN);
        }
        read_block(way, learning, 1, (size_t)size, (int32_t)lanes, payload / 4 - 2 * lanes);
        for (size_t i = 0; i < lanes; i++) {
            require(coders[i] == UINT64_C(1) << 32, "a block cannot be decoded" GET_AGAIN);
        }
#if LEARNING
    } else {
        forget();
#endif
    }
    sha256_add(sha256, block_text, (size_t)size);
    return (size_t)size;
}

static void decompress(const struct way *way) {
    struct sha256 sha256;
    const int learning = get_header();
    size_t size;
    if (learning && !LEARNING) {
        fail("the archive goes on learning, which this program cannot; read it with ",
            "python -m int_lm.compress --decompress");
    }
#if LEARNING
    prepare_to_learn();
#endif
    sha256_start(&sha256);
    while ((size = get_block(way, learning, &sha256)) > 0) {
        put(block_text, size);
    }
    close_files();
    report(files.bytes_written, files.bytes_read);
}
#endif
