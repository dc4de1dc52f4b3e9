// The CUDA kernels, compiled for the CPU; what Python calls.

#include "device.h"
#include "launch.cuh"

using namespace isda;

namespace {

using emulation::Use;

struct Sizes {
  int64_t stored, computed;
};

Sizes sizes_of(Type type) {
  if (type == Type::kDouble) return {8, 8};
  return {type == Type::kFloat ? 4 : 2, 4};
}

void allow(const char* name, const void* pointer, int64_t bytes, Use use) {
  if (!pointer) return;
  emulation::ranges.push_back(
      {name, static_cast<const char*>(pointer), size_t(bytes), use, std::vector<bool>(bytes)});
}

void begin(Type type, const Problem& p) {
  const Sizes sizes = sizes_of(type);
  const int64_t bags = int64_t(p.images) * p.queries * p.heads;
  const int64_t samples = bags * p.levels * p.points;
  emulation::error.clear();
  launches.clear();
  emulation::ranges.clear();
  allow("value", p.value, int64_t(p.images) * p.tokens * p.heads * p.channels * sizes.stored,
        Use::kRead);
  allow("locations", p.locations, 2 * samples * sizes.computed, Use::kRead);
  allow("weights", p.weights, samples * sizes.computed, Use::kRead);
  allow("grad_output", p.grad_output, bags * p.channels * sizes.stored, Use::kRead);
  allow("output", p.output, bags * p.channels * sizes.stored, Use::kWriteOnce);
  allow("grad_locations", p.grad_locations, 2 * samples * sizes.computed, Use::kWriteOnce);
  allow("grad_weights", p.grad_weights, samples * sizes.computed, Use::kWriteOnce);
  allow("shapes", p.shapes, 16 * p.levels, Use::kRead);
  allow("starts", p.starts, 8 * p.levels, Use::kRead);
}

void allow_grad_value(const Problem& p, int64_t bytes, Use use) {
  const int64_t cells = int64_t(p.images) * p.tokens * p.heads * p.channels;
  allow("grad_value", p.grad_value, cells * bytes, use);
}

template <typename Call>
const char* by_type(int type, Call call) {
  switch (Type(type)) {
    case Type::kDouble:
      call(std::integral_constant<Type, Type::kDouble>());
      break;
    case Type::kFloat:
      call(std::integral_constant<Type, Type::kFloat>());
      break;
    case Type::kBFloat16:
      call(std::integral_constant<Type, Type::kBFloat16>());
      break;
    case Type::kHalf:
      call(std::integral_constant<Type, Type::kHalf>());
      break;
  }
  return emulation::error.c_str();
}

}  // namespace

extern "C" {

void set_limits(int64_t blocks, int64_t tokens, int64_t bags_that_fill_it) {
  limits = {blocks, tokens, bags_that_fill_it};
}

const char* last_launches() { return launches.c_str(); }

// Any kernel of ours by its address, without checks of memory.
const char* run_launch(
    void* kernel, const int* blocks, int threads, int shared, const Problem* problem,
    const Sorting* sorting) {
  emulation::error.clear();
  emulation::checking = false;
  const dim3 grid(blocks[0], blocks[1], blocks[2]);
  if (sorting) {
    const auto typed = reinterpret_cast<void (*)(Problem, Sorting)>(kernel);
    run(typed, grid, threads, shared, nullptr, *problem, *sorting);
  } else {
    run(reinterpret_cast<void (*)(Problem)>(kernel), grid, threads, shared, nullptr, *problem);
  }
  emulation::checking = true;
  return emulation::error.c_str();
}

// These return what went wrong, or nothing.
const char* run_forward(int type, const Problem* problem) {
  begin(Type(type), *problem);
  return by_type(type, [&](auto kind) { forward<kind.value>(*problem, nullptr); });
}

const char* run_backward(int type, const Problem* problem) {
  begin(Type(type), *problem);
  allow_grad_value(*problem, sizes_of(Type(type)).computed, Use::kAdd);
  return by_type(type, [&](auto kind) { backward<kind.value>(*problem, nullptr); });
}

const char* run_find_bins(int type, const Problem* problem, const Sorting* sorting) {
  begin(Type(type), *problem);
  allow("keys", sorting->keys, 4 * samples_per_image(*problem), Use::kWriteOnce);
  return by_type(type, [&](auto kind) { find_bins<kind.value>(*problem, *sorting, nullptr); });
}

const char* run_collect_grads(int type, const Problem* problem, const Sorting* sorting) {
  begin(Type(type), *problem);
  const Sizes sizes = sizes_of(Type(type));
  const int64_t samples = samples_per_image(*problem);
  const int64_t bins = int64_t(problem->heads) * problem->levels * (2 * problem->tokens + 2);
  allow_grad_value(*problem, sizes.stored, Use::kWriteOnce);
  allow("keys", sorting->keys, 4 * samples, Use::kRead);
  allow("order", sorting->order, 8 * samples, Use::kRead);
  allow("records", sorting->records, 4 * sizes.computed * samples, Use::kWrite);
  allow("ranges", sorting->ranges, 8 * bins, Use::kWrite);
  return by_type(type, [&](auto kind) { collect_grads<kind.value>(*problem, *sorting, nullptr); });
}
}
