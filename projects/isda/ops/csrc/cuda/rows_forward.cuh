// The output, for rows of some lengths.

#pragma once

#include "rows.cuh"

namespace isda {

// A sample as the lanes that read its rows need it.
struct Sample {
  unsigned upper, lower;  // tokens; the first with flags below
  float coefficients[4];
  static constexpr unsigned kRight = 1, kInside = 2;  // there is a next column; a sample at all

  Sample() = default;

  // What is outside is replaced by what is inside, and both get half the coefficient: so nothing
  // infinite is ever multiplied by zero.
  ISDA_DEVICE Sample(const Place<float>& place, const Extents& extents, float weight) {
    const Cells cells(place, extents);
    const bool columns = cells.left_in && cells.right_in;
    const bool rows = cells.upper_in && cells.lower_in;
    const float half_column = 0.5f * (cells.left_in ? 1 - place.right : place.right);
    const float half_row = 0.5f * (cells.upper_in ? 1 - place.below : place.below);
    const float left = columns ? 1 - place.right : half_column;
    const float right = columns ? place.right : half_column;
    const float above = weight * (rows ? 1 - place.below : half_row);
    const float below = weight * (rows ? place.below : half_row);
    coefficients[0] = above * left;
    coefficients[1] = above * right;
    coefficients[2] = below * left;
    coefficients[3] = below * right;
    upper = cells.upper << kFlagBits | (place.inside ? kInside : 0) | (columns ? kRight : 0);
    lower = cells.lower;
  }

  // That of a lane of this group.
  template <int kLanes>
  ISDA_DEVICE Sample of(int lane) const {
    Sample sample;
    sample.upper = __shfl_sync(kWholeWarp, upper, lane, kLanes);
    sample.lower = __shfl_sync(kWholeWarp, lower, lane, kLanes);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sample.coefficients[i] = __shfl_sync(kWholeWarp, coefficients[i], lane, kLanes);
    }
    return sample;
  }
};

// Add the samples that lanes j, j + 1, ... have placed. All rows are asked for before any is used.
template <typename T, int kLanes, int kBatch>
ISDA_DEVICE void add_samples(
    const Sample& mine, int j, const Words<4>* rows, unsigned row_bytes,
    float (&sums)[16 / sizeof(T)]) {
  Sample samples[kBatch];
  Corners<Words<4>> corners[kBatch];
#pragma unroll
  for (int k = 0; k < kBatch; ++k) {
    samples[k] = mine.of<kLanes>(j + k);
    const unsigned right = samples[k].upper & Sample::kRight;
    corners[k].read(rows, row_bytes, samples[k].upper >> kFlagBits, samples[k].lower, right);
  }
#pragma unroll
  for (int k = 0; k < kBatch; ++k) {
    const unsigned inside = samples[k].upper & Sample::kInside;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      float row[16 / sizeof(T)];
      unpack(corners[k].vectors[corner], row, T());
      add_products(inside, samples[k].coefficients[corner], row, sums);
    }
  }
}

// Add up what the groups of a team have summed, and write it.
template <typename T, typename Schedule>
ISDA_DEVICE void write_sums(
    T* output, const Position<Schedule>& position, bool active, float spoilt,
    float (&sums)[16 / sizeof(T)]) {
#pragma unroll
  for (int distance = Schedule::kLanes; distance < Schedule::kTeam; distance *= 2) {
#pragma unroll
    for (float& sum : sums) sum += __shfl_xor_sync(kWholeWarp, sum, distance);
  }
  const unsigned everyone = kWholeWarp >> (32 - Schedule::kTeam);
  const unsigned of_team = threadIdx.x % 32 / Schedule::kTeam * Schedule::kTeam;
  if (__ballot_sync(kWholeWarp, spoilt != 0) >> of_team & everyone) {
    for (float& sum : sums) sum = __int_as_float(0x7fffffff);
  }
  if (!active || position.group != 0) return;
  store_words(reinterpret_cast<Words<4>*>(output) + position.lane, pack(sums, T()));
}

template <typename T, typename Schedule, int kSamples>
ISDA_KERNEL(Schedule::kThreads) forward_rows(const __grid_constant__ Problem problem) {
  constexpr int kLanes = Schedule::kLanes, kChunk = Schedule::kChunk;
  constexpr int kBatch = kChunk < 2 ? 1 : 2;
  ISDA_SHARED(Extents, extents);
  const Position<Schedule> position;
  read_extents(problem, position.image, extents);
  const int samples = kSamples ? kSamples : problem.levels * problem.points;
  const unsigned row_bytes = problem.heads * kLanes * 16;
  const auto* rows = in_registers(
      static_cast<const Words<4>*>(problem.value) + position.head * kLanes + position.lane);
  const Queries<Schedule> queries(problem);
  for (int i = position.team; i < Schedule::kBags; i += Schedule::kTeams) {
    const int query = queries.of(i);
    const bool active = query >= 0;
    const long long bag = position.bag(problem, query);
    float sums[16 / sizeof(T)] = {};
    float spoilt = 0;
    int own = position.group * kChunk + position.lane;
    const int own_samples = active && position.lane < kChunk ? samples : 0;
    Given next(problem, bag * samples, own, own_samples);
#pragma unroll
    for (int base = 0; base < samples; base += kChunk * Schedule::kGroups) {
      const Given given = next;
      const Extents level = extents[given.exists ? own : 0];
      own += kChunk * Schedule::kGroups;
      next = Given(problem, bag * samples, own, own_samples);
      const auto where = place<false>(given.u, given.v, level.width, level.height);
      const Sample mine(where, level, given.weight);
      spoilt += where.spoilt;
#pragma unroll
      for (int j = 0; j < kChunk; j += kBatch) {
        if (kSamples == 0 && base + j >= samples) break;
        add_samples<T, kLanes, kBatch>(mine, j, rows, row_bytes, sums);
      }
    }
    auto* output = static_cast<T*>(problem.output) + bag * kLanes * (16 / sizeof(T));
    write_sums(output, position, active, spoilt, sums);
  }
}

}  // namespace isda
