// What the bindings of the CPU and the CUDA kernels share: the types of tensors, checks that keep
// memory safe whoever calls, and the module that Python imports.

#pragma once

#include <Python.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace isda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// `Type` is that of the kernels.
template <typename Type>
Type type_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return Type::kDouble;
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    case ScalarType::Half:
      return Type::kHalf;
    default:
      STD_TORCH_CHECK(false, "value must be float64, float32, bfloat16 or float16");
  }
}

inline ScalarType computed_with(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_shape(
    const Tensor& tensor, const char* name, const std::vector<int64_t>& expected) {
  bool same = tensor.dim() == int64_t(expected.size());
  for (size_t i = 0; same && i < expected.size(); ++i) same = tensor.size(i) == expected[i];
  STD_TORCH_CHECK(same, name, " does not have the shape that the value and the others ask for");
}

inline void check_shapes_and_types(
    const Tensor& value, const Tensor& shapes, const Tensor& starts, const Tensor& locations,
    const Tensor& weights) {
  STD_TORCH_CHECK(
      value.dim() == 4 && weights.dim() == 5,
      "value must be (B, S, heads, channels) and attention_weights (B, Q, heads, L, points)");
  const int64_t B = value.size(0), M = value.size(2), Q = weights.size(1);
  const int64_t L = weights.size(3), P = weights.size(4);
  check_shape(weights, "attention_weights", {B, Q, M, L, P});
  check_shape(locations, "sampling_locations", {B, Q, M, L, P, 2});
  check_shape(shapes, "spatial_shapes", {L, 2});
  check_shape(starts, "level_start_index", {L});
  const ScalarType wide = computed_with(value.scalar_type());
  STD_TORCH_CHECK(
      locations.scalar_type() == wide && weights.scalar_type() == wide,
      "sampling_locations and attention_weights must be float64 if value is, else float32");
  STD_TORCH_CHECK(
      shapes.scalar_type() == ScalarType::Long && starts.scalar_type() == ScalarType::Long,
      "spatial_shapes and level_start_index must be int64");
}

// `shapes` and `starts` are contiguous and on the CPU.
inline void check_levels(const Tensor& shapes, const Tensor& starts, int64_t tokens) {
  const auto* extents = static_cast<const int64_t*>(shapes.const_data_ptr());
  const auto* first = static_cast<const int64_t*>(starts.const_data_ptr());
  for (int64_t level = 0; level < starts.size(0); ++level) {
    const int64_t height = extents[2 * level], width = extents[2 * level + 1];
    const int64_t start = first[level];
    // Extents first, so that their product cannot overflow. One that is beyond the tokens is
    // harmless beside a zero, but coordinates must be exact.
    const bool bounded = height >= 0 && width >= 0 && start >= 0 && start <= tokens &&
                         height <= (1 << 24) && width <= (1 << 24);
    STD_TORCH_CHECK(
        bounded && start + height * width <= tokens, "level ", level, " of ", height, "x", width,
        " cells from token ", start, " does not fit into the value's ", tokens, " tokens");
  }
}

inline void check_backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& weights,
    const std::vector<bool>& output_mask) {
  check_shape(
      grad_output, "grad_output",
      {value.size(0), weights.size(1), value.size(2) * value.size(3)});
  STD_TORCH_CHECK(
      grad_output.scalar_type() == value.scalar_type(), "grad_output must have the value's dtype");
  STD_TORCH_CHECK(output_mask.size() == 3, "output_mask must have three entries");
}

// An empty module: loading it registers the kernels.
inline PyObject* module_of(const char* name, const char* about) {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, name, about, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}

}  // namespace isda
