// CUDA for one block at a time on a CPU, in place of device.cuh: every thread is a fiber, which
// runs until its warp or its block has to meet. Every access to memory is checked: within a tensor,
// aligned, written once.

#pragma once

#define ISDA_DEVICE_CUH
#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <ucontext.h>

#define __grid_constant__
#define ISDA_DEVICE inline
#define ISDA_KERNEL(threads) void
#define ISDA_SHARED(Type, name) Type* name = static_cast<Type*>(emulation::shared())

struct dim3 {
  unsigned x, y, z;
  explicit dim3(int64_t x = 1, int64_t y = 1, int64_t z = 1)
      : x(unsigned(x)), y(unsigned(y)), z(unsigned(z)) {}
};
struct float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

inline dim3 threadIdx, blockIdx, blockDim;

namespace emulation {

inline std::string error;  // the first one

inline void fail(const std::string& message) {
  if (error.empty()) {
    error = message + " by thread " + std::to_string(threadIdx.x) + " of block (" +
            std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) + ", " +
            std::to_string(blockIdx.z) + ")";
  }
}

// --- memory

enum class Use { kRead, kWriteOnce, kWrite, kAdd };

struct Range {
  const char* name;
  const char* begin;
  size_t bytes;
  Use use;
  std::vector<bool> written;
};
inline std::vector<Range> ranges;
inline bool checking = true;

inline bool allowed(const void* pointer, size_t bytes, Use use) {
  if (!checking) return true;
  const char* begin = static_cast<const char*>(pointer);
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
    fail("access of " + std::to_string(bytes) + " bytes is not aligned");
    return false;
  }
  for (Range& range : ranges) {
    if (begin < range.begin || begin + bytes > range.begin + range.bytes) continue;
    if (use == Use::kRead) return range.use == Use::kRead || range.use == Use::kWrite;
    if (use == Use::kAdd) {
      if (range.use != Use::kAdd) fail(std::string("adds to ") + range.name);
      return range.use == Use::kAdd;
    }
    if (range.use == Use::kWrite) return true;
    if (range.use != Use::kWriteOnce) {
      fail(std::string("writes to ") + range.name);
      return false;
    }
    for (size_t i = begin - range.begin; i < begin - range.begin + bytes; ++i) {
      if (range.written[i]) fail(std::string("writes twice to ") + range.name);
      range.written[i] = true;
    }
    return true;
  }
  fail("access to no tensor");
  return false;
}

template <typename T>
T read(const T* from) {
  if (allowed(from, sizeof(T), Use::kRead)) return *from;
  fail("reads what it must not");
  T none;
  std::memset(static_cast<void*>(&none), 0xff, sizeof(T));
  return none;
}

// --- threads

constexpr int kMostThreads = 256;
constexpr size_t kStack = 64 << 10;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Thread {
  State state;
  bool started;
  ucontext_t context;
  jmp_buf point;
  std::unique_ptr<char[]> stack;
  int meetings;  // of its warp
};
inline Thread threads[kMostThreads];
inline uint64_t given[kMostThreads / 32][2][32];  // to the other lanes; every other meeting
inline const char* purposes[kMostThreads];
inline jmp_buf scheduler;
inline ucontext_t starter;
inline void (*body)(const void*);
inline const void* body_arguments;
alignas(16) inline char shared_bytes[48 << 10];
inline void* shared() { return shared_bytes; }

inline Thread& self() { return threads[threadIdx.x]; }

inline void wait(State state) {
  self().state = state;
  if (!_setjmp(self().point)) _longjmp(scheduler, 1);
}

inline void trampoline() {
  body(body_arguments);
  self().state = State::kDone;
  _longjmp(scheduler, 1);
}

inline void resume(int thread) {
  threadIdx.x = thread;
  Thread& next = threads[thread];
  next.state = State::kReady;
  if (_setjmp(scheduler)) return;
  if (next.started) _longjmp(next.point, 1);
  next.started = true;
  if (!next.stack) next.stack.reset(new char[kStack]);
  getcontext(&next.context);
  next.context.uc_stack.ss_sp = next.stack.get();
  next.context.uc_stack.ss_size = kStack;
  next.context.uc_link = nullptr;
  makecontext(&next.context, trampoline, 0);
  swapcontext(&starter, &next.context);
}

// Whether all of these threads wait for each other, so that they can go on.
inline bool met(int first, int end, State state) {
  for (int i = first; i < end; ++i) {
    if (threads[i].state != state) return false;
    if (state == State::kAtWarp && std::strcmp(purposes[i], purposes[first]) != 0) {
      threadIdx.x = i;
      fail("lanes of a warp meet for different purposes");
    }
  }
  return true;
}

inline void run_block(int count) {
  std::memset(shared_bytes, 0xff, sizeof(shared_bytes));
  for (int i = 0; i < count; ++i) {
    threads[i].state = State::kReady;
    threads[i].started = false;
    threads[i].meetings = 0;
  }
  bool all_done = false;
  while (!all_done) {
    bool progress = false;
    all_done = true;
    for (int warp = count - 32; warp >= 0; warp -= 32) {  // nobody may rely on the first
      const bool together = met(warp, warp + 32, State::kAtWarp);
      for (int i = warp; i < warp + 32; ++i) {
        all_done &= threads[i].state == State::kDone;
        if (threads[i].state != State::kReady && !together) continue;
        resume(i);
        progress = true;
      }
    }
    if (all_done) return;
    if (!progress && met(0, count, State::kAtBlock)) {
      for (int i = 0; i < count; ++i) threads[i].state = State::kReady;
    } else if (!progress) {
      fail("threads wait forever");
      return;
    }
  }
}

// What every lane of this warp gives, once all have.
template <typename V>
const uint64_t* exchange(V value, const char* purpose) {
  uint64_t* all = given[threadIdx.x / 32][self().meetings++ % 2];
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  all[threadIdx.x % 32] = bits;
  purposes[threadIdx.x] = purpose;
  wait(State::kAtWarp);
  return all;
}

template <typename V>
V from_bits(uint64_t bits) {
  V value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::State::kAtBlock); }

template <typename V>
V __shfl_sync(unsigned, V value, int lane, int width) {
  const int source = (threadIdx.x % 32) / width * width + lane % width;
  return emulation::from_bits<V>(emulation::exchange(value, "shfl")[source]);
}
template <typename V>
V __shfl_xor_sync(unsigned, V value, int distance) {
  return emulation::from_bits<V>(
      emulation::exchange(value, "shfl_xor")[(threadIdx.x % 32) ^ distance]);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  const uint64_t* votes = emulation::exchange(vote, "ballot");
  unsigned all = 0;
  for (int i = 0; i < 32; ++i) all |= unsigned(votes[i]) << i;
  return all;
}

template <typename To, typename From>
To bits_of(From from) {
  To to;
  static_assert(sizeof(to) == sizeof(from));
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline float __int_as_float(int x) { return bits_of<float>(x); }
inline float __uint_as_float(unsigned x) { return bits_of<float>(x); }
inline unsigned __float_as_uint(float x) { return bits_of<unsigned>(x); }

#include "problem.h"

namespace isda {

struct BFloat16 {
  unsigned short bits;
};
struct Half {
  unsigned short bits;
};
template <typename T>
struct ComputedWith {
  using Type = float;
};
template <>
struct ComputedWith<double> {
  using Type = double;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(BFloat16 x) { return bits_of<float>(unsigned(x.bits) << 16); }
inline float widen(Half x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(float(fraction), -24)
                                          : std::ldexp(float(1024 + fraction), exponent - 25);
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

template <typename T>
T narrow(typename ComputedWith<T>::Type x) {
  return x;
}
template <>
inline BFloat16 narrow<BFloat16>(float x) {
  if (std::isnan(x)) return {0x7fc0};
  const unsigned bits = bits_of<unsigned>(x);
  return {static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Half narrow<Half>(float x) {
  const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return {0x7fff};
  int exponent = 0;
  std::frexp(x, &exponent);  // the unit in the last place of a half is then 2^(exponent - 11)
  const int unit = std::max(exponent - 11, -24);
  const float units = std::nearbyint(std::ldexp(std::fabs(x), -unit));
  if (std::ldexp(units, unit) > 65504) return {static_cast<unsigned short>(sign | 0x7c00)};
  const int bits = units == 0 ? 0 : (unit + 24 << 10) + int(units);
  return {static_cast<unsigned short>(sign | bits)};
}

template <int kWords>
struct alignas(4 * kWords) Words {
  unsigned word[kWords];
};
template <int kWords>
Words<kWords> load_words(const Words<kWords>* from) {
  return emulation::read(from);
}
template <typename T>
T load(const T* from) {
  return emulation::read(from);
}
inline float load_once(const float* from) { return emulation::read(from); }
inline float2 load_once(const float2* from) { return emulation::read(from); }
template <typename T>
void store(T* to, T x) {
  if (emulation::allowed(to, sizeof(T), emulation::Use::kWriteOnce)) *to = x;
}
inline void store_words(Words<4>* to, Words<4> words) { store(to, words); }
template <typename C>
void add(C* to, C x) {
  if (emulation::allowed(to, sizeof(C), emulation::Use::kAdd)) *to += x;
}
inline void add_four(float* to, const float (&x)[4]) {
  if (!emulation::allowed(to, 16, emulation::Use::kAdd)) return;
  for (int c = 0; c < 4; ++c) to[c] += x[c];
}

template <typename T>
T* in_registers(T* pointer) {
  return pointer;
}
template <typename T>
T* row_at(T* rows, unsigned token, unsigned row_bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(rows) + uint64_t(token) * row_bytes);
}
template <size_t kCount>
void add_products(
    unsigned any, float factor, const float (&row)[kCount], float (&sums)[kCount]) {
  for (size_t c = 0; any && c < kCount; ++c) sums[c] += factor * row[c];
}
template <typename C>
int floor_to_int(C x) {  // as the processor: what is too large is the largest, NaN is 0
  if (std::isnan(x)) return 0;
  const C most = std::numeric_limits<int>::max();
  return std::floor(x) >= most ? std::numeric_limits<int>::max()
         : std::floor(x) <= -most ? std::numeric_limits<int>::min()
                                  : int(std::floor(x));
}

// A kernel's name, its blocks, threads and shared memory.
inline std::string launches;

inline std::string name_of(void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info) || !info.dli_sname) return "unknown";
  const std::unique_ptr<char, decltype(&std::free)> name(
      abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr), &std::free);
  return name.get();
}

template <typename... Parameters>
void run(
    void (*kernel)(Parameters...), dim3 blocks, int threads, int shared_bytes, void*,
    Parameters... arguments) {
  launches += name_of(reinterpret_cast<void*>(kernel)) + ": " + std::to_string(blocks.x) + " x " +
              std::to_string(blocks.y) + " x " + std::to_string(blocks.z) + " of " +
              std::to_string(threads) + ", " + std::to_string(shared_bytes) + " bytes\n";
  const auto call = [&] { kernel(arguments...); };
  emulation::body = [](const void* call_) { (*static_cast<const decltype(call)*>(call_))(); };
  emulation::body_arguments = &call;
  blockDim = dim3(threads);
  for (blockIdx.z = 0; blockIdx.z < blocks.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < blocks.x && emulation::error.empty(); ++blockIdx.x) {
        emulation::run_block(threads);
      }
    }
  }
}

}  // namespace isda
