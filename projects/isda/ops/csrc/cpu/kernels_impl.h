// The kernels, written once and compiled per instruction set: the including file chooses the set
// and has ISDA_ARCHITECTURE name it.
//
// No function of the standard library that is a template or inline may be called from here: the
// linker keeps one copy of each, which might be the one for a processor that is not there.
//
// Vectors are those of GCC and Clang: 32 bytes, which the compiler splits where there are none.

#include "kernels.h"

namespace isda {
namespace ISDA_ARCHITECTURE {
namespace {

#define ISDA_INLINE inline __attribute__((always_inline))

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
    return bits<Vector>(__builtin_convertvector(load<Halves>(from), Words) << 16);
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
#ifdef __F16C__
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

#ifdef __AVX2__
ISDA_INLINE void add_lanes(const FloatVector (&v)[4], float (&sums)[4]) {
  const __m256 first = _mm256_hadd_ps(bits<__m256>(v[0]), bits<__m256>(v[1]));
  const __m256 second = _mm256_hadd_ps(bits<__m256>(v[2]), bits<__m256>(v[3]));
  const __m256 halves = _mm256_hadd_ps(first, second);
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
#endif

// The lanes of `yes` where `mask` is set, else those of `no`.
template <typename Vector, typename Mask>
ISDA_INLINE Vector choose(Mask mask, Vector yes, Vector no) {
  return bits<Vector>((bits<Mask>(yes) & mask) | (bits<Mask>(no) & ~mask));
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

template <typename Mask>
ISDA_INLINE bool any(Mask mask) {
  auto set = mask[0];
  for (int lane = 1; lane < lanes<Mask>(); ++lane) set |= mask[lane];
  return set != 0;
}

// Move what is at `from`, as far as `inside` is odd, to `kept` <= `from`; where the next goes.
template <typename C, typename Integers>
ISDA_INLINE int64_t keep(
    C* coefficients, int32_t* cells, int64_t from, Integers inside, int64_t kept) {
  for (int lane = 0; lane < lanes<Integers>(); ++lane) {
    cells[kept] = cells[from + lane];
    coefficients[kept] = coefficients[from + lane];
    kept += inside[lane] & 1;
  }
  return kept;
}

#ifdef __AVX2__
ISDA_INLINE bool any(Integers8 mask) { return !_mm256_testz_si256(bits<__m256i>(mask), bits<__m256i>(mask)); }

// For every set of lanes: the numbers of its members, in order, a byte each.
struct Orders {
  uint64_t bytes[256];
  constexpr Orders() : bytes() {
    for (int set = 0; set < 256; ++set) {
      int members = 0;
      for (int lane = 0; lane < 8; ++lane) {
        if (set >> lane & 1) bytes[set] |= uint64_t(lane) << 8 * members++;
      }
    }
  }
};
constexpr Orders kOrders;

ISDA_INLINE int64_t keep(
    float* coefficients, int32_t* cells, int64_t from, Integers8 inside, int64_t kept) {
  const int set = _mm256_movemask_ps(bits<__m256>(inside << 31));
  const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(kOrders.bytes[set])));
  store(cells + kept, _mm256_permutevar8x32_epi32(load<__m256i>(cells + from), order));
  store(
      coefficients + kept, _mm256_permutevar8x32_ps(load<__m256>(coefficients + from), order));
  return kept + __builtin_popcount(unsigned(set));
}
#endif

// Where the samples of one query and head fall. Arrays are `room` long per corner, and corner
// after corner: the cell of a sample, its right one, the one below, the one below right.
template <typename C>
class Sampler {
 public:
  using Vector = typename VectorOf<C>::Type;
  using Integers = typename IntegersOf<Vector>::Type;
  static constexpr int kLanes = lanes<Vector>();

  explicit Sampler(const Problem& problem)
      : samples(problem.levels * problem.points),
        room((samples + kLanes - 1) / kLanes * kLanes),
        numbers_(new C[room * 15]()),
        integers_(new int32_t[room * 8]()) {
    for (int64_t i = 0; i < samples; ++i) {
      const int64_t level = i / problem.points;
      heights()[i] = C(problem.shapes[2 * level]);
      widths()[i] = C(problem.shapes[2 * level + 1]);
      rows()[i] = int32_t(problem.shapes[2 * level]);
      columns()[i] = int32_t(problem.shapes[2 * level + 1]);
      starts()[i] = int32_t(problem.starts[level]);
    }
  }
  ~Sampler() {
    delete[] numbers_;
    delete[] integers_;
  }
  Sampler(const Sampler&) = delete;
  Sampler& operator=(const Sampler&) = delete;

  // Place the samples. kRightDerivative keeps those exactly one cell left of or above a level:
  // their output is zero, but their derivative on the right is not.
  template <bool kRightDerivative>
  ISDA_INLINE void place(const C* locations, const C* weights) {
    if (room != samples) {  // the levels of the samples that fill up have no cells
      C* padded = numbers_ + 12 * room;
      __builtin_memcpy(padded, locations, 2 * samples * sizeof(C));
      __builtin_memcpy(padded + 2 * room, weights, samples * sizeof(C));
      locations = padded;
      weights = padded + 2 * room;
    }
    Integers common = Integers{} + 15;
    auto spoilt = Vector{} != Vector{};
    for (int64_t i = 0; i < room; i += kLanes) {
      const auto width = load<Vector>(widths() + i), height = load<Vector>(heights() + i);
      Vector x, y;
      part(locations + 2 * i, x, y);
      x = x * width - C(0.5);
      y = y * height - C(0.5);
      spoilt |= (x + y) * C(0) != C(0);  // infinite or not a number
      const Vector outside = Vector{} - C(2);
      x = choose(kRightDerivative ? x >= C(-1) : x > C(-1), x, outside);
      y = choose(kRightDerivative ? y >= C(-1) : y > C(-1), y, outside);
      x = choose(x < width, x, width);
      y = choose(y < height, y, height);
      Integers column = __builtin_convertvector(x, Integers);
      Integers row = __builtin_convertvector(y, Integers);
      // Truncated: one too many if negative. Masks are -1.
      column += __builtin_convertvector(__builtin_convertvector(column, Vector) > x, Integers);
      row += __builtin_convertvector(__builtin_convertvector(row, Vector) > y, Integers);
      const Vector right = x - __builtin_convertvector(column, Vector);
      const Vector below = y - __builtin_convertvector(row, Vector);
      const auto columns_ = load<Integers>(columns() + i), rows_ = load<Integers>(rows() + i);
      const Integers left_in = (column >= 0) & (column < columns_);
      const Integers right_in = (column >= -1) & (column < columns_ - 1);
      const Integers upper_in = (row >= 0) & (row < rows_);
      const Integers lower_in = (row >= -1) & (row < rows_ - 1);
      const Integers inside = (left_in & upper_in & 1) | (right_in & upper_in & 2) |
                              (left_in & lower_in & 4) | (right_in & lower_in & 8);
      common &= inside;
      const Integers cell = load<Integers>(starts() + i) + row * columns_ + column;
      const auto weight = load<Vector>(weights + i);
      const Vector on_right = weight * right, on_left = weight - on_right;
      const Vector lower_right = on_right * below, lower_left = on_left * below;
      store(rights() + i, right);
      store(belows() + i, below);
      store(insides() + i, inside);
      store(cells() + i, cell);
      store(cells() + room + i, cell + 1);
      store(cells() + 2 * room + i, cell + columns_);
      store(cells() + 3 * room + i, cell + columns_ + 1);
      store(coefficients() + i, on_left - lower_left);
      store(coefficients() + room + i, on_right - lower_right);
      store(coefficients() + 2 * room + i, lower_left);
      store(coefficients() + 3 * room + i, lower_right);
    }
    all_inside = !any(common != 15);
    not_finite = any(spoilt);
  }

  // Leave only the cells that exist, and return their number.
  ISDA_INLINE int64_t compress() {
    if (all_inside) return 4 * room;
    int64_t kept = 0;
    for (int corner = 0; corner < 4; ++corner) {
      for (int64_t i = 0; i < room; i += kLanes) {
        kept = keep(
            coefficients(), cells(), corner * room + i, load<Integers>(insides() + i) >> corner,
            kept);
      }
    }
    return kept;
  }

  C* widths() { return numbers_; }
  C* heights() { return numbers_ + room; }
  C* rights() { return numbers_ + 2 * room; }
  C* belows() { return numbers_ + 3 * room; }
  C* coefficients() { return numbers_ + 4 * room; }  // (4, room), weights included
  C* dots() { return numbers_ + 8 * room; }          // (4, room)
  int32_t* columns() { return integers_; }
  int32_t* rows() { return integers_ + room; }
  int32_t* starts() { return integers_ + 2 * room; }
  int32_t* insides() { return integers_ + 3 * room; }  // bit per corner
  int32_t* cells() { return integers_ + 4 * room; }    // (4, room) tokens

  const int64_t samples, room;
  bool all_inside = false, not_finite = false;

 private:
  C* numbers_;
  int32_t* integers_;
};

// Sum kVectors vectors of channels over all rows. Two sums at once hide the latency of additions.
template <typename E, int kVectors>
ISDA_INLINE void sum_vectors(
    const typename E::Stored* value, int64_t stride, const int32_t* cells,
    const typename E::Computed* coefficients, int64_t count, typename E::Computed* sums) {
  using Vector = typename E::Vector;
  Vector even[kVectors], odd[kVectors];
  for (int v = 0; v < kVectors; ++v) even[v] = odd[v] = Vector{};
  int64_t i = 0;
  for (; i + 1 < count; i += 2) {
    const auto* first = value + cells[i] * stride;
    const auto* second = value + cells[i + 1] * stride;
    for (int v = 0; v < kVectors; ++v) {
      even[v] += coefficients[i] * E::vector(first + v * lanes<Vector>());
      odd[v] += coefficients[i + 1] * E::vector(second + v * lanes<Vector>());
    }
  }
  if (i < count) {
    const auto* last = value + cells[i] * stride;
    for (int v = 0; v < kVectors; ++v) {
      even[v] += coefficients[i] * E::vector(last + v * lanes<Vector>());
    }
  }
  for (int v = 0; v < kVectors; ++v) store(sums + v * lanes<Vector>(), even[v] + odd[v]);
}

// Sum all channels over all rows.
template <typename E>
ISDA_INLINE void sum_rows(
    const typename E::Stored* value, int64_t stride, const int32_t* cells,
    const typename E::Computed* coefficients, int64_t count, int64_t channels,
    typename E::Computed* sums) {
  constexpr int kLanes = lanes<typename E::Vector>();
  int64_t done = 0;
  for (; done + 4 * kLanes <= channels; done += 4 * kLanes) {
    sum_vectors<E, 4>(value + done, stride, cells, coefficients, count, sums + done);
  }
  if (done + 2 * kLanes <= channels) {
    sum_vectors<E, 2>(value + done, stride, cells, coefficients, count, sums + done);
    done += 2 * kLanes;
  }
  if (done + kLanes <= channels) {
    sum_vectors<E, 1>(value + done, stride, cells, coefficients, count, sums + done);
    done += kLanes;
  }
  if (done < channels && channels >= kLanes) {  // once more, in part, for the rest
    done = channels - kLanes;
    sum_vectors<E, 1>(value + done, stride, cells, coefficients, count, sums + done);
  } else {
    for (; done < channels; ++done) {
      typename E::Computed sum = 0;
      for (int64_t i = 0; i < count; ++i) {
        sum += coefficients[i] * E::widen(value[cells[i] * stride + done]);
      }
      sums[done] = sum;
    }
  }
}

template <typename E>
void forward(const Problem& problem, int64_t begin, int64_t end) {
  using C = typename E::Computed;
  using Stored = typename E::Stored;
  Sampler<C> sampler(problem);
  const int64_t samples = sampler.samples, channels = problem.channels;
  const int64_t stride = problem.heads * channels;
  const int64_t blocks = (problem.queries + kQueriesPerBlock - 1) / kQueriesPerBlock;
  C* sums = new C[channels];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t image = block / blocks;
    const int64_t first = block % blocks * kQueriesPerBlock;
    const int64_t last =
        first + kQueriesPerBlock < problem.queries ? first + kQueriesPerBlock : problem.queries;
    // Head by head, since the next query's head reads much of what this one's has read.
    for (int64_t head = 0; head < problem.heads; ++head) {
      const auto* value =
          static_cast<const Stored*>(problem.value) + image * problem.tokens * stride +
          head * channels;
      for (int64_t query = first; query < last; ++query) {
        const int64_t bag = (image * problem.queries + query) * problem.heads + head;
        sampler.template place<false>(
            static_cast<const C*>(problem.locations) + bag * samples * 2,
            static_cast<const C*>(problem.weights) + bag * samples);
        const int64_t count = sampler.compress();
        sum_rows<E>(
            value, stride, sampler.cells(), sampler.coefficients(), count, channels, sums);
        auto* output = static_cast<Stored*>(problem.output) + bag * channels;
        const C spoilt = sampler.not_finite ? C(__builtin_nan("")) : C(0);
        for (int64_t c = 0; c < channels; ++c) output[c] = E::narrow(sums[c] + spoilt);
      }
    }
  }
  delete[] sums;
}

// The gradient of one query and head's output, ready to be multiplied: in vectors of channels, of
// which the last one may overlap its neighbour and is zero there.
template <typename E>
struct Gradient {
  using C = typename E::Computed;
  static constexpr int kLanes = lanes<typename E::Vector>();

  explicit Gradient(int64_t channels)
      : channels(channels),
        vectors(channels < kLanes ? 0 : (channels + kLanes - 1) / kLanes),
        numbers(new C[(vectors + 1) * kLanes]),
        no_cell(new typename E::Stored[channels]()),
        no_grad_cell(new C[channels]()) {}
  ~Gradient() {
    delete[] numbers;
    delete[] no_cell;
    delete[] no_grad_cell;
  }
  Gradient(const Gradient&) = delete;
  Gradient& operator=(const Gradient&) = delete;

  ISDA_INLINE int64_t offset(int64_t vector) const {
    const int64_t offset = vector * kLanes, last = channels - kLanes;
    return offset < last ? offset : last;
  }
  ISDA_INLINE void read(const typename E::Stored* from) {
    for (int64_t c = 0; c < channels; ++c) numbers[c] = E::widen(from[c]);
    const int64_t rest = channels % kLanes;
    if (vectors == 0 || rest == 0) return;
    C* last = numbers + (vectors - 1) * kLanes;
    for (int64_t lane = kLanes - 1; lane >= 0; --lane) {
      last[lane] = lane < kLanes - rest ? C(0) : E::widen(from[channels - kLanes + lane]);
    }
  }

  const int64_t channels;
  const int64_t vectors;
  C* const numbers;
  // In place of cells outside: without them there are no branches that depend on the data.
  typename E::Stored* const no_cell;  // zeros
  C* const no_grad_cell;
};

// One cell: its product with the gradient, lane by lane, and its own gradient. kVectors is 0 where
// the number of vectors is not known to the compiler.
template <typename E, int kVectors, bool kValue, bool kGeometry>
ISDA_INLINE typename E::Vector visit(
    const typename E::Stored* cell, typename E::Computed* grad_cell,
    typename E::Computed coefficient, const Gradient<E>& gradient) {
  using Vector = typename E::Vector;
  const int64_t vectors = kVectors ? kVectors : gradient.vectors;
  Vector product{};
  for (int64_t v = 0; v < vectors; ++v) {
    const Vector grad = load<Vector>(gradient.numbers + v * lanes<Vector>());
    const int64_t offset = gradient.offset(v);
    if (kGeometry) product += grad * E::vector(cell + offset);
    if (kValue) store(grad_cell + offset, load<Vector>(grad_cell + offset) + coefficient * grad);
  }
  return product;
}

template <typename E, bool kValue, bool kGeometry>
ISDA_INLINE typename E::Computed visit_few_channels(
    const typename E::Stored* cell, typename E::Computed* grad_cell,
    typename E::Computed coefficient, const Gradient<E>& gradient) {
  typename E::Computed product = 0;
  for (int64_t c = 0; c < gradient.channels; ++c) {
    if (kGeometry) product += gradient.numbers[c] * E::widen(cell[c]);
    if (kValue) grad_cell[c] += coefficient * gradient.numbers[c];
  }
  return product;
}

template <typename E, int kVectors, bool kValue, bool kGeometry>
ISDA_INLINE void visit_cells(
    Sampler<typename E::Computed>& sampler, const typename E::Stored* value,
    typename E::Computed* grad_value, int64_t stride, const Gradient<E>& gradient) {
  using C = typename E::Computed;
  const int64_t room = sampler.room;
  for (int64_t i = 0; i < sampler.samples; ++i) {
    const int32_t inside = sampler.insides()[i];
    typename E::Vector products[4] = {};
    C sums[4] = {};
    for (int corner = 0; corner < 4; ++corner) {
      const bool exists = inside >> corner & 1;
      const int64_t at = sampler.cells()[corner * room + i] * stride;
      const auto* cell = exists ? value + at : gradient.no_cell;
      C* grad_cell = kValue && exists ? grad_value + at : gradient.no_grad_cell;
      const C coefficient = sampler.coefficients()[corner * room + i];
      if (kVectors == 0 && gradient.vectors == 0) {
        sums[corner] = visit_few_channels<E, kValue, kGeometry>(
            cell, grad_cell, coefficient, gradient);
      } else {
        products[corner] = visit<E, kVectors, kValue, kGeometry>(
            cell, grad_cell, coefficient, gradient);
      }
    }
    if (!kGeometry) continue;
    if (kVectors || gradient.vectors) add_lanes(products, sums);
    for (int corner = 0; corner < 4; ++corner) sampler.dots()[corner * room + i] = sums[corner];
  }
}

// From the products of the gradient and the four cells to those of locations and weights.
template <typename C>
ISDA_INLINE void differentiate(
    Sampler<C>& sampler, const C* __restrict weights, C* __restrict grad_locations,
    C* __restrict grad_weights) {
  const int64_t n = sampler.samples;
  const C* __restrict d00 = sampler.dots();
  const C* __restrict d01 = d00 + sampler.room;
  const C* __restrict d10 = d01 + sampler.room;
  const C* __restrict d11 = d10 + sampler.room;
  const C* __restrict right = sampler.rights();
  const C* __restrict below = sampler.belows();
  const C* __restrict width = sampler.widths();
  const C* __restrict height = sampler.heights();
  for (int64_t i = 0; i < n; ++i) {
    const C upper_slope = d01[i] - d00[i], lower_slope = d11[i] - d10[i];
    const C upper = d00[i] + right[i] * upper_slope;
    const C lower = d10[i] + right[i] * lower_slope;
    grad_weights[i] = upper + below[i] * (lower - upper);
    const C slope = upper_slope + below[i] * (lower_slope - upper_slope);
    grad_locations[2 * i] = weights[i] * width[i] * slope;
    grad_locations[2 * i + 1] = weights[i] * height[i] * (lower - upper);
  }
}

template <typename E, int kVectors, bool kValue, bool kGeometry>
void backward_slices(const Problem& problem, int64_t begin, int64_t end) {
  using C = typename E::Computed;
  using Stored = typename E::Stored;
  Sampler<C> sampler(problem);
  Gradient<E> gradient(problem.channels);
  const int64_t samples = sampler.samples, channels = problem.channels;
  const int64_t stride = problem.heads * channels;
  for (int64_t slice = begin; slice < end; ++slice) {
    const int64_t image = slice / problem.heads, head = slice % problem.heads;
    const int64_t origin = image * problem.tokens * stride + head * channels;
    const Stored* value = static_cast<const Stored*>(problem.value) + origin;
    C* grad_value = kValue ? static_cast<C*>(problem.grad_value) + origin : nullptr;
    for (int64_t query = 0; query < problem.queries; ++query) {
      const int64_t bag = (image * problem.queries + query) * problem.heads + head;
      const C* weights = static_cast<const C*>(problem.weights) + bag * samples;
      sampler.template place<true>(
          static_cast<const C*>(problem.locations) + bag * samples * 2, weights);
      gradient.read(static_cast<const Stored*>(problem.grad_output) + bag * channels);
      visit_cells<E, kVectors, kValue, kGeometry>(sampler, value, grad_value, stride, gradient);
      if (kGeometry) {
        differentiate(
            sampler, weights, static_cast<C*>(problem.grad_locations) + bag * samples * 2,
            static_cast<C*>(problem.grad_weights) + bag * samples);
      }
    }
  }
}

template <typename E, int kVectors>
void backward_wanted(const Problem& problem, int64_t begin, int64_t end) {
  const bool geometry = problem.grad_locations != nullptr;
  if (problem.grad_value && geometry) {
    backward_slices<E, kVectors, true, true>(problem, begin, end);
  } else if (problem.grad_value) {
    backward_slices<E, kVectors, true, false>(problem, begin, end);
  } else if (geometry) {
    backward_slices<E, kVectors, false, true>(problem, begin, end);
  }
}

template <typename E>
void backward(const Problem& problem, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = lanes<typename E::Vector>();
  if (problem.channels == 2 * kLanes) return backward_wanted<E, 2>(problem, begin, end);
  if (problem.channels == 4 * kLanes) return backward_wanted<E, 4>(problem, begin, end);
  if (problem.channels == 8 * kLanes) return backward_wanted<E, 8>(problem, begin, end);
  backward_wanted<E, 0>(problem, begin, end);
}

}  // namespace

Kernels kernels(Type type) {
  switch (type) {
    case Type::kDouble:
      return {forward<Double>, backward<Double>};
    case Type::kFloat:
      return {forward<Float>, backward<Float>};
    case Type::kBFloat16:
      return {forward<BFloat16>, backward<BFloat16>};
    case Type::kHalf:
      return {forward<Half>, backward<Half>};
  }
  return {nullptr, nullptr};
}

}  // namespace ISDA_ARCHITECTURE
}  // namespace isda
