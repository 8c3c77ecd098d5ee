/* y = W x, for int8 weights W of `rows` rows of `columns`, and int8 x; every sum fits int32_t -----

   There are several ways to the same sums, for no addition rounds. Where the processor multiplies
   four int8 pairs at once, matrices are laid out for that when they are loaded: blocks of 16 rows,
   four of them side by side, and of each row four columns together:

       weight[((column / 4 * blocks + block) * 16 + row) * 4 + column % 4]      blocks = 4, or fewer
                                                                                in the last tile */

typedef void linear_function(
    int32_t *y, const int8_t *weights, const int8_t *x, int32_t rows, int32_t columns);

/* one row after the other */
UNUSED static void linear_rows(
    int32_t *y, const int8_t *weights, const int8_t *x, int32_t rows, int32_t columns) {
    for (int32_t i = 0; i < rows; i++) {
        const int8_t *row = weights + (size_t)i * (size_t)columns;
        int32_t sum = 0;
        for (int32_t j = 0; j < columns; j++) {
            sum += (int32_t)row[j] * x[j];
        }
        y[i] = sum;
    }
}

#if defined(MODEL_ARRAY) || defined(PLAIN)
#define TILED 0
#elif defined(__GNUC__) && (defined(__x86_64__) || defined(__ARM_FEATURE_DOTPROD))
#define TILED 1
#else
#define TILED 0
#endif

#if TILED
enum { BLOCK = 16, TILE = 4 }; /* rows of a block, blocks of a tile */

/* bytes of a matrix */
#define MATRIX(rows, columns) \
    (((uint64_t)(rows) + 15) / 16 * 16 * (((uint64_t)(columns) + 3) / 4 * 4))

UNUSED static void linear_tiles(
    int32_t *y, const int8_t *weights, const int8_t *x, int32_t rows, int32_t columns) {
    const int32_t all = (rows + BLOCK - 1) / BLOCK, quads = (columns + 3) / 4;
    for (int32_t first = 0; first < all; first += TILE) {
        const int32_t blocks = minimum(TILE, all - first);
        int32_t sums[TILE * BLOCK] = {0};
        for (int32_t k = 0; k < quads; k++) {
            for (int32_t i = 0; i < blocks * BLOCK; i++, weights += 4) {
                sums[i] += (int32_t)weights[0] * x[4 * k] + (int32_t)weights[1] * x[4 * k + 1]
                    + (int32_t)weights[2] * x[4 * k + 2] + (int32_t)weights[3] * x[4 * k + 3];
            }
        }
        memcpy(y + first * BLOCK, sums, (size_t)(blocks * BLOCK) * sizeof *sums);
    }
}

/* lay out the `rows` rows of one matrix, which begin at `from`; the places may overlap */
static void tile(int8_t *to, const int8_t *from, int32_t rows, int32_t columns, int8_t *scratch) {
    const int32_t all = (rows + BLOCK - 1) / BLOCK, quads = (columns + 3) / 4;
    const int32_t last = (all - 1) / TILE * TILE;
    for (int32_t first = last; first >= 0; first -= TILE) { /* last ones first: they grow */
        const int32_t blocks = minimum(TILE, all - first);
        const int32_t here = minimum(blocks * BLOCK, rows - first * BLOCK);
        const int8_t *source = from + (size_t)first * BLOCK * (size_t)columns;
        memcpy(scratch, source, (size_t)here * (size_t)columns);
        int8_t *out = to + (size_t)first * BLOCK * (size_t)quads * 4;
        for (int32_t k = 0; k < quads * 4; k += 4) {
            for (int32_t i = 0; i < blocks * BLOCK; i++) {
                for (int32_t j = k; j < k + 4; j++) {
                    *out++ = (int8_t)(i < here && j < columns ? scratch[i * columns + j] : 0);
                }
            }
        }
    }
}
#else
#define MATRIX(rows, columns) ((uint64_t)(rows) * (columns))
#endif

#if TILED && defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll_count(4)")
#else
#define UNROLL _Pragma("GCC unroll 4")
#endif

#define AVX2 __attribute__((target("avx2")))
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))

/* A pair of products is at most 2 x 127^2 < 2^15, so that it fits the int16 of vpmaddubsw, which
   wants one factor without a sign: x's sign is given to the weight. */
AVX2 UNUSED static INLINE __m256i dot_avx2(__m256i sums, __m256i weights, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(weights, x));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

AVX2 UNUSED static void linear_avx2(
    int32_t *y, const int8_t *weights, const int8_t *x, int32_t rows, int32_t columns) {
    const int32_t all = (rows + BLOCK - 1) / BLOCK, quads = (columns + 3) / 4;
    int32_t first = 0;
    for (; first + TILE <= all; first += TILE) {
        __m256i sums[2 * TILE];
        for (int32_t i = 0; i < 2 * TILE; i++) {
            sums[i] = _mm256_setzero_si256();
        }
        for (int32_t k = 0; k < quads; k++, weights += TILE * 64) {
            int32_t four;
            memcpy(&four, x + 4 * k, 4);
            const __m256i same = _mm256_set1_epi32(four);
            for (int32_t i = 0; i < 2 * TILE; i++) {
                const __m256i some = _mm256_loadu_si256((const __m256i *)(weights + 32 * i));
                sums[i] = dot_avx2(sums[i], some, same);
            }
        }
        for (int32_t i = 0; i < 2 * TILE; i++) {
            _mm256_storeu_si256((__m256i *)(y + first * BLOCK + 8 * i), sums[i]);
        }
    }
    const int32_t halves = 2 * (all - first);
    for (int32_t i = 0; i < halves; i++) {
        __m256i sums = _mm256_setzero_si256();
        for (int32_t k = 0; k < quads; k++) {
            int32_t four;
            memcpy(&four, x + 4 * k, 4);
            const int8_t *some = weights + 32 * (k * halves + i);
            sums = dot_avx2(
                sums, _mm256_loadu_si256((const __m256i *)some), _mm256_set1_epi32(four));
        }
        _mm256_storeu_si256((__m256i *)(y + first * BLOCK + 8 * i), sums);
    }
}

/* vpdpbusd adds four products to an int32 at once, of a factor without a sign and one with it:
   sum of (w + 128) x - 128 sum of x, modulo 2^32 */
VNNI UNUSED static INLINE __m512i dot_vnni(__m512i sums, const int8_t *weights, __m512i x) {
    const __m512i some = _mm512_loadu_si512((const void *)weights);
    return _mm512_dpbusd_epi32(sums, _mm512_xor_si512(some, _mm512_set1_epi8(-128)), x);
}

VNNI UNUSED static void linear_vnni(
    int32_t *y, const int8_t *weights, const int8_t *x, int32_t rows, int32_t columns) {
    const int32_t all = (rows + BLOCK - 1) / BLOCK, quads = (columns + 3) / 4;
    int32_t first = 0, sum = 0;
    for (int32_t j = 0; j < 4 * quads; j++) {
        sum += x[j];
    }
    const __m512i begin = _mm512_set1_epi32(-128 * sum); /* |128 sum| < 2^14 columns */
    for (; first + TILE <= all; first += TILE) {
        __m512i sums[TILE];
        for (int32_t i = 0; i < TILE; i++) {
            sums[i] = begin;
        }
        UNROLL for (int32_t k = 0; k < quads; k++, weights += TILE * 64) {
            int32_t four;
            memcpy(&four, x + 4 * k, 4);
            const __m512i same = _mm512_set1_epi32(four);
            for (int32_t i = 0; i < TILE; i++) {
                sums[i] = dot_vnni(sums[i], weights + 64 * i, same);
            }
        }
        for (int32_t i = 0; i < TILE; i++) {
            _mm512_storeu_si512((void *)(y + (first + i) * BLOCK), sums[i]);
        }
    }
    const int32_t blocks = all - first;
    for (int32_t i = 0; i < blocks; i++) {
        __m512i sums = begin;
        for (int32_t k = 0; k < quads; k++) {
            int32_t four;
            memcpy(&four, x + 4 * k, 4);
            sums = dot_vnni(sums, weights + 64 * (k * blocks + i), _mm512_set1_epi32(four));
        }
        _mm512_storeu_si512((void *)(y + (first + i) * BLOCK), sums);
    }
}
#endif

#if TILED && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

static void linear_neon(
    int32_t *y, const int8_t *weights, const int8_t *x, int32_t rows, int32_t columns) {
    const int32_t all = (rows + BLOCK - 1) / BLOCK, quads = (columns + 3) / 4;
    for (int32_t first = 0; first < all; first += TILE) {
        const int32_t quarters = 4 * minimum(TILE, all - first);
        int32x4_t sums[4 * TILE];
        for (int32_t i = 0; i < quarters; i++) {
            sums[i] = vdupq_n_s32(0);
        }
        for (int32_t k = 0; k < quads; k++) {
            int32_t four;
            memcpy(&four, x + 4 * k, 4);
            const int8x16_t same = vreinterpretq_s8_s32(vdupq_n_s32(four));
            for (int32_t i = 0; i < quarters; i++, weights += 16) {
                sums[i] = vdotq_s32(sums[i], vld1q_s8(weights), same);
            }
        }
        for (int32_t i = 0; i < quarters; i++) {
            vst1q_s32(y + first * BLOCK + 4 * i, sums[i]);
        }
    }
}
#endif

