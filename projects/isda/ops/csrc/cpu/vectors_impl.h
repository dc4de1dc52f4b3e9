// Vectors and element types of the kernels. Vectors are those of GCC and Clang: 32 bytes, which the
// compiler splits where there are none. Included once per instruction set, by kernels_impl.h.

namespace isda {
namespace ISDA_ARCHITECTURE {
namespace {

typedef float FloatVector __attribute__((vector_size(32)));
typedef double DoubleVector __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(32)));
typedef int32_t Integers8 __attribute__((vector_size(32)));
typedef int32_t Integers4 __attribute__((vector_size(16)));

// Integers of the same number of lanes.
template <typename Vector>
struct IntegersOf;
template <>
struct IntegersOf<FloatVector> {
  using Type = Integers8;
};
template <>
struct IntegersOf<DoubleVector> {
  using Type = Integers4;
};
template <typename C>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Type = FloatVector;
};
template <>
struct VectorOf<double> {
  using Type = DoubleVector;
};

template <typename To, typename From>
ISDA_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename Vector, typename Scalar>
ISDA_INLINE Vector load(const Scalar* from) {
  Vector vector;
  __builtin_memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <typename Vector, typename Scalar>
ISDA_INLINE void store(Scalar* to, Vector vector) {
  __builtin_memcpy(to, &vector, sizeof(vector));
}

// The element types: how they are stored, and what is computed with.

struct Double {
  using Stored = double;
  using Computed = double;
  using Vector = DoubleVector;
  static ISDA_INLINE double widen(double x) { return x; }
  static ISDA_INLINE double narrow(double x) { return x; }
  static ISDA_INLINE Vector vector(const double* from) { return load<Vector>(from); }
};

struct Float {
  using Stored = float;
  using Computed = float;
  using Vector = FloatVector;
  static ISDA_INLINE float widen(float x) { return x; }
  static ISDA_INLINE float narrow(float x) { return x; }
  static ISDA_INLINE Vector vector(const float* from) { return load<Vector>(from); }
};

struct BFloat16 {
  using Stored = uint16_t;
  using Computed = float;
  using Vector = FloatVector;
  static ISDA_INLINE float widen(uint16_t x) { return bits<float>(uint32_t(x) << 16); }
  static ISDA_INLINE uint16_t narrow(float x) {  // to the nearest, ties to even
    const uint32_t wide = bits<uint32_t>(x);
    if (x != x) return uint16_t(wide >> 16 | 0x40);
    return uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
  static ISDA_INLINE Vector vector(const uint16_t* from) {
#ifdef ISDA_AVX2
    return bits<Vector>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load<__m128i>(from)), 16));
#else
    return bits<Vector>(__builtin_convertvector(load<Halves>(from), Words) << 16);
#endif
  }
};

struct Half {
  using Stored = uint16_t;
  using Computed = float;
  using Vector = FloatVector;
  static ISDA_INLINE float widen(uint16_t x) {
    // Exponents are 112 apart; the product also normalises what is subnormal in half precision.
    const float magnitude = bits<float>(uint32_t(x & 0x7fff) << 13) * 0x1p112f;
    uint32_t wide = bits<uint32_t>(magnitude);
    if ((x & 0x7c00) == 0x7c00) wide |= 0x7f800000;  // infinite or not a number
    return bits<float>(wide | uint32_t(x & 0x8000) << 16);
  }
  static ISDA_INLINE uint16_t narrow(float x) {  // to the nearest, ties to even
    const uint16_t sign = uint16_t(bits<uint32_t>(x) >> 16 & 0x8000);
    const uint32_t wide = bits<uint32_t>(x) & 0x7fffffff;
    const float magnitude = bits<float>(wide);
    if (magnitude != magnitude) return sign | 0x7e00;
    if (magnitude >= 65520.0f) return sign | 0x7c00;
    if (magnitude < 0x1p-14f) {
      // Subnormal: beside one half, float32's last bit is half precision's.
      return uint16_t(sign | (bits<uint32_t>(magnitude + 0.5f) - bits<uint32_t>(0.5f)));
    }
    return uint16_t(sign | ((wide + 0xfff + (wide >> 13 & 1) - (112u << 23)) >> 13));
  }
  static ISDA_INLINE Vector vector(const uint16_t* from) {
#ifdef ISDA_AVX2
    return bits<Vector>(_mm256_cvtph_ps(load<__m128i>(from)));
#else
    float wide[8];
    for (int i = 0; i < 8; ++i) wide[i] = widen(from[i]);
    return load<Vector>(wide);
#endif
  }
};

template <typename Vector>
constexpr int lanes() {
  return sizeof(Vector) / sizeof(Vector{}[0]);
}

// The sums of the four vectors' lanes.
template <typename Vector, typename Scalar>
ISDA_INLINE void add_lanes(const Vector (&vectors)[4], Scalar (&sums)[4]) {
  for (int i = 0; i < 4; ++i) {
    sums[i] = vectors[i][0];
    for (int lane = 1; lane < lanes<Vector>(); ++lane) sums[i] += vectors[i][lane];
  }
}

#ifdef ISDA_AVX2
ISDA_INLINE void add_lanes(const FloatVector (&v)[4], float (&sums)[4]) {
  const __m256 first = _mm256_hadd_ps(bits<__m256>(v[0]), bits<__m256>(v[1]));
  const __m256 second = _mm256_hadd_ps(bits<__m256>(v[2]), bits<__m256>(v[3]));
  const __m256 halves = _mm256_hadd_ps(first, second);
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
#endif

// The lanes of `yes` where `mask` is set, else zero.
template <typename Vector, typename Mask>
ISDA_INLINE Vector where(Mask mask, Vector yes) {
  return bits<Vector>(bits<Mask>(yes) & mask);
}

// Part (x0, y0, x1, y1, ...) into x and y.
ISDA_INLINE void part(const float* pairs, FloatVector& x, FloatVector& y) {
  const auto a = load<FloatVector>(pairs), b = load<FloatVector>(pairs + 8);
#if defined(__clang__) || __GNUC__ >= 12
  x = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
  y = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  x = __builtin_shuffle(a, b, Integers8{0, 2, 4, 6, 8, 10, 12, 14});
  y = __builtin_shuffle(a, b, Integers8{1, 3, 5, 7, 9, 11, 13, 15});
#endif
}

ISDA_INLINE void part(const double* pairs, DoubleVector& x, DoubleVector& y) {
  x = DoubleVector{pairs[0], pairs[2], pairs[4], pairs[6]};
  y = DoubleVector{pairs[1], pairs[3], pairs[5], pairs[7]};
}

}  // namespace
}  // namespace ISDA_ARCHITECTURE
}  // namespace isda
