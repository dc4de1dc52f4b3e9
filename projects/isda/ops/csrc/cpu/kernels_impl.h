// The kernels, written once and compiled per instruction set: the including file chooses the set
// and has ISDA_ARCHITECTURE name it.
//
// No function of the standard library that is a template or inline may be called from here: the
// linker keeps one copy of each, which might be the one for a processor that is not there.

#include "kernels.h"

#define ISDA_INLINE inline __attribute__((always_inline))

#include "vectors_impl.h"

namespace isda {
namespace ISDA_ARCHITECTURE {
namespace {

// Zeros, at the start of a cache line.
template <typename T>
class Array {
 public:
  explicit Array(int64_t size)
      : data_(static_cast<T*>(::operator new[](size * sizeof(T) + kLine, std::align_val_t(kLine)))) {
    __builtin_memset(data_, 0, size * sizeof(T));
  }
  ~Array() { ::operator delete[](data_, std::align_val_t(kLine)); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ISDA_INLINE T* get() const { return data_; }

 private:
  static constexpr int64_t kLine = 64;
  T* const data_;
};

struct Level {
  int64_t height, width, start;
  int64_t origin;  // number of cell (0, 0)
  int64_t pitch;   // from a row to the next
};

// Some levels of one head of one image, and how their cells are numbered.
//
// kPacked: level below level, with an empty cell before every row and behind the last, and an
// empty row above and below, so that a sample anywhere reads four cells without a test. Cells 0
// and 1 are empty as well, for samples that see nothing. Else: as tokens are.
template <bool kPacked>
struct Map {
  Map(const Problem& problem, int64_t first, int64_t last)
      : first(first), last(last), levels(last - first), cells(kPacked ? 2 : problem.tokens) {
    for (int64_t i = 0; i < last; ++i) {
      Level level{problem.shapes[2 * i], problem.shapes[2 * i + 1], problem.starts[i], 0, 0};
      level.pitch = level.width + (kPacked ? 1 : 0);
      level.origin = kPacked ? cells + level.pitch + 1 : level.start;
      if (kPacked) cells += (level.height + 2) * level.pitch + 1;
      if (i >= first) levels.get()[i - first] = level;
    }
  }

  // Call function(token, cell, length) for every row of the levels.
  template <typename Function>
  ISDA_INLINE void for_rows(Function function) const {
    for (int64_t i = 0; i < last - first; ++i) {
      const Level& level = levels.get()[i];
      for (int64_t row = 0; row < level.height; ++row) {
        function(level.start + row * level.width, level.origin + row * level.pitch, level.width);
      }
    }
  }

  const int64_t first, last;
  const Array<Level> levels;
  int64_t cells;
};

// Where the samples of one query and head fall. Arrays are `room` long per corner, and corner
// after corner: the cell of a sample, its right one, the one below, the one below right.
template <typename C, bool kPacked>
class Sampler {
 public:
  using Vector = typename VectorOf<C>::Type;
  using Integers = typename IntegersOf<Vector>::Type;
  static constexpr int kLanes = lanes<Vector>();

  Sampler(const Problem& problem, const Map<kPacked>& map)
      : samples((map.last - map.first) * problem.points),
        room((samples + kLanes - 1) / kLanes * kLanes),
        numbers_(room * 15),
        integers_(room * 8) {
    for (int64_t i = 0; i < samples; ++i) {
      const Level& level = map.levels.get()[i / problem.points];
      heights()[i] = C(level.height);
      widths()[i] = C(level.width);
      rows()[i] = int32_t(level.height);
      columns()[i] = int32_t(level.width);
      origins()[i] = int32_t(level.origin);
      pitches()[i] = int32_t(level.pitch);
    }
  }

  // Place the samples. For the output (kForward) a location that is infinite or not a number makes
  // its coefficients NaN. Else samples exactly one cell left of or above a level are kept: their
  // output is zero, but their derivative on the right is not.
  template <bool kForward>
  ISDA_INLINE void place(const C* locations, const C* weights) {
    if (room != samples) {
      C* padded = numbers_.get() + 12 * room;
      __builtin_memcpy(padded, locations, 2 * samples * sizeof(C));
      __builtin_memcpy(padded + 2 * room, weights, samples * sizeof(C));
      locations = padded;
      weights = padded + 2 * room;
    }
    for (int64_t i = 0; i < room; i += kLanes) {
      const auto width = load<Vector>(widths() + i), height = load<Vector>(heights() + i);
      Vector x, y, weight = load<Vector>(weights + i);
      part(locations + 2 * i, x, y);
      x = x * width - C(0.5);
      y = y * height - C(0.5);
      if (kForward) weight += (x + y) * C(0);
      const auto seen = kForward ? (x > C(-1)) & (x < width) & (y > C(-1)) & (y < height)
                                 : (x >= C(-1)) & (x < width) & (y >= C(-1)) & (y < height);
      x = where(seen, x);
      y = where(seen, y);
      Integers column = __builtin_convertvector(x, Integers);
      Integers row = __builtin_convertvector(y, Integers);
      // Truncated: one too many if negative. Masks are -1.
      column += __builtin_convertvector(__builtin_convertvector(column, Vector) > x, Integers);
      row += __builtin_convertvector(__builtin_convertvector(row, Vector) > y, Integers);
      const Vector right = x - __builtin_convertvector(column, Vector);
      const Vector below = y - __builtin_convertvector(row, Vector);
      number(i, column, row, __builtin_convertvector(seen, Integers));
      const Vector on_right = weight * right, on_left = weight - on_right;
      const Vector lower_right = on_right * below, lower_left = on_left * below;
      if (!kForward) {
        store(rights() + i, right);
        store(belows() + i, below);
      }
      store(coefficients() + i, on_left - lower_left);
      store(coefficients() + room + i, on_right - lower_right);
      store(coefficients() + 2 * room + i, lower_left);
      store(coefficients() + 3 * room + i, lower_right);
    }
  }

  // The four cells of a sample, in a table of `stride` numbers per cell.
  template <typename T>
  ISDA_INLINE void corners(
      int64_t sample, T* table, int64_t stride, T* nowhere, T* (&corners)[4]) const {
    if (kPacked) {
      corners[0] = table + cells()[sample] * stride;
      corners[1] = corners[0] + stride;
      corners[2] = table + cells()[room + sample] * stride;
      corners[3] = corners[2] + stride;
    } else {
      for (int corner = 0; corner < 4; ++corner) {
        const int32_t cell = cells()[corner * room + sample];
        corners[corner] = cell < 0 ? nowhere : table + cell * stride;
      }
    }
  }

  ISDA_INLINE C* widths() const { return numbers_.get(); }
  ISDA_INLINE C* heights() const { return numbers_.get() + room; }
  ISDA_INLINE C* rights() const { return numbers_.get() + 2 * room; }
  ISDA_INLINE C* belows() const { return numbers_.get() + 3 * room; }
  ISDA_INLINE C* coefficients() const { return numbers_.get() + 4 * room; }  // (4, room), weighted
  ISDA_INLINE C* dots() const { return numbers_.get() + 8 * room; }          // (4, room)

  const int64_t samples, room;

 private:
  // Number the cells: kPacked the upper and the lower left one, else all, or -1 for those outside.
  ISDA_INLINE void number(int64_t i, Integers column, Integers row, Integers seen) {
    const auto pitch = load<Integers>(pitches() + i);
    const Integers cell = load<Integers>(origins() + i) + row * pitch + column;
    if (kPacked) {
      store(cells() + i, cell & seen);
      store(cells() + room + i, (cell + pitch) & seen);
      return;
    }
    const Integers left = ~(seen & (column >= 0));
    const Integers right = ~(seen & (column < load<Integers>(columns() + i) - 1));
    const Integers above = row < 0, below = row >= load<Integers>(rows() + i) - 1;
    store(cells() + i, cell | left | above);
    store(cells() + room + i, (cell + 1) | right | above);
    store(cells() + 2 * room + i, (cell + pitch) | left | below);
    store(cells() + 3 * room + i, (cell + pitch + 1) | right | below);
  }

  ISDA_INLINE int32_t* columns() const { return integers_.get(); }
  ISDA_INLINE int32_t* rows() const { return integers_.get() + room; }
  ISDA_INLINE int32_t* origins() const { return integers_.get() + 2 * room; }
  ISDA_INLINE int32_t* pitches() const { return integers_.get() + 3 * room; }
  ISDA_INLINE int32_t* cells() const { return integers_.get() + 4 * room; }  // (4, room)

  const Array<C> numbers_;
  const Array<int32_t> integers_;
};

// Sum kVectors vectors of channels over all cells. Several sums at once hide the latency of
// additions.
template <typename E, int kVectors, bool kPacked>
ISDA_INLINE void sum_vectors(
    const Sampler<typename E::Computed, kPacked>& sampler, const typename E::Stored* value,
    int64_t stride, const typename E::Stored* nowhere, typename E::Computed* sums) {
  using Vector = typename E::Vector;
  constexpr int kSums = kVectors > 2 ? 2 : 4;
  const int64_t room = sampler.room;
  Vector partial[kSums][kVectors] = {};
  for (int64_t i = 0; i < sampler.samples; ++i) {
    const typename E::Stored* cells[4];
    sampler.corners(i, value, stride, nowhere, cells);
    for (int corner = 0; corner < 4; ++corner) {
      const auto coefficient = sampler.coefficients()[corner * room + i];
      for (int v = 0; v < kVectors; ++v) {
        partial[corner % kSums][v] += coefficient * E::vector(cells[corner] + v * lanes<Vector>());
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    Vector sum = partial[0][v] + partial[1][v];
    if (kSums == 4) sum += partial[kSums - 2][v] + partial[kSums - 1][v];
    store(sums + v * lanes<Vector>(), sum);
  }
}

// Sum all channels over all cells.
template <typename E, bool kPacked>
ISDA_INLINE void sum_cells(
    const Sampler<typename E::Computed, kPacked>& sampler, const typename E::Stored* value,
    int64_t stride, const typename E::Stored* nowhere, int64_t channels,
    typename E::Computed* sums) {
  constexpr int kLanes = lanes<typename E::Vector>();
  int64_t done = 0;
  for (; done + 4 * kLanes <= channels; done += 4 * kLanes) {
    sum_vectors<E, 4, kPacked>(sampler, value + done, stride, nowhere, sums + done);
  }
  if (done + 2 * kLanes <= channels) {
    sum_vectors<E, 2, kPacked>(sampler, value + done, stride, nowhere, sums + done);
    done += 2 * kLanes;
  }
  if (done + kLanes <= channels) {
    sum_vectors<E, 1, kPacked>(sampler, value + done, stride, nowhere, sums + done);
    done += kLanes;
  }
  if (done < channels && channels >= kLanes) {  // once more, in part, for the rest
    done = channels - kLanes;
    sum_vectors<E, 1, kPacked>(sampler, value + done, stride, nowhere, sums + done);
  } else {
    for (; done < channels; ++done) {
      typename E::Computed sum = 0;
      for (int64_t i = 0; i < sampler.samples; ++i) {
        const typename E::Stored* cells[4];
        sampler.corners(i, value + done, stride, nowhere, cells);
        for (int corner = 0; corner < 4; ++corner) {
          sum += sampler.coefficients()[corner * sampler.room + i] * E::widen(*cells[corner]);
        }
      }
      sums[done] = sum;
    }
  }
}

// Have what the query and head after some others reads, and writes, fetched already: beside those
// of other heads it lies where the processor does not expect it.
template <bool kWritten, typename T>
ISDA_INLINE void fetch(const T* row, int64_t length) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int64_t i = 0; i < length * int64_t(sizeof(T)); i += 64) {
    __builtin_prefetch(bytes + i, kWritten);
  }
}
constexpr int64_t kQueriesAhead = 8, kTokensAhead = 16, kSamplesAhead = 4;

// What a thread needs for the output of queries.
template <typename E, bool kPacked>
struct Forward {
  using C = typename E::Computed;
  using Stored = typename E::Stored;

  explicit Forward(const Problem& problem)
      : problem(problem),
        map(problem, 0, problem.levels),
        sampler(problem, map),
        sums(problem.channels),
        nowhere(problem.channels) {}

  ISDA_INLINE void query(const Stored* table, int64_t stride, int64_t bag) {
    const int64_t samples = sampler.samples, channels = problem.channels;
    sampler.template place<true>(
        static_cast<const C*>(problem.locations) + bag * samples * 2,
        static_cast<const C*>(problem.weights) + bag * samples);
    sum_cells<E, kPacked>(sampler, table, stride, nowhere.get(), channels, sums.get());
    auto* output = static_cast<Stored*>(problem.output) + bag * channels;
    for (int64_t c = 0; c < channels; ++c) output[c] = E::narrow(sums.get()[c]);
  }

  ISDA_INLINE void fetch_query(int64_t bag) const {
    const int64_t samples = sampler.samples, channels = problem.channels;
    fetch<false>(static_cast<const C*>(problem.locations) + bag * samples * 2, samples * 2);
    fetch<false>(static_cast<const C*>(problem.weights) + bag * samples, samples);
    fetch<true>(static_cast<const Stored*>(problem.output) + bag * channels, channels);
  }

  const Problem& problem;
  const Map<kPacked> map;
  Sampler<C, kPacked> sampler;
  const Array<C> sums;
  const Array<Stored> nowhere;  // zeros, in place of cells outside
};

ISDA_INLINE int64_t blocks_of(const Problem& problem) {
  return (problem.queries + kQueriesPerBlock - 1) / kQueriesPerBlock;
}

// Call function(query) for those of a block.
template <typename Function>
ISDA_INLINE void for_queries(const Problem& problem, int64_t block, Function function) {
  const int64_t first = block * kQueriesPerBlock;
  for (int64_t i = 0; i < kQueriesPerBlock && first + i < problem.queries; ++i) function(first + i);
}

template <typename E>
void forward(const Problem& problem, int64_t begin, int64_t end) {
  Forward<E, false> forward(problem);
  const int64_t stride = problem.heads * problem.channels, blocks = blocks_of(problem);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t image = block / blocks;
    const auto* value = static_cast<const typename E::Stored*>(problem.value) +
                        image * problem.tokens * stride;
    // Query by query: what its heads read is on the same pages.
    for_queries(problem, block % blocks, [&](int64_t query) {
      for (int64_t head = 0; head < problem.heads; ++head) {
        const int64_t bag = (image * problem.queries + query) * problem.heads + head;
        forward.query(value + head * problem.channels, stride, bag);
      }
    });
  }
}

// Copy one head's tokens to their cells.
template <typename T>
ISDA_INLINE void pack(
    const Map<true>& map, const T* tokens, int64_t stride, int64_t channels, T* cells) {
  map.for_rows([&](int64_t token, int64_t cell, int64_t length) {
    const T* from = tokens + token * stride;
    T* to = cells + cell * channels;
    for (int64_t i = 0; i < length; ++i, from += stride, to += channels) {
      if (i + kTokensAhead < length) fetch<false>(from + kTokensAhead * stride, channels);
      for (int64_t c = 0; c < channels; ++c) to[c] = from[c];
    }
  });
}

template <typename E>
void forward_repacked(const Problem& problem, int64_t begin, int64_t end) {
  Forward<E, true> forward(problem);
  const int64_t channels = problem.channels, heads = problem.heads;
  const int64_t stride = heads * channels, blocks = blocks_of(problem);
  const Array<typename E::Stored> table(forward.map.cells * channels);
  int64_t packed = -1;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t slice = block / blocks, image = slice / heads, head = slice % heads;
    if (slice != packed) {
      const auto* value = static_cast<const typename E::Stored*>(problem.value) +
                          image * problem.tokens * stride + head * channels;
      pack(forward.map, value, stride, channels, table.get());
      packed = slice;
    }
    for_queries(problem, block % blocks, [&](int64_t query) {
      const int64_t bag = (image * problem.queries + query) * heads + head;
      if (query + kQueriesAhead < problem.queries) forward.fetch_query(bag + kQueriesAhead * heads);
      forward.query(table.get(), channels, bag);
    });
  }
}

// The gradient of one query and head's output, ready to be multiplied: in vectors of channels, of
// which the last one may overlap its neighbour and is zero there. kVectors is 0 where their number
// is not known to the compiler.
template <typename E, int kVectors>
struct Gradient {
  using C = typename E::Computed;
  using Vector = typename E::Vector;
  static constexpr int kLanes = lanes<Vector>();

  explicit Gradient(int64_t channels)
      : channels(channels),
        many(channels < kLanes ? 0 : (channels + kLanes - 1) / kLanes),
        numbers(channels + kLanes) {}

  ISDA_INLINE int64_t vectors() const { return kVectors ? kVectors : many; }
  ISDA_INLINE int64_t offset(int64_t vector) const {
    const int64_t offset = vector * kLanes, last = channels - kLanes;
    return kVectors || offset < last ? offset : last;
  }
  ISDA_INLINE Vector vector(int64_t vector) const {
    return load<Vector>(numbers.get() + vector * kLanes);
  }
  ISDA_INLINE void read(const typename E::Stored* from) {
    for (int64_t v = 0; kVectors && v < kVectors; ++v) {
      store(numbers.get() + v * kLanes, E::vector(from + v * kLanes));
    }
    if (kVectors) return;
    for (int64_t c = 0; c < channels; ++c) numbers.get()[c] = E::widen(from[c]);
    const int64_t rest = channels % kLanes;
    if (many == 0 || rest == 0) return;
    C* last = numbers.get() + (many - 1) * kLanes;
    for (int64_t lane = kLanes - 1; lane >= 0; --lane) {
      last[lane] = lane < kLanes - rest ? C(0) : E::widen(from[channels - kLanes + lane]);
    }
  }

  const int64_t channels;
  const int64_t many;
  const Array<C> numbers;
};

// One cell: its product with the gradient, lane by lane, and its own gradient.
template <typename E, int kVectors, bool kValue, bool kGeometry>
ISDA_INLINE typename E::Vector visit(
    const typename E::Stored* cell, typename E::Computed* grad_cell,
    typename E::Computed coefficient, const Gradient<E, kVectors>& gradient) {
  using Vector = typename E::Vector;
  Vector product{};
  for (int64_t v = 0; v < gradient.vectors(); ++v) {
    const Vector grad = gradient.vector(v);
    const int64_t offset = gradient.offset(v);
    if (kGeometry) product += grad * E::vector(cell + offset);
    if (kValue) store(grad_cell + offset, load<Vector>(grad_cell + offset) + coefficient * grad);
  }
  return product;
}

template <typename E, bool kValue, bool kGeometry>
ISDA_INLINE typename E::Computed visit_few_channels(
    const typename E::Stored* cell, typename E::Computed* grad_cell,
    typename E::Computed coefficient, const Gradient<E, 0>& gradient) {
  typename E::Computed product = 0;
  for (int64_t c = 0; c < gradient.channels; ++c) {
    if (kGeometry) product += gradient.numbers.get()[c] * E::widen(cell[c]);
    if (kValue) grad_cell[c] += coefficient * gradient.numbers.get()[c];
  }
  return product;
}

// From the products of the gradient and the four cells to those of locations and weights.
template <typename C, bool kPacked>
ISDA_INLINE void differentiate(
    const Sampler<C, kPacked>& sampler, const C* __restrict weights, C* __restrict grad_locations,
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

// What a thread needs for the gradients of some levels.
template <typename E, int kVectors, bool kValue, bool kGeometry, bool kPacked>
struct Backward {
  using C = typename E::Computed;
  using Stored = typename E::Stored;

  Backward(const Problem& problem, const Map<kPacked>& map)
      : problem(problem),
        first(map.first * problem.points),
        sampler(problem, map),
        gradient(problem.channels),
        nowhere(problem.channels),
        grad_nowhere(problem.channels) {}

  ISDA_INLINE void query(const Stored* table, C* grad_table, int64_t stride, int64_t bag) {
    const int64_t at = bag * problem.levels * problem.points + first;
    const C* weights = static_cast<const C*>(problem.weights) + at;
    sampler.template place<false>(static_cast<const C*>(problem.locations) + 2 * at, weights);
    gradient.read(static_cast<const Stored*>(problem.grad_output) + bag * problem.channels);
    for (int64_t i = 0; i < sampler.samples; ++i) {
      if (!kPacked && i + kSamplesAhead < sampler.samples) {
        fetch_sample(table, grad_table, stride, i + kSamplesAhead);
      }
      visit_sample(table, grad_table, stride, i);
    }
    if (!kGeometry) return;
    differentiate(
        sampler, weights, static_cast<C*>(problem.grad_locations) + 2 * at,
        static_cast<C*>(problem.grad_weights) + at);
  }

  ISDA_INLINE void fetch_query(int64_t bag) const {
    const int64_t at = bag * problem.levels * problem.points + first, samples = sampler.samples;
    fetch<false>(static_cast<const C*>(problem.locations) + 2 * at, 2 * samples);
    fetch<false>(static_cast<const C*>(problem.weights) + at, samples);
    const auto* grads = static_cast<const Stored*>(problem.grad_output);
    fetch<false>(grads + bag * problem.channels, problem.channels);
    if (!kGeometry) return;
    fetch<true>(static_cast<const C*>(problem.grad_locations) + 2 * at, 2 * samples);
    fetch<true>(static_cast<const C*>(problem.grad_weights) + at, samples);
  }

 private:
  ISDA_INLINE void fetch_sample(
      const Stored* table, C* grad_table, int64_t stride, int64_t sample) {
    const Stored* cells[4];
    C* grad_cells[4];
    if (kGeometry) {
      sampler.corners(sample, table, stride, const_cast<const Stored*>(nowhere.get()), cells);
      for (const Stored* cell : cells) fetch<false>(cell, problem.channels);
    }
    if (kValue) {
      sampler.corners(sample, grad_table, stride, grad_nowhere.get(), grad_cells);
      for (const C* cell : grad_cells) fetch<true>(cell, problem.channels);
    }
  }

  ISDA_INLINE void visit_sample(
      const Stored* table, C* grad_table, int64_t stride, int64_t sample) {
    const Stored* cells[4] = {};
    C* grad_cells[4] = {};
    if (kGeometry) {
      sampler.corners(sample, table, stride, const_cast<const Stored*>(nowhere.get()), cells);
    }
    if (kValue) sampler.corners(sample, grad_table, stride, grad_nowhere.get(), grad_cells);
    typename E::Vector products[4] = {};
    C sums[4] = {};
    for (int corner = 0; corner < 4; ++corner) {
      const C coefficient = sampler.coefficients()[corner * sampler.room + sample];
      if constexpr (kVectors == 0) {
        if (gradient.many == 0) {
          sums[corner] = visit_few_channels<E, kValue, kGeometry>(
              cells[corner], grad_cells[corner], coefficient, gradient);
          continue;
        }
      }
      products[corner] = visit<E, kVectors, kValue, kGeometry>(
          cells[corner], grad_cells[corner], coefficient, gradient);
    }
    if (!kGeometry) return;
    if (kVectors || gradient.many) add_lanes(products, sums);
    for (int corner = 0; corner < 4; ++corner) {
      sampler.dots()[corner * sampler.room + sample] = sums[corner];
    }
  }

  const Problem& problem;
  const int64_t first;  // sample of the first level
  Sampler<C, kPacked> sampler;
  Gradient<E, kVectors> gradient;
  // In place of cells outside: without them there are no branches that depend on the data.
  const Array<Stored> nowhere;  // zeros
  const Array<C> grad_nowhere;
};

// Take one head's gradients from their cells, which get zero.
template <typename E>
ISDA_INLINE void unpack(
    const Map<true>& map, typename E::Computed* cells, int64_t channels, int64_t stride,
    typename E::Stored* tokens) {
  map.for_rows([&](int64_t token, int64_t cell, int64_t length) {
    auto* from = cells + cell * channels;
    auto* to = tokens + token * stride;
    for (int64_t i = 0; i < length; ++i, from += channels, to += stride) {
      if (i + kTokensAhead < length) fetch<true>(to + kTokensAhead * stride, channels);
      for (int64_t c = 0; c < channels; ++c) to[c] = E::narrow(from[c]);
      __builtin_memset(from, 0, channels * sizeof(*from));
    }
  });
}

// Which share of the levels of which head.
struct Share {
  Share(const Problem& problem, int64_t shares, int64_t number)
      : image(number / shares / problem.heads),
        head(number / shares % problem.heads),
        first(number % shares * (problem.levels / shares)),
        last(first + problem.levels / shares) {}

  const int64_t image, head, first, last;
};

// Heads that follow each other, of one image.
template <typename E, int kVectors, bool kValue, bool kGeometry>
void backward_heads(const Problem& problem, const Share& share, int64_t heads) {
  using Stored = typename E::Stored;
  using C = typename E::Computed;
  const int64_t channels = problem.channels, stride = problem.heads * channels;
  const int64_t origin = share.image * problem.tokens * stride + share.head * channels;
  const Map<false> map(problem, share.first, share.last);
  Backward<E, kVectors, kValue, kGeometry, false> backward(problem, map);
  const auto* value = static_cast<const Stored*>(problem.value) + origin;
  C* grad_value = kValue ? static_cast<C*>(problem.grad_value) + origin : nullptr;
  for (int64_t query = 0; query < problem.queries; ++query) {
    const int64_t bag = (share.image * problem.queries + query) * problem.heads + share.head;
    for (int64_t head = 0; head < heads; ++head) {
      C* grads = kValue ? grad_value + head * channels : nullptr;
      backward.query(value + head * channels, grads, stride, bag + head);
    }
  }
}

template <typename E, int kVectors, bool kValue, bool kGeometry>
void backward_share_repacked(
    const Problem& problem, const Share& share, const Map<true>& map,
    const Array<typename E::Stored>& table, const Array<typename E::Computed>& grad_table) {
  using Stored = typename E::Stored;
  const int64_t channels = problem.channels, stride = problem.heads * channels;
  const int64_t origin = share.image * problem.tokens * stride + share.head * channels;
  Backward<E, kVectors, kValue, kGeometry, true> backward(problem, map);
  if (kGeometry) {
    const auto* value = static_cast<const Stored*>(problem.value) + origin;
    pack(map, value, stride, channels, table.get());
  }
  for (int64_t query = 0; query < problem.queries; ++query) {
    const int64_t bag = (share.image * problem.queries + query) * problem.heads + share.head;
    if (query + kQueriesAhead < problem.queries) {
      backward.fetch_query(bag + kQueriesAhead * problem.heads);
    }
    backward.query(table.get(), grad_table.get(), channels, bag);
  }
  if (!kValue) return;
  auto* grad_value = static_cast<Stored*>(problem.grad_value) + origin;
  unpack<E>(map, grad_table.get(), channels, stride, grad_value);
}

template <typename E, int kVectors, bool kValue, bool kGeometry, bool kRepacked>
void backward_shares(const Problem& problem, int64_t shares, int64_t begin, int64_t end) {
  if (!kRepacked) {
    // Query by query, as forward: what its heads read, and change, is on the same pages.
    for (int64_t number = begin; number < end;) {
      const Share share(problem, shares, number);
      const int64_t left = end - number, of_image = problem.heads - share.head;
      const int64_t heads = shares > 1 ? 1 : left < of_image ? left : of_image;
      backward_heads<E, kVectors, kValue, kGeometry>(problem, share, heads);
      number += heads;
    }
    return;
  }
  // The tables serve one share after the other: fresh memory is slow.
  const Map<true> all(problem, 0, problem.levels);
  const Array<typename E::Stored> table(kGeometry ? all.cells * problem.channels : 0);
  const Array<typename E::Computed> grad_table(kValue ? all.cells * problem.channels : 0);
  for (int64_t number = begin; number < end; ++number) {
    const Share share(problem, shares, number);
    const Map<true> map(problem, share.first, share.last);
    backward_share_repacked<E, kVectors, kValue, kGeometry>(
        problem, share, map, table, grad_table);
  }
}

template <typename E, int kVectors, bool kRepacked>
void backward_wanted(const Problem& problem, int64_t shares, int64_t begin, int64_t end) {
  const bool geometry = problem.grad_locations != nullptr;
  if (problem.grad_value && geometry) {
    backward_shares<E, kVectors, true, true, kRepacked>(problem, shares, begin, end);
  } else if (problem.grad_value) {
    backward_shares<E, kVectors, true, false, kRepacked>(problem, shares, begin, end);
  } else if (geometry) {
    backward_shares<E, kVectors, false, true, kRepacked>(problem, shares, begin, end);
  }
}

template <typename E, bool kRepacked>
void backward(const Problem& problem, int64_t shares, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = lanes<typename E::Vector>();
  if (problem.channels == 2 * kLanes) {
    return backward_wanted<E, 2, kRepacked>(problem, shares, begin, end);
  }
  if (problem.channels == 4 * kLanes) {
    return backward_wanted<E, 4, kRepacked>(problem, shares, begin, end);
  }
  if (problem.channels == 8 * kLanes) {
    return backward_wanted<E, 8, kRepacked>(problem, shares, begin, end);
  }
  backward_wanted<E, 0, kRepacked>(problem, shares, begin, end);
}

template <typename E>
Kernels kernels_for() {
  return {forward<E>, forward_repacked<E>, backward<E, false>, backward<E, true>};
}

}  // namespace

Kernels kernels(Type type) {
  switch (type) {
    case Type::kDouble:
      return kernels_for<Double>();
    case Type::kFloat:
      return kernels_for<Float>();
    case Type::kBFloat16:
      return kernels_for<BFloat16>();
    case Type::kHalf:
      return kernels_for<Half>();
  }
  return {nullptr, nullptr, nullptr, nullptr};
}

}  // namespace ISDA_ARCHITECTURE
}  // namespace isda
