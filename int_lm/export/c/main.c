
/* Commands ------------------------------------------------------------------------------------- */

static const char usage[] =
    "usage: PROGRAM score FILE ...                   bits of texts; - is standard input\n"
    "       PROGRAM sample [options]                 a text\n"
    "           --prompt TEXT, or --prompt_file FILE    what it begins with\n"
    "           --tokens N --seed S --temperature T --top_k K --top_p P --min_p P\n"
    "           --repetition_penalty R --repetition_window N --no_stop\n"
#if BYTES
    "           --stop TEXT                             ends before it; may be given 16 times\n"
#else
    "       Texts are ids of the tokenizer, decimal, separated by white space.\n"
#endif
#if ARCHIVES
    "       PROGRAM compress IN OUT [--learn] [--lanes N] [--overwrite]\n"
    "       PROGRAM decompress IN OUT [--overwrite]\n"
#endif
    "       --model FILE         the weights; otherwise " MODEL_FILE " beside the program\n"
    "       --path NAME          vnni, avx2, neon or rows: the same numbers, at another speed\n";

/* the value of an option: a whole number */
static uint64_t whole(const char *name, const char *value, uint64_t least, uint64_t most) {
    uint64_t found = 0;
    const char *digit = value;
    for (; *digit >= '0' && *digit <= '9' && found <= most; digit++) {
        found = found * 10 + (uint64_t)(*digit - '0');
    }
    if (digit == value || *digit || found < least || found > most) {
        fail("must be a whole number in its range: ", name);
    }
    return found;
}

/* the value of an option: a number from `least` to `most`; a bound of 0 is none */
static struct binary decimal(const char *name, const char *value, const char *least, const char *most) {
    struct binary found, low, high;
    const int sound = read_binary(value, &found);
    read_binary(least, &low);
    read_binary(most, &high);
    if (!sound || below(found, low) || (high.mantissa && below(high, found))) {
        fail("must be a decimal number in its range, of at most 18 digits, such as 0.8: ", name);
    }
    return found;
}

enum { STOPS_MAX = 16 };

/* the words of the command line */
static struct {
    const char *command, *model, *path, *prompt, *prompt_file, *tokens, *seed, *temperature;
    const char *top_k, *top_p, *min_p, *penalty, *window, *lanes;
    int no_stop, learn, overwrite, help, stop_count, file_count;
    char *stops[STOPS_MAX], **files;
} given = {.prompt = "", .tokens = "256", .seed = "0", .temperature = "0.8", .top_k = "0",
           .top_p = "1", .min_p = "0", .penalty = "1", .window = "0", .lanes = "0"};

static const struct {
    const char *name, **value; /* for a text, or else a flag */
    int *flag;
} options[] = {
    {"--model", &given.model, NULL},
    {"--path", &given.path, NULL},
    {"--prompt", &given.prompt, NULL},
    {"--prompt_file", &given.prompt_file, NULL},
    {"--tokens", &given.tokens, NULL},
    {"--seed", &given.seed, NULL},
    {"--temperature", &given.temperature, NULL},
    {"--top_k", &given.top_k, NULL},
    {"--top_p", &given.top_p, NULL},
    {"--min_p", &given.min_p, NULL},
    {"--repetition_penalty", &given.penalty, NULL},
    {"--repetition_window", &given.window, NULL},
    {"--lanes", &given.lanes, NULL},
    {"--stop", NULL, NULL}, /* adds to a list */
    {"--no_stop", NULL, &given.no_stop},
    {"--learn", NULL, &given.learn},
    {"--overwrite", NULL, &given.overwrite},
    {"--help", NULL, &given.help},
};

static void read_words(int count, char **words) {
    given.files = words + 1; /* over words that were read, behind the program's path */
    for (int i = 1; i < count; i++) {
        char *word = words[i], *value = strchr(word, '=');
        const size_t length = value != NULL ? (size_t)(value - word) : strlen(word);
        size_t k = 0;
        if (strncmp(word, "--", 2) != 0) {
            if (given.command == NULL) {
                given.command = word;
            } else {
                given.files[given.file_count++] = word;
            }
            continue;
        }
        while (k < sizeof options / sizeof *options
               && (strlen(options[k].name) != length || memcmp(options[k].name, word, length))) {
            k++;
        }
        if (k == sizeof options / sizeof *options || (options[k].flag != NULL && value != NULL)) {
            fail("unknown option; see --help: ", word);
        }
        if (options[k].flag != NULL) {
            *options[k].flag = 1;
            continue;
        }
        if (value == NULL && ++i == count) {
            fail("a value must follow ", word);
        }
        value = value != NULL ? value + 1 : words[i];
        if (options[k].value != NULL) {
            *options[k].value = value;
        } else if (*value == 0 || given.stop_count == STOPS_MAX) {
            fail("give from 1 to 16 texts, none of them empty, with ", word);
        } else {
            given.stops[given.stop_count++] = value;
        }
    }
}

static const struct sampling *sampling_of(void) {
    static struct sampling sampling;
    struct sampler *sampler = &sampling.sampler;
    sampling.prompt = given.prompt;
    sampling.prompt_file = given.prompt_file;
    sampling.tokens = whole("--tokens", given.tokens, 1, INT32_MAX);
    sampling.stop_at_end = !given.no_stop;
    sampling.stop_count = given.stop_count;
    sampling.stops = given.stops;
    sampler->seed = (uint32_t)whole("--seed", given.seed, 0, UINT32_MAX);
    sampler->top_k = (int32_t)whole("--top_k", given.top_k, 0, INT32_MAX);
    sampler->temperature = decimal("--temperature", given.temperature, "0", "0");
    sampler->top_p = decimal("--top_p", given.top_p, "0", "1");
    sampler->min_p = decimal("--min_p", given.min_p, "0", "1");
    sampler->penalty = penalty_of(decimal("--repetition_penalty", given.penalty, "1", "100"));
    const uint64_t window = whole("--repetition_window", given.window, 0, INT32_MAX);
    sampler->window = window ? (int64_t)window : INT64_MAX;
    if (!sampler->top_p.mantissa) {
        fail("must be above 0: ", "--top_p");
    }
    if (given.prompt_file != NULL && *given.prompt) {
        fail("a prompt is a text or a file; leave out --prompt or ", "--prompt_file");
    }
    if (!BYTES && given.stop_count) {
        fail("this model's tokens are ids, in which no text is found; leave out ", "--stop");
    }
    prepare(sampler);
    return &sampling;
}

#if ARCHIVES
static void check_archive_options(void) {
    if (given.file_count != 2) {
        fail("name two files, what to read and what to write: ", "compress IN OUT");
    }
    (void)whole("--lanes", given.lanes, 0, LANES_MAX);
    if (given.learn && !LEARNING) {
        fail(DIRECT ? "this program cannot learn; use python -m int_lm.compress for "
                    : "this model has no context tables, which would learn; leave out ",
            "--learn");
    }
}
#endif

int main(int count, char **words) {
    read_words(count, words);
    const char *command = given.command;
    if (given.help || command == NULL) {
        fputs(usage, given.help ? stdout : stderr);
        return given.help ? 0 : 2;
    }
    const int scores = strcmp(command, "score") == 0, samples = strcmp(command, "sample") == 0;
    const int compresses = strcmp(command, "compress") == 0;
    const int archives = compresses || strcmp(command, "decompress") == 0;
    if (!scores && !samples && !archives) {
        fail("unknown command; see --help: ", command);
    }
    if (scores && given.file_count == 0) {
        fail("name the files to score", "");
    }
    if (samples && given.file_count > 0) {
        fail("sample takes options only; see --help", "");
    }
    const struct sampling *sampling = sampling_of();
    const struct way *way = way_of(given.path);
    if (scores || samples) {
        load(given.model, words[0], NULL);
    }
    if (scores) {
        score(way, given.file_count, given.files);
    } else if (samples) {
        sample(way, sampling);
    } else {
#if ARCHIVES
        check_archive_options();
        open_files(given.files[0], given.files[1], given.overwrite);
        load(given.model, words[0], way->hash);
        if (compresses) {
            compress(way, given.learn, (int32_t)whole("--lanes", given.lanes, 0, LANES_MAX));
        } else {
            decompress(way);
        }
#else
        fail(BYTES ? "compile with -DBLOCK_BYTES=65536 for this command: "
                   : "archives need the tokenizer; use python -m int_lm.compress for ", command);
#endif
    }
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fail("the result could not be written", "");
    }
    return 0;
}
