// The gradients, for rows of some lengths.

#pragma once

#include "rows.cuh"

namespace isda {

// A sample as the lanes that read its rows need it.
struct GradSample {
  unsigned upper, lower;  // tokens; the first with flags below
  float right, below, weight;
  static constexpr unsigned kRight = 1;   // there is a next column
  static constexpr unsigned kCorner = 2;  // the first corner is inside; two, four, eight times it
                                          // is the same of the others

  GradSample() = default;

  ISDA_DEVICE GradSample(const Place<float>& place, const Extents& extents, float weight)
      : right(place.right), below(place.below), weight(weight) {
    const Cells cells(place, extents);
    const unsigned columns = cells.left_in * kCorner | cells.right_in * (2 * kCorner);
    const unsigned flags = (cells.left_in && cells.right_in ? kRight : 0) |
                           (cells.upper_in ? columns : 0) | (cells.lower_in ? columns * 4 : 0);
    upper = cells.upper << kFlagBits | (place.inside ? flags : 0);
    lower = cells.lower;
  }

  // That of a lane of this group.
  template <int kLanes>
  ISDA_DEVICE GradSample of(int lane) const {
    GradSample sample;
    sample.upper = __shfl_sync(kWholeWarp, upper, lane, kLanes);
    sample.lower = __shfl_sync(kWholeWarp, lower, lane, kLanes);
    sample.right = __shfl_sync(kWholeWarp, right, lane, kLanes);
    sample.below = __shfl_sync(kWholeWarp, below, lane, kLanes);
    sample.weight = __shfl_sync(kWholeWarp, weight, lane, kLanes);
    return sample;
  }

  ISDA_DEVICE bool inside() const { return upper & 15 * kCorner; }
  ISDA_DEVICE bool inside(int corner) const { return upper & kCorner << corner; }
};

// The derivatives of a sample by its weight and by its coordinates in cells, the latter before the
// weight is applied: as far as a lane's channels contribute, or in whole.
struct Slopes {
  float by_weight = 0, by_x = 0, by_y = 0;
};

// Sums over the lanes of a group, of kValues values one after the other. Lanes exchange halves of
// what they have, so that in the end each has a whole sum: lane i, modulo kValues, that of value i.
template <int kLanes, int kValues>
struct TransposedSum {
  float halves[5] = {};
  float total = 0;

  // To be called with i = 0, 1, ..., kValues - 1, known to the compiler.
  ISDA_DEVICE void push(int i, float value) {
    int step = 0;
#pragma unroll
    for (int distance = 1; distance < kValues; distance *= 2, ++step) {
      if (!(i & distance)) {
        halves[step] = value;
        return;
      }
      const bool odd = threadIdx.x & distance;
      const float given = odd ? halves[step] : value;
      value = (odd ? value : halves[step]) + __shfl_xor_sync(kWholeWarp, given, distance);
    }
#pragma unroll
    for (int distance = kValues; distance < kLanes; distance *= 2) {
      value += __shfl_xor_sync(kWholeWarp, value, distance);
    }
    total = value;
  }
};

// What a lane contributes to the derivatives of a sample.
template <typename T, typename Vector>
ISDA_DEVICE Slopes slopes_of(
    const GradSample& sample, const Vector* rows, unsigned row_bytes, const float (&grad)[4]) {
  Corners<Vector> corners;
  corners.read(
      rows, row_bytes, sample.upper >> kFlagBits, sample.lower, sample.upper & GradSample::kRight);
  float dots[4];
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    float row[4];
    unpack(corners.vectors[corner], row, T());
    const float dot = row[0] * grad[0] + row[1] * grad[1] + row[2] * grad[2] + row[3] * grad[3];
    dots[corner] = sample.inside(corner) ? dot : 0;
  }
  const float upper_slope = dots[1] - dots[0], lower_slope = dots[3] - dots[2];
  const float upper = dots[0] + sample.right * upper_slope;
  const float lower = dots[2] + sample.right * lower_slope;
  Slopes slopes;
  slopes.by_weight = upper + sample.below * (lower - upper);
  slopes.by_x = upper_slope + sample.below * (lower_slope - upper_slope);
  slopes.by_y = lower - upper;
  return slopes;
}

// Add a sample's part to the gradients of its cells. In place of one outside, its neighbour gets
// zero: that is rare, and a branch for every cell would cost more.
ISDA_DEVICE void add_to_cells(
    const GradSample& sample, Words<4>* rows, unsigned row_bytes, const float (&grad)[4]) {
  if (!sample.inside()) return;
  const float on_right = sample.weight * sample.right, on_left = sample.weight - on_right;
  const float lower_right = on_right * sample.below, lower_left = on_left * sample.below;
  const float coefficients[4] = {
      on_left - lower_left, on_right - lower_right, lower_left, lower_right};
  const unsigned step = sample.upper & GradSample::kRight;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const unsigned first = corner < 2 ? sample.upper >> kFlagBits : sample.lower;
    Words<4>* row = row_at(rows, corner % 2 ? first + step : first, row_bytes);
    float parts[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      parts[c] = (sample.inside(corner) ? coefficients[corner] : 0) * grad[c];
    }
    add_four(reinterpret_cast<float*>(row), parts);
  }
}

template <typename T, typename Schedule, int kSamples, bool kValue, bool kGeometry>
ISDA_KERNEL(Schedule::kThreads) backward_rows(const __grid_constant__ Problem problem) {
  constexpr int kLanes = Schedule::kLanes, kChunk = Schedule::kChunk;
  using Vector = Words<sizeof(T)>;  // four channels per lane
  ISDA_SHARED(Extents, extents);
  const Position<Schedule> position;
  read_extents(problem, position.image, extents);
  const int samples = kSamples ? kSamples : problem.levels * problem.points;
  const unsigned row_bytes = problem.heads * kLanes * sizeof(Vector);
  const unsigned grad_row_bytes = problem.heads * kLanes * sizeof(Words<4>);
  const int vector = position.head * kLanes + position.lane;
  const auto* rows = in_registers(static_cast<const Vector*>(problem.value) + vector);
  auto* grad_rows = in_registers(static_cast<Words<4>*>(problem.grad_value) + vector);
  const Queries<Schedule> queries(problem);
  for (int i = position.team; i < Schedule::kBags; i += Schedule::kTeams) {
    const int query = queries.of(i);
    const bool active = query >= 0;
    const long long bag = position.bag(problem, query);
    float grad[4] = {};
    if (active) {
      const auto* from = static_cast<const Vector*>(problem.grad_output);
      unpack(load_words(from + bag * kLanes + position.lane), grad, T());
    }
    const int own_samples = active && position.lane < kChunk ? samples : 0;
    int own = position.group * kChunk + position.lane;
    Given next(problem, bag * samples, own, own_samples);
#pragma unroll
    for (int base = 0; base < samples; base += kChunk * Schedule::kGroups) {
      const Given given = next;
      const long long at = bag * samples + own;
      const Extents level = extents[given.exists ? own : 0];
      own += kChunk * Schedule::kGroups;
      next = Given(problem, bag * samples, own, own_samples);
      const auto where = place<true>(given.u, given.v, level.width, level.height);
      const GradSample mine(where, level, given.weight);
      TransposedSum<kLanes, kChunk> by_weight, by_x, by_y;
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        Slopes slopes;
        if (kSamples != 0 || base + j < samples) {
          const GradSample sample = mine.of<kLanes>(j);
          if (kGeometry) slopes = slopes_of<T>(sample, rows, row_bytes, grad);
          if (kValue) add_to_cells(sample, grad_rows, grad_row_bytes, grad);
        }
        if (!kGeometry) continue;
        by_weight.push(j, slopes.by_weight);
        by_x.push(j, slopes.by_x);
        by_y.push(j, slopes.by_y);
      }
      if (!given.exists || !kGeometry) continue;
      store(static_cast<float*>(problem.grad_weights) + at, by_weight.total);
      const float by_u = given.weight * level.width * by_x.total;
      const float by_v = given.weight * level.height * by_y.total;
      store(static_cast<float2*>(problem.grad_locations) + at, make_float2(by_u, by_v));
    }
  }
}

}  // namespace isda
