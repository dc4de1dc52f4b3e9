// Registers the CPU kernels of isda::ms_deform_attn and its backward with PyTorch, through the
// stable ABI: one binary serves PyTorch 2.10 and later. Python defines the operators and reports
// mistakes to users.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "../bindings.h"
#include "kernels.h"

namespace {

using isda::Kernels;
using isda::Problem;
using isda::Type;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kWorkPerThread = 1 << 17;  // samples times channels, some 50 microseconds
constexpr int64_t kReadsPerCopy = 4;  // of every token, so that copying it pays

Kernels kernels(Type type) {
#if defined(__x86_64__)
  // ISDA_MSDA_CPU=baseline is for tests.
  static const bool modern = [] {
    const char* wanted = std::getenv("ISDA_MSDA_CPU");
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c") && !(wanted && std::strcmp(wanted, "baseline") == 0);
  }();
  if (modern) return isda::avx2::kernels(type);
#endif
  return isda::baseline::kernels(type);
}

// The inputs, contiguous, and the problem that points into them.
struct Inputs {
  Inputs(
      const Tensor& value_, const Tensor& shapes_, const Tensor& starts_,
      const Tensor& locations_, const Tensor& weights_)
      : value(torch::stable::contiguous(value_)),
        shapes(torch::stable::contiguous(shapes_)),
        starts(torch::stable::contiguous(starts_)),
        locations(torch::stable::contiguous(locations_)),
        weights(torch::stable::contiguous(weights_)) {
    isda::check_shapes_and_types(value, shapes, starts, locations, weights);
    for (const Tensor* tensor : {&shapes, &starts, &locations, &weights}) {
      STD_TORCH_CHECK(tensor->is_cpu(), "all tensors must be on the CPU, as value is");
    }
    problem.images = value.size(0);
    problem.tokens = value.size(1);
    problem.heads = value.size(2);
    problem.channels = value.size(3);
    problem.queries = weights.size(1);
    problem.levels = weights.size(3);
    problem.points = weights.size(4);
    STD_TORCH_CHECK(
        problem.tokens <= std::numeric_limits<int32_t>::max() / 4, "value has too many tokens: ",
        problem.tokens);
    isda::check_levels(shapes, starts, problem.tokens);
    problem.shapes = static_cast<const int64_t*>(shapes.const_data_ptr());
    problem.starts = static_cast<const int64_t*>(starts.const_data_ptr());
    problem.value = value.const_data_ptr();
    problem.locations = locations.const_data_ptr();
    problem.weights = weights.const_data_ptr();
  }

  // How many units of work, each of so many queries and heads, are worth a thread.
  int64_t grain(int64_t bags) const {
    return 1 + kWorkPerThread / (bags * samples() * problem.channels);
  }

  // Whether the queries of one head read so much that its tokens should be copied together first.
  bool worth_repacking() const {
    int64_t cells = 2;  // with the empty ones around the levels, which may be many
    for (int64_t level = 0; level < problem.levels; ++level) {
      cells += (problem.shapes[2 * level] + 2) * (problem.shapes[2 * level + 1] + 1) + 1;
    }
    return cells <= 2 * problem.tokens + 1024 && reads() >= kReadsPerCopy * problem.tokens;
  }

  // Whether a token belongs to two levels, or there may be some that belong to none.
  bool overlap() const {
    for (int64_t a = 0; a < problem.levels; ++a) {
      for (int64_t b = 0; b < a; ++b) {
        if (start(a) < end(b) && start(b) < end(a)) return true;
      }
    }
    return false;
  }
  bool gaps() const {
    int64_t covered = 0;
    for (int64_t level = 0; level < problem.levels; ++level) covered += end(level) - start(level);
    return covered != problem.tokens;
  }

  int64_t samples() const { return problem.levels * problem.points; }
  int64_t reads() const { return problem.queries * samples() * 4; }
  int64_t start(int64_t level) const { return problem.starts[level]; }
  int64_t end(int64_t level) const {
    return start(level) + problem.shapes[2 * level] * problem.shapes[2 * level + 1];
  }
  bool empty() const { return value.numel() == 0 || weights.numel() == 0; }

  Tensor value, shapes, starts, locations, weights;
  Problem problem{};
};

Tensor forward(
    Tensor value, Tensor shapes, Tensor starts, Tensor locations, Tensor weights) {
  Inputs inputs(value, shapes, starts, locations, weights);
  Problem& problem = inputs.problem;
  const std::array<int64_t, 3> size = {
      problem.images, problem.queries, problem.heads * problem.channels};
  if (inputs.empty()) return torch::stable::new_zeros(value, size);
  Tensor output = torch::stable::new_empty(value, size);
  problem.output = output.mutable_data_ptr();
  const Kernels run = kernels(isda::type_of<Type>(value.scalar_type()));
  const int64_t blocks =
      (problem.queries + isda::kQueriesPerBlock - 1) / isda::kQueriesPerBlock;
  if (inputs.worth_repacking()) {
    const int64_t enough = blocks * kReadsPerCopy * problem.tokens / inputs.reads();
    torch::stable::parallel_for(
        0, problem.images * problem.heads * blocks,
        std::max(inputs.grain(isda::kQueriesPerBlock), enough),
        [&](int64_t begin, int64_t end) { run.forward_repacked(problem, begin, end); });
  } else {
    torch::stable::parallel_for(
        0, problem.images * blocks, inputs.grain(isda::kQueriesPerBlock * problem.heads),
        [&](int64_t begin, int64_t end) { run.forward(problem, begin, end); });
  }
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_output, Tensor value, Tensor shapes, Tensor starts, Tensor locations,
    Tensor weights, std::vector<bool> output_mask) {
  Inputs inputs(value, shapes, starts, locations, weights);
  Problem& problem = inputs.problem;
  const ScalarType type = value.scalar_type(), wide = isda::computed_with(type);
  isda::check_backward(grad_output, value, weights, output_mask);
  STD_TORCH_CHECK(grad_output.is_cpu(), "all tensors must be on the CPU, as value is");
  const bool geometry = output_mask[1] || output_mask[2];
  const std::array<int64_t, 1> nothing = {0};
  const Tensor grads = torch::stable::contiguous(grad_output);
  // Repacked, a token's gradient gets complete before it is written, once, in its final type.
  const bool repacked = !inputs.empty() && inputs.worth_repacking() && !inputs.overlap();
  Tensor grad_value = !output_mask[0] ? torch::stable::new_empty(value, nothing)
                      : !repacked
                          ? torch::stable::new_zeros(inputs.value, inputs.value.sizes(), wide)
                      : inputs.gaps() ? torch::stable::new_zeros(inputs.value, inputs.value.sizes())
                                      : torch::stable::new_empty(inputs.value, inputs.value.sizes());
  const auto like = [&](const Tensor& tensor, bool wanted) {
    if (!wanted) return torch::stable::new_empty(tensor, nothing);
    // Where there is something to compute all of it gets written.
    return inputs.empty() ? torch::stable::new_zeros(tensor, tensor.sizes())
                          : torch::stable::new_empty(tensor, tensor.sizes());
  };
  Tensor grad_locations = like(inputs.locations, geometry);
  Tensor grad_weights = like(inputs.weights, geometry);
  if (!inputs.empty()) {
    problem.grad_output = grads.const_data_ptr();
    if (output_mask[0]) problem.grad_value = grad_value.mutable_data_ptr();
    if (geometry) {
      problem.grad_locations = grad_locations.mutable_data_ptr();
      problem.grad_weights = grad_weights.mutable_data_ptr();
    }
    const Kernels all = kernels(isda::type_of<Type>(type));
    const auto run = repacked ? all.backward_repacked : all.backward;
    const int64_t slices = problem.images * problem.heads;
    // Levels that share no token can be parted too; as bits go, that makes no difference.
    const int64_t shares =
        slices < torch::stable::get_num_threads() && !inputs.overlap() ? problem.levels : 1;
    torch::stable::parallel_for(
        0, slices * shares, inputs.grain(problem.queries),
        [&](int64_t begin, int64_t end) { run(problem, shares, begin, end); });
  }
  if (output_mask[0] && !repacked && wide != type) {
    grad_value = torch::stable::to(grad_value, type);
  }
  if (!output_mask[1]) grad_locations = torch::stable::new_empty(locations, nothing);
  if (!output_mask[2]) grad_weights = torch::stable::new_empty(weights, nothing);
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(isda, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&backward));
}

PyMODINIT_FUNC PyInit__msda_cpu() {
  return isda::module_of("_msda_cpu", "CPU kernels of isda.ops, registered with PyTorch.");
}
