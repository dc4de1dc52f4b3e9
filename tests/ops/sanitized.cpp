// Runs the CPU kernels on many small problems, for tools/sanitize_cpu_kernels.sh: the sanitizers
// watch, and both ways to read the value must give the same bits. Knows no PyTorch.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels.h"

namespace {

using isda::Kernels;
using isda::Problem;
using isda::Type;

std::mt19937 generator(0);

// Exactly as long as the kernels may read and write, so that the sanitizers see one step beyond.
template <typename T>
std::vector<T> numbers(int64_t size, double low, double high) {
  std::uniform_real_distribution<double> uniform(low, high);
  std::vector<T> result(size);
  for (T& number : result) number = T(uniform(generator));
  return result;
}

// Some that are far outside, on borders, infinite or not numbers.
template <typename C>
void spoil(std::vector<C>& locations) {
  const C odd[] = {C(1e30), C(-1e30), C(0), C(1), std::numeric_limits<C>::infinity(),
                   -std::numeric_limits<C>::infinity(), std::numeric_limits<C>::quiet_NaN()};
  for (size_t i = 0; i < locations.size(); i += 5) locations[i] = odd[generator() % 7];
}

template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename Stored, typename C>
bool runs(const Kernels& kernels, int64_t channels, int64_t points, int64_t queries) {
  const std::vector<int64_t> shapes = {3, 4, 1, 1, 0, 2, 2, 5}, starts = {0, 12, 13, 13};
  Problem p{};
  p.images = 2, p.tokens = 23, p.heads = 3, p.channels = channels;
  p.queries = queries, p.levels = 4, p.points = points;
  const int64_t bags = p.images * queries * p.heads, samples = bags * p.levels * points;
  const auto value = numbers<Stored>(p.images * p.tokens * p.heads * channels, 0, 100);
  const auto weights = numbers<C>(samples, -1, 1);
  const auto grads = numbers<Stored>(bags * channels, 0, 100);
  auto locations = numbers<C>(2 * samples, -0.3, 1.3);
  spoil(locations);
  p.shapes = shapes.data(), p.starts = starts.data(), p.value = value.data();
  p.locations = locations.data(), p.weights = weights.data();
  std::vector<Stored> outputs[2];
  std::vector<C> of_locations[2], of_weights[2];
  const int64_t blocks = (queries + isda::kQueriesPerBlock - 1) / isda::kQueriesPerBlock;
  for (int repacked = 0; repacked < 2; ++repacked) {
    outputs[repacked].resize(bags * channels);
    p.output = outputs[repacked].data();
    if (repacked) {
      kernels.forward_repacked(p, 0, p.images * p.heads * blocks);
    } else {
      kernels.forward(p, 0, p.images * blocks);
    }
    of_locations[repacked].resize(2 * samples);
    of_weights[repacked].resize(samples);
    p.grad_output = grads.data(), p.grad_locations = of_locations[repacked].data();
    p.grad_weights = of_weights[repacked].data();
    std::vector<C> wide(value.size());
    std::vector<Stored> narrow(value.size());
    const int64_t shares = repacked ? 4 : 1;
    if (repacked) {
      p.grad_value = narrow.data();
      kernels.backward_repacked(p, shares, 0, p.images * p.heads * shares);
    } else {
      p.grad_value = wide.data();
      kernels.backward(p, shares, 0, p.images * p.heads * shares);
    }
  }
  return same(outputs[0], outputs[1]) && same(of_locations[0], of_locations[1]) &&
         same(of_weights[0], of_weights[1]);
}

bool all_run(Kernels (*kernels)(Type), const char* name) {
  for (const int64_t channels : {1, 4, 7, 16, 20, 32, 64, 71}) {
    for (const int64_t points : {1, 3, 4}) {
      for (const int64_t queries : {1, 37}) {
        const bool good =
            runs<double, double>(kernels(Type::kDouble), channels, points, queries) &&
            runs<float, float>(kernels(Type::kFloat), channels, points, queries) &&
            runs<uint16_t, float>(kernels(Type::kBFloat16), channels, points, queries) &&
            runs<uint16_t, float>(kernels(Type::kHalf), channels, points, queries);
        if (good) continue;
        std::printf("%s: %d channels, %d points, %d queries: bits differ\n", name, int(channels),
                    int(points), int(queries));
        return false;
      }
    }
  }
  std::printf("%s: good\n", name);
  return true;
}

}  // namespace

int main() {
  bool good = all_run(isda::baseline::kernels, "baseline");
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    good = all_run(isda::avx2::kernels, "avx2") && good;
  }
#endif
  return good ? 0 : 1;
}
