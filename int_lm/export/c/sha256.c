/* SHA-256 (FIPS 180-4) ------------------------------------------------------------------------- */

struct sha256 {
    uint32_t hash[8];
    uint64_t length;
    unsigned char block[64];
};

static uint32_t rotated(uint32_t x, int bits) { return x >> bits | x << (32 - bits); }

static void sha256_start(struct sha256 *s) {
    static const uint32_t first[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                                      0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
    memcpy(s->hash, first, sizeof first);
    s->length = 0;
}

static void sha256_block(struct sha256 *s, const unsigned char *bytes) {
    static const uint32_t constants[64] = {
        0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4,
        0xAB1C5ED5, 0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE,
        0x9BDC06A7, 0xC19BF174, 0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F,
        0x4A7484AA, 0x5CB0A9DC, 0x76F988DA, 0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7,
        0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967, 0x27B70A85, 0x2E1B2138, 0x4D2C6DFC,
        0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85, 0xA2BFE8A1, 0xA81A664B,
        0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070, 0x19A4C116,
        0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
        0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7,
        0xC67178F2};
    uint32_t words[64], h[8];
    for (int i = 0; i < 16; i++, bytes += 4) {
        words[i] = (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8
            | (uint32_t)bytes[3];
    }
    for (int i = 16; i < 64; i++) {
        const uint32_t a = words[i - 15], b = words[i - 2];
        words[i] = words[i - 16] + (rotated(a, 7) ^ rotated(a, 18) ^ a >> 3) + words[i - 7]
            + (rotated(b, 17) ^ rotated(b, 19) ^ b >> 10);
    }
    memcpy(h, s->hash, sizeof h);
    for (int i = 0; i < 64; i++) {
        const uint32_t one = rotated(h[4], 6) ^ rotated(h[4], 11) ^ rotated(h[4], 25);
        const uint32_t two = rotated(h[0], 2) ^ rotated(h[0], 13) ^ rotated(h[0], 22);
        const uint32_t t = h[7] + one + ((h[4] & h[5]) ^ (~h[4] & h[6])) + constants[i] + words[i];
        const uint32_t most = (h[0] & h[1]) ^ (h[0] & h[2]) ^ (h[1] & h[2]);
        memmove(h + 1, h, 7 * sizeof *h);
        h[4] += t;
        h[0] = t + two + most;
    }
    for (int i = 0; i < 8; i++) {
        s->hash[i] += h[i];
    }
}

static void sha256_add(struct sha256 *s, const unsigned char *bytes, size_t count) {
    size_t filled = (size_t)(s->length % 64);
    s->length += count;
    while (count > 0) {
        if (filled == 0 && count >= 64) {
            sha256_block(s, bytes);
            bytes += 64;
            count -= 64;
            continue;
        }
        const size_t some = count < 64 - filled ? count : 64 - filled;
        memcpy(s->block + filled, bytes, some);
        filled += some;
        bytes += some;
        count -= some;
        if (filled == 64) {
            sha256_block(s, s->block);
            filled = 0;
        }
    }
}

static void sha256_end(struct sha256 *s, unsigned char digest[32]) {
    const uint64_t bits = s->length * 8;
    unsigned char tail[72] = {0x80};
    const size_t zeros = (size_t)((119 - s->length % 64) % 64);
    for (int i = 0; i < 8; i++) {
        tail[1 + zeros + (size_t)i] = (unsigned char)(bits >> (56 - 8 * i) & 255);
    }
    sha256_add(s, tail, 9 + zeros);
    for (int i = 0; i < 32; i++) {
        digest[i] = (unsigned char)(s->hash[i / 4] >> (24 - 8 * (i % 4)) & 255);
    }
}

