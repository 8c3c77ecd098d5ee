/* The draw of the next token ------------------------------------------------------------------- */

/* the 128 bits of x y: the upper half and the lower one */
static void multiply(uint64_t x, uint64_t y, uint64_t *high, uint64_t *low) {
    const uint64_t mask = 0xFFFFFFFF, a = x >> 32, b = x & mask, c = y >> 32, d = y & mask;
    const uint64_t bd = b * d, ad = a * d, bc = b * c;
    const uint64_t middle = (bd >> 32) + (ad & mask) + (bc & mask);
    *low = middle << 32 | (bd & mask);
    *high = a * c + (ad >> 32) + (bc >> 32) + (middle >> 32);
}

/* mantissa 2^exponent, 2^52 <= mantissa < 2^53: what IEEE 754 has nearest to a decimal number */
struct binary {
    uint64_t mantissa;
    int exponent;
};

/* 0 if `text` is no decimal number of at most 18 digits; a mantissa of 0 stands for 0 */
static int read_binary(const char *text, struct binary *out) {
    uint64_t digits = 0, scale = 1;
    int count = 0, point = 0;
    for (; *text; text++) {
        if (*text == '.' && !point) {
            point = 1;
            continue;
        }
        if (*text < '0' || *text > '9' || count == 18) {
            return 0;
        }
        digits = digits * 10 + (uint64_t)(*text - '0');
        scale *= point ? 10 : 1;
        count++;
    }
    out->mantissa = 0;
    out->exponent = 0;
    if (count == 0 || digits == 0) {
        return count > 0;
    }
    uint64_t quotient = digits / scale, rest = digits % scale;
    int sticky = 0;
    while (quotient < UINT64_C(1) << 54) { /* two bits more than it keeps */
        rest *= 2;
        quotient = quotient * 2 + (rest >= scale);
        rest -= rest >= scale ? scale : 0;
        out->exponent--;
    }
    while (quotient >= UINT64_C(1) << 55) {
        sticky |= (int)(quotient & 1);
        quotient >>= 1;
        out->exponent++;
    }
    sticky |= rest != 0;
    const int half = (int)(quotient >> 1 & 1), below = (int)(quotient & 1) | sticky;
    out->mantissa = quotient >> 2;
    out->exponent += 2;
    out->mantissa += (uint64_t)(half && (below || (out->mantissa & 1)));
    if (out->mantissa == UINT64_C(1) << 53) {
        out->mantissa >>= 1;
        out->exponent++;
    }
    return 1;
}

static int below(struct binary x, struct binary y) {
    if (!x.mantissa || !y.mantissa || x.exponent == y.exponent) {
        return x.mantissa < y.mantissa;
    }
    return x.exponent < y.exponent;
}

/* round(2^40 2^(-d / (16 temperature))) */
static uint64_t sampling_weight(int d, struct binary temperature) {
    const int shift = -temperature.exponent - 4; /* d / (16 t) is d 2^shift / mantissa */
    uint64_t rest = (uint64_t)d, power[4] = {0};
    int whole = 0, exact = 1;
    for (int i = 1; i <= shift + ROOTS; i++) { /* bits of d / mantissa below its point */
        rest *= 2;
        const int bit = rest >= temperature.mantissa, place = i - shift;
        rest -= bit ? temperature.mantissa : 0;
        if (!bit) {
            continue;
        }
        if (place <= 0) {
            if (place <= -6) {
                return 0;
            }
            whole += 1 << -place;
        } else if (exact) { /* the power is a product of roots of 1/2, in units of 2^-128 */
            exact = 0;
            for (int n = 0; n < 4; n++) {
                power[n] = roots[place - 1][n];
            }
        } else {
            uint64_t product[8] = {0};
            for (int m = 0; m < 4; m++) {
                uint64_t carry = 0;
                for (int n = 0; n < 4; n++) {
                    carry += power[m] * roots[place - 1][n] + product[m + n];
                    product[m + n] = carry & 0xFFFFFFFF;
                    carry >>= 32;
                }
                product[m + 4] = carry;
            }
            memcpy(power, product + 4, sizeof power);
        }
    }
    if (whole > 40) {
        return 0;
    }
    if (exact) {
        return UINT64_C(1) << (40 - whole);
    }
    const uint64_t top = power[3] << 32 | power[2]; /* the power in units of 2^-64 */
    return ((top >> (23 + whole)) + 1) >> 1;
}

/* Threefry-2x32-20 (Salmon et al., SC 2011), the generator of training, as one word of 64 bits */
static uint64_t threefry(uint32_t key0, uint32_t key1, uint32_t counter0, uint32_t counter1) {
    static const int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
    const uint32_t words[3] = {key0, key1, key0 ^ key1 ^ 0x1BD11BDA};
    uint32_t left = counter0 + words[0], right = counter1 + words[1];
    for (int group = 0; group < 5; group++) {
        for (int i = 0; i < 4; i++) {
            const int rotation = rotations[group % 2][i];
            left += right;
            right = (right << rotation | right >> (32 - rotation)) ^ left;
        }
        left += words[(group + 1) % 3];
        right += words[(group + 2) % 3] + (uint32_t)group + 1;
    }
    return (uint64_t)left << 32 | right;
}

enum { FLOOR = 254, SAMPLING_KEY = 0x53414D50, PENALTY_BITS = 8 };

struct sampler {
    struct binary temperature, top_p, min_p;
    int32_t top_k; /* 0: all */
    uint32_t seed;
    int32_t penalty; /* of repetition, in units of 2^-8: 256 is none */
    int64_t window; /* the penalty is for the last so many tokens */
    uint64_t least; /* weight of a token that `min_p` leaves */
    uint64_t weights[FLOOR + 1];
};

/* ceil(x p) for p = mantissa 2^exponent <= 1 */
static uint64_t share(uint64_t x, struct binary p) {
    uint64_t high, low;
    int down = -p.exponent;
    multiply(x, p.mantissa, &high, &low);
    if (down == 0) {
        return low;
    }
    if (down >= 64) {
        const uint64_t sticky = low != 0;
        down -= 64;
        if (down >= 64) {
            return 1;
        }
        return (high >> down) + ((down && high << (64 - down)) || sticky);
    }
    return (high << (64 - down) | low >> down) + (low << (64 - down) != 0);
}

/* round(p 2^8) of a number from 1 to 100; of two as near, the even one */
static int32_t penalty_of(struct binary p) {
    const int down = -p.exponent - PENALTY_BITS;
    const uint64_t whole = p.mantissa >> down, half = UINT64_C(1) << (down - 1);
    const uint64_t rest = p.mantissa & (2 * half - 1);
    return (int32_t)(whole + (rest > half || (rest == half && (whole & 1))));
}

static void prepare(struct sampler *sampler) {
    for (int d = 0; d <= FLOOR && sampler->temperature.mantissa; d++) {
        sampler->weights[d] = sampling_weight(d, sampler->temperature);
    }
    sampler->least = share(UINT64_C(1) << 40, sampler->min_p);
}

/* Logits with the penalty r of tokens among the last ones: a logit above 0 becomes
   floor(logit / r), another one floor(logit r). `last_read` has the place of the last reading of
   each token, 0 if it was not read; the separator has no penalty. */
static void penalise(
    const struct sampler *sampler, const int64_t *last_read, int64_t place, const logit *logits,
    int32_t *out) {
    for (int32_t v = 0; v < VOCABULARY; v++) {
        out[v] = logits[v];
    }
    for (int32_t v = 0; v < VOCABULARY && sampler->penalty != 1 << PENALTY_BITS; v++) {
        if (v != SEPARATOR && last_read[v] > 0 && place - last_read[v] < sampler->window) {
            out[v] = out[v] > 0 ? (out[v] << PENALTY_BITS) / sampler->penalty
                                : shift_floor(out[v] * sampler->penalty, PENALTY_BITS);
        }
    }
}

/* The token that draw `number` picks. Tokens of one logit are alike, and ordered by their ids: it is
   enough to count them. */
static int32_t choose(const struct sampler *sampler, const int32_t *logits, uint64_t number) {
    static uint8_t distances[VOCABULARY];
    uint32_t counts[FLOOR + 1] = {0};
    int32_t top = logits[0];
    for (int32_t v = 1; v < VOCABULARY; v++) {
        top = logits[v] > top ? logits[v] : top;
    }
    for (int32_t v = 0; v < VOCABULARY; v++) {
        const int32_t distance = top - logits[v];
        distances[v] = (uint8_t)(distance < FLOOR ? distance : FLOOR);
    }
    int chosen = 0;
    uint64_t rank = 0; /* among tokens of the chosen distance */
    if (sampler->temperature.mantissa) {
        for (int32_t v = 0; v < VOCABULARY; v++) {
            counts[distances[v]]++;
        }
        uint32_t left = sampler->top_k ? (uint32_t)sampler->top_k : VOCABULARY;
        uint64_t total = 0, before = 0, word, rest;
        for (int d = 0; d <= FLOOR; d++) {
            counts[d] = counts[d] < left ? counts[d] : left;
            left -= counts[d];
            counts[d] *= sampler->weights[d] >= sampler->least;
            total += counts[d] * sampler->weights[d];
        }
        const uint64_t needed = share(total, sampler->top_p);
        for (int d = 0; needed < total; d++) {
            const uint64_t weight = sampler->weights[d], after = before + counts[d] * weight;
            if (after >= needed) { /* the fewest that have what is needed */
                total = before + (needed - before + weight - 1) / weight * weight;
                break;
            }
            before = after;
        }
        word = threefry(
            sampler->seed, SAMPLING_KEY, (uint32_t)(number & 0xFFFFFFFF), (uint32_t)(number >> 32));
        multiply(word, total, &word, &rest); /* word < total */
        while (word >= counts[chosen] * sampler->weights[chosen]) {
            word -= counts[chosen] * sampler->weights[chosen];
            chosen++;
        }
        rank = word / sampler->weights[chosen];
    }
    int32_t v = 0;
    while (distances[v] != chosen || rank-- > 0) {
        v++;
    }
    return v;
}

