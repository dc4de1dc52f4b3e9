// Registers the CUDA kernels of isda::ms_deform_attn and its backward with PyTorch, through the
// stable ABI: one binary serves PyTorch 2.10 and later. Python defines the operators and reports
// mistakes to users.

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../bindings.h"
#include "kernels.h"
#include "plan.h"

namespace {

using isda::Problem;
using isda::Sorting;
using isda::Type;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The kernels of a type.
struct Kernels {
  decltype(&isda::forward<Type::kFloat>) forward;
  decltype(&isda::backward<Type::kFloat>) backward;
  decltype(&isda::find_bins<Type::kFloat>) find_bins;
  decltype(&isda::collect_grads<Type::kFloat>) collect_grads;
};

template <Type type>
Kernels kernels_of() {
  return {
      isda::forward<type>, isda::backward<type>, isda::find_bins<type>, isda::collect_grads<type>};
}

Kernels kernels(Type type) {
  switch (type) {
    case Type::kDouble:
      return kernels_of<Type::kDouble>();
    case Type::kFloat:
      return kernels_of<Type::kFloat>();
    case Type::kBFloat16:
      return kernels_of<Type::kBFloat16>();
    default:
      return kernels_of<Type::kHalf>();
  }
}

// Kernels read 16 bytes at once; a tensor may begin anywhere in another.
Tensor contiguous_and_aligned(const Tensor& tensor) {
  const Tensor contiguous = torch::stable::contiguous(tensor);
  const auto address = reinterpret_cast<uintptr_t>(contiguous.const_data_ptr());
  return address % 16 ? torch::stable::clone(contiguous) : contiguous;
}

// The current stream of the tensor's device, which is the current one as long as this lives.
struct Device {
  explicit Device(const Tensor& tensor) : guard(tensor.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  }
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
};

// The inputs, ready to be read, and the problem that points into them.
struct Inputs {
  Inputs(
      const Tensor& value_, const Tensor& shapes_, const Tensor& starts_,
      const Tensor& locations_, const Tensor& weights_)
      : device(value_),
        value(contiguous_and_aligned(value_)),
        shapes(torch::stable::contiguous(shapes_)),
        starts(torch::stable::contiguous(starts_)),
        locations(contiguous_and_aligned(locations_)),
        weights(contiguous_and_aligned(weights_)) {
    isda::check_shapes_and_types(value, shapes, starts, locations, weights);
    count();
    check_devices();
    problem.value = value.const_data_ptr();
    problem.locations = locations.const_data_ptr();
    problem.weights = weights.const_data_ptr();
    const bool on_host = shapes.is_cpu() && starts.is_cpu();
    if (on_host) isda::check_levels(shapes, starts, problem.tokens);
    if (on_host && problem.levels <= isda::kLevelsByValue) {
      for (int level = 0; level < problem.levels; ++level) {
        problem.levels_by_value[level][0] = at(shapes, 2 * level);
        problem.levels_by_value[level][1] = at(shapes, 2 * level + 1);
        problem.levels_by_value[level][2] = at(starts, level);
      }
    } else {
      shapes = torch::stable::to(shapes, value.device());
      starts = torch::stable::to(starts, value.device());
      problem.shapes = static_cast<const long long*>(shapes.const_data_ptr());
      problem.starts = static_cast<const long long*>(starts.const_data_ptr());
    }
  }

  static int64_t at(const Tensor& integers, int64_t i) {
    return static_cast<const int64_t*>(integers.const_data_ptr())[i];
  }

  void count() {
    const int64_t B = value.size(0), S = value.size(1), M = value.size(2), D = value.size(3);
    const int64_t Q = weights.size(1), L = weights.size(3), P = weights.size(4);
    // Counts that kernels keep in 32 bits.
    const int64_t most = std::numeric_limits<int32_t>::max();
    for (int64_t count : {B, 2 * S + 2, M, D, Q, L, P}) {
      STD_TORCH_CHECK(count <= most, "a tensor has too long an axis: ", count);
    }
    const bool none = B == 0 || Q == 0 || M == 0;
    STD_TORCH_CHECK(none || L * P <= most / 2, "there are too many samples: ", L * P);
    STD_TORCH_CHECK(none || L * P == 0 || M * D <= most / 16, "rows are too long: ", M * D);
    problem.images = int(B);
    problem.tokens = int(S);
    problem.heads = int(M);
    problem.channels = int(D);
    problem.queries = int(Q);
    problem.levels = int(L);
    problem.points = int(P);
  }

  void check_devices() const {
    check_device(locations);
    check_device(weights);
    if (!shapes.is_cpu()) check_device(shapes);
    if (!starts.is_cpu()) check_device(starts);
  }

  void check_device(const Tensor& tensor) const {
    STD_TORCH_CHECK(
        tensor.is_cuda() && tensor.get_device_index() == value.get_device_index(),
        "all tensors must be on the value's device; only shapes and starts may be on the CPU");
  }

  bool empty() const { return value.numel() == 0 || weights.numel() == 0; }

  Device device;
  Tensor value, shapes, starts, locations, weights;
  Problem problem{};
};

Tensor forward(
    Tensor value, Tensor shapes, Tensor starts, Tensor locations, Tensor weights) {
  Inputs inputs(value, shapes, starts, locations, weights);
  Problem& problem = inputs.problem;
  const std::array<int64_t, 3> size = {
      problem.images, problem.queries, int64_t(problem.heads) * problem.channels};
  if (inputs.empty()) return torch::stable::new_zeros(value, size);
  Tensor output = torch::stable::new_empty(value, size);
  problem.output = output.mutable_data_ptr();
  kernels(isda::type_of<Type>(value.scalar_type())).forward(problem, inputs.device.stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

// Integers sorted, and where each was.
std::pair<Tensor, Tensor> stably_sorted(const Tensor& keys) {
  std::array<StableIValue, 4> stack = {
      torch::stable::detail::from(keys),
      torch::stable::detail::from(std::optional<bool>(true)),
      torch::stable::detail::from(int64_t(-1)),
      torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {
      torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// The gradient of the values, summed in an order that does not depend on chance. Image by image,
// for the sake of memory.
Tensor deterministic_grad_value(const Inputs& inputs, Problem problem, const Kernels& kernels) {
  const ScalarType integer = ScalarType::Int;
  const int64_t bins = int64_t(problem.heads) * problem.levels * (2 * int64_t(problem.tokens) + 2);
  const std::array<int64_t, 1> samples = {inputs.weights.numel() / problem.images};
  STD_TORCH_CHECK(
      std::max(bins, samples[0]) < std::numeric_limits<int32_t>::max(),
      "an image has too many tokens or samples for deterministic algorithms");
  Tensor grad_value = torch::stable::new_empty(inputs.value, inputs.value.sizes());
  problem.grad_value = grad_value.mutable_data_ptr();
  problem.grad_locations = problem.grad_weights = nullptr;
  const int64_t stored = inputs.value.element_size(), computed = inputs.weights.element_size();
  for (; problem.images > 0; isda::skip_images(problem, 1, stored, computed, stored)) {
    Tensor keys = torch::stable::new_empty(inputs.weights, samples, integer);
    Sorting sorting{static_cast<int*>(keys.mutable_data_ptr()), nullptr, nullptr, nullptr};
    kernels.find_bins(problem, sorting, inputs.device.stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    const auto [sorted, order] = stably_sorted(keys);
    const std::array<int64_t, 2> of_records = {samples[0], 4}, of_ranges = {bins, 2};
    Tensor records = torch::stable::new_empty(inputs.weights, of_records);
    Tensor ranges = torch::stable::new_zeros(inputs.weights, of_ranges, integer);
    sorting.keys = static_cast<int*>(sorted.mutable_data_ptr());
    sorting.order = static_cast<const long long*>(order.const_data_ptr());
    sorting.records = records.mutable_data_ptr();
    sorting.ranges = static_cast<int*>(ranges.mutable_data_ptr());
    kernels.collect_grads(problem, sorting, inputs.device.stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return grad_value;
}

std::tuple<Tensor, Tensor, Tensor> backward(
    Tensor grad_output, Tensor value, Tensor shapes, Tensor starts, Tensor locations,
    Tensor weights, std::vector<bool> output_mask, bool deterministic) {
  Inputs inputs(value, shapes, starts, locations, weights);
  Problem& problem = inputs.problem;
  const ScalarType type = value.scalar_type(), wide = isda::computed_with(type);
  isda::check_backward(grad_output, value, weights, output_mask);
  inputs.check_device(grad_output);
  const bool geometry = output_mask[1] || output_mask[2];
  const std::array<int64_t, 1> nothing = {0};
  Tensor grad_value = torch::stable::new_empty(value, nothing);
  Tensor grad_locations = torch::stable::new_empty(locations, nothing);
  Tensor grad_weights = torch::stable::new_empty(weights, nothing);
  if (inputs.empty()) {
    if (output_mask[0]) grad_value = torch::stable::new_zeros(value, value.sizes());
    if (output_mask[1]) grad_locations = torch::stable::new_zeros(locations, locations.sizes());
    if (output_mask[2]) grad_weights = torch::stable::new_zeros(weights, weights.sizes());
    return {grad_value, grad_locations, grad_weights};
  }
  const Tensor grads = contiguous_and_aligned(grad_output);
  problem.grad_output = grads.const_data_ptr();
  const Kernels run = kernels(isda::type_of<Type>(type));
  if (output_mask[0] && deterministic) {
    grad_value = deterministic_grad_value(inputs, problem, run);
  } else if (output_mask[0]) {
    grad_value = torch::stable::new_zeros(value, value.sizes(), wide);
    problem.grad_value = grad_value.mutable_data_ptr();
  }
  if (geometry) {  // one costs as much as both
    grad_locations = torch::stable::new_empty(locations, locations.sizes());
    grad_weights = torch::stable::new_empty(weights, weights.sizes());
    problem.grad_locations = grad_locations.mutable_data_ptr();
    problem.grad_weights = grad_weights.mutable_data_ptr();
  }
  if (problem.grad_value || geometry) {
    run.backward(problem, inputs.device.stream);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (problem.grad_value && wide != type) grad_value = torch::stable::to(grad_value, type);
  if (!output_mask[1]) grad_locations = torch::stable::new_empty(locations, nothing);
  if (!output_mask[2]) grad_weights = torch::stable::new_empty(weights, nothing);
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace

// Python registers the backward operator itself, since it alone can tell whether PyTorch is to be
// deterministic.
STABLE_TORCH_LIBRARY_IMPL(isda, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&forward));
  m.impl("ms_deform_attn_backward_cuda", TORCH_BOX(&backward));
}

PyMODINIT_FUNC PyInit__msda_cuda() {
  return isda::module_of("_msda_cuda", "CUDA kernels of isda.ops, registered with PyTorch.");
}
