/* Arithmetic ------------------------------------------------------------------------------------

   All that C leaves undefined, or to the compiler, is avoided: what may wrap around is computed
   unsigned, and shifts of negative numbers are spelled out. Compilers make one instruction of
   each. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__)
#define ALIGNED __attribute__((aligned(64)))
#define INLINE __inline__ __attribute__((always_inline))
#define UNUSED __attribute__((unused))
#else
#define ALIGNED
#define INLINE inline
#define UNUSED
#endif

/* a number modulo 2^bits, as a signed one */
UNUSED static INLINE int32_t wrap32(uint32_t x) {
    return x <= INT32_MAX ? (int32_t)x : -(int32_t)(UINT32_MAX - x) - 1;
}

UNUSED static INLINE int64_t wrap64(uint64_t x) {
    return x <= INT64_MAX ? (int64_t)x : -(int64_t)(UINT64_MAX - x) - 1;
}

UNUSED static INLINE int32_t wrap16(uint32_t x) {
    return (int32_t)((x + 0x8000) & 0xFFFF) - 0x8000;
}

UNUSED static INLINE int32_t wrap8(uint32_t x) { return (int32_t)((x + 0x80) & 0xFF) - 0x80; }

/* floor(x / 2^bits) */
UNUSED static INLINE int32_t shift_floor(int32_t x, int32_t bits) {
    return x < 0 ? ~(~x >> bits) : x >> bits;
}

UNUSED static INLINE int64_t shift_floor_64(int64_t x, int64_t bits) {
    return x < 0 ? ~(~x >> bits) : x >> bits;
}

/* floor(x / y) for y > 0 */
UNUSED static INLINE int32_t floor_divide32(int32_t x, int32_t y) {
    return x < 0 ? ~(~x / y) : x / y;
}

UNUSED static INLINE int64_t floor_divide64(int64_t x, int64_t y) {
    return x < 0 ? ~(~x / y) : x / y;
}

UNUSED static INLINE int32_t maximum(int32_t x, int32_t y) { return x > y ? x : y; }
UNUSED static INLINE int32_t minimum(int32_t x, int32_t y) { return x < y ? x : y; }
UNUSED static INLINE uint32_t maximum_u32(uint32_t x, uint32_t y) { return x > y ? x : y; }
UNUSED static INLINE uint32_t minimum_u32(uint32_t x, uint32_t y) { return x < y ? x : y; }
UNUSED static INLINE int64_t maximum_64(int64_t x, int64_t y) { return x > y ? x : y; }
UNUSED static INLINE int64_t minimum_64(int64_t x, int64_t y) { return x < y ? x : y; }
UNUSED static INLINE uint64_t maximum_u64(uint64_t x, uint64_t y) { return x > y ? x : y; }
UNUSED static INLINE uint64_t minimum_u64(uint64_t x, uint64_t y) { return x < y ? x : y; }

/* x, or the nearest of the two bounds */
UNUSED static INLINE int32_t clip(int32_t x, int32_t low, int32_t high) {
    return minimum(maximum(x, low), high);
}

/* the number of zeros before the leading one of 32 bits */
UNUSED static INLINE int32_t leading_zeros(uint32_t x) {
    int32_t count = 32;
    for (int32_t half = 16; half > 0; half /= 2) {
        if (x >> half) {
            x >>= half;
            count -= half;
        }
    }
    return count - (int32_t)x;
}

