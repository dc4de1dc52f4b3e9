// What the kernels ask of the processor, beside CUDA's own functions. The tests have a second such
// file for g++, so kernels touch global memory and half types only through these.

#ifndef ISDA_DEVICE_CUH
#define ISDA_DEVICE_CUH

#include "problem.h"

#define ISDA_DEVICE __device__ __forceinline__
#define ISDA_KERNEL(threads) __global__ void __launch_bounds__(threads)
#define ISDA_SHARED(Type, name) extern __shared__ Type name[]

namespace isda {

// Numbers as they are stored. Headers of CUDA would bring their own, at seconds per compilation.
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

ISDA_DEVICE float widen(float x) { return x; }
ISDA_DEVICE double widen(double x) { return x; }
ISDA_DEVICE float widen(BFloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }
ISDA_DEVICE float widen(Half x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}

template <typename T>
ISDA_DEVICE T narrow(typename ComputedWith<T>::Type x) {
  return x;
}
template <>
ISDA_DEVICE BFloat16 narrow<BFloat16>(float x) {  // to the nearest, ties to even, on sm_75 too
  const unsigned wide = __float_as_uint(x);
  const unsigned rounded = wide + 0x7fff + (wide >> 16 & 1);
  return {static_cast<unsigned short>((x != x ? wide | 0x400000 : rounded) >> 16)};
}
template <>
ISDA_DEVICE Half narrow<Half>(float x) {
  Half half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(x));
  return half;
}

// A few channels of a row, as they are stored.
template <int kWords>
struct Words {
  unsigned word[kWords];
};

ISDA_DEVICE Words<4> load_words(const Words<4>* from) {
  const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
  return {{words.x, words.y, words.z, words.w}};
}
ISDA_DEVICE Words<2> load_words(const Words<2>* from) {
  const uint2 words = __ldg(reinterpret_cast<const uint2*>(from));
  return {{words.x, words.y}};
}
ISDA_DEVICE void store_words(Words<4>* to, Words<4> words) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(words.word[0], words.word[1], words.word[2], words.word[3]);
}

template <typename T>
ISDA_DEVICE T load(const T* from) {
  return *from;
}
template <typename T>
ISDA_DEVICE void store(T* to, T x) {
  *to = x;
}

// What is read once must not drive the values out of the L1 cache.
ISDA_DEVICE float load_once(const float* from) {
  float x;
  asm("ld.global.nc.L1::no_allocate.f32 %0, [%1];" : "=f"(x) : "l"(__cvta_generic_to_global(from)));
  return x;
}
ISDA_DEVICE float2 load_once(const float2* from) {
  float2 pair;
  asm("ld.global.nc.L1::no_allocate.v2.f32 {%0, %1}, [%2];"
      : "=f"(pair.x), "=f"(pair.y)
      : "l"(__cvta_generic_to_global(from)));
  return pair;
}

// Nobody waits for the sum. (atomicAdd would first ask whether the address is in shared memory.)
ISDA_DEVICE void add(float* to, float x) {
  asm volatile("red.global.add.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "f"(x)
               : "memory");
}
ISDA_DEVICE void add(double* to, double x) {
  asm volatile("red.global.add.f64 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "d"(x)
               : "memory");
}
ISDA_DEVICE void add_four(float* to, const float (&x)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3])
               : "memory");
#else
  for (int c = 0; c < 4; ++c) add(to + c, x[c]);
#endif
}

template <typename T>
ISDA_DEVICE T* in_registers(T* pointer) {
  asm("" : "+l"(pointer));
  return pointer;
}

// rows[token], if rows are as far apart. A single instruction, which the compiler does not find.
template <typename T>
ISDA_DEVICE T* row_at(T* rows, unsigned token, unsigned row_bytes) {
  unsigned long long offset;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(offset) : "r"(token), "r"(row_bytes));
  return reinterpret_cast<T*>(reinterpret_cast<unsigned long long>(rows) + offset);
}

// sums += factor * row, if there is something to add: by predicates, since branches between loads
// would have each wait for the one before.
ISDA_DEVICE void add_products(unsigned any, float factor, const float (&row)[4], float (&sums)[4]) {
  asm("{ .reg .pred any; setp.ne.u32 any, %9, 0;\n"
      "@any fma.rn.f32 %0, %4, %5, %0;\n"
      "@any fma.rn.f32 %1, %4, %6, %1;\n"
      "@any fma.rn.f32 %2, %4, %7, %2;\n"
      "@any fma.rn.f32 %3, %4, %8, %3; }"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "f"(factor), "f"(row[0]), "f"(row[1]), "f"(row[2]), "f"(row[3]), "r"(any));
}

ISDA_DEVICE void add_products(unsigned any, float factor, const float (&row)[8], float (&sums)[8]) {
  asm("{ .reg .pred any; setp.ne.u32 any, %17, 0;\n"
      "@any fma.rn.f32 %0, %8, %9, %0;\n"
      "@any fma.rn.f32 %1, %8, %10, %1;\n"
      "@any fma.rn.f32 %2, %8, %11, %2;\n"
      "@any fma.rn.f32 %3, %8, %12, %3;\n"
      "@any fma.rn.f32 %4, %8, %13, %4;\n"
      "@any fma.rn.f32 %5, %8, %14, %5;\n"
      "@any fma.rn.f32 %6, %8, %15, %6;\n"
      "@any fma.rn.f32 %7, %8, %16, %7; }"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]), "+f"(sums[4]), "+f"(sums[5]),
        "+f"(sums[6]), "+f"(sums[7])
      : "f"(factor), "f"(row[0]), "f"(row[1]), "f"(row[2]), "f"(row[3]), "f"(row[4]), "f"(row[5]),
        "f"(row[6]), "f"(row[7]), "r"(any));
}

ISDA_DEVICE int floor_to_int(float x) { return __float2int_rd(x); }
ISDA_DEVICE int floor_to_int(double x) { return __double2int_rd(x); }

#ifndef __CUDACC_RTC__
template <typename... Parameters>
void run(
    void (*kernel)(Parameters...), dim3 blocks, int threads, int shared_bytes, void* stream,
    Parameters... arguments) {
  kernel<<<blocks, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
}
#endif

}  // namespace isda

#endif
