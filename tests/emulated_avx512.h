// Included before int_lm/native/kernels.cc, it makes any processor with AVX2 run the path of AVX-512 with
// VNNI: the few instructions that are of AVX-512 alone are loops here, one lane after another.
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
// Every lane: four unsigned bytes times four signed ones, added to the total modulo 2^32.
static inline Emulated512 emulated_dpbusd(Emulated512 total, Emulated512 a, Emulated512 b) {
  for (int k = 0; k < 16; ++k) {
    uint32_t sum = uint32_t(total.lane[k]);
    for (int byte = 0; byte < 32; byte += 8)
      sum += uint32_t(int32_t(uint8_t(a.lane[k] >> byte)) * int32_t(int8_t(b.lane[k] >> byte)));
    total.lane[k] = int32_t(sum);
  }
  return total;
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
#define __builtin_cpu_supports(feature) 1
