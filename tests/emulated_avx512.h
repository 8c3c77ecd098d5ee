// Included before int_lm/native/kernels.cc, it makes any processor with AVX2 run the paths of AVX-512 with
// VNNI and of AVX-VNNI: the few instructions that AVX2 lacks are loops here, one lane after another.
#include <cpuid.h>
#include <immintrin.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "xla/ffi/api/ffi.h"

struct alignas(64) Emulated512 {
  int32_t lane[16];
};

static inline Emulated512 emulated_zero() { return {}; }
static inline Emulated512 emulated_set1(int32_t value) {
  Emulated512 all;
  for (int32_t& lane : all.lane) lane = value;
  return all;
}
static inline Emulated512 emulated_load(const void* from) {
  Emulated512 all;
  __builtin_memcpy(&all, __builtin_assume_aligned(from, 64), 64);
  return all;
}
static inline void emulated_store(void* to, const Emulated512& all) {
  __builtin_memcpy(__builtin_assume_aligned(to, 64), &all, 64);
}
// Of one lane: four unsigned bytes times four signed ones, added to the total modulo 2^32.
static inline int32_t emulated_lane(int32_t total, int32_t a, int32_t b) {
  uint32_t sum = uint32_t(total);
  for (int byte = 0; byte < 32; byte += 8)
    sum += uint32_t(int32_t(uint8_t(a >> byte)) * int32_t(int8_t(b >> byte)));
  return int32_t(sum);
}
static inline Emulated512 emulated_dpbusd(Emulated512 total, Emulated512 a, Emulated512 b) {
  for (int k = 0; k < 16; ++k) total.lane[k] = emulated_lane(total.lane[k], a.lane[k], b.lane[k]);
  return total;
}
__attribute__((target("avx2"))) static inline __m256i emulated_dpbusd_256(__m256i total, __m256i a,
                                                                         __m256i b) {
  int32_t totals[8], as[8], bs[8];
  __builtin_memcpy(totals, &total, 32);
  __builtin_memcpy(as, &a, 32);
  __builtin_memcpy(bs, &b, 32);
  for (int k = 0; k < 8; ++k) totals[k] = emulated_lane(totals[k], as[k], bs[k]);
  __builtin_memcpy(&total, totals, 32);
  return total;
}
static inline int emulated_cpuid(unsigned, unsigned, unsigned* a, unsigned*, unsigned*, unsigned*) {
  *a = 1u << 4;  // AVX-VNNI
  return 1;
}
static inline Emulated512 emulated_widened(__m128i bytes) {
  int8_t from[16];
  __builtin_memcpy(from, &bytes, 16);
  Emulated512 all;
  for (int k = 0; k < 16; ++k) all.lane[k] = from[k];
  return all;
}
static inline Emulated512 emulated_permute(Emulated512 places, Emulated512 table) {
  Emulated512 found;
  for (int k = 0; k < 16; ++k) found.lane[k] = table.lane[places.lane[k] & 15];
  return found;
}
static inline Emulated512 emulated_loadu(const void* from) {
  Emulated512 all;
  __builtin_memcpy(&all, from, 64);
  return all;
}
static inline Emulated512 emulated_xor(Emulated512 a, const Emulated512& b) {
  for (int k = 0; k < 16; ++k) a.lane[k] ^= b.lane[k];
  return a;
}
// Of every 16 bytes of a and b the lower or the higher half, `size` bytes of a and of b in turn.
static inline Emulated512 emulated_unpack(const Emulated512& a, const Emulated512& b, int size, int half) {
  char from[2][64], to[64];
  __builtin_memcpy(from[0], &a, 64);
  __builtin_memcpy(from[1], &b, 64);
  for (int k = 0; k < 64; ++k)
    to[k] = from[k / size % 2][k / 16 * 16 + 8 * half + k % 16 / (2 * size) * size + k % size];
  Emulated512 all;
  __builtin_memcpy(&all, to, 64);
  return all;
}

#define __m512i Emulated512
#define _mm512_loadu_si512 emulated_loadu
#define _mm512_xor_si512 emulated_xor
#define _mm512_unpacklo_epi8(a, b) emulated_unpack(a, b, 1, 0)
#define _mm512_unpackhi_epi8(a, b) emulated_unpack(a, b, 1, 1)
#define _mm512_unpacklo_epi16(a, b) emulated_unpack(a, b, 2, 0)
#define _mm512_unpackhi_epi16(a, b) emulated_unpack(a, b, 2, 1)
#define _mm512_setzero_si512 emulated_zero
#define _mm512_set1_epi32 emulated_set1
#define _mm512_load_si512 emulated_load
#define _mm512_store_si512 emulated_store
#define _mm512_dpbusd_epi32 emulated_dpbusd
#define _mm512_permutexvar_epi32 emulated_permute
#define _mm512_cvtepi8_epi32 emulated_widened
#define target(features) target("avx2")  // of every function, whatever it asks for
#define _mm256_dpbusd_avx_epi32 emulated_dpbusd_256
#define __builtin_cpu_supports(feature) 1
#define __get_cpuid_count emulated_cpuid
