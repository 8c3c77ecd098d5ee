
/* The hash of the weights, by which archives know their model -----------------------------------

   A sum over tensors and their words of four weights, lowest first: int_lm/model/hashing.py. Two
   lanes, modulo 2^32 each. A tensor has keys, made of its name and shape; words are numbered:

       first = mix(word ^ (number 0x9E3779B1 + key_0));   second = mix(first + key_1);   + key_2 */

typedef void hash_function(const int8_t *values, size_t rows, size_t length, const uint32_t *keys);

#define GOLDEN UINT32_C(0x9E3779B1)

static uint32_t weights_hash[2];

/* MurmurHash3's finaliser (Appleby, 2011) */
UNUSED static INLINE uint32_t mixed(uint32_t x) {
    x = (x ^ x >> 16) * UINT32_C(0x85EBCA6B);
    x = (x ^ x >> 13) * UINT32_C(0xC2B2AE35);
    return x ^ x >> 16;
}

/* four weights, the first one in the lowest bits */
UNUSED static INLINE uint32_t word_of(const int8_t *values) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint32_t word;
    memcpy(&word, values, 4);
    return word;
#else
    return (uint32_t)(uint8_t)values[0] | (uint32_t)(uint8_t)values[1] << 8
        | (uint32_t)(uint8_t)values[2] << 16 | (uint32_t)(uint8_t)values[3] << 24;
#endif
}

UNUSED static INLINE void hash_tensor(
    const int8_t *values, size_t rows, size_t length, const uint32_t *keys) {
    uint32_t first = keys[2], second = keys[2], number = keys[0];
    const size_t whole = length % 4 ? length / 4 : rows * length / 4; /* rows end with words, or */
    for (size_t row = 0; row < (length % 4 ? rows : 1); row++) {      /* with a word of zeros too */
        int8_t last[4] = {0};
        for (size_t i = 0; i < whole; i++) {
            const uint32_t one = mixed(word_of(values + 4 * i) ^ (number + (uint32_t)i * GOLDEN));
            first += one;
            second += mixed(one + keys[1]);
        }
        number += (uint32_t)whole * GOLDEN;
        if (length % 4) {
            memcpy(last, values + 4 * whole, length % 4);
            const uint32_t one = mixed(word_of(last) ^ number);
            first += one;
            second += mixed(one + keys[1]);
            number += GOLDEN;
        }
        values += length;
    }
    weights_hash[0] += first;
    weights_hash[1] += second;
}

static void hash_weights(const struct tensor *tensor, const int8_t *values, hash_function *hash) {
    const size_t length = tensor->shape[tensor->axes - 1];
    if (hash != NULL) {
        hash(values, (size_t)tensor->bytes / length, length, tensor->keys);
    }
}
